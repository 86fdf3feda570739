//! Former versions of an entry.

use std::collections::BTreeMap;

use rusqlite::params;

use super::commit::OpenCommit;
use super::entry::{Entry, EntryState};
use super::resolve::TreeView;
use crate::clock::HybridTimestamp;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::{PAGE_ENTRIES_MAX, SEQ_MAX};
use crate::outbox::EventTopic;
use crate::path::EntryPath;

/// A version of an entry, with its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryVersion {
    /// What the entry was, which may be deleted.
    pub state: EntryState,
    /// Number of the commit.
    pub seq: u64,
    /// Time of the commit, in milliseconds since 1970-01-01 UTC.
    pub unix_ms: u64,
    /// Time of the commit by the hybrid clock.
    pub timestamp: HybridTimestamp,
    /// Who made it.
    pub actor: String,
    /// What it did: the name of a change, `batch`, `merge` or `rebase`.
    pub op: String,
    /// Text that the actor gave with the commit. `None` if there was none.
    pub message: Option<String>,
}

impl ReadTransaction<'_> {
    /// Versions of the entry at a path, the newest first, before this commit. A move begins a new history at the new
    /// path.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn history(
        &self,
        view: &TreeView,
        path: &EntryPath,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<EntryVersion>, StoreError> {
        let (parent, name) = path.columns()?;
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX);
        // The number is excluded, so that a page begins behind the last version of the page before.
        let last = before.map_or(SEQ_MAX, |before| before.saturating_sub(1));
        let mut versions = Vec::new();
        // Every row of a level is newer than all rows of the levels behind it.
        for level in &view.levels {
            let max_seq = to_sql(level.max_seq.min(last));
            let missing = to_sql((limit - versions.len()) as u64);
            let found = self.query_all(
                "SELECT e.seq, c.ts_ms, c.hlc, c.actor, c.op, c.message, e.kind, e.hash, e.size, e.mode, e.mtime_ns, \
                 e.target, e.xattr FROM entry e JOIN commit_ c ON c.seq = e.seq \
                 WHERE e.branch_id = ?1 AND e.parent = ?2 AND e.name = ?3 AND e.seq <= ?4 ORDER BY e.seq DESC LIMIT ?5",
                params![level.branch, parent, name, max_seq, missing],
                |row| {
                    Ok(EntryVersion {
                        state: EntryState::read(row, 6)?,
                        seq: from_sql(row.get(0)?),
                        unix_ms: from_sql(row.get(1)?),
                        timestamp: HybridTimestamp::from_bytes(row.get(2)?),
                        actor: row.get(3)?,
                        op: row.get(4)?,
                        message: row.get(5)?,
                    })
                },
            )?;
            versions.extend(found);
            if versions.len() >= limit {
                break;
            }
        }
        Ok(versions)
    }
}

impl WriteTransaction<'_> {
    /// Makes an entry what it was after a commit, with everything below it.
    pub(super) fn restore(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        seq: u64,
    ) -> Result<(), StoreError> {
        // The root has no row, so it cannot be written back; its former state is read through a
        // view.
        path.columns()?;
        let then = self.view(commit.branch.id, Some(seq.min(commit.seq)))?;
        let wanted = self.tree_at(&then, path)?;
        let present = self.tree_at(&commit.view, path)?;
        let root = wanted.get(path).cloned();
        let root = root.ok_or(StoreError::NotFound(StoreObject::Version))?;
        // What replaces a directory is written after everything below it is gone.
        let deletion = EntryState::deletion(commit.now_ns);
        for gone in present.keys().filter(|it| !wanted.contains_key(*it)) {
            self.write_entry(commit, gone, &deletion)?;
        }
        self.make_parents(commit, path)?;
        for (path, state) in wanted {
            if present.get(&path) != Some(&state) {
                self.write_entry(commit, &path, &state)?;
            }
        }
        self.emit_entry(commit, EventTopic::Put, path, None, &root)
    }

    /// An entry and everything below it, by path.
    fn tree_at(
        &self,
        view: &TreeView,
        path: &EntryPath,
    ) -> Result<BTreeMap<EntryPath, EntryState>, StoreError> {
        let Some(entry) = self.find(view, path)? else {
            return Ok(BTreeMap::new());
        };
        let entries = self.with_subtree(view, entry)?;
        let states = entries
            .into_iter()
            .map(|Entry { path, state, .. }| (path, state));
        Ok(states.collect())
    }
}
