//! Reads VMware's sparse disk of both kinds (VMware, "Virtual Disk Format 5.0").

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::{ContainedDisk, SECTOR_BYTES, bytes_at, length_of, vec_at};

/// The header says that the footer has the directory.
const AT_END: u64 = u64::MAX;
/// Grains are compressed, each behind its marker.
const COMPRESSED: u32 = 1 << 16;
/// The line of the descriptor that says how large the disk is begins so.
const EXTENT: &str = "RW ";

/// Where a header says that the parts of the disk are.
struct SparseHeader {
    version: u32,
    flags: u32,
    sectors: u64,
    /// Sectors of a grain.
    grain: u64,
    /// Grains of a table.
    table: u64,
    redundant: u64,
    directory: u64,
}

impl SparseHeader {
    fn read(file: &File, at: u64) -> Self {
        assert_eq!(bytes_at(file, at), *b"KDMV");
        let number = |place| u32::from_le_bytes(bytes_at(file, at + place));
        let long = |place| u64::from_le_bytes(bytes_at(file, at + place));
        Self {
            version: number(4),
            flags: number(8),
            sectors: long(12),
            grain: long(20),
            table: number(44).into(),
            redundant: long(48),
            directory: long(56),
        }
    }
}

pub(super) fn read(file: &File, version: u32) -> ContainedDisk {
    let mut header = SparseHeader::read(file, 0);
    if header.directory == AT_END {
        // Behind the footer is the end of the stream.
        header = SparseHeader::read(file, length_of(file) - 2 * SECTOR_BYTES);
    }
    assert_eq!(header.version, version);
    require_descriptor(file, header.sectors);
    let units = grains(file, &header, header.directory);
    if header.redundant != 0 {
        assert!(units == grains(file, &header, header.redundant));
    }
    ContainedDisk {
        bytes: header.sectors * SECTOR_BYTES,
        unit: header.grain * SECTOR_BYTES,
        units,
    }
}

/// Asserts that the text says the same length as the header.
fn require_descriptor(file: &File, sectors: u64) {
    let at = u64::from_le_bytes(bytes_at(file, 28)) * SECTOR_BYTES;
    let bytes = u64::from_le_bytes(bytes_at(file, 36)) * SECTOR_BYTES;
    let text = String::from_utf8(vec_at(file, at, bytes)).expect("text");
    let extent = text.lines().find_map(|line| line.strip_prefix(EXTENT));
    let said = extent.and_then(|it| it.split(' ').next());
    assert_eq!(said, Some(sectors.to_string().as_str()));
}

fn grains(file: &File, header: &SparseHeader, directory: u64) -> BTreeMap<u64, Vec<u8>> {
    let mut units = BTreeMap::new();
    let all = header.sectors.div_ceil(header.grain);
    let tables = entries(file, directory, all.div_ceil(header.table));
    for (index, table) in (0..).zip(tables) {
        if table == 0 {
            continue;
        }
        for (slot, at) in (0..).zip(entries(file, table, header.table)) {
            if at == 0 {
                continue;
            }
            let grain = index * header.table + slot;
            assert!(grain < all, "grain {grain} is behind the end");
            let content = match header.flags & COMPRESSED {
                0 => vec_at(file, at * SECTOR_BYTES, header.grain * SECTOR_BYTES),
                _ => unpacked(file, at * SECTOR_BYTES, grain * header.grain),
            };
            units.insert(grain, content);
        }
    }
    units
}

/// The sectors in a table, or in a directory, that begins with sector `first`.
fn entries(file: &File, first: u64, count: u64) -> Vec<u64> {
    let table = vec_at(file, first * SECTOR_BYTES, count * 4);
    let entries = table.chunks_exact(4);
    entries
        .map(|entry| u32::from_le_bytes(entry.try_into().expect("four bytes")).into())
        .collect()
}

/// The grain behind the marker at byte `at`, which says that it begins with this sector of the disk.
fn unpacked(file: &File, at: u64, sector: u64) -> Vec<u8> {
    assert_eq!(u64::from_le_bytes(bytes_at(file, at)), sector);
    let bytes = u32::from_le_bytes(bytes_at(file, at + 8));
    let packed = vec_at(file, at + 12, bytes.into());
    let mut content = Vec::new();
    let mut decoder = ZlibDecoder::new(&*packed);
    decoder.read_to_end(&mut content).expect("it is whole");
    content
}
