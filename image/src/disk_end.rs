//! Where the partition table of a disk ends, and whether firmware may find another table behind it (UEFI 2.10 section
//! 5.3.2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::LBA_BYTES;
use crate::disk_table::disk_bytes_by_head;

/// What the header of a partition table begins with.
const HEADER_MARK: &[u8; 8] = b"EFI PART";
/// Bytes of the largest block of a medium.
const BLOCK_BYTES_MAX: u64 = 4096;
/// Bytes at the end of a disk in which no other partition table may begin. A medium may end up to 1 MiB before a copy of it:
/// a bridge of USB reserves blocks, an import leaves out what is no whole MiB, and a virtual machine leaves out the footer of
/// a VHD. The table is in its last block, or in the one before if the last one has only begun.
pub const DISK_END_BYTES: u64 = (1 << 20) + 2 * BLOCK_BYTES_MAX;

/// The first byte behind the backup of the partition table. Expects a disk that begins as an image, or one in which
/// [`table_difference`](crate::table_difference) finds nothing.
///
/// # Errors
/// The disk cannot be read, or has no partition table.
pub fn table_end(disk: &File) -> io::Result<u64> {
    let mut head = [0; 2 * LBA_BYTES as usize];
    disk.read_exact_at(&mut head, 0)?;
    let end = disk_bytes_by_head(&head);
    end.ok_or_else(|| io::Error::other("the disk has no partition table"))
}

/// Looks for the header of another partition table in the last [`DISK_END_BYTES`] of a disk of so many bytes, at the beginning
/// of each block of 512 bytes. On a medium whose blocks are larger than those of the image, firmware finds no table in the
/// second block. It then takes the one in the last block, and restores the first one from it. Returns what the disk has there.
/// Expects a disk as [`table_end`] does.
///
/// # Errors
/// The disk cannot be read or is shorter, or it has no partition table.
pub fn end_difference(disk: &File, disk_bytes: u64) -> io::Result<Option<String>> {
    let own = table_end(disk)?.saturating_sub(LBA_BYTES);
    let start = disk_bytes.saturating_sub(DISK_END_BYTES) / LBA_BYTES * LBA_BYTES;
    let mut end = vec![0; (disk_bytes - start) as usize];
    disk.read_exact_at(&mut end, start)?;
    let blocks = end.chunks(LBA_BYTES as usize);
    let mut blocks = (start..).step_by(LBA_BYTES as usize).zip(blocks);
    let other = blocks.find(|(at, block)| *at != own && block.starts_with(HEADER_MARK));
    Ok(other.map(|(at, _)| {
        format!(
            "end of the disk: another partition table begins {} bytes before it, by which firmware may start a program from a \
             medium that has larger blocks or ends there; overwrite it with zeros",
            disk_bytes - at
        )
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gpt::GptConfig;
    use gpt::disk::LogicalBlockSize;
    use gpt::partition::Partition;
    use gpt::partition_types::{OperatingSystem, Type};
    use uuid::Uuid;

    use super::*;
    use crate::disk::{self, DISK_BYTES, TYPE_ESP};
    use crate::disk_table::table_difference;

    const BEHIND_BYTES: u64 = 8 << 20;
    const LARGE_BLOCK: u64 = 4096;
    /// Bytes of a block of disks and of CDs.
    const BLOCK_SIZES: [u64; 4] = [512, 1024, 2048, 4096];
    /// Bytes of the footer of a VHD, which a virtual machine does not count as a part of the disk.
    const FOOTER_BYTES: u64 = 512;

    fn longer(bytes: u64) -> File {
        let disk = disk::tests::written(b"program", "a");
        disk.set_len(bytes).expect("sparse");
        disk
    }

    /// A reader of a medium with blocks of [`LARGE_BLOCK`] bytes.
    fn other_reader() -> GptConfig {
        GptConfig::new().logical_block_size(LogicalBlockSize::Lb4096)
    }

    /// The backup of a table for such a medium of so many bytes, whose EFI system partition begins behind the image.
    fn other_backup(bytes: u64) -> Vec<u8> {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(bytes).expect("sparse");
        let config = other_reader().writable(true);
        let table = config.create_from_device(file, Some(Uuid::from_u128(1)));
        let mut table = table.expect("it is long enough");
        let first_lba = DISK_BYTES / LARGE_BLOCK;
        let partition = Partition {
            part_type_guid: Type {
                guid: TYPE_ESP,
                os: OperatingSystem::None,
            },
            part_guid: Uuid::from_u128(2),
            first_lba,
            last_lba: first_lba + 100,
            flags: 0,
            name: "other".to_owned(),
        };
        let updated = table.update_partitions(BTreeMap::from([(1, partition)]));
        updated.expect("one partition");
        let file = table.write().expect("writable");
        // The entries take 16 KiB, and the header a block.
        let mut backup = vec![0; 5 * LARGE_BLOCK as usize];
        let at = bytes - backup.len() as u64;
        file.read_exact_at(&mut backup, at).expect("readable");
        backup
    }

    /// The attack: the image is whole, and a reader of larger blocks finds another EFI system partition behind it, also on a
    /// medium that ends before this file.
    #[test]
    fn a_table_that_a_reader_of_larger_blocks_takes_is_named() {
        let bytes = DISK_BYTES + BEHIND_BYTES;
        let disk = longer(bytes);
        let read = || other_reader().open_from_device(disk.try_clone().expect("ours"));
        let difference = || table_difference(&disk, DISK_BYTES, bytes).expect("readable");
        assert!(
            read().is_err(),
            "the table of the image is for other blocks"
        );
        assert_eq!(difference(), None);
        for earlier in [0, 64 << 10, 1 << 20] {
            let end = bytes - earlier;
            let backup = other_backup(end);
            disk.set_len(end).expect("ours");
            disk.write_all_at(&backup, end - backup.len() as u64)
                .expect("writable");
            let table = read().expect("its backup is valid");
            let first = table.partitions().get(&1).map(|it| it.first_lba);
            assert_eq!(first, Some(DISK_BYTES / LARGE_BLOCK));
            disk.set_len(bytes).expect("sparse");
            let found = difference();
            let found = found.unwrap_or_else(|| panic!("{earlier} bytes before"));
            let expected = format!("begins {} bytes before it", earlier + LARGE_BLOCK);
            assert!(found.contains(&expected), "{found}");
            disk.set_len(DISK_BYTES).expect("ours");
            disk.set_len(bytes).expect("sparse");
            assert_eq!(difference(), None, "{earlier}");
        }
    }

    #[test]
    fn the_last_block_of_each_size_is_looked_at() {
        // A disk with whole blocks of each size, one whose larger blocks have only begun, and one that ends within the
        // smallest block. A medium may also end before the footer of a VHD, or 1 MiB earlier.
        for rest in [0, 1536, 100] {
            let bytes = DISK_BYTES + BEHIND_BYTES + rest;
            let disk = longer(bytes);
            let difference = || end_difference(&disk, bytes).expect("readable");
            assert_eq!(difference(), None, "{rest}");
            let of_sizes = [bytes, bytes - FOOTER_BYTES, bytes - (1 << 20)]
                .into_iter()
                .flat_map(|end| BLOCK_SIZES.map(|size| end / size * size))
                .zip(BLOCK_SIZES.into_iter().cycle())
                .flat_map(|(begun, size)| [begun - size, begun]);
            // And some of the other blocks of the last MiB.
            let others = (bytes / LBA_BYTES * LBA_BYTES - (1 << 20)..bytes).step_by(37 * 512);
            // A block may begin at the end of the disk, and then has no bytes.
            for at in of_sizes.chain(others).filter(|at| *at < bytes) {
                disk.write_all_at(HEADER_MARK, at).expect("writable");
                let found = difference();
                let found = found.unwrap_or_else(|| panic!("{rest}: the block at {at}"));
                let expected = format!("begins {} bytes before it", bytes - at);
                assert!(found.contains(&expected), "{at}: {found}");
                disk.write_all_at(&[0; HEADER_MARK.len()], at)
                    .expect("writable");
            }
            assert_eq!(difference(), None, "{rest}");
        }
    }

    #[test]
    fn the_backup_of_the_disk_s_own_table_is_permitted() {
        // Alone, and with the footer of a VHD behind it.
        for longer_by in [0, FOOTER_BYTES] {
            let bytes = DISK_BYTES + longer_by;
            let disk = longer(bytes);
            assert_eq!(table_end(&disk).expect("readable"), DISK_BYTES);
            assert_eq!(end_difference(&disk, bytes).expect("readable"), None);
        }
        let empty = tempfile::tempfile().expect("a temporary file");
        empty.set_len(DISK_BYTES).expect("sparse");
        assert!(
            end_difference(&empty, DISK_BYTES).is_err(),
            "it has no table"
        );
    }
}
