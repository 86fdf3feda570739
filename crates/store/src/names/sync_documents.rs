//! The documents of synchronised branches: one of a whole branch, or one for each name in its root.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;

use super::list::ListRequest;
use super::{BranchId, BucketId};
use crate::address::{BranchName, BucketName};
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::SYNC_TOPS_MAX;
use crate::path::EntryPath;

/// Bytes of a head of a document.
const HEAD_BYTES: usize = 32;

/// From a hash on, the contents that a bucket waits for, and those that it had and that are damaged.
const AWAITED_FROM: [&str; 2] = [
    "SELECT hash FROM blob_bucket WHERE bucket_id = ?1 AND wanted = 1 AND refs > 0 AND hash >= ?2 \
     ORDER BY hash LIMIT ?3",
    // From the few that are damaged to the bucket, and not the other way: it may have a million contents.
    "SELECT b.hash FROM blob b CROSS JOIN blob_bucket k ON k.hash = b.hash AND k.bucket_id = ?1 \
     WHERE b.state = 3 AND b.hash >= ?2 AND k.wanted = 0 AND k.refs > 0 ORDER BY b.hash LIMIT ?3",
];

/// The same before a hash.
const AWAITED_BEFORE: [&str; 2] = [
    "SELECT hash FROM blob_bucket WHERE bucket_id = ?1 AND wanted = 1 AND refs > 0 AND hash < ?2 \
     ORDER BY hash LIMIT ?3",
    "SELECT b.hash FROM blob b CROSS JOIN blob_bucket k ON k.hash = b.hash AND k.bucket_id = ?1 \
     WHERE b.state = 3 AND b.hash < ?2 AND k.wanted = 0 AND k.refs > 0 ORDER BY b.hash LIMIT ?3",
];

/// A document of a branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SyncDocumentKey {
    /// The branch.
    pub branch: BranchId,
    /// The name in the root of the branch that the document is about, with everything below it. `None` for the document of
    /// the whole branch.
    pub top: Option<String>,
}

impl SyncDocumentKey {
    /// Whether a path belongs to the document.
    #[must_use]
    pub fn contains(&self, path: &EntryPath) -> bool {
        match &self.top {
            Some(top) => top_of(path) == Some(top),
            None => !path.is_root(),
        }
    }
}

impl From<BranchId> for SyncDocumentKey {
    fn from(branch: BranchId) -> Self {
        Self { branch, top: None }
    }
}

/// The first component of a path. `None` for the root.
fn top_of(path: &EntryPath) -> Option<&str> {
    let below = path.as_str().strip_prefix('/')?;
    let top = below.split('/').next();
    top.filter(|top| !top.is_empty())
}

/// The document of a branch as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSyncDocument {
    /// Random identity of this copy. A copy that is made again gets another one.
    pub copy_id: [u8; 16],
    /// Number of the last commit of the branch that the document has taken in.
    pub applied: u64,
    /// The parts of the document in the order in which they were added.
    pub chunks: Vec<Vec<u8>>,
}

/// What a document has after a change.
#[derive(Clone, Debug)]
pub struct SyncDocumentUpdate {
    /// Identity of the copy.
    pub copy_id: [u8; 16],
    /// A part to add. `None` if only [`applied`](Self::applied) changes.
    pub chunk: Option<Vec<u8>>,
    /// Whether the part is the whole document, so that earlier ones are removed.
    pub is_whole: bool,
    /// Number of the last commit of the branch that the document has taken in.
    pub applied: u64,
    /// Hashes of the last changes in the document.
    pub heads: Vec<[u8; 32]>,
}

/// The names in the root of a branch that has a document for each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncTops {
    /// Number of the last commit of the branch.
    pub head_seq: u64,
    /// The last changes of each document that has taken in all commits; `None` for one that has not, or does not exist yet.
    /// Names that were deleted are among them for as long as their document is kept.
    pub heads: BTreeMap<String, Option<Vec<[u8; 32]>>>,
    /// The names that the branch shows.
    pub live: BTreeSet<String>,
    /// Whether the number of the last commit that a document has taken in can be raised, which spares a later look at the
    /// commits since.
    pub is_behind: bool,
}

/// A branch of a bucket that is synchronised, which takes changes of peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncableBranch {
    /// Name of the bucket.
    pub bucket: BucketName,
    /// Name of the branch.
    pub branch: BranchName,
    /// Number of the last commit of the branch.
    pub head_seq: u64,
}

impl ReadTransaction<'_> {
    /// The number of a document in the tables. `None` if it does not exist yet.
    fn sync_document_number(&self, key: &SyncDocumentKey) -> Result<Option<i64>, StoreError> {
        let Some(top) = &key.top else {
            return Ok(Some(key.branch.number()));
        };
        let query = "SELECT -id FROM sync_part WHERE branch_id = ?1 AND top = ?2";
        self.query_row(query, params![key.branch, top], |row| row.get(0))
    }

    /// A document of a branch. `None` before the first synchronisation.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn sync_document(
        &self,
        key: &SyncDocumentKey,
    ) -> Result<Option<StoredSyncDocument>, StoreError> {
        let Some(number) = self.sync_document_number(key)? else {
            return Ok(None);
        };
        let query = "SELECT doc_id, applied FROM sync_doc WHERE branch_id = ?1";
        let row = self.query_row(query, [number], |row| {
            Ok((row.get::<_, [u8; 16]>(0)?, from_sql(row.get(1)?)))
        })?;
        let Some((copy_id, applied)) = row else {
            return Ok(None);
        };
        let query = "SELECT data FROM sync_log WHERE branch_id = ?1 ORDER BY id";
        Ok(Some(StoredSyncDocument {
            copy_id,
            applied,
            chunks: self.query_all(query, [number], |row| row.get(0))?,
        }))
    }

    /// Identity of the stored copy of a document. `None` if it was never stored.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn sync_copy_id(&self, key: &SyncDocumentKey) -> Result<Option<[u8; 16]>, StoreError> {
        let Some(number) = self.sync_document_number(key)? else {
            return Ok(None);
        };
        let query = "SELECT doc_id FROM sync_doc WHERE branch_id = ?1";
        self.query_row(query, [number], |row| row.get(0))
    }

    /// The last changes of a stored document that has taken in every commit of its paths. `None` if it has not, or does not
    /// exist.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn sync_heads(&self, key: &SyncDocumentKey) -> Result<Option<Vec<[u8; 32]>>, StoreError> {
        let Some(number) = self.sync_document_number(key)? else {
            return Ok(None);
        };
        let query = "SELECT applied, doc FROM sync_doc WHERE branch_id = ?1";
        let row = self.query_row(query, [number], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Vec<u8>>>(1)?))
        })?;
        let Some((applied, heads)) = row else {
            return Ok(None);
        };
        let newer = match &key.top {
            None => {
                let query =
                    "SELECT EXISTS (SELECT 1 FROM branch WHERE id = ?1 AND head_seq > ?2)";
                self.query_count(query, params![key.branch, applied])?
            }
            Some(top) => self.query_count(
                "SELECT EXISTS (SELECT 1 FROM entry WHERE seq > ?2 AND branch_id = ?1 AND (parent = '/' AND name = ?3 \
                 OR parent = '/' || ?3 OR (parent > '/' || ?3 || '/' AND parent < '/' || ?3 || '0')))",
                params![key.branch, applied, top],
            )?,
        };
        let heads = heads.filter(|_| newer == 0);
        Ok(heads.map(|heads| read_heads(&heads)))
    }

    /// What the store keeps about the synchronisation of a document with a peer.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn sync_peer(
        &self,
        key: &SyncDocumentKey,
        peer: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(number) = self.sync_document_number(key)? else {
            return Ok(None);
        };
        let query = "SELECT state FROM sync_peer WHERE branch_id = ?1 AND peer = ?2";
        self.query_row(query, params![number, peer], |row| row.get(0))
    }

    /// The names in the root of a branch for which there are documents, or should be.
    ///
    /// # Errors
    /// The branch does not exist, or has more than [`SYNC_TOPS_MAX`] such names.
    pub fn sync_tops(&self, branch: BranchId) -> Result<SyncTops, StoreError> {
        let mut tops = SyncTops {
            head_seq: self.branch(branch)?.head_seq,
            live: self.names_in_root(branch)?,
            ..SyncTops::default()
        };
        let documents = self.query_all(
            "SELECT p.top, d.applied, d.doc FROM sync_part p JOIN sync_doc d ON d.branch_id = -p.id WHERE p.branch_id = ?1",
            [branch],
            |row| {
                let heads: Option<Vec<u8>> = row.get(2)?;
                Ok((row.get::<_, String>(0)?, from_sql(row.get(1)?), heads))
            },
        )?;
        let oldest = documents.iter().map(|(_, applied, _)| *applied).min();
        let changed = match oldest {
            Some(oldest) if oldest < tops.head_seq => self.tops_changed_after(branch, oldest)?,
            _ => BTreeMap::new(),
        };
        for (top, applied, heads) in documents {
            let is_current = changed.get(&top).is_none_or(|last| *last <= applied);
            tops.is_behind |= is_current && applied < tops.head_seq;
            let heads = heads.filter(|_| is_current);
            tops.heads
                .insert(top, heads.map(|heads| read_heads(&heads)));
        }
        for top in &tops.live {
            tops.heads.entry(top.clone()).or_default();
        }
        match tops.heads.len() > SYNC_TOPS_MAX {
            true => Err(too_many_tops()),
            false => Ok(tops),
        }
    }

    fn names_in_root(&self, branch: BranchId) -> Result<BTreeSet<String>, StoreError> {
        let view = self.view(branch, None)?;
        let mut request = ListRequest::new(EntryPath::root());
        let mut names = BTreeSet::new();
        loop {
            let page = self.list(&view, &request)?;
            let tops = page.entries.iter().filter_map(|it| top_of(&it.path));
            names.extend(tops.map(str::to_owned));
            if names.len() > SYNC_TOPS_MAX {
                return Err(too_many_tops());
            }
            match page.next {
                Some(next) => request.after = Some(next),
                None => return Ok(names),
            }
        }
    }

    /// The first components of the paths that a branch changed after a commit, each with the last such commit.
    fn tops_changed_after(
        &self,
        branch: BranchId,
        after: u64,
    ) -> Result<BTreeMap<String, u64>, StoreError> {
        let rows = self.query_all(
            "SELECT CASE WHEN parent = '/' THEN name ELSE substr(parent, 2, instr(substr(parent, 2) || '/', '/') - 1) END \
             AS top, max(seq) FROM entry WHERE seq > ?2 AND branch_id = ?1 GROUP BY top",
            params![branch, to_sql(after)],
            |row| Ok((row.get::<_, String>(0)?, from_sql(row.get(1)?))),
        )?;
        Ok(rows.into_iter().collect())
    }

    /// Branches of synchronised buckets that take changes of peers, at most so many, in the order of the names. Each bucket
    /// gets the same part, and what some leave of it is shared by the others: a bucket with many branches keeps out those of
    /// no other one.
    ///
    /// # Errors
    /// The database refuses a query.
    pub fn syncable_branches(&self, limit: usize) -> Result<Vec<SyncableBranch>, StoreError> {
        let buckets: Vec<(BucketId, String)> = self.query_all(
            "SELECT id, name FROM bucket WHERE (sync = 'on' OR sync LIKE 'on,%') AND state = 'live' ORDER BY name LIMIT ?1",
            [to_sql(limit as u64)],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let part = limit / buckets.len().max(1);
        let mut found = Vec::new();
        for bucket in &buckets {
            found.push(self.syncable_branches_in(bucket, part)?);
        }
        let taken: usize = found.iter().map(Vec::len).sum();
        let full = found.iter().filter(|rows| rows.len() == part).count();
        // Once, so that the cost has a bound. What is left after that goes to no bucket.
        let more = (limit - taken).checked_div(full).unwrap_or_default();
        if more > 0 {
            for (bucket, rows) in buckets.iter().zip(&mut found) {
                if rows.len() == part {
                    *rows = self.syncable_branches_in(bucket, part + more)?;
                }
            }
        }
        Ok(found.concat())
    }

    /// Those of one bucket.
    fn syncable_branches_in(
        &self,
        (bucket, name): &(BucketId, String),
        limit: usize,
    ) -> Result<Vec<SyncableBranch>, StoreError> {
        self.query_all(
            "SELECT name, head_seq FROM branch WHERE bucket_id = ?1 AND state = 'open' AND protected = 0 \
             ORDER BY name LIMIT ?2",
            params![bucket, to_sql(limit as u64)],
            |row| {
                Ok(SyncableBranch {
                    bucket: BucketName::from_stored(name.clone()),
                    branch: BranchName::from_stored(row.get(0)?),
                    head_seq: from_sql(row.get(1)?),
                })
            },
        )
    }

    /// Contents whose bytes a bucket waits for, and those that it had and that proved damaged or lost, in the order of their
    /// hashes from one on, which the first ones follow.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn awaited_contents(
        &self,
        bucket: BucketId,
        from: ContentHash,
        limit: usize,
    ) -> Result<Vec<ContentHash>, StoreError> {
        let mut found = Vec::new();
        for [awaited, damaged] in [AWAITED_FROM, AWAITED_BEFORE] {
            let rest = limit.saturating_sub(found.len());
            let rows = |query: &'static str| {
                let params = params![bucket, from, to_sql(rest as u64)];
                self.query_all(query, params, |row| row.get::<_, ContentHash>(0))
            };
            let mut both = rows(awaited)?;
            both.extend(rows(damaged)?);
            // In one order: of either kind there may be many that no peer has, and these must not come before all others.
            both.sort_unstable();
            both.truncate(rest);
            found.extend(both);
        }
        Ok(found)
    }
}

impl WriteTransaction<'_> {
    /// The number of a document in the tables, which it gets if it has none.
    fn claim_sync_document(&self, key: &SyncDocumentKey) -> Result<i64, StoreError> {
        if let Some(number) = self.sync_document_number(key)? {
            return Ok(number);
        }
        let taken = "SELECT count(*) FROM sync_part WHERE branch_id = ?1";
        // A peer chooses the names. This is where their number is bounded.
        if self.query_count(taken, [key.branch])? >= SYNC_TOPS_MAX as u64 {
            return Err(too_many_tops());
        }
        let insert = "INSERT INTO sync_part(branch_id, top, saved_ms) VALUES (?1, ?2, ?3)";
        let now = to_sql(self.unix_ms());
        Ok(-self.insert(insert, params![key.branch, key.top, now])?)
    }

    /// Stores what a document of a branch has from now on. With another copy than before, what peers have in common with
    /// the document is forgotten.
    ///
    /// # Errors
    /// The branch has documents for too many names already, or the database refuses a statement.
    pub fn save_sync_document(
        &mut self,
        key: &SyncDocumentKey,
        update: &SyncDocumentUpdate,
    ) -> Result<(), StoreError> {
        let number = self.claim_sync_document(key)?;
        let before = self.sync_copy_id(key)?;
        if before.is_some_and(|copy_id| copy_id != update.copy_id) {
            // Changes of the other copy are not in this one.
            self.execute("DELETE FROM sync_peer WHERE branch_id = ?1", [number])?;
        }
        self.execute(
            "INSERT INTO sync_doc(branch_id, doc_id, doc, applied) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT(branch_id) DO UPDATE SET doc_id = ?2, doc = ?3, applied = ?4",
            params![
                number,
                update.copy_id,
                update.heads.concat(),
                to_sql(update.applied)
            ],
        )?;
        if update.is_whole {
            self.execute("DELETE FROM sync_log WHERE branch_id = ?1", [number])?;
        }
        if let Some(chunk) = &update.chunk {
            let insert = "INSERT INTO sync_log(branch_id, data) VALUES (?1, ?2)";
            self.execute(insert, params![number, chunk])?;
            let saved = "UPDATE sync_part SET saved_ms = ?2 WHERE id = -?1";
            self.execute(saved, params![number, to_sql(self.unix_ms())])?;
        }
        Ok(())
    }

    /// Stores what is known about the synchronisation of a document with a peer.
    ///
    /// # Errors
    /// The branch has documents for too many names already, or the database refuses the statement.
    pub fn save_sync_peer(
        &mut self,
        key: &SyncDocumentKey,
        peer: &str,
        state: &[u8],
    ) -> Result<(), StoreError> {
        let number = self.claim_sync_document(key)?;
        let put = "INSERT OR REPLACE INTO sync_peer(branch_id, peer, state) VALUES (?1, ?2, ?3)";
        self.execute(put, params![number, peer, state]).map(drop)
    }

    /// Notes which documents have taken in every commit, and removes those of names that the branch does not show and whose
    /// document did not change since a time: every peer has had the time to hear of the deletion.
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn tidy_sync_tops(
        &mut self,
        branch: BranchId,
        tops: &SyncTops,
        before_ms: u64,
    ) -> Result<(), StoreError> {
        let known = tops.heads.iter().filter(|(_, heads)| heads.is_some());
        for (top, _) in known {
            let raise = "UPDATE sync_doc SET applied = max(applied, ?3) \
                         WHERE branch_id = (SELECT -id FROM sync_part WHERE branch_id = ?1 AND top = ?2)";
            self.execute(raise, params![branch, top, to_sql(tops.head_seq)])?;
        }
        for top in self.old_sync_parts(branch, tops, before_ms)? {
            self.remove_sync_document(-top)?;
            self.execute("DELETE FROM sync_part WHERE id = ?1", [top])?;
        }
        Ok(())
    }

    /// Removes all documents of a bucket, and what is known about peers.
    pub(super) fn remove_sync_documents(&self, bucket: BucketId) -> Result<(), StoreError> {
        let branches = "SELECT id FROM branch WHERE bucket_id = ?1";
        let branches: Vec<BranchId> = self.query_all(branches, [bucket], |row| row.get(0))?;
        let mut branches = branches.into_iter();
        branches.try_for_each(|branch| self.remove_sync_documents_of(branch))
    }

    /// Removes the documents of a branch, and what is known about peers.
    pub(super) fn remove_sync_documents_of(&self, branch: BranchId) -> Result<(), StoreError> {
        self.remove_sync_document(branch.number())?;
        let parts = "SELECT id FROM sync_part WHERE branch_id = ?1";
        let parts: Vec<i64> = self.query_all(parts, [branch], |row| row.get(0))?;
        let mut parts = parts.into_iter();
        parts.try_for_each(|part| self.remove_sync_document(-part))?;
        let delete = "DELETE FROM sync_part WHERE branch_id = ?1";
        self.execute(delete, [branch]).map(drop)
    }

    fn remove_sync_document(&self, number: i64) -> Result<(), StoreError> {
        self.execute("DELETE FROM sync_doc WHERE branch_id = ?1", [number])?;
        self.execute("DELETE FROM sync_peer WHERE branch_id = ?1", [number])?;
        let delete = "DELETE FROM sync_log WHERE branch_id = ?1";
        self.execute(delete, [number]).map(drop)
    }
}

impl ReadTransaction<'_> {
    /// Whether [`tidy_sync_tops`](WriteTransaction::tidy_sync_tops) has something to do.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn has_untidy_sync_tops(
        &self,
        branch: BranchId,
        tops: &SyncTops,
        before_ms: u64,
    ) -> Result<bool, StoreError> {
        let is_untidy = tops.is_behind || !self.old_sync_parts(branch, tops, before_ms)?.is_empty();
        Ok(is_untidy)
    }

    fn old_sync_parts(
        &self,
        branch: BranchId,
        tops: &SyncTops,
        before_ms: u64,
    ) -> Result<Vec<i64>, StoreError> {
        let query = "SELECT id, top FROM sync_part WHERE branch_id = ?1 AND saved_ms < ?2";
        let parts = self.query_all(query, params![branch, to_sql(before_ms)], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        let parts = parts.into_iter();
        let gone = parts.filter(|(_, top)| !tops.live.contains(top));
        Ok(gone.map(|(part, _)| part).collect())
    }
}

fn read_heads(bytes: &[u8]) -> Vec<[u8; 32]> {
    let heads = bytes.chunks_exact(HEAD_BYTES);
    heads.filter_map(|head| head.try_into().ok()).collect()
}

const fn too_many_tops() -> StoreError {
    StoreError::TooLarge {
        unit: "names in the root of a split bucket",
        limit: SYNC_TOPS_MAX as u64,
    }
}
