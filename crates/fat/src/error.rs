//! Errors of the crate.

use std::io;

use thiserror::Error;

use crate::report::ChainDamage;

/// Why a volume cannot be read, repaired or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FatError {
    /// The device failed. The caller knows its path.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done, for a person: a verb and its object.
        doing: &'static str,
        /// The error of the device.
        source: io::Error,
    },
    /// The first sector describes no FAT volume, or one that contradicts itself or its device.
    #[error("the device has no usable FAT volume: {0}")]
    NotFat(&'static str),
    /// The volume is sound and of a kind that this operation does not serve.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Systems may find different files on the volume.
    #[error("not every system reads the FAT volume in the same way: {what}")]
    Ambiguous {
        /// What they may read differently.
        what: String,
    },
    /// The volume is larger than what [`limits`](crate::limits) allow. Nothing was changed.
    #[error("the volume has more {what} than the {limit} that are allowed")]
    Limit {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A file or a folder has a chain that does not fit it.
    #[error("{path:?} is damaged: {damage}")]
    Damaged {
        /// Path within the volume.
        path: String,
        /// What is wrong with its chain.
        damage: ChainDamage,
    },
    /// The path leads to no entry.
    #[error("the volume has no {path:?}")]
    NotFound {
        /// The path that was asked for.
        path: String,
    },
    /// The path leads to a folder, and a file is wanted.
    #[error("{path:?} is a folder")]
    NotAFile {
        /// The path that was asked for.
        path: String,
    },
    /// The path leads through a file, or to one, and a folder is wanted.
    #[error("{path:?} is not a folder")]
    NotAFolder {
        /// The path that was asked for.
        path: String,
    },
    /// A part of the path is no short name, and only those are written.
    #[error(
        "{path:?} cannot be written: each part has up to eight characters and an extension of up to three, of A to Z, 0 \
         to 9 and _"
    )]
    LongPath {
        /// The path that was asked for.
        path: String,
    },
    /// The file is larger than the caller's limit, or than FAT allows.
    #[error("the file has {size} bytes, {limit} at most")]
    TooLarge {
        /// Size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The free clusters are too few. Nothing was changed.
    #[error("the volume is full: {needed} bytes are needed, {free} are free")]
    Full {
        /// Bytes of the clusters that are needed.
        needed: u64,
        /// Bytes of the free clusters.
        free: u64,
    },
    /// The volume is damaged where it was to be written. Nothing was changed.
    #[error("the volume has to be repaired first: {0}")]
    NeedsRepair(&'static str),
    /// The content was shorter or longer than announced. The file is the one of before.
    #[error("{given} bytes came, {announced} were announced")]
    Length {
        /// Bytes that came, at least.
        given: u64,
        /// Bytes that were announced.
        announced: u64,
    },
    /// The device has other bytes than those that were written. The file is the one of before.
    #[error("the device did not keep {what} that was written")]
    NotKept {
        /// What was written.
        what: &'static str,
    },
}

impl FatError {
    /// For `map_err` of a call of the device.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// The kind is that of the device's error, or the nearest one.
impl From<FatError> for io::Error {
    fn from(error: FatError) -> Self {
        use io::ErrorKind;

        let kind = match &error {
            FatError::Io { source, .. } => source.kind(),
            FatError::NotFat(_)
            | FatError::Ambiguous { .. }
            | FatError::Damaged { .. }
            | FatError::NeedsRepair(_)
            | FatError::NotKept { .. } => ErrorKind::InvalidData,
            FatError::Unsupported(_) => ErrorKind::Unsupported,
            FatError::NotFound { .. } => ErrorKind::NotFound,
            FatError::NotAFile { .. } => ErrorKind::IsADirectory,
            FatError::NotAFolder { .. } => ErrorKind::NotADirectory,
            FatError::TooLarge { .. } => ErrorKind::FileTooLarge,
            FatError::Full { .. } => ErrorKind::StorageFull,
            FatError::Limit { .. } | FatError::LongPath { .. } | FatError::Length { .. } => {
                ErrorKind::InvalidInput
            }
        };
        Self::new(kind, error)
    }
}
