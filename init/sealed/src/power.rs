//! Tests of the state after a power cut: after every write, within every write, and with any part
//! of the writes since the last flush lost.

use crate::limits::{DATA_AT, MEMO_AT, MEMO_BYTES, VAULT_A_AT, VAULT_B_AT};
use crate::luks2::{LuksHeader, NewHeader};
use crate::sealed::{PartitionContent, SealedPartition};
use crate::testing::{BYTES, DiskOp, DiskTestRng, ONE, SECTOR, TWO, TestDisk, new_header};

/// A write of at most this many sectors is cut after each sector.
const CUT_ALL: usize = 64;
/// How many times a random part of the unflushed writes is lost.
const LOSSES: usize = 12;
const THREE: &[u8] = b"the new phrase of the first key slot";

/// Calls `each` with the disk that began as `image`, at every moment at which a power cut can
/// interrupt `ops`.
fn at_every_cut(image: Vec<u8>, ops: &[DiskOp], mut each: impl FnMut(&TestDisk)) {
    let disk = TestDisk::from_image(image);
    let mut dice = DiskTestRng(0x5eed_5eed_5eed_5eed);
    let mut begun = Vec::new();
    for op in ops {
        match op {
            DiskOp::Flush => {
                lose_some(&disk, &begun, &mut dice, &mut each);
                for (at, bytes) in begun.drain(..) {
                    disk.overwrite(at, bytes);
                }
            }
            DiskOp::Write { at, bytes } => begun.push((*at, &bytes[..])),
        }
    }
    assert!(begun.is_empty(), "something was never flushed");
    each(&disk);
}

/// First lets the writes of one flush arrive in order, and then loses random sectors of them.
/// Afterwards the disk is as before.
fn lose_some(
    disk: &TestDisk,
    writes: &[(usize, &[u8])],
    dice: &mut DiskTestRng,
    each: &mut impl FnMut(&TestDisk),
) {
    let before: Vec<_> = writes
        .iter()
        .map(|(at, bytes)| (*at, disk.image()[*at..at + bytes.len()].to_vec()))
        .collect();
    let undo = || {
        for (at, bytes) in before.iter().rev() {
            disk.overwrite(*at, bytes);
        }
    };
    for (at, bytes) in writes {
        let sectors = bytes.len() / SECTOR;
        let all = sectors <= CUT_ALL;
        for number in 0..sectors {
            if all || [0, 1, sectors / 2, sectors - 1].contains(&number) {
                each(disk);
            }
            let part = number * SECTOR..(number + 1) * SECTOR;
            disk.overwrite(at + part.start, &bytes[part]);
        }
    }
    undo();
    for _ in 0..LOSSES {
        for (at, bytes) in writes {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if dice.below(2) == 0 {
                    disk.overwrite(at + number * SECTOR, sector);
                }
            }
        }
        each(disk);
        undo();
    }
}

fn formatted() -> TestDisk {
    let disk = TestDisk::blank();
    LuksHeader::format(&disk, &new_header()).expect("a disk that works");
    disk.take_ops();
    disk
}

#[test]
fn formatting_is_whole_or_begun() {
    let disk = TestDisk::blank();
    // A machine writes its vault before it formats the partition, so no cut may touch either copy.
    disk.overwrite(VAULT_A_AT as usize, b"one");
    disk.overwrite(VAULT_B_AT as usize, b"two");
    let image = disk.image().clone();
    LuksHeader::format(&disk, &new_header()).expect("a disk that works");
    let (mut sealed, mut begun) = (0, 0);
    at_every_cut(image, &disk.take_ops(), |cut| {
        assert_eq!(cut.image()[VAULT_A_AT as usize..][..3], *b"one");
        assert_eq!(cut.image()[VAULT_B_AT as usize..][..3], *b"two");
        match SealedPartition::probe(cut, BYTES).expect("readable") {
            // Nothing has been written yet.
            PartitionContent::Unsealed => assert!(cut.image()[..1 << 20].iter().all(|b| *b == 0)),
            PartitionContent::HalfFormatted => begun += 1,
            PartitionContent::Sealed(_) => {
                sealed += 1;
                let header = LuksHeader::load(cut).expect("it was found");
                for (slot, phrase) in [(0, ONE), (1, TWO)] {
                    header.unlock(cut, slot, phrase).expect("the phrase of it");
                }
            }
            other => panic!("{other:?}"),
        }
    });
    assert!(sealed > 30 && begun > 30, "{sealed} {begun}");
}

#[test]
fn a_cut_formatting_is_done_again() {
    let disk = TestDisk::blank();
    LuksHeader::format(&disk, &new_header()).expect("a disk that works");
    let ops = disk.take_ops();
    // The writes up to half of the second copy are done.
    let cut = TestDisk::blank();
    for op in &ops[..ops.len() - 4] {
        if let DiskOp::Write { at, bytes } = op {
            cut.overwrite(*at, bytes);
        }
    }
    let found = SealedPartition::probe(&cut, BYTES).expect("readable");
    assert!(
        matches!(found, PartitionContent::HalfFormatted),
        "{found:?}"
    );
    let again = SealedPartition::format(cut, BYTES, &new_header()).expect("a disk that works");
    again.unlock(0, ONE).expect("the phrase of it");
}

#[test]
fn a_change_of_phrase_never_locks_the_owner_out() {
    let disk = formatted();
    let image = disk.image().clone();
    let mut header = LuksHeader::load(&disk).expect("formatted");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    header
        .set_phrase(&disk, 0, THREE, &key)
        .expect("a disk that works");
    let (mut old, mut new) = (0, 0);
    at_every_cut(image, &disk.take_ops(), |cut| {
        let header = LuksHeader::load(cut).expect("one copy is whole");
        assert!(header.unlock(cut, 1, TWO).is_ok_and(|found| found == key));
        match header.unlock(cut, 0, THREE) {
            Ok(found) => {
                assert_eq!(found, key);
                new += 1;
            }
            Err(_) => {
                let found = header.unlock(cut, 0, ONE).expect("one of the two");
                assert_eq!(found, key);
                old += 1;
            }
        }
    });
    assert!(old > 30 && new > 30, "{old} {new}");
    let header = LuksHeader::load(&disk).expect("whole");
    assert!(header.unlock(&disk, 0, ONE).is_err());
}

#[test]
fn after_a_cut_the_next_change_wipes_what_was_left() {
    let disk = formatted();
    let mut header = LuksHeader::load(&disk).expect("formatted");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    let area = 32_768..32_768 + 258_048;
    let old = disk.image()[area.clone()].to_vec();
    header
        .set_phrase(&disk, 0, THREE, &key)
        .expect("a disk that works");
    assert_ne!(disk.image()[area.clone()], old, "it was wiped");
    // The state as if the power had failed before the old material was wiped.
    disk.overwrite(area.start, &old);
    let mut header = LuksHeader::load(&disk).expect("whole");
    header
        .set_phrase(&disk, 1, TWO, &key)
        .expect("a disk that works");
    assert_ne!(disk.image()[area.start..area.start + 512], old[..512]);
    for (slot, phrase) in [(0, THREE), (1, TWO)] {
        let found = header
            .unlock(&disk, slot, phrase)
            .expect("the phrase of it");
        assert_eq!(found, key);
    }
}

#[test]
fn slots_come_and_go_and_the_last_stays() {
    let disk = formatted();
    let image = disk.image().clone();
    let mut header = LuksHeader::load(&disk).expect("formatted");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    header
        .set_phrase(&disk, 7, THREE, &key)
        .expect("a disk that works");
    assert!(header.unlock(&disk, 7, THREE).is_ok());
    header.remove_slot(&disk, 0).expect("two are left");
    header.remove_slot(&disk, 1).expect("one is left");
    let last = header.remove_slot(&disk, 7).expect_err("the last");
    assert_eq!(
        last.to_string(),
        "key slot 7 is the last that opens the data and stays"
    );
    assert!(header.remove_slot(&disk, 0).is_err(), "it is gone");
    at_every_cut(image, &disk.take_ops(), |cut| {
        let header = LuksHeader::load(cut).expect("one copy is whole");
        let phrases = [(0, ONE), (1, TWO), (7, THREE)];
        let mut open = phrases
            .into_iter()
            .filter_map(|(slot, phrase)| header.unlock(cut, slot, phrase).ok());
        assert!(open.next().is_some_and(|found| found == key));
    });
}

#[test]
fn an_erasure_that_began_is_finished() {
    let disk = formatted();
    disk.overwrite(VAULT_A_AT as usize, &[0xaa; 3]);
    disk.overwrite(DATA_AT as usize, b"data");
    let image = disk.image().clone();
    let erased = SealedPartition::erase(&disk, BYTES).expect("a disk that works");
    assert_eq!(erased.overwritten, DATA_AT);
    assert!(erased.discarded.is_err(), "the test's disk takes no blocks");
    assert!(disk.image()[..DATA_AT as usize].iter().all(|b| *b == 0));
    assert_eq!(disk.image()[DATA_AT as usize..][..4], *b"data");
    let (mut whole, mut begun) = (0, 0);
    at_every_cut(
        image,
        &disk.take_ops(),
        |cut| match SealedPartition::probe(cut, BYTES).expect("readable") {
            PartitionContent::Sealed(_) => whole += 1,
            PartitionContent::Erasing => begun += 1,
            PartitionContent::Unsealed => {
                assert!(cut.image()[..DATA_AT as usize].iter().all(|b| *b == 0))
            }
            other => panic!("{other:?}"),
        },
    );
    assert!(whole >= 1 && begun > 100, "{whole} {begun}");
}

/// Wherever the power fails, the next start either knows that something is left to do, or finds the
/// old state.
#[test]
fn an_erasure_that_is_unsettled_leaves_its_mark_and_no_key() {
    let disk = formatted();
    disk.overwrite(VAULT_A_AT as usize, &[0xaa; 3]);
    let image = disk.image().clone();
    SealedPartition::erase_unsettled(&disk, BYTES).expect("a disk that works");
    let found = SealedPartition::probe(&disk, BYTES).expect("readable");
    assert!(matches!(found, PartitionContent::Erasing), "{found:?}");
    assert!(SealedPartition::is_unsettled(&disk).expect("readable"));
    let keys = 512..DATA_AT as usize;
    assert!(disk.image()[keys].iter().all(|b| *b == 0));
    at_every_cut(
        image,
        &disk.take_ops(),
        |cut| match SealedPartition::probe(cut, BYTES).expect("readable") {
            PartitionContent::Sealed(_) => {}
            PartitionContent::Erasing => {
                assert!(SealedPartition::is_unsettled(cut).expect("readable"))
            }
            other => panic!("{other:?}"),
        },
    );
    SealedPartition::erase(&disk, BYTES).expect("a disk that works");
    assert!(disk.image()[..DATA_AT as usize].iter().all(|b| *b == 0));
    assert!(!SealedPartition::is_unsettled(&disk).expect("readable"));
}

/// The memo names what the erased vault knew. The next start needs it wherever the power fails, and
/// so does the one after it if the memo stays.
#[test]
fn a_memo_outlives_an_erasure_until_it_is_over() {
    let memo: [u8; MEMO_BYTES] = std::array::from_fn(|at| at as u8);
    for stays in [false, true] {
        let disk = formatted();
        assert_eq!(
            SealedPartition::memo(&disk).expect("readable"),
            [0; MEMO_BYTES]
        );
        SealedPartition::set_memo(&disk, &memo).expect("a disk that works");
        SealedPartition::load(&disk, BYTES).expect("it is not the header's");
        assert!(matches!(disk.take_ops().last(), Some(DiskOp::Flush)));
        let image = disk.image().clone();
        let erased = match stays {
            true => SealedPartition::erase_all_but_memo(&disk, BYTES),
            false => SealedPartition::erase(&disk, BYTES),
        };
        erased.expect("a disk that works");
        at_every_cut(image, &disk.take_ops(), |cut| {
            let is_whole = SealedPartition::memo(cut).expect("readable") == memo;
            match SealedPartition::probe(cut, BYTES).expect("readable") {
                PartitionContent::Sealed(_) => assert!(is_whole),
                PartitionContent::Unsealed => assert_eq!(is_whole, stays),
                // The memo is erased last, so if it is gone, everything else is gone as well.
                PartitionContent::Erasing if !is_whole && !stays => {
                    let keys = &cut.image()[512..DATA_AT as usize];
                    let left = keys.iter().enumerate().filter(|(_, byte)| **byte != 0);
                    let memo = MEMO_AT as usize - 512..MEMO_AT as usize - 512 + MEMO_BYTES;
                    assert!(left.into_iter().all(|(at, _)| memo.contains(&at)));
                }
                PartitionContent::Erasing => assert!(is_whole),
                other => panic!("{other:?}"),
            }
        });
        let mut head = disk.image()[..DATA_AT as usize].to_vec();
        let at = MEMO_AT as usize;
        let kept = head.splice(at..at + MEMO_BYTES, [0; MEMO_BYTES]);
        let kept: Vec<_> = kept.collect();
        assert_eq!(kept == memo, stays);
        assert!(head.iter().all(|byte| *byte == 0));
    }
}

/// When the console says that a factory reset has begun, the disk has this mark.
#[test]
fn a_mark_of_an_erasing_is_flushed_before_it_counts() {
    let disk = formatted();
    SealedPartition::begin_erasing(&disk).expect("a disk that works");
    let ops = disk.take_ops();
    assert!(
        matches!(ops[..], [DiskOp::Write { at: 0, .. }, DiskOp::Flush]),
        "{ops:?}"
    );
}

#[test]
fn a_sector_that_cannot_be_written_does_not_save_the_keys() {
    for broken in [0, 600, 32_768, 16_384] {
        let disk = formatted();
        disk.break_at(broken);
        let before = disk.image().clone();
        let error = SealedPartition::erase(&disk, BYTES).expect_err("a broken sector");
        assert!(error.to_string().contains("broken"), "{error}");
        let page = broken / 4096;
        let left = (1..before.len().min(600_000) / 4096)
            .filter(|at| before[at * 4096..][..4096] == disk.image()[at * 4096..][..4096]);
        let left: Vec<_> = left.collect();
        assert!(left.iter().all(|at| at.abs_diff(page) <= 1), "{left:?}");
        if broken > 0 {
            let found = SealedPartition::probe(&disk, BYTES).expect("readable");
            assert!(matches!(found, PartitionContent::Erasing), "{found:?}");
        }
        assert!(SealedPartition::load(disk, BYTES).is_err());
    }
}

#[test]
fn too_small_is_said_before_anything_is_written() {
    let new = NewHeader {
        phrases: &[ONE],
        ..new_header()
    };
    let disk = TestDisk::blank();
    let refused = SealedPartition::format(&disk, 17 << 10, &new).expect_err("17 KiB");
    assert!(refused.to_string().contains("17408 bytes"), "{refused}");
    assert!(disk.take_ops().is_empty());
}
