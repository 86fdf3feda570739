//! A boot partition that is damaged in one way, as a failing disk, another system or a power cut may leave it.
//!
//! Positions are those of Microsoft's *FAT: General Overview of On-Disk Format*, version 1.03.

use std::fs::File;
use std::os::unix::fs::FileExt;

use alknet_boot_state::BootSlot;
use alknet_image::{ESP_FIRST_LBA, LBA_BYTES};

use crate::power::CampaignRng;
use crate::update::disk::{SlotDiskImage, slot_path};

/// Fields of the boot sector.
const CLUSTER_SECTORS_AT: u64 = 13;
const RESERVED_SECTORS_AT: u64 = 14;
const TABLES_AT: u64 = 16;
const TABLE_SECTORS_AT: u64 = 36;
const ROOT_CLUSTER_AT: u64 = 44;
const INFO_SECTOR_AT: u64 = 48;
const STATE_AT: u64 = 65;
/// Bit of the state: the volume was not unmounted.
const STATE_IN_USE: u8 = 1;
/// Number of free clusters in FSInfo.
const FREE_CLUSTERS_AT: u64 = 488;
/// Bytes of an entry of a folder, and fields of it.
const ENTRY_BYTES: u64 = 32;
const CLUSTER_HIGH_AT: u64 = 20;
const CLUSTER_LOW_AT: u64 = 26;
const SIZE_AT: u64 = 28;
/// The bits of a table's entry that number a cluster, the number of the first one, and the mark at the end of a chain.
const CLUSTER_MASK: u32 = 0x0fff_ffff;
const FIRST_CLUSTER: u32 = 2;
const CHAIN_END: u32 = 0x0fff_ffff;
/// The first byte of a free entry of a folder, and of one that was removed.
const NEVER_USED: u8 = 0;
const REMOVED: u8 = 0xe5;
/// Clusters of a chain that no file has, and bytes by which a size is wrong.
const LOST_CLUSTERS: u32 = 40;
const SIZE_WRONG_BY: u32 = 1 << 20;
/// The folders of the slots, the file of slot b, and a second name for it.
const FOLDERS: [&[u8; 11]; 2] = [b"EFI        ", b"ALKNET     "];
const SLOT_B: &[u8; 11] = b"B       EFI";
const SECOND_NAME: &[u8; 11] = b"C       EFI";

/// What is wrong with the boot partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolumeDamage {
    /// A folder is in the place of slot b's file.
    Folder,
    /// A chain has no file.
    LostChain,
    /// The second table says something else than the first one.
    TablesDiffer,
    /// The chain of slot b ends early, is a circle, or leads into that of slot a.
    ChainCut,
    ChainCircle,
    ChainCrossed,
    /// The file of slot b has more bytes than its chain.
    SizeWrong,
    /// The volume is marked as in use.
    MarkedInUse,
    /// FSInfo counts wrong.
    InfoWrong,
    /// The file of slot b has two names, or lost its name, as a cut in a rename leaves it.
    NameDoubled,
    NameLost,
}

impl VolumeDamage {
    /// Damages the partition of a disk whose slots both have a program. Returns whether slot b's file still has a chain
    /// of its size.
    pub(super) fn apply(self, disk: &SlotDiskImage, dice: &mut CampaignRng) -> bool {
        if self == Self::Folder {
            let path = slot_path(BootSlot::B);
            let removed = disk.volume().remove_file(&path);
            removed.unwrap_or_else(|error| panic!("{error}"));
            disk.put(&format!(r"{path}\INSIDE.BIN"), b"a file in the folder");
            return false;
        }
        let volume = RawVolume::open(disk);
        let [good, trial] = BootSlot::ALL.map(|slot| volume.chain(volume.slot_cluster(disk, slot)));
        let middle_at = dice.below(trial.len() - 1);
        let middle = trial[middle_at];
        let last = trial[trial.len() - 1];
        let entry = volume.slot_entry();
        match self {
            Self::Folder => {}
            Self::LostChain => volume.lose_chain(),
            Self::TablesDiffer => volume.set_link(1, middle, 0),
            Self::ChainCut => volume.set_links(middle, CHAIN_END),
            Self::ChainCircle => volume.set_links(last, trial[0]),
            Self::ChainCrossed => {
                let good_at = dice.below(good.len());
                volume.set_links(middle, good[good_at]);
                return middle_at + 1 + good.len() - good_at == trial.len();
            }
            Self::SizeWrong => {
                let size = volume.number(entry + SIZE_AT, 4) + SIZE_WRONG_BY;
                volume.write(entry + SIZE_AT, &size.to_le_bytes());
            }
            Self::MarkedInUse => volume.write(STATE_AT, &[STATE_IN_USE]),
            Self::InfoWrong => {
                let info = u64::from(volume.number(INFO_SECTOR_AT, 2)) * LBA_BYTES;
                let free = volume.number(info + FREE_CLUSTERS_AT, 4) / 2;
                volume.write(info + FREE_CLUSTERS_AT, &free.to_le_bytes());
            }
            Self::NameDoubled => {
                let mut copy = volume.read(entry, ENTRY_BYTES);
                copy[..SECOND_NAME.len()].copy_from_slice(SECOND_NAME);
                let free = volume.entry(volume.slots_folder(), |first| {
                    [NEVER_USED, REMOVED].contains(&first[0])
                });
                volume.write(free, &copy);
            }
            Self::NameLost => volume.write(entry, &[REMOVED]),
        }
        matches!(
            self,
            Self::LostChain
                | Self::TablesDiffer
                | Self::MarkedInUse
                | Self::InfoWrong
                | Self::NameDoubled
        )
    }
}

/// A FAT32 volume byte by byte.
struct RawVolume {
    file: File,
    table_at: u64,
    table_bytes: u64,
    tables: u64,
    data_at: u64,
    cluster_bytes: u64,
}

impl RawVolume {
    fn open(disk: &SlotDiskImage) -> Self {
        let file = File::options().read(true).write(true).open(disk.path());
        let mut volume = Self {
            file: file.expect("the disk is ours"),
            table_at: 0,
            table_bytes: 0,
            tables: 0,
            data_at: 0,
            cluster_bytes: 0,
        };
        let sectors = |at, bytes| u64::from(volume.number(at, bytes)) * LBA_BYTES;
        let (reserved, table) = (
            sectors(RESERVED_SECTORS_AT, 2),
            sectors(TABLE_SECTORS_AT, 4),
        );
        let cluster = sectors(CLUSTER_SECTORS_AT, 1);
        let tables = u64::from(volume.number(TABLES_AT, 1));
        assert!(tables == 2 && table > 0, "a FAT32 volume with two tables");
        volume.table_at = reserved;
        volume.table_bytes = table;
        volume.tables = tables;
        volume.data_at = reserved + tables * table;
        volume.cluster_bytes = cluster;
        volume
    }

    fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).expect("a usize has 64 bits")];
        let read = self.file.read_exact_at(&mut bytes, begin() + at);
        read.expect("it is longer");
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let written = self.file.write_all_at(bytes, begin() + at);
        written.expect("the disk is ours");
    }

    /// A number of at most four bytes.
    fn number(&self, at: u64, length: u64) -> u32 {
        let bytes = self.read(at, length);
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(&bytes);
        u32::from_le_bytes(four)
    }

    fn link_at(&self, table: u64, cluster: u32) -> u64 {
        self.table_at + table * self.table_bytes + 4 * u64::from(cluster)
    }

    fn link(&self, cluster: u32) -> u32 {
        self.number(self.link_at(0, cluster), 4) & CLUSTER_MASK
    }

    fn set_link(&self, table: u64, cluster: u32, link: u32) {
        self.write(self.link_at(table, cluster), &link.to_le_bytes());
    }

    /// Sets a link in every table.
    fn set_links(&self, cluster: u32, link: u32) {
        for table in 0..self.tables {
            self.set_link(table, cluster, link);
        }
    }

    /// The clusters of a chain that is whole.
    fn chain(&self, first: u32) -> Vec<u32> {
        let next =
            |cluster: &u32| Some(self.link(*cluster)).filter(|next| *next < CLUSTER_MASK - 7);
        std::iter::successors(Some(first), next).collect()
    }

    /// Links the last clusters of the volume, which are free, to a chain.
    fn lose_chain(&self) {
        let clusters = u32::try_from(self.table_bytes / 4).expect("below 2^32");
        // The table may have room for more clusters than the volume has.
        let last = (FIRST_CLUSTER..clusters)
            .rev()
            .find(|cluster| begin() + self.cluster_at(*cluster) < self.volume_end());
        let last = last.expect("it has clusters");
        let lost = last - LOST_CLUSTERS..last;
        assert!(lost.clone().all(|cluster| self.link(cluster) == 0));
        for cluster in lost {
            let is_last = cluster + 1 == last;
            self.set_links(cluster, if is_last { CHAIN_END } else { cluster + 1 });
        }
    }

    fn volume_end(&self) -> u64 {
        begin() + alknet_image::ESP_BYTES - self.cluster_bytes
    }

    fn cluster_at(&self, cluster: u32) -> u64 {
        self.data_at + u64::from(cluster - FIRST_CLUSTER) * self.cluster_bytes
    }

    /// The first cluster of a slot's file.
    fn slot_cluster(&self, disk: &SlotDiskImage, slot: BootSlot) -> u32 {
        let volume = disk.volume();
        let opened = volume.open_file(&slot_path(slot));
        let opened = opened.unwrap_or_else(|error| panic!("{error}"));
        let first = opened.extents().first().expect("it has content");
        let number = (first.at - self.data_at) / self.cluster_bytes;
        FIRST_CLUSTER + u32::try_from(number).expect("below 2^32")
    }

    /// The first cluster of the folder with the slots.
    fn slots_folder(&self) -> u32 {
        let root = self.number(ROOT_CLUSTER_AT, 4);
        FOLDERS.iter().fold(root, |folder, name| {
            let at = self.entry(folder, |first| first.starts_with(*name));
            let high = self.number(at + CLUSTER_HIGH_AT, 2);
            high << 16 | self.number(at + CLUSTER_LOW_AT, 2)
        })
    }

    /// The entry of slot b.
    fn slot_entry(&self) -> u64 {
        self.entry(self.slots_folder(), |first| first.starts_with(SLOT_B))
    }

    /// The first entry of a folder that `fits`.
    fn entry(&self, folder: u32, fits: impl Fn(&[u8]) -> bool) -> u64 {
        let places = self.chain(folder).into_iter().flat_map(|cluster| {
            let begin = self.cluster_at(cluster);
            (begin..begin + self.cluster_bytes).step_by(ENTRY_BYTES as usize)
        });
        let mut found = places.filter(|at| fits(&self.read(*at, ENTRY_BYTES)));
        found.next().expect("the folder has it")
    }
}

/// Where the partition begins.
fn begin() -> u64 {
    ESP_FIRST_LBA * LBA_BYTES
}
