//! Synchronisation with peers: the rows that a document has to take in, the document itself, and what peers changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use rusqlite::params;

use super::BranchId;
use super::commit::{CommitHeader, CommitReceipt, OpenCommit};
use super::entry::{Entry, EntryKind, EntryState};
use super::list::TreeScan;
use super::sync_documents::SyncDocumentKey;
use super::usage::{ContentPresence, FileContent};
use crate::clock::HybridTimestamp;
use crate::db::{ReadTransaction, WriteTransaction, to_sql};
use crate::error::StoreError;
use crate::limits::{SUBTREE_ENTRIES_MAX, SYNC_ROW_BYTES_MAX};
use crate::outbox::EventTopic;
use crate::path::EntryPath;

/// Rows that one query of [`ReadTransaction::sync_changes`] takes. A path and a target have 8 KiB at most.
const CHANGES_CHUNK: usize = 1024;

/// What the history calls a commit of changes of peers.
const SYNC_OP: &str = "sync";

/// A version of an entry, with the time of its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRow {
    /// Where the entry is.
    pub path: EntryPath,
    /// What it is, which may be deleted.
    pub state: EntryState,
    /// Time of the commit that wrote it.
    pub timestamp: HybridTimestamp,
}

impl SyncRow {
    /// Bytes of the path and the target.
    fn bytes(&self) -> u64 {
        let target = self.state.target.as_ref().map_or(0, String::len);
        (self.path.as_str().len() + target) as u64
    }
}

/// What peers changed on a branch.
#[derive(Clone, Debug)]
pub struct SyncedChanges {
    /// The branch.
    pub branch: BranchId,
    /// The peer, for the history.
    pub actor: String,
    /// Versions that lost against the present ones, for the history. Each path in them is in [`changes`](Self::changes)
    /// too. The versions of one list have different paths.
    pub former: Vec<Vec<(EntryPath, EntryState)>>,
    /// What the paths have from now on. Extended attributes are left as they are.
    pub changes: Vec<(EntryPath, EntryState)>,
}

/// What became of the changes of peers.
#[derive(Clone, Debug)]
pub struct SyncedOutcome {
    /// The commit. `None` if there was nothing to write.
    pub receipt: Option<CommitReceipt>,
    /// Entries that were left out, each with the reason.
    pub refused: Vec<(EntryPath, StoreError)>,
}

impl ReadTransaction<'_> {
    /// Every entry that a branch shows and that belongs to a document of it, each with the time of its commit and without
    /// extended attributes.
    ///
    /// # Errors
    /// The branch does not exist, or has more than [`SUBTREE_ENTRIES_MAX`] such entries, or entries whose paths and targets
    /// have more than [`SYNC_ROW_BYTES_MAX`].
    pub fn sync_tree(&self, key: &SyncDocumentKey) -> Result<Vec<SyncRow>, StoreError> {
        let view = self.view(key.branch, None)?;
        let root = EntryPath::root();
        // Many entries have the same commit.
        let mut times = HashMap::new();
        let mut rows = Vec::new();
        let directory = match &key.top {
            Some(top) => root.child(top)?,
            None => root,
        };
        if !directory.is_root()
            && let Some(entry) = self.find(&view, &directory)?
        {
            rows.push(self.sync_row(entry, &mut times)?);
        }
        let mut bytes: u64 = rows.iter().map(SyncRow::bytes).sum();
        // Without attributes, which no peer gets: those of a large tree take gigabytes.
        let mut scan = TreeScan::below(&view, &directory);
        while let Some(chunk) = scan.next_chunk(self)? {
            for entry in chunk {
                let row = self.sync_row(entry, &mut times)?;
                bytes += row.bytes();
                rows.push(row);
            }
            check_row_bytes(bytes)?;
            if rows.len() > SUBTREE_ENTRIES_MAX {
                return Err(StoreError::too_many_entries());
            }
        }
        Ok(rows)
    }

    /// An entry with the time of its commit, which is looked up once.
    fn sync_row(
        &self,
        entry: Entry,
        times: &mut HashMap<u64, HybridTimestamp>,
    ) -> Result<SyncRow, StoreError> {
        let Entry {
            path, state, seq, ..
        } = entry;
        let timestamp = match times.get(&seq) {
            Some(known) => *known,
            None => {
                let time = self.time_of_commit(seq)?;
                times.insert(seq, time);
                time
            }
        };
        let state = EntryState {
            xattr: None,
            ..state
        };
        Ok(SyncRow {
            path,
            state,
            timestamp,
        })
    }

    fn time_of_commit(&self, seq: u64) -> Result<HybridTimestamp, StoreError> {
        let query = "SELECT hlc FROM commit_ WHERE seq = ?1";
        let time = self.query_row(query, [to_sql(seq)], |row| row.get(0))?;
        let time = time.map(HybridTimestamp::from_bytes);
        time.ok_or_else(|| StoreError::Damaged(format!("commit {seq} is missing")))
    }

    /// The newest version of each path of a document that the branch itself changed after a commit, without extended
    /// attributes.
    ///
    /// # Errors
    /// More than `paths_max` paths were changed, or paths that have more than [`SYNC_ROW_BYTES_MAX`] with their
    /// targets.
    pub fn sync_changes(
        &self,
        key: &SyncDocumentKey,
        after: u64,
        paths_max: usize,
    ) -> Result<Vec<SyncRow>, StoreError> {
        let branch = key.branch;
        let mut newest: BTreeMap<EntryPath, SyncRow> = BTreeMap::new();
        let mut bytes = 0;
        let mut last = (to_sql(after), String::new(), String::new(), true);
        loop {
            let (seq, parent, name, is_first) = &last;
            let chunk = self.query_all(
                "SELECT e.seq, e.parent, e.name, c.hlc, e.kind, e.hash, e.size, e.mode, e.mtime_ns, e.target, NULL \
                 FROM entry e JOIN commit_ c ON c.seq = e.seq WHERE e.seq >= ?2 AND e.branch_id = ?1 \
                 AND (e.seq > ?2 OR (NOT ?5 AND (e.parent, e.name) > (?3, ?4))) ORDER BY e.seq, e.parent, e.name LIMIT ?6",
                params![branch, seq, parent, name, is_first, to_sql(CHANGES_CHUNK as u64)],
                |row| {
                    let key: (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                    let timestamp = HybridTimestamp::from_bytes(row.get(3)?);
                    Ok((key, timestamp, EntryState::read(row, 4)?))
                },
            )?;
            let is_end = chunk.len() < CHANGES_CHUNK;
            for ((seq, parent, name), timestamp, state) in chunk {
                let path = EntryPath::from_stored(&parent, &name);
                last = (seq, parent, name, false);
                if !key.contains(&path) {
                    continue;
                }
                let row = SyncRow {
                    path: path.clone(),
                    state,
                    timestamp,
                };
                bytes += row.bytes();
                // Rows come in the order of their commits, so that the last one of a path stays.
                let earlier = newest.insert(path, row);
                bytes -= earlier.map_or(0, |row| row.bytes());
            }
            check_row_bytes(bytes)?;
            if newest.len() > paths_max {
                return Err(StoreError::TooLarge {
                    unit: "changed paths of a document of the synchronisation",
                    limit: paths_max as u64,
                });
            }
            if is_end {
                return Ok(newest.into_values().collect());
            }
        }
    }
}

impl WriteTransaction<'_> {
    /// Writes what peers changed as one commit with one event, behind one commit for each list of former versions. Locks
    /// do not count: the peer's owner has not heard of them.
    ///
    /// An entry that the tree has no place for is left out: one below a file, or a directory that has entries. A content that
    /// the bucket knows with another size has that one.
    ///
    /// # Errors
    /// The branch takes no changes, there are more of them than one job may write, or the bucket would have more than its
    /// quota.
    pub fn apply_synced(&mut self, synced: &SyncedChanges) -> Result<SyncedOutcome, StoreError> {
        let mut refused = Vec::new();
        if synced.changes.is_empty() {
            let receipt = None;
            return Ok(SyncedOutcome { receipt, refused });
        }
        // A version that lost may be written again where a deletion is refused, so that the bucket grows.
        let is_deletion =
            synced.former.is_empty() && synced.changes.iter().all(|(_, state)| !state.is_live());
        // Deletions fit into the reserve that all others leave.
        if !is_deletion {
            self.check_space()?;
        }
        let mut before = HashMap::new();
        let view = self.view(synced.branch, None)?;
        for (path, _) in synced.former.iter().flatten() {
            let current = self.find(&view, path)?;
            before.insert(path, current.map(|it| it.state));
        }
        for former in &synced.former {
            let mut commit = self.begin_synced(synced, is_deletion)?;
            for (path, state) in former {
                if let Err(error) = self.write_synced(&mut commit, path, state) {
                    refused.push((path.clone(), entry_error(error)?));
                }
            }
            self.finish_commit(&commit)?;
        }
        let mut commit = self.begin_synced(synced, is_deletion)?;
        // Directories that were looked at: a large tree has few of them for its files.
        let mut directories = HashSet::new();
        for (path, state) in in_writing_order(&synced.changes) {
            let placed = self.place_synced(&mut commit, &mut directories, path, state);
            if let Err(error) = placed {
                refused.push((path.clone(), entry_error(error)?));
                // A version that lost must not become the present one.
                if let Some(state) = before.remove(path) {
                    let deletion = || EntryState::deletion(commit.now_ns);
                    let state = state.unwrap_or_else(deletion);
                    self.write_entry(&mut commit, path, &state)?;
                }
            }
        }
        let has_rows = commit.rows() > 0;
        // One event for all paths: the first synchronisation of a large branch would fill the outbox.
        if has_rows {
            self.emit_in(&commit, EventTopic::SyncMerged, &commit.payload())?;
        }
        let receipt = self.finish_commit(&commit)?;
        Ok(SyncedOutcome {
            receipt: has_rows.then_some(receipt),
            refused,
        })
    }

    fn begin_synced(
        &mut self,
        synced: &SyncedChanges,
        is_deletion: bool,
    ) -> Result<OpenCommit, StoreError> {
        self.begin_commit(CommitHeader {
            branch: synced.branch,
            op: SYNC_OP,
            actor: &synced.actor,
            message: None,
            merged: None,
            is_deletion,
        })
    }

    /// Writes an entry where the tree has a place for it.
    fn place_synced(
        &mut self,
        commit: &mut OpenCommit,
        directories: &mut HashSet<EntryPath>,
        path: &EntryPath,
        state: &EntryState,
    ) -> Result<(), StoreError> {
        let current = self.find(&commit.view, path)?;
        if let Some(current) = &current
            && current.state.is_directory()
            && !state.is_directory()
            && !self.is_empty(&commit.view, path)?
        {
            // What is below it would be rows that no listing reaches.
            let path = path.to_string();
            return Err(StoreError::NotEmpty { path });
        }
        if !state.is_live() && current.is_none() {
            return Ok(());
        }
        let is_known = |path: &EntryPath| path.is_root() || directories.contains(path);
        if !path.parent().is_none_or(|parent| is_known(&parent)) {
            self.make_synced_parents(commit, path)?;
            directories.extend(path.ancestors());
        }
        if !state.is_directory() {
            directories.remove(path);
        }
        let xattr = current.and_then(|it| it.state.xattr);
        let xattr = xattr.filter(|_| state.is_live());
        let state = EntryState {
            xattr,
            ..state.clone()
        };
        self.write_synced(commit, path, &state)
    }

    /// Makes the directories above a path that are missing, without events of their own.
    fn make_synced_parents(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
    ) -> Result<(), StoreError> {
        for above in path.ancestors() {
            match self.find(&commit.view, &above)? {
                Some(entry) if entry.state.is_directory() => {}
                Some(_) => {
                    let path = above.to_string();
                    return Err(StoreError::NotDirectory { path });
                }
                None => {
                    let directory = EntryState::directory(commit.now_ns);
                    self.write_entry(commit, &above, &directory)?;
                }
            }
        }
        Ok(())
    }

    fn write_synced(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        state: &EntryState,
    ) -> Result<(), StoreError> {
        let mut state = state.clone();
        if state.kind == EntryKind::File
            && let Some(hash) = state.hash
        {
            let announced = FileContent {
                hash,
                size: state.size,
                presence: ContentPresence::Wanted,
            };
            // A content that the bucket has already stays so. The word of a peer gives no right to the bytes of others, and
            // changes no size that the bucket knows.
            state.size = self.declare_content(commit.bucket.id, &announced)?.size;
        }
        self.write_entry(commit, path, &state)
    }
}

/// Refuses rows that take more memory than those of a document may.
const fn check_row_bytes(bytes: u64) -> Result<(), StoreError> {
    if bytes > SYNC_ROW_BYTES_MAX {
        return Err(StoreError::TooLarge {
            unit: "bytes of paths and targets in one document of the synchronisation",
            limit: SYNC_ROW_BYTES_MAX,
        });
    }
    Ok(())
}

/// Deletions first, what is below a directory before the directory. Then the rest, a directory before what is below it.
fn in_writing_order(
    changes: &[(EntryPath, EntryState)],
) -> impl Iterator<Item = (&EntryPath, &EntryState)> {
    let mut sorted: Vec<_> = changes.iter().map(|(path, state)| (path, state)).collect();
    sorted.sort_by(|one, other| one.0.cmp(other.0));
    let (live, mut deleted): (Vec<_>, Vec<_>) =
        sorted.into_iter().partition(|(_, state)| state.is_live());
    deleted.reverse();
    deleted.into_iter().chain(live)
}

/// The error if it is about one entry alone.
fn entry_error(error: StoreError) -> Result<StoreError, StoreError> {
    // Then the job is too large, and no later entry would be written either.
    if error == StoreError::too_many_entries() || error == StoreError::too_many_bytes() {
        return Err(error);
    }
    match error {
        StoreError::NotDirectory { .. }
        | StoreError::NotEmpty { .. }
        | StoreError::SizeMismatch { .. }
        | StoreError::TooLarge { .. }
        | StoreError::InvalidPath(_) => Ok(error),
        other => Err(other),
    }
}
