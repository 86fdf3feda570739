//! What changes a volume, a sector at a time.

use crate::bytes::put;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::folder::FREE_MARK;
use crate::geometry::FatKind;
use crate::scan::{FatInfo, INFO_UNKNOWN, VolumeScan};
use crate::volume::FatVolume;

impl<D: BlockDevice> FatVolume<D> {
    /// Refuses volumes that are only read.
    pub(crate) fn require_writable(&self) -> Result<(), FatError> {
        if self.geometry.kind != FatKind::Fat32 {
            return Err(FatError::Unsupported(
                "only FAT32 is written, the kind of an EFI system partition",
            ));
        }
        if !self.geometry.is_mirrored {
            return Err(FatError::Unsupported(
                "only volumes are written whose tables are copies of each other",
            ));
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), FatError> {
        let flushed = self.device.flush();
        flushed.map_err(FatError::io("flush the volume"))
    }

    /// Reads a sector, changes it, and writes it as a whole. The change gets the position of the sector on the device and
    /// its bytes.
    pub(crate) fn change_sector(
        &mut self,
        position: u64,
        change: impl FnOnce(u64, &mut [u8]),
    ) -> Result<(), FatError> {
        let sector_bytes = u64::from(self.geometry.sector_bytes);
        let at = position / sector_bytes * sector_bytes;
        let mut sector = vec![0; sector_bytes as usize];
        let read = self.device.read_at(&mut sector, at);
        read.map_err(FatError::io("read a sector"))?;
        change(at, &mut sector);
        let written = self.device.write_at(&sector, at);
        written.map_err(FatError::io("write a sector"))
    }

    /// Replaces bytes within one sector, by one write.
    pub(crate) fn put_in_sector(&mut self, position: u64, bytes: &[u8]) -> Result<(), FatError> {
        self.change_sector(position, |at, sector| {
            put(sector, (position - at) as usize, bytes);
        })
    }

    /// Writes the entries of the table that changed in memory, and returns when they are on the device.
    pub(crate) fn write_table(&mut self, scan: &mut VolumeScan) -> Result<(), FatError> {
        if scan.table.write(&mut self.device, &self.geometry)? {
            // What is written next relies on these entries, and a cut must not leave it without them.
            self.flush()?;
        }
        Ok(())
    }

    /// Removes an entry from its folder, with its long name. Its chain stays as it is.
    pub(crate) fn free_slots(&mut self, slots_at: &[u64]) -> Result<(), FatError> {
        let sector_bytes = u64::from(self.geometry.sector_bytes);
        let sector_of = |at: u64| at / sector_bytes;
        let Some(short_at) = slots_at.last() else {
            return Ok(());
        };
        let in_sector_of_short = |at: &u64| sector_of(*at) == sector_of(*short_at);
        let slots = slots_at.iter().copied();
        let (same, others): (Vec<u64>, Vec<u64>) = slots.partition(in_sector_of_short);
        // The first write removes the file. A part of its long name in another sector is ignored without it.
        let sectors = others.chunk_by(|one, two| sector_of(*one) == sector_of(*two));
        for slots in std::iter::once(same.as_slice()).chain(sectors) {
            self.change_sector(slots[0], |at, bytes| {
                for slot in slots {
                    bytes[(slot - at) as usize] = FREE_MARK;
                }
            })?;
            self.flush()?;
        }
        Ok(())
    }

    /// Makes FSInfo say what the table says. The caller flushes. Returns whether something was written.
    pub(crate) fn write_info(&mut self, scan: &VolumeScan) -> Result<bool, FatError> {
        // Its numbers are hints (FAT specification, `FSI_Free_Count`), so a volume may do without it.
        let (Some(sector), Some(old)) = (self.geometry.info_sector, self.read_info()?) else {
            return Ok(false);
        };
        let first_free = || scan.usable_clusters(&self.geometry).next();
        let next = old.map(|info| info.next);
        let next = next.filter(|next| self.geometry.has_cluster(*next));
        let new = FatInfo {
            free: scan.table.free_clusters(&self.geometry),
            next: next.or_else(first_free).unwrap_or(INFO_UNKNOWN),
        };
        if old == Some(new) {
            return Ok(false);
        }
        let position = self.geometry.sector_at(sector);
        self.change_sector(position, |_, bytes| {
            if old.is_none() {
                // Something else lies in the sector that the boot sector names.
                bytes.fill(0);
            }
            new.put_into(bytes);
        })?;
        Ok(true)
    }
}
