//! Frames on their way to workers.

use rustix::event::epoll;

use super::{KINDS, SOCKET, WorkerSupervisor};
use crate::WorkerEndReason;
use crate::host::worker::{FlushOutcome, WorkerState};

impl WorkerSupervisor {
    /// Sends as much as the worker's socket takes, and the rest when it is writable again or the worker has read the
    /// descriptors before it.
    pub(super) fn flush(&mut self, number: u64) {
        let now = self.now();
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        // A dying worker reads nothing.
        if matches!(worker.state, WorkerState::Dying(..)) {
            return;
        }
        // A closed socket is noticed by the next read.
        let flushed = worker.flush(now).unwrap_or(FlushOutcome::Done);
        let mut flags = epoll::EventFlags::IN;
        if flushed == FlushOutcome::Full {
            // A socket is almost always writable, so that the event is requested only while frames wait for it.
            flags |= epoll::EventFlags::OUT;
        }
        let data = epoll::EventData::new_u64(number * KINDS + SOCKET);
        let _ = epoll::modify(&self.epoll, worker.socket(), data, flags);
    }

    /// Looks whether a worker has read its descriptors, and sends on. One that reads none is ended: they count against
    /// every process of its user, and the host holds the memory behind them.
    pub(super) fn look_at_unread(&mut self, number: u64, now: u64) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let due = worker.look_at().is_some_and(|at| at <= now);
        if !due || !matches!(worker.state, WorkerState::Ready) {
            return;
        }
        if worker.leaves_descriptors(now) {
            let why = "it left descriptors unread";
            self.end(number, WorkerEndReason::Silent, why);
        } else {
            self.flush(number);
        }
    }
}
