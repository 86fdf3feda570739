//! `alknet fs get`: files and directories of a node, written to this computer.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_tensor_cli::ByteProgress;
use clap::Args;
use serde_json::{Value, json};

use super::address::{FORM, FilesAddress, is_address};
use super::connection::{ResumableWork, finish};
use super::content::{ContentDownload, ContentName};
use super::failure::broken;
use super::list::{entries_below, entry_at};
use super::target::{NamesBelow, TargetAttributes, TargetFile, TargetFolder, exists};
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::target::{HubPeerArgs, NodeArgs};
use crate::cli::{CommandError, CommandExit, DialArgs, output};

/// Permission bits of a file for which the node names none.
const MODE_DEFAULT: u64 = 0o644;

/// Arguments of `alknet fs get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The node, the address of the file or directory, and the target on this computer. With a slash at its end the
    /// target is a folder that takes the entry under its own name; without a target it is the present folder.
    #[arg(required = true, num_args = 1..=3, value_name = "WHAT")]
    what: Vec<OsString>,
    /// Write over files that are there already.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    peer: HubPeerArgs,
    #[command(flatten)]
    dial: DialArgs,
}

/// What the words of the command mean.
#[derive(Debug, PartialEq, Eq)]
struct GetWords {
    node: Option<String>,
    address: FilesAddress,
    /// The target; `None` is the present folder.
    target: Option<PathBuf>,
}

impl GetWords {
    fn read(what: Vec<OsString>) -> Result<Self, CommandError> {
        let mut words = what.into_iter();
        let mut first = text_of(words.next().unwrap_or_default())?;
        let node = match is_address(&first) {
            true => None,
            false => {
                let second = words.next().ok_or_else(|| {
                    CommandError::usage(format!(
                        "ADDRESS is missing behind '{first}', which was taken for the NODE: write {FORM}"
                    ))
                })?;
                Some(std::mem::replace(&mut first, text_of(second)?))
            }
        };
        let address = FilesAddress::read(&first)?;
        let target = words.next().map(PathBuf::from);
        if let Some(more) = words.next() {
            let text = format!("'{}' is one word too many", more.to_string_lossy());
            return Err(CommandError::usage(text));
        }
        if target.as_deref() == Some(Path::new("-")) {
            let text = "'alknet fs cat' prints a file; to write a file of this name, give ./-";
            return Err(CommandError::usage(text));
        }
        Ok(Self {
            node,
            address,
            target,
        })
    }

    /// The folder of this computer, and the name of the entry in it.
    fn destination(&self) -> Result<(PathBuf, NamesBelow), CommandError> {
        let target = self.target.clone().unwrap_or_else(|| PathBuf::from("."));
        let bytes = target.as_os_str().as_encoded_bytes();
        // These have no name of their own that an entry could get.
        let is_into = bytes.ends_with(b"/") || target.file_name().is_none();
        if is_into {
            let own = self.address.name().unwrap_or_else(|| self.address.bucket());
            return Ok((target, NamesBelow::single(own)?));
        }
        let name = target.file_name().map(OsString::from).unwrap_or_default();
        let folder = target.parent().map(Path::to_owned).unwrap_or_default();
        Ok((folder, NamesBelow::single(&text_of(name)?)?))
    }
}

fn text_of(word: OsString) -> Result<String, CommandError> {
    let text = word.into_string();
    text.map_err(|_| CommandError::usage("nodes, addresses and names of targets are UTF-8"))
}

/// A file that is fetched.
#[derive(Debug)]
struct GetItem {
    names: NamesBelow,
    /// Its address, for the output.
    address: String,
    content: ContentName,
    attributes: TargetAttributes,
}

/// What is fetched, and where it goes.
struct GetPlan {
    folder: TargetFolder,
    /// Folders that have to be there although no file is in them.
    folders: Vec<NamesBelow>,
    files: Vec<GetItem>,
    /// Entries that are neither files nor directories.
    left_out: usize,
}

/// The work of `alknet fs get`.
struct GetWork<'w> {
    words: &'w GetWords,
    may_replace: bool,
    json: bool,
    idle: Duration,
    progress: &'w ByteProgress,
    plan: Option<GetPlan>,
    /// Files that are whole.
    done: usize,
    bytes_done: u64,
    open: Option<(ContentDownload, TargetFile)>,
    answers: u64,
}

impl ResumableWork for GetWork<'_> {
    fn answers(&self) -> u64 {
        let received = self.open.as_ref().map_or(0, |(it, _)| it.received());
        self.answers + self.bytes_done + received
    }

    async fn go_on(&mut self, node: &NodeCaller) -> Result<(), CommandError> {
        // The plan of the first connection stays: the directory may change before the next one.
        let planned = self.plan.take();
        let plan = match planned {
            Some(plan) => plan,
            None => {
                let plan = make_plan(self.words, node, self.json).await?;
                for names in &plan.folders {
                    plan.folder.create_folder(names)?;
                }
                self.answers += 1;
                plan
            }
        };
        let fetched = self.fetch(node, &plan).await;
        self.plan = Some(plan);
        fetched
    }
}

impl GetWork<'_> {
    async fn fetch(&mut self, node: &NodeCaller, plan: &GetPlan) -> Result<(), CommandError> {
        let total: u64 = plan.files.iter().map(|it| it.content.size).sum();
        while let Some(item) = plan.files.get(self.done) {
            if self.open.is_none() {
                self.open = Some(self.begin(plan, item)?);
            }
            if let Some((download, file)) = &mut self.open {
                let mut received = self.bytes_done + download.received();
                let mut sink = |block: &[u8]| {
                    received += block.len() as u64;
                    self.progress.set(received, total);
                    file.append(block)
                };
                download.receive(node, &mut sink).await?;
            }
            // The content has its hash by now, so that the file gets its name.
            if let Some((_, file)) = self.open.take() {
                self.print(item, &file.finish(self.may_replace)?)?;
            }
            self.done += 1;
            self.bytes_done += item.content.size;
            self.answers += 1;
        }
        Ok(())
    }

    fn begin(
        &self,
        plan: &GetPlan,
        item: &GetItem,
    ) -> Result<(ContentDownload, TargetFile), CommandError> {
        // Before the download, which may take hours.
        if !self.may_replace && plan.folder.has(&item.names)? {
            return Err(exists(&plan.folder.path_of(&item.names)));
        }
        let file = plan.folder.begin(&item.names, item.attributes)?;
        let download = ContentDownload::new(item.address.clone(), self.idle, self.json);
        Ok((download.with_name(item.content.clone()), file))
    }

    fn print(&self, item: &GetItem, path: &Path) -> Result<(), CommandError> {
        let hash = &item.content.hash;
        match self.json {
            true => output::json_line(&json!({
                "path": item.address, "file": path.to_string_lossy(), "hash": hash,
                "bytes": item.content.size,
            })),
            false => output::line(&format!("{hash}  {}", path.display())),
        }
    }
}

/// Asks what is at the address, and names where each part of it goes.
async fn make_plan(
    words: &GetWords,
    node: &NodeCaller,
    json: bool,
) -> Result<GetPlan, CommandError> {
    let address = &words.address;
    let entry = entry_at(node, address, json).await?;
    let (folder, names) = words.destination()?;
    if text(&entry["kind"]) != "directory" {
        let item = file_item(&entry, address.to_string(), names)?;
        let item = item.ok_or_else(|| {
            CommandError::usage(format!(
                "{address} is a symbolic link, which a node does not follow; 'alknet fs ls -l' shows where it leads"
            ))
        })?;
        return Ok(GetPlan {
            folder: TargetFolder::open(&folder)?,
            folders: Vec::new(),
            files: vec![item],
            left_out: 0,
        });
    }
    let (mut folders, mut files, mut left_out) = (Vec::new(), Vec::new(), 0);
    for row in &entries_below(node, address, json).await? {
        let names = NamesBelow::read(address.entry_path(), text(&row["path"]))?;
        if row["kind"] == "directory" {
            folders.push(names);
            continue;
        }
        let shown = address.join(&names.shown()).to_string();
        match file_item(row, shown, names)? {
            Some(item) => files.push(item),
            None => left_out += 1,
        }
    }
    // Nothing is made before each name was checked.
    Ok(GetPlan {
        folder: TargetFolder::open(&folder)?.below(&names)?,
        folders,
        files,
        left_out,
    })
}

/// A row as a file; `None` if it is another kind of entry.
fn file_item(
    row: &Value,
    address: String,
    names: NamesBelow,
) -> Result<Option<GetItem>, CommandError> {
    if row["kind"] != "file" {
        return Ok(None);
    }
    let content = ContentName::from_row(row)
        .ok_or_else(|| broken(&address, "the node does not say what its content is"))?;
    // An entry without permission bits gets those of a new file here.
    let mode = row["mode"].as_u64().unwrap_or(MODE_DEFAULT);
    Ok(Some(GetItem {
        names,
        address,
        content,
        attributes: TargetAttributes {
            mode: u32::try_from(mode).unwrap_or_default(),
            mtime_ms: row["mtime_ms"].as_i64().unwrap_or_default(),
        },
    }))
}

/// `alknet fs get`
pub(super) fn run(args: GetArgs, json: bool) -> Result<CommandExit, CommandError> {
    let GetArgs {
        what,
        force,
        peer,
        dial,
    } = args;
    let mut words = GetWords::read(what)?;
    let node = NodeArgs {
        node: words.node.take(),
        peer,
        dial,
        meant: None,
    };
    let progress = ByteProgress::new("get", None, !json && io::stderr().is_terminal());
    let mut work = GetWork {
        words: &words,
        may_replace: force,
        json,
        idle: node.dial.timeout,
        progress: &progress,
        plan: None,
        done: 0,
        bytes_done: 0,
        open: None,
        answers: 0,
    };
    let fetched = finish(&node, &mut work);
    let left_out = work.plan.as_ref().map_or(0, |plan| plan.left_out);
    // The removal of an unfinished file comes before the error.
    drop(work);
    drop(progress);
    fetched?;
    if left_out > 0 {
        output::note(&format!(
            "left out, since only files and directories are fetched: {left_out} symbolic links"
        ));
    }
    Ok(CommandExit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Result<GetWords, CommandError> {
        GetWords::read(line.iter().map(OsString::from).collect())
    }

    #[test]
    fn a_node_is_no_address_and_no_target() {
        for (line, node, target) in [
            (&["docs:/a"][..], None, None),
            (&["docs:/a", "b"], None, Some("b")),
            (&["attic", "docs:/a"], Some("attic"), None),
            (&["attic", "docs:/a", "b/"], Some("attic"), Some("b/")),
        ] {
            let found = words(line).expect("they are good");
            assert_eq!(found.node.as_deref(), node, "{line:?}");
            assert_eq!(found.target.as_deref(), target.map(Path::new), "{line:?}");
            assert_eq!(found.address.to_string(), "docs:/a");
        }
        for line in [
            &["attic"][..],
            &["attic", "b"],
            &["docs:/a", "b", "c"],
            &["docs:/a", "-"],
        ] {
            let refused = words(line).expect_err("they are wrong");
            assert_eq!(refused.exit, CommandExit::Usage, "{line:?}");
        }
    }

    #[test]
    fn an_entry_goes_where_its_target_says() {
        for (address, target, folder, name) in [
            ("docs:/2026/a", None, ".", "a"),
            ("docs:/2026/a", Some("b"), "", "b"),
            ("docs:/2026/a", Some("x/b"), "x", "b"),
            ("docs:/2026/a", Some("x/"), "x/", "a"),
            ("docs:/2026/a", Some("."), ".", "a"),
            ("docs:/2026/a", Some(".."), "..", "a"),
            ("docs:/2026/a", Some("/"), "/", "a"),
            ("docs@draft:/", None, ".", "docs"),
        ] {
            let mut line = vec![address];
            line.extend(target);
            let found = words(&line).and_then(|it| it.destination());
            let (at, names) = found.expect("they are good");
            assert_eq!(
                (at.as_path(), &*names.shown()),
                (Path::new(folder), name),
                "{line:?}"
            );
        }
        let hostile = words(&["docs:/a/.."]).expect("the node refuses it");
        assert!(hostile.destination().is_err());
    }

    #[test]
    fn only_files_with_a_content_are_fetched() {
        let names = || NamesBelow::single("a").expect("a name");
        let item = |row: Value| file_item(&row, "docs:/a".to_owned(), names());
        let file = json!({ "kind": "file", "hash": "ab".repeat(32), "size": 3, "mode": 0o755,
                           "mtime_ms": -5 });
        let found = item(file).expect("it is good").expect("a file");
        assert_eq!(found.content.size, 3);
        assert_eq!(
            found.attributes,
            TargetAttributes {
                mode: 0o755,
                mtime_ms: -5
            }
        );
        let link = item(json!({ "kind": "symlink", "target": "/etc" }));
        assert!(link.expect("it is good").is_none());
        let wrong = item(json!({ "kind": "file", "hash": "x", "size": 3 }));
        assert_eq!(wrong.expect_err("no hash").code, "INVALID_OUTPUT");
    }
}
