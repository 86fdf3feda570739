//! Chains of clusters, read from the table on the device.

use crate::bytes::{u16_at, u32_at};
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::file::FatExtent;
use crate::geometry::{ChainLink, ENTRY_BYTES, FatGeometry, FatKind};
use crate::limits::{FILE_EXTENTS_MAX, FOLDER_SLOTS_MAX};
use crate::report::ChainDamage;

/// Bytes of the table that are read at once. Even, so that only entries of FAT12 reach over the end.
const WINDOW_BYTES: u64 = 4096;

/// Reads entries of the table, a piece of it at a time.
#[derive(Debug)]
pub(crate) struct TableCursor<'a, D> {
    device: &'a D,
    geometry: &'a FatGeometry,
    window: Vec<u8>,
    /// Position of the window in the table.
    window_at: u64,
}

impl<'a, D: BlockDevice> TableCursor<'a, D> {
    pub(crate) fn new(device: &'a D, geometry: &'a FatGeometry) -> Self {
        Self {
            device,
            geometry,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// What the table in use says of a cluster that the volume has.
    pub(crate) fn link(&mut self, cluster: u32) -> Result<ChainLink, FatError> {
        let (at, bytes) = entry_offset(self.geometry.kind, cluster);
        let window_at = at / WINDOW_BYTES * WINDOW_BYTES;
        if self.window.is_empty() || window_at != self.window_at {
            // One byte more, because an entry of FAT12 may begin with the last one.
            let end = (window_at + WINDOW_BYTES + 1).min(self.geometry.table_bytes());
            self.window.resize((end - window_at) as usize, 0);
            let table = self.geometry.table_at(self.geometry.active_table);
            let read = self.device.read_at(&mut self.window, table + window_at);
            read.map_err(FatError::io("read the table"))?;
            self.window_at = window_at;
        }
        let first = (at - window_at) as usize;
        let raw = decode(
            self.geometry.kind,
            cluster,
            &self.window[first..first + bytes],
        );
        Ok(self.geometry.link(raw))
    }

    /// The bytes of a file on the device. Its chain has exactly the clusters of its size, so it has no loop.
    pub(crate) fn file(
        &mut self,
        first: u32,
        size: u32,
    ) -> Result<Result<Vec<FatExtent>, ChainDamage>, FatError> {
        let cluster_bytes = u64::from(self.geometry.cluster_bytes());
        let mut left = u64::from(size);
        let mut extents: Vec<FatExtent> = Vec::new();
        let mut cluster = first;
        while left > 0 {
            // The first number is that of the entry, which may be any (FAT specification, `DIR_FstClusLO`).
            if !self.geometry.has_cluster(cluster) {
                return Ok(Err(ChainDamage::Outside));
            }
            let (at, bytes) = (self.geometry.cluster_at(cluster), left.min(cluster_bytes));
            let is_full = extents.len() == FILE_EXTENTS_MAX;
            match extents.last_mut() {
                // Neighbours are one piece, so a file without gaps needs one, whatever its size.
                Some(last) if last.at + last.bytes == at => last.bytes += bytes,
                _ if is_full => {
                    return Err(FatError::Limit {
                        what: "pieces of one file",
                        limit: FILE_EXTENTS_MAX as u64,
                    });
                }
                _ => extents.push(FatExtent { at, bytes }),
            }
            left -= bytes;
            cluster = match (self.link(cluster)?, left > 0) {
                (ChainLink::Next(next), true) => next,
                (ChainLink::End, false) => return Ok(Ok(extents)),
                (ChainLink::End, true) => return Ok(Err(ChainDamage::TooShort)),
                (ChainLink::Next(_), false) => return Ok(Err(ChainDamage::TooLong)),
                (link, _) => return Ok(Err(damage_for(link))),
            };
        }
        // Some systems keep clusters for an empty file. It has no byte to read there.
        Ok(Ok(extents))
    }

    /// The clusters of a folder.
    pub(crate) fn folder(&mut self, first: u32) -> Result<Result<Vec<u32>, ChainDamage>, FatError> {
        let most = folder_clusters_max(self.geometry);
        let mut clusters = Vec::new();
        let mut cluster = first;
        loop {
            if !self.geometry.has_cluster(cluster) {
                return Ok(Err(ChainDamage::Outside));
            }
            // A loop ends here as well.
            if clusters.len() == most {
                return Ok(Err(ChainDamage::TooLong));
            }
            clusters.push(cluster);
            cluster = match self.link(cluster)? {
                ChainLink::Next(next) => next,
                ChainLink::End => return Ok(Ok(clusters)),
                link => return Ok(Err(damage_for(link))),
            };
        }
    }
}

/// Clusters of the largest folder.
pub(crate) fn folder_clusters_max(geometry: &FatGeometry) -> usize {
    let bytes = FOLDER_SLOTS_MAX as usize * ENTRY_BYTES;
    // Rounded up, because a single cluster may be larger than the largest folder.
    bytes.div_ceil(geometry.cluster_bytes() as usize)
}

/// What a chain suffers from whose last link is neither an end nor a cluster.
pub(crate) fn damage_for(link: ChainLink) -> ChainDamage {
    match link {
        ChainLink::Free => ChainDamage::Free,
        ChainLink::Bad => ChainDamage::Bad,
        ChainLink::Next(_) | ChainLink::End | ChainLink::Outside(_) => ChainDamage::Outside,
    }
}

/// Position of an entry in the table, and its bytes.
pub(crate) fn entry_offset(kind: FatKind, cluster: u32) -> (u64, usize) {
    let cluster = u64::from(cluster);
    match kind {
        FatKind::Fat12 => (cluster + cluster / 2, 2),
        FatKind::Fat16 => (cluster * 2, 2),
        FatKind::Fat32 => (cluster * 4, 4),
    }
}

/// The number in these bytes of an entry.
pub(crate) fn decode(kind: FatKind, cluster: u32, bytes: &[u8]) -> u32 {
    match kind {
        // Two entries share three bytes: the first has the low twelve bits.
        FatKind::Fat12 if cluster.is_multiple_of(2) => u32::from(u16_at(bytes, 0)) & 0xfff,
        FatKind::Fat12 => u32::from(u16_at(bytes, 0)) >> 4,
        FatKind::Fat16 => u32::from(u16_at(bytes, 0)),
        FatKind::Fat32 => u32_at(bytes, 0),
    }
}
