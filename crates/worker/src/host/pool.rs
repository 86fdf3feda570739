//! Chooses the worker of each session. No clock, no process: it gets times and returns choices.
//!
//! A worker that has had a tenant is never given to another one: what a hostile session left in it stays with its
//! tenant. It waits a while for the tenant's next session and then ends.

mod starts;

use std::collections::BTreeMap;

use super::WorkerLease;
use crate::host::quarantine::TenantOperation;
use crate::limits::{LINGER, SESSIONS_MAX, SESSIONS_SERVED_MAX};
use crate::{Bytes32, WorkerRole};

pub(super) use starts::StartingFor;

/// Every worker that is starting or running.
#[derive(Debug, Default)]
pub(super) struct WorkerPool {
    slots: BTreeMap<u64, PoolSlot>,
    next: u64,
}

#[derive(Debug)]
struct PoolSlot {
    role: WorkerRole,
    phase: WorkerPhase,
    tenant: Option<String>,
    /// Whether it has one session and no other, because the lease asked for that.
    alone: bool,
    /// Whether it runs the tenant's code for other callers.
    lent: bool,
    /// The rights that all its sessions have.
    rights: Option<Bytes32>,
    /// Whether it was started for one lease, with its folders.
    reserved: bool,
    /// The tenant for whose lease it starts, also once the caller has given up, until it is ready.
    started_for: Option<StartingFor>,
    /// Whether it ends after a while although no tenant took it: its caller gave up while it started.
    lingers: bool,
    sessions: u32,
    served: u32,
    idle_since: u64,
    /// How many of its sessions run for each caller of the tenant's operations. A session that waits for its next
    /// call runs for no caller.
    callers: BTreeMap<String, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerPhase {
    Starting,
    Ready,
    /// Gets no further session.
    Leaving,
}

/// The tenant whose workers hold most memory together, and these workers with their bytes.
pub(super) struct HeaviestTenant<'a> {
    pub(super) tenant: Option<&'a str>,
    pub(super) workers: Vec<(u64, u64)>,
}

impl HeaviestTenant<'_> {
    /// Sum of their bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.workers.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl WorkerPool {
    /// Adds a worker that is starting; `reserved` for a lease with folders.
    pub(super) fn add(&mut self, role: WorkerRole, reserved: bool) -> u64 {
        self.next += 1;
        let slot = PoolSlot {
            role,
            phase: WorkerPhase::Starting,
            tenant: None,
            alone: false,
            lent: false,
            rights: None,
            reserved,
            started_for: None,
            lingers: false,
            sessions: 0,
            served: 0,
            idle_since: 0,
            callers: BTreeMap::new(),
        };
        self.slots.insert(self.next, slot);
        self.next
    }

    pub(super) fn ready(&mut self, worker: u64) {
        if let Some(slot) = self.slots.get_mut(&worker)
            && slot.phase == WorkerPhase::Starting
        {
            slot.phase = WorkerPhase::Ready;
        }
    }

    /// Has a worker that no tenant took end if none takes it within [`LINGER`], unless it is one of the `least` of its
    /// role that are to stay.
    pub(super) fn linger(&mut self, worker: u64, least: usize, now: u64) {
        let role = self.slots.get(&worker).map(|slot| slot.role);
        let stays = |slot: &&PoolSlot| Some(slot.role) == role && slot.is_free() && !slot.lingers;
        let staying = self.slots.values().filter(stays).count();
        if let Some(slot) = self.slots.get_mut(&worker)
            && slot.is_free()
            && staying > least
        {
            slot.lingers = true;
            slot.idle_since = now;
        }
    }

    /// Puts a session of `lease` into the worker that fits best, if there is one.
    pub(super) fn assign(&mut self, lease: &WorkerLease) -> Option<u64> {
        let is_suitable = |slot: &PoolSlot| slot.takes(lease);
        // A worker that the tenant has already is preferred to a new one.
        let found = self.slots.iter().filter(|(_, slot)| is_suitable(slot));
        let worker = *found.min_by_key(|(_, slot)| slot.tenant.is_none())?.0;
        self.bind(worker, lease).then_some(worker)
    }

    /// Puts a session of `lease` into a worker of the tenant's in which a call of this caller runs, or with `others`
    /// one of any caller.
    pub(super) fn assign_beside(
        &mut self,
        lease: &WorkerLease,
        caller: &str,
        others: bool,
    ) -> Option<u64> {
        let is_suitable = |slot: &PoolSlot| {
            slot.tenant.is_some()
                && (slot.serves(caller) || others && slot.is_busy())
                && slot.takes(lease)
        };
        let (&worker, _) = self.slots.iter().find(|(_, slot)| is_suitable(slot))?;
        self.bind(worker, lease).then_some(worker)
    }

    /// Like [`assign`](Self::assign), among the workers that the tenant has already.
    pub(super) fn assign_own(&mut self, lease: &WorkerLease) -> Option<u64> {
        let is_suitable = |slot: &PoolSlot| slot.tenant.is_some() && slot.takes(lease);
        let (&worker, _) = self.slots.iter().find(|(_, slot)| is_suitable(slot))?;
        self.bind(worker, lease).then_some(worker)
    }

    /// Puts a session of `lease` into this worker. Returns false if the worker is not ready.
    pub(super) fn bind(&mut self, worker: u64, lease: &WorkerLease) -> bool {
        let Some(slot) = self.slots.get_mut(&worker) else {
            return false;
        };
        if slot.phase != WorkerPhase::Ready {
            return false;
        }
        slot.tenant = Some(lease.tenant.clone());
        slot.alone |= lease.alone;
        slot.lent = lease.lent;
        slot.rights = lease.rights;
        slot.sessions += 1;
        slot.served += 1;
        if let Some(caller) = &lease.caller {
            self.charge(worker, caller);
        }
        true
    }

    /// Counts the worker for this caller, until [`release_caller`](Self::release_caller).
    pub(super) fn charge(&mut self, worker: u64, caller: &str) {
        if let Some(slot) = self.slots.get_mut(&worker) {
            *slot.callers.entry(caller.to_owned()).or_default() += 1;
        }
    }

    /// Counts the worker once less for this caller.
    pub(super) fn release_caller(&mut self, worker: u64, caller: &str) {
        let slot = self.slots.get_mut(&worker);
        let Some(callers) = slot.map(|slot| &mut slot.callers) else {
            return;
        };
        if let Some(sessions) = callers.get_mut(caller) {
            *sessions -= 1;
            if *sessions == 0 {
                callers.remove(caller);
            }
        }
    }

    /// Removes a session from its worker.
    pub(super) fn release(&mut self, worker: u64, now: u64) {
        if let Some(slot) = self.slots.get_mut(&worker) {
            slot.sessions = slot.sessions.saturating_sub(1);
            slot.idle_since = now;
        }
    }

    /// Gives the worker no further session.
    pub(super) fn leave(&mut self, worker: u64) {
        if let Some(slot) = self.slots.get_mut(&worker) {
            slot.phase = WorkerPhase::Leaving;
        }
    }

    /// Removes a worker that has ended.
    pub(super) fn remove(&mut self, worker: u64) {
        self.slots.remove(&worker);
    }

    /// Whether a worker of the role exists, in whatever phase.
    pub(super) fn has(&self, role: WorkerRole) -> bool {
        self.slots.values().any(|slot| slot.role == role)
    }

    /// A worker whose wait for a session is over.
    pub(super) fn expired(&self, now: u64) -> Option<u64> {
        let done = |slot: &PoolSlot| slot.idle_until().is_some_and(|until| now >= until);
        let found = self.slots.iter().find(|(_, slot)| done(slot));
        found.map(|(worker, _)| *worker)
    }

    /// The next time at which [`Self::expired`] may have a result.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.slots.values().filter_map(PoolSlot::idle_until).min()
    }

    /// A worker without a session that can make room for another one: the one that has waited longest for its tenant,
    /// or a ready one that no tenant took, such as a warm one of another role.
    pub(super) fn evictable(&self) -> Option<u64> {
        let unwanted = |slot: &PoolSlot| {
            slot.phase == WorkerPhase::Ready && slot.tenant.is_none() && !slot.reserved
        };
        let unwanted = || self.slots.iter().find(|(_, slot)| unwanted(slot));
        self.idle_longest(|_| true)
            .or_else(|| unwanted().map(|(worker, _)| *worker))
    }

    /// A worker without a session that can make room for another one of the same tenant.
    pub(super) fn evictable_of(&self, tenant: &str) -> Option<u64> {
        self.idle_longest(|slot| slot.tenant.as_deref() == Some(tenant))
    }

    /// Like `evictable_of`, among the workers that run the tenant's code for other callers.
    pub(super) fn evictable_lent_by(&self, tenant: &str) -> Option<u64> {
        self.idle_longest(|slot| slot.lent && slot.tenant.as_deref() == Some(tenant))
    }

    fn idle_longest(&self, counts: impl Fn(&PoolSlot) -> bool) -> Option<u64> {
        let idle = self.slots.iter();
        let idle = idle.filter(|(_, slot)| slot.idle_until().is_some() && counts(slot));
        idle.min_by_key(|(_, slot)| slot.idle_since)
            .map(|(worker, _)| *worker)
    }

    /// An operation as the tenant of this worker runs it. `None` for a worker without a tenant.
    pub(super) fn operation_in(&self, worker: u64, operation: Bytes32) -> Option<TenantOperation> {
        let slot = self.slots.get(&worker)?;
        Some(TenantOperation {
            tenant: slot.tenant.clone()?,
            lent: slot.lent,
            operation,
        })
    }

    /// The tenant of a worker. `None` for a worker without a tenant.
    pub(super) fn tenant_of_worker(&self, worker: u64) -> Option<&str> {
        self.slots.get(&worker)?.tenant.as_deref()
    }

    /// Number of workers that the tenant has, of all roles.
    pub(super) fn of_tenant(&self, tenant: &str) -> usize {
        let own = |slot: &&PoolSlot| {
            slot.phase != WorkerPhase::Leaving && slot.tenant.as_deref() == Some(tenant)
        };
        self.slots.values().filter(own).count()
    }

    /// The part of these that run the tenant's code for other callers.
    pub(super) fn lent_by(&self, tenant: &str) -> usize {
        self.lent_slots(tenant).count()
    }

    /// The part of these in which something runs for a caller.
    pub(super) fn lent_in_use(&self, tenant: &str) -> usize {
        self.lent_slots(tenant)
            .filter(|slot| slot.is_busy())
            .count()
    }

    /// The part of these in which something runs for this caller, also beside others' sessions: two callers in the
    /// same workers could otherwise keep all of them.
    pub(super) fn lent_to(&self, tenant: &str, caller: &str) -> usize {
        self.lent_slots(tenant)
            .filter(|slot| slot.serves(caller))
            .count()
    }

    /// The tenant of a worker that runs its code for other callers.
    pub(super) fn lender(&self, worker: u64) -> Option<&str> {
        let slot = self.slots.get(&worker).filter(|slot| slot.lent)?;
        slot.tenant.as_deref()
    }

    /// Whether something runs in the worker for this caller.
    pub(super) fn serves(&self, worker: u64, caller: &str) -> bool {
        let slot = self.slots.get(&worker);
        slot.is_some_and(|slot| slot.serves(caller))
    }

    /// Whether something runs in the worker for any caller.
    pub(super) fn is_busy(&self, worker: u64) -> bool {
        self.slots.get(&worker).is_some_and(PoolSlot::is_busy)
    }

    /// The workers that run the tenant's code for other callers.
    fn lent_slots(&self, tenant: &str) -> impl Iterator<Item = &PoolSlot> {
        self.slots.values().filter(move |slot| {
            slot.lent
                && slot.phase != WorkerPhase::Leaving
                && slot.tenant.as_deref() == Some(tenant)
        })
    }

    /// The largest worker, by its bytes, of the tenant whose workers hold most together. It is not the largest of
    /// all: otherwise a tenant with many small workers could end that of another.
    pub(super) fn largest_of_heaviest(&self, held: &[(u64, u64)]) -> Option<u64> {
        let heaviest = self.heaviest(held)?;
        let largest = heaviest.workers.into_iter().max_by_key(|(_, bytes)| *bytes);
        largest.map(|(worker, _)| worker)
    }

    /// The tenant whose workers hold most together, and these workers with their bytes. Workers without a tenant
    /// count as those of one tenant.
    pub(super) fn heaviest(&self, held: &[(u64, u64)]) -> Option<HeaviestTenant<'_>> {
        let tenant = |worker: u64| self.slots.get(&worker)?.tenant.as_deref();
        let mut together: BTreeMap<Option<&str>, u64> = BTreeMap::new();
        for (worker, bytes) in held {
            *together.entry(tenant(*worker)).or_default() += bytes;
        }
        let (heaviest, _) = together.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        let all = held.iter().copied();
        let its = all.filter(|(worker, _)| tenant(*worker) == heaviest);
        Some(HeaviestTenant {
            tenant: heaviest,
            workers: its.collect(),
        })
    }

    /// Number of workers of the role that any tenant may get, now or once they are ready.
    pub(super) fn free(&self, role: WorkerRole) -> usize {
        let free = |slot: &&PoolSlot| slot.role == role && slot.is_free();
        self.slots.values().filter(free).count()
    }

    /// Number of workers that are not leaving.
    pub(super) fn len(&self) -> usize {
        let staying = |slot: &&PoolSlot| slot.phase != WorkerPhase::Leaving;
        self.slots.values().filter(staying).count()
    }
}

impl PoolSlot {
    /// Whether something runs for this caller.
    fn serves(&self, caller: &str) -> bool {
        self.callers.contains_key(caller)
    }

    /// Whether something runs for a caller.
    fn is_busy(&self) -> bool {
        !self.callers.is_empty()
    }

    /// Whether any tenant may get it, now or once it is ready.
    fn is_free(&self) -> bool {
        self.tenant.is_none() && !self.reserved && self.phase != WorkerPhase::Leaving
    }

    fn takes(&self, lease: &WorkerLease) -> bool {
        let tenant = self.tenant.as_ref();
        self.phase == WorkerPhase::Ready
            && self.role == lease.role
            && !self.reserved
            && lease.binds.is_empty()
            && tenant.is_none_or(|tenant| {
                *tenant == lease.tenant
                    && self.lent == lease.lent
                    && self.rights == lease.rights
                    && !self.alone
                    && !lease.alone
            })
            && self.sessions < SESSIONS_MAX
            && self.served < SESSIONS_SERVED_MAX
    }

    /// The time until which it waits for a session, once it has none.
    fn idle_until(&self) -> Option<u64> {
        let waits = self.served > 0 || self.lingers;
        if self.phase != WorkerPhase::Ready || !waits || self.sessions > 0 {
            return None;
        }
        // Such a worker takes no further session, so that it need not wait for one.
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

    fn lease(tenant: &str) -> WorkerLease {
        WorkerLease::new(WorkerRole::Js, tenant)
    }

    fn pool(workers: usize) -> WorkerPool {
        let mut pool = WorkerPool::default();
        for _ in 0..workers {
            let worker = pool.add(WorkerRole::Js, false);
            pool.ready(worker);
        }
        pool
    }

    #[test]
    fn tenants_never_share_a_worker_and_sessions_of_one_do() {
        let mut pool = pool(2);
        let a = pool.assign(&lease("a")).expect("a worker");
        let b = pool.assign(&lease("b")).expect("another");
        assert_ne!(a, b);
        for _ in 1..SESSIONS_MAX {
            assert_eq!(pool.assign(&lease("a")), Some(a));
        }
        assert_eq!(pool.assign(&lease("a")), None, "the worker is full");
        assert_eq!(pool.assign(&lease("c")), None);
        for _ in 0..SESSIONS_MAX {
            pool.release(a, 0);
        }
        assert_eq!(pool.assign(&lease("c")), None, "it was a's once");
        assert_eq!(pool.assign(&lease("a")), Some(a));
    }

    #[test]
    fn sessions_with_other_rights_do_not_share_a_worker() {
        let mut pool = pool(2);
        let with = |digest| lease("a").with_rights(Bytes32([digest; 32]));
        let first = pool.assign(&with(1)).expect("a worker");
        assert_eq!(pool.assign(&with(1)), Some(first), "equal rights share");
        let second = pool.assign(&with(2)).expect("another");
        assert_ne!(first, second);
        // Also once the first ones have gone: their code may have stayed.
        pool.release(first, 0);
        pool.release(first, 0);
        assert_eq!(pool.assign(&with(3)), None);
        assert_eq!(pool.assign(&lease("a")), None);
        assert_eq!(pool.assign(&with(1)), Some(first));
    }

    #[test]
    fn who_wants_to_be_alone_is() {
        let mut pool = pool(2);
        let first = pool.assign(&lease("a").alone()).expect("a worker");
        let second = pool.assign(&lease("a")).expect("another");
        assert_ne!(first, second);
        assert_eq!(pool.assign(&lease("a").alone()), None, "neither is free");
        pool.release(first, 7);
        assert_eq!(pool.expired(7), Some(first), "no other worker may come");
    }

    #[test]
    fn a_worker_waits_a_while_for_its_tenant() {
        let mut pool = pool(1);
        assert_eq!(pool.deadline(), None, "a fresh one waits for ever");
        let a = pool.assign(&lease("a")).expect("a worker");
        pool.release(a, 5);
        let linger = u64::try_from(LINGER.as_micros()).expect("short");
        assert_eq!(pool.deadline(), Some(5 + linger));
        assert_eq!(pool.expired(4 + linger), None);
        assert_eq!(pool.evictable(), Some(a));
        assert_eq!(pool.expired(5 + linger), Some(a));
        pool.leave(a);
        assert_eq!((pool.expired(u64::MAX), pool.len()), (None, 0));
    }

    /// Workers whose callers gave up while they started would otherwise stay for ever.
    #[test]
    fn one_that_was_started_for_a_caller_that_gave_up_waits_a_while_for_another() {
        let linger = u64::try_from(LINGER.as_micros()).expect("short");
        let mut pool = pool(2);
        pool.linger(1, 2, 3);
        assert_eq!(pool.deadline(), None, "two are to stay");
        pool.linger(1, 1, 5);
        pool.linger(2, 1, 5);
        assert_eq!(pool.deadline(), Some(5 + linger));
        assert_eq!(pool.expired(4 + linger), None);
        assert_eq!(pool.expired(5 + linger), Some(1), "not the warm one");
        assert_eq!(pool.assign(&lease("a")), Some(1));
        assert_eq!(pool.deadline(), None, "it has a session");
        // It waits for its tenant from when the session ended, and a second call changes nothing.
        pool.linger(1, 0, 6);
        pool.release(1, 7);
        assert_eq!(pool.deadline(), Some(7 + linger));
    }

    #[test]
    fn one_that_no_tenant_wanted_makes_room_after_those_that_wait_for_theirs() {
        let mut pool = pool(2);
        let a = pool.assign(&lease("a")).expect("a worker");
        let fresh = pool.evictable().expect("the other");
        assert_ne!(fresh, a, "it has a session");
        assert_eq!(pool.evictable_of("a"), None);
        pool.release(a, 5);
        assert_eq!(
            (pool.evictable(), pool.evictable_of("a")),
            (Some(a), Some(a))
        );
        assert_eq!(pool.evictable_of("b"), None);
        pool.leave(a);
        assert_eq!((pool.evictable(), pool.of_tenant("a")), (Some(fresh), 0));
        let starting = pool.add(WorkerRole::Gpu, false);
        pool.leave(fresh);
        assert_eq!(pool.evictable(), None, "{starting} is not ready");
    }

    /// Four of one tenant, each a little smaller than the only one of another.
    #[test]
    fn the_largest_holder_loses_a_worker_and_not_the_holder_of_the_largest() {
        let mut pool = pool(5);
        let many: Vec<u64> = (0..4)
            .filter_map(|_| pool.assign(&lease("many").alone()))
            .collect();
        let one = pool.assign(&lease("one")).expect("the fifth");
        let mut held: Vec<(u64, u64)> = many.iter().map(|worker| (*worker, 90)).collect();
        held.push((one, 100));
        held[2].1 = 95;
        assert_eq!(pool.largest_of_heaviest(&held), Some(many[2]));
        let whole = pool.heaviest(&held).expect("workers");
        assert_eq!(whole.tenant, Some("many"));
        assert_eq!(whole.workers, held[..4]);
        assert_eq!(pool.largest_of_heaviest(&held[3..]), Some(one));
        assert_eq!(pool.largest_of_heaviest(&[]), None);
    }

    #[test]
    fn a_worker_is_replaced_after_its_sessions() {
        let mut pool = pool(1);
        let mut worker = None;
        for _ in 0..SESSIONS_SERVED_MAX {
            worker = pool.assign(&lease("a"));
            pool.release(worker.expect("the worker"), 3);
        }
        assert_eq!(pool.assign(&lease("a")), None);
        assert_eq!(pool.expired(3), worker);
    }

    #[test]
    fn folders_are_for_the_lease_that_brings_them() {
        let mut pool = WorkerPool::default();
        let bind = Bind {
            source: "/data".to_owned(),
            name: "objects".to_owned(),
            writable: false,
        };
        let lease = WorkerLease::new(WorkerRole::Git, "a").with(bind);
        let worker = pool.add(WorkerRole::Git, true);
        assert!(!pool.bind(worker, &lease), "it is not ready");
        pool.ready(worker);
        assert_eq!(pool.free(WorkerRole::Git), 0);
        assert_eq!(pool.assign(&lease), None);
        assert_eq!(pool.assign(&WorkerLease::new(WorkerRole::Git, "a")), None);
        assert!(pool.bind(worker, &lease));
    }
}
