//! A FAT32 volume, written in one go.
//!
//! Everything lies back to back and has the first time that FAT knows, so the same tree is always
//! the same bytes. Only nonzero bytes are written, so the file stays sparse.

use crate::bytes::put;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::folder::{ATTRIBUTE_ARCHIVE, ATTRIBUTE_FOLDER, ATTRIBUTE_LABEL};
use crate::geometry::ENTRY_BYTES;
use crate::name::ShortName;
use crate::scan::FatInfo;
use crate::table::CHAIN_END;

pub(crate) const SECTOR_BYTES: u32 = 512;
/// Clusters that a sector of a table describes.
const CLUSTERS_OF_SECTOR: u32 = SECTOR_BYTES / 4;
/// Fewest clusters of a FAT32 volume. With fewer, some drivers read it as FAT16.
const CLUSTERS_MIN: u32 = 65_525;
/// Clusters that a volume has beyond those of its files and beyond the fewest that it may have.
const SPARE_CLUSTERS: u32 = 64;
pub(crate) const RESERVED_SECTORS: u32 = 32;
const TABLES: u32 = 2;
pub(crate) const INFO_SECTOR: u32 = 1;
pub(crate) const BACKUP_SECTOR: u32 = 6;
const MEDIA_DISK: u8 = 0xf8;
const ROOT_CLUSTER: u32 = 2;
/// 1980-01-01, the first day that FAT knows.
const FIRST_DAY: u16 = (1 << 5) | 1;

/// The size and the names of a new volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFatVolume {
    /// Sectors of 512 bytes before the volume on its disk.
    pub hidden_sectors: u32,
    /// Size of the volume in such sectors.
    pub sectors: u32,
    /// Sectors of a cluster: a power of two.
    pub cluster_sectors: u32,
    /// Serial number.
    pub id: u32,
    /// Name, with spaces behind it.
    pub label: [u8; 11],
}

/// A file or a folder of a new volume.
#[derive(Clone, Debug)]
pub enum FatNode<'a> {
    /// A file and its content.
    File(ShortName, &'a [u8]),
    /// A folder and what is in it.
    Folder(ShortName, Vec<Self>),
}

/// Writes a FAT32 volume onto a device, or a range of one, that reads as zeros. The caller flushes.
///
/// # Errors
/// The volume has too few sectors for FAT32 ([`FatError::Unsupported`]) or for the tree ([`FatError::Full`]), or it is
/// longer than the device; then nothing was written. Or the device failed.
pub fn create(
    device: &mut impl BlockDevice,
    volume: &NewFatVolume,
    root: &[FatNode<'_>],
) -> Result<(), FatError> {
    write(device, volume, root, &NewGeometry::for_volume(volume)?)
}

/// Writes the volume with this geometry.
pub(crate) fn write(
    device: &mut impl BlockDevice,
    volume: &NewFatVolume,
    root: &[FatNode<'_>],
    geometry: &NewGeometry,
) -> Result<(), FatError> {
    let cluster_bytes = (geometry.cluster_sectors * SECTOR_BYTES) as usize;
    let mut layout = FatLayout::new(cluster_bytes);
    layout.folder(root, None, Some(volume.label));
    // The first two entries of the table belong to no cluster.
    let used = layout.table.len() as u32 - ROOT_CLUSTER;
    if used > geometry.clusters {
        return Err(FatError::Full {
            needed: u64::from(used) * cluster_bytes as u64,
            free: u64::from(geometry.clusters) * cluster_bytes as u64,
        });
    }
    let at = |sector: u32| u64::from(sector) * u64::from(SECTOR_BYTES);
    // A reader refuses a volume that ends behind its device, so no part of one is written.
    if at(volume.sectors) > device.len() {
        return Err(FatError::Unsupported(
            "the device is shorter than the volume",
        ));
    }
    let mut put_at = |bytes: &[u8], sector: u32| {
        let written = device.write_at(bytes, at(sector));
        written.map_err(FatError::io("write the new volume"))
    };
    let info = FatInfo {
        free: geometry.clusters - used,
        next: layout.table.len() as u32,
    };
    for (sector, content) in head_sectors(volume, geometry, info) {
        put_at(&content, sector)?;
    }
    let table: Vec<u8> = layout
        .table
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    for copy in 0..TABLES {
        put_at(&table, RESERVED_SECTORS + copy * geometry.table_sectors)?;
    }
    for (cluster, bytes) in &layout.contents {
        let sector = geometry.data_sector + (cluster - ROOT_CLUSTER) * geometry.cluster_sectors;
        put_at(bytes.as_ref(), sector)?;
    }
    Ok(())
}

/// Sectors of a volume with clusters of one sector for this many bytes of files: whole MiB, and never
/// fewer than FAT32 has. Folders of one sector each, and the ends of files, fit into what is added.
///
/// ```
/// // The smallest FAT32 volume has 33 MiB. 100 MiB of files need more than 100.
/// assert_eq!(alknet_fat::sectors_for(1), 33 * 2048);
/// assert!(alknet_fat::sectors_for(100 << 20) > 100 * 2048);
/// ```
#[must_use]
pub fn sectors_for(bytes: u64) -> u32 {
    const MIB_SECTORS: u32 = 2048;
    let content = bytes.div_ceil(u64::from(SECTOR_BYTES)) + u64::from(SPARE_CLUSTERS);
    // More than the format has is refused by `create`. Half of the range keeps the sums below from overflowing.
    let content = u32::try_from(content).unwrap_or(u32::MAX / 2);
    let clusters = content.max(CLUSTERS_MIN + SPARE_CLUSTERS);
    let tables = TABLES * (clusters + ROOT_CLUSTER).div_ceil(CLUSTERS_OF_SECTOR);
    (RESERVED_SECTORS + tables + clusters).next_multiple_of(MIB_SECTORS)
}

/// The parts of a new volume.
#[derive(Debug)]
pub(crate) struct NewGeometry {
    pub(crate) cluster_sectors: u32,
    pub(crate) table_sectors: u32,
    pub(crate) data_sector: u32,
    pub(crate) clusters: u32,
}

impl NewGeometry {
    pub(crate) fn for_volume(volume: &NewFatVolume) -> Result<Self, FatError> {
        let geometry = Self::of_any_size(volume);
        if geometry.clusters < CLUSTERS_MIN {
            return Err(FatError::Unsupported("the volume is too small for FAT32"));
        }
        Ok(geometry)
    }

    /// The parts, however few clusters the volume has.
    pub(crate) fn of_any_size(volume: &NewFatVolume) -> Self {
        let cluster_sectors = volume.cluster_sectors;
        let shared = volume.sectors.saturating_sub(RESERVED_SECTORS);
        // The specification's formula: one sector of each table serves 128 clusters.
        let table_sectors = shared.div_ceil((128 * 2 * cluster_sectors + TABLES) / 2);
        let data_sector = RESERVED_SECTORS + TABLES * table_sectors;
        Self {
            cluster_sectors,
            table_sectors,
            data_sector,
            clusters: volume.sectors.saturating_sub(data_sector) / cluster_sectors,
        }
    }
}

/// Allocates clusters in order, and has their content.
struct FatLayout<'a> {
    cluster_bytes: usize,
    table: Vec<u32>,
    contents: Vec<(u32, FatContents<'a>)>,
}

enum FatContents<'a> {
    File(&'a [u8]),
    Folder(Vec<u8>),
}

impl AsRef<[u8]> for FatContents<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes,
            Self::Folder(bytes) => bytes,
        }
    }
}

impl<'a> FatLayout<'a> {
    fn new(cluster_bytes: usize) -> Self {
        // The specification requires the media byte in the first entry and an end mark in the
        // second.
        let media = CHAIN_END & !0xff | u32::from(MEDIA_DISK);
        Self {
            cluster_bytes,
            table: vec![media, CHAIN_END],
            contents: Vec::new(),
        }
    }

    /// Lays out a folder and everything in it, and returns its first cluster.
    fn folder(
        &mut self,
        nodes: &[FatNode<'a>],
        parent: Option<u32>,
        label: Option<[u8; 11]>,
    ) -> u32 {
        let head = if parent.is_some() {
            2
        } else {
            label.iter().len()
        };
        let own = self.reserve((nodes.len() + head) * ENTRY_BYTES);
        let mut bytes = Vec::new();
        if let Some(parent) = parent {
            bytes.extend(entry_bytes(ShortName::DOT, ATTRIBUTE_FOLDER, own, 0));
            // The root's cluster number is zero here, whichever it occupies.
            let up = if parent == ROOT_CLUSTER { 0 } else { parent };
            bytes.extend(entry_bytes(ShortName::DOT_DOT, ATTRIBUTE_FOLDER, up, 0));
        }
        // The root alone has an entry with the name of the volume (FAT specification, `ATTR_VOLUME_ID`).
        bytes.extend(
            label
                .into_iter()
                .flat_map(|name| entry_bytes(ShortName(name), ATTRIBUTE_LABEL, 0, 0)),
        );
        for node in nodes {
            bytes.extend(match node {
                FatNode::File(name, data) => {
                    entry_bytes(*name, ATTRIBUTE_ARCHIVE, self.file(data), data.len() as u32)
                }
                // The size of a folder is 0, and its chain says how long it is (FAT specification, `DIR_FileSize`).
                FatNode::Folder(name, nodes) => entry_bytes(
                    *name,
                    ATTRIBUTE_FOLDER,
                    self.folder(nodes, Some(own), None),
                    0,
                ),
            });
        }
        self.contents.push((own, FatContents::Folder(bytes)));
        own
    }

    fn file(&mut self, data: &'a [u8]) -> u32 {
        // An empty file has no cluster: its entry says zero.
        if data.is_empty() {
            return 0;
        }
        let own = self.reserve(data.len());
        self.contents.push((own, FatContents::File(data)));
        own
    }

    /// Chains as many clusters as `bytes` need, at least one, and returns the first.
    fn reserve(&mut self, bytes: usize) -> u32 {
        let first = self.table.len() as u32;
        // A folder has at least one cluster, also without entries.
        let count = bytes.div_ceil(self.cluster_bytes).max(1) as u32;
        self.table.extend(first + 1..first + count);
        self.table.push(CHAIN_END);
        first
    }
}

/// The slot of a file or a folder, with the first day that FAT knows.
pub(crate) fn entry_bytes(
    name: ShortName,
    attributes: u8,
    cluster: u32,
    bytes: u32,
) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    let [low_0, low_1, high_0, high_1] = cluster.to_le_bytes();
    put(&mut out, 0, &name.0);
    put(&mut out, 11, &[attributes]);
    // The days of creation, last access and last write.
    for date_at in [16, 18, 24] {
        put(&mut out, date_at, &FIRST_DAY.to_le_bytes());
    }
    put(&mut out, 20, &[high_0, high_1]);
    put(&mut out, 26, &[low_0, low_1]);
    put(&mut out, 28, &bytes.to_le_bytes());
    out
}

/// The sectors before the tables that are not zeros, each with its number.
pub(crate) fn head_sectors(
    volume: &NewFatVolume,
    geometry: &NewGeometry,
    info: FatInfo,
) -> [(u32, [u8; SECTOR_BYTES as usize]); 4] {
    let boot = boot_sector(volume, geometry);
    let mut content = [0; SECTOR_BYTES as usize];
    info.put_into(&mut content);
    // FAT32 File System Specification: the boot sector is repeated at sector 6, with its FSInfo.
    [
        (0, boot),
        (INFO_SECTOR, content),
        (BACKUP_SECTOR, boot),
        (BACKUP_SECTOR + INFO_SECTOR, content),
    ]
}

fn boot_sector(volume: &NewFatVolume, geometry: &NewGeometry) -> [u8; SECTOR_BYTES as usize] {
    let mut out = [0; SECTOR_BYTES as usize];
    // A jump over the fields, which the specification demands even if no code follows.
    put(&mut out, 0, &[0xeb, 0x58, 0x90]);
    // The specification recommends this name, because some drivers look at it.
    put(&mut out, 3, b"MSWIN4.1");
    put(&mut out, 11, &(SECTOR_BYTES as u16).to_le_bytes());
    put(&mut out, 13, &[geometry.cluster_sectors as u8]);
    put(&mut out, 14, &(RESERVED_SECTORS as u16).to_le_bytes());
    put(&mut out, 16, &[TABLES as u8]);
    put(&mut out, 21, &[MEDIA_DISK]);
    // Sectors per track and heads: the numbers of BIOSes for a disk of this size.
    put(&mut out, 24, &63_u16.to_le_bytes());
    put(&mut out, 26, &255_u16.to_le_bytes());
    put(&mut out, 28, &volume.hidden_sectors.to_le_bytes());
    put(&mut out, 32, &volume.sectors.to_le_bytes());
    put(&mut out, 36, &geometry.table_sectors.to_le_bytes());
    put(&mut out, 44, &ROOT_CLUSTER.to_le_bytes());
    put(&mut out, 48, &(INFO_SECTOR as u16).to_le_bytes());
    put(&mut out, 50, &(BACKUP_SECTOR as u16).to_le_bytes());
    // Drive number, and the signature that says that id, label and type follow.
    put(&mut out, 64, &[0x80, 0, 0x29]);
    put(&mut out, 67, &volume.id.to_le_bytes());
    put(&mut out, 71, &volume.label);
    put(&mut out, 82, b"FAT32   ");
    put(&mut out, 510, &[0x55, 0xaa]);
    out
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::FilePartition;

    const SECTORS: u32 = 256 * 2048;
    const CLUSTER_SECTORS: u32 = 4;
    const CLUSTER_BYTES: usize = (CLUSTER_SECTORS * SECTOR_BYTES) as usize;

    fn volume(sectors: u32) -> NewFatVolume {
        NewFatVolume {
            hidden_sectors: 0,
            sectors,
            cluster_sectors: CLUSTER_SECTORS,
            id: 0x1234_5678,
            label: *b"ALKESP     ",
        }
    }

    fn name(text: &str) -> ShortName {
        ShortName::new(text).expect("a short name")
    }

    fn image(sectors: u32, root: &[FatNode<'_>]) -> Result<tempfile::NamedTempFile, FatError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let bytes = u64::from(sectors) * 512;
        file.as_file().set_len(bytes).expect("room");
        let mut device = FilePartition::new(file.as_file(), 0, bytes);
        create(&mut device, &volume(sectors), root)?;
        Ok(file)
    }

    #[test]
    fn fsck_accepts_deep_empty_and_many_entries() {
        let big = vec![7; 3 * CLUSTER_BYTES + 1];
        let exact = vec![8; CLUSTER_BYTES];
        let many = (0..200)
            .map(|i| FatNode::File(name(&format!("F{i}.BIN")), &exact))
            .collect();
        let deep = FatNode::Folder(name("B"), vec![FatNode::Folder(name("C"), Vec::new())]);
        let root = [
            FatNode::Folder(name("A"), vec![deep, FatNode::File(name("BIG.BIN"), &big)]),
            FatNode::Folder(name("MANY"), many),
            FatNode::File(name("EMPTY"), &[]),
        ];
        fsck_accepts(&image(SECTORS, &root).expect("fits"));
    }

    /// The smallest volume has files of its size, to the last byte.
    #[test]
    fn fsck_accepts_clusters_of_one_sector_up_to_the_last() {
        for bytes in [0, 40 << 20] {
            let sectors = sectors_for(bytes);
            let new = NewFatVolume {
                cluster_sectors: 1,
                ..volume(sectors)
            };
            let content = vec![7; usize::try_from(bytes).expect("64-bit")];
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            let length = u64::from(sectors) * 512;
            file.as_file().set_len(length).expect("sparse");
            let mut device = FilePartition::new(file.as_file(), 0, length);
            let folder = FatNode::Folder(name("A"), vec![FatNode::File(name("X"), &content)]);
            create(&mut device, &new, &[folder]).expect("fits");
            fsck_accepts(&file);
        }
    }

    fn fsck_accepts(file: &tempfile::NamedTempFile) {
        let checked = Command::new("/usr/sbin/fsck.vfat")
            .arg("-n")
            .arg(file.path())
            .output();
        let checked = checked.expect("dosfstools is installed");
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }

    #[test]
    fn volumes_too_small_or_too_full_are_refused() {
        let small = image(64 * 2048, &[]).expect_err("FAT16 size");
        assert!(matches!(small, FatError::Unsupported(_)), "{small}");
        let data = vec![1; 200 << 20];
        let sectors = 160 * 2048;
        let full =
            image(sectors, &[FatNode::File(name("X"), &data)]).expect_err("200 into 160 MiB");
        assert!(matches!(full, FatError::Full { .. }), "{full}");
        assert_eq!(
            std::io::Error::from(full).kind(),
            std::io::ErrorKind::StorageFull
        );
        let mut short = vec![0; 1 << 20];
        let longer = create(&mut short, &volume(SECTORS), &[]);
        assert!(matches!(longer, Err(FatError::Unsupported(_))));
        assert!(short.iter().all(|byte| *byte == 0), "nothing was written");
    }
}
