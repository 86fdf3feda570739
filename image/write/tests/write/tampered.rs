//! Disks that boot other code than their manifest has, each in another way, and one that a machine uses.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use alknet_image::{DATA_HEAD_END, EspVolume};
use alknet_image_write::{ImageCheck, VerifyError, verify_disk};

use crate::released::ReleaseFolder;
use crate::support::{run, text};

const BLOCK: u64 = 512;
/// Place of the EFI system partition.
const ESP_AT: u64 = 1 << 20;
/// Places of the boot note and of the boot state record, as docs/boot.md has them.
const NOTE_AT: u64 = 2037 * BLOCK;
const RECORD_AT: u64 = 2046 * BLOCK;
const RECORD_BYTES: usize = 1024;
const ENTRY_BYTES: usize = 128;
/// Blocks of all entries of a partition table.
const ENTRIES_BLOCKS: u64 = 32;
/// Bytes of a slot of a folder.
const SLOT: usize = 32;
const EVIL: &[u8] = b"another program";

/// A copy of the released disk.
pub(crate) struct DiskCopy {
    release: Arc<ReleaseFolder>,
    dir: tempfile::TempDir,
    pub(crate) disk: File,
}

impl DiskCopy {
    /// A disk that a machine was started from, by its identity.
    pub(crate) fn new(release: &Arc<ReleaseFolder>) -> Self {
        let copy = Self::unstarted(release);
        // The identities that a first boot gives, so that the disk is not compared as a whole.
        let mut table = copy.table();
        table.header[56..72].copy_from_slice(&[0x44; 16]);
        table.entry(2)[16..32].copy_from_slice(&[0x45; 16]);
        copy.put(&table);
        copy
    }

    /// A disk with the identity of the image.
    pub(crate) fn unstarted(release: &Arc<ReleaseFolder>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("disk");
        run(
            "cp",
            &["--sparse=always", text(&release.raw()), text(&path)],
        );
        let disk = File::options().read(true).write(true).open(&path);
        Self {
            release: Arc::clone(release),
            dir,
            disk: disk.expect("ours"),
        }
    }

    pub(crate) fn verify(&self) -> Result<ImageCheck, VerifyError> {
        verify_disk(&self.dir.path().join("disk"), &self.release.manifest)
    }

    /// What the command says of the disk, which it must refuse.
    pub(crate) fn refused(&self, what: &str) -> String {
        match self.verify() {
            Ok(check) => panic!("{what}: {check:?}"),
            Err(error) => error.to_string(),
        }
    }

    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        self.disk.read_exact_at(&mut content, at).expect("readable");
        content
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.disk.write_all_at(bytes, at).expect("writable");
    }

    fn blocks(&self) -> u64 {
        self.disk.metadata().expect("ours").len() / BLOCK
    }

    fn table(&self) -> DiskTable {
        DiskTable {
            header: self.read(BLOCK, 92),
            entries: self.read(2 * BLOCK, ENTRIES_BLOCKS as usize * BLOCK as usize),
        }
    }

    /// Writes both copies of a table, each with its checksums.
    fn put(&self, table: &DiskTable) {
        let last = self.blocks() - 1;
        self.put_copy(table, 1, last, 2);
        self.put_copy(table, last, 1, last - ENTRIES_BLOCKS);
    }

    fn put_copy(&self, table: &DiskTable, own: u64, other: u64, entries: u64) {
        let mut header = table.header.clone();
        for (at, number) in [(24, own), (32, other), (72, entries)] {
            header[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        header[88..92].copy_from_slice(&crc32(&table.entries).to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        self.write(entries * BLOCK, &table.entries);
        self.write(own * BLOCK, &header);
    }

    /// Gives the boot state record other values.
    fn change_record(&self, values: &[(&str, &str)]) {
        let mut record = String::from_utf8(self.read(RECORD_AT, RECORD_BYTES)).expect("text");
        for (before, after) in values {
            assert!(record.contains(before), "{before}: {record}");
            record = record.replacen(before, after, 1);
        }
        self.write(RECORD_AT, &record.as_bytes()[..RECORD_BYTES]);
    }

    /// Adds a file to the EFI system partition, with the folders above it.
    pub(crate) fn add(&self, path: &str) {
        let mut volume = EspVolume::open(&self.disk).expect("ours");
        volume.add(path, EVIL).expect("it fits");
    }

    /// The place of a folder's first cluster.
    fn folder(&self, path: &[&[u8; 11]]) -> u64 {
        let boot = self.read(ESP_AT, 512);
        let reserved = u64::from(u16::from_le_bytes([boot[14], boot[15]]));
        let tables = u64::from(boot[16]) * u64::from(u32_at(&boot, 36));
        let data = ESP_AT + (reserved + tables) * BLOCK;
        let cluster_at = |number: u32| data + u64::from(number - 2) * u64::from(boot[13]) * BLOCK;
        let mut at = cluster_at(u32_at(&boot, 44));
        for name in path {
            let slot = self.read(self.slot(at, name), SLOT);
            at = cluster_at(
                u32::from(slot[21]) << 24 | u32::from(slot[20]) << 16 | u32_at(&slot, 26) & 0xffff,
            );
        }
        at
    }

    /// The place of an entry in the folder at `at`.
    fn slot(&self, at: u64, name: &[u8; 11]) -> u64 {
        let content = self.read(at, 2048);
        let mut slots = content.chunks_exact(SLOT);
        let number = slots.position(|slot| slot.starts_with(name));
        at + (number.expect("it has it") * SLOT) as u64
    }

    /// Gives an entry another short name, and takes its long name from it.
    fn rename(&self, folder: u64, from: &[u8; 11], to: &[u8; 11]) {
        let slot = self.slot(folder, from);
        self.write(slot, to);
        let mut long = slot - SLOT as u64;
        while long >= folder && self.read(long, SLOT)[11] == 0x0f {
            self.write(long, &[0xe5]);
            long -= SLOT as u64;
        }
    }
}

/// A partition table that a test changes.
#[derive(Clone)]
struct DiskTable {
    header: Vec<u8>,
    entries: Vec<u8>,
}

impl DiskTable {
    fn entry(&mut self, number: usize) -> &mut [u8] {
        &mut self.entries[number * ENTRY_BYTES..][..ENTRY_BYTES]
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut digits = [0; 4];
    digits.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(digits)
}

/// CRC-32 of ISO 3309, bit by bit.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum))
    })
}

const EFI: &[u8; 11] = b"EFI        ";
const BOOT: &[u8; 11] = b"BOOT       ";
const ALKNET: &[u8; 11] = b"ALKNET     ";
const LOADER: &[u8; 11] = b"BOOTX64 EFI";
const PROGRAM: &[u8; 11] = b"A       EFI";
const OTHER: &[u8; 11] = b"EVIL~1  EFI";

/// A disk with a second file beside one, with the same name. Returns the folder's place.
fn with_second_file(copy: &DiskCopy, folder: &[u8; 11], name: &[u8; 11]) -> u64 {
    let path = String::from_utf8_lossy(folder);
    copy.add(&format!("EFI/{}/EVIL.EFI", path.trim_end()));
    let folder = copy.folder(&[EFI, folder]);
    copy.rename(folder, OTHER, name);
    folder
}

#[test]
fn a_second_program_of_the_same_name_is_seen_behind_the_first_and_before_it() {
    let release = ReleaseFolder::shared();
    for (folder, name) in [(BOOT, LOADER), (ALKNET, PROGRAM)] {
        let copy = DiskCopy::new(&release);
        let folder = with_second_file(&copy, folder, name);
        let said = copy.refused("behind");
        assert!(said.contains("twice"), "{said}");
        // The two entries change places.
        let first = copy.slot(folder, name);
        let content = copy.read(folder, 2048);
        let slots: Vec<usize> = content
            .chunks_exact(SLOT)
            .enumerate()
            .filter(|(_, slot)| slot.starts_with(name))
            .map(|(number, _)| number)
            .collect();
        assert_eq!(slots.len(), 2, "{slots:?}");
        let second = folder + (slots[1] * SLOT) as u64;
        let (ours, evil) = (copy.read(first, SLOT), copy.read(second, SLOT));
        copy.write(first, &evil);
        copy.write(second, &ours);
        let said = copy.refused("before");
        assert!(said.contains("twice"), "{said}");
    }
}

/// The loader and the program are what firmware and the loader start.
#[test]
fn another_loader_and_another_program_are_refused() {
    let release = ReleaseFolder::shared();
    for (folder, name, path) in [
        (BOOT, LOADER, "EFI/BOOT/BOOTX64.EFI"),
        (ALKNET, PROGRAM, "EFI/ALKNET/A.EFI"),
    ] {
        let copy = DiskCopy::new(&release);
        let entry = copy.slot(copy.folder(&[EFI, folder]), name);
        // The file is a byte shorter.
        let bytes = u32_at(&copy.read(entry, SLOT), 28) - 1;
        copy.write(entry + 28, &bytes.to_le_bytes());
        let said = copy.refused(path);
        assert!(said.contains(path), "{said}");
    }
}

#[test]
fn the_program_of_the_second_slot_is_listed_and_any_other_beside_it_is_refused() {
    let release = ReleaseFolder::shared();
    let copy = DiskCopy::new(&release);
    copy.add("EFI/ALKNET/B.EFI");
    let check = copy.verify().expect("a disk after an update");
    assert_eq!(check.others, ["EFI/ALKNET/B.EFI"]);
    let left_out = |name: &str| check.left_out.iter().any(|(it, _)| *it == name);
    assert!(
        left_out("second boot slot") && left_out("boot note"),
        "{check:?}"
    );
    copy.add("EFI/ALKNET/C.EFI");
    let said = copy.refused("a third slot");
    assert!(said.contains("C.EFI") && !said.contains("B.EFI"), "{said}");
}

/// Values by which the loader starts the second slot, three times.
const ON_TRIAL: [(&str, &str); 2] = [
    ("\ntrial=\n", "\ntrial=b\n"),
    ("\ntries=0\n", "\ntries=3\n"),
];

/// The loader would start it at the first start of the machine, and no update has written it.
#[test]
fn a_program_of_the_second_slot_is_refused_before_a_first_start() {
    let release = ReleaseFolder::shared();
    for values in [&[][..], &ON_TRIAL] {
        let copy = DiskCopy::unstarted(&release);
        copy.change_record(values);
        copy.add("EFI/ALKNET/B.EFI");
        let said = copy.refused("a second program");
        let is_named = said.contains("second boot slot: EFI/ALKNET/B.EFI is there");
        assert!(is_named, "{values:?}: {said}");
    }
}

type Attack = fn(&DiskCopy);

#[test]
fn a_changed_record_or_note_is_refused_before_a_first_start_and_left_out_after_it() {
    let release = ReleaseFolder::shared();
    let attacks: [(Attack, &str); 3] = [
        (
            |copy| copy.change_record(&ON_TRIAL),
            "boot state: the record",
        ),
        (
            |copy| copy.change_record(&[("\ngood=a\n", "\ngood=b\n")]),
            "boot state: the record",
        ),
        (
            |copy| copy.write(NOTE_AT, b"alknet-boot-note 1\n"),
            "boot note: it has bytes",
        ),
    ];
    for (attack, expected) in attacks {
        let copy = DiskCopy::unstarted(&release);
        attack(&copy);
        let said = copy.refused(expected);
        assert!(said.contains(expected), "{expected}: {said}");
        let used = DiskCopy::new(&release);
        attack(&used);
        let check = used.verify().expect("a disk after an update");
        assert_eq!(check.left_out.len(), 6, "{check:?}");
    }
}

/// The loader writes which slot it starts before PID 1 gives the disk an identity of its own.
#[test]
fn a_first_start_that_was_cut_short_leaves_what_the_manifest_says() {
    let release = ReleaseFolder::shared();
    let copy = DiskCopy::unstarted(&release);
    copy.change_record(&[("\nbooted=\n", "\nbooted=a\n")]);
    let check = copy.verify().expect("only the loader ran");
    let left_out: Vec<_> = check.left_out.iter().map(|(name, _)| *name).collect();
    let expected = [
        "partition table",
        "configuration on the EFI system partition",
        "data partition",
    ];
    assert_eq!(left_out, expected);
    let is_checked = |name: &str| check.checked.iter().any(|it| it.name.starts_with(name));
    for name in ["boot state", "boot note", "second boot slot"] {
        assert!(is_checked(name), "{name}: {check:?}");
    }
}

#[test]
fn a_second_folder_of_the_same_name_is_seen() {
    let release = ReleaseFolder::shared();
    let copy = DiskCopy::new(&release);
    copy.add("EVILDIR/BOOT/BOOTX64.EFI");
    let root = copy.folder(&[]);
    copy.rename(root, b"EVILDI~1   ", EFI);
    let said = copy.refused("a second folder EFI");
    assert!(said.contains("twice"), "{said}");
}

#[test]
fn a_volume_that_another_system_reads_otherwise_is_refused() {
    let release = ReleaseFolder::shared();
    for (what, at, bytes) in [
        ("the second table is in use", 40, &[0x81][..]),
        ("a table of 16 bits", 22, &[1, 0]),
        ("another version", 42, &[1]),
        ("a fixed root folder", 17, &[16, 0]),
    ] {
        let copy = DiskCopy::new(&release);
        copy.write(ESP_AT + at, bytes);
        let said = copy.refused(what);
        assert!(said.contains("EFI system partition"), "{what}: {said}");
    }
}

/// Firmware looks there for a partition table before it takes the partition for a volume, and in clusters that no file
/// has as well.
#[test]
fn a_table_within_a_partition_is_refused() {
    let release = ReleaseFolder::shared();
    for (at, bytes, expected) in [
        // The record of a partition, and the header of a table in the place of FSInfo.
        (446 + 4, &b"\x0c"[..], "byte 450 of the boot sector"),
        (512, b"EFI PART", "byte 0 of FSInfo"),
        // Code, and more sectors before the table of clusters.
        (90, b"\xfa", "byte 90 of the boot sector"),
        (14, b"\x28", "byte 14 of the boot sector"),
        (
            6 * 512 + 446 + 4,
            b"\x0c",
            "byte 450 of the copy of the boot sector",
        ),
        (32_769, b"CD001", "as from a CD"),
    ] {
        let copy = DiskCopy::new(&release);
        copy.write(ESP_AT + at, bytes);
        let said = copy.refused(expected);
        let is_named = said.contains("EFI system partition: ") && said.contains(expected);
        assert!(is_named, "{at}: {said}");
    }
    // What systems and tools change.
    let copy = DiskCopy::new(&release);
    copy.write(ESP_AT + 65, &[3]);
    copy.write(ESP_AT + 67, b"XXXXEFI        ");
    copy.write(ESP_AT + 512 + 488, &[0xff; 8]);
    copy.verify().expect("a disk in use");
}

/// The attack: the exact image, zeros, and the footer of a dynamic VHD, whose tables name another disk.
#[test]
fn the_image_with_the_footer_of_a_dynamic_vhd_is_refused() {
    const FOOTER_BYTES: u64 = 512;
    const KIND_AT: u64 = 60;
    const BEHIND_BYTES: u64 = 1 << 20;

    let release = ReleaseFolder::shared();
    for copy in [DiskCopy::unstarted(&release), DiskCopy::new(&release)] {
        let bytes = DATA_HEAD_END + BEHIND_BYTES;
        copy.disk.set_len(bytes).expect("sparse");
        copy.verify().expect("nothing is there");
        let footer = bytes - FOOTER_BYTES;
        copy.write(footer, b"conectix");
        copy.write(footer + KIND_AT, &3_u32.to_be_bytes());
        let said = copy.refused("a dynamic VHD");
        assert!(said.contains("also a VHD container"), "{said}");
    }
}

#[test]
fn bytes_behind_the_image_that_are_not_looked_at_are_counted() {
    const BEHIND_BYTES: u64 = 1 << 20;

    let release = ReleaseFolder::shared();
    let copy = DiskCopy::unstarted(&release);
    assert_eq!(copy.verify().expect("the image").bytes_behind, 0);
    let bytes = DATA_HEAD_END + BEHIND_BYTES;
    copy.disk.set_len(bytes).expect("sparse");
    copy.write(bytes - BEHIND_BYTES, b"x");
    let whole = copy.verify().expect("the image");
    assert_eq!((whole.bytes_behind, whole.checked.len()), (BEHIND_BYTES, 1));
    // With a configuration, the parts are compared one by one.
    copy.add("alknet.toml");
    let parts = copy.verify().expect("the parts of the image");
    assert!(parts.checked.len() > 1, "{parts:?}");
    assert_eq!(parts.bytes_behind, BEHIND_BYTES);
}

#[test]
fn files_that_a_loader_would_take_are_named() {
    let release = ReleaseFolder::shared();
    for path in [
        "EFI/BOOT/BOOTX64.EFI.extra.d/evil.addon.efi",
        "loader/credentials/evil.cred",
    ] {
        let copy = DiskCopy::new(&release);
        copy.add(path);
        let refused = copy.verify().expect_err("another file");
        let VerifyError::OtherFiles { files, .. } = &refused else {
            panic!("{refused}");
        };
        assert_eq!(files, &[path]);
        assert!(refused.to_string().contains(path), "{refused}");
    }
}

/// What an attacker does to a disk.
type TableAttack = fn(&DiskCopy);

#[test]
fn a_partition_table_that_leads_to_another_program_is_refused() {
    let release = ReleaseFolder::shared();
    let attacks: [(&str, TableAttack, &str); 8] = [
        ("another place", other_place, "place of partition 2"),
        ("a moved array", moved_array, "place or number"),
        ("a broken primary", broken_primary, "checksum"),
        ("another backup", other_backup, "another table"),
        ("a fourth partition", fourth_partition, "more than three"),
        ("swapped types", swapped_types, "type of partition 2"),
        (
            "a hidden partition",
            hidden_partition,
            "type of partition 2",
        ),
        ("another first block", other_first_block, "first block"),
    ];
    for (what, attack, expected) in attacks {
        let copy = DiskCopy::new(&release);
        attack(&copy);
        let said = copy.refused(what);
        assert!(said.contains(expected), "{what}: {said}");
    }
}

fn other_place(copy: &DiskCopy) {
    let mut table = copy.table();
    table.entry(1)[32..40].copy_from_slice(&500_000_u64.to_le_bytes());
    copy.put(&table);
}

/// The primary table names an array in the gap, in which the EFI system partition lies elsewhere. The old one stays.
fn moved_array(copy: &DiskCopy) {
    let ours = copy.table();
    let mut table = ours.clone();
    table.entry(1)[32..40].copy_from_slice(&500_000_u64.to_le_bytes());
    copy.put_copy(&table, 1, copy.blocks() - 1, 1000);
    assert_eq!(copy.table().entries, ours.entries);
}

/// Firmware finds no valid primary, and restores it from the backup.
fn broken_primary(copy: &DiskCopy) {
    other_backup(copy);
    copy.write(BLOCK + 16, &[0; 4]);
}

fn other_backup(copy: &DiskCopy) {
    let mut table = copy.table();
    table.entry(1)[32..40].copy_from_slice(&500_000_u64.to_le_bytes());
    let last = copy.blocks() - 1;
    copy.put_copy(&table, last, 1, last - ENTRIES_BLOCKS);
}

fn fourth_partition(copy: &DiskCopy) {
    let mut table = copy.table();
    let mut entry = table.entry(1).to_vec();
    entry[32..40].copy_from_slice(&530_000_u64.to_le_bytes());
    entry[40..48].copy_from_slice(&540_000_u64.to_le_bytes());
    // Readers may stop at an entry that is not in use, or go on.
    table.entry(100).copy_from_slice(&entry);
    copy.put(&table);
}

fn swapped_types(copy: &DiskCopy) {
    let mut table = copy.table();
    let kinds = [1, 2].map(|number| table.entry(number)[..16].to_vec());
    table.entry(1)[..16].copy_from_slice(&kinds[1]);
    table.entry(2)[..16].copy_from_slice(&kinds[0]);
    copy.put(&table);
}

fn hidden_partition(copy: &DiskCopy) {
    let mut table = copy.table();
    // Firmware ignores a partition with this attribute (UEFI 2.10 section 5.3.3).
    table.entry(1)[48] = 2;
    copy.put(&table);
}

/// A partition of the old kind beside the protective one.
fn other_first_block(copy: &DiskCopy) {
    copy.write(462, &[0x80, 0, 0, 0, 0xef]);
}

/// Changes the identity of the disk, or of a partition.
fn other_identity(copy: &DiskCopy, partition: Option<usize>, id: [u8; 16]) {
    let mut table = copy.table();
    match partition {
        Some(number) => table.entry(number - 1)[16..32].copy_from_slice(&id),
        None => table.header[56..72].copy_from_slice(&id),
    }
    copy.put(&table);
}

/// A disk with other identities counts as one that a machine was started from, of which less is compared.
#[test]
fn identities_that_no_first_start_gives_are_named() {
    const OWN: [u8; 16] = [0x43; 16];
    /// Version 5, as the disks of another build have it.
    const OTHER_IMAGE: [u8; 16] = [0x55; 16];

    let release = ReleaseFolder::shared();
    let both = "identities of the disk and of partition 3";
    let cases = [
        (&[(Some(1), OWN)][..], "identity of partition 1"),
        (&[(Some(2), OWN)], "identity of partition 2"),
        (&[(None, OWN)], both),
        (&[(Some(3), OWN)], both),
        (&[(None, OTHER_IMAGE), (Some(3), OTHER_IMAGE)], both),
    ];
    for (changes, expected) in cases {
        let copy = DiskCopy::unstarted(&release);
        for (partition, id) in changes {
            other_identity(&copy, *partition, *id);
        }
        let said = copy.refused(expected);
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let copy = DiskCopy::unstarted(&release);
    let path = copy.dir.path().join("disk");
    run("sgdisk", &["-G", text(&path)]);
    let said = copy.refused("all identities");
    assert!(said.contains("identity of partition 1"), "{said}");
}

/// Makes the disk longer by so many blocks, and moves the table as PID 1 does. The header of the earlier backup stays.
fn grow(copy: &DiskCopy, blocks: u64) {
    copy.disk
        .set_len((copy.blocks() + blocks) * BLOCK)
        .expect("sparse");
    let last = copy.blocks() - 1;
    let mut table = copy.table();
    let usable = last - ENTRIES_BLOCKS - 1;
    table.header[48..56].copy_from_slice(&usable.to_le_bytes());
    // The end of the last partition, at a whole MiB, and an identity of its own.
    let end = (usable + 1) / 2048 * 2048 - 1;
    table.entry(2)[40..48].copy_from_slice(&end.to_le_bytes());
    table.entry(2)[16..32].copy_from_slice(&[0x42; 16]);
    copy.put(&table);
    copy.write(458, &u32::try_from(last).expect("small").to_le_bytes());
}

#[test]
fn a_disk_that_a_machine_grew_is_what_its_manifest_says() {
    let release = ReleaseFolder::shared();
    let copy = DiskCopy::new(&release);
    let path = copy.dir.path().join("disk");
    // The header of each backup is also the beginning of a block of 4096 bytes. It is accepted: it names its own place in
    // blocks of 512 bytes, so a reader of larger blocks refuses it. Later the disk becomes only a little longer.
    for (blocks, is_near) in [(100_001, false), (1000, true)] {
        let earlier = (copy.blocks() - 1) * BLOCK;
        grow(&copy, blocks);
        if is_near {
            let said = copy.refused("the earlier backup");
            assert!(said.contains("another partition table begins"), "{said}");
        }
        // PID 1 does this before it moves the table.
        copy.write(earlier, &[0; BLOCK as usize]);
        assert!(run("sgdisk", &["-v", text(&path)]).contains("No problems found"));
        let check = copy.verify().expect("as a machine leaves it");
        assert!(check.others.is_empty(), "{check:?}");
    }
}
