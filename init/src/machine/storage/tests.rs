use tokio::sync::mpsc::{self, Receiver};

use super::*;
use crate::machine::tests::machine;

/// A machine without disks, and its events.
fn with_events() -> (InitMachine, Receiver<MachineEvent>) {
    let mut machine = machine();
    let (events, receiver) = mpsc::channel(100);
    machine.events = events;
    (machine, receiver)
}

/// Hands the end of a thread's work to the machine.
async fn work_ends(machine: &mut InitMachine, events: &mut Receiver<MachineEvent>, now: u64) {
    match events.recv().await {
        Some(MachineEvent::Storage(event)) => machine.storage_worked(*event, now),
        other => panic!("another event: {other:?}"),
    }
}

fn finding(slot: BootSlot, result: ScrubResult) -> SlotFinding {
    SlotFinding {
        slot,
        version: Some("1.0.0".to_owned()),
        result,
    }
}

fn damaged(slot: BootSlot) -> SlotFinding {
    finding(slot, ScrubResult::Damaged("other bytes".to_owned()))
}

#[tokio::test]
async fn disks_are_asked_first_and_again_after_an_hour() {
    let (mut machine, mut events) = with_events();
    machine.attend_storage(FIRST_HEALTH_MS - 1);
    assert!(!machine.storage.is_working);
    assert_eq!(machine.storage_due(), Some(FIRST_HEALTH_MS));
    machine.attend_storage(FIRST_HEALTH_MS);
    assert!(machine.storage.is_working);
    assert_eq!(machine.storage_due(), None, "its event follows");
    work_ends(&mut machine, &mut events, FIRST_HEALTH_MS).await;
    assert!(!machine.storage.is_working && machine.storage.run.is_none());
    assert_eq!(machine.storage.health_at, FIRST_HEALTH_MS + HEALTH_EVERY_MS);
}

#[tokio::test]
async fn a_request_is_answered_by_a_check_of_its_own() {
    let (mut machine, mut events) = with_events();
    let check_at = machine.storage.check_at;
    assert!((FIRST_CHECK_MS..2 * FIRST_CHECK_MS).contains(&check_at));
    machine.check_storage(1, "a test");
    assert_eq!(machine.storage_due(), Some(0));
    machine.attend_storage(5);
    assert!(machine.facts.storage.checking && machine.storage.is_hurried());
    // It comes too late for the check under way.
    machine.check_storage(2, "a test");
    work_ends(&mut machine, &mut events, 6).await;
    machine.attend_storage(6);
    assert!(machine.storage.run.is_none(), "this machine has no slots");
    assert_eq!(machine.storage.waiting.len(), 1);
    machine.attend_storage(7);
    work_ends(&mut machine, &mut events, 8).await;
    machine.attend_storage(8);
    assert!(!machine.facts.storage.checking && machine.storage.waiting.is_empty());
    let next = 8 + CHECK_EVERY_MS..8 + CHECK_EVERY_MS + CHECK_JITTER_MS;
    assert!(next.contains(&machine.storage.check_at));
}

/// A node that an attacker has taken over asks without end.
#[test]
fn requests_that_wait_are_limited() {
    let mut machine = machine();
    for n in 0..1_000 {
        machine.check_storage(n, "a test");
    }
    assert_eq!(machine.storage.waiting.len(), WAITING_MAX);
}

#[test]
fn a_damaged_slot_is_a_problem_until_it_is_whole_or_written_again() {
    let mut machine = machine();
    let codes = |machine: &InitMachine| machine.facts.problems.storage.len();
    machine.slot_checked(damaged(BootSlot::B));
    machine.slot_checked(finding(BootSlot::A, ScrubResult::Whole));
    let slots = &machine.facts.storage.slots;
    let listed: Vec<_> = slots
        .iter()
        .map(|found| (found.slot.as_str(), found.result.as_str()))
        .collect();
    assert_eq!(listed, [("a", "whole"), ("b", "damaged")]);
    assert_eq!(codes(&machine), 1);
    machine.slot_checked(finding(BootSlot::B, ScrubResult::Whole));
    assert_eq!(codes(&machine), 0);
    machine.slot_checked(damaged(BootSlot::B));
    machine.slot_changed(7);
    assert_eq!(codes(&machine), 0);
    assert_eq!(machine.storage.check_at, 7 + FIRST_CHECK_MS);
}

#[test]
fn the_problem_names_the_slot_and_what_to_do() {
    let found = SlotCheckFacts {
        slot: "b".to_owned(),
        version: Some("1.0.0".to_owned()),
        result: "damaged".to_owned(),
        detail: Some("other bytes".to_owned()),
        checked: None,
    };
    let other = slot_problem(&found, Some("a")).expect("it is damaged");
    assert_eq!(other.code, "slot-damaged");
    let text = "the program of version 1.0.0 in boot slot b, which does not run, is damaged on the disk: other bytes";
    assert_eq!(other.text, text);
    assert!(other.hint.contains("stage it again"), "{}", other.hint);
    let running = slot_problem(&found, Some("b")).expect("it is damaged");
    assert!(running.hint.contains("alknet rollback"), "{}", running.hint);
    for result in ["whole", "skipped"] {
        let found = SlotCheckFacts {
            result: result.to_owned(),
            ..found.clone()
        };
        assert_eq!(slot_problem(&found, Some("a")), None);
    }
}

#[test]
fn a_slot_that_cannot_be_read_is_no_damaged_one() {
    let mut machine = machine();
    let why = "cannot read the program: Input/output error (os error 5)".to_owned();
    machine.slot_checked(finding(BootSlot::B, ScrubResult::Unreadable(why)));
    assert_eq!(machine.facts.storage.slots[0].result, "unreadable");
    let problems = machine.facts.problems.storage.clone();
    let [problem] = problems.as_slice() else {
        panic!("one problem: {problems:?}");
    };
    assert_eq!(problem.code, "slot-unreadable");
    assert!(
        problem.text.contains("could not be read: cannot read"),
        "{}",
        problem.text
    );
    assert!(!problem.text.contains("damaged"), "{}", problem.text);
    assert!(problem.hint.contains("check again"), "{}", problem.hint);
    machine.slot_checked(finding(BootSlot::B, ScrubResult::Whole));
    assert_eq!(machine.facts.problems.storage, []);
}

#[test]
fn a_hot_disk_is_a_problem_while_it_is_hot_and_is_asked_more_often() {
    let mut machine = machine();
    let disk = |temperature_warning| DiskHealthFacts {
        name: "nvme0n1".to_owned(),
        temperature_warning,
        ..DiskHealthFacts::default()
    };
    machine.storage.health_at = HEALTH_EVERY_MS;
    machine.storage_worked(StorageEvent::Read(Some(vec![disk(true)])), 1);
    let problems = &machine.facts.problems.storage;
    let codes: Vec<_> = problems.iter().map(|it| it.code.as_str()).collect();
    assert_eq!(codes, ["disk-temperature"]);
    assert_eq!(machine.storage.health_at, 1 + HEAT_EVERY_MS);
    machine.storage.health_at = HEALTH_EVERY_MS;
    machine.storage_worked(StorageEvent::Read(Some(vec![disk(false)])), 2);
    assert_eq!(machine.facts.problems.storage, []);
    assert_eq!(machine.storage.health_at, HEALTH_EVERY_MS);
}

#[test]
fn a_failing_disk_is_a_problem_for_as_long_as_it_says_so() {
    let mut machine = machine();
    let disk = DiskHealthFacts {
        name: "nvme0n1".to_owned(),
        failing: vec!["it takes no more writes".to_owned()],
        ..DiskHealthFacts::default()
    };
    machine.storage_worked(StorageEvent::Read(Some(vec![disk.clone()])), 1);
    let problems = machine.facts.snapshot().problems;
    assert_eq!(
        problems.last().map(|it| it.code.as_str()),
        Some("disk-failing")
    );
    // A thread that failed learned nothing.
    machine.storage_worked(StorageEvent::Read(None), 2);
    assert_eq!(machine.facts.problems.storage.len(), 1);
    let well = DiskHealthFacts {
        failing: Vec::new(),
        ..disk
    };
    machine.storage_worked(StorageEvent::Read(Some(vec![well])), 3);
    assert_eq!(machine.facts.problems.storage, []);
}

/// Pauses bound what a check takes; a person who waits gets none.
#[test]
fn a_check_that_was_not_asked_for_has_pauses() {
    let mut machine = machine();
    let turn = |machine: &mut InitMachine, now| {
        machine.storage.run.get_or_insert_with(|| StorageRun {
            tickets: Vec::new(),
            slots: BootSlot::ALL.into_iter().collect(),
            begun: None,
        });
        let more = ScrubTurn::More(SlotScrub::begin_for_tests());
        machine.storage_worked(StorageEvent::Turned(more), now);
        machine.storage.piece_at - now
    };
    assert_eq!(turn(&mut machine, 10), PIECE_PAUSE_MS);
    machine.check_storage(1, "a test");
    assert_eq!(turn(&mut machine, 20), 0);
    let run = machine.storage.run.as_ref().expect("it goes on");
    assert!(run.begun.is_some() && run.slots.len() == 2);
}
