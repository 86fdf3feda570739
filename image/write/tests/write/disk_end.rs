//! Disks that are longer than their image, with another partition table at their end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use alknet_image::{DATA_HEAD_END, ImageForm};
use alknet_image_write::verify_programs;

use crate::efi_forms::SignedDisk;
use crate::released::ReleaseFolder;
use crate::tampered::{DiskCopy, crc32};

/// Bytes behind the place of the vault, which ends behind the image.
const BEHIND_BYTES: u64 = 8 << 20;
/// Bytes of the entries of a partition table.
const ENTRIES_BYTES: usize = 16 << 10;
/// The type of EFI system partitions, as an entry has it.
const ESP_TYPE: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// Writes the backup of a partition table to a disk, as a medium of `medium_bytes` with blocks of so many bytes has it. Its
/// EFI system partition begins behind the place of the vault.
fn put_other_table(disk: &File, medium_bytes: u64, block_bytes: u64) {
    let blocks = medium_bytes / block_bytes;
    let entries_blocks = ENTRIES_BYTES as u64 / block_bytes;
    let last = blocks - 1;
    let entries_at = last - entries_blocks;
    let mut entries = vec![0; ENTRIES_BYTES];
    entries[..16].copy_from_slice(&ESP_TYPE);
    entries[16..32].fill(0x44);
    for (at, block) in [(32, DATA_HEAD_END / block_bytes), (40, entries_at - 1)] {
        entries[at..at + 8].copy_from_slice(&block.to_le_bytes());
    }
    // The revision 1.0, and the bytes of the header.
    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
    header.resize(92, 0);
    for (at, number) in [
        (24, last),
        (32, 1),
        (40, 2 + entries_blocks),
        (48, entries_at - 1),
        (72, entries_at),
    ] {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    header[56..72].fill(0x45);
    for (at, number) in [(80, 128), (84, 128), (88, crc32(&entries))] {
        header[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    for (content, at) in [(entries, entries_at), (header, last)] {
        disk.write_all_at(&content, at * block_bytes)
            .expect("writable");
    }
}

/// The attack: the image is whole, and a medium with larger blocks has its partition table at its end alone, which is the end
/// of the disk or lies before it.
#[test]
fn another_table_at_the_end_of_a_longer_disk_is_refused() {
    let release = ReleaseFolder::shared();
    // The parts of this one are compared one by one.
    let configured = DiskCopy::unstarted(&release);
    configured.add("alknet.toml");
    let started = DiskCopy::new(&release);
    for copy in [DiskCopy::unstarted(&release), configured, started] {
        let bytes = DATA_HEAD_END + BEHIND_BYTES;
        copy.disk.set_len(bytes).expect("sparse");
        copy.verify().expect("nothing is there");
        // The first is what a disk of today has from a system that it had before.
        for (earlier, block_bytes) in [(0, 512), (64 << 10, 2048), (0, 4096)] {
            put_other_table(&copy.disk, bytes - earlier, block_bytes);
            let said = copy.refused("another table");
            let distance = earlier + block_bytes;
            let expected = format!("another partition table begins {distance} bytes before");
            assert!(said.contains(&expected), "{said}");
            copy.disk.set_len(DATA_HEAD_END).expect("ours");
            copy.disk.set_len(bytes).expect("sparse");
        }
    }
}

/// Firmware then finds programs there that no key signed.
#[test]
fn a_signed_disk_with_another_table_at_its_end_does_not_count_as_signed() {
    let signed = SignedDisk::new(ImageForm::Raw);
    let disk = signed.open();
    let bytes = DATA_HEAD_END + BEHIND_BYTES;
    for (earlier, block_bytes) in [(0, 2048), (64 << 10, 4096)] {
        disk.set_len(bytes).expect("sparse");
        put_other_table(&disk, bytes - earlier, block_bytes);
        let part = signed.other_part();
        let distance = earlier + block_bytes;
        let expected = format!("another partition table begins {distance} bytes before");
        assert!(part.contains(&expected), "{part}");
        disk.set_len(DATA_HEAD_END).expect("ours");
    }
}

/// A disk with other identities counts as one that a machine was started from, and only a first start moves the table's end.
#[test]
fn bytes_behind_a_table_that_ends_with_the_image_are_counted() {
    let release = ReleaseFolder::shared();
    let copy = DiskCopy::new(&release);
    let bytes = copy.disk.metadata().expect("ours").len();
    let behind = || copy.verify().expect("other identities").bytes_behind;
    assert_eq!(behind(), 0);
    copy.disk.set_len(bytes + BEHIND_BYTES).expect("sparse");
    assert_eq!(behind(), BEHIND_BYTES);
    // The footer of a VHD lies behind each table.
    for form in [ImageForm::Raw, ImageForm::Vhd] {
        let signed = SignedDisk::new(form);
        let certificate = signed.owner.certificate();
        let behind = || {
            let checked = verify_programs(&signed.path, &certificate);
            checked.expect("both are signed").bytes_behind
        };
        assert_eq!(behind(), 0, "{form}");
        let disk = signed.open();
        let bytes = disk.metadata().expect("ours").len();
        disk.set_len(bytes + BEHIND_BYTES).expect("sparse");
        // Without its place at the end, the footer is a part of what no program reads.
        let footer = if form == ImageForm::Vhd { 512 } else { 0 };
        assert_eq!(behind(), footer + BEHIND_BYTES, "{form}");
    }
}
