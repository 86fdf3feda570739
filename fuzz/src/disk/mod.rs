//! Disks in the containers of hypervisors and clouds: what the writers of `alknet-image` write has to be the disk again,
//! for readers that follow each container's specification and take every place and length from the file.

mod qcow2;
mod vhd;
mod vhdx;
mod vmdk;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use alknet_image::{VirtualDiskFormat, write_virtual_disk};

const SECTOR_BYTES: u64 = 512;
/// Bytes before the extents of an input: the length of the disk.
const LENGTH_BYTES: usize = 2;
/// Bytes of an extent: its first sector, its length in bytes, its first byte, and the step to each next one.
const EXTENT_BYTES: usize = 7;
/// Extents of a disk.
const EXTENTS_MAX: usize = 32;

/// What a container says.
struct ContainedDisk {
    /// Bytes of the disk.
    bytes: u64,
    /// Bytes of a unit of allocation.
    unit: u64,
    /// The units that are in the file, by their number.
    units: BTreeMap<u64, Vec<u8>>,
}

/// Takes the input as a disk, and holds each container of it against the disk.
pub fn disk(data: &[u8]) -> bool {
    let Some((length, extents)) = data.split_first_chunk::<LENGTH_BYTES>() else {
        return false;
    };
    // Up to 36 MiB: more than one table of a VMDK.
    let length = u64::from(u16::from_le_bytes(*length));
    let sectors = 1 + length + length / 8;
    let expected = written(sectors, extents);
    for format in VirtualDiskFormat::ALL {
        let output = tempfile::tempfile().expect("a file");
        let raw = raw_file(sectors, &expected);
        write_virtual_disk(format, raw, &output).expect("written");
        let contained = match format {
            VirtualDiskFormat::Qcow2 => qcow2::read(&output),
            VirtualDiskFormat::Vhd => vhd::read(&output),
            VirtualDiskFormat::Vhdx => vhdx::read(&output),
            VirtualDiskFormat::VmdkSparse => vmdk::read(&output, 1),
            VirtualDiskFormat::VmdkStream => vmdk::read(&output, 3),
        };
        let rounded = match format {
            // Azure takes whole MiB.
            VirtualDiskFormat::Vhd => (sectors * SECTOR_BYTES).next_multiple_of(1 << 20),
            _ => sectors * SECTOR_BYTES,
        };
        assert_eq!(contained.bytes, rounded, "{format:?}");
        require_same(format, &contained, &expected);
    }
    extents.len() >= EXTENT_BYTES
}

/// The sectors that have another byte than zero.
fn written(sectors: u64, extents: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let mut disk = BTreeMap::new();
    for extent in extents.chunks_exact(EXTENT_BYTES).take(EXTENTS_MAX) {
        let first = u64::from(u32::from_le_bytes([extent[0], extent[1], extent[2], 0]));
        let bytes = usize::from(u16::from_le_bytes([extent[3], extent[4]]));
        let (start, step) = (extent[5], extent[6]);
        let mut byte = start;
        for index in 0..bytes {
            let place = first * SECTOR_BYTES + index as u64;
            let sector = place / SECTOR_BYTES % sectors;
            let content = disk
                .entry(sector)
                .or_insert_with(|| vec![0; SECTOR_BYTES as usize]);
            content[(place % SECTOR_BYTES) as usize] = byte;
            byte = byte.wrapping_add(step);
        }
    }
    disk.retain(|_, content| content.iter().any(|byte| *byte != 0));
    disk
}

fn raw_file(sectors: u64, disk: &BTreeMap<u64, Vec<u8>>) -> File {
    let raw = tempfile::tempfile().expect("a file");
    raw.set_len(sectors * SECTOR_BYTES).expect("writable");
    for (sector, content) in disk {
        let at = sector * SECTOR_BYTES;
        raw.write_all_at(content, at).expect("writable");
    }
    raw
}

/// Asserts that the container has the sectors, and zeros everywhere else.
fn require_same(
    format: VirtualDiskFormat,
    contained: &ContainedDisk,
    expected: &BTreeMap<u64, Vec<u8>>,
) {
    let mut found = BTreeMap::new();
    for (unit, content) in &contained.units {
        assert_eq!(content.len() as u64, contained.unit, "{format:?} {unit}");
        let sectors = content.chunks(SECTOR_BYTES as usize);
        for (index, sector) in (0..).zip(sectors) {
            if sector.iter().any(|byte| *byte != 0) {
                let number = unit * (contained.unit / SECTOR_BYTES) + index;
                found.insert(number, sector.to_vec());
            }
        }
    }
    assert!(&found == expected, "{format:?}: another disk");
}

fn bytes_at<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).expect("within the file");
    bytes
}

fn vec_at(file: &File, at: u64, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(bytes).expect("a unit or a table")];
    file.read_exact_at(&mut content, at)
        .expect("within the file");
    content
}

fn length_of(file: &File) -> u64 {
    file.metadata().expect("a file").len()
}
