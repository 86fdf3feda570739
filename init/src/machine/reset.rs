//! A factory reset. PID 1 first writes a mark on the disk, so that the next start erases the disk
//! whatever happens on the way.
//!
//! The keys go and the node ends at once. The machine goes down only when the disk has the mark,
//! however long the disk takes: without the mark the next start would be that of a machine in use,
//! which its owner may have given away. The power button switches the machine off all the same, and
//! the console says what that means.

use std::path::{Path, PathBuf};

use super::{InitMachine, MachineEvent};
use crate::{control::PowerAction, data};

/// How long a disk may take for the mark before the console says that it does not answer, ms, and
/// how often the console repeats that.
const SILENT_MS_MAX: u64 = 5_000;
const SAY_EVERY_MS: u64 = 30_000;
/// How often PID 1 tries a mark that the disk refuses, and the pause before the next try, ms. After
/// the last try the machine erases what it can on its way down.
const MARK_TRIES_MAX: u32 = 5;
const TRY_EVERY_MS: u64 = 2_000;
/// The reason in the log when the machine goes down for a reset.
const BY: &str = "a factory reset";

/// A factory reset under way.
#[derive(Debug)]
pub(super) struct Reset {
    /// The device that is erased on the way down.
    device: PathBuf,
    /// How often the disk refused the mark.
    refused: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A thread waits for the disk. At `say_at` the console says that the disk does not answer.
    Marking { say_at: u64 },
    /// The disk refused the mark. PID 1 tries again at `until`.
    Pausing { until: u64 },
    /// The disk has the mark, or the machine goes down without it.
    Over,
}

impl Reset {
    /// The device that is erased on the way down.
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
        // First of all: whatever happens to the disk, memory holds no keys any more.
        self.vault.lock();
        // The vault goes, so the console does not show its new words again, confirmed or not.
        self.vault.take_words();
        self.drop_command();
        self.asking.end();
        // PID 1 does not open the vault again.
        self.waiting = None;
        self.timers.open = None;
        self.update.forget_baseline();
        self.reset = Some(Reset {
            device,
            refused: 0,
            stage: Stage::Over,
        });
        // Marking begins while the node ends: the disk may be slow.
        self.mark(now);
        if let Some(order) = self.supervisor.idle(now) {
            self.obey(order, now);
        }
    }

    /// Writes the mark on its own thread.
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

    /// Handles the result of writing the mark. If the disk refuses it, PID 1 tries again. In the
    /// end the machine goes down to erase all the same.
    pub(super) fn reset_marked(&mut self, outcome: Result<(), String>, now: u64) {
        let Some(reset) = &mut self.reset else {
            return;
        };
        // The machine may be going down for another reason meanwhile.
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

    /// Does what is due while the disk lacks the mark.
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

    /// Ends the wait because the machine goes down: it is switched off, or its reset goes on.
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

    /// Whether the machine takes this event. A machine that is being reset opens, asks and changes
    /// nothing.
    pub(super) fn takes(&self, event: &MachineEvent) -> bool {
        let changes = matches!(
            event,
            MachineEvent::Answered { .. }
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
        // An attempt that was under way may have opened the vault.
        self.vault.lock();
        false
    }

    fn say_of_reset(&self, text: &str) {
        self.log.error(format_args!("factory reset: {text}"));
        for console in self.consoles() {
            console.say(format!("alknet: factory reset: {text}"));
        }
    }
}
