//! One document of a branch: what is stored of it, its rows, and the step from a message to the answer.

mod job;
mod open;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_store::{BucketSync, ContentHash, Store, SyncDocumentKey, SyncDocumentUpdate};
use automerge::sync::State;
use tokio::sync::watch;

use self::job::StepJob;
pub(super) use self::open::check_synced;
use self::open::{LoadedSyncDocument, finish, random_copy_id, take_in_tree, with_document};
use super::document::{AffectedPaths, RowOrder, SyncedDocument};
use super::entry::SyncActor;
use super::error::SyncError;
use super::limits::DocumentLimits;
use super::unpack::{UnpackedSize, weigh_changes};

/// A document of a branch that is synchronised. All sessions about it share this.
pub(super) struct SyncedBranch {
    key: SyncDocumentKey,
    node_key: Arc<[u8]>,
    limits: DocumentLimits,
    /// The document, while no step uses it. A step that fails leaves none, and the next one reads what the disk has.
    document: Mutex<Option<LoadedSyncDocument>>,
    /// Counts the changes of the document.
    changes: watch::Sender<u64>,
}

/// The state of the exchange with a peer.
pub(super) struct PeerExchange {
    /// The peer's name, which is the actor of what it changes.
    pub(super) peer: String,
    state: State,
    stored: Vec<u8>,
    /// The copy of the document that the state is about. `None` before there is one.
    copy_id: Option<[u8; 16]>,
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

impl PeerExchange {
    /// Goes on where the last session with the peer ended. Blocks.
    pub(super) fn resume(
        store: &Store,
        key: &SyncDocumentKey,
        peer: &str,
    ) -> Result<Self, SyncError> {
        let (key, name) = (key.clone(), peer.to_owned());
        let read = store.read(move |tx| Ok((tx.sync_peer(&key, &name)?, tx.sync_copy_id(&key)?)));
        let (stored, copy_id) = read.wait()?;
        let stored = stored.unwrap_or_default();
        // What cannot be read is begun again: that costs one exchange of the whole document.
        let state = State::decode(&stored).unwrap_or_default();
        Ok(Self {
            peer: peer.to_owned(),
            state,
            stored,
            copy_id,
        })
    }

    /// Begins again where the document is another copy than before.
    fn follow(&mut self, copy_id: [u8; 16]) {
        if self.copy_id != Some(copy_id) {
            self.state = State::new();
            self.stored = Vec::new();
            self.copy_id = Some(copy_id);
        }
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

    /// Reads the document, or makes it if it is not stored. Blocks.
    pub(super) fn prepare(&self, store: &Store) -> Result<(), SyncError> {
        let mut slot = self.lock();
        let open = self.take_open(&mut slot, store)?;
        *slot = Some(open);
        Ok(())
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
        open.now_ms = store.db().unix_ms();
        // Before the message: what this node wrote without knowing the peer's changes has to be concurrent to them.
        open = self.with_rows(store, open, settings)?;
        exchange.follow(open.copy_id);
        if let Some(bytes) = incoming {
            let state = &mut exchange.state;
            match open.document.receive(state, bytes, open.now_ms) {
                Ok(received) => open.received = Some(received),
                Err(error) => {
                    if open.document.is_contradicted() {
                        drop(open);
                        self.store_again(store)?;
                    }
                    return Err(error);
                }
            }
        }
        let mut step = SyncStep::default();
        // Stored before anything of it is sent: a change that a power cut takes back must not be known to a peer.
        if open.has_news() {
            open = self.store_step(store, open, exchange, settings, &mut step)?;
        }
        exchange.follow(open.copy_id);
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
    fn lock(&self) -> MutexGuard<'_, Option<LoadedSyncDocument>> {
        self.document.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_open(
        &self,
        slot: &mut Option<LoadedSyncDocument>,
        store: &Store,
    ) -> Result<LoadedSyncDocument, SyncError> {
        match slot.take() {
            Some(open) => Ok(open),
            None => self.read_document(store),
        }
    }

    fn read_document(&self, store: &Store) -> Result<LoadedSyncDocument, SyncError> {
        let key = self.key.clone();
        let stored = store.read(move |tx| tx.sync_document(&key)).wait()?;
        let Some(stored) = stored else {
            return self.make_document(store);
        };
        let actor = SyncActor::new(&self.node_key, stored.copy_id);
        let mut document = SyncedDocument::load((&self.key, self.limits), &stored.chunks, actor)?;
        let stored_heads = document.heads();
        let now_ms = store.db().unix_ms();
        document.remove_old_deletions(now_ms)?;
        let sizes = stored.chunks.iter().map(Vec::len);
        let mut size = UnpackedSize::default();
        for chunk in &stored.chunks {
            size = size.plus(weigh_changes(chunk)?);
        }
        Ok(LoadedSyncDocument {
            document,
            node_key: Arc::clone(&self.node_key),
            copy_id: stored.copy_id,
            applied: stored.applied,
            stored_applied: stored.applied,
            stored_heads,
            whole_bytes: stored.chunks.first().map_or(0, Vec::len),
            log_bytes: sizes.sum(),
            size,
            now_ms,
            checked_ms: None,
            received: None,
            affected: AffectedPaths::default(),
            failure: None,
        })
    }

    /// The document of a branch that was never synchronised.
    fn make_document(&self, store: &Store) -> Result<LoadedSyncDocument, SyncError> {
        let copy_id = random_copy_id()?;
        let key = self.key.clone();
        let read = store.read(move |tx| Ok((tx.branch(key.branch)?.head_seq, tx.sync_tree(&key)?)));
        let (applied, rows) = read.wait()?;
        let actor = SyncActor::new(&self.node_key, copy_id);
        let mut document = SyncedDocument::load((&self.key, self.limits), &[], actor)?;
        let mut affected = AffectedPaths::default();
        take_in_tree(&mut document, &rows, &mut affected)?;
        // The store has all of them already.
        affected.paths.clear();
        Ok(LoadedSyncDocument {
            document,
            node_key: Arc::clone(&self.node_key),
            copy_id,
            applied,
            stored_applied: 0,
            stored_heads: Vec::new(),
            whole_bytes: 0,
            log_bytes: 0,
            size: UnpackedSize::default(),
            now_ms: store.db().unix_ms(),
            checked_ms: None,
            received: None,
            affected,
            failure: None,
        })
    }

    /// Takes in the rows that this node wrote since.
    fn with_rows(
        &self,
        store: &Store,
        open: LoadedSyncDocument,
        settings: BucketSync,
    ) -> Result<LoadedSyncDocument, SyncError> {
        let shared = Arc::new(Mutex::new(Some(open)));
        let own = Arc::clone(&shared);
        let read = store.read(move |tx| {
            with_document(&own, |open| {
                open.take_in_rows(tx, settings, RowOrder::Newest)
            })
        });
        let done = read.wait();
        finish(&shared, done).map(|(open, ())| open)
    }

    /// Stores the document as another copy without its former changes. A peer has another change with the writer and the
    /// number of one of them, so that no session with it could ever succeed.
    fn store_again(&self, store: &Store) -> Result<(), SyncError> {
        let mut open = self.read_document(store)?;
        if open.whole_bytes == 0 {
            // One that is not stored is made of the tree by the next step, as a copy of its own.
            return Ok(());
        }
        // Another salt each time: also the changes of a document that was made again can be forged.
        open.make_again(&random_copy_id()?)?;
        let update = SyncDocumentUpdate {
            copy_id: open.copy_id,
            chunk: Some(open.document.save()?),
            is_whole: true,
            applied: open.applied,
            heads: open.document.heads().iter().map(|head| head.0).collect(),
        };
        let key = self.key.clone();
        let write = store.write(move |tx| tx.save_sync_document(&key, &update));
        Ok(write.wait()?)
    }

    /// Writes rows, document and the state of the exchange in one transaction.
    fn store_step(
        &self,
        store: &Store,
        open: LoadedSyncDocument,
        exchange: &mut PeerExchange,
        settings: BucketSync,
        step: &mut SyncStep,
    ) -> Result<LoadedSyncDocument, SyncError> {
        let job = StepJob {
            key: self.key.clone(),
            peer: exchange.peer.clone(),
            state: exchange.state.encode(),
            copy_id: open.copy_id,
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
            open.size = UnpackedSize::default();
        }
        open.log_bytes += stored.part_bytes;
        open.size = open.size.plus(stored.size);
        open.affected = AffectedPaths::default();
        step.wanted.extend(stored.wanted);
        for (rule, count) in stored.refused {
            *step.refused.entry(rule).or_default() += count;
        }
        Ok(open)
    }
}

impl fmt::Debug for SyncedBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncedBranch")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
