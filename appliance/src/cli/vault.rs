//! `alknet vault`: a vault on this computer, and the status and the lock of a node's own vault.

use alknet_vault_cli::{
    OfflineVaultVerb, TerminalPrompt, VaultCliError, VaultStatusArgs, run as run_local,
};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use serde_json::{Value, json};

use super::call::call_error;
use super::query::text;
use super::target::{HubPeerArgs, NodeArgs};
use super::{CommandError, CommandExit, DialArgs, dial, output};

/// The member of a vault's status that has a row for each credential.
const CREDENTIALS: &str = "credentials";

/// The verbs below `alknet vault`.
#[derive(Debug, Subcommand)]
pub(crate) enum VaultVerb {
    #[command(flatten)]
    Local(LocalVerb),
    /// Lock the vault of a node: the node forgets its seed until a person opens the vault at its console.
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
    /// Also end the node, so that its memory keeps no derived key.
    #[arg(long)]
    hard: bool,
}

/// The first line of a file of age in letters, and the last.
const ARMOUR_BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const ARMOUR_END: &str = "-----END AGE ENCRYPTED FILE-----";
/// The verb that looks into a directory, or asks a node.
const STATUS: &str = "status";
/// Its option that names a directory, in the place of a node.
const DIR: &str = "dir";
/// Its options that are about a node, by their ids, and as they are written.
const OF_NODES: [(&str, &str); 6] = [
    ("peer_of_hub", "peer"),
    ("via", "via"),
    ("state", "state"),
    ("carriage", "carriage"),
    ("timeout", "timeout"),
    ("anonymous", "anonymous"),
];

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

/// A directory is not dialled: with one, an option about reaching a node is a mistake.
fn check_dialling(status: &ArgMatches) -> Result<(), clap::Error> {
    let is_given = |id: &str| status.value_source(id) == Some(ValueSource::CommandLine);
    if !is_given(DIR) {
        return Ok(());
    }
    // An option that has no effect would let the user believe that a node was asked.
    match OF_NODES.iter().find(|(id, _)| is_given(id)) {
        None => Ok(()),
        Some((_, option)) => {
            let text = format!("--{option} is about a node, and --{DIR} reads a directory\n");
            Err(clap::Error::raw(ErrorKind::ArgumentConflict, text))
        }
    }
}

/// Runs it.
pub(crate) fn run(verb: VaultVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        VaultVerb::Local(LocalVerb {
            verb: OfflineVaultVerb::Status(VaultStatusArgs { node, dir: None }),
            dial: Some(dial),
            peer,
        }) => {
            let node = NodeArgs {
                node,
                peer,
                dial,
                meant: None,
            };
            status_of_node(&node, json)
        }
        VaultVerb::Local(LocalVerb { verb, .. }) => {
            run_local(verb, json, &mut output::bytes(), &mut TerminalPrompt::new())
                .map(|()| CommandExit::Ok)
                .map_err(|error| of_local(&error))
        }
        VaultVerb::Lock(args) => args.node.reached(async |node| {
            let input = json!({ "hard": args.hard });
            let locked = node.call("vault/lock", &input).await.map_err(call_error)?;
            show(locked.value(), json)
        }),
    }
}

/// What a node says of its vault.
fn status_of_node(node: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let route = node.route().map_err(|mut error| {
        if node.node.is_none() && error.exit == CommandExit::Usage {
            let more = "; to read a vault on this computer, give --dir DIR";
            error.message.push_str(more);
        }
        error
    })?;
    dial::reached(&route, &node.dial, async |node| {
        let status = node.call("vault/status", &Value::Null).await;
        let status = status.map_err(call_error)?;
        show(status.value(), json)?;
        if !json && status.value()["state"] == "absent" {
            output::note(
                "a node of 'alknet serve' has no vault; its credentials: 'alknet credential list'",
            );
        }
        Ok(CommandExit::Ok)
    })
}

fn show(value: &Value, json: bool) -> Result<CommandExit, CommandError> {
    if json {
        output::json_line(value)?;
        return Ok(CommandExit::Ok);
    }
    for (name, text) in rows(value) {
        let shown = match is_armoured(&text) {
            false => output::one_line(&text),
            true => text.as_str().into(),
        };
        // What has several lines stands by itself, to be copied.
        let gap = if shown.contains('\n') { "\n" } else { " " };
        let name = output::one_line(&name);
        output::text(&format!("{name:12}{gap}{shown}"))?;
    }
    Ok(CommandExit::Ok)
}

/// The members of an answer that say something, each with its text. A credential has a row of its own.
fn rows(answer: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    for (name, value) in answer.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) if name == CREDENTIALS => {
                let row = |item: &Value| ("credential".to_owned(), credential(item));
                rows.extend(items.iter().map(row));
            }
            Value::Array(items) => {
                let text = |item: &Value| {
                    item.as_str()
                        .map_or_else(|| item.to_string(), str::to_owned)
                };
                let items: Vec<_> = items.iter().map(text).collect();
                rows.push((name.clone(), items.join(", ")));
            }
            Value::String(text) => rows.push((name.clone(), text.clone())),
            other => rows.push((name.clone(), other.to_string())),
        }
    }
    rows
}

/// A credential of the answer, for a person.
fn credential(row: &Value) -> String {
    let state = match text(&row["state"]) {
        "credential_missing" => "not set",
        other => other,
    };
    let users = row["operations"].as_array().into_iter().flatten();
    let users: Vec<_> = users.filter_map(Value::as_str).collect();
    let users = match users.is_empty() {
        true => String::new(),
        false => format!("; given to {}", users.join(", ")),
    };
    format!(
        "{} ({}): {state}{users}",
        text(&row["name"]),
        text(&row["kind"])
    )
}

/// Whether a text is an armoured file of age, as the words of a vault are: base64 (RFC 4648 section 4) between the two
/// lines that mark it. A line break in any other text of a node could make a second row of it.
fn is_armoured(text: &str) -> bool {
    let within = text.trim_end().strip_prefix(ARMOUR_BEGIN);
    let within = within.and_then(|text| text.strip_suffix(ARMOUR_END));
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    within.is_some_and(|text| text.lines().all(|line| line.bytes().all(is_base64)))
}

/// The error of a verb that knows of no network.
pub(super) fn of_local(error: &VaultCliError) -> CommandError {
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
    use std::collections::{BTreeMap, BTreeSet};
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
        // Without NODE it is the default node, as of every verb.
        for line in ["vault status", "vault status --timeout 2 --peer kitchen"] {
            let asked = read(line).expect(line).verb;
            let is_node = matches!(
                asked,
                OfflineVaultVerb::Status(VaultStatusArgs {
                    node: None,
                    dir: None
                })
            );
            assert!(is_node, "{line}: {asked:?}");
        }
        for line in ["vault status --dir vault", "vault record list --dir vault"] {
            assert!(read(line).is_ok(), "{line}");
        }
        // A directory is not dialled.
        for option in [
            "--state /s",
            "--carriage tcp",
            "--timeout 2",
            "--anonymous",
            "--peer kitchen",
            "attic",
        ] {
            let line = format!("vault status --dir vault {option}");
            let refused = read(&line).expect_err("a directory is named");
            assert_eq!(refused.kind(), ErrorKind::ArgumentConflict, "{line}");
        }
    }

    #[test]
    fn a_status_has_no_empty_row_and_no_json_of_credentials() {
        let answer = json!({
            "state": "absent", "sealed": false, "slots": [], "opened_by": null, "device": 0, "memory": "",
            "credentials": [
                { "name": "notes", "kind": "bearer", "state": "credential_missing", "operations": [] },
                { "name": "mint", "kind": "signer", "state": "ready", "operations": ["js/mint", "js/pay"] },
            ],
        });
        let lines: Vec<_> = rows(&answer)
            .into_iter()
            .map(|(name, text)| format!("{name} {text}"))
            .collect();
        let mut expected = [
            "credential notes (bearer): not set",
            "credential mint (signer): ready; given to js/mint, js/pay",
            "device 0",
            "sealed false",
            "state absent",
        ];
        let mut sorted = lines;
        sorted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn only_an_armoured_file_keeps_its_lines() {
        let armour = |text: &str| format!("{ARMOUR_BEGIN}\n{text}\n{ARMOUR_END}\n");
        assert!(is_armoured(&armour("YWdlLWVu\nc3J5+/==")));
        let row = armour("sealed       true");
        for other in ["locked\nsealed", "locked", &row, ARMOUR_BEGIN, ARMOUR_END] {
            assert!(!is_armoured(other), "{other:?}");
        }
    }

    #[test]
    fn status_keeps_its_own_description() {
        let command = LocalVerb::augment_subcommands(Command::new("vault"));
        let status = command.find_subcommand(STATUS).expect("it is a verb");
        let about = status.get_about().expect("it has one").to_string();
        assert!(about.contains("without opening it"), "{about}");
    }

    /// The program's own verbs: those that help lists, and the earlier spellings with their present ones.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct VerbList {
        verbs: BTreeSet<String>,
        earlier: BTreeMap<String, String>,
    }

    impl VerbList {
        fn of_program() -> Self {
            let mut list = Self::default();
            let vault = VaultVerb::augment_subcommands(Command::new("vault"));
            list.add(&vault, "");
            list
        }

        fn add(&mut self, command: &Command, path: &str) {
            for below in command.get_subcommands() {
                let name = format!("{path}{}", below.get_name());
                if below.is_hide_set() {
                    let about = below.get_about().map(ToString::to_string);
                    let about = about.unwrap_or_default();
                    let present = about.strip_prefix("As 'alknet vault ");
                    let present = present.and_then(|text| text.strip_suffix('\''));
                    let present = present.unwrap_or_else(|| panic!("{name}: {about:?}"));
                    self.earlier.insert(name, present.to_owned());
                    continue;
                }
                for alias in below.get_all_aliases() {
                    self.earlier.insert(format!("{path}{alias}"), name.clone());
                }
                // The noun alone is what its one verb was before.
                if below.is_args_conflicts_with_subcommands_set() {
                    let verbs = below.get_subcommands().map(Command::get_name);
                    let verbs: Vec<_> = verbs.filter(|verb| *verb != "help").collect();
                    assert_eq!(verbs.len(), 1, "{name}");
                    self.earlier
                        .insert(name.clone(), format!("{name} {}", verbs[0]));
                }
                if below.has_subcommands() {
                    self.add(below, &format!("{name} "));
                } else {
                    self.verbs.insert(name);
                }
            }
        }

        fn of_page(rows: &[PageRow]) -> Self {
            let mut list = Self::default();
            let rows = rows.iter().filter(|row| row.access != "console");
            for PageRow { verb, earlier, .. } in rows {
                list.verbs.insert(verb.clone());
                let own = earlier.split("console:").next().unwrap_or_default();
                let spellings = own.split('`').skip(1).step_by(2);
                let spellings = spellings.map(|old| (old.to_owned(), verb.clone()));
                list.earlier.extend(spellings);
            }
            list
        }
    }

    /// A row of the table of verbs on docs/vault.md.
    #[derive(Debug)]
    struct PageRow {
        verb: String,
        asks: String,
        access: String,
        exits: Vec<u8>,
        earlier: String,
    }

    fn page_rows() -> Vec<PageRow> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vault.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        let section = page.split("\n## ").find(|it| it.starts_with("Verbs\n"));
        let rows = section.expect("the section").lines();
        let rows = rows.filter(|row| row.starts_with("| `"));
        let rows = rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, verb, asks, access, exits, earlier, _] = cells.as_slice() else {
                panic!("five columns: {row}");
            };
            let exits = exits.split(", ").filter(|exit| !exit.is_empty());
            let exits = exits.map(|exit| exit.parse().expect(row));
            PageRow {
                verb: verb.replace('`', ""),
                asks: (*asks).to_owned(),
                access: (*access).to_owned(),
                exits: exits.collect(),
                earlier: (*earlier).to_owned(),
            }
        });
        rows.collect()
    }

    #[test]
    fn the_page_has_each_verb_and_each_earlier_spelling() {
        let program = VerbList::of_program();
        assert!(program.verbs.contains("slot add"), "{program:?}");
        assert_eq!(VerbList::of_page(&page_rows()), program, "docs/vault.md");
    }

    /// What a verb asks for, where it works and how it may end follows from the arguments that it takes.
    #[test]
    fn the_page_says_of_each_verb_what_its_arguments_imply() {
        let mut vault = VaultVerb::augment_subcommands(Command::new("vault"));
        vault.build();
        for row in page_rows().iter().filter(|row| row.access != "console") {
            let path = row.verb.split(' ');
            let command = path.fold(&vault, |command, name| {
                command.find_subcommand(name).expect(&row.verb)
            });
            let takes = |id: &str| command.get_arguments().any(|it| it.get_id() == id);
            // Only a verb that opens a vault takes a seed.
            let opens = takes("seed_key");
            let words = takes("mnemonic_stdin");
            let dials = takes("timeout");
            assert!(!opens || row.asks.contains("passphrase"), "{row:?}");
            assert_eq!(words, row.asks.contains("the words"), "{row:?}");
            assert_eq!(dials, row.access.contains("network"), "{row:?}");
            for (implied, exit) in [
                (opens, CommandExit::WrongPassphrase),
                (words, CommandExit::BadWords),
                (dials, CommandExit::Unreachable),
            ] {
                let listed = row.exits.contains(&(exit as u8));
                assert_eq!(implied, listed, "{exit:?}: {row:?}");
            }
            for exit in &row.exits {
                let known = CommandExit::ALL.iter().any(|it| *it as u8 == *exit);
                assert!(known && *exit > CommandExit::Usage as u8, "{row:?}");
            }
        }
    }
}
