//! Which calls share a worker, which do not, and when workers come and go.

use std::time::Duration;

use alknet_worker::limits::SESSIONS_MAX;
use alknet_worker::{
    Bytes32, RoleConfig, WorkerCallError, WorkerEndReason, WorkerError, WorkerLease, WorkerRole,
    Workers,
};

use crate::act::ProbeAct;
use crate::host::{
    answers, ask, block_on, config, limits, long, open, request, stat, until, workers,
};

#[test]
fn tenants_have_workers_of_their_own_and_share_the_fate_of_their_sessions() {
    let workers = workers();
    let a = [
        open(&workers, WorkerRole::Js, "a"),
        open(&workers, WorkerRole::Js, "a"),
    ];
    let alone =
        block_on(workers.open(WorkerLease::new(WorkerRole::Js, "a").alone())).expect("a session");
    let b = open(&workers, WorkerRole::Js, "b");
    assert_eq!(a[0].pid(), a[1].pid());
    assert!(a[0].pid() != b.pid() && alone.pid() != a[0].pid() && alone.pid() != b.pid());
    let sibling = a[1].call(request(&ProbeAct::Sleep(600_000)), limits(long()), None);
    assert!(matches!(
        ask(&a[0], &ProbeAct::Segv),
        Err(WorkerCallError::Lost(_))
    ));
    assert_eq!(
        sibling.wait().expect_err("it shares the fate").code(),
        "E_WORKER_LOST"
    );
    assert!(answers(&alone) && answers(&b));
    assert!(matches!(
        ask(&a[1], &ProbeAct::Inside),
        Err(WorkerCallError::SessionClosed)
    ));
    let again = open(&workers, WorkerRole::Js, "a");
    assert!(answers(&again));
}

#[test]
fn a_warm_worker_waits_and_is_replaced() {
    let workers = workers();
    let idle = |workers: &Workers| {
        let stats = workers.stats();
        stats.workers.get(&WorkerRole::Js).copied().unwrap_or(0)
    };
    assert_eq!(idle(&workers), 0, "none was asked for yet");
    let _session = open(&workers, WorkerRole::Js, "a");
    until("another is kept warm", || idle(&workers) == 2);
    let _other = open(&workers, WorkerRole::Js, "b");
    until("a third takes its place", || idle(&workers) == 3);
    assert_eq!(workers.stats().sessions, 2);
    assert_eq!(
        workers.stats().workers.get(&WorkerRole::Gpu),
        None,
        "none was asked for"
    );
}

#[test]
fn there_are_no_more_workers_than_may_be() {
    let mut config = config();
    config.workers_max = 2;
    let workers = Workers::start(config).expect("a supervisor");
    let a = open(&workers, WorkerRole::Js, "a");
    let b = open(&workers, WorkerRole::Js, "b");
    let refused = block_on(workers.open(WorkerLease::new(WorkerRole::Js, "c")));
    assert!(
        matches!(refused, Err(WorkerError::Overloaded)),
        "{refused:?}"
    );
    let pid = a.pid();
    drop(a);
    let c = open(&workers, WorkerRole::Js, "c");
    until("an idle one made room", || stat(pid).is_none());
    assert!(answers(&b) && answers(&c));
}

/// A tenant requests as many workers as there are, one after the other and at once, in every role.
#[test]
fn one_tenant_leaves_workers_to_the_others() {
    let mut config = config();
    config.workers_max = 8;
    let workers = Workers::start(config).expect("a supervisor");
    let alone = |role| workers.open(WorkerLease::new(role, "greedy").alone());
    let first = block_on(alone(WorkerRole::Js)).expect("a session");
    let (second, third, of_gpu) = block_on(async {
        tokio::join!(
            alone(WorkerRole::Js),
            alone(WorkerRole::Js),
            alone(WorkerRole::Gpu)
        )
    });
    let second = second.expect("its share are two of eight");
    for refused in [third, of_gpu, block_on(alone(WorkerRole::Git))] {
        assert!(
            matches!(refused, Err(WorkerError::TenantShare)),
            "{refused:?}"
        );
    }
    let others = [
        open(&workers, WorkerRole::Js, "other"),
        open(&workers, WorkerRole::Gpu, "other"),
        open(&workers, WorkerRole::Gpu, "third"),
    ];
    assert!(others.iter().all(answers));
    // Workers that it does not use any more make room for it.
    drop(second);
    let of_gpu = block_on(alone(WorkerRole::Gpu)).expect("a session");
    assert!(answers(&first) && answers(&of_gpu));
}

/// Other tenants call the tenant's operations, without end: these runs, and their ends, do not count with the
/// tenant's own.
#[test]
fn what_others_have_run_leaves_the_tenant_half_of_its_workers() {
    let mut config = config();
    config.workers_max = 16;
    let workers = Workers::start(config).expect("a supervisor");
    let lent = || workers.open(WorkerLease::new(WorkerRole::Js, "author").lent().alone());
    let (first, second, third) = block_on(async { tokio::join!(lent(), lent(), lent()) });
    let first = first.expect("a session");
    let second = second.expect("two of the author's four");
    for refused in [third, block_on(lent())] {
        assert!(
            matches!(refused, Err(WorkerError::TenantShare)),
            "{refused:?}"
        );
    }
    let own = open(&workers, WorkerRole::Js, "author");
    assert!(own.pid() != first.pid() && own.pid() != second.pid());
    let alone = || block_on(workers.open(WorkerLease::new(WorkerRole::Js, "author").alone()));
    let beside = alone().expect("the fourth");
    assert!(matches!(alone(), Err(WorkerError::TenantShare)));
    assert!([&own, &beside].into_iter().all(answers));
    // A worker without a session makes room for others' calls, and for the author's own.
    drop(first);
    let again = block_on(lent()).expect("a session");
    drop(again);
    let last = alone().expect("a session");
    assert!(answers(&second) && answers(&last));
    // Sessions that share a worker do not share it with the tenant's own.
    let shared = |lease: WorkerLease| block_on(workers.open(lease)).expect("a session").pid();
    let called = shared(WorkerLease::new(WorkerRole::Js, "other").lent());
    assert_ne!(shared(WorkerLease::new(WorkerRole::Js, "other")), called);
}

/// A caller calls operations with different rights, as many at once as there are workers for the author's callers.
#[test]
fn one_caller_leaves_the_other_callers_workers_of_the_author() {
    let mut config = config();
    config.workers_max = 32;
    let workers = Workers::start(config).expect("a supervisor");
    let called = |caller: &str, rights: u8| {
        let lease = WorkerLease::new(WorkerRole::Js, "author").lent();
        let lease = lease.with_rights(Bytes32([rights; 32]));
        block_on(workers.open(lease.for_caller(caller)))
    };
    let eve = [called("eve", 1), called("eve", 2)];
    let eve = eve.map(|session| session.expect("half of the author's four"));
    let refused = called("eve", 3);
    assert!(
        matches!(refused, Err(WorkerError::CallerShare)),
        "{refused:?}"
    );
    let same = called("eve", 2).expect("beside her other one");
    assert_eq!(same.pid(), eve[1].pid());
    let bob = called("bob", 3).expect("a worker");
    let second = called("bob", 4);
    assert!(
        matches!(second, Err(WorkerError::CallerShare)),
        "the last one is for others: {second:?}"
    );
    let ada = called("ada", 5).expect("the last one");
    assert!([&eve[0], &same, &bob, &ada].into_iter().all(answers));
    // What has ended counts for no caller.
    drop(eve);
    drop(same);
    assert!(answers(&called("eve", 6).expect("a worker")));
}

/// Two callers call the same operations, so that each worker has a session of both, and go on by turns.
#[test]
fn two_callers_in_the_same_workers_leave_others_workers_of_the_author() {
    let mut config = config();
    config.workers_max = 64;
    let workers = Workers::start(config).expect("a supervisor");
    let called = |caller: &str, rights: u8| {
        let lease = WorkerLease::new(WorkerRole::Js, "author").lent();
        let lease = lease.with_rights(Bytes32([rights; 32]));
        block_on(workers.open(lease.for_caller(caller)))
    };
    let (mut held, mut beside) = (Vec::new(), Vec::new());
    for rights in 1..=4 {
        held.push(called("eve", rights).expect("four of the author's eight"));
        beside.push(called("mallory", rights).expect("in the same worker"));
    }
    for (caller, rights) in [("eve", 5), ("mallory", 5), ("eve", 6)] {
        let refused = called(caller, rights);
        assert!(
            matches!(refused, Err(WorkerError::CallerShare)),
            "{caller}: {refused:?}"
        );
    }
    // One of them leaves and begins again elsewhere: together they have six.
    drop(beside);
    for (caller, rights) in [("mallory", 5), ("mallory", 6)] {
        held.push(called(caller, rights).expect("a worker"));
    }
    let refused = called("mallory", 7);
    assert!(refused.is_err(), "{refused:?}");
    for (caller, rights) in [("ada", 7), ("bob", 8)] {
        let session = called(caller, rights).expect("the last two are for these");
        assert!(answers(&session), "{caller}");
        held.push(session);
    }
}

/// An idle worker that lingers with the rights of an operation is no way around the share.
#[test]
fn a_caller_gets_no_more_workers_by_calling_each_operation_before() {
    let mut config = config();
    config.workers_max = 32;
    let workers = Workers::start(config).expect("a supervisor");
    let called = |rights: u8| {
        let lease = WorkerLease::new(WorkerRole::Js, "author").lent();
        let lease = lease.with_rights(Bytes32([rights; 32]));
        block_on(workers.open(lease.for_caller("eve")))
    };
    for rights in 1..=4 {
        drop(called(rights).expect("one at a time"));
    }
    let held = [called(1), called(2)];
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    for rights in [3, 4] {
        let refused = called(rights);
        assert!(
            matches!(refused, Err(WorkerError::CallerShare)),
            "{refused:?}"
        );
    }
}

/// A service has its session for all callers, one call after the other: its worker counts for the one whose call runs.
#[test]
fn a_session_for_all_callers_counts_for_the_one_whose_call_runs() {
    let mut config = config();
    config.workers_max = 32;
    let workers = Workers::start(config).expect("a supervisor");
    let service = |rights: u8| {
        let lease = WorkerLease::new(WorkerRole::Js, "author").lent();
        let lease = lease.with_rights(Bytes32([rights; 32]));
        let session = block_on(workers.open(lease.for_caller("opener"))).expect("a worker");
        drop(workers.charge_of_lease(session.sid()));
        session
    };
    let services = [1, 2, 3, 4].map(service);
    let charged = |at: usize, caller: &str| block_on(workers.charge(services[at].sid(), caller));
    let eve = [charged(0, "eve"), charged(1, "eve")];
    assert!(eve.iter().all(Result::is_ok), "{eve:?}");
    let refused = charged(2, "eve");
    assert!(
        matches!(refused, Err(WorkerError::CallerShare)),
        "{refused:?}"
    );
    assert!(charged(0, "eve").is_ok(), "it counts already");
    let bob = charged(2, "bob").expect("his first");
    let second = charged(3, "bob");
    assert!(
        matches!(second, Err(WorkerError::CallerShare)),
        "the last one is for others: {second:?}"
    );
    assert!(charged(3, "ada").is_ok());
    drop((eve, bob));
    assert!(charged(2, "eve").is_ok(), "her calls have ended");
}

/// Sessions that share their workers are no more than these hold; a tenant that opens several at once is not refused
/// for it.
#[test]
fn sessions_at_once_share_the_workers_of_their_tenant() {
    let mut config = config();
    config.workers_max = 4;
    let workers = Workers::start(config).expect("a supervisor");
    let of = |role| workers.open(WorkerLease::new(role, "a"));
    let (first, second) =
        block_on(async { tokio::join!(of(WorkerRole::Gpu), of(WorkerRole::Gpu)) });
    let (first, second) = (first.expect("a session"), second.expect("another"));
    assert_eq!(first.pid(), second.pid());
    let more: Vec<_> = (2..SESSIONS_MAX)
        .map(|_| open(&workers, WorkerRole::Gpu, "a"))
        .collect();
    assert!(more.iter().all(|session| session.pid() == first.pid()));
    let refused = block_on(of(WorkerRole::Gpu));
    assert!(
        matches!(refused, Err(WorkerError::TenantShare)),
        "{refused:?}"
    );
}

#[test]
fn what_cannot_start_is_an_error_and_no_endless_loop() {
    let mut config = config();
    config.executable = alknet_worker::Executable::File("/etc/hostname".into());
    config.roles = vec![RoleConfig::new(WorkerRole::Js)];
    let workers = Workers::start(config).expect("a supervisor");
    let refused = block_on(workers.open(WorkerLease::new(WorkerRole::Js, "a")));
    assert!(
        matches!(refused, Err(WorkerError::Start { .. })),
        "{refused:?}"
    );
    let unknown = block_on(workers.open(WorkerLease::new(WorkerRole::Git, "a")));
    assert!(
        matches!(unknown, Err(WorkerError::NotConfigured(WorkerRole::Git))),
        "{unknown:?}"
    );
}

#[test]
fn a_program_that_is_no_worker_is_given_up() {
    let mut config = config();
    config.executable = alknet_worker::Executable::File("/bin/true".into());
    let workers = Workers::start(config).expect("a supervisor");
    let refused = block_on(workers.open(WorkerLease::new(WorkerRole::Gpu, "a")));
    assert!(
        matches!(refused, Err(WorkerError::Start { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_copy_in_sealed_memory_runs_as_well() {
    let program = std::fs::read(crate::host::probe()).expect("the probe");
    let sealed = alknet_worker::SealedMemfd::from_bytes(&program).expect("sealed");
    let mut config = config();
    config.executable = alknet_worker::Executable::Memory(sealed);
    let workers = Workers::start(config).expect("a supervisor");
    assert!(answers(&open(&workers, WorkerRole::Js, "a")));
}

#[test]
fn a_role_runs_a_program_of_its_own_that_is_made_when_it_is_wanted() {
    use std::sync::atomic::{AtomicU32, Ordering};

    let made = std::sync::Arc::new(AtomicU32::new(0));
    let count = std::sync::Arc::clone(&made);
    let make = move || {
        count.fetch_add(1, Ordering::SeqCst);
        let mut probe = std::fs::File::open(crate::host::probe())?;
        alknet_worker::SealedMemfd::program(|memory| std::io::copy(&mut probe, memory).map(drop))
    };
    let mut config = config();
    let make = alknet_worker::ProgramMaker::new(make);
    config.programs = vec![(WorkerRole::Gpu, alknet_worker::Executable::Made(make))];
    let workers = Workers::start(config).expect("a supervisor");
    assert!(answers(&open(&workers, WorkerRole::Js, "a")));
    assert_eq!(made.load(Ordering::SeqCst), 0, "it was not wanted");
    let first = open(&workers, WorkerRole::Gpu, "a");
    let second = open(&workers, WorkerRole::Gpu, "b");
    assert!(answers(&first) && answers(&second));
    assert_eq!(made.load(Ordering::SeqCst), 1, "both run the same memory");
    for session in [first, second] {
        let pid = session.pid();
        // A worker that crashes is gone at once; an idle one would linger.
        let _ = ask(&session, &ProbeAct::Segv);
        until("it is gone", || stat(pid).is_none());
    }
    until("it can be started again", || {
        block_on(workers.open(WorkerLease::new(WorkerRole::Gpu, "c"))).is_ok()
    });
    assert_eq!(made.load(Ordering::SeqCst), 2, "it was forgotten between");
}

#[test]
fn what_cannot_be_made_is_said() {
    let make = || Err(std::io::Error::other("it is not in this binary"));
    let mut config = config();
    let make = alknet_worker::ProgramMaker::new(make);
    config.programs = vec![(WorkerRole::Gpu, alknet_worker::Executable::Made(make))];
    let workers = Workers::start(config).expect("a supervisor");
    match block_on(workers.open(WorkerLease::new(WorkerRole::Gpu, "a"))) {
        Err(WorkerError::Start { why, .. }) => assert!(why.contains("not in this binary"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shutting_down_ends_every_worker() {
    let workers = workers();
    let session = open(&workers, WorkerRole::Js, "a");
    let pid = session.pid();
    let act = request(&ProbeAct::Sleep(600_000));
    let call = session.call(act, limits(Duration::from_secs(600)), None);
    block_on(workers.shutdown());
    assert!(stat(pid).is_none());
    match call.wait() {
        Err(WorkerCallError::Lost(loss)) => assert_eq!(loss.reason, WorkerEndReason::Shutdown),
        other => panic!("{other:?}"),
    }
    let refused = block_on(workers.open(WorkerLease::new(WorkerRole::Js, "a")));
    assert!(matches!(refused, Err(WorkerError::Stopped)), "{refused:?}");
}
