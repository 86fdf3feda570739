//! Limits of what a client reads. An attacker who controls the server or the file decides about every length in it.

/// Bytes of a root document. One with ten keys has 4 KB; TUF leaves the limit to the client (section 5.3.3).
pub const ROOT_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a timestamp document, which names one other document (section 5.4.1).
pub const TIMESTAMP_BYTES_MAX: u64 = 16 << 10;

/// Bytes of a snapshot document (section 5.5.1).
pub const SNAPSHOT_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a targets document: 16 targets with 4 KiB of changes each have 80 KB (section 5.6.1).
pub const TARGETS_BYTES_MAX: u64 = 256 << 10;

/// Bytes of all metadata in a bundle. A reader holds them in memory.
pub const BUNDLE_METADATA_BYTES_MAX: u64 = 2 << 20;

/// Files of metadata in a bundle: every root, and the four current documents.
pub const BUNDLE_METADATA_FILES_MAX: usize = 300;

/// New roots that a client verifies in one refresh (section 5.3.3 asks for a limit). The next refresh goes on behind them.
pub const ROOT_ROTATIONS_MAX: u64 = 256;

/// Keys of a root document, and signatures of any document. Each costs a verification of 60 µs.
pub const KEYS_MAX: usize = 64;

/// Targets of a release.
pub const TARGETS_MAX: usize = 64;

/// Documents that a snapshot names. This client uses one of them and remembers the versions of all.
pub const SNAPSHOT_FILES_MAX: usize = 64;

/// Bytes of a target's name: with its SHA-256 and a dot it fits into the 100 bytes of a name in a tar header.
pub const TARGET_NAME_BYTES_MAX: usize = 35;

/// Bytes of a target: two of them and a loader fit into the EFI system partition (a third of its 256 MiB).
pub const TARGET_BYTES_MAX: u64 = 89_478_485;

/// Bytes of a block of a delta. The reader of a delta holds one, and nothing of it is used before its SHA-256 was compared.
pub const DELTA_BLOCK_BYTES: usize = 256 << 10;

/// Bytes of the text about the changes of a release.
pub const CHANGES_BYTES_MAX: usize = 4 << 10;

/// Bytes of a short text of a release, such as a board or a version of the kernel.
pub const TEXT_BYTES_MAX: usize = 100;

/// Names of what a release needs of its machine.
pub const NEEDS_MAX: usize = 16;

/// Bytes of such a name.
pub const NEED_BYTES_MAX: usize = 32;

/// Data formats, and measured sections, that a release lists.
pub const LIST_MAX: usize = 64;

/// Bytes of the file that a machine keeps: a root as a JSON string, and the versions seen.
pub const TRUST_BYTES_MAX: u64 = 256 << 10;
