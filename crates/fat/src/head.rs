//! Whether a volume has anything before its tables that `create` does not write there.
//!
//! Systems read a few fields of these sectors. Firmware also looks there for a partition table, and starts programs from
//! the partitions that it finds.

use crate::create::{
    BACKUP_SECTOR, INFO_SECTOR, NewFatVolume, NewGeometry, RESERVED_SECTORS, SECTOR_BYTES,
    head_sectors,
};
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::scan::{FatInfo, INFO_UNKNOWN};

/// Where `mlabel` of mtools puts another copy of the boot sector, with the new name.
const LABEL_COPY_SECTOR: u32 = 12;

/// What lies in a sector before the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadSector {
    Boot,
    BootCopy,
    LabelCopy,
    Info,
    InfoCopy,
    Reserved,
}

impl HeadSector {
    const fn at(number: u32) -> Self {
        const INFO_COPY: u32 = BACKUP_SECTOR + INFO_SECTOR;
        match number {
            0 => Self::Boot,
            INFO_SECTOR => Self::Info,
            BACKUP_SECTOR => Self::BootCopy,
            INFO_COPY => Self::InfoCopy,
            LABEL_COPY_SECTOR => Self::LabelCopy,
            _ => Self::Reserved,
        }
    }

    /// For a person.
    const fn name(self) -> &'static str {
        match self {
            Self::Boot => "the boot sector",
            Self::BootCopy => "the copy of the boot sector",
            Self::Info => "FSInfo",
            Self::InfoCopy => "the copy of FSInfo",
            Self::LabelCopy | Self::Reserved => "a reserved sector",
        }
    }

    /// Whether systems and tools change a byte of a volume that stays in order.
    const fn may_change(self, at: usize) -> bool {
        match self {
            // The marks of a volume in use, the serial number, and the name.
            Self::Boot | Self::BootCopy | Self::LabelCopy => matches!(at, 65 | 67..=81),
            // The number of free clusters, and the cluster from which the next free one is searched.
            Self::Info | Self::InfoCopy => matches!(at, 488..=495),
            Self::Reserved => false,
        }
    }
}

impl NewFatVolume {
    /// The first byte before the tables of the volume on `device` that [`create`](fn@crate::create) does not write there, as
    /// a text for a person. `None` if each byte is as written. Label, serial number, marks of a volume in use and the
    /// numbers of FSInfo may be others, and sector 12 may be another copy of the boot sector.
    ///
    /// # Errors
    /// The device cannot be read, or the volume has too few sectors for FAT32.
    pub fn head_difference(&self, device: &impl BlockDevice) -> Result<Option<String>, FatError> {
        let info = FatInfo {
            free: INFO_UNKNOWN,
            next: INFO_UNKNOWN,
        };
        let written = head_sectors(self, &NewGeometry::for_volume(self)?, info);
        let mut found = vec![0; (RESERVED_SECTORS * SECTOR_BYTES) as usize];
        let read = device.read_at(&mut found, 0);
        read.map_err(FatError::io("read the sectors before the tables"))?;
        for (number, sector) in (0..).zip(found.chunks_exact(SECTOR_BYTES as usize)) {
            let kind = HeadSector::at(number);
            if kind == HeadSector::LabelCopy && sector.iter().all(|byte| *byte == 0) {
                continue;
            }
            let wanted = match kind {
                HeadSector::LabelCopy => 0,
                _ => number,
            };
            let expected = written.iter().find(|(at, _)| *at == wanted);
            let expected = expected.map_or([0; SECTOR_BYTES as usize], |(_, content)| *content);
            let mut bytes = sector.iter().zip(&expected).enumerate();
            let differs = bytes.find(|(at, (is, was))| is != was && !kind.may_change(*at));
            if let Some((at, _)) = differs {
                let name = kind.name();
                return Ok(Some(format!(
                    "byte {at} of {name} (sector {number}) has another value than on a new volume"
                )));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::{FatNode, create};
    use crate::name::ShortName;
    use crate::volume::FatVolume;

    const SECTORS: u32 = 70_000;

    fn new(label: &[u8; 11]) -> NewFatVolume {
        NewFatVolume {
            hidden_sectors: 2048,
            sectors: SECTORS,
            cluster_sectors: 1,
            id: 1,
            label: *label,
        }
    }

    fn written() -> Vec<u8> {
        let mut device = vec![0; SECTORS as usize * 512];
        let folder = ShortName::new("EFI").expect("a short name");
        let folder = FatNode::Folder(folder, Vec::new());
        create(&mut device, &new(b"ALKESP     "), &[folder]).expect("it fits");
        device
    }

    fn difference(device: &impl BlockDevice) -> Option<String> {
        let found = new(b"OTHER      ").head_difference(device);
        found.expect("readable")
    }

    #[test]
    fn a_volume_that_was_written_to_or_is_in_use_has_the_beginning_of_a_new_one() {
        let device = written();
        assert_eq!(difference(&device), None);
        let mut volume = FatVolume::open(device).expect("a volume");
        let path = r"\EFI\ALKNET\A.EFI";
        volume
            .replace_file(path, 5, &mut &b"first"[..], &mut |_| {})
            .expect("it fits");
        let mut device = volume.into_device();
        assert_eq!(difference(&device), None);
        // The bits of a volume in use, another serial number and another name, and unknown numbers in FSInfo.
        device[65] |= 3;
        device[67..82].fill(b'X');
        device[512 + 488..512 + 496].fill(0xff);
        assert_eq!(difference(&device), None);
    }

    /// mlabel of mtools 4.0 writes it there.
    #[test]
    fn a_copy_of_the_boot_sector_that_mlabel_writes_is_permitted_and_nothing_else_there() {
        const COPY_AT: usize = 12 * 512;

        let mut device = written();
        device[71..82].copy_from_slice(b"NEWNAME    ");
        device.copy_within(..512, COPY_AT);
        assert_eq!(difference(&device), None);
        // The attack: the record of a partition in it, or the header of a partition table without it.
        for at in [0, 66, 446, 511] {
            let mut changed = device.clone();
            changed[COPY_AT + at] ^= 1;
            let found = difference(&changed).unwrap_or_else(|| panic!("{at} is not compared"));
            let expected = format!("byte {at} of a reserved sector (sector 12) ");
            assert!(found.starts_with(&expected), "{found}");
        }
        device[COPY_AT..COPY_AT + 512].fill(0);
        assert_eq!(difference(&device), None);
        device[COPY_AT + 1] = b'E';
        let found = difference(&device).expect("it is compared");
        assert!(found.contains("(sector 12)"), "{found}");
    }

    #[test]
    fn each_other_byte_before_the_tables_is_named() {
        let device = written();
        for (sector, at, name) in [
            (0, 0, "the boot sector"),
            (0, 14, "the boot sector"),
            (0, 64, "the boot sector"),
            (0, 66, "the boot sector"),
            (0, 82, "the boot sector"),
            (0, 90, "the boot sector"),
            (0, 446, "the boot sector"),
            (0, 509, "the boot sector"),
            (1, 0, "FSInfo"),
            (1, 4, "FSInfo"),
            (1, 487, "FSInfo"),
            (1, 496, "FSInfo"),
            (2, 0, "a reserved sector"),
            (6, 446, "the copy of the boot sector"),
            (7, 0, "the copy of FSInfo"),
            (11, 0, "a reserved sector"),
            (13, 0, "a reserved sector"),
            (31, 511, "a reserved sector"),
        ] {
            let mut changed = device.clone();
            changed[sector * 512 + at] ^= 1;
            let found = difference(&changed);
            let found = found.unwrap_or_else(|| panic!("{at} of {sector} is not compared"));
            let expected = format!("byte {at} of {name} (sector {sector}) ");
            assert!(found.starts_with(&expected), "{found}");
        }
        // The first byte of the tables.
        let mut changed = device;
        changed[32 * 512] ^= 1;
        assert_eq!(difference(&changed), None);
    }
}
