//! A factory reset: a mark on the disk first, so that whatever happens on the way, the next start erases it.

use super::{Event, Machine};
use crate::{control::PowerAction, data};

/// How long a factory reset waits until its mark is on the disk, ms. A disk that takes longer hangs: the machine goes
/// down all the same, and erases what it can on the way.
const MARK_MS_MAX: u64 = 5_000;

impl Machine {
    /// Erases keys and data, and restarts as a machine that was never used.
    pub(super) fn factory_reset(&mut self, now: u64) {
        let Some(at) = self.vault_at.clone() else {
            self.log.warn("there is nothing to erase on this machine");
            return;
        };
        self.log.warn("factory reset: keys and data are erased");
        self.keeper.lock();
        // Words that nobody has written down yet are not shown again for a vault that goes.
        self.keeper.take_words();
        self.asking.end();
        self.reset = Some(at.clone());
        self.timers.reset = Some(now + MARK_MS_MAX);
        let failed = Event::ResetMarked(Err("it failed; the log says why".to_owned()));
        self.blocking("marking the disk", failed, move || {
            Event::ResetMarked(data::mark_erasing(&at).map_err(|error| error.to_string()))
        });
    }

    /// The mark of a factory reset is on the disk, or why not. The machine goes down to erase all the same.
    pub(super) fn reset_marked(&mut self, outcome: Result<(), String>, now: u64) {
        match outcome {
            Ok(()) => self
                .log
                .warn("factory reset: the disk is marked; whatever happens, the next start erases it"),
            Err(error) => self.log.error(format_args!(
                "factory reset: the disk cannot be marked ({error}); if the power goes now, reset it again"
            )),
        }
        self.go_down_to_reset(now);
    }

    /// The disk does not answer in time.
    pub(super) fn reset_marked_too_late(&mut self, now: u64) {
        self.log.error(
            "factory reset: the disk does not answer; if the machine comes back as it was, reset it again",
        );
        self.go_down_to_reset(now);
    }

    fn go_down_to_reset(&mut self, now: u64) {
        if self.timers.reset.take().is_some() {
            self.go_down(PowerAction::Reboot, "a factory reset", now);
        }
    }
}
