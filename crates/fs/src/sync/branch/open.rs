//! A document in memory: what of it is stored, and what it takes in from the store.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use alknet_store::{
    Branch, BranchState, Bucket, BucketState, BucketSync, EntryPath, HybridTimestamp,
    ReadTransaction, StoreError, SyncDocumentKey, SyncRow,
};
use automerge::ChangeHash;

use crate::sync::document::{AffectedPaths, RowOrder, SyncedDocument, deleted_state};
use crate::sync::entry::SyncActor;
use crate::sync::error::{ByeCode, SyncError};
use crate::sync::incoming::ReceivedChanges;
use crate::sync::limits::{
    DOCUMENT_BYTES_MAX, DOCUMENT_UNPACKED_MAX, LOG_BYTES_FREE, LOG_FACTOR_MAX,
};
use crate::sync::unpack::{UnpackedSize, measure_changes, weigh_changes};

/// What takes back the job of the writer when the document refuses. The caller gets the reason itself.
const REFUSED: StoreError = StoreError::Denied("the document refuses the change");

/// A document in memory, and what of it is stored.
pub(super) struct LoadedSyncDocument {
    pub(super) document: SyncedDocument,
    pub(super) node_key: Arc<[u8]>,
    pub(super) copy_id: [u8; 16],
    /// Number of the last commit of the branch that the document has taken in.
    pub(super) applied: u64,
    pub(super) stored_applied: u64,
    pub(super) stored_heads: Vec<ChangeHash>,
    /// Bytes of the first stored part, and of all. Nothing is stored at 0.
    pub(super) whole_bytes: usize,
    pub(super) log_bytes: usize,
    /// What all stored parts have when they are unpacked.
    pub(super) size: UnpackedSize,
    /// Time of the present step.
    pub(super) now_ms: u64,
    /// Time of the last look at the times of its versions. `None` before the first one.
    pub(super) checked_ms: Option<u64>,
    /// What came and is not yet in the store.
    pub(super) received: Option<ReceivedChanges>,
    pub(super) affected: AffectedPaths,
    /// Why the last job of the writer was taken back.
    pub(super) failure: Option<SyncError>,
}

impl LoadedSyncDocument {
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
        settings: BucketSync,
        order: RowOrder,
    ) -> Result<(), StoreError> {
        let key = self.document.key().clone();
        let branch = tx.branch(key.branch)?;
        let bucket = tx.bucket(branch.bucket)?;
        // The session may have begun long ago.
        let checked = check_synced(&bucket, &branch, Some(settings));
        self.note(checked)?;
        let has_rows = branch.head_seq > self.applied;
        if has_rows {
            let rows = self.rows(tx, &key, order)?;
            let view = tx.view(key.branch, None)?;
            let is_empty = |path: &EntryPath| tx.is_empty_directory(&view, path);
            let document = &mut self.document;
            let done = document.take_in(&rows, order, is_empty, &mut self.affected)?;
            self.note(done)?;
            self.applied = branch.head_seq;
        }
        // Looked at where the answer can be another one than before.
        let went_back = self.checked_ms.is_none_or(|before| self.now_ms < before);
        if order == RowOrder::Newest && (has_rows || went_back) {
            self.checked_ms = Some(self.now_ms);
            let corrected = self.correct_times();
            self.note(corrected)?;
        }
        Ok(())
    }

    /// The rows that the document has to take in.
    fn rows(
        &self,
        tx: &ReadTransaction<'_>,
        key: &SyncDocumentKey,
        order: RowOrder,
    ) -> Result<Vec<SyncRow>, StoreError> {
        let paths_max = self.document.limits().paths_max;
        match tx.sync_changes(key, self.applied, paths_max) {
            // A tree may have few paths of many that came and went. Behind changes of peers it cannot be compared, because
            // the store does not have them yet.
            Err(StoreError::TooLarge { .. }) if order == RowOrder::Newest => {
                self.compare_tree(tx, key)
            }
            read => read,
        }
    }

    /// The tree, and a deletion of each path that only the document has.
    fn compare_tree(
        &self,
        tx: &ReadTransaction<'_>,
        key: &SyncDocumentKey,
    ) -> Result<Vec<SyncRow>, StoreError> {
        let mut rows = tx.sync_tree(key)?;
        let there: HashSet<&str> = rows.iter().map(|row| row.path.as_str()).collect();
        let paths = self.document.live_paths();
        let gone: Vec<String> = paths
            .filter(|path| !there.contains(path))
            .map(str::to_owned)
            .collect();
        for path in gone {
            rows.push(SyncRow {
                path: EntryPath::parse(&path)?,
                state: deleted_state(),
                timestamp: HybridTimestamp::new(self.now_ms, 0, [0; 8]),
            });
        }
        Ok(rows)
    }

    /// Makes the document again if it has versions of a clock that was far ahead and is right now. Peers refuse the changes
    /// that made them for as long as their time has not come, also where later ones replace them.
    fn correct_times(&mut self) -> Result<(), SyncError> {
        if !self.document.is_ahead(self.now_ms) {
            return Ok(());
        }
        tracing::warn!("entries that were written while the clock was wrong get the present time");
        self.make_again(&random_copy_id()?)
    }

    /// Notes why the document refuses, and lets the job of the store be taken back.
    pub(super) fn note<T>(&mut self, done: Result<T, SyncError>) -> Result<T, StoreError> {
        done.map_err(|error| {
            self.failure = Some(error);
            REFUSED
        })
    }

    /// A part to store. A document that has grown too large is made again first.
    pub(super) fn part(&mut self) -> Result<DocumentPart, SyncError> {
        let mut part = self.next_part()?;
        if part.chunk.is_none() {
            return Ok(part);
        }
        let parts_bytes = self.log_bytes + part.chunk_bytes();
        let unpacked = self.size.plus(part.size).bytes;
        if !part.is_whole && self.is_over(parts_bytes, unpacked)? {
            // Parts are packed worse than the whole, which alone decides.
            part = DocumentPart::whole(self.document.save()?)?;
        }
        if part.is_whole && self.is_whole_over(&part)? {
            self.make_again(&[])?;
            part = DocumentPart::whole(self.document.save()?)?;
        }
        Ok(part)
    }

    fn next_part(&self) -> Result<DocumentPart, SyncError> {
        let log_max = self.whole_bytes.saturating_mul(LOG_FACTOR_MAX);
        if self.whole_bytes == 0 || self.log_bytes > log_max.max(LOG_BYTES_FREE) {
            return DocumentPart::whole(self.document.save()?);
        }
        if self.document.heads() == self.stored_heads {
            return Ok(DocumentPart::default());
        }
        let chunk = self.document.save_after(&self.stored_heads)?;
        Ok(DocumentPart {
            size: weigh_changes(&chunk)?,
            chunk: Some(chunk),
            is_whole: false,
        })
    }

    /// Whether a document of this size may soon be more than one message can have.
    ///
    /// Nodes with the same document have to find the same, or one would make it again and get the other one's back. They
    /// count the same operations, and pack nearly the same bytes.
    fn is_over(&self, bytes: usize, unpacked: u64) -> Result<bool, SyncError> {
        let operations = self.document.count_operations()?;
        let is_over = bytes > DOCUMENT_BYTES_MAX
            || unpacked > DOCUMENT_UNPACKED_MAX
            || operations > self.document.limits().operations_max;
        Ok(is_over)
    }

    /// The same of a whole document, and whether a peer would refuse it because it packs too well.
    fn is_whole_over(&self, part: &DocumentPart) -> Result<bool, SyncError> {
        let chunk = part.chunk.as_deref().unwrap_or_default();
        let is_over = self.is_over(chunk.len(), part.size.bytes)?;
        Ok(is_over || measure_changes(chunk).is_err())
    }

    /// Makes the document again of its paths, as another copy, which is stored as a whole. Versions of a clock that was far
    /// ahead get the present time.
    pub(super) fn make_again(&mut self, salt: &[u8]) -> Result<(), SyncError> {
        let copy_id = random_copy_id()?;
        let actor = SyncActor::new(&self.node_key, copy_id);
        let rebuilt = self.document.rebuilt(actor, salt, self.now_ms)?;
        if rebuilt.heads() == self.document.heads() {
            // It has nothing but its paths, so that it cannot be smaller.
            return Ok(());
        }
        self.document = rebuilt;
        self.copy_id = copy_id;
        self.whole_bytes = 0;
        Ok(())
    }
}

/// A part of a document to store.
#[derive(Default)]
pub(super) struct DocumentPart {
    /// `None` if nothing is new.
    pub(super) chunk: Option<Vec<u8>>,
    pub(super) is_whole: bool,
    pub(super) size: UnpackedSize,
}

impl DocumentPart {
    fn whole(chunk: Vec<u8>) -> Result<Self, SyncError> {
        Ok(Self {
            size: weigh_changes(&chunk)?,
            chunk: Some(chunk),
            is_whole: true,
        })
    }

    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk.as_ref().map_or(0, Vec::len)
    }
}

/// Identity of a further copy of a document.
pub(super) fn random_copy_id() -> Result<[u8; 16], SyncError> {
    let mut copy_id = [0; 16];
    let filled = getrandom::fill(&mut copy_id);
    filled.map_err(|error| SyncError::refused(ByeCode::Internal, error.to_string()))?;
    Ok(copy_id)
}

/// Whether a branch is synchronised, in the form that a session has begun with.
pub(in crate::sync) fn check_synced(
    bucket: &Bucket,
    branch: &Branch,
    begun: Option<BucketSync>,
) -> Result<(), SyncError> {
    // To a peer the same as one that does not exist.
    if !bucket.sync.is_on || bucket.state == BucketState::Deleting {
        let reason = "the branch is not synchronised";
        return Err(SyncError::refused(ByeCode::NotFound, reason));
    }
    let takes_changes = bucket.state == BucketState::Live && branch.state == BranchState::Open;
    if !takes_changes || branch.is_protected {
        let reason = "the branch takes no changes of peers";
        return Err(SyncError::refused(ByeCode::ReadOnly, reason));
    }
    if begun.is_some_and(|begun| begun.is_split != bucket.sync.is_split) {
        let reason = "the bucket was split, or is split no more, since the session began";
        return Err(SyncError::refused(ByeCode::SplitDiffers, reason));
    }
    Ok(())
}

/// Runs a part of a job on the document that the step lent it.
pub(super) fn with_document<T>(
    shared: &Mutex<Option<LoadedSyncDocument>>,
    work: impl FnOnce(&mut LoadedSyncDocument) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut open = shared.lock().unwrap_or_else(PoisonError::into_inner);
    work(open.as_mut().ok_or(REFUSED)?)
}

/// Takes the document back from a job that is over.
pub(super) fn finish<T>(
    shared: &Mutex<Option<LoadedSyncDocument>>,
    done: Result<T, StoreError>,
) -> Result<(LoadedSyncDocument, T), SyncError> {
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
    document.take_in(rows, RowOrder::ByTime, is_empty, affected)?
}
