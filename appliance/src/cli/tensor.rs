//! `alknet tensor`: files of typed data, here and on nodes.

mod share;
mod stored;
mod transfer_error;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use alknet_call::ErrorCode;
use alknet_core::Carriage;
use alknet_tensor::{FileId, TensorErrorCode};
use alknet_tensor_cli::{
    ByteProgress, LocalTensorVerb, TensorCliError, TensorCliOutcome, fits, run as run_local,
};
use alknet_tensor_serve::{ALPN, ClientError, StorePath, TensorClient, TensorFileRef};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use share::TensorServeArgs;
use stored::StoredTensorsArgs;
use transfer_error::{TransferNames, TransferWay, scope_for, stored_name};

use super::call::call_error;
use super::dial::{CarriageArg, CliDialer};
use super::query::ask_or_explain;
use super::row_args::{NodeRowArgs, RowWord};
use super::target::{HubPeerArgs, NodeNames, NodeRoute, no_node};
use super::{CommandError, CommandExit, DialArgs, output};

/// The verbs below `alknet tensor`.
#[derive(Debug, Subcommand)]
pub(crate) enum TensorVerb {
    #[command(flatten)]
    Local(LocalTensorVerb),
    /// Fetch a file from a node. The command continues an earlier attempt, and checks each part by its hash.
    #[command(
        override_usage = "alknet tensor pull [OPTIONS] [NODE] <FILE> <OUTPUT>\n       \
alknet tensor pull [OPTIONS] alknet-tensor://<NODE>/<FILE>[#<TENSOR>] <OUTPUT>",
        after_help = "Examples:\n  alknet tensor pull ed25519:…@192.0.2.7:443 models/bert bert.mt\n  \
alknet tensor pull attic models/bert layer0.mt --only 'model.layers.0.*'\n  \
alknet tensor pull alknet-tensor://ed25519:…@192.0.2.7:443/models/bert bert.mt\n  \
alknet tensor pull 'alknet-tensor://attic/models/bert#lm_head.weight' head.mt"
    )]
    Pull(PullArgs),
    /// Store a file on a node, under a path of the node's store.
    #[command(
        override_usage = "alknet tensor push [OPTIONS] [NODE] <FILE> <PATH>",
        after_help = "Examples:\n  alknet tensor push ed25519:…@192.0.2.7:443 bert.mt models/bert\n  \
alknet tensor push bert.mt models/bert"
    )]
    Push(PushArgs),
    /// Remove a file from a node's store: the path, and the file if no other path leads to it.
    #[command(
        override_usage = "alknet tensor remove [OPTIONS] [NODE] <FILE>",
        after_help = "Examples:\n  alknet tensor remove attic models/bert\n  \
alknet tensor remove models/bert\n\n\
You need the scope tensor:write for the path. A client that is fetching the file gets the whole of it."
    )]
    Remove(NodeRowArgs<StoredTensorRow>),
    /// Serve the tensor files of a folder. The command runs a node as 'alknet serve' does, with its options; the
    /// keys of --admin may fetch every file.
    #[command(
        after_help = "Examples:\n  alknet tensor serve models --admin \"$(alknet identity)\"\n  \
alknet tensor pull ed25519:…@192.0.2.7:443 bert/model.safetensors bert.safetensors"
    )]
    Serve(TensorServeArgs),
    /// List the files of a node's store that you may read, by their paths: bytes, id and path of each.
    #[command(
        after_help = "Examples:\n  alknet tensor stored\n  alknet tensor stored attic --below models\n\n\
You need the scope tensor:read for a path. A file to which no path leads is not listed."
    )]
    Stored(StoredTensorsArgs),
}

/// Arguments of `alknet tensor pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The node, the file (a path of the node's store, or an id of 64 hex digits) and the output. One word can name
    /// node and file: alknet-tensor://NODE/FILE, or alknet-tensor://NODE/FILE#TENSOR for one tensor.
    #[arg(required = true, num_args = 1..=3, value_name = "WHAT")]
    what: Vec<OsString>,
    /// Fetch only the tensors whose names match; * stands for any characters, ? for one. The result is another file
    /// with an id of its own.
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,
    /// Write over an existing output.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    peer: HubPeerArgs,
    #[command(flatten)]
    dial: DialArgs,
}

/// Arguments of `alknet tensor push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The node, the file on this computer, and the path in the node's store.
    #[arg(required = true, num_args = 1..=3, value_name = "WHAT")]
    what: Vec<OsString>,
    #[command(flatten)]
    peer: HubPeerArgs,
    #[command(flatten)]
    dial: DialArgs,
}

/// A file of a node's store.
pub(crate) enum StoredTensorRow {}

impl RowWord for StoredTensorRow {
    const NAME: &'static str = "FILE";
    const HELP: &'static str = "The file: a path of the node's store, or the id (64 hex digits) of a file to which no path leads";
    const FROM: &'static str = "a path or an id of 'alknet tensor stored'";
}

/// `alknet tensor`
pub(crate) fn run(verb: TensorVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        TensorVerb::Pull(args) => pull(&args, json),
        TensorVerb::Push(args) => push(&args, json),
        TensorVerb::Remove(row) => remove(row, json),
        TensorVerb::Serve(args) => share::run(args, json),
        TensorVerb::Stored(args) => stored::run(&args, json),
        TensorVerb::Local(verb) => {
            let is_bytes = matches!(verb, LocalTensorVerb::Cat(_)) && !json;
            if is_bytes && output::is_terminal() {
                // An attacker may have made the file, and its bytes can change the terminal's keys.
                return Err(CommandError::usage(
                    "the values are bytes: send them to a file or a program, or take --json",
                ));
            }
            let ended = match is_bytes {
                true => run_local(verb, json, &mut output::bytes()),
                false => run_local(verb, json, &mut output::shown(json)),
            };
            ended.map(exit).map_err(|error| of_cli(&error))
        }
    }
}

const fn exit(outcome: TensorCliOutcome) -> CommandExit {
    match outcome {
        TensorCliOutcome::Good => CommandExit::Ok,
        TensorCliOutcome::Found => CommandExit::Failed,
    }
}

fn pull(args: &PullArgs, json: bool) -> Result<CommandExit, CommandError> {
    let TensorPullRequest {
        node,
        src,
        tensor,
        output: made,
    } = TensorPullRequest::read(&args.what)?;
    // Before the download, which may take hours.
    if !args.force && made.symlink_metadata().is_ok() {
        let text = format!(
            "{} is there already: --force writes over it",
            made.display()
        );
        return Err(CommandError::usage(text));
    }
    let only = TensorSelector::read(tensor.as_deref(), args.only.as_deref())?;
    let route = store_of(node.as_deref(), args.what.first(), (&args.peer, &args.dial))?;
    let names = TransferNames {
        way: TransferWay::Pull,
        file: &made,
        node: &route.name,
        stored: &src,
    };
    let told = !json && std::io::stderr().is_terminal();
    let progress = ByteProgress::new("pull", None, told);
    let tell = |done, total| progress.set(done, total);
    let pulled = CliDialer::new(&args.dial)?.run(async |dialer| {
        let client = dialled(dialer, &route).await?;
        let pulled = match &only {
            None => client.pull(&src, &made, &tell).await,
            Some(only) => {
                let keep = |name: &str| only.wants(name);
                client.pull_some(&src, &made, &keep, &tell).await
            }
        };
        pulled.map_err(|error| {
            let mut failure = names.error(&error, dialer);
            if let (Some(only), ClientError::Wrong(wrong)) = (&only, &error)
                && wrong.code() == TensorErrorCode::NotFound
            {
                failure.message.push_str(&format!(": '{}'", only.text()));
            }
            failure
        })
    })?;
    drop(progress);
    let id = pulled.id.to_string();
    if json {
        output::json_line(&json!({ "file": made.to_string_lossy(), "id": id,
                                   "bytes": pulled.bytes, "fetched": pulled.fetched }))?;
    } else {
        output::line(&format!("{id}  {}", made.display()))?;
    }
    Ok(CommandExit::Ok)
}

/// The node whose store is meant. `first` is the first word, which is no node where NODE was left out. Files need a
/// connection of their own, so that a peer of a hub is refused by what it is.
fn store_of(
    node: Option<&str>,
    first: Option<&OsString>,
    (peer, dial): (&HubPeerArgs, &DialArgs),
) -> Result<NodeRoute, CommandError> {
    if let Some(carriage) = dial.carriage.filter(|it| *it != CarriageArg::Quic) {
        let carriage = Carriage::from(carriage);
        return Err(CommandError::usage(format!(
            "tensor files travel over QUIC only: leave out --carriage {carriage}"
        )));
    }
    let names = NodeNames::load(&dial.state);
    if node.is_none() {
        let first = first.and_then(|word| word.to_str()).unwrap_or_default();
        if names.is_node(first) {
            let text = format!(
                "FILE or OUTPUT is missing behind the node '{first}': alknet tensor pull {first} FILE OUTPUT"
            );
            return Err(CommandError::usage(text));
        }
    }
    let route = names.route(node, peer)?.ok_or_else(no_node)?;
    route.clone().direct("files")?;
    Ok(route)
}

/// Which word is missing in a push of two words: the first is a node and not the file, or the second is the file.
fn missing_word(is_node: bool, first: &OsStr, second: &OsStr) -> Option<String> {
    let is_file = Path::new(second).is_file();
    let (node, word) = (first.to_string_lossy(), second.to_string_lossy());
    if is_node {
        let (missing, taken) = match is_file {
            true => ("PATH", "the file"),
            false => ("FILE", "the path in the store of the node"),
        };
        return Some(format!(
            "{missing} is missing: '{node}' is the node, and '{word}' {taken}; say alknet tensor push {node} FILE PATH"
        ));
    }
    let is_misspelt = is_file && !Path::new(first).exists();
    is_misspelt.then(|| {
        format!(
            "PATH is missing behind '{word}', under which the node stores the file; '{node}' is no file here, and no \
             node has this name: 'alknet node list' lists the names"
        )
    })
}

/// A connection for files. They are served on QUIC alone: each request has a stream.
async fn dialled(dialer: &CliDialer, route: &NodeRoute) -> Result<TensorClient, CommandError> {
    let connection = dialer.dialled(&route.target, ALPN, Carriage::Quic).await;
    let connection = connection.map_err(|error| route.explained(error))?;
    Ok(TensorClient::new(connection))
}

fn push(args: &PushArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, file, path) = match args.what.as_slice() {
        [file, path] => (None, file, path),
        [node, file, path] => (Some(node), file, path),
        _ => {
            let text = "FILE and PATH are two words: alknet tensor push [NODE] FILE PATH";
            return Err(CommandError::usage(text));
        }
    };
    if node.is_none() {
        let names = NodeNames::load(&args.dial.state);
        let is_node = file.to_str().is_some_and(|word| names.is_node(word));
        if let Some(missing) = missing_word(is_node, file, path) {
            return Err(CommandError::usage(missing));
        }
    }
    let text = |word: &OsString| {
        let text = word.to_str().map(str::to_owned);
        text.ok_or_else(|| CommandError::usage("nodes and paths of theirs are called in UTF-8"))
    };
    let path = store_path(&text(path)?)?;
    let file = PathBuf::from(file);
    let opened = File::open(&file)
        .map_err(|error| CommandError::usage(format!("cannot read {}: {error}", file.display())))?;
    if file.is_dir() {
        let text = format!(
            "{} is a folder: 'alknet tensor pack' makes a file of it",
            file.display()
        );
        return Err(CommandError::usage(text));
    }
    let node = node.map(text).transpose()?;
    let route = store_of(node.as_deref(), args.what.first(), (&args.peer, &args.dial))?;
    let stored = TensorFileRef::Path(path.clone());
    let names = TransferNames {
        way: TransferWay::Push,
        file: &file,
        node: &route.name,
        stored: &stored,
    };
    let told = !json && std::io::stderr().is_terminal();
    let progress = ByteProgress::new("push", None, told);
    let tell = |done, total| progress.set(done, total);
    let id = CliDialer::new(&args.dial)?.run(async |dialer| {
        let client = dialled(dialer, &route).await?;
        let put = client.put(opened, Some(path.as_str()), &tell).await;
        put.map_err(|error| names.error(&error, dialer))
    })?;
    drop(progress);
    if json {
        output::json_line(&json!({ "id": id.to_string(), "path": path.as_str() }))?;
    } else {
        output::line(&format!("{id}  {}", path.as_str()))?;
    }
    Ok(CommandExit::Ok)
}

fn remove(row: NodeRowArgs<StoredTensorRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, file) = row.arranged()?;
    let stored = source(&file)?;
    let src = match &stored {
        TensorFileRef::Id(id) => json!({ "id": id.to_string() }),
        TensorFileRef::Path(path) => json!({ "path": path.as_str() }),
    };
    let lines = |answer: &Value| {
        vec![match answer["freed"].as_u64() {
            None | Some(0) => format!("{file} is removed; another path leads to its file"),
            Some(bytes) => format!("{file} is removed: {bytes} bytes are free again"),
        }]
    };
    let input = json!({ "src": src });
    let of_remove = ("tensor/remove", &input);
    ask_or_explain(&node, of_remove, json, lines, async |_, error| {
        let is_missing = error.code == ErrorCode::NotFound;
        let mut failure = call_error(error);
        // A node gives one answer for a file that it does not have and for one that the caller may not remove.
        if is_missing {
            failure.message = format!(
                "{}: {}; the node has no such file, or you lack the scope {}",
                stored_name(&stored),
                failure.message,
                scope_for("write", &stored)
            );
        }
        failure
    })
}

/// What addresses of files begin with, as references to tensors do.
const SCHEME: &str = "alknet-tensor://";

/// Which tensors.
enum TensorSelector<'a> {
    Glob(&'a str),
    Name(&'a str),
}

impl<'a> TensorSelector<'a> {
    /// The tensor that the address names, or those of `--only`; `None` is the whole file.
    fn read(name: Option<&'a str>, glob: Option<&'a str>) -> Result<Option<Self>, CommandError> {
        match (name, glob) {
            (Some(name), Some(_)) => Err(CommandError::usage(format!(
                "the address names the tensor '{name}': leave out --only"
            ))),
            (Some(name), None) => Ok(Some(Self::Name(name))),
            (None, glob) => Ok(glob.map(Self::Glob)),
        }
    }

    const fn text(&self) -> &'a str {
        let (Self::Glob(text) | Self::Name(text)) = self;
        text
    }

    fn wants(&self, name: &str) -> bool {
        match self {
            Self::Glob(glob) => fits(glob, name),
            Self::Name(only) => name == *only,
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
struct TensorPullRequest {
    /// `None`: the default.
    node: Option<String>,
    src: TensorFileRef,
    /// The only tensor of it.
    tensor: Option<String>,
    output: PathBuf,
}

impl TensorPullRequest {
    fn read(what: &[OsString]) -> Result<Self, CommandError> {
        let text = |word: &OsString| {
            let text = word.to_str().map(str::to_owned);
            text.ok_or_else(|| CommandError::usage("nodes and files of theirs are called in UTF-8"))
        };
        let (node, file, tensor, output) = match what {
            [address, output] => match text(address)?.strip_prefix(SCHEME) {
                None => (None, text(address)?, None, output),
                Some(rest) => {
                    let (node, file) = rest.split_once('/').ok_or_else(|| {
                        let what = format!("say {SCHEME}NODE/FILE OUTPUT");
                        CommandError::usage(what)
                    })?;
                    // Paths and ids have no such sign; the names of tensors may.
                    let (file, tensor) = match file.split_once('#') {
                        None => (file, None),
                        Some((file, tensor)) => (file, Some(tensor.to_owned())),
                    };
                    (Some(node.to_owned()), file.to_owned(), tensor, output)
                }
            },
            [node, file, output] => (Some(text(node)?), text(file)?, None, output),
            _ => {
                let text = "FILE and OUTPUT are two words: alknet tensor pull [NODE] FILE OUTPUT";
                return Err(CommandError::usage(text));
            }
        };
        Ok(Self {
            node,
            src: source(&file)?,
            tensor,
            output: output.into(),
        })
    }
}

/// An id is 64 hex digits; anything else is a path.
fn source(text: &str) -> Result<TensorFileRef, CommandError> {
    match text.parse::<FileId>() {
        Ok(id) => Ok(TensorFileRef::Id(id)),
        Err(_) => store_path(text).map(TensorFileRef::Path),
    }
}

/// A path of a store.
fn store_path(text: &str) -> Result<StorePath, CommandError> {
    StorePath::parse(text)
        .map_err(|error| CommandError::usage(format!("'{text}' is no path of a store: {error}")))
}

fn of_cli(error: &TensorCliError) -> CommandError {
    let exit = match error.exit() {
        0 => CommandExit::Ok,
        1 => CommandExit::Failed,
        _ => CommandExit::Usage,
    };
    CommandError::new(exit, error.code(), error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_id_or_a_path() {
        let id = "ab".repeat(32);
        assert!(matches!(source(&id), Ok(TensorFileRef::Id(found)) if found.to_string() == id));
        assert!(matches!(source("models/bert"), Ok(TensorFileRef::Path(_))));
        assert_eq!(
            source("../x").expect_err("it leads away").exit,
            CommandExit::Usage
        );
    }

    fn parse_pull(words: &[&str]) -> Result<TensorPullRequest, CommandError> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        TensorPullRequest::read(&words)
    }

    #[test]
    fn a_push_says_which_word_is_missing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("bert.mt").into_os_string();
        std::fs::write(&file, "").expect("a writable directory");
        let missing = |is_node, first: &str, second: &OsStr| {
            missing_word(is_node, OsStr::new(first), second).unwrap_or_default()
        };
        let of_path = missing(true, "attic", &file);
        assert!(
            of_path.starts_with("PATH is missing: 'attic' is the node"),
            "{of_path}"
        );
        let of_file = missing(true, "attic", OsStr::new("models/bert"));
        assert!(
            of_file.starts_with("FILE is missing: 'attic' is the node"),
            "{of_file}"
        );
        let misspelt = missing(false, "attic1", &file);
        assert!(
            misspelt.starts_with("PATH is missing behind '"),
            "{misspelt}"
        );
        assert!(misspelt.contains("'attic1' is no file here"), "{misspelt}");
        let own = file.to_string_lossy();
        assert_eq!(missing(false, &own, OsStr::new("models/bert")), "");
        // The command says itself that the file is not there.
        assert_eq!(missing(false, "gone.mt", OsStr::new("models/bert")), "");
    }

    #[test]
    fn a_file_is_asked_for_in_two_ways() {
        let node = "ed25519:abc@[::1]:443";
        let address = format!("alknet-tensor://{node}/models/bert");
        let one = format!("{address}#a/b#c");
        for (words, tensor) in [
            (vec![node, "models/bert", "out.mt"], None),
            (vec![&*address, "out.mt"], None),
            (vec![&*one, "out.mt"], Some("a/b#c")),
        ] {
            let asked = parse_pull(&words).expect("both are good");
            let found = (asked.node.as_deref(), asked.tensor.as_deref());
            assert_eq!(found, (Some(node), tensor));
            assert!(
                matches!(asked.src, TensorFileRef::Path(path) if path.as_str() == "models/bert")
            );
            assert_eq!(asked.output, PathBuf::from("out.mt"));
        }
        let asked_of_default = parse_pull(&["models/bert", "out.mt"]).expect("NODE is left out");
        assert_eq!(asked_of_default.node, None);
        assert_eq!(asked_of_default.output, PathBuf::from("out.mt"));
        for words in [
            &["alknet-tensor://attic", "out.mt"][..],
            &["alknet-tensor://attic/../x", "out.mt"],
            &["https://attic/models/bert", "out.mt"],
        ] {
            assert_eq!(
                parse_pull(words).expect_err("neither").exit,
                CommandExit::Usage
            );
        }
    }
}
