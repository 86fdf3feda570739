//! What updates add to the problems and the metrics of a node.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use alknet_core::Metrics;
use alknet_core::config::AutoUpdate;
use alknet_init::control::{
    BOOT_STAGES, MachineDiagnostic, TrialCause, UpdateFacts, UpdateOutcome,
};

use super::NodeUpdates;
use super::problem_codes::PROBLEM_CODES;
use super::refusal::may_end_by_staging;
use super::schedule::AutoStep;
use super::waiting::waiting_version;

/// Code of the problem that a version waits for an administrator.
pub(crate) const UPDATE_AVAILABLE: &str = "update-available";
/// Code of the problem by which PID 1 reports that the last update failed.
pub(crate) const UPDATE_FAILED: &str = "update-failed";

/// Code of the problem that a version did not start at the moment that a caller had set.
pub(crate) const UPDATE_NOT_STARTED: &str = "update-not-started";

/// Code of the problem that other callers keep the machine from its own updates.
pub(crate) const UPDATES_BLOCKED: &str = "updates-blocked";

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

/// How an update ends, as the metric names it.
const OUTCOMES: [&str; 3] = ["confirmed", "failed", "rolled-back"];

impl NodeUpdates {
    /// The problems of updates that only the node knows. PID 1 reports that an update failed: its report comes back to the
    /// node in the facts, so the node could not tell its own from that.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let facts = self.0.facts.load();
        let available = self.available(&facts.update);
        let problems = available.into_iter().chain(self.not_started());
        problems.chain(self.updates_blocked()).collect()
    }

    /// Looks, stagings or starts of the machine itself that other callers have blocked for an hour.
    fn updates_blocked(&self) -> Option<MachineDiagnostic> {
        let text = self.blocked_text()?;
        Some(MachineDiagnostic {
            code: UPDATES_BLOCKED.to_owned(),
            text,
            hint: "'alknet update status NODE' shows the session under way, and 'alknet update cancel NODE' gives it up; \
                   take the scopes away from a caller that goes on; the machine goes on to try it by itself"
                .to_owned(),
        })
    }

    /// A start that a caller planned, and that did not happen, or will not.
    fn not_started(&self) -> Option<MachineDiagnostic> {
        let start = self.failed_start()?;
        let (version, at, failure) = (&start.version, start.at, &start.failure);
        let does = match start.replaced {
            true => "does",
            false => "did",
        };
        let staged = self.staged_sha256();
        let is_same = staged.as_ref() == Some(&start.sha256);
        let hint = match (staged.is_some(), start.replaced) {
            (true, true) if is_same => {
                "'alknet update NODE' shows the plan with its floor and starts the version, with --at at another moment; \
                 'alknet update log NODE' says who staged it"
            }
            (true, true) => {
                "'alknet update NODE' starts the version that is staged now, with --at at another moment; to have the \
                 planned one, send its bundle again"
            }
            (true, false) => {
                "'alknet update NODE' starts it, with --at at another moment, and 'alknet rollback NODE' takes it back"
            }
            (false, _) => {
                "no version is staged: 'alknet update NODE' sends a bundle again and starts it, with --at at another \
                 moment"
            }
        };
        Some(MachineDiagnostic {
            code: UPDATE_NOT_STARTED.to_owned(),
            text: format!("version {version} {does} not start at {at}, as planned: {failure}"),
            hint: hint.to_owned(),
        })
    }

    /// A version that the machine has, and does not start by itself. Only a machine that looks for updates by itself
    /// has this problem: an administrator who stages a version knows of it.
    fn available(&self, facts: &UpdateFacts) -> Option<MachineDiagnostic> {
        let config = self.0.reloader.current();
        let version = waiting_version(facts)?;
        if config.config.update.auto == AutoUpdate::Off || facts.state != "staged" {
            return None;
        }
        let is_apply = config.config.update.auto == AutoUpdate::Apply;
        if let Some(refusal) = self.start_refusal(facts).filter(|_| is_apply) {
            return Some(MachineDiagnostic {
                code: UPDATE_AVAILABLE.to_owned(),
                text: format!(
                    "version {version} is on this machine, and PID 1 does not start it: {}",
                    refusal.text
                ),
                // What PID 1 writes when it stages changes nothing after any other refusal.
                hint: match refusal.code.as_deref().is_some_and(may_end_by_staging) {
                    true => {
                        "the machine tries the start again, and installs a later version of its channel by itself; \
                         'alknet update NODE BUNDLE' sends this version again and starts it"
                    }
                    false => {
                        "do what the reason says; the machine tries the start again, and installs a later version of its \
                         channel by itself"
                    }
                }
                .to_owned(),
            });
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

    /// Adds the state, how the last update ended, and the attempts.
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
        if let Some(last) = &facts.update.last {
            collect_end(last, into);
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

/// Adds how the last update ended. Neither its version, which a peer has sent, nor the text of the reason is a label.
fn collect_end(last: &UpdateOutcome, into: &mut Metrics) {
    let labels = [
        ("outcome", listed(&OUTCOMES, &last.outcome)),
        ("cause", last.cause.map_or(NONE, TrialCause::name)),
        ("stage", listed(&BOOT_STAGES, &last.stage)),
    ];
    into.gauge(
        "alknet_update_last_info",
        "How the last update of this machine ended: always 1, with its outcome, what ended a trial that failed, and the \
         stage of the boot that it reached.",
        &labels,
        1.0,
    );
    let codes = last.problems.iter();
    // A set, because the text format has each series once, and the note may have two codes that the list lacks.
    let codes: BTreeSet<_> = codes.map(|code| listed(&PROBLEM_CODES, code)).collect();
    for code in codes {
        into.gauge(
            "alknet_update_last_problem",
            "A problem that the version of the last update had in its trial, as its boot note says: always 1.",
            &[("code", code)],
            1.0,
        );
    }
}

/// The value of a label for what has no value, and for a word that the list lacks: another version wrote it to the disk, or
/// an attacker who had the disk.
const NONE: &str = "none";
const OTHER: &str = "other";

/// The word of the list.
fn listed(list: &[&'static str], word: &str) -> &'static str {
    if word.is_empty() {
        return NONE;
    }
    let known = list.iter().find(|known| **known == word);
    known.copied().unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The series of how an update ended, with their labels and values.
    fn all_series(last: &UpdateOutcome) -> Vec<String> {
        let mut metrics = Metrics::default();
        collect_end(last, &mut metrics);
        let text = metrics.to_text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    /// The one series of the metric of the end itself.
    fn series(last: &UpdateOutcome) -> String {
        let mut found = all_series(last).into_iter();
        let line = found.next().expect("one series");
        assert!(found.all(|line| line.starts_with("alknet_update_last_problem{")));
        line
    }

    #[test]
    fn the_metric_says_how_the_last_update_ended_in_words_of_the_program() {
        let failed = UpdateOutcome {
            version: "1.1.0".to_owned(),
            outcome: "failed".to_owned(),
            stage: "node-start".to_owned(),
            reason: "it was not confirmed in time: it waited for the vault".to_owned(),
            cause: Some(TrialCause::Gate),
            problems: vec!["vault-locked".to_owned()],
        };
        let labels = r#"{outcome="failed",cause="gate",stage="node-start"}"#;
        assert_eq!(
            series(&failed),
            format!("alknet_update_last_info{labels} 1")
        );
        // Of an update in the log only the outcome is known.
        let logged = UpdateOutcome {
            outcome: "rolled-back".to_owned(),
            ..UpdateOutcome::default()
        };
        let labels = r#"{outcome="rolled-back",cause="none",stage="none"}"#;
        assert_eq!(
            series(&logged),
            format!("alknet_update_last_info{labels} 1")
        );
        // The words of the disk may be any.
        let strange = UpdateOutcome {
            outcome: "x\"} 7\nalknet_connections".to_owned(),
            stage: "of 10,000 words".to_owned(),
            ..failed
        };
        let labels = r#"{outcome="other",cause="gate",stage="other"}"#;
        assert_eq!(
            series(&strange),
            format!("alknet_update_last_info{labels} 1")
        );
    }

    #[test]
    fn each_problem_of_the_last_trial_is_a_series_with_a_code_of_the_list() {
        let series_of = |codes: &[&str]| {
            let last = UpdateOutcome {
                version: "1.1.0".to_owned(),
                outcome: "failed".to_owned(),
                problems: codes.iter().map(|code| (*code).to_owned()).collect(),
                ..UpdateOutcome::default()
            };
            // The first series is that of the end itself.
            let found = all_series(&last).into_iter().skip(1);
            found.collect::<Vec<_>>()
        };
        let series = |code: &str| format!("alknet_update_last_problem{{code=\"{code}\"}} 1");
        assert!(series_of(&[]).is_empty());
        assert_eq!(
            series_of(&["vault-locked", "memory-short", "vault-locked"]),
            [series("memory-short"), series("vault-locked")]
        );
        // Codes of another version, and words of an attacker who had the disk, are one series.
        let strange = [
            "of-another-version",
            "x\"} 7\nalknet_connections",
            "data-full",
        ];
        assert_eq!(series_of(&strange), [series("data-full"), series(OTHER)]);
        let many: Vec<_> = (0..1000).map(|number| format!("code-{number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(series_of(&many), [series(OTHER)]);
        let all = series_of(&PROBLEM_CODES);
        assert_eq!(all.len(), PROBLEM_CODES.len());
    }
}
