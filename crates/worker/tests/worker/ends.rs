//! Workers that end by themselves, or send bytes that are not a message.

use std::io::Write;
use std::time::{Duration, Instant};

use alknet_worker::{
    Bytes32, CborBody, FromWorkerMessage, RevocableMemfd, SessionNotice, WorkerCallError,
    WorkerEndReason, WorkerError, WorkerLease, WorkerLoss, WorkerReply, WorkerRole, WorkerSession,
    Workers,
};

use crate::act::{ProbeAct, ProbeReply};
use crate::host::{
    answers, ask, ask_as, block_on, config, errno, limits, long, open, request, said, stat, until,
    workers,
};

#[track_caller]
fn lost(outcome: Result<alknet_worker::WorkerAnswer, WorkerCallError>) -> WorkerLoss {
    match outcome {
        Err(WorkerCallError::Lost(loss)) => loss,
        other => panic!("a loss, not {other:?}"),
    }
}

/// One worker per act; another tenant answers all the while, and the host collects every worker.
#[test]
fn crashes_end_one_worker_and_say_how() {
    let workers = workers();
    let other = open(&workers, WorkerRole::Js, "other");
    for role in [
        WorkerRole::Js,
        WorkerRole::Gpu,
        WorkerRole::Git,
        WorkerRole::JsGpu,
    ] {
        for (act, reason, signal) in [
            (ProbeAct::Segv, WorkerEndReason::Crash, Some(libc::SIGSEGV)),
            (ProbeAct::Abort, WorkerEndReason::Crash, Some(libc::SIGABRT)),
            (ProbeAct::Bus, WorkerEndReason::Crash, Some(libc::SIGBUS)),
            (ProbeAct::Exit(7), WorkerEndReason::Exit, None),
        ] {
            let session = open(&workers, role, "hostile");
            let pid = session.pid();
            let loss = lost(ask(&session, &act));
            assert_eq!(
                (loss.reason, loss.signal, loss.alone),
                (reason, signal, true),
                "{role} {act:?}: {loss}"
            );
            assert!(answers(&other), "{role} {act:?}");
            until("it is collected", || stat(pid).is_none());
        }
    }
    let count = |reason| workers.stats().ended.get(&reason).copied();
    until("all are counted", || {
        (count(WorkerEndReason::Crash), count(WorkerEndReason::Exit)) == (Some(12), Some(4))
    });
}

#[test]
fn a_panic_s_last_words_are_kept() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    // The thread of the call is gone, the worker is not: the call ends at its limit, and the next one finds another
    // thread.
    let call = session.call(
        request(&ProbeAct::Panic),
        limits(Duration::from_secs(2)),
        None,
    );
    let error = call.wait().expect_err("no server answers");
    assert_eq!(error.code(), "E_TIMEOUT");
}

#[test]
fn what_is_no_message_ends_the_worker() {
    let workers = workers();
    let mut deep = vec![0x81; 5000];
    deep.splice(0..0, 5001_u32.to_le_bytes());
    deep.push(0);
    let unknown = [5_u32.to_le_bytes().to_vec(), b"\xa1\x61m\x61x".to_vec()].concat();
    for (act, reason) in [
        (ProbeAct::Garbage(vec![0xff; 64]), WorkerEndReason::Protocol),
        (
            ProbeAct::Garbage(0_u32.to_le_bytes().to_vec()),
            WorkerEndReason::Protocol,
        ),
        (
            ProbeAct::Garbage((2_u32 << 20).to_le_bytes().to_vec()),
            WorkerEndReason::Protocol,
        ),
        (ProbeAct::Garbage(deep), WorkerEndReason::Protocol),
        (ProbeAct::Garbage(unknown), WorkerEndReason::Protocol),
        (ProbeAct::ManyDescriptors, WorkerEndReason::Protocol),
        (ProbeAct::ResultUnasked, WorkerEndReason::Protocol),
        (ProbeAct::Flood(65), WorkerEndReason::Flood),
        (ProbeAct::Tell(3, 900_000), WorkerEndReason::Flood),
        (ProbeAct::CloseChannel, WorkerEndReason::ClosedChannel),
    ] {
        let session = open(&workers, WorkerRole::Js, "hostile");
        let pid = session.pid();
        // Kept busy, so that there is a call to lose whichever comes first.
        let busy = session.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
        let _dropping_would_abort = session.call(request(&act), limits(long()), None);
        let loss = lost(busy.wait());
        assert_eq!(
            (loss.reason, loss.alone),
            (reason, false),
            "{act:?}: {loss}"
        );
        println!("{loss}");
        until("it is collected", || stat(pid).is_none());
    }
}

#[test]
fn memory_over_the_limit_ends_the_worker() {
    let mut config = config();
    for role in &mut config.roles {
        role.memory_bytes = 64 << 20;
    }
    let workers = Workers::start(config).expect("a supervisor");
    let session = open(&workers, WorkerRole::Js, "a");
    assert!(ask(&session, &ProbeAct::Allocate(16 << 20)).is_ok());
    let grown = session.call(
        request(&ProbeAct::Allocate(100 << 20)),
        limits(long()),
        None,
    );
    let stays = session.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
    // Dropping it would end the worker for another reason.
    let (grown, loss) = (grown.wait(), lost(stays.wait()));
    assert_eq!(loss.reason, WorkerEndReason::Memory, "{loss} {grown:?}");
}

/// Ends the first thread of the worker, whose own files in /proc show no memory from then on.
fn end_first_thread(session: &WorkerSession) {
    assert!(ask(session, &ProbeAct::EndFirstThread).is_ok());
    let pid = session.pid();
    until("the thread has ended", || {
        stat(pid).is_some_and(|(state, _)| state == 'Z')
    });
}

/// The attack: a worker ends its first thread, and fills memory by another one.
#[test]
fn memory_over_the_limit_ends_a_worker_without_its_first_thread() {
    let mut config = config();
    for role in &mut config.roles {
        role.memory_bytes = 64 << 20;
        role.min_idle = 0;
    }
    let workers = Workers::start(config).expect("a supervisor");
    let session = open(&workers, WorkerRole::Js, "hostile");
    end_first_thread(&session);
    assert!(session_looks(&session), "that ends no worker");
    let grown = session.call(
        request(&ProbeAct::Allocate(100 << 20)),
        limits(long()),
        None,
    );
    let stays = session.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
    let (grown, loss) = (grown.wait(), lost(stays.wait()));
    assert_eq!(loss.reason, WorkerEndReason::Memory, "{loss} {grown:?}");
}

/// The attack: where memory is short, another tenant's worker ends for the memory of a worker without its first thread.
#[test]
fn a_worker_without_its_first_thread_ends_before_smaller_ones_where_memory_is_short() {
    let mut config = config();
    for role in &mut config.roles {
        role.min_idle = 0;
    }
    let workers = Workers::start(config).expect("a supervisor");
    let hostile = open(&workers, WorkerRole::Js, "hostile");
    end_first_thread(&hostile);
    assert!(ask(&hostile, &ProbeAct::Allocate(56 << 20)).is_ok());
    let other = open(&workers, WorkerRole::Js, "other");
    assert!(ask(&other, &ProbeAct::Allocate(32 << 20)).is_ok());
    assert_eq!(block_on(workers.relieve(16 << 20)), 1);
    until("it is gone", || stat(hostile.pid()).is_none());
    assert!(answers(&other));
}

/// A worker may hold the grants of its sessions, and all workers the machine's share for them.
#[test]
fn memory_follows_what_was_granted_and_what_there_is() {
    let mut config = config();
    for role in &mut config.roles {
        role.memory_bytes = 96 << 20;
        role.min_idle = 0;
    }
    config.memory_bytes = 256 << 20;
    let workers = Workers::start(config).expect("a supervisor");
    let lease = |tenant: &str| WorkerLease::new(WorkerRole::Js, tenant).granted(128 << 20);
    let first = block_on(workers.open(lease("a"))).expect("a session");
    // More than the role has for a worker, less than the session's grant.
    assert!(ask(&first, &ProbeAct::Allocate(110 << 20)).is_ok());
    let looked_at = session_looks(&first);
    assert!(looked_at, "it lives on");
    // Both together are more than the share: the host ends the largest holder.
    let second = block_on(workers.open(lease("b").granted(512 << 20))).expect("a session");
    assert!(ask(&second, &ProbeAct::Allocate(100 << 20)).is_ok());
    let grown = second.call(request(&ProbeAct::Allocate(60 << 20)), limits(long()), None);
    let stays = second.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
    let (grown, loss) = (grown.wait(), lost(stays.wait()));
    assert_eq!(loss.reason, WorkerEndReason::Memory, "{loss} {grown:?}");
    assert!(loss.detail.contains("workers hold"), "{loss}");
    assert!(
        ask(&first, &ProbeAct::Inside).is_ok(),
        "the other is left alone"
    );
}

/// A tenant with several workers, each smaller than the one of another tenant, exceeds the share.
#[test]
fn the_largest_tenant_ends_only_its_own_workers() {
    let mut config = config();
    for role in &mut config.roles {
        role.min_idle = 0;
    }
    config.memory_bytes = 128 << 20;
    let workers = Workers::start(config).expect("a supervisor");
    let alone =
        |tenant: &str| block_on(workers.open(WorkerLease::new(WorkerRole::Js, tenant).alone()));
    let many = alone("many").expect("a session");
    assert!(ask(&many, &ProbeAct::Allocate(26 << 20)).is_ok() && session_looks(&many));
    let one = alone("one").expect("a session");
    assert!(ask(&one, &ProbeAct::Allocate(56 << 20)).is_ok() && session_looks(&one));
    let last = alone("many").expect("a session");
    let grown = last.call(request(&ProbeAct::Allocate(54 << 20)), limits(long()), None);
    let stays = last.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
    let (grown, loss) = (grown.wait(), lost(stays.wait()));
    assert_eq!(loss.reason, WorkerEndReason::Memory, "{loss} {grown:?}");
    assert!(loss.detail.contains("workers hold"), "{loss}");
    assert!(
        ask(&one, &ProbeAct::Inside).is_ok(),
        "it holds less than the other"
    );
}

/// A tenant holds memory in workers, each within its limit and all within theirs, while the machine has too little
/// left.
#[test]
fn who_holds_most_where_memory_is_short_loses_workers_and_gets_none_the_second_time() {
    const LEAST: u64 = 90 << 20;
    let mut config = config();
    for role in &mut config.roles {
        role.min_idle = 0;
    }
    let workers = Workers::start(config).expect("a supervisor");
    let alone =
        |tenant: &str| block_on(workers.open(WorkerLease::new(WorkerRole::Js, tenant).alone()));
    let holding = |tenant: &str, bytes: u64| {
        let session = alone(tenant).expect("a session");
        assert!(ask(&session, &ProbeAct::Allocate(bytes)).is_ok());
        session
    };
    let many = [(); 2].map(|()| holding("many", 48 << 20));
    let one = holding("one", 56 << 20);
    // The node itself holds more.
    assert_eq!(block_on(workers.relieve(1 << 40)), 0);
    assert!(many.iter().all(answers) && answers(&one));
    let calls = many
        .iter()
        .map(|session| session.call(request(&ProbeAct::Sleep(600_000)), limits(long()), None));
    let mut calls: Vec<_> = calls.collect();
    // Ending one of the two is enough: the other one alone holds less than the node.
    assert_eq!(block_on(workers.relieve(LEAST)), 1);
    let is_gone = |session: &WorkerSession| stat(session.pid()).is_none();
    until("it is gone", || many.iter().any(is_gone));
    let gone = many.iter().position(is_gone).expect("one of them");
    let loss = lost(calls.swap_remove(gone).wait());
    assert_eq!(loss.reason, WorkerEndReason::Relieved, "{loss}");
    assert!(many.iter().any(|session| !is_gone(session)));
    assert_eq!(block_on(workers.relieve(LEAST)), 0);
    // The tenant fills another one at once.
    let _again = holding("many", 48 << 20);
    assert_eq!(block_on(workers.relieve(LEAST)), 1);
    let refused = alone("many");
    assert!(matches!(refused, Err(WorkerError::Relieved)), "{refused:?}");
    // The host leaves a tenant that holds less alone, and gives it more.
    assert_eq!(block_on(workers.relieve(LEAST)), 0);
    let another = alone("one").expect("a session");
    assert!(answers(&one) && answers(&another));
}

/// Whether a worker answers after a call during which the host checked its memory.
fn session_looks(session: &WorkerSession) -> bool {
    ask(session, &ProbeAct::Sleep(300)).is_ok() && ask(session, &ProbeAct::Inside).is_ok()
}

#[test]
fn three_crashes_quarantine_an_operation_of_one_tenant_and_no_other() {
    let workers = workers();
    let (bad, good) = (Bytes32([1; 32]), Bytes32([2; 32]));
    for _ in 0..3 {
        let session = open(&workers, WorkerRole::Js, "a");
        assert_eq!(
            lost(ask_as(&session, &ProbeAct::Segv, bad)).reason,
            WorkerEndReason::Crash
        );
    }
    let session = open(&workers, WorkerRole::Js, "a");
    let refused = ask_as(&session, &ProbeAct::Inside, bad).expect_err("in quarantine");
    assert!(matches!(refused, WorkerCallError::Quarantined), "{refused}");
    assert_eq!(workers.stats().quarantined, 1);
    assert!(ask_as(&session, &ProbeAct::Inside, good).is_ok());
    // Another tenant runs the same code, and so do callers of what this tenant offers.
    let other = open(&workers, WorkerRole::Js, "b");
    assert!(ask_as(&other, &ProbeAct::Inside, bad).is_ok());
    let lent = block_on(workers.open(WorkerLease::new(WorkerRole::Js, "a").lent()));
    assert!(ask_as(&lent.expect("a session"), &ProbeAct::Inside, bad).is_ok());
    assert!(block_on(workers.release(bad)));
    assert!(ask_as(&session, &ProbeAct::Inside, bad).is_ok());
}

/// The attacker leaves its call before the call crashes the worker: the host has no caller to tell of the crash.
#[test]
fn crashes_of_calls_that_were_left_count() {
    let mut config = config();
    // Longer than a worker takes to crash.
    config.abort_grace = long();
    let workers = Workers::start(config).expect("a supervisor");
    let bad = Bytes32([1; 32]);
    for _ in 0..3 {
        let session = open(&workers, WorkerRole::Js, "a");
        let pid = session.pid();
        let act = request(&ProbeAct::SegvAfter(50));
        drop(session.call(act, limits(long()), Some(bad)));
        until("it is collected", || stat(pid).is_none());
    }
    until("all are counted", || workers.stats().quarantined == 1);
    let session = open(&workers, WorkerRole::Js, "a");
    let refused = ask_as(&session, &ProbeAct::Inside, bad).expect_err("in quarantine");
    assert!(matches!(refused, WorkerCallError::Quarantined), "{refused}");
}

#[test]
fn values_of_all_sizes_come_back_whole() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    for bytes in [0, 1, 65_535, 65_536, 1 << 20, 64 << 20] {
        let answer = ask(&session, &ProbeAct::Value(bytes)).expect("a value");
        assert_eq!(answer.fds.len(), usize::from(bytes > 65_535));
        let WorkerReply::Ok(blob) = answer.reply else {
            panic!("a fault");
        };
        let value = blob.read(&answer.fds, 64 << 20).expect("whole");
        assert!(value.len() == bytes && value.iter().all(|byte| *byte == 0x5a));
    }
}

#[test]
fn a_worker_calls_its_host_and_logs_within_bounds() {
    let workers = workers();
    let mut session = open(&workers, WorkerRole::Js, "a");
    let call = session.call(
        request(&ProbeAct::Ask("fs/read".to_owned())),
        limits(long()),
        None,
    );
    let (message, _) = block_on(session.next()).expect("a call");
    let FromWorkerMessage::Call { sid, id, op, .. } = message else {
        panic!("{message:?}");
    };
    assert_eq!((sid, &*op), (session.sid(), "fs/read"));
    let body = CborBody::encode(&ProbeReply::Errno(42)).expect("CBOR");
    let reply = WorkerReply::Ok(alknet_worker::FrameBlob::Inline(body));
    session
        .tell(SessionNotice::Reply { id, reply }, Vec::new())
        .expect("it reads");
    assert_eq!(said(call.wait().expect("the reply")), ProbeReply::Errno(42));

    // 64 KiB pass at once and 64 KiB in each second that the worker takes: far less than the rest.
    let began = Instant::now();
    assert!(ask(&session, &ProbeAct::Log(100, 20_000)).is_ok());
    let mut lines: u64 = 0;
    while let Some((FromWorkerMessage::Log { .. }, _)) = session.try_next() {
        lines += 1;
    }
    let dropped = workers.stats().log_dropped;
    let pass = (1 + began.elapsed().as_secs()) * (64 << 10) / 20_000;
    assert!(
        (3..=pass + 3).contains(&lines) && lines < 100,
        "{lines} of {pass}"
    );
    assert_eq!(dropped, (100 - lines) * 20_000);
    assert_eq!(
        errno(&session, &ProbeAct::Try(crate::act::ProbeSyscall::Open)),
        libc::EPERM
    );
}

/// A worker that the attacker took over answers, and returns neither a descriptor nor a map that the host handed it.
#[test]
fn memory_that_a_worker_was_handed_is_taken_back_whatever_it_keeps() {
    const BYTES: usize = 8 << 20;
    const TIMES: usize = 8;
    let workers = workers();
    let session = open(&workers, WorkerRole::Gpu, "hostile");
    let keeps = |count: usize, bytes: usize| {
        let kept = said(ask(&session, &ProbeAct::Kept).expect("an answer"));
        kept == ProbeReply::Text(format!("{count} of {bytes}"))
    };
    for count in 1..=TIMES {
        let memory = RevocableMemfd::written(|memory| memory.write_all(&vec![7; BYTES]));
        let memory = memory.expect("memory");
        let fds = vec![memory.hand_over().expect("a descriptor")];
        let told = SessionNotice::Role(CborBody::default());
        session.tell(told, fds).expect("it reads");
        until("it has the memory", || keeps(count, BYTES));
        drop(memory);
        assert!(keeps(count, 0), "{count}");
    }
}
