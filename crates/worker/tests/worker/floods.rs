//! Workers that an attacker took over and that use up what the host shares among all of them: its descriptors, the
//! memory behind them, the time of its thread.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use alknet_test_support::deadline;
use alknet_worker::limits::{
    SEALED_FRAMES_RESERVED_MAX, SEALED_FRAMES_WAITING_MAX, UNREAD_FDS_MAX,
};
use alknet_worker::{
    CborBody, FrameBlob, RoleConfig, SessionNotice, WorkerCallError, WorkerEndReason, WorkerReply,
    WorkerRole, WorkerSession, Workers,
};

use crate::act::ProbeAct;
use crate::host::{answers, ask, config, long, open, until, workers};

/// Bytes of a value that travels beside its frame.
const LARGE: usize = 128 << 10;

/// Descriptors of this process that a probe made.
fn hoarded() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").expect("a table of descriptors");
    let names = entries
        .flatten()
        .flat_map(|entry| std::fs::read_link(entry.path()));
    names
        .filter(|name| name.to_string_lossy().contains("memfd:hoarded"))
        .count()
}

#[track_caller]
fn ended(session: &WorkerSession, act: &ProbeAct, expected: WorkerEndReason) {
    match ask(session, act) {
        Err(WorkerCallError::Lost(loss)) => assert_eq!(loss.reason, expected, "{loss}"),
        other => panic!("a loss, not {other:?}"),
    }
}

#[test]
fn descriptors_that_no_message_needs_end_the_worker() {
    let workers = workers();
    for role in [WorkerRole::Js, WorkerRole::Gpu] {
        let session = open(&workers, role, "hostile");
        let act = ProbeAct::Descriptors(30);
        ended(&session, &act, WorkerEndReason::Protocol);
        assert_eq!(hoarded(), 0, "{role}");
    }
}

/// The owner of such a session reads answers only: anything else would wait for ever.
#[test]
fn a_worker_for_the_gpu_sends_its_session_nothing() {
    let workers = workers();
    for act in [
        ProbeAct::Tell(1, 10),
        ProbeAct::Log(1, 10),
        ProbeAct::Flood(1),
    ] {
        let session = open(&workers, WorkerRole::Gpu, "hostile");
        ended(&session, &act, WorkerEndReason::Protocol);
    }
}

#[test]
fn heartbeats_of_no_call_end_the_worker_and_no_other() {
    let workers = workers();
    let other = open(&workers, WorkerRole::Js, "other");
    let session = open(&workers, WorkerRole::Js, "hostile");
    ended(&session, &ProbeAct::Beats(100_000), WorkerEndReason::Flood);
    assert!(answers(&other));
}

/// Sends a worker that does not read an answer with a descriptor. Returns whether there was room for it.
fn tell_large(session: &WorkerSession, id: u64) -> bool {
    let mut fds = Vec::new();
    let blob = FrameBlob::pack(vec![0x5a; LARGE], &mut fds).expect("sealed memory");
    let reply = WorkerReply::Ok(blob);
    session
        .tell(SessionNotice::Reply { id, reply }, fds)
        .is_ok()
}

/// All of a host's workers: one that is to read nothing, for at most half of the time that it may live, and one of
/// another tenant.
fn unread(most: Duration) -> (Workers, WorkerSession, WorkerSession) {
    let mut config = config();
    config.unread = most;
    config.heartbeat = long();
    config.roles = vec![RoleConfig::new(WorkerRole::Js)];
    let workers = Workers::start(config).expect("a supervisor");
    let other = open(&workers, WorkerRole::Js, "other");
    let session = open(&workers, WorkerRole::Js, "hostile");
    (workers, session, other)
}

#[test]
fn a_worker_that_reads_nothing_is_sent_few_descriptors() {
    let (_workers, session, other) = unread(long());
    assert!(ask(&session, &ProbeAct::Deaf).is_ok());
    // Twice as many as have room; the answer of another worker comes after the host has handled all of them.
    let taken = || {
        let many = 0..2 * SEALED_FRAMES_WAITING_MAX as u64;
        let taken = many.filter(|id| tell_large(&session, *id)).count();
        assert!(answers(&other));
        taken
    };
    let all = taken() + taken();
    let places = SEALED_FRAMES_WAITING_MAX..=SEALED_FRAMES_WAITING_MAX + UNREAD_FDS_MAX;
    assert!(
        places.contains(&all),
        "{all} went into the queue and the socket"
    );
    assert_eq!(taken(), 0);
    // Senders that wait do not fail: they have places of their own, and then wait.
    let quota = session.descriptor_quota();
    let mut context = Context::from_waker(Waker::noop());
    let mut reserve = || match pin!(quota.reserve()).poll(&mut context) {
        Poll::Ready(permit) => Some(permit),
        Poll::Pending => None,
    };
    let mut reserved: Vec<_> = std::iter::from_fn(&mut reserve).collect();
    assert_eq!(reserved.len(), SEALED_FRAMES_RESERVED_MAX);
    reserved.pop();
    assert!(reserve().is_some());
    // Another tenant's large value arrives.
    assert!(ask(&other, &ProbeAct::Value(1 << 20)).is_ok());
}

#[test]
fn a_worker_that_leaves_descriptors_unread_is_ended() {
    let (workers, session, other) = unread(deadline(Duration::from_millis(200)));
    assert!(ask(&session, &ProbeAct::Deaf).is_ok());
    assert!(tell_large(&session, 1));
    until("the worker is ended", || {
        workers.stats().ended.contains_key(&WorkerEndReason::Silent)
    });
    assert!(ask(&session, &ProbeAct::Inside).is_err());
    assert!(answers(&other));
}

/// More values at once than may be unread: an honest worker gets all of them, in their order.
#[test]
fn an_honest_worker_is_sent_every_descriptor() {
    const MANY: usize = 50;
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    const { assert!(MANY > 20 * UNREAD_FDS_MAX) };
    for _ in 0..MANY {
        let mut fds = Vec::new();
        FrameBlob::pack(vec![1; LARGE], &mut fds).expect("sealed memory");
        let told = SessionNotice::Role(CborBody::default());
        session.tell(told, fds).expect("there is room");
    }
    until("it has all of them", || {
        let kept = ask(&session, &ProbeAct::Kept).expect("an answer");
        let text = format!("{:?}", crate::host::said(kept));
        text.contains(&format!("{MANY} of"))
    });
}
