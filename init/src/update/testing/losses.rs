//! Faults of the model of a disk: what it loses, cannot read, and does not keep.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use alknet_boot_state::{BootSlot, SECTOR_BYTES};

use super::{DiskState, ModelDisk};
use crate::update::disk::slot_path;
use crate::update::progress::StagingProgress;

/// Where the boot partition begins on the disk, in sectors.
const ESP_LBA: u64 = 2048;

impl DiskState {
    /// Counts a write, and loses sectors if that was the last one before the loss.
    pub(super) fn count_write_before_loss(&mut self) {
        let Some((left, lost)) = &mut self.loses_after else {
            return;
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            let is_kept = |number: &u64| !lost.iter().any(|range| range.contains(number));
            self.sectors.retain(|number, _| is_kept(number));
            self.loses_after = None;
        }
    }

    /// Counts a read of the sectors at which the node gives its bundle up.
    pub(super) fn count_read(&mut self, sector: u64) {
        if let Some((sectors, reads, progress)) = &mut self.given_up_at
            && sectors.contains(&sector)
        {
            *reads += 1;
            progress.give_up();
        }
    }

    /// Counts a write, and puts a folder into the way of a file if that was the last one before it.
    pub(super) fn count_write_before_obstacle(&mut self) {
        let Some((left, folder)) = &mut self.obstructs_after else {
            return;
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            std::fs::create_dir(folder).expect("the folder of the notes is ours");
            self.obstructs_after = None;
        }
    }
}

impl ModelDisk {
    /// After so many writes, one at least, the node gives this bundle up.
    pub(in crate::update) fn give_up_after(&self, writes: usize, progress: &Arc<StagingProgress>) {
        self.state.borrow_mut().given_up_after = Some((writes, Arc::clone(progress)));
    }

    /// From now on the disk cannot read these sectors, or can read all.
    pub(in crate::update) fn refuse_reads(&self, sectors: Option<Range<u64>>) {
        self.state.borrow_mut().unreadable = sectors;
    }

    /// From now on the disk does not keep what is written to these sectors.
    pub(in crate::update) fn forget_writes(&self, sectors: Range<u64>) {
        self.state.borrow_mut().forgets = Some(sectors);
    }

    /// From now on the disk takes writes and fails to flush them, or flushes them.
    pub(in crate::update) fn refuse_flushes(&self, refuses: bool) {
        self.state.borrow_mut().refuses_flushes = refuses;
    }

    /// After so many writes, one at least, these sectors lose what they have.
    pub(in crate::update) fn lose_after(&self, writes: usize, sectors: Vec<Range<u64>>) {
        self.state.borrow_mut().loses_after = Some((writes, sectors));
    }

    /// After so many writes, one at least, this folder lies where a note is written.
    pub(in crate::update) fn obstruct_after(&self, writes: usize, folder: &Path) {
        self.state.borrow_mut().obstructs_after = Some((writes, folder.to_owned()));
    }

    /// Once the file of a slot is read, the node gives this bundle up.
    pub(in crate::update) fn give_up_at_read(
        &self,
        slot: BootSlot,
        progress: &Arc<StagingProgress>,
    ) {
        let volume = self.volume();
        let file = volume.open_file(&slot_path(slot)).expect("a program");
        let first = file.extents().first().expect("it has bytes");
        let last = file.extents().last().expect("it has bytes");
        let sector = |at: u64| ESP_LBA + at / SECTOR_BYTES as u64;
        let sectors = sector(first.at)..sector(last.at + last.bytes - 1) + 1;
        self.state.borrow_mut().given_up_at = Some((sectors, 0, Arc::clone(progress)));
    }

    /// How often this file was read since.
    pub(in crate::update) fn reads_since(&self) -> usize {
        let state = self.state.borrow();
        state.given_up_at.as_ref().map_or(0, |(_, reads, _)| *reads)
    }

    /// Whether a loss is still to come.
    pub(in crate::update) fn is_loss_due(&self) -> bool {
        self.state.borrow().loses_after.is_some()
    }

    /// The sectors of the tables of the boot partition.
    pub(in crate::update) fn tables(&self) -> Range<u64> {
        let boot = self.boot_sector();
        let first = ESP_LBA + boot.reserved;
        first..first + boot.tables * boot.table_sectors
    }

    /// In each table, the sectors that have only entries of clusters behind the file of a slot.
    pub(in crate::update) fn tables_behind(&self, slot: BootSlot) -> Vec<Range<u64>> {
        /// Entries of four bytes.
        const SECTOR_ENTRIES: u64 = SECTOR_BYTES as u64 / 4;

        let boot = self.boot_sector();
        let last = self.clusters(slot).into_iter().max().expect("a cluster");
        let behind = u64::from(last) / SECTOR_ENTRIES + 1;
        let ranges = (0..boot.tables).map(|table| {
            let first = ESP_LBA + boot.reserved + table * boot.table_sectors;
            first + behind..first + boot.table_sectors
        });
        ranges.collect()
    }

    /// The sectors behind the files of both slots: the next file is written there.
    pub(in crate::update) fn behind_programs(&self) -> Range<u64> {
        let volume = self.volume();
        let ends = BootSlot::ALL.into_iter().filter_map(|slot| {
            let file = volume.open_file(&slot_path(slot)).ok()?;
            let last = file.extents().last()?;
            Some(ESP_LBA + (last.at + last.bytes).div_ceil(SECTOR_BYTES as u64))
        });
        let end = ends.max().expect("a program");
        end..end + 100
    }

    /// The sector with the entries of the programs.
    pub(in crate::update) fn folder_of_programs(&self) -> Range<u64> {
        let state = self.state.borrow();
        let names = BootSlot::ALL.map(|slot| slot.file_name().replace('.', "       "));
        let is_entry = |entry: &[u8]| names.iter().any(|name| entry.starts_with(name.as_bytes()));
        let mut sectors = state.sectors.iter();
        let found = sectors.find(|(_, sector)| sector.chunks_exact(32).any(is_entry));
        let (number, _) = found.expect("a slot has a file");
        *number..*number + 1
    }
}
