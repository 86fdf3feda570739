//! One document of a branch: what is stored of it, its rows, and the step from a message to the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_store::{
    BucketSync, ContentHash, ContentStatus, EntryKind, EntryPath, ReadTransaction, Store,
    StoreError, SyncDocumentKey, SyncDocumentUpdate, SyncRow, SyncedChanges, WriteTransaction,
};
use automerge::ChangeHash;
use automerge::sync::State;
use tokio::sync::watch;

use super::document::{AffectedPaths, SyncedDocument};
use super::entry::{SyncActor, is_same_state};
use super::error::{ByeCode, SyncError};
use super::incoming::ReceivedChanges;
use super::limits::{DocumentLimits, HASHES_MAX, LOG_BYTES_FREE, LOG_FACTOR_MAX};

/// What takes back the job of the writer when the document refuses. The caller gets the reason itself.
const REFUSED: StoreError = StoreError::Denied("the document refuses the change");

/// A document of a branch that is synchronised. All sessions about it share this.
pub(super) struct SyncedBranch {
    key: SyncDocumentKey,
    node_key: Arc<[u8]>,
    limits: DocumentLimits,
    /// The document, while no step uses it. A step that fails leaves none, and the next one reads what the disk has.
    document: Mutex<Option<OpenDocument>>,
    /// Counts the changes of the document.
    changes: watch::Sender<u64>,
}

/// A document in memory, and what of it is stored.
struct OpenDocument {
    document: SyncedDocument,
    copy_id: [u8; 16],
    /// Number of the last commit of the branch that the document has taken in.
    applied: u64,
    stored_applied: u64,
    stored_heads: Vec<ChangeHash>,
    /// Bytes of the first stored part, and of all. Nothing is stored at 0.
    whole_bytes: usize,
    log_bytes: usize,
    /// What came and is not yet in the store.
    received: Option<ReceivedChanges>,
    affected: AffectedPaths,
    /// Why the last job of the writer was taken back.
    failure: Option<SyncError>,
}

/// The state of the exchange with a peer.
pub(super) struct PeerExchange {
    /// The peer's name, which is the actor of what it changes.
    pub(super) peer: String,
    state: State,
    stored: Vec<u8>,
}

/// What a step brought.
#[derive(Debug, Default)]
pub(super) struct SyncStep {
    /// The next message for the peer.
    pub(super) outgoing: Option<Vec<u8>>,
    /// Whether both have the same, as far as this side knows.
    pub(super) is_equal: bool,
    /// Number of the last commit of the branch that the document has taken in.
    pub(super) applied: u64,
    /// Whether the document has other changes than before.
    pub(super) has_moved: bool,
    /// Contents of new names that are not here.
    pub(super) wanted: Vec<ContentHash>,
    /// Entries that were left out, by the name of the rule.
    pub(super) refused: BTreeMap<&'static str, u64>,
}

/// What the writer stored.
#[derive(Debug)]
struct StoredStep {
    heads: Vec<ChangeHash>,
    part_bytes: usize,
    is_whole: bool,
    wanted: Vec<ContentHash>,
    refused: BTreeMap<&'static str, u64>,
}

impl PeerExchange {
    /// Goes on where the last session with the peer ended. Blocks.
    pub(super) fn resume(
        store: &Store,
        key: &SyncDocumentKey,
        peer: &str,
    ) -> Result<Self, SyncError> {
        let (key, name) = (key.clone(), peer.to_owned());
        let stored = store.read(move |tx| tx.sync_peer(&key, &name)).wait()?;
        let stored = stored.unwrap_or_default();
        // What cannot be read is begun again: that costs one exchange of the whole document.
        let state = State::decode(&stored).unwrap_or_default();
        Ok(Self {
            peer: peer.to_owned(),
            state,
            stored,
        })
    }
}

impl SyncedBranch {
    pub(super) fn new(key: SyncDocumentKey, node_key: &Arc<[u8]>, limits: DocumentLimits) -> Self {
        Self {
            key,
            node_key: Arc::clone(node_key),
            limits,
            document: Mutex::default(),
            changes: watch::channel(0).0,
        }
    }

    pub(super) const fn key(&self) -> &SyncDocumentKey {
        &self.key
    }

    /// Changes whenever the document does.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The last changes of the document. Blocks.
    pub(super) fn heads(&self, store: &Store) -> Result<Vec<[u8; 32]>, SyncError> {
        let mut slot = self.lock();
        let open = self.take_open(&mut slot, store)?;
        let heads = open.document.heads().iter().map(|head| head.0).collect();
        *slot = Some(open);
        Ok(heads)
    }

    /// Takes in what this node wrote and what the peer sent, stores it in one transaction, and makes the next message.
    /// Blocks for as long as other steps of the branch and the disk take.
    ///
    /// After an error the branch and its document are as they were before.
    pub(super) fn step(
        self: &Arc<Self>,
        store: &Store,
        exchange: &mut PeerExchange,
        settings: BucketSync,
        incoming: Option<&[u8]>,
    ) -> Result<SyncStep, SyncError> {
        let mut slot = self.lock();
        let mut open = self.take_open(&mut slot, store)?;
        // Before the message: what this node wrote without knowing the peer's changes has to be concurrent to them.
        open = self.with_rows(store, open)?;
        if let Some(bytes) = incoming {
            let now_ms = store.db().unix_ms();
            let received = open.document.receive(&mut exchange.state, bytes, now_ms)?;
            open.received = Some(received);
        }
        let mut step = SyncStep::default();
        // Stored before anything of it is sent: a change that a power cut takes back must not be known to a peer.
        if open.has_news() {
            open = self.store_step(store, open, exchange, settings, &mut step)?;
        }
        step.outgoing = open.document.generate(&mut exchange.state)?;
        let heads = open.document.heads();
        step.is_equal = step.outgoing.is_none() && exchange.state.their_heads == Some(heads);
        if step.is_equal && exchange.state.encode() != exchange.stored {
            open = self.store_step(store, open, exchange, settings, &mut step)?;
        }
        step.applied = open.applied;
        *slot = Some(open);
        drop(slot);
        if step.has_moved {
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(step)
    }

    /// A poisoned lock holds `None`, because a step takes the document out.
    fn lock(&self) -> MutexGuard<'_, Option<OpenDocument>> {
        self.document.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_open(
        &self,
        slot: &mut Option<OpenDocument>,
        store: &Store,
    ) -> Result<OpenDocument, SyncError> {
        match slot.take() {
            Some(open) => Ok(open),
            None => self.read_document(store),
        }
    }

    fn read_document(&self, store: &Store) -> Result<OpenDocument, SyncError> {
        let key = self.key.clone();
        let stored = store.read(move |tx| tx.sync_document(&key)).wait()?;
        let Some(stored) = stored else {
            return self.make_document(store);
        };
        let actor = SyncActor::new(&self.node_key, stored.copy_id);
        let mut document = SyncedDocument::load((&self.key, self.limits), &stored.chunks, actor)?;
        let stored_heads = document.heads();
        document.remove_old_deletions(store.db().unix_ms())?;
        let sizes = stored.chunks.iter().map(Vec::len);
        Ok(OpenDocument {
            document,
            copy_id: stored.copy_id,
            applied: stored.applied,
            stored_applied: stored.applied,
            stored_heads,
            whole_bytes: stored.chunks.first().map_or(0, Vec::len),
            log_bytes: sizes.sum(),
            received: None,
            affected: AffectedPaths::default(),
            failure: None,
        })
    }

    /// The document of a branch that was never synchronised.
    fn make_document(&self, store: &Store) -> Result<OpenDocument, SyncError> {
        let mut copy_id = [0; 16];
        let filled = getrandom::fill(&mut copy_id);
        filled.map_err(|error| SyncError::refused(ByeCode::Internal, error.to_string()))?;
        let key = self.key.clone();
        let read = store.read(move |tx| Ok((tx.branch(key.branch)?.head_seq, tx.sync_tree(&key)?)));
        let (applied, rows) = read.wait()?;
        let actor = SyncActor::new(&self.node_key, copy_id);
        let mut document = SyncedDocument::load((&self.key, self.limits), &[], actor)?;
        let mut affected = AffectedPaths::default();
        take_in_tree(&mut document, &rows, &mut affected)?;
        // The store has all of them already.
        affected.paths.clear();
        Ok(OpenDocument {
            document,
            copy_id,
            applied,
            stored_applied: 0,
            stored_heads: Vec::new(),
            whole_bytes: 0,
            log_bytes: 0,
            received: None,
            affected,
            failure: None,
        })
    }

    /// Takes in the rows that this node wrote since.
    fn with_rows(&self, store: &Store, open: OpenDocument) -> Result<OpenDocument, SyncError> {
        let key = self.key.clone();
        let shared = Arc::new(Mutex::new(Some(open)));
        let own = Arc::clone(&shared);
        let read = store.read(move |tx| with_document(&own, |open| open.take_in_rows(tx, &key)));
        let done = read.wait();
        finish(&shared, done).map(|(open, ())| open)
    }

    /// Writes rows, document and the state of the exchange in one transaction.
    fn store_step(
        &self,
        store: &Store,
        open: OpenDocument,
        exchange: &mut PeerExchange,
        settings: BucketSync,
        step: &mut SyncStep,
    ) -> Result<OpenDocument, SyncError> {
        let job = StepJob {
            key: self.key.clone(),
            peer: exchange.peer.clone(),
            state: exchange.state.encode(),
            settings,
            applied: open.applied,
        };
        exchange.stored.clone_from(&job.state);
        let shared = Arc::new(Mutex::new(Some(open)));
        let own = Arc::clone(&shared);
        let write = store.write(move |tx| with_document(&own, |open| job.run(tx, open)));
        let done = write.wait();
        let (mut open, stored) = finish(&shared, done)?;
        step.has_moved |= stored.heads != open.stored_heads;
        open.stored_heads = stored.heads;
        open.stored_applied = open.applied;
        if stored.is_whole {
            open.whole_bytes = stored.part_bytes;
            open.log_bytes = 0;
        }
        open.log_bytes += stored.part_bytes;
        open.affected = AffectedPaths::default();
        step.wanted.extend(stored.wanted);
        for (rule, count) in stored.refused {
            *step.refused.entry(rule).or_default() += count;
        }
        Ok(open)
    }
}

impl OpenDocument {
    /// Whether there is something to store.
    fn has_news(&self) -> bool {
        self.received.is_some()
            || self.applied != self.stored_applied
            || self.whole_bytes == 0
            || !self.affected.paths.is_empty()
            || self.document.heads() != self.stored_heads
    }

    /// Takes in the rows that this node wrote since.
    fn take_in_rows(
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
    fn note<T>(&mut self, done: Result<T, SyncError>) -> Result<T, StoreError> {
        done.map_err(|error| {
            self.failure = Some(error);
            REFUSED
        })
    }

    /// A part to store, and whether it is the whole document.
    fn part(&self) -> Result<(Option<Vec<u8>>, bool), SyncError> {
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

/// The job of the writer. It may run twice: what the first run did to the document stays, and the second one finds it done.
struct StepJob {
    key: SyncDocumentKey,
    peer: String,
    state: Vec<u8>,
    settings: BucketSync,
    /// Number of the last commit that the document had taken in before the job.
    applied: u64,
}

impl StepJob {
    fn run(
        &self,
        tx: &mut WriteTransaction<'_>,
        open: &mut OpenDocument,
    ) -> Result<StoredStep, StoreError> {
        // The numbers of a run that was taken back are used again.
        open.applied = self.applied;
        open.take_in_rows(tx, &self.key)?;
        if let Some(received) = open.received.take() {
            if let Some(latest) = received.latest {
                // What this node writes from now on is later than what it knows of.
                tx.observe(latest);
            }
            let done = open.document.resolve(&received, &mut open.affected);
            open.note(done)?;
        }
        self.find_places(tx, open)?;
        let changes = self.changes(tx, open)?;
        let wanted = self.wanted(tx, &changes)?;
        let outcome = tx.apply_synced(&changes)?;
        let mut refused = open.affected.refused.clone();
        for (_, error) in outcome.refused {
            *refused.entry(error.code().name()).or_default() += 1;
        }
        open.applied = tx.branch(self.key.branch)?.head_seq;
        let part = open.part();
        let (chunk, is_whole) = open.note(part)?;
        let part_bytes = chunk.as_ref().map_or(0, Vec::len);
        let update = SyncDocumentUpdate {
            copy_id: open.copy_id,
            chunk,
            is_whole,
            applied: open.applied,
            heads: open.document.heads().iter().map(|head| head.0).collect(),
        };
        tx.save_sync_document(&self.key, &update)?;
        tx.save_sync_peer(&self.key, &self.peer, &self.state)?;
        Ok(StoredStep {
            heads: open.document.heads(),
            part_bytes,
            is_whole,
            wanted,
            refused,
        })
    }

    /// Gives versions that would have no place one beside it.
    fn find_places(
        &self,
        tx: &mut WriteTransaction<'_>,
        open: &mut OpenDocument,
    ) -> Result<(), StoreError> {
        let OpenDocument {
            document, affected, ..
        } = open;
        let displaced = document.displaced(&affected.paths);
        let lost = affected.former.clone();
        if displaced.is_empty() && (lost.is_empty() || !self.settings.keeps_both) {
            return Ok(());
        }
        let timestamp = tx.tick();
        let mut done = Ok(());
        for (path, version) in displaced {
            done = done
                .and_then(|()| document.put_beside(&path, &version, timestamp, affected))
                .and_then(|()| document.put_directory(&path, timestamp, affected));
        }
        if self.settings.keeps_both {
            for (path, versions) in lost {
                let is_kept = document
                    .winner(&path)
                    .is_some_and(|it| it.entry.state.is_live());
                let files = versions.iter().filter(|version| {
                    // Beside a deletion nothing is kept: the deletion is what the later writer wanted.
                    is_kept && version.entry.state.kind == EntryKind::File
                });
                for version in files {
                    done = done
                        .and_then(|()| document.put_beside(&path, version, timestamp, affected));
                }
            }
        }
        open.note(done)
    }

    /// What the store has to write so that it has what the document has.
    fn changes(
        &self,
        tx: &ReadTransaction<'_>,
        open: &OpenDocument,
    ) -> Result<SyncedChanges, StoreError> {
        let view = tx.view(self.key.branch, None)?;
        let affected = &open.affected;
        let mut changes = Vec::new();
        for text in &affected.paths {
            let path = EntryPath::parse(text)?;
            let (wanted, is_implied) = open.document.wanted(text);
            let current = tx.find(&view, &path)?.map(|it| it.state);
            let is_same = match &current {
                None => !wanted.is_live(),
                // A directory that is only implied has the attributes that each node gave it.
                Some(current) if is_implied => current.is_directory(),
                Some(current) => is_same_state(current, &wanted),
            };
            if !is_same || affected.former.contains_key(text) {
                changes.push((path, wanted));
            }
        }
        for (path, state) in &affected.elsewhere {
            // Every node finds the same name. The first one that puts it there is enough.
            if tx.find(&view, path)?.is_none() {
                changes.push((path.clone(), state.clone()));
            }
        }
        let deepest = affected.former.values().map(Vec::len).max();
        let mut former = vec![Vec::new(); deepest.unwrap_or_default()];
        for (text, versions) in &affected.former {
            let path = EntryPath::parse(text)?;
            for (rows, version) in former.iter_mut().zip(versions) {
                rows.push((path.clone(), version.entry.state.clone()));
            }
        }
        Ok(SyncedChanges {
            branch: self.key.branch,
            actor: self.peer.clone(),
            former,
            changes,
        })
    }

    /// Contents of new names that are not here.
    fn wanted(
        &self,
        tx: &ReadTransaction<'_>,
        changes: &SyncedChanges,
    ) -> Result<Vec<ContentHash>, StoreError> {
        let states = changes.changes.iter().map(|(_, state)| state);
        let hashes: BTreeSet<_> = states
            .filter_map(|state| Some(*state.hash?.as_bytes()))
            .collect();
        let bucket = tx.branch(self.key.branch)?.bucket;
        let mut wanted = Vec::new();
        for hash in hashes.into_iter().map(ContentHash::new).take(HASHES_MAX) {
            // What another bucket has is not here for this one.
            let status = tx.content_status_in(bucket, hash)?;
            if !matches!(status, ContentStatus::Complete { .. }) {
                wanted.push(hash);
            }
        }
        Ok(wanted)
    }
}

/// Runs a part of a job on the document that the step lent it.
fn with_document<T>(
    shared: &Mutex<Option<OpenDocument>>,
    work: impl FnOnce(&mut OpenDocument) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut open = shared.lock().unwrap_or_else(PoisonError::into_inner);
    work(open.as_mut().ok_or(REFUSED)?)
}

/// Takes the document back from a job that is over.
fn finish<T>(
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
fn take_in_tree(
    document: &mut SyncedDocument,
    rows: &[SyncRow],
    affected: &mut AffectedPaths,
) -> Result<(), SyncError> {
    let parents = rows.iter().filter_map(|row| row.path.parent());
    let parents: BTreeSet<EntryPath> = parents.collect();
    let is_empty = |path: &EntryPath| Ok::<_, SyncError>(!parents.contains(path));
    document.take_in(rows, is_empty, affected)?
}

impl fmt::Debug for SyncedBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncedBranch")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
