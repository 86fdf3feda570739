//! Where the partition table of a disk ends, and whether firmware may find another table behind it (UEFI 2.10 section
//! 5.3.2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::LBA_BYTES;
use crate::disk_table::disk_bytes_by_head;

/// What the header of a partition table begins with.
const HEADER_MARK: &[u8; 8] = b"EFI PART";
/// Bytes of a block of disks and of CDs.
const BLOCK_SIZES: [u64; 4] = [512, 1024, 2048, 4096];
/// Bytes of the footer of a VHD, which a virtual machine does not count as a part of the disk.
const FOOTER_BYTES: u64 = 512;

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

/// Looks for the header of another partition table in the last block of a disk of so many bytes. On a medium whose blocks
/// are larger than those of the image, firmware finds no table in the second block. It then takes the one in the last block,
/// and restores the first one from it. Returns what the disk has there. Expects a disk as [`table_end`] does.
///
/// A virtual machine may leave out the footer of a VHD, or count a last block of which the file has only the beginning.
///
/// # Errors
/// The disk cannot be read, or has no partition table.
pub fn end_difference(disk: &File, disk_bytes: u64) -> io::Result<Option<String>> {
    let own = table_end(disk)?.saturating_sub(LBA_BYTES);
    for end in [disk_bytes, disk_bytes.saturating_sub(FOOTER_BYTES)] {
        for size in BLOCK_SIZES {
            let begun = end / size * size;
            for header_at in [begun.saturating_sub(size), begun] {
                if header_at != own && is_header(disk, header_at)? {
                    return Ok(Some(format!(
                        "bytes behind the backup of the partition table: the last block of {size} bytes begins as \
                         another table, by which firmware may start a program from a medium with such blocks; \
                         overwrite it with zeros"
                    )));
                }
            }
        }
    }
    Ok(None)
}

/// Whether the header of a partition table begins there.
fn is_header(disk: &File, at: u64) -> io::Result<bool> {
    let mut mark = [0; HEADER_MARK.len()];
    match disk.read_exact_at(&mut mark, at) {
        Ok(()) => Ok(mark == *HEADER_MARK),
        // The disk ends before it.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
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

    /// The attack: the image is whole, and a reader of larger blocks finds another EFI system partition behind it.
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
        let backup = other_backup(bytes);
        disk.write_all_at(&backup, bytes - backup.len() as u64)
            .expect("writable");
        let table = read().expect("its backup is valid");
        let first = table.partitions().get(&1).map(|it| it.first_lba);
        assert_eq!(first, Some(DISK_BYTES / LARGE_BLOCK));
        let found = difference().expect("the last block is not looked at");
        assert!(found.contains("last block of 4096 bytes"), "{found}");
    }

    #[test]
    fn the_last_block_of_each_size_is_looked_at() {
        // A disk with whole blocks of each size, one whose larger blocks have only begun, and one that ends within the
        // smallest block.
        for rest in [0, 1536, 100] {
            let bytes = DISK_BYTES + BEHIND_BYTES + rest;
            let disk = longer(bytes);
            let difference = || end_difference(&disk, bytes).expect("readable");
            assert_eq!(difference(), None, "{rest}");
            for (end, size) in [bytes, bytes - FOOTER_BYTES]
                .into_iter()
                .flat_map(|end| BLOCK_SIZES.map(|size| (end, size)))
            {
                let begun = end / size * size;
                // A block may begin at the end of the disk, and then has no bytes.
                for at in [begun - size, begun].into_iter().filter(|at| *at < bytes) {
                    disk.write_all_at(HEADER_MARK, at).expect("writable");
                    let found = difference();
                    let found = found.unwrap_or_else(|| panic!("{rest}: {size} bytes at {at}"));
                    assert!(found.contains("begins as another table"), "{found}");
                    disk.write_all_at(&[0; HEADER_MARK.len()], at)
                        .expect("writable");
                }
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
