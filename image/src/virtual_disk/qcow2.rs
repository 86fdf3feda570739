//! QEMU's image format, version 3 (QEMU, `docs/interop/qcow2`): for libvirt, Proxmox, OpenStack, KubeVirt and most
//! providers that take an image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{HeaderBytes, RawDisk, to_usize};

/// Bytes of a cluster, the unit of allocation: the default of QEMU.
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Bytes of an entry in the tables of levels 1 and 2.
const ENTRY_BYTES: u64 = 8;
/// Clusters to which one table of level 2 points.
const L2_ENTRIES: u64 = CLUSTER_BYTES / ENTRY_BYTES;
/// References are counted in 16 bits: the exponent that says so.
const REFCOUNT_ORDER: u32 = 4;
/// Counts in one cluster.
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;
/// The bit that marks a cluster with exactly one reference.
const COPIED: u64 = 1 << 63;
const HEADER_BYTES: u32 = 104;

/// Numbers of clusters of each part, in the order of the file: header, table of counts, counts, level 1, level 2, data.
struct Qcow2Layout {
    count_tables: u64,
    counts: u64,
    l1: u64,
    l2: u64,
    total: u64,
}

impl Qcow2Layout {
    fn new(l1_entries: u64, l2: u64, data: u64) -> Self {
        let l1 = (l1_entries * ENTRY_BYTES).div_ceil(CLUSTER_BYTES);
        let fixed = 1 + l1 + l2 + data;
        let (mut count_tables, mut counts) = (0, 0);
        // The counts count themselves.
        loop {
            let total = fixed + count_tables + counts;
            let needed = total.div_ceil(REFCOUNTS);
            let tables = (needed * ENTRY_BYTES).div_ceil(CLUSTER_BYTES);
            if (tables, needed) == (count_tables, counts) {
                return Self {
                    count_tables,
                    counts,
                    l1,
                    l2,
                    total,
                };
            }
            (count_tables, counts) = (tables, needed);
        }
    }

    const fn first_count(&self) -> u64 {
        1 + self.count_tables
    }

    const fn first_l1(&self) -> u64 {
        self.first_count() + self.counts
    }

    const fn first_l2(&self) -> u64 {
        self.first_l1() + self.l1
    }

    const fn first_data(&self) -> u64 {
        self.first_l2() + self.l2
    }
}

/// Writes the disk. Clusters of zeros take no space.
pub(crate) fn write(file: &File, disk: &RawDisk) -> io::Result<()> {
    let used = disk.used(CLUSTER_BYTES)?;
    let groups: Vec<&[bool]> = used.chunks(to_usize(L2_ENTRIES)).collect();
    let has_data = |group: &&[bool]| group.contains(&true);
    let l2_count = groups.iter().filter(|group| has_data(group)).count() as u64;
    let data = used.iter().filter(|is_used| **is_used).count() as u64;
    let l1_entries = groups.len() as u64;
    let layout = Qcow2Layout::new(l1_entries, l2_count, data);
    file.write_all_at(&header(disk.bytes(), l1_entries, &layout), 0)?;

    let table: Vec<u8> = (0..layout.counts)
        .flat_map(|index| ((layout.first_count() + index) * CLUSTER_BYTES).to_be_bytes())
        .collect();
    file.write_all_at(&table, CLUSTER_BYTES)?;
    let counts: Vec<u8> = (0..layout.total)
        .flat_map(|_| 1_u16.to_be_bytes())
        .collect();
    file.write_all_at(&counts, layout.first_count() * CLUSTER_BYTES)?;

    let mut next_data = layout.first_data();
    let with_data = (0_u64..).zip(&groups).filter(|(_, group)| has_data(group));
    for (table, (number, group)) in (layout.first_l2()..).zip(with_data) {
        let entry = (table * CLUSTER_BYTES) | COPIED;
        let at = layout.first_l1() * CLUSTER_BYTES + number * ENTRY_BYTES;
        file.write_all_at(&entry.to_be_bytes(), at)?;
        let mut entries = Vec::with_capacity(to_usize(CLUSTER_BYTES));
        for (index, is_used) in group.iter().enumerate() {
            let mut entry = 0;
            if *is_used {
                let cluster = number * L2_ENTRIES + index as u64;
                let content = disk.unit(CLUSTER_BYTES, cluster)?;
                let at = next_data * CLUSTER_BYTES;
                file.write_all_at(&content.unwrap_or_default(), at)?;
                entry = at | COPIED;
                next_data += 1;
            }
            entries.extend_from_slice(&entry.to_be_bytes());
        }
        file.write_all_at(&entries, table * CLUSTER_BYTES)?;
    }
    // The last table may end in zeros that were not written.
    file.set_len(layout.total * CLUSTER_BYTES)
}

fn header(bytes: u64, l1_entries: u64, layout: &Qcow2Layout) -> Vec<u8> {
    let number = |value: u64| u32::try_from(value).expect("tables are far smaller");
    HeaderBytes::default()
        .put(b"QFI\xfb")
        .put(&3_u32.to_be_bytes())
        // No backing file.
        .put(&[0; 12])
        .put(&CLUSTER_BITS.to_be_bytes())
        .put(&bytes.to_be_bytes())
        // No encryption.
        .put(&0_u32.to_be_bytes())
        .put(&number(l1_entries).to_be_bytes())
        .put(&(layout.first_l1() * CLUSTER_BYTES).to_be_bytes())
        .put(&CLUSTER_BYTES.to_be_bytes())
        .put(&number(layout.count_tables).to_be_bytes())
        // No snapshots, and no features of any kind.
        .put(&[0; 4 + 8 + 3 * 8])
        .put(&REFCOUNT_ORDER.to_be_bytes())
        .put(&HEADER_BYTES.to_be_bytes())
        .padded(to_usize(CLUSTER_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_count_their_own_clusters() {
        for data in [
            0,
            1,
            REFCOUNTS - 5,
            REFCOUNTS - 4,
            REFCOUNTS - 3,
            40 * REFCOUNTS,
        ] {
            let layout = Qcow2Layout::new(1, 1, data);
            assert_eq!(layout.first_data() + data, layout.total);
            assert!(layout.counts * REFCOUNTS >= layout.total, "{data}");
            assert!((layout.counts - 1) * REFCOUNTS < layout.total, "{data}");
        }
    }
}
