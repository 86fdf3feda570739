//! A version on trial: its gate, and its boot note.

use alknet_boot_state::{BootNote, NoteText};

use super::{InitMachine, MachineEvent, PASSPHRASE, PIN, UpdateEvent};
use crate::control::{MEMORY_SHORT, SelfCallResult};
use crate::update::{GateStep, GateVault, GateView, NOT_CONFIRMED, UpdateRefusal};
use crate::vault::UnlockPrompt;

/// Pause before a confirmation that the disk refused is tried again, ms.
const AGAIN_MS: u64 = 10_000;
/// The actor of what no administrator asked for, in logs.
const MACHINE: &str = "the machine";

impl InitMachine {
    /// Asks the gate of a version on trial for the next step.
    pub(super) fn pass_gate(&mut self, now: u64) {
        if self.update.again_at.is_some_and(|at| now >= at) {
            self.update.again_at = None;
            if let Some(gate) = &mut self.update.gate {
                gate.again();
            }
        }
        let view = self.gate_view(now);
        // An administrator's request decides while it is under way.
        if self.update.request.is_some() {
            return;
        }
        let Some(step) = self
            .update
            .gate
            .as_mut()
            .and_then(|gate| gate.step(&view, now))
        else {
            return;
        };
        match step {
            GateStep::Wait(waits) => self.facts.update.gate = waits,
            GateStep::Confirm => self.confirm_by_gate(),
            GateStep::GiveUp(why) => self.give_up_by_gate(&why),
        }
    }

    pub(super) fn gate_view(&self, now: u64) -> GateView {
        let note = self.update.note.as_ref();
        let before = note.map_or("", |note| note.vault.as_str());
        let asks = self.waiting.as_ref().map(|waiting| waiting.ask);
        let vault = match asks {
            // The owner expects to type only the secret that opened the vault before the update.
            Some(UnlockPrompt::Pin) if before == PIN => GateVault::AsksAsBefore,
            Some(UnlockPrompt::Passphrase) if before == PASSPHRASE => GateVault::AsksAsBefore,
            Some(_) => GateVault::Closed,
            None if self.vault.is_open() => GateVault::Open,
            None if self.vault.is_locked() => GateVault::Closed,
            None => GateVault::Absent,
        };
        GateView {
            serves: self.supervisor.serves(),
            is_well: self.supervisor.is_well(),
            answers_itself: self.update.self_calls.are_answered(now),
            life: self.life,
            vault,
            data_writable: self.facts.data.mode == "mounted",
            config_taken: self.settings.is_taken(),
        }
    }

    /// The node of a version on trial called itself.
    pub(in crate::machine) fn called_itself(&mut self, result: &SelfCallResult, now: u64) {
        match result {
            SelfCallResult::Answered => {}
            SelfCallResult::Failed { reason } => self.log.warn(format_args!(
                "the node failed to answer a call of its own: {reason}"
            )),
            SelfCallResult::Unanswered { reason } => self.log.warn(format_args!(
                "the node did not answer a call of its own: {reason}"
            )),
        }
        self.update.self_calls.add(result, now);
    }

    fn confirm_by_gate(&mut self) {
        self.facts.update.gate = vec!["the disk, which is being written".to_owned()];
        let (system, anchor) = (self.update.system.clone(), self.anchor());
        let event = |outcome| MachineEvent::Update(Box::new(UpdateEvent::Confirmed(outcome)));
        let failed = event(Err(UpdateRefusal::failed()));
        self.blocking("confirming an update", failed, move || {
            event(system.confirm(MACHINE, &anchor))
        });
    }

    pub(super) fn gate_confirmed(&mut self, outcome: Result<(), UpdateRefusal>, now: u64) {
        match outcome {
            Ok(()) => {
                let version = self.update.system.version();
                self.log.info(format_args!(
                    "version {version} passed its trial and is the good one from now on"
                ));
                self.trial_is_over();
            }
            Err(refusal) => {
                self.log.error(format_args!(
                    "the version on trial cannot be confirmed: {refusal}"
                ));
                // The version has passed the gate. A restart would cost it a try, and the disk may work again soon.
                self.update.again_at = Some(now + AGAIN_MS);
            }
        }
        self.update.owes_look = true;
    }

    pub(super) fn trial_is_over(&mut self) {
        self.update.gate = None;
        self.update.note = None;
        self.update.again_at = None;
        self.facts.update.gate.clear();
        self.update.owes_slots = true;
        self.update.owes_look = true;
    }

    /// Writes the reason, and restarts the machine: the loader has counted this start.
    fn give_up_by_gate(&mut self, why: &str) {
        self.log.error(format_args!(
            "the version on trial is not confirmed in time, it still waits for: {why}; the machine restarts"
        ));
        let note = self.update.note.map(|mut note| {
            note.reason = NoteText::new(&format!("{NOT_CONFIRMED}: it waited for {why}"));
            self.noted(note)
        });
        self.update.note = note;
        let system = self.update.system.clone();
        let event = || MachineEvent::Update(Box::new(UpdateEvent::GaveUp));
        self.blocking("giving up an update", event(), move || {
            if let Some(note) = note {
                system.write_note(&note);
            }
            event()
        });
    }

    /// The note with what the machine's facts say now.
    pub(super) fn noted(&self, mut note: BootNote) -> BootNote {
        if let Some(stage) = self.facts.stages.last() {
            note.stage = NoteText::new(&stage.name);
        }
        let words = self.facts.last_words.as_deref();
        if let Some(line) = words.and_then(|words| words.lines().next()) {
            note.node_end = NoteText::new(line);
        }
        for problem in self.facts.problems.codes() {
            note.add_problem(problem);
        }
        note
    }

    /// Writes the note of a version on trial when it has something new.
    pub(super) fn keep_note(&mut self, now: u64) {
        let Some(mut note) = self.update.note else {
            return;
        };
        if self.update.memory.was_short(now) {
            note.add_problem(MEMORY_SHORT);
        }
        let note = self.noted(note);
        self.update.note = Some(note);
        let Some(note) = self.update.note_schedule.take_due(&note, now) else {
            return;
        };
        let system = self.update.system.clone();
        let event = |is_ok| MachineEvent::Update(Box::new(UpdateEvent::NoteWritten(is_ok)));
        self.blocking("the boot note", event(false), move || {
            event(system.write_note(&note))
        });
    }
}
