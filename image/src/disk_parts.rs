//! The parts of the shipped disk that stay the same on a disk in use, with their hashes.
//!
//! A machine changes some bytes of its disk at the first boot, so the hash of the whole file does not hold for a disk
//! that was started. These hashes do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use alknet_boot_state::{NOTE_OFFSET, RECORD_OFFSET};
use alknet_fat::{FatVolume, FilePartition};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{BIOS_FIRST_LBA, ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
use crate::error::ImageError;
use crate::form::{ImageForm, OutputRole};
use crate::manifest::{ManifestOutput, hex_sha256};
use crate::out::at;

/// Bytes of a BIOS's code in the first block. The identifier and the table of the disk follow.
const BOOT_CODE_BYTES: u64 = 440;

/// Parts of a disk that [`ManifestDisk`] leaves out, each with the reason.
pub const DISK_PARTS_LEFT_OUT: [(&str, &str); 6] = [
    (
        "partition table",
        "the first boot gives disk and partitions identities of their own, and the last partition the rest of the disk",
    ),
    (
        "boot state",
        "the loader counts the starts of a new version there",
    ),
    (
        "boot note",
        "a new version writes there how far its start came",
    ),
    (
        "second boot slot",
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

    /// The parts of the disk among `outputs`, if there is one.
    pub(crate) fn among(
        dir: &Path,
        outputs: &[ManifestOutput],
    ) -> Result<Option<Self>, ImageError> {
        let is_raw =
            |it: &&ManifestOutput| it.form == ImageForm::Raw && it.role == OutputRole::Disk;
        let Some(output) = outputs.iter().find(is_raw) else {
            return Ok(None);
        };
        let path = dir.join(&output.file);
        let read = File::open(&path).and_then(|disk| Self::read(&disk));
        read.map(Some).map_err(at(&path))
    }
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
