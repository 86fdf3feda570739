//! Goes down in order and within a bound.
//!
//! The node drains its connections, every other process gets SIGTERM and then SIGKILL, and the data
//! are written and unmounted. If anything hangs on the way, a thread ends the machine when the
//! bound is reached.

use std::{path::Path, sync::Arc, thread, time::Duration};

use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::{Pid, sync},
};

use crate::{control::PowerAction, data, stage::boot_ms, vault::VaultHandle};

/// How long running calls have to finish, ms: the deadline that PID 1 gives the node.
pub(crate) const DRAIN_MS_MAX: u64 = 10_000;
/// How much longer the node may take to close its connections with their codes, ms. A signal at the
/// end of the drain itself would cut callers off without a code.
pub(crate) const GOODBYE_MS_MAX: u64 = 2_000;
/// How long processes have to end after SIGTERM, ms.
const TERMINATE_MS_MAX: u64 = 2_000;
/// How long they have after SIGKILL, ms. A process that hangs in the kernel does not end at all.
const KILL_MS_MAX: u64 = 1_000;
/// The whole way from the decision until the machine is off, ms. It is shorter than the watchdog's
/// time-out. The rest after the steps above is for writing the data.
pub(crate) const BOUND_MS: u64 = 25_000;

/// The phase of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShutdownPhase {
    Draining { until: u64 },
    Terminating { until: u64 },
    Killing { until: u64 },
    Closing,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownStep {
    Terminate,
    Kill,
    /// Write the data and end.
    Close,
}

/// A shutdown under way. It has no clock: the caller passes times and gets steps.
#[derive(Debug)]
pub(crate) struct Shutdown {
    action: PowerAction,
    phase: ShutdownPhase,
}

impl Shutdown {
    /// PID 1 has just sent the request to drain to the node.
    pub(crate) const fn new(action: PowerAction, now: u64) -> Self {
        Self {
            action,
            phase: ShutdownPhase::Draining {
                until: now + DRAIN_MS_MAX + GOODBYE_MS_MAX,
            },
        }
    }

    pub(crate) const fn action(&self) -> PowerAction {
        self.action
    }

    /// The step that is due. `node_gone`: the node has ended. `alone`: no other process is left.
    pub(crate) fn step(&mut self, now: u64, node_gone: bool, alone: bool) -> Option<ShutdownStep> {
        let (phase, step) = match self.phase {
            ShutdownPhase::Closing => return None,
            // No process is left for a signal or a wait.
            _ if alone => (ShutdownPhase::Closing, ShutdownStep::Close),
            ShutdownPhase::Draining { until } if node_gone || now >= until => {
                let until = now + TERMINATE_MS_MAX;
                (
                    ShutdownPhase::Terminating { until },
                    ShutdownStep::Terminate,
                )
            }
            ShutdownPhase::Terminating { until } if now >= until => {
                let until = now + KILL_MS_MAX;
                (ShutdownPhase::Killing { until }, ShutdownStep::Kill)
            }
            ShutdownPhase::Killing { until } if now >= until => {
                (ShutdownPhase::Closing, ShutdownStep::Close)
            }
            _ => return None,
        };
        self.phase = phase;
        Some(step)
    }

    /// When to call `step` again, if nothing else happens.
    pub(crate) const fn deadline(&self) -> Option<u64> {
        match self.phase {
            ShutdownPhase::Draining { until }
            | ShutdownPhase::Terminating { until }
            | ShutdownPhase::Killing { until } => Some(until),
            ShutdownPhase::Closing => None,
        }
    }
}

/// Signals every process but this one.
pub(crate) fn signal_all(signal: Signal) {
    // It fails only when there is no other process.
    let _ = kill(Pid::from_raw(-1), signal);
}

/// Ends the machine within [`BOUND_MS`] from now on, whatever happens.
pub(crate) fn guard(action: PowerAction, vault: Arc<VaultHandle>) {
    guard_with(action, vault, thread::sleep, |action| {
        end(action);
    });
}

/// Like `guard`, with the functions that wait and that end the machine.
fn guard_with(
    action: PowerAction,
    vault: Arc<VaultHandle>,
    wait: impl FnOnce(Duration) + Send + 'static,
    end: impl FnOnce(PowerAction) + Send + 'static,
) {
    let spawned = thread::Builder::new()
        .name("bound".to_owned())
        .spawn(move || {
            wait(Duration::from_millis(BOUND_MS));
            // Memory outlives a reset: it must hold no key even if the ordinary way hangs.
            vault.lock();
            end(action);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for the bound on the shutdown; the watchdog has to do");
    }
}

/// Writes the data and ends the machine, on its own thread: a disk may hang.
pub(crate) fn close(action: PowerAction, reset: Option<&Path>) {
    let reset = reset.map(Path::to_owned);
    let work = move || {
        let begun = boot_ms();
        // This precedes the unmount, which may fail: the data are written in any case.
        sync();
        if let Err(error) = data::close() {
            tracing::warn!(%error, "the data partition could not be unmounted");
        }
        if let Some(device) = &reset
            && let Err(error) = data::erase(device)
        {
            // The log ends with the node, so only the console is left.
            eprintln!("alknet: {} is not erased: {error}", device.display());
        }
        sync();
        tracing::debug!(took_ms = boot_ms() - begun, "data closed");
        end(action);
    };
    if thread::Builder::new()
        .name("close".to_owned())
        .spawn(work.clone())
        .is_err()
    {
        // Without this thread, the work runs here, and the thread of the bound still ends the
        // machine.
        work();
    }
}

/// Ends the machine now.
pub(crate) fn end(action: PowerAction) -> ! {
    let mode = match action {
        PowerAction::Poweroff => RebootMode::RB_POWER_OFF,
        PowerAction::Reboot => RebootMode::RB_AUTOBOOT,
    };
    // The call returns only on failure, and then only the watchdog can end the machine.
    let _ = reboot(mode);
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use alknet_test_support::deadline;
    use alknet_vault::{Entropy, SecretStr};

    use super::*;

    #[test]
    fn a_node_that_drains_goes_straight_on() {
        let mut shutdown = Shutdown::new(PowerAction::Reboot, 1000);
        assert_eq!(shutdown.step(1000, false, false), None);
        assert_eq!(
            shutdown.step(1500, true, false),
            Some(ShutdownStep::Terminate)
        );
        assert_eq!(shutdown.step(1600, true, true), Some(ShutdownStep::Close));
        assert_eq!(shutdown.step(9000, true, true), None);
        assert_eq!(shutdown.deadline(), None);
    }

    #[test]
    fn a_machine_with_nothing_running_closes_at_once() {
        let mut shutdown = Shutdown::new(PowerAction::Poweroff, 0);
        assert_eq!(shutdown.step(0, true, true), Some(ShutdownStep::Close));
    }

    #[test]
    fn everything_that_hangs_is_passed_within_the_bound() {
        let mut shutdown = Shutdown::new(PowerAction::Poweroff, 0);
        let mut steps = Vec::new();
        let mut now = 0;
        while let Some(deadline) = shutdown.deadline() {
            now = deadline;
            steps.extend(shutdown.step(now, false, false));
        }
        assert_eq!(
            steps,
            [
                ShutdownStep::Terminate,
                ShutdownStep::Kill,
                ShutdownStep::Close
            ]
        );
        assert!(now < BOUND_MS, "time is left for the data");
    }

    #[test]
    fn whatever_hangs_the_machine_ends_at_the_bound_with_its_vault_locked() {
        let vault = Arc::new(VaultHandle::new().expect("memory"));
        let words = Entropy::from_bytes(&[1; 16]).expect("16 bytes");
        let unlocked = vault.vault().unlock(&words, &SecretStr::empty());
        unlocked.expect("it was locked");
        let (wait, waits) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let (before, after) = (Arc::clone(&vault), Arc::clone(&vault));
        guard_with(
            PowerAction::Reboot,
            vault,
            move |bound| wait.send((bound, before.is_open())).expect("heard"),
            move |action| end.send((action, after.is_open())).expect("heard"),
        );
        let limit = deadline(Duration::from_secs(60));
        let bound = Duration::from_secs(25);
        assert_eq!(waits.recv_timeout(limit), Ok((bound, true)));
        assert_eq!(ends.recv_timeout(limit), Ok((PowerAction::Reboot, false)));
    }
}
