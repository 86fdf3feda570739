//! Named consumers: each has its cursor in the file, and one owner at a time.

use std::fmt;
use std::time::Duration;

use rusqlite::{Row, params};

use super::read::{EventFilter, EventPage};
use crate::bounds::{check_length, duration_ms, end_ms};
use crate::db::{META_EVENTS_PRUNED, ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::{
    ACTOR_BYTES_MAX, CONSUMERS_MAX, CONSUMERS_PER_BUCKET_MAX, EVENTS_KEPT_BYTES_MAX,
    EVENTS_KEPT_MAX, EVENTS_KEPT_TIME, LEASE_TIME_MAX,
};
use crate::names::{BucketId, PurgeProgress};
use crate::owned_name::{OwnedName, rows_of_bucket};

/// The name of a consumer of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerName(OwnedName);

impl ConsumerName {
    /// Checks a name: 1 to 128 letters, digits, `.`, `_`, `-` and `/`.
    ///
    /// # Errors
    /// The name breaks a rule.
    pub fn parse(bucket: BucketId, text: &str) -> Result<Self, StoreError> {
        OwnedName::parse(bucket, text).map(Self)
    }

    /// The bucket of the consumer.
    #[must_use]
    pub const fn bucket(&self) -> BucketId {
        self.0.bucket()
    }

    /// The name as rows have it.
    fn as_str(&self) -> &str {
        self.0.row()
    }
}

/// The name in the bucket.
impl fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// A named reader of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxConsumer {
    /// Number of the last event that it has handled.
    pub cursor: i64,
    /// Who has the lease, or had it last.
    pub owner: Option<String>,
    /// When the lease lapses, in milliseconds since 1970-01-01 UTC. `None` if it was given back.
    pub lease_until_ms: Option<u64>,
}

impl OutboxConsumer {
    /// Whether an owner has the lease at this time.
    fn is_leased(&self, now_ms: u64) -> bool {
        self.lease_until_ms.is_some_and(|until| until > now_ms)
    }
}

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxStart {
    /// With the oldest event that is kept.
    Oldest,
    /// With the next event.
    Now,
    /// Behind the event with this number.
    After(i64),
}

const SELECT: &str = "SELECT cursor, owner, lease_ms FROM consumer WHERE name = ?1";

fn read_consumer(row: &Row<'_>) -> rusqlite::Result<OutboxConsumer> {
    Ok(OutboxConsumer {
        cursor: row.get(0)?,
        owner: row.get(1)?,
        lease_until_ms: row.get::<_, Option<i64>>(2)?.map(from_sql),
    })
}

impl ReadTransaction<'_> {
    /// The consumer with this name.
    ///
    /// # Errors
    /// There is no such consumer.
    pub fn outbox_consumer(&self, name: &ConsumerName) -> Result<OutboxConsumer, StoreError> {
        let consumer = self.query_row(SELECT, [name.as_str()], read_consumer)?;
        consumer.ok_or(StoreError::NotFound(StoreObject::Consumer))
    }

    /// The events behind the cursor of a consumer, as [`read_events`](Self::read_events) returns them. The cursor stays: the
    /// consumer gets them again until it acknowledges them.
    ///
    /// # Errors
    /// There is no such consumer, or [`StoreError::EventGap`].
    pub fn consumer_events(
        &self,
        name: &ConsumerName,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<EventPage, StoreError> {
        let cursor = self.outbox_consumer(name)?.cursor;
        self.read_events(cursor, filter, limit)
    }

    /// The cursor of a start.
    fn cursor_of(&self, start: OutboxStart) -> Result<i64, StoreError> {
        let (pruned, last) = (self.pruned_event_id()?, self.last_event_id()?);
        match start {
            OutboxStart::Oldest => Ok(pruned),
            OutboxStart::Now => Ok(last),
            OutboxStart::After(id) if id < pruned || id > last => {
                Err(StoreError::EventGap { pruned, last })
            }
            OutboxStart::After(id) => Ok(id),
        }
    }
}

impl WriteTransaction<'_> {
    /// Makes a consumer. One that exists stays as it is, with its cursor.
    ///
    /// # Errors
    /// The bucket does not exist, it or the store has too many consumers, or [`StoreError::EventGap`].
    pub fn add_outbox_consumer(
        &mut self,
        name: &ConsumerName,
        start: OutboxStart,
    ) -> Result<OutboxConsumer, StoreError> {
        // A program adds its consumer at each start, and must not lose its place by that.
        if let Some(known) = self.query_row(SELECT, [name.as_str()], read_consumer)? {
            return Ok(known);
        }
        // A consumer of a bucket that is being deleted would outlive it.
        self.bucket(name.bucket())?;
        let (first, end) = rows_of_bucket(name.bucket());
        let own = "SELECT count(*) FROM consumer WHERE name > ?1 AND name < ?2";
        if self.query_count(own, [first, end])? >= CONSUMERS_PER_BUCKET_MAX {
            return Err(StoreError::TooLarge {
                unit: "consumers of a bucket",
                limit: CONSUMERS_PER_BUCKET_MAX,
            });
        }
        if self.query_count("SELECT count(*) FROM consumer", [])? >= CONSUMERS_MAX {
            return Err(StoreError::TooLarge {
                unit: "consumers",
                limit: CONSUMERS_MAX,
            });
        }
        self.check_space()?;
        let cursor = self.cursor_of(start)?;
        let insert = "INSERT INTO consumer(name, cursor) VALUES (?1, ?2)";
        self.execute(insert, params![name.as_str(), cursor])?;
        self.outbox_consumer(name)
    }

    /// Takes the lease of a consumer, or renews it. Times above [`LEASE_TIME_MAX`] are clamped.
    ///
    /// # Errors
    /// [`StoreError::Leased`] if another owner has it; or there is no such consumer.
    pub fn claim_outbox_consumer(
        &mut self,
        name: &ConsumerName,
        owner: &str,
        lease: Duration,
    ) -> Result<OutboxConsumer, StoreError> {
        check_length("bytes in the name of an owner", owner, ACTOR_BYTES_MAX)?;
        let now_ms = self.unix_ms();
        let consumer = self.outbox_consumer(name)?;
        let is_own = consumer.owner.as_deref() == Some(owner);
        if let Some(until_ms) = consumer.lease_until_ms
            && consumer.is_leased(now_ms)
            && !is_own
        {
            return Err(StoreError::Leased { until_ms });
        }
        let until = to_sql(end_ms(now_ms, lease, LEASE_TIME_MAX));
        let claim = "UPDATE consumer SET owner = ?2, lease_ms = ?3 WHERE name = ?1";
        self.execute(claim, params![name.as_str(), owner, until])?;
        self.outbox_consumer(name)
    }

    /// Gives the lease back, so that the next owner does not wait for its end.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease is not the owner's any more; or there is no such consumer.
    pub fn release_outbox_consumer(
        &mut self,
        name: &ConsumerName,
        owner: &str,
    ) -> Result<(), StoreError> {
        self.leased_consumer(name, owner)?;
        // The owner stays in the row, for an administrator who asks who read last.
        let release = "UPDATE consumer SET lease_ms = NULL WHERE name = ?1";
        self.execute(release, [name.as_str()]).map(drop)
    }

    /// Notes that a consumer has handled all events up to this number. A number below the cursor changes nothing: it comes
    /// from a repetition.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease is not the owner's any more; no event has the number yet; or there is no
    /// such consumer.
    pub fn acknowledge_events(
        &mut self,
        name: &ConsumerName,
        owner: &str,
        id: i64,
    ) -> Result<(), StoreError> {
        self.leased_consumer(name, owner)?;
        // A cursor in the future would leave out events that do not exist yet.
        if id > self.last_event_id()? {
            return Err(StoreError::Denied("no event has this number yet"));
        }
        let set = "UPDATE consumer SET cursor = max(cursor, ?2) WHERE name = ?1";
        self.execute(set, params![name.as_str(), id]).map(drop)
    }

    /// Sets the cursor of a consumer, also back. After a gap the consumer begins again so.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`], [`StoreError::EventGap`], or there is no such consumer.
    pub fn reset_outbox_consumer(
        &mut self,
        name: &ConsumerName,
        owner: &str,
        start: OutboxStart,
    ) -> Result<OutboxConsumer, StoreError> {
        self.leased_consumer(name, owner)?;
        let cursor = self.cursor_of(start)?;
        let set = "UPDATE consumer SET cursor = ?2 WHERE name = ?1";
        self.execute(set, params![name.as_str(), cursor])?;
        self.outbox_consumer(name)
    }

    /// Removes a consumer, leased or not.
    ///
    /// # Errors
    /// There is no such consumer.
    pub fn remove_outbox_consumer(&mut self, name: &ConsumerName) -> Result<(), StoreError> {
        match self.execute("DELETE FROM consumer WHERE name = ?1", [name.as_str()])? {
            0 => Err(StoreError::NotFound(StoreObject::Consumer)),
            _ => Ok(()),
        }
    }

    /// Removes the consumers of a bucket that is being deleted.
    pub(crate) fn remove_consumers_of(&self, bucket: BucketId) -> Result<(), StoreError> {
        let (first, end) = rows_of_bucket(bucket);
        let delete = "DELETE FROM consumer WHERE name > ?1 AND name < ?2";
        self.execute(delete, [first, end]).map(drop)
    }

    /// The consumer, if this owner has its lease.
    fn leased_consumer(
        &self,
        name: &ConsumerName,
        owner: &str,
    ) -> Result<OutboxConsumer, StoreError> {
        let consumer = self.outbox_consumer(name)?;
        let is_own = consumer.owner.as_deref() == Some(owner);
        // A lapsed lease is lost even if no other owner took it: two owners that both believe in
        // theirs would move the cursor past events that neither has handled.
        if !is_own || !consumer.is_leased(self.unix_ms()) {
            return Err(StoreError::LeaseLost);
        }
        Ok(consumer)
    }

    /// Removes at most this many events that are older than [`EVENTS_KEPT_TIME`], or not among the newest
    /// [`EVENTS_KEPT_MAX`], or before the newest ones of [`EVENTS_KEPT_BYTES_MAX`] together. A consumer that has not read them gets [`StoreError::EventGap`].
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn prune_outbox(&mut self, rows_max: usize) -> Result<PurgeProgress, StoreError> {
        let last = self.last_event_id()?;
        let newest_surplus = last.saturating_sub(to_sql(EVENTS_KEPT_MAX));
        let kept_ms = duration_ms(EVENTS_KEPT_TIME);
        let oldest_ms = to_sql(self.unix_ms().saturating_sub(kept_ms));
        let bytes_surplus = self.end_bytes()?.saturating_sub(EVENTS_KEPT_BYTES_MAX);
        let query = "SELECT id, ts_ms < ?2 OR end_bytes < ?3 FROM outbox ORDER BY id LIMIT ?1";
        let limits = params![to_sql(rows_max as u64), oldest_ms, to_sql(bytes_surplus)];
        let rows = self.query_all(query, limits, |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?))
        })?;
        // Only a run from the oldest one on: a time that a wrong clock wrote must not tear a hole
        // that no consumer would notice.
        let is_surplus = |(id, is_old): &&(i64, bool)| *id <= newest_surplus || *is_old;
        let surplus: Vec<_> = rows.iter().take_while(is_surplus).collect();
        if let Some((id, _)) = surplus.last() {
            self.execute("DELETE FROM outbox WHERE id <= ?1", [id])?;
            // A repair sets the mark above events that are still there.
            let mark = self.pruned_event_id()?.max(*id);
            self.set_meta_number(META_EVENTS_PRUNED, mark)?;
        }
        Ok(PurgeProgress {
            rows: surplus.len(),
            is_done: surplus.len() < rows_max,
        })
    }
}
