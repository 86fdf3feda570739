//! A factory reset: a mark on the disk first, so that whatever happens on the way, the next start erases it.
//!
//! The keys go and the node ends at once. The machine goes down when the disk has the mark, and not before, however
//! long the disk takes: without the mark the next start would be that of a machine in use, which its owner may have
//! given away. The power button switches it off all the same, and the console says what that means.

use std::path::{Path, PathBuf};

use super::{InitMachine, MachineEvent};
use crate::{control::PowerAction, data};

/// How long a disk may take for the mark before the console says that it does not answer, ms, and how often the console
/// says so from then on.
const SILENT_MS_MAX: u64 = 5_000;
const SAY_EVERY_MS: u64 = 30_000;
/// How often a mark is tried that the disk refuses, and the pause before the next try, ms. After the last the machine
/// erases what it can on its way down.
const MARK_TRIES_MAX: u32 = 5;
const TRY_EVERY_MS: u64 = 2_000;
/// What the log calls it when the machine goes down for it.
const BY: &str = "a factory reset";

/// A factory reset under way.
#[derive(Debug)]
pub(super) struct Reset {
    /// What is erased on the way down.
    device: PathBuf,
    /// How often the disk refused the mark.
    refused: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A thread waits for the disk; when the console next says that it does not answer.
    Marking { say_at: u64 },
    /// The disk refused the mark, and is tried again then.
    Pausing { until: u64 },
    /// The mark is there, or the machine goes down without it.
    Over,
}

impl Reset {
    /// What is erased on the way down.
    pub(super) fn device(&self) -> &Path {
        &self.device
    }

    /// When something is due next, in ms after the kernel's start.
    pub(super) fn deadline(&self) -> Option<u64> {
        match self.stage {
            Stage::Marking { say_at: at } | Stage::Pausing { until: at } => Some(at),
            Stage::Over => None,
        }
    }
}

impl InitMachine {
    /// Erases keys and data, and restarts as a machine that was never used.
    pub(super) fn factory_reset(&mut self, now: u64) {
        let Some(device) = self.vault_at.clone() else {
            self.log.warn("there is nothing to erase on this machine");
            return;
        };
        self.log.warn("factory reset: keys and data are erased");
        // First of all: whatever becomes of the disk, the keys are gone from memory.
        self.keeper.lock();
        // The vault goes, so the console does not show its new words again, confirmed or not.
        self.keeper.take_words();
        self.drop_command();
        self.asking.end();
        // Nothing opens it any more.
        self.waiting = None;
        self.timers.open = None;
        self.reset = Some(Reset {
            device,
            refused: 0,
            stage: Stage::Over,
        });
        // The mark is under way while the node ends: the disk may be slow.
        self.mark(now);
        if let Some(order) = self.supervisor.idle(now) {
            self.obey(order, now);
        }
    }

    /// Has the disk marked, on a thread of its own.
    fn mark(&mut self, now: u64) {
        let Some(reset) = &mut self.reset else {
            return;
        };
        reset.stage = Stage::Marking {
            say_at: now + SILENT_MS_MAX,
        };
        let at = reset.device.clone();
        let failed = MachineEvent::ResetMarked(Err("it failed; the log says why".to_owned()));
        self.blocking("marking the disk", failed, move || {
            MachineEvent::ResetMarked(data::mark_erasing(&at).map_err(|error| error.to_string()))
        });
    }

    /// The mark of a factory reset is on the disk, or why not. A disk that refuses it is tried again; in the end the
    /// machine goes down to erase all the same.
    pub(super) fn reset_marked(&mut self, outcome: Result<(), String>, now: u64) {
        let Some(reset) = &mut self.reset else {
            return;
        };
        // The machine may go down meanwhile for another reason.
        let is_over = reset.stage == Stage::Over;
        match outcome {
            Ok(()) => self.log.warn(
                "factory reset: the disk is marked; whatever happens, the next start erases it",
            ),
            Err(error) => {
                reset.refused += 1;
                if reset.refused < MARK_TRIES_MAX && !is_over {
                    reset.stage = Stage::Pausing {
                        until: now + TRY_EVERY_MS,
                    };
                    return self.log.error(format_args!(
                        "factory reset: the disk cannot be marked ({error}); it is tried again"
                    ));
                }
                self.log.error(format_args!(
                    "factory reset: the disk cannot be marked ({error}); if the power goes now, reset it again"
                ));
            }
        }
        reset.stage = Stage::Over;
        if !is_over {
            self.go_down(PowerAction::Reboot, BY, now);
        }
    }

    /// Does what is due while the mark is not on the disk.
    pub(super) fn wait_for_mark(&mut self, now: u64) {
        let Some(reset) = &mut self.reset else {
            return;
        };
        match &mut reset.stage {
            Stage::Marking { say_at } if now >= *say_at => {
                *say_at = now + SAY_EVERY_MS;
                self.say_of_reset(
                    "the disk does not answer; it goes on as soon as the disk does. Nothing is erased yet: if the power \
                     is switched off now, this machine comes back as it was",
                );
            }
            Stage::Pausing { until } if now >= *until => self.mark(now),
            _ => {}
        }
    }

    /// The machine goes down: it is switched off, or its reset goes on.
    pub(super) fn end_wait_for_mark(&mut self) {
        let Some(reset) = &mut self.reset else {
            return;
        };
        if std::mem::replace(&mut reset.stage, Stage::Over) != Stage::Over {
            self.say_of_reset(
                "the machine goes down, and the disk is not marked; if it comes back as it was, reset it again",
            );
        }
    }

    /// Events that a machine takes which is being erased: nothing is opened, asked or changed any more.
    pub(super) fn takes(&self, event: &MachineEvent) -> bool {
        let changes = matches!(
            event,
            MachineEvent::Answered(_)
                | MachineEvent::Came(..)
                | MachineEvent::Commanded(_)
                | MachineEvent::Opened(_)
                | MachineEvent::Pasted(_)
                | MachineEvent::Settings { .. }
                | MachineEvent::Unlocked(_)
        );
        if self.reset.is_none() || !changes {
            return true;
        }
        // An attempt that was under way has opened it.
        self.keeper.lock();
        false
    }

    fn say_of_reset(&self, text: &str) {
        self.log.error(format_args!("factory reset: {text}"));
        for console in self.consoles() {
            console.say(format!("alknet: factory reset: {text}"));
        }
    }
}
