mod blocks;
mod faulty;
mod order;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use alknet_sealed::limits::{DATA_AT, MEMO_AT, VAULT_A_AT, VAULT_B_AT};
use alknet_vault::slots::{FileCopyStorage, VaultCopies};

use super::*;
use crate::data::ext4::BLANK_BYTES;
use crate::data::keyslot_tests;

/// The file of a test, through the cache of the kernel.
impl DiskAccess for File {
    fn read_sectors(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn write_sectors(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

pub(in crate::data) const SECTOR: u64 = 512;
pub(in crate::data) const IMAGE_BYTES: u64 = 24 << 20;
const GROWN_BYTES: u64 = 40 << 20;

/// A small image like the shipped one, which another program made, whose GUIDs say "from the
/// build".
pub(in crate::data) fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(IMAGE_BYTES).expect("a sparse file");
    let status = Command::new("sgdisk")
        .args(["-a1", "-U", "11111111-2222-5333-8444-555555555555"])
        .args(["-n1:34:2047", "-t1:EF02", "-c1:alk-bios"])
        .args(["-n2:2048:20479", "-t2:EF00", "-c2:alk-esp"])
        .args(["-n3:20480:0", "-t3:8300", "-c3:alk-data"])
        .args(["-u3:AAAAAAAA-2222-5333-8444-555555555555"])
        .arg(file.path())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("sgdisk is installed (package gdisk)");
    assert!(status.success());
    file.as_file().set_len(bytes).expect("a sparse file");
    file
}

fn verify(file: &tempfile::NamedTempFile) {
    let output = Command::new("sgdisk")
        .arg("-v")
        .arg(file.path())
        .output()
        .expect("sgdisk is installed (package gdisk)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("No problems found"), "{text}");
}

fn disk(file: &tempfile::NamedTempFile) -> GptDisk<'_> {
    let bytes = file.as_file().metadata().expect("the file is there").len();
    GptDisk {
        access: file.as_file(),
        sector: SECTOR,
        sectors: bytes / SECTOR,
    }
}

fn counting() -> impl FnMut() -> io::Result<[u8; 16]> {
    let mut next = 0;
    move || {
        next += 1;
        Ok([next; 16])
    }
}

fn run(file: &tempfile::NamedTempFile) -> GptPlacement {
    let settled = settle(&disk(file), "alk-data", counting());
    assert_eq!(settled.image_guids, ImageGuids::Absent);
    assert!(settled.unreadable.is_empty(), "{:?}", settled.unreadable);
    settled.placement.expect("a good table")
}

#[test]
fn the_first_boot_grows_and_rerolls_and_the_second_does_nothing() {
    let file = image(GROWN_BYTES);
    let first = run(&file);
    assert_eq!(first.changes, ["fresh GUIDs", "grown to the disk's end"]);
    assert_eq!((first.number, first.start), (3, 20480 * SECTOR));
    assert_eq!(first.start + first.length, GROWN_BYTES - ALIGN_BYTES);
    verify(&file);
    let second = run(&file);
    assert!(second.changes.is_empty());
    assert_eq!(second.length, first.length);
}

#[test]
fn a_disk_of_the_images_size_only_gets_fresh_guids() {
    let file = image(IMAGE_BYTES);
    assert_eq!(run(&file).changes, ["fresh GUIDs"]);
    verify(&file);
    assert!(run(&file).changes.is_empty());
}

#[test]
fn every_torn_state_of_the_growth_is_repaired() {
    // Both of one image: each has other GUIDs of the partitions that the machine leaves alone.
    let file = image(GROWN_BYTES);
    let before = std::fs::read(file.path()).expect("readable");
    run(&file);
    let after = std::fs::read(file.path()).expect("readable");
    let changed: Vec<usize> = (0..before.len() / 512)
        .filter(|at| before[at * 512..][..512] != after[at * 512..][..512])
        .collect();
    let between = |range: Range<usize>| -> Vec<usize> {
        let changed = changed.iter().copied();
        changed.filter(|at| range.contains(at)).collect()
    };
    let image_end = (IMAGE_BYTES / SECTOR) as usize;
    let earlier = between(64..image_end);
    assert_eq!(earlier, [image_end - 1], "the header of the earlier backup");
    // In the order of the flushes.
    let backup = between(image_end..before.len() / 512);
    let mut flushed: Vec<usize> = Vec::new();
    for next in [backup, earlier, between(0..64)] {
        assert!(!next.is_empty());
        for subset in subsets(&next) {
            recovers(&before, &after, &[&flushed[..], &subset[..]].concat());
        }
        flushed.extend(next);
    }
}

/// The sectors with the header of a table.
fn headers(file: &tempfile::NamedTempFile) -> Vec<u64> {
    let content = std::fs::read(file.path()).expect("readable");
    let sectors = (0..).zip(content.chunks(SECTOR as usize));
    let headers = sectors.filter(|(_, sector)| sector.starts_with(HEADER_MARK));
    headers.map(|(lba, _)| lba).collect()
}

fn subsets(of: &[usize]) -> Vec<Vec<usize>> {
    (0..1_u32 << of.len())
        .map(|mask| {
            let chosen = of
                .iter()
                .enumerate()
                .filter(|(bit, _)| mask >> bit & 1 == 1);
            chosen.map(|(_, at)| *at).collect()
        })
        .collect()
}

/// Checks that the next boot ends in a valid, grown table, without the earlier backup, if only the sectors `written` reached
/// the disk.
fn recovers(before: &[u8], after: &[u8], written: &[usize]) {
    let mut torn = before.to_vec();
    for at in written {
        torn[at * 512..][..512].copy_from_slice(&after[at * 512..][..512]);
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), torn).expect("writable");
    let settled = run(&file);
    assert_eq!(settled.start + settled.length, GROWN_BYTES - ALIGN_BYTES);
    assert_eq!(headers(&file), [1, GROWN_BYTES / SECTOR - 1]);
    assert!(run(&file).changes.is_empty(), "a second boot does nothing");
    verify(&file);
}

/// `alknet image verify` refuses a disk with another header near its end.
#[test]
fn a_disk_that_grows_again_and_again_has_one_backup() {
    let file = image(GROWN_BYTES);
    run(&file);
    let mut bytes = GROWN_BYTES;
    // The new backup covers the earlier header, begins right behind it, and lies further away.
    for more in [SECTOR, 32 * SECTOR, 33 * SECTOR, ALIGN_BYTES, ALIGN_BYTES] {
        bytes += more;
        file.as_file().set_len(bytes).expect("a sparse file");
        assert!(!run(&file).changes.is_empty(), "{bytes}");
        assert_eq!(headers(&file), [1, bytes / SECTOR - 1], "{more}");
        verify(&file);
        assert!(run(&file).changes.is_empty(), "{bytes}");
    }
}

/// A file may be the image of a disk, and the primary of another program may name any sector.
#[test]
fn a_header_within_a_partition_is_not_overwritten() {
    const WITHIN_ESP: u64 = 3000;
    let file = image(GROWN_BYTES);
    run(&file);
    let table = GptTable::read(&disk(&file), 1).expect("readable");
    let mut table = table.expect("valid");
    table.alternate_lba = WITHIN_ESP;
    table.write(&disk(&file)).expect("writable");
    let within = WITHIN_ESP * SECTOR;
    let written = file.as_file().write_all_at(HEADER_MARK, within);
    written.expect("writable");
    assert_eq!(run(&file).changes, ["primary table rewritten"]);
    let last = GROWN_BYTES / SECTOR - 1;
    assert_eq!(headers(&file), [1, WITHIN_ESP, last]);
}

#[test]
fn foreign_guids_are_kept() {
    let file = image(IMAGE_BYTES);
    let status = Command::new("sgdisk")
        .args(["-U", "11111111-2222-4333-8444-555555555555"])
        .args(["-u3:AAAAAAAA-2222-4333-8444-555555555555"])
        .arg(file.path())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("sgdisk is installed");
    assert!(status.success());
    assert!(run(&file).changes.is_empty());
}

#[test]
fn both_copies_damaged_is_refused_and_nothing_is_written() {
    let file = image(IMAGE_BYTES);
    for lba in [1, IMAGE_BYTES / SECTOR - 1] {
        file.as_file()
            .write_all_at(&[0xff; 16], lba * SECTOR + 20)
            .expect("writable");
    }
    let before = std::fs::read(file.path()).expect("readable");
    let settled = settle(&disk(&file), "alk-data", counting());
    assert!(matches!(settled.placement, Err(GptError::NoTable)));
    assert_eq!(std::fs::read(file.path()).expect("readable"), before);
}

#[test]
fn a_missing_name_a_partition_behind_and_tiny_disks_are_refused() {
    let file = image(IMAGE_BYTES);
    let settled = settle(&disk(&file), "other", counting());
    assert!(matches!(settled.placement, Err(GptError::NoPartition(_))));
    let settled = settle(&disk(&file), "alk-esp", counting());
    assert!(matches!(settled.placement, Err(GptError::NotLast(_))));
    let tiny = tempfile::NamedTempFile::new().expect("a temporary file");
    for bytes in [0, 512, 1024, 4096] {
        tiny.as_file().set_len(bytes).expect("a sparse file");
        let settled = settle(&disk(&tiny), "alk-data", counting());
        assert!(settled.placement.is_err());
    }
}

#[test]
fn names_looks_at_both_copies() {
    let file = image(IMAGE_BYTES);
    assert!(names(&disk(&file), "alk-data"));
    assert!(!names(&disk(&file), "alk-dat"));
    file.as_file()
        .write_all_at(&[0xff; 16], SECTOR + 20)
        .expect("writable");
    assert!(names(&disk(&file), "alk-data"));
}

/// Where the data partition of `image` begins.
const DATA_BEGIN: u64 = 20480 * SECTOR;

/// The copies of the vault on a disk of `image`.
fn copies(disk: &Path) -> VaultCopies<FileCopyStorage> {
    let at = |at| FileCopyStorage::at(disk, DATA_BEGIN + at);
    VaultCopies::new(at(VAULT_A_AT), at(VAULT_B_AT))
}

fn has_vault(file: &tempfile::NamedTempFile) -> bool {
    copies(file.path()).load().expect("readable").is_some()
}

fn bytes_of(file: &tempfile::NamedTempFile, at: u64, count: usize) -> Vec<u8> {
    let mut content = vec![1; count];
    let read = file.as_file().read_exact_at(&mut content, DATA_BEGIN + at);
    read.expect("readable");
    content
}

/// An attacker, who had the disk before its owner, leaves a vault and a memo of TPMs behind the end of the image.
#[test]
fn a_vault_from_before_the_image_is_not_this_machines() {
    let file = image(GROWN_BYTES);
    let made = keyslot_tests::vault();
    copies(file.path()).create(&made).expect("written");
    file.as_file()
        .write_all_at(b"a forged memo", DATA_BEGIN + MEMO_AT)
        .expect("writable");
    // Bytes that no vault has would keep the machine closed.
    file.as_file()
        .write_all_at(b"former swap space", DATA_BEGIN + DATA_AT - 20)
        .expect("writable");
    assert_eq!(run(&file).earlier, Some(EarlierContent::Overwritten));
    assert!(!has_vault(&file));
    let areas = bytes_of(&file, MEMO_AT, (DATA_AT - MEMO_AT) as usize);
    assert!(areas.iter().all(|byte| *byte == 0));

    // From here on a vault is of this machine: a first boot that was cut short goes on with it.
    copies(file.path()).create(&made).expect("written");
    for _ in 0..2 {
        let settled = run(&file);
        assert_eq!((settled.earlier, settled.changes.len()), (None, 0));
        assert!(has_vault(&file));
    }
    let fresh = image(GROWN_BYTES);
    assert_eq!(run(&fresh).earlier, Some(EarlierContent::Blank));
}

/// The power fails, or the disk fails, before the areas are zero: the GUIDs are still the image's, so the next start
/// does both.
#[test]
fn the_guids_are_replaced_after_an_earlier_vault_is_gone() {
    let file = image(GROWN_BYTES);
    copies(file.path())
        .create(&keyslot_tests::vault())
        .expect("written");
    let before = std::fs::read(file.path()).expect("readable");
    let reader = File::open(file.path()).expect("readable");
    let read_only = GptDisk {
        access: &reader,
        ..disk(&file)
    };
    let refused = settle(&read_only, "alk-data", counting());
    assert!(
        matches!(refused.placement, Err(GptError::EarlierVault(_))),
        "{refused:?}"
    );
    assert_eq!(refused.image_guids, ImageGuids::Present);
    assert_eq!(std::fs::read(file.path()).expect("readable"), before);
    assert_eq!(run(&file).earlier, Some(EarlierContent::Overwritten));
    assert!(!has_vault(&file));
}

/// An image that was written without the zeros of its data partition leaves the node that the disk had.
#[test]
fn a_node_that_the_image_left_on_the_disk_stays() {
    for at in [0, BLANK_BYTES as u64 - 1] {
        let file = image(GROWN_BYTES);
        copies(file.path())
            .create(&keyslot_tests::vault())
            .expect("written");
        file.as_file()
            .write_all_at(&[1], DATA_BEGIN + at)
            .expect("writable");
        assert_eq!(run(&file).earlier, Some(EarlierContent::Kept), "{at}");
        assert!(has_vault(&file), "{at}");
        assert_eq!(run(&file).earlier, None, "{at}");
    }
}

/// A partition that cannot grow gets its GUIDs all the same: otherwise each start would take its vault for an earlier
/// one.
#[test]
fn a_partition_that_cannot_grow_keeps_its_own_vault() {
    let file = image(GROWN_BYTES);
    let status = Command::new("sgdisk")
        .args(["-e", "-n4:65536:0", "-t4:8300"])
        .arg(file.path())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("sgdisk is installed");
    assert!(status.success());
    for _ in 0..2 {
        let refused = settle(&disk(&file), "alk-data", counting());
        let placement = &refused.placement;
        assert!(
            matches!(placement, Err(GptError::NotLast(_))),
            "{refused:?}"
        );
        assert_eq!(refused.image_guids, ImageGuids::Absent);
        let table = GptTable::read(&disk(&file), 1)
            .expect("readable")
            .expect("valid");
        assert!(!is_version_5(&table.disk_guid));
    }
    verify(&file);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    /// An attacker can write any bytes of a header, and reading it must not panic.
    #[test]
    fn hostile_headers_do_not_panic(
        fields in proptest::collection::vec((0_usize..92, proptest::prelude::any::<u8>()), 0..12)
    ) {
        let mut table = GptTable {
            my_lba: 1,
            alternate_lba: 4000,
            first_usable: 34,
            last_usable: 4000,
            disk_guid: [5; 16],
            entries_lba: 2,
            entries: vec![0; 128 * ENTRY_BYTES],
        };
        table.entries[..16].fill(1);
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(4 << 20).expect("a sparse file");
        let disk = disk(&file);
        table.write(&disk).expect("writable");
        let mut header = table.header(&disk);
        for (at, value) in fields {
            header[at] = value;
        }
        header[16..20].fill(0);
        let sum = crc32(&header[..HEADER_BYTES]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        file.as_file().write_all_at(&header, SECTOR).expect("writable");
        let _ = settle(&disk, "alk-data", counting());
    }
}

#[test]
fn crc32_is_the_one_of_the_standard() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn the_guid_of_a_partition_is_read_from_either_copy_of_the_table() {
    let file = image(IMAGE_BYTES);
    let start = 20480 * SECTOR;
    let guid = |start| partition_guid(&disk(&file), start).map(|guid| guid.to_string());
    let expected = Some("aaaaaaaa-2222-5333-8444-555555555555".to_owned());
    assert_eq!(guid(start), expected);
    assert_eq!(guid(start + SECTOR), None, "no partition begins there");
    let damaged = file.as_file().write_all_at(&[0; 8], SECTOR);
    damaged.expect("writable");
    assert_eq!(guid(start), expected);
}
