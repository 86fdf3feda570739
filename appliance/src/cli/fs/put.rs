//! `alknet fs put`: files, folders and standard input, stored on a node.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alknet_tensor_cli::ByteProgress;
use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::address::{FORM, FilesAddress, is_address};
use super::connection::{ResumableWork, finish};
use super::content::{ContentName, is_hash};
use super::failure::{FilesSubject, broken};
use super::source::{
    PieceReader, SourceAttributes, SourceItem, SourceKind, SourceList, no_utf8, open_file,
};
use super::upload::{
    ContentUpload, PUT_BYTES_MAX, WriteCondition, new_key, options_once, patiently, put_input,
    tell_progress,
};
use crate::cli::node_caller::NodeCaller;
use crate::cli::target::{HubPeerArgs, NodeArgs, NodeNames};
use crate::cli::{CommandError, CommandExit, DialArgs, output};

/// Short files and folders under way at the same time. The node makes several of them durable at once.
const SHORT_UNDER_WAY: usize = 8;
/// Longest wait for one of them.
const SHORT_TIMEOUT: Duration = Duration::from_secs(120);
/// The word that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Arguments of `alknet fs put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The node, the files and folders of this computer, and the address. With a slash at its end the address is a
    /// directory that takes each of them under its own name. - is standard input.
    #[arg(required = true, num_args = 1.., value_name = "WHAT")]
    what: Vec<OsString>,
    /// Store the file only if the present content has this hash, or * if there is any.
    #[arg(long, value_name = "HASH")]
    if_match: Option<String>,
    /// Store the file only if nothing is at the address.
    #[arg(long, conflicts_with = "if_match")]
    if_absent: bool,
    #[command(flatten)]
    peer: HubPeerArgs,
    #[command(flatten)]
    dial: DialArgs,
}

/// What the words of the command mean.
#[derive(Debug, PartialEq, Eq)]
struct PutWords {
    node: Option<String>,
    sources: Vec<PathBuf>,
    address: FilesAddress,
}

impl PutWords {
    /// `is_node` says whether a word is a node for certain.
    fn read(mut what: Vec<OsString>, is_node: impl Fn(&str) -> bool) -> Result<Self, CommandError> {
        let last = what.pop().unwrap_or_default();
        let last = last.to_str().filter(|word| is_address(word));
        let last = last.ok_or_else(|| {
            CommandError::usage(format!("ADDRESS is missing: end the command with {FORM}"))
        })?;
        let address = FilesAddress::read(last)?;
        let first = what.first().and_then(|word| word.to_str());
        // A word that is no file here is a node, if another word is left to be the file.
        let node = first.filter(|&word| {
            let may_be_file = word == STANDARD_INPUT || Path::new(word).symlink_metadata().is_ok();
            is_node(word) || (what.len() > 1 && !may_be_file)
        });
        let node = node.map(str::to_owned);
        let sources = what.iter().skip(usize::from(node.is_some()));
        let sources: Vec<_> = sources.map(PathBuf::from).collect();
        match (&node, sources.is_empty()) {
            (_, false) => {}
            (Some(node), true) => {
                return Err(CommandError::usage(format!(
                    "FILE is missing: '{node}' is the node; a file of this name is ./{node}"
                )));
            }
            (None, true) => {
                let text =
                    "FILE is missing: alknet fs put [NODE] FILE ADDRESS; - is standard input";
                return Err(CommandError::usage(text));
            }
        }
        if sources.len() > 1 && !address.is_into() {
            return Err(CommandError::usage(format!(
                "several files go into a directory: write {address}/ with a slash at its end"
            )));
        }
        Ok(Self {
            node,
            sources,
            address,
        })
    }

    /// Everything that is stored.
    fn list(&self) -> Result<SourceList, CommandError> {
        let mut list = SourceList::default();
        for path in &self.sources {
            // A file of this name is written ./- on the command line.
            if path.as_os_str() == OsStr::new(STANDARD_INPUT) {
                list.items.push(self.standard_input()?);
                continue;
            }
            let address = match self.address.is_into() {
                false => self.address.clone(),
                true => self.address.join(own_name(path)?),
            };
            list.add(path, address)?;
        }
        Ok(list)
    }

    fn standard_input(&self) -> Result<SourceItem, CommandError> {
        if self.address.is_into() {
            let text = "standard input has no name: write the whole address of the file";
            return Err(CommandError::usage(text));
        }
        Ok(SourceItem {
            path: PathBuf::from(STANDARD_INPUT),
            address: self.address.clone(),
            kind: SourceKind::StandardInput,
            attributes: SourceAttributes::default(),
        })
    }
}

/// The name that a file or folder has here.
fn own_name(path: &Path) -> Result<&str, CommandError> {
    let name = path.file_name().ok_or_else(|| {
        CommandError::usage(format!(
            "'{}' has no name of its own: write the address that it gets, without a slash at its end",
            path.display()
        ))
    })?;
    name.to_str().ok_or_else(|| no_utf8(path))
}

impl SourceItem {
    /// Whether one request stores it.
    fn is_short(&self) -> bool {
        match self.kind {
            SourceKind::File { bytes } => bytes <= PUT_BYTES_MAX,
            SourceKind::EmptyFolder => true,
            SourceKind::StandardInput => false,
        }
    }
}

/// The work of `alknet fs put`.
struct PutWork<'w> {
    items: Arc<[SourceItem]>,
    condition: WriteCondition,
    json: bool,
    progress: &'w ByteProgress,
    total: u64,
    /// Items that are stored.
    done: usize,
    bytes_done: u64,
    open: Option<ContentUpload>,
}

impl ResumableWork for PutWork<'_> {
    fn answers(&self) -> u64 {
        let confirmed = self.open.as_ref().map_or(0, ContentUpload::confirmed);
        self.done as u64 + self.bytes_done + confirmed
    }

    async fn go_on(&mut self, node: &NodeCaller) -> Result<(), CommandError> {
        let items = Arc::clone(&self.items);
        while let Some(item) = items.get(self.done) {
            // A single file keeps the key of its request over a lost connection.
            if items.len() > 1 && self.open.is_none() && item.is_short() {
                self.store_short(node, &items).await?;
            } else {
                self.store_long(node, item).await?;
            }
        }
        Ok(())
    }
}

impl PutWork<'_> {
    /// Stores the short items up to the next long one, several at the same time.
    async fn store_short(
        &mut self,
        node: &NodeCaller,
        items: &[SourceItem],
    ) -> Result<(), CommandError> {
        let json = self.json;
        let short = items[self.done..].iter().take_while(|it| it.is_short());
        let stored = short.map(|item| store_item(node, item, json));
        // In their order, so that `done` says which of them are stored.
        let mut stored = stream::iter(stored).buffered(SHORT_UNDER_WAY);
        while let Some(name) = stored.next().await {
            let name = name?;
            self.finish_item(&items[self.done], name.as_ref())?;
        }
        Ok(())
    }

    async fn store_long(
        &mut self,
        node: &NodeCaller,
        item: &SourceItem,
    ) -> Result<(), CommandError> {
        if item.kind == SourceKind::EmptyFolder {
            make_folder(node, item, self.json).await?;
            return self.finish_item(item, None);
        }
        let mut upload = match self.open.take() {
            Some(upload) => upload,
            None => begin_upload(item, self.condition.clone(), self.json)?,
        };
        let tell = tell_progress(self.progress, self.bytes_done, self.total);
        let stored = upload.store(node, &tell).await;
        match stored {
            Ok(name) => self.finish_item(item, Some(&name)),
            Err(error) => {
                // It goes on over the next connection.
                self.open = Some(upload);
                Err(error)
            }
        }
    }

    fn finish_item(
        &mut self,
        item: &SourceItem,
        name: Option<&ContentName>,
    ) -> Result<(), CommandError> {
        self.done += 1;
        // A folder has no hash to print.
        let Some(name) = name else {
            return Ok(());
        };
        self.bytes_done += name.size;
        self.progress.set(self.bytes_done, self.total);
        let address = item.address.to_string();
        match self.json {
            true => output::json_line(&json!({
                "path": address, "hash": name.hash, "bytes": name.size,
            })),
            false => output::line(&format!("{}  {address}", name.hash)),
        }
    }
}

fn begin_upload(
    item: &SourceItem,
    condition: WriteCondition,
    json: bool,
) -> Result<ContentUpload, CommandError> {
    let (pieces, size) = match item.kind {
        SourceKind::File { bytes } => {
            let file = open_file(&item.path)?;
            let shown = item.path.display().to_string();
            (PieceReader::start(file, &shown)?, Some(bytes))
        }
        SourceKind::EmptyFolder | SourceKind::StandardInput => {
            (PieceReader::start(io::stdin(), "standard input")?, None)
        }
    };
    let mut upload = ContentUpload::new(item.address.clone(), pieces, json)?;
    upload.attributes = item.attributes;
    upload.condition = condition;
    upload.size = size;
    Ok(upload)
}

/// Stores a short file or an empty folder by one request. A folder has no content.
async fn store_item(
    node: &NodeCaller,
    item: &SourceItem,
    json: bool,
) -> Result<Option<ContentName>, CommandError> {
    /// The operation that stores a short file.
    const PUT: &str = "fs/put";
    if item.kind == SourceKind::EmptyFolder {
        make_folder(node, item, json).await?;
        return Ok(None);
    }
    let bytes = read_short(&item.path)?;
    let condition = WriteCondition::default();
    let input = put_input(&item.address, &bytes, item.attributes, &condition);
    let options = options_once(&new_key()?, SHORT_TIMEOUT);
    let answer = patiently(async || node.call_with(PUT, &input, options.clone()).await).await;
    let address = item.address.to_string();
    let answer = answer.map_err(|error| FilesSubject::new(&address, json).error(PUT, error))?;
    let hash = blake3::hash(&bytes).to_hex().to_string();
    // The hash is that of the bytes that were read here: the node may have stored others.
    if answer.value()["hash"] != *hash {
        let why = "the node stored other bytes than it got; put the file again";
        return Err(broken(&address, why));
    }
    let size = bytes.len() as u64;
    Ok(Some(ContentName { hash, size }))
}

async fn make_folder(node: &NodeCaller, item: &SourceItem, json: bool) -> Result<(), CommandError> {
    /// The operation that makes a directory.
    const MKDIR: &str = "fs/mkdir";
    let address = item.address.to_string();
    let input = json!({ "path": address, "may_exist": true });
    let made = patiently(async || node.call(MKDIR, &input).await).await;
    made.map_err(|error| FilesSubject::new(&address, json).error(MKDIR, error))?;
    Ok(())
}

/// The content of a file that was short when it was found.
fn read_short(path: &Path) -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    let read = open_file(path)?
        // One byte more shows that the file grew.
        .take(PUT_BYTES_MAX + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| CommandError::local(format!("cannot read {}: {error}", path.display())))?;
    match bytes.len() as u64 > PUT_BYTES_MAX {
        false => Ok(bytes),
        true => Err(CommandError::local(format!(
            "{} grew while it was read: try again",
            path.display()
        ))),
    }
}

/// Refuses a condition that is not about one file, and a text that is no hash.
fn check_condition(condition: &WriteCondition, list: &SourceList) -> Result<(), CommandError> {
    if *condition == WriteCondition::default() {
        return Ok(());
    }
    let is_one_file =
        matches!(list.items.as_slice(), [item] if item.kind != SourceKind::EmptyFolder);
    if !is_one_file {
        let text = "--if-match and --if-absent are about one file: give one FILE";
        return Err(CommandError::usage(text));
    }
    match &condition.if_match {
        Some(word) if word != "*" && !is_hash(word) => Err(CommandError::usage(format!(
            "'{word}' is no hash: write the 64 digits that 'alknet fs put' or 'alknet fs ls --json' printed, or *"
        ))),
        _ => Ok(()),
    }
}

/// `alknet fs put`
pub(super) fn run(args: PutArgs, json: bool) -> Result<CommandExit, CommandError> {
    let PutArgs {
        what,
        if_match,
        if_absent,
        peer,
        dial,
    } = args;
    let names = NodeNames::load(&dial.state);
    let words = PutWords::read(what, |word| names.is_node(word))?;
    let list = words.list()?;
    let condition = WriteCondition {
        if_match,
        if_absent,
    };
    check_condition(&condition, &list)?;
    let (total, left_out) = (list.bytes(), list.left_out);
    let node = NodeArgs {
        node: words.node,
        peer,
        dial,
        meant: None,
    };
    let progress = ByteProgress::new("put", None, !json && io::stderr().is_terminal());
    let mut work = PutWork {
        items: list.items.into(),
        condition,
        json,
        progress: &progress,
        total,
        done: 0,
        bytes_done: 0,
        open: None,
    };
    let stored = finish(&node, &mut work);
    let (done, all) = (work.done, work.items.len());
    // The line of the progress is gone before an error or a note is printed.
    drop(work);
    drop(progress);
    stored.map_err(|mut error| {
        if all > 1 {
            error
                .further
                .push(format!("{done} of {all} files and folders are stored"));
        }
        error
    })?;
    if left_out > 0 {
        output::note(&format!(
            "left out, since only files and folders are stored: {left_out} links and other entries"
        ));
    }
    Ok(CommandExit::Ok)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn words(line: &[&str]) -> Result<PutWords, CommandError> {
        let what = line.iter().map(OsString::from).collect();
        PutWords::read(what, |word| word == "attic")
    }

    #[test]
    fn a_node_is_no_file_and_no_address() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.txt").display().to_string();
        let file = file.as_str();
        fs::write(file, "a").expect("the folder is ours");
        for (line, node, sources) in [
            (&[file, "docs:/a"][..], None, &[file][..]),
            (&["attic", file, "docs:/a"], Some("attic"), &[file]),
            (
                &["example.org", file, "docs:/a"],
                Some("example.org"),
                &[file],
            ),
            (&[file, file, "docs:/"], None, &[file, file]),
            (
                &["attic", file, file, "docs:/x/"],
                Some("attic"),
                &[file, file],
            ),
            (&["-", "docs:/a"], None, &["-"]),
            (&["attic", "-", "docs:/a"], Some("attic"), &["-"]),
            // The command says itself that the file is missing.
            (&["gone", "docs:/a"], None, &["gone"]),
        ] {
            let found = words(line).expect("they are good");
            assert_eq!(found.node.as_deref(), node, "{line:?}");
            let expected: Vec<_> = sources.iter().map(PathBuf::from).collect();
            assert_eq!(found.sources, expected, "{line:?}");
        }
        for (line, said) in [
            (&["docs:/a"][..], "FILE is missing"),
            (&["attic", "docs:/a"], "'attic' is the node"),
            (&["attic", file], "ADDRESS is missing"),
            (&[file, file, "docs:/a"], "write docs:/a/"),
        ] {
            let refused = words(line).expect_err("they are wrong");
            assert!(refused.message.contains(said), "{line:?}: {refused}");
            assert_eq!(refused.exit, CommandExit::Usage, "{line:?}");
        }
    }

    #[test]
    fn each_source_has_its_address() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("d")).expect("the folder is ours");
        for name in ["a", "d/b"] {
            fs::write(folder.path().join(name), name).expect("the folder is ours");
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let addresses = |line: &[&str]| {
            let list = words(line).and_then(|words| words.list()).expect("good");
            let all = list.items.iter().map(|it| it.address.to_string());
            all.collect::<Vec<_>>()
        };
        assert_eq!(addresses(&[&at("a"), "docs:/x"]), ["docs:/x"]);
        assert_eq!(addresses(&[&at("a"), "docs:/x/"]), ["docs:/x/a"]);
        assert_eq!(addresses(&[&at("d"), "docs:/x"]), ["docs:/x/b"]);
        assert_eq!(
            addresses(&[&at("a"), &at("d"), "docs:/"]),
            ["docs:/a", "docs:/d/b"]
        );
        assert_eq!(addresses(&["-", "docs:/x"]), ["docs:/x"]);
        for line in [&["-", "docs:/x/"][..], &["..", "docs:/x/"]] {
            let refused = words(line).and_then(|words| words.list());
            let refused = refused.expect_err("it has no name");
            assert_eq!(refused.exit, CommandExit::Usage, "{line:?}");
        }
    }

    #[test]
    fn a_condition_is_about_one_file() {
        let item = |kind| SourceItem {
            path: PathBuf::from("a"),
            address: FilesAddress::read("docs:/a").expect("an address"),
            kind,
            attributes: SourceAttributes::default(),
        };
        let list = |kinds: &[SourceKind]| SourceList {
            items: kinds.iter().map(|kind| item(*kind)).collect(),
            left_out: 0,
        };
        let file = SourceKind::File { bytes: 1 };
        let hash = "ab".repeat(32);
        let matches = |word: &str| WriteCondition {
            if_match: Some(word.to_owned()),
            if_absent: false,
        };
        for (condition, kinds, is_good) in [
            (WriteCondition::default(), &[file, file][..], true),
            (matches(&hash), &[file], true),
            (matches("*"), &[SourceKind::StandardInput], true),
            (matches("ab"), &[file], false),
            (matches(&hash), &[file, file], false),
            (matches(&hash), &[SourceKind::EmptyFolder], false),
            (matches(&hash), &[], false),
        ] {
            let checked = check_condition(&condition, &list(kinds));
            assert_eq!(checked.is_ok(), is_good, "{condition:?} {kinds:?}");
        }
    }
}
