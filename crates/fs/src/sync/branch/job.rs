//! The job of the writer: rows, document and the state of an exchange in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use alknet_store::{
    BucketSync, ContentHash, ContentStatus, EntryKind, EntryPath, ReadTransaction, StoreError,
    SyncDocumentKey, SyncDocumentUpdate, SyncedChanges, WriteTransaction,
};
use automerge::ChangeHash;

use super::open::LoadedSyncDocument;
use crate::sync::document::RowOrder;
use crate::sync::entry::is_same_state;
use crate::sync::limits::HASHES_MAX;
use crate::sync::unpack::UnpackedSize;

/// What the writer stored.
#[derive(Debug)]
pub(super) struct StoredStep {
    pub(super) heads: Vec<ChangeHash>,
    pub(super) part_bytes: usize,
    pub(super) size: UnpackedSize,
    pub(super) is_whole: bool,
    pub(super) wanted: Vec<ContentHash>,
    pub(super) refused: BTreeMap<&'static str, u64>,
}

/// The job of the writer. It may run twice: what the first run did to the document stays, and the second one finds it done.
pub(super) struct StepJob {
    pub(super) key: SyncDocumentKey,
    pub(super) peer: String,
    pub(super) state: Vec<u8>,
    /// The copy of the document that the state is about.
    pub(super) copy_id: [u8; 16],
    pub(super) settings: BucketSync,
    /// Number of the last commit that the document had taken in before the job.
    pub(super) applied: u64,
}

impl StepJob {
    pub(super) fn run(
        &self,
        tx: &mut WriteTransaction<'_>,
        open: &mut LoadedSyncDocument,
    ) -> Result<StoredStep, StoreError> {
        // The numbers of a run that was taken back are used again.
        open.applied = self.applied;
        open.take_in_rows(tx, self.settings, RowOrder::ByTime)?;
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
        if tx.sync_copy_id(&self.key)? != Some(open.copy_id) {
            // Another one is stored, or none since the bucket was split and joined again: a part alone could not be read.
            open.whole_bytes = 0;
        }
        let part = open.part();
        let part = open.note(part)?;
        // The document counts against no quota. A deletion has the room that is kept for it.
        if open.affected.is_growing && part.chunk.is_some() {
            tx.check_space()?;
        }
        let (part_bytes, size, is_whole) = (part.chunk_bytes(), part.size, part.is_whole);
        let update = SyncDocumentUpdate {
            copy_id: open.copy_id,
            chunk: part.chunk,
            is_whole,
            applied: open.applied,
            heads: open.document.heads().iter().map(|head| head.0).collect(),
        };
        tx.save_sync_document(&self.key, &update)?;
        // Of a document that was made again the peer has nothing yet.
        if open.copy_id == self.copy_id {
            tx.save_sync_peer(&self.key, &self.peer, &self.state)?;
        }
        Ok(StoredStep {
            heads: open.document.heads(),
            part_bytes,
            size,
            is_whole,
            wanted,
            refused,
        })
    }

    /// Gives versions that would have no place one beside it.
    fn find_places(
        &self,
        tx: &mut WriteTransaction<'_>,
        open: &mut LoadedSyncDocument,
    ) -> Result<(), StoreError> {
        let LoadedSyncDocument {
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
        open: &LoadedSyncDocument,
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
