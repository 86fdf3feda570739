//! `alknet vault`: a vault on this computer, and what a node tells about its own.

use alknet_vault_cli::{
    OfflineVaultVerb, TerminalPrompt, VaultCliError, VaultStatusArgs, run as run_local,
};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use serde_json::{Value, json};

use super::call::of_call;
use super::target::{HubPeerArgs, NodeArgs};
use super::{CommandError, CommandExit, DialArgs, output};

/// The verbs below `alknet vault`.
#[derive(Debug, Subcommand)]
pub(crate) enum VaultVerb {
    #[command(flatten)]
    Local(LocalVerb),
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
    #[command(flatten)]
    node: NodeArgs,
    /// End the node as well, so that nothing that was derived is left in its memory.
    #[arg(long)]
    hard: bool,
}

/// The verb that looks into a directory, or asks a node.
const STATUS: &str = "status";
/// Its argument that names a node.
const NODE: &str = "node";
/// Its options that name a peer of a hub.
const PEER: [&str; 2] = ["peer_of_hub", "via"];
/// Its options that are about reaching that node.
const DIALLING: [&str; 4] = ["state", "carriage", "timeout", "anonymous"];

/// The verbs that know of no network, and how `status` reaches a node.
#[derive(Debug)]
pub(crate) struct LocalVerb {
    verb: OfflineVaultVerb,
    /// With [`STATUS`] only.
    dial: Option<DialArgs>,
    /// The same: a peer of a hub.
    peer: HubPeerArgs,
}

impl FromArgMatches for LocalVerb {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let (dial, peer) = match matches.subcommand() {
            Some((STATUS, status)) => {
                check_dialling(status)?;
                let peer = HubPeerArgs::from_arg_matches(status)?;
                (Some(DialArgs::from_arg_matches(status)?), peer)
            }
            _ => (None, HubPeerArgs::default()),
        };
        let verb = OfflineVaultVerb::from_arg_matches(matches)?;
        Ok(Self { verb, dial, peer })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for LocalVerb {
    fn augment_subcommands(command: Command) -> Command {
        OfflineVaultVerb::augment_subcommands(command).mut_subcommand(STATUS, dialling)
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        OfflineVaultVerb::augment_subcommands_for_update(command).mut_subcommand(STATUS, dialling)
    }

    fn has_subcommand(name: &str) -> bool {
        OfflineVaultVerb::has_subcommand(name)
    }
}

fn dialling(status: Command) -> Command {
    // Options that are put into a command bring their own description with them.
    let about = status.get_about().cloned().unwrap_or_default();
    HubPeerArgs::augment_args(DialArgs::augment_args(status)).about(about)
}

/// A directory is not dialled: an option about reaching a node is a mistake where no node is named.
fn check_dialling(status: &ArgMatches) -> Result<(), clap::Error> {
    let is_given = |name: &&str| status.value_source(name) == Some(ValueSource::CommandLine);
    if is_given(&NODE) || PEER.iter().any(is_given) {
        return Ok(());
    }
    // An option that has no effect would let the user believe that a node was asked.
    match DIALLING.iter().find(|name| is_given(name)) {
        None => Ok(()),
        Some(option) => {
            let text = format!("--{option} is about a node, and none is named\n");
            Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, text))
        }
    }
}

/// Runs it.
pub(crate) fn run(verb: VaultVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        VaultVerb::Local(LocalVerb {
            verb: OfflineVaultVerb::Status(VaultStatusArgs { node, .. }),
            dial: Some(dial),
            peer,
        }) if node.is_some() || peer.is_some() => {
            let node = NodeArgs { node, peer, dial };
            node.reached(async |node| {
                let status = node.call("vault/status", &Value::Null).await;
                show(status.map_err(of_call)?.value(), json)
            })
        }
        VaultVerb::Local(LocalVerb { verb, .. }) => {
            run_local(verb, json, &mut output::bytes(), &mut TerminalPrompt::new())
                .map(|()| CommandExit::Ok)
                .map_err(|error| of_local(&error))
        }
        VaultVerb::Lock(args) => args.node.reached(async |node| {
            let input = json!({ "hard": args.hard });
            let locked = node.call("vault/lock", &input).await.map_err(of_call)?;
            show(locked.value(), json)
        }),
    }
}

fn show(value: &Value, json: bool) -> Result<CommandExit, CommandError> {
    if json {
        output::json_line(value)?;
        return Ok(CommandExit::Ok);
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
        output::text(&format!("{name:12}{gap}{text}"))?;
    }
    Ok(CommandExit::Ok)
}

fn of_local(error: &VaultCliError) -> CommandError {
    let exit = match error.exit() {
        0 => CommandExit::Ok,
        2 => CommandExit::Usage,
        4 => CommandExit::Denied,
        10 => CommandExit::Locked,
        11 => CommandExit::WrongPassphrase,
        12 => CommandExit::BadWords,
        13 => CommandExit::Corrupt,
        _ => CommandExit::Failed,
    };
    CommandError::new(exit, error.code(), error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::cli::dial::CarriageArg;

    #[derive(Debug, Parser)]
    struct VaultTestCli {
        #[command(subcommand)]
        verb: VaultVerb,
    }

    fn read(line: &str) -> Result<LocalVerb, clap::Error> {
        let words = line.split_whitespace();
        match VaultTestCli::try_parse_from(words)?.verb {
            VaultVerb::Local(local) => Ok(local),
            VaultVerb::Lock(args) => panic!("{line}: {args:?}"),
        }
    }

    #[test]
    fn a_node_is_asked_for_its_status_as_it_is_locked() {
        let line = "vault status attic --state /s --carriage tcp --timeout 2 --anonymous";
        let asked = read(line).expect("a node is named");
        let dial = asked.dial.expect("it is status");
        assert_eq!(dial.state.state.as_deref(), Some(Path::new("/s")));
        assert_eq!(dial.carriage, Some(CarriageArg::Tcp));
        assert_eq!(dial.timeout, Duration::from_secs(2));
        assert!(dial.anonymous);

        let asked = read("vault status attic").expect("a node is named");
        let dial = asked.dial.expect("it is status");
        assert_eq!(dial.timeout, Duration::from_secs(30));
        assert!(matches!(
            asked.verb,
            OfflineVaultVerb::Status(VaultStatusArgs { node: Some(node), .. }) if node == "attic"
        ));
        let asked = read("vault status attic --peer kitchen").expect("a hub is named");
        assert_eq!(asked.peer.peer.as_deref(), Some("kitchen"));
        let asked = read("vault status kitchen --via attic").expect("a worker is named");
        assert_eq!(asked.peer.via.as_deref(), Some("attic"));
        for line in ["vault status --dir vault", "vault list --dir vault"] {
            assert!(read(line).is_ok(), "{line}");
        }
        // A directory is not dialled.
        for option in ["--state /s", "--carriage tcp", "--timeout 2", "--anonymous"] {
            let line = format!("vault status --dir vault {option}");
            let refused = read(&line).expect_err("no node is named");
            assert_eq!(refused.kind(), ErrorKind::MissingRequiredArgument, "{line}");
        }
    }

    #[test]
    fn status_keeps_its_own_description() {
        let command = LocalVerb::augment_subcommands(Command::new("vault"));
        let status = command.find_subcommand(STATUS).expect("it is a verb");
        let about = status.get_about().expect("it has one").to_string();
        assert!(about.contains("how a vault is"), "{about}");
    }
}
