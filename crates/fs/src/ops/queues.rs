//! `fs/notify/queue/…`: queues of jobs in a bucket. A worker claims a job with a lease and acknowledges it; otherwise the job
//! comes again, after pauses of 1 s to 10 min, and is dead after 20 tries.

use std::time::Duration;

use alknet_call::{OperationSpec, Registration};
use alknet_store::limits::{JOB_KEY_BYTES_MAX, JOB_PAYLOAD_BYTES_MAX, JOBS_PAGE_MAX};
use alknet_store::{DeadJob, Durability, JobClaim, JobRetry, NewJob, QueueName};
use serde::Deserialize;
use serde_json::{Value, json};

use super::consumers::LEASE_DEFAULT_MS;
use super::{FsCall, mutation, once, query, schema, shown};
use crate::error::FsError;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        once(service, enqueue_spec(), run_enqueue),
        once(service, claim_spec(), run_claim),
        once(service, ack_spec(), run_ack),
        once(service, renew_spec(), run_renew),
        once(service, retry_spec(), run_retry),
        once(service, usage_spec(), run_usage),
        once(service, dead_spec(), run_dead),
        once(service, requeue_spec(), run_requeue),
        once(service, remove_spec(), run_remove),
    ]
}

fn members(more: Value) -> Value {
    let own = json!({ "bucket": schema::bucket(), "queue": schema::name() });
    schema::joined(&[own, more])
}

/// What a worker shows to end or renew its claim.
fn claim_members() -> Value {
    json!({
        "id": { "type": "integer", "minimum": 1, "maximum": i64::MAX },
        "tries": { "type": "integer", "minimum": 1, "maximum": u32::MAX },
        "lease_until_ms": schema::time(),
    })
}

const CLAIM: [&str; 5] = ["bucket", "queue", "id", "tries", "lease_until_ms"];

fn claim_example() -> Value {
    json!({ "bucket": "docs", "queue": "thumbnails", "id": 7, "tries": 1,
            "lease_until_ms": 1_893_456_000_000_u64 })
}

/// A queue of a bucket that exists. All who work at a queue may write to its bucket.
async fn queue(call: &FsCall, bucket: &str, queue: &str) -> Result<QueueName, FsError> {
    let bucket = call.bucket(FsRight::Write, bucket)?;
    // Its number is a part of the name, so that no bucket reaches the queues of another one, nor those of a deleted bucket
    // that had its name.
    let bucket = call.bucket_id(bucket).await?;
    Ok(QueueName::parse(bucket, queue)?)
}

#[derive(Deserialize)]
struct ClaimedInput {
    bucket: String,
    queue: String,
    id: i64,
    tries: u32,
    lease_until_ms: u64,
    lease_ms: Option<u64>,
}

impl ClaimedInput {
    const fn claim(&self) -> JobClaim {
        JobClaim {
            id: self.id,
            tries: self.tries,
            lease_until_ms: self.lease_until_ms,
        }
    }
}

fn shown_claim(claim: &JobClaim) -> Value {
    json!({ "id": claim.id, "tries": claim.tries, "lease_until_ms": claim.lease_until_ms })
}

fn enqueue_spec() -> OperationSpec {
    mutation(
        "fs/notify/queue/enqueue",
        "Puts a job into a queue. A second job with the key of one that is there is not enqueued. Its bytes count \
         against the quota of the bucket.",
    )
    .with_input(schema::input(
        &["bucket", "queue", "payload"],
        members(json!({
            "payload": { "type": "string", "maxLength": JOB_PAYLOAD_BYTES_MAX },
            "key": { "type": "string", "maxLength": JOB_KEY_BYTES_MAX },
            "run_at_ms": schema::time(),
        })),
        json!({ "bucket": "docs", "queue": "thumbnails", "payload": "/2026/a.png" }),
    ))
    .with_output(schema::output(
        &["id", "new"],
        json!({ "id": { "type": "integer" }, "new": { "type": "boolean" } }),
    ))
}

#[derive(Deserialize)]
struct EnqueueInput {
    bucket: String,
    queue: String,
    payload: String,
    key: Option<String>,
    run_at_ms: Option<u64>,
}

async fn run_enqueue(call: FsCall) -> Result<Value, FsError> {
    let input: EnqueueInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let mut new = NewJob::new(queue, &input.payload);
    new.key = input.key;
    new.run_at_ms = input.run_at_ms;
    // A job that was acknowledged outlives a power cut, whatever the durability of its bucket.
    let enqueued = call.write(Durability::Full, move |tx| tx.enqueue(&new));
    let enqueued = enqueued.await?;
    Ok(json!({ "id": enqueued.id, "new": enqueued.is_new }))
}

fn claim_spec() -> OperationSpec {
    mutation(
        "fs/notify/queue/claim",
        "Claims jobs that are due, the longest due first. Each comes again after its lease unless it is acknowledged.",
    )
    .with_input(schema::input(
        &["bucket", "queue"],
        members(json!({ "limit": schema::limit(JOBS_PAGE_MAX), "lease_ms": schema::lease() })),
        json!({ "bucket": "docs", "queue": "thumbnails", "limit": 10 }),
    ))
    .with_output(schema::output(
        &["jobs"],
        json!({ "jobs": { "type": "array", "items": schema::output(
            &["id", "tries", "lease_until_ms", "payload"],
            schema::joined(&[claim_members(), json!({
                "payload": { "type": "string" }, "key": { "type": "string" },
            })]),
        ) } }),
    ))
}

#[derive(Deserialize)]
struct ClaimInput {
    bucket: String,
    queue: String,
    limit: Option<usize>,
    lease_ms: Option<u64>,
}

async fn run_claim(call: FsCall) -> Result<Value, FsError> {
    let input: ClaimInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    // As many as an answer can hold for certain, each with its longest payload.
    let limit = input.limit.unwrap_or(1).min(CLAIMED_MAX);
    let lease = Duration::from_millis(input.lease_ms.unwrap_or(LEASE_DEFAULT_MS));
    let claimed = call.write(Durability::Full, move |tx| {
        tx.claim_jobs(&queue, limit, lease)
    });
    let claimed = claimed.await?;
    let rows = claimed.iter().map(|job| {
        let mut row = shown_claim(&job.claim);
        row["payload"] = job.payload.as_str().into();
        if let Some(key) = &job.key {
            row["key"] = key.as_str().into();
        }
        row
    });
    Ok(json!({ "jobs": rows.collect::<Vec<_>>() }))
}

/// Jobs that one call claims: their payloads fit into a frame of 1 MiB.
const CLAIMED_MAX: usize = 10;

fn ack_spec() -> OperationSpec {
    mutation(
        "fs/notify/queue/ack",
        "Removes a job that is done. It needs the last claim.",
    )
    .with_input(schema::input(
        &CLAIM,
        members(claim_members()),
        claim_example(),
    ))
    .with_output(schema::output(&[], json!({})))
}

async fn run_ack(call: FsCall) -> Result<Value, FsError> {
    let input: ClaimedInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let claim = input.claim();
    let acknowledged = call.write(Durability::Full, move |tx| {
        // The right is for the bucket of the queue, and the number may be that of a job of another one.
        tx.check_job_queue(&queue, claim.id)?;
        tx.acknowledge_job(&claim)
    });
    acknowledged.await?;
    Ok(json!({}))
}

fn renew_spec() -> OperationSpec {
    let more = schema::joined(&[claim_members(), json!({ "lease_ms": schema::lease() })]);
    mutation(
        "fs/notify/queue/renew",
        "Lengthens the lease of a job, from now on. The answer takes the place of the former claim.",
    )
    .with_input(schema::input(&CLAIM, members(more), claim_example()))
    .with_output(schema::output(&["id", "tries", "lease_until_ms"], claim_members()))
}

async fn run_renew(call: FsCall) -> Result<Value, FsError> {
    let input: ClaimedInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let claim = input.claim();
    let lease = Duration::from_millis(input.lease_ms.unwrap_or(LEASE_DEFAULT_MS));
    let renewed = call.write(Durability::Full, move |tx| {
        // A caller must not lengthen the claim of a job in a bucket in which it has no right.
        tx.check_job_queue(&queue, claim.id)?;
        tx.renew_job(&claim, lease)
    });
    Ok(shown_claim(&renewed.await?))
}

fn retry_spec() -> OperationSpec {
    mutation(
        "fs/notify/queue/retry",
        "Gives a failed job back, to be tried again after a pause.",
    )
    .with_input(schema::input(
        &CLAIM,
        members(claim_members()),
        claim_example(),
    ))
    .with_output(schema::output(
        &["dead"],
        json!({ "dead": { "type": "boolean" }, "run_at_ms": schema::time() }),
    ))
}

async fn run_retry(call: FsCall) -> Result<Value, FsError> {
    let input: ClaimedInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let claim = input.claim();
    let retried = call.write(Durability::Full, move |tx| {
        // A caller must not give back a job of a bucket in which it has no right.
        tx.check_job_queue(&queue, claim.id)?;
        tx.retry_job(&claim)
    });
    Ok(match retried.await? {
        JobRetry::At { run_at_ms } => json!({ "dead": false, "run_at_ms": run_at_ms }),
        JobRetry::Dead => json!({ "dead": true }),
    })
}

fn usage_spec() -> OperationSpec {
    query(
        "fs/notify/queue/usage",
        "Counts the jobs of a queue by their state.",
    )
    .with_input(schema::input(
        &["bucket", "queue"],
        members(json!({})),
        json!({ "bucket": "docs", "queue": "thumbnails" }),
    ))
    .with_output(schema::output(
        &["waiting", "claimed", "dead"],
        json!({
            "waiting": schema::count("Jobs that wait, due or not"),
            "claimed": schema::count("Jobs that a worker has"),
            "dead": schema::count("Jobs that failed too often"),
            "next_ms": { "type": ["integer", "null"], "description": "When the next one is due" },
        }),
    ))
}

#[derive(Deserialize)]
struct QueueInput {
    bucket: String,
    queue: String,
    after: Option<i64>,
}

async fn run_usage(call: FsCall) -> Result<Value, FsError> {
    let input: QueueInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    // In one transaction, so that the numbers are of one moment.
    let found = call.read(move |tx| Ok((tx.queue_usage(&queue)?, tx.next_job_ms(&queue)?)));
    let (usage, next_ms) = found.await?;
    Ok(json!({
        "waiting": usage.waiting, "claimed": usage.claimed, "dead": usage.dead,
        "next_ms": next_ms,
    }))
}

fn dead_spec() -> OperationSpec {
    query("fs/notify/queue/dead", "Lists the dead jobs of a queue, in pages.")
        .with_input(schema::input(
            &["bucket", "queue"],
            members(json!({ "after": { "type": "integer", "minimum": 0, "maximum": i64::MAX } })),
            json!({ "bucket": "docs", "queue": "thumbnails" }),
        ))
        .with_output(schema::page(
            "jobs",
            &schema::output(
                &["id", "payload"],
                json!({ "id": { "type": "integer" }, "payload": { "type": "string" },
                        "key": { "type": ["string", "null"] } }),
            ),
            &json!({ "type": "integer", "description": "If there are more: the after of the next page" }),
        ))
}

async fn run_dead(call: FsCall) -> Result<Value, FsError> {
    let input: QueueInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let after = input.after.unwrap_or_default();
    let found = call.read(move |tx| tx.dead_jobs(&queue, after, JOBS_PAGE_MAX));
    let found = found.await?;
    let row = |job: &DeadJob| json!({ "id": job.id, "payload": job.payload, "key": job.key });
    let rows = shown::within_page(found.iter().map(row));
    // A page may end before its last row, because an answer has a limit of bytes.
    let has_more = rows.len() < found.len() || found.len() >= JOBS_PAGE_MAX;
    // Of the rows that are shown: the next page begins behind it.
    let last = found.get(rows.len().saturating_sub(1));
    let mut answer = json!({ "jobs": rows });
    if let Some(last) = last.filter(|_| has_more) {
        answer["next"] = last.id.into();
    }
    Ok(answer)
}

fn one_dead(name: &str, description: &str) -> OperationSpec {
    mutation(name, description)
        .with_input(schema::input(
            &["bucket", "queue", "id"],
            members(json!({ "id": claim_members()["id"].clone() })),
            json!({ "bucket": "docs", "queue": "thumbnails", "id": 7 }),
        ))
        .with_output(schema::output(&[], json!({})))
}

#[derive(Deserialize)]
struct DeadInput {
    bucket: String,
    queue: String,
    id: i64,
}

fn requeue_spec() -> OperationSpec {
    one_dead(
        "fs/notify/queue/requeue",
        "Makes a dead job due at once, with all its tries.",
    )
}

async fn run_requeue(call: FsCall) -> Result<Value, FsError> {
    let input: DeadInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let requeued = call.write(Durability::Full, move |tx| tx.requeue_job(&queue, input.id));
    requeued.await?;
    Ok(json!({}))
}

fn remove_spec() -> OperationSpec {
    one_dead("fs/notify/queue/remove", "Removes a dead job.")
}

async fn run_remove(call: FsCall) -> Result<Value, FsError> {
    let input: DeadInput = call.parse()?;
    let queue = queue(&call, &input.bucket, &input.queue).await?;
    let removed = call.write(Durability::Full, move |tx| {
        tx.remove_dead_job(&queue, input.id)
    });
    removed.await?;
    Ok(json!({}))
}
