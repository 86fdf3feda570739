//! Limits of what a machine does for a delta. A delta is signed, and a publisher may still be mistaken, or lose its keys.

/// Bytes that the parts of a program have before they are compressed. A program today has 93 MB of them.
pub const UNPACKED_BYTES_MAX: u64 = 256 << 20;

/// Pieces of a delta. Each may read another place of the disk. [`make_delta`](crate::make_delta) writes
/// short copies as they are, so that every delta has fewer. A binary of which one crate was compiled for another size has
/// 44,000.
pub const PIECES_MAX: u64 = 256 << 10;

/// How many times as many bytes as its file has may be read of the program that runs. A disk reads whole blocks, so short
/// pieces from far places read far more than they copy: pieces of two bytes would read 32 GiB.
pub const READS_OF_PROGRAM_MAX: u64 = 8;

/// Pieces in a group. A machine holds their places in memory.
pub const GROUP_PIECES_MAX: u64 = 8 << 10;

/// Bytes that the pieces of a group make. A machine holds them in memory.
pub const GROUP_BYTES_MAX: u64 = 512 << 10;

/// Compressed frames of a program: it has one, the initial file system.
pub const FRAMES_MAX: u64 = 4;

/// Largest window of the delta's own compression, as a power of two. A machine needs so much memory to read it.
pub const DELTA_WINDOW_LOG_MAX: u32 = 22;

/// Memory that a recipe may take: its window and its tables.
pub const RECIPE_BYTES_MAX: u64 = 16 << 20;

/// Attempts of a match search, as a power of two. It bounds the time for each byte.
pub const RECIPE_SEARCH_LOG_MAX: u8 = 6;

/// Length of a match from which a search ends early. The strategies from greedy on do not look at it.
pub const RECIPE_TARGET_LENGTH_MAX: u16 = 128;
