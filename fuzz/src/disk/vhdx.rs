//! Reads Hyper-V's disk of its second generation ([MS-VHDX]).

use std::collections::BTreeMap;
use std::fs::File;

use crc::{CRC_32_ISCSI, Crc};

use super::{ContainedDisk, SECTOR_BYTES, bytes_at, has_data, length_of, vec_at};

/// Bytes of a header, of which the file has two, and of a table of regions.
const HEADER_BYTES: u64 = 4096;
const REGIONS_BYTES: u64 = 64 << 10;
/// Bytes of a block that are read at a time.
const PART_BYTES: u64 = 64 << 10;
/// Identifiers, as they are in the file.
const ALLOCATION: [u8; 16] = [
    0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08,
];
const METADATA: [u8; 16] = [
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
];
const FILE_PARAMETERS: [u8; 16] = [
    0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
];
const DISK_BYTES: [u8; 16] = [
    0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8,
];

pub(super) fn read(file: &File) -> ContainedDisk {
    assert_eq!(bytes_at(file, 0), *b"vhdxfile");
    for copy in [1, 2] {
        let header = checked(file, copy * REGIONS_BYTES, HEADER_BYTES, b"head");
        // Without a log there is nothing to replay.
        assert_eq!(header[48..64], [0; 16]);
    }
    // One checksum is that of both copies.
    let [one, two] = [3, 4].map(|copy| vec_at(file, copy * REGIONS_BYTES, REGIONS_BYTES));
    assert!(one == two, "the copies differ");
    let regions = checked(file, 3 * REGIONS_BYTES, REGIONS_BYTES, b"regi");
    let (table, table_bytes) = region(&regions, &ALLOCATION);
    let (metadata, _) = region(&regions, &METADATA);
    let block_bytes = u64::from(u32::from_le_bytes(item(file, metadata, &FILE_PARAMETERS)));
    let bytes = u64::from_le_bytes(item(file, metadata, &DISK_BYTES));
    let per_bitmap = (1 << 23) * SECTOR_BYTES / block_bytes;
    let parts = block_bytes / PART_BYTES;
    let mut units = BTreeMap::new();
    for block in 0..bytes.div_ceil(block_bytes) {
        let slot = block + block / per_bitmap;
        assert!((slot + 1) * 8 <= table_bytes, "the table is too short");
        let entry = u64::from_le_bytes(bytes_at(file, table + slot * 8));
        match entry & 7 {
            0 => assert_eq!(entry, 0),
            6 => {
                let at = entry & !0xf_ffff;
                assert!(at + block_bytes <= length_of(file));
                for part in 0..parts {
                    let at = at + part * PART_BYTES;
                    if has_data(file, at, PART_BYTES) {
                        units.insert(block * parts + part, vec_at(file, at, PART_BYTES));
                    }
                }
            }
            state => panic!("state {state}"),
        }
    }
    ContainedDisk {
        bytes,
        unit: PART_BYTES,
        units,
    }
}

/// A structure whose checksum holds.
fn checked(file: &File, at: u64, bytes: u64, signature: &[u8]) -> Vec<u8> {
    let mut structure = vec_at(file, at, bytes);
    assert_eq!(structure[..4], *signature);
    let claimed = structure[4..8].to_vec();
    structure[4..8].fill(0);
    let sum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&structure);
    assert_eq!(claimed, sum.to_le_bytes());
    structure
}

/// Where a region lies, and its bytes.
fn region(regions: &[u8], id: &[u8; 16]) -> (u64, u64) {
    let entries = regions[16..].chunks(32);
    let mut found = entries.filter(|entry| entry[..16] == *id);
    let entry = found.next().expect("every file has it");
    let at = u64::from_le_bytes(entry[16..24].try_into().expect("eight bytes"));
    let bytes = u32::from_le_bytes(entry[24..28].try_into().expect("four bytes"));
    (at, bytes.into())
}

/// The first bytes of an item of the metadata.
fn item<const N: usize>(file: &File, metadata: u64, id: &[u8; 16]) -> [u8; N] {
    assert_eq!(bytes_at(file, metadata), *b"metadata");
    let count = u64::from(u16::from_le_bytes(bytes_at(file, metadata + 10)));
    let mut entries = (1..=count).map(|entry| metadata + entry * 32);
    let entry = entries.find(|at| bytes_at(file, *at) == *id);
    let place = u32::from_le_bytes(bytes_at(file, entry.expect("every file has it") + 16));
    bytes_at(file, metadata + u64::from(place))
}
