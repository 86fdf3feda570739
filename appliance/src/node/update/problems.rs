//! What updates add to the problems and the metrics of a node.

use std::sync::atomic::Ordering;

use alknet_core::Metrics;
use alknet_core::config::AutoUpdate;
use alknet_init::control::{MachineDiagnostic, UpdateFacts};

use super::NodeUpdates;
use super::schedule::AutoStep;

/// Code of the problem that a version waits for an administrator.
pub(crate) const UPDATE_AVAILABLE: &str = "update-available";
/// Code of the problem by which PID 1 reports that the last update failed.
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
    /// The problems of updates that only the node knows. PID 1 reports that an update failed: its report comes back to the
    /// node in the facts, so the node could not tell its own from that.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let facts = self.0.facts.load();
        self.available(&facts.update).into_iter().collect()
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
