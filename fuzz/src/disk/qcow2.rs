//! Reads QEMU's format (QEMU, `docs/interop/qcow2`).

use std::collections::BTreeMap;
use std::fs::File;

use super::{ContainedDisk, bytes_at, length_of, vec_at};

/// The bits of an entry that are a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// The bit of an entry whose cluster has one reference.
const COPIED: u64 = 1 << 63;

/// Reads the disk, and asserts that each cluster of the file has one reference and a count of one.
pub(super) fn read(file: &File) -> ContainedDisk {
    assert_eq!(bytes_at(file, 0), *b"QFI\xfb");
    assert_eq!(number(file, 4), 3);
    let cluster = 1_u64 << number(file, 20);
    let bytes = offset(file, 24);
    let (tables, first) = (u64::from(number(file, 36)), offset(file, 40));
    let mut used = vec![0];
    used.extend(clusters(first, tables * 8, cluster));
    let mut units = BTreeMap::new();
    for (index, table) in (0..).zip(entries(file, first, tables)) {
        let Some(table) = place(table) else {
            continue;
        };
        used.push(table / cluster);
        for (slot, entry) in (0..).zip(entries(file, table, cluster / 8)) {
            if let Some(at) = place(entry) {
                used.push(at / cluster);
                let unit = index * (cluster / 8) + slot;
                units.insert(unit, vec_at(file, at, cluster));
            }
        }
    }
    require_counts(file, cluster, used);
    ContainedDisk {
        bytes,
        unit: cluster,
        units,
    }
}

/// The entries of a table.
fn entries(file: &File, at: u64, count: u64) -> Vec<u64> {
    let table = vec_at(file, at, count * 8);
    let entries = table.chunks_exact(8);
    entries
        .map(|entry| u64::from_be_bytes(entry.try_into().expect("eight bytes")))
        .collect()
}

/// The place to which an entry points.
fn place(entry: u64) -> Option<u64> {
    if entry == 0 {
        return None;
    }
    assert_eq!(entry & !PLACE, COPIED, "no other flag");
    Some(entry & PLACE)
}

fn clusters(at: u64, bytes: u64, cluster: u64) -> std::ops::Range<u64> {
    assert_eq!(at % cluster, 0);
    at / cluster..(at + bytes).div_ceil(cluster)
}

fn require_counts(file: &File, cluster: u64, mut used: Vec<u64>) {
    let (table, tables) = (offset(file, 48), u64::from(number(file, 56)));
    assert_eq!(number(file, 96), 4, "counts of 16 bits");
    used.extend(clusters(table, tables * cluster, cluster));
    let mut counted = Vec::new();
    for (index, block) in (0..).zip(entries(file, table, tables * cluster / 8)) {
        if block == 0 {
            continue;
        }
        used.push(block / cluster);
        let counts = vec_at(file, block, cluster);
        for (slot, count) in (0..).zip(counts.chunks(2)) {
            match count {
                [0, 0] => {}
                [0, 1] => counted.push(index * (cluster / 2) + slot),
                _ => panic!("a count of {count:?}"),
            }
        }
    }
    used.sort_unstable();
    assert!(used == counted, "a cluster is counted wrongly");
    let all = 0..length_of(file) / cluster;
    assert!(all.eq(used), "a cluster is used by no table");
}

fn number(file: &File, at: u64) -> u32 {
    u32::from_be_bytes(bytes_at(file, at))
}

fn offset(file: &File, at: u64) -> u64 {
    u64::from_be_bytes(bytes_at(file, at))
}
