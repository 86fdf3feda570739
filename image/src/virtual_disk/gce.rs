//! Google Compute Engine's import: `disk.raw` in a tar of the old GNU format, compressed with gzip.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use flate2::{Compression, GzBuilder};

use super::{RawDisk, to_usize};

/// The only name that the import accepts.
const NAME: &str = "disk.raw";
/// Bytes of a block of the archive.
const BLOCK_BYTES: usize = 512;
/// Bytes of the units that are left out if they have zeros alone.
const UNIT_BYTES: u64 = 64 << 10;
/// Parts of a sparse file that its header lists, and that each further block lists.
const PARTS_OF_HEADER: usize = 4;
const PARTS_OF_BLOCK: usize = 21;
/// Places of fields (GNU tar, "Basic Tar Format", `oldgnu_header`).
const PARTS_AT: usize = 386;
const IS_EXTENDED_AT: usize = 482;
const IS_EXTENDED_AT_OF_BLOCK: usize = 504;
const REAL_SIZE_AT: usize = 483;
/// gzip's number for an unknown system, so that the host does not show.
const UNKNOWN_SYSTEM: u8 = 255;

/// Writes the archive. The disk has whole GiB, as the import demands.
pub(crate) fn write(file: &File, disk: &RawDisk) -> io::Result<()> {
    let used = disk.used(UNIT_BYTES)?;
    let parts = parts(&used, disk.bytes());
    let packed = GzBuilder::new()
        .operating_system(UNKNOWN_SYSTEM)
        .write(BufWriter::new(file), Compression::default());
    let mut out = packed;
    out.write_all(&headers(&parts, disk.bytes()))?;
    for (index, is_used) in used.iter().enumerate() {
        if *is_used && let Some(content) = disk.unit(UNIT_BYTES, index as u64)? {
            let left = disk.bytes() - index as u64 * UNIT_BYTES;
            out.write_all(&content[..to_usize(left.min(UNIT_BYTES))])?;
        }
    }
    // Two blocks of zeros end an archive.
    out.write_all(&[0; 2 * BLOCK_BYTES])?;
    out.finish()?.flush()
}

/// Parts of the disk that have data: offset and length. The last one is empty and says where the disk ends.
fn parts(used: &[bool], bytes: u64) -> Vec<(u64, u64)> {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for (index, _) in used.iter().enumerate().filter(|(_, is_used)| **is_used) {
        let at = index as u64 * UNIT_BYTES;
        let length = UNIT_BYTES.min(bytes - at);
        match parts.last_mut() {
            Some((start, known)) if *start + *known == at => *known += length,
            _ => parts.push((at, length)),
        }
    }
    parts.push((bytes, 0));
    parts
}

/// The header of the file, and the blocks that list further parts.
fn headers(parts: &[(u64, u64)], bytes: u64) -> Vec<u8> {
    let stored: u64 = parts.iter().map(|(_, length)| length).sum();
    let (first, rest) = parts.split_at(parts.len().min(PARTS_OF_HEADER));
    let mut out = vec![0; BLOCK_BYTES];
    let mut put = |at: usize, text: &[u8]| out[at..at + text.len()].copy_from_slice(text);
    put(0, NAME.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, &octal(stored));
    put(136, &octal(0));
    // The sum counts its own field as blanks.
    put(148, b"        ");
    // A sparse file, in the old GNU format.
    put(156, b"S");
    put(257, b"ustar  \0");
    put(PARTS_AT, &list(first));
    put(IS_EXTENDED_AT, &[u8::from(!rest.is_empty())]);
    put(REAL_SIZE_AT, &octal(bytes));
    let sum: u32 = out.iter().map(|byte| u32::from(*byte)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut blocks = rest.chunks(PARTS_OF_BLOCK).peekable();
    while let Some(block) = blocks.next() {
        let mut more = list(block);
        more.resize(BLOCK_BYTES, 0);
        more[IS_EXTENDED_AT_OF_BLOCK] = u8::from(blocks.peek().is_some());
        out.extend_from_slice(&more);
    }
    out
}

fn list(parts: &[(u64, u64)]) -> Vec<u8> {
    let numbers = parts.iter().flat_map(|(at, length)| [*at, *length]);
    numbers.flat_map(octal).collect()
}

/// A number as eleven octal digits, and a zero.
fn octal(number: u64) -> [u8; 12] {
    let text = format!("{number:011o}\0");
    text.as_bytes().try_into().expect("sizes are below 8 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_part_and_the_end_is_the_last() {
        let used = [true, true, false, true];
        let bytes = 4 * UNIT_BYTES;
        let expected = [
            (0, 2 * UNIT_BYTES),
            (3 * UNIT_BYTES, UNIT_BYTES),
            (bytes, 0),
        ];
        assert_eq!(parts(&used, bytes), expected);
    }

    #[test]
    fn more_parts_than_a_header_holds_are_in_blocks_behind_it() {
        let all: Vec<(u64, u64)> = (0..30).map(|n| (n * 2 * UNIT_BYTES, UNIT_BYTES)).collect();
        let blocks = |count: usize| headers(&all[..count], 1 << 30);
        assert_eq!(blocks(4).len(), BLOCK_BYTES);
        assert_eq!(blocks(25).len(), 2 * BLOCK_BYTES);
        let long = blocks(26);
        assert_eq!(long.len(), 3 * BLOCK_BYTES);
        let flags = [
            IS_EXTENDED_AT,
            BLOCK_BYTES + IS_EXTENDED_AT_OF_BLOCK,
            2 * BLOCK_BYTES + IS_EXTENDED_AT_OF_BLOCK,
        ];
        assert_eq!(flags.map(|at| long[at]), [1, 1, 0]);
    }
}
