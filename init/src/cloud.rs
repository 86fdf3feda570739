//! What PID 1 wants of the cloud on which the machine runs: the node's document from the metadata
//! service, and on Azure the report that the machine is ready. It has no process and no clock:
//! helper tasks go out, outcomes come in.
//!
//! ```text
//! InFlight ──a document──▶ Reading ──it was read──▶ nothing
//!   │ └──no document, or none of ours──▶ nothing
//!   └──no answer──▶ Waiting ──after a pause──▶ InFlight
//! ```
//!
//! The node's start waits for the first query, and not for a later one.

use alknet_provisioning::MetadataService;

use crate::control::MachineDiagnostic;
use crate::helper_task::{FetchedDocument, HelperOutcome, HelperRefusal, HelperTask};

/// How long a query may take, ms: the wait for an address, and for the service. The node's start
/// waits for it.
const QUERY_MS_MAX: u64 = 3_000;
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
    /// The time of the query is over.
    GiveUp(MetadataService, MachineDiagnostic),
    /// A helper is to do this.
    Send(CloudPurpose, HelperTask),
}

/// The result of a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MetadataResult {
    /// The document, which is to be stored and read.
    Document(FetchedDocument),
    /// The service has none.
    Nothing,
    /// It answered nothing useful.
    Problem(MachineDiagnostic),
}

/// Decides what is asked of the cloud and when. One for each machine, from its start to its end.
#[derive(Debug, Default)]
pub(crate) struct CloudClient {
    query: Option<MetadataQuery>,
    report: Option<CloudReport>,
    unanswered: Option<MachineDiagnostic>,
    unreported: Option<MachineDiagnostic>,
}

#[derive(Debug)]
struct MetadataQuery {
    service: MetadataService,
    state: QueryState,
    /// Whether the node's start waits for the answer.
    blocks_start: bool,
    /// The pause after the next query without an answer, ms.
    pause: u64,
}

#[derive(Debug)]
enum QueryState {
    /// The query ends at `until`, in ms after the kernel's start. A helper has it once it is
    /// `sent`.
    InFlight { until: u64, sent: bool },
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

impl CloudClient {
    /// Begins to ask. Returns whether it was not under way yet.
    pub(crate) fn ask(&mut self, service: MetadataService, now: u64) -> bool {
        if self.query.is_some() {
            return false;
        }
        self.query = Some(MetadataQuery {
            service,
            state: QueryState::InFlight {
                until: now + QUERY_MS_MAX,
                sent: false,
            },
            blocks_start: true,
            pause: AGAIN_MS_MIN,
        });
        true
    }

    /// Whether the node's start waits for the answer.
    pub(crate) fn blocks_start(&self) -> bool {
        self.query.as_ref().is_some_and(|it| it.blocks_start)
    }

    /// The sources were read, and the machine has a configuration or still has none.
    pub(crate) fn finish(&mut self, has_configuration: bool) {
        let is_over =
            |it: &mut MetadataQuery| has_configuration || matches!(it.state, QueryState::Reading);
        self.query.take_if(is_over);
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
        let query = self.query.as_ref().and_then(|it| match it.state {
            QueryState::InFlight { until, .. } => Some(until),
            QueryState::Reading => None,
            QueryState::Waiting { at } => Some(at),
        });
        // A report waits for the network without a deadline.
        let report = self.report.as_ref().filter(|_| can_send);
        let report = report.and_then(|report| report.at);
        query.into_iter().chain(report).min()
    }

    /// What is due. `interface` is a card with an address, over which a helper may be sent now.
    pub(crate) fn next(&mut self, now: u64, interface: Option<&str>) -> Option<CloudStep> {
        if let Some(query) = &mut self.query {
            query.wake(now);
            if let Some(step) = query.next(now, interface) {
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
    ) -> Option<MetadataResult> {
        let query = self.query.as_mut()?;
        let (refusal, why) = match outcome {
            Ok(HelperOutcome::Fetched { document }) => {
                self.unanswered = None;
                return Some(match document {
                    Some(document) => {
                        query.state = QueryState::Reading;
                        MetadataResult::Document(document)
                    }
                    None => {
                        self.query = None;
                        MetadataResult::Nothing
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
            let service = query.service;
            self.query = None;
            MachineDiagnostic {
                code: "metadata-refused".to_owned(),
                text: format!("the metadata service of {service}: {why}"),
                hint: "write the node's document as user data, and restart the machine \
                       (docs/provisioning.md)"
                    .to_owned(),
            }
        } else {
            query.put_off(now);
            unanswered(query.service, &why)
        };
        self.unanswered = Some(problem.clone());
        Some(MetadataResult::Problem(problem))
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

impl MetadataQuery {
    /// Asks again once the pause is over.
    fn wake(&mut self, now: u64) {
        if matches!(self.state, QueryState::Waiting { at } if now >= at) {
            self.state = QueryState::InFlight {
                until: now + QUERY_MS_MAX,
                sent: false,
            };
        }
    }

    fn next(&mut self, now: u64, interface: Option<&str>) -> Option<CloudStep> {
        let QueryState::InFlight { until, sent } = &mut self.state else {
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
        self.blocks_start = false;
        // A query that was given up may still get its answer.
        if matches!(self.state, QueryState::Waiting { .. }) {
            return;
        }
        self.state = QueryState::Waiting {
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

    fn in_flight() -> CloudClient {
        let mut client = CloudClient::default();
        assert!(client.ask(SERVICE, 1_000));
        assert!(!client.ask(SERVICE, 1_500), "it is under way");
        client
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

    fn codes(client: &CloudClient) -> Vec<String> {
        let problems = client.problems().into_iter();
        problems.map(|problem| problem.code).collect()
    }

    #[test]
    fn a_machine_of_no_cloud_has_nothing_to_do() {
        let mut client = CloudClient::default();
        assert!(client.next(0, Some("eth0")).is_none());
        assert_eq!(client.deadline(true), None);
        assert!(!client.blocks_start());
    }

    #[test]
    fn a_document_is_asked_for_once_there_is_an_address_and_holds_the_node_until_it_is_read() {
        let mut client = in_flight();
        assert!(client.next(1_400, None).is_none());
        assert_eq!(client.deadline(false), Some(4_000));
        assert_eq!(sent(client.next(1_500, Some("eth0"))), 2_500);
        assert!(client.next(1_600, Some("eth0")).is_none(), "one at a time");
        let answer = client.answered(Ok(document()), 1_700);
        assert!(matches!(answer, Some(MetadataResult::Document(_))));
        assert!(client.blocks_start() && client.deadline(true).is_none());
        client.finish(true);
        assert!(!client.blocks_start());
        assert_eq!(codes(&client), Vec::<String>::new());
        // An answer that comes later is not wanted.
        assert_eq!(client.answered(Ok(document()), 9_000), None);
    }

    #[test]
    fn a_silent_service_holds_the_node_for_three_seconds_and_is_asked_again_with_growing_pauses() {
        let mut client = in_flight();
        sent(client.next(1_000, Some("eth0")));
        assert!(client.next(3_999, Some("eth0")).is_none());
        assert!(client.blocks_start());
        let mut now = 4_000;
        for pause in [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000] {
            let step = client.next(now, Some("eth0"));
            assert!(matches!(step, Some(CloudStep::GiveUp(SERVICE, _))));
            assert!(!client.blocks_start());
            assert_eq!(codes(&client), ["metadata-unanswered"]);
            assert_eq!(client.deadline(true), Some(now + pause));
            now += pause;
            assert_eq!(sent(client.next(now, Some("eth0"))), 3_000);
            assert!(!client.blocks_start(), "the node serves already");
            now += 3_000;
        }
        // A document that comes at last is taken.
        let answer = client.answered(Ok(document()), now);
        assert!(matches!(answer, Some(MetadataResult::Document(_))));
        assert_eq!(codes(&client), Vec::<String>::new());
    }

    #[test]
    fn a_machine_without_an_address_says_so() {
        let mut client = in_flight();
        match client.next(4_000, None) {
            Some(CloudStep::GiveUp(_, problem)) => {
                assert!(problem.text.contains("IPv4 address"), "{}", problem.text);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_that_is_no_document_ends_the_query() {
        let mut client = in_flight();
        let none = HelperOutcome::Fetched { document: None };
        assert_eq!(
            client.answered(Ok(none), 1_100),
            Some(MetadataResult::Nothing)
        );
        assert!(!client.blocks_start() && client.deadline(true).is_none());

        let mut client = in_flight();
        let denied = HelperOutcome::refused(HelperRefusal::Denied, "its user data are a script");
        match client.answered(Ok(denied), 1_100) {
            Some(MetadataResult::Problem(problem)) => {
                assert_eq!(problem.code, "metadata-refused");
                let text = "the metadata service of Hetzner: its user data are a script";
                assert_eq!(problem.text, text);
            }
            other => panic!("{other:?}"),
        }
        assert!(!client.blocks_start() && client.deadline(true).is_none());
        // The owner sees it, also after another way gave a configuration.
        client.finish(true);
        assert_eq!(codes(&client), ["metadata-refused"]);
    }

    #[test]
    fn a_child_that_fails_or_lies_counts_as_no_answer() {
        let unreachable = HelperOutcome::refused(HelperRefusal::Unreachable, "no route");
        for outcome in [
            Ok(unreachable),
            Ok(HelperOutcome::Reported),
            Err("it died".to_owned()),
        ] {
            let mut client = in_flight();
            let answer = client.answered(outcome, 1_100);
            assert!(matches!(answer, Some(MetadataResult::Problem(_))));
            assert_eq!(codes(&client), ["metadata-unanswered"]);
            assert!(!client.blocks_start());
            assert_eq!(client.deadline(true), Some(11_100));
        }
    }

    #[test]
    fn a_configuration_from_elsewhere_ends_the_query() {
        let mut client = in_flight();
        client.finish(false);
        assert!(client.blocks_start(), "it has none yet");
        client.finish(true);
        assert!(!client.blocks_start() && client.next(2_000, Some("eth0")).is_none());
    }

    #[test]
    fn azure_gets_the_report_until_it_takes_it_or_the_tries_are_over() {
        let mut client = CloudClient::default();
        client.report_ready(5_000);
        assert!(client.next(5_000, None).is_none(), "no network");
        assert_eq!(
            (client.deadline(false), client.deadline(true)),
            (None, Some(5_000))
        );
        let refused = || {
            Ok(HelperOutcome::refused(
                HelperRefusal::Unreachable,
                "status 503",
            ))
        };
        let sends = |client: &mut CloudClient, now| {
            let step = client.next(now, Some("eth0"));
            matches!(step, Some(CloudStep::Send(CloudPurpose::Report, _)))
        };
        assert!(sends(&mut client, 5_000));
        assert!(!sends(&mut client, 5_000), "a helper has it");
        assert!(client.reported(refused(), 6_000).is_some());
        assert_eq!(codes(&client), ["ready-not-reported"]);
        assert!(!sends(&mut client, 20_999));
        assert!(sends(&mut client, 21_000));
        assert_eq!(client.reported(refused(), 22_000), None, "said already");
        assert!(sends(&mut client, 40_000));
        assert!(
            client
                .reported(Ok(HelperOutcome::Reported), 41_000)
                .is_some()
        );
        assert_eq!(codes(&client), Vec::<String>::new());
        assert_eq!(client.deadline(true), None);

        client.report_ready(0);
        let mut now = 0;
        while sends(&mut client, now) {
            client.reported(refused(), now);
            now += REPORT_PAUSE_MS;
        }
        assert_eq!(now, u64::from(REPORTS_MAX) * REPORT_PAUSE_MS);
        assert_eq!(codes(&client), ["ready-not-reported"]);
    }
}
