//! Former versions of an entry.

use rusqlite::params;

use super::commit::OpenCommit;
use super::entry::{Entry, EntryState};
use super::list::TreeScan;
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
        let wanted = self.find(&then, path)?;
        let wanted = wanted.ok_or(StoreError::NotFound(StoreObject::Version))?;
        let present = self.find(&commit.view, path)?;
        let gone = match &present {
            Some(present) => self.count_subtree(&commit.view, present, |_| Ok(()))?,
            None => 0,
        };
        let brought = self.count_subtree(&then, &wanted, |_| Ok(()))?;
        self.count_entries(gone.saturating_sub(brought))?;
        self.check_growth(commit, brought)?;
        let rows_before = commit.rows();
        // What replaces a directory is written after everything below it is gone.
        if present.is_some_and(|it| it.state.is_directory()) {
            self.delete_added(commit, path, &then)?;
        }
        self.make_parents(commit, path)?;
        self.write_again(commit, &wanted)?;
        if wanted.state.is_directory() {
            let mut scan = TreeScan::below(&then, path).with_attributes();
            while let Some(chunk) = scan.next_chunk(self)? {
                for entry in chunk {
                    self.write_again(commit, &entry)?;
                }
            }
        }
        if commit.rows() == rows_before {
            return Ok(());
        }
        self.emit_entry(commit, EventTopic::Put, path, None, &wanted.state)
    }

    /// Deletes what is below a directory and is not in another tree.
    fn delete_added(
        &mut self,
        commit: &mut OpenCommit,
        directory: &EntryPath,
        then: &TreeView,
    ) -> Result<(), StoreError> {
        let deletion = EntryState::deletion(commit.now_ns);
        let view = commit.view.clone();
        let mut scan = TreeScan::below(&view, directory);
        while let Some(chunk) = scan.next_chunk(self)? {
            for entry in chunk {
                if self.find(then, &entry.path)?.is_none() {
                    self.write_row(commit, &entry.path, &deletion)?;
                }
            }
        }
        Ok(())
    }

    /// Writes an entry of another version, unless it is there as it is.
    fn write_again(&mut self, commit: &mut OpenCommit, entry: &Entry) -> Result<(), StoreError> {
        let present = self.find(&commit.view, &entry.path)?;
        if present.is_some_and(|it| it.state == entry.state) {
            return Ok(());
        }
        self.write_row(commit, &entry.path, &entry.state)
    }
}
