//! The state machine: every transition from every record.

use std::collections::BTreeSet;

use alknet_boot_state::{
    BootPhase, BootRecord, BootRefusal, BootSlot, BootSlots, TRIES, loader_choice,
};

use crate::{PRESENT, reachable};

/// The good slot, and the phase of the other one.
fn state(record: &BootRecord) -> (BootSlot, BootPhase) {
    (record.good(), record.phase())
}

fn staged() -> BootRecord {
    let vacated = BootRecord::new(BootSlot::A)
        .vacate()
        .expect("nothing runs there");
    vacated.stage().expect("it is vacated")
}

#[test]
fn the_phases_have_these_names() {
    let names = BootPhase::ALL.map(BootPhase::name);
    let expected = ["idle", "staged", "pending", "trial", "good", "failed"];
    assert_eq!(names, expected);
    let reached: BTreeSet<_> = reachable().iter().map(|it| it.phase().name()).collect();
    assert_eq!(reached, BTreeSet::from(expected));
}

#[test]
fn an_update_goes_through_the_phases_in_order() {
    let record = staged();
    assert_eq!(state(&record), (BootSlot::A, BootPhase::Staged));
    let record = record.arm().expect("it is staged");
    assert_eq!(state(&record), (BootSlot::A, BootPhase::Pending));
    let choice = loader_choice(Some(&record), BootSlots::ALL);
    assert_eq!(choice.start, Some(BootSlot::B));
    assert_eq!(choice.start_unwritten, Some(BootSlot::A));
    let record = choice.write.expect("the try is counted first");
    assert_eq!(state(&record), (BootSlot::A, BootPhase::Trial));
    assert_eq!((record.trial(), record.tries()), (Some(BootSlot::B), 2));
    let record = record.confirm(BootSlot::B).expect("it runs");
    assert_eq!(state(&record), (BootSlot::B, BootPhase::Good));
    // Its own boot is written already.
    let choice = loader_choice(Some(&record), BootSlots::ALL);
    assert_eq!((choice.start, choice.write), (Some(BootSlot::B), None));
    assert_eq!(record.seq(), 4, "vacate, stage, arm and confirm");
}

#[test]
fn a_trial_starts_three_times_and_then_the_good_slot_starts() {
    let mut record = staged().arm().expect("it is staged");
    for left in (0..TRIES).rev() {
        let choice = loader_choice(Some(&record), BootSlots::ALL);
        assert_eq!(choice.start, Some(BootSlot::B));
        record = choice.write.expect("the try is counted");
        assert_eq!((record.tries(), record.booted()), (left, choice.start));
    }
    let choice = loader_choice(Some(&record), BootSlots::ALL);
    assert_eq!(choice.start, Some(BootSlot::A));
    let record = choice.write.expect("the failure is written down");
    assert_eq!(state(&record), (BootSlot::A, BootPhase::Failed));
    assert_eq!(record.failed(), Some(BootSlot::B));
    let again = loader_choice(Some(&record), BootSlots::ALL);
    assert_eq!((again.start, again.write), (Some(BootSlot::A), None));
}

#[test]
fn each_transition_is_possible_in_its_phases_only() {
    use BootPhase::{Good, Idle, Pending, Staged, Trial};
    for record in reachable() {
        let phase = record.phase();
        let other = record.good().other();
        assert_eq!(record.vacate().is_ok(), phase != Trial, "{record:?}");
        assert_eq!(record.stage().is_ok(), phase == Idle, "{record:?}");
        assert_eq!(record.arm().is_ok(), phase == Staged, "{record:?}");
        let may_confirm = phase == Trial && record.booted() == Some(other);
        assert_eq!(record.confirm(other).is_ok(), may_confirm, "{record:?}");
        assert!(record.confirm(record.good()).is_err(), "{record:?}");
        let may_give_up = matches!(phase, Pending | Trial);
        assert_eq!(record.give_up().is_ok(), may_give_up, "{record:?}");
        let may_return = matches!(phase, Good | Pending | Trial);
        assert_eq!(record.rollback().is_ok(), may_return, "{record:?}");
        // No transition but a confirmation changes the good slot.
        for next in [
            record.vacate(),
            record.stage(),
            record.arm(),
            record.give_up(),
            record.rollback(),
        ] {
            let good = next.map_or_else(|_| record.good(), |next| next.good());
            assert_eq!(good, record.good(), "{record:?}");
        }
    }
}

/// A loader that could not write the record has started the good slot, and the record still names the trial.
#[test]
fn a_version_that_does_not_run_is_not_confirmed() {
    let pending = staged().arm().expect("it is staged");
    assert_eq!(pending.confirm(BootSlot::B), Err(BootRefusal::NotOnTrial));
    let choice = loader_choice(Some(&pending), BootSlots::ALL);
    let tried = choice.write.expect("the try is counted");
    assert_eq!(
        tried.confirm(BootSlot::A),
        Err(BootRefusal::NotRunningTrial)
    );
    assert!(tried.confirm(BootSlot::B).is_ok());
}

#[test]
fn the_slot_that_may_be_running_is_never_vacated() {
    for record in reachable() {
        if let Ok(vacated) = record.vacate() {
            assert_eq!(state(&vacated), (record.good(), BootPhase::Idle));
            let started = loader_choice(Some(&vacated), BootSlots::ALL).start;
            assert_eq!(started, Some(record.good()));
        } else {
            assert_eq!(record.phase(), BootPhase::Trial);
        }
    }
}

#[test]
fn a_rollback_is_a_trial_of_the_version_before() {
    let mut record = staged().arm().expect("it is staged");
    record = loader_choice(Some(&record), BootSlots::ALL)
        .write
        .expect("counted");
    record = record.confirm(BootSlot::B).expect("it runs");
    let back = record.rollback().expect("the version before is there");
    assert_eq!(state(&back), (BootSlot::B, BootPhase::Pending));
    assert_eq!((back.trial(), back.tries()), (Some(BootSlot::A), TRIES));
    // Before its first start it can be taken back.
    let kept = back.rollback().expect("it did not start");
    assert_eq!(state(&kept), (BootSlot::B, BootPhase::Staged));
}

#[test]
fn what_loaders_do_is_the_same_in_every_record() {
    for record in reachable() {
        for present in PRESENT {
            let choice = loader_choice(Some(&record), present);
            let exists = |slot: Option<BootSlot>| slot.is_some_and(|it| present.contains(it));
            let some = present != BootSlots::NONE;
            assert_eq!(exists(choice.start), some, "{record:?} {present:?}");
            assert_eq!(exists(choice.start_unwritten), some, "{record:?}");
            assert!(some || choice.write.is_none(), "{record:?}");
            let on_trial = choice.start.is_some() && choice.start == record.trial();
            if on_trial && present.contains(record.good()) {
                let written = choice.write.expect("no start without a count");
                assert_eq!(written.tries() + 1, record.tries(), "{record:?}");
                assert_eq!(choice.start_unwritten, Some(record.good()));
            }
            let after = choice.write.unwrap_or(record);
            assert!(!some || after.booted() == choice.start, "{record:?}");
            assert_eq!((after.good(), after.seq()), (record.good(), record.seq()));
        }
    }
}

#[test]
fn without_a_record_slot_a_is_the_good_one_and_nothing_is_written() {
    for present in PRESENT {
        let choice = loader_choice(None, present);
        assert_eq!(choice.start, present.prefer(BootSlot::A));
        assert_eq!((choice.start_unwritten, choice.write), (choice.start, None));
    }
    assert_eq!(BootRecord::FALLBACK, BootRecord::new(BootSlot::A));
}

/// The good version did not start, so the machine runs the other one and can write the good slot again.
#[test]
fn the_slot_that_runs_takes_over_unless_a_version_is_on_trial() {
    for record in reachable() {
        let (good, other) = (record.good(), record.good().other());
        let is_on_trial = record.trial().is_some();
        assert!(record.take_over(good).is_err(), "{record:?}");
        match record.take_over(other) {
            Ok(next) => {
                assert!(!is_on_trial, "{record:?}");
                assert_eq!(state(&next), (other, BootPhase::Idle));
                assert_eq!(next.seq(), record.seq() + 1);
                assert!(next.stage().is_ok());
            }
            Err(error) => assert_eq!((error, is_on_trial), (BootRefusal::OnTrial, true)),
        }
    }
}
