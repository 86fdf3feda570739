//! The commands, as they are typed.

use alknet_vault::slots::{SlotId, SlotType};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VaultCommand {
    /// The newest lines of the log, or those up to a number.
    Audit {
        until: Option<u64>,
    },
    FactoryReset,
    Lock {
        hard: bool,
    },
    Passwd,
    Rekey,
    SlotAdd(SlotType),
    /// One of type `tpm2` for the image that is to be started next.
    SlotAddNext,
    /// One of type `tpm2` that wants a PIN.
    SlotAddPin,
    SlotRemove(SlotId),
    /// One of type `tpm2` for what runs, in the place of this one.
    SlotRenew(SlotId),
    SlotTest(SlotId),
    Slots,
    Status,
    /// TPMs that have not counted, and never will.
    TpmForget,
    Words,
}

/// What the console lists.
pub(crate) const COMMANDS: [&str; 17] = [
    "status              how the vault is",
    "slots               what opens it",
    "slot add TYPE       one more: passphrase, provisioning, tpm2 or none",
    "slot add tpm2 pin   one of the TPM that wants a PIN",
    "slot add tpm2 next  one of the TPM for the next image, alknet-next.efi",
    "slot renew N        one of the TPM for what runs, in the place of another",
    "slot rm N           one less",
    "slot test N         try one",
    "tpm forget          expect nothing more of TPMs that are gone",
    "passwd              another passphrase",
    "words               show the recovery words",
    "rekey               a new master key: old copies open nothing new",
    "audit [N]           the newest lines of the log, or those up to number N",
    "lock                forget the seed; what runs goes on",
    "lock hard           the same, and end the node until the vault is opened again",
    "factory-reset       erase this machine's keys and data",
    "Without a command, Enter goes back.",
];

impl VaultCommand {
    /// Reads a line, or says what is wrong with it.
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words.as_slice() {
            ["audit"] => Self::Audit { until: None },
            ["audit", number] => {
                let until = number.parse().map_err(|_| {
                    format!("{number:?} is no number of a line; audit alone shows the newest")
                })?;
                Self::Audit { until: Some(until) }
            }
            ["factory-reset"] => Self::FactoryReset,
            ["lock"] => Self::Lock { hard: false },
            ["lock", "hard"] => Self::Lock { hard: true },
            ["passwd"] => Self::Passwd,
            ["rekey"] => Self::Rekey,
            ["slots"] => Self::Slots,
            ["status"] => Self::Status,
            ["tpm", "forget"] => Self::TpmForget,
            ["words"] => Self::Words,
            ["slot", "add", "tpm2", "next"] => Self::SlotAddNext,
            ["slot", "add", "tpm2", "pin"] => Self::SlotAddPin,
            ["slot", "add", kind] => Self::SlotAdd(type_of(kind)?),
            ["slot", "add"] => return Err("slot add needs a type".to_owned()),
            ["slot", "renew", id] => Self::SlotRenew(number(id)?),
            ["slot", "rm", id] => Self::SlotRemove(number(id)?),
            ["slot", "test", id] => Self::SlotTest(number(id)?),
            ["slot", "renew" | "rm" | "test"] => {
                return Err("a slot needs its number; slots lists them".to_owned());
            }
            _ => return Err(format!("there is no command {:?}", line.trim())),
        })
    }

    /// Whether it is for a vault that is open only.
    pub(crate) fn needs_open(self) -> bool {
        !matches!(
            self,
            Self::FactoryReset | Self::Lock { .. } | Self::Slots | Self::Status
        )
    }
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
    use super::*;

    #[test]
    fn commands_are_read_and_mistakes_named() {
        for (line, command) in [
            ("audit", VaultCommand::Audit { until: None }),
            ("audit 12", VaultCommand::Audit { until: Some(12) }),
            ("lock", VaultCommand::Lock { hard: false }),
            (" lock  hard ", VaultCommand::Lock { hard: true }),
            ("slot add tpm2", VaultCommand::SlotAdd(SlotType::Tpm2)),
            ("slot add tpm2 pin", VaultCommand::SlotAddPin),
            ("slot add tpm2 next", VaultCommand::SlotAddNext),
            ("slot renew 2", VaultCommand::SlotRenew(SlotId::new(2))),
            ("slot rm 3", VaultCommand::SlotRemove(SlotId::new(3))),
            ("slot test 0", VaultCommand::SlotTest(SlotId::new(0))),
            ("tpm forget", VaultCommand::TpmForget),
            ("words", VaultCommand::Words),
        ] {
            assert_eq!(VaultCommand::parse(line), Ok(command), "{line}");
        }
        for (line, wrong) in [
            ("audit all", "no number of a line"),
            ("slot", "no command"),
            ("slot add", "needs a type"),
            ("slot add kms", "another node"),
            ("slot add yubikey", "no type"),
            ("slot rm", "its number"),
            ("slot renew", "its number"),
            ("slot rm -1", "no number"),
            ("slot rm 4294967296", "no number"),
            ("rm -rf", "no command"),
        ] {
            let error = VaultCommand::parse(line).expect_err(line);
            assert!(error.contains(wrong), "{line}: {error}");
        }
    }

    #[test]
    fn what_changes_a_vault_needs_it_open() {
        assert!(VaultCommand::Words.needs_open() && VaultCommand::Rekey.needs_open());
        assert!(!VaultCommand::FactoryReset.needs_open() && !VaultCommand::Slots.needs_open());
    }
}
