//! `alknet fs gc`, `scrub`, `verify` and `repair`: what keeps a store of files in order.

use std::io::{self, IsTerminal};
use std::time::Duration;

use alknet_call::CallOptions;
use alknet_tensor_cli::ByteProgress;
use clap::Args;
use serde_json::{Value, json};

use super::address::{FORM, FilesAddress, is_address};
use super::content::is_hash;
use super::failure::{FilesSubject, broken};
use super::list::content_at;
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::target::NodeArgs;
use crate::cli::{CommandError, CommandExit, output};

/// What a repair and a check of all contents are about, for errors.
const STORE: &str = "the files of the node";
/// Longest time of a repair: it reads and writes the whole file of names.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(600);
/// Lost changes that a person reads.
const LOST_SHOWN_MAX: usize = 20;

/// Arguments of `alknet fs verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyFilesArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The files: addresses, or hashes of contents.
    #[arg(value_name = "ADDRESS|HASH")]
    what: Vec<String>,
}

/// Arguments of `alknet fs repair`.
#[derive(Debug, Args)]
pub(crate) struct RepairFilesArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// If no copy of the file of names is good, begin again with an empty store.
    #[arg(long)]
    begin_again: bool,
    /// Do not repair: let the node delete contents to which no name leads, which a repair keeps.
    #[arg(long, conflicts_with = "begin_again")]
    release_sweep: bool,
}

impl VerifyFilesArgs {
    /// The node, and the files: a first word that is an address or a hash is no node.
    fn arranged(mut self) -> Result<(NodeArgs, Vec<VerifiedFile>), CommandError> {
        let first = self
            .node
            .node
            .take_if(|word| is_address(word) || is_hash(word));
        let words = first.into_iter().chain(self.what);
        let files = words.map(|word| VerifiedFile::read(&word));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        match files.is_empty() {
            true => Err(CommandError::usage(format!(
                "ADDRESS is missing: write {FORM}, or a hash"
            ))),
            false => Ok((self.node, files)),
        }
    }
}

/// A content that is compared with its hash.
#[derive(Debug, PartialEq, Eq)]
enum VerifiedFile {
    Address(FilesAddress),
    Hash(String),
}

impl VerifiedFile {
    fn read(word: &str) -> Result<Self, CommandError> {
        match is_hash(word) {
            true => Ok(Self::Hash(word.to_owned())),
            false => FilesAddress::read(word).map(Self::Address),
        }
    }

    /// How the user wrote it, and its hash.
    async fn find(&self, node: &NodeCaller, json: bool) -> Result<(String, String), CommandError> {
        let address = match self {
            Self::Hash(hash) => return Ok((hash.clone(), hash.clone())),
            Self::Address(address) => address,
        };
        let content = content_at(node, address, json).await?;
        Ok((address.to_string(), content.hash))
    }
}

/// Follows work of the node to its end, and returns its last report.
async fn follow(
    node: &NodeCaller,
    operation: &'static str,
    input: &Value,
    (subject, idle): (FilesSubject<'_>, Duration),
    mut report: impl FnMut(&Value),
) -> Result<Value, CommandError> {
    let options = CallOptions {
        idle: Some(idle),
        ..CallOptions::default()
    };
    let events = node.subscribe(operation, input, options).await;
    let mut events = events.map_err(|error| subject.error(operation, error))?;
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| subject.error(operation, error))?;
        let said = event.output.value();
        report(said);
        // A stream that ends without this report was cut off.
        if said["done"] == true {
            return Ok(said.clone());
        }
    }
    Err(broken(
        subject.what,
        "the node ended the work before its end",
    ))
}

fn progress(what: &'static str, json: bool) -> ByteProgress {
    ByteProgress::new(what, None, !json && io::stderr().is_terminal())
}

/// `alknet fs gc`
pub(super) fn collect(args: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let idle = args.dial.timeout;
    args.reached(async |node| {
        let subject = FilesSubject::new(STORE, json);
        let said = follow(node, "fs/gc", &json!({}), (subject, idle), |_| {}).await?;
        match json {
            true => output::json_line(&said)?,
            false => output::line(&collected_line(&said))?,
        }
        Ok(CommandExit::Ok)
    })
}

fn collected_line(said: &Value) -> String {
    let number = |name: &str| said[name].as_u64().unwrap_or_default();
    format!(
        "{} bytes are free again: {} contents and {} rows are removed",
        number("bytes"),
        number("contents"),
        number("rows")
    )
}

/// `alknet fs scrub`. The exit code is 1 if a content is damaged.
pub(super) fn scrub(args: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let idle = args.dial.timeout;
    args.reached(async |node| {
        let subject = FilesSubject::new(STORE, json);
        let shown = progress("scrub", json);
        let mut damaged = Vec::new();
        let report = |said: &Value| {
            shown.set(said["bytes"].as_u64().unwrap_or_default(), 0);
            damaged.extend(said["damaged"].as_array().into_iter().flatten().cloned());
        };
        let mut said = follow(node, "fs/scrub", &json!({}), (subject, idle), report).await?;
        // The line of the progress is gone before the result is printed.
        drop(shown);
        if json {
            said["damaged"] = json!(damaged);
            output::json_line(&said)?;
        } else {
            for hash in &damaged {
                output::line(&format!("{}  damaged", text(hash)))?;
            }
            let bytes = said["bytes"].as_u64().unwrap_or_default();
            output::line(&format!(
                "{bytes} bytes were read: {} contents are damaged",
                damaged.len()
            ))?;
        }
        Ok(match damaged.is_empty() {
            true => CommandExit::Ok,
            false => CommandExit::Failed,
        })
    })
}

/// `alknet fs verify`
pub(super) fn verify(args: VerifyFilesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, files) = args.arranged()?;
    let idle = node.dial.timeout;
    node.reached(async |node| {
        let shown = progress("verify", json);
        for file in &files {
            let (what, hash) = file.find(node, json).await?;
            let subject = FilesSubject::new(&what, json);
            let input = json!({ "hash": hash });
            let report = |said: &Value| {
                let number = |name: &str| said[name].as_u64().unwrap_or_default();
                shown.set(number("verified"), number("size"));
            };
            let said = follow(node, "fs/blob/verify", &input, (subject, idle), report).await?;
            match json {
                true => output::json_line(&json!({
                    "path": what, "hash": hash, "size": said["size"], "good": true,
                }))?,
                false => output::line(&format!("{hash}  {what}"))?,
            }
        }
        Ok(CommandExit::Ok)
    })
}

/// `alknet fs repair`
pub(super) fn repair(args: &RepairFilesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let operation = "fs/repair";
    let mut input = json!({});
    if args.begin_again {
        input["begin_again"] = true.into();
    }
    if args.release_sweep {
        input["release_sweep"] = true.into();
    }
    args.node.reached(async |node| {
        let options = CallOptions {
            // In place of the time of the command line, which is for requests that read a few rows.
            timeout: Some(REPAIR_TIMEOUT),
            ..CallOptions::default()
        };
        let answer = node.call_with(operation, &input, options).await;
        let subject = FilesSubject::new(STORE, json);
        let answer = answer.map_err(|error| subject.error(operation, error))?;
        if json {
            output::json_line(answer.value())?;
            return Ok(CommandExit::Ok);
        }
        let lines = match args.release_sweep {
            true => vec!["contents without a name may be deleted again".to_owned()],
            false => repaired_lines(answer.value()),
        };
        lines.iter().try_for_each(|line| output::line(line))?;
        Ok(CommandExit::Ok)
    })
}

fn repaired_lines(answer: &Value) -> Vec<String> {
    let Some(day) = answer["copy"].as_str() else {
        return vec!["the next request begins an empty store".to_owned()];
    };
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    let (recovered, lost) = (number("recovered"), number("lost"));
    let mut lines = vec![format!(
        "repaired from the copy of {day}: {recovered} later changes were made again, {lost} are lost"
    )];
    let events = answer["lost_events"].as_array().into_iter().flatten();
    lines.extend(events.take(LOST_SHOWN_MAX).map(|event| {
        format!(
            "  lost: {} {}: {}",
            text(&event["topic"]),
            text(&event["address"]),
            text(&event["reason"])
        )
    }));
    if answer["tail_whole"] == false {
        lines.push("  changes behind the last readable one are lost as well".to_owned());
    }
    lines.push(
        "contents without a name are kept until 'alknet fs repair --release-sweep'".to_owned(),
    );
    lines
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct UpkeepTestCli {
        #[command(flatten)]
        args: VerifyFilesArgs,
    }

    fn verified(line: &str) -> Result<(Option<String>, Vec<VerifiedFile>), CommandError> {
        let words = std::iter::once("verify").chain(line.split_whitespace());
        let args = UpkeepTestCli::try_parse_from(words).expect(line).args;
        args.arranged().map(|(node, files)| (node.node, files))
    }

    #[test]
    fn files_are_verified_by_address_and_by_hash() {
        let hash = "ab".repeat(32);
        let (node, files) = verified(&format!("{hash} docs:/a")).expect("two files");
        assert_eq!((node, files.len()), (None, 2));
        assert_eq!(files[0], VerifiedFile::Hash(hash.clone()));
        let (node, files) = verified(&format!("attic {hash}")).expect("one file");
        assert_eq!((node.as_deref(), files.len()), (Some("attic"), 1));
        for wrong in ["", "attic", "attic docs", "docs:/a attic"] {
            let refused = verified(wrong).expect_err(wrong);
            assert_eq!(refused.exit, CommandExit::Usage, "{wrong}");
        }
    }

    #[test]
    fn a_repair_says_what_is_lost() {
        assert_eq!(
            repaired_lines(&json!({})),
            ["the next request begins an empty store"]
        );
        let answer = json!({
            "copy": "2027-01-15", "recovered": 3, "lost": 1, "tail_whole": false,
            "lost_events": [{ "topic": "fs.put", "address": "docs:/a", "reason": "no content" }],
        });
        let lines = repaired_lines(&answer);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1], "  lost: fs.put docs:/a: no content");
        assert!(lines[3].contains("--release-sweep"));
    }

    #[test]
    fn a_collection_is_one_line() {
        let said = json!({ "bytes": 10, "contents": 2, "rows": 3, "done": true });
        assert_eq!(
            collected_line(&said),
            "10 bytes are free again: 2 contents and 3 rows are removed"
        );
    }
}
