//! Damage as Linux and firmware leave it after a power cut: `fsck.vfat` sees it, and accepts what is repaired.

use std::fs::File;
use std::os::unix::fs::FileExt;

use alknet_fat::{FatFinding, RepairReport, RepairRules};

use crate::support::{VolumeFixture, content};

const OWN: [&str; 2] = [r"\A.EFI", r"\B.EFI"];
const SLOT_BYTES: u64 = 32;
const SECTOR_BYTES: u64 = 512;

/// A volume of FAT32 with two own files and a foreign one, in slots 1, 2 and 3 of its root: slot 0 has its name.
fn volume() -> VolumeFixture {
    let options = ["-F", "32", "-s", "1", "-n", "A LABEL"];
    let fixture = VolumeFixture::by_mkfs(40 << 10, &options);
    for (seed, name) in ["A.EFI", "B.EFI", "X.EFI"].iter().enumerate() {
        fixture.copy_in("/", name, &content(seed, 3000 + seed));
    }
    fixture
}

fn numbers<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).expect("on the volume");
    bytes
}

/// Position of the first table.
fn table_at(file: &File) -> u64 {
    u64::from(u16::from_le_bytes(numbers(file, 14))) * SECTOR_BYTES
}

/// Position of a slot of the root, which is the first cluster.
fn slot_at(file: &File, slot: u64) -> u64 {
    let table_sectors = u64::from(u32::from_le_bytes(numbers(file, 36)));
    table_at(file) + 2 * table_sectors * SECTOR_BYTES + slot * SLOT_BYTES
}

fn repair(fixture: &VolumeFixture) -> RepairReport {
    let (is_content, said) = fixture.fsck();
    assert!(!is_content, "the damage is there: {said}");
    let rules = RepairRules {
        own: &OWN,
        needed: 0,
        choose: &RepairRules::keep_own,
    };
    let report = fixture.open().repair(&rules).expect("FAT32");
    assert!(report.left.findings.is_empty(), "{report:?}");
    fixture.assert_fsck_is_content();
    report
}

#[test]
fn a_rename_of_linux_that_was_cut_keeps_the_chain() {
    let fixture = volume();
    let file = fixture.file();
    // Linux writes the new entry, and then removes the old one.
    let mut slot: [u8; SLOT_BYTES as usize] = numbers(&file, slot_at(&file, 1));
    slot[..11].copy_from_slice(b"A       NEW");
    file.write_all_at(&slot, slot_at(&file, 4))
        .expect("writable");
    let report = repair(&fixture);
    assert_eq!(report.dropped_names, [r"\A.NEW"]);
    for (seed, name) in ["A.EFI", "B.EFI", "X.EFI"].iter().enumerate() {
        let read = fixture.copy_out(&format!("/{name}"));
        assert!(read == content(seed, 3000 + seed), "{name}");
    }
}

#[test]
fn a_rename_of_firmware_that_was_cut_leaves_no_lost_chain() {
    let fixture = volume();
    let file = fixture.file();
    // Firmware removes the old entry, and then writes the new one.
    file.write_all_at(&[0xe5], slot_at(&file, 2))
        .expect("writable");
    let free = fixture.open().check(&OWN).expect("a volume").free_clusters;
    let report = repair(&fixture);
    assert_eq!(report.freed_clusters, 6);
    assert_eq!(report.left.free_clusters, free + 6);
    assert!(fixture.copy_out("/A.EFI") == content(0, 3000));
    assert!(fixture.copy_out("/X.EFI") == content(2, 3002));
}

#[test]
fn tables_that_differ_and_a_volume_that_was_not_unmounted_are_repaired_together() {
    let fixture = volume();
    let file = fixture.file();
    let second = table_at(&file) + u64::from(u32::from_le_bytes(numbers(&file, 36))) * SECTOR_BYTES;
    file.write_all_at(&[0; 12], second + 16).expect("writable");
    file.write_all_at(&[1], 65).expect("writable");
    file.write_all_at(&[9, 0, 0, 0], SECTOR_BYTES + 488)
        .expect("writable");
    let found = fixture.open().check(&OWN).expect("a volume").findings;
    assert!(found.contains(&FatFinding::Dirty), "{found:?}");
    assert!(
        found.contains(&FatFinding::TablesDiffer { entries: 3 }),
        "{found:?}"
    );
    let report = repair(&fixture);
    assert!(report.was_dirty && report.wrote_info && report.copied_entries == 3);
    for (seed, name) in ["A.EFI", "B.EFI", "X.EFI"].iter().enumerate() {
        let read = fixture.copy_out(&format!("/{name}"));
        assert!(read == content(seed, 3000 + seed), "{name}");
    }
}
