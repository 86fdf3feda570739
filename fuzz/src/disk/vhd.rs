//! Reads a fixed disk (Microsoft, "Virtual Hard Disk Image Format Specification" 1.0).

use std::collections::BTreeMap;
use std::fs::File;

use super::{ContainedDisk, bytes_at, has_data, length_of, vec_at};

/// Bytes of the footer, and where it has its checksum.
const FOOTER_BYTES: u64 = 512;
const CHECKSUM: std::ops::Range<usize> = 64..68;
/// Bytes that are read at a time.
const UNIT_BYTES: u64 = 64 << 10;

pub(super) fn read(file: &File) -> ContainedDisk {
    let bytes = length_of(file) - FOOTER_BYTES;
    let mut footer: [u8; FOOTER_BYTES as usize] = bytes_at(file, bytes);
    assert_eq!(footer[..8], *b"conectix");
    assert_eq!(footer[60..64], 2_u32.to_be_bytes(), "a fixed disk");
    assert_eq!(footer[48..56], bytes.to_be_bytes());
    let claimed = footer[CHECKSUM].to_vec();
    footer[CHECKSUM].fill(0);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    assert_eq!(claimed, (!sum).to_be_bytes());
    let units = 0..bytes / UNIT_BYTES;
    let units = units.filter(|unit| has_data(file, unit * UNIT_BYTES, UNIT_BYTES));
    let units = units.map(|unit| (unit, vec_at(file, unit * UNIT_BYTES, UNIT_BYTES)));
    ContainedDisk {
        bytes,
        unit: UNIT_BYTES,
        units: BTreeMap::from_iter(units),
    }
}
