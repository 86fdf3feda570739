//! What a bucket uses: references to contents, bytes of distinct contents, and versions of entries.

use rusqlite::params;

use super::BucketId;
use super::buckets::Bucket;
use crate::address::BucketName;
use crate::content::ContentState;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{QuotaResource, StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::FILE_BYTES_MAX;

/// The content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// BLAKE3 of the bytes.
    pub hash: ContentHash,
    /// Number of the bytes.
    pub size: u64,
    /// Whether the bytes are here.
    pub presence: ContentPresence,
}

impl FileContent {
    /// A content whose bytes are durable here.
    #[must_use]
    pub const fn new(hash: ContentHash, size: u64) -> Self {
        let presence = ContentPresence::Complete;
        Self {
            hash,
            size,
            presence,
        }
    }
}

/// Whether the bytes of a content are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentPresence {
    /// They are on a peer, and are fetched later.
    Wanted,
    /// They are durable here. The caller made them so before it names them.
    Complete,
}

/// What a bucket uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketUsage {
    /// Bytes of its distinct contents, of extended attributes, targets of links, messages of commits and the parts of paths
    /// beyond [`PATH_BYTES_FREE`](crate::limits::PATH_BYTES_FREE). All versions that the bucket still has count, so that a deletion frees nothing
    /// before the retention is over.
    pub bytes: u64,
    /// Versions of entries, deletions left out.
    pub entries: u64,
    /// Bytes of open write sessions.
    pub staged: u64,
}

/// How a commit changes the use of its bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UsageChange {
    pub(crate) bytes: i64,
    pub(crate) entries: i64,
}

impl ReadTransaction<'_> {
    /// What a bucket uses, by its counters.
    ///
    /// # Errors
    /// The bucket does not exist.
    pub fn usage(&self, bucket: BucketId) -> Result<BucketUsage, StoreError> {
        let query = "SELECT bytes, entries, staged FROM usage WHERE bucket_id = ?1";
        let usage = self.query_row(query, [bucket], |row| {
            Ok(BucketUsage {
                bytes: from_sql(row.get(0)?),
                entries: from_sql(row.get(1)?),
                staged: from_sql(row.get(2)?),
            })
        })?;
        usage.ok_or(StoreError::NotFound(StoreObject::Bucket))
    }

    /// The number of buckets, and what all of them use, by their counters. A content that two buckets have counts in both.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn total_usage(&self) -> Result<(u64, BucketUsage), StoreError> {
        let query = "SELECT count(*), coalesce(sum(u.bytes), 0), coalesce(sum(u.entries), 0), \
                     coalesce(sum(u.staged), 0) FROM bucket b JOIN usage u ON u.bucket_id = b.id \
                     WHERE b.state <> 'deleting'";
        let total = self.query_row(query, [], |row| {
            let usage = BucketUsage {
                bytes: from_sql(row.get(1)?),
                entries: from_sql(row.get(2)?),
                staged: from_sql(row.get(3)?),
            };
            Ok((from_sql(row.get(0)?), usage))
        })?;
        Ok(total.unwrap_or_default())
    }

    /// Whether an entry of the bucket with this name refers to a content, in any version. `None` asks for any bucket. A
    /// caller by hash gets what one of its buckets has.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn has_content(
        &self,
        bucket: Option<&BucketName>,
        hash: ContentHash,
    ) -> Result<bool, StoreError> {
        let count = match bucket {
            Some(bucket) => self.query_count(
                "SELECT count(*) FROM blob_bucket k JOIN bucket b ON b.id = k.bucket_id \
                 WHERE k.hash = ?1 AND b.name = ?2",
                params![hash, bucket.as_str()],
            )?,
            None => self.query_count(
                "SELECT count(*) FROM blob_bucket k JOIN bucket b ON b.id = k.bucket_id \
                 WHERE k.hash = ?1 AND b.state <> 'deleting'",
                [hash],
            )?,
        };
        Ok(count > 0)
    }

    /// What a bucket uses, counted from the rows of its entries. It reads all of them.
    ///
    /// # Errors
    /// The bucket does not exist.
    pub fn recount(&self, bucket: BucketId) -> Result<BucketUsage, StoreError> {
        let rows = self.charged_row_bytes(bucket)?;
        let bytes = rows + self.query_count(
            "SELECT coalesce(sum(size), 0) FROM (SELECT max(e.size) AS size FROM entry e JOIN branch b ON b.id = e.branch_id \
             WHERE b.bucket_id = ?1 AND e.hash IS NOT NULL GROUP BY e.hash)",
            [bucket],
        )?;
        let entries = self.query_count(
            "SELECT count(*) FROM entry e JOIN branch b ON b.id = e.branch_id WHERE b.bucket_id = ?1 AND e.kind <> 0",
            [bucket],
        )?;
        let staged = self.usage(bucket)?.staged;
        Ok(BucketUsage {
            bytes,
            entries,
            staged,
        })
    }

    /// Bytes of rows and messages of a bucket that count against its quota.
    fn charged_row_bytes(&self, bucket: BucketId) -> Result<u64, StoreError> {
        let rows = concat!(
            "SELECT coalesce(sum(",
            super::entry::charged_bytes!(),
            "), 0) FROM entry WHERE branch_id IN (SELECT id FROM branch WHERE bucket_id = ?1)"
        );
        let messages =
            "SELECT coalesce(sum(octet_length(message)), 0) FROM commit_ WHERE bucket_id = ?1";
        Ok(self.query_count(rows, [bucket])? + self.query_count(messages, [bucket])?)
    }

    /// Contents whose number of references differs from that of the rows that refer to them. It reads all rows of the
    /// bucket, and has to return nothing.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn wrong_references(&self, bucket: BucketId) -> Result<Vec<ContentHash>, StoreError> {
        self.query_all(
            "SELECT hash FROM (SELECT e.hash AS hash, count(*) AS refs FROM entry e JOIN branch b ON b.id = e.branch_id \
             WHERE b.bucket_id = ?1 AND e.hash IS NOT NULL GROUP BY e.hash) AS found \
             WHERE refs <> coalesce((SELECT refs FROM blob_bucket AS k WHERE k.hash = found.hash AND k.bucket_id = ?1), 0) \
             UNION SELECT k.hash FROM blob_bucket AS k WHERE k.bucket_id = ?1 AND NOT EXISTS \
             (SELECT 1 FROM entry e JOIN branch b ON b.id = e.branch_id WHERE b.bucket_id = ?1 AND e.hash = k.hash)",
            [bucket],
            |row| row.get(0),
        )
    }
}

impl WriteTransaction<'_> {
    /// Makes a content known.
    ///
    /// # Errors
    /// It is larger than any file, or known with another size.
    pub(crate) fn declare_content(&mut self, content: &FileContent) -> Result<(), StoreError> {
        // Here and not at the operation, because every new content passes this function.
        if content.size > FILE_BYTES_MAX {
            return Err(StoreError::TooLarge {
                unit: "bytes in a file",
                limit: FILE_BYTES_MAX,
            });
        }
        let is_complete = content.presence == ContentPresence::Complete;
        let complete = ContentState::Complete.code();
        let (state, verified_ms) = if is_complete {
            (complete, Some(to_sql(self.unix_ms())))
        } else {
            (ContentState::Wanted.code(), None)
        };
        let query = "SELECT size, state FROM blob WHERE hash = ?1";
        let known = self.query_row(query, [content.hash], |row| {
            Ok((from_sql(row.get(0)?), row.get::<_, i64>(1)?))
        })?;
        match known {
            None => self.execute(
                "INSERT INTO blob(hash, size, state, verified_ms) VALUES (?1, ?2, ?3, ?4)",
                params![content.hash, to_sql(content.size), state, verified_ms],
            )?,
            Some((known, _)) if known != content.size => {
                let given = content.size;
                return Err(StoreError::SizeMismatch { known, given });
            }
            // What a caller just made durable also mends a content that was found damaged.
            Some((_, known)) if is_complete && known != complete => self.execute(
                "UPDATE blob SET state = ?2, verified_ms = ?3 WHERE hash = ?1",
                params![content.hash, state, verified_ms],
            )?,
            Some(_) => 0,
        };
        Ok(())
    }

    /// Counts one more row that refers to a content.
    pub(crate) fn retain_content(
        &self,
        bucket: BucketId,
        hash: ContentHash,
        size: u64,
        usage: &mut UsageChange,
    ) -> Result<(), StoreError> {
        let again = "UPDATE blob_bucket SET refs = refs + 1 WHERE hash = ?1 AND bucket_id = ?2";
        if self.execute(again, params![hash, bucket])? == 0 {
            let first = "INSERT INTO blob_bucket(hash, bucket_id, refs) VALUES (?1, ?2, 1)";
            self.execute(first, params![hash, bucket])?;
            // Only for the first reference: a bucket pays once for a content, however many files
            // have it.
            usage.bytes += to_sql(size);
        }
        Ok(())
    }

    /// Counts one row less that refers to a content. The content itself is for the garbage collection.
    pub(crate) fn release_content(
        &self,
        bucket: BucketId,
        hash: ContentHash,
        size: u64,
        usage: &mut UsageChange,
    ) -> Result<(), StoreError> {
        // The row goes with its last reference, because a row says that the bucket uses the
        // content.
        let last = "DELETE FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2 AND refs <= 1";
        if self.execute(last, params![hash, bucket])? > 0 {
            usage.bytes -= to_sql(size);
            return Ok(());
        }
        let one = "UPDATE blob_bucket SET refs = refs - 1 WHERE hash = ?1 AND bucket_id = ?2";
        self.execute(one, params![hash, bucket])?;
        Ok(())
    }

    /// Adds a change to the counters of its bucket.
    ///
    /// # Errors
    /// The bucket would use more than its quota. A change that frees something is never refused.
    pub(crate) fn charge(&self, bucket: &Bucket, change: UsageChange) -> Result<(), StoreError> {
        // Counted first and compared then: a refusal takes back the whole job with its counters.
        self.add_usage(bucket.id, change)?;
        let usage = self.usage(bucket.id)?;
        let resources = [
            (
                QuotaResource::Bytes,
                bucket.quota_bytes,
                usage.bytes,
                change.bytes,
            ),
            (
                QuotaResource::Entries,
                bucket.quota_entries,
                usage.entries,
                change.entries,
            ),
        ];
        for (resource, quota, used, change) in resources {
            if let Some(limit) = quota
                && change > 0
                && used > limit
            {
                // The caller compares with what it sees, which is the use before.
                let used = used.saturating_sub(from_sql(change));
                return Err(StoreError::QuotaExceeded {
                    resource,
                    limit,
                    used,
                });
            }
        }
        Ok(())
    }

    /// Adds a change to the counters without a look at the quota.
    pub(crate) fn add_usage(
        &self,
        bucket: BucketId,
        change: UsageChange,
    ) -> Result<(), StoreError> {
        self.execute(
            "UPDATE usage SET bytes = bytes + ?2, entries = entries + ?3 WHERE bucket_id = ?1",
            params![bucket, change.bytes, change.entries],
        )?;
        Ok(())
    }
}
