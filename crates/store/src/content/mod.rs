//! Contents: bytes by their hash. Short ones are rows of the database, longer ones are objects in files of their own.
//!
//! ```text
//! content/objects/ab/HEX           an object; HEX is its hash
//! content/outboards/HEX-FROM-TO    its hash tree; deleting it is always safe
//! content/uploads/…                what is being written; emptied when the store is opened
//! content/partials/BUCKET-HEX      what has arrived of a content that peers send for a bucket
//! ```
//!
//! A content gets its name in this order, and in no other: all bytes are staged, they are synced and have their place
//! under their hash, the rows are written in one transaction, the client gets its answer. [`CommitStep`] has the steps.
//!
//! Buckets share contents. An upload of what another bucket has makes the same syncs as a new one, so that its time does not
//! tell. What remains for an observer with exact clocks or counters: the stored file is read once to compare it, and the free
//! space of the disk is afterwards what it was before.

mod check;
mod encoded;
mod partial;
mod pins;
mod put;
mod read;
mod rows;
mod scrub;
mod staged_space;
mod steps;

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alknet_objects::{DamagedPart, ObjectError, ObjectFolder, OutboardPolicy};

use crate::db::StoreDb;
use crate::error::StoreError;
use crate::hash::ContentHash;

pub(crate) use check::BootVerification;
pub use check::VerifyProgress;
pub use encoded::ContentEncoding;
pub use partial::PartialContent;
pub(crate) use put::check_file_size;
pub use put::{PreparedContent, StagedContent};
pub use read::{ContentBlocks, ContentReader};
pub(crate) use rows::ContentState;
pub use rows::ContentStatus;
pub use scrub::{ContentScrub, ContentScrubStep};
use staged_space::StagedSpace;
pub use steps::CommitStep;
pub(crate) use steps::{CommitObserver, UnobservedCommits};

/// Error number of a sector that the disk cannot read (`EIO`).
const IO_FAILED: i32 = 5;

/// The contents of a store. A clone shares the folder.
#[derive(Clone, Debug)]
pub struct ContentFolder {
    objects: Arc<ObjectFolder>,
    db: StoreDb,
    observer: Arc<dyn CommitObserver>,
    staged: Arc<StagedSpace>,
    /// Bytes that callers have read and staged.
    moved: Arc<AtomicU64>,
}

impl ContentFolder {
    /// Opens the folder, and makes it if it is missing. What was staged before is removed.
    pub(crate) fn open(
        folder: &Path,
        db: StoreDb,
        observer: Arc<dyn CommitObserver>,
    ) -> Result<Self, StoreError> {
        // Outboards are placed with their objects: a first read of a large content must not read all of it.
        let objects = ObjectFolder::open_on(folder, OutboardPolicy::Placed, observer.disk());
        Ok(Self {
            objects: objects.map_err(object_error)?,
            db,
            observer,
            staged: Arc::default(),
            moved: Arc::default(),
        })
    }

    /// The same contents, whose rows are read by this handle.
    pub(crate) fn reading_as(&self, db: &StoreDb) -> Self {
        let db = db.clone();
        Self { db, ..self.clone() }
    }

    /// What the store knows of a content, by its row. The bytes are not looked at. Blocks.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn status(&self, hash: ContentHash) -> Result<ContentStatus, StoreError> {
        self.db.read(move |tx| tx.content_status(hash)).wait()
    }

    pub(crate) const fn objects(&self) -> &Arc<ObjectFolder> {
        &self.objects
    }

    pub(crate) fn observer(&self) -> Arc<dyn CommitObserver> {
        Arc::clone(&self.observer)
    }

    /// Refuses what would take the disk below its reserve. Every write of contents asks here first, with the bytes that it
    /// is about to add, or 0 where it does not know them.
    pub(crate) fn check_space(&self, bytes: u64) -> Result<(), StoreError> {
        // The folder lies beside the file of names, on the same file system.
        self.db.check_space(bytes)
    }

    /// Counts bytes that a caller has read or staged, by which a check of all contents sees the load.
    fn count_moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that callers have read and staged so far.
    fn moved_bytes(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Marks a content as damaged or lost, with an event.
    pub(crate) fn report_damage(
        &self,
        hash: ContentHash,
        verified_ms: Option<u64>,
    ) -> Result<(), StoreError> {
        let marked = self
            .db
            .write(move |tx| tx.mark_content_bad(hash, verified_ms));
        if marked.wait()? {
            tracing::error!("a content is damaged or lost");
        }
        Ok(())
    }
}

/// The address that the library gives an object.
pub(crate) fn content_hash(hash: blake3::Hash) -> ContentHash {
    ContentHash::new(*hash.as_bytes())
}

/// The hash by which the library knows a content.
pub(crate) fn object_hash(hash: ContentHash) -> blake3::Hash {
    blake3::Hash::from_bytes(*hash.as_bytes())
}

/// An error of the system at a file of contents.
pub(crate) fn io_error(what: &str, error: &io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::NoSpace,
        _ => StoreError::ContentFolder(format!("{what}: {error}")),
    }
}

/// An error of the library that is no damage of a content.
pub(crate) fn object_error(error: ObjectError) -> StoreError {
    match error {
        ObjectError::Io { what, source } => io_error(&what, &source),
        ObjectError::PlacedNotSynced { hash, source, .. } => {
            io_error(&format!("object {hash} may lose its place"), &source)
        }
        other => StoreError::ContentFolder(other.to_string()),
    }
}

/// Whether an error says that the bytes of a content are not here any more.
pub(crate) fn is_damage(error: &ObjectError) -> bool {
    match error {
        ObjectError::Missing(_) | ObjectError::Changed(_) => true,
        ObjectError::Damaged { part, .. } => *part == DamagedPart::Content,
        // A sector that the disk cannot read stays so, and what a peer has can take its place. Other errors pass.
        ObjectError::Io { source, .. } => {
            source.raw_os_error() == Some(IO_FAILED) || source.kind() == ErrorKind::UnexpectedEof
        }
        _ => false,
    }
}

#[cfg(test)]
mod announced_tests;
#[cfg(test)]
mod encoded_tests;
#[cfg(test)]
mod tests;
