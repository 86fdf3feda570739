//! Queues: jobs that one worker at a time claims, and that are tried again until a worker acknowledges them.
//!
//! A job waits until `run_at_ms`. A claimed job has the end of its lease there, so that it is due again by itself when its
//! worker is gone. A dead job has nothing there.

use std::fmt;
use std::time::Duration;

use rusqlite::{Row, params};

use crate::bounds::{check_length, duration_ms, end_ms};
use crate::db::{META_LAST_JOB, ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::{
    JOB_KEY_BYTES_MAX, JOB_PAUSE_MAX, JOB_PAUSE_MIN, JOB_PAYLOAD_BYTES_MAX, JOB_TRIES_MAX,
    JOBS_PAGE_MAX, LEASE_TIME_MAX, LEASE_TIME_MIN, QUEUE_JOBS_MAX, QUEUES_MAX,
    QUEUES_PER_BUCKET_MAX,
};
use crate::names::{BucketId, UsageChange};
use crate::owned_name::{OwnedName, owning_bucket, rows_of_bucket, rows_of_buckets};

/// Bytes of a job that count against the quota of its bucket, as SQL: its payload, its key and the name of its queue, as the
/// row has them.
macro_rules! job_bytes {
    () => {
        "octet_length(payload) + octet_length(queue) + coalesce(octet_length(key), 0)"
    };
}
pub(crate) use job_bytes;

/// The name of a queue of a bucket. A queue is there as long as it has a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName(OwnedName);

impl QueueName {
    /// Checks a name: 1 to 128 letters, digits, `.`, `_`, `-` and `/`.
    ///
    /// # Errors
    /// The name breaks a rule.
    pub fn parse(bucket: BucketId, text: &str) -> Result<Self, StoreError> {
        OwnedName::parse(bucket, text).map(Self)
    }

    /// The bucket of the queue.
    #[must_use]
    pub const fn bucket(&self) -> BucketId {
        self.0.bucket()
    }

    /// The name as rows have it. Locks are rows of the same table, and their queue is of no bucket.
    fn as_str(&self) -> &str {
        self.0.row()
    }
}

/// The name in the bucket.
impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// A job to be enqueued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// Its queue.
    pub queue: QueueName,
    /// What the worker gets. The store does not read it.
    pub payload: String,
    /// A text that only one job of the queue has. A second one with the same key is not
    /// enqueued, also while the first one is dead.
    pub key: Option<String>,
    /// When it is due, in milliseconds since 1970-01-01 UTC. `None` is at once.
    pub run_at_ms: Option<u64>,
}

impl NewJob {
    /// A job that is due at once.
    #[must_use]
    pub fn new(queue: QueueName, payload: &str) -> Self {
        Self {
            queue,
            payload: payload.to_owned(),
            key: None,
            run_at_ms: None,
        }
    }
}

/// What became of a job that was enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnqueuedJob {
    /// Its number, which no later job gets.
    pub id: i64,
    /// Whether it is a new one. Otherwise the queue has a job with its key.
    pub is_new: bool,
}

/// By what a worker shows that a job is still its own. Each claim and each renewal makes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobClaim {
    /// The job.
    pub id: i64,
    /// How often it was claimed, this time counted.
    pub tries: u32,
    /// When the lease lapses, in milliseconds since 1970-01-01 UTC.
    pub lease_until_ms: u64,
}

/// A job in the hands of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedJob {
    /// The claim, with which the worker ends or renews it.
    pub claim: JobClaim,
    /// What the job is.
    pub payload: String,
    /// Its key.
    pub key: Option<String>,
}

/// What becomes of a job that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobRetry {
    /// It is due again.
    At {
        /// When, in milliseconds since 1970-01-01 UTC.
        run_at_ms: u64,
    },
    /// It was tried [`JOB_TRIES_MAX`] times, and waits for an administrator.
    Dead,
}

/// A job that failed too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadJob {
    /// Its number.
    pub id: i64,
    /// What the job is.
    pub payload: String,
    /// Its key.
    pub key: Option<String>,
}

/// Jobs of a queue, by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueUsage {
    /// Jobs that wait, due or not.
    pub waiting: u64,
    /// Jobs that a worker has, or had until its lease lapsed.
    pub claimed: u64,
    /// Jobs that failed too often.
    pub dead: u64,
}

/// A row that is due.
struct DueJob {
    id: i64,
    payload: String,
    key: Option<String>,
    tries: u32,
}

/// The key of a row: with the queue, because the column is unique over all queues.
fn row_key(queue: &QueueName, key: &str) -> String {
    format!("job:{}:{key}", queue.as_str())
}

/// The key that the caller gave. Neither `job` nor the name of a queue has a colon.
fn strip_own_key(stored: Option<String>) -> Option<String> {
    let stored = stored?;
    stored.splitn(3, ':').nth(2).map(str::to_owned)
}

/// The pause before the next try of a job that was tried this often.
fn pause_after(tries: u32) -> Duration {
    // Bounded before the shift, which a larger number would overflow.
    let doublings = tries.saturating_sub(1).min(u32::BITS - 1);
    JOB_PAUSE_MIN
        .saturating_mul(1 << doublings)
        .min(JOB_PAUSE_MAX)
}

fn read_due(row: &Row<'_>) -> rusqlite::Result<DueJob> {
    Ok(DueJob {
        id: row.get(0)?,
        payload: row.get(1)?,
        key: strip_own_key(row.get(2)?),
        tries: row.get(3)?,
    })
}

impl ReadTransaction<'_> {
    /// Jobs of a queue, by their state.
    ///
    /// # Errors
    /// The database refuses a query.
    pub fn queue_usage(&self, queue: &QueueName) -> Result<QueueUsage, StoreError> {
        let count = |query| self.query_count(query, [queue.as_str()]);
        Ok(QueueUsage {
            waiting: count(
                "SELECT count(*) FROM job WHERE queue = ?1 AND run_at_ms IS NOT NULL AND lease_ms IS NULL",
            )?,
            claimed: count("SELECT count(*) FROM job WHERE queue = ?1 AND lease_ms IS NOT NULL")?,
            dead: count("SELECT count(*) FROM job WHERE queue = ?1 AND run_at_ms IS NULL")?,
        })
    }

    /// When the next job of a queue is due, in milliseconds since 1970-01-01 UTC. A worker waits until then, or until it
    /// enqueues another one itself.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn next_job_ms(&self, queue: &QueueName) -> Result<Option<u64>, StoreError> {
        let query = "SELECT min(run_at_ms) FROM job WHERE queue = ?1";
        let next = self.query_row(query, [queue.as_str()], |row| row.get::<_, Option<i64>>(0))?;
        Ok(next.flatten().map(from_sql))
    }

    /// Dead jobs of a queue behind this number, at most `limit` and [`JOBS_PAGE_MAX`].
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn dead_jobs(
        &self,
        queue: &QueueName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<DeadJob>, StoreError> {
        let limit = to_sql(limit.clamp(1, JOBS_PAGE_MAX) as u64);
        self.query_all(
            "SELECT id, payload, key FROM job WHERE queue = ?1 AND run_at_ms IS NULL AND id > ?2 ORDER BY id LIMIT ?3",
            params![queue.as_str(), after, limit],
            |row| {
                Ok(DeadJob {
                    id: row.get(0)?,
                    payload: row.get(1)?,
                    key: strip_own_key(row.get(2)?),
                })
            },
        )
    }
}

impl WriteTransaction<'_> {
    /// Puts a job into its queue.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the queue is full; [`StoreError::QuotaExceeded`] if the bucket is; the payload or the key is
    /// too long; there are too many queues; or the bucket does not exist.
    pub fn enqueue(&mut self, new: &NewJob) -> Result<EnqueuedJob, StoreError> {
        check_length("bytes of a job", &new.payload, JOB_PAYLOAD_BYTES_MAX)?;
        let key = match &new.key {
            Some(key) => {
                check_length("bytes of the key of a job", key, JOB_KEY_BYTES_MAX)?;
                Some(row_key(&new.queue, key))
            }
            None => None,
        };
        if let Some(key) = &key
            && let Some(id) =
                self.query_row("SELECT id FROM job WHERE key = ?1", [key], |row| row.get(0))?
        {
            // No error: a caller that repeats its request wants one job, and it has one.
            return Ok(EnqueuedJob { id, is_new: false });
        }
        // A job of a bucket that is being deleted would outlive it.
        let bucket = self.bucket(new.queue.bucket())?;
        self.check_queue(&new.queue)?;
        self.check_space()?;
        let id = self.next_job_id()?;
        let run_at = to_sql(new.run_at_ms.unwrap_or_else(|| self.unix_ms()));
        self.execute(
            "INSERT INTO job(id, queue, payload, run_at_ms, tries, key) VALUES (?1, ?2, ?3, ?4, 0, ?5)",
            params![id, new.queue.as_str(), new.payload, run_at, key],
        )?;
        let key_bytes = key.as_deref().map_or(0, str::len);
        let bytes = new.payload.len() + new.queue.as_str().len() + key_bytes;
        // Otherwise a caller with the right to write could fill the disk beside the quota.
        let change = UsageChange {
            bytes: to_sql(bytes as u64),
            ..UsageChange::default()
        };
        self.charge(&bucket, change)?;
        Ok(EnqueuedJob { id, is_new: true })
    }

    /// Whether a queue takes another job.
    fn check_queue(&self, queue: &QueueName) -> Result<(), StoreError> {
        let count = "SELECT count(*) FROM job WHERE queue = ?1";
        match self.query_count(count, [queue.as_str()])? {
            // The first job makes the queue.
            0 => {
                let of_bucket = self.count_queues(rows_of_bucket(queue.bucket()))?;
                if of_bucket >= QUEUES_PER_BUCKET_MAX {
                    return Err(StoreError::TooLarge {
                        unit: "queues of a bucket",
                        limit: QUEUES_PER_BUCKET_MAX,
                    });
                }
                if self.count_queues(rows_of_buckets())? >= QUEUES_MAX {
                    return Err(StoreError::TooLarge {
                        unit: "queues",
                        limit: QUEUES_MAX,
                    });
                }
                Ok(())
            }
            // Busy and not too large: the caller can try again when a worker has made room.
            QUEUE_JOBS_MAX.. => Err(StoreError::Busy("the queue is full")),
            _ => Ok(()),
        }
    }

    /// Queues with a name in this range, both ends left out. Each step of the query jumps to the next name in the index.
    fn count_queues(&self, (first, end): (String, String)) -> Result<u64, StoreError> {
        self.query_count(
            "WITH RECURSIVE q(name) AS (SELECT min(queue) FROM job WHERE queue > ?1 AND queue < ?2 UNION ALL \
             SELECT (SELECT min(queue) FROM job WHERE queue > q.name AND queue < ?2) FROM q WHERE q.name IS NOT NULL) \
             SELECT count(name) FROM q",
            [first, end],
        )
    }

    /// A number that no job had before.
    pub(crate) fn next_job_id(&self) -> Result<i64, StoreError> {
        let next = self.meta_number(META_LAST_JOB)?.unwrap_or(0) + 1;
        self.set_meta_number(META_LAST_JOB, next)?;
        Ok(next)
    }

    /// Claims jobs that are due, the longest due first, at most `limit` and [`JOBS_PAGE_MAX`]. The lease lasts
    /// [`LEASE_TIME_MIN`] to [`LEASE_TIME_MAX`].
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn claim_jobs(
        &mut self,
        queue: &QueueName,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ClaimedJob>, StoreError> {
        let now_ms = self.unix_ms();
        let limit = limit.clamp(1, JOBS_PAGE_MAX);
        let lease_until_ms = end_ms(now_ms, lease.max(LEASE_TIME_MIN), LEASE_TIME_MAX);
        let mut claimed = Vec::new();
        while claimed.len() < limit {
            let wanted = to_sql((limit - claimed.len()) as u64);
            let due = self.query_all(
                "SELECT id, payload, key, tries FROM job WHERE queue = ?1 AND run_at_ms <= ?2 ORDER BY run_at_ms, id LIMIT ?3",
                params![queue.as_str(), to_sql(now_ms), wanted],
                read_due,
            )?;
            if due.is_empty() {
                break;
            }
            // Each of these rows leaves the range of the query, so that the loop ends.
            for job in due {
                if job.tries >= JOB_TRIES_MAX {
                    // The worker of the last try is gone without a word.
                    self.bury_job(job.id)?;
                } else {
                    claimed.push(self.claim_job(job, lease_until_ms)?);
                }
            }
        }
        Ok(claimed)
    }

    fn claim_job(&self, job: DueJob, lease_until_ms: u64) -> Result<ClaimedJob, StoreError> {
        // Counted at the claim and not at the failure: a worker that crashes reports none.
        let tries = job.tries + 1;
        let until = to_sql(lease_until_ms);
        let claim = "UPDATE job SET tries = ?2, lease_ms = ?3, run_at_ms = ?3 WHERE id = ?1";
        self.execute(claim, params![job.id, tries, until])?;
        Ok(ClaimedJob {
            claim: JobClaim {
                id: job.id,
                tries,
                lease_until_ms,
            },
            payload: job.payload,
            key: job.key,
        })
    }

    fn bury_job(&self, id: i64) -> Result<(), StoreError> {
        let bury = "UPDATE job SET run_at_ms = NULL, lease_ms = NULL WHERE id = ?1";
        self.execute(bury, [id]).map(drop)
    }

    /// Removes a job that is done. A lapsed lease does no harm as long as no other worker has claimed the job.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the claim is not the last one.
    pub fn acknowledge_job(&mut self, claim: &JobClaim) -> Result<(), StoreError> {
        let until = to_sql(claim.lease_until_ms);
        // Both numbers are of the last claim only, so that no late worker removes the job of
        // another one.
        let query = concat!(
            "SELECT queue, ",
            job_bytes!(),
            " FROM job WHERE id = ?1 AND tries = ?2 AND lease_ms = ?3"
        );
        let found = self.query_row(query, params![claim.id, claim.tries, until], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let (queue, bytes) = found.ok_or(StoreError::LeaseLost)?;
        self.remove_job(owning_bucket(&queue), claim.id, bytes)
    }

    /// Removes the row of a job, and gives its bytes back to its bucket.
    fn remove_job(&self, bucket: Option<BucketId>, id: i64, bytes: i64) -> Result<(), StoreError> {
        self.execute("DELETE FROM job WHERE id = ?1", [id])?;
        let Some(bucket) = bucket else {
            return Ok(());
        };
        let usage = UsageChange {
            bytes: -bytes,
            ..UsageChange::default()
        };
        self.add_usage(bucket, usage)
    }

    /// Removes at most this many jobs of a bucket that is being deleted, and returns their number.
    pub(crate) fn remove_jobs_of(
        &self,
        bucket: BucketId,
        rows_max: usize,
    ) -> Result<usize, StoreError> {
        let (first, end) = rows_of_bucket(bucket);
        let query = concat!(
            "SELECT id, ",
            job_bytes!(),
            " FROM job WHERE queue > ?1 AND queue < ?2 LIMIT ?3"
        );
        let limit = to_sql(rows_max as u64);
        let jobs = self.query_all(query, params![first, end, limit], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })?;
        for (id, bytes) in &jobs {
            self.remove_job(Some(bucket), *id, *bytes)?;
        }
        Ok(jobs.len())
    }

    /// Lengthens a lease, from now on. The former claim ends.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the claim is not the last one.
    pub fn renew_job(&mut self, claim: &JobClaim, lease: Duration) -> Result<JobClaim, StoreError> {
        let lease = lease.max(LEASE_TIME_MIN);
        let lease_until_ms = end_ms(self.unix_ms(), lease, LEASE_TIME_MAX);
        let renew = "UPDATE job SET lease_ms = ?4, run_at_ms = ?4 WHERE id = ?1 AND tries = ?2 AND lease_ms = ?3";
        let before = to_sql(claim.lease_until_ms);
        let until = to_sql(lease_until_ms);
        match self.execute(renew, params![claim.id, claim.tries, before, until])? {
            0 => Err(StoreError::LeaseLost),
            _ => Ok(JobClaim {
                lease_until_ms,
                ..*claim
            }),
        }
    }

    /// Refuses a claim of a job that is not of this queue. A caller with the right to one queue asks before it ends a claim:
    /// a claim names no queue.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`], as for a job that is gone.
    pub fn check_job_queue(&self, queue: &QueueName, id: i64) -> Result<(), StoreError> {
        let count = "SELECT count(*) FROM job WHERE id = ?1 AND queue = ?2";
        match self.query_count(count, params![id, queue.as_str()])? {
            0 => Err(StoreError::LeaseLost),
            _ => Ok(()),
        }
    }

    /// Gives a failed job back, to be tried again after a pause.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the claim is not the last one.
    pub fn retry_job(&mut self, claim: &JobClaim) -> Result<JobRetry, StoreError> {
        let run_at_ms = self
            .unix_ms()
            .saturating_add(duration_ms(pause_after(claim.tries)));
        // Without a time the job is dead: it stays for an administrator, and no claim finds it.
        let is_last = claim.tries >= JOB_TRIES_MAX;
        let next = (!is_last).then(|| to_sql(run_at_ms));
        let set = "UPDATE job SET run_at_ms = ?4, lease_ms = NULL WHERE id = ?1 AND tries = ?2 AND lease_ms = ?3";
        let until = to_sql(claim.lease_until_ms);
        match self.execute(set, params![claim.id, claim.tries, until, next])? {
            0 => Err(StoreError::LeaseLost),
            _ if is_last => Ok(JobRetry::Dead),
            _ => Ok(JobRetry::At { run_at_ms }),
        }
    }

    /// Makes a dead job due at once, with all its tries.
    ///
    /// # Errors
    /// The queue has no such dead job.
    pub fn requeue_job(&mut self, queue: &QueueName, id: i64) -> Result<(), StoreError> {
        let now = to_sql(self.unix_ms());
        // In its queue only: the right to one queue must not reach the jobs of another one.
        let set = "UPDATE job SET run_at_ms = ?3, tries = 0 WHERE id = ?2 AND queue = ?1 AND run_at_ms IS NULL";
        match self.execute(set, params![queue.as_str(), id, now])? {
            0 => Err(StoreError::NotFound(StoreObject::Job)),
            _ => Ok(()),
        }
    }

    /// Removes a dead job.
    ///
    /// # Errors
    /// The queue has no such dead job.
    pub fn remove_dead_job(&mut self, queue: &QueueName, id: i64) -> Result<(), StoreError> {
        // Only a dead one: a worker may still be at any other.
        let query = concat!(
            "SELECT ",
            job_bytes!(),
            " FROM job WHERE id = ?2 AND queue = ?1 AND run_at_ms IS NULL"
        );
        let bytes = self.query_row(query, params![queue.as_str(), id], |row| row.get(0))?;
        let bytes = bytes.ok_or(StoreError::NotFound(StoreObject::Job))?;
        self.remove_job(Some(queue.bucket()), id, bytes)
    }
}

#[cfg(test)]
mod tests;
