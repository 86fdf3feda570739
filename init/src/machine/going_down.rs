//! How PID 1 guards the machine while the node is well, and how the machine goes down.

use std::sync::Arc;

use nix::sys::signal::Signal;

use super::{InitMachine, reset::Reset};
use crate::{
    control::{NodeMessage, PowerAction},
    shutdown::{self, Shutdown, ShutdownStep},
};

/// How often PID 1 feeds the watchdog, ms: a sixth of its time-out.
const FEED_EVERY_MS: u64 = 5_000;

impl InitMachine {
    /// Feeds the watchdog while the node is well, or was until lately. If the node is unwell for
    /// longer, the machine reboots, with or without a watchdog.
    pub(super) fn guard_life(&mut self, now: u64) {
        if now < self.timers.feed || self.shutdown.is_some() {
            return;
        }
        self.timers.feed = now + FEED_EVERY_MS;
        // A node that waits for the disk that PID 1 marks for a reset does not end.
        if !self.supervisor.alive(now) && self.reset.is_none() {
            self.go_down(
                PowerAction::Reboot,
                "the node being unwell for too long",
                now,
            );
        } else if let Some(watchdog) = &self.watchdog {
            watchdog.feed();
        }
    }

    pub(super) fn go_down(&mut self, action: PowerAction, by: &str, now: u64) {
        if self.shutdown.is_some() {
            self.log
                .info(format_args!("{by}: the machine goes down already"));
            return;
        }
        self.log
            .warn(format_args!("going down ({action:?}) because of {by}"));
        // The watchdog's time-out is longer than the bound, so PID 1 does not feed it again.
        if let Some(watchdog) = &self.watchdog {
            watchdog.feed();
        }
        // This comes before anything that could hang: from here on a thread ends the machine when
        // the bound is over.
        shutdown::guard(action, Arc::clone(&self.vault));
        self.begin_shutdown(action, by, now);
    }

    /// Does what a machine does at once when it goes down, and begins its shutdown. The thread that bounds it runs by now.
    pub(super) fn begin_shutdown(&mut self, action: PowerAction, by: &str, now: u64) {
        // Words would stay on a screen that keeps its picture through a restart.
        self.drop_command();
        self.asking.end_private();
        self.vault_changed();
        self.update.goes_down(by);
        self.give_up_bundles();
        for console in self.consoles() {
            console.say(format!("alknet: going down ({action:?}) because of {by}"));
            console.end();
        }
        self.end_wait_for_mark();
        self.vault.forget_master_key();
        // The node is about to end, and must not be started again.
        self.supervisor.hold();
        self.network.quiet();
        self.shutdown = Some(Shutdown::new(action, now));
        if let Some(node) = &self.node {
            let drain = NodeMessage::Drain {
                deadline_ms: shutdown::DRAIN_MS_MAX,
                reason: format!("the machine goes down: {by}"),
                locked: false,
            };
            // A node that does not read its messages still gets signals.
            if !node.send(drain) {
                node.signal(Signal::SIGTERM);
            }
        }
    }

    /// The step of the shutdown that is due. A bundle that was given up still restores its boot slot, so a machine without
    /// other processes waits for that as well; if it hangs, the waits for other processes bound it.
    pub(super) fn shutdown_step(&mut self, now: u64) -> Option<ShutdownStep> {
        let node_gone = self.node.is_none();
        let is_idle = self.alone && !self.update.is_changing_slot();
        self.shutdown.as_mut()?.step(now, node_gone, is_idle)
    }

    pub(super) fn step_down(&mut self, now: u64) {
        let Some(action) = self.shutdown.as_ref().map(Shutdown::action) else {
            return;
        };
        while let Some(step) = self.shutdown_step(now) {
            match step {
                ShutdownStep::Terminate => shutdown::signal_all(Signal::SIGTERM),
                ShutdownStep::Kill => shutdown::signal_all(Signal::SIGKILL),
                ShutdownStep::Close => {
                    // Why the machine goes down. The thread that writes it may not have come to it.
                    if let Some(note) = self.owed_note() {
                        self.update.system().write_note(&note);
                    }
                    // No process feeds the watchdog of a machine that is off, so PID 1 stops it. A
                    // machine that reboots stays guarded.
                    if action == PowerAction::Poweroff
                        && let Some(watchdog) = self.watchdog.take()
                    {
                        watchdog.disarm();
                    }
                    // Memory outlives a reset, and the memory of a virtual machine that is off may
                    // be a file.
                    self.vault.lock();
                    shutdown::close(action, self.reset.as_ref().map(Reset::device));
                }
            }
        }
    }
}
