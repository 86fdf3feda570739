//! What updates add to the problems and the metrics of a node.

use std::sync::atomic::Ordering;

use alknet_core::Metrics;
use alknet_core::config::AutoUpdate;
use alknet_init::control::{MachineDiagnostic, UpdateFacts};

use super::NodeUpdates;
use super::schedule::AutoStep;

/// Code of the problem that a version waits for an administrator.
pub(crate) const UPDATE_AVAILABLE: &str = "update-available";
/// Code of the problem that the last update failed.
pub(crate) const UPDATE_FAILED: &str = "update-failed";

/// Every state of the slot that is not the good one, as the metric names them.
const STATES: [&str; 8] = [
    "absent",
    "failed",
    "good",
    "idle",
    "pending",
    "staged",
    "trial",
    "unreadable",
];

impl NodeUpdates {
    /// The problems of updates.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let facts = self.0.facts.load();
        // PID 1 may have its own words for it.
        let is_listed = facts.problems.iter().any(|it| it.code == UPDATE_FAILED);
        let failed = failed(&facts.update).filter(|_| !is_listed);
        failed
            .into_iter()
            .chain(self.available(&facts.update))
            .collect()
    }

    /// A version that the machine has, and does not start by itself. Only a machine that looks for updates by itself
    /// has this problem: an administrator who stages a version knows of it.
    fn available(&self, facts: &UpdateFacts) -> Option<MachineDiagnostic> {
        let config = self.0.reloader.current();
        let version = facts.other_version.as_deref()?;
        if config.config.update.auto == AutoUpdate::Off || facts.state != "staged" {
            return None;
        }
        let hint = match self.auto_step()? {
            AutoStep::WaitsForAdministrator => {
                "'alknet update NODE' starts it, and 'alknet rollback NODE' takes it back"
            }
            AutoStep::WaitsForPerson => {
                "its start needs a person at the machine, for the vault: start it by 'alknet update NODE' when one is \
                 there"
            }
            _ => return None,
        };
        Some(MachineDiagnostic {
            code: UPDATE_AVAILABLE.to_owned(),
            text: format!("version {version} is on this machine and waits to be started"),
            hint: hint.to_owned(),
        })
    }

    /// Adds the state and the attempts.
    pub(crate) fn collect(&self, into: &mut Metrics) {
        let facts = self.0.facts.load();
        for state in STATES {
            into.gauge(
                "alknet_update_state",
                "The state of the boot slot that is not the good one: 1 for the state that it has.",
                &[("state", state)],
                f64::from(facts.update.state == state),
            );
        }
        let attempts = &self.0.attempts;
        for (outcome, count) in [
            ("staged", &attempts.staged),
            ("refused", &attempts.refused),
            ("given_up", &attempts.given_up),
            ("applied", &attempts.applied),
        ] {
            into.counter(
                "alknet_update_attempts_total",
                "Bundles that were sent to this machine since the node started, and starts of a version, by outcome.",
                &[("outcome", outcome)],
                count.load(Ordering::Relaxed),
            );
        }
    }
}

/// The last update, if it failed.
fn failed(facts: &UpdateFacts) -> Option<MachineDiagnostic> {
    let last = facts
        .last
        .as_ref()
        .filter(|last| last.outcome == "failed")?;
    let stage = match last.stage.as_str() {
        "" => String::new(),
        stage => format!(" after the stage '{stage}'"),
    };
    let reason = match last.reason.as_str() {
        "" => "it did not say why",
        reason => reason,
    };
    Some(MachineDiagnostic {
        code: UPDATE_FAILED.to_owned(),
        text: format!(
            "version {} failed{stage}: {reason}; {} runs",
            last.version, facts.version
        ),
        hint: "'alknet update log NODE' has all of it; the version is not tried again by itself"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use alknet_init::control::UpdateEnd;

    use super::*;

    #[test]
    fn an_update_that_failed_is_a_problem_with_its_reason() {
        let mut facts = UpdateFacts {
            version: "1.0.0".to_owned(),
            ..UpdateFacts::default()
        };
        assert_eq!(failed(&facts), None);
        let end = |outcome: &str| UpdateEnd {
            version: "1.1.0".to_owned(),
            outcome: outcome.to_owned(),
            stage: "data".to_owned(),
            reason: "the partition is read-only".to_owned(),
            problems: Vec::new(),
        };
        for outcome in ["confirmed", "rolled-back"] {
            facts.last = Some(end(outcome));
            assert_eq!(failed(&facts), None, "{outcome}");
        }
        facts.last = Some(end("failed"));
        let problem = failed(&facts).expect("a problem");
        assert_eq!(problem.code, UPDATE_FAILED);
        let text =
            "version 1.1.0 failed after the stage 'data': the partition is read-only; 1.0.0 runs";
        assert_eq!(problem.text, text);
    }
}
