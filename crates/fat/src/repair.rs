//! Repair by rule, in an order in which a cut at any write leaves the volume no worse.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::check::STATE_DIRTY;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::limits::REPAIR_ROUNDS_MAX;
use crate::report::{ChainDamage, FatReport};
use crate::scan::{ChainMeeting, ROOT, ScanEntry, VolumeScan};
use crate::table::{CHAIN_END, state_bits};
use crate::volume::FatVolume;

/// A name that leads to a chain to which another name leads as well.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NamedChain<'a> {
    /// Path within the volume, with `\` before each part.
    pub path: &'a str,
    /// Whether it is one of the caller's own files.
    pub is_own: bool,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Size in bytes that its entry has. 0 for a folder.
    pub size: u32,
    /// Whether the chain has the clusters of this size.
    pub fits: bool,
}

/// Which of two names on one chain stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameChoice {
    /// The first one. The other is dropped from its folder.
    First,
    /// The second one. The other is dropped from its folder.
    Second,
    /// Both, and the finding.
    #[default]
    Both,
}

/// What a repair may do.
#[derive(Clone, Copy)]
pub struct RepairRules<'a> {
    /// The caller's own files, which can be written again. The first is worth most: if the chains of two of them cross,
    /// the one that stands first stays. All other files are foreign. They are never dropped, unless `choose` says so,
    /// and never cut.
    pub own: &'a [&'a str],
    /// So many of `own`, from the first one on, are never dropped because their chains are broken or cross: the machine
    /// was started by them, so what was read of them is there. What is wrong with them is in [`RepairReport::left`].
    pub needed: usize,
    /// Decides between two names on one chain, in the order in which systems find them.
    pub choose: &'a dyn Fn(&NamedChain<'_>, &NamedChain<'_>) -> NameChoice,
}

impl RepairRules<'_> {
    /// A rule for [`choose`](Self::choose): an own file stays and a foreign name of its chain goes; of two own files the
    /// one stays that fits the chain, or the first. Two foreign names stay, and so does a folder.
    #[must_use]
    pub fn keep_own(first: &NamedChain<'_>, second: &NamedChain<'_>) -> NameChoice {
        match (first.is_own, second.is_own) {
            (false, false) => NameChoice::Both,
            (true, false) if second.is_folder => NameChoice::Second,
            (false, true) if first.is_folder => NameChoice::First,
            (true, false) => NameChoice::First,
            (false, true) => NameChoice::Second,
            (true, true) if second.fits && !first.fits => NameChoice::Second,
            (true, true) => NameChoice::First,
        }
    }
}

impl fmt::Debug for RepairRules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rules = f.debug_struct("RepairRules");
        let rules = rules.field("own", &self.own);
        rules.field("needed", &self.needed).finish_non_exhaustive()
    }
}

/// What a repair did, and what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// Names that were dropped because another name leads to the same chain, or has the same name before them.
    pub dropped_names: Vec<String>,
    /// Own files that were dropped because their chains are broken, too short, or part of another own file.
    pub dropped_files: Vec<String>,
    /// Own files whose chains were longer than the files, and folders on the way to own files whose chains were broken:
    /// each ends where it is whole.
    pub cut_chains: Vec<String>,
    /// Clusters that belonged to no file and are free now.
    pub freed_clusters: u32,
    /// Entries of the first table that were copied to the second.
    pub copied_entries: u32,
    /// Whether FSInfo was written.
    pub wrote_info: bool,
    /// Whether the volume was marked as in use.
    pub was_dirty: bool,
    /// What a check says afterwards.
    pub left: FatReport,
}

/// Paths of what was repaired so far.
#[derive(Debug, Default)]
struct RepairSteps {
    dropped_names: Vec<String>,
    dropped_files: Vec<String>,
    cut_chains: Vec<String>,
}

/// What one round of a repair drops.
#[derive(Debug, Default)]
struct RepairDrops {
    names: BTreeSet<usize>,
    files: BTreeSet<usize>,
}

impl RepairDrops {
    fn has(&self, index: usize) -> bool {
        self.names.contains(&index) || self.files.contains(&index)
    }
}

impl<D: BlockDevice> FatVolume<D> {
    /// Repairs what a power cut leaves behind, on FAT32:
    ///
    /// 1. The second table is copied from the first, which is the one that systems read.
    /// 2. Of two names on one chain the one goes that `rules` do not keep: its entry, and never the chain.
    /// 3. An own file goes if its chain is broken, shorter than the file, or crosses that of an own file that stands
    ///    before it in `rules`, unless it is needed. If its chain is longer than the file, the rest is cut off.
    /// 4. A folder on the way to an own file ends where its chain is whole.
    /// 5. Clusters that belong to no file become free.
    /// 6. FSInfo is made to say what the table says, and the marks of a volume in use are cleared.
    ///
    /// Foreign files are never changed. What is wrong with them is in [`RepairReport::left`]. A volume in order is not
    /// written at all.
    ///
    /// # Errors
    /// The volume is not FAT32 or passes a limit, and nothing was changed; or the device failed, and the volume is no
    /// worse than before.
    pub fn repair(&mut self, rules: &RepairRules<'_>) -> Result<RepairReport, FatError> {
        self.require_writable()?;
        let mut scan = VolumeScan::read(&self.device, &self.geometry)?;
        let copied_entries = scan.differences;
        if copied_entries > 0 {
            let table = &mut scan.table;
            table.change_differing(&self.device, &self.geometry)?;
            self.write_table(&mut scan)?;
        }
        let mut done = RepairSteps::default();
        for _ in 0..REPAIR_ROUNDS_MAX {
            let drops = drops_for(&scan, rules);
            let has_dropped = self.drop_entries(&scan, &drops, &mut done)?;
            let has_cut = self.cut_chains(&mut scan, rules, &drops, &mut done)?;
            if !has_dropped && !has_cut {
                break;
            }
            // Whatever was dropped or cut leaves other chains whole, and clusters to nothing.
            scan = VolumeScan::read(&self.device, &self.geometry)?;
        }
        let lost = scan.lost_clusters(&self.geometry);
        for cluster in &lost {
            scan.table.set(*cluster, 0);
        }
        self.write_table(&mut scan)?;
        let wrote_info = self.write_info(&scan)?;
        if wrote_info {
            self.flush()?;
        }
        // Last, so that a cut before leaves the mark for other systems.
        let was_dirty = self.clear_dirty(&mut scan)?;
        Ok(RepairReport {
            dropped_names: done.dropped_names,
            dropped_files: done.dropped_files,
            cut_chains: done.cut_chains,
            freed_clusters: lost.len() as u32,
            copied_entries,
            wrote_info,
            was_dirty,
            left: self.check(rules.own)?,
        })
    }

    /// Removes entries from their folders. Returns whether there were some.
    fn drop_entries(
        &mut self,
        scan: &VolumeScan,
        drops: &RepairDrops,
        done: &mut RepairSteps,
    ) -> Result<bool, FatError> {
        for index in drops.names.union(&drops.files) {
            self.free_slots(&scan.entries[*index].slots_at)?;
            let path = scan.path(*index);
            if drops.files.contains(index) {
                done.dropped_files.push(path);
            } else {
                done.dropped_names.push(path);
            }
        }
        Ok(!drops.names.is_empty() || !drops.files.is_empty())
    }

    /// Ends chains where they are whole. Returns whether there were some to end.
    fn cut_chains(
        &mut self,
        scan: &mut VolumeScan,
        rules: &RepairRules<'_>,
        drops: &RepairDrops,
        done: &mut RepairSteps,
    ) -> Result<bool, FatError> {
        let mut has_cut = false;
        for index in cuttable(scan, rules) {
            // Another file would lose what they share.
            if drops.has(index) || scan.is_shared(&self.geometry, index) {
                continue;
            }
            let entry = &scan.entries[index];
            let needed = if entry.is_folder {
                folder_clusters(entry)
            } else {
                self.geometry.clusters_for(entry.size.into()) as u32
            };
            let mut clusters = scan.own_clusters(&self.geometry, entry);
            let last = needed.checked_sub(1);
            let last = last.and_then(|last| clusters.nth(last as usize));
            drop(clusters);
            match (last, entry.slots_at.last()) {
                (Some(last), _) => scan.table.set(last, CHAIN_END),
                (None, Some(slot_at)) if !entry.is_folder => self.empty_entry(*slot_at)?,
                // A folder without a whole cluster.
                (None, _) => continue,
            }
            has_cut = true;
            done.cut_chains.push(scan.path(index));
        }
        self.write_table(scan)?;
        Ok(has_cut)
    }

    /// Takes the chain from an empty file, which has no cluster: its entry says zero.
    fn empty_entry(&mut self, slot_at: u64) -> Result<(), FatError> {
        self.change_sector(slot_at, |at, sector| {
            let slot = &mut sector[(slot_at - at) as usize..];
            slot[20..22].fill(0);
            slot[26..28].fill(0);
        })?;
        self.flush()
    }

    /// Clears the marks of a volume in use. Returns whether there were some.
    fn clear_dirty(&mut self, scan: &mut VolumeScan) -> Result<bool, FatError> {
        let (clean, _) = state_bits(self.geometry.kind).unwrap_or_default();
        let is_table_dirty = scan.table.raw(1) & clean != clean;
        if is_table_dirty {
            scan.table.set_state(clean);
            self.write_table(scan)?;
        }
        let is_boot_dirty = scan.state & STATE_DIRTY != 0;
        if is_boot_dirty {
            let state_byte = self.geometry.state_byte();
            self.change_sector(0, |_, boot| boot[state_byte] &= !STATE_DIRTY)?;
            self.flush()?;
        }
        Ok(is_table_dirty || is_boot_dirty)
    }
}

/// The rank of each own file, by its index: 0 is worth most.
fn ranks(scan: &VolumeScan, rules: &RepairRules<'_>) -> Vec<(usize, usize)> {
    let ranked = rules.own.iter().enumerate();
    let ranked = ranked.flat_map(|(rank, path)| {
        let indices = scan.resolve(path).into_iter();
        indices.map(move |index| (index, rank))
    });
    let is_file = |(index, _): &(usize, usize)| !scan.entries[*index].is_folder;
    ranked.filter(is_file).collect()
}

/// Which entries go.
fn drops_for(scan: &VolumeScan, rules: &RepairRules<'_>) -> RepairDrops {
    let ranks = ranks(scan, rules);
    let rank = |index: usize| ranks.iter().find(|(own, _)| *own == index).map(|it| it.1);
    let mut drops = RepairDrops::default();
    for (index, _) in ranks.iter().filter(|(_, rank)| *rank >= rules.needed) {
        let damage = scan.entries[*index].chain;
        // Without all of its bytes a file is of no use, and the caller can write it again.
        if damage.is_some_and(|damage| damage != ChainDamage::TooLong) {
            drops.files.insert(*index);
        }
    }
    for number in 0..rules.own.len() {
        let same = ranks.iter().filter(|(_, rank)| *rank == number);
        // Systems find the first one.
        let others = same
            .map(|(index, _)| *index)
            .filter(|index| !drops.files.contains(index));
        let others: Vec<usize> = others.skip(1).collect();
        drops.names.extend(others);
    }
    let mut names: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, entry) in scan.entries.iter().enumerate() {
        let Some(ChainMeeting { with, is_whole }) = entry.meets else {
            continue;
        };
        if index == ROOT || with == ROOT || drops.has(index) || drops.has(with) {
            continue;
        }
        if is_whole {
            names.entry(with).or_insert_with(|| vec![with]).push(index);
        } else if let (Some(one), Some(two)) = (rank(index), rank(with))
            && one.max(two) >= rules.needed
        {
            drops.files.insert(if one > two { index } else { with });
        }
    }
    for group in names.values() {
        drop_names(
            scan,
            rules,
            group,
            &|index| rank(index).is_some(),
            &mut drops,
        );
    }
    drops
}

/// Lets the caller choose between the names of one chain, in the order in which systems find them.
fn drop_names(
    scan: &VolumeScan,
    rules: &RepairRules<'_>,
    group: &[usize],
    is_own: &dyn Fn(usize) -> bool,
    drops: &mut RepairDrops,
) {
    let ask = |one: usize, two: usize| choose(scan, rules, (one, is_own(one)), (two, is_own(two)));
    let mut kept = group[0];
    for index in &group[1..] {
        match ask(kept, *index) {
            NameChoice::First => {
                drops.names.insert(*index);
            }
            NameChoice::Second => {
                drops.names.insert(kept);
                kept = *index;
            }
            NameChoice::Both => {}
        }
    }
    // A name that stayed beside an earlier one may have to go beside the last.
    for index in group.iter().filter(|index| **index != kept) {
        let (one, two) = (kept.min(*index), kept.max(*index));
        if drops.names.contains(&kept) || drops.names.contains(index) {
            continue;
        }
        match ask(one, two) {
            NameChoice::First => drops.names.insert(two),
            NameChoice::Second => drops.names.insert(one),
            NameChoice::Both => false,
        };
    }
}

/// Asks the caller about two names on one chain, each with whether it is own.
fn choose(
    scan: &VolumeScan,
    rules: &RepairRules<'_>,
    first: (usize, bool),
    second: (usize, bool),
) -> NameChoice {
    let paths = [scan.path(first.0), scan.path(second.0)];
    let named = |(index, is_own): (usize, bool), path| {
        let entry = &scan.entries[index];
        NamedChain {
            path,
            is_own,
            is_folder: entry.is_folder,
            size: entry.size,
            fits: entry.chain.is_none(),
        }
    };
    (rules.choose)(&named(first, &paths[0]), &named(second, &paths[1]))
}

/// Own files with more clusters than bytes, and folders on the way to own files whose chains are broken.
fn cuttable(scan: &VolumeScan, rules: &RepairRules<'_>) -> BTreeSet<usize> {
    let is_too_long = |index: &usize| scan.entries[*index].chain == Some(ChainDamage::TooLong);
    let files = ranks(scan, rules).into_iter().map(|(index, _)| index);
    let mut found: BTreeSet<usize> = files.filter(is_too_long).collect();
    for path in rules.own {
        // The way to a file that does not exist is a way as well.
        let ends = path.rmatch_indices(['\\', '/']).map(|(at, _)| at);
        let folders = ends.flat_map(|end| scan.resolve(&path[..end]));
        let is_broken = |index: &usize| {
            let entry = &scan.entries[*index];
            let is_broken = entry.chain.is_some_and(|it| it != ChainDamage::TooLong);
            entry.is_folder && is_broken
        };
        found.extend(folders.chain([ROOT]).filter(is_broken));
    }
    found
}

/// Clusters of a folder that are whole.
fn folder_clusters(folder: &ScanEntry) -> u32 {
    match folder.chain {
        // The last one is not in use, and has what another file left there.
        Some(ChainDamage::Free) if folder.own_clusters > 1 => folder.own_clusters - 1,
        Some(ChainDamage::Bad) => folder.own_clusters.saturating_sub(1),
        _ => folder.own_clusters,
    }
}
