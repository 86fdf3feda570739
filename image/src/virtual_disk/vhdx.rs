//! Hyper-V's disk of its second generation ([MS-VHDX]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc::{CRC_32_ISCSI, Crc};
use uuid::{Uuid, uuid};

use super::{HeaderBytes, RawDisk, write_data};

/// Bytes of a payload block, the unit of allocation: the least that the format permits.
const BLOCK_BYTES: u64 = 1 << 20;
/// Parts of the file begin at whole MiB.
const MIB: u64 = 1 << 20;
const KIB_64: u64 = 64 << 10;
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const TABLE_AT: u64 = 3 * MIB;
const HEADER_BYTES: usize = 4096;
const REGIONS_BYTES: usize = 64 << 10;
/// Where headers and tables of regions have their checksum.
const CHECKSUM_AT: usize = 4;
const SECTOR_BYTES: u32 = 512;
/// Payload blocks between two entries of the table that point to bitmaps of sectors, which only a child disk has.
const CHUNK_BLOCKS: u64 = (1 << 23) * SECTOR_BYTES as u64 / BLOCK_BYTES;
/// The state of an entry whose block is in the file.
const PRESENT: u64 = 6;

const TABLE: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
const METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");
const FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
const DISK_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
const DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
const LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
const PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");

/// Items of the metadata are required. This one describes the file, the next ones the disk.
const OF_FILE: u32 = 4;
const OF_DISK: u32 = 4 | 2;

/// Identifiers of the file: of its headers, of its content, and of the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VhdxIds {
    pub(crate) file: Uuid,
    pub(crate) data: Uuid,
    pub(crate) disk: Uuid,
}

/// Writes the disk. Blocks of zeros take no space.
pub(crate) fn write(file: &File, disk: &RawDisk, ids: VhdxIds) -> io::Result<()> {
    let creator: Vec<u8> = "alknet".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let identifier = [b"vhdxfile".as_slice(), &creator].concat();
    file.write_all_at(&identifier, 0)?;
    for (copy, sequence) in [(1, 1), (2, 2_u64)] {
        file.write_all_at(&header(ids, sequence), copy * KIB_64)?;
    }
    let entries = entries(disk.units(BLOCK_BYTES));
    let table_bytes = (entries * 8).next_multiple_of(MIB);
    let regions = regions(table_bytes);
    for copy in [3, 4] {
        file.write_all_at(&regions, copy * KIB_64)?;
    }
    let (table, items) = metadata(disk.bytes(), ids.disk);
    file.write_all_at(&table, METADATA_AT)?;
    file.write_all_at(&items, METADATA_AT + KIB_64)?;

    let mut next = TABLE_AT + table_bytes;
    for block in 0..disk.units(BLOCK_BYTES) {
        if let Some(content) = disk.unit(BLOCK_BYTES, block)? {
            write_data(file, &content, next)?;
            let entry = next | PRESENT;
            let at = TABLE_AT + table_entry(block) * 8;
            file.write_all_at(&entry.to_le_bytes(), at)?;
            next += BLOCK_BYTES;
        }
    }
    file.set_len(next)
}

/// Number of entries for so many payload blocks.
const fn entries(blocks: u64) -> u64 {
    match blocks.checked_sub(1) {
        Some(last) => table_entry(last) + 1,
        None => 0,
    }
}

/// The entry of a payload block, with the entries for bitmaps of the blocks before it.
const fn table_entry(block: u64) -> u64 {
    block + block / CHUNK_BLOCKS
}

fn header(ids: VhdxIds, sequence: u64) -> Vec<u8> {
    let log_bytes = u32::try_from(METADATA_AT - LOG_AT).expect("1 MiB");
    checked(
        HeaderBytes::default()
            .put(b"head")
            .put(&[0; 4])
            .put(&sequence.to_le_bytes())
            .put(&ids.file.to_bytes_le())
            .put(&ids.data.to_bytes_le())
            // No identifier of a log, so there is nothing to replay. Its version is 0, the file's is 1.
            .put(&[0; 16])
            .put(&0_u16.to_le_bytes())
            .put(&1_u16.to_le_bytes())
            .put(&log_bytes.to_le_bytes())
            .put(&LOG_AT.to_le_bytes())
            .padded(HEADER_BYTES),
    )
}

fn regions(table_bytes: u64) -> Vec<u8> {
    let mut out = HeaderBytes::default();
    out.put(b"regi")
        .put(&[0; 4])
        .put(&2_u32.to_le_bytes())
        .put(&[0; 4]);
    for (region, at, bytes) in [
        (TABLE, TABLE_AT, table_bytes),
        (METADATA, METADATA_AT, TABLE_AT - METADATA_AT),
    ] {
        let bytes = u32::try_from(bytes).expect("a few MiB");
        out.put(&region.to_bytes_le())
            .put(&at.to_le_bytes())
            .put(&bytes.to_le_bytes())
            // Readers that do not know the region must refuse the file.
            .put(&1_u32.to_le_bytes());
    }
    checked(out.padded(REGIONS_BYTES))
}

/// The table of items, and the items, which begin 64 KiB behind it.
fn metadata(disk_bytes: u64, disk: Uuid) -> (Vec<u8>, Vec<u8>) {
    let block = u32::try_from(BLOCK_BYTES).expect("1 MiB");
    let parameters = [block.to_le_bytes(), 0_u32.to_le_bytes()].concat();
    let items = [
        (FILE_PARAMETERS, OF_FILE, parameters),
        (DISK_SIZE, OF_DISK, disk_bytes.to_le_bytes().to_vec()),
        (DISK_ID, OF_DISK, disk.to_bytes_le().to_vec()),
        (LOGICAL_SECTOR, OF_DISK, SECTOR_BYTES.to_le_bytes().to_vec()),
        (
            PHYSICAL_SECTOR,
            OF_DISK,
            SECTOR_BYTES.to_le_bytes().to_vec(),
        ),
    ];
    let mut table = HeaderBytes::default();
    let count = u16::try_from(items.len()).expect("five");
    table
        .put(b"metadata")
        .put(&[0; 2])
        .put(&count.to_le_bytes())
        .put(&[0; 20]);
    let mut content = Vec::new();
    for (item, flags, bytes) in items {
        let number = |value: u64| u32::try_from(value).expect("a few bytes").to_le_bytes();
        table
            .put(&item.to_bytes_le())
            .put(&number(KIB_64 + content.len() as u64))
            .put(&number(bytes.len() as u64))
            .put(&flags.to_le_bytes())
            .put(&[0; 4]);
        content.extend_from_slice(&bytes);
    }
    (table.0, content)
}

/// Puts the checksum of a structure into it: CRC-32C, with zeros in its own place.
fn checked(mut structure: Vec<u8>) -> Vec<u8> {
    let sum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&structure);
    structure[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
    structure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_followed_by_the_entry_of_its_bitmap() {
        assert_eq!(CHUNK_BLOCKS, 4096);
        assert_eq!((entries(0), entries(272), entries(4096)), (0, 272, 4096));
        assert_eq!(
            (table_entry(4095), table_entry(4096), entries(4097)),
            (4095, 4097, 4098)
        );
    }
}
