//! The starts of workers, from the process on until it is ready.

use super::WorkerSupervisor;
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
    /// would otherwise start one more worker with every few tries. The starts go on, for the next leases. A lease with
    /// folders stays, as only its own worker has them.
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
}
