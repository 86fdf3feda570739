//! The order in which a table is written, as the disk sees it, and what power cuts leave of that.

use super::faulty::{FaultyDisk, RecordedStep};
use super::*;

/// The first sector and the number of sectors of each write, and `None` for a sync.
fn outline(steps: &[RecordedStep]) -> Vec<Option<(u64, usize)>> {
    let outline = steps.iter().map(|step| match step {
        RecordedStep::Sync => None,
        RecordedStep::Write(lba, sectors) => Some((*lba, sectors.len())),
    });
    outline.collect()
}

/// Each disk that a cut within these steps can leave. It has the faults of the disk before. What was synced is there. Of the
/// writes after that all but the last are there, or none, and the last one with any number of its first or of its last
/// sectors.
fn cut_disks(before: &FaultyDisk, steps: &[RecordedStep]) -> Vec<FaultyDisk> {
    let mut cut = Vec::new();
    let (mut synced, written) = (before.clone(), before.clone());
    for step in steps {
        match step {
            RecordedStep::Sync => synced = written.clone(),
            RecordedStep::Write(lba, sectors) => {
                let all: Vec<_> = (*lba..).zip(sectors).collect();
                for (count, base) in (0..=all.len()).flat_map(|at| [(at, &synced), (at, &written)])
                {
                    for part in [&all[..count], &all[count..]] {
                        let disk = base.clone();
                        part.iter()
                            .for_each(|(lba, sector)| disk.take_write(*lba, sector));
                        cut.push(disk);
                    }
                }
                all.iter()
                    .for_each(|(lba, sector)| written.take_write(*lba, sector));
            }
        }
    }
    cut
}

/// Checks that a reader finds a table on a cut disk, and the partition where it begins.
#[track_caller]
fn has_table(disk: &FaultyDisk, start: u64) {
    let valid = [1, disk.last()].map(|lba| GptTable::read(&disk.geometry(), lba));
    let mut valid = valid.into_iter().flatten().flatten().peekable();
    assert!(
        valid.peek().is_some(),
        "no copy is valid: {:?}",
        disk.headers()
    );
    for table in valid {
        let found = table.find(|index| table.has_name(index, "alk-data"));
        let found = found.expect("each valid table has the partition");
        assert_eq!(table.bytes(&disk.geometry(), found).start, start);
    }
}

/// Checks that a cut disk has a valid table, and that the next start makes it that of a start without a cut.
fn recovers(disk: &FaultyDisk, expected: &GptPlacement) {
    let last = disk.last();
    has_table(disk, expected.start);
    let settled = disk.settle();
    assert_eq!(settled.image_guids, ImageGuids::Absent);
    let placement = settled.placement.expect("a start ends what was begun");
    assert_eq!(
        (placement.number, placement.start, placement.length),
        (expected.number, expected.start, expected.length)
    );
    assert_eq!(disk.headers(), [1, last]);
    let again = disk.settle().placement.expect("it is settled");
    assert_eq!(again.changes, [""; 0], "a second start does nothing");
}

#[test]
fn a_growth_writes_the_backup_and_overwrites_the_earlier_one_before_it_writes_the_primary() {
    let before = FaultyDisk::new(&image(GROWN_BYTES));
    let grown = before.clone();
    let placement = grown.settle().placement.expect("it is settled");
    let (last, image_last) = (grown.last(), IMAGE_BYTES / SECTOR - 1);
    let steps = grown.take_steps();
    let expected = [
        Some((last - 32, 32)),
        Some((last, 1)),
        None,
        Some((image_last, 1)),
        None,
        Some((2, 32)),
        Some((1, 1)),
        None,
        Some((0, 1)),
        None,
    ];
    assert_eq!(outline(&steps), expected);
    let zeros = RecordedStep::Write(image_last, vec![vec![0; SECTOR as usize]]);
    assert_eq!(steps[3], zeros);
    for disk in cut_disks(&before, &steps) {
        recovers(&disk, &placement);
    }
}

/// The primary is damaged, and the backup still has the GUIDs of the image, so both copies are written. A cut while the backup
/// is written must not leave the disk without a table.
#[test]
fn the_only_whole_copy_stays_until_there_is_another_one() {
    let before = FaultyDisk::new(&image(IMAGE_BYTES));
    before.put(1, &[0xff; SECTOR as usize]);
    let repaired = before.clone();
    let placement = repaired.settle().placement.expect("it is settled");
    assert_eq!(placement.changes, ["primary table repaired", "fresh GUIDs"]);
    let (last, steps) = (repaired.last(), repaired.take_steps());
    let expected = [
        Some((2, 32)),
        Some((1, 1)),
        None,
        Some((last - 32, 32)),
        Some((last, 1)),
        None,
    ];
    assert_eq!(outline(&steps), expected);
    for disk in cut_disks(&before, &steps) {
        recovers(&disk, &placement);
    }
}

/// The attack: a block of a longer disk takes each write and cannot be read, or loses it, and the power fails at any step of the
/// growth or of the start after it.
#[test]
fn a_cut_on_a_disk_with_a_bad_block_leaves_a_table_that_can_be_read() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    let last = whole.last();
    let mut bad: Vec<FaultyDisk> = Vec::new();
    for lba in [last - 32, last - 1, last] {
        let mut disk = whole.clone();
        disk.unreadable = vec![lba];
        bad.push(disk);
    }
    // With a backup that is not read back, the blocks of the backup fail. Those of the primary fail if it is written first.
    for lba in [1, 2, last - 32, last] {
        let mut disk = whole.clone();
        disk.dropping = vec![lba];
        bad.push(disk);
    }
    for started in bad {
        for _ in 0..2 {
            let begun = started.clone();
            started.settle();
            let steps = started.take_steps();
            let cut = cut_disks(&begun, &steps);
            cut.iter().for_each(|disk| has_table(disk, DATA_BEGIN));
        }
    }
}

/// The only table is the backup, and the primary does not keep what is written there.
#[test]
fn a_cut_while_a_bad_primary_is_repaired_leaves_the_backup() {
    let whole = FaultyDisk::new(&image(IMAGE_BYTES));
    whole.put(1, &[0xff; SECTOR as usize]);
    for lba in [1, 2, 33] {
        for is_dropping in [false, true] {
            let mut before = whole.clone();
            match is_dropping {
                true => before.dropping = vec![lba],
                false => before.unreadable = vec![lba],
            }
            let started = before.clone();
            started.settle();
            let steps = started.take_steps();
            for disk in cut_disks(&before, &steps) {
                has_table(&disk, DATA_BEGIN);
            }
        }
    }
}
