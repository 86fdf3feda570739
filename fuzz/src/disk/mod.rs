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
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek64};

const SECTOR_BYTES: u64 = 512;
const ZERO_SECTOR: &[u8] = &[0; SECTOR_BYTES as usize];
/// Bytes before the extents of an input: one that chooses the container, and the length of the disk.
const HEAD_BYTES: usize = 3;
/// Bytes of an extent: its first sector, its length in bytes, its first byte, and the step to each next one.
const EXTENT_BYTES: usize = 7;
/// Extents of a disk. A container may take 1 MiB or more for each, so that many would make an input slow.
const EXTENTS_MAX: usize = 4;
/// Those of a disk whose container is compressed, which takes most of the time of an input: as many as it needs for grains
/// in two tables.
const COMPRESSED_EXTENTS_MAX: usize = 2;

/// What a container says.
struct ContainedDisk {
    /// Bytes of the disk.
    bytes: u64,
    /// Bytes of a unit, which is one of allocation or a part of it.
    unit: u64,
    /// The units that are in the file, by their number.
    units: BTreeMap<u64, Vec<u8>>,
}

/// Takes the input as a disk and the choice of a container, and holds the container against the disk.
pub fn disk(data: &[u8]) -> bool {
    let Some((&[container, low, high], extents)) = data.split_first_chunk::<HEAD_BYTES>() else {
        return false;
    };
    // One container for an input: the others would cost four times as much time again, and find nothing in this one.
    let formats = VirtualDiskFormat::ALL;
    let format = formats[usize::from(container) % formats.len()];
    // Up to 36 MiB: more than one table of a VMDK.
    let length = u64::from(u16::from_le_bytes([low, high]));
    let sectors = 1 + length + length / 8;
    let extents_max = match format {
        VirtualDiskFormat::VmdkStream => COMPRESSED_EXTENTS_MAX,
        _ => EXTENTS_MAX,
    };
    let expected = written(
        sectors,
        extents.chunks_exact(EXTENT_BYTES).take(extents_max),
    );
    let output = memory_file();
    write_virtual_disk(format, raw_file(sectors, &expected), &output).expect("written");
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
    extents.len() >= EXTENT_BYTES
}

/// The sectors that have another byte than zero.
fn written<'a>(sectors: u64, extents: impl Iterator<Item = &'a [u8]>) -> BTreeMap<u64, Vec<u8>> {
    let mut disk = BTreeMap::new();
    for extent in extents {
        let first = u64::from(u32::from_le_bytes([extent[0], extent[1], extent[2], 0]));
        let bytes = usize::from(u16::from_le_bytes([extent[3], extent[4]]));
        let (start, step) = (extent[5], extent[6]);
        // The bytes repeat themselves after 256.
        let cycle = (0..=u8::MAX).map(|index| start.wrapping_add(index.wrapping_mul(step)));
        let cycle: Vec<u8> = cycle.collect();
        let content = cycle.repeat(bytes.div_ceil(cycle.len()));
        let parts = content[..bytes].chunks(SECTOR_BYTES as usize);
        for (sector, part) in (first..).zip(parts) {
            let content = disk
                .entry(sector % sectors)
                .or_insert_with(|| ZERO_SECTOR.to_vec());
            content[..part.len()].copy_from_slice(part);
        }
    }
    disk.retain(|_, content| content.as_slice() != ZERO_SECTOR);
    disk
}

/// An empty file that is on no disk.
fn memory_file() -> File {
    let file = memfd_create(c"disk", MFdFlags::MFD_CLOEXEC);
    file.expect("a file in memory").into()
}

fn raw_file(sectors: u64, disk: &BTreeMap<u64, Vec<u8>>) -> File {
    let raw = memory_file();
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
    let mut found = 0;
    for (unit, content) in &contained.units {
        assert_eq!(content.len() as u64, contained.unit, "{format:?} {unit}");
        let sectors = content.chunks(SECTOR_BYTES as usize);
        for (index, sector) in (0..).zip(sectors) {
            let number = unit * (contained.unit / SECTOR_BYTES) + index;
            let expected = expected.get(&number);
            found += usize::from(expected.is_some());
            let expected = expected.map_or(ZERO_SECTOR, Vec::as_slice);
            assert!(sector == expected, "{format:?}: another sector {number}");
        }
    }
    assert_eq!(found, expected.len(), "{format:?}: a sector is missing");
}

/// Whether a part of the file is more than a hole. To read all zeros of large units takes most of the time of an input.
fn has_data(file: &File, at: u64, bytes: u64) -> bool {
    match lseek64(file, at.cast_signed(), Whence::SeekData) {
        Ok(data) => data.cast_unsigned() < at + bytes,
        Err(Errno::ENXIO) => false,
        Err(error) => panic!("{error}"),
    }
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
