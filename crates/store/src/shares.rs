//! Shares: a content that a peer without an identity may fetch by its hash, with the key that its TLS client proves.
//!
//! A share is bound to one content, one bucket that has it, and one key. It ends by its time, by its requests or bytes, when
//! the bucket no longer has the content, or when an administrator removes it. One whose requests or bytes are used up allows
//! no further request, and stays for those under way.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rusqlite::{Row, params};

use crate::bounds::{check_length, end_ms};
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql, to_sql_option};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::{
    ACTOR_BYTES_MAX, SHARE_TIME_MAX, SHARE_USES_MAX, SHARES_MAX, SHARES_PER_BUCKET_MAX,
};
use crate::names::BucketId;

/// Ended shares that a new one sweeps, so that they do not count against its limits. Of those whose requests are used up it
/// sweeps as many where the limits are reached.
const SWEPT_AT_ONCE: usize = 100;

/// The number of a share: 16 random bytes, shown as 32 hexadecimal digits. It gives no right, so that it is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentShareId([u8; 16]);

impl ContentShareId {
    fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        let filled = getrandom::fill(&mut bytes);
        filled.map_err(|error| StoreError::FileSystem(error.to_string()))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ContentShareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ContentShareId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let number = match text.len() {
            32 => u128::from_str_radix(text, 16).ok(),
            _ => None,
        };
        let id = number.map(|number| Self(number.to_be_bytes()));
        // One text for each number: no sign and no digit in upper case.
        id.filter(|id| id.to_string() == text)
            .ok_or(StoreError::InvalidName(
                "the number of a share has 32 lower-case hexadecimal digits",
            ))
    }
}

/// A share to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewShare {
    /// The content.
    pub hash: ContentHash,
    /// The bucket that has it.
    pub bucket: BucketId,
    /// The key whose holder may fetch the content, as text.
    pub grantee: String,
    /// The identity that shares it.
    pub owner: String,
    /// How long it lasts, at most [`SHARE_TIME_MAX`].
    pub time: Duration,
    /// Bytes of content that all requests together may ask for; any number without it.
    pub bytes_max: Option<u64>,
    /// Requests, at most [`SHARE_USES_MAX`]; any number without it.
    pub uses_max: Option<u64>,
}

/// A share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentShare {
    /// Its number.
    pub id: ContentShareId,
    /// The content.
    pub hash: ContentHash,
    /// The key whose holder may fetch the content, as text.
    pub grantee: String,
    /// The identity that shares it.
    pub owner: String,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// When it ends, in milliseconds since 1970-01-01 UTC.
    pub until_ms: u64,
    /// Bytes that requests may still ask for.
    pub bytes_left: Option<u64>,
    /// Requests that are left.
    pub uses_left: Option<u64>,
}

impl ContentShare {
    const COLUMNS: &'static str = "SELECT id, hash, grantee, owner, created_ms, until_ms, bytes_left, uses_left FROM share \
        WHERE bucket_id = ?1 ORDER BY created_ms, id LIMIT ?2";

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let left = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.map(from_sql));
        Ok(Self {
            id: ContentShareId(row.get(0)?),
            hash: row.get(1)?,
            grantee: row.get(2)?,
            owner: row.get(3)?,
            created_ms: from_sql(row.get(4)?),
            until_ms: from_sql(row.get(5)?),
            bytes_left: left(6)?,
            uses_left: left(7)?,
        })
    }
}

impl ReadTransaction<'_> {
    /// Whether the holder of a key may fetch a content of which it asks for this many bytes. The look-up is the same whether
    /// or not the store has the content.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn has_share(
        &self,
        grantee: &str,
        hash: ContentHash,
        bytes: u64,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        Ok(self.usable_share(grantee, hash, bytes, now_ms)?.is_some())
    }

    /// Whether anything is shared with the holder of a key at this time.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn has_any_share(&self, grantee: &str, now_ms: u64) -> Result<bool, StoreError> {
        let query = "SELECT EXISTS (SELECT 1 FROM share WHERE grantee = ?1 AND until_ms > ?2 \
                     AND coalesce(uses_left, 1) > 0)";
        Ok(self.query_count(query, params![grantee, to_sql(now_ms)])? > 0)
    }

    /// The shares of a bucket, the oldest first, at most [`SHARES_PER_BUCKET_MAX`] of them.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn shares(&self, bucket: BucketId) -> Result<Vec<ContentShare>, StoreError> {
        let limit = to_sql(SHARES_PER_BUCKET_MAX);
        self.query_all(ContentShare::COLUMNS, params![bucket, limit], |row| {
            ContentShare::read(row)
        })
    }

    /// Whether a request that a share allowed may go on: its time is not over, it was not removed, and the bucket still has
    /// the content. What the request used up of the share does not count.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn share_lasts(&self, id: ContentShareId, now_ms: u64) -> Result<bool, StoreError> {
        let query = "SELECT EXISTS (SELECT 1 FROM share s JOIN blob_bucket k ON k.hash = s.hash AND k.bucket_id = s.bucket_id \
                     JOIN bucket b ON b.id = s.bucket_id \
                     WHERE s.id = ?1 AND s.until_ms > ?2 AND k.wanted = 0 AND b.state <> 'deleting')";
        Ok(self.query_count(query, params![id.0, to_sql(now_ms)])? > 0)
    }

    /// Refuses a further share where a bucket, or all of them, have as many as they may.
    fn check_share_count(&self, bucket: BucketId) -> Result<(), StoreError> {
        let all = self.query_count("SELECT count(*) FROM share", [])?;
        let of_bucket = "SELECT count(*) FROM share WHERE bucket_id = ?1";
        let of_bucket = self.query_count(of_bucket, [bucket])?;
        for (count, unit, limit) in [
            (all, "shares", SHARES_MAX),
            (of_bucket, "shares of a bucket", SHARES_PER_BUCKET_MAX),
        ] {
            if count >= limit {
                return Err(StoreError::TooLarge { unit, limit });
            }
        }
        Ok(())
    }

    fn usable_share(
        &self,
        grantee: &str,
        hash: ContentHash,
        bytes: u64,
        now_ms: u64,
    ) -> Result<Option<ContentShareId>, StoreError> {
        self.query_row(
            "SELECT id FROM share s WHERE grantee = ?1 AND hash = ?2 AND until_ms > ?3 \
             AND coalesce(bytes_left, ?4) >= ?4 AND coalesce(uses_left, 1) > 0 \
             AND EXISTS (SELECT 1 FROM blob_bucket k JOIN bucket b ON b.id = k.bucket_id \
             WHERE k.hash = s.hash AND k.bucket_id = s.bucket_id AND k.wanted = 0 AND b.state <> 'deleting') \
             ORDER BY until_ms LIMIT 1",
            params![grantee, hash, to_sql(now_ms), to_sql(bytes)],
            |row| row.get(0).map(ContentShareId),
        )
    }
}

impl WriteTransaction<'_> {
    /// Shares a content of a bucket with the holder of a key.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the bucket does not have the content; [`StoreError::TooLarge`] if there are too many
    /// shares or a number is above its limit.
    pub fn create_share(&mut self, new: &NewShare) -> Result<ContentShare, StoreError> {
        for text in [&new.grantee, &new.owner] {
            check_length("bytes in a name", text, ACTOR_BYTES_MAX)?;
        }
        if new.uses_max.is_some_and(|uses| uses > SHARE_USES_MAX) {
            return Err(StoreError::TooLarge {
                unit: "requests of a share",
                limit: SHARE_USES_MAX,
            });
        }
        self.sweep_shares(SWEPT_AT_ONCE)?;
        let is_there = "SELECT count(*) FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2";
        if self.query_count(is_there, params![new.hash, new.bucket])? == 0 {
            return Err(StoreError::NotFound(StoreObject::Content));
        }
        if self.check_share_count(new.bucket).is_err() {
            // They stay for requests under way as long as no other share needs their rows.
            self.sweep_used_shares(SWEPT_AT_ONCE)?;
            self.check_share_count(new.bucket)?;
        }
        let created_ms = self.unix_ms();
        let share = ContentShare {
            id: ContentShareId::random()?,
            hash: new.hash,
            grantee: new.grantee.clone(),
            owner: new.owner.clone(),
            created_ms,
            until_ms: end_ms(created_ms, new.time, SHARE_TIME_MAX),
            bytes_left: new.bytes_max,
            uses_left: new.uses_max,
        };
        self.execute(
            "INSERT INTO share(id, hash, bucket_id, grantee, owner, created_ms, until_ms, bytes_left, uses_left) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                share.id.0,
                share.hash,
                new.bucket,
                share.grantee,
                share.owner,
                to_sql(share.created_ms),
                to_sql(share.until_ms),
                to_sql_option(share.bytes_left),
                to_sql_option(share.uses_left),
            ],
        )?;
        Ok(share)
    }

    /// Takes a request for this many bytes of a content from a share of the key's holder. Returns the share that allows it.
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn use_share(
        &mut self,
        grantee: &str,
        hash: ContentHash,
        bytes: u64,
    ) -> Result<Option<ContentShareId>, StoreError> {
        let now_ms = self.unix_ms();
        let Some(id) = self.usable_share(grantee, hash, bytes, now_ms)? else {
            return Ok(None);
        };
        // `NULL` minus a number stays `NULL`: without a limit there is nothing to count.
        self.execute(
            "UPDATE share SET bytes_left = bytes_left - ?2, uses_left = uses_left - 1 WHERE id = ?1",
            params![id.0, to_sql(bytes)],
        )?;
        Ok(Some(id))
    }

    /// Ends a share of a bucket. Returns whether there was one.
    ///
    /// # Errors
    /// The database refuses the statement.
    pub fn remove_share(
        &mut self,
        bucket: BucketId,
        id: ContentShareId,
    ) -> Result<bool, StoreError> {
        let removed = "DELETE FROM share WHERE id = ?1 AND bucket_id = ?2";
        Ok(self.execute(removed, params![id.0, bucket])? > 0)
    }

    /// Removes shares whose time is over, at most this many. Returns how many there were.
    ///
    /// # Errors
    /// The database refuses the statement.
    pub fn sweep_shares(&mut self, rows_max: usize) -> Result<usize, StoreError> {
        let (now, rows) = (to_sql(self.unix_ms()), to_sql(rows_max as u64));
        self.execute(
            "DELETE FROM share WHERE id IN (SELECT id FROM share WHERE until_ms <= ?1 ORDER BY until_ms LIMIT ?2)",
            params![now, rows],
        )
    }

    /// Removes shares whose requests are used up, those that end first before others.
    fn sweep_used_shares(&mut self, rows_max: usize) -> Result<(), StoreError> {
        let removed = self.execute(
            "DELETE FROM share WHERE id IN (SELECT id FROM share WHERE uses_left <= 0 ORDER BY until_ms LIMIT ?1)",
            [to_sql(rows_max as u64)],
        );
        removed.map(drop)
    }
}

#[cfg(test)]
mod tests;
