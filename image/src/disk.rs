//! A whole disk: GPT, GRUB for machines with a BIOS, the EFI system partition with the loader and our
//! EFI program in the first of two boot slots, and room for data.
//!
//! The layout is frozen, because no update can change the partition table of a machine in use.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use alknet_boot_state::{BootRecord, BootSlot, RECORD_OFFSET, grub_archive};
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
/// First block of the gap behind the partition table. It is a tar archive with GRUB's core image and
/// configuration, and with the state of the boot at its end.
pub const BIOS_FIRST_LBA: u64 = 34;
/// Last block of that gap.
pub const BIOS_LAST_LBA: u64 = ESP_FIRST_LBA - 1;
/// First block of the EFI system partition: 1 MiB, to which every tool aligns.
pub const ESP_FIRST_LBA: u64 = 2048;
/// Bytes of the EFI system partition: two EFI programs, one being written, and a loader.
pub const ESP_BYTES: u64 = 256 << 20;
/// Bytes of the shipped disk: it has a data partition of nearly 16 MiB, which grows at first boot.
pub const DISK_BYTES: u64 = ESP_BYTES + (16 << 20);
/// First byte behind the head of the data partition, at whose end a sealed partition has its vault. The image is
/// shorter, so a disk may have something else there when the image is written to it.
pub const DATA_HEAD_END: u64 = ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES + (16 << 20);
/// Largest EFI program in bytes: three must fit into the EFI system partition.
pub const UKI_BYTES_MAX: u64 = ESP_BYTES / 3;

/// First block of the data partition.
pub const DATA_FIRST_LBA: u64 = ESP_FIRST_LBA + ESP_BYTES / LBA_BYTES;
/// Blocks of the backup partition table at the end: 32 of entries and a header.
pub const BACKUP_LBAS: u64 = 33;

pub(crate) const TYPE_BIOS: Uuid = uuid!("21686148-6449-6E6F-744E-656564454649");
pub(crate) const TYPE_ESP: Uuid = uuid!("C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
pub(crate) const TYPE_DATA: Uuid = uuid!("0FC63DAF-8483-4772-8E79-3D69D8477DE4");

/// The folder of the boot slots.
const SLOTS_FOLDER: &str = "ALKNET";

const FAT_LABEL: [u8; 11] = *b"ALKESP     ";
/// Small enough that 256 MiB are FAT32 and not FAT16, large enough that the tables stay at 1 MiB.
const CLUSTER_SECTORS: u32 = 4;

/// What is on a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskContent<'a> {
    /// The program of the first boot slot.
    pub(crate) uki: &'a [u8],
    /// The program that firmware starts.
    pub(crate) loader: &'a [u8],
    pub(crate) grub: &'a GrubLoader,
}

/// Writes a disk of `bytes` to an empty file, which stays sparse.
pub(crate) fn write(
    file: File,
    bytes: u64,
    content: &DiskContent<'_>,
    ids: &BuildIds,
) -> io::Result<File> {
    // The disk is a sparse file: only written blocks take space.
    file.set_len(bytes)?;
    let file = write_table(file, bytes, ids)?;
    // The code lies before the partitions of the protective MBR, which stay as they are.
    file.write_all_at(content.grub.boot_code(), 0)?;
    for (lba, sectors) in content.grub.sectors() {
        file.write_all_at(sectors, lba * LBA_BYTES)?;
    }
    for (lba, header) in grub_archive() {
        file.write_all_at(&header, lba * LBA_BYTES)?;
    }
    let record = BootRecord::new(BootSlot::A);
    file.write_all_at(&record.encode(), RECORD_OFFSET)?;
    write_system_partition(&file, content, ids)?;
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

/// The volume of the EFI system partition, with this serial number.
pub(crate) fn system_volume(id: u32) -> NewFatVolume {
    NewFatVolume {
        hidden_sectors: lba(ESP_FIRST_LBA),
        sectors: lba(ESP_BYTES / LBA_BYTES),
        cluster_sectors: CLUSTER_SECTORS,
        id,
        label: FAT_LABEL,
    }
}

fn write_system_partition(
    file: &File,
    content: &DiskContent<'_>,
    ids: &BuildIds,
) -> io::Result<()> {
    let volume = system_volume(ids.fat_volume());
    let mut partition = FilePartition::new(file, ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
    let program = FatNode::File(name(BootSlot::A.file_name()), content.uki);
    let slots = FatNode::Folder(name(SLOTS_FOLDER), vec![program]);
    let folders = [FatNode::Folder(
        name("EFI"),
        vec![started(content.loader), slots],
    )];
    Ok(alknet_fat::create(&mut partition, &volume, &folders)?)
}

/// An EFI system partition in a file of its own, for a medium that has no other file system to
/// write to. It is as small as FAT32 can be, and has at least `bytes_free` bytes free.
pub(crate) fn write_system_image(
    file: &File,
    uki: &[u8],
    bytes_free: u64,
    ids: &BuildIds,
) -> io::Result<()> {
    let sectors = alknet_fat::sectors_for(uki.len() as u64 + bytes_free);
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
    let folders = [FatNode::Folder(name("EFI"), vec![started(uki)])];
    Ok(alknet_fat::create(&mut partition, &volume, &folders)?)
}

/// The folder with the program that firmware starts: it looks for `\EFI\BOOT\BOOTX64.EFI` on a disk
/// that no boot entry names.
fn started(program: &[u8]) -> FatNode<'_> {
    let program = FatNode::File(name("BOOTX64.EFI"), program);
    FatNode::Folder(name("BOOT"), vec![program])
}

fn lba(value: u64) -> u32 {
    u32::try_from(value).expect("the disk is far below 2 TiB")
}

fn name(text: &str) -> ShortName {
    ShortName::new(text).expect("the names here are short and upper case")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::grub::tests::loader;

    /// A disk with this program in its first boot slot, and with `loader` as the loader, of this commit.
    pub(crate) fn written(uki: &[u8], git: &str) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        let content = DiskContent {
            uki,
            loader: b"loader",
            grub: &loader(),
        };
        write(file, DISK_BYTES, &content, &BuildIds::new("1", git)).expect("the disk is written")
    }

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
