//! Ends of workers: by us, by themselves, by the kernel.

use rustix::event::epoll;

use super::Supervisor;
use super::incoming::Wrong;
use crate::frame::channel::Read;
use crate::host::spawn::Job;
use crate::host::worker::State;
use crate::{CallError, Cause, Loss, Reason};

impl Supervisor {
    /// A call did not stop when it was told to.
    pub(super) fn kill_for(&mut self, number: u64, id: u64, cause: Cause) {
        let worker = self.workers.get_mut(&number);
        if let Some(worker) = worker
            && let Some(running) = worker.calls.get(&id)
        {
            worker.limit_at = running.watch.ended().map(|(_, at)| at);
        }
        self.end(number, cause.into(), "");
    }

    /// Kills a worker and answers for it, at once.
    pub(super) fn end(&mut self, number: u64, reason: Reason, detail: &str) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        if matches!(worker.state, State::Dying(..)) {
            return;
        }
        worker.kill();
        let starting = !worker.was_ready;
        worker.state = State::Dying(reason, detail.to_owned());
        let (role, pid) = (worker.role, worker.pid());
        if reason.is_crash() || starting {
            tracing::warn!(%role, pid, %reason, detail, "a worker was killed");
        } else {
            tracing::debug!(%role, pid, %reason, detail, "a worker was ended");
        }
        self.silence(number);
        let loss = Loss {
            reason,
            signal: None,
            detail: detail.to_owned(),
        };
        self.answer_all(number, &loss);
        if starting && !matches!(reason, Reason::Relieved | Reason::Shutdown) {
            self.start_failed(number, role, detail);
        }
    }

    /// Its socket is not listened to any more.
    pub(super) fn silence(&self, number: u64) {
        if let Some(worker) = self.workers.get(&number) {
            // It may be gone from there already.
            let _ = epoll::delete(&self.epoll, worker.socket());
        }
    }

    /// Answers every call in a lost worker, and closes its sessions.
    fn answer_all(&mut self, number: u64, loss: &Loss) {
        let now = self.now();
        self.pool.leave(number);
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let calls = std::mem::take(&mut worker.calls);
        let sessions = std::mem::take(&mut worker.sessions);
        let alone = calls.len() == 1;
        for running in calls.into_values() {
            if let Some(operation) = running.operation
                && alone
                && loss.reason.is_crash()
                && self.book.crashed(operation, now)
            {
                tracing::warn!(?operation, "an operation is in quarantine");
            }
            let error = match running.watch.ended() {
                Some((cause, _)) => CallError::Limit {
                    cause,
                    killed: true,
                },
                None => CallError::Lost(loss.clone()),
            };
            // Whoever asked may have gone.
            let _ = running.reply.send(Err(error));
        }
        for sid in sessions {
            self.sessions.remove(&sid);
        }
        let mut counted = self.count();
        counted.now.sessions = self.sessions.len() as u64;
        counted.now.quarantined = self.book.len() as u64;
    }

    /// The process has ended. What it said before still counts.
    pub(super) fn process_ended(&mut self, number: u64, scratch: &mut [u8]) {
        loop {
            let Some(worker) = self.workers.get_mut(&number) else {
                return;
            };
            if !matches!(worker.state, State::Starting { .. } | State::Ready) {
                break;
            }
            match worker.read(scratch) {
                Ok(Read::Some(_)) => self.read_rest(number),
                Ok(Read::End | Read::Wait) | Err(_) => break,
            }
        }
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let Some(exit) = worker.collect() else {
            return;
        };
        worker.listen(scratch);
        let loss = worker.judge(exit);
        let (role, pid, limit_at) = (worker.role, worker.pid(), worker.limit_at);
        let by_us = matches!(worker.state, State::Dying(..));
        // Whoever waits for a worker that we ended has been told then.
        let starting = !worker.was_ready && !by_us;
        let leaf = worker.take_leaf();
        if !by_us {
            tracing::warn!(%role, pid, %loss, "a worker was lost");
        }
        self.answer_all(number, &loss);
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
            let _ = self.jobs.send(Job::Remove(leaf));
        }
        let now = self.now();
        {
            let mut counted = self.count();
            counted.ended(role, loss.reason);
            if let Some(at) = limit_at {
                counted.died(now.saturating_sub(at));
            }
        }
        if starting {
            self.start_failed(number, role, &loss.to_string());
        }
    }

    fn read_rest(&mut self, number: u64) {
        if let Err(Wrong(_, why)) = self.take_messages(number) {
            tracing::debug!(
                worker = number,
                why,
                "the last words of a worker make no sense"
            );
        }
    }
}
