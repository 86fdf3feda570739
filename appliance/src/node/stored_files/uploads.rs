//! Files that come in pieces, each piece in a call of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alknet_core::PeerId;
use tokio::time::Instant;

use super::error::FileStoreError;
use super::store::FileUpload;

/// Uploads at once: together they may have as many bytes as there is room for, and one administrator stores one after
/// the other.
const UPLOADS_MAX: usize = 4;
/// How long an upload waits for its next piece.
pub(super) const UPLOAD_IDLE: Duration = Duration::from_secs(600);

/// An upload that one piece at a time is added to; absent once it was stored or has failed.
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
    /// Drops an upload that its caller does not go on with for so long.
    pub(super) fn new(idle: Duration) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { idle, table })
    }

    /// Whether there is room for another.
    ///
    /// # Errors
    /// As many are under way as may be.
    pub(super) fn room(&self) -> Result<(), FileStoreError> {
        match self.table().slots.len() < UPLOADS_MAX {
            true => Ok(()),
            false => Err(FileStoreError::Busy(UPLOADS_MAX)),
        }
    }

    /// Keeps an upload, whose name is given back. Must run inside a runtime.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub(super) fn keep(
        self: &Arc<Self>,
        owner: &PeerId,
        upload: FileUpload,
    ) -> Result<String, FileStoreError> {
        let mut table = self.table();
        // Counted again with the lock held.
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
        // The task must not keep the table when the node ends.
        tokio::spawn(expire(Arc::downgrade(self), name.clone()));
        Ok(name)
    }

    /// The upload of this name, if this caller began it: names can be guessed.
    ///
    /// # Errors
    /// It is not there, or another caller's.
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

    /// Lets go of an upload.
    pub(super) fn forget(&self, name: &str) {
        self.table().slots.remove(name);
    }

    fn table(&self) -> MutexGuard<'_, FileUploadTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the upload once its caller has not gone on with it for too long.
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
        drop(uploads);
        tokio::time::sleep_until(end).await;
    }
}
