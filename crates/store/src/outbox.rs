//! Events: rows that a change writes in its own transaction. A change that is taken back has no event, and a crash after
//! the commit loses none.

mod consumers;
mod read;
mod watch;

use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::db::{WriteTransaction, from_sql, to_sql, to_sql_option};
use crate::error::StoreError;
use crate::limits::{EVENTS_KEPT_BYTES_MAX, EVENTS_PRUNED_AT_ONCE};
use crate::names::{BranchId, BucketId};

pub use consumers::{ConsumerName, OutboxConsumer, OutboxStart};
pub use read::{EventFilter, EventPage, StoreEvent};
pub use watch::EventWatch;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventTopic {
    /// A file or a symbolic link has a new version, by a write, a copy, a restoration or new attributes. For a directory
    /// that was copied or restored, everything below it has one too.
    Put,
    /// An entry was deleted, with everything below it.
    Delete,
    /// An entry was moved, with everything below it.
    Rename,
    /// A directory was made.
    Mkdir,
    /// A branch was made.
    BranchCreate,
    /// A branch took in another one. Any entry of it may have changed.
    BranchMerge,
    /// A branch was closed or deleted.
    BranchClose,
    /// A snapshot was made.
    SnapshotCreate,
    /// A bucket was made.
    BucketCreate,
    /// The quota of a bucket was changed.
    BucketQuota,
    /// A content that a bucket has announced is here for it, or one that was damaged is whole again.
    BlobComplete,
    /// A content of a bucket proved damaged.
    BlobBad,
    /// Changes of a peer were taken in.
    SyncMerged,
}

impl EventTopic {
    /// Every topic.
    pub const ALL: [Self; 13] = [
        Self::Put,
        Self::Delete,
        Self::Rename,
        Self::Mkdir,
        Self::BranchCreate,
        Self::BranchMerge,
        Self::BranchClose,
        Self::SnapshotCreate,
        Self::BucketCreate,
        Self::BucketQuota,
        Self::BlobComplete,
        Self::BlobBad,
        Self::SyncMerged,
    ];

    /// The name in the outbox, which stays as it is.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "fs.put",
            Self::Delete => "fs.delete",
            Self::Rename => "fs.rename",
            Self::Mkdir => "fs.mkdir",
            Self::BranchCreate => "branch.create",
            Self::BranchMerge => "branch.merge",
            Self::BranchClose => "branch.close",
            Self::SnapshotCreate => "snapshot.create",
            Self::BucketCreate => "bucket.create",
            Self::BucketQuota => "bucket.quota",
            Self::BlobComplete => "blob.complete",
            Self::BlobBad => "blob.bad",
            Self::SyncMerged => "sync.merged",
        }
    }

    /// The topic with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

/// What an event says, as JSON. A member that has no value for a topic is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPayload {
    /// Name of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Name of the branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Number of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Path of the entry, or name of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Path after a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `file`, `directory` or `symlink`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Content in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Bytes of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// `true` if the entry has attributes that the event does not say: a mode of its own, or extended ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<bool>,
    /// Who made the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

impl WriteTransaction<'_> {
    /// Adds an event to the transaction, and returns its number. The numbers of events grow, and none is used twice.
    ///
    /// # Errors
    /// The database refuses the row.
    pub fn emit(
        &mut self,
        topic: EventTopic,
        bucket: Option<BucketId>,
        branch: Option<BranchId>,
        payload: &EventPayload,
    ) -> Result<i64, StoreError> {
        // JSON, because a later version may add members, which an earlier one ignores.
        let text = serde_json::to_string(payload);
        let text = text.map_err(|error| StoreError::Database(error.to_string()))?;
        let end = self.end_bytes()?.saturating_add(text.len() as u64);
        let id = self.insert(
            "INSERT INTO outbox(seq, bucket_id, branch_id, topic, payload, ts_ms, end_bytes) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                to_sql_option(payload.seq),
                bucket,
                branch,
                topic.name(),
                text,
                to_sql(self.unix_ms()),
                to_sql(end),
            ],
        )?;
        self.note_event(id);
        // At once and not by the sweep alone: a batch of moves between long names writes more in a minute than the outbox may
        // keep.
        let first = "SELECT end_bytes FROM outbox ORDER BY id LIMIT 1";
        let first = self.query_row(first, [], |row| row.get(0))?.map(from_sql);
        if end.saturating_sub(first.unwrap_or(end)) > EVENTS_KEPT_BYTES_MAX {
            self.prune_outbox(EVENTS_PRUNED_AT_ONCE)?;
        }
        Ok(id)
    }

    /// Wakes what waits for events, without an event, so that it looks at its bucket again.
    pub(crate) fn wake_watches(&mut self) -> Result<(), StoreError> {
        let last = self.last_event_id()?;
        self.note_event(last);
        Ok(())
    }

    /// Where the bytes of the newest event end.
    pub(super) fn end_bytes(&self) -> Result<u64, StoreError> {
        let last = "SELECT end_bytes FROM outbox ORDER BY id DESC LIMIT 1";
        let last = self.query_row(last, [], |row| row.get(0))?;
        Ok(last.map_or(0, from_sql))
    }
}

#[cfg(test)]
mod reading_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_topic_comes_back_by_its_name() {
        let names: BTreeSet<_> = EventTopic::ALL.iter().map(|it| it.name()).collect();
        assert_eq!(names.len(), EventTopic::ALL.len());
        for topic in EventTopic::ALL {
            assert_eq!(EventTopic::from_name(topic.name()), Some(topic));
        }
        assert_eq!(EventTopic::from_name("fs.read"), None);
    }

    #[test]
    fn members_without_a_value_are_left_out() {
        let payload = EventPayload {
            bucket: Some("docs".to_owned()),
            seq: Some(7),
            ..EventPayload::default()
        };
        let text = serde_json::to_string(&payload).expect("JSON");
        assert_eq!(text, r#"{"bucket":"docs","seq":7}"#);
        assert_eq!(
            serde_json::from_str::<EventPayload>(&text).ok(),
            Some(payload)
        );
    }
}
