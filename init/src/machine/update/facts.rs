//! What the node and the consoles learn about the boot slots, and the problems with them.

use alknet_update::ReleaseVersion;

use super::{InitMachine, MachineEvent, PROGRESS_EVERY_MS, UpdateEvent};
use crate::control::{MachineDiagnostic, UpdateFacts, UpdateOutcome};
use crate::update::{SlotStatus, StartKind};

impl InitMachine {
    pub(super) fn refresh_update_facts(&mut self, now: u64) {
        let keys = self
            .update
            .image
            .source_with(&self.settings.config.update.keys)
            .name();
        let system = &self.update.system;
        let facts = &mut self.facts.update;
        facts.version = system.version().to_owned();
        facts.slot = system.running().map(|slot| slot.letter().to_owned());
        facts.keys = keys.to_owned();
        if let Some(staging) = &self.update.staging
            && (facts.staging.is_none() || now >= self.update.progress_at + PROGRESS_EVERY_MS)
        {
            facts.staging = Some((staging.progress.read(), staging.announced));
            facts.writing = staging.progress.written();
            self.update.progress_at = now;
        }
    }

    /// Reads the disk for the facts, on a thread, and logs what this start has to log.
    pub(super) fn read_update_state(&mut self) {
        // A thread that stages has the disk.
        let is_free = !self.update.is_looking && self.update.staging.is_none();
        if !self.update.owes_look || !is_free {
            return;
        }
        self.update.owes_look = false;
        self.update.is_looking = true;
        let (system, anchor) = (self.update.system.clone(), self.anchor());
        // The log is on the data partition, which may come later.
        let is_first = self.update.owes_report && self.update.system.has_folder();
        self.update.owes_report &= !is_first;
        let report = self.update.report.clone().filter(|_| is_first);
        let failed = SlotStatus {
            state: "unreadable".to_owned(),
            detail: Some("it failed; the log says why".to_owned()),
            ..SlotStatus::default()
        };
        let failed = MachineEvent::Update(Box::new(UpdateEvent::Looked(Box::new(failed))));
        self.blocking("looking at the boot slots", failed, move || {
            if let Some(end) = report.as_ref().and_then(|report| report.ended.as_ref()) {
                system.report_end(end);
            }
            let kind = report.map(|report| report.kind);
            if kind.is_some_and(StartKind::permits_repair) {
                system.repair_partition();
            }
            if kind == Some(StartKind::Good) {
                system.settle(&anchor);
            }
            system.note_running(|| true);
            let status = Box::new(system.inspect());
            MachineEvent::Update(Box::new(UpdateEvent::Looked(status)))
        });
    }

    pub(super) fn looked(&mut self, status: SlotStatus) {
        self.update.is_looking = false;
        let SlotStatus {
            state,
            detail,
            good,
            other_version,
            other_sha256,
            other_floor,
            staged_version,
            stager,
            running_sha256,
            left,
            tries,
            floor,
            foreign_files,
            last,
        } = status;
        // The note knows more of a trial that failed than the log, until the slot is used again.
        let report = self.update.report.as_ref();
        let ended = report.and_then(|report| report.ended.clone());
        let ended = ended.filter(|_| state == "failed");
        self.facts.update = UpdateFacts {
            state,
            detail,
            good,
            other_version,
            other_sha256,
            other_floor,
            staged_version,
            stager,
            running_sha256,
            left,
            tries,
            floor,
            foreign_files,
            last: ended.or(last),
            ..std::mem::take(&mut self.facts.update)
        };
        self.facts.problems.update = self.update_problems();
    }

    fn update_problems(&self) -> Vec<MachineDiagnostic> {
        let facts = &self.facts.update;
        let failed = facts
            .last
            .as_ref()
            .filter(|last| facts.state == "failed" && last.outcome == "failed");
        let failed = failed.map(|last| {
            // A version that left no note has no number.
            let version = match last.version.as_str() {
                "" => "the version in the other boot slot".to_owned(),
                version => format!("version {version}"),
            };
            problem(
                "update-failed",
                format!(
                    "{version} failed its trial and the machine returned to {}; it reached {}: {}",
                    facts.version,
                    progress_text(last),
                    last.reason
                ),
                "update to another version; 'alknet update log' has the history",
            )
        });
        let old = is_below(&facts.version, facts.floor.as_deref()).then(|| {
            let floor = facts.floor.as_deref().unwrap_or_default();
            problem(
                "version-below-floor",
                format!(
                    "version {} runs, and the oldest version that may run here is {floor}: the newer one did not start, or \
                     the boot record was changed while the machine was off",
                    facts.version
                ),
                "update the machine to a version that is not below the floor",
            )
        });
        let of_start = self.problem_of_start();
        of_start.into_iter().chain(failed).chain(old).collect()
    }

    /// What this start says of the record and the slots.
    fn problem_of_start(&self) -> Option<MachineDiagnostic> {
        let facts = &self.facts.update;
        let kind = self.update.report.as_ref().map(|report| report.kind);
        let good = facts.good.as_deref().unwrap_or("?");
        match kind {
            Some(StartKind::StateLost) => Some(problem(
                "boot-state-lost",
                "the boot state record could not be read; a new one says that the slot that runs is good".to_owned(),
                "an update that was under way has to be made again; if it happens again, replace the disk",
            )),
            Some(StartKind::Unread) => Some(problem(
                "boot-state-lost",
                "the disk did not give the boot state record at this start, so it is not known whether a version is on trial"
                    .to_owned(),
                "restart the machine; if it happens again, replace the disk",
            )),
            Some(StartKind::SlotDamaged) if facts.good != facts.slot => Some(problem(
                "slot-damaged",
                format!("the good version in boot slot {good} did not start, so the other one runs"),
                "update the machine, which writes that slot again",
            )),
            Some(StartKind::Uncounted) if facts.state == "trial" || facts.state == "pending" => {
                Some(problem(
                    "boot-state-lost",
                    "a version is on trial, and the loader could not write that down, so the good version runs".to_owned(),
                    "roll back, and update again; if it happens again, replace the disk",
                ))
            }
            _ => None,
        }
    }
}

fn problem(code: &str, text: String, hint: &str) -> MachineDiagnostic {
    MachineDiagnostic {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

/// How far a version came that failed its trial: the last stage of its boot, and the codes of its problems.
fn progress_text(last: &UpdateOutcome) -> String {
    let stage = match last.stage.as_str() {
        "" => "no stage of the boot".to_owned(),
        stage => format!("the stage '{stage}'"),
    };
    // The codes stand before the reason, because the status page cuts a long text and the reason may be long.
    match last.problems.as_slice() {
        [] => stage,
        [code] => format!("{stage}, with the problem {code}"),
        codes => format!("{stage}, with the problems {}", codes.join(", ")),
    }
}

/// Whether a version is older than the oldest one that may run.
fn is_below(version: &str, floor: Option<&str>) -> bool {
    let parsed = |text: &str| text.parse::<ReleaseVersion>().ok();
    let floor = floor.and_then(parsed);
    parsed(version)
        .zip(floor)
        .is_some_and(|(version, floor)| version < floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_trial_is_described_by_its_last_stage_and_each_code() {
        let progress = |stage: &str, codes: &[&str]| {
            progress_text(&UpdateOutcome {
                stage: stage.to_owned(),
                problems: codes.iter().map(|code| (*code).to_owned()).collect(),
                ..UpdateOutcome::default()
            })
        };
        assert_eq!(progress("", &[]), "no stage of the boot");
        assert_eq!(progress("data", &[]), "the stage 'data'");
        assert_eq!(
            progress("data", &["vault-locked"]),
            "the stage 'data', with the problem vault-locked"
        );
        assert_eq!(
            progress("ready", &["config-refused", "config-salvaged"]),
            "the stage 'ready', with the problems config-refused, config-salvaged"
        );
    }
}
