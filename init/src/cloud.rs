//! What PID 1 wants of the cloud on which the machine runs: the node's document from the metadata
//! service, and on Azure the report that the machine is ready. It has no process and no clock:
//! helper tasks go out, outcomes come in.
//!
//! ```text
//! Asking ──a document──▶ Reading ──it was read──▶ nothing
//!   │ └──no document, or none of ours──▶ nothing
//!   └──no answer──▶ Waiting ──after a pause──▶ Asking
//! ```
//!
//! The node's start waits for the first question, and not for a later one.

use alknet_provisioning::MetadataService;

use crate::control::MachineDiagnostic;
use crate::helper_task::{FetchedDocument, HelperOutcome, HelperRefusal, HelperTask};

/// How long a question may take, ms: the wait for an address, and for the service. The node's start
/// waits for it.
const QUESTION_MS_MAX: u64 = 3_000;
/// The pause before a service that did not answer is asked again, ms. It doubles each time.
const AGAIN_MS_MIN: u64 = 10_000;
/// The longest of these pauses, ms.
const AGAIN_MS_MAX: u64 = 300_000;
/// How long a report to Azure may take, ms.
const REPORT_MS_MAX: u64 = 5_000;
/// The pause before a report that failed is sent again, ms.
const REPORT_PAUSE_MS: u64 = 15_000;
/// How often a report is sent at most, which takes ten minutes. Azure gives up a machine later.
const REPORTS_MAX: u32 = 30;

/// The purpose of a helper task at the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloudPurpose {
    /// The node's document.
    Document(MetadataService),
    /// The report that the machine is ready.
    Report,
}

/// What is due.
#[derive(Debug)]
pub(crate) enum CloudStep {
    /// The question's time is over.
    GiveUp(MetadataService, MachineDiagnostic),
    /// A helper is to do this.
    Send(CloudPurpose, HelperTask),
}

/// The result of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CloudAnswer {
    /// The document, which is to be stored and read.
    Document(FetchedDocument),
    /// The service has none.
    Nothing,
    /// It answered nothing useful.
    Problem(MachineDiagnostic),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct CloudDialog {
    question: Option<CloudQuestion>,
    report: Option<CloudReport>,
    unanswered: Option<MachineDiagnostic>,
    unreported: Option<MachineDiagnostic>,
}

#[derive(Debug)]
struct CloudQuestion {
    service: MetadataService,
    stage: QuestionStage,
    /// Whether the node's start waits for the answer.
    holds: bool,
    /// The pause after the next question without an answer, ms.
    pause: u64,
}

#[derive(Debug)]
enum QuestionStage {
    /// The question ends at `until`, in ms after the kernel's start. A helper has it once it is
    /// `sent`.
    Asking { until: u64, sent: bool },
    /// The document is stored, and the sources are being read.
    Reading,
    /// It is asked again at `at`.
    Waiting { at: u64 },
}

#[derive(Debug)]
struct CloudReport {
    /// When it is sent next. `None` while a helper has it.
    at: Option<u64>,
    sent: u32,
}

impl CloudDialog {
    /// Begins to ask. Returns whether it was not under way yet.
    pub(crate) fn ask(&mut self, service: MetadataService, now: u64) -> bool {
        if self.question.is_some() {
            return false;
        }
        self.question = Some(CloudQuestion {
            service,
            stage: QuestionStage::Asking {
                until: now + QUESTION_MS_MAX,
                sent: false,
            },
            holds: true,
            pause: AGAIN_MS_MIN,
        });
        true
    }

    /// Whether the node's start waits for the answer.
    pub(crate) fn holds(&self) -> bool {
        self.question.as_ref().is_some_and(|it| it.holds)
    }

    /// The sources were read, and the machine has a configuration or still has none.
    pub(crate) fn settle(&mut self, has_configuration: bool) {
        let is_over = |it: &mut CloudQuestion| {
            has_configuration || matches!(it.stage, QuestionStage::Reading)
        };
        self.question.take_if(is_over);
        if has_configuration {
            self.unanswered
                .take_if(|problem| problem.code == "metadata-unanswered");
        }
    }

    /// The machine serves, so Azure may know.
    pub(crate) fn report_ready(&mut self, now: u64) {
        self.report = Some(CloudReport {
            at: Some(now),
            sent: 0,
        });
    }

    /// The problems that are left.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let problems = [&self.unanswered, &self.unreported];
        problems.into_iter().flatten().cloned().collect()
    }

    /// When something is due, in ms after the kernel's start. `can_send` is whether there is a card
    /// with an address and no helper runs.
    pub(crate) fn deadline(&self, can_send: bool) -> Option<u64> {
        let question = self.question.as_ref().and_then(|it| match it.stage {
            QuestionStage::Asking { until, .. } => Some(until),
            QuestionStage::Reading => None,
            QuestionStage::Waiting { at } => Some(at),
        });
        // A report waits for the network without a deadline.
        let report = self.report.as_ref().filter(|_| can_send);
        let report = report.and_then(|report| report.at);
        question.into_iter().chain(report).min()
    }

    /// What is due. `interface` is a card with an address, over which a helper may be sent now.
    pub(crate) fn next(&mut self, now: u64, interface: Option<&str>) -> Option<CloudStep> {
        if let Some(question) = &mut self.question {
            question.wake(now);
            if let Some(step) = question.next(now, interface) {
                if let CloudStep::GiveUp(_, problem) = &step {
                    self.unanswered = Some(problem.clone());
                }
                return Some(step);
            }
        }
        let report = self.report.as_mut()?;
        report.at.filter(|at| now >= *at)?;
        let interface = interface?.to_owned();
        report.at = None;
        let task = HelperTask::ReportReady {
            interface,
            ms: REPORT_MS_MAX,
        };
        Some(CloudStep::Send(CloudPurpose::Report, task))
    }

    /// A helper that asked came back. `None` if the answer is not wanted any more.
    pub(crate) fn answered(
        &mut self,
        outcome: Result<HelperOutcome, String>,
        now: u64,
    ) -> Option<CloudAnswer> {
        let question = self.question.as_mut()?;
        let (refusal, why) = match outcome {
            Ok(HelperOutcome::Fetched { document }) => {
                self.unanswered = None;
                return Some(match document {
                    Some(document) => {
                        question.stage = QuestionStage::Reading;
                        CloudAnswer::Document(document)
                    }
                    None => {
                        self.question = None;
                        CloudAnswer::Nothing
                    }
                });
            }
            Ok(HelperOutcome::Refused { refusal, text }) => (refusal, text),
            Ok(_) => {
                let text = "the child brought what it was not asked for".to_owned();
                (HelperRefusal::Unreachable, text)
            }
            Err(why) => (HelperRefusal::Unreachable, why),
        };
        let problem = if refusal == HelperRefusal::Denied {
            let service = question.service;
            self.question = None;
            MachineDiagnostic {
                code: "metadata-refused".to_owned(),
                text: format!("the metadata service of {service}: {why}"),
                hint: "write the node's document as user data, and restart the machine \
                       (docs/provisioning.md)"
                    .to_owned(),
            }
        } else {
            question.put_off(now);
            unanswered(question.service, &why)
        };
        self.unanswered = Some(problem.clone());
        Some(CloudAnswer::Problem(problem))
    }

    /// A helper that reported came back. Returns the line for the log.
    pub(crate) fn reported(
        &mut self,
        outcome: Result<HelperOutcome, String>,
        now: u64,
    ) -> Option<String> {
        let report = self.report.as_mut()?;
        let why = match outcome {
            Ok(HelperOutcome::Reported) => {
                self.report = None;
                self.unreported = None;
                return Some("Azure has the report that this machine is ready".to_owned());
            }
            Ok(HelperOutcome::Refused { text, .. }) | Err(text) => text,
            Ok(_) => "the child brought what it was not asked for".to_owned(),
        };
        report.sent += 1;
        report.at = Some(now + REPORT_PAUSE_MS);
        let is_last = report.sent >= REPORTS_MAX;
        let hint = if is_last {
            self.report = None;
            "restart the machine, or look for what keeps it from 168.63.129.16"
        } else {
            "it is sent again by itself; without it Azure counts the machine as not provisioned"
        };
        let problem = MachineDiagnostic {
            code: "ready-not-reported".to_owned(),
            text: format!("Azure does not know that this machine is ready: {why}"),
            hint: hint.to_owned(),
        };
        // The log has the same reason once.
        let is_news = self.unreported.as_ref().map(|it| &it.text) != Some(&problem.text);
        let text = problem.text.clone();
        self.unreported = Some(problem);
        is_news.then_some(text)
    }
}

impl CloudQuestion {
    /// Asks again once the pause is over.
    fn wake(&mut self, now: u64) {
        if matches!(self.stage, QuestionStage::Waiting { at } if now >= at) {
            self.stage = QuestionStage::Asking {
                until: now + QUESTION_MS_MAX,
                sent: false,
            };
        }
    }

    fn next(&mut self, now: u64, interface: Option<&str>) -> Option<CloudStep> {
        let QuestionStage::Asking { until, sent } = &mut self.stage else {
            return None;
        };
        if now >= *until {
            let why = match sent {
                true => "it did not answer within 3 seconds",
                false => "no network card got an IPv4 address within 3 seconds",
            };
            let problem = unanswered(self.service, why);
            self.put_off(now);
            return Some(CloudStep::GiveUp(self.service, problem));
        }
        let interface = interface.filter(|_| !*sent)?.to_owned();
        *sent = true;
        let task = HelperTask::Metadata {
            service: self.service.key().to_owned(),
            interface,
            ms: *until - now,
        };
        Some(CloudStep::Send(CloudPurpose::Document(self.service), task))
    }

    /// Asks again after a pause. The node does not wait for that.
    fn put_off(&mut self, now: u64) {
        self.holds = false;
        // A question that was given up may still get its answer.
        if matches!(self.stage, QuestionStage::Waiting { .. }) {
            return;
        }
        self.stage = QuestionStage::Waiting {
            at: now + self.pause,
        };
        self.pause = (self.pause * 2).min(AGAIN_MS_MAX);
    }
}

fn unanswered(service: MetadataService, why: &str) -> MachineDiagnostic {
    MachineDiagnostic {
        code: "metadata-unanswered".to_owned(),
        text: format!("the metadata service of {service}: {why}"),
        hint: "it is asked again by itself; or provision the machine by another way \
               (docs/provisioning.md)"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    const SERVICE: MetadataService = MetadataService::Hetzner;

    fn asking() -> CloudDialog {
        let mut dialog = CloudDialog::default();
        assert!(dialog.ask(SERVICE, 1_000));
        assert!(!dialog.ask(SERVICE, 1_500), "it is under way");
        dialog
    }

    fn document() -> HelperOutcome {
        let document = FetchedDocument::new(Zeroizing::new(b"version = 1\n".to_vec()));
        HelperOutcome::Fetched {
            document: Some(document),
        }
    }

    /// What a step sends, in milliseconds.
    fn sent(step: Option<CloudStep>) -> u64 {
        match step {
            Some(CloudStep::Send(_, HelperTask::Metadata { service, ms, .. })) => {
                assert_eq!(service, "hetzner");
                ms
            }
            other => panic!("{other:?}"),
        }
    }

    fn codes(dialog: &CloudDialog) -> Vec<String> {
        let problems = dialog.problems().into_iter();
        problems.map(|problem| problem.code).collect()
    }

    #[test]
    fn a_machine_of_no_cloud_has_nothing_to_do() {
        let mut dialog = CloudDialog::default();
        assert!(dialog.next(0, Some("eth0")).is_none());
        assert_eq!(dialog.deadline(true), None);
        assert!(!dialog.holds());
    }

    #[test]
    fn a_document_is_asked_for_once_there_is_an_address_and_holds_the_node_until_it_is_read() {
        let mut dialog = asking();
        assert!(dialog.next(1_400, None).is_none());
        assert_eq!(dialog.deadline(false), Some(4_000));
        assert_eq!(sent(dialog.next(1_500, Some("eth0"))), 2_500);
        assert!(dialog.next(1_600, Some("eth0")).is_none(), "one at a time");
        let answer = dialog.answered(Ok(document()), 1_700);
        assert!(matches!(answer, Some(CloudAnswer::Document(_))));
        assert!(dialog.holds() && dialog.deadline(true).is_none());
        dialog.settle(true);
        assert!(!dialog.holds());
        assert_eq!(codes(&dialog), Vec::<String>::new());
        // An answer that comes later is not wanted.
        assert_eq!(dialog.answered(Ok(document()), 9_000), None);
    }

    #[test]
    fn a_silent_service_holds_the_node_for_three_seconds_and_is_asked_again_with_growing_pauses() {
        let mut dialog = asking();
        sent(dialog.next(1_000, Some("eth0")));
        assert!(dialog.next(3_999, Some("eth0")).is_none());
        assert!(dialog.holds());
        let mut now = 4_000;
        for pause in [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000] {
            let step = dialog.next(now, Some("eth0"));
            assert!(matches!(step, Some(CloudStep::GiveUp(SERVICE, _))));
            assert!(!dialog.holds());
            assert_eq!(codes(&dialog), ["metadata-unanswered"]);
            assert_eq!(dialog.deadline(true), Some(now + pause));
            now += pause;
            assert_eq!(sent(dialog.next(now, Some("eth0"))), 3_000);
            assert!(!dialog.holds(), "the node serves already");
            now += 3_000;
        }
        // A document that comes at last is taken.
        let answer = dialog.answered(Ok(document()), now);
        assert!(matches!(answer, Some(CloudAnswer::Document(_))));
        assert_eq!(codes(&dialog), Vec::<String>::new());
    }

    #[test]
    fn a_machine_without_an_address_says_so() {
        let mut dialog = asking();
        match dialog.next(4_000, None) {
            Some(CloudStep::GiveUp(_, problem)) => {
                assert!(problem.text.contains("IPv4 address"), "{}", problem.text);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_that_is_no_document_ends_the_question() {
        let mut dialog = asking();
        let none = HelperOutcome::Fetched { document: None };
        assert_eq!(dialog.answered(Ok(none), 1_100), Some(CloudAnswer::Nothing));
        assert!(!dialog.holds() && dialog.deadline(true).is_none());

        let mut dialog = asking();
        let denied = HelperOutcome::refused(HelperRefusal::Denied, "its user data are a script");
        match dialog.answered(Ok(denied), 1_100) {
            Some(CloudAnswer::Problem(problem)) => {
                assert_eq!(problem.code, "metadata-refused");
                let text = "the metadata service of Hetzner: its user data are a script";
                assert_eq!(problem.text, text);
            }
            other => panic!("{other:?}"),
        }
        assert!(!dialog.holds() && dialog.deadline(true).is_none());
        // The owner sees it, also after another way gave a configuration.
        dialog.settle(true);
        assert_eq!(codes(&dialog), ["metadata-refused"]);
    }

    #[test]
    fn a_child_that_fails_or_lies_counts_as_no_answer() {
        let unreachable = HelperOutcome::refused(HelperRefusal::Unreachable, "no route");
        for outcome in [
            Ok(unreachable),
            Ok(HelperOutcome::Reported),
            Err("it died".to_owned()),
        ] {
            let mut dialog = asking();
            let answer = dialog.answered(outcome, 1_100);
            assert!(matches!(answer, Some(CloudAnswer::Problem(_))));
            assert_eq!(codes(&dialog), ["metadata-unanswered"]);
            assert!(!dialog.holds());
            assert_eq!(dialog.deadline(true), Some(11_100));
        }
    }

    #[test]
    fn a_configuration_from_elsewhere_ends_the_question() {
        let mut dialog = asking();
        dialog.settle(false);
        assert!(dialog.holds(), "it has none yet");
        dialog.settle(true);
        assert!(!dialog.holds() && dialog.next(2_000, Some("eth0")).is_none());
    }

    #[test]
    fn azure_gets_the_report_until_it_takes_it_or_the_tries_are_over() {
        let mut dialog = CloudDialog::default();
        dialog.report_ready(5_000);
        assert!(dialog.next(5_000, None).is_none(), "no network");
        assert_eq!(
            (dialog.deadline(false), dialog.deadline(true)),
            (None, Some(5_000))
        );
        let refused = || {
            Ok(HelperOutcome::refused(
                HelperRefusal::Unreachable,
                "status 503",
            ))
        };
        let sends = |dialog: &mut CloudDialog, now| {
            let step = dialog.next(now, Some("eth0"));
            matches!(step, Some(CloudStep::Send(CloudPurpose::Report, _)))
        };
        assert!(sends(&mut dialog, 5_000));
        assert!(!sends(&mut dialog, 5_000), "a helper has it");
        assert!(dialog.reported(refused(), 6_000).is_some());
        assert_eq!(codes(&dialog), ["ready-not-reported"]);
        assert!(!sends(&mut dialog, 20_999));
        assert!(sends(&mut dialog, 21_000));
        assert_eq!(dialog.reported(refused(), 22_000), None, "said already");
        assert!(sends(&mut dialog, 40_000));
        assert!(
            dialog
                .reported(Ok(HelperOutcome::Reported), 41_000)
                .is_some()
        );
        assert_eq!(codes(&dialog), Vec::<String>::new());
        assert_eq!(dialog.deadline(true), None);

        dialog.report_ready(0);
        let mut now = 0;
        while sends(&mut dialog, now) {
            dialog.reported(refused(), now);
            now += REPORT_PAUSE_MS;
        }
        assert_eq!(now, u64::from(REPORTS_MAX) * REPORT_PAUSE_MS);
        assert_eq!(codes(&dialog), ["ready-not-reported"]);
    }
}
