use super::*;
use crate::error::{QuotaResource, StoreErrorCode};
use crate::names::NewBucket;
use crate::outbox::{ConsumerName, OutboxStart};
use crate::testing::{START_MS, ScratchStore};

const LEASE: Duration = Duration::from_secs(60);

/// A store with the bucket `docs`, which is bucket 1.
fn store_with_bucket() -> ScratchStore {
    let store = ScratchStore::new();
    assert_eq!(add_bucket(&store, "docs", None), BucketId::new(1));
    store
}

fn add_bucket(store: &ScratchStore, name: &str, quota_bytes: Option<u64>) -> BucketId {
    let mut new = NewBucket::new(name.parse().expect("a name"), "alice");
    new.quota_bytes = quota_bytes;
    let made = store.write(move |tx| tx.create_bucket(&new));
    made.expect("free").0.id
}

/// A queue of `docs`.
fn queue(name: &str) -> QueueName {
    queue_in(BucketId::new(1), name)
}

fn queue_in(bucket: BucketId, name: &str) -> QueueName {
    QueueName::parse(bucket, name).expect("a name")
}

/// Compares the counters of a bucket with a count of its rows, and returns its bytes.
fn counted_bytes(store: &ScratchStore, bucket: BucketId) -> u64 {
    let usage = store.read(move |tx| Ok((tx.usage(bucket)?, tx.recount(bucket)?)));
    let (usage, counted) = usage.expect("readable");
    assert_eq!(usage, counted);
    usage.bytes
}

fn put(store: &ScratchStore, payload: &str) -> i64 {
    let new = NewJob::new(queue("mail"), payload);
    let done = store.write(move |tx| tx.enqueue(&new));
    done.expect("room").id
}

fn claim(store: &ScratchStore, limit: usize) -> Vec<ClaimedJob> {
    let claimed = store.write(move |tx| tx.claim_jobs(&queue("mail"), limit, LEASE));
    claimed.expect("possible")
}

fn claim_one(store: &ScratchStore) -> ClaimedJob {
    let mut claimed = claim(store, 1);
    claimed.pop().expect("a job that is due")
}

fn acknowledge(store: &ScratchStore, claim: JobClaim) -> Result<(), StoreError> {
    store.write(move |tx| tx.acknowledge_job(&claim))
}

fn retry(store: &ScratchStore, claim: JobClaim) -> Result<JobRetry, StoreError> {
    store.write(move |tx| tx.retry_job(&claim))
}

fn usage(store: &ScratchStore) -> (u64, u64, u64) {
    let usage = store.read(|tx| tx.queue_usage(&queue("mail")));
    let usage = usage.expect("readable");
    (usage.waiting, usage.claimed, usage.dead)
}

fn code<T: fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorCode {
    result.expect_err("refused").code()
}

#[test]
fn a_job_is_claimed_once_and_gone_when_it_is_done() {
    let mut store = store_with_bucket();
    let ids = [put(&store, "a"), put(&store, "b")];
    assert_eq!(usage(&store), (2, 0, 0));
    let first = claim(&store, 10);
    let claimed: Vec<_> = first
        .iter()
        .map(|job| (job.claim.id, job.payload.as_str(), job.claim.tries))
        .collect();
    assert_eq!(claimed, [(ids[0], "a", 1), (ids[1], "b", 1)]);
    assert!(claim(&store, 10).is_empty());
    assert_eq!(usage(&store), (0, 2, 0));
    store.reopen();
    acknowledge(&store, first[1].claim).expect("its own");
    assert_eq!(
        acknowledge(&store, first[1].claim),
        Err(StoreError::LeaseLost)
    );
    // The number of the last job is not given again after its row is gone.
    assert!(put(&store, "c") > ids[1]);
    assert_eq!(usage(&store), (1, 1, 0));
}

#[test]
fn a_job_whose_worker_is_gone_is_claimed_again_and_the_former_claim_is_lost() {
    let store = store_with_bucket();
    put(&store, "a");
    let lost = claim_one(&store).claim;
    store.time.advance(LEASE / 2);
    let renewed = store.write(move |tx| tx.renew_job(&lost, LEASE));
    let renewed = renewed.expect("its own");
    assert_eq!(renewed.lease_until_ms, START_MS + 90_000);
    assert_eq!(acknowledge(&store, lost), Err(StoreError::LeaseLost));
    store.time.advance(LEASE / 2);
    assert!(claim(&store, 1).is_empty(), "renewed");
    let next = store.read(|tx| tx.next_job_ms(&queue("mail")));
    assert_eq!(next, Ok(Some(renewed.lease_until_ms)));
    store.time.advance(LEASE / 2);
    let second = claim_one(&store);
    assert_eq!(second.claim.tries, 2);
    assert_eq!(acknowledge(&store, renewed), Err(StoreError::LeaseLost));
    assert_eq!(retry(&store, renewed), Err(StoreError::LeaseLost));
    let late = store.write(move |tx| tx.renew_job(&renewed, LEASE));
    assert_eq!(late, Err(StoreError::LeaseLost));
    acknowledge(&store, second.claim).expect("its own");
    assert_eq!(usage(&store), (0, 0, 0));
}

#[test]
fn pauses_double_until_the_job_is_dead() {
    let store = store_with_bucket();
    let id = put(&store, "a");
    for tries in 1..JOB_TRIES_MAX {
        let job = claim_one(&store);
        assert_eq!(job.claim.tries, tries);
        let pause = pause_after(tries);
        let run_at_ms = store.read_ms() + duration_ms(pause);
        assert_eq!(retry(&store, job.claim), Ok(JobRetry::At { run_at_ms }));
        store.time.advance(pause - Duration::from_millis(1));
        assert!(claim(&store, 1).is_empty(), "not due yet");
        store.time.advance(Duration::from_millis(1));
    }
    let last = claim_one(&store);
    assert_eq!(retry(&store, last.claim), Ok(JobRetry::Dead));
    store.time.advance(JOB_PAUSE_MAX);
    assert!(claim(&store, 1).is_empty());
    assert_eq!(usage(&store), (0, 0, 1));
    let dead = store.read(|tx| tx.dead_jobs(&queue("mail"), 0, 10));
    let expected = DeadJob {
        id,
        payload: "a".to_owned(),
        key: None,
    };
    assert_eq!(dead, Ok(vec![expected]));
    let elsewhere = store.write(move |tx| tx.requeue_job(&queue("other"), id));
    assert_eq!(code(elsewhere), StoreErrorCode::NotFound);
    store
        .write(move |tx| tx.requeue_job(&queue("mail"), id))
        .expect("dead");
    let again = claim_one(&store);
    assert_eq!(again.claim.tries, 1);
    let alive = store.write(move |tx| tx.remove_dead_job(&queue("mail"), id));
    assert_eq!(code(alive), StoreErrorCode::NotFound);
}

#[test]
fn a_job_whose_workers_all_vanish_is_dead_in_the_end() {
    let store = store_with_bucket();
    let id = put(&store, "a");
    for _ in 0..JOB_TRIES_MAX {
        claim_one(&store);
        store.time.advance(LEASE);
    }
    let after = put(&store, "b");
    let next = claim(&store, 1);
    let next: Vec<_> = next.iter().map(|job| job.claim.id).collect();
    assert_eq!(next, [after], "the dead one does not count");
    assert_eq!(usage(&store), (0, 1, 1));
    store
        .write(move |tx| tx.remove_dead_job(&queue("mail"), id))
        .expect("dead");
    assert_eq!(usage(&store), (0, 1, 0));
}

#[test]
fn pauses_have_a_floor_and_a_ceiling() {
    let seconds: Vec<_> = [0, 1, 2, 3, 10, 11, 20, u32::MAX]
        .into_iter()
        .map(|tries| pause_after(tries).as_secs())
        .collect();
    assert_eq!(seconds, [1, 1, 2, 4, 512, 600, 600, 600]);
}

#[test]
fn jobs_run_when_they_are_due_in_the_order_of_that() {
    let store = store_with_bucket();
    for (payload, ms) in [("late", 2000), ("soon", 1000), ("later", 9000)] {
        let new = NewJob {
            run_at_ms: Some(START_MS + ms),
            ..NewJob::new(queue("mail"), payload)
        };
        store.write(move |tx| tx.enqueue(&new)).expect("room");
    }
    assert!(claim(&store, 10).is_empty());
    store.time.advance(Duration::from_secs(2));
    let due = claim(&store, 10);
    let due: Vec<_> = due.iter().map(|job| job.payload.as_str()).collect();
    assert_eq!(due, ["soon", "late"]);
}

#[test]
fn a_key_is_taken_once_in_each_queue() {
    let store = store_with_bucket();
    let with_key = |name: &str| {
        let new = NewJob {
            key: Some("daily:report".to_owned()),
            ..NewJob::new(queue(name), "a")
        };
        store.write(move |tx| tx.enqueue(&new)).expect("room")
    };
    let first = with_key("mail");
    assert!(first.is_new);
    let second = with_key("mail");
    assert_eq!((second.id, second.is_new), (first.id, false));
    assert!(with_key("other").is_new);
    let job = claim_one(&store);
    assert_eq!(job.key.as_deref(), Some("daily:report"));
    acknowledge(&store, job.claim).expect("its own");
    assert!(with_key("mail").is_new);
}

#[test]
fn queues_are_bounded() {
    let store = store_with_bucket();
    for name in ["", "#1/a", "a b", "a:b"] {
        let parsed = QueueName::parse(BucketId::new(1), name);
        assert_eq!(code(parsed), StoreErrorCode::InvalidPath);
    }
    let long = NewJob::new(queue("mail"), &"x".repeat(JOB_PAYLOAD_BYTES_MAX + 1));
    let refused = store.write(move |tx| tx.enqueue(&long));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    let filled = store.write(|tx| {
        tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
             INSERT INTO job(id, queue, payload, run_at_ms, tries) SELECT 1000000 + i, '#1/mail', '', 0, 0 FROM n",
            [to_sql(QUEUE_JOBS_MAX)],
        )
    });
    assert_eq!(filled, Ok(10_000));
    let full = NewJob::new(queue("mail"), "a");
    let refused = store.write(move |tx| tx.enqueue(&full));
    assert_eq!(code(refused), StoreErrorCode::Busy);
    // A bucket that has all of its queues leaves those of others, until the store has as many as it may.
    let fill = |bucket: BucketId, first: u64| {
        store.write(move |tx| {
            (first..QUEUES_PER_BUCKET_MAX).try_for_each(|number| {
                let queue = QueueName::parse(bucket, &format!("q{number}"))?;
                tx.enqueue(&NewJob::new(queue, "a")).map(drop)
            })
        })
    };
    assert_eq!(fill(BucketId::new(1), 1), Ok(()));
    let more = NewJob::new(queue("more"), "a");
    let refused = store.write(move |tx| tx.enqueue(&more));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    for number in 2..=QUEUES_MAX / QUEUES_PER_BUCKET_MAX {
        let bucket = add_bucket(&store, &format!("bucket-{number}"), None);
        assert_eq!(fill(bucket, 0), Ok(()), "{bucket}");
    }
    let last = add_bucket(&store, "last", None);
    let more = NewJob::new(queue_in(last, "more"), "a");
    let refused = store.write(move |tx| tx.enqueue(&more));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    let known = NewJob::new(queue("q1"), "a");
    store.write(move |tx| tx.enqueue(&known)).expect("room");
    store.space.set_free(0);
    let known = NewJob::new(queue("q1"), "a");
    let refused = store.write(move |tx| tx.enqueue(&known));
    assert_eq!(refused, Err(StoreError::NoSpace));
}

#[test]
fn jobs_count_against_the_quota_of_their_bucket() {
    const QUOTA: u64 = 1 << 20;
    let store = store_with_bucket();
    let bucket = add_bucket(&store, "small", Some(QUOTA));
    let enqueue = |number: usize| {
        let new = NewJob {
            key: Some(format!("key-{number}")),
            ..NewJob::new(queue_in(bucket, "mail"), &"x".repeat(JOB_PAYLOAD_BYTES_MAX))
        };
        store.write(move |tx| tx.enqueue(&new))
    };
    let mut jobs = 0;
    let refused = loop {
        match enqueue(jobs) {
            Ok(_) => jobs += 1,
            Err(refused) => break refused,
        }
    };
    let quota_exceeded = matches!(
        refused,
        StoreError::QuotaExceeded {
            resource: QuotaResource::Bytes,
            limit: QUOTA,
            ..
        }
    );
    assert!(quota_exceeded, "{refused}");
    // Sixteen payloads would be the whole quota, and their keys go beyond it.
    assert_eq!(jobs, 15);
    let full = counted_bytes(&store, bucket);
    assert!(
        full > 15 * JOB_PAYLOAD_BYTES_MAX as u64 && full <= QUOTA,
        "{full}"
    );
    assert_eq!(counted_bytes(&store, BucketId::new(1)), 0);
    // A repetition with a known key is no further job.
    assert!(!enqueue(0).expect("known").is_new);
    // What is done gives its bytes back, and so does a dead job that is removed.
    let claimed = store.write(move |tx| tx.claim_jobs(&queue_in(bucket, "mail"), 2, LEASE));
    let claimed = claimed.expect("possible");
    let (done, dead) = (claimed[0].claim, claimed[1].claim.id);
    acknowledge(&store, done).expect("its own");
    let after = counted_bytes(&store, bucket);
    assert!(after < full - JOB_PAYLOAD_BYTES_MAX as u64);
    let buried = store.write(move |tx| {
        tx.bury_job(dead)?;
        tx.remove_dead_job(&queue_in(bucket, "mail"), dead)
    });
    assert_eq!(buried, Ok(()));
    assert!(counted_bytes(&store, bucket) < after - JOB_PAYLOAD_BYTES_MAX as u64);
    assert!(enqueue(100).expect("room").is_new);
}

/// Another owner gets the name of a deleted bucket.
#[test]
fn a_bucket_takes_its_jobs_and_consumers_with_it() {
    let store = store_with_bucket();
    let before = BucketId::new(1);
    let kept = add_bucket(&store, "kept", None);
    for number in 0..3 {
        put(&store, &format!("secret {number}"));
    }
    let other = NewJob::new(queue_in(kept, "mail"), "kept");
    store.write(move |tx| tx.enqueue(&other)).expect("room");
    let consumer = |bucket| ConsumerName::parse(bucket, "c").expect("a name");
    for bucket in [before, kept] {
        let added =
            store.write(move |tx| tx.add_outbox_consumer(&consumer(bucket), OutboxStart::Oldest));
        added.expect("room");
    }
    store
        .write(move |tx| tx.delete_bucket(before))
        .expect("there");
    // Before anything is purged, and for a worker that knew the bucket.
    let late = NewJob::new(queue("mail"), "late");
    let refused = store.write(move |tx| tx.enqueue(&late));
    assert_eq!(code(refused), StoreErrorCode::NotFound);
    let refused =
        store.write(move |tx| tx.add_outbox_consumer(&consumer(before), OutboxStart::Oldest));
    assert_eq!(code(refused), StoreErrorCode::NotFound);
    let after = add_bucket(&store, "docs", None);
    assert_ne!(after, before);
    let claimed = store.write(move |tx| tx.claim_jobs(&queue_in(after, "mail"), 10, LEASE));
    assert_eq!(claimed, Ok(Vec::new()));
    let found = store.read(move |tx| tx.outbox_consumer(&consumer(after)));
    assert_eq!(code(found), StoreErrorCode::NotFound);
    // In steps, each of two rows at most.
    while !store.write(|tx| tx.purge(2)).expect("possible").is_done {}
    let rows = store.read(|tx| {
        let jobs = tx.query_count("SELECT count(*) FROM job", [])?;
        Ok((jobs, tx.query_count("SELECT count(*) FROM consumer", [])?))
    });
    assert_eq!(rows, Ok((1, 1)));
    assert_eq!(counted_bytes(&store, after), 0);
    let claimed = store.write(move |tx| tx.claim_jobs(&queue_in(kept, "mail"), 10, LEASE));
    assert_eq!(claimed.expect("possible").len(), 1);
}
