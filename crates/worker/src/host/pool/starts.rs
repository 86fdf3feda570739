//! For which tenants workers start. A worker that starts has no tenant, and any tenant may get it; it counts for the one
//! whose lease it was started for, or a tenant whose callers give up early would start more than its share.

use std::collections::BTreeMap;

use super::{PoolSlot, WorkerPhase, WorkerPool};
use crate::WorkerRole;
use crate::host::WorkerLease;

/// The tenant for whose lease a worker starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct StartingFor {
    tenant: String,
    /// Whether it is to run the tenant's code for other callers.
    lent: bool,
}

impl StartingFor {
    pub(in crate::host) fn new(tenant: &str, lent: bool) -> Self {
        Self {
            tenant: tenant.to_owned(),
            lent,
        }
    }

    pub(in crate::host) fn lease(lease: &WorkerLease) -> Self {
        Self::new(&lease.tenant, lease.lent)
    }
}

impl WorkerPool {
    /// Notes for whose lease a worker starts. A reserved one counts with its lease, which waits until it is ready.
    pub(in crate::host) fn start_for(&mut self, worker: u64, tenant: StartingFor) {
        if let Some(slot) = self.slots.get_mut(&worker)
            && !slot.reserved
        {
            slot.started_for = Some(tenant);
        }
    }

    /// Number of workers of the role that start for the tenant's leases, whether their callers wait or have given up;
    /// with `lent`, for leases of other callers alone.
    pub(in crate::host) fn starting_for(
        &self,
        tenant: &str,
        role: WorkerRole,
        lent: bool,
    ) -> usize {
        let counts = |slot: &&PoolSlot| {
            slot.phase == WorkerPhase::Starting
                && slot.role == role
                && slot
                    .started_for
                    .as_ref()
                    .is_some_and(|of| of.tenant == tenant && (of.lent || !lent))
        };
        self.slots.values().filter(counts).count()
    }

    /// The tenants for whose leases workers of the role start, and whether these leases are for other callers, with the
    /// number of these workers.
    pub(in crate::host) fn starting_tenants(
        &self,
        role: WorkerRole,
    ) -> BTreeMap<(&str, bool), usize> {
        let starts = self.slots.values();
        let starts = starts.filter(|slot| slot.phase == WorkerPhase::Starting && slot.role == role);
        let mut tenants = BTreeMap::new();
        for of in starts.filter_map(|slot| slot.started_for.as_ref()) {
            *tenants.entry((of.tenant.as_str(), of.lent)).or_default() += 1;
        }
        tenants
    }

    /// Counts one worker of the role that starts for a tenant for another one.
    pub(in crate::host) fn hand_start(
        &mut self,
        role: WorkerRole,
        from: &StartingFor,
        to: StartingFor,
    ) {
        let is_from = |slot: &&mut PoolSlot| {
            slot.phase == WorkerPhase::Starting
                && slot.role == role
                && slot.started_for.as_ref() == Some(from)
        };
        if let Some(slot) = self.slots.values_mut().find(is_from) {
            slot.started_for = Some(to);
        }
    }

    /// Notes that a lease that waited has taken this worker, which became ready. If it was started for another tenant's
    /// lease, the worker that starts for this one is now the other's.
    pub(in crate::host) fn trade_start(&mut self, worker: u64, lease: &WorkerLease) {
        let Some(slot) = self.slots.get_mut(&worker) else {
            return;
        };
        // A later session shares a worker that an earlier lease has taken.
        if slot.served != 1 {
            return;
        }
        let taken = slot.started_for.take();
        let own = Some(StartingFor::lease(lease));
        if taken == own {
            return;
        }
        let of_lease = |slot: &&mut PoolSlot| {
            slot.phase == WorkerPhase::Starting
                && slot.role == lease.role
                && slot.started_for == own
        };
        if let Some(slot) = self.slots.values_mut().find(of_lease) {
            slot.started_for = taken;
        }
    }

    /// Counts a worker that is ready for no tenant, unless a lease has taken it.
    pub(in crate::host) fn forget_start(&mut self, worker: u64) {
        if let Some(slot) = self.slots.get_mut(&worker) {
            slot.started_for = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(tenant: &str) -> WorkerLease {
        WorkerLease::new(WorkerRole::Js, tenant)
    }

    /// A tenant whose callers give up would otherwise have none of the workers that start for them.
    #[test]
    fn a_worker_that_starts_counts_for_the_tenant_of_its_lease_until_it_is_ready() {
        let mut pool = WorkerPool::default();
        let [own, lent] = [lease("a"), lease("a").lent()];
        let start = |lease: &WorkerLease| {
            let worker = pool.add(WorkerRole::Js, false);
            pool.start_for(worker, StartingFor::lease(lease));
            worker
        };
        let [first, second, third] = [&own, &lent, &lease("b")].map(start);
        let counts = |pool: &WorkerPool| {
            let count = |tenant, lent| pool.starting_for(tenant, WorkerRole::Js, lent);
            [count("a", false), count("a", true), count("b", false)]
        };
        assert_eq!(counts(&pool), [2, 1, 1]);
        assert_eq!(pool.starting_for("a", WorkerRole::Gpu, false), 0);
        // The worker of b's lease takes no session of b, but one of a, for which the second starts.
        pool.ready(third);
        assert_eq!(counts(&pool), [2, 1, 0]);
        assert_eq!(pool.assign(&lent), Some(third));
        pool.trade_start(third, &lent);
        assert_eq!(counts(&pool), [1, 0, 1], "the second is b's now");
        pool.ready(second);
        assert_eq!(pool.assign(&lease("b")), Some(second));
        pool.trade_start(second, &lease("b"));
        assert_eq!(counts(&pool), [1, 0, 0]);
        // Another lease has that of a, whose caller gave up.
        pool.ready(first);
        pool.forget_start(first);
        assert_eq!(counts(&pool), [0, 0, 0]);
        let reserved = pool.add(WorkerRole::Js, true);
        pool.start_for(reserved, StartingFor::lease(&own));
        assert_eq!(counts(&pool), [0, 0, 0], "its lease counts");
    }

    /// The supervisor looks at each tenant once, however many workers start for it.
    #[test]
    fn the_starts_of_a_tenant_are_counted_together() {
        let mut pool = WorkerPool::default();
        for lease in [lease("b"), lease("a"), lease("a").lent(), lease("a")] {
            let worker = pool.add(WorkerRole::Js, false);
            pool.start_for(worker, StartingFor::lease(&lease));
        }
        let starts = pool.starting_tenants(WorkerRole::Js).into_iter();
        let expected = [(("a", false), 2), (("a", true), 1), (("b", false), 1)];
        assert!(starts.eq(expected));
        assert!(pool.starting_tenants(WorkerRole::Gpu).is_empty());
    }
}
