//! The map of the blocks that bmaptool writes: version 2.0 of its format.
//!
//! bmaptool leaves the other blocks of the drive as they are, so every block that a machine reads is in the map, also
//! if it has zeros alone.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::disk::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
use crate::esp::EspVolume;

/// Unit of the map.
const BLOCK_BYTES: u64 = 4096;
/// Bytes read at once: whole blocks.
const READ_BYTES: usize = 1 << 20;
/// A machine takes the data partition as new only if its first MiB is zero.
const DATA_HEAD_BYTES: u64 = 1 << 20;
/// The backup of the partition table: 33 blocks of 512 bytes at the end.
const BACKUP_BYTES: u64 = 33 * LBA_BYTES;
/// The checksum of the map is computed with these digits in its own place.
const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The map of a disk of `bytes`.
pub(super) fn text(disk: &File, bytes: u64) -> io::Result<String> {
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    let mut used = nonzero(disk, bytes)?;
    for range in needed(disk, bytes)? {
        let first = range.start / BLOCK_BYTES;
        let end = range.end.div_ceil(BLOCK_BYTES).min(blocks);
        used[first as usize..end as usize].fill(true);
    }
    let ranges = runs(&used);
    let mut rows = String::new();
    for range in &ranges {
        let hash = hash(disk, range, bytes)?;
        let last = range.end - 1;
        let place = match last == range.start {
            true => last.to_string(),
            false => format!("{}-{last}", range.start),
        };
        // Writing to a string does not fail.
        let _ = writeln!(rows, "        <Range chksum=\"{hash}\">{place}</Range>");
    }
    let mapped: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let text = format!(
        "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    <ImageSize>{bytes}</ImageSize>\n    \
         <BlockSize>{BLOCK_BYTES}</BlockSize>\n    <BlocksCount>{blocks}</BlocksCount>\n    \
         <MappedBlocksCount>{mapped}</MappedBlocksCount>\n    <ChecksumType>sha256</ChecksumType>\n    \
         <BmapFileChecksum>{NO_CHECKSUM}</BmapFileChecksum>\n    <BlockMap>\n{rows}    </BlockMap>\n</bmap>\n"
    );
    let sum = HEXLOWER.encode(&Sha256::digest(&text));
    Ok(text.replacen(NO_CHECKSUM, &sum, 1))
}

/// Bytes that must be on the drive, whatever they are: tables, everything that a file or a folder occupies, and the
/// beginning of the data partition.
fn needed(disk: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let volume = EspVolume::open(disk)?;
    let data = ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES;
    Ok(vec![
        0..volume.used_end(),
        data..data + DATA_HEAD_BYTES,
        bytes - BACKUP_BYTES..bytes,
    ])
}

/// Which blocks have another byte than zero.
fn nonzero(disk: &File, bytes: u64) -> io::Result<Vec<bool>> {
    let mut used = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < bytes {
        let wanted = (bytes - at).min(READ_BYTES as u64) as usize;
        disk.read_exact_at(&mut buffer[..wanted], at)?;
        let blocks = buffer[..wanted].chunks(BLOCK_BYTES as usize);
        used.extend(blocks.map(|block| block.iter().any(|byte| *byte != 0)));
        at += wanted as u64;
    }
    Ok(used)
}

/// The runs of used blocks.
fn runs(used: &[bool]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (block, _) in used.iter().enumerate().filter(|(_, used)| **used) {
        let block = block as u64;
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

/// The SHA-256 of a run. The last block may be shorter than the others.
fn hash(disk: &File, run: &Range<u64>, bytes: u64) -> io::Result<String> {
    let end = (run.end * BLOCK_BYTES).min(bytes);
    let mut at = run.start * BLOCK_BYTES;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    while at < end {
        let wanted = (end - at).min(READ_BYTES as u64) as usize;
        disk.read_exact_at(&mut buffer[..wanted], at)?;
        hasher.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(HEXLOWER.encode(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{self, DISK_BYTES};

    #[test]
    fn runs_are_joined() {
        assert_eq!(runs(&[true, true, false, true, false]), [0..2, 3..4]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn zeros_that_a_machine_reads_are_in_the_map() {
        // The second half of the program has zeros alone.
        let mut program = vec![1; 1 << 20];
        program[1 << 19..].fill(0);
        let disk = disk::tests::written(&program, "a");
        let text = text(&disk, DISK_BYTES).expect("readable");
        let rows = text.lines().filter_map(|line| line.split_once("\">"));
        let places: Vec<&str> = rows
            .filter_map(|(_, rest)| rest.strip_suffix("</Range>"))
            .collect();
        let volume = EspVolume::open(&disk).expect("ours");
        let head = volume.used_end().div_ceil(BLOCK_BYTES) - 1;
        let data = (ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES) / BLOCK_BYTES;
        let last = DISK_BYTES / BLOCK_BYTES - 1;
        // 33 blocks of 512 bytes end the disk, so they lie in five of the map's.
        let backup = last - 4;
        let expected = [
            format!("0-{head}"),
            format!("{data}-{}", data + 255),
            format!("{backup}-{last}"),
        ];
        assert_eq!(places, expected);
    }
}
