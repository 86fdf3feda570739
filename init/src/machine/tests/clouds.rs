//! A machine of a cloud, whose metadata service may have its configuration.

use alknet_provisioning::MetadataService;

use super::*;
use crate::{
    cloud::CloudPurpose,
    control::{LinkFacts, NodeStatus},
    helper_task::{FetchedDocument, HelperOutcome, HelperRefusal},
    settings::tests::of_cloud,
};

const SERVICE: MetadataService = MetadataService::Hetzner;
const QUESTION: CloudPurpose = CloudPurpose::Document(SERVICE);

/// A machine without a configuration at the end of an attempt that waits for `waiting`, and the
/// folder of answers.
fn booted(waiting: Option<VaultWait>) -> (InitMachine, tempfile::TempDir) {
    let mut machine = machine();
    // The test must not change the settings of the host.
    machine.life = 1;
    let answers = tempfile::tempdir().expect("a temporary directory");
    machine.cloud.answers.metadata = answers.path().to_owned();
    machine.settings = of_cloud(None);
    let mut opened = needs_more(UnlockCredentials::default());
    opened.prepared.waiting = waiting;
    opened.settings = of_cloud(Some(SERVICE));
    machine.opened(opened, 0);
    (machine, answers)
}

/// Whether the node may start.
fn starts(machine: &mut InitMachine, now: u64) -> bool {
    machine.supervisor.order(now, 0) == Some(SupervisorAction::Spawn)
}

fn answer_file(answers: &tempfile::TempDir) -> Vec<u8> {
    std::fs::read(answers.path().join("hetzner")).expect("the service counts as asked")
}

fn fetched(document: Option<&[u8]>) -> HelperOutcome {
    let document = document.map(|bytes| FetchedDocument::new(Zeroizing::new(bytes.to_vec())));
    HelperOutcome::Fetched { document }
}

#[tokio::test]
async fn the_node_waits_until_the_document_of_its_cloud_was_read() {
    let (mut machine, answers) = booted(None);
    assert!(!starts(&mut machine, 0));
    let asks = "asking the metadata service of Hetzner for a configuration";
    assert_eq!(said(&machine, asks), 1);
    machine.on_helper_exit(QUESTION, Ok(fetched(Some(b"version = 1\n"))), 700);
    assert_eq!(said(&machine, "gave a document of 12 bytes"), 1);
    assert_eq!(answer_file(&answers), b"version = 1\n");
    assert_eq!(machine.timers.reread, Some(700), "it is read at once");
    assert!(!starts(&mut machine, 700));
    machine.reread_is_done(0, settings(None), 800);
    assert!(starts(&mut machine, 800));
    assert_eq!(machine.cloud_due(), None);
}

#[tokio::test]
async fn without_a_document_the_node_starts_and_says_why() {
    let denied = HelperOutcome::refused(HelperRefusal::Denied, "its user data are a script");
    for (outcome, codes) in [
        (Ok(fetched(None)), &[][..]),
        (Ok(denied), &["metadata-refused"]),
        (Err("it died".to_owned()), &["metadata-unanswered"]),
    ] {
        let (mut machine, answers) = booted(None);
        machine.on_helper_exit(QUESTION, outcome, 500);
        assert_eq!(answer_file(&answers), b"");
        assert!(starts(&mut machine, 500));
        let found = machine.facts.problems.cloud.iter();
        let found: Vec<_> = found.map(|problem| problem.code.as_str()).collect();
        assert_eq!(found, codes);
    }
}

#[tokio::test]
async fn a_service_that_is_not_reached_delays_the_node_by_three_seconds() {
    let (mut machine, answers) = booted(None);
    machine.attend_cloud(2_999);
    assert!(!starts(&mut machine, 2_999));
    machine.attend_cloud(3_000);
    assert!(starts(&mut machine, 3_000));
    assert_eq!(answer_file(&answers), b"");
    assert_eq!(machine.facts.problems.cloud[0].code, "metadata-unanswered");
    // A late document is read all the same.
    machine.on_helper_exit(QUESTION, Ok(fetched(Some(b"version = 1\n"))), 4_000);
    assert_eq!(machine.timers.reread, Some(4_000));
    assert!(machine.facts.problems.cloud.is_empty());
}

#[tokio::test]
async fn a_vault_is_made_once_the_service_was_asked() {
    for document in [Some(&b"version = 1\n"[..]), None] {
        let (mut machine, _answers) = booted(Some(VaultWait::for_cloud(SERVICE)));
        assert_eq!(machine.timers.open, None, "the answer makes the attempt");
        machine.on_helper_exit(QUESTION, Ok(fetched(document)), 600);
        assert_eq!(machine.timers.open, Some(600));
        assert!(!starts(&mut machine, 600));
        // The attempt found no configuration, or one.
        let mut opened = needs_more(UnlockCredentials::default());
        opened.prepared.waiting = None;
        opened.settings = match document {
            Some(_) => settings(None),
            None => of_cloud(None),
        };
        machine.opened(opened, 900);
        assert!(starts(&mut machine, 900));
    }
}

#[tokio::test]
async fn a_closed_or_configured_machine_asks_nothing() {
    // Its disk may have a configuration, which cannot be read yet.
    let waiting = needs_more(UnlockCredentials::default()).prepared.waiting;
    let (machine, answers) = booted(waiting);
    assert_eq!(machine.cloud_due(), None);
    assert!(!answers.path().join("hetzner").exists());

    let mut machine = self::machine();
    machine.life = 1;
    let mut opened = needs_more(UnlockCredentials::default());
    opened.prepared.waiting = None;
    machine.opened(opened, 0);
    assert!(starts(&mut machine, 0));
    assert_eq!(machine.cloud_due(), None);
}

/// An administrator may be quicker than the service.
#[tokio::test]
async fn a_pasted_configuration_ends_the_question() {
    let (mut machine, answers) = booted(None);
    let document = ConsoleDocument::line(b"[node]\nname = \"pasted\"\n");
    let document = ConsoleDocument::parse(&document).expect("whole");
    let mut pasted = settings(None);
    pasted.source = ConfigOrigin::Console.to_string();
    machine.pasted(pasted, document, 100);
    assert!(starts(&mut machine, 100));
    machine.on_helper_exit(QUESTION, Ok(fetched(Some(b"version = 1\n"))), 200);
    assert!(!answers.path().join("hetzner").exists(), "too late");
    assert_eq!(machine.cloud_due(), None);
}

#[tokio::test]
async fn azure_gets_its_report_once_after_the_node_serves() {
    let mut machine = machine();
    machine.cloud.wants_report = true;
    let link = LinkFacts {
        name: "eth0".to_owned(),
        up: true,
        addresses: vec!["2001:db8::1/64".to_owned(), "10.0.0.4/24".to_owned()],
        ..LinkFacts::default()
    };
    machine.facts.links = vec![link];
    assert_eq!(machine.cloud_due(), None, "it serves nothing yet");
    let ready = || InitMessage::Ready {
        status: NodeStatus::default(),
    };
    machine.handle_message(ready(), 50);
    assert_eq!(machine.cloud_due(), Some(50));
    machine.cloud.helper_is_running = true;
    assert_eq!(machine.cloud_due(), None, "another helper runs");
    machine.on_helper_exit(CloudPurpose::Report, Ok(HelperOutcome::Reported), 60);
    assert_eq!(said(&machine, "Azure has the report"), 1);
    // A restarted node is not news.
    machine.handle_message(ready(), 70);
    assert_eq!(machine.cloud_due(), None);
}
