//! Where the parts of a volume lie: the BIOS parameter block of its first sector (FAT specification, "Boot Sector and
//! BPB").

use crate::bytes::{u16_at, u32_at};
use crate::error::FatError;
use crate::limits::CLUSTER_BYTES_MAX;

/// Bytes of the boot sector that have a meaning, whatever the size of a sector.
pub(crate) const BOOT_BYTES: usize = 512;
/// Number of the first cluster with data.
pub(crate) const FIRST_CLUSTER: u32 = 2;
/// Bytes of an entry of a folder.
pub(crate) const ENTRY_BYTES: usize = 32;
/// The bits of an entry of a FAT32 table that number a cluster. The others are kept as they are.
pub(crate) const FAT32_MASK: u32 = 0x0fff_ffff;
/// Most clusters of FAT32: the next number marks bad clusters.
const FAT32_CLUSTERS_MAX: u32 = 0x0fff_fff5;
/// Fewest clusters of FAT16 and of FAT32 by the specification.
const FAT16_CLUSTERS_MIN: u64 = 4085;
pub(crate) const FAT32_CLUSTERS_MIN: u64 = 65_525;
/// Bit of `BPB_ExtFlags`: only one of the tables is in use.
const FLAG_ONE_TABLE: u16 = 0x80;

/// Width of the table's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatKind {
    /// 12 bits: floppy disks.
    Fat12,
    /// 16 bits.
    Fat16,
    /// 32 bits, of which 28 are used.
    Fat32,
}

/// What a table says of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainLink {
    Free,
    /// The next cluster of its chain, which the volume has.
    Next(u32),
    End,
    /// The medium cannot keep data there.
    Bad,
    /// A number that is neither a cluster of the volume nor a mark.
    Outside(u32),
}

/// Where the root folder lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootLocation {
    /// Sectors between tables and data, in FAT12 and FAT16.
    Fixed { sector: u32, slots: u32 },
    /// A chain that begins with this cluster.
    Chain(u32),
}

/// A volume's parts. All sectors of it lie on its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatGeometry {
    pub(crate) kind: FatKind,
    pub(crate) sector_bytes: u32,
    pub(crate) cluster_sectors: u32,
    pub(crate) reserved_sectors: u32,
    pub(crate) tables: u32,
    pub(crate) table_sectors: u32,
    /// The table that drivers read.
    pub(crate) active_table: u32,
    /// Whether drivers write every table.
    pub(crate) is_mirrored: bool,
    pub(crate) root: RootLocation,
    pub(crate) data_sector: u32,
    pub(crate) clusters: u32,
    /// Sector of FSInfo, in FAT32.
    pub(crate) info_sector: Option<u32>,
}

impl FatGeometry {
    /// Reads a boot sector, of a volume that begins with the device.
    pub(crate) fn parse(boot: &[u8; BOOT_BYTES], device_bytes: u64) -> Result<Self, FatError> {
        check_marks(boot)?;
        check_sizes(boot)?;
        let sector_bytes = u32::from(u16_at(boot, 11));
        let cluster_sectors = u32::from(boot[13]);
        let reserved_sectors = u32::from(u16_at(boot, 14));
        let tables = u32::from(boot[16]);
        let slots = u32::from(u16_at(boot, 17));
        let total = total_sectors(boot);
        // Each later position follows from these sizes, so this check keeps all of them on the device.
        if u64::from(total) * u64::from(sector_bytes) > device_bytes {
            return Err(FatError::NotFat("it is longer than its device"));
        }
        let (is_fat32, table_sectors) = table_sectors(boot);
        let root_bytes = slots * ENTRY_BYTES as u32;
        // Linux refuses a root folder that ends within a sector as well.
        if is_fat32 != (slots == 0) || !root_bytes.is_multiple_of(sector_bytes) {
            return Err(FatError::NotFat(
                "the root folder of FAT12 and FAT16 has whole sectors, and FAT32 has none there",
            ));
        }
        let root_sector =
            u64::from(reserved_sectors) + u64::from(tables) * u64::from(table_sectors);
        let data_sector = root_sector + u64::from(root_bytes / sector_bytes);
        let data_sectors = u64::from(total).saturating_sub(data_sector);
        // Sectors behind the last whole cluster belong to no file.
        let clusters = data_sectors / u64::from(cluster_sectors);
        if clusters == 0 {
            return Err(FatError::NotFat("it has no room for data"));
        }
        let kind = kind_for(is_fat32, clusters)?;
        let mut geometry = Self {
            kind,
            sector_bytes,
            cluster_sectors,
            reserved_sectors,
            tables,
            table_sectors,
            active_table: 0,
            is_mirrored: true,
            // Both are below `total`, because a cluster lies behind them.
            root: RootLocation::Fixed {
                sector: root_sector as u32,
                slots,
            },
            data_sector: data_sector as u32,
            clusters: clusters as u32,
            info_sector: None,
        };
        // Entries of the last clusters would otherwise be read from the next table, or from data.
        if geometry.table_entries_end() > geometry.table_bytes() {
            return Err(FatError::NotFat("its tables are shorter than its data"));
        }
        if is_fat32 {
            geometry.parse_fat32(boot)?;
        }
        Ok(geometry)
    }

    /// The fields that only FAT32 has.
    fn parse_fat32(&mut self, boot: &[u8; BOOT_BYTES]) -> Result<(), FatError> {
        let flags = u16_at(boot, 40);
        // A driver must leave a volume of a later version alone (FAT specification, `BPB_FSVer`).
        if u16_at(boot, 42) != 0 {
            return Err(FatError::NotFat("its version of FAT32 is unknown"));
        }
        // The low four bits name a table only if the tables are not copies (`BPB_ExtFlags`).
        if flags & FLAG_ONE_TABLE != 0 {
            self.is_mirrored = false;
            self.active_table = u32::from(flags & 0xf);
        }
        if self.active_table >= self.tables {
            return Err(FatError::NotFat("its table in use does not exist"));
        }
        let root = u32_at(boot, 44);
        if !self.has_cluster(root) {
            return Err(FatError::NotFat("its root folder lies outside"));
        }
        self.root = RootLocation::Chain(root);
        let (info, backup) = (u32::from(u16_at(boot, 48)), u32::from(u16_at(boot, 50)));
        // Zero and all ones say that there is no FSInfo, as EDK2 and Linux read them.
        if info != 0 && info != 0xffff {
            if info >= self.reserved_sectors || info == backup {
                return Err(FatError::NotFat(
                    "its FSInfo lies outside of the reserved sectors",
                ));
            }
            self.info_sector = Some(info);
        }
        Ok(())
    }

    /// The kind of the volume.
    #[must_use]
    pub fn kind(&self) -> FatKind {
        self.kind
    }

    /// Bytes of a sector: 512 to 4096. The device writes at least these as a whole.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Bytes of a cluster, of which each file and folder takes whole ones.
    #[must_use]
    pub fn cluster_bytes(&self) -> u32 {
        self.cluster_sectors * self.sector_bytes
    }

    /// Clusters of the volume.
    #[must_use]
    pub fn clusters(&self) -> u32 {
        self.clusters
    }

    /// Whether the number is that of a cluster with data.
    pub(crate) fn has_cluster(&self, cluster: u32) -> bool {
        cluster >= FIRST_CLUSTER && cluster - FIRST_CLUSTER < self.clusters
    }

    /// The number of the last cluster.
    pub(crate) fn last_cluster(&self) -> u32 {
        self.clusters + FIRST_CLUSTER - 1
    }

    /// The position of a sector on the device, in bytes.
    pub(crate) fn sector_at(&self, sector: u32) -> u64 {
        u64::from(sector) * u64::from(self.sector_bytes)
    }

    /// The position of a cluster that the volume has, in bytes.
    pub(crate) fn cluster_at(&self, cluster: u32) -> u64 {
        let sectors = u64::from(cluster - FIRST_CLUSTER) * u64::from(self.cluster_sectors);
        self.sector_at(self.data_sector) + sectors * u64::from(self.sector_bytes)
    }

    /// The position of a copy of the table, in bytes.
    pub(crate) fn table_at(&self, copy: u32) -> u64 {
        self.sector_at(self.reserved_sectors + copy * self.table_sectors)
    }

    /// Bytes of a copy of the table.
    pub(crate) fn table_bytes(&self) -> u64 {
        u64::from(self.table_sectors) * u64::from(self.sector_bytes)
    }

    /// Bytes of a copy of the table up to the entry of the last cluster.
    pub(crate) fn table_entries_end(&self) -> u64 {
        let entries = u64::from(self.clusters) + u64::from(FIRST_CLUSTER);
        match self.kind {
            FatKind::Fat12 => (entries * 3).div_ceil(2),
            FatKind::Fat16 => entries * 2,
            FatKind::Fat32 => entries * 4,
        }
    }

    /// Clusters that a file of this size has.
    pub(crate) fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.cluster_bytes()))
    }

    /// Reads an entry of the table.
    pub(crate) fn link(&self, raw: u32) -> ChainLink {
        let (mask, bad) = match self.kind {
            FatKind::Fat12 => (0xfff, 0xff7),
            FatKind::Fat16 => (0xffff, 0xfff7),
            FatKind::Fat32 => (FAT32_MASK, 0x0fff_fff7),
        };
        match raw & mask {
            0 => ChainLink::Free,
            next if self.has_cluster(next) => ChainLink::Next(next),
            mark if mark == bad => ChainLink::Bad,
            // Systems write different ends: all numbers above the mark of bad clusters are ends.
            mark if mark > bad => ChainLink::End,
            other => ChainLink::Outside(other),
        }
    }

    /// Position in the boot sector of the byte in which Linux marks a volume that was not unmounted.
    pub(crate) fn state_byte(&self) -> usize {
        match self.kind {
            FatKind::Fat12 | FatKind::Fat16 => 37,
            FatKind::Fat32 => 65,
        }
    }
}

/// What every boot sector has, so that another kind of first sector is not read as one.
fn check_marks(boot: &[u8; BOOT_BYTES]) -> Result<(), FatError> {
    if boot[510..] != [0x55, 0xaa] {
        return Err(FatError::NotFat("its first sector has no boot signature"));
    }
    // The two jumps that the specification allows. A partition table begins with neither by chance.
    let has_jump = boot[0] == 0xe9 || (boot[0] == 0xeb && boot[2] == 0x90);
    if !has_jump {
        return Err(FatError::NotFat("its first sector begins with no jump"));
    }
    if boot[21] != 0xf0 && boot[21] < 0xf8 {
        return Err(FatError::NotFat("it names no known medium"));
    }
    Ok(())
}

/// The sizes of which all others are multiples.
fn check_sizes(boot: &[u8; BOOT_BYTES]) -> Result<(), FatError> {
    let sector_bytes = u32::from(u16_at(boot, 11));
    let cluster_sectors = u32::from(boot[13]);
    if ![512, 1024, 2048, 4096].contains(&sector_bytes) {
        return Err(FatError::NotFat("a sector has 512 to 4096 bytes"));
    }
    if !cluster_sectors.is_power_of_two() || cluster_sectors * sector_bytes > CLUSTER_BYTES_MAX {
        return Err(FatError::NotFat(
            "a cluster has a power of two of sectors, and at most 64 KiB",
        ));
    }
    if u16_at(boot, 14) == 0 || !(1..=2).contains(&boot[16]) {
        return Err(FatError::NotFat(
            "it has reserved sectors and one or two tables",
        ));
    }
    Ok(())
}

/// Sectors of the whole volume.
fn total_sectors(boot: &[u8; BOOT_BYTES]) -> u32 {
    // The specification allows the field of 32 bits for small volumes as well.
    match u32::from(u16_at(boot, 19)) {
        0 => u32_at(boot, 32),
        total => total,
    }
}

/// Whether the volume is FAT32, and the sectors of a table.
fn table_sectors(boot: &[u8; BOOT_BYTES]) -> (bool, u32) {
    // The specification derives the kind from the number of clusters alone. Linux and EDK2 read a volume without this
    // field as FAT32, however few clusters it has, and `mkfs.vfat -F 32` makes small ones.
    match u32::from(u16_at(boot, 22)) {
        0 => (true, u32_at(boot, 36)),
        sectors => (false, sectors),
    }
}

fn kind_for(is_fat32: bool, clusters: u64) -> Result<FatKind, FatError> {
    if is_fat32 && clusters <= u64::from(FAT32_CLUSTERS_MAX) {
        Ok(FatKind::Fat32)
    } else if !is_fat32 && clusters < FAT16_CLUSTERS_MIN {
        Ok(FatKind::Fat12)
    } else if !is_fat32 && clusters < FAT32_CLUSTERS_MIN {
        Ok(FatKind::Fat16)
    } else {
        Err(FatError::NotFat(
            "it has more clusters than its kind allows",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::put;
    use crate::testing::{SMALL_SECTORS, small_boot_sector};

    const DEVICE: u64 = SMALL_SECTORS as u64 * 512;

    /// The boot sector of a small volume of FAT32, with changes.
    fn parse(changes: &[(usize, &[u8])]) -> Result<FatGeometry, FatError> {
        let mut boot = small_boot_sector();
        for (at, bytes) in changes {
            put(&mut boot, *at, bytes);
        }
        FatGeometry::parse(&boot, DEVICE)
    }

    #[test]
    fn a_small_volume_without_tables_of_16_bits_is_fat32() {
        let geometry = parse(&[]).expect("a volume");
        assert_eq!(geometry.kind(), FatKind::Fat32);
        assert_eq!(
            (geometry.sector_bytes(), geometry.cluster_bytes()),
            (512, 512)
        );
        let end = geometry.cluster_at(geometry.last_cluster()) + 512;
        assert!(end <= DEVICE && end + 512 > DEVICE, "{end}");
    }

    #[test]
    fn each_field_that_contradicts_another_is_refused() {
        let wrong: [(&str, usize, &[u8]); 17] = [
            ("signature", 510, &[0]),
            ("jump", 0, &[0xfa]),
            ("medium", 21, &[0xf1]),
            ("sector of 0", 11, &[0, 0]),
            ("sector of 513", 11, &[1, 2]),
            ("sector of 8192", 11, &[0, 0x20]),
            ("cluster of 3 sectors", 13, &[3]),
            ("cluster of no sector", 13, &[0]),
            ("no reserved sector", 14, &[0, 0]),
            ("no table", 16, &[0]),
            ("three tables", 16, &[3]),
            ("fixed root in FAT32", 17, &[16, 0]),
            ("longer than its device", 32, &[0xff; 4]),
            ("tables over everything", 36, &[0xff; 4]),
            ("version", 42, &[1]),
            ("root outside", 44, &[0xff; 4]),
            ("FSInfo in the data", 48, &[0xf0, 0]),
        ];
        for (what, at, bytes) in wrong {
            let refused = parse(&[(at, bytes)]);
            assert!(
                matches!(refused, Err(FatError::NotFat(_))),
                "{what}: {refused:?}"
            );
        }
    }

    #[test]
    fn short_tables_are_refused() {
        // One sector has 128 entries.
        let refused = parse(&[(36, &[1, 0, 0, 0])]);
        assert!(matches!(refused, Err(FatError::NotFat(why)) if why.contains("shorter")));
    }

    #[test]
    fn the_table_in_use_is_the_one_that_the_flags_name() {
        let one = parse(&[(40, &[0x81, 0])]).expect("the second table");
        assert_eq!((one.active_table, one.is_mirrored), (1, false));
        assert!(parse(&[(40, &[0x82, 0])]).is_err(), "a third table");
        let both = parse(&[(40, &[1, 0])]).expect("mirrored");
        assert_eq!((both.active_table, both.is_mirrored), (0, true));
    }

    #[test]
    fn marks_are_none_of_the_clusters() {
        let geometry = parse(&[]).expect("a volume");
        let last = geometry.last_cluster();
        for (raw, link) in [
            (0, ChainLink::Free),
            (0xf000_0000, ChainLink::Free),
            (1, ChainLink::Outside(1)),
            (2, ChainLink::Next(2)),
            (last, ChainLink::Next(last)),
            (last + 1, ChainLink::Outside(last + 1)),
            (0x0fff_fff7, ChainLink::Bad),
            (0x0fff_fff8, ChainLink::End),
            (0xffff_ffff, ChainLink::End),
        ] {
            assert_eq!(geometry.link(raw), link, "{raw:x}");
        }
    }
}
