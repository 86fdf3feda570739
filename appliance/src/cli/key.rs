//! `alknet key`: another key in the place of the one this computer acts with.

use alknet_core::PeerAddr;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::call_error;
use super::dial::CliDialer;
use super::identity::{self, KEY_FILE};
use super::target::NodeNames;
use super::{CommandError, CommandExit, DialArgs, StateArgs, output};

use crate::key::{
    KeyFiles, RotationKeys, RotationNoticeError, RotationRecord, RotationStage, RotationTarget,
    tell,
};

/// The verbs below `alknet key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Make a new key, send it to every node that knows the old key, and then use the new key.
    #[command(
        after_help = "Examples:\n  alknet key rotate ed25519:…@192.0.2.7:443 hub.example.org\n  \
alknet key rotate\n\nNodes are remembered: without targets the command goes on where it stopped, or \
tells those of the last time. The old key stays valid on them for a day."
    )]
    Rotate(KeyRotateArgs),
    /// Print the public key of this command line. The first use makes the key.
    #[command(after_help = "Example:\n  alknet key show --json")]
    Show(StateArgs),
}

/// Arguments of `alknet key rotate`.
#[derive(Debug, Args)]
pub(crate) struct KeyRotateArgs {
    /// The nodes that know the key: names of 'alknet node list', or KEY@HOST:PORT.
    #[arg(value_name = "NODE")]
    targets: Vec<String>,
    /// Remove this node from the list of nodes that get the new key. Repeat the option for more nodes.
    #[arg(long, value_name = "NODE")]
    drop: Vec<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// Runs one of them.
pub(crate) fn run(verb: KeyVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        KeyVerb::Rotate(args) => rotate(&args, json),
        KeyVerb::Show(args) => identity::run(&args, json),
    }
}

fn rotate(args: &KeyRotateArgs, json: bool) -> Result<CommandExit, CommandError> {
    if args.dial.anonymous {
        return Err(CommandError::usage(
            "a key is replaced by its holder: leave out --anonymous",
        ));
    }
    let files = KeyFiles::at(args.dial.state.dir()?.join(KEY_FILE));
    // Two commands at a time would make two new keys, and nodes would learn of one or the other.
    let _turn = files.lock()?;
    files.tidy();
    let mut record = files.record()?;
    let names = NodeNames::load(&args.dial.state);
    let target = |node: &String| names.resolve(node)?.direct("the change of a key");
    for node in &args.targets {
        record.add(&target(node)?.to_string());
    }
    for node in &args.drop {
        record.forget(&target(node)?.to_string());
    }
    let keys = files.keys(&record)?;
    if record.targets.is_empty() && keys.stage == RotationStage::Before {
        return Err(CommandError::usage(
            "name the nodes that know your key: a node that does not learn of the new one treats \
             you as an unknown peer",
        ));
    }
    let keys = files.begin(keys, &mut record)?;
    let exits = tell_all(&keys, &mut record, &args.dial, json)?;
    match keys.stage {
        // The key changes only when all know it: a node that does not would refuse the new one.
        RotationStage::Before if record.is_announced() => files.swap(&keys, &mut record)?,
        RotationStage::Before => files.write(&record)?,
        RotationStage::After => files.prolong(&mut record)?,
    }
    report(&files, &keys, &record, json)?;
    Ok(exits
        .into_iter()
        .find(|exit| *exit != CommandExit::Ok)
        .unwrap_or(CommandExit::Ok))
}

/// Notifies every node that does not know the new key yet, all at the same time; prints each failure.
fn tell_all(
    keys: &RotationKeys,
    record: &mut RotationRecord,
    dial: &DialArgs,
    json: bool,
) -> Result<Vec<CommandExit>, CommandError> {
    let mut waiting: Vec<_> = record
        .targets
        .iter_mut()
        .filter(|it| !it.notified)
        .collect();
    if waiting.is_empty() {
        return Ok(Vec::new());
    }
    let (old, new) = (keys.old.as_ref().ok_or_else(gone)?, &keys.new);
    // A node learns of a new key only over a connection that was made with the old one.
    let reach = CliDialer::with_key(Some(old.clone()), dial);
    reach.run(async |reach| {
        let all = waiting.iter_mut().map(|node| async move {
            let target: PeerAddr = node.target.parse().map_err(CommandError::usage)?;
            let answer = reach
                .connected(&target, async |client| {
                    let notified = tell(client, &target.pins, old, new).await;
                    notified.map_err(of_tell)
                })
                .await?;
            node.notified = true;
            node.peer_id = Some(answer.peer_id);
            node.old_key_ends = answer.old_key_ends;
            Ok::<_, CommandError>(())
        });
        let results = futures_util::future::join_all(all).await;
        let exits = results.into_iter().zip(&waiting).map(|(result, node)| {
            result.map_or_else(
                |failure| {
                    output::failure_of(Some(&node.target), &failure, json);
                    failure.exit
                },
                |()| CommandExit::Ok,
            )
        });
        Ok(exits.collect())
    })
}

fn of_tell(error: RotationNoticeError) -> CommandError {
    match error {
        RotationNoticeError::Call(error) => call_error(error),
        RotationNoticeError::Clock => {
            CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", error)
        }
        RotationNoticeError::Protocol(_) => {
            CommandError::new(CommandExit::Failed, "PROTOCOL", error)
        }
    }
}

fn gone() -> CommandError {
    CommandError::local(
        "the old key is gone, and only a connection made with it can announce the new one: give \
         the nodes up with --drop TARGET and let an administrator add the new key there",
    )
}

fn report(
    files: &KeyFiles,
    keys: &RotationKeys,
    record: &RotationRecord,
    json: bool,
) -> Result<(), CommandError> {
    let in_use = files.in_use()?;
    if json {
        return output::json_line(&json!({
            "identity": in_use,
            "new": keys.new.public(),
            "rotated": in_use == keys.new.public(),
            "old_key_ends": record.old_until(),
            "targets": record.targets.iter().map(shown).collect::<Vec<_>>(),
        }));
    }
    for line in lines(
        in_use == keys.new.public(),
        &keys.new.public().to_string(),
        files,
        record,
    ) {
        output::line(&line)?;
    }
    Ok(())
}

/// A node of the rotation, as `--json` prints it.
fn shown(node: &RotationTarget) -> Value {
    let mut shown = json!({ "target": node.target, "notified": node.notified });
    let known = [
        ("peer_id", &node.peer_id),
        ("old_key_ends", &node.old_key_ends),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            shown[name] = value.as_str().into();
        }
    }
    shown
}

fn lines(rotated: bool, new: &str, files: &KeyFiles, record: &RotationRecord) -> Vec<String> {
    let mut lines: Vec<_> = record
        .targets
        .iter()
        .filter(|node| node.notified)
        .map(|node| {
            let ends = node.old_key_ends.as_deref();
            let ends = ends.map_or_else(
                || "keeps the old one until its configuration drops it".to_owned(),
                |ends| format!("takes the old one until {ends}"),
            );
            let peer = node.peer_id.as_deref().unwrap_or_default();
            format!("{}: knows the new key as {peer}, and {ends}", node.target)
        })
        .collect();
    let waiting = record.targets.iter().filter(|it| !it.notified).count();
    if rotated {
        lines.push(format!("your key is {new}"));
        if let Some(until) = record.old_until() {
            let old = files.old();
            lines.push(format!("the old one is in {} until {until}", old.display()));
        }
    } else {
        lines.push(format!("the new key will be {new}"));
        lines.push(format!(
            "the old one stays in use until {waiting} more know it: run 'alknet key rotate' again, \
             or give one up with --drop TARGET"
        ));
    }
    lines
}
