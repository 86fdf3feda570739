//! `alknet file`: files that the configuration of a node names, stored on that node.

mod pack;

use std::fs;
use std::io::{Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_call::CallOptions;
use alknet_core::config::{StoredFileKind, StoredFileName};
use alknet_tensor_cli::ByteProgress;
use clap::{Args, Subcommand};
use data_encoding::BASE64;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::call_error;
use super::node_caller::NodeCaller;
use super::query::{ask, text};
use super::row_args::{NodeRowArgs, RowWord};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};
use pack::SiteArchive;

/// The operation that stores.
const STORE: &str = "config/store-file";
/// The operation that lists.
const LIST: &str = "config/list-files";
/// Bytes of one piece. As base64 it is half of the frame that a node takes.
const PIECE_BYTES: usize = 384 << 10;
/// Longest file, in bytes, of every kind but a site: 16 MiB, which a document may have.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Longest wait for the last step, in which the node writes and syncs a whole site.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);

/// The verbs below `alknet file`.
#[derive(Debug, Subcommand)]
pub(crate) enum StoredFileVerb {
    /// Store a file on a node, in the place of the one of its name. A site is a folder; a certificate is one PEM file
    /// with its key, or two; a root and a document are one file each.
    #[command(
        override_usage = "alknet file add [OPTIONS] [NODE] <KIND/NAME> <PATH> [PATH]",
        after_help = "Examples:\n  alknet file add attic site/www ./public\n  \
alknet file add attic certificate/edge chain.pem key.pem\n  alknet file add root/lab authority.pem\n  \
alknet file add document/forge forge.yaml\n\n\
The configuration names it with 'store:/' before: [http] site = \"store:/site/www\"."
    )]
    Add(AddFileArgs),
    /// List the stored files of a node, and which keys of its configuration name them.
    #[command(after_help = "Examples:\n  alknet file list attic\n  alknet file list --json")]
    List(NodeArgs),
    /// Remove a stored file that the configuration of the node does not name.
    #[command(
        override_usage = "alknet file remove [OPTIONS] [NODE] <KIND/NAME>",
        after_help = "Example:\n  alknet file remove attic site/old"
    )]
    Remove(NodeRowArgs<NamedFileRow>),
    /// Show one stored file, and of a site the files in it. Keys of certificates are never shown.
    #[command(
        override_usage = "alknet file show [OPTIONS] [NODE] <KIND/NAME>",
        after_help = "Example:\n  alknet file show attic certificate/edge"
    )]
    Show(NodeRowArgs<NamedFileRow>),
}

/// A file that is stored on a node.
pub(crate) enum NamedFileRow {}

impl RowWord for NamedFileRow {
    const NAME: &'static str = "KIND/NAME";
    const HELP: &'static str = "Its name, such as site/www";
    const FROM: &'static str = "a name of 'alknet file list'";
}

/// Arguments of `alknet file add`.
#[derive(Debug, Args)]
pub(crate) struct AddFileArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Its name: site, certificate, root or document, a slash, and 1 to 32 of a-z, 0-9 and '-'.
    #[arg(value_name = "KIND/NAME")]
    name: Option<String>,
    /// The folder of a site, or the file; of a certificate also a second file with its key.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl AddFileArgs {
    /// With each word in its place: a first word that is a name of a stored file is no node.
    fn arranged(mut self) -> Result<(NodeArgs, StoredFileName, Vec<PathBuf>), CommandError> {
        let first = self.node.node.as_deref();
        if let Some(name) = first.and_then(|word| word.parse().ok()) {
            self.node.node = None;
            let path = self.name.map(PathBuf::from).into_iter();
            return Ok((self.node, name, path.chain(self.paths).collect()));
        }
        let word = self.name.ok_or_else(|| {
            CommandError::usage("KIND/NAME is missing: say alknet file add NODE site/www FOLDER")
        })?;
        Ok((self.node, parsed(&word)?, self.paths))
    }
}

/// The node, and the file that a verb is about.
fn node_and_file(
    row: NodeRowArgs<NamedFileRow>,
) -> Result<(NodeArgs, StoredFileName), CommandError> {
    let (node, name) = row.arranged()?;
    Ok((node, parsed(&name)?))
}

fn parsed(name: &str) -> Result<StoredFileName, CommandError> {
    name.parse().map_err(CommandError::usage)
}

/// `alknet file`
pub(crate) fn run(verb: StoredFileVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        StoredFileVerb::Add(args) => add(args, json),
        StoredFileVerb::List(node) => ask(&node, LIST, &Value::Null, json, list_lines),
        StoredFileVerb::Remove(row) => {
            let (node, name) = node_and_file(row)?;
            let input = json!({ "name": name.to_string() });
            let told = |_: &Value| vec![format!("{name} is removed")];
            ask(&node, "config/remove-file", &input, json, told)
        }
        StoredFileVerb::Show(row) => {
            let (node, name) = node_and_file(row)?;
            let input = json!({ "name": name.to_string() });
            ask(&node, LIST, &input, json, shown_lines)
        }
    }
}

/// What is sent, and how long it is.
struct FileSource {
    bytes: u64,
    content: Box<dyn Read>,
    /// What is sent, for errors.
    shown: String,
    /// How many names are not sent, because they begin with a dot and no node serves them.
    left_out: usize,
}

impl FileSource {
    fn open(kind: StoredFileKind, paths: &[PathBuf]) -> Result<Self, CommandError> {
        match (kind, paths) {
            (StoredFileKind::Site, [folder]) => Self::of_site(folder),
            (StoredFileKind::Certificate, [one]) => Self::of_files(&[one]),
            (StoredFileKind::Certificate, [chain, key]) => Self::of_files(&[chain, key]),
            (StoredFileKind::Site, _) => Err(CommandError::usage("a site is one FOLDER")),
            (StoredFileKind::Certificate, _) => Err(CommandError::usage(
                "a certificate is one PEM file with its key, or two: CHAIN KEY",
            )),
            (_, [file]) => Self::of_files(&[file]),
            (kind, _) => Err(CommandError::usage(format!("a {kind} is one FILE"))),
        }
    }

    fn of_site(folder: &Path) -> Result<Self, CommandError> {
        let archive = SiteArchive::open(folder)?;
        Ok(Self {
            bytes: archive.bytes,
            shown: folder.display().to_string(),
            left_out: archive.left_out,
            content: Box::new(archive),
        })
    }

    /// Files one after the other, as PEM permits.
    fn of_files(paths: &[&PathBuf]) -> Result<Self, CommandError> {
        let mut content = Zeroizing::new(Vec::new());
        for path in paths {
            let read = read_whole(path)?;
            content.extend_from_slice(&read);
            // Two PEM blocks must not run together in one line.
            if !read.ends_with(b"\n") && paths.len() > 1 {
                content.push(b'\n');
            }
        }
        Ok(Self {
            bytes: content.len() as u64,
            content: Box::new(Cursor::new(content)),
            shown: paths
                .first()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            left_out: 0,
        })
    }

    /// The next piece; empty at the end.
    fn piece(&mut self) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let mut piece = Zeroizing::new(Vec::with_capacity(PIECE_BYTES));
        let mut part = self.content.by_ref().take(PIECE_BYTES as u64);
        let read = part.read_to_end(&mut piece);
        read.map_err(|error| CommandError::local(format!("cannot read {}: {error}", self.shown)))?;
        Ok(piece)
    }
}

/// The content of a file, within [`FILE_BYTES_MAX`]. It may be a private key.
fn read_whole(path: &Path) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let refused =
        |why: String| CommandError::usage(format!("cannot read {}: {why}", path.display()));
    let mut file = fs::File::open(path).map_err(|error| refused(error.to_string()))?;
    let len = file
        .metadata()
        .map_or(0, |about| about.len())
        .min(FILE_BYTES_MAX);
    // With room for all, no copy of a key stays where a shorter buffer was. The cast keeps the value: the limit is below
    // what memory can address.
    let mut content = Zeroizing::new(Vec::with_capacity(len as usize + 1));
    let read = file
        .by_ref()
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut content);
    read.map_err(|error| refused(error.to_string()))?;
    // A device has no end.
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(content)
}

fn add(args: AddFileArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, name, paths) = args.arranged()?;
    if paths.is_empty() {
        let text = format!("PATH is missing: what is to be stored as {name}?");
        return Err(CommandError::usage(text));
    }
    let mut source = FileSource::open(name.kind(), &paths)?;
    node.reached(async |node| {
        let mut answer = sent(node, &name, &mut source, json).await?;
        if json {
            if let Some(answer) = answer.as_object_mut().filter(|_| source.left_out > 0) {
                answer.insert("left_out".to_owned(), source.left_out.into());
            }
            output::json_line(&answer)?;
            return Ok(CommandExit::Ok);
        }
        for line in stored_lines(&answer) {
            output::line(&line)?;
        }
        if source.left_out > 0 {
            let n = source.left_out;
            output::note(&format!(
                "left out, since no node serves them: {n} names that begin with a dot"
            ));
        }
        if answer["kept"] == false {
            output::note("This machine keeps nothing over a restart: store it again then.");
        }
        if answer["used_by"].as_array().is_some_and(Vec::is_empty) {
            output::note(&format!(
                "Name it in the configuration of the node: {}",
                example(&name)
            ));
        }
        Ok(CommandExit::Ok)
    })
}

/// Sends it piece by piece; returns what the node says of it.
async fn sent(
    node: &NodeCaller,
    name: &StoredFileName,
    source: &mut FileSource,
    json: bool,
) -> Result<Value, CommandError> {
    let begun = node.call(STORE, &json!({ "name": name.to_string() })).await;
    let begun = begun.map_err(call_error)?;
    let upload = text(&begun.value()["upload"]).to_owned();
    let progress = ByteProgress::new("add", None, !json && std::io::stderr().is_terminal());
    let mut offset = 0;
    loop {
        let piece = source.piece()?;
        if piece.is_empty() {
            break;
        }
        let bytes = BASE64.encode(&piece);
        let input = json!({ "upload": upload, "offset": offset, "bytes": bytes });
        node.call(STORE, &input).await.map_err(call_error)?;
        offset += piece.len() as u64;
        progress.set(offset, source.bytes);
    }
    drop(progress);
    let input = json!({ "upload": upload, "commit": true });
    let options = CallOptions {
        // The node unpacks and checks everything before it answers.
        timeout: Some(COMMIT_TIMEOUT),
        ..CallOptions::default()
    };
    let answer = node.call_with(STORE, &input, options).await;
    Ok(answer.map_err(call_error)?.value().clone())
}

/// How a document names it.
fn example(name: &StoredFileName) -> String {
    let key = match name.kind() {
        StoredFileKind::Certificate => "[[tls.files]] chain",
        StoredFileKind::Root => "[tls] roots",
        StoredFileKind::Site => "[http] site",
        _ => "[[http.import]] document",
    };
    format!("{key} = \"{}\"", name.reference())
}

fn stored_lines(row: &Value) -> Vec<String> {
    let counts = text(&row["counts"]);
    let mut lines = vec![format!("{} is stored, and counts {counts}", line(row))];
    lines.extend(warnings(row));
    lines
}

fn list_lines(answer: &Value) -> Vec<String> {
    let files = rows(answer);
    if files.is_empty() {
        return vec!["no file is stored".to_owned()];
    }
    let mut lines = Vec::new();
    for row in files {
        lines.push(line(row));
        lines.extend(warnings(row));
    }
    lines.push(format!(
        "{} of {} bytes are in use",
        answer["bytes"], answer["bytes_max"]
    ));
    lines
}

fn shown_lines(answer: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows(answer) {
        lines.push(line(row));
        lines.extend(warnings(row));
        let entries = row["entries"].as_array().into_iter().flatten();
        lines.extend(entries.map(|it| {
            let bytes = it["bytes"].as_u64().unwrap_or_default();
            format!("  {bytes:>10}  {}", text(&it["path"]))
        }));
        if let Some(n) = row["left_out"].as_u64().filter(|n| *n > 0) {
            lines.push(format!("  and {n} more"));
        }
    }
    lines
}

fn rows(answer: &Value) -> &[Value] {
    answer["files"].as_array().map_or(&[][..], Vec::as_slice)
}

/// One stored file: its name, how large it is, what is in it, who uses it.
fn line(row: &Value) -> String {
    let mut line = format!("{}  {} bytes", text(&row["name"]), row["bytes"]);
    if row["kind"] == "site" {
        line.push_str(&format!(" in {} files", row["files"]));
    }
    let names = texts(&row["names"]);
    if !names.is_empty() {
        line.push_str(&format!("  for {}", names.join(", ")));
    }
    if let Some(n) = row["operations"].as_u64() {
        line.push_str(&format!("  {n} operations"));
    }
    if let Some(end) = row["expires"].as_str() {
        line.push_str(&format!("  until {end}"));
    }
    if let Some(at) = row["stored"].as_str() {
        line.push_str(&format!("  stored {at}"));
    }
    let keys = texts(&row["used_by"]);
    if !keys.is_empty() {
        line.push_str(&format!("  used by {}", keys.join(", ")));
    }
    line
}

fn warnings(row: &Value) -> impl Iterator<Item = String> {
    let warnings = texts(&row["warnings"]).into_iter();
    warnings.map(|warning| format!("  warning: {warning}"))
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct FileTestCli {
        #[command(subcommand)]
        verb: StoredFileVerb,
    }

    fn verb(line: &str) -> StoredFileVerb {
        let words = std::iter::once("file").chain(line.split_whitespace());
        FileTestCli::try_parse_from(words).expect(line).verb
    }

    #[test]
    fn a_first_word_that_is_a_name_is_no_node() {
        let cases: [(&str, Option<&str>, &[&str]); 5] = [
            ("add attic site/www ./public", Some("attic"), &["./public"]),
            ("add site/www ./public", None, &["./public"]),
            (
                "add attic certificate/a c.pem k.pem",
                Some("attic"),
                &["c.pem", "k.pem"],
            ),
            ("add certificate/a c.pem k.pem", None, &["c.pem", "k.pem"]),
            ("add site/www", None, &[]),
        ];
        for (line, node, paths) in cases {
            let StoredFileVerb::Add(args) = verb(line) else {
                panic!("{line}");
            };
            let (args, _, found) = args.arranged().expect(line);
            assert_eq!(args.node.as_deref(), node, "{line}");
            let expected: Vec<_> = paths.iter().map(PathBuf::from).collect();
            assert_eq!(found, expected, "{line}");
        }
        for line in [
            "add",
            "add attic",
            "add attic ./public",
            "add attic page/www ./public",
        ] {
            let StoredFileVerb::Add(args) = verb(line) else {
                panic!("{line}");
            };
            let error = args.arranged().expect_err(line);
            assert_eq!(error.exit, CommandExit::Usage, "{line}");
        }
    }

    #[test]
    fn each_kind_takes_its_number_of_paths() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.pem"), "chain").expect("a writable directory");
        fs::write(path("a.key"), "key\n").expect("a writable directory");
        let (chain, key) = (path("a.pem"), path("a.key"));
        let both = [chain.clone(), key.clone()];
        let mut source = FileSource::open(StoredFileKind::Certificate, &both).expect("two files");
        assert_eq!(
            source.piece().expect("readable").as_slice(),
            b"chain\nkey\n"
        );
        assert!(source.piece().expect("readable").is_empty());
        let three = [chain.clone(), key, chain];
        let absent = [path("absent")];
        let cases: [(StoredFileKind, &[PathBuf]); 5] = [
            (StoredFileKind::Site, &both),
            (StoredFileKind::Root, &both),
            (StoredFileKind::Document, &[]),
            (StoredFileKind::Certificate, &three),
            (StoredFileKind::Root, &absent),
        ];
        for (kind, paths) in cases {
            let refused = FileSource::open(kind, paths).err().expect("refused");
            assert_eq!(refused.exit, CommandExit::Usage, "{refused}");
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("large.yaml");
        let file = fs::File::create(&path).expect("a writable directory");
        file.set_len(FILE_BYTES_MAX).expect("a writable directory");
        let read = read_whole(&path).expect("it is not too long");
        assert_eq!(read.len() as u64, FILE_BYTES_MAX);
        file.set_len(FILE_BYTES_MAX + 1)
            .expect("a writable directory");
        for path in [path.as_path(), Path::new("/dev/zero")] {
            let refused = read_whole(path).expect_err("it is too long");
            let named = refused.message.contains(&path.display().to_string());
            assert!(
                named && refused.message.contains("longer than"),
                "{refused}"
            );
        }
    }

    #[test]
    fn the_list_reads_well() {
        let answer = json!({ "bytes": 12, "bytes_max": 100, "files": [
            { "name": "certificate/edge", "kind": "certificate", "files": 1, "bytes": 9,
              "names": ["a.example", "b.example"], "expires": "2030-01-01T00:00:00Z",
              "used_by": ["tls.files[0].chain"], "warnings": ["no issuer"] },
            { "name": "site/www", "kind": "site", "files": 2, "bytes": 3, "used_by": [],
              "stored": "2029-12-31T23:59:59Z",
              "warnings": [], "left_out": 1, "entries": [{ "path": "index.html", "bytes": 3 }] },
        ] });
        let lines = list_lines(&answer);
        assert_eq!(
            lines,
            [
                "certificate/edge  9 bytes  for a.example, b.example  until 2030-01-01T00:00:00Z  \
                 used by tls.files[0].chain",
                "  warning: no issuer",
                "site/www  3 bytes in 2 files  stored 2029-12-31T23:59:59Z",
                "12 of 100 bytes are in use",
            ]
        );
        let shown = shown_lines(&json!({ "files": [answer["files"][1]] }));
        assert_eq!(shown[1..], ["           3  index.html", "  and 1 more"]);
        assert_eq!(list_lines(&json!({ "files": [] })), ["no file is stored"]);
        let name: StoredFileName = "site/www".parse().expect("a name");
        assert_eq!(example(&name), "[http] site = \"store:/site/www\"");
    }
}
