//! The check of the slots' programs against the hashes that the machine keeps.

use super::verified_programs::put;
use super::*;
use crate::update::system::{ScrubResult, ScrubTurn, SlotScrub, scrub_piece};

/// Bytes of a piece: a program of a test has several.
const PIECE: u64 = 100_000;

fn turn(bench: &UpdateBench, slot: BootSlot, begun: Option<SlotScrub>) -> ScrubTurn {
    let known = bench.known.load();
    let mut disk = bench.disk.open();
    scrub_piece(&mut disk, bench.running, slot, &known, begun, PIECE)
}

/// Reads a slot to its end. Returns the finding and the number of pieces.
fn scrub(bench: &UpdateBench, slot: BootSlot) -> (ScrubResult, usize) {
    let mut begun = None;
    for pieces in 1..1_000 {
        match turn(bench, slot, begun.take()) {
            ScrubTurn::More(more) => begun = Some(more),
            ScrubTurn::Done(finding) => {
                assert_eq!(finding.slot, slot);
                return (finding.result, pieces);
            }
        }
    }
    panic!("it does not end");
}

fn is_damaged(result: &ScrubResult) -> bool {
    matches!(result, ScrubResult::Damaged(_))
}

/// Changes one byte of a slot's program in its place.
fn flip(bench: &UpdateBench, slot: BootSlot, at: usize) {
    let mut program = bench.disk.file(slot).expect("a program");
    program[at] ^= 1;
    put(&bench.disk, slot, &program);
}

#[test]
fn whole_programs_are_read_to_their_end_in_pieces() {
    let bench = UpdateBench::updated();
    bench.disk.forget_steps();
    for slot in BootSlot::ALL {
        let bytes = bench.disk.file(slot).expect("a program").len() as u64;
        let (result, pieces) = scrub(&bench, slot);
        assert_eq!(result, ScrubResult::Whole, "{slot}");
        assert_eq!(pieces as u64, bytes.div_ceil(PIECE), "{slot}");
        assert!(pieces > 2, "{slot} has {pieces} pieces");
    }
    assert!(!bench.disk.is_written(), "a check only reads");
}

#[test]
fn one_changed_byte_is_found_in_either_slot() {
    for slot in BootSlot::ALL {
        let bench = UpdateBench::updated();
        let last = bench.disk.file(slot).expect("a program").len() - 1;
        for at in [0, last] {
            flip(&bench, slot, at);
            let (result, _) = scrub(&bench, slot);
            assert!(is_damaged(&result), "{slot} {at}: {result:?}");
            let (other, _) = scrub(&bench, slot.other());
            assert_eq!(other, ScrubResult::Whole);
            flip(&bench, slot, at);
        }
    }
}

#[test]
fn a_program_that_is_gone_is_damaged() {
    let bench = UpdateBench::updated();
    let mut volume = bench.disk.volume();
    volume
        .remove_file(&slot_path(BootSlot::A))
        .expect("it is there");
    assert!(is_damaged(&scrub(&bench, BootSlot::A).0));
}

/// A cable that is loose is no reason to write the slot again, and the program may be whole.
#[test]
fn a_sector_that_the_disk_cannot_read_is_no_damage_of_the_program() {
    let bench = UpdateBench::updated();
    for slot in BootSlot::ALL {
        let volume = bench.disk.volume();
        let file = volume.open_file(&slot_path(slot)).expect("a file");
        let last = file.extents().last().expect("a piece");
        let sector = 2048 + (last.at + last.bytes - 1) / SECTOR_BYTES as u64;
        // The whole boot partition, or one sector of the program.
        for range in [2048..1 << 40, sector..sector + 1] {
            bench.disk.refuse_reads(Some(range.clone()));
            let (result, _) = scrub(&bench, slot);
            let ScrubResult::Unreadable(why) = result else {
                panic!("{slot} {range:?}: {result:?}");
            };
            assert!(why.contains("os error 5"), "{why}");
        }
        bench.disk.refuse_reads(None);
        assert_eq!(scrub(&bench, slot).0, ScrubResult::Whole);
    }
}

#[test]
fn slots_without_a_version_on_trial_or_without_a_hash_are_left_alone() {
    let skipped = |bench: &UpdateBench, slot| match scrub(bench, slot).0 {
        ScrubResult::Skipped(why) => why,
        other => panic!("{other:?}"),
    };
    let mut bench = UpdateBench::new();
    assert_eq!(skipped(&bench, BootSlot::B), "it has no version");
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    assert_eq!(scrub(&bench, BootSlot::B).0, ScrubResult::Whole, "staged");
    bench.arm(&bench.disk);
    bench.disk.power_on();
    bench.running = BootSlot::B;
    flip(&bench, BootSlot::B, 5_000);
    assert_eq!(skipped(&bench, BootSlot::B), "its version is on trial");
    assert_eq!(
        scrub(&bench, BootSlot::A).0,
        ScrubResult::Whole,
        "the way back"
    );

    let mut bench = UpdateBench::updated();
    bench.known = KnownStore::new(None);
    for slot in BootSlot::ALL {
        assert_eq!(skipped(&bench, slot), "the machine has noted no hash of it");
    }
    bench.disk.put_record(&[0; 1024]);
    assert!(skipped(&bench, BootSlot::A).contains("record"));
}

/// An update may write the slot between two pieces.
#[test]
fn a_slot_that_was_written_meanwhile_is_read_from_its_beginning() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    let ScrubTurn::More(begun) = turn(&bench, BootSlot::B, None) else {
        panic!("it has several pieces");
    };
    bench.stage(&TestRelease::new("1.2.0", 2)).expect("staged");
    let mut begun = Some(begun);
    let result = loop {
        match turn(&bench, BootSlot::B, begun.take()) {
            ScrubTurn::More(more) => begun = Some(more),
            ScrubTurn::Done(finding) => break finding,
        }
    };
    assert_eq!(result.result, ScrubResult::Whole);
    assert_eq!(result.version.as_deref(), Some("1.2.0"));
}
