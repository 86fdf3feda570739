//! What a job sees of the database: one snapshot to read, and for a job of the writer the way to change it.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::types::ToSql;
use rusqlite::{Connection, Params, Row, params};

use super::job::JobWork;
use super::schema::DAMAGED_CONTENTS;
use super::statements::StatementCache;
use crate::clock::{HybridClock, HybridTimestamp, ObservedTimestamp, TimeSource};
use crate::error::StoreError;
use crate::limits::DAMAGED_CONTENTS_COUNTED_MAX;

/// A read of the database. All of its queries see the same state.
pub struct ReadTransaction<'c> {
    statements: StatementCache<'c>,
    deadline: Cell<Option<Instant>>,
}

impl<'c> ReadTransaction<'c> {
    pub(crate) fn new(connection: &'c Connection) -> Self {
        Self {
            statements: StatementCache::new(connection),
            deadline: Cell::new(None),
        }
    }

    pub(crate) const fn connection(&self) -> &'c Connection {
        self.statements.connection()
    }

    pub(crate) fn set_deadline(&self, deadline: Option<Instant>) {
        self.deadline.set(deadline);
    }

    /// How often a statement of the connection ran.
    #[cfg(test)]
    pub(crate) const fn statement_runs(&self) -> u64 {
        self.statements.runs()
    }

    /// Steps of SQLite's machine in all statements of the connection.
    #[cfg(test)]
    pub(crate) const fn statement_steps(&self) -> u64 {
        self.statements.steps()
    }

    /// The first row of a query, if there is one.
    pub(crate) fn query_row<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        self.check_time()?;
        Ok(self.statements.query_row(sql, params, read)?)
    }

    /// All rows of a query.
    pub(crate) fn query_all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.check_time()?;
        Ok(self.statements.query_all(sql, params, read)?)
    }

    /// The number that a query with one row and one column returns, or 0.
    pub(crate) fn query_count(
        &self,
        sql: &'static str,
        params: impl Params,
    ) -> Result<u64, StoreError> {
        let count = self.query_row(sql, params, |row| row.get::<_, i64>(0))?;
        Ok(count.map_or(0, from_sql))
    }

    /// A number in the table of single values.
    pub(crate) fn meta_number(&self, key: &'static str) -> Result<Option<i64>, StoreError> {
        let query = "SELECT v FROM meta WHERE k = ?1";
        self.query_row(query, [key], |row| row.get(0))
    }

    /// An interruption ends a statement that runs, and has no effect between two statements.
    fn check_time(&self) -> Result<(), StoreError> {
        match self.deadline.get() {
            Some(deadline) if Instant::now() >= deadline => Err(StoreError::TimedOut),
            _ => Ok(()),
        }
    }
}

/// A job of the writer. It reads what it wrote itself, and all that earlier jobs wrote. If it returns an error or panics,
/// nothing of it stays.
pub struct WriteTransaction<'c> {
    read: ReadTransaction<'c>,
    time: Arc<dyn TimeSource>,
    clock: HybridClock,
    last_time: Option<HybridTimestamp>,
    last_event: Option<i64>,
    /// Whether contents may have become damaged, or whole or unknown again, since the last commit.
    has_new_damage_count: Cell<bool>,
    is_space_low: bool,
    pub(super) work: Cell<JobWork>,
}

impl<'c> WriteTransaction<'c> {
    pub(crate) fn new(
        connection: &'c Connection,
        time: Arc<dyn TimeSource>,
        clock: HybridClock,
    ) -> Self {
        Self {
            read: ReadTransaction::new(connection),
            time,
            clock,
            last_time: None,
            last_event: None,
            has_new_damage_count: Cell::new(false),
            is_space_low: false,
            work: Cell::default(),
        }
    }

    /// Milliseconds since 1970-01-01 UTC, by the store's source of time.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        self.time.unix_ms()
    }

    /// The next value of the hybrid clock.
    pub fn tick(&mut self) -> HybridTimestamp {
        // The value stays used even if the job is taken back: a gap does no harm, and a value used
        // twice would.
        let timestamp = self.clock.tick(self.time.unix_ms());
        self.last_time = Some(timestamp);
        timestamp
    }

    /// Takes in the timestamp of what a peer wrote.
    pub fn observe(&mut self, remote: HybridTimestamp) -> ObservedTimestamp {
        let observed = self.clock.observe(remote, self.time.unix_ms());
        if observed.is_clamped {
            // Reported and not refused: the changes of the peer are valid, and only its clock is
            // wrong.
            tracing::warn!(remote = %remote, "the clock of a peer is more than five minutes ahead");
        }
        observed
    }

    /// Runs a statement, and returns how many rows it changed.
    pub(crate) fn execute(
        &self,
        sql: &'static str,
        params: impl Params,
    ) -> Result<usize, StoreError> {
        self.read.check_time()?;
        Ok(self.read.statements.execute(sql, params)?)
    }

    /// Runs an insertion, and returns the number of the new row.
    pub(crate) fn insert(&self, sql: &'static str, params: impl Params) -> Result<i64, StoreError> {
        self.execute(sql, params)?;
        Ok(self.connection().last_insert_rowid())
    }

    /// Sets a number in the table of single values.
    pub(crate) fn set_meta_number(&self, key: &'static str, value: i64) -> Result<(), StoreError> {
        let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
        self.execute(put, params![key, value]).map(drop)
    }

    /// Notes the number of a new row of the outbox. The writer announces the last one after the commit.
    pub(crate) const fn note_event(&mut self, id: i64) {
        self.last_event = Some(id);
    }

    /// Notes that the number of damaged contents may be another one. The writer counts them after the commit.
    pub(crate) fn note_damage_count(&self) {
        self.has_new_damage_count.set(true);
    }

    /// Contents that proved damaged or lost, if their number may be another one since the last call. A job that was taken
    /// back costs a count and changes nothing.
    pub(super) fn take_damage_count(&self) -> Result<Option<u64>, StoreError> {
        if !self.has_new_damage_count.take() {
            return Ok(None);
        }
        let most = [to_sql(DAMAGED_CONTENTS_COUNTED_MAX)];
        self.query_count(DAMAGED_CONTENTS, most).map(Some)
    }

    /// Whether the file system had less room than the reserve when the transaction began.
    pub(super) const fn is_space_low(&self) -> bool {
        self.is_space_low
    }

    pub(super) const fn set_space_low(&mut self, is_low: bool) {
        self.is_space_low = is_low;
    }

    /// The last row of the outbox since the last call.
    pub(super) const fn take_last_event(&mut self) -> Option<i64> {
        self.last_event.take()
    }

    /// The last value of the clock since the last call.
    pub(super) const fn take_last_time(&mut self) -> Option<HybridTimestamp> {
        self.last_time.take()
    }
}

impl<'c> Deref for WriteTransaction<'c> {
    type Target = ReadTransaction<'c>;

    fn deref(&self) -> &ReadTransaction<'c> {
        &self.read
    }
}

impl std::fmt::Debug for ReadTransaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadTransaction")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for WriteTransaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteTransaction")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// A number as SQLite stores it. None of the store's own numbers is above 2^62, and a caller's larger one is as good as
/// that.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that the store wrote, which is never negative.
pub(crate) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// An optional number as SQLite stores it.
pub(crate) fn to_sql_option(number: Option<u64>) -> impl ToSql {
    number.map(to_sql)
}
