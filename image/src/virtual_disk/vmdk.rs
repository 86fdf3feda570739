//! VMware's sparse disk (VMware, "Virtual Disk Format 5.0"), in two kinds: the one that VMware and VirtualBox run, and
//! the compressed one that is imported, by itself or in an OVA.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::{HeaderBytes, RawDisk, to_usize};
use crate::disk::LBA_BYTES;

/// Sectors of a grain, the unit of allocation.
const GRAIN_SECTORS: u64 = 128;
const GRAIN_BYTES: u64 = GRAIN_SECTORS * LBA_BYTES;
/// Grains of one table.
const TABLE_GRAINS: u64 = 512;
const TABLE_SECTORS: u64 = TABLE_GRAINS * 4 / LBA_BYTES;
/// Sectors that the text descriptor may take, behind the header.
const DESCRIPTOR_SECTORS: u64 = 20;
/// The header says that a table begins where the footer says.
const DIRECTORY_AT_END: u64 = u64::MAX;

/// The two kinds of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmdkKind {
    /// Grains at fixed places, which a hypervisor can write to.
    MonolithicSparse,
    /// Compressed grains, one behind the other, for an import.
    StreamOptimized,
}

impl VmdkKind {
    const fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::StreamOptimized => "streamOptimized",
        }
    }
}

/// What a marker of a stream is before.
#[derive(Clone, Copy)]
enum MarkerKind {
    EndOfStream = 0,
    Table = 1,
    Directory = 2,
    Footer = 3,
}

/// Writes the disk as `name`, the file name that the descriptor has. `content_id` stands for the content of the disk.
pub(crate) fn write(
    file: &File,
    disk: &RawDisk,
    kind: VmdkKind,
    name: &str,
    content_id: u32,
) -> io::Result<()> {
    let text = descriptor(disk.bytes(), kind, name, content_id);
    assert!(
        text.len() as u64 <= DESCRIPTOR_SECTORS * LBA_BYTES,
        "the text is short"
    );
    file.write_all_at(text.as_bytes(), LBA_BYTES)?;
    match kind {
        VmdkKind::MonolithicSparse => sparse(file, disk),
        VmdkKind::StreamOptimized => stream(file, disk),
    }
}

fn descriptor(bytes: u64, kind: VmdkKind, name: &str, content_id: u32) -> String {
    let sectors = bytes / LBA_BYTES;
    let kind = kind.name();
    // Geometry of a SCSI disk below 2 GiB.
    let (heads, per_track) = (64, 32);
    let cylinders = sectors / (heads * per_track);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={content_id:08x}\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
         # Extent description\nRW {sectors} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"13\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{per_track}\"\n\
         ddb.adapterType = \"lsilogic\"\n"
    )
}

/// Sectors of the parts in front of the grains.
struct VmdkLayout {
    /// Tables, each with [`TABLE_GRAINS`].
    tables: u64,
    directory_sectors: u64,
}

impl VmdkLayout {
    const fn new(disk: &RawDisk) -> Self {
        let tables = disk.units(GRAIN_BYTES * TABLE_GRAINS);
        Self {
            tables,
            directory_sectors: (tables * 4).div_ceil(LBA_BYTES),
        }
    }

    /// Sectors of a directory with its tables.
    const fn group(&self) -> u64 {
        self.directory_sectors + self.tables * TABLE_SECTORS
    }

    /// The directory that readers try second.
    const fn redundant(&self) -> u64 {
        1 + DESCRIPTOR_SECTORS
    }

    const fn directory(&self) -> u64 {
        self.redundant() + self.group()
    }

    const fn first_grain(&self) -> u64 {
        (self.directory() + self.group()).next_multiple_of(GRAIN_SECTORS)
    }
}

fn sparse(file: &File, disk: &RawDisk) -> io::Result<()> {
    let layout = VmdkLayout::new(disk);
    let mut next = layout.first_grain();
    let mut entries = Vec::new();
    for index in 0..layout.tables * TABLE_GRAINS {
        let mut at = 0;
        if index < disk.units(GRAIN_BYTES)
            && let Some(content) = disk.unit(GRAIN_BYTES, index)?
        {
            at = next;
            file.write_all_at(&content, at * LBA_BYTES)?;
            next += GRAIN_SECTORS;
        }
        entries.extend_from_slice(&sector(at).to_le_bytes());
    }
    for start in [layout.redundant(), layout.directory()] {
        let first = start + layout.directory_sectors;
        let directory: Vec<u8> = (0..layout.tables)
            .flat_map(|table| sector(first + table * TABLE_SECTORS).to_le_bytes())
            .collect();
        file.write_all_at(&directory, start * LBA_BYTES)?;
        file.write_all_at(&entries, first * LBA_BYTES)?;
    }
    let flags = flags(VmdkKind::MonolithicSparse);
    let places = (layout.redundant(), layout.directory());
    let header = header(disk, 1, flags, places, layout.first_grain());
    file.write_all_at(&header, 0)?;
    file.set_len(next * LBA_BYTES)
}

fn stream(file: &File, disk: &RawDisk) -> io::Result<()> {
    /// The version with compressed grains.
    const VERSION: u32 = 3;
    let flags = flags(VmdkKind::StreamOptimized);
    let mut out = Stream {
        file,
        sector: GRAIN_SECTORS,
    };
    let at_end = header(disk, VERSION, flags, (0, DIRECTORY_AT_END), GRAIN_SECTORS);
    file.write_all_at(&at_end, 0)?;
    let mut directory = Vec::new();
    for table in 0..disk.units(GRAIN_BYTES * TABLE_GRAINS) {
        let mut entries = Vec::new();
        for index in table * TABLE_GRAINS..(table + 1) * TABLE_GRAINS {
            let mut at = 0;
            if index < disk.units(GRAIN_BYTES)
                && let Some(content) = disk.unit(GRAIN_BYTES, index)?
            {
                at = out.grain(index * GRAIN_SECTORS, &content)?;
            }
            entries.extend_from_slice(&sector(at).to_le_bytes());
        }
        let is_empty = entries.iter().all(|byte| *byte == 0);
        let at = match is_empty {
            true => 0,
            false => out.table(MarkerKind::Table, &entries)?,
        };
        directory.extend_from_slice(&sector(at).to_le_bytes());
    }
    let at = out.table(MarkerKind::Directory, &directory)?;
    let footer = header(disk, VERSION, flags, (0, at), GRAIN_SECTORS);
    out.table(MarkerKind::Footer, &footer)?;
    out.table(MarkerKind::EndOfStream, &[])?;
    file.set_len(out.sector * LBA_BYTES)
}

/// Where the next part of a stream goes.
struct Stream<'a> {
    file: &'a File,
    sector: u64,
}

impl Stream<'_> {
    /// Writes a compressed grain behind its marker, and returns the marker's sector.
    fn grain(&mut self, first_sector: u64, content: &[u8]) -> io::Result<u64> {
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
        packed.write_all(content)?;
        let packed = packed.finish()?;
        let bytes = u32::try_from(packed.len()).expect("a grain is 64 KiB");
        let mut part = HeaderBytes::default();
        part.put(&first_sector.to_le_bytes())
            .put(&bytes.to_le_bytes())
            .put(&packed);
        self.append(&part.0)
    }

    /// Writes a marker and what it announces, and returns the sector of the latter.
    fn table(&mut self, kind: MarkerKind, content: &[u8]) -> io::Result<u64> {
        let sectors = (content.len() as u64).div_ceil(LBA_BYTES);
        let marker = HeaderBytes::default()
            .put(&sectors.to_le_bytes())
            // A grain's marker has its size here.
            .put(&0_u32.to_le_bytes())
            .put(&(kind as u32).to_le_bytes())
            .padded(to_usize(LBA_BYTES));
        self.append(&marker)?;
        self.append(content)
    }

    fn append(&mut self, content: &[u8]) -> io::Result<u64> {
        let at = self.sector;
        self.file.write_all_at(content, at * LBA_BYTES)?;
        self.sector += (content.len() as u64).div_ceil(LBA_BYTES);
        Ok(at)
    }
}

const fn flags(kind: VmdkKind) -> u32 {
    /// The header has the bytes that show a conversion of line ends.
    const LINE_ENDS: u32 = 1;
    const REDUNDANT_TABLES: u32 = 1 << 1;
    const COMPRESSED: u32 = 1 << 16;
    const MARKERS: u32 = 1 << 17;
    match kind {
        VmdkKind::MonolithicSparse => LINE_ENDS | REDUNDANT_TABLES,
        VmdkKind::StreamOptimized => LINE_ENDS | COMPRESSED | MARKERS,
    }
}

fn header(
    disk: &RawDisk,
    version: u32,
    flags: u32,
    (redundant, directory): (u64, u64),
    overhead: u64,
) -> Vec<u8> {
    /// Grains are compressed as RFC 1951 says, with the frame of RFC 1950.
    const DEFLATE: u16 = 1;
    let compression = if version == 1 { 0 } else { DEFLATE };
    HeaderBytes::default()
        .put(b"KDMV")
        .put(&version.to_le_bytes())
        .put(&flags.to_le_bytes())
        .put(&(disk.bytes() / LBA_BYTES).to_le_bytes())
        .put(&GRAIN_SECTORS.to_le_bytes())
        .put(&1_u64.to_le_bytes())
        .put(&DESCRIPTOR_SECTORS.to_le_bytes())
        .put(&512_u32.to_le_bytes())
        .put(&redundant.to_le_bytes())
        .put(&directory.to_le_bytes())
        .put(&overhead.to_le_bytes())
        // It was closed cleanly.
        .put(&[0])
        .put(b"\n \r\n")
        .put(&compression.to_le_bytes())
        .padded(to_usize(LBA_BYTES))
}

/// A sector's number in a table.
fn sector(number: u64) -> u32 {
    u32::try_from(number).expect("the file is below 2 TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_has_the_file_and_fits_its_sectors() {
        let name = "alknet_0.1.0.vmdk";
        let text = descriptor(272 << 20, VmdkKind::MonolithicSparse, name, 7);
        assert!(text.contains("CID=00000007\n"));
        assert!(text.contains("RW 557056 SPARSE \"alknet_0.1.0.vmdk\"\n"));
        assert!(text.len() as u64 <= DESCRIPTOR_SECTORS * LBA_BYTES);
    }
}
