//! New words in the machine's life: shown, confirmed, and what the vault permits until then.

use std::sync::Arc;

use alknet_vault::slots::FirstBootPermissions;

use super::{InitMachine, MachineEvent};
use crate::{control::MachineDiagnostic, data, stage::boot_ms, vault};

/// How long the console shows new words, ms.
const WORDS_MS_MAX: u64 = 600_000;
/// The part that changes the vault's permissions of the first boot, for the log.
const CONCLUDING: &str = "ending the first boot";

impl InitMachine {
    /// Shows new words once, at one console. Prints new words that are encrypted.
    pub(super) fn recall_words(&mut self) {
        if let Some(text) = self.vault.show_words_age() {
            for console in self.consoles() {
                console.say("alknet: the words of this node, for 'age --decrypt':");
                text.lines().for_each(|line| console.say(line));
            }
        }
        if let Some(words) = self.vault.take_words() {
            let mut bytes = [0; 8];
            let positions = vault::positions(words.expose().split(' ').count(), || {
                // Which positions are asked for is no secret, so without randomness they are always
                // the same.
                let _ = getrandom::fill(&mut bytes);
                u64::from_le_bytes(bytes)
            });
            self.asking.show(words, positions);
            self.timers.words = Some(boot_ms() + WORDS_MS_MAX);
            self.log
                .warn("the words of this node can be seen at the console for ten minutes");
        }
        self.asking.forget_maker();
    }

    /// The owner showed that the words are written down. That counts once it is on the disk.
    pub(super) fn note_words_kept(&self) {
        let state_dir = self.state_dir.clone();
        let failed = MachineEvent::WordsNoted(Err("it failed; the log says why".to_owned()));
        self.blocking("noting that the words are kept", failed, move || {
            MachineEvent::WordsNoted(
                vault::note_kept(&state_dir).map_err(|error| error.to_string()),
            )
        });
    }

    /// Whether the disk has the note that the owner has the words.
    pub(super) fn words_noted(&mut self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.vault.words_are_kept();
                self.conclude(FirstBootPermissions {
                    words: true,
                    ..FirstBootPermissions::default()
                });
                self.log.info("the words of this node were written down");
            }
            Err(error) => {
                self.log.error(format_args!(
                    "that the words were written down is not noted, and does not count: {error}"
                ));
                // The ten minutes ended when the owner typed the last of the three words.
                self.remind();
            }
        }
        self.vault_changed();
    }

    /// The ten minutes are over, and the console reminds the owner. After the next start or lock
    /// the console asks for proof.
    pub(super) fn remind(&mut self) {
        self.note_reminder();
        self.conclude(FirstBootPermissions {
            words: true,
            ..FirstBootPermissions::default()
        });
    }

    /// Writes a note beside the data. It applies where the vault cannot be changed yet: a vault
    /// that is locked, or opens only by another node's share or by typing.
    fn note_reminder(&self) {
        self.vault.owner_was_reminded();
        let state_dir = self.state_dir.clone();
        let failed = MachineEvent::ReminderNoted(Err("it failed; the log says why".to_owned()));
        self.blocking("noting that the owner was reminded", failed, move || {
            let noted = vault::note_reminder(&state_dir);
            MachineEvent::ReminderNoted(noted.map_err(|error| error.to_string()))
        });
    }

    /// Whether the disk has the note that the owner was reminded.
    pub(super) fn reminder_noted(&self, outcome: Result<(), String>) {
        if let Err(error) = outcome {
            self.log.error(format_args!(
                "that the owner was reminded of the words is not noted beside the data: {error}"
            ));
        }
    }

    /// The problem of unconfirmed words: only the words would prove who the owner is, and the owner
    /// has not confirmed to have them.
    pub(super) fn reminder(&self) -> Option<MachineDiagnostic> {
        // The first ten minutes are for writing them down.
        if self.timers.words.is_some() || !self.vault.is_open() || !self.vault.lacks_confirmation()
        {
            return None;
        }
        let hint = if self.vault.shows_words() {
            "press v at the console and type 'words show': without proof they are shown until the machine restarts or the \
             vault is locked"
        } else {
            "if they are lost, move what this node has elsewhere and reset it: the console shows them only to who \
             types three of them"
        };
        Some(MachineDiagnostic {
            code: "words-unconfirmed".to_owned(),
            text: "no person confirmed the words of this node, which are all that brings it back"
                .to_owned(),
            hint: hint.to_owned(),
        })
    }

    /// Withdraws permissions of the first boot in the vault on the disk, as soon as nothing else
    /// changes it.
    pub(super) fn conclude(&mut self, ended: FirstBootPermissions) {
        let ended = self.still_given(ended);
        // A permission that failed before is tried again together with the next one, and not in
        // every turn.
        self.put_off &= ended.is_empty();
        self.concluding = self.concluding.with(ended);
    }

    /// The permissions of `ended` that the vault still permits.
    fn still_given(&self, ended: FirstBootPermissions) -> FirstBootPermissions {
        let still = self.vault.pending();
        still.without(still.without(ended))
    }

    /// Forgets those of the permissions to be withdrawn that the vault on the disk no longer gives.
    pub(super) fn forget_concluded(&mut self) {
        self.concluding = self.still_given(self.concluding);
    }

    /// Withdraws them on its own thread, if nothing else changes the vault.
    pub(super) fn conclude_now(&mut self) {
        // A command under way holds an opened vault, which would be older than the disk after this
        // change.
        let is_free = !self.working && !self.opening && self.session.is_none();
        if self.concluding.is_empty() || self.put_off || !is_free || self.shutdown.is_some() {
            return;
        }
        // PID 1 changes a locked vault when it opens it again.
        let Some(at) = self.vault_at.clone().filter(|_| self.vault.is_open()) else {
            return;
        };
        let ended = self.concluding;
        self.put_off = true;
        // Nothing else changes the vault meanwhile.
        self.working = true;
        let vault = Arc::clone(&self.vault);
        let log = self.log.clone();
        let state_dir = self.state_dir.clone();
        let failed = MachineEvent::Concluded(Err("it failed; the log says why".to_owned()));
        self.blocking(CONCLUDING, failed, move || {
            MachineEvent::Concluded(data::conclude_vault(&at, &state_dir, ended, &vault, &log))
        });
    }

    /// The permissions that the vault on the disk gives from now on, or why they are unchanged.
    pub(super) fn concluded(&mut self, outcome: Result<FirstBootPermissions, String>) {
        self.working = false;
        match outcome {
            Ok(pending) => {
                if self.vault.pending().configuration && !pending.configuration {
                    self.log
                        .info("from now on the vault permits no configuration from a medium");
                }
                self.vault.set_pending(pending);
            }
            Err(why) => self.log.info(format_args!(
                "that the first boot has ended is noted in the vault when it is opened again: {why}"
            )),
        }
        self.forget_concluded();
        // The ledger may not have counted this change.
        self.vault_changed();
        self.resume_command();
        self.vault_changed();
    }
}
