//! `alknet fs ls` and `alknet fs log`: what is in a directory, and what an entry was.

use std::collections::HashSet;

use alknet_call::{CallError, ErrorCode};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::address::{FilesAddress, FilesArgs};
use super::bucket;
use super::content::ContentName;
use super::failure::{FilesSubject, broken};
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::{CommandError, CommandExit, output};

/// The operation that lists a directory.
const LIST: &str = "fs/list";
/// The operation that describes an entry.
const STAT: &str = "fs/stat";
/// The operation that lists the versions of an entry.
const HISTORY: &str = "fs/history";
/// Pages of one list. A node could go on for ever: 100 million rows are more than a bucket has.
const PAGES_MAX: usize = 100_000;
/// Digits of a hash that a person reads.
const HASH_SHOWN: usize = 16;

/// Arguments of `alknet fs ls`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Print kind and permissions, bytes and time of each entry.
    #[arg(long, short)]
    long: bool,
    /// List what is below the directories as well.
    #[arg(long, short)]
    recursive: bool,
}

/// Arguments of `alknet fs log`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Print only so many versions, the newest ones.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

/// A list of a node that comes in pages.
pub(super) struct PagedList<'l> {
    /// The operation that lists.
    pub(super) operation: &'static str,
    /// The member of an answer that has the rows.
    pub(super) rows: &'static str,
    /// The member of a request that takes what the answer before had as `next`.
    pub(super) page: &'static str,
    pub(super) subject: FilesSubject<'l>,
}

impl PagedList<'_> {
    /// Hands the rows of each page to `take`, until the last page or until `take` wants no more.
    ///
    /// # Errors
    /// The node refuses, its list has no end, or `take` fails.
    pub(super) async fn read(
        &self,
        node: &NodeCaller,
        mut input: Value,
        mut take: impl FnMut(&[Value]) -> Result<bool, CommandError>,
    ) -> Result<(), CommandError> {
        self.try_read(node, &mut input, &mut take)
            .await?
            .map_err(|error| self.subject.error(self.operation, error))
    }

    /// The same, with an error of the node as it is.
    async fn try_read(
        &self,
        node: &NodeCaller,
        input: &mut Value,
        take: &mut impl FnMut(&[Value]) -> Result<bool, CommandError>,
    ) -> Result<Result<(), CallError>, CommandError> {
        let mut seen = HashSet::new();
        loop {
            let answer = match node.call(self.operation, input).await {
                Ok(answer) => answer,
                Err(error) => return Ok(Err(error)),
            };
            let answer = answer.value();
            let rows = answer[self.rows].as_array().map_or(&[][..], Vec::as_slice);
            let wants_more = take(rows)?;
            let next = &answer["next"];
            if next.is_null() || !wants_more {
                return Ok(Ok(()));
            }
            // A page that comes a second time would lead to the same ones for ever.
            if !seen.insert(next.to_string()) || seen.len() > PAGES_MAX {
                let why = "the node gives a list without an end";
                return Err(broken(self.subject.what, why));
            }
            input[self.page] = next.clone();
        }
    }

    /// All rows.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub(super) async fn all(
        &self,
        node: &NodeCaller,
        input: Value,
    ) -> Result<Vec<Value>, CommandError> {
        let mut all = Vec::new();
        let take = |rows: &[Value]| -> Result<bool, CommandError> {
            all.extend_from_slice(rows);
            Ok(true)
        };
        self.read(node, input, take).await?;
        Ok(all)
    }
}

/// The rows of a directory, with everything below it.
///
/// # Errors
/// The errors of the list.
pub(super) async fn entries_below(
    node: &NodeCaller,
    address: &FilesAddress,
    json: bool,
) -> Result<Vec<Value>, CommandError> {
    let shown = address.to_string();
    let input = json!({ "path": shown, "recursive": true });
    entry_list(&shown, json).all(node, input).await
}

/// The description of an entry.
///
/// # Errors
/// The node refuses.
pub(super) async fn entry_at(
    node: &NodeCaller,
    address: &FilesAddress,
    json: bool,
) -> Result<Value, CommandError> {
    let shown = address.to_string();
    let answer = node.call(STAT, &json!({ "path": shown })).await;
    let answer = answer.map_err(|error| FilesSubject::new(&shown, json).error(STAT, error))?;
    Ok(answer.value().clone())
}

/// The content of a file.
///
/// # Errors
/// The entry is no file, or the node refuses.
pub(super) async fn content_at(
    node: &NodeCaller,
    address: &FilesAddress,
    json: bool,
) -> Result<ContentName, CommandError> {
    let entry = entry_at(node, address, json).await?;
    ContentName::from_row(&entry).ok_or_else(|| {
        CommandError::usage(format!(
            "{address} is a {} and has no content: name its files",
            output::one_line(text(&entry["kind"]))
        ))
    })
}

const fn entry_list(shown: &str, json: bool) -> PagedList<'_> {
    PagedList {
        operation: LIST,
        rows: "entries",
        page: "page",
        subject: FilesSubject::new(shown, json),
    }
}

/// `alknet fs ls`
pub(super) fn run(args: ListArgs, json: bool) -> Result<CommandExit, CommandError> {
    let ListArgs {
        files,
        long,
        recursive,
    } = args;
    let (node, mut addresses) = files.arranged()?;
    let Some(address) = addresses.pop() else {
        return bucket::list(&node, json);
    };
    if let Some(other) = addresses.first() {
        let text = format!("one directory at a time: '{other}' is one ADDRESS too many");
        return Err(CommandError::usage(text));
    }
    let shown = address.to_string();
    let listing = DirectoryListing {
        directory: address.entry_path().to_owned(),
        is_long: long,
    };
    node.reached(async |node| {
        let list = entry_list(&shown, json);
        let mut input = json!({ "path": shown, "recursive": recursive });
        let mut all = Vec::new();
        let mut take = |rows: &[Value]| -> Result<bool, CommandError> {
            match json {
                true => all.extend_from_slice(rows),
                false => rows
                    .iter()
                    .try_for_each(|row| output::line(&listing.line(row)))?,
            }
            Ok(true)
        };
        let listed = list.try_read(node, &mut input, &mut take).await?;
        match listed {
            Ok(()) => {}
            // A file is listed as itself.
            Err(error) if is_no_directory(&error) => {
                let entry = entry_at(node, &address, json).await?;
                let line = listing.line_of(&entry, address.name().unwrap_or_default());
                match json {
                    true => all.push(entry),
                    false => output::line(&line)?,
                }
            }
            Err(error) => return Err(list.subject.error(LIST, error)),
        }
        if json {
            output::json_line(&json!({ "entries": all }))?;
        }
        Ok(CommandExit::Ok)
    })
}

fn is_no_directory(error: &CallError) -> bool {
    error.code == ErrorCode::from_name("NOT_DIR")
}

/// How the entries of a directory are printed.
struct DirectoryListing {
    /// The path of the directory.
    directory: String,
    is_long: bool,
}

impl DirectoryListing {
    /// One entry, by its path below the directory.
    fn line(&self, row: &Value) -> String {
        let path = text(&row["path"]);
        let below = path.strip_prefix(self.directory.as_str()).unwrap_or(path);
        self.line_of(row, below.strip_prefix('/').unwrap_or(below))
    }

    fn line_of(&self, row: &Value, name: &str) -> String {
        let kind = text(&row["kind"]);
        let sign = if kind == "directory" { "/" } else { "" };
        if !self.is_long {
            return format!("{name}{sign}");
        }
        let size = match row["size"].as_u64() {
            Some(size) => size.to_string(),
            None => "-".to_owned(),
        };
        let target = match row["target"].as_str() {
            Some(target) => format!(" -> {target}"),
            None => String::new(),
        };
        format!(
            "{}  {size:>12}  {}  {name}{sign}{target}",
            permissions(kind, row["mode"].as_u64().unwrap_or_default()),
            time(&row["mtime_ms"])
        )
    }
}

/// Kind and permission bits, as `ls -l` of other systems shows them.
fn permissions(kind: &str, mode: u64) -> String {
    let mut shown = String::with_capacity(10);
    shown.push(match kind {
        "directory" => 'd',
        "symlink" => 'l',
        _ => '-',
    });
    for bit in (0..9).rev() {
        let sign = ['x', 'w', 'r'][bit % 3];
        shown.push(if (mode >> bit) & 1 == 1 { sign } else { '-' });
    }
    shown
}

/// A time in milliseconds since 1970 as a date and a time of UTC.
pub(super) fn time(ms: &Value) -> String {
    let at = ms.as_i64().map(Timestamp::from_millisecond);
    match at {
        Some(Ok(at)) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        _ => "-".to_owned(),
    }
}

/// `alknet fs log`
pub(super) fn run_history(args: HistoryArgs, json: bool) -> Result<CommandExit, CommandError> {
    let HistoryArgs { files, last } = args;
    let (node, address) = files.single()?;
    let shown = address.to_string();
    node.reached(async |node| {
        let list = PagedList {
            operation: HISTORY,
            rows: "versions",
            page: "before",
            subject: FilesSubject::new(&shown, json),
        };
        let mut left = last.unwrap_or(usize::MAX);
        let mut all = Vec::new();
        let take = |rows: &[Value]| -> Result<bool, CommandError> {
            let rows = &rows[..rows.len().min(left)];
            left -= rows.len();
            match json {
                true => all.extend_from_slice(rows),
                false => rows
                    .iter()
                    .try_for_each(|row| output::line(&version_line(row)))?,
            }
            Ok(left > 0)
        };
        list.read(node, json!({ "path": shown }), take).await?;
        if json {
            output::json_line(&json!({ "versions": all }))?;
        }
        Ok(CommandExit::Ok)
    })
}

/// One version: its commit, when and by which key it was made, and what it is.
fn version_line(row: &Value) -> String {
    let what = match (row["size"].as_u64(), row["hash"].as_str()) {
        (Some(size), Some(hash)) => {
            let short: String = hash.chars().take(HASH_SHOWN).collect();
            format!("{size} bytes  {short}")
        }
        _ => text(&row["kind"]).to_owned(),
    };
    let mut line = format!(
        "{:>8}  {}  {}  {}  {what}",
        row["seq"].as_u64().unwrap_or_default(),
        time(&row["time_ms"]),
        text(&row["op"]),
        text(&row["actor"])
    );
    if let Some(message) = row["message"].as_str() {
        line.push_str("  ");
        line.push_str(message);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(directory: &str, is_long: bool) -> DirectoryListing {
        DirectoryListing {
            directory: directory.to_owned(),
            is_long,
        }
    }

    #[test]
    fn entries_are_shown_below_their_directory() {
        let row = json!({ "path": "/2026/a/b.txt", "kind": "file", "size": 5, "mode": 0o640,
                          "mtime_ms": 1_767_225_600_000_i64 });
        assert_eq!(listing("/2026", false).line(&row), "a/b.txt");
        assert_eq!(listing("/", false).line(&row), "2026/a/b.txt");
        assert_eq!(
            listing("/2026", true).line(&row),
            "-rw-r-----             5  2026-01-01T00:00:00Z  a/b.txt"
        );
        let folder = json!({ "path": "/2026", "kind": "directory", "mode": 0o755, "mtime_ms": 0 });
        assert_eq!(listing("/", false).line(&folder), "2026/");
        let link = json!({ "path": "/now", "kind": "symlink", "mode": 0o777, "mtime_ms": null,
                           "target": "2026" });
        let line = listing("/", true).line(&link);
        assert!(
            line.starts_with("lrwxrwxrwx") && line.ends_with("-  now -> 2026"),
            "{line}"
        );
    }

    #[test]
    fn a_version_is_one_line() {
        let row = json!({ "kind": "file", "hash": "ab".repeat(32), "size": 3, "seq": 17,
                          "time_ms": 0, "op": "put", "actor": "ada", "message": "first" });
        assert_eq!(
            version_line(&row),
            "      17  1970-01-01T00:00:00Z  put  ada  3 bytes  abababababababab  first"
        );
        let gone =
            json!({ "kind": "deleted", "seq": 18, "time_ms": 0, "op": "delete", "actor": "ada" });
        assert!(version_line(&gone).ends_with("delete  ada  deleted"));
    }
}
