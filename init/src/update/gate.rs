//! The gate that a version on trial has to pass before it becomes the good one. It has no clock and no disk: the caller
//! passes times and what it sees, and gets the next step.

use alknet_boot_state::BootNote;

/// How long everything has to be as before, without a pause, before the version is confirmed, ms.
pub(crate) const GATE_HOLD_MS: u64 = 60_000;
/// How long a start of a version on trial may take until it is confirmed, ms. The time in which the vault waits for a
/// person does not count if it waited for one before, too.
pub(crate) const GATE_MS_MAX: u64 = 600_000;

/// How the boot note names a configuration of which the version before took everything.
pub(crate) const CONFIG_TAKEN: &str = "taken";

/// How the boot note names the vault, the data and the configuration of which it is unknown how they were before: the
/// note that said it is lost.
pub(crate) const BASELINE_UNKNOWN: &str = "unknown";

/// How the vault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateVault {
    /// The machine has no vault.
    Absent,
    /// It is closed, and a person can open it with the same secret as before.
    AsksAsBefore,
    /// It is closed for another reason, such as a slot of the TPM that does not open for this program.
    Closed,
    Open,
}

/// How the vault was before the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VaultBaseline {
    /// The machine had none, or it was closed.
    NotOpen,
    Open,
    /// The note is lost. The vault has to be open, unless the machine has none.
    Unknown,
}

/// What was before the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GateBaseline {
    pub(crate) vault: VaultBaseline,
    /// Whether the data partition was mounted for writing.
    pub(crate) data_writable: bool,
    /// Whether the machine had a configuration, and took all of it.
    pub(crate) config_taken: bool,
}

impl GateBaseline {
    /// What a note says. Without a note everything is required that the machine has: an unreadable one must not open
    /// the gate.
    pub(crate) fn from_note(note: Option<&BootNote>) -> Self {
        let Some(note) = note else {
            return Self {
                vault: VaultBaseline::Unknown,
                data_writable: true,
                config_taken: true,
            };
        };
        Self {
            vault: match note.vault.as_str() {
                "absent" | "locked" => VaultBaseline::NotOpen,
                BASELINE_UNKNOWN => VaultBaseline::Unknown,
                // Every other text says what opened the vault. One that this version does not know requires an open
                // vault, too.
                _ => VaultBaseline::Open,
            },
            data_writable: ["mounted", BASELINE_UNKNOWN].contains(&note.data.as_str()),
            config_taken: [CONFIG_TAKEN, BASELINE_UNKNOWN].contains(&note.config.as_str()),
        }
    }

    /// Whether a version on trial may take a blank disk for its data: there were none before it.
    pub(crate) const fn takes_blank_disk(&self) -> bool {
        !self.data_writable
    }
}

/// What PID 1 sees now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GateView {
    /// Whether the node serves its port.
    pub(crate) serves: bool,
    /// Whether it is well by its last answers about its health.
    pub(crate) is_well: bool,
    /// Whether the node answers its own calls.
    pub(crate) answers_itself: bool,
    /// Number of the node's life: another one means that it was restarted.
    pub(crate) life: u64,
    pub(crate) vault: GateVault,
    /// Whether the data partition is mounted for writing.
    pub(crate) data_writable: bool,
    /// Whether the machine has a configuration, and takes all of it.
    pub(crate) config_taken: bool,
}

#[cfg(test)]
impl GateView {
    /// A machine that has everything, in the first life of its node.
    pub(super) const WELL: Self = Self {
        serves: true,
        is_well: true,
        answers_itself: true,
        life: 1,
        vault: GateVault::Open,
        data_writable: true,
        config_taken: true,
    };
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GateStep {
    /// The version has proved itself.
    Confirm,
    /// The time is over. The machine restarts, and the loader counts.
    GiveUp(String),
    /// These things are not as they have to be, or not for long enough.
    Wait(Vec<String>),
}

/// The gate of one start on trial.
#[derive(Debug)]
pub(crate) struct UpdateGate {
    baseline: GateBaseline,
    /// When the caller looked last.
    looked: u64,
    /// Time that counts against the limit, ms.
    spent: u64,
    /// Since when everything is as it has to be, and the life of the node then.
    good_since: Option<(u64, u64)>,
    /// It asked for the confirmation, or for the restart, and asks once.
    is_over: bool,
}

impl UpdateGate {
    /// The gate of a start. `now` counts from the kernel's start, as the limit does.
    pub(crate) const fn new(baseline: GateBaseline, now: u64) -> Self {
        Self {
            baseline,
            looked: now,
            spent: now,
            good_since: None,
            is_over: false,
        }
    }

    /// The next step. `None` once it was to confirm or to give up.
    pub(crate) fn step(&mut self, view: &GateView, now: u64) -> Option<GateStep> {
        if self.is_over {
            return None;
        }
        let passed = now.saturating_sub(self.looked);
        self.looked = now;
        // A person has to come to the machine first, which may take longer than a trial.
        if view.vault != GateVault::AsksAsBefore {
            self.spent = self.spent.saturating_add(passed);
        }
        let mut waits = self.missing(view);
        if waits.is_empty() {
            let since = match self.good_since {
                // A node that was restarted has to be well for the whole time again.
                Some((since, life)) if life == view.life => since,
                _ => now,
            };
            self.good_since = Some((since, view.life));
            if now.saturating_sub(since) >= GATE_HOLD_MS {
                self.is_over = true;
                return Some(GateStep::Confirm);
            }
            waits.push(format!("that this stays so for {} s", GATE_HOLD_MS / 1000));
        } else {
            self.good_since = None;
        }
        if self.spent >= GATE_MS_MAX {
            self.is_over = true;
            return Some(GateStep::GiveUp(waits.join("; ")));
        }
        Some(GateStep::Wait(waits))
    }

    /// A confirmation that the disk refused is tried again.
    pub(crate) const fn again(&mut self) {
        self.is_over = false;
    }

    /// When to look again, in ms after the kernel's start, if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let hold = self.good_since.map(|(since, _)| since + GATE_HOLD_MS);
        let limit = self.looked + GATE_MS_MAX.saturating_sub(self.spent);
        (!self.is_over).then(|| hold.map_or(limit, |hold| hold.min(limit)))
    }

    /// What is not as it has to be.
    fn missing(&self, view: &GateView) -> Vec<String> {
        let mut missing = Vec::new();
        let mut require = |holds: bool, what: &str| {
            if !holds {
                missing.push(what.to_owned());
            }
        };
        match (self.baseline.vault, view.vault) {
            (VaultBaseline::NotOpen, _)
            | (_, GateVault::Open)
            | (VaultBaseline::Unknown, GateVault::Absent) => {}
            (_, GateVault::AsksAsBefore) => require(false, "a person who opens the vault"),
            (VaultBaseline::Open, GateVault::Absent | GateVault::Closed) => {
                require(false, "the vault, which was open before the update");
            }
            (VaultBaseline::Unknown, GateVault::Closed) => {
                require(
                    false,
                    "the vault, of which no note says how it was before the update",
                );
            }
        }
        if self.baseline.data_writable {
            require(
                view.data_writable,
                "the data partition, which was mounted for writing before the update",
            );
        }
        if self.baseline.config_taken {
            require(
                view.config_taken,
                "the configuration, of which the version before took everything",
            );
        }
        require(view.serves, "the node, which does not serve yet");
        // One cause is enough: a node that does not serve has given no answer about its health.
        require(
            !view.serves || view.is_well,
            "the node's answer that it is well",
        );
        require(
            !view.serves || !view.is_well || view.answers_itself,
            "the node's answer to a call of its own",
        );
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: GateBaseline = GateBaseline {
        vault: VaultBaseline::Open,
        data_writable: true,
        config_taken: true,
    };
    const GOOD: GateView = GateView::WELL;

    /// Runs a gate over what PID 1 sees, each with the time at which it looks, and returns the last step.
    fn run(baseline: GateBaseline, looks: &[(u64, GateView)]) -> GateStep {
        let mut gate = UpdateGate::new(baseline, 0);
        let steps = looks.iter().map(|(now, view)| gate.step(view, *now));
        steps.last().flatten().expect("a step")
    }

    fn waits(what: &str) -> GateStep {
        GateStep::Wait(vec![what.to_owned()])
    }

    #[test]
    fn a_version_is_confirmed_after_a_minute_in_which_all_was_as_before() {
        let held = waits("that this stays so for 60 s");
        assert_eq!(run(BASE, &[(5_000, GOOD)]), held);
        assert_eq!(run(BASE, &[(5_000, GOOD), (64_999, GOOD)]), held);
        assert_eq!(
            run(BASE, &[(5_000, GOOD), (65_000, GOOD)]),
            GateStep::Confirm
        );
    }

    #[test]
    fn each_thing_that_is_not_as_before_keeps_the_gate_closed() {
        let vault = "the vault, which was open before the update";
        let data = "the data partition, which was mounted for writing before the update";
        for (view, what) in [
            (
                GateView {
                    serves: false,
                    ..GOOD
                },
                "the node, which does not serve yet",
            ),
            (
                GateView {
                    is_well: false,
                    ..GOOD
                },
                "the node's answer that it is well",
            ),
            (
                GateView {
                    answers_itself: false,
                    ..GOOD
                },
                "the node's answer to a call of its own",
            ),
            (
                GateView {
                    vault: GateVault::Closed,
                    ..GOOD
                },
                vault,
            ),
            (
                GateView {
                    vault: GateVault::Absent,
                    ..GOOD
                },
                vault,
            ),
            (
                GateView {
                    vault: GateVault::AsksAsBefore,
                    ..GOOD
                },
                "a person who opens the vault",
            ),
            (
                GateView {
                    data_writable: false,
                    ..GOOD
                },
                data,
            ),
            (
                GateView {
                    config_taken: false,
                    ..GOOD
                },
                "the configuration, of which the version before took everything",
            ),
        ] {
            assert_eq!(run(BASE, &[(1_000, view)]), waits(what));
            // A minute before and a minute after do not add up.
            let looks = [
                (1_000, GOOD),
                (60_000, view),
                (61_000, GOOD),
                (120_000, GOOD),
            ];
            assert_eq!(
                run(BASE, &looks),
                waits("that this stays so for 60 s"),
                "{what}"
            );
        }
    }

    #[test]
    fn a_restart_of_the_node_begins_the_minute_again() {
        let next = GateView { life: 2, ..GOOD };
        let looks = [(1_000, GOOD), (60_000, next), (119_999, next)];
        assert_eq!(run(BASE, &looks), waits("that this stays so for 60 s"));
        let looks = [(1_000, GOOD), (60_000, next), (120_000, next)];
        assert_eq!(run(BASE, &looks), GateStep::Confirm);
    }

    #[test]
    fn what_was_not_there_before_is_not_required() {
        let bare = GateBaseline {
            vault: VaultBaseline::NotOpen,
            data_writable: false,
            config_taken: false,
        };
        let view = GateView {
            vault: GateVault::Absent,
            data_writable: false,
            config_taken: false,
            ..GOOD
        };
        assert_eq!(run(bare, &[(0, view), (60_000, view)]), GateStep::Confirm);
        // A version that opened more than before is well, too.
        assert_eq!(run(bare, &[(0, GOOD), (60_000, GOOD)]), GateStep::Confirm);
    }

    #[test]
    fn after_ten_minutes_the_machine_restarts() {
        let ill = GateView {
            serves: false,
            ..GOOD
        };
        let step = run(BASE, &[(599_999, ill)]);
        assert_eq!(step, waits("the node, which does not serve yet"));
        let step = run(BASE, &[(600_000, ill)]);
        let why = "the node, which does not serve yet".to_owned();
        assert_eq!(step, GateStep::GiveUp(why));
        // A node that is well at last, and not for a minute.
        let step = run(BASE, &[(599_000, GOOD), (600_000, GOOD)]);
        assert_eq!(
            step,
            GateStep::GiveUp("that this stays so for 60 s".to_owned())
        );
        // A minute that ends with the limit counts.
        let step = run(BASE, &[(540_000, GOOD), (600_000, GOOD)]);
        assert_eq!(step, GateStep::Confirm);
    }

    #[test]
    fn the_wait_for_a_person_who_had_to_come_before_has_no_limit() {
        let asks = GateView {
            vault: GateVault::AsksAsBefore,
            serves: false,
            ..GOOD
        };
        let day = 86_400_000;
        let step = run(BASE, &[(1_000, asks), (day, asks)]);
        assert!(matches!(step, GateStep::Wait(_)), "{step:?}");
        let step = run(
            BASE,
            &[
                (1_000, asks),
                (day, asks),
                (day + 1, GOOD),
                (day + 60_001, GOOD),
            ],
        );
        assert_eq!(step, GateStep::Confirm);
        // The time with the vault open counts.
        let ill = GateView {
            serves: false,
            ..GOOD
        };
        let step = run(BASE, &[(1_000, asks), (day, asks), (day + 600_000, ill)]);
        assert!(matches!(step, GateStep::GiveUp(_)), "{step:?}");
        // A slot of the TPM that does not open for this program is a failure.
        let closed = GateView {
            vault: GateVault::Closed,
            ..asks
        };
        let step = run(BASE, &[(1_000, closed), (600_000, closed)]);
        assert!(matches!(step, GateStep::GiveUp(_)), "{step:?}");
    }

    #[test]
    fn it_asks_once_and_again_if_the_disk_refused() {
        let mut gate = UpdateGate::new(BASE, 0);
        gate.step(&GOOD, 0);
        assert_eq!(gate.deadline(), Some(60_000));
        assert_eq!(gate.step(&GOOD, 60_000), Some(GateStep::Confirm));
        assert_eq!((gate.step(&GOOD, 61_000), gate.deadline()), (None, None));
        gate.again();
        assert_eq!(gate.step(&GOOD, 62_000), Some(GateStep::Confirm));
    }

    #[test]
    fn a_note_that_cannot_be_read_does_not_open_the_gate() {
        let unknown = GateBaseline {
            vault: VaultBaseline::Unknown,
            ..BASE
        };
        assert_eq!(GateBaseline::from_note(None), unknown);
        assert!(!unknown.takes_blank_disk());
        let text = alknet_boot_state::NoteText::new;
        let mut note = BootNote::new(alknet_boot_state::BootSlot::B);
        note.vault = text("tpm2");
        note.data = text("mounted");
        note.config = alknet_boot_state::NoteText::new(CONFIG_TAKEN);
        assert_eq!(GateBaseline::from_note(Some(&note)), BASE);
        (note.vault, note.data) = (text(BASELINE_UNKNOWN), text(BASELINE_UNKNOWN));
        note.config = alknet_boot_state::NoteText::new(BASELINE_UNKNOWN);
        assert_eq!(GateBaseline::from_note(Some(&note)), unknown);
        note.vault = text("absent");
        note.data = text("volatile");
        // A note of a version that does not know this variable.
        note.config = alknet_boot_state::NoteText::EMPTY;
        let found = GateBaseline::from_note(Some(&note));
        assert_eq!(found.vault, VaultBaseline::NotOpen);
        assert!(!found.data_writable && !found.config_taken);
        assert!(found.takes_blank_disk());
    }

    #[test]
    fn a_lost_note_asks_for_an_open_vault_where_there_is_one() {
        let unknown = GateBaseline::from_note(None);
        let with = |vault| GateView { vault, ..GOOD };
        let closed = "the vault, of which no note says how it was before the update";
        for (vault, expected) in [
            (GateVault::Open, GateStep::Confirm),
            (GateVault::Absent, GateStep::Confirm),
            (GateVault::Closed, waits(closed)),
            (
                GateVault::AsksAsBefore,
                waits("a person who opens the vault"),
            ),
        ] {
            let step = run(unknown, &[(0, with(vault)), (60_000, with(vault))]);
            assert_eq!(step, expected, "{vault:?}");
        }
    }
}
