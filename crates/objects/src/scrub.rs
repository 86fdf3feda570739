//! The check of stored objects against their hashes: a disk may return other bytes than it was given, or none.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;

use blake3::Hash;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::disk::open_object;
use crate::error::ObjectError;
use crate::folder::ObjectFolder;
use crate::limits::BLOCK_BYTES;
use crate::list::ObjectCursor;

/// A check of all objects under way. It holds one open file and one open folder.
#[derive(Debug, Default)]
pub struct ObjectScrub {
    cursor: ObjectCursor,
    open: Option<OpenedFile>,
}

/// What a step of a check has read.
#[derive(Debug)]
pub struct ScrubStep {
    /// Bytes that were read.
    pub bytes: u64,
    /// The object, if it was read to its end.
    pub checked: Option<CheckedObject>,
}

/// An object that was read to its end.
#[derive(Debug)]
pub struct CheckedObject {
    /// BLAKE3 of the object as it was stored.
    pub hash: Hash,
    /// What is wrong with it. An object that was removed meanwhile is not damaged.
    pub damage: Option<ObjectDamage>,
}

/// What is wrong with an object.
#[derive(Debug)]
pub enum ObjectDamage {
    /// Its bytes have another hash.
    OtherBytes,
    /// The system cannot read it.
    Unreadable(io::Error),
}

#[derive(Debug)]
struct OpenedFile {
    hash: Hash,
    file: File,
    hasher: blake3::Hasher,
    /// Bytes that are still to be read at most.
    left: u64,
}

impl ObjectFolder {
    /// Reads at most `bytes` bytes more of one object, from the disk and not from the kernel's cache, and compares each
    /// whole object with its hash. Returns `None` when all objects were read. Changes nothing: a damaged object stays until
    /// it is removed, or stored again. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`]: the folder cannot be read.
    pub fn scrub(
        &self,
        scrub: &mut ObjectScrub,
        bytes: u64,
    ) -> Result<Option<ScrubStep>, ObjectError> {
        self.scrub_step(scrub, bytes, |_| Some(None))
    }

    /// The same where the caller knows the sizes of the objects. One of another length is damaged and is not read: another
    /// program can make a file of 16 TiB with one call. One without a size is left out.
    ///
    /// # Errors
    /// [`ObjectError::Io`]: the folder cannot be read.
    pub fn scrub_sized(
        &self,
        scrub: &mut ObjectScrub,
        bytes: u64,
        mut size_of: impl FnMut(&Hash) -> Option<u64>,
    ) -> Result<Option<ScrubStep>, ObjectError> {
        self.scrub_step(scrub, bytes, |hash| size_of(hash).map(Some))
    }

    /// `size_of` says whether an object is read, and its size if that is known.
    fn scrub_step(
        &self,
        scrub: &mut ObjectScrub,
        bytes: u64,
        size_of: impl FnOnce(&Hash) -> Option<Option<u64>>,
    ) -> Result<Option<ScrubStep>, ObjectError> {
        let unread = |checked| Ok(Some(ScrubStep { bytes: 0, checked }));
        let mut opened = match scrub.open.take() {
            Some(opened) => opened,
            None => match self.open_next(&mut scrub.cursor)? {
                None => return Ok(None),
                Some((hash, Ok(file))) => match size_of(&hash) {
                    None => return unread(None),
                    Some(size) => match OpenedFile::with_size(hash, file, size) {
                        Ok(opened) => opened,
                        Err(damage) => {
                            let damage = Some(damage);
                            return unread(Some(CheckedObject { hash, damage }));
                        }
                    },
                },
                Some((hash, Err(error))) => {
                    let damage = Some(ObjectDamage::Unreadable(error));
                    return unread(Some(CheckedObject { hash, damage }));
                }
            },
        };
        let (read, failed) = match opened.read(bytes) {
            Ok(read) => (read, None),
            Err(error) => (0, Some(error)),
        };
        let is_over = failed.is_some() || read < bytes;
        let checked = match is_over {
            true => Some(opened.finish(failed)),
            false => {
                scrub.open = Some(opened);
                None
            }
        };
        Ok(Some(ScrubStep {
            bytes: read,
            checked,
        }))
    }

    /// Reads an object from the disk, and compares it with its hash. Changes nothing. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn verify(&self, hash: &Hash) -> Result<CheckedObject, ObjectError> {
        let hash = *hash;
        let mut opened = match open_object(&self.path(&hash)) {
            Ok(file) => OpenedFile::new(hash, file),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ObjectError::Missing(hash));
            }
            Err(error) => {
                let damage = Some(ObjectDamage::Unreadable(error));
                return Ok(CheckedObject { hash, damage });
            }
        };
        let failed = opened.read(u64::MAX).err();
        Ok(opened.finish(failed))
    }

    /// Opens the next object of a list.
    fn open_next(
        &self,
        cursor: &mut ObjectCursor,
    ) -> Result<Option<(Hash, io::Result<File>)>, ObjectError> {
        loop {
            // Not its size: what cannot be looked at is damaged, and does not end the check.
            let Some(hash) = self.next_hash(cursor)? else {
                return Ok(None);
            };
            match open_object(&self.path(&hash)) {
                // It was removed after the folder was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => return Ok(Some((hash, opened))),
            }
        }
    }
}

impl OpenedFile {
    fn new(hash: Hash, file: File) -> Self {
        // The kernel drops what it has of the file, so that the disk is read. Where it does not, the check sees the
        // memory of the kernel, which is still worth a comparison.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Self {
            hash,
            file,
            hasher: blake3::Hasher::new(),
            left: u64::MAX,
        }
    }

    /// The same, if the file has the length that the caller expects.
    fn with_size(hash: Hash, file: File, size: Option<u64>) -> Result<Self, ObjectDamage> {
        let mut opened = Self::new(hash, file);
        if let Some(size) = size {
            let found = opened.file.metadata().map_err(ObjectDamage::Unreadable)?;
            if found.len() != size {
                return Err(ObjectDamage::OtherBytes);
            }
            // One byte more, which a file that grows meanwhile has.
            opened.left = size.saturating_add(1);
        }
        Ok(opened)
    }

    /// Reads at most this many bytes. Returns fewer only at the end of the file, or of what is to be read of it.
    fn read(&mut self, bytes: u64) -> io::Result<u64> {
        let mut block = vec![0; BLOCK_BYTES];
        let mut done = 0;
        while done < bytes && self.left > 0 {
            let most = usize::try_from((bytes - done).min(self.left)).unwrap_or(usize::MAX);
            let read = self.file.read(&mut block[..most.min(BLOCK_BYTES)])?;
            if read == 0 {
                break;
            }
            self.hasher.update(&block[..read]);
            done += read as u64;
            self.left -= read as u64;
        }
        Ok(done)
    }

    fn finish(self, failed: Option<io::Error>) -> CheckedObject {
        // The kernel need not keep in memory what no client asked for.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        // A file that was removed meanwhile is damaged no more.
        let is_removed = self.file.metadata().is_ok_and(|about| about.nlink() == 0);
        let damage = match failed {
            _ if is_removed => None,
            Some(error) => Some(ObjectDamage::Unreadable(error)),
            None if self.hasher.finalize() != self.hash => Some(ObjectDamage::OtherBytes),
            None => None,
        };
        CheckedObject {
            hash: self.hash,
            damage,
        }
    }
}

impl fmt::Display for ObjectDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherBytes => f.write_str("other bytes"),
            Self::Unreadable(error) => error.fmt(f),
        }
    }
}
