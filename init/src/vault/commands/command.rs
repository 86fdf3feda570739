//! The commands, in the form in which the user types them.

use alknet_vault::slots::{SlotId, SlotType};

/// A console command about the vault. Its spelling is that of `alknet vault`. docs/vault.md has
/// both in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VaultCommand {
    /// Shows the newest lines of the log, or those up to a number.
    Audit {
        until: Option<u64>,
    },
    FactoryReset,
    Lock {
        hard: bool,
    },
    Rekey,
    SlotAdd(SlotType),
    /// A slot of type `tpm2` for the image that is started next.
    SlotAddNext,
    /// A slot of type `tpm2` that needs a PIN.
    SlotAddPin,
    SlotList,
    SlotRemove(SlotId),
    /// A slot of type `tpm2` for the running image, in place of this one.
    SlotRenew(SlotId),
    /// A new passphrase in place of the one that the user types.
    SlotSet,
    SlotTest(SlotId),
    Status,
    /// Forgets TPMs that have not counted, and never will.
    TpmForget,
    Words,
}

/// The list of commands that the console shows.
pub(crate) const COMMANDS: [&str; 17] = [
    "status              show the state of the vault",
    "slot list           list the slots: what opens the vault",
    "slot add TYPE       add a slot: passphrase, provisioning, tpm2 or none",
    "slot add tpm2 pin   add a slot of the TPM that needs a PIN",
    "slot add tpm2 next  add a slot of the TPM for the next image, alknet-next.efi",
    "slot renew N        replace slot N by one of the TPM for the running image",
    "slot remove N       remove slot N",
    "slot set            replace the passphrase that you type",
    "slot test N         try slot N",
    "tpm forget          stop waiting for TPMs that are gone",
    "words show          show the recovery words",
    "rekey               make a new master key: old copies open no later record",
    "audit show [N]      verify the log; show the newest lines, or those up to N",
    "lock                forget the seed; the node keeps running",
    "lock hard           the same, and end the node until the vault is opened again",
    "factory-reset       erase the keys and the data of this machine",
    "Without a command, Enter goes back.",
];

impl VaultCommand {
    /// Parses a line, or returns an error for the user. It also takes the spellings of earlier
    /// versions, which the console does not list: `audit`, `passwd`, `slot rm`, `slots` and
    /// `words`.
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words.as_slice() {
            ["audit"] | ["audit", "show"] => Self::Audit { until: None },
            ["audit", "show", number] | ["audit", number] => {
                let until = number.parse().map_err(|_| {
                    format!("{number:?} is no number of a line; 'audit show' shows the newest")
                })?;
                Self::Audit { until: Some(until) }
            }
            ["factory-reset"] => Self::FactoryReset,
            ["lock"] => Self::Lock { hard: false },
            ["lock", "hard" | "--hard"] => Self::Lock { hard: true },
            ["passwd"] => Self::SlotSet,
            ["rekey"] => Self::Rekey,
            ["slot", verb, rest @ ..] => Self::of_slot(verb, rest, line)?,
            ["slots"] => Self::SlotList,
            ["status"] => Self::Status,
            ["tpm", "forget"] => Self::TpmForget,
            ["words"] | ["words", "show"] => Self::Words,
            _ => return Err(unknown(line)),
        })
    }

    /// Parses what follows the noun `slot`.
    fn of_slot(verb: &str, rest: &[&str], line: &str) -> Result<Self, String> {
        Ok(match (verb, rest) {
            ("add", ["tpm2", "next"]) => Self::SlotAddNext,
            ("add", ["tpm2", "pin"]) => Self::SlotAddPin,
            ("add", [kind]) => Self::SlotAdd(type_of(kind)?),
            ("add", []) => return Err("slot add needs a type".to_owned()),
            ("list", []) => Self::SlotList,
            ("remove" | "rm", [id]) => Self::SlotRemove(number(id)?),
            ("renew", [id]) => Self::SlotRenew(number(id)?),
            ("set", []) => Self::SlotSet,
            ("set", [_]) => {
                let text = "slot set replaces the passphrase that you type, and takes no number";
                return Err(text.to_owned());
            }
            ("test", [id]) => Self::SlotTest(number(id)?),
            ("remove" | "renew" | "rm" | "test", []) => {
                return Err(format!(
                    "slot {verb} needs a slot by its number; 'slot list' lists the slots"
                ));
            }
            _ => return Err(unknown(line)),
        })
    }

    /// Whether it needs an open vault.
    pub(crate) fn needs_open(self) -> bool {
        !matches!(
            self,
            Self::FactoryReset | Self::Lock { .. } | Self::SlotList | Self::Status
        )
    }
}

fn unknown(line: &str) -> String {
    format!("there is no command {:?}", line.trim())
}

fn type_of(name: &str) -> Result<SlotType, String> {
    match SlotType::from_name(name) {
        // Another node has to take the share first, which `[vault.kms]` arranges at the first boot.
        Some(SlotType::Kms) => {
            Err("a slot that another node opens is not made at the console".to_owned())
        }
        Some(kind) => Ok(kind),
        None => Err(format!("there is no type {name:?} of slots")),
    }
}

fn number(text: &str) -> Result<SlotId, String> {
    let number = text.parse().map(SlotId::new);
    number.map_err(|_| format!("{text:?} is no number of a slot"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn commands_are_read_and_mistakes_named() {
        for (line, command) in [
            ("audit show", VaultCommand::Audit { until: None }),
            ("audit show 12", VaultCommand::Audit { until: Some(12) }),
            ("lock", VaultCommand::Lock { hard: false }),
            (" lock  hard ", VaultCommand::Lock { hard: true }),
            ("lock --hard", VaultCommand::Lock { hard: true }),
            ("slot add tpm2", VaultCommand::SlotAdd(SlotType::Tpm2)),
            ("slot add tpm2 pin", VaultCommand::SlotAddPin),
            ("slot add tpm2 next", VaultCommand::SlotAddNext),
            ("slot list", VaultCommand::SlotList),
            ("slot renew 2", VaultCommand::SlotRenew(SlotId::new(2))),
            ("slot remove 3", VaultCommand::SlotRemove(SlotId::new(3))),
            ("slot set", VaultCommand::SlotSet),
            ("slot test 0", VaultCommand::SlotTest(SlotId::new(0))),
            ("tpm forget", VaultCommand::TpmForget),
            ("words show", VaultCommand::Words),
        ] {
            assert_eq!(VaultCommand::parse(line), Ok(command), "{line}");
        }
        for (line, wrong) in [
            ("audit all", "no number of a line"),
            ("audit show all", "no number of a line"),
            ("slot", "no command"),
            ("slot add", "needs a type"),
            ("slot add kms", "another node"),
            ("slot add yubikey", "no type"),
            ("slot frobnicate 1", "no command"),
            ("slot remove", "its number"),
            ("slot renew", "its number"),
            ("slot remove -1", "no number"),
            ("slot remove 4294967296", "no number"),
            ("slot set 1", "takes no number"),
            ("words hide", "no command"),
            ("rm -rf", "no command"),
        ] {
            let error = VaultCommand::parse(line).expect_err(line);
            assert!(error.contains(wrong), "{line}: {error}");
        }
    }

    #[test]
    fn earlier_spellings_are_read() {
        for (earlier, present) in [
            ("audit", "audit show"),
            ("audit 12", "audit show 12"),
            ("passwd", "slot set"),
            ("slot rm 3", "slot remove 3"),
            ("slots", "slot list"),
            ("words", "words show"),
        ] {
            let command = VaultCommand::parse(earlier);
            assert!(command.is_ok(), "{earlier}: {command:?}");
            assert_eq!(command, VaultCommand::parse(present), "{earlier}");
            let listed = COMMANDS.iter().map(|line| line.split("  ").next());
            assert!(!listed.flatten().any(|line| line == earlier), "{earlier}");
        }
    }

    #[test]
    fn what_changes_a_vault_needs_it_open() {
        assert!(VaultCommand::Words.needs_open() && VaultCommand::Rekey.needs_open());
        assert!(!VaultCommand::FactoryReset.needs_open() && !VaultCommand::SlotList.needs_open());
    }

    /// Verbs that docs/vault.md lists for the console, each with the spelling of an earlier version
    /// if there is one.
    fn on_the_page() -> Vec<(String, Option<String>)> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vault.md");
        let page = fs::read_to_string(page).expect("the page exists");
        let section = page.split("\n## ").find(|it| it.starts_with("Verbs\n"));
        let rows = section.expect("the section").lines();
        let rows = rows.filter(|row| row.starts_with("| `"));
        let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
        // Before the first bar there is an empty cell.
        let cells = cells.filter(|cells| cells[3].contains("console"));
        let rows = cells.map(|cells| {
            let earlier = cells[5].split_once("console: ").map(|(_, rest)| rest);
            (
                cells[1].replace('`', ""),
                earlier.map(|it| it.replace('`', "")),
            )
        });
        rows.collect()
    }

    /// A verb with an example of its arguments.
    fn example(verb: &str) -> String {
        match verb {
            "slot add" => format!("{verb} passphrase"),
            "slot remove" | "slot renew" | "slot rm" | "slot test" => format!("{verb} 1"),
            _ => verb.to_owned(),
        }
    }

    #[test]
    fn the_page_has_each_command_of_the_console() {
        let page = on_the_page();
        for (verb, earlier) in &page {
            let command = VaultCommand::parse(&example(verb));
            assert!(command.is_ok(), "{verb}: {command:?}");
            if let Some(earlier) = earlier {
                assert_eq!(VaultCommand::parse(&example(earlier)), command, "{earlier}");
            }
        }
        let verbs: BTreeSet<&str> = page.iter().map(|(verb, _)| verb.as_str()).collect();
        // The words in small letters at the start of each line. The last line is a sentence.
        let listed = COMMANDS[..COMMANDS.len() - 1].iter().map(|line| {
            let command = line.split("  ").next().unwrap_or_default();
            let typed = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
            let words: Vec<&str> = command.split(' ').take_while(typed).take(2).collect();
            match words.as_slice() {
                ["lock", ..] => "lock".to_owned(),
                words => words.join(" "),
            }
        });
        let listed: BTreeSet<String> = listed.collect();
        let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
        assert_eq!(listed, verbs, "listed at the console, and on docs/vault.md");
    }
}
