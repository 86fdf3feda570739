//! What files take of the disk.

/// Bytes of a block of the file system: those of data disks have 4 KiB.
const FILE_SYSTEM_BLOCK_BYTES: u64 = 4 << 10;
/// Bytes that count for a file or folder beside its content, for its name in the folder above and its inode. ext4 has
/// an inode for each 16 KiB: a store of the shortest files in half of the disk has a third of the inodes, and the files
/// that administrators store may have half of them.
const ENTRY_BYTES: u64 = 20 << 10;

/// Bytes that a file of this length takes of the disk: whole blocks of 4 KiB, and 20 KiB for its entry and inode. Holes
/// of a sparse file count as content.
#[must_use]
pub const fn bytes_on_disk(bytes: u64) -> u64 {
    bytes
        .div_ceil(FILE_SYSTEM_BLOCK_BYTES)
        .saturating_mul(FILE_SYSTEM_BLOCK_BYTES)
        .saturating_add(ENTRY_BYTES)
}
