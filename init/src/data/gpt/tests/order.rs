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

/// Each disk that a cut within these steps can leave. What was synced is there. Of the writes after that all but the last
/// are there, or none, and the last one with any number of its first or of its last sectors.
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
                        part.iter().for_each(|(lba, sector)| disk.put(*lba, sector));
                        cut.push(disk);
                    }
                }
                all.iter()
                    .for_each(|(lba, sector)| written.put(*lba, sector));
            }
        }
    }
    cut
}

/// Checks that a cut disk has a valid table, and that the next start makes it that of a start without a cut.
fn recovers(disk: &FaultyDisk, expected: &GptPlacement) {
    let last = disk.last();
    let valid = [1, last].map(|lba| GptTable::read(&disk.geometry(), lba));
    let mut valid = valid.into_iter().flatten().flatten().peekable();
    assert!(
        valid.peek().is_some(),
        "no copy is valid: {:?}",
        disk.headers()
    );
    for table in valid {
        let found = table.find(|index| table.has_name(index, "alk-data"));
        let found = found.expect("each valid table has the partition");
        assert_eq!(table.bytes(&disk.geometry(), found).start, expected.start);
    }
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
