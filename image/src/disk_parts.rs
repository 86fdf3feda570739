//! The parts of the shipped disk that stay the same on a disk in use, with their hashes.
//!
//! A machine changes some bytes of its disk at the first boot, so the hash of the whole file does not hold for a disk
//! that was started. These hashes do.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use alknet_boot_state::{
    BootRecord, BootSlot, BootSlots, NOTE_BYTES, NOTE_OFFSET, NoteArea, RECORD_BYTES,
    RECORD_OFFSET, loader_choice,
};
use alknet_fat::{FatVolume, FilePartition};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{BIOS_FIRST_LBA, ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
use crate::manifest::hex_sha256;

/// Bytes of a BIOS's code in the first block. The identifier and the table of the disk follow.
const BOOT_CODE_BYTES: u64 = 440;

/// The program that firmware starts on a disk without a boot entry. Firmware does not care about the case of letters.
pub const LOADER_PATH: &str = "EFI/BOOT/BOOTX64.EFI";
/// The programs of the boot slots, which the loader starts.
pub const SLOT_PATHS: [&str; 2] = ["EFI/ALKNET/A.EFI", "EFI/ALKNET/B.EFI"];
/// What a file begins with that firmware loads as a program: a DOS header, or, as EDK2 takes the header to be at the
/// beginning of the file if there is no DOS header, a PE header or a TE header (a shortened one, for firmware).
const PROGRAM_MARKS: [&[u8]; 3] = [b"MZ", b"PE\0\0", b"VZ"];
/// Bytes from which [`begins_as_program`] can tell.
pub const PROGRAM_MARK_BYTES: u64 = 4;

/// Parts of [`DISK_PARTS_LEFT_OUT`] that only a machine changes: where none was started from a disk, the loader has to
/// find slot a alone. [`boot_state_difference`] compares the first two of them.
pub const NEW_DISK_PARTS: [&str; 3] = ["boot state", "boot note", "second boot slot"];

/// Parts of a disk that [`ManifestDisk`] leaves out, each with the reason.
pub const DISK_PARTS_LEFT_OUT: [(&str, &str); 6] = [
    (
        "partition table",
        "the first boot gives disk and partitions identities of their own, and the last partition the rest of the disk",
    ),
    (
        NEW_DISK_PARTS[0],
        "the loader counts the starts of a new version there",
    ),
    (
        NEW_DISK_PARTS[1],
        "a new version writes there how far its start came",
    ),
    (
        NEW_DISK_PARTS[2],
        "an update writes another version there; compare the file EFI/ALKNET/B.EFI with the files of that version",
    ),
    (
        "configuration on the EFI system partition",
        "it lies there until the first boot",
    ),
    ("data partition", "the machine writes its data there"),
];

/// What every disk written from this image has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestDisk {
    /// Ranges of the disk.
    pub regions: Vec<ManifestRegion>,
    /// Files of the EFI system partition.
    pub files: Vec<ManifestEspFile>,
}

/// A range of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestRegion {
    /// `boot code`, `BIOS loader` or `header of the boot state`.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// A file of the EFI system partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestEspFile {
    /// The path from the root, with `/` between the names.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

impl ManifestDisk {
    /// Reads the parts of a disk, or of its image.
    ///
    /// # Errors
    /// The disk cannot be read, or its EFI system partition is one that not every firmware reads in the same way. The
    /// latter has the kind [`InvalidData`](io::ErrorKind::InvalidData) or [`InvalidInput`](io::ErrorKind::InvalidInput).
    pub fn read(disk: &File) -> io::Result<Self> {
        let ranges = [
            ("boot code", 0, BOOT_CODE_BYTES),
            ("BIOS loader", BIOS_FIRST_LBA * LBA_BYTES, NOTE_OFFSET),
            (
                "header of the boot state",
                RECORD_OFFSET - LBA_BYTES,
                RECORD_OFFSET,
            ),
        ];
        let regions = ranges.into_iter().map(|(name, start, end)| {
            let mut content = vec![0; (end - start) as usize];
            disk.read_exact_at(&mut content, start)?;
            Ok(ManifestRegion {
                name: name.to_owned(),
                offset: start,
                bytes: end - start,
                sha256: hex_sha256(&content),
            })
        });
        let regions = regions.collect::<io::Result<_>>()?;
        let partition = FilePartition::new(disk, ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
        let volume = FatVolume::open(partition)?;
        let files = volume.unambiguous_files()?.into_iter().map(|file| {
            let mut hasher = HashWriter(Sha256::new());
            io::copy(&mut volume.open_file(&file.path)?, &mut hasher)?;
            Ok(ManifestEspFile {
                path: file.path,
                bytes: file.bytes.into(),
                sha256: HEXLOWER.encode(&hasher.0.finalize()),
            })
        });
        let files = files.collect::<io::Result<_>>()?;
        Ok(Self { regions, files })
    }

    /// The EFI programs on the EFI system partition of a disk, or of its image: the loader, those of the boot slots, and
    /// each other file that begins as a program does, because firmware may start it by another boot entry or on another
    /// processor. Each has its path from the root of the partition. A slot, or even the loader, may be missing.
    ///
    /// # Errors
    /// The errors of [`ManifestDisk::read`].
    pub fn programs(disk: &File) -> io::Result<Vec<(String, Vec<u8>)>> {
        let partition = FilePartition::new(disk, ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
        let volume = FatVolume::open(partition)?;
        let mut programs = Vec::new();
        for file in volume.unambiguous_files()? {
            let mut started = SLOT_PATHS.iter().chain([&LOADER_PATH]);
            let is_started = started.any(|it| it.eq_ignore_ascii_case(&file.path));
            let mut content = Vec::new();
            let mut reader = volume.open_file(&file.path)?;
            let mut mark = reader.by_ref().take(PROGRAM_MARK_BYTES);
            mark.read_to_end(&mut content)?;
            if is_started || begins_as_program(&content) {
                reader.read_to_end(&mut content)?;
                programs.push((file.path, content));
            }
        }
        Ok(programs)
    }
}

/// Whether firmware may load a file with this beginning as a program, whatever its name is.
#[must_use]
pub fn begins_as_program(beginning: &[u8]) -> bool {
    PROGRAM_MARKS.iter().any(|mark| beginning.starts_with(mark))
}

/// What the boot state of a disk has that the one of a new disk has not. `None` if loaders start slot a, no version is
/// staged or on trial, and no version has written a note.
///
/// The loader writes which slot it starts before PID 1 gives the disk an identity of its own. So a disk whose first
/// start was cut short may have a record that says `booted=a`.
///
/// # Errors
/// The disk cannot be read.
pub fn boot_state_difference(disk: &File) -> io::Result<Option<&'static str>> {
    let mut record = [0; RECORD_BYTES];
    disk.read_exact_at(&mut record, RECORD_OFFSET)?;
    let new = BootRecord::new(BootSlot::A);
    let started = loader_choice(Some(&new), BootSlots::ALL).write;
    let is_new = BootRecord::parse(&record).is_ok_and(|it| it == new || Some(it) == started);
    if !is_new {
        return Ok(Some("boot state: the record is not that of a new disk"));
    }
    let mut note = [0; NOTE_BYTES];
    disk.read_exact_at(&mut note, NOTE_OFFSET)?;
    let is_empty = NoteArea::new(note) == NoteArea::EMPTY;
    Ok((!is_empty).then_some("boot note: it has bytes, and a new disk has zeros there"))
}

/// Hashes what is written to it.
struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alknet_boot_state::grub_archive;

    use super::*;
    use crate::disk;

    fn written(git: &str) -> File {
        disk::tests::written(b"program", git)
    }

    #[test]
    fn identities_change_no_part_and_another_program_does() {
        let disk = written("a");
        let parts = ManifestDisk::read(&disk).expect("readable");
        assert_eq!(parts, ManifestDisk::read(&written("b")).expect("readable"));
        let files: Vec<_> = parts
            .files
            .iter()
            .map(|it| (&*it.path, &*it.sha256))
            .collect();
        let [program, loader] = [&b"program"[..], b"loader"].map(hex_sha256);
        let expected = [
            ("EFI/ALKNET/A.EFI", &*program),
            ("EFI/BOOT/BOOTX64.EFI", &loader),
        ];
        assert_eq!(files, expected);
        // The table is not among the parts, the gap behind it is.
        let table = LBA_BYTES + 56;
        disk.write_all_at(b"another identity", table)
            .expect("writable");
        assert_eq!(ManifestDisk::read(&disk).expect("readable"), parts);
        disk.write_all_at(b"x", BIOS_FIRST_LBA * LBA_BYTES)
            .expect("writable");
        let changed = ManifestDisk::read(&disk).expect("readable");
        assert_eq!(changed.regions[0], parts.regions[0]);
        assert_ne!(changed.regions[1], parts.regions[1]);
    }

    #[test]
    fn the_boot_state_of_a_new_disk_starts_slot_a_alone() {
        let disk = written("a");
        let found = || boot_state_difference(&disk).expect("readable");
        assert_eq!(found(), None);
        let put = |record: &BootRecord| {
            let put = disk.write_all_at(&record.encode(), RECORD_OFFSET);
            put.expect("writable");
        };
        let new = BootRecord::new(BootSlot::A);
        let started = loader_choice(Some(&new), BootSlots::ALL).write;
        put(&started.expect("the loader says what it starts"));
        assert_eq!(found(), None, "a first start that was cut short");
        let staged = new.vacate().and_then(|it| it.stage()).expect("no trial");
        let armed = staged.arm().expect("a version is staged");
        for record in [BootRecord::new(BootSlot::B), staged, armed] {
            put(&record);
            let said = found().expect("another record");
            assert!(said.starts_with("boot state: "), "{record:?}: {said}");
        }
        disk.write_all_at(&[0], RECORD_OFFSET).expect("writable");
        assert!(found().is_some(), "no record");
        put(&new);
        for at in [NOTE_OFFSET, NOTE_OFFSET + NOTE_BYTES as u64 - 1] {
            disk.write_all_at(b"n", at).expect("writable");
            let said = found().expect("a note");
            assert!(said.starts_with("boot note: "), "{at}: {said}");
            disk.write_all_at(&[0], at).expect("writable");
        }
        assert_eq!(found(), None);
    }

    /// A machine writes the note and the record. The archive by which GRUB finds them stays.
    #[test]
    fn note_and_record_are_left_out_and_what_is_beside_them_is_not() {
        let disk = written("a");
        let parts = ManifestDisk::read(&disk).expect("readable");
        let note = 2037 * LBA_BYTES..2045 * LBA_BYTES;
        let record = 2046 * LBA_BYTES..2048 * LBA_BYTES;
        for part in [&note, &record] {
            for at in [part.start, part.end - 1] {
                disk.write_all_at(b"n", at).expect("writable");
                assert_eq!(ManifestDisk::read(&disk).expect("readable"), parts, "{at}");
            }
        }
        for at in [note.start - 1, note.end, record.start - 1] {
            let mut before = [0];
            disk.read_exact_at(&mut before, at).expect("readable");
            disk.write_all_at(&[!before[0]], at).expect("writable");
            assert_ne!(ManifestDisk::read(&disk).expect("readable"), parts, "{at}");
            disk.write_all_at(&before, at).expect("writable");
        }
        for (lba, _) in grub_archive() {
            assert!(!note.contains(&(lba * LBA_BYTES)) && !record.contains(&(lba * LBA_BYTES)));
        }
    }
}
