//! A whole disk: GPT, GRUB for machines with a BIOS, the EFI system partition with our EFI program
//! on it, and room for data.
//!
//! The layout is frozen, because no update can change the partition table of a machine in use.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use alknet_fat::{FatNode, FilePartition, NewFatVolume, ShortName};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::{OperatingSystem, Type};
use uuid::{Uuid, uuid};

use crate::grub::GrubLoader;
use crate::ids::BuildIds;

/// Bytes of a logical block.
pub const LBA_BYTES: u64 = 512;
/// First block of the gap behind the partition table, in which GRUB's core image lies.
pub const BIOS_FIRST_LBA: u64 = 34;
/// Last block of that gap.
pub const BIOS_LAST_LBA: u64 = ESP_FIRST_LBA - 1;
/// First of the two blocks at the end of the gap that are kept for the state of the boot: which of
/// two programs to start, and how often it was tried. GRUB never reaches them.
pub const BOOT_STATE_FIRST_LBA: u64 = BIOS_LAST_LBA - 1;
/// First block of the EFI system partition: 1 MiB, to which every tool aligns.
pub const ESP_FIRST_LBA: u64 = 2048;
/// Bytes of the EFI system partition: two EFI programs, one being written, and a loader.
pub const ESP_BYTES: u64 = 256 << 20;
/// Bytes of the shipped disk: it has a data partition of nearly 16 MiB, which grows at first boot.
pub const DISK_BYTES: u64 = ESP_BYTES + (16 << 20);
/// Largest EFI program in bytes: three must fit into the EFI system partition.
pub const UKI_BYTES_MAX: u64 = ESP_BYTES / 3;

pub(crate) const DATA_FIRST_LBA: u64 = ESP_FIRST_LBA + ESP_BYTES / LBA_BYTES;
/// Blocks of the backup partition table at the end: 32 of entries and a header.
pub(crate) const BACKUP_LBAS: u64 = 33;

pub(crate) const TYPE_BIOS: Uuid = uuid!("21686148-6449-6E6F-744E-656564454649");
pub(crate) const TYPE_ESP: Uuid = uuid!("C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
pub(crate) const TYPE_DATA: Uuid = uuid!("0FC63DAF-8483-4772-8E79-3D69D8477DE4");

const FAT_LABEL: [u8; 11] = *b"ALKESP     ";
/// Small enough that 256 MiB are FAT32 and not FAT16, large enough that the tables stay at 1 MiB.
const CLUSTER_SECTORS: u32 = 4;

/// Writes a disk of `bytes` to an empty file, which stays sparse.
pub(crate) fn write(
    file: File,
    bytes: u64,
    uki: &[u8],
    grub: &GrubLoader,
    ids: &BuildIds,
) -> io::Result<File> {
    // The disk is a sparse file: only written blocks take space.
    file.set_len(bytes)?;
    let file = write_table(file, bytes, ids)?;
    // The code lies before the partitions of the protective MBR, which stay as they are.
    file.write_all_at(grub.boot_code(), 0)?;
    file.write_all_at(grub.core(), BIOS_FIRST_LBA * LBA_BYTES)?;
    write_system_partition(&file, uki, ids)?;
    Ok(file)
}

fn write_table(mut file: File, bytes: u64, ids: &BuildIds) -> io::Result<File> {
    // UEFI 2.10 §5.2.3: programs that do not know GPT see a full disk.
    ProtectiveMBR::with_lb_size(lba(bytes / LBA_BYTES - 1))
        .overwrite_lba0(&mut file)
        .map_err(io::Error::other)?;
    let mut table = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, Some(ids.uuid("disk")))
        .map_err(io::Error::other)?;
    table
        .update_partitions(partitions(bytes, ids))
        .map_err(io::Error::other)?;
    table.write().map_err(io::Error::other)
}

fn partitions(bytes: u64, ids: &BuildIds) -> BTreeMap<u32, Partition> {
    let data_last = bytes / LBA_BYTES - BACKUP_LBAS - 1;
    let partition = |name: &str, guid, first_lba, last_lba| Partition {
        part_type_guid: Type {
            guid,
            os: OperatingSystem::None,
        },
        part_guid: ids.uuid(name),
        first_lba,
        last_lba,
        flags: 0,
        name: name.to_owned(),
    };
    BTreeMap::from([
        (
            1,
            partition("alk-bios", TYPE_BIOS, BIOS_FIRST_LBA, BIOS_LAST_LBA),
        ),
        (
            2,
            partition("alk-esp", TYPE_ESP, ESP_FIRST_LBA, DATA_FIRST_LBA - 1),
        ),
        (
            3,
            partition("alk-data", TYPE_DATA, DATA_FIRST_LBA, data_last),
        ),
    ])
}

fn write_system_partition(file: &File, uki: &[u8], ids: &BuildIds) -> io::Result<()> {
    let volume = NewFatVolume {
        hidden_sectors: lba(ESP_FIRST_LBA),
        sectors: lba(ESP_BYTES / LBA_BYTES),
        cluster_sectors: CLUSTER_SECTORS,
        id: ids.fat_volume(),
        label: FAT_LABEL,
    };
    let mut partition = FilePartition::new(file, ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
    Ok(alknet_fat::create(
        &mut partition,
        &volume,
        &system_folders(uki),
    )?)
}

/// An EFI system partition in a file of its own, for a medium that has no other file system to
/// write to. It is as small as FAT32 can be, and has at least `room` bytes free.
pub(crate) fn write_system_image(
    file: &File,
    uki: &[u8],
    room: u64,
    ids: &BuildIds,
) -> io::Result<()> {
    let sectors = alknet_fat::sectors_for(uki.len() as u64 + room);
    let bytes = u64::from(sectors) * LBA_BYTES;
    file.set_len(bytes)?;
    let volume = NewFatVolume {
        hidden_sectors: 0,
        sectors,
        cluster_sectors: 1,
        id: ids.fat_volume(),
        label: FAT_LABEL,
    };
    let mut partition = FilePartition::new(file, 0, bytes);
    Ok(alknet_fat::create(
        &mut partition,
        &volume,
        &system_folders(uki),
    )?)
}

/// Firmware looks for `\EFI\BOOT\BOOTX64.EFI` on a disk that no boot entry names.
fn system_folders(uki: &[u8]) -> [FatNode<'_>; 1] {
    let program = FatNode::File(name("BOOTX64.EFI"), uki);
    let boot = FatNode::Folder(name("BOOT"), vec![program]);
    [FatNode::Folder(name("EFI"), vec![boot])]
}

fn lba(value: u64) -> u32 {
    u32::try_from(value).expect("the disk is far below 2 TiB")
}

fn name(text: &str) -> ShortName {
    ShortName::new(text).expect("the names here are short and upper case")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_neither_overlap_nor_touch_the_tables() {
        let table = partitions(DISK_BYTES, &BuildIds::new("1", "a"));
        let mut free = 34;
        for partition in table.values() {
            assert!(partition.first_lba >= free && partition.last_lba >= partition.first_lba);
            free = partition.last_lba + 1;
        }
        assert_eq!(free, DISK_BYTES / LBA_BYTES - BACKUP_LBAS);
        assert_eq!(
            table[&2].last_lba - table[&2].first_lba + 1,
            ESP_BYTES / LBA_BYTES
        );
        assert_eq!(table[&3].first_lba * LBA_BYTES % (1 << 20), 0);
    }
}
