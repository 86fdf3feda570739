//! The starts of workers, from the process on until it is ready.

use std::collections::BTreeMap;

use super::WorkerSupervisor;
use super::opening::workers_for;
use crate::host::WorkerLease;
use crate::host::pool::StartingFor;
use crate::host::spawn::SpawnedWorker;
use crate::host::start_watch::StartWatch;
use crate::host::worker::{WorkerProcess, WorkerState};
use crate::sys::{can_run, process_cpu_us};
use crate::{WorkerEndReason, WorkerRole};

impl WorkerSupervisor {
    /// Handles a worker that the spawner has started, or could not start.
    pub(super) fn started(&mut self, number: u64, born: Result<SpawnedWorker, String>) {
        let Some((role, binds)) = self.starting.remove(&number) else {
            return;
        };
        let watch = StartWatch::new(self.now(), self.config.start);
        match born {
            Ok(born) => {
                let memory = self.config.memory_of(role, 0);
                let unread = self.config.unread;
                let worker = WorkerProcess::new(born, role, binds, watch, memory, unread);
                self.count().started(role);
                let registered = self.listen_to(number, &worker);
                self.workers.insert(number, worker);
                if let Err(errno) = registered {
                    self.end(number, WorkerEndReason::Start, &errno.to_string());
                } else if self.ending.is_some() {
                    self.end(number, WorkerEndReason::Shutdown, "");
                }
            }
            Err(why) => {
                self.forget(number, role);
                tracing::warn!(%role, %why, "a worker could not be started");
                self.start_failed(number, role, &why);
            }
        }
    }

    /// Looks at a worker that is not ready, if that is due, and ends it if its start takes too long.
    pub(super) fn look_at_start(&mut self, number: u64, now: u64) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let pid = worker.pid();
        let WorkerState::Starting(watch) = &mut worker.state else {
            return;
        };
        // A worker that hangs at its start would keep its slot for ever.
        if watch.is_over(now, || process_cpu_us(pid), || can_run(pid)) {
            let detail = format!("it did not get ready {}", worker.last_words());
            self.end(number, WorkerEndReason::Start, &detail);
        }
    }

    /// Forgets the leases whose callers gave up while a worker started: a caller that tries again with a short deadline
    /// would otherwise start one more worker with every few tries. The starts go on, for the next leases, and count
    /// for the tenant until they are over. A lease with folders stays, as only its own worker has them.
    pub(super) fn forget_given_up(&mut self) {
        self.waiting
            .retain(|waiting| waiting.worker.is_some() || !waiting.reply.is_closed());
    }

    /// Has a worker that became ready, and that no lease took, wait no longer for one than it would wait for its tenant,
    /// unless it is one of those to be kept ready.
    pub(super) fn note_surplus(&mut self, number: u64, role: WorkerRole) {
        let least = self.config.role(role).map_or(0, |config| config.min_idle);
        let now = self.now();
        self.pool.linger(number, least, now);
    }

    /// Notes that a new lease waits for a worker that starts already. Of a tenant with more starts than its waiting leases
    /// take, one counts for the tenant of this lease from now on: the other tenant does not get that worker any more, and
    /// would be refused another one for it.
    pub(super) fn hand_surplus_start(&mut self, lease: &WorkerLease) {
        let role = lease.role;
        let starts = self.pool.starting_tenants(role);
        let leases = self.leases_of_tenants(role, Some(lease));
        let wanted = |tenant: &(&str, bool)| {
            let leases = leases.get(tenant).into_iter().flatten();
            workers_for(leases.copied())
        };
        let own = (lease.tenant.as_str(), lease.lent);
        if starts.get(&own).is_some_and(|has| *has >= wanted(&own)) {
            return;
        }
        let mut tenants = starts.iter();
        let surplus = tenants.find(|(tenant, has)| **has > wanted(tenant));
        let surplus = surplus.map(|((tenant, lent), _)| StartingFor::new(tenant, *lent));
        if let Some(surplus) = surplus {
            self.pool
                .hand_start(role, &surplus, StartingFor::lease(lease));
        }
    }

    /// The waiting leases, and `also`, that take a new worker of the role without folders, by their tenants and by
    /// whether they are for other callers.
    fn leases_of_tenants<'a>(
        &'a self,
        role: WorkerRole,
        also: Option<&'a WorkerLease>,
    ) -> BTreeMap<(&'a str, bool), Vec<&'a WorkerLease>> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.lease);
        let leases = waiting.chain(also);
        let leases = leases.filter(|lease| lease.role == role && lease.binds.is_empty());
        let mut of_tenants: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for lease in leases {
            let tenant = (lease.tenant.as_str(), lease.lent);
            of_tenants.entry(tenant).or_default().push(lease);
        }
        of_tenants
    }

    /// The tenants whose waiting leases take more new workers of the role than start for them, once for each such
    /// worker.
    pub(super) fn missing_starts(&self, role: WorkerRole) -> Vec<StartingFor> {
        let starts = self.pool.starting_tenants(role);
        let mut missing = Vec::new();
        for (tenant, leases) in self.leases_of_tenants(role, None) {
            let first = StartingFor::lease(leases[0]);
            // Starts for the tenant's own leases are not those for leases of other callers.
            let starting = starts.get(&tenant).copied().unwrap_or_default();
            let wanted = workers_for(leases.into_iter());
            missing.extend(vec![first; wanted.saturating_sub(starting)]);
        }
        missing
    }
}

/// Number of new workers that one tenant will have once all starts are over: those that these leases take, and those of
/// each role that `starting` has beyond them, whose callers gave up.
pub(super) fn workers_to_come<'a>(
    leases: impl Iterator<Item = &'a WorkerLease>,
    starting: impl Fn(WorkerRole) -> usize,
) -> usize {
    // A lease with folders has a worker of its own, which no other lease takes.
    let (with_folders, plain): (Vec<_>, Vec<_>) = leases.partition(|lease| !lease.binds.is_empty());
    let of_roles = WorkerRole::ALL.into_iter().map(|role| {
        let own = plain.iter().copied().filter(|lease| lease.role == role);
        workers_for(own).max(starting(role))
    });
    with_folders.len() + of_roles.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bind, Bytes32};

    /// A tenant with short deadlines starts workers whose callers give up, of one role after the other.
    #[test]
    fn starts_whose_callers_gave_up_count_as_the_tenants() {
        let of = |role| WorkerLease::new(role, "a");
        let rights = |digest| of(WorkerRole::Js).with_rights(Bytes32([digest; 32]));
        let abandoned = |role| match role {
            WorkerRole::Gpu => 3,
            WorkerRole::Js => 1,
            _ => 0,
        };
        let count = |leases: &[WorkerLease]| workers_to_come(leases.iter(), abandoned);
        assert_eq!(count(&[]), 4);
        assert_eq!(count(&[of(WorkerRole::Git)]), 5);
        // These take what starts.
        assert_eq!(count(&[of(WorkerRole::Gpu)]), 4);
        assert_eq!(count(&[rights(1)]), 4);
        assert_eq!(count(&[rights(1), rights(2)]), 5);
        let bind = Bind {
            source: "/data".to_owned(),
            name: "objects".to_owned(),
            writable: false,
        };
        assert_eq!(count(&[of(WorkerRole::Js).with(bind), rights(1)]), 5);
    }
}
