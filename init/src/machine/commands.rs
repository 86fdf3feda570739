//! Commands about the vault in the machine's life. A thread tries each command, the console asks
//! the user for what it needs, and PID 1 forgets a command that the user does not go on with.

use std::sync::Arc;

use super::{InitMachine, MachineEvent};
use crate::{
    media::SystemSources,
    vault::{CommandContext, CommandOutcome, CommandSession, LOCKED, PromptResponse, VaultCommand},
};

/// How long a command waits for the next answer, ms: it may hold the vault's master key. PID 1 also
/// keeps what the user typed for a new vault for this long.
pub(super) const ANSWER_MS_MAX: u64 = 120_000;
/// How long words that the user asked for stay on the console, ms.
const SHOWN_MS_MAX: u64 = 600_000;
/// Folder of the state directory with the vault's log, which the node writes.
pub(super) const AUDIT_DIR: &str = "audit";
/// The name of a command in the log, if it fails.
const PART: &str = "a command about the vault";

impl InitMachine {
    /// Begins a command of the user at the console.
    pub(super) fn command(&mut self, command: VaultCommand) {
        self.drop_command();
        self.try_command(CommandSession::new(command));
    }

    /// Goes on with the command under way, with the answer of the user.
    pub(super) fn given(&mut self, given: PromptResponse) {
        if let Some(mut session) = self.session.take() {
            session.give(given);
            self.try_command(session);
        }
    }

    /// Drops the command under way: the user dropped it, or it is no longer allowed.
    pub(super) fn drop_command(&mut self) {
        self.session = None;
        self.timers.session = None;
        self.forget_shares();
    }

    /// Forgets shares that other nodes gave for a command, so that the next command does not use
    /// them.
    fn forget_shares(&self) {
        // An attempt to open the vault may be waiting for the same shares.
        if self.waiting.is_none() {
            self.vault.escrow().clear();
        }
    }

    /// Whether a command waits for the share of another node.
    pub(super) fn waits_for_share(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(CommandSession::waits_for_share)
    }

    /// Goes on with a command after a helper came back.
    pub(super) fn share_came(&mut self) {
        if !self.waits_for_share() {
            return;
        }
        if let Some(session) = self.session.take() {
            self.try_command(session);
        }
    }

    /// Goes on with a command that waited for another change of the vault.
    pub(super) fn resume_command(&mut self) {
        if let Some(session) = self.session.take() {
            self.try_command(session);
        }
    }

    pub(super) fn try_command(&mut self, mut session: CommandSession) {
        self.timers.session = None;
        if self.working {
            // If two changes of the vault ran at once, one of them would be lost.
            self.session = Some(session);
            return;
        }
        let Some(device) = self.vault_at.clone() else {
            let text = "this machine has no vault on a data disk";
            return self.asking.tell(vec![text.to_owned()]);
        };
        // An attempt opens the vault before it knows that the vault is the newest, and before it
        // has read what the data say of the words. Until the attempt is over, the vault is locked
        // for commands.
        if self.waiting.is_some() && session.needs_open() {
            return self.asking.tell(vec![LOCKED.to_owned()]);
        }
        self.working = true;
        self.asking.try_begins();
        let vault = Arc::clone(&self.vault);
        let log = self.log.clone();
        let state_dir = self.state_dir.clone();
        let audit = state_dir.join(AUDIT_DIR);
        // `command_failed` reports a failure.
        self.blocking(PART, MachineEvent::Tick, move || {
            let place = CommandContext {
                audit: &audit,
                device: &device,
                vault: &vault,
                log: &log,
                state_dir: &state_dir,
                sources: &SystemSources,
            };
            let outcome = session.run(&place);
            MachineEvent::Commanded(Box::new((session, outcome)))
        });
    }

    /// Handles the result of a command's try.
    pub(super) fn commanded(&mut self, session: CommandSession, outcome: CommandOutcome, now: u64) {
        self.working = false;
        let is_expected = self.asking.try_ended();
        // A command that wants more may need the shares for its next step.
        if !matches!(outcome, CommandOutcome::Wants(..)) {
            self.forget_shares();
        }
        // The vault counts as closed also while an attempt has opened it and is not over.
        let is_closed = self.waiting.is_some();
        if is_closed && session.needs_open() && !matches!(outcome, CommandOutcome::Refused(_)) {
            // The vault was locked meanwhile, so the console shows nothing of the result.
            if is_expected {
                self.asking.end_command();
            }
            self.asking.wait_for(self.waiting.as_ref());
        } else if is_expected {
            match outcome {
                CommandOutcome::Done(lines) => self.asking.tell(lines),
                CommandOutcome::Refused(why) => self.asking.tell(vec![why]),
                CommandOutcome::Wants(want, note) => {
                    self.asking.want(want, note);
                    self.session = Some(session);
                    self.timers.session = Some(now + ANSWER_MS_MAX);
                }
                CommandOutcome::Words(words) => {
                    self.asking.reveal(words);
                    self.timers.session = Some(now + SHOWN_MS_MAX);
                }
            }
        }
        if !is_expected {
            // The conversation at its console is over: a lock ended it, or the caller hung up. The
            // result is for no other console. A command that another console began meanwhile waits.
            self.resume_command();
        }
        self.tell_events();
        self.vault_changed();
    }

    /// Forgets a command that the user did not go on with, and words that were shown for long
    /// enough.
    pub(super) fn forget_command(&mut self, now: u64) {
        if self.timers.session.is_some_and(|at| now >= at) {
            self.drop_command();
            self.asking.end_command();
            self.ask_again();
            self.vault_changed();
        }
    }

    /// Ends the command if the failed part of PID 1 was a command.
    pub(super) fn command_failed(&mut self, part: &str) {
        if part == PART {
            self.working = false;
            if self.asking.try_ended() {
                let text = "it failed; the log says why";
                self.asking.tell(vec![text.to_owned()]);
            } else {
                self.resume_command();
            }
            self.vault_changed();
        }
    }

    /// If no command is under way and the consoles ask nothing, they ask again for what the vault
    /// waits for.
    pub(super) fn ask_again(&mut self) {
        if self.opening || self.working || self.session.is_some() || self.asking.has_command() {
            return;
        }
        self.timers.session = None;
        if self.asking.is_idle() {
            self.asking.wait_for(self.waiting.as_ref());
        }
    }
}
