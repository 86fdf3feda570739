//! What a start of the machine means, by the record, the slot that runs and the boot note. It has no disk.

use alknet_boot_state::{BootNote, BootPhase, BootRecord, BootSlot};

use crate::control::{MEMORY_SHORT, TrialCause, UpdateOutcome};

use super::system::ROLLED_BACK;

/// How the reason in the boot note of a trial begins if the gate gave it up.
pub(crate) const NOT_CONFIRMED: &str = "it was not confirmed in time";

/// What PID 1 has to do about a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartKind {
    /// The version that runs is on trial: the gate decides.
    Trial,
    /// The good version runs, after a trial that ended.
    Failed,
    /// The good version runs.
    Good,
    /// The good version did not start.
    SlotDamaged,
    /// The record is damaged: a new one says that the slot that runs is good.
    StateLost,
    /// A version is on trial, and the good one runs: the loader could not count, or its program is gone.
    Uncounted,
    /// The disk did not give the record, so nothing is known of this start.
    Unread,
}

impl StartKind {
    /// Whether the good version runs and no other one is on trial or waits for it: only then does the machine repair its
    /// boot partition.
    pub(crate) const fn permits_repair(self) -> bool {
        matches!(self, Self::Good | Self::Failed)
    }
}

/// A start of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartReport {
    pub(crate) kind: StartKind,
    /// How the last trial ended, if this is the first version that runs afterwards.
    pub(crate) ended: Option<UpdateOutcome>,
}

impl StartReport {
    /// A start at which the disk did not give the record.
    pub(super) const fn unread() -> Self {
        Self {
            kind: StartKind::Unread,
            ended: None,
        }
    }
}

/// Judges a start of `running`. `record` is `None` if the disk has another thing in its place. `note` is what the disk says of the last trial, if it can be read.
pub(super) fn judge(
    record: Option<&BootRecord>,
    running: BootSlot,
    note: Option<&BootNote>,
    failed_version: Option<&str>,
) -> StartReport {
    let Some(record) = record else {
        return StartReport {
            kind: StartKind::StateLost,
            ended: None,
        };
    };
    let is_good = record.good() == running;
    let kind = match record.phase() {
        BootPhase::Trial if !is_good => StartKind::Trial,
        BootPhase::Pending | BootPhase::Trial if is_good => StartKind::Uncounted,
        BootPhase::Failed if is_good => StartKind::Failed,
        _ if is_good => StartKind::Good,
        // Without a trial of it, the other slot runs only where the good one did not start.
        _ => StartKind::SlotDamaged,
    };
    let ended = record
        .failed()
        .map(|slot| end_of(note.filter(|note| note.slot == slot), failed_version));
    StartReport { kind, ended }
}

/// How a trial ended, as far as its note says it.
fn end_of(note: Option<&BootNote>, version: Option<&str>) -> UpdateOutcome {
    let Some(note) = note else {
        return UpdateOutcome {
            version: version.unwrap_or_default().to_owned(),
            outcome: "failed".to_owned(),
            reason: "it left no note that can be read".to_owned(),
            cause: Some(TrialCause::Note),
            ..UpdateOutcome::default()
        };
    };
    let is_rollback = note.reason.as_str() == ROLLED_BACK;
    let outcome = if is_rollback { "rolled-back" } else { "failed" };
    UpdateOutcome {
        version: note.version.as_str().to_owned(),
        outcome: outcome.to_owned(),
        stage: note.stage.as_str().to_owned(),
        reason: reason_of(note),
        cause: Some(cause_of(note)),
        problems: note.problems().map(str::to_owned).collect(),
    }
}

/// The kind of the reason: the first that holds, from what PID 1 did to what only its absence shows.
fn cause_of(note: &BootNote) -> TrialCause {
    let reason = note.reason.as_str();
    if reason == ROLLED_BACK {
        TrialCause::Rollback
    } else if reason.starts_with(NOT_CONFIRMED) {
        TrialCause::Gate
    } else if !reason.is_empty() {
        TrialCause::Restart
    } else if !note.panic.is_empty() {
        TrialCause::Panic
    } else if ran_short(note) {
        // Before the end of the node: where memory is full, the kernel ends it.
        TrialCause::Memory
    } else if !note.node_end.is_empty() {
        TrialCause::Node
    } else if note.starts == 0 {
        TrialCause::Start
    } else {
        TrialCause::Silence
    }
}

fn ran_short(note: &BootNote) -> bool {
    note.problems().any(|code| code == MEMORY_SHORT)
}

/// The reason in one sentence, from the most to the least certain.
fn reason_of(note: &BootNote) -> String {
    let texts = [
        ("", note.reason.as_str()),
        ("a part of it panicked: ", note.panic.as_str()),
        ("its node ended: ", note.node_end.as_str()),
    ];
    let mut found: Vec<_> = texts
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(what, text)| format!("{what}{text}"))
        .collect();
    // Its code is among the problems as well, which the log of updates does not have.
    if ran_short(note) {
        found.push("its memory ran short".to_owned());
    }
    if !found.is_empty() {
        return found.join("; ");
    }
    match note.starts {
        0 => "its program or its kernel did not start".to_owned(),
        _ => "it stopped or restarted without a word: a hang, a crash of the kernel or a power cut"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use alknet_boot_state::{BootSlots, NoteText, TRIES, loader_choice};

    use super::*;

    fn staged() -> BootRecord {
        let vacated = BootRecord::new(BootSlot::A).vacate().expect("it runs a");
        vacated.stage().expect("vacated")
    }

    fn started(record: BootRecord, times: u8) -> BootRecord {
        (0..times).fold(record, |record, _| {
            let choice = loader_choice(Some(&record), BootSlots::ALL);
            choice.write.unwrap_or(record)
        })
    }

    fn note() -> BootNote {
        let mut note = BootNote::new(BootSlot::B);
        note.version = NoteText::new("1.1.0");
        note.starts = 1;
        note
    }

    #[test]
    fn each_start_is_judged_by_what_runs() {
        let pending = staged().arm().expect("staged");
        let trial = started(pending, 1);
        let failed = started(pending, TRIES + 1);
        let confirmed = trial.confirm(BootSlot::B).expect("it runs");
        let (a, b) = (BootSlot::A, BootSlot::B);
        for (record, running, kind) in [
            (None, a, StartKind::StateLost),
            (Some(BootRecord::new(a)), a, StartKind::Good),
            (Some(BootRecord::new(a)), b, StartKind::SlotDamaged),
            (Some(staged()), a, StartKind::Good),
            (Some(staged()), b, StartKind::SlotDamaged),
            (Some(pending), a, StartKind::Uncounted),
            (Some(trial), b, StartKind::Trial),
            (Some(trial), a, StartKind::Uncounted),
            (Some(failed), a, StartKind::Failed),
            (Some(failed), b, StartKind::SlotDamaged),
            (Some(confirmed), b, StartKind::Good),
            (Some(confirmed), a, StartKind::SlotDamaged),
        ] {
            let report = judge(record.as_ref(), running, None, None);
            assert_eq!(report.kind, kind, "{record:?} {running}");
            let is_over = record.is_some_and(|record| {
                let phase = record.phase();
                phase != BootPhase::Pending && phase != BootPhase::Trial
            });
            let repairs = is_over && record.is_some_and(|record| record.good() == running);
            assert_eq!(kind.permits_repair(), repairs, "{record:?} {running}");
            let is_failed = record.is_some_and(|record| record.failed().is_some());
            assert_eq!(report.ended.is_some(), is_failed);
        }
    }

    #[test]
    fn each_failure_has_the_cause_that_says_most() {
        use TrialCause::{Gate, Memory, Node, Panic, Restart, Rollback, Silence, Start};
        let mut all = note();
        assert_eq!(cause_of(&all), Silence);
        all.starts = 0;
        assert_eq!(cause_of(&all), Start);
        // From here on each note has what those before it have.
        all.node_end = NoteText::new("signal 6");
        assert_eq!(cause_of(&all), Node);
        all.add_problem(MEMORY_SHORT);
        assert_eq!(cause_of(&all), Memory);
        all.panic = NoteText::new("init/src/x.rs:7");
        assert_eq!(cause_of(&all), Panic);
        for (reason, cause) in [
            (
                "the machine was restarted or switched off by a person",
                Restart,
            ),
            (
                "it was not confirmed in time: it waited for the vault",
                Gate,
            ),
            (ROLLED_BACK, Rollback),
        ] {
            all.reason = NoteText::new(reason);
            assert_eq!(cause_of(&all), cause);
            // The metric has the word of the facts.
            let word = serde_json::to_value(cause).expect("JSON");
            assert_eq!(word, cause.name());
        }
    }

    #[test]
    fn the_reason_of_a_failure_comes_from_the_note_of_its_slot() {
        let failed = started(staged().arm().expect("staged"), TRIES + 1);
        let end = |note: Option<&BootNote>| {
            let report = judge(Some(&failed), BootSlot::A, note, Some("1.1.0"));
            report.ended.expect("it failed")
        };
        let none = end(None);
        assert_eq!((&*none.version, &*none.outcome), ("1.1.0", "failed"));
        assert_eq!(none.reason, "it left no note that can be read");
        assert_eq!(none.cause, Some(TrialCause::Note));
        let mut other = note();
        other.slot = BootSlot::A;
        assert_eq!(end(Some(&other)), none);

        let mut found = note();
        assert!(end(Some(&found)).reason.contains("without a word"));
        found.starts = 0;
        assert!(end(Some(&found)).reason.contains("did not start"));
        found.stage = NoteText::new("data");
        found.add_problem("vault-locked");
        found.node_end = NoteText::new("signal 6");
        found.panic = NoteText::new("init/src/x.rs:7");
        let mut short = note();
        short.add_problem(MEMORY_SHORT);
        assert_eq!(end(Some(&short)).reason, "its memory ran short");
        short.node_end = NoteText::new("killed by SIGKILL");
        let ended = "its node ended: killed by SIGKILL; its memory ran short";
        assert_eq!(end(Some(&short)).reason, ended);
        assert_eq!(end(Some(&short)).cause, Some(TrialCause::Memory));
        let told = end(Some(&found));
        assert_eq!(told.stage, "data");
        assert_eq!(told.problems, ["vault-locked"]);
        let parts = "a part of it panicked: init/src/x.rs:7; its node ended: signal 6";
        assert_eq!(told.reason, parts);
        found.reason = NoteText::new(ROLLED_BACK);
        assert_eq!(end(Some(&found)).outcome, "rolled-back");
    }
}
