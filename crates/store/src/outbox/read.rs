//! Reading events: pages behind a cursor, through a filter.

use rusqlite::params;

use super::{EventPayload, EventTopic};
use crate::db::{META_EVENTS_PRUNED, ReadTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::limits::{EVENTS_CHUNK, EVENTS_PAGE_BYTES_MAX, EVENTS_PAGE_MAX, EVENTS_SCANNED_MAX};
use crate::names::{BranchId, BucketId};
use crate::path::EntryPath;

/// One event of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreEvent {
    /// Its number, which is the cursor of a consumer that has handled it.
    pub id: i64,
    /// Number of the commit that made it.
    pub seq: Option<u64>,
    /// The bucket that it is about.
    pub bucket: Option<BucketId>,
    /// The branch that it is about.
    pub branch: Option<BranchId>,
    /// What happened.
    pub topic: EventTopic,
    /// The rest, as it goes to consumers.
    pub payload: EventPayload,
    /// When it was written, in milliseconds since 1970-01-01 UTC. The order of events is that of their numbers.
    pub ts_ms: u64,
}

/// Which events a consumer takes. The default takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only those of this bucket.
    pub bucket: Option<BucketId>,
    /// Only those of this branch, and those of its bucket as a whole.
    pub branch: Option<BranchId>,
    /// Only those that may change what is at this path or below it. An event of a whole branch may change any path.
    pub prefix: Option<EntryPath>,
    /// Only these topics. An empty list is all of them.
    pub topics: Vec<EventTopic>,
}

impl EventFilter {
    /// Whether no event is left out.
    fn takes_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the filter takes an event.
    #[must_use]
    pub fn takes(&self, event: &StoreEvent) -> bool {
        let is_of_bucket = self.bucket.is_none_or(|it| event.bucket == Some(it));
        // An event without a branch is about the whole bucket, and so about each branch of it.
        let is_of_branch = match (self.branch, event.branch) {
            (Some(wanted), Some(branch)) => wanted == branch,
            _ => true,
        };
        let is_topic = self.topics.is_empty() || self.topics.contains(&event.topic);
        let concerns = |prefix: &EntryPath| concerns_prefix(event, prefix);
        is_of_bucket && is_of_branch && is_topic && self.prefix.as_ref().is_none_or(concerns)
    }
}

/// Whether an event may change what lies at a path or below it.
fn concerns_prefix(event: &StoreEvent, prefix: &EntryPath) -> bool {
    let is_with_subtree = match event.topic {
        EventTopic::Put | EventTopic::Delete | EventTopic::Rename => true,
        // A new directory has nothing below it.
        EventTopic::Mkdir => false,
        // These have no path of an entry: a merge may change any path, and a snapshot has a name.
        _ => return true,
    };
    let paths = [&event.payload.path, &event.payload.to];
    let mut paths = paths.into_iter().flatten();
    paths.any(|text| match EntryPath::parse(text) {
        Ok(path) => {
            let is_within = path == *prefix || path.is_below(prefix);
            // A directory above the prefix takes everything below it along.
            is_within || is_with_subtree && prefix.is_below(&path)
        }
        // A rule of paths may become stricter, and an event must not vanish by that.
        Err(_) => true,
    })
}

/// Events behind a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// The events that the filter takes, by their numbers.
    pub events: Vec<StoreEvent>,
    /// Where the next page begins. Events that the filter leaves out move it too.
    pub cursor: i64,
    /// Whether the outbox has no further event at the moment.
    pub is_end: bool,
}

/// A row of the outbox.
struct EventRow {
    id: i64,
    seq: Option<i64>,
    bucket: Option<BucketId>,
    branch: Option<BranchId>,
    topic: String,
    payload: String,
    ts_ms: i64,
}

impl EventRow {
    /// The event of the row. `None` for a topic of a later program.
    fn parse(self) -> Result<Option<StoreEvent>, StoreError> {
        // Left out and not refused: a consumer that asks for the topics that it knows loses
        // nothing.
        let Some(topic) = EventTopic::from_name(&self.topic) else {
            return Ok(None);
        };
        let payload: EventPayload = serde_json::from_str(&self.payload)
            .map_err(|error| StoreError::Damaged(format!("event {}: {error}", self.id)))?;
        Ok(Some(StoreEvent {
            id: self.id,
            seq: self.seq.map(from_sql),
            bucket: self.bucket,
            branch: self.branch,
            topic,
            payload,
            ts_ms: from_sql(self.ts_ms),
        }))
    }
}

impl ReadTransaction<'_> {
    /// Number of the newest event, or 0. Its row may have been removed.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn last_event_id(&self) -> Result<i64, StoreError> {
        // Not the largest row: all rows may have been removed, and numbers must not go back.
        let query = "SELECT seq FROM sqlite_sequence WHERE name = 'outbox'";
        let last = self.query_row(query, [], |row| row.get(0))?;
        Ok(last.unwrap_or(0))
    }

    /// Number of the last event that was removed, or 0.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn pruned_event_id(&self) -> Result<i64, StoreError> {
        Ok(self.meta_number(META_EVENTS_PRUNED)?.unwrap_or(0))
    }

    /// Events with a higher number than `after`, at most `limit` and [`EVENTS_PAGE_MAX`]. A page may have no event and
    /// yet not be the end: one read looks at [`EVENTS_SCANNED_MAX`] events at most.
    ///
    /// # Errors
    /// [`StoreError::EventGap`] if events behind `after` were removed, the next one cannot be read, or the file was restored
    /// to a state before `after`.
    pub fn read_events(
        &self,
        after: i64,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<EventPage, StoreError> {
        let (pruned, last) = (self.pruned_event_id()?, self.last_event_id()?);
        // A cursor of the future comes from a file that a copy has replaced since.
        if after < pruned || after > last {
            return Err(StoreError::EventGap { pruned, last });
        }
        let limit = limit.clamp(1, EVENTS_PAGE_MAX);
        // Without a filter every row is taken, and no more of them than asked for are loaded.
        let chunk = if filter.takes_all() {
            limit.min(EVENTS_CHUNK)
        } else {
            EVENTS_CHUNK
        };
        let mut page = EventPage {
            events: Vec::new(),
            cursor: after,
            is_end: false,
        };
        let (mut scanned, mut bytes) = (0, 0);
        while !page.is_end && scanned < EVENTS_SCANNED_MAX {
            let rows = self.event_rows(page.cursor, chunk)?;
            page.is_end = rows.len() < chunk;
            for row in rows {
                // The rest of the chunk belongs to the next page.
                if page.events.len() >= limit || bytes >= EVENTS_PAGE_BYTES_MAX {
                    page.is_end = false;
                    return Ok(page);
                }
                let (id, row_bytes) = (row.id, row.payload.len());
                let event = match row.parse() {
                    // What comes before it is read first. Its number is where the consumer goes on.
                    Err(StoreError::Damaged(_)) if !page.events.is_empty() => {
                        page.is_end = false;
                        return Ok(page);
                    }
                    Err(StoreError::Damaged(reason)) => {
                        tracing::error!(%reason, "an event cannot be read, and its consumers get a gap");
                        return Err(StoreError::EventGap { pruned: id, last });
                    }
                    event => event?,
                };
                page.cursor = id;
                scanned += 1;
                if let Some(event) = event
                    && filter.takes(&event)
                {
                    bytes += row_bytes;
                    page.events.push(event);
                }
            }
        }
        Ok(page)
    }

    fn event_rows(&self, after: i64, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        self.query_all(
            "SELECT id, seq, bucket_id, branch_id, topic, payload, ts_ms FROM outbox WHERE id > ?1 ORDER BY id LIMIT ?2",
            params![after, to_sql(limit as u64)],
            |row| {
                Ok(EventRow {
                    id: row.get(0)?,
                    seq: row.get(1)?,
                    bucket: row.get(2)?,
                    branch: row.get(3)?,
                    topic: row.get(4)?,
                    payload: row.get(5)?,
                    ts_ms: row.get(6)?,
                })
            },
        )
    }
}
