//! Uploads of files, of which each piece comes in a call of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alknet_core::PeerId;
use tokio::time::Instant;

use super::error::FileStoreError;
use super::store::FileUpload;

/// Maximum number of uploads under way. They share the quota, and one administrator stores one file
/// after another.
const UPLOADS_MAX: usize = 4;
/// How long an upload waits for its next piece.
pub(super) const UPLOAD_IDLE: Duration = Duration::from_secs(600);

/// An upload, to which one call at a time adds a piece. `None` after it was stored or has failed.
pub(super) type SharedUpload = Arc<tokio::sync::Mutex<Option<FileUpload>>>;

/// Uploads by name.
#[derive(Debug)]
pub(super) struct FileUploads {
    idle: Duration,
    table: Mutex<FileUploadTable>,
}

#[derive(Debug, Default)]
struct FileUploadTable {
    last: u64,
    slots: HashMap<String, FileUploadSlot>,
}

#[derive(Debug)]
struct FileUploadSlot {
    owner: PeerId,
    touched: Instant,
    upload: SharedUpload,
}

impl FileUploads {
    /// `idle` is the time after which an upload without a new piece is dropped.
    pub(super) fn new(idle: Duration) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { idle, table })
    }

    /// Checks whether another upload may begin.
    ///
    /// # Errors
    /// The maximum number of uploads is under way.
    pub(super) fn check_slots(&self) -> Result<(), FileStoreError> {
        match self.table().slots.len() < UPLOADS_MAX {
            true => Ok(()),
            false => Err(FileStoreError::Busy(UPLOADS_MAX)),
        }
    }

    /// Adds an upload, and returns its name. Must run inside a runtime.
    ///
    /// # Errors
    /// The errors of [`check_slots`](Self::check_slots).
    pub(super) fn add(
        self: &Arc<Self>,
        owner: &PeerId,
        upload: FileUpload,
    ) -> Result<String, FileStoreError> {
        let mut table = self.table();
        // The lock is held now, so two callers that both passed `check_slots` are counted.
        if table.slots.len() >= UPLOADS_MAX {
            return Err(FileStoreError::Busy(UPLOADS_MAX));
        }
        table.last += 1;
        let name = format!("u{}", table.last);
        let slot = FileUploadSlot {
            owner: owner.clone(),
            touched: Instant::now(),
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
        };
        table.slots.insert(name.clone(), slot);
        drop(table);
        // The task has a weak reference, so that it does not keep the table when the node ends.
        tokio::spawn(expire(Arc::downgrade(self), name.clone()));
        Ok(name)
    }

    /// The upload of this name, if this caller began it: an attacker could guess names.
    ///
    /// # Errors
    /// The upload does not exist, or belongs to another caller.
    pub(super) fn lookup(
        &self,
        owner: &PeerId,
        name: &str,
    ) -> Result<SharedUpload, FileStoreError> {
        let mut table = self.table();
        let slot = table.slots.get_mut(name);
        let slot = slot.filter(|slot| slot.owner == *owner);
        let slot = slot.ok_or(FileStoreError::NoUpload)?;
        slot.touched = Instant::now();
        Ok(Arc::clone(&slot.upload))
    }

    /// Removes an upload.
    pub(super) fn forget(&self, name: &str) {
        self.table().slots.remove(name);
    }

    fn table(&self) -> MutexGuard<'_, FileUploadTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the upload once its caller has sent no piece for too long.
async fn expire(uploads: Weak<FileUploads>, name: String) {
    loop {
        let Some(uploads) = uploads.upgrade() else {
            return;
        };
        let touched = uploads.table().slots.get(&name).map(|slot| slot.touched);
        let Some(touched) = touched else {
            return;
        };
        let end = touched + uploads.idle;
        if end <= Instant::now() {
            uploads.forget(&name);
            return;
        }
        // A strong reference over the wait would keep the table after the node's end.
        drop(uploads);
        tokio::time::sleep_until(end).await;
    }
}
