//! The limits of a folder of objects.

/// Bytes of a chunk of BLAKE3, the unit of a selection.
pub const CHUNK_BYTES: u64 = 1 << 10;
/// Bytes of a group, the unit of verification: sixteen chunks of BLAKE3.
pub const GROUP_BYTES: u64 = 16 << 10;
/// Bytes that are read at once; a response of a node has two such blocks in memory at most. A block of verified bytes has at
/// most this many, and a group and its hashes more.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Hashes of groups that a staged object keeps in memory, 256 KiB for 128 MiB of content. More of them go to an unnamed
/// file in the staging folder.
pub const GROUP_HASHES: usize = 8192;
/// Groups below the largest part of an outboard that is written at once, as a block of 64 KiB.
pub const PAIR_BLOCK_GROUPS: u64 = 1024;
