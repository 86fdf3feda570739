//! Which worker gets which session. No clock, no process: times come in, answers go out.
//!
//! A worker that has had a tenant is never given to another: what a hostile session left behind in it
//! stays with its tenant. It waits a while for the tenant's next session and then ends.

use std::collections::BTreeMap;

use super::Lease;
use crate::Role;
use crate::limits::{LINGER, SESSIONS_MAX, SESSIONS_SERVED_MAX};

/// Every worker that is started or running.
#[derive(Debug, Default)]
pub(super) struct Pool {
    slots: BTreeMap<u64, Slot>,
    next: u64,
}

#[derive(Debug)]
struct Slot {
    role: Role,
    phase: Phase,
    tenant: Option<String>,
    /// One session and no other: because that is what was asked for.
    alone: bool,
    /// Started for one lease, with its folders.
    reserved: bool,
    sessions: u32,
    served: u32,
    idle_since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    /// It gets no session any more.
    Leaving,
}

impl Pool {
    /// A new worker is being started; `reserved` for a lease that brings folders.
    pub(super) fn add(&mut self, role: Role, reserved: bool) -> u64 {
        self.next += 1;
        let slot = Slot {
            role,
            phase: Phase::Starting,
            tenant: None,
            alone: false,
            reserved,
            sessions: 0,
            served: 0,
            idle_since: 0,
        };
        self.slots.insert(self.next, slot);
        self.next
    }

    pub(super) fn ready(&mut self, worker: u64) {
        if let Some(slot) = self.slots.get_mut(&worker)
            && slot.phase == Phase::Starting
        {
            slot.phase = Phase::Ready;
        }
    }

    /// Puts a session of `lease` into the worker where it fits best, if there is one.
    pub(super) fn place(&mut self, lease: &Lease) -> Option<u64> {
        let fits = |slot: &Slot| slot.takes(lease);
        // One that the tenant has already, or else a new one.
        let found = self.slots.iter().filter(|(_, slot)| fits(slot));
        let worker = *found.min_by_key(|(_, slot)| slot.tenant.is_none())?.0;
        self.bind(worker, lease).then_some(worker)
    }

    /// Puts a session of `lease` into this worker. Returns whether the worker is ready.
    pub(super) fn bind(&mut self, worker: u64, lease: &Lease) -> bool {
        let Some(slot) = self.slots.get_mut(&worker) else {
            return false;
        };
        if slot.phase != Phase::Ready {
            return false;
        }
        slot.tenant = Some(lease.tenant.clone());
        slot.alone |= lease.alone;
        slot.sessions += 1;
        slot.served += 1;
        true
    }

    /// A session has left its worker.
    pub(super) fn release(&mut self, worker: u64, now: u64) {
        if let Some(slot) = self.slots.get_mut(&worker) {
            slot.sessions = slot.sessions.saturating_sub(1);
            slot.idle_since = now;
        }
    }

    /// The worker gets no session any more.
    pub(super) fn leave(&mut self, worker: u64) {
        if let Some(slot) = self.slots.get_mut(&worker) {
            slot.phase = Phase::Leaving;
        }
    }

    /// The worker is gone.
    pub(super) fn remove(&mut self, worker: u64) {
        self.slots.remove(&worker);
    }

    /// Whether there is a worker of the role, whatever it does.
    pub(super) fn has(&self, role: Role) -> bool {
        self.slots.values().any(|slot| slot.role == role)
    }

    /// A worker that waits for nothing any more.
    pub(super) fn expired(&self, now: u64) -> Option<u64> {
        let done = |slot: &Slot| slot.idle_until().is_some_and(|until| now >= until);
        let found = self.slots.iter().find(|(_, slot)| done(slot));
        found.map(|(worker, _)| *worker)
    }

    /// When [`Self::expired`] has an answer next.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.slots.values().filter_map(Slot::idle_until).min()
    }

    /// A worker without a session that could make room for another.
    pub(super) fn evictable(&self) -> Option<u64> {
        let idle = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.idle_until().is_some());
        idle.min_by_key(|(_, slot)| slot.idle_since)
            .map(|(worker, _)| *worker)
    }

    /// Workers of the role that any tenant could have, now or when they are ready.
    pub(super) fn free(&self, role: Role) -> usize {
        let free = |slot: &&Slot| {
            slot.role == role
                && slot.tenant.is_none()
                && !slot.reserved
                && slot.phase != Phase::Leaving
        };
        self.slots.values().filter(free).count()
    }

    /// Workers that are not on their way out.
    pub(super) fn len(&self) -> usize {
        let staying = |slot: &&Slot| slot.phase != Phase::Leaving;
        self.slots.values().filter(staying).count()
    }
}

impl Slot {
    fn takes(&self, lease: &Lease) -> bool {
        let tenant = self.tenant.as_ref();
        self.phase == Phase::Ready
            && self.role == lease.role
            && !self.reserved
            && lease.binds.is_empty()
            && tenant.is_none_or(|tenant| *tenant == lease.tenant && !self.alone && !lease.alone)
            && self.sessions < SESSIONS_MAX
            && self.served < SESSIONS_SERVED_MAX
    }

    /// Until when it waits for a session, once it has none.
    fn idle_until(&self) -> Option<u64> {
        if self.phase != Phase::Ready || self.served == 0 || self.sessions > 0 {
            return None;
        }
        if self.alone || self.served >= SESSIONS_SERVED_MAX {
            return Some(self.idle_since);
        }
        let linger = u64::try_from(LINGER.as_micros()).unwrap_or(u64::MAX);
        Some(self.idle_since.saturating_add(linger))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bind;

    fn lease(tenant: &str) -> Lease {
        Lease::new(Role::Js, tenant)
    }

    fn pool(workers: usize) -> Pool {
        let mut pool = Pool::default();
        for _ in 0..workers {
            let worker = pool.add(Role::Js, false);
            pool.ready(worker);
        }
        pool
    }

    #[test]
    fn tenants_never_share_a_worker_and_sessions_of_one_do() {
        let mut pool = pool(2);
        let a = pool.place(&lease("a")).expect("a worker");
        let b = pool.place(&lease("b")).expect("another");
        assert_ne!(a, b);
        for _ in 1..SESSIONS_MAX {
            assert_eq!(pool.place(&lease("a")), Some(a));
        }
        assert_eq!(pool.place(&lease("a")), None, "the worker is full");
        assert_eq!(pool.place(&lease("c")), None);
        for _ in 0..SESSIONS_MAX {
            pool.release(a, 0);
        }
        assert_eq!(pool.place(&lease("c")), None, "it was a's once");
        assert_eq!(pool.place(&lease("a")), Some(a));
    }

    #[test]
    fn who_wants_to_be_alone_is() {
        let mut pool = pool(2);
        let first = pool.place(&lease("a").alone()).expect("a worker");
        let second = pool.place(&lease("a")).expect("another");
        assert_ne!(first, second);
        assert_eq!(pool.place(&lease("a").alone()), None, "neither is free");
        pool.release(first, 7);
        assert_eq!(pool.expired(7), Some(first), "nobody else may come");
    }

    #[test]
    fn a_worker_waits_a_while_for_its_tenant() {
        let mut pool = pool(1);
        assert_eq!(pool.deadline(), None, "a fresh one waits for ever");
        let a = pool.place(&lease("a")).expect("a worker");
        pool.release(a, 5);
        let linger = u64::try_from(LINGER.as_micros()).expect("short");
        assert_eq!(pool.deadline(), Some(5 + linger));
        assert_eq!(pool.expired(4 + linger), None);
        assert_eq!(pool.evictable(), Some(a));
        assert_eq!(pool.expired(5 + linger), Some(a));
        pool.leave(a);
        assert_eq!((pool.expired(u64::MAX), pool.len()), (None, 0));
    }

    #[test]
    fn a_worker_is_replaced_after_its_sessions() {
        let mut pool = pool(1);
        let mut worker = None;
        for _ in 0..SESSIONS_SERVED_MAX {
            worker = pool.place(&lease("a"));
            pool.release(worker.expect("the worker"), 3);
        }
        assert_eq!(pool.place(&lease("a")), None);
        assert_eq!(pool.expired(3), worker);
    }

    #[test]
    fn folders_are_for_the_lease_that_brings_them() {
        let mut pool = Pool::default();
        let bind = Bind {
            source: "/data".to_owned(),
            name: "objects".to_owned(),
            writable: false,
        };
        let lease = Lease::new(Role::Git, "a").with(bind);
        let worker = pool.add(Role::Git, true);
        assert!(!pool.bind(worker, &lease), "it is not ready");
        pool.ready(worker);
        assert_eq!(pool.free(Role::Git), 0);
        assert_eq!(pool.place(&lease), None);
        assert_eq!(pool.place(&Lease::new(Role::Git, "a")), None);
        assert!(pool.bind(worker, &lease));
    }
}
