//! Rows of contents: their state, and the bytes of short ones.

use rusqlite::params;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};

use super::put::PreparedContent;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql, to_sql_option};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::names::BucketId;
use crate::outbox::{EventPayload, EventTopic};

/// `blob.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentState {
    Wanted,
    Partial,
    Complete,
    Bad,
}

impl ContentState {
    pub(crate) const fn code(self) -> i64 {
        match self {
            Self::Wanted => 0,
            Self::Partial => 1,
            Self::Complete => 2,
            Self::Bad => 3,
        }
    }
}

impl FromSql for ContentState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let code = i64::column_result(value)?;
        let all = [Self::Wanted, Self::Partial, Self::Complete, Self::Bad];
        let state = all.into_iter().find(|state| state.code() == code);
        // An error instead of a default: a damaged row must not turn a bad content into a whole one.
        state.ok_or(FromSqlError::OutOfRange(code))
    }
}

/// What the store knows of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentStatus {
    /// The store knows nothing of it.
    Missing,
    /// A name leads to it, and its bytes are on peers only.
    Wanted {
        /// Bytes of the content.
        size: u64,
    },
    /// A part of it is here.
    Partial {
        /// Bytes of the whole content.
        size: u64,
    },
    /// It is here.
    Complete {
        /// Bytes of the content.
        size: u64,
    },
    /// It was here, and proved damaged or lost.
    Bad {
        /// Bytes of the content.
        size: u64,
    },
}

/// The row of a content, with its bytes if they are a row as well.
#[derive(Clone, Debug)]
pub(crate) struct ContentRow {
    pub(crate) size: u64,
    pub(crate) state: ContentState,
    pub(crate) verified_ms: Option<u64>,
    pub(crate) inline: Option<Vec<u8>>,
}

impl ReadTransaction<'_> {
    /// What the store knows of a content, by its row. The bytes are not looked at.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn content_status(&self, hash: ContentHash) -> Result<ContentStatus, StoreError> {
        let query = "SELECT size, state FROM blob WHERE hash = ?1";
        let row = self.query_row(query, [hash], |row| {
            Ok((from_sql(row.get(0)?), row.get::<_, ContentState>(1)?))
        })?;
        Ok(match row {
            None => ContentStatus::Missing,
            Some((size, ContentState::Wanted)) => ContentStatus::Wanted { size },
            Some((size, ContentState::Partial)) => ContentStatus::Partial { size },
            Some((size, ContentState::Complete)) => ContentStatus::Complete { size },
            Some((size, ContentState::Bad)) => ContentStatus::Bad { size },
        })
    }

    /// The row of a content that is here whole.
    pub(crate) fn complete_content_row(&self, hash: ContentHash) -> Result<ContentRow, StoreError> {
        let row = self.content_row(hash)?;
        let row = row.ok_or(StoreError::NotFound(StoreObject::Content))?;
        match row.state {
            ContentState::Complete => Ok(row),
            ContentState::Bad => Err(StoreError::ContentMissing { hash }),
            ContentState::Wanted | ContentState::Partial => {
                Err(StoreError::ContentUnavailable { hash })
            }
        }
    }

    /// Bytes of a content that the store knows.
    pub(crate) fn content_size(&self, hash: ContentHash) -> Result<Option<u64>, StoreError> {
        let query = "SELECT size FROM blob WHERE hash = ?1";
        let size = self.query_row(query, [hash], |row| row.get(0))?;
        Ok(size.map(from_sql))
    }

    pub(crate) fn content_row(&self, hash: ContentHash) -> Result<Option<ContentRow>, StoreError> {
        self.query_row(
            "SELECT b.size, b.state, b.verified_ms, i.data FROM blob b LEFT JOIN inline_ i ON i.hash = b.hash \
             WHERE b.hash = ?1",
            [hash],
            |row| {
                let verified_ms: Option<i64> = row.get(2)?;
                Ok(ContentRow {
                    size: from_sql(row.get(0)?),
                    state: row.get(1)?,
                    verified_ms: verified_ms.map(from_sql),
                    inline: row.get(3)?,
                })
            },
        )
    }
}

impl WriteTransaction<'_> {
    /// Takes in what a writer made durable, or brings as bytes, in the transaction that names it.
    pub(crate) fn record_content(&mut self, content: &PreparedContent) -> Result<(), StoreError> {
        let hash = content.hash();
        if let Some(bytes) = content.inline() {
            // The update mends a row that the disk has damaged, and costs nothing otherwise.
            self.execute(
                "INSERT INTO inline_(hash, data) VALUES (?1, ?2) \
                 ON CONFLICT(hash) DO UPDATE SET data = excluded.data WHERE data <> excluded.data",
                params![hash, bytes],
            )?;
        }
        let query = "SELECT state FROM blob WHERE hash = ?1";
        let state = self.query_row(query, [hash], |row| row.get::<_, ContentState>(0))?;
        match state {
            // The row comes with the first name.
            None => Ok(()),
            // A reader that saw the damage must not mark the repaired content, which it knows by this time.
            Some(ContentState::Complete) if content.is_repaired() => {
                self.complete_content(hash, content.size())
            }
            Some(ContentState::Complete) => Ok(()),
            Some(ContentState::Wanted | ContentState::Partial | ContentState::Bad) => {
                self.complete_content(hash, content.size())?;
                self.emit_content(EventTopic::BlobComplete, hash, content.size())
            }
        }
    }

    /// Notes that a part of a wanted content is here, and which peer has sent it.
    pub(crate) fn mark_content_partial(
        &self,
        hash: ContentHash,
        peer: &str,
    ) -> Result<(), StoreError> {
        let (wanted, partial) = (ContentState::Wanted.code(), ContentState::Partial.code());
        // A damaged content stays marked as such until it is whole.
        let set =
            "UPDATE blob SET state = ?2, fetched_from = ?3 WHERE hash = ?1 AND state IN (?2, ?4)";
        self.execute(set, params![hash, partial, peer, wanted])?;
        Ok(())
    }

    /// The hash covers the size, so that the size of the bytes wins over one that was announced.
    fn complete_content(&self, hash: ContentHash, size: u64) -> Result<(), StoreError> {
        // Callers rarely know whether it was bad, and a count of few rows costs less than a look.
        self.note_damage_count();
        let set = "UPDATE blob SET state = ?2, verified_ms = ?3, size = ?4 WHERE hash = ?1";
        let now = to_sql(self.unix_ms());
        let complete = ContentState::Complete.code();
        self.execute(set, params![hash, complete, now, to_sql(size)])?;
        Ok(())
    }

    /// Notes that a content proved damaged or lost, unless it was stored again since the caller read its row. Returns
    /// whether it was noted.
    pub(crate) fn mark_content_bad(
        &mut self,
        hash: ContentHash,
        verified_ms: Option<u64>,
    ) -> Result<bool, StoreError> {
        let (complete, bad) = (ContentState::Complete.code(), ContentState::Bad.code());
        let set = "UPDATE blob SET state = ?2 WHERE hash = ?1 AND state = ?3 AND verified_ms IS ?4";
        let seen = to_sql_option(verified_ms);
        if self.execute(set, params![hash, bad, complete, seen])? == 0 {
            return Ok(false);
        }
        self.note_damage_count();
        let size = "SELECT size FROM blob WHERE hash = ?1";
        let size = self.query_count(size, [hash])?;
        self.emit_content(EventTopic::BlobBad, hash, size)?;
        Ok(true)
    }

    /// Notes that a content which was bad proved whole: an administrator may have brought its file back.
    pub(crate) fn mark_content_whole(
        &mut self,
        hash: ContentHash,
        size: u64,
    ) -> Result<(), StoreError> {
        let query = "SELECT count(*) FROM blob WHERE hash = ?1 AND state = ?2";
        let bad = self.query_count(query, params![hash, ContentState::Bad.code()])?;
        if bad == 0 {
            return Ok(());
        }
        self.complete_content(hash, size)?;
        self.emit_content(EventTopic::BlobComplete, hash, size)
    }

    /// Announces a change of a content in each bucket that has a right to the bytes. A bucket that only announced the content
    /// gets no event: it would tell that another bucket has the bytes.
    fn emit_content(
        &mut self,
        topic: EventTopic,
        hash: ContentHash,
        size: u64,
    ) -> Result<(), StoreError> {
        let owners: Vec<(BucketId, String)> = self.query_all(
            "SELECT b.id, b.name FROM blob_bucket k JOIN bucket b ON b.id = k.bucket_id \
             WHERE k.hash = ?1 AND k.wanted = 0 AND b.state <> 'deleting' ORDER BY b.id",
            [hash],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        for (bucket, name) in owners {
            self.emit_content_in(topic, (bucket, name), hash, size)?;
        }
        Ok(())
    }

    /// Announces a change of a content in one bucket, by its number and name.
    pub(crate) fn emit_content_in(
        &mut self,
        topic: EventTopic,
        (bucket, name): (BucketId, String),
        hash: ContentHash,
        size: u64,
    ) -> Result<(), StoreError> {
        let payload = EventPayload {
            bucket: Some(name),
            hash: Some(hash.to_string()),
            size: Some(size),
            ..EventPayload::default()
        };
        self.emit(topic, Some(bucket), None, &payload).map(drop)
    }
}
