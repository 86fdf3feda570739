use super::*;
use crate::error::StoreErrorCode;
use crate::testing::{START_MS, ScratchStore};

const LEASE: Duration = Duration::from_secs(60);

fn queue(name: &str) -> QueueName {
    name.parse().expect("a name")
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
    let mut store = ScratchStore::new();
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
    let store = ScratchStore::new();
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
    let store = ScratchStore::new();
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
    let store = ScratchStore::new();
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
    let store = ScratchStore::new();
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
    let store = ScratchStore::new();
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
    let store = ScratchStore::new();
    for name in ["", "lock", "a b", "a:b"] {
        assert_eq!(code(QueueName::parse(name)), StoreErrorCode::InvalidPath);
    }
    let long = NewJob::new(queue("mail"), &"x".repeat(JOB_PAYLOAD_BYTES_MAX + 1));
    let refused = store.write(move |tx| tx.enqueue(&long));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    let filled = store.write(|tx| {
        tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
             INSERT INTO job(id, queue, payload, run_at_ms, tries) SELECT 1000000 + i, 'mail', '', 0, 0 FROM n",
            [to_sql(QUEUE_JOBS_MAX)],
        )
    });
    assert_eq!(filled, Ok(10_000));
    let full = NewJob::new(queue("mail"), "a");
    let refused = store.write(move |tx| tx.enqueue(&full));
    assert_eq!(code(refused), StoreErrorCode::Busy);
    let queues = store.write(|tx| {
        (1..QUEUES_MAX).try_for_each(|number| {
            let name = queue(&format!("q{number}"));
            tx.enqueue(&NewJob::new(name, "a")).map(drop)
        })
    });
    queues.expect("room");
    let more = NewJob::new(queue("more"), "a");
    let refused = store.write(move |tx| tx.enqueue(&more));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    let known = NewJob::new(queue("q1"), "a");
    store.write(move |tx| tx.enqueue(&known)).expect("room");
    store.space.set_free(0);
    let known = NewJob::new(queue("q1"), "a");
    let refused = store.write(move |tx| tx.enqueue(&known));
    assert_eq!(refused, Err(StoreError::NoSpace));
}
