//! The version before takes the place of a damaged program only if everything that the machine has noted permits it.

use alknet_boot_state::{BootPhase, BootRecord, BootSlot, ProgramNotes};

use crate::reachable;

/// A machine that was updated from version 1 in slot a to version 2 in slot b.
const RUNNING: BootSlot = BootSlot::B;
const NOTES: ProgramNotes<'static, u32> = ProgramNotes {
    running_sha256: Some("b2"),
    other: Some((1, "a1")),
    floor: Some(1),
};

fn updated() -> BootRecord {
    let records = reachable();
    let mut records = records.iter();
    let found = records.find(|it| it.good() == RUNNING && it.phase() == BootPhase::Good);
    *found.expect("an update that was confirmed")
}

/// Asks the rule about files with these hashes: that of the program that runs, and that of the version before.
fn permits(notes: &ProgramNotes<'_, u32>, record: &BootRecord, files: [Option<&str>; 2]) -> bool {
    notes.permit_version_before(record, RUNNING, |slot| match slot == RUNNING {
        true => files[0],
        false => files[1],
    })
}

#[test]
fn a_whole_version_before_takes_the_place_of_a_damaged_program() {
    for damaged in [None, Some("c3")] {
        assert!(permits(&NOTES, &updated(), [damaged, Some("a1")]));
    }
    let without_floor = ProgramNotes {
        floor: None,
        ..NOTES
    };
    assert!(permits(&without_floor, &updated(), [None, Some("a1")]));
    let running_unknown = ProgramNotes {
        running_sha256: None,
        ..NOTES
    };
    assert!(permits(&running_unknown, &updated(), [None, Some("a1")]));
}

#[test]
fn a_program_that_runs_and_is_whole_stays() {
    assert!(!permits(&NOTES, &updated(), [Some("b2"), Some("a1")]));
    let unknown = ProgramNotes {
        running_sha256: None,
        ..NOTES
    };
    assert!(
        !permits(&unknown, &updated(), [Some("b2"), Some("a1")]),
        "nothing says that it is damaged"
    );
}

#[test]
fn no_version_before_with_other_bytes_takes_its_place() {
    for other in [None, Some("c3"), Some("b2"), Some("")] {
        assert!(!permits(&NOTES, &updated(), [None, other]), "{other:?}");
    }
    let unknown = ProgramNotes {
        other: None,
        ..NOTES
    };
    assert!(!permits(&unknown, &updated(), [None, Some("a1")]));
}

#[test]
fn no_version_below_the_floor_takes_its_place() {
    let raised = ProgramNotes {
        floor: Some(2),
        ..NOTES
    };
    assert!(!permits(&raised, &updated(), [None, Some("a1")]));
}

/// The other slot has a version that was never confirmed, or nothing.
#[test]
fn only_the_version_before_takes_its_place() {
    let mut permitted = 0;
    for record in reachable() {
        let is_before = record.good() == RUNNING && record.phase() == BootPhase::Good;
        let is_permitted = permits(&NOTES, &record, [None, Some("a1")]);
        assert_eq!(is_permitted, is_before, "{record:?}");
        permitted += usize::from(is_permitted);
    }
    assert!(permitted > 0);
}

/// A start reads a program of many MiB only if the answer depends on it.
#[test]
fn no_file_is_read_if_the_notes_forbid_the_version_before() {
    let never = |_: BootSlot| -> Option<&str> { panic!("it was read") };
    let raised = ProgramNotes {
        floor: Some(2),
        ..NOTES
    };
    assert!(!raised.permit_version_before(&updated(), RUNNING, never));
    let new = BootRecord::new(RUNNING);
    assert!(!NOTES.permit_version_before(&new, RUNNING, never));
}
