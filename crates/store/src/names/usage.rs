//! What a bucket uses: references to contents, bytes of distinct contents, and versions of entries.

use rusqlite::{Row, params};

use super::BucketId;
use super::buckets::Bucket;
use super::entry::Entry;
use crate::address::BucketName;
use crate::content::{ContentState, ContentStatus, PreparedContent};
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{QuotaResource, StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::FILE_BYTES_MAX;
use crate::outbox::EventTopic;
use crate::owned_name::rows_of_bucket;
use crate::queue::job_bytes;

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
    /// They are on a peer, and are fetched later. The name gives its bucket no right to the bytes, even if another bucket has
    /// them: that comes with a put, or with [`WriteTransaction::receive_content`].
    Wanted,
    /// They are durable here. The caller made them so before it names them.
    Complete,
}

/// What a bucket uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketUsage {
    /// Bytes of its distinct contents, of extended attributes, targets of links, messages of commits, jobs of its queues and the
    /// parts of paths beyond [`PATH_BYTES_FREE`](crate::limits::PATH_BYTES_FREE). All versions that the bucket still has count, so that a deletion frees nothing
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

    /// What a bucket uses, counted from the rows of its entries and jobs. It reads all of them.
    ///
    /// # Errors
    /// The bucket does not exist.
    pub fn recount(&self, bucket: BucketId) -> Result<BucketUsage, StoreError> {
        let rows = self.charged_row_bytes(bucket)?;
        let contents = self.query_count(
            "SELECT coalesce(sum(coalesce(k.charged, found.size)), 0) FROM (SELECT e.hash AS hash, max(e.size) AS size \
             FROM entry e JOIN branch b ON b.id = e.branch_id WHERE b.bucket_id = ?1 AND e.hash IS NOT NULL GROUP BY e.hash) \
             AS found LEFT JOIN blob_bucket k ON k.hash = found.hash AND k.bucket_id = ?1",
            [bucket],
        )?;
        let entries = self.query_count(
            "SELECT count(*) FROM entry e JOIN branch b ON b.id = e.branch_id WHERE b.bucket_id = ?1 AND e.kind <> 0",
            [bucket],
        )?;
        let staged = self.usage(bucket)?.staged;
        Ok(BucketUsage {
            bytes: rows + contents,
            entries,
            staged,
        })
    }

    /// Bytes of rows, messages and jobs of a bucket that count against its quota.
    fn charged_row_bytes(&self, bucket: BucketId) -> Result<u64, StoreError> {
        let rows = concat!(
            "SELECT coalesce(sum(",
            super::entry::charged_bytes!(),
            "), 0) FROM entry WHERE branch_id IN (SELECT id FROM branch WHERE bucket_id = ?1)"
        );
        let messages =
            "SELECT coalesce(sum(octet_length(message)), 0) FROM commit_ WHERE bucket_id = ?1";
        let jobs = concat!(
            "SELECT coalesce(sum(",
            job_bytes!(),
            "), 0) FROM job WHERE queue > ?1 AND queue < ?2"
        );
        let (first, end) = rows_of_bucket(bucket);
        Ok(self.query_count(rows, [bucket])?
            + self.query_count(messages, [bucket])?
            + self.query_count(jobs, [first, end])?)
    }

    /// Whether a bucket has a right to the bytes of a content: one of its names came with them. A name that was only announced
    /// gives none, and has the same answer as a hash that the bucket does not know.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn has_content(&self, bucket: BucketId, hash: ContentHash) -> Result<bool, StoreError> {
        let query =
            "SELECT count(*) FROM blob_bucket WHERE bucket_id = ?1 AND hash = ?2 AND wanted = 0";
        Ok(self.query_count(query, params![bucket, hash])? > 0)
    }

    /// What a bucket may know of a content: of one that it only announced, its own announcement.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn content_status_in(
        &self,
        bucket: BucketId,
        hash: ContentHash,
    ) -> Result<ContentStatus, StoreError> {
        let query = "SELECT wanted, charged FROM blob_bucket WHERE bucket_id = ?1 AND hash = ?2";
        let row = self.query_row(query, params![bucket, hash], read_claim)?;
        self.status_of_claim(row, hash)
    }

    /// The same for the bucket with this name, for callers by hash. `None` asks for all buckets: one of them that has a right
    /// to the bytes decides, and then an announcement.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn content_status_by_name(
        &self,
        bucket: Option<&BucketName>,
        hash: ContentHash,
    ) -> Result<ContentStatus, StoreError> {
        let row = match bucket {
            Some(bucket) => self.query_row(
                // The bucket first, and then one step to the pair of both: a hash that other buckets have costs no
                // further look.
                "SELECT k.wanted, k.charged FROM bucket b CROSS JOIN blob_bucket k \
                 ON k.hash = ?1 AND k.bucket_id = b.id WHERE b.name = ?2",
                params![hash, bucket.as_str()],
                read_claim,
            )?,
            None => self.query_row(
                "SELECT k.wanted, k.charged FROM blob_bucket k JOIN bucket b ON b.id = k.bucket_id \
                 WHERE k.hash = ?1 AND b.state <> 'deleting' ORDER BY k.wanted, k.bucket_id LIMIT 1",
                [hash],
                read_claim,
            )?,
        };
        self.status_of_claim(row, hash)
    }

    /// Looks whether a bucket has the quota for the bytes of a content that it announced, which are this many. The peer that
    /// has them knows their number, and the bucket may have announced fewer.
    ///
    /// # Errors
    /// [`StoreError::QuotaExceeded`]; or the bucket does not exist.
    pub fn check_announced(
        &self,
        bucket: BucketId,
        hash: ContentHash,
        size: u64,
    ) -> Result<(), StoreError> {
        let query =
            "SELECT charged FROM blob_bucket WHERE bucket_id = ?1 AND hash = ?2 AND refs > 0";
        let charged = self.query_row(query, params![bucket, hash], |row| row.get(0))?;
        let more = size.saturating_sub(charged.map_or(0, from_sql));
        let used = self.usage(bucket)?.bytes;
        match self.bucket(bucket)?.quota_bytes {
            Some(limit) if more > 0 && used.saturating_add(more) > limit => {
                Err(StoreError::QuotaExceeded {
                    resource: QuotaResource::Bytes,
                    limit,
                    used,
                })
            }
            _ => Ok(()),
        }
    }

    fn status_of_claim(
        &self,
        claim: Option<(bool, u64)>,
        hash: ContentHash,
    ) -> Result<ContentStatus, StoreError> {
        match claim {
            None => Ok(ContentStatus::Missing),
            Some((true, size)) => Ok(ContentStatus::Wanted { size }),
            Some((false, _)) => self.content_status(hash),
        }
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

/// Whether a bucket only announced a content, and with how many bytes.
fn read_claim(row: &Row<'_>) -> rusqlite::Result<(bool, u64)> {
    Ok((row.get(0)?, from_sql(row.get(1)?)))
}

impl WriteTransaction<'_> {
    /// Makes a content known to a bucket, before the first row of it refers to the content. Returns it with the size that
    /// the bucket is to see.
    ///
    /// # Errors
    /// It is larger than any file; its bytes are here with another size; or the bucket announced it as shorter, and has not
    /// the quota for its size.
    pub(crate) fn declare_content(
        &mut self,
        bucket: BucketId,
        content: &FileContent,
    ) -> Result<FileContent, StoreError> {
        // Here and not at the operation, because every new content passes this function.
        if content.size > FILE_BYTES_MAX {
            return Err(StoreError::TooLarge {
                unit: "bytes in a file",
                limit: FILE_BYTES_MAX,
            });
        }
        match content.presence {
            ContentPresence::Complete => {
                self.declare_complete(content)?;
                self.grant_content(bucket, content.hash, content.size)?;
                Ok(*content)
            }
            ContentPresence::Wanted => self.declare_wanted(bucket, content),
        }
    }

    /// Takes in a content that a peer has sent for a bucket that announced it: from here on its names lead to the bytes. The
    /// caller holds `content` until this is committed.
    ///
    /// # Errors
    /// The bucket did not announce it, or has not the quota for its size.
    pub fn receive_content(
        &mut self,
        bucket: BucketId,
        content: &PreparedContent,
    ) -> Result<(), StoreError> {
        let query = "SELECT count(*) FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2";
        if self.query_count(query, params![content.hash(), bucket])? == 0 {
            return Err(StoreError::NotFound(StoreObject::Content));
        }
        self.record_content(content)?;
        self.declare_complete(&content.content())?;
        self.grant_content(bucket, content.hash(), content.size())
    }

    /// Writes the row of a content that is here.
    fn declare_complete(&self, content: &FileContent) -> Result<(), StoreError> {
        let FileContent { hash, size, .. } = *content;
        let query = "SELECT size, state FROM blob WHERE hash = ?1";
        let known = self.query_row(query, [hash], |row| {
            Ok((from_sql(row.get(0)?), row.get::<_, ContentState>(1)?))
        })?;
        let is_known = match known {
            // What a caller just made durable also mends a content that was found damaged.
            Some((known, ContentState::Bad)) if known == size => true,
            Some((known, ContentState::Complete)) if known == size => return Ok(()),
            Some((known, ContentState::Complete | ContentState::Bad)) => {
                let given = size;
                return Err(StoreError::SizeMismatch { known, given });
            }
            // What was announced of it is worth nothing beside the bytes themselves.
            Some((_, ContentState::Wanted | ContentState::Partial)) => true,
            None => false,
        };
        let complete = ContentState::Complete.code();
        let values = params![hash, to_sql(size), complete, to_sql(self.unix_ms())];
        match is_known {
            true => {
                self.note_damage_count();
                self.execute(
                    "UPDATE blob SET size = ?2, state = ?3, verified_ms = ?4 WHERE hash = ?1",
                    values,
                )?
            }
            false => self.execute(
                "INSERT INTO blob(hash, size, state, verified_ms) VALUES (?1, ?2, ?3, ?4)",
                values,
            )?,
        };
        Ok(())
    }

    /// Notes that a bucket has a name of a content whose bytes are not here. Nothing of the answer depends on other
    /// buckets: otherwise an announcement would tell which contents they have, and how long these are.
    fn declare_wanted(
        &self,
        bucket: BucketId,
        content: &FileContent,
    ) -> Result<FileContent, StoreError> {
        let FileContent { hash, size, .. } = *content;
        let blob =
            "INSERT INTO blob(hash, size, state) VALUES (?1, ?2, ?3) ON CONFLICT(hash) DO NOTHING";
        let wanted = ContentState::Wanted.code();
        self.execute(blob, params![hash, to_sql(size), wanted])?;
        self.execute(
            "INSERT INTO blob_bucket(hash, bucket_id, refs, charged, wanted) VALUES (?1, ?2, 0, ?3, 1) \
             ON CONFLICT(hash, bucket_id) DO NOTHING",
            params![hash, bucket, to_sql(size)],
        )?;
        // A bucket that has the bytes, or announced them before, goes on with the size that it knows.
        let query = "SELECT charged FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2";
        let size = self.query_row(query, params![hash, bucket], |row| row.get(0))?;
        let size = size.map_or(content.size, from_sql);
        Ok(FileContent { size, ..*content })
    }

    /// Gives a bucket the right to a content, whose size is known now. A size that it announced is corrected, in its rows
    /// and in what it pays; other buckets do not see that the bytes are here.
    fn grant_content(
        &mut self,
        bucket: BucketId,
        hash: ContentHash,
        size: u64,
    ) -> Result<(), StoreError> {
        let query =
            "SELECT refs, charged, wanted FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2";
        let row = self.query_row(query, params![hash, bucket], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, bool>(2)?,
            ))
        })?;
        let Some((refs, charged, is_wanted)) = row else {
            self.execute(
                "INSERT INTO blob_bucket(hash, bucket_id, refs, charged, wanted) VALUES (?1, ?2, 0, ?3, 0)",
                params![hash, bucket, to_sql(size)],
            )?;
            return Ok(());
        };
        if !is_wanted && charged == to_sql(size) {
            return Ok(());
        }
        self.execute(
            "UPDATE blob_bucket SET charged = ?3, wanted = 0 WHERE hash = ?1 AND bucket_id = ?2",
            params![hash, bucket, to_sql(size)],
        )?;
        if is_wanted && refs > 0 {
            // From here on the names that were announced lead to bytes.
            let name = self.bucket(bucket)?.name.to_string();
            self.emit_content_in(EventTopic::BlobComplete, (bucket, name), hash, size)?;
        }
        if charged == to_sql(size) {
            return Ok(());
        }
        self.execute(
            "UPDATE entry SET size = ?3 WHERE hash = ?1 AND branch_id IN (SELECT id FROM branch WHERE bucket_id = ?2)",
            params![hash, bucket, to_sql(size)],
        )?;
        if refs == 0 {
            return Ok(());
        }
        let more = to_sql(size) - charged;
        let usage = "UPDATE usage SET bytes = bytes + ?2 WHERE bucket_id = ?1";
        self.execute(usage, params![bucket, more])?;
        // Otherwise a bucket could announce contents as empty, and put them beyond its quota then.
        let change = UsageChange {
            bytes: more,
            ..UsageChange::default()
        };
        self.check_usage(&self.bucket(bucket)?, change)
    }

    /// Prepares the copy of entries from another bucket: the right to each content goes with them, or is missing as it is
    /// there.
    pub(super) fn carry_contents(
        &mut self,
        from: BucketId,
        to: BucketId,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        if from == to {
            return Ok(());
        }
        for hash in entries.iter().filter_map(|entry| entry.state.hash) {
            self.execute(
                "INSERT INTO blob_bucket(hash, bucket_id, refs, charged, wanted) \
                 SELECT hash, ?3, 0, charged, wanted FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2 \
                 ON CONFLICT(hash, bucket_id) DO NOTHING",
                params![hash, from, to],
            )?;
            let query =
                "SELECT charged FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2 AND wanted = 0";
            let granted = self.query_row(query, params![hash, from], |row| row.get(0))?;
            if let Some(size) = granted.map(from_sql) {
                self.grant_content(to, hash, size)?;
            }
        }
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
        // A content that was neither put here nor carried here gives no right.
        self.execute(
            "INSERT INTO blob_bucket(hash, bucket_id, refs, charged, wanted) VALUES (?1, ?2, 1, ?3, 1) \
             ON CONFLICT(hash, bucket_id) DO UPDATE SET refs = refs + 1",
            params![hash, bucket, to_sql(size)],
        )?;
        // Only for the first reference: a bucket pays once for a content, however many files have it.
        usage.bytes += self.charged_at(bucket, hash, 1)?;
        Ok(())
    }

    /// Counts one row less that refers to a content. The content itself is for the garbage collection. What the bucket paid is
    /// given back, whatever the size in the row was.
    pub(crate) fn release_content(
        &self,
        bucket: BucketId,
        hash: ContentHash,
        _: u64,
        usage: &mut UsageChange,
    ) -> Result<(), StoreError> {
        let less = "UPDATE blob_bucket SET refs = refs - 1 WHERE hash = ?1 AND bucket_id = ?2 AND refs > 0";
        if self.execute(less, params![hash, bucket])? > 0 {
            usage.bytes -= self.charged_at(bucket, hash, 0)?;
        }
        Ok(())
    }

    /// What a bucket pays for a content if it has this number of references, and 0 otherwise.
    fn charged_at(
        &self,
        bucket: BucketId,
        hash: ContentHash,
        refs: i64,
    ) -> Result<i64, StoreError> {
        let query =
            "SELECT charged FROM blob_bucket WHERE hash = ?1 AND bucket_id = ?2 AND refs = ?3";
        let charged = self.query_row(query, params![hash, bucket, refs], |row| row.get(0))?;
        Ok(charged.unwrap_or_default())
    }

    /// Adds a change to the counters of its bucket.
    ///
    /// # Errors
    /// The bucket would use more than its quota. A change that frees something is never refused.
    pub(crate) fn charge(&self, bucket: &Bucket, change: UsageChange) -> Result<(), StoreError> {
        // Counted first and compared then: a refusal takes back the whole job with its counters.
        self.add_usage(bucket.id, change)?;
        self.check_usage(bucket, change)
    }

    /// Compares the counters of a bucket with its quotas, after a change was added to them.
    fn check_usage(&self, bucket: &Bucket, change: UsageChange) -> Result<(), StoreError> {
        // The store took the change once, and what collections gave back since is not given back again.
        if self.is_replay() {
            return Ok(());
        }
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

    /// Adds a change to the counters without a look at the quota, at the end of the work that made the change.
    pub(crate) fn add_usage(
        &self,
        bucket: BucketId,
        change: UsageChange,
    ) -> Result<(), StoreError> {
        // Not with the last reference: a row of the same work may take it over, with its right.
        let unused = "DELETE FROM blob_bucket WHERE bucket_id = ?1 AND refs = 0";
        self.execute(unused, [bucket])?;
        self.execute(
            "UPDATE usage SET bytes = bytes + ?2, entries = entries + ?3 WHERE bucket_id = ?1",
            params![bucket, change.bytes, change.entries],
        )?;
        Ok(())
    }
}
