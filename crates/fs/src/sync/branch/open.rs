//! A document in memory: what of it is stored, and what it takes in from the store.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use alknet_store::{EntryPath, ReadTransaction, StoreError, SyncDocumentKey, SyncRow};
use automerge::ChangeHash;

use crate::sync::document::{AffectedPaths, SyncedDocument};
use crate::sync::error::{ByeCode, SyncError};
use crate::sync::incoming::ReceivedChanges;
use crate::sync::limits::{LOG_BYTES_FREE, LOG_FACTOR_MAX};

/// What takes back the job of the writer when the document refuses. The caller gets the reason itself.
const REFUSED: StoreError = StoreError::Denied("the document refuses the change");

/// A document in memory, and what of it is stored.
pub(super) struct OpenDocument {
    pub(super) document: SyncedDocument,
    pub(super) copy_id: [u8; 16],
    /// Number of the last commit of the branch that the document has taken in.
    pub(super) applied: u64,
    pub(super) stored_applied: u64,
    pub(super) stored_heads: Vec<ChangeHash>,
    /// Bytes of the first stored part, and of all. Nothing is stored at 0.
    pub(super) whole_bytes: usize,
    pub(super) log_bytes: usize,
    /// What came and is not yet in the store.
    pub(super) received: Option<ReceivedChanges>,
    pub(super) affected: AffectedPaths,
    /// Why the last job of the writer was taken back.
    pub(super) failure: Option<SyncError>,
}

impl OpenDocument {
    /// Whether there is something to store.
    pub(super) fn has_news(&self) -> bool {
        self.received.is_some()
            || self.applied != self.stored_applied
            || self.whole_bytes == 0
            || !self.affected.paths.is_empty()
            || self.document.heads() != self.stored_heads
    }

    /// Takes in the rows that this node wrote since.
    pub(super) fn take_in_rows(
        &mut self,
        tx: &ReadTransaction<'_>,
        key: &SyncDocumentKey,
    ) -> Result<(), StoreError> {
        let head = tx.branch(key.branch)?.head_seq;
        if head <= self.applied {
            return Ok(());
        }
        let rows = tx.sync_changes(key, self.applied)?;
        let view = tx.view(key.branch, None)?;
        let is_empty = |path: &EntryPath| tx.is_empty_directory(&view, path);
        let done = self.document.take_in(&rows, is_empty, &mut self.affected)?;
        self.note(done)?;
        self.applied = head;
        Ok(())
    }

    /// Notes why the document refuses, and lets the job of the store be taken back.
    pub(super) fn note<T>(&mut self, done: Result<T, SyncError>) -> Result<T, StoreError> {
        done.map_err(|error| {
            self.failure = Some(error);
            REFUSED
        })
    }

    /// A part to store, and whether it is the whole document.
    pub(super) fn part(&self) -> Result<(Option<Vec<u8>>, bool), SyncError> {
        let log_max = self.whole_bytes.saturating_mul(LOG_FACTOR_MAX);
        if self.whole_bytes == 0 || self.log_bytes > log_max.max(LOG_BYTES_FREE) {
            return Ok((Some(self.document.save()?), true));
        }
        if self.document.heads() == self.stored_heads {
            return Ok((None, false));
        }
        let part = self.document.save_after(&self.stored_heads)?;
        Ok((Some(part), false))
    }
}

/// Runs a part of a job on the document that the step lent it.
pub(super) fn with_document<T>(
    shared: &Mutex<Option<OpenDocument>>,
    work: impl FnOnce(&mut OpenDocument) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut open = shared.lock().unwrap_or_else(PoisonError::into_inner);
    work(open.as_mut().ok_or(REFUSED)?)
}

/// Takes the document back from a job that is over.
pub(super) fn finish<T>(
    shared: &Mutex<Option<OpenDocument>>,
    done: Result<T, StoreError>,
) -> Result<(OpenDocument, T), SyncError> {
    let open = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut open) = open else {
        return Err(SyncError::refused(
            ByeCode::Internal,
            "a job lost the document",
        ));
    };
    match (open.failure.take(), done) {
        (None, Ok(value)) => Ok((open, value)),
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(error.into()),
    }
}

/// Takes in a whole tree.
pub(super) fn take_in_tree(
    document: &mut SyncedDocument,
    rows: &[SyncRow],
    affected: &mut AffectedPaths,
) -> Result<(), SyncError> {
    let parents = rows.iter().filter_map(|row| row.path.parent());
    let parents: BTreeSet<EntryPath> = parents.collect();
    let is_empty = |path: &EntryPath| Ok::<_, SyncError>(!parents.contains(path));
    document.take_in(rows, is_empty, affected)?
}
