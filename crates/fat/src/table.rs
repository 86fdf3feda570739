//! The whole table in memory, for what looks at or changes all of a volume.

use std::collections::BTreeSet;

use crate::chain::{decode, entry_offset};
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::geometry::{ChainLink, FAT32_MASK, FIRST_CLUSTER, FatGeometry, FatKind};
use crate::limits::{CHECK_CLUSTERS_MAX, TRANSFER_BYTES};

/// What marks the end of a chain that is written here.
pub(crate) const CHAIN_END: u32 = 0x0fff_ffff;

/// Consecutive clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClusterRun {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl ClusterRun {
    pub(crate) fn clusters(self) -> impl Iterator<Item = u32> {
        self.first..self.first + self.count
    }
}

/// The entries of the table in use, and which of its sectors are to be written.
#[derive(Debug)]
pub(crate) struct FatTable {
    /// By the number of the cluster. The first two belong to no cluster.
    raw: Vec<u32>,
    /// Sectors of the table with entries that changed.
    changed: BTreeSet<u32>,
    entries_per_sector: u32,
}

impl FatTable {
    /// Reads the table in use.
    pub(crate) fn read(
        device: &impl BlockDevice,
        geometry: &FatGeometry,
    ) -> Result<Self, FatError> {
        if geometry.clusters > CHECK_CLUSTERS_MAX {
            return Err(FatError::Limit {
                what: "clusters",
                limit: CHECK_CLUSTERS_MAX.into(),
            });
        }
        Ok(Self {
            raw: read_copy(device, geometry, geometry.active_table)?,
            changed: BTreeSet::new(),
            // Only FAT32 is written.
            entries_per_sector: geometry.sector_bytes / 4,
        })
    }

    /// The numbers of all clusters.
    pub(crate) fn clusters(&self) -> std::ops::Range<u32> {
        FIRST_CLUSTER..self.raw.len() as u32
    }

    /// An entry as it lies in the table.
    pub(crate) fn raw(&self, cluster: u32) -> u32 {
        self.raw[cluster as usize]
    }

    /// Whether the cluster is free.
    pub(crate) fn is_free(&self, geometry: &FatGeometry, cluster: u32) -> bool {
        geometry.link(self.raw(cluster)) == ChainLink::Free
    }

    pub(crate) fn free_clusters(&self, geometry: &FatGeometry) -> u32 {
        let free = |cluster: &u32| self.is_free(geometry, *cluster);
        self.clusters().filter(free).count() as u32
    }

    /// Entries, with those of no cluster, that other copies of the table have otherwise. 0 if only one is in use.
    pub(crate) fn differences(
        &self,
        device: &impl BlockDevice,
        geometry: &FatGeometry,
    ) -> Result<u32, FatError> {
        let mut differences = 0;
        let others = (0..geometry.tables).filter(|copy| *copy != geometry.active_table);
        for copy in others.filter(|_| geometry.is_mirrored) {
            let other = read_copy(device, geometry, copy)?;
            let pairs = self.raw.iter().zip(&other);
            differences += pairs.filter(|(one, two)| one != two).count() as u32;
        }
        Ok(differences)
    }

    /// Changes an entry of FAT32, in memory. The upper four bits belong to no cluster, and stay.
    pub(crate) fn set(&mut self, cluster: u32, value: u32) {
        let raw = &mut self.raw[cluster as usize];
        let new = (*raw & !FAT32_MASK) | (value & FAT32_MASK);
        if *raw != new {
            *raw = new;
            self.changed.insert(cluster / self.entries_per_sector);
        }
    }

    /// Sets bits of the second entry, which belongs to no cluster and has the state of the volume.
    pub(crate) fn set_state(&mut self, bits: u32) {
        let old = self.raw[1];
        self.raw[1] |= bits;
        if self.raw[1] != old {
            self.changed.insert(0);
        }
    }

    /// Links the clusters of the runs to one chain.
    pub(crate) fn link_runs(&mut self, runs: &[ClusterRun]) {
        let mut clusters = runs.iter().flat_map(|run| run.clusters()).peekable();
        while let Some(cluster) = clusters.next() {
            self.set(cluster, clusters.peek().copied().unwrap_or(CHAIN_END));
        }
    }

    /// Marks the sectors as changed that differ in another copy of the table.
    pub(crate) fn change_differing(
        &mut self,
        device: &impl BlockDevice,
        geometry: &FatGeometry,
    ) -> Result<(), FatError> {
        for copy in (0..geometry.tables).filter(|copy| *copy != geometry.active_table) {
            let other = read_copy(device, geometry, copy)?;
            for (number, (one, two)) in (0_u32..).zip(self.raw.iter().zip(&other)) {
                if one != two {
                    self.changed.insert(number / self.entries_per_sector);
                }
            }
        }
        Ok(())
    }

    /// Writes what changed to each copy of the table, the one in use first. The caller flushes. Returns whether
    /// something was written.
    pub(crate) fn write(
        &mut self,
        device: &mut impl BlockDevice,
        geometry: &FatGeometry,
    ) -> Result<bool, FatError> {
        let changed: Vec<u32> = std::mem::take(&mut self.changed).into_iter().collect();
        let most = TRANSFER_BYTES / geometry.sector_bytes as usize;
        let next_to = |one: &u32, two: &u32| one + 1 == *two;
        let neighbours = changed.chunk_by(next_to);
        let pieces: Vec<&[u32]> = neighbours.flat_map(|piece| piece.chunks(most)).collect();
        // Drivers read the first table. If a cut leaves the second one behind, the next repair copies the first.
        for copy in 0..geometry.tables {
            for piece in &pieces {
                self.write_sectors(device, geometry, copy, piece)?;
            }
        }
        Ok(!changed.is_empty())
    }

    /// Writes neighbouring sectors of one copy.
    fn write_sectors(
        &self,
        device: &mut impl BlockDevice,
        geometry: &FatGeometry,
        copy: u32,
        sectors: &[u32],
    ) -> Result<(), FatError> {
        let Some(first) = sectors.first() else {
            return Ok(());
        };
        let at = geometry.sector_at(*first);
        let mut bytes = vec![0; sectors.len() * geometry.sector_bytes as usize];
        // The last sector may have bytes behind the last entry, which stay.
        let read = device.read_at(&mut bytes, geometry.table_at(geometry.active_table) + at);
        read.map_err(FatError::io("read the table"))?;
        let entries = &self.raw[(first * self.entries_per_sector) as usize..];
        for (out, entry) in bytes.chunks_exact_mut(4).zip(entries) {
            out.copy_from_slice(&entry.to_le_bytes());
        }
        let written = device.write_at(&bytes, geometry.table_at(copy) + at);
        written.map_err(FatError::io("write the table"))
    }
}

/// Takes `count` of the usable clusters, which ascend: in one run if there is one, and else from the start of the volume.
/// `None` if there are fewer.
pub(crate) fn allocate(usable: impl Iterator<Item = u32>, count: u32) -> Option<Vec<ClusterRun>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let mut runs: Vec<ClusterRun> = Vec::new();
    for first in usable {
        match runs.last_mut() {
            Some(last) if last.first + last.count == first => last.count += 1,
            _ => runs.push(ClusterRun { first, count: 1 }),
        }
    }
    // Firmware reads a file in one piece by fewer transfers.
    if let Some(run) = runs.iter().find(|run| run.count >= count) {
        return Some(vec![ClusterRun { count, ..*run }]);
    }
    let mut left = count;
    for run in &mut runs {
        run.count = run.count.min(left);
        left -= run.count;
    }
    runs.retain(|run| run.count > 0);
    (left == 0).then_some(runs)
}

/// All entries of one copy of the table.
fn read_copy(
    device: &impl BlockDevice,
    geometry: &FatGeometry,
    copy: u32,
) -> Result<Vec<u32>, FatError> {
    let entries = geometry.last_cluster() + 1;
    // At most 8 MiB, by the limit of clusters.
    let mut bytes = vec![0; geometry.table_entries_end() as usize];
    let read = device.read_at(&mut bytes, geometry.table_at(copy));
    read.map_err(FatError::io("read the table"))?;
    let raw = (0..entries).map(|cluster| {
        let (at, length) = entry_offset(geometry.kind, cluster);
        decode(
            geometry.kind,
            cluster,
            &bytes[at as usize..at as usize + length],
        )
    });
    Ok(raw.collect())
}

/// The bits of the second entry that say that the volume was unmounted, and that its device had no error. FAT12 has
/// none.
pub(crate) fn state_bits(kind: FatKind) -> Option<(u32, u32)> {
    match kind {
        FatKind::Fat12 => None,
        FatKind::Fat16 => Some((0x8000, 0x4000)),
        FatKind::Fat32 => Some((0x0800_0000, 0x0400_0000)),
    }
}
