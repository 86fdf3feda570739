//! Repair by rule, in an order in which a cut at any write leaves the volume no worse.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::check::STATE_DIRTY;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::geometry::FatGeometry;
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
    /// So many of `own`, from the first one on, are never dropped because their chains are broken, cross or have another
    /// name: the machine was started by them, so what was read of them is there. A name of them goes only if another one
    /// with the same path fits its chain. What is wrong with them is in [`RepairReport::left`].
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
    /// Own files that were dropped because their chains are broken, too short, or cross that of another own file.
    pub dropped_files: Vec<String>,
    /// Own files whose chains were longer than the files or broken behind them, and folders on the way to own files whose
    /// chains were broken: each ends where it is whole.
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

impl RepairReport {
    /// The report of both repairs, if `second` came after this one.
    pub(crate) fn followed_by(mut self, second: Self) -> Self {
        self.dropped_names.extend(second.dropped_names);
        self.dropped_files.extend(second.dropped_files);
        self.cut_chains.extend(second.cut_chains);
        Self {
            freed_clusters: self.freed_clusters + second.freed_clusters,
            copied_entries: self.copied_entries + second.copied_entries,
            wrote_info: self.wrote_info || second.wrote_info,
            was_dirty: self.was_dirty || second.was_dirty,
            left: second.left,
            ..self
        }
    }
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
    /// 2. If the chain of an own file leads on behind the clusters of its size, or is broken there, it ends with them. A
    ///    folder on the way to an own file ends where its chain is whole.
    /// 3. Of two names on one chain the one goes that `rules` do not keep: its entry, and never the chain. Of two entries
    ///    of an own file the first one stays that fits its chain.
    /// 4. An own file goes if its chain is broken or shorter than the file, unless it is needed. If two own files cross,
    ///    the one goes that does not fit its size, or the one that stands behind the other in `rules`. If that one is
    ///    needed, both stay.
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
            // Cuts come first: a cut takes no byte from any file, and may separate two files that cross.
            let has_changed = self.cut_chains(&mut scan, rules, &mut done)?
                || self.drop_entries(&scan, rules, &mut done)?;
            if !has_changed {
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
        rules: &RepairRules<'_>,
        done: &mut RepairSteps,
    ) -> Result<bool, FatError> {
        let drops = drops_for(&self.geometry, scan, rules);
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
        done: &mut RepairSteps,
    ) -> Result<bool, FatError> {
        let mut has_cut = false;
        for index in cuttable(&self.geometry, scan, rules) {
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
            let is_shared = match last {
                _ if entry.is_folder => scan.is_shared(&self.geometry, index),
                Some(last) => scan.is_shared_cluster(last),
                // The entry of an empty file loses its chain, and the chain stays.
                None => false,
            };
            // Another file would lose what they share.
            if is_shared {
                continue;
            }
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

/// The own files among the entries of a scan.
#[derive(Debug)]
struct OwnFiles {
    /// The index and the rank of each. Rank 0 is worth most. A path that a folder has twice leads to two entries.
    ranks: Vec<(usize, usize)>,
    needed: usize,
}

impl OwnFiles {
    fn find(scan: &VolumeScan, rules: &RepairRules<'_>) -> Self {
        let ranked = rules.own.iter().enumerate();
        let ranked = ranked.flat_map(|(rank, path)| {
            let indices = scan.resolve(path).into_iter();
            indices.map(move |index| (index, rank))
        });
        let is_file = |(index, _): &(usize, usize)| !scan.entries[*index].is_folder;
        Self {
            ranks: ranked.filter(is_file).collect(),
            needed: rules.needed,
        }
    }

    fn rank(&self, index: usize) -> Option<usize> {
        let found = self.ranks.iter().find(|(own, _)| *own == index);
        found.map(|(_, rank)| *rank)
    }

    fn is_needed(&self, index: usize) -> bool {
        self.rank(index).is_some_and(|rank| rank < self.needed)
    }
}

/// Whether a file has the clusters of its size, which no entry before it has. Loaders read no further, so that what is
/// wrong with the chain lies behind all of its bytes.
fn has_own_clusters(geometry: &FatGeometry, file: &ScanEntry) -> bool {
    u64::from(file.own_clusters) >= geometry.clusters_for(file.size.into())
}

/// Which entries go.
fn drops_for(geometry: &FatGeometry, scan: &VolumeScan, rules: &RepairRules<'_>) -> RepairDrops {
    let own = OwnFiles::find(scan, rules);
    let mut drops = RepairDrops::default();
    for (index, _) in &own.ranks {
        let entry = &scan.entries[*index];
        let is_broken = entry
            .chain
            .is_some_and(|damage| damage != ChainDamage::TooLong);
        // Without all of its bytes a file is of no use, and the caller can write it again.
        if is_broken && !has_own_clusters(geometry, entry) && !own.is_needed(*index) {
            drops.files.insert(*index);
        }
    }
    for rank in 0..rules.own.len() {
        drop_doubled(scan, &own, rank, &mut drops);
    }
    for group in drop_crossing(scan, &own, &mut drops).values() {
        drop_names(scan, rules, group, &own, &mut drops);
    }
    drops
}

/// Drops all entries of one path but one: the first that fits its chain. Systems find the first one.
fn drop_doubled(scan: &VolumeScan, own: &OwnFiles, rank: usize, drops: &mut RepairDrops) {
    let same = own.ranks.iter().filter(|(_, found)| *found == rank);
    let same = same.map(|(index, _)| *index);
    let same: Vec<usize> = same.filter(|it| !drops.files.contains(it)).collect();
    let fitting = same.iter().find(|it| scan.entries[**it].chain.is_none());
    // Which of two damaged entries the machine was started by is unknown.
    if fitting.is_none() && rank < own.needed {
        return;
    }
    let stays = fitting.or_else(|| same.first()).copied();
    let others = same.into_iter().filter(|index| Some(*index) != stays);
    drops.names.extend(others);
}

/// Drops one of two own files that cross. Returns the names of each chain that has several, by the first of them.
fn drop_crossing(
    scan: &VolumeScan,
    own: &OwnFiles,
    drops: &mut RepairDrops,
) -> BTreeMap<usize, Vec<usize>> {
    let fits = |index: usize| scan.entries[index].chain.is_none();
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
        } else if let (Some(one), Some(two)) = (own.rank(index), own.rank(with)) {
            let (better, worse) = match one > two {
                true => (with, index),
                false => (index, with),
            };
            // A file that fits is whole, and the other one is damaged whatever it is worth.
            let dropped = match fits(worse) && !fits(better) {
                true => better,
                false => worse,
            };
            if !own.is_needed(dropped) {
                drops.files.insert(dropped);
            }
        }
    }
    names
}

/// Lets the caller choose between the names of one chain, in the order in which systems find them.
fn drop_names(
    scan: &VolumeScan,
    rules: &RepairRules<'_>,
    group: &[usize],
    own: &OwnFiles,
    drops: &mut RepairDrops,
) {
    let with_own = |index: usize| (index, own.rank(index).is_some());
    let ask = |one: usize, two: usize| match choose(scan, rules, with_own(one), with_own(two)) {
        // The machine was started by the other name.
        NameChoice::First if own.is_needed(two) => NameChoice::Both,
        NameChoice::Second if own.is_needed(one) => NameChoice::Both,
        choice => choice,
    };
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

/// Own files whose chains are damaged behind the clusters that their sizes need, and folders on the way to own files
/// whose chains are broken.
fn cuttable(geometry: &FatGeometry, scan: &VolumeScan, rules: &RepairRules<'_>) -> BTreeSet<usize> {
    let is_damaged_behind = |index: &usize| {
        let entry = &scan.entries[*index];
        entry.chain.is_some() && has_own_clusters(geometry, entry)
    };
    let files = OwnFiles::find(scan, rules).ranks.into_iter();
    let files = files.map(|(index, _)| index);
    let mut found: BTreeSet<usize> = files.filter(is_damaged_behind).collect();
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
