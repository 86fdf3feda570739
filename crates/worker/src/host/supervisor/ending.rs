//! Ends of workers: by the host, by themselves, by the kernel.

use rustix::event::epoll;

use super::WorkerSupervisor;
use super::incoming::WorkerViolation;
use crate::frame::channel::ChannelRead;
use crate::host::spawn::SpawnJob;
use crate::host::worker::WorkerState;
use crate::{Bytes32, LimitCause, WorkerCallError, WorkerEndReason, WorkerLoss};

/// Target of what the log says of lost workers: code that has taken a worker over lets workers die as often as it
/// likes, with output of its own, so the log counts these records by `owner`.
pub const WORKER_LOSS_TARGET: &str = "alknet_worker::loss";

impl WorkerSupervisor {
    /// Kills a worker whose call did not stop at its limit.
    pub(super) fn kill_for(&mut self, number: u64, id: u64, cause: LimitCause, scratch: &mut [u8]) {
        // This thread waits for a processor as well: the answer may have come since it last read.
        self.read(number, scratch);
        let worker = self.workers.get_mut(&number);
        if let Some(worker) = worker
            && let Some(running) = worker.calls.get(&id)
        {
            worker.overrun = running.watch.overrun();
            self.end(number, cause.into(), "");
        }
    }

    /// Kills a worker, and answers its calls at once.
    pub(super) fn end(&mut self, number: u64, reason: WorkerEndReason, detail: &str) {
        let owner = self.pool.tenant_of_worker(number).unwrap_or_default();
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        if matches!(worker.state, WorkerState::Dying(..)) {
            return;
        }
        // The kill comes first: once its callers have their answers, no code of it runs any more.
        worker.kill();
        let starting = !worker.was_ready;
        worker.state = WorkerState::Dying(reason, detail.to_owned());
        let (role, pid) = (worker.role, worker.pid());
        if reason.is_crash() || starting {
            tracing::warn!(
                target: WORKER_LOSS_TARGET,
                owner,
                %role,
                pid,
                %reason,
                detail,
                "a worker was killed"
            );
        } else {
            tracing::debug!(%role, pid, %reason, detail, "a worker was ended");
        }
        self.silence(number);
        let loss = WorkerLoss {
            reason,
            signal: None,
            detail: detail.to_owned(),
            alone: false,
        };
        self.answer_all(number, loss);
        // These two ends do not say that the next start would fail.
        if starting
            && !matches!(
                reason,
                WorkerEndReason::Relieved | WorkerEndReason::Shutdown
            )
        {
            self.start_failed(number, role, detail);
        }
    }

    /// Whether crashes of its tenant's workers put the operation into quarantine.
    pub(super) fn is_quarantined(&self, sid: u64, operation: Bytes32) -> bool {
        let open = self.sessions.get(&sid);
        let known = open.and_then(|open| self.pool.operation_in(open.worker, operation));
        known.is_some_and(|known| self.crashes.is_quarantined(&known))
    }

    /// Stops listening to its socket.
    pub(super) fn silence(&self, number: u64) {
        if let Some(worker) = self.workers.get(&number) {
            // The socket may have been removed already.
            let _ = epoll::delete(&self.epoll, worker.socket());
        }
    }

    /// Answers every call in a lost worker, and closes its sessions.
    fn answer_all(&mut self, number: u64, mut loss: WorkerLoss) {
        let now = self.now();
        self.pool.leave(number);
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let calls = std::mem::take(&mut worker.calls);
        let sessions = std::mem::take(&mut worker.sessions);
        // With several calls the host does not know which of them crashed the worker.
        loss.alone = calls.len() == 1;
        for running in calls.into_values() {
            if let Some(operation) = running.operation
                && loss.alone
                && loss.reason.is_crash()
                && let Some(operation) = self.pool.operation_in(number, operation)
                && self.crashes.crashed(operation.clone(), now)
            {
                let owner = operation.tenant.as_str();
                tracing::warn!(
                    target: WORKER_LOSS_TARGET,
                    owner,
                    ?operation,
                    "an operation is in quarantine"
                );
            }
            let error = match running.watch.ended() {
                Some((cause, _)) => WorkerCallError::Limit {
                    cause,
                    killed: true,
                },
                None => WorkerCallError::Lost(loss.clone()),
            };
            // The caller may have gone.
            let _ = running.reply.send(Err(error));
        }
        for sid in sessions {
            self.sessions.remove(&sid);
        }
        let mut stats = self.count();
        stats.now.sessions = self.sessions.len() as u64;
        stats.now.quarantined = self.crashes.len() as u64;
    }

    /// Handles the end of a process. Messages that it sent before still count.
    pub(super) fn process_ended(&mut self, number: u64, scratch: &mut [u8]) {
        loop {
            let Some(worker) = self.workers.get_mut(&number) else {
                return;
            };
            if !matches!(
                worker.state,
                WorkerState::Starting { .. } | WorkerState::Ready
            ) {
                break;
            }
            match worker.read(scratch) {
                Ok(ChannelRead::Some(_)) => self.read_rest(number),
                Ok(ChannelRead::End | ChannelRead::Wait) | Err(_) => break,
            }
        }
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let Some(exit) = worker.collect() else {
            return;
        };
        // The output is read before the end is judged, because its last lines are a part of the loss.
        worker.listen(scratch);
        let loss = worker.judge(exit);
        let (role, pid, overrun) = (worker.role, worker.pid(), worker.overrun);
        let by_us = matches!(worker.state, WorkerState::Dying(..));
        // Callers that wait for a worker that the host ended have their answer already.
        let starting = !worker.was_ready && !by_us;
        let leaf = worker.take_leaf();
        if !by_us {
            let owner = self.pool.tenant_of_worker(number).unwrap_or_default();
            tracing::warn!(
                target: WORKER_LOSS_TARGET,
                owner,
                %role,
                pid,
                %loss,
                "a worker was lost"
            );
        }
        self.answer_all(number, loss.clone());
        if let Some(worker) = self.workers.get(&number) {
            for fd in [worker.socket(), worker.pidfd(), worker.output()] {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        self.workers.remove(&number);
        self.sandboxes.remove(&number);
        self.forget(number, role);
        if let Some(leaf) = leaf {
            // The spawner lives as long as this thread.
            let _ = self.jobs.send(SpawnJob::Remove(leaf));
        }
        let now = self.now();
        {
            let mut stats = self.count();
            stats.ended(role, loss.reason);
            if let Some(overrun) = overrun {
                stats.died(now.saturating_sub(overrun.reached_at), overrun.waited);
            }
        }
        if starting {
            self.start_failed(number, role, &loss.to_string());
        }
    }

    fn read_rest(&mut self, number: u64) {
        if let Err(WorkerViolation(_, why)) = self.take_messages(number) {
            tracing::debug!(
                worker = number,
                why,
                "the last words of a worker make no sense"
            );
        }
    }
}
