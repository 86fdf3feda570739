//! The files of outboards.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blake3::Hash;
use tempfile::NamedTempFile;

use crate::disk::ObjectDisk;
use crate::tree_files::TreeFiles;

/// Which outboards a folder of objects has. Deleting outboards is always safe: a reader computes a missing one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboardPolicy {
    /// Those that readers wanted, also of parts of objects.
    Cached {
        /// Outboards at most. Those that no reader has used for longest give way.
        count_max: usize,
        /// Bytes that they take of the disk at most, unless there is only one.
        bytes_max: u64,
    },
    /// One for each object of more than a group, which is durable when the object is placed.
    Placed,
}

/// The folder of outboards.
#[derive(Debug)]
pub(crate) struct OutboardFolder {
    folder: PathBuf,
    cache: Option<Mutex<TreeFiles>>,
    disk: Arc<dyn ObjectDisk>,
}

/// The name of the outboard of these bytes of an object.
pub(crate) fn outboard_name(hash: &Hash, range: &Range<u64>) -> String {
    format!("{hash}-{}-{}", range.start, range.end)
}

impl OutboardFolder {
    /// Reads the folder, and removes what is beyond the limits.
    pub(crate) fn open(
        folder: PathBuf,
        policy: OutboardPolicy,
        disk: Arc<dyn ObjectDisk>,
    ) -> io::Result<Self> {
        let cache = match policy {
            OutboardPolicy::Cached {
                count_max,
                bytes_max,
            } => Some(TreeFiles::open(folder.clone(), count_max, bytes_max)?),
            OutboardPolicy::Placed => None,
        };
        Ok(Self {
            folder,
            cache: cache.map(Mutex::new),
            disk,
        })
    }

    /// Whether each object of more than a group has its outboard from the start.
    pub(crate) const fn is_placed(&self) -> bool {
        self.cache.is_none()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The file that has the outboard of a whole object of this many bytes, if it has one.
    pub(crate) fn path_of(&self, hash: &Hash, bytes: u64) -> PathBuf {
        self.path(&outboard_name(hash, &(0..bytes)))
    }

    /// Opens an outboard, which counts as used.
    pub(crate) fn find(&self, name: &str) -> io::Result<File> {
        match self.cache() {
            Some(mut cache) => cache.find(name),
            None => File::open(self.path(name)),
        }
    }

    /// Gives an outboard its name.
    pub(crate) fn add(&self, name: String, new: NamedTempFile) -> io::Result<File> {
        if let Some(mut cache) = self.cache() {
            // The file is not synced: what a power cut damaged is refused, removed and computed again.
            return cache.add(name, new);
        }
        self.disk.sync_data(new.as_file())?;
        let (file, staged) = new.into_parts();
        self.disk.rename(&staged, &self.path(&name))?;
        // The temporary name is gone, and may be the one of another file by now.
        staged.keep()?;
        self.disk.sync_folder(&self.folder)?;
        Ok(file)
    }

    /// Removes the outboard of this name, if there is one.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        if let Some(mut cache) = self.cache() {
            return cache.remove(name);
        }
        match self.disk.remove(&self.path(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the outboards of an object of this many bytes.
    pub(crate) fn remove_of(&self, hash: &Hash, bytes: u64) -> io::Result<()> {
        if let Some(mut cache) = self.cache() {
            return cache.remove_of(hash);
        }
        self.remove(&outboard_name(hash, &(0..bytes)))
    }

    fn cache(&self) -> Option<MutexGuard<'_, TreeFiles>> {
        // A panic while the lock is held leaves the counters correct.
        let cache = self.cache.as_ref()?;
        Some(cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
