//! Updates in the machine's life: requests of the node, the gate of a version on trial, its boot note, and facts.

mod facts;
mod requests;
#[cfg(test)]
mod tests;
mod trial;
mod trial_vault;

use std::collections::VecDeque;
use std::sync::Arc;

use alknet_boot_state::{BootNote, NoteText};

use self::trial_vault::TrialVault;
use super::{InitMachine, MachineEvent};
use crate::control::{PowerAction, UpdateAnswer, UpdatePlan};
use crate::log::InitLog;
use crate::settings;
use crate::update::{
    FramesEnd, GateBaseline, NoteSchedule, RefusalCode, SelfCalls, SlotStatus, StageOrder,
    StagingProgress, StartKind, StartReport, TrialMemory, UpdateAnchor, UpdateGate, UpdateRefusal,
    UpdateStart, UpdateSystem,
};

/// How often the progress of staging is new in the facts, ms.
const PROGRESS_EVERY_MS: u64 = 1_000;

/// A request of the node, with its answer still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpdateTicket {
    life: u64,
    n: u64,
    by: String,
}

/// The end of a piece of work about updates.
#[derive(Debug)]
pub(crate) enum UpdateEvent {
    /// A request of the node is done; the machine may have to restart.
    Answered {
        ticket: UpdateTicket,
        answer: UpdateAnswer,
        restarts: bool,
    },
    /// The gate's own confirmation.
    Confirmed(Result<(), UpdateRefusal>),
    /// What PID 1 makes of a bundle is known, and its frames are being read to their end.
    Decided {
        ticket: UpdateTicket,
        outcome: Result<UpdatePlan, UpdateRefusal>,
    },
    /// The boot note has the reason why the gate gives up.
    GaveUp,
    /// The disk was read.
    Looked(Box<SlotStatus>),
    NoteWritten(bool),
    /// The slots of the TPM for a program that is not wanted any more are gone.
    SlotsRemoved(Result<usize, String>),
    /// The frames of a bundle ended.
    Staged {
        ticket: UpdateTicket,
        end: FramesEnd,
    },
}

/// A request that a thread works on.
#[derive(Debug)]
struct OpenRequest {
    ticket: UpdateTicket,
    /// Whether it has the vault for itself meanwhile.
    has_vault: bool,
}

/// A bundle whose frames are or will be on the stream.
#[derive(Debug)]
struct QueuedBundle {
    ticket: UpdateTicket,
    order: StageOrder,
    /// Its frames are only read to their end.
    is_refused: bool,
}

/// A bundle that a thread reads.
#[derive(Debug)]
struct StagingBundle {
    ticket: UpdateTicket,
    announced: u64,
    progress: Arc<StagingProgress>,
    is_answered: bool,
    dry_run: bool,
}

/// The boot slots in the machine's life.
#[derive(Debug)]
pub(super) struct MachineUpdate {
    system: UpdateSystem,
    /// The release keys of the image.
    image: UpdateAnchor,
    report: Option<StartReport>,
    /// What this start has to log once the data are there.
    owes_report: bool,
    /// Whether slots of the TPM for the program in the other slot may be left.
    owes_slots: bool,
    /// Whether the facts are to be read from the disk.
    owes_look: bool,
    is_looking: bool,
    gate: Option<UpdateGate>,
    self_calls: SelfCalls,
    /// When the gate may ask again for a confirmation that failed.
    again_at: Option<u64>,
    /// The note of this trial, without what the machine's facts add.
    note: Option<BootNote>,
    note_schedule: NoteSchedule,
    memory: TrialMemory,
    /// A request under way that is not about a bundle.
    request: Option<OpenRequest>,
    /// A request for the log that a thread answers. A second one has to wait: each reads the file and holds it in memory.
    log_request: Option<UpdateTicket>,
    /// A report about a planned start that a thread adds to the log. A second one has to wait for the same reason.
    report_request: Option<UpdateTicket>,
    staging: Option<StagingBundle>,
    bundles: VecDeque<QueuedBundle>,
    progress_at: u64,
}

impl MachineUpdate {
    pub(super) fn new(start: UpdateStart) -> Self {
        let UpdateStart {
            system,
            report,
            note,
        } = start;
        let is_trial = |report: &StartReport| report.kind == StartKind::Trial;
        let gate = report.as_ref().filter(|report| is_trial(report)).map(|_| {
            // The limit counts from the kernel's start.
            UpdateGate::new(
                GateBaseline::from_note(note.as_ref()),
                crate::stage::boot_ms(),
            )
        });
        let note = note.filter(|_| gate.is_some());
        Self {
            owes_slots: report.is_some() && gate.is_none(),
            owes_report: report.is_some(),
            note_schedule: note.map(NoteSchedule::new).unwrap_or_default(),
            gate,
            note,
            report,
            ..Self::with(system)
        }
    }

    /// A machine without boot slots.
    pub(super) fn absent(log: &InitLog) -> Self {
        Self::with(UpdateSystem::absent(log))
    }

    fn with(system: UpdateSystem) -> Self {
        Self {
            system,
            image: UpdateAnchor::of_image(),
            report: None,
            owes_report: false,
            owes_slots: false,
            owes_look: true,
            is_looking: false,
            gate: None,
            self_calls: SelfCalls::default(),
            again_at: None,
            note: None,
            note_schedule: NoteSchedule::default(),
            memory: TrialMemory::default(),
            request: None,
            log_request: None,
            report_request: None,
            staging: None,
            bundles: VecDeque::new(),
            progress_at: 0,
        }
    }

    /// The boot slots, for threads.
    pub(super) fn system(&self) -> &UpdateSystem {
        &self.system
    }

    /// The disk with the boot slots was found, or is another one than PID 1 has taken it for. Requests that came in
    /// before keep their place.
    pub(super) fn adopt(&mut self, start: UpdateStart) {
        let new = Self::new(start);
        *self = Self {
            self_calls: std::mem::take(&mut self.self_calls),
            request: self.request.take(),
            log_request: self.log_request.take(),
            report_request: self.report_request.take(),
            staging: self.staging.take(),
            bundles: std::mem::take(&mut self.bundles),
            progress_at: self.progress_at,
            is_looking: self.is_looking,
            ..new
        };
    }

    /// Whether the version that runs is on trial.
    pub(super) fn is_trial(&self) -> bool {
        self.gate.is_some()
    }

    /// Whether the version before may have to read what this one stores: this one is on trial, or a loader started it
    /// from a boot slot, and the disk whose record would say so is not known or did not give it.
    pub(super) fn may_return(&self) -> bool {
        let is_known = self.report.is_some() && !self.is_unread();
        self.is_trial() || (!is_known && self.system.running().is_some())
    }

    /// Whether the disk did not give the record of the boot slots.
    pub(super) fn is_unread(&self) -> bool {
        UpdateStart::is_unread(self.report.as_ref())
    }

    /// Whether a blank disk may become this machine's data, see [`UpdateStart::takes_blank_disk`].
    pub(super) fn takes_blank_disk(&self) -> bool {
        match self.is_trial() {
            true => GateBaseline::from_note(self.note.as_ref()).takes_blank_disk(),
            false => !self.may_return(),
        }
    }

    /// The data of this machine are erased, so a version on trial needs none of what was before it.
    pub(super) fn forget_baseline(&mut self) {
        if let Some(note) = &mut self.note {
            (note.vault, note.data) = (NoteText::new("absent"), NoteText::EMPTY);
            note.config = NoteText::EMPTY;
        }
    }

    /// Whether a thread has the boot partition for a bundle.
    pub(super) fn is_staging(&self) -> bool {
        self.staging.is_some()
    }

    /// The frames that the node still owed ended with it, and so did the bundle that a thread stages. Its calls to
    /// itself do not count for the next node.
    pub(super) fn node_ended(&mut self) {
        self.self_calls.forget();
        self.bundles.clear();
        if let Some(staging) = &self.staging {
            staging.progress.give_up();
        }
    }

    /// The machine goes down: a trial notes for which reason.
    pub(super) fn goes_down(&mut self, by: &str) {
        if let Some(note) = &mut self.note
            && note.reason.is_empty()
        {
            note.reason = NoteText::new(&format!(
                "the machine was restarted or switched off by {by}"
            ));
        }
    }

    /// Whether a thread may be changing the boot slot for a bundle.
    pub(super) fn is_changing_slot(&self) -> bool {
        self.staging.as_ref().is_some_and(|one| !one.is_answered)
    }

    /// Whether a boot slot may have changed since the look that the facts are of: a thread may be changing it, or the next
    /// look is not over. A bundle has the disk before that look, also the next one.
    fn is_outdated(&self) -> bool {
        let is_writing = self.staging.as_ref().is_some_and(|one| !one.dry_run);
        is_writing || self.request.is_some() || self.owes_look || self.is_looking
    }

    /// Why a new request has to wait, if another one is under way.
    fn busy(&self) -> Option<UpdateRefusal> {
        let is_busy = self.is_changing_slot() || self.request.is_some();
        is_busy.then(|| {
            UpdateRefusal::new(
                RefusalCode::Busy,
                "another request about updates is under way; wait until it ends",
            )
        })
    }
}

impl InitMachine {
    /// The vault, for a thread that changes its slots.
    fn trial_vault(&self) -> TrialVault {
        TrialVault {
            device: self.vault_at.clone(),
            state_dir: self.state_dir.clone(),
            vault: Arc::clone(&self.vault),
            log: self.log.clone(),
        }
    }

    fn anchor(&self) -> UpdateAnchor {
        let section = &self.settings.config.update;
        self.update
            .image
            .with_owner(&section.keys, section.threshold)
    }

    /// Handles the end of a piece of work.
    pub(super) fn updated(&mut self, event: UpdateEvent, now: u64) {
        match event {
            UpdateEvent::Answered {
                ticket,
                answer,
                restarts,
            } => self.request_ended(&ticket, answer, restarts, now),
            UpdateEvent::Confirmed(outcome) => self.gate_confirmed(outcome, now),
            UpdateEvent::Decided { ticket, outcome } => self.bundle_decided(&ticket, outcome),
            UpdateEvent::GaveUp => {
                self.go_down(
                    PowerAction::Reboot,
                    "a version on trial that is not well",
                    now,
                );
            }
            UpdateEvent::Looked(status) => self.looked(*status),
            UpdateEvent::NoteWritten(is_ok) => self.update.note_schedule.written(is_ok),
            UpdateEvent::SlotsRemoved(outcome) => {
                self.working = false;
                if let Err(error) = outcome {
                    self.log.warn(format_args!(
                        "slots of the TPM for a program that is not wanted any more stay: {error}"
                    ));
                }
                self.resume_command();
                self.tell_events();
                self.vault_changed();
            }
            UpdateEvent::Staged { ticket, end } => self.bundle_ended(&ticket, end, now),
        }
    }

    /// Does what is due about updates.
    pub(super) fn attend_update(&mut self, now: u64) {
        let dir = settings::data_dir(&self.facts.data.mode, &self.state_dir);
        if self.update.system.set_data(dir.as_deref()) {
            self.update.owes_look = true;
        }
        self.refresh_update_facts(now);
        if self.shutdown.is_none() {
            self.pass_gate(now);
            self.remove_slots();
            self.read_update_state();
        }
        // Last, and in the same turn: the node learns that its request changes a slot before it gets the answer.
        self.facts.update.outdated = self.update.is_outdated();
        self.keep_note(now);
    }

    /// The note that the disk may lack, for the end of the machine.
    pub(super) fn owed_note(&self) -> Option<BootNote> {
        let note = self.noted(self.update.note?);
        (!self.update.note_schedule.is_written(&note)).then_some(note)
    }

    /// When something about updates is due next, in ms after the kernel's start.
    pub(super) fn update_due(&self) -> Option<u64> {
        let update = &self.update;
        let gate = update.gate.as_ref().and_then(UpdateGate::deadline);
        let note = update.note.map(|note| self.noted(note));
        let note = note.and_then(|note| update.note_schedule.deadline(&note));
        let memory = update.note.and_then(|_| update.memory.deadline());
        let progress = update.staging.as_ref();
        let progress = progress.map(|_| update.progress_at + PROGRESS_EVERY_MS);
        let due = [gate, note, memory, progress, update.again_at];
        due.into_iter().flatten().min()
    }

    /// Removes slots of the TPM for a program that is not wanted any more, once the vault is open and free.
    fn remove_slots(&mut self) {
        let is_free = !self.working && !self.opening && self.update.staging.is_none();
        let is_open = self.vault.is_open() && self.waiting.is_none();
        if !self.update.owes_slots || !is_free || !is_open {
            return;
        }
        self.update.owes_slots = false;
        // One slot is for what runs.
        if self.facts.vault.tpm2.len() < 2 || !self.update.system.has_slots() {
            return;
        }
        self.working = true;
        let system = self.update.system.clone();
        let place = self.trial_vault();
        let event = |outcome| MachineEvent::Update(Box::new(UpdateEvent::SlotsRemoved(outcome)));
        let failed = event(Err("it failed; the log says why".to_owned()));
        self.blocking("slots of the TPM for updates", failed, move || {
            event(place.remove_unwanted(&system))
        });
    }
}

/// How the note names a vault that a person opened by a PIN, and by a passphrase.
const PIN: &str = "tpm2-pin";
const PASSPHRASE: &str = "passphrase";
