//! The errors of sealed partitions, with what to do about each.

use std::{io, path::PathBuf};

use crate::dm::DmError;

/// Why one copy of a header cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// There is no LUKS2 header.
    #[error("no header")]
    Absent,
    /// The checksum does not match: the copy is damaged or half written.
    #[error("its checksum does not fit")]
    Checksum,
    /// The copy violates the format.
    #[error("{0}")]
    Form(&'static str),
    /// The partition ends within the copy, or the copy cannot be read.
    #[error("it cannot be read")]
    Unreadable,
}

/// Why a sealed partition could not be made, opened or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealedError {
    /// Both copies of the header are unusable.
    #[error(
        "both copies of the LUKS2 header are damaged (first: {primary}; second: {secondary}); \
         restore a backup with `cryptsetup luksHeaderRestore`, or erase the partition"
    )]
    Damaged {
        /// What is wrong with the first copy.
        primary: HeaderError,
        /// What is wrong with the second copy.
        secondary: HeaderError,
    },
    /// The device mapper refused.
    #[error(transparent)]
    Dm(#[from] DmError),
    /// An erasure of the partition was interrupted.
    #[error("the partition was being erased when the power went; erase it again to finish")]
    Erasing,
    /// A formatting of the partition was interrupted.
    #[error("the partition was being formatted when the power went; format it again")]
    HalfFormatted,
    /// The JSON no longer fits into the header.
    #[error("the LUKS2 header is full; remove tokens or key slots with cryptsetup")]
    HeaderFull,
    /// Reading or writing the partition failed.
    #[error("cannot {what} the sealed partition: {source}; check the disk and its cabling")]
    Io {
        /// The operation, as a verb.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel's keyring refused the volume key.
    #[error(
        "the kernel's keyring refuses the volume key: {0}; the kernel needs CONFIG_KEYS, and root \
         free quota of keys (/proc/key-users)"
    )]
    Keyring(io::Error),
    /// The key slot is the only one left that opens the data.
    #[error("key slot {0} is the last that opens the data and stays")]
    LastSlot(u32),
    /// The operating system has no random numbers.
    #[error("the kernel gave no random numbers; nothing was written")]
    NoRandomness,
    /// The kernel made no device node.
    #[error("there is no {0}; mount a devtmpfs at /dev, or name a folder for device nodes")]
    NoNode(PathBuf),
    /// There is no room for the area of another key slot.
    #[error("no room is left for a key slot; remove an unneeded one with cryptsetup")]
    NoRoom,
    /// There is no such key slot.
    #[error("the partition has no key slot {0}")]
    NoSlot(u32),
    /// The storage is not a block device.
    #[error("only a block device can be mapped; attach a file with losetup first")]
    NotABlockDevice,
    /// There is no LUKS2 header.
    #[error("the partition is not sealed: it has no LUKS2 header")]
    NotSealed,
    /// The phrase is too long or empty.
    #[error("a phrase has 1 to 512 bytes")]
    Phrase,
    /// This program cannot open this kind of key slot.
    #[error("key slot {slot} cannot be opened here: {why}; cryptsetup can")]
    SlotUnsupported {
        /// Number of the key slot.
        slot: u32,
        /// The reason.
        why: &'static str,
    },
    /// The partition is too small.
    #[error("the partition has {0} bytes; sealed, it needs at least 17 MiB")]
    TooSmall(u64),
    /// The partition uses a LUKS2 feature that this program does not support.
    #[error("the sealed partition cannot be used here: {0}; cryptsetup can")]
    Unsupported(&'static str),
    /// The volume key belongs to another partition.
    #[error("the volume key does not belong to this partition")]
    WrongKey,
    /// The phrase does not open the key slot.
    #[error("the phrase does not open key slot {0}")]
    WrongPhrase(u32),
}

impl SealedError {
    /// Wraps an I/O error, for `map_err`.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
