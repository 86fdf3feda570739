//! Free space: what the store leaves of it, and the file that it gives back when the disk is full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::quarantine;
use super::{StoreDb, WriteTransaction};
use crate::error::StoreError;
use crate::limits::{RESERVE_BYTES_MIN, RESERVE_FILE_BYTES, RESERVE_PERCENT};

/// Suffix of the file that keeps room for deletions.
const RESERVE: &str = "-reserve";

/// The reserve is at most this part of the file system: on one of 64 MiB the store could write nothing otherwise.
const RESERVE_DIVISOR_MIN: u64 = 4;

/// Bytes of one write where the file system cannot allocate without writing.
const ZEROS: usize = 64 << 10;

/// Room on the file system of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpace {
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes that this process can still use.
    pub free: u64,
}

impl StoreSpace {
    /// Bytes that the store leaves free: 5 % of the file system and at least 64 MiB, but at most a quarter of it.
    #[must_use]
    pub fn reserve(self) -> u64 {
        let share = (self.total / 100).saturating_mul(RESERVE_PERCENT);
        let wanted = share.max(RESERVE_BYTES_MIN);
        wanted.min(self.total / RESERVE_DIVISOR_MIN)
    }

    /// Whether only writes that free something are taken.
    #[must_use]
    pub fn is_low(self) -> bool {
        self.free < self.reserve()
    }

    /// Whether this many further bytes fit above the reserve.
    #[must_use]
    pub fn has_room_for(self, bytes: u64) -> bool {
        self.free >= self.reserve().saturating_add(bytes)
    }
}

/// Where the store learns how much room there is.
pub trait SpaceSource: Send + Sync + 'static {
    /// Room on the file system of this folder.
    ///
    /// # Errors
    /// The system cannot tell.
    fn measure(&self, folder: &Path) -> io::Result<StoreSpace>;
}

/// `statvfs` of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemSpaceSource;

impl SpaceSource for SystemSpaceSource {
    fn measure(&self, folder: &Path) -> io::Result<StoreSpace> {
        // The folder of a bare name is the one that the process is in.
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let found = statvfs(folder)?;
        // Not `f_bfree`: the blocks that the file system keeps for root may not be ours.
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(StoreSpace {
            total: bytes(found.f_blocks),
            free: bytes(found.f_bavail),
        })
    }
}

/// The look at the free space that the writer and the store share.
pub(super) struct SpaceWatch {
    source: Arc<dyn SpaceSource>,
    folder: PathBuf,
    reserve: PathBuf,
}

impl SpaceWatch {
    pub(super) fn new(path: &Path, source: Arc<dyn SpaceSource>) -> Self {
        Self {
            source,
            folder: path.parent().unwrap_or(path).to_owned(),
            reserve: quarantine::with(path, RESERVE),
        }
    }

    pub(super) fn measure(&self) -> io::Result<StoreSpace> {
        self.source.measure(&self.folder)
    }

    /// Whether writes that grow the store are to be refused. Gives the reserve file back when even deletions may fail.
    pub(super) fn check_low(&self) -> bool {
        match self.measure() {
            Ok(space) => {
                if space.free < RESERVE_FILE_BYTES {
                    self.free_reserve();
                }
                space.is_low()
            }
            // SQLite itself refuses what does not fit. A file system that does not answer must not
            // stop the store.
            Err(_) => false,
        }
    }

    fn free_reserve(&self) {
        match fs::remove_file(&self.reserve) {
            Ok(()) => tracing::warn!("the disk is full: the store gave back its reserve file"),
            // Given back before, or never made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "the reserve file cannot be removed"),
        }
    }

    /// Makes the reserve file if it is missing. Returns whether it is there.
    fn make_reserve(&self) -> Result<bool, StoreError> {
        match fs::metadata(&self.reserve) {
            Ok(found) if found.len() >= RESERVE_FILE_BYTES => return Ok(true),
            // A shorter one is what a power cut left of it.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        // Not out of the reserve itself: the file would take the room that deletions need.
        if !self.measure()?.has_room_for(RESERVE_FILE_BYTES) {
            return Ok(false);
        }
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&self.reserve)?;
        let allocated = allocate(&mut file);
        if allocated.is_err() {
            // Half of it helps no deletion, and the room may be what is missing.
            fs::remove_file(&self.reserve).ok();
        }
        allocated?;
        Ok(true)
    }
}

/// Takes the blocks of the reserve file.
fn allocate(file: &mut File) -> io::Result<()> {
    match fallocate(&*file, FallocateFlags::empty(), 0, RESERVE_FILE_BYTES) {
        Ok(()) => {}
        // A length alone would be a hole, which keeps no room.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; ZEROS];
            for _ in 0..RESERVE_FILE_BYTES / ZEROS as u64 {
                file.write_all(&zeros)?;
            }
        }
        Err(error) => return Err(error.into()),
    }
    file.sync_all()
}

impl StoreDb {
    /// Room on the file system of the store. Asks the system, and does not block on the disk.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn space(&self) -> Result<StoreSpace, StoreError> {
        Ok(self.inner.space.measure()?)
    }

    /// Whether this many further bytes fit above the reserve. Callers ask before they write content beside the file of
    /// names. Deletions and the garbage collection do not ask.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if they do not fit.
    pub fn check_space(&self, bytes: u64) -> Result<(), StoreError> {
        if self.space()?.has_room_for(bytes) {
            Ok(())
        } else {
            Err(StoreError::NoSpace)
        }
    }

    /// Makes the reserve file of [`RESERVE_FILE_BYTES`] if it is missing and there is room for it. The store gives it back
    /// by itself when the disk is full. Blocks on the disk. Returns whether the file is there.
    ///
    /// # Errors
    /// The file system refuses the file.
    pub fn keep_reserve(&self) -> Result<bool, StoreError> {
        self.inner.space.make_reserve()
    }
}

impl WriteTransaction<'_> {
    /// Refuses a job that grows the store while there is less room than the reserve. Jobs that free something do not ask.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`].
    pub fn check_space(&self) -> Result<(), StoreError> {
        if self.is_space_low() {
            return Err(StoreError::NoSpace);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{ChangeRequest, FileContent, NewBucket, TreeChange};
    use crate::testing::ScratchStore;

    const GIB: u64 = 1 << 30;

    fn space(total: u64, free: u64) -> StoreSpace {
        StoreSpace { total, free }
    }

    #[test]
    fn the_reserve_is_a_share_with_a_floor_and_a_ceiling() {
        assert_eq!(space(100 * GIB, 0).reserve(), 5 * GIB);
        assert_eq!(space(GIB, 0).reserve(), 64 << 20);
        assert_eq!(space(64 << 20, 0).reserve(), 16 << 20);
        assert!(space(GIB, (64 << 20) - 1).is_low());
        assert!(!space(GIB, 64 << 20).is_low());
        assert!(space(GIB, 65 << 20).has_room_for(1 << 20));
        assert!(!space(GIB, 65 << 20).has_room_for((1 << 20) + 1));
    }

    #[test]
    fn below_the_reserve_puts_are_refused_and_deletions_are_not() {
        let store = ScratchStore::new();
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let (_, main) = store.write(move |tx| tx.create_bucket(&new)).expect("room");
        let content = FileContent::new(crate::hash::ContentHash::new([1; 32]), 10);
        let put = |path: &str| {
            let change = TreeChange::put(path.parse().expect("a path"), content);
            let request = ChangeRequest::new(main.id, "alice", change);
            store.write(move |tx| tx.apply(&request))
        };
        put("/a").expect("room");
        store.space.set_free(1 << 20);
        assert_eq!(put("/b"), Err(StoreError::NoSpace));
        assert_eq!(store.db().check_space(0), Err(StoreError::NoSpace));
        let delete = TreeChange::delete("/a".parse().expect("a path"));
        let request = ChangeRequest::new(main.id, "alice", delete);
        store.write(move |tx| tx.apply(&request)).expect("allowed");
        store.write(|tx| tx.purge(10)).expect("allowed");
        store.space.set_free(GIB);
        put("/b").expect("room");
    }

    #[test]
    fn the_reserve_file_is_given_back_when_the_disk_is_full() {
        let store = ScratchStore::new();
        let file = quarantine::with(&store.path, RESERVE);
        assert_eq!(store.db().keep_reserve(), Ok(true));
        assert_eq!(
            fs::metadata(&file).expect("a file").len(),
            RESERVE_FILE_BYTES
        );
        // Low, and yet room enough for deletions.
        store.space.set_free(RESERVE_FILE_BYTES);
        store.write(|_| Ok(())).expect("allowed");
        assert!(file.exists());
        store.space.set_free(RESERVE_FILE_BYTES - 1);
        store.write(|_| Ok(())).expect("allowed");
        assert!(!file.exists());
        assert_eq!(store.db().keep_reserve(), Ok(false));
        store.space.set_free(GIB);
        assert_eq!(store.db().keep_reserve(), Ok(true));
        assert!(file.exists());
    }

    #[test]
    fn the_system_tells_the_room_of_a_folder() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let found = SystemSpaceSource.measure(dir.path()).expect("a folder");
        assert!(found.total > 0);
        assert!(found.free <= found.total);
        let missing = dir.path().join("missing");
        assert!(SystemSpaceSource.measure(&missing).is_err());
    }
}
