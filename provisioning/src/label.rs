//! Volume labels of FAT (Microsoft's FAT specification of 2000, extended by ECMA-107) and ISO 9660
//! (ECMA-119). They are read from a device's bytes, so that only a volume with this project's label
//! is mounted.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

/// A file system that a provisioning volume may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ISO 9660.
    Iso9660,
    /// FAT12, FAT16 or FAT32.
    Vfat,
}

impl FileSystem {
    /// The kernel's name for it.
    #[must_use]
    pub fn kernel_name(self) -> &'static str {
        match self {
            Self::Iso9660 => "iso9660",
            Self::Vfat => "vfat",
        }
    }
}

/// A volume's label and file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeLabel {
    /// How to mount it.
    pub file_system: FileSystem,
    /// The label without its padding. Bytes that are not ASCII are replaced.
    pub label: String,
}

/// Most bytes of a root directory that are searched for the label. Tools write it first.
const ROOT_BYTES_MAX: u64 = 64 << 10;
const BOOT_SECTOR_BYTES: usize = 512;
const DIR_ENTRY_BYTES: usize = 32;
const ISO_DESCRIPTOR_OFFSET: u64 = 16 * 2048;

/// Reads the label of a FAT or ISO 9660 volume. `None` for any other content.
///
/// # Errors
/// Errors of the device. A device that ends too early is not an error.
pub fn volume_label(device: &mut (impl Read + Seek)) -> io::Result<Option<VolumeLabel>> {
    let Some(sector) = read_at(device, 0, BOOT_SECTOR_BYTES)? else {
        return Ok(None);
    };
    if let Some(fat) = FatBootSector::parse(&sector) {
        let label = fat.label(device)?;
        return Ok(Some(volume(FileSystem::Vfat, &label)));
    }
    // After the system area, whose content the standard does not define (ECMA-119, 6.2.1).
    let descriptor = read_at(device, ISO_DESCRIPTOR_OFFSET, 72)?;
    Ok(descriptor
        .filter(|found| found.starts_with(b"\x01CD001\x01"))
        .map(|found| volume(FileSystem::Iso9660, &found[40..72])))
}

fn volume(file_system: FileSystem, label: &[u8]) -> VolumeLabel {
    let text = |b: &u8| {
        if (0x20..0x7f).contains(b) {
            char::from(*b)
        } else {
            '?'
        }
    };
    let padded: String = label.iter().map(text).collect();
    VolumeLabel {
        file_system,
        label: padded.trim_end().to_owned(),
    }
}

/// What the boot sector contains about labels.
struct FatBootSector {
    label: [u8; 11],
    root_offset: u64,
    root_bytes: u64,
}

impl FatBootSector {
    fn parse(sector: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
        let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
        let (sector_bytes, cluster_sectors) = (u16_at(11), u64::from(sector[13]));
        let (reserved, fats, root_entries) = (u16_at(14), u64::from(sector[16]), u16_at(17));
        // Every boot sector has the signature, even that of a partition table.
        let plausible = sector[510..] == [0x55, 0xaa]
            && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
            && cluster_sectors.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&fats);
        if !plausible {
            return None;
        }
        // FAT32 has its own size field, and sets the older one to zero.
        let is_fat32 = u16_at(22) == 0;
        let fat_sectors = if is_fat32 { u32_at(36) } else { u16_at(22) };
        let after_fats = reserved + fats * fat_sectors;
        // Whatever a hostile volume contains, the offset stays below 2^53, so no sum overflows.
        let (first_sector, root_bytes, label_at) = if is_fat32 {
            // Clusters are numbered from 2.
            let cluster = u32_at(44).checked_sub(2)?;
            let first = after_fats + cluster * cluster_sectors;
            (first, cluster_sectors * sector_bytes, 71)
        } else {
            let bytes = root_entries * DIR_ENTRY_BYTES as u64;
            (after_fats, bytes, 43)
        };
        Some(Self {
            label: sector[label_at..label_at + 11].try_into().ok()?,
            root_offset: first_sector * sector_bytes,
            root_bytes: root_bytes.min(ROOT_BYTES_MAX),
        })
    }

    /// The label in the root directory, which tools change, or else the boot sector's.
    fn label(&self, device: &mut (impl Read + Seek)) -> io::Result<[u8; 11]> {
        let bytes = usize::try_from(self.root_bytes).unwrap_or(0);
        let root = read_at(device, self.root_offset, bytes)?.unwrap_or_default();
        Ok(root_label(&root).unwrap_or(self.label))
    }
}

fn root_label(root: &[u8]) -> Option<[u8; 11]> {
    const ATTRIBUTES: usize = 11;
    const VOLUME_ID: u8 = 0x08;
    const DIRECTORY: u8 = 0x10;
    const LONG_NAME: u8 = 0x0f;
    root.chunks_exact(DIR_ENTRY_BYTES)
        // An entry that begins with zero ends the folder.
        .take_while(|entry| entry[0] != 0)
        // Deleted entries remain, with this byte as their first letter.
        .filter(|entry| entry[0] != 0xe5)
        .find(|entry| {
            let attributes = entry[ATTRIBUTES];
            // A part of a long name has the bit of a label too.
            attributes & LONG_NAME != LONG_NAME && attributes & (VOLUME_ID | DIRECTORY) == VOLUME_ID
        })
        .and_then(|entry| entry[..11].try_into().ok())
}

/// `length` bytes at `offset`. `None` if the device ends before.
fn read_at(
    device: &mut (impl Read + Seek),
    offset: u64,
    length: usize,
) -> io::Result<Option<Vec<u8>>> {
    // lseek(2) takes a signed offset.
    if i64::try_from(offset).is_err() {
        return Ok(None);
    }
    device.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    match device.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::{fat16_volume, fat32_boot_sector, iso_volume};

    fn label_of(volume: Vec<u8>) -> Option<VolumeLabel> {
        volume_label(&mut Cursor::new(volume)).expect("memory has no errors")
    }

    fn expect(volume: Vec<u8>, file_system: FileSystem, label: &str) {
        let found = label_of(volume).expect("a volume");
        assert_eq!(
            (found.file_system, found.label.as_str()),
            (file_system, label)
        );
    }

    #[test]
    fn labels_of_all_kinds_are_read() {
        expect(fat16_volume("CIDATA", None), FileSystem::Vfat, "CIDATA");
        expect(iso_volume("cidata"), FileSystem::Iso9660, "cidata");
        expect(fat32_boot_sector("CIDATA"), FileSystem::Vfat, "CIDATA");
    }

    #[test]
    fn the_root_directory_knows_better_than_the_boot_sector() {
        expect(
            fat16_volume("NO NAME", Some("cidata")),
            FileSystem::Vfat,
            "cidata",
        );
    }

    #[test]
    fn long_names_and_deleted_entries_are_no_labels() {
        let mut root = vec![0; 4 * DIR_ENTRY_BYTES];
        root[..12].copy_from_slice(b"\xe5IDATA     \x08");
        root[32..44].copy_from_slice(b"AIDATA     \x0f");
        root[64..76].copy_from_slice(b"DIR        \x18");
        assert_eq!(root_label(&root), None);
        root[64..76].copy_from_slice(b"CIDATA     \x08");
        assert_eq!(root_label(&root), Some(*b"CIDATA     "));
    }

    #[test]
    fn other_contents_have_no_label() {
        for other in [vec![], vec![0; 100], vec![0; 70_000], vec![0xff; 70_000]] {
            assert_eq!(label_of(other), None);
        }
        let mut mbr = vec![0; 70_000];
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(label_of(mbr), None);
    }

    #[test]
    fn a_control_character_in_a_label_does_not_get_out() {
        expect(iso_volume("ci\u{1b}data"), FileSystem::Iso9660, "ci?data");
    }

    proptest! {
        #[test]
        fn no_boot_sector_makes_it_panic(mut sector in prop::collection::vec(any::<u8>(), 512), sane in any::<bool>()) {
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            if sane {
                sector[11..13].copy_from_slice(&4096u16.to_le_bytes());
                (sector[13], sector[16]) = (128, 2);
            }
            let _ = label_of(sector);
        }
    }
}
