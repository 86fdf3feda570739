//! Blocks that a disk does not give, and blocks that it does not take or does not keep.

use std::cell::RefCell;

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

/// What the disk has in some sectors, whether it gives them or not.
fn sectors(disk: &FaultyDisk, range: Range<u64>) -> Vec<Vec<u8>> {
    range.map(|lba| disk.sector(lba)).collect()
}

/// A damaged block at the end of a disk can be read once it is written, and one where the image has its backup is nothing that
/// the growth needs. If the error of a read ends the growth, the blocks fail that it reads before it writes (`is_read`). The
/// other two fail if it needs more than these.
#[test]
fn a_block_that_cannot_be_read_keeps_no_table_from_growing() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    let last = whole.last();
    for (lba, is_read, is_written) in [
        (0, true, false),
        (IMAGE_LAST - ARRAY, false, false),
        (IMAGE_LAST, true, false),
        (last - ARRAY, false, true),
        (last, true, true),
    ] {
        let mut disk = whole.clone();
        match is_written {
            true => disk.unreadable_until_written = RefCell::new(vec![lba]),
            false => disk.unreadable = vec![lba],
        }
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
        disk.unreadable_until_written = RefCell::new(unreadable.to_vec());
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

#[track_caller]
fn assert_not_read_back(settled: &SettledTable, lba: u64) {
    let refused = &settled.placement;
    let is_named = matches!(refused, Err(GptError::NotReadBack(block)) if block.lba == lba);
    assert!(is_named, "{lba}: {refused:?}");
}

/// The attack: a block of the primary takes each write, and cannot be read. A start that takes the primary for repaired repairs
/// it for ever, because the kernel does not find the partition.
#[test]
fn a_primary_that_cannot_be_read_back_is_not_repaired() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    assert_grown(&whole.settle());
    let last = whole.last();
    for lba in [1, 2, 33] {
        let mut disk = whole.clone();
        disk.unreadable = vec![lba];
        for _ in 0..2 {
            let settled = disk.settle();
            assert_not_read_back(&settled, lba);
            assert_eq!(settled.image_guids, ImageGuids::Absent);
        }
        let backup = last - ARRAY..last + 1;
        assert!(sectors(&disk, backup.clone()) == sectors(&whole, backup));
    }
}

/// The attack: the last blocks of a longer disk take each write, and one of them cannot be read. A growth that goes on would
/// write over the only table that can be read, and a power cut would leave none.
#[test]
fn a_backup_that_cannot_be_read_back_leaves_the_primary_as_it_is() {
    let file = image(IMAGE_BYTES);
    let of_image = image(GROWN_BYTES);
    run(&file);
    file.as_file().set_len(GROWN_BYTES).expect("a sparse file");
    for (file, expected) in [
        (&of_image, ImageGuids::Present),
        (&file, ImageGuids::Absent),
    ] {
        let whole = FaultyDisk::new(file);
        let last = whole.last();
        for lba in [last, last - ARRAY, last - 1] {
            let mut disk = whole.clone();
            disk.unreadable = vec![lba];
            for _ in 0..2 {
                let settled = disk.settle();
                assert_not_read_back(&settled, lba);
                assert_eq!(settled.image_guids, expected, "{lba}");
            }
            let table = 0..last - ARRAY;
            assert!(
                sectors(&disk, table.clone()) == sectors(&whole, table),
                "{lba}: something else than the new backup was written"
            );
            // The disk gives the block again, and the partition grows.
            disk.unreadable.clear();
            assert_grown(&disk.settle());
            assert_eq!(disk.headers(), [1, last], "{lba}");
        }
    }
}

/// The attack: disks of one build go to several machines, and each of them says that it took the table of a first start, and
/// keeps that of the image.
#[test]
fn a_disk_that_drops_its_own_guids_has_those_of_the_image() {
    let whole = FaultyDisk::new(&image(GROWN_BYTES));
    let last = whole.last();
    let backup: Vec<u64> = (last - ARRAY..=last).collect();
    let primary: Vec<u64> = (1..=1 + ARRAY).collect();
    for (dropping, not_kept) in [
        (vec![1], 1),
        (vec![2], 1),
        (primary, 1),
        (vec![last - ARRAY], last),
        (vec![last], last),
        (backup, last),
        ((0..=last).collect(), last),
    ] {
        let mut disk = whole.clone();
        disk.dropping = dropping;
        let settled = disk.settle();
        let refused = &settled.placement;
        let is_named = matches!(refused, Err(GptError::NotKept(lba)) if *lba == not_kept);
        assert!(is_named, "{not_kept}: {refused:?}");
        assert_eq!(settled.image_guids, ImageGuids::Present);
        if not_kept == last {
            let table = 0..last - ARRAY;
            assert!(sectors(&disk, table.clone()) == sectors(&whole, table));
        }
        // It keeps the writes of a later start.
        disk.dropping.clear();
        assert_grown(&disk.settle());
        assert_eq!(disk.headers(), [1, last]);
    }
}

/// The attack: a disk that had a vault before the image was written says that it overwrote it.
#[test]
fn a_vault_that_the_disk_keeps_is_not_this_machines() {
    let file = image(GROWN_BYTES);
    let made = keyslot_tests::vault();
    copies(file.path()).create(&made).expect("written");
    let mut disk = FaultyDisk::new(&file);
    let [from, to] = [MEMO_AT, DATA_AT].map(|at| (DATA_BEGIN + at) / SECTOR);
    disk.dropping = (from..to).collect();
    for _ in 0..2 {
        let settled = disk.settle();
        let refused = &settled.placement;
        assert!(
            matches!(refused, Err(GptError::EarlierVault(_))),
            "{refused:?}"
        );
        assert_eq!(settled.image_guids, ImageGuids::Present);
    }
    disk.dropping.clear();
    assert_grown(&disk.settle());
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
