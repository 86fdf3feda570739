//! Volumes of FAT12, FAT16 and FAT32: read, checked, repaired, written.

use std::collections::BTreeMap;
use std::io;

use alknet_fat::{BlockDevice, FatFinding, FatKind, FatReport, FatVolume, RepairRules};

/// Bytes of the device: as many as the smallest volume of FAT16 has.
const DEVICE_BYTES: usize = 9 << 18;
/// The files that a repair may drop.
const OWN: [&str; 2] = [r"\EFI\A.EFI", r"\EFI\B.EFI"];
/// Folders, and files, that are looked at.
const FOLDERS: usize = 16;
const FILES: usize = 64;
/// Bytes of a file that is read.
const FILE_BYTES: u32 = 16 << 10;
/// Content of the file that is written.
const NEW: &[u8] = b"the content of the file that replaces another";

/// The bytes are the start of a device. The rest of it is zeros.
pub fn fat(data: &[u8]) -> bool {
    let mut bytes = vec![0; DEVICE_BYTES];
    let length = data.len().min(DEVICE_BYTES);
    bytes[..length].copy_from_slice(&data[..length]);
    let Ok(mut volume) = FatVolume::open(WatchedDevice { bytes, writes: 0 }) else {
        return false;
    };
    let before = files(&volume);
    // A volume beyond a limit is refused before it is changed.
    let checked = volume.check(&OWN);
    let rules = RepairRules {
        own: &OWN,
        needed: 0,
        choose: &RepairRules::keep_own,
    };
    let repaired = volume.repair(&rules);
    if checked.is_err() || volume.geometry().kind() != FatKind::Fat32 {
        assert!(repaired.is_err() && volume.device().writes == 0);
        return true;
    }
    // Only one of the tables may be in use.
    let Ok(report) = repaired else {
        assert_eq!(volume.device().writes, 0);
        return true;
    };
    assert_repaired(&report.left);
    if report.dropped_files.is_empty()
        && report.dropped_names.is_empty()
        && report.cut_chains.is_empty()
    {
        assert!(files(&volume) == before, "a repair changed a file");
    }
    let writes = volume.device().writes;
    let again = volume.repair(&rules).expect("it was repaired before");
    assert_eq!(again.left, report.left, "a second repair");
    assert_eq!(volume.device().writes, writes, "a second repair");
    write(&mut volume, &report.left);
    true
}

/// A file is written as a whole, and changes no file whose clusters are its own.
fn write(volume: &mut FatVolume<WatchedDevice>, left: &FatReport) {
    let before = files(volume);
    let length = NEW.len() as u64;
    let written = volume.replace_file(OWN[0], length, &mut &*NEW, &mut |_| {});
    if written.is_err() {
        return;
    }
    let read = volume.read_file(OWN[0], FILE_BYTES);
    assert_eq!(read.expect("it was written"), NEW);
    assert_repaired(&volume.check(&OWN).expect("it was within the limits"));
    let meets = |it: &FatFinding| {
        matches!(
            it,
            FatFinding::SharedChain { .. } | FatFinding::CrossedChains { .. }
        )
    };
    if left.more_findings > 0 || left.findings.iter().any(meets) {
        return;
    }
    for (path, old) in before {
        let now = volume.read_file(&path, FILE_BYTES).expect("it was read");
        // The file may have another name as well.
        assert!(now == old || now == NEW, "{path}");
    }
}

/// What a repair promises for each volume.
fn assert_repaired(report: &FatReport) {
    let is_left = |it: &&FatFinding| {
        matches!(
            it,
            FatFinding::Dirty
                | FatFinding::InfoSignature
                | FatFinding::InfoFree { .. }
                | FatFinding::InfoNext { .. }
                | FatFinding::TablesDiffer { .. }
                | FatFinding::LostClusters { .. }
        )
    };
    let left: Vec<_> = report.findings.iter().filter(is_left).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The files of some folders that can be read, each with its bytes.
fn files(volume: &FatVolume<WatchedDevice>) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![String::new()];
    for _ in 0..FOLDERS {
        let Some(folder) = folders.pop() else {
            break;
        };
        for entry in volume.list(&folder).unwrap_or_default().iter().take(FILES) {
            let path = format!("{folder}\\{}", entry.name());
            if entry.is_folder() {
                folders.push(path);
            } else if let Ok(mut file) = volume.open_file(&path) {
                let bytes: u64 = file.extents().iter().map(|extent| extent.bytes).sum();
                assert_eq!(bytes, u64::from(file.size()), "{path}");
                let mut content = Vec::new();
                let limit = u64::from(FILE_BYTES);
                let read =
                    io::Read::read_to_end(&mut io::Read::take(&mut file, limit), &mut content);
                read.expect("memory can be read");
                if bytes <= limit {
                    files.insert(path, content);
                }
            }
        }
    }
    files
}

/// A device in memory that counts what is written.
#[derive(Debug)]
struct WatchedDevice {
    bytes: Vec<u8>,
    writes: usize,
}

impl BlockDevice for WatchedDevice {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.bytes.read_at(buffer, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.writes += 1;
        self.bytes.write_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        BlockDevice::len(&self.bytes)
    }
}
