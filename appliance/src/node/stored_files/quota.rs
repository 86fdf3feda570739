//! The part of the disk that stored files may take, shared by concurrent uploads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::FileStoreError;

/// Bytes of a block of the file system: those of data disks have 4 KiB.
const BLOCK_BYTES: u64 = 4 << 10;
/// Bytes that count for a file or folder beside its content: for its name in the folder above, and
/// for its inode. ext4 has an inode for each 16 KiB, so that a store of empty files in a quarter of
/// the disk leaves half of the inodes.
const ENTRY_BYTES: u64 = 8 << 10;
/// Bytes that a folder takes: its entry, and a block for the first names in it.
pub(super) const FOLDER_BYTES: u64 = ENTRY_BYTES + BLOCK_BYTES;

/// Bytes of the disk that a file of this length takes.
pub(super) const fn bytes_on_disk(bytes: u64) -> u64 {
    bytes
        .div_ceil(BLOCK_BYTES)
        .saturating_mul(BLOCK_BYTES)
        .saturating_add(ENTRY_BYTES)
}

/// The quota of a store.
#[derive(Debug)]
pub(super) struct StoreQuota {
    bytes_max: u64,
    counts: Mutex<StoreUsage>,
}

#[derive(Debug, Default)]
struct StoreUsage {
    /// Bytes of stored files, as the folder was last measured.
    stored: u64,
    /// Bytes of all claims.
    claimed: u64,
}

impl StoreQuota {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        let counts = Mutex::default();
        Arc::new(Self { bytes_max, counts })
    }

    /// Maximum bytes of all files.
    pub(super) const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Bytes that are stored or claimed.
    pub(super) fn used(&self) -> u64 {
        self.counts().used()
    }

    /// Sets the measured bytes of stored files.
    pub(super) fn set_stored(&self, bytes: u64) {
        self.counts().stored = bytes;
    }

    fn counts(&self) -> MutexGuard<'_, StoreUsage> {
        // Every change of the counts is one assignment, so a panic leaves them whole.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreUsage {
    fn used(&self) -> u64 {
        self.stored.saturating_add(self.claimed)
    }
}

/// Bytes of the quota for a file that is being written. It is released on drop: by then the file was removed, or
/// measured as stored.
#[derive(Debug)]
pub(super) struct StoreReservation {
    quota: Arc<StoreQuota>,
    bytes: u64,
}

impl StoreReservation {
    /// An empty claim.
    pub(super) fn new(quota: &Arc<StoreQuota>) -> Self {
        Self {
            quota: Arc::clone(quota),
            bytes: 0,
        }
    }

    /// Makes the claim at least this large, before the bytes are written.
    ///
    /// # Errors
    /// Less of the quota is left. The claim stays as it was.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), FileStoreError> {
        let more = bytes.saturating_sub(self.bytes);
        // One lock for the check and the claim, so that two uploads do not claim the same bytes.
        let mut counts = self.quota.counts();
        let left = self.quota.bytes_max.saturating_sub(counts.used());
        if more > left {
            return Err(FileStoreError::Quota(format!(
                "{more} bytes more are needed, and there is room for {left}: remove a stored file first"
            )));
        }
        counts.claimed += more;
        drop(counts);
        self.bytes += more;
        Ok(())
    }
}

impl Drop for StoreReservation {
    fn drop(&mut self) {
        self.quota.counts().claimed -= self.bytes;
    }
}
