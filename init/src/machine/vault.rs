//! The vault in the machine's life: PID 1 opens it before the node serves anything, locks it on
//! request, and talks with the user at the console.

use std::sync::Arc;

use alknet_provisioning::ConsoleDocument;
use alknet_vault::audit::AuditEvent as VaultEvent;
use alknet_vault::slots::FirstBootPermissions;

use super::{InitMachine, MachineEvent, cloud::helper_outcome, commands::ANSWER_MS_MAX};
use crate::{
    boot::{self, OpenedData},
    control::{MachineDiagnostic, NodeMessage, PowerAction},
    data::{self, DataAccess, PreparedData},
    facts::ClockState,
    helper_task::HelperOutcome,
    stage::boot_ms,
    tpm,
    vault::{HelperPurpose, UnlockCredentials, VaultWait, generations},
};

/// How often PID 1 makes an attempt without input, ms: a medium may be attached any time.
const OPEN_EVERY_MS: u64 = 3_000;
/// How long PID 1 postpones an attempt that was requested during another one, ms.
const AGAIN_MS: u64 = 500;

impl InitMachine {
    /// Handles the end of an attempt to open the data.
    pub(super) fn opened(&mut self, opened: OpenedData, now: u64) {
        let OpenedData {
            mut prepared,
            settings,
            clock,
            offer,
            ..
        } = opened;
        self.opening = false;
        if self.vault.was_locked_meanwhile() {
            prepared.waiting = Some(self.locked());
        }
        self.facts.data = prepared.state.clone();
        // The network's time is better than what a later attempt finds on the disk.
        if self.facts.clock != ClockState::Sntp {
            self.facts.clock = clock;
        }
        for problem in &prepared.problems {
            if !self.facts.problems.data.contains(problem) {
                let (code, text) = (&problem.code, &problem.text);
                self.log.warn(format_args!("{code}: {text}"));
            }
        }
        self.facts.problems.data.clone_from(&prepared.problems);
        self.state_dir.clone_from(&prepared.state_dir);
        self.vault_at.clone_from(&prepared.vault_at);
        self.waiting.clone_from(&prepared.waiting);
        // While the data are closed, only a wait for the cloud is a reason to ask it: the disk may
        // have a configuration.
        let asks = match &prepared.waiting {
            Some(waiting) => waiting.asks,
            None => settings.asks(),
        };
        self.adopt(settings, now);
        if let Some(service) = asks {
            self.ask_cloud(service, now);
        }
        match &prepared.waiting {
            Some(waiting) => {
                // This also applies if the attempt ended in a panic.
                self.vault.close();
                self.vault.forget_words();
                self.timers.open = waiting.retries.then_some(now + OPEN_EVERY_MS);
                self.offer.take_back(offer);
                if self.timers.typed.is_none() {
                    // The deadline passed while the attempt had the typed secrets.
                    self.forget_typed();
                }
                self.asking.wait_for(Some(waiting));
            }
            None => {
                self.offer = UnlockCredentials::default();
                self.timers.typed = None;
                self.asking.wait_for(None);
                self.recall_words();
                self.start_unblocked(now);
            }
        }
        self.prepared = Some(Box::new(prepared));
        self.vault_changed();
    }

    /// Handles the end of an attempt to open the vault again after a lock.
    pub(super) fn unlocked(&mut self, waiting: Option<VaultWait>, now: u64) {
        self.opening = false;
        self.working = false;
        self.offer = UnlockCredentials::default();
        let was_locked = self.vault.was_locked_meanwhile();
        let waiting = if was_locked {
            Some(self.locked())
        } else {
            waiting
        };
        self.asking.wait_for(waiting.as_ref());
        self.waiting = waiting;
        if self.waiting.is_none() {
            self.forget_concluded();
            self.supervisor.start(now);
            self.tell_events();
        } else {
            // This also applies if the attempt ended in a panic.
            self.vault.close();
        }
        self.resume_command();
        self.vault_changed();
    }

    /// Makes the next attempt when it is due.
    pub(super) fn keep_open(&mut self, now: u64) {
        if self.timers.words.is_some_and(|at| now >= at) {
            self.timers.words = None;
            self.asking.forget_words();
            self.vault.take_words();
            self.remind();
            self.vault_changed();
        }
        if self.timers.typed.is_some_and(|at| now >= at) {
            self.forget_typed();
        }
        if self.timers.open.is_some_and(|at| now >= at) && self.shutdown.is_none() {
            self.open();
        }
        self.conclude_now();
        self.ask_other_nodes(now);
    }

    /// Forgets what was typed for a new vault. An attacker may have typed it, who was at the
    /// console before the owner.
    fn forget_typed(&mut self) {
        self.timers.typed = None;
        self.asking.forget_maker();
        if self.offer.forget_new() {
            self.log
                .warn("what was typed for the new vault is forgotten: two minutes passed, and the vault is not made yet");
        }
    }

    /// Tries with what was just typed for a new vault. PID 1 keeps it for as long as the user needs
    /// to type the rest.
    pub(super) fn open_with_typed(&mut self, now: u64) {
        self.timers.typed = Some(now + ANSWER_MS_MAX);
        self.open();
    }

    /// Tries with what was just typed for the vault on the disk. It counts for an older copy only if the question
    /// that it answers said that the copy is older.
    pub(super) fn open_with_secret(&mut self) {
        let waiting = self.waiting.as_ref();
        self.offer.knows_of_age =
            waiting.is_some_and(|waiting| waiting.problem.code == generations::VAULT_OLD);
        self.open();
    }

    /// Whether an attempt or a command waits for the share of another node.
    fn wants_helper_tasks(&self) -> bool {
        let is_wanted = self.waiting.is_some() || self.waits_for_share();
        is_wanted && !self.cloud.helper_is_running && self.shutdown.is_none()
    }

    /// When PID 1 asks another node next, in ms after the kernel's start.
    pub(super) fn task_due(&self) -> Option<u64> {
        let deadline = self
            .wants_helper_tasks()
            .then(|| self.vault.escrow().deadline());
        deadline.flatten()
    }

    /// Sends a child to another node for what the vault wants, while the loop goes on.
    fn ask_other_nodes(&mut self, now: u64) {
        if !self.wants_helper_tasks() {
            return;
        }
        let Some((of, task)) = self.vault.escrow().next(now) else {
            return;
        };
        self.cloud.helper_is_running = true;
        let lost = MachineEvent::Came(of.clone(), Err("it failed; the log says why".to_owned()));
        self.blocking("a helper task of the vault", lost, move || {
            MachineEvent::Came(of, helper_outcome(&task))
        });
    }

    /// Handles the return of a child.
    pub(super) fn came(
        &mut self,
        of: &HelperPurpose,
        outcome: Result<HelperOutcome, String>,
        now: u64,
    ) {
        self.cloud.helper_is_running = false;
        let why = match &outcome {
            Ok(HelperOutcome::Refused { text, .. }) | Err(text) => Some(text.clone()),
            Ok(_) => None,
        };
        let helps = self.vault.escrow().came(of, outcome, now);
        // A helper asks every few seconds, and the log has the same reason once.
        if let Some(why) = why.filter(|why| self.refused_lately.as_ref() != Some(why)) {
            self.log
                .warn(format_args!("another node gives the vault nothing: {why}"));
            self.refused_lately = Some(why);
        }
        self.share_came();
        // The attempt under way does not know of the share, but the next one does.
        if helps && self.waiting.is_some() {
            self.timers.open = Some(now);
        }
    }

    /// The network went up or down. When it is up, PID 1 makes an attempt that waited for it at
    /// once.
    pub(super) fn network_is(&mut self, up: bool) {
        let changed = self.vault.escrow().set_network(up);
        let retries = self.waiting.as_ref().is_some_and(|waiting| waiting.retries);
        if changed && up && retries {
            self.timers.open = Some(boot_ms());
        }
    }

    /// Tries to open what is closed, with what was typed.
    pub(super) fn open(&mut self) {
        self.timers.open = None;
        // A machine that is reset or goes down has wiped its keys, or is about to.
        if self.waiting.is_none() || self.reset.is_some() || self.shutdown.is_some() {
            return;
        }
        // If two changes of the vault ran at once, one of them would be lost.
        if self.opening || self.working {
            self.timers.open = Some(boot_ms() + AGAIN_MS);
            return;
        }
        // A round of housekeeping has it, so PID 1 tries a moment later.
        let Some(prepared) = self.prepared.take() else {
            self.timers.open = Some(boot_ms() + OPEN_EVERY_MS);
            return;
        };
        self.opening = true;
        self.vault.begin_attempt();
        let vault = Arc::clone(&self.vault);
        let log = self.log.clone();
        let offer = std::mem::take(&mut self.offer);
        let breaks = std::mem::take(&mut self.breaks_opening);
        if prepared.state.mode == "locked" {
            let as_before = self.as_before(*prepared);
            let takes_blank = self.update.takes_blank_disk();
            let slots = self.update.system().clone();
            let is_unread = self.update.is_unread();
            let open = move || {
                assert!(!breaks, "a fault was injected");
                let mut opened = boot::open(&vault, offer, takes_blank, &log);
                opened.look_for_slots(&slots, is_unread);
                MachineEvent::Opened(Box::new(opened))
            };
            return self.blocking("opening the data", as_before, open);
        }
        let (at, state_dir) = (prepared.vault_at.clone(), prepared.state_dir.clone());
        self.prepared = Some(prepared);
        self.working = true;
        let ended = self.concluding;
        let as_before = MachineEvent::Unlocked(self.waiting.clone().map(Box::new));
        self.blocking("opening the vault", as_before, move || {
            assert!(!breaks, "a fault was injected");
            let access = DataAccess {
                vault: &vault,
                offer: &offer,
                log: &log,
                takes_blank: false,
            };
            let waiting = at.and_then(|at| data::reopen(&at, &state_dir, ended, access).err());
            MachineEvent::Unlocked(waiting.map(Box::new))
        });
    }

    /// The event for an attempt that panics: the vault is still closed, for the same reason.
    fn as_before(&self, prepared: PreparedData) -> MachineEvent {
        MachineEvent::Opened(Box::new(OpenedData {
            prepared,
            settings: self.settings.clone(),
            clock: self.facts.clock,
            offer: UnlockCredentials::default(),
            update: None,
        }))
    }

    /// Forgets the seed. Keys that were derived stay in use, or end with the node.
    pub(super) fn lock(&mut self, hard: bool, by: &str, now: u64) {
        self.log.warn(format_args!("the vault was locked by {by}"));
        // A node that was requested to lock has locked the vault already, and reports it now.
        let was_open = self.vault.is_open() || self.waiting.is_none();
        self.vault.lock();
        if hard && !self.vault.facts().tpm2.is_empty() {
            self.close_tpm();
        }
        let end = hard.then(|| self.supervisor.idle(now)).flatten();
        // A vault that is locked counts as locked again only if the keys of a node go as well.
        if self.vault.is_locked() && (was_open || end.is_some()) {
            self.vault.events().add(VaultEvent::Locked { hard });
        }
        self.vault.take_words();
        self.waiting = Some(self.locked());
        self.drop_command();
        self.asking.end();
        self.asking.wait_for(self.waiting.as_ref());
        if let Some(order) = end {
            self.obey(order, now);
        }
        self.vault_changed();
    }

    /// What a locked vault waits for. PID 1 does not open it again unprompted.
    fn locked(&self) -> VaultWait {
        let hint = "type what opens it on the console, or restart the machine";
        let text = "the vault was locked";
        VaultWait::new(self.vault.asks(), "vault-locked", text, hint)
    }

    /// Closes the TPM, so that an attacker who breaks into a machine whose vault is locked hard
    /// gets no key from the TPM either.
    fn close_tpm(&self) {
        tpm::begin_closing();
        let failed = MachineEvent::TpmClosed(Err("it failed; the log says why".to_owned()));
        self.blocking("closing the TPM", failed, || {
            MachineEvent::TpmClosed(tpm::close().map_err(|error| error.to_string()))
        });
    }

    /// The result of closing the TPM. The administrator who locked the vault hard relies on the TPM
    /// opening nothing.
    pub(super) fn tpm_closed(&mut self, outcome: Result<(), String>) {
        self.tpm_is_open = outcome.err();
        if let Some(error) = &self.tpm_is_open {
            self.log
                .error(format_args!("the TPM still opens the vault: {error}"));
        }
        self.vault_changed();
    }

    /// The problem of a TPM that still opens a vault that was locked hard.
    fn tpm_problem(&self) -> Option<MachineDiagnostic> {
        let error = self.tpm_is_open.as_ref()?;
        Some(MachineDiagnostic {
            code: "tpm-not-closed".to_owned(),
            text: format!("the vault was locked hard, and the TPM still gives its key: {error}"),
            hint: "switch the machine off; until then an intruder gets the key from the TPM"
                .to_owned(),
        })
    }

    /// Updates facts, problems and the question after any change.
    pub(super) fn vault_changed(&mut self) {
        self.facts.vault = self.vault.facts();
        let waiting = self.waiting.iter().map(|waiting| waiting.problem.clone());
        let mut problems: Vec<_> = waiting.collect();
        // While the data are closed, their problems have the same entry.
        problems.retain(|problem| !self.facts.problems.data.contains(problem));
        problems.extend(self.reminder());
        problems.extend(self.tpm_problem());
        problems.extend(self.vault.uncounted());
        self.facts.problems.vault = problems;
        self.ask_consoles();
    }

    /// Sends events to the node, which writes them to the log with a key of the open vault. PID 1
    /// keeps those that the node does not confirm.
    pub(super) fn tell_events(&self) {
        let Some(node) = self.node.as_ref().filter(|_| self.vault.is_open()) else {
            return;
        };
        let records = self.vault.events().fresh();
        let count = records.len();
        // If the channel is full now, the next event sends them.
        if count > 0 && node.send(NodeMessage::VaultEvents { records }) {
            self.vault.events().handed(count);
        }
    }

    /// Why words that come with a configuration do not replace the vault. `None` if this machine
    /// made the vault for itself, no administrator is configured and its words were not written
    /// down: then nothing is lost with it.
    pub(super) fn keeps_its_vault(&self) -> Option<&'static str> {
        if self.vault_at.is_none() {
            return Some("it has no data partition for a vault");
        }
        if !self.settings.is_default() {
            return Some("it was configured before");
        }
        let has_words = self.vault.facts().words_kept;
        has_words.then_some("its own words were written down")
    }

    /// Ends the node, to make the vault from the words in a pasted configuration.
    pub(super) fn begin_remake(&mut self, document: ConsoleDocument, now: u64) {
        self.vault.lock();
        self.vault.take_words();
        self.timers.words = None;
        // A task that reads what is stored would keep the data from being unmounted.
        self.timers.reread = None;
        self.drop_command();
        self.asking.end();
        self.remake_from = Some(document);
        if let Some(order) = self.supervisor.idle(now) {
            self.obey(order, now);
        }
        self.vault_changed();
    }

    /// Makes that vault once nothing uses the data.
    pub(super) fn remake_vault(&mut self) {
        let is_free = self.node.is_none() && !self.opening && !self.working;
        if !is_free || self.prepared.is_none() || self.shutdown.is_some() {
            return;
        }
        let Some((document, device)) = self.remake_from.take().zip(self.vault_at.clone()) else {
            return;
        };
        self.prepared = None;
        // The new vault has a first boot of its own.
        self.concluding = FirstBootPermissions::default();
        self.put_off = false;
        self.opening = true;
        self.vault.begin_attempt();
        let vault = Arc::clone(&self.vault);
        let log = self.log.clone();
        // The reboot restores the state from before.
        let reboot = MachineEvent::Signal(PowerAction::Reboot);
        self.blocking("making a new vault", reboot, move || {
            if let Err(error) = data::erase_data(&device) {
                log.error(format_args!("no new vault can be made: {error}"));
                // The reboot restores the state from before.
                return MachineEvent::Signal(PowerAction::Reboot);
            }
            vault.forget();
            let offer = UnlockCredentials {
                pasted: Some(document),
                ..UnlockCredentials::default()
            };
            // The disk was just erased for it.
            MachineEvent::Opened(Box::new(boot::open(&vault, offer, true, &log)))
        });
    }
}
