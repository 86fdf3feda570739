//! A FAT32 volume, written in one go (Microsoft's FAT specification, version 1.03).
//!
//! Everything lies back to back and has the first time that FAT knows, so the same tree is always
//! the same bytes. Only nonzero bytes are written, so the file stays sparse.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR_BYTES: u32 = 512;
/// Clusters that a sector of a table describes.
const CLUSTERS_OF_SECTOR: u32 = SECTOR_BYTES / 4;
/// Fewest clusters of a FAT32 volume. With fewer, drivers read it as FAT16.
const CLUSTERS_MIN: u32 = 65_525;
/// Clusters that a volume has beyond those of its files and beyond the fewest that it may have.
const SPARE_CLUSTERS: u32 = 64;
const RESERVED_SECTORS: u32 = 32;
const TABLES: u32 = 2;
const INFO_SECTOR: u32 = 1;
const BACKUP_SECTOR: u32 = 6;
const MEDIA_DISK: u8 = 0xf8;
const CHAIN_END: u32 = 0x0fff_ffff;
const ROOT_CLUSTER: u32 = 2;
const ENTRY_BYTES: usize = 32;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;
/// 1980-01-01, the first day that FAT knows.
const FIRST_DAY: u16 = (1 << 5) | 1;

/// The position and the names of a volume.
#[derive(Debug)]
pub(crate) struct FatVolume {
    /// First 512-byte block of the volume in the file.
    pub(crate) first_lba: u32,
    /// Size of the volume in such blocks.
    pub(crate) sectors: u32,
    /// Blocks of a cluster: a power of two.
    pub(crate) cluster_sectors: u32,
    pub(crate) id: u32,
    pub(crate) label: [u8; 11],
}

/// A file or a folder.
#[derive(Debug)]
pub(crate) enum FatNode<'a> {
    File(ShortName, &'a [u8]),
    Folder(ShortName, Vec<Self>),
}

/// A name of at most eight characters and three after the dot, in FAT's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortName([u8; 11]);

impl ShortName {
    const DOT: Self = Self(*b".          ");
    const DOT_DOT: Self = Self(*b"..         ");

    /// Splits `NAME.EXT`. `None` if it does not fit or has a character that FAT would change.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        };
        if stem.is_empty() || stem.len() > 8 || extension.len() > 3 {
            return None;
        }
        if !plain(stem) || !plain(extension) {
            return None;
        }
        let mut out = [b' '; 11];
        out[..stem.len()].copy_from_slice(stem.as_bytes());
        out[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
        Some(Self(out))
    }
}

/// Writes the volume into a range of a file that reads as zeros.
pub(crate) fn write(file: &File, volume: &FatVolume, root: &[FatNode<'_>]) -> io::Result<()> {
    let geometry = FatGeometry::for_volume(volume)?;
    let mut layout = FatLayout::new(volume.cluster_sectors);
    layout.folder(root, None, Some(volume.label));
    // The first two entries of the table belong to no cluster.
    let used = layout.table.len() as u32 - ROOT_CLUSTER;
    if used > geometry.clusters {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "the files pass the FAT volume",
        ));
    }
    let at =
        |sector: u32| (u64::from(volume.first_lba) + u64::from(sector)) * u64::from(SECTOR_BYTES);
    let boot = boot_sector(volume, &geometry);
    let info = info_sector(geometry.clusters - used, layout.table.len() as u32);
    // FAT32 File System Specification: the boot sector is repeated at sector 6, with its FSInfo.
    for copy in [0, BACKUP_SECTOR] {
        file.write_all_at(&boot, at(copy))?;
        file.write_all_at(&info, at(copy + INFO_SECTOR))?;
    }
    let table: Vec<u8> = layout
        .table
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    for copy in 0..TABLES {
        file.write_all_at(&table, at(RESERVED_SECTORS + copy * geometry.table_sectors))?;
    }
    for (cluster, bytes) in &layout.contents {
        let sector = geometry.data_sector + (cluster - ROOT_CLUSTER) * volume.cluster_sectors;
        file.write_all_at(bytes.as_ref(), at(sector))?;
    }
    Ok(())
}

/// Sectors of a volume with clusters of one sector for this many bytes of files: whole MiB, and never
/// fewer than FAT32 has. Folders of one sector each, and the ends of files, fit into what is added.
pub(crate) fn sectors_for(bytes: u64) -> u32 {
    const MIB_SECTORS: u32 = 2048;
    let content = bytes.div_ceil(u64::from(SECTOR_BYTES)) + u64::from(SPARE_CLUSTERS);
    let content = u32::try_from(content).unwrap_or(u32::MAX / 2);
    let clusters = content.max(CLUSTERS_MIN + SPARE_CLUSTERS);
    let tables = TABLES * (clusters + ROOT_CLUSTER).div_ceil(CLUSTERS_OF_SECTOR);
    (RESERVED_SECTORS + tables + clusters).next_multiple_of(MIB_SECTORS)
}

struct FatGeometry {
    table_sectors: u32,
    data_sector: u32,
    clusters: u32,
}

impl FatGeometry {
    fn for_volume(volume: &FatVolume) -> io::Result<Self> {
        let shared = volume.sectors.saturating_sub(RESERVED_SECTORS);
        // The specification's formula: one sector of each table serves 128 clusters.
        let per_sector = CLUSTERS_OF_SECTOR * TABLES * volume.cluster_sectors + TABLES;
        let table_sectors = shared.div_ceil(per_sector / TABLES);
        let data_sector = RESERVED_SECTORS + TABLES * table_sectors;
        let clusters = volume.sectors.saturating_sub(data_sector) / volume.cluster_sectors;
        if clusters < CLUSTERS_MIN {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too small for FAT32",
            ));
        }
        Ok(Self {
            table_sectors,
            data_sector,
            clusters,
        })
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
    fn new(cluster_sectors: u32) -> Self {
        // The specification requires the media byte in the first entry and an end mark in the
        // second.
        let media = CHAIN_END & !0xff | u32::from(MEDIA_DISK);
        Self {
            cluster_bytes: (cluster_sectors * SECTOR_BYTES) as usize,
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
            bytes.extend(entry(ShortName::DOT, ATTRIBUTE_FOLDER, own, 0));
            // The root's cluster number is zero here, whichever it occupies.
            let up = if parent == ROOT_CLUSTER { 0 } else { parent };
            bytes.extend(entry(ShortName::DOT_DOT, ATTRIBUTE_FOLDER, up, 0));
        }
        bytes.extend(
            label
                .into_iter()
                .flat_map(|name| entry(ShortName(name), ATTRIBUTE_LABEL, 0, 0)),
        );
        for node in nodes {
            bytes.extend(match node {
                FatNode::File(name, data) => {
                    entry(*name, ATTRIBUTE_ARCHIVE, self.file(data), data.len() as u32)
                }
                FatNode::Folder(name, nodes) => entry(
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

fn entry(name: ShortName, attributes: u8, cluster: u32, bytes: u32) -> [u8; ENTRY_BYTES] {
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

fn boot_sector(volume: &FatVolume, geometry: &FatGeometry) -> [u8; SECTOR_BYTES as usize] {
    let mut out = [0; SECTOR_BYTES as usize];
    // A jump over the fields, which the specification demands even if no code follows.
    put(&mut out, 0, &[0xeb, 0x58, 0x90]);
    // The specification recommends this name, because some drivers look at it.
    put(&mut out, 3, b"MSWIN4.1");
    put(&mut out, 11, &(SECTOR_BYTES as u16).to_le_bytes());
    put(&mut out, 13, &[volume.cluster_sectors as u8]);
    put(&mut out, 14, &(RESERVED_SECTORS as u16).to_le_bytes());
    put(&mut out, 16, &[TABLES as u8]);
    put(&mut out, 21, &[MEDIA_DISK]);
    // Sectors per track and heads: the numbers of BIOSes for a disk of this size.
    put(&mut out, 24, &63_u16.to_le_bytes());
    put(&mut out, 26, &255_u16.to_le_bytes());
    put(&mut out, 28, &volume.first_lba.to_le_bytes());
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

fn info_sector(free: u32, next: u32) -> [u8; SECTOR_BYTES as usize] {
    let mut out = [0; SECTOR_BYTES as usize];
    // The signatures of an FSInfo sector.
    put(&mut out, 0, b"RRaA");
    put(&mut out, 484, b"rrAa");
    put(&mut out, 488, &free.to_le_bytes());
    put(&mut out, 492, &next.to_le_bytes());
    put(&mut out, 508, &[0, 0, 0x55, 0xaa]);
    out
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SECTORS: u32 = 256 * 2048;

    fn volume(sectors: u32) -> FatVolume {
        FatVolume {
            first_lba: 0,
            sectors,
            cluster_sectors: 4,
            id: 0x1234_5678,
            label: *b"ALKESP     ",
        }
    }

    fn name(text: &str) -> ShortName {
        ShortName::new(text).expect("a short name")
    }

    fn image(sectors: u32, root: &[FatNode<'_>]) -> io::Result<tempfile::NamedTempFile> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(u64::from(sectors) * 512)?;
        write(file.as_file(), &volume(sectors), root)?;
        Ok(file)
    }

    #[test]
    fn fsck_accepts_deep_empty_and_many_entries() {
        let big = vec![7; 3 * 2048 + 1];
        let exact = vec![8; 2048];
        let many = (0..200)
            .map(|i| FatNode::File(name(&format!("F{i}.BIN")), &exact))
            .collect();
        let deep = FatNode::Folder(name("B"), vec![FatNode::Folder(name("C"), Vec::new())]);
        let root = [
            FatNode::Folder(name("A"), vec![deep, FatNode::File(name("BIG.BIN"), &big)]),
            FatNode::Folder(name("MANY"), many),
            FatNode::File(name("EMPTY"), &[]),
        ];
        let file = image(SECTORS, &root).expect("fits");
        fsck_accepts(&file);
    }

    /// The smallest volume has files of its size, to the last byte.
    #[test]
    fn fsck_accepts_clusters_of_one_sector_up_to_the_last() {
        for bytes in [0, 40 << 20] {
            let sectors = sectors_for(bytes);
            let volume = FatVolume {
                cluster_sectors: 1,
                ..volume(sectors)
            };
            let content = vec![7; usize::try_from(bytes).expect("64-bit")];
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            file.as_file()
                .set_len(u64::from(sectors) * 512)
                .expect("sparse");
            let folder = FatNode::Folder(name("A"), vec![FatNode::File(name("X"), &content)]);
            write(file.as_file(), &volume, &[folder]).expect("fits");
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
    fn only_plain_short_names_are_taken() {
        assert_eq!(
            ShortName::new("BOOTX64.EFI"),
            Some(ShortName(*b"BOOTX64 EFI"))
        );
        assert_eq!(ShortName::new("EFI"), Some(ShortName(*b"EFI        ")));
        for long in [
            "",
            ".EFI",
            "ALKNET.TOML",
            "ALKNETNOD.EFI",
            "efi",
            "A B",
            "A.B.C",
            "É",
        ] {
            assert_eq!(ShortName::new(long), None, "{long}");
        }
    }

    #[test]
    fn volumes_too_small_or_too_full_are_refused() {
        let small = image(64 * 2048, &[]).expect_err("FAT16 size");
        assert_eq!(small.kind(), io::ErrorKind::InvalidInput);
        let data = vec![1; 200 << 20];
        let sectors = 160 * 2048;
        let full =
            image(sectors, &[FatNode::File(name("X"), &data)]).expect_err("200 into 160 MiB");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
