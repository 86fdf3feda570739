//! A store with a clock and a disk of the test's own.

mod recorded_vfs;
pub(crate) mod reference;
mod synced_folder;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::bounds::duration_ms;
use crate::clock::TimeSource;
use crate::db::{
    ReadTransaction, SpaceSource, StoreDb, StoreDbOptions, StoreSpace, WriteTransaction,
};
use crate::error::StoreError;

pub(crate) use synced_folder::{
    CrashedFolder, DiskError, DiskFault, FailedCall, SyncedFolder, copy_folder,
};

/// Where the clock of a test begins: 2027-01-15, 08:00 UTC.
pub(crate) const START_MS: u64 = 1_800_000_000_000;

/// Random numbers that are the same in each run (SplitMix64).
pub(crate) struct TestRandom(u64);

impl TestRandom {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("small")
    }

    pub(crate) fn is_one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// A path of one to three components, from few, so that paths meet.
    pub(crate) fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let component = |_| format!("/{}", self.pick(&["a", "b", "c", "a-b", "a0"]));
        (0..depth).map(component).collect()
    }
}

/// A clock that a test moves.
pub(crate) struct ManualTimeSource(AtomicU64);

impl ManualTimeSource {
    pub(crate) fn starting_at(unix_ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(unix_ms)))
    }

    pub(crate) fn set(&self, unix_ms: u64) {
        self.0.store(unix_ms, Ordering::SeqCst);
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.0.fetch_add(duration_ms(time), Ordering::SeqCst);
    }
}

impl TimeSource for ManualTimeSource {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A disk of 1 GiB with as much room as a test says.
pub(crate) struct ManualSpaceSource(AtomicU64);

impl ManualSpaceSource {
    /// An empty disk.
    pub(crate) fn ample() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1 << 30)))
    }

    pub(crate) fn set_free(&self, bytes: u64) {
        self.0.store(bytes, Ordering::SeqCst);
    }
}

impl SpaceSource for ManualSpaceSource {
    fn measure(&self, _folder: &Path) -> io::Result<StoreSpace> {
        Ok(StoreSpace {
            total: 1 << 30,
            free: self.0.load(Ordering::SeqCst),
        })
    }
}

/// A store in a folder of its own.
pub(crate) struct ScratchStore {
    pub(crate) path: PathBuf,
    pub(crate) time: Arc<ManualTimeSource>,
    pub(crate) space: Arc<ManualSpaceSource>,
    db: Option<StoreDb>,
    /// Removed last.
    pub(crate) dir: TempDir,
}

impl ScratchStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = Self {
            path: dir.path().join("fs.db"),
            time: ManualTimeSource::starting_at(START_MS),
            space: ManualSpaceSource::ample(),
            db: None,
            dir,
        };
        store.reopen();
        store
    }

    pub(crate) fn options(&self) -> StoreDbOptions {
        StoreDbOptions {
            time: self.time.clone(),
            space: self.space.clone(),
            ..StoreDbOptions::default()
        }
    }

    pub(crate) fn db(&self) -> &StoreDb {
        self.db.as_ref().expect("open")
    }

    /// The time of the store, in milliseconds since 1970-01-01 UTC.
    pub(crate) fn read_ms(&self) -> u64 {
        self.time.unix_ms()
    }

    pub(crate) fn close(&mut self) {
        self.db = None;
    }

    pub(crate) fn reopen(&mut self) {
        self.close();
        self.db = Some(StoreDb::open(&self.path, self.options()).expect("a store"));
    }

    pub(crate) fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.db().write(work).wait()
    }

    pub(crate) fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.db().read(work).wait()
    }
}
