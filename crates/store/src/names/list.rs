//! Listings, page by page, in bounded memory.

use std::collections::BTreeMap;

use rusqlite::params;

use super::entry::{Entry, EntryState};
use super::resolve::{TreeLevel, TreeView};
use crate::db::{ReadTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::limits::PAGE_ENTRIES_MAX;
use crate::path::{EntryPath, PathRule};

/// Rows that a scan of a whole directory takes from each level at a time. A path and a target have 8 KiB at most.
const SUBTREE_CHUNK: usize = 1024;

/// The same with extended attributes, of which each row may have 16 KiB.
const ATTRIBUTES_CHUNK: usize = 256;

/// Rows that a listing takes from each level at least: most of them may be deletions, and each chunk is a query.
const LIST_CHUNK_MIN: usize = 256;

/// What to list.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// The directory.
    pub directory: EntryPath,
    /// Whether to list what is below its directories too. Then entries are ordered by their directory and name.
    pub is_recursive: bool,
    /// The last entry of the page before.
    pub after: Option<EntryPath>,
    /// Most entries of the page. Above [`PAGE_ENTRIES_MAX`] that limit counts.
    pub limit: usize,
}

impl ListRequest {
    /// The first page of a directory.
    #[must_use]
    pub const fn new(directory: EntryPath) -> Self {
        Self {
            directory,
            is_recursive: false,
            after: None,
            limit: PAGE_ENTRIES_MAX,
        }
    }
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPage {
    /// The entries, without their extended attributes.
    pub entries: Vec<Entry>,
    /// What to give as [`after`](ListRequest::after) for the next page. `None` on the last page.
    pub next: Option<EntryPath>,
}

impl ReadTransaction<'_> {
    /// A page of what is in a directory.
    ///
    /// # Errors
    /// The path leads to nothing or not to a directory, or the page begins outside of the directory.
    pub fn list(&self, view: &TreeView, request: &ListRequest) -> Result<EntryPage, StoreError> {
        let directory = self.stat(view, &request.directory)?;
        if !directory.state.is_directory() {
            let path = request.directory.to_string();
            return Err(StoreError::NotDirectory { path });
        }
        let mut scan = TreeScan::new(view, &request.directory, request.is_recursive);
        if let Some(after) = &request.after {
            scan.skip_to(after)?;
        }
        let limit = request.limit.clamp(1, PAGE_ENTRIES_MAX);
        let mut entries = Vec::new();
        // One more than the page, which says whether there is a next one.
        let rows = (limit + 1).max(LIST_CHUNK_MIN);
        while entries.len() <= limit
            && let Some(chunk) = scan.next_rows(self, rows)?
        {
            entries.extend(chunk);
        }
        let has_more = entries.len() > limit;
        entries.truncate(limit);
        let last = entries.last().filter(|_| has_more);
        let next = last.map(|entry| entry.path.clone());
        Ok(EntryPage { entries, next })
    }

    /// Everything below a directory, with extended attributes. Only for tests: the attributes of a large directory take
    /// gigabytes.
    #[cfg(test)]
    pub(crate) fn subtree(
        &self,
        view: &TreeView,
        directory: &EntryPath,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut scan = TreeScan::below(view, directory).with_attributes();
        let mut entries = Vec::new();
        while let Some(chunk) = scan.next_chunk(self)? {
            entries.extend(chunk);
        }
        Ok(entries)
    }

    /// Whether a path leads to a directory without entries.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn is_empty_directory(
        &self,
        view: &TreeView,
        path: &EntryPath,
    ) -> Result<bool, StoreError> {
        let entry = self.find(view, path)?;
        match entry.is_some_and(|it| it.state.is_directory()) {
            true => self.is_empty(view, path),
            false => Ok(false),
        }
    }

    /// Whether a directory has no entries.
    pub(crate) fn is_empty(
        &self,
        view: &TreeView,
        directory: &EntryPath,
    ) -> Result<bool, StoreError> {
        // A branch without ancestors: SQLite passes over deletions by itself, and ends at the first entry.
        if let [level] = view.levels.as_slice() {
            let found = self.query_count(
                "SELECT EXISTS (SELECT 1 FROM entry e WHERE e.branch_id = ?1 AND e.parent = ?2 AND e.seq <= ?3 \
                 AND e.kind <> 0 AND NOT EXISTS (SELECT 1 FROM entry n WHERE n.branch_id = ?1 AND n.parent = ?2 \
                 AND n.name = e.name AND n.seq > e.seq AND n.seq <= ?3))",
                params![level.branch, directory.as_str(), to_sql(level.max_seq)],
            )?;
            return Ok(found == 0);
        }
        let mut scan = TreeScan::new(view, directory, false);
        // A chunk of deletions alone is empty, although entries may follow.
        while let Some(chunk) = scan.next_chunk(self)? {
            if !chunk.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A walk over the entries of a directory, or over everything below it, in the order of the rows: by directory, then by
/// name. It holds one chunk, and rows that are written behind its position do not disturb it.
pub(super) struct TreeScan<'v> {
    view: &'v TreeView,
    directory: &'v EntryPath,
    is_recursive: bool,
    with_xattr: bool,
    position: ScanPosition,
}

/// Where a scan goes on.
enum ScanPosition {
    /// Within a directory, behind this name.
    Within { parent: String, after: String },
    /// In the directories behind this one.
    Behind { parent: String },
    /// The scan has returned its last entry.
    End,
}

impl<'v> TreeScan<'v> {
    fn new(view: &'v TreeView, directory: &'v EntryPath, is_recursive: bool) -> Self {
        Self {
            view,
            directory,
            is_recursive,
            with_xattr: false,
            position: ScanPosition::Within {
                parent: directory.to_string(),
                after: String::new(),
            },
        }
    }

    /// A walk over everything below a directory, without extended attributes.
    pub(super) fn below(view: &'v TreeView, directory: &'v EntryPath) -> Self {
        Self::new(view, directory, true)
    }

    /// The same with extended attributes: a copy or a move writes whole rows.
    pub(super) const fn with_attributes(mut self) -> Self {
        self.with_xattr = true;
        self
    }

    /// Goes on behind this entry, which need not exist any more.
    fn skip_to(&mut self, after: &EntryPath) -> Result<(), StoreError> {
        let (parent, name) = after.split().ok_or(PathRule::PageToken)?;
        let is_inside = if self.is_recursive {
            after.is_below(self.directory)
        } else {
            parent == self.directory.as_str()
        };
        if !is_inside {
            return Err(PathRule::PageToken.into());
        }
        self.position = ScanPosition::Within {
            parent: parent.to_owned(),
            after: name.to_owned(),
        };
        Ok(())
    }

    /// The next entries, of which there may be none although the scan goes on. `None` at its end.
    pub(super) fn next_chunk(
        &mut self,
        transaction: &ReadTransaction<'_>,
    ) -> Result<Option<Vec<Entry>>, StoreError> {
        let rows = if self.with_xattr {
            ATTRIBUTES_CHUNK
        } else {
            SUBTREE_CHUNK
        };
        self.next_rows(transaction, rows)
    }

    fn next_rows(
        &mut self,
        transaction: &ReadTransaction<'_>,
        rows: usize,
    ) -> Result<Option<Vec<Entry>>, StoreError> {
        if matches!(self.position, ScanPosition::End) {
            return Ok(None);
        }
        let mut merged = BTreeMap::new();
        let mut horizon: Option<(String, String)> = None;
        for level in &self.view.levels {
            let entries = self.rows_of_level(transaction, *level, rows)?;
            // A full chunk may have ended at the limit, so what follows in this level is unknown.
            let is_cut = entries.len() >= rows;
            let last = entries.last().filter(|_| is_cut).map(key_of);
            for entry in entries {
                // An earlier level has decided already.
                merged.entry(key_of(&entry)).or_insert(entry);
            }
            // Behind the last row of a level that was cut, that level may have rows which come first.
            horizon = [horizon, last].into_iter().flatten().min();
        }
        if let Some(horizon) = &horizon {
            // What is dropped comes again in the next chunk, with the rows of every level.
            merged.retain(|key, _| key <= horizon);
        }
        self.advance(horizon);
        let entries = merged.into_values();
        Ok(Some(entries.filter(|it| it.state.is_live()).collect()))
    }

    /// The next rows of one level, the newest of each path.
    fn rows_of_level(
        &self,
        transaction: &ReadTransaction<'_>,
        level: TreeLevel,
        rows: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        // SQLite takes the other columns from the row that has the maximum.
        let (query, from, to) = match &self.position {
            ScanPosition::Within { parent, after } => (
                "SELECT parent, name, max(seq), kind, hash, size, mode, mtime_ns, target, CASE WHEN ?6 THEN xattr END \
                 FROM entry WHERE branch_id = ?1 AND parent = ?2 AND name > ?3 AND seq <= ?4 \
                 GROUP BY name ORDER BY name LIMIT ?5",
                parent.clone(),
                after.clone(),
            ),
            ScanPosition::Behind { parent } => (
                "SELECT parent, name, max(seq), kind, hash, size, mode, mtime_ns, target, CASE WHEN ?6 THEN xattr END \
                 FROM entry WHERE branch_id = ?1 AND parent > ?2 AND parent < ?3 AND seq <= ?4 \
                 GROUP BY parent, name ORDER BY parent, name LIMIT ?5",
                parent.clone(),
                self.end_of_parents(),
            ),
            ScanPosition::End => return Ok(Vec::new()),
        };
        let max_seq = to_sql(level.max_seq);
        let rows = to_sql(rows as u64);
        transaction.query_all(
            query,
            params![level.branch, from, to, max_seq, rows, self.with_xattr],
            |row| {
                let parent: String = row.get(0)?;
                let name: String = row.get(1)?;
                Ok(Entry {
                    path: EntryPath::from_stored(&parent, &name),
                    state: EntryState::read(row, 3)?,
                    seq: from_sql(row.get(2)?),
                    branch: level.branch,
                })
            },
        )
    }

    /// Where the next chunk begins: behind the horizon, or in the next directories.
    fn advance(&mut self, horizon: Option<(String, String)>) {
        let position = std::mem::replace(&mut self.position, ScanPosition::End);
        self.position = match (position, horizon) {
            (ScanPosition::End, _) => ScanPosition::End,
            (_, Some((parent, after))) => ScanPosition::Within { parent, after },
            (ScanPosition::Within { .. }, None) if !self.is_recursive => ScanPosition::End,
            (ScanPosition::Within { parent, .. }, None) => {
                // A directory whose name only begins alike would come before the first slash.
                let is_start = parent == self.directory.as_str() && !self.directory.is_root();
                let parent = if is_start { parent + "/" } else { parent };
                ScanPosition::Behind { parent }
            }
            (ScanPosition::Behind { .. }, None) => ScanPosition::End,
        };
    }

    /// The first text behind all directories below the one that is scanned: `0` is the byte behind `/`.
    fn end_of_parents(&self) -> String {
        if self.directory.is_root() {
            return "0".to_owned();
        }
        format!("{}0", self.directory)
    }
}

fn key_of(entry: &Entry) -> (String, String) {
    let (parent, name) = entry.path.split().unwrap_or_default();
    (parent.to_owned(), name.to_owned())
}
