//! `alknet tensor`: files of typed data, here and on nodes.

use std::io::IsTerminal;
use std::path::PathBuf;

use alknet_core::Carriage;
use alknet_tensor::FileId;
use alknet_tensor_cli::{CliError, Outcome, Progress, Verb, fits, run as run_local};
use alknet_tensor_serve::{ALPN, Client, ClientError, Src, StorePath};
use clap::{Args, Subcommand};
use serde_json::json;

use super::call::{Reach, parse_target};
use super::{DialArgs, Exit, Failure, output};

/// The verbs below `alknet tensor`.
#[derive(Debug, Subcommand)]
pub(crate) enum TensorVerb {
    #[command(flatten)]
    Local(Verb),
    /// Fetch a file from a node. What an earlier attempt fetched is not fetched again, and nothing
    /// is kept that its hash does not prove.
    #[command(
        after_help = "Examples:\n  alknet tensor pull ed25519:…@192.0.2.7:443 models/bert bert.mt\n  \
alknet tensor pull attic models/bert layer0.mt --only 'model.layers.0.*'"
    )]
    Pull(PullArgs),
}

/// Arguments of `alknet tensor pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The node.
    target: String,
    /// The file: a path of its store, or an id of 64 hex digits.
    source: String,
    /// The container to be made.
    output: PathBuf,
    /// Fetch only the tensors whose names fit; * stands for any characters, ? for one. They make
    /// another file, with an id of its own.
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// `alknet tensor`
pub(crate) fn run(verb: TensorVerb, json: bool) -> Result<Exit, Failure> {
    match verb {
        TensorVerb::Pull(args) => pull(&args, json),
        TensorVerb::Local(verb) => {
            let ended = run_local(verb, json, &mut std::io::stdout().lock());
            ended.map(exit).map_err(|error| of_cli(&error))
        }
    }
}

const fn exit(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Good => Exit::Ok,
        Outcome::Found => Exit::Failed,
    }
}

fn pull(args: &PullArgs, json: bool) -> Result<Exit, Failure> {
    let target = parse_target(&args.target, &args.dial)?;
    let src = source(&args.source)?;
    let told = !json && std::io::stderr().is_terminal();
    let progress = Progress::new("pull", None, told);
    let tell = |done, total| progress.set(done, total);
    let pulled = Reach::new(&args.dial)?.run(async |reach| {
        // Served on QUIC alone: each request has a stream.
        let connection = reach.dialled(&target, ALPN, Carriage::Quic).await?;
        let client = Client::new(connection);
        let pulled = match &args.only {
            None => client.pull(&src, &args.output, &tell).await,
            Some(glob) => {
                let keep = |name: &str| fits(glob, name);
                client.pull_some(&src, &args.output, &keep, &tell).await
            }
        };
        pulled.map_err(|error| of_client(&error))
    })?;
    drop(progress);
    let id = pulled.id.to_string();
    if json {
        output::json_line(&json!({ "file": args.output.to_string_lossy(), "id": id,
                                   "bytes": pulled.bytes, "fetched": pulled.fetched }))?;
    } else {
        output::line(&format!("{id}  {}", args.output.display()))?;
    }
    Ok(Exit::Ok)
}

/// An id is 64 hex digits; anything else is a path.
fn source(text: &str) -> Result<Src, Failure> {
    match text.parse::<FileId>() {
        Ok(id) => Ok(Src::Id(id)),
        Err(_) => StorePath::parse(text)
            .map(Src::Path)
            .map_err(Failure::usage),
    }
}

fn of_cli(error: &CliError) -> Failure {
    let exit = match error.exit() {
        0 => Exit::Ok,
        1 => Exit::Failed,
        _ => Exit::Usage,
    };
    Failure::new(exit, error.code(), error.message())
}

fn of_client(error: &ClientError) -> Failure {
    let exit = match error {
        ClientError::Stream(_) => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.code(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_id_or_a_path() {
        let id = "ab".repeat(32);
        assert!(matches!(source(&id), Ok(Src::Id(found)) if found.to_string() == id));
        assert!(matches!(source("models/bert"), Ok(Src::Path(_))));
        assert_eq!(source("../x").expect_err("it leads away").exit, Exit::Usage);
    }
}
