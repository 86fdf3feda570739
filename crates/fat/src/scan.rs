//! A look at a whole volume: each entry of each folder, and to which of them each cluster belongs.

use std::collections::{BTreeSet, HashSet};

use crate::bytes::{put, u32_at};
use crate::chain::{damage_for, folder_clusters_max};
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::folder::{FolderEntry, FolderLocation, ParsedFolder, RawFolder};
use crate::geometry::{BOOT_BYTES, ChainLink, FatGeometry, RootLocation};
use crate::limits::{FOLDER_DEPTH_MAX, TREE_ENTRIES_MAX, TREE_FOLDER_BYTES_MAX};
use crate::name::{ShortName, folded, parts_of};
use crate::report::{ChainDamage, EntryDamage};
use crate::table::FatTable;

/// Index of the root among the entries of a scan.
pub(crate) const ROOT: usize = 0;

/// Where two chains meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainMeeting {
    /// The entry that was found first.
    pub(crate) with: usize,
    /// Whether both begin with the same cluster.
    pub(crate) is_whole: bool,
}

/// How a chain ends.
#[derive(Clone, Copy, Debug)]
enum ChainEnd {
    Whole,
    Damaged(ChainDamage),
    /// At a cluster that another entry has.
    Meets(u32),
}

/// A file or a folder of the volume.
#[derive(Debug)]
pub(crate) struct ScanEntry {
    /// Its folder. The root is its own.
    pub(crate) parent: usize,
    pub(crate) name: String,
    pub(crate) short: ShortName,
    pub(crate) is_folder: bool,
    pub(crate) size: u32,
    pub(crate) first_cluster: u32,
    /// Clusters from the first one on that no entry had before it.
    pub(crate) own_clusters: u32,
    /// Clusters of the whole chain, also of the part that it shares.
    pub(crate) all_clusters: u32,
    /// What is wrong with its chain, also compared with its size.
    pub(crate) chain: Option<ChainDamage>,
    pub(crate) entry: Option<EntryDamage>,
    pub(crate) meets: Option<ChainMeeting>,
    /// Whether an entry before it in its folder has its name.
    pub(crate) is_doubled: bool,
    /// Positions of its slots on the device, that of the short name at the end.
    pub(crate) slots_at: Box<[u64]>,
}

/// Everything on a volume.
#[derive(Debug)]
pub(crate) struct VolumeScan {
    pub(crate) table: FatTable,
    /// Entries of the table that differ in its other copy.
    pub(crate) differences: u32,
    /// The root first.
    pub(crate) entries: Vec<ScanEntry>,
    /// Slots of long names that belong to no entry.
    pub(crate) orphans: u32,
    /// Slots in use that systems may or may not take for files.
    pub(crate) strays: u32,
    /// The boot sector's byte with the state of the volume.
    pub(crate) state: u8,
    owners: ClusterOwners,
}

/// To which entry each cluster belongs.
#[derive(Debug)]
struct ClusterOwners {
    /// By cluster: the index of the entry that was found first, plus 1. 0 for no entry.
    owner: Vec<u32>,
    /// By cluster: its place in that entry's chain.
    position: Vec<u32>,
    /// By cluster: whether a second entry has it.
    is_shared: Vec<bool>,
    /// By cluster: whether it was read as a part of a folder.
    is_folder: Vec<bool>,
}

impl VolumeScan {
    /// Looks at the whole volume.
    ///
    /// # Errors
    /// The device cannot be read, or the volume passes a limit. Then its lost clusters are unknown.
    pub(crate) fn read(
        device: &impl BlockDevice,
        geometry: &FatGeometry,
    ) -> Result<Self, FatError> {
        let mut boot = [0; BOOT_BYTES];
        let read = device.read_at(&mut boot, 0);
        read.map_err(FatError::io("read the boot sector"))?;
        let table = FatTable::read(device, geometry)?;
        let differences = table.differences(device, geometry)?;
        let count = geometry.last_cluster() as usize + 1;
        let mut scan = Self {
            table,
            differences,
            entries: vec![ScanEntry::root(geometry)],
            orphans: 0,
            strays: 0,
            state: boot[geometry.state_byte()],
            owners: ClusterOwners {
                owner: vec![0; count],
                position: vec![0; count],
                is_shared: vec![false; count],
                is_folder: vec![false; count],
            },
        };
        if matches!(geometry.root, RootLocation::Chain(_)) {
            scan.claim(geometry, ROOT);
        }
        scan.read_tree(device, geometry)?;
        Ok(scan)
    }

    /// Reads the folders, level by level.
    fn read_tree(
        &mut self,
        device: &impl BlockDevice,
        geometry: &FatGeometry,
    ) -> Result<(), FatError> {
        let mut folder_bytes = 0;
        let mut level = vec![ROOT];
        for _ in 0..FOLDER_DEPTH_MAX {
            let mut next_level = Vec::new();
            for folder in level {
                let place = self.unread_slots(geometry, folder);
                let raw = RawFolder::read(device, geometry, place)?;
                folder_bytes += raw.bytes.len() as u64;
                if folder_bytes > TREE_FOLDER_BYTES_MAX {
                    return Err(FatError::Limit {
                        what: "bytes of folders",
                        limit: TREE_FOLDER_BYTES_MAX,
                    });
                }
                next_level.extend(self.take_folder(geometry, folder, &raw)?);
            }
            if next_level.is_empty() {
                return Ok(());
            }
            level = next_level;
        }
        Err(FatError::Limit {
            what: "levels of folders",
            limit: FOLDER_DEPTH_MAX as u64,
        })
    }

    /// Where the slots of a folder lie that were not read yet. Systems read them also where a file has them as well, so
    /// that the files in them are not lost.
    fn unread_slots(&mut self, geometry: &FatGeometry, folder: usize) -> FolderLocation {
        match FolderLocation::fixed_root(geometry) {
            Some(place) if folder == ROOT => place,
            _ => {
                // A longer folder has a finding already.
                let most = folder_clusters_max(geometry);
                let mut clusters = Vec::new();
                let mut next = Some(self.entries[folder].first_cluster);
                while let Some(cluster) = next.filter(|it| geometry.has_cluster(*it)) {
                    // A loop ends here, and what another name of the folder led to.
                    let is_read = &mut self.owners.is_folder[cluster as usize];
                    if std::mem::replace(is_read, true) || clusters.len() == most {
                        break;
                    }
                    clusters.push(cluster);
                    next = match geometry.link(self.table.raw(cluster)) {
                        ChainLink::Next(next) => Some(next),
                        _ => None,
                    };
                }
                FolderLocation::Clusters(clusters)
            }
        }
    }

    /// The clusters from the entry's first one on that no entry had before it, in order.
    pub(crate) fn own_clusters(
        &self,
        geometry: &FatGeometry,
        entry: &ScanEntry,
    ) -> impl Iterator<Item = u32> {
        let mut cluster = entry.first_cluster;
        (0..entry.own_clusters).map(move |_| {
            let this = cluster;
            if let ChainLink::Next(next) = geometry.link(self.table.raw(this)) {
                cluster = next;
            }
            this
        })
    }

    /// Takes the entries of a folder, and returns the folders among them.
    fn take_folder(
        &mut self,
        geometry: &FatGeometry,
        folder: usize,
        raw: &RawFolder,
    ) -> Result<Vec<usize>, FatError> {
        let parsed = raw.parse(geometry.kind);
        self.orphans += parsed.orphans;
        self.strays += raw.strays(folder == ROOT);
        // Without slots it was read before, under another name.
        if raw.slots() > 0 {
            self.check_dots(geometry, folder, &parsed);
        }
        let mut names: HashSet<String> = HashSet::new();
        let mut folders = Vec::new();
        for found in &parsed.entries {
            if self.entries.len() > TREE_ENTRIES_MAX {
                return Err(FatError::Limit {
                    what: "files and folders",
                    limit: TREE_ENTRIES_MAX as u64,
                });
            }
            let index = self.entries.len();
            let slots = found.slots.clone();
            let slots_at = slots.map(|slot| raw.slot_at(geometry, slot)).collect();
            let mut entry = ScanEntry::new(folder, found, slots_at);
            let forms: BTreeSet<String> = [folded(&found.name), folded(&found.short_name())].into();
            for form in forms.into_iter().filter(|form| !form.is_empty()) {
                entry.is_doubled |= !names.insert(form);
            }
            let is_folder = entry.is_folder;
            self.entries.push(entry);
            self.claim(geometry, index);
            if is_folder {
                folders.push(index);
            }
        }
        Ok(folders)
    }

    /// Every folder but the root has two entries that lead to itself and to its parent.
    fn check_dots(&mut self, geometry: &FatGeometry, folder: usize, parsed: &ParsedFolder) {
        if folder == ROOT {
            return;
        }
        let entry = &self.entries[folder];
        let up = match entry.parent {
            // The root's number is zero here, whichever it has.
            ROOT => 0,
            parent => self.entries[parent].first_cluster,
        };
        let is_root = |cluster: u32| geometry.root == RootLocation::Chain(cluster);
        let leads_up = |cluster: u32| cluster == up || (up == 0 && is_root(cluster));
        let is_right =
            parsed.dots[0] == Some(entry.first_cluster) && parsed.dots[1].is_some_and(leads_up);
        if !is_right {
            self.entries[folder].entry.get_or_insert(EntryDamage::Dots);
        }
    }

    /// Gives an entry the clusters of its chain that no entry has, and says what is wrong with the chain.
    fn claim(&mut self, geometry: &FatGeometry, index: usize) {
        let first = self.entries[index].first_cluster;
        // An empty file has no cluster.
        let (count, end) = if first == 0 && !self.entries[index].is_folder {
            (0, ChainEnd::Whole)
        } else {
            self.take_chain(geometry, index, first)
        };
        let (mut all, mut meets, mut damage) = (count, None, None);
        match end {
            ChainEnd::Whole => {}
            ChainEnd::Damaged(found) => damage = Some(found),
            ChainEnd::Meets(cluster) => {
                let with = self.owners.owner[cluster as usize] as usize - 1;
                let place = self.owners.position[cluster as usize];
                let other = &self.entries[with];
                // How much of the other chain is left from there on. Both suffer from what is wrong behind it.
                all += other.all_clusters.saturating_sub(place);
                damage = other.chain.filter(|damage| is_of_links(*damage));
                let is_whole = count == 0 && place == 0;
                meets = Some(ChainMeeting { with, is_whole });
                self.share(geometry, cluster);
            }
        }
        let entry = &mut self.entries[index];
        entry.own_clusters = count;
        entry.all_clusters = all;
        entry.meets = meets;
        entry.chain = damage.or_else(|| entry.size_damage(geometry));
    }

    /// Follows a chain, and takes the clusters that no entry has. Returns how many.
    fn take_chain(&mut self, geometry: &FatGeometry, index: usize, first: u32) -> (u32, ChainEnd) {
        let mark = index as u32 + 1;
        let mut cluster = first;
        let mut count = 0;
        loop {
            if !geometry.has_cluster(cluster) {
                return (count, ChainEnd::Damaged(ChainDamage::Outside));
            }
            let owner = &mut self.owners.owner[cluster as usize];
            if *owner == mark {
                return (count, ChainEnd::Damaged(ChainDamage::Loop));
            }
            if *owner != 0 {
                return (count, ChainEnd::Meets(cluster));
            }
            *owner = mark;
            self.owners.position[cluster as usize] = count;
            count += 1;
            match geometry.link(self.table.raw(cluster)) {
                ChainLink::Next(next) => cluster = next,
                ChainLink::End => return (count, ChainEnd::Whole),
                link => return (count, ChainEnd::Damaged(damage_for(link))),
            }
        }
    }

    /// Marks the rest of a chain as that of two entries.
    fn share(&mut self, geometry: &FatGeometry, from: u32) {
        let mut cluster = from;
        // What is marked already ends this, and so does each loop.
        while !std::mem::replace(&mut self.owners.is_shared[cluster as usize], true) {
            match geometry.link(self.table.raw(cluster)) {
                ChainLink::Next(next) => cluster = next,
                _ => return,
            }
        }
    }

    /// Whether the chains of two entries have this cluster.
    pub(crate) fn is_shared_cluster(&self, cluster: u32) -> bool {
        self.owners.is_shared[cluster as usize]
    }

    /// The clusters that belong to this entry alone. They are free if the entry goes.
    pub(crate) fn exclusive_clusters(&self, geometry: &FatGeometry, index: usize) -> Vec<u32> {
        let clusters = self.own_clusters(geometry, &self.entries[index]);
        let alone = clusters.filter(|cluster| {
            // A broken chain may lead to clusters that are free already, or that must never be.
            let is_used = is_in_use(geometry.link(self.table.raw(*cluster)));
            is_used && !self.owners.is_shared[*cluster as usize]
        });
        alone.collect()
    }

    /// Whether another entry has a cluster of this entry's chain.
    pub(crate) fn is_shared(&self, geometry: &FatGeometry, index: usize) -> bool {
        let entry = &self.entries[index];
        let mut clusters = self.own_clusters(geometry, entry);
        entry.meets.is_some() || clusters.any(|it| self.owners.is_shared[it as usize])
    }

    /// Clusters that are free and to which no broken chain leads, so that a new file has them alone.
    pub(crate) fn usable_clusters(&self, geometry: &FatGeometry) -> impl Iterator<Item = u32> {
        let is_usable = move |cluster: &u32| {
            self.table.is_free(geometry, *cluster) && self.owners.owner[*cluster as usize] == 0
        };
        self.table.clusters().filter(is_usable)
    }

    /// The clusters that are in use, and belong to no entry.
    pub(crate) fn lost_clusters(&self, geometry: &FatGeometry) -> Vec<u32> {
        let is_lost = |cluster: &u32| {
            let is_used = is_in_use(geometry.link(self.table.raw(*cluster)));
            is_used && self.owners.owner[*cluster as usize] == 0
        };
        self.table.clusters().filter(is_lost).collect()
    }

    /// The path of an entry, from the root on.
    pub(crate) fn path(&self, index: usize) -> String {
        let mut parts = Vec::new();
        let mut at = index;
        while at != ROOT {
            parts.push(self.entries[at].name.as_str());
            at = self.entries[at].parent;
        }
        let parts = parts.iter().rev().map(|part| format!("\\{part}"));
        let path: String = parts.collect();
        if path.is_empty() { "\\".into() } else { path }
    }

    /// The entries that a path leads to: several if a folder has a name twice. Paths that are too deep lead to none.
    pub(crate) fn resolve(&self, path: &str) -> Vec<usize> {
        let mut found = vec![ROOT];
        for part in parts_of(path).unwrap_or_default() {
            let part = folded(part);
            let indices = (ROOT + 1..self.entries.len()).filter(|index| {
                let entry = &self.entries[*index];
                // The indices ascend.
                found.binary_search(&entry.parent).is_ok() && entry.is_named(&part)
            });
            found = indices.collect();
        }
        found.retain(|index| *index != ROOT);
        found
    }

    /// Adds a folder that was just made, with its one cluster. Returns its index.
    pub(crate) fn add_folder(&mut self, parent: usize, short: ShortName, cluster: u32) -> usize {
        let index = self.entries.len();
        self.owners.owner[cluster as usize] = index as u32 + 1;
        self.entries.push(ScanEntry {
            parent,
            name: short.shown(0).unwrap_or_default(),
            short,
            is_folder: true,
            first_cluster: cluster,
            own_clusters: 1,
            all_clusters: 1,
            ..ScanEntry::empty()
        });
        index
    }

    /// Adds a cluster at the end of a folder, which has no other entry's clusters.
    pub(crate) fn extend_folder(&mut self, folder: usize, cluster: u32) {
        let entry = &mut self.entries[folder];
        self.owners.owner[cluster as usize] = folder as u32 + 1;
        self.owners.position[cluster as usize] = entry.own_clusters;
        entry.own_clusters += 1;
        entry.all_clusters += 1;
    }
}

/// Whether a cluster with this entry in the table has data.
fn is_in_use(link: ChainLink) -> bool {
    !matches!(link, ChainLink::Free | ChainLink::Bad)
}

/// Whether the damage is one of the chain's links, and not one of the size of its file.
fn is_of_links(damage: ChainDamage) -> bool {
    !matches!(damage, ChainDamage::TooShort | ChainDamage::TooLong)
}

impl ScanEntry {
    fn empty() -> Self {
        Self {
            parent: ROOT,
            name: String::new(),
            short: ShortName::DOT,
            is_folder: false,
            size: 0,
            first_cluster: 0,
            own_clusters: 0,
            all_clusters: 0,
            chain: None,
            entry: None,
            meets: None,
            is_doubled: false,
            slots_at: Box::default(),
        }
    }

    fn root(geometry: &FatGeometry) -> Self {
        let first_cluster = match geometry.root {
            RootLocation::Fixed { .. } => 0,
            RootLocation::Chain(first) => first,
        };
        Self {
            is_folder: true,
            first_cluster,
            ..Self::empty()
        }
    }

    fn new(parent: usize, found: &FolderEntry, slots_at: Box<[u64]>) -> Self {
        let is_folder = found.is_folder();
        let damage = if !found.has_name {
            Some(EntryDamage::Name)
        } else if is_folder && found.first_cluster == 0 {
            Some(EntryDamage::NoCluster)
        } else if is_folder && found.size != 0 {
            Some(EntryDamage::FolderSize)
        } else {
            None
        };
        Self {
            parent,
            name: found.name.clone(),
            short: found.short,
            is_folder,
            size: found.size(),
            first_cluster: found.first_cluster,
            entry: damage,
            slots_at,
            ..Self::empty()
        }
    }

    /// Whether a part of a path means this entry.
    pub(crate) fn is_named(&self, folded_part: &str) -> bool {
        // Without a name that is allowed, readers leave it out.
        self.entry != Some(EntryDamage::Name)
            && (folded(&self.name) == folded_part || self.short.is_named(folded_part))
    }

    /// What is wrong with the length of the chain.
    fn size_damage(&self, geometry: &FatGeometry) -> Option<ChainDamage> {
        let clusters = u64::from(self.all_clusters);
        let (least, most) = if self.is_folder {
            (1, folder_clusters_max(geometry) as u64)
        } else {
            let needed = geometry.clusters_for(self.size.into());
            (needed, needed)
        };
        if clusters < least {
            Some(ChainDamage::TooShort)
        } else if clusters > most {
            Some(ChainDamage::TooLong)
        } else {
            None
        }
    }
}

/// FSInfo: what a system remembers of the table (FAT specification, "FAT32 FSInfo Sector Structure").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FatInfo {
    pub(crate) free: u32,
    pub(crate) next: u32,
}

/// Unknown, in both numbers of FSInfo.
pub(crate) const INFO_UNKNOWN: u32 = u32::MAX;

impl FatInfo {
    /// Reads the sector. `None` if it has other signatures.
    pub(crate) fn parse(sector: &[u8]) -> Option<Self> {
        let is_marked = sector.starts_with(b"RRaA")
            && sector[484..488] == *b"rrAa"
            && sector[508..512] == [0, 0, 0x55, 0xaa];
        is_marked.then(|| Self {
            free: u32_at(sector, 488),
            next: u32_at(sector, 492),
        })
    }

    /// Writes it with its signatures into a sector, whose other bytes stay.
    pub(crate) fn put_into(self, sector: &mut [u8]) {
        put(sector, 0, b"RRaA");
        put(sector, 484, b"rrAa");
        put(sector, 488, &self.free.to_le_bytes());
        put(sector, 492, &self.next.to_le_bytes());
        put(sector, 508, &[0, 0, 0x55, 0xaa]);
    }
}
