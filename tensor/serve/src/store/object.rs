//! A stored container with its header read.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use alknet_tensor::{
    ContainerLimits, ContainerReader, FileId, Hash, Meta, TensorError, TensorErrorCode,
};

use crate::error::ServeError;

/// A container, open.
#[derive(Debug)]
pub struct Object {
    id: FileId,
    reader: ContainerReader<File>,
    stamp: ObjectStamp,
    header_hash: Hash,
}

/// What changes when a program writes to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ObjectStamp {
    len: u64,
    modified: (i64, i64),
}

impl ObjectStamp {
    fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Object {
    /// Opens the file and reads its header.
    pub(crate) fn open(
        path: &Path,
        id: FileId,
        limits: &ContainerLimits,
    ) -> Result<Self, ServeError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ServeError::Missing,
            _ => ServeError::io("open a stored file", error),
        })?;
        let look = |error| ServeError::io("look at a stored file", error);
        // Before the header is read: what changes meanwhile shows with the next look.
        let stamp = ObjectStamp::from_metadata(&file.metadata().map_err(look)?);
        let reader = ContainerReader::open(file, limits).map_err(ServeError::Stored)?;
        let header_hash = reader.header_hash().map_err(ServeError::Stored)?;
        Ok(Self {
            id,
            reader,
            stamp,
            header_hash,
        })
    }

    /// BLAKE3 of the file as it was stored.
    #[must_use]
    pub const fn id(&self) -> FileId {
        self.id
    }

    /// What its header says.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        self.reader.meta()
    }

    /// The container.
    #[must_use]
    pub const fn reader(&self) -> &ContainerReader<File> {
        &self.reader
    }

    /// BLAKE3 of the header with the length before it.
    #[must_use]
    pub const fn header_hash(&self) -> Hash {
        self.header_hash
    }

    /// The file is as it was when it was opened.
    ///
    /// # Errors
    /// `E_IO`: another program wrote to it or shortened it.
    pub fn check(&self) -> Result<(), ServeError> {
        let metadata = self.reader.source().metadata();
        let metadata = metadata.map_err(|error| ServeError::io("look at a stored file", error))?;
        if ObjectStamp::from_metadata(&metadata) != self.stamp {
            let what = format!("file {} changed while it was served", self.id);
            return Err(ServeError::Stored(TensorError::new(
                TensorErrorCode::Io,
                what,
            )));
        }
        Ok(())
    }

    /// Whether the file has no name any more: it was removed, and only what opened it before reads it.
    pub(crate) fn is_removed(&self) -> bool {
        let metadata = self.reader.source().metadata();
        metadata.is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Fills `buffer` with the bytes from `at` on.
    pub(crate) fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), ServeError> {
        let read = self.reader.source().read_exact_at(buffer, at);
        let what = || format!("read {} bytes at {at} of file {}", buffer.len(), self.id);
        read.map_err(|error| ServeError::io(what(), error))
    }

    pub(crate) fn into_file(self) -> File {
        self.reader.into_source()
    }
}
