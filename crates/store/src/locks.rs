//! Locks of entries: advisory ones, which programs agree on by themselves, and those of WebDAV, which writers obey.
//!
//! Both are rows of one kind, so that a path has one lock. A lock is by path and branch, and not by entry: it covers a
//! name that does not exist yet. Readers never look at locks.

mod token;

use std::time::Duration;

use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

use crate::bounds::{check_length, end_ms};
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::{
    ACTOR_BYTES_MAX, LEASE_TIME_MIN, LOCK_NOTE_BYTES_MAX, LOCK_TIME_MAX, LOCKS_MAX,
    LOCKS_OF_OWNER_MAX, LOCKS_SHARE_DIVISOR,
};
use crate::names::{
    BranchId, ChangeRequest, CommitReceipt, EntryAttributes, EntryPrecondition, FileContent,
    PurgeProgress, TreeChange,
};
use crate::path::EntryPath;

pub use token::LockToken;

/// `job.queue` of locks. No queue can have this name.
const LOCK_QUEUE: &str = "lock";

/// Lapsed locks that a new one sweeps, so that they do not count against its limits.
const SWEPT_AT_ONCE: usize = 100;

/// What a lock covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockDepth {
    /// The entry, and for a directory which names it has.
    Zero,
    /// The entry, and everything below it.
    Infinity,
}

/// Who obeys a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// Programs that ask for the same lock. Writers do not look at it.
    Advisory,
    /// Every writer: only requests with the token change what it covers. Shared locks of WebDAV do not exist.
    Exclusive,
}

/// A lock to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLock {
    /// The branch.
    pub branch: BranchId,
    /// The entry, which need not exist.
    pub path: EntryPath,
    /// The identity that takes it. Only its own requests can use the token.
    pub owner: String,
    /// How the client describes the owner (RFC 4918 §14.17). The store does not read it.
    pub note: String,
    /// What it covers.
    pub depth: LockDepth,
    /// Who obeys it.
    pub kind: LockKind,
    /// How long it lasts, at most [`LOCK_TIME_MAX`].
    pub time: Duration,
}

impl NewLock {
    /// An advisory lock of one path.
    #[must_use]
    pub fn advisory(branch: BranchId, path: EntryPath, owner: &str, time: Duration) -> Self {
        Self {
            branch,
            path,
            owner: owner.to_owned(),
            note: String::new(),
            depth: LockDepth::Zero,
            kind: LockKind::Advisory,
            time,
        }
    }

    /// A lock of WebDAV.
    #[must_use]
    pub fn exclusive(
        branch: BranchId,
        path: EntryPath,
        owner: &str,
        depth: LockDepth,
        time: Duration,
    ) -> Self {
        Self {
            depth,
            kind: LockKind::Exclusive,
            ..Self::advisory(branch, path, owner, time)
        }
    }
}

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryLock {
    /// By what a request shows that it may change what the lock covers.
    pub token: LockToken,
    /// The entry that it was taken on.
    pub path: EntryPath,
    /// The identity that took it.
    pub owner: String,
    /// How the client describes the owner.
    pub note: String,
    /// What it covers.
    pub depth: LockDepth,
    /// Who obeys it.
    pub kind: LockKind,
    /// When it ends, in milliseconds since 1970-01-01 UTC.
    pub until_ms: u64,
}

/// A lock that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedEntry {
    /// The lock.
    pub lock: EntryLock,
    /// The commit that made an empty file, because nothing was at the path (RFC 4918 §7.3).
    pub made: Option<CommitReceipt>,
}

/// Who asks, and with which tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct LockHolder<'a> {
    /// The identity of the request.
    pub owner: &'a str,
    /// The tokens that it brings.
    pub tokens: &'a [LockToken],
}

impl LockHolder<'_> {
    /// Whether the holder may change what the lock covers.
    fn may_pass(self, lock: &EntryLock) -> bool {
        // The identity counts too (RFC 4918 §6.4): a token is no secret, because others find it in
        // properties.
        let is_own = lock.owner == self.owner && self.tokens.contains(&lock.token);
        lock.kind == LockKind::Advisory || is_own
    }
}

/// How a change uses a path, which decides the locks that forbid it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockedChange {
    /// The content or the attributes of the entry.
    Content,
    /// A name appears. That changes the directory as well (RFC 4918 §7.4).
    Name,
    /// A name disappears or is replaced, with everything below it.
    Subtree,
}

/// The payload of a row. The owner comes first, so that one query counts the locks of an owner.
#[derive(Serialize, Deserialize)]
struct LockRow {
    owner: String,
    path: String,
    token: String,
    depth: LockDepth,
    kind: LockKind,
    note: String,
}

const SELECT_LOCK: &str = "SELECT payload, lease_ms FROM job WHERE key = ?1 AND lease_ms > ?2";

fn read_row(row: &Row<'_>) -> rusqlite::Result<(String, i64)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn parse_lock((payload, until): (String, i64)) -> Result<EntryLock, StoreError> {
    // An error and not a missing lock: a damaged row must not open what it covers.
    let damaged = |error: String| StoreError::Damaged(format!("a lock: {error}"));
    let row: LockRow =
        serde_json::from_str(&payload).map_err(|error| damaged(error.to_string()))?;
    let token = row.token.parse::<LockToken>();
    let token = token.map_err(|error| damaged(error.to_string()))?;
    Ok(EntryLock {
        token,
        path: EntryPath::parse(&row.path)?,
        owner: row.owner,
        note: row.note,
        depth: row.depth,
        kind: row.kind,
        until_ms: from_sql(until),
    })
}

/// The key of the lock of a path.
fn lock_key(branch: BranchId, path: &EntryPath) -> String {
    format!("{LOCK_QUEUE}:{branch}:{path}")
}

/// The range of the keys below a path, both ends left out.
fn keys_below(branch: BranchId, path: &EntryPath) -> (String, String) {
    let mut first = lock_key(branch, path);
    if !path.is_root() {
        first.push('/');
    }
    // `0` is the sign behind the slash.
    let mut end = first.clone();
    end.pop();
    end.push('0');
    (first, end)
}

impl ReadTransaction<'_> {
    /// The lock that was taken on this path itself, if it has not ended at this time.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn entry_lock(
        &self,
        branch: BranchId,
        path: &EntryPath,
        now_ms: u64,
    ) -> Result<Option<EntryLock>, StoreError> {
        let key = lock_key(branch, path);
        let found = self.query_row(SELECT_LOCK, params![key, to_sql(now_ms)], read_row)?;
        found.map(parse_lock).transpose()
    }

    /// The locks that cover this path: its own, and those of directories above it with an infinite depth.
    ///
    /// # Errors
    /// The database refuses a query.
    pub fn covering_locks(
        &self,
        branch: BranchId,
        path: &EntryPath,
        now_ms: u64,
    ) -> Result<Vec<EntryLock>, StoreError> {
        let mut locks = Vec::new();
        if !self.has_locks(branch)? {
            return Ok(locks);
        }
        let above = [EntryPath::root()].into_iter().chain(path.ancestors());
        for directory in above.filter(|it| it != path) {
            let lock = self.entry_lock(branch, &directory, now_ms)?;
            locks.extend(lock.filter(|it| it.depth == LockDepth::Infinity));
        }
        locks.extend(self.entry_lock(branch, path, now_ms)?);
        Ok(locks)
    }

    /// The locks below a path. Their number is bounded by [`LOCKS_MAX`].
    fn locks_below(
        &self,
        branch: BranchId,
        path: &EntryPath,
        now_ms: u64,
    ) -> Result<Vec<EntryLock>, StoreError> {
        let (first, end) = keys_below(branch, path);
        let query =
            "SELECT payload, lease_ms FROM job WHERE key > ?1 AND key < ?2 AND lease_ms > ?3";
        let rows = self.query_all(query, params![first, end, to_sql(now_ms)], read_row)?;
        rows.into_iter().map(parse_lock).collect()
    }

    /// Whether the branch has a lock, lapsed ones counted. Most branches have none, and a write asks for no more then.
    pub(crate) fn has_locks(&self, branch: BranchId) -> Result<bool, StoreError> {
        // `;` is the sign behind the colon.
        let (first, end) = (
            format!("{LOCK_QUEUE}:{branch}:"),
            format!("{LOCK_QUEUE}:{branch};"),
        );
        let query = "SELECT 1 FROM job WHERE key > ?1 AND key < ?2 LIMIT 1";
        let found = self.query_row(query, [first, end], |row| row.get::<_, i64>(0))?;
        Ok(found.is_some())
    }
}

impl WriteTransaction<'_> {
    /// Refuses a change that a lock forbids. Writers ask before they change a name; readers never do.
    ///
    /// # Errors
    /// [`StoreError::Locked`] with the path of the lock.
    pub fn check_locks(
        &self,
        branch: BranchId,
        path: &EntryPath,
        change: LockedChange,
        holder: LockHolder<'_>,
    ) -> Result<(), StoreError> {
        if !self.has_locks(branch)? {
            return Ok(());
        }
        let now_ms = self.unix_ms();
        let mut locks = self.covering_locks(branch, path, now_ms)?;
        if change != LockedChange::Content
            && let Some(parent) = path.parent()
        {
            // Of any depth: which names a directory has is a part of it.
            locks.extend(self.entry_lock(branch, &parent, now_ms)?);
        }
        if change == LockedChange::Subtree {
            locks.extend(self.locks_below(branch, path, now_ms)?);
        }
        match locks.into_iter().find(|lock| !holder.may_pass(lock)) {
            Some(lock) => Err(StoreError::Locked {
                path: lock.path.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// Takes a lock. An exclusive one of a path where nothing is makes an empty file there. The tokens are those that the
    /// owner has already: a locked directory takes no new name without its token.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a lock of any owner covers the path, or the path has one below it that the new one would
    /// cover; or the branch does not exist, or the owner or the store has too many locks.
    pub fn lock_entry(
        &mut self,
        new: &NewLock,
        tokens: &[LockToken],
    ) -> Result<LockedEntry, StoreError> {
        check_length("bytes in the name of an owner", &new.owner, ACTOR_BYTES_MAX)?;
        check_length(
            "bytes in the note of a lock",
            &new.note,
            LOCK_NOTE_BYTES_MAX,
        )?;
        self.check_space()?;
        self.sweep_locks(SWEPT_AT_ONCE)?;
        self.check_lock_is_free(new)?;
        self.check_lock_count(&new.owner)?;
        let view = self.view(new.branch, None)?;
        // Only for WebDAV: an advisory lock is often taken before its program decides what it writes.
        let is_missing = self.find(&view, &new.path)?.is_none();
        let made = if is_missing && new.kind == LockKind::Exclusive {
            Some(self.make_empty_file(new, tokens)?)
        } else {
            None
        };
        let lock = EntryLock {
            token: LockToken::random()?,
            path: new.path.clone(),
            owner: new.owner.clone(),
            note: new.note.clone(),
            depth: new.depth,
            kind: new.kind,
            until_ms: self.lock_end(new.time),
        };
        self.insert_lock(new.branch, &lock)?;
        Ok(LockedEntry { lock, made })
    }

    /// When a lock that begins now ends.
    fn lock_end(&self, time: Duration) -> u64 {
        // At least a moment: a lock of no time would answer a client that it has one.
        end_ms(self.unix_ms(), time.max(LEASE_TIME_MIN), LOCK_TIME_MAX)
    }

    fn insert_lock(&self, branch: BranchId, lock: &EntryLock) -> Result<(), StoreError> {
        let row = LockRow {
            owner: lock.owner.clone(),
            path: lock.path.to_string(),
            token: lock.token.to_string(),
            depth: lock.depth,
            kind: lock.kind,
            note: lock.note.clone(),
        };
        let payload = serde_json::to_string(&row);
        let payload = payload.map_err(|error| StoreError::Database(error.to_string()))?;
        let key = lock_key(branch, &lock.path);
        // A lapsed lock of the path that the sweep has not reached.
        self.execute("DELETE FROM job WHERE key = ?1", [&key])?;
        let id = self.next_job_id()?;
        let until = to_sql(lock.until_ms);
        self.execute(
            "INSERT INTO job(id, queue, payload, run_at_ms, tries, lease_ms, key) VALUES (?1, ?2, ?3, ?4, 0, ?4, ?5)",
            params![id, LOCK_QUEUE, payload, until, key],
        )?;
        Ok(())
    }

    /// Two locks never cover the same entry, also of one owner (RFC 4918 §6.2).
    fn check_lock_is_free(&self, new: &NewLock) -> Result<(), StoreError> {
        let now_ms = self.unix_ms();
        let mut locks = self.covering_locks(new.branch, &new.path, now_ms)?;
        // A lock of depth 0 covers nothing below its path, and locks there stay.
        if new.depth == LockDepth::Infinity {
            locks.extend(self.locks_below(new.branch, &new.path, now_ms)?);
        }
        match locks.first() {
            Some(lock) => Err(StoreError::Locked {
                path: lock.path.to_string(),
            }),
            None => Ok(()),
        }
    }

    fn check_lock_count(&self, owner: &str) -> Result<(), StoreError> {
        let all = self.query_count("SELECT count(*) FROM job WHERE queue = ?1", [LOCK_QUEUE])?;
        // Lapsed locks count until the sweep reaches them, so the caller may succeed later.
        if all >= LOCKS_MAX {
            return Err(StoreError::Busy("the store has too many locks"));
        }
        // Fewer for each, the more there are: a few owners must not take those of all others.
        let share = (LOCKS_MAX - all) / LOCKS_SHARE_DIVISOR;
        let limit = share.clamp(1, LOCKS_OF_OWNER_MAX);
        // Below this number no owner can have too many, and the count that reads each row is spared.
        if all < limit {
            return Ok(());
        }
        let owner = serde_json::to_string(owner);
        let owner = owner.map_err(|error| StoreError::Database(error.to_string()))?;
        let begin = format!("{{\"owner\":{owner},");
        let count =
            "SELECT count(*) FROM job WHERE queue = ?1 AND substr(payload, 1, length(?2)) = ?2";
        if self.query_count(count, params![LOCK_QUEUE, begin])? >= limit {
            let unit = "locks of one owner";
            return Err(StoreError::TooLarge { unit, limit });
        }
        Ok(())
    }

    /// Makes the empty resource of RFC 4918 §7.3.
    fn make_empty_file(
        &mut self,
        new: &NewLock,
        tokens: &[LockToken],
    ) -> Result<CommitReceipt, StoreError> {
        // The content is made durable by the transaction that names it.
        let insert = "INSERT OR IGNORE INTO inline_(hash, data) VALUES (?1, x'')";
        self.execute(insert, [ContentHash::EMPTY])?;
        let put = TreeChange::Put {
            path: new.path.clone(),
            content: FileContent::new(ContentHash::EMPTY, 0),
            attributes: EntryAttributes::default(),
            precondition: EntryPrecondition::Absent,
        };
        let request = ChangeRequest::new(new.branch, &new.owner, put);
        self.apply_locked(&request, tokens)
    }

    /// Makes a lock last this long from now on. The path may be any that the lock covers.
    ///
    /// # Errors
    /// The owner has no such lock there, or it has ended.
    pub fn renew_lock(
        &mut self,
        branch: BranchId,
        path: &EntryPath,
        owner: &str,
        token: LockToken,
        time: Duration,
    ) -> Result<EntryLock, StoreError> {
        let lock = self.own_lock(branch, path, owner, token)?;
        let until_ms = self.lock_end(time);
        let until = to_sql(until_ms);
        let renew = "UPDATE job SET lease_ms = ?2, run_at_ms = ?2 WHERE key = ?1";
        self.execute(renew, params![lock_key(branch, &lock.path), until])?;
        Ok(EntryLock { until_ms, ..lock })
    }

    /// Gives a lock back. The path may be any that the lock covers.
    ///
    /// # Errors
    /// The owner has no such lock there, or it has ended.
    pub fn unlock_entry(
        &mut self,
        branch: BranchId,
        path: &EntryPath,
        owner: &str,
        token: LockToken,
    ) -> Result<(), StoreError> {
        let lock = self.own_lock(branch, path, owner, token)?;
        self.remove_lock(branch, &lock.path)
    }

    /// Removes the lock of a path without its token, for an administrator.
    ///
    /// # Errors
    /// The path has no lock of its own.
    pub fn remove_lock(&mut self, branch: BranchId, path: &EntryPath) -> Result<(), StoreError> {
        let delete = "DELETE FROM job WHERE key = ?1";
        match self.execute(delete, [lock_key(branch, path)])? {
            0 => Err(StoreError::NotFound(StoreObject::Lock)),
            _ => Ok(()),
        }
    }

    fn own_lock(
        &self,
        branch: BranchId,
        path: &EntryPath,
        owner: &str,
        token: LockToken,
    ) -> Result<EntryLock, StoreError> {
        let locks = self.covering_locks(branch, path, self.unix_ms())?;
        // A wrong token and a foreign lock have the same answer: the token of a foreign lock is not
        // to be found out by trying.
        let own = locks
            .into_iter()
            .find(|lock| lock.token == token && lock.owner == owner);
        own.ok_or(StoreError::NotFound(StoreObject::Lock))
    }

    /// Removes the exclusive locks of a path that is gone, and of what was below it (RFC 4918 §9.6 and §9.9). An advisory
    /// lock stays: it is of the name.
    pub(crate) fn remove_locks_of(
        &mut self,
        branch: BranchId,
        path: &EntryPath,
    ) -> Result<(), StoreError> {
        if !self.has_locks(branch)? {
            return Ok(());
        }
        let now_ms = self.unix_ms();
        let mut locks = self.locks_below(branch, path, now_ms)?;
        locks.extend(self.entry_lock(branch, path, now_ms)?);
        for lock in locks.iter().filter(|it| it.kind == LockKind::Exclusive) {
            self.remove_lock(branch, &lock.path)?;
        }
        Ok(())
    }

    /// Removes at most this many locks that have ended.
    ///
    /// # Errors
    /// The database refuses the statement.
    pub fn sweep_locks(&mut self, rows_max: usize) -> Result<PurgeProgress, StoreError> {
        let delete = "DELETE FROM job WHERE id IN (SELECT id FROM job WHERE queue = ?1 AND run_at_ms <= ?2 LIMIT ?3)";
        let (now, limit) = (to_sql(self.unix_ms()), to_sql(rows_max as u64));
        let rows = self.execute(delete, params![LOCK_QUEUE, now, limit])?;
        let is_done = rows < rows_max;
        Ok(PurgeProgress { rows, is_done })
    }
}

#[cfg(test)]
mod tests;
