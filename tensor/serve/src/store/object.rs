//! A stored container with its header read.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use alknet_tensor::{
    ContainerLimits, ContainerReader, FileId, Hash, Meta, TensorError, TensorErrorCode,
};

use crate::error::ServeError;

/// An open container.
#[derive(Debug)]
pub struct Object {
    id: FileId,
    reader: ContainerReader<File>,
    stamp: ObjectStamp,
    header_hash: Hash,
}

/// The metadata that change when a program writes to a file.
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
            // The file may have been removed after its path was resolved.
            io::ErrorKind::NotFound => ServeError::Missing,
            _ => ServeError::io("open a stored file", error),
        })?;
        let unread = |error| ServeError::io("look at a stored file", error);
        // The stamp is taken before the header is read, so `check` finds a change that happens in
        // between.
        let stamp = ObjectStamp::from_metadata(&file.metadata().map_err(unread)?);
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

    /// The parsed header.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        self.reader.meta()
    }

    /// The container.
    #[must_use]
    pub const fn reader(&self) -> &ContainerReader<File> {
        &self.reader
    }

    /// BLAKE3 of the header with its length prefix.
    #[must_use]
    pub const fn header_hash(&self) -> Hash {
        self.header_hash
    }

    /// Checks that the file is unchanged since it was opened.
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

    /// Whether the file was removed, so that only responses that opened it before still read it.
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
