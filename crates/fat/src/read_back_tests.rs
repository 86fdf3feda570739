//! Devices that lose what was written: the file of before stays.

use std::io::{self, Read};
use std::ops::Range;

use crate::testing::{content, contents, first_cluster, geometry, slot_at, small_image};
use crate::{BlockDevice, FatError, FatNode, FatVolume, RepairRules, ShortName};

const TARGET: &str = r"\EFI\ALKNET\A.EFI";
const OTHER: &str = r"\EFI\ALKNET\B.EFI";
const SECTOR_BYTES: usize = 512;
/// Bytes of the file of before, and of its clusters.
const OLD_BYTES: usize = 2000;
const OLD_CLUSTER_BYTES: u64 = 2048;
const NEW_BYTES: usize = 3000;

/// A device in memory whose sectors in a range keep what they had.
#[derive(Debug)]
struct LosingDevice {
    bytes: Vec<u8>,
    lost: Range<u64>,
}

impl BlockDevice for LosingDevice {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.bytes.read_at(buffer, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let sectors = (at..).step_by(SECTOR_BYTES);
        for (at, sector) in sectors.zip(bytes.chunks(SECTOR_BYTES)) {
            if !self.lost.contains(&at) {
                self.bytes.write_at(sector, at)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        BlockDevice::len(&self.bytes)
    }
}

fn name(text: &str) -> ShortName {
    ShortName::new(text).expect("a short name")
}

/// A volume with a loader, and with the target behind it.
fn image() -> Vec<u8> {
    let loader = content(7, 900);
    let boot = FatNode::Folder(
        name("BOOT"),
        vec![FatNode::File(name("BOOTX64.EFI"), &loader)],
    );
    let image = small_image(&[FatNode::Folder(name("EFI"), vec![boot])]);
    let mut volume = FatVolume::open(image).expect("a volume");
    let old = content(51, OLD_BYTES);
    volume
        .replace_file(TARGET, OLD_BYTES as u64, &mut &*old, &mut |_| {})
        .expect("room");
    volume.into_device()
}

fn losing(bytes: &[u8], lost: Range<u64>) -> FatVolume<LosingDevice> {
    let bytes = bytes.to_vec();
    FatVolume::open(LosingDevice { bytes, lost }).expect("a volume")
}

/// A disk whose first sector behind the file of before keeps nothing, and one that keeps all.
#[test]
fn bytes_that_the_device_lost_are_seen_before_the_file_is_another_one() {
    let base = image();
    let behind = geometry(&base).cluster_at(first_cluster(&base, TARGET)) + OLD_CLUSTER_BYTES;
    let new = content(52, NEW_BYTES);
    for (path, lost) in [(TARGET, 512), (OTHER, 512), (TARGET, 0)] {
        let mut volume = losing(&base, behind..behind + lost);
        let mut writer = volume.write_file(path, NEW_BYTES as u64).expect("room");
        let early = writer.read_back().map(drop);
        assert!(matches!(early, Err(FatError::Length { .. })), "{early:?}");
        writer.write(&new).expect("announced");
        let mut found = Vec::new();
        let mut file = writer.read_back().expect("all came");
        file.read_to_end(&mut found).expect("readable");
        assert_eq!(found.len(), new.len());
        assert_eq!(found == new, lost == 0, "{path}: {lost} bytes lost");
        assert!(contents(&volume.into_device().bytes) == contents(&base));
    }
}

#[test]
fn a_chain_or_an_entry_that_the_device_lost_leaves_the_file_of_before() {
    let base = image();
    let geometry = geometry(&base);
    let tables = geometry.table_at(0)..geometry.table_at(geometry.tables);
    let sector = slot_at(&base, TARGET) as u64 / 512 * 512;
    let new = content(52, NEW_BYTES);
    for lost in [tables, sector..sector + 512] {
        for path in [TARGET, OTHER] {
            let mut volume = losing(&base, lost.clone());
            let length = NEW_BYTES as u64;
            let written = volume.replace_file(path, length, &mut &*new, &mut |_| {});
            let refused = written.expect_err("the device did not keep it");
            assert!(matches!(refused, FatError::NotKept { .. }), "{refused}");
            let bytes = volume.into_device().bytes;
            assert!(contents(&bytes) == contents(&base), "{path}: {refused}");
            // Another device takes the file, once its repair has freed what was left.
            let mut volume = FatVolume::open(bytes).expect("a volume");
            let rules = RepairRules {
                own: &[TARGET, OTHER],
                needed: 0,
                choose: &RepairRules::keep_own,
            };
            let report = volume.repair(&rules).expect("memory can be written");
            assert!(report.left.findings.is_empty(), "{report:?}");
            volume
                .replace_file(path, length, &mut &*new, &mut |_| {})
                .expect("room");
            assert_eq!(volume.read_file(path, u32::MAX).expect("written"), new);
        }
    }
}
