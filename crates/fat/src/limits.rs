//! Limits of what a volume may ask of its reader. A volume beyond one is refused with
//! [`FatError::Limit`](crate::FatError::Limit), before anything of it is changed.

/// Largest cluster in bytes: the specification has 32 KiB, and 64 KiB on some systems.
pub const CLUSTER_BYTES_MAX: u32 = 64 << 10;

/// Slots of one folder, of 32 bytes each: the specification's 2 MiB. A name of 255 characters takes 21 slots.
pub const FOLDER_SLOTS_MAX: u32 = 65_536;

/// Parts of a path, and levels of folders of a volume that is checked: an EFI system partition has four.
pub const FOLDER_DEPTH_MAX: usize = 16;

/// Files and folders of a volume that is checked: each takes 1 KiB of memory at most.
pub const TREE_ENTRIES_MAX: usize = 16_384;

/// Bytes of all folders together of a volume that is checked, so that many folders without entries cost no more time
/// than many entries.
pub const TREE_FOLDER_BYTES_MAX: u64 = 32 << 20;

/// Clusters of a volume that is checked, repaired or written: 8 GiB with the 4 KiB that `mkfs.vfat` chooses there. Each
/// takes 14 bytes of memory, and a volume of 256 MiB from [`create`](crate::create()) has 131,000.
pub const CHECK_CLUSTERS_MAX: u32 = 1 << 21;

/// Pieces of one file that is opened, of 16 bytes of memory each.
pub const FILE_EXTENTS_MAX: usize = 65_536;

/// Findings that a report lists. It counts the others.
pub const FINDINGS_MAX: usize = 256;

/// Rounds of ending chains or dropping names, each with a look at the whole volume. Damage by one power cut takes three.
pub const REPAIR_ROUNDS_MAX: usize = 16;

/// Bytes that are read from or written to the device at once. A multiple of each size of a cluster.
pub const TRANSFER_BYTES: usize = 128 << 10;
