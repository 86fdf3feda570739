use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;

use alknet_boot_state::BootSlot;
use alknet_core::config::UpdateChannel;
use alknet_vault::Entropy;
use alknet_vault::slots::{Kek, NewSlot, NewVault, OpenAlkv, Tpm2Params};

use super::*;
use crate::control::{
    BootStage, MachineDiagnostic, NodeMessage, SelfCallResult, TrialCause, UPDATE_FRAME_ABORT,
    UpdateOutcome, UpdateRequest,
};
use crate::data;
use crate::machine::tests::machine;
use crate::shutdown::{Shutdown, ShutdownStep};
use crate::update::{BundleFrameReader, GateVault, SlotStatus};
use crate::vault::{UnlockPrompt, VaultWait};

fn trial(machine: &mut InitMachine, vault: &str) {
    let mut note = BootNote::new(BootSlot::B);
    note.vault = NoteText::new(vault);
    note.data = NoteText::new("mounted");
    machine.update.gate = Some(UpdateGate::new(GateBaseline::from_note(Some(&note)), 0));
    machine.update.note = Some(note);
}

#[test]
fn a_vault_that_waits_for_what_opened_it_before_is_no_failure_and_any_other_one_is() {
    use UnlockPrompt::{Nothing, Passphrase, Pin};
    let mut machine = machine();
    assert_eq!(machine.gate_view(0).vault, GateVault::Open);
    for (before, ask, vault) in [
        (PIN, Pin, GateVault::AsksAsBefore),
        // The TPM does not take the PIN, because this is another program.
        (PIN, Passphrase, GateVault::Closed),
        (PASSPHRASE, Passphrase, GateVault::AsksAsBefore),
        ("tpm2", Passphrase, GateVault::Closed),
        ("tpm2", Pin, GateVault::Closed),
        ("tpm2", Nothing, GateVault::Closed),
        ("none", Passphrase, GateVault::Closed),
    ] {
        trial(&mut machine, before);
        machine.waiting = Some(VaultWait::new(ask, "vault-locked", "closed", "open it"));
        assert_eq!(machine.gate_view(0).vault, vault, "{before} {ask:?}");
    }
    machine.waiting = None;
    machine.vault.lock();
    assert_eq!(machine.gate_view(0).vault, GateVault::Closed);
}

/// What the node says of its calls to itself is what the gate sees, for as long as that node runs.
#[test]
fn the_gate_sees_whether_the_node_answered_its_own_calls() {
    let failed = SelfCallResult::Failed {
        reason: "no handler".to_owned(),
    };
    let mut machine = machine();
    trial(&mut machine, "none");
    let answers = |machine: &InitMachine| machine.gate_view(0).answers_itself;
    assert!(!answers(&machine));
    for (result, expected) in [(SelfCallResult::Answered, true), (failed, false)] {
        machine.called_itself(&result, 0);
        assert_eq!(answers(&machine), expected, "{result:?}");
    }
    machine.called_itself(&SelfCallResult::Answered, 0);
    machine.update.node_ended();
    assert!(!answers(&machine), "the next node has answered nothing");
}

#[test]
fn a_configuration_that_only_the_version_before_took_keeps_the_gate_closed() {
    let mut machine = machine();
    assert!(machine.gate_view(0).config_taken);
    machine.settings = settings::tests::of_cloud(None);
    assert!(!machine.gate_view(0).config_taken);
}

/// A blank disk may be another one than that with the data, which the version on trial does not find.
#[tokio::test]
async fn a_version_on_trial_takes_a_blank_disk_only_after_a_reset() {
    let mut machine = machine();
    assert!(machine.update.takes_blank_disk());
    trial(&mut machine, "none");
    assert!(!machine.update.takes_blank_disk());
    // A real shutdown would restart this host.
    machine.shutdown = Some(Shutdown::new(PowerAction::Poweroff, 0));
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    machine.vault_at = Some(disk.path().to_owned());
    machine.factory_reset(0);
    assert!(machine.update.takes_blank_disk());
    let note = machine.update.note.expect("a trial");
    assert_eq!((note.vault.as_str(), note.config.as_str()), ("absent", ""));
}

/// The record of the slot that a loader started would say whether it is on trial, and its disk is not known.
#[test]
fn a_version_that_may_be_on_trial_migrates_nothing_and_takes_no_blank_disk() {
    let start = |slot, report: Option<StartKind>| UpdateStart {
        system: UpdateSystem::without_disk(slot, &InitLog::default()),
        report: report.map(|kind| StartReport { kind, ended: None }),
        note: None,
    };
    let slot = Some(BootSlot::B);
    for (slot, report, may_return) in [
        (None, None, false),
        (slot, None, true),
        (slot, Some(StartKind::Unread), true),
        (slot, Some(StartKind::Good), false),
        (slot, Some(StartKind::Trial), true),
    ] {
        let mut update = MachineUpdate::new(start(slot, report));
        assert_eq!(update.may_return(), may_return, "{slot:?} {report:?}");
        assert_eq!(update.takes_blank_disk(), !may_return);
        // The opened data tell which disk it is.
        update.adopt(start(slot, Some(StartKind::Good)));
        assert!(!update.may_return() && update.takes_blank_disk());
        update.adopt(start(slot, Some(StartKind::Trial)));
        assert!(update.is_trial() && update.may_return());
    }
}

#[test]
fn the_note_says_how_far_a_trial_came_and_what_was_wrong() {
    let mut machine = machine();
    machine.facts.stages = vec![BootStage {
        name: "node-start".to_owned(),
        at_ms: 7,
    }];
    machine.facts.last_words = Some("signal 6\nand more".to_owned());
    machine.facts.problems.config = vec![MachineDiagnostic {
        code: "config-refused".to_owned(),
        ..MachineDiagnostic::default()
    }];
    trial(&mut machine, "none");
    let note = machine.noted(machine.update.note.expect("a trial"));
    assert_eq!(note.stage.as_str(), "node-start");
    assert_eq!(note.node_end.as_str(), "signal 6");
    assert_eq!(note.problems().collect::<Vec<_>>(), ["config-refused"]);
    machine.update.note = Some(note);
    // A problem that ended stays in the note.
    machine.facts.problems.config.clear();
    let later = machine.noted(note);
    assert_eq!(later, note);
    machine.update.goes_down("a person");
    let note = machine.update.note.expect("a trial");
    assert!(note.reason.as_str().ends_with("by a person"));
    machine.update.goes_down("a signal");
    assert_eq!(machine.update.note, Some(note), "the first reason counts");
    // The machine ends only after the disk has the reason.
    assert_eq!(machine.owed_note(), Some(note));
    let due = machine.update.note_schedule.take_due(&note, 0);
    assert_eq!((due, machine.owed_note()), (Some(note), Some(note)));
    machine.update.note_schedule.written(true);
    assert_eq!(machine.owed_note(), None);
}

#[test]
fn one_request_at_a_time_and_a_refused_bundle_is_no_request() {
    let mut machine = machine();
    assert_eq!(machine.update.busy(), None);
    let staging = |is_answered| StagingBundle {
        ticket: ticket(1, 1),
        announced: 9,
        progress: Arc::default(),
        is_answered,
        dry_run: false,
    };
    machine.update.staging = Some(staging(false));
    let code = |machine: &InitMachine| machine.update.busy().map(|refusal| refusal.code);
    assert_eq!(code(&machine), Some(RefusalCode::Busy));
    machine.update.staging = Some(staging(true));
    assert_eq!(code(&machine), None, "its frames are read to their end");
    machine.update.request = Some(OpenRequest {
        ticket: ticket(1, 1),
        has_vault: false,
    });
    assert_eq!(code(&machine), Some(RefusalCode::Busy));
}

fn ticket(life: u64, n: u64) -> UpdateTicket {
    UpdateTicket {
        life,
        n,
        by: "a test".to_owned(),
    }
}

/// The thread asks between the pieces of a delta, and not the stream, whose next frame may come minutes later.
#[test]
fn a_bundle_ends_by_the_word_of_its_node_or_with_the_node() {
    let mut machine = machine();
    let staging = |life| StagingBundle {
        ticket: ticket(life, 7),
        announced: 9,
        progress: Arc::default(),
        is_answered: false,
        dry_run: false,
    };
    let is_given_up = |machine: &InitMachine| {
        let staging = machine.update.staging.as_ref();
        staging.expect("a bundle").progress.is_given_up()
    };
    let life = machine.life;
    machine.update.staging = Some(staging(life));
    machine.give_up_bundle(8);
    assert!(!is_given_up(&machine), "another request");
    machine.give_up_bundle(7);
    assert!(is_given_up(&machine));
    machine.update.staging = Some(staging(life + 1));
    machine.give_up_bundle(7);
    assert!(!is_given_up(&machine), "a request of another node");
    machine.update.node_ended();
    assert!(is_given_up(&machine), "its control connection closed");
}

/// Without this the version that waited for its start before the bundle would be gone after the restart.
#[test]
fn a_machine_that_goes_down_gives_up_its_bundles_and_waits_for_the_boot_slot() {
    let mut machine = machine();
    let life = machine.life;
    machine.alone = true;
    machine.update.staging = Some(StagingBundle {
        ticket: ticket(life, 1),
        announced: 9,
        progress: Arc::default(),
        is_answered: false,
        dry_run: false,
    });
    machine.update.bundles = [QueuedBundle {
        ticket: ticket(life, 2),
        order: StageOrder::default(),
        is_refused: false,
    }]
    .into();
    // The first half would restart this host at its bound, and to carry out a step would end its processes.
    machine.begin_shutdown(PowerAction::Reboot, "an administrator", 0);
    let staging = machine.update.staging.as_ref().expect("a bundle");
    assert!(staging.progress.is_given_up());
    assert!(machine.update.bundles[0].is_refused, "it is only read");
    let step = machine.shutdown_step(0);
    assert_eq!(step, Some(ShutdownStep::Terminate), "no node is left");
    assert_eq!(machine.shutdown_step(0), None, "a thread restores the slot");
    let given_up = Err(UpdateRefusal::given_up());
    machine.bundle_decided(&ticket(life, 1), given_up);
    let step = machine.shutdown_step(0);
    assert_eq!(step, Some(ShutdownStep::Close), "its frames change nothing");
}

/// A bundle may wait behind one whose frames are still read.
#[test]
fn a_waiting_bundle_is_given_up_and_only_read() {
    let mut machine = machine();
    let life = machine.life;
    let waiting = |n| QueuedBundle {
        ticket: ticket(life, n),
        order: StageOrder {
            bytes: 9,
            ..StageOrder::default()
        },
        is_refused: false,
    };
    machine.update.bundles = [1, 2].map(waiting).into();
    machine.give_up_bundle(2);
    let bundles = machine.update.bundles.iter();
    let refused: Vec<_> = bundles.map(|bundle| bundle.is_refused).collect();
    assert_eq!(refused, [false, true]);
}

/// A hub, or the server of the channel, brings a bundle of the other channel. The node does not say which one the machine
/// follows: PID 1 reads that itself.
#[test]
fn a_bundle_is_judged_by_the_channel_of_the_configuration() {
    let mut machine = machine();
    for (n, channel, expected) in [
        (1, UpdateChannel::Stable, true),
        (2, UpdateChannel::Beta, false),
    ] {
        // Another bundle is read, so this one waits.
        machine.update.staging = Some(StagingBundle {
            ticket: ticket(1, 7),
            announced: 9,
            progress: Arc::default(),
            is_answered: true,
            dry_run: false,
        });
        machine.settings.config.update.channel = channel;
        let request = UpdateRequest::Stage {
            bytes: 9,
            downgrade: None,
            dry_run: false,
            unasked: true,
            other_source: false,
            limited: false,
        };
        machine.update_request(n, request, "a hub".to_owned(), 0);
        let waiting = machine.update.bundles.pop_front().expect("it waits");
        assert_eq!(waiting.order.follows_stable, expected, "{channel:?}");
    }
}

/// A node that an attacker has taken over asks for the log without end.
#[tokio::test]
async fn the_log_is_read_for_one_request_at_a_time() {
    let mut machine = machine();
    let (events, mut answers) = tokio::sync::mpsc::channel(100);
    machine.events = events;
    for n in 0..50 {
        machine.update_request(n, UpdateRequest::Log, "a node".to_owned(), 0);
    }
    for n in [0, 99] {
        let Some(MachineEvent::Update(event)) = answers.recv().await else {
            panic!("another event than an answer");
        };
        let UpdateEvent::Answered { ticket, .. } = *event else {
            panic!("another event than an answer");
        };
        assert_eq!(ticket.n, n, "the others were refused as busy");
        machine.request_ended(&ticket, UpdateAnswer::Done, false, 0);
        machine.update_request(99, UpdateRequest::Log, "a node".to_owned(), 0);
    }
}

/// A caller that keeps PID 1 busy must not keep the end of a planned start out of the log; and a node that an attacker has
/// taken over reports such ends without end.
#[tokio::test]
async fn the_ends_of_planned_starts_are_logged_beside_other_requests_one_at_a_time() {
    let mut machine = machine();
    let (events, mut answers) = tokio::sync::mpsc::channel(100);
    machine.events = events;
    let data = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(data.path().join("update")).expect("a new folder");
    assert!(machine.update.system.set_data(Some(data.path())));
    machine.update.request = Some(OpenRequest {
        ticket: ticket(1, 1000),
        has_vault: false,
    });
    let request = |n: u64| UpdateRequest::Unscheduled {
        version: "1.1.0".to_owned(),
        reason: format!("plan {n}"),
    };
    for numbers in [0..50, 99..100] {
        let first = numbers.start;
        for n in numbers {
            machine.update_request(n, request(n), "eve".to_owned(), 0);
        }
        let Some(MachineEvent::Update(event)) = answers.recv().await else {
            panic!("another event than an answer");
        };
        let UpdateEvent::Answered { ticket, .. } = *event else {
            panic!("another event than an answer");
        };
        assert_eq!(ticket.n, first, "the others were refused as busy");
        machine.request_ended(&ticket, UpdateAnswer::Done, false, 0);
    }
    let records = machine.update.system.records().into_iter();
    let logged: Vec<_> = records
        .map(|it| [it.event, it.version, it.by, it.reason].join(" "))
        .collect();
    let expected = [0, 99].map(|n| format!("unscheduled 1.1.0 eve plan {n}"));
    assert_eq!(logged, expected);
}

/// A node that learns the outcome only at the end of a bundle has to send a whole program for a dry run.
#[test]
fn the_outcome_of_a_bundle_is_sent_before_its_frames_end() {
    /// The node gives the bundle up once it knows the outcome, and closes the stream if it does not learn of it.
    struct Node<'a>(&'a Cell<bool>, VecDeque<u8>);
    impl Read for Node<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let told = self.0.take();
            self.1.extend(
                told.then_some(UPDATE_FRAME_ABORT.to_be_bytes())
                    .iter()
                    .flatten(),
            );
            self.1.read(buffer)
        }
    }
    let told = Cell::new(false);
    let node = Node(&told, VecDeque::from([0, 0, 0, 2, 7, 7]));
    let mut frames = BundleFrameReader::new(node, 1000, Arc::default());
    frames.read_exact(&mut [0; 2]).expect("a frame");
    let plan = UpdatePlan::default();
    let end = requests::read_to_end(&mut frames, Some(Ok(plan.clone())), |outcome| {
        assert_eq!(outcome, Ok(plan));
        told.set(true);
    });
    assert_eq!(end, FramesEnd::Aborted);
}

#[test]
fn the_node_learns_of_a_trial_until_it_is_over() {
    let mut machine = machine();
    assert!(!machine.update.is_trial());
    trial(&mut machine, "none");
    assert!(machine.update.is_trial());
    machine.facts.update.gate = vec!["something".to_owned()];
    machine.gate_confirmed(Err(UpdateRefusal::failed()), 5);
    assert!(machine.update.is_trial());
    assert_eq!(machine.update.again_at, Some(10_005));
    machine.gate_confirmed(Ok(()), 5);
    assert!(!machine.update.is_trial() && machine.facts.update.gate.is_empty());
    assert!(machine.update.owes_slots, "those of the version before");
}

/// A later PID 1 says it, and the node of an earlier one is never on trial.
#[test]
fn a_start_says_whether_it_is_a_trial() {
    let start = |trial| NodeMessage::Start {
        config: Box::default(),
        state_dir: "/data".to_owned(),
        facts: Box::default(),
        vault: false,
        records: BTreeMap::new(),
        trial,
    };
    let line = serde_json::to_value(start(true)).expect("JSON");
    assert_eq!(line["trial"], true);
    let mut earlier = serde_json::to_value(start(true)).expect("JSON");
    earlier.as_object_mut().expect("an object").remove("trial");
    let read: NodeMessage = serde_json::from_value(earlier).expect("a message");
    assert_eq!(read, start(false));
}

/// The configuration that is in force decides whose signatures count.
#[tokio::test]
async fn the_keys_of_the_configuration_count_as_soon_as_it_is_in_force() {
    let mut machine = machine();
    machine.attend_update(0);
    assert_eq!(machine.facts.update.keys, "none", "the test has no image");
    let key = format!("ed25519:{}", "ab".repeat(32));
    machine.settings.config.update.keys = vec![key];
    machine.attend_update(0);
    assert_eq!(machine.facts.update.keys, "owner");
}

/// Without this the node takes a state from before a version was staged for one after it, and forgets its planned start.
#[tokio::test]
async fn the_facts_are_outdated_from_the_beginning_of_a_change_until_the_look_after_it() {
    let mut machine = machine();
    let attended = |machine: &mut InitMachine| {
        machine.attend_update(0);
        machine.facts.update.outdated
    };
    let staging = |dry_run| {
        Some(StagingBundle {
            ticket: ticket(1, 7),
            announced: 9,
            progress: Arc::default(),
            is_answered: true,
            dry_run,
        })
    };
    assert!(attended(&mut machine), "the first look is not over");
    machine.looked(SlotStatus::default());
    assert!(!attended(&mut machine));
    machine.update.staging = staging(true);
    assert!(!attended(&mut machine), "a dry run changes no slot");
    machine.update.staging = staging(false);
    assert!(attended(&mut machine));
    machine.bundle_ended(&ticket(1, 7), FramesEnd::Ended, 0);
    // The next bundle has the disk.
    machine.update.staging = staging(true);
    assert!(attended(&mut machine) && !machine.update.is_looking);
    machine.update.staging = None;
    assert!(attended(&mut machine) && machine.update.is_looking);
    machine.looked(SlotStatus::default());
    assert!(!attended(&mut machine));
    machine.update.request = Some(OpenRequest {
        ticket: ticket(1, 8),
        has_vault: false,
    });
    assert!(attended(&mut machine));
    machine.request_ended(&ticket(1, 8), UpdateAnswer::Done, false, 0);
    assert!(attended(&mut machine));
    machine.looked(SlotStatus::default());
    assert!(!attended(&mut machine));
}

#[test]
fn what_is_wrong_with_the_slots_is_a_problem_with_its_remedy() {
    let mut machine = machine();
    let end = UpdateOutcome {
        version: "1.1.0".to_owned(),
        outcome: "failed".to_owned(),
        stage: "data".to_owned(),
        reason: "it stopped".to_owned(),
        cause: Some(TrialCause::Silence),
        problems: vec!["vault-locked".to_owned()],
    };
    let look = |state: &str, good: &str| SlotStatus {
        state: state.to_owned(),
        good: Some(good.to_owned()),
        ..SlotStatus::default()
    };
    let codes = |machine: &InitMachine| -> Vec<String> {
        let problems = machine.facts.problems.update.iter();
        problems.map(|problem| problem.code.clone()).collect()
    };
    machine.facts.update.slot = Some("a".to_owned());
    let report = |kind, ended| Some(StartReport { kind, ended });
    machine.update.report = report(StartKind::Failed, Some(end.clone()));
    machine.looked(look("failed", "a"));
    assert_eq!(codes(&machine), ["update-failed"]);
    let text = &machine.facts.problems.update[0].text;
    let expected = "it reached the stage 'data', with the problem vault-locked: it stopped";
    assert!(
        text.contains("version 1.1.0 failed") && text.ends_with(expected),
        "{text}"
    );
    assert_eq!(machine.facts.update.last, Some(end.clone()));
    // The next version is staged, and the problem is over.
    machine.looked(look("staged", "a"));
    assert_eq!(codes(&machine), [""; 0]);
    let rolled_back = UpdateOutcome {
        outcome: "rolled-back".to_owned(),
        ..end
    };
    machine.update.report = report(StartKind::Failed, Some(rolled_back));
    machine.looked(look("failed", "a"));
    assert_eq!(codes(&machine), [""; 0], "an administrator wanted that");
    for (kind, state, good, code) in [
        (StartKind::StateLost, "idle", "a", "boot-state-lost"),
        (StartKind::SlotDamaged, "good", "b", "slot-damaged"),
        (StartKind::Uncounted, "trial", "a", "boot-state-lost"),
        (StartKind::Unread, "trial", "a", "boot-state-lost"),
    ] {
        machine.update.report = report(kind, None);
        machine.looked(look(state, good));
        assert_eq!(codes(&machine), [code]);
    }
    machine.update.report = report(StartKind::SlotDamaged, None);
    machine.looked(look("staged", "a"));
    assert_eq!(codes(&machine), [""; 0], "the slot that runs took over");
}

/// An attacker who had the disk made the loader start the version before, by the record, or copied it to the other slot.
#[test]
fn a_version_below_the_floor_that_runs_is_a_problem() {
    let mut machine = machine();
    let mut codes = |version: &str, floor: Option<&str>| -> Vec<String> {
        machine.facts.update.version = version.to_owned();
        machine.looked(SlotStatus {
            state: "good".to_owned(),
            floor: floor.map(str::to_owned),
            ..SlotStatus::default()
        });
        let problems = machine.facts.problems.update.iter();
        problems.map(|problem| problem.code.clone()).collect()
    };
    assert_eq!(codes("1.9.0", Some("1.10.0")), ["version-below-floor"]);
    assert_eq!(
        codes("1.10.0-rc.1", Some("1.10.0")),
        ["version-below-floor"]
    );
    for (version, floor) in [
        ("1.10.0", Some("1.10.0")),
        ("1.10.0", Some("1.9.0")),
        ("1.9.0", None),
        ("unknown", Some("1.10.0")),
    ] {
        assert_eq!(codes(version, floor), [""; 0], "{version} {floor:?}");
    }
}

/// A vault on a disk that only a TPM opens, with a PIN or without a person.
fn sealed_machine(pin: bool) -> (tempfile::TempDir, InitMachine) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = dir.path().join("disk");
    let file = std::fs::File::create_new(&disk).expect("a new file");
    let bytes = alknet_sealed::limits::DATA_AT;
    file.set_len(bytes).expect("a sparse file");
    let params = Tpm2Params::new(vec![1], vec![2], vec![11], [3; 32], pin);
    let params = params.expect("within bounds");
    let kek = Kek::copy_of(&[4; 32]);
    let vault = NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0);
    let made = OpenAlkv::create(vault, NewSlot::Tpm2(params, &kek)).expect("made");
    data::copies(&disk).create(&made).expect("written");
    let mut machine = machine();
    machine.vault_at = Some(disk);
    machine.state_dir = dir.path().to_owned();
    machine.vault.lock();
    machine.vault.forget();
    machine.vault.note(&{
        let found = data::copies(machine.vault_at.as_deref().expect("a disk")).load();
        found.expect("readable").expect("a vault").newest
    });
    (dir, machine)
}

/// A hub offers the update, and the machine would be closed after the restart until a person comes.
#[tokio::test]
async fn a_start_that_needs_a_person_is_for_an_administrator() {
    for (pin, unasked, begins) in [
        (true, true, false),
        (true, false, true),
        (false, true, true),
    ] {
        let (_dir, mut machine) = sealed_machine(pin);
        let start = UpdateRequest::Apply {
            sha256: None,
            agreed_floor: None,
            limited: true,
            unasked,
        };
        machine.update_request(1, start, "a hub".to_owned(), 0);
        assert_eq!(machine.update.request.is_some(), begins, "{pin} {unasked}");
        assert_eq!(machine.working, begins, "{pin} {unasked}");
    }
}

/// The vault would wait for a person at the next start.
#[test]
fn a_version_does_not_go_on_trial_while_the_vault_of_the_tpm_is_locked() {
    let (_dir, machine) = sealed_machine(false);
    machine.vault.lock();
    let place = machine.trial_vault();
    let unused = || Err(UpdateRefusal::failed());
    let refused = place.prepare(unused).expect_err("locked");
    assert_eq!(refused.code, RefusalCode::Locked, "{}", refused.text);
    // Without a vault there is nothing to prepare.
    let mut bare = machine;
    bare.vault_at = None;
    let place = bare.trial_vault();
    assert_eq!(place.prepare(unused), Ok(()));
}
