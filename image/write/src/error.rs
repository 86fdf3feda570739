//! Why a disk was not written.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a disk was refused, or was not written to the end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FlashError {
    /// The path cannot be opened, or what the kernel says about it cannot be read.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system starts no thread, which hashes the image while it is written.
    #[error("the system starts no thread to hash the image: {source}")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
    /// The path is something else than a disk.
    #[error("{} is no disk; to write the image to a file, give --to-file", path.display())]
    NotDisk {
        /// The path.
        path: PathBuf,
    },
    /// A file was to be written, and the path is something else.
    #[error("{} is no regular file; leave --to-file out to write to a disk", path.display())]
    NotFile {
        /// The path.
        path: PathBuf,
    },
    /// A configuration was to be written to a file of another user, who could read it.
    #[error("{} belongs to another user, who could read the configuration; name another file", path.display())]
    NotOwn {
        /// The path.
        path: PathBuf,
    },
    /// Another disk is in the place of the one that a person confirmed.
    #[error("{disk} is another disk now: it was {before}, and is {now}; nothing was written")]
    OtherDisk {
        /// The disk's name.
        disk: String,
        /// What named it before the confirmation.
        before: String,
        /// What names it now.
        now: String,
    },
    /// The path is a partition.
    #[error("{partition} is a partition; name its disk {disk}, of which everything is overwritten")]
    Partition {
        /// The partition's name.
        partition: String,
        /// The disk's name.
        disk: String,
    },
    /// The system runs from the disk.
    #[error("the system runs from {disk}: it is mounted at {}", mount_points.join(", "))]
    SystemDisk {
        /// The disk's name.
        disk: String,
        /// Where its file systems are mounted.
        mount_points: Vec<String>,
    },
    /// File systems on the disk are mounted.
    #[error("{disk} is mounted at {}; unmount it first", mount_points.join(", "))]
    Mounted {
        /// The disk's name.
        disk: String,
        /// Where its file systems are mounted.
        mount_points: Vec<String>,
    },
    /// The system swaps to the disk.
    #[error("the system swaps to {}; give 'swapoff' first", devices.join(", "))]
    Swap {
        /// The devices.
        devices: Vec<String>,
    },
    /// Other block devices are made of the disk.
    #[error("{disk} is a part of {}: a volume group, an encrypted volume or a RAID; stop it first", holders.join(", "))]
    Held {
        /// The disk's name.
        disk: String,
        /// The devices that are made of it.
        holders: Vec<String>,
    },
    /// The kernel says that the disk is in use.
    #[error("{disk} is in use by another program or a file system; end it first")]
    Busy {
        /// The disk's name.
        disk: String,
    },
    /// The disk takes no writes.
    #[error("{disk} is read-only; look for a switch on the medium, or 'blockdev --setrw'")]
    ReadOnly {
        /// The disk's name.
        disk: String,
    },
    /// The image does not fit.
    #[error("{disk} is too small: the image needs {needed} bytes, and it has {present}")]
    TooSmall {
        /// The disk's name.
        disk: String,
        /// Bytes of the image; at least so many if the image has no known size.
        needed: u64,
        /// Bytes of the disk.
        present: u64,
    },
    /// The source cannot be read.
    #[error("cannot read the image: {source}")]
    Source {
        /// The reason of the system, of the server or of the decompressor.
        source: io::Error,
    },
    /// The source is no raw disk.
    #[error(
        "the source is {what}, and no disk image; take the file of the form raw, .raw or .raw.zst"
    )]
    NotImage {
        /// What it looks like.
        what: &'static str,
    },
    /// The source has another content than the caller said.
    #[error(
        "the image has the SHA-256 {actual}, and {expected} was asked for; the disk has no partition table"
    )]
    OtherContent {
        /// In lower-case hexadecimal.
        actual: String,
        /// In lower-case hexadecimal, as the caller or the checksum file gave it.
        expected: String,
    },
    /// The image ends early, or is longer than its source said.
    #[error(
        "the image has {actual} bytes, and its {said_by} says {expected}; no partition table was written"
    )]
    OtherLength {
        /// Bytes that came.
        actual: u64,
        /// Bytes that should have come.
        expected: u64,
        /// What says so.
        said_by: &'static str,
    },
    /// The disk refuses a write or a read.
    #[error("{disk}: {what}: {source}; the disk has no valid image now")]
    Device {
        /// The disk's name.
        disk: String,
        /// What was done.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk has other bytes than were written.
    #[error(
        "{disk} does not keep what is written to it ({what}); it has no valid image, and should not be used"
    )]
    ReadBack {
        /// The disk's name.
        disk: String,
        /// What was compared.
        what: &'static str,
    },
    /// The image has no place for a configuration. Nothing was written.
    #[error(
        "the image has no EFI system partition where alknet has it, so it takes no configuration; take the file of the \
         form raw"
    )]
    NoLayout,
    /// The configuration cannot be placed on the disk.
    #[error(
        "cannot place the configuration on {disk}: {source}; the disk has no partition table, and boots nothing"
    )]
    Seed {
        /// The disk's name.
        disk: String,
        source: io::Error,
    },
}
