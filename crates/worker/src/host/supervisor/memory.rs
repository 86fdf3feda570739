//! The memory that workers hold: of one, of all together, and of one tenant when the machine runs short.

use std::cmp::Reverse;

use super::{LeaseWaiter, RecentRelief, WorkerSupervisor};
use crate::host::worker::WorkerState;
use crate::limits::{MEMORY_LOOK_EVERY, RELIEF_PAUSE};
use crate::{WorkerEndReason, WorkerError};

impl WorkerSupervisor {
    /// Checks the memory of a worker, for workers without a cgroup and for memory that a cgroup does not count.
    pub(super) fn check_memory(&mut self, number: u64, now: u64) {
        let every = u64::try_from(MEMORY_LOOK_EVERY.as_micros()).unwrap_or(u64::MAX);
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        // A check reads /proc: it is made now and then, and only while a call runs.
        if worker.calls.is_empty() || now < worker.memory_checked_at.saturating_add(every) {
            return;
        }
        worker.memory_checked_at = now;
        // A read that fails says nothing about the worker: with 0 bytes it would be within its limit, and the host would end
        // the workers of others to make room. The value of the last check stays until the worker's end is seen.
        let Some(bytes) = worker.private_bytes() else {
            return;
        };
        // The sum over all workers uses the value of each one's last check.
        worker.held = bytes;
        let most = worker.memory_max();
        if bytes > most {
            let why = format!("{bytes} bytes are more than {most}");
            self.end(number, WorkerEndReason::Memory, &why);
            return;
        }
        self.check_all_memory();
    }

    /// If all workers hold more than the machine has for them, ends the largest one of the tenant that holds most.
    fn check_all_memory(&mut self) {
        let held = self.held();
        let all: u64 = held.iter().map(|(_, bytes)| bytes).sum();
        let most = self.config.memory_bytes;
        // Each worker may be within its own limit while all of them together are not.
        if all <= most {
            return;
        }
        let Some(number) = self.pool.largest_of_heaviest(&held) else {
            return;
        };
        let its = self.workers.get(&number).map_or(0, |worker| worker.held);
        let why = format!("{its} of the {all} bytes that workers hold, which are more than {most}");
        self.end(number, WorkerEndReason::Memory, &why);
    }

    /// Living workers, and the bytes that each held at the last check.
    fn held(&self) -> Vec<(u64, u64)> {
        let living = self.workers.iter();
        let living = living.filter(|(_, worker)| !matches!(worker.state, WorkerState::Dying(..)));
        living
            .map(|(number, worker)| (*number, worker.held))
            .collect()
    }

    /// If the workers of the tenant that holds most hold more than `least`, ends the largest of them until they hold
    /// no more than that, or than those of the next tenant. A tenant to which this happens again so soon gets no
    /// worker for a while. Returns how many ended.
    pub(super) fn relieve(&mut self, least: u64) -> usize {
        // Workers without a call are not checked otherwise, and hold what their sessions left.
        for worker in self.workers.values_mut() {
            // A dying one does not count below. The thread that reads how much memory a process has may be the last one that
            // holds it, and would then free all of it.
            if !matches!(worker.state, WorkerState::Dying(..))
                && let Some(bytes) = worker.private_bytes()
            {
                worker.held = bytes;
            }
        }
        let held = self.held();
        let Some(heaviest) = self.pool.heaviest(&held) else {
            return 0;
        };
        let (bytes, mut its) = (heaviest.bytes(), heaviest.workers);
        let (Some(tenant), true) = (heaviest.tenant, bytes > least) else {
            return 0;
        };
        let tenant = tenant.to_owned();
        let others = held.iter().copied().filter(|one| !its.contains(one));
        let others: Vec<_> = others.collect();
        let next = self.pool.heaviest(&others);
        // The tenant comes down to what the next one holds, and no further: from there on it is not the heaviest.
        let most = next.map_or(0, |next| next.bytes()).max(least);
        // The largest one first: then the fewest sessions end.
        its.sort_by_key(|(_, bytes)| Reverse(*bytes));
        let (mut left, mut ended) = (bytes, 0);
        for (number, bytes) in its {
            if left <= most {
                break;
            }
            let why = format!("{bytes} of the {left} bytes of its tenant's when memory ran short");
            // This is no fault of the code that runs in it: it is within its limit.
            self.end(number, WorkerEndReason::Relieved, &why);
            left -= bytes;
            ended += 1;
        }
        tracing::warn!(
            ?tenant,
            workers = ended,
            bytes,
            left,
            "memory ran short: workers were ended"
        );
        self.note_relief(tenant);
        ended
    }

    fn note_relief(&mut self, tenant: String) {
        let now = self.now();
        let pause = u64::try_from(RELIEF_PAUSE.as_micros()).unwrap_or(u64::MAX);
        let until = now.saturating_add(pause);
        self.relieved.retain(|_, relieved| relieved.until > now);
        // A tenant that fills the memory for the second time within the pause would do so once more.
        let again = self.relieved.contains_key(&tenant);
        if again {
            let waiting = std::mem::take(&mut self.waiting).into_iter();
            let (its, others) = waiting.partition(|waiting| waiting.lease.tenant == tenant);
            self.waiting = others;
            let its: Vec<LeaseWaiter> = its;
            for waiting in its {
                if let Some(own) = waiting.worker {
                    self.end(own, WorkerEndReason::Relieved, "its lease was refused");
                }
                // The caller may have gone.
                let _ = waiting.reply.send(Err(WorkerError::Relieved));
            }
        }
        self.relieved.insert(tenant, RecentRelief { until, again });
    }
}
