//! An object whose file is open.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use blake3::Hash;

use crate::error::ObjectError;

/// The metadata that change when a program writes to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectStamp {
    len: u64,
    modified: (i64, i64),
}

impl ObjectStamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn read(file: &File) -> io::Result<Self> {
        Ok(Self::from_metadata(&file.metadata()?))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.len
    }
}

/// An object, its open file, and the stamp that the file had when it was opened.
#[derive(Clone, Copy, Debug)]
pub struct ObjectView<'f> {
    hash: Hash,
    file: &'f File,
    stamp: ObjectStamp,
}

impl<'f> ObjectView<'f> {
    /// Views an open file as the object of this hash.
    #[must_use]
    pub const fn new(hash: Hash, file: &'f File, stamp: ObjectStamp) -> Self {
        Self { hash, file, stamp }
    }

    /// BLAKE3 of the object as it was stored.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Bytes that the file had when it was opened.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.stamp.len
    }

    /// Checks that the file is unchanged since it was opened.
    ///
    /// # Errors
    /// [`ObjectError::Changed`]; [`ObjectError::Io`].
    pub fn check(&self) -> Result<(), ObjectError> {
        let stamp = ObjectStamp::read(self.file);
        let what = || format!("look at object {}", self.hash);
        match stamp.map_err(|error| ObjectError::io(what(), error))? {
            stamp if stamp == self.stamp => Ok(()),
            _ => Err(ObjectError::Changed(self.hash)),
        }
    }

    /// Whether the object was removed, so that only those that opened it before still read it.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Fills `buffer` with the bytes from `at` on, which are not verified.
    ///
    /// # Errors
    /// [`ObjectError::Io`], also if the file has fewer bytes.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> Result<(), ObjectError> {
        let read = self.file.read_exact_at(buffer, at);
        let what = || {
            format!(
                "read {} bytes at {at} of object {}",
                buffer.len(),
                self.hash
            )
        };
        read.map_err(|error| ObjectError::io(what(), error))
    }
}
