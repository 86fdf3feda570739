//! The files of a volume that leaves its readers no choice.
//!
//! Firmware, boot loaders and systems differ in what they do with a volume that contradicts itself. A reader that has to
//! say what another one will load refuses such a volume.

use crate::bytes::u16_at;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::geometry::{BOOT_BYTES, FAT32_CLUSTERS_MIN, FatKind};
use crate::report::FatFinding;
use crate::scan::{ROOT, VolumeScan};
use crate::volume::FatVolume;

/// The name that FAT32 has in its boot sector.
const KIND_NAME: &[u8; 8] = b"FAT32   ";

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// The path from the root, with `/` between the names.
    pub path: String,
    /// Size in bytes.
    pub bytes: u32,
}

impl<D: BlockDevice> FatVolume<D> {
    /// Every file of a FAT32 volume, sorted by path, if each system that reads the volume finds these files and no others.
    ///
    /// Marks of a volume that was not unmounted, counts of free clusters and clusters of no file change no reading, and
    /// are no reason to refuse.
    ///
    /// # Errors
    /// [`FatError::Ambiguous`]; else as [`check`](Self::check).
    pub fn unambiguous_files(&self) -> Result<Vec<ListedFile>, FatError> {
        self.check_boot_sector()?;
        let scan = VolumeScan::read(&self.device, &self.geometry)?;
        let report = self.report(&scan, &[])?;
        let mut findings = report.findings.iter();
        if let Some(finding) = findings.find(|finding| !is_harmless(finding)) {
            return Err(ambiguous(finding.to_string()));
        }
        if report.more_findings > 0 {
            return Err(ambiguous("it has very many mistakes"));
        }
        if scan.strays > 0 {
            let text = format!("{} entries are neither files nor folders", scan.strays);
            return Err(ambiguous(text));
        }
        let entries = scan.entries.iter().enumerate().skip(ROOT + 1);
        let files = entries.filter(|(_, entry)| !entry.is_folder);
        let mut files: Vec<ListedFile> = files
            .map(|(index, entry)| ListedFile {
                path: scan.path(index).trim_start_matches('\\').replace('\\', "/"),
                bytes: entry.size,
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// The fields by which systems choose between FAT16 and FAT32, and between copies of the table.
    fn check_boot_sector(&self) -> Result<(), FatError> {
        let mut boot = [0; BOOT_BYTES];
        let read = self.device.read_at(&mut boot, 0);
        read.map_err(FatError::io("read the boot sector"))?;
        // The specification goes by the number of clusters, Linux and EDK2 by the size of the table, others by the name.
        let is_fat32 = self.geometry.kind == FatKind::Fat32
            && u64::from(self.geometry.clusters) >= FAT32_CLUSTERS_MIN
            && boot[82..90] == *KIND_NAME;
        if !is_fat32 {
            return Err(ambiguous("not every system takes it for FAT32"));
        }
        // The number of entries of a fixed root folder, sectors in 16 bits, and sectors of a table in 16 bits.
        if [17, 19, 22].into_iter().any(|at| u16_at(&boot, at) != 0) {
            return Err(ambiguous("it has sizes of FAT16 beside those of FAT32"));
        }
        match u16_at(&boot, 40) {
            0 => Ok(()),
            _ => Err(ambiguous("the copies of its table are not mirrored")),
        }
    }
}

fn ambiguous(what: impl Into<String>) -> FatError {
    FatError::Ambiguous { what: what.into() }
}

/// Whether every system reads the same files all the same.
fn is_harmless(finding: &FatFinding) -> bool {
    match finding {
        FatFinding::Dirty
        | FatFinding::DeviceErrors
        | FatFinding::InfoSignature
        | FatFinding::InfoFree { .. }
        | FatFinding::InfoNext { .. }
        | FatFinding::LostClusters { .. } => true,
        FatFinding::TablesDiffer { .. }
        | FatFinding::SharedChain { .. }
        | FatFinding::CrossedChains { .. }
        | FatFinding::Chain { .. }
        | FatFinding::Entry { .. }
        | FatFinding::SameName { .. }
        | FatFinding::OrphanedLongNames { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::{FatNode, NewFatVolume, create};
    use crate::name::ShortName;

    /// Sectors of the smallest volume that every system takes for FAT32, with clusters of one sector, rounded up.
    const SECTORS: u32 = 70_000;
    /// Slots of a folder, in bytes.
    const SLOT: usize = 32;

    fn name(text: &str) -> ShortName {
        ShortName::new(text).expect("a short name")
    }

    fn volume() -> Vec<u8> {
        let new = NewFatVolume {
            hidden_sectors: 0,
            sectors: SECTORS,
            cluster_sectors: 1,
            id: 1,
            label: *b"ALKESP     ",
        };
        let mut device = vec![0; SECTORS as usize * 512];
        let file = FatNode::File(name("BOOTX64.EFI"), b"program");
        let folder = FatNode::Folder(name("EFI"), vec![file]);
        create(&mut device, &new, &[folder]).expect("it fits");
        device
    }

    fn files(device: Vec<u8>) -> Result<Vec<ListedFile>, FatError> {
        FatVolume::open(device)?.unambiguous_files()
    }

    /// The place of the slot that begins with these bytes.
    fn slot(device: &[u8], begin: &[u8]) -> usize {
        let mut slots = device.chunks_exact(SLOT);
        SLOT * slots
            .position(|slot| slot.starts_with(begin))
            .expect("it exists")
    }

    fn refused(device: Vec<u8>) -> String {
        let refused = files(device).expect_err("readers differ");
        assert!(matches!(refused, FatError::Ambiguous { .. }), "{refused}");
        refused.to_string()
    }

    #[test]
    fn a_volume_in_order_has_its_files_also_if_it_was_not_unmounted() {
        let mut device = volume();
        let expected = vec![ListedFile {
            path: "EFI/BOOTX64.EFI".into(),
            bytes: 7,
        }];
        assert_eq!(files(device.clone()).expect("in order"), expected);
        device[65] |= 1;
        assert_eq!(files(device).expect("only dirty"), expected);
    }

    #[test]
    fn another_table_in_use_and_another_kind_are_refused() {
        let mut one_table = volume();
        one_table[40] = 0x81;
        assert!(refused(one_table).contains("mirrored"));
        let mut named = volume();
        named[82..90].copy_from_slice(b"FAT16   ");
        assert!(refused(named).contains("FAT32"));
    }

    #[test]
    fn labels_that_look_like_files_and_slots_behind_the_end_are_refused() {
        let device = volume();
        let file = slot(&device, b"BOOTX64 EFI");
        let mut label = device.clone();
        label[file + 11] |= 0x08;
        assert!(refused(label).contains("neither files nor folders"));
        let mut behind = device.clone();
        behind.copy_within(file..file + SLOT, file + 2 * SLOT);
        assert!(refused(behind).contains("neither files nor folders"));
        let mut twice = device;
        twice.copy_within(file..file + SLOT, file + SLOT);
        let said = refused(twice);
        assert!(
            said.contains("one chain") || said.contains("twice"),
            "{said}"
        );
    }
}
