//! `alknet vault`: a vault on this computer, and what a node tells about its own.

use std::io;
use std::time::Duration;

use alknet_vault_cli::{CliError, StatusArgs, Terminal, Verb, run as run_local};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::{connected, of_call};
use super::{DialArgs, Exit, Failure, StateArgs, output};

/// The verbs below `alknet vault`.
#[derive(Debug, Subcommand)]
pub(crate) enum VaultVerb {
    #[command(flatten)]
    Local(Verb),
    /// Let a node forget its seed. It is opened again at its console, never from afar.
    #[command(
        after_help = "Examples:\n  alknet vault lock ed25519:…@192.0.2.7:443\n  \
alknet vault lock ed25519:…@192.0.2.7:443 --hard"
    )]
    Lock(LockArgs),
}

/// Arguments of `alknet vault lock`.
#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    /// The node.
    target: String,
    /// End the node as well, so that nothing that was derived is left in its memory.
    #[arg(long)]
    hard: bool,
    #[command(flatten)]
    dial: DialArgs,
}

/// How long a node may take to say how its vault is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs it.
pub(crate) fn run(verb: VaultVerb, json: bool) -> Result<Exit, Failure> {
    match verb {
        VaultVerb::Local(Verb::Status(StatusArgs {
            node: Some(node), ..
        })) => {
            let dial = DialArgs {
                state: StateArgs { state: None },
                carriage: None,
                timeout: STATUS_TIMEOUT,
                anonymous: false,
            };
            connected(&node, &dial, async |client| {
                let status = client.call("vault/status", &Value::Null).await;
                show(status.map_err(of_call)?.value(), json)
            })
        }
        VaultVerb::Local(verb) => {
            run_local(verb, json, &mut io::stdout().lock(), &mut Terminal::new())
                .map(|()| Exit::Ok)
                .map_err(|error| of_local(&error))
        }
        VaultVerb::Lock(args) => connected(&args.target, &args.dial, async |client| {
            let input = json!({ "hard": args.hard });
            let locked = client.call("vault/lock", &input).await.map_err(of_call)?;
            show(locked.value(), json)
        }),
    }
}

fn show(value: &Value, json: bool) -> Result<Exit, Failure> {
    if json {
        output::json_line(value)?;
        return Ok(Exit::Ok);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::Array(items) if items.is_empty() => continue,
            Value::Array(items) => {
                let text = |item: &Value| {
                    item.as_str()
                        .map_or_else(|| item.to_string(), str::to_owned)
                };
                items.iter().map(text).collect::<Vec<_>>().join(", ")
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // What has several lines stands by itself, to be copied.
        let gap = if text.contains('\n') { "\n" } else { " " };
        output::line(&format!("{name:12}{gap}{text}"))?;
    }
    Ok(Exit::Ok)
}

fn of_local(error: &CliError) -> Failure {
    let exit = match error.exit() {
        0 => Exit::Ok,
        2 => Exit::Usage,
        4 => Exit::Denied,
        10 => Exit::Locked,
        11 => Exit::WrongPassphrase,
        12 => Exit::BadWords,
        13 => Exit::Corrupt,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.code(), error)
}
