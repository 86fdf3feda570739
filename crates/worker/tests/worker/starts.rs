//! Starts that take long: of workers that compute before they are ready, and of workers that hang.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use alknet_worker::{
    RoleConfig, StartLimits, WorkerEndReason, WorkerError, WorkerLease, WorkerRole, Workers,
};

use crate::act::{START_SLEEPS, START_VARIABLE};
use crate::host::{answers, block_on, config, open, until};

/// Limits that no start reaches.
const ENDLESS: StartLimits = StartLimits {
    idle: Duration::MAX,
    cpu: Duration::MAX,
    wall: Duration::MAX,
};

/// Workers of role gpu whose start goes like this.
fn workers(start: &str, limits: StartLimits) -> Workers {
    let mut config = config();
    config.start = limits;
    let mut role = RoleConfig::new(WorkerRole::Gpu);
    role.environment = vec![(START_VARIABLE.to_owned(), start.to_owned())];
    config.roles = vec![role];
    Workers::start(config).expect("a supervisor")
}

fn lease(tenant: &str) -> WorkerLease {
    WorkerLease::new(WorkerRole::Gpu, tenant)
}

/// Asserts that a worker does not become ready, and is killed for it.
#[track_caller]
fn is_ended(workers: &Workers) {
    match block_on(workers.open(lease("a"))) {
        Err(WorkerError::Start { why, .. }) => assert!(why.contains("did not get ready"), "{why}"),
        other => panic!("{other:?}"),
    }
    until("it is gone", || {
        workers.stats().ended.get(&WorkerEndReason::Start) == Some(&1)
    });
}

#[test]
fn a_start_that_computes_goes_on_beyond_its_time() {
    let limits = StartLimits {
        idle: Duration::from_secs(1),
        ..ENDLESS
    };
    let workers = workers("3000", limits);
    assert!(answers(&open(&workers, WorkerRole::Gpu, "a")));
    assert_eq!(workers.stats().ended.get(&WorkerEndReason::Start), None);
}

#[test]
fn a_start_that_sleeps_is_ended_at_its_time() {
    let limits = StartLimits {
        idle: Duration::from_millis(300),
        ..ENDLESS
    };
    is_ended(&workers(START_SLEEPS, limits));
}

#[test]
fn a_start_that_computes_is_ended_at_its_limits() {
    let idle = Duration::from_millis(100);
    let most = Duration::from_millis(500);
    let cpu = StartLimits {
        idle,
        cpu: most,
        ..ENDLESS
    };
    let wall = StartLimits {
        idle,
        wall: most,
        ..ENDLESS
    };
    for limits in [cpu, wall] {
        is_ended(&workers("3600000", limits));
    }
}

/// A start may take longer than its caller waits: then the next caller gets the worker, and none is started besides.
#[test]
fn a_start_whose_caller_gave_up_is_for_the_next_one() {
    let workers = workers("2000", ENDLESS);
    for tenant in ["a", "b", "c"] {
        let opening = pin!(workers.open(lease(tenant)));
        let polled = opening.poll(&mut Context::from_waker(Waker::noop()));
        // Dropped with this turn, as at a caller's deadline.
        assert!(polled.is_pending(), "{tenant}");
    }
    assert!(answers(&open(&workers, WorkerRole::Gpu, "d")));
    assert_eq!(workers.stats().started, 1);
}

/// Workers of roles gpu and git, of which a tenant may have one. A worker of role gpu starts for a, whose caller gave up.
fn workers_with_start_for_a() -> Workers {
    let mut config = config();
    config.start = ENDLESS;
    // One worker for a tenant.
    config.workers_max = 4;
    config.roles = [WorkerRole::Gpu, WorkerRole::Git]
        .map(|role| {
            let mut role = RoleConfig::new(role);
            role.environment = vec![(START_VARIABLE.to_owned(), "2000".to_owned())];
            role
        })
        .to_vec();
    let workers = Workers::start(config).expect("a supervisor");
    {
        let opening = pin!(workers.open(lease("a")));
        let polled = opening.poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
    }
    workers
}

/// A tenant with short deadlines would otherwise start its share of workers of each role.
#[test]
fn a_start_whose_caller_gave_up_counts_for_the_tenant_until_it_is_over() {
    let workers = workers_with_start_for_a();
    let other = block_on(workers.open(WorkerLease::new(WorkerRole::Git, "a")));
    assert!(matches!(other, Err(WorkerError::TenantShare)), "{other:?}");
    // The worker that starts is for the tenant's next call.
    assert!(answers(&open(&workers, WorkerRole::Gpu, "a")));
    assert!(answers(&open(&workers, WorkerRole::Git, "b")));
    assert_eq!(workers.stats().started, 2);
}

/// The lease of b takes the worker that starts for a, so a is refused no other one for it. It counts for b from then on, also
/// if b gives up.
#[test]
fn a_start_that_another_tenant_waits_for_counts_for_that_tenant() {
    for gives_up in [false, true] {
        let workers = workers_with_start_for_a();
        let mut waiting = Some(Box::pin(workers.open(lease("b"))));
        let polled = waiting
            .as_mut()
            .map(|it| it.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        assert!(polled.is_some_and(|polled| polled.is_pending()));
        if gives_up {
            waiting = None;
            let other = block_on(workers.open(WorkerLease::new(WorkerRole::Git, "b")));
            assert!(matches!(other, Err(WorkerError::TenantShare)), "{other:?}");
        }
        assert!(answers(&open(&workers, WorkerRole::Git, "a")));
        if let Some(waiting) = waiting {
            assert!(answers(&block_on(waiting).expect("a session")));
        }
        assert_eq!(workers.stats().started, 2, "{gives_up}");
    }
}
