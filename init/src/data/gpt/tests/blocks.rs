//! Blocks that a disk does not give, and blocks that it does not take.

use super::faulty::FaultyDisk;
use super::*;

/// Sectors of the array of entries.
const ARRAY: u64 = 32;
/// Number of the last sector of the image, which has the header of its backup.
const IMAGE_LAST: u64 = IMAGE_BYTES / SECTOR - 1;

#[track_caller]
fn assert_grown(settled: &SettledTable) {
    let placement = settled.placement.as_ref().expect("it is settled");
    let end = placement.start + placement.length;
    assert_eq!(end, GROWN_BYTES - ALIGN_BYTES);
    assert_eq!(settled.image_guids, ImageGuids::Absent);
}

/// Numbers of the blocks that the log names.
fn unreadable_blocks(settled: &SettledTable) -> Vec<u64> {
    let blocks = settled.unreadable.iter();
    blocks.map(|block| block.lba).collect()
}

fn changes(settled: SettledTable) -> Vec<&'static str> {
    settled.placement.expect("it is settled").changes
}

/// A damaged block at the end of a disk, or where the image has its backup, is nothing that the growth needs.
#[test]
fn a_block_that_cannot_be_read_keeps_no_table_from_growing() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    let last = whole.last();
    for (lba, is_read) in [
        (0, true),
        (IMAGE_LAST - ARRAY, false),
        (IMAGE_LAST, true),
        (last - ARRAY, false),
        (last, true),
    ] {
        let mut disk = whole.clone();
        disk.unreadable = vec![lba];
        let first = disk.settle();
        assert_grown(&first);
        let expected = if is_read { vec![lba] } else { Vec::new() };
        assert_eq!(unreadable_blocks(&first), expected);
        let names_block = |block: &UnreadableBlock| {
            let text = block.to_string();
            text.starts_with(&format!("block {lba} cannot be read: "))
        };
        assert!(first.unreadable.iter().all(names_block), "{first:?}");
        assert_grown(&disk.settle());

        // The disk gives all blocks again, and what was written is what a start writes.
        disk.unreadable.clear();
        assert_eq!(changes(disk.settle()), [""; 0], "{lba}");
        let mut headers = vec![1, last];
        if lba == IMAGE_LAST {
            headers.insert(1, lba);
        }
        assert_eq!(disk.headers(), headers, "{lba}");
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_written_again_from_the_other_one() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    assert_grown(&whole.settle());
    let last = whole.last();
    let with_faults = |unreadable: &[u64]| {
        let mut disk = whole.clone();
        disk.take_steps();
        disk.unreadable = unreadable.to_vec();
        let settled = disk.settle();
        (settled, disk.take_steps())
    };
    // The header, and the first and last sector of the array.
    for lba in [1, 2, 33] {
        let (settled, _) = with_faults(&[lba]);
        assert_grown(&settled);
        assert_eq!(unreadable_blocks(&settled), [lba]);
        assert_eq!(changes(settled), ["primary table repaired"], "{lba}");
    }
    for lba in [last, last - ARRAY, last - 1] {
        let (settled, _) = with_faults(&[lba]);
        assert_grown(&settled);
        assert_eq!(unreadable_blocks(&settled), [lba]);
        assert_eq!(changes(settled), ["backup table rewritten"], "{lba}");
    }
    let (settled, steps) = with_faults(&[33, last]);
    assert_eq!(unreadable_blocks(&settled), [33, last]);
    let refused = &settled.placement;
    assert!(matches!(refused, Err(GptError::NoTable)), "{refused:?}");
    assert!(steps.is_empty(), "{steps:?}");
    // What cannot be read may be the table of the image.
    assert_eq!(settled.image_guids, ImageGuids::Present);
}

/// The attack: disks of one build go to several machines, and none of them takes the write by which a first start gives it
/// GUIDs of its own.
#[test]
fn a_disk_that_does_not_take_its_own_guids_has_those_of_the_image() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    let last = whole.last();
    for lba in [1, 2, IMAGE_LAST, last - ARRAY, last] {
        let mut disk = whole.clone();
        disk.unwritable = vec![lba];
        let settled = disk.settle();
        let refused = &settled.placement;
        assert!(matches!(refused, Err(GptError::Io(_))), "{refused:?}");
        assert_eq!(settled.image_guids, ImageGuids::Present, "{lba}");
        // It takes the write at a later start.
        disk.unwritable.clear();
        assert_grown(&disk.settle());
        assert_eq!(disk.headers(), [1, last], "{lba}");
    }
}

#[test]
fn a_disk_with_guids_of_its_own_keeps_them_when_it_takes_no_more_writes() {
    let image = FaultyDisk::new(&image(IMAGE_BYTES));
    let last = image.last();
    let mut own = image.clone();
    assert_eq!(changes(own.settle()), ["fresh GUIDs"]);
    own.unwritable = vec![last];
    let settled = own.settle();
    assert_eq!(settled.image_guids, ImageGuids::Absent);
    assert_eq!(changes(settled), [""; 0]);

    own.put(last, &[0; SECTOR as usize]);
    let settled = own.settle();
    assert!(settled.placement.is_err(), "{settled:?}");
    assert_eq!(settled.image_guids, ImageGuids::Absent);

    // A reader that does not find the primary would find the table of the image.
    for lba in last - ARRAY..=last {
        own.put(lba, &image.sector(lba));
    }
    let settled = own.settle();
    assert!(settled.placement.is_err(), "{settled:?}");
    assert_eq!(settled.image_guids, ImageGuids::Present);
}
