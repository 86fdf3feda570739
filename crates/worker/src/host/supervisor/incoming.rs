//! The messages of workers. The host believes none of them beyond what a worker can do to itself.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::event::epoll;

use super::WorkerSupervisor;
use crate::frame::channel::ChannelRead;
use crate::host::WorkerAnswer;
use crate::host::worker::WorkerState;
use crate::limits::{
    CALLS_OUT_MAX, FRAME_FDS_FROM_WORKER_MAX, LEAVING_MAX, LOG_BYTES_PER_S, LOG_LINE_BYTES,
    MESSAGES_WAITING_BYTES_MAX,
};
use crate::{
    CallStats, FromWorkerMessage, WorkerCallError, WorkerEndReason, WorkerReply, WorkerRole,
};

/// A worker broke the protocol or a limit.
pub(super) struct WorkerViolation(pub(super) WorkerEndReason, pub(super) String);

impl WorkerSupervisor {
    /// Handles a worker's socket that is readable, writable or closed. Returns whether more may wait in it.
    pub(super) fn read(&mut self, number: u64, scratch: &mut [u8]) -> bool {
        // The event may be that the socket is writable again.
        self.flush(number);
        let Some(worker) = self.workers.get_mut(&number) else {
            return false;
        };
        if !matches!(worker.state, WorkerState::Starting(_) | WorkerState::Ready) {
            return false;
        }
        let read = worker.read(scratch);
        if let Err(error) = &read {
            let why = error.to_string();
            self.end(number, WorkerEndReason::Protocol, &why);
            return false;
        }
        // Messages are taken before the end of the channel: what the worker sent until then still counts.
        if let Err(WorkerViolation(reason, why)) = self.take_messages(number) {
            self.end(number, reason, &why);
            return false;
        }
        if matches!(read, Ok(ChannelRead::End)) {
            self.leave(number);
        }
        matches!(read, Ok(ChannelRead::Some(_)))
    }

    /// Takes all whole messages.
    pub(super) fn take_messages(&mut self, number: u64) -> Result<(), WorkerViolation> {
        loop {
            let Some(worker) = self.workers.get_mut(&number) else {
                return Ok(());
            };
            let next = worker.message();
            let next = next
                .map_err(|error| WorkerViolation(WorkerEndReason::Protocol, error.to_string()))?;
            let Some((message, fds)) = next else {
                return Ok(());
            };
            self.take(number, message, fds)?;
        }
    }

    /// Handles a closed socket: either the process ends, which its pidfd will report, or it lives on and cannot be
    /// reached.
    fn leave(&mut self, number: u64) {
        let now = self.now();
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let grace = u64::try_from(LEAVING_MAX.as_micros()).unwrap_or(u64::MAX);
        // A starting worker may still write the reason to its output, and then end.
        worker.state = WorkerState::Leaving {
            by: now.saturating_add(grace),
        };
        let cut = !worker.ended_cleanly();
        self.pool.leave(number);
        self.silence(number);
        if cut {
            tracing::debug!(worker = number, "a worker's channel ended inside a frame");
        }
    }

    fn take(
        &mut self,
        number: u64,
        message: FromWorkerMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<(), WorkerViolation> {
        let Some(worker) = self.workers.get(&number) else {
            return Ok(());
        };
        let starting = matches!(worker.state, WorkerState::Starting(_));
        may_bring(worker.role, &message, fds.len())?;
        match message {
            FromWorkerMessage::Ready { confined } if starting => {
                self.ready(number, confined);
                Ok(())
            }
            FromWorkerMessage::Ready { .. } => Err(protocol_violation("it was ready already")),
            _ if starting => Err(protocol_violation("it spoke before it was ready")),
            FromWorkerMessage::Heartbeat { id, cpu_us, .. } => {
                // Counted first: each makes this thread read /proc.
                self.count_idle(number)?;
                self.heartbeat(number, id, cpu_us);
                Ok(())
            }
            FromWorkerMessage::Gpu { id, busy, .. } => {
                self.count_idle(number)?;
                self.gpu(number, id, busy);
                Ok(())
            }
            FromWorkerMessage::Result {
                id, reply, stats, ..
            } => self.result(number, id, reply, stats, fds),
            other => self.forward(number, other, fds),
        }
    }

    /// Counts a frame that begins and ends nothing.
    fn count_idle(&mut self, number: u64) -> Result<(), WorkerViolation> {
        let now = self.now();
        let Some(worker) = self.workers.get_mut(&number) else {
            return Ok(());
        };
        if worker.idle_frames.take(now, worker.calls.len()) {
            return Ok(());
        }
        let why = "more messages that nothing waits for than it may send".to_owned();
        Err(WorkerViolation(WorkerEndReason::Flood, why))
    }

    /// Keeps the end of a worker's output.
    pub(super) fn listen(&mut self, number: u64, scratch: &mut [u8]) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        if !worker.listen(scratch) {
            // A closed pipe stays readable until it is removed from the set.
            let _ = epoll::delete(&self.epoll, worker.output());
            return;
        }
        if let Err(WorkerViolation(reason, why)) = self.count_idle(number) {
            self.end(number, reason, &why);
        }
    }

    fn heartbeat(&mut self, number: u64, id: u64, cpu_us: u64) {
        let now = self.now();
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let process = worker.cpu_us().unwrap_or(0);
        let only = worker.calls.len() == 1;
        // The heartbeat of a call that has just ended was under way already.
        if let Some(running) = worker.calls.get_mut(&id) {
            running.watch.beat(now, cpu_us, process, only);
        }
    }

    fn gpu(&mut self, number: u64, id: u64, busy: bool) {
        let now = self.now();
        if let Some(worker) = self.workers.get_mut(&number)
            && worker.role.uses_gpu()
            && let Some(running) = worker.calls.get_mut(&id)
        {
            running.watch.gpu(now, busy);
        }
    }

    /// Ends a call. A call that had reached its limit ends with that limit, whatever its result is.
    fn result(
        &mut self,
        number: u64,
        id: u64,
        reply: WorkerReply,
        stats: CallStats,
        fds: Vec<OwnedFd>,
    ) -> Result<(), WorkerViolation> {
        let worker = self.workers.get_mut(&number);
        let Some(running) = worker.and_then(|worker| worker.calls.remove(&id)) else {
            return Err(protocol_violation("it answered what it was not asked"));
        };
        let outcome = match running.watch.ended() {
            Some((cause, _)) => Err(WorkerCallError::Limit {
                cause,
                killed: false,
            }),
            None => Ok(WorkerAnswer {
                reply,
                fds,
                stats,
                // A session that is not there any more was closed by the host.
                beside_abort: self
                    .sessions
                    .get(&running.sid)
                    .is_none_or(|open| open.aborted),
            }),
        };
        // The caller may have gone.
        let _ = running.reply.send(outcome);
        Ok(())
    }

    /// Forwards a message to the owner of a session.
    fn forward(
        &mut self,
        number: u64,
        message: FromWorkerMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<(), WorkerViolation> {
        let now = self.now();
        let open = message
            .session()
            .and_then(|sid| self.sessions.get_mut(&sid));
        // The session may have been closed after the worker sent the message. A message for another worker's session
        // is ignored.
        let Some(open) = open.filter(|open| open.worker == number) else {
            return self.count_idle(number);
        };
        match &message {
            FromWorkerMessage::Log { text, .. } => {
                let bytes = text.len() as u64;
                // An empty line costs as well.
                if !may_log(&mut open.log, bytes + LOG_LINE_BYTES, now) {
                    self.count().now.log_dropped += bytes;
                    return self.count_idle(number);
                }
            }
            FromWorkerMessage::Call { id, .. } | FromWorkerMessage::Subscribe { id, .. } => {
                if open.calls_out.len() >= CALLS_OUT_MAX {
                    let why = format!("more than {CALLS_OUT_MAX} calls at once");
                    return Err(WorkerViolation(WorkerEndReason::Flood, why));
                }
                if !open.calls_out.insert(*id) {
                    return Err(protocol_violation("it used the number of a call twice"));
                }
            }
            _ => {}
        }
        let bytes = message.bytes();
        if open.unread.fetch_add(bytes, Ordering::Relaxed) + bytes > MESSAGES_WAITING_BYTES_MAX {
            let why = "more bytes than its host can read".to_owned();
            return Err(WorkerViolation(WorkerEndReason::Flood, why));
        }
        match open.inbox.try_send((message, fds)) {
            Ok(()) => Ok(()),
            // The session's owner has gone, and the session is about to be closed.
            Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => self.count_idle(number),
            Err(tokio::sync::mpsc::error::TrySendError::Full(_)) => {
                let why = "more messages than its host can read".to_owned();
                Err(WorkerViolation(WorkerEndReason::Flood, why))
            }
        }
    }
}

/// Refuses what no honest worker of the role sends. Descriptors are the host's once they are received: a message that
/// its owner does not read at once would keep them.
fn may_bring(
    role: WorkerRole,
    message: &FromWorkerMessage,
    fds: usize,
) -> Result<(), WorkerViolation> {
    let (with_values, is_of_a_call) = match message {
        FromWorkerMessage::Call { .. } | FromWorkerMessage::Subscribe { .. } => (true, false),
        FromWorkerMessage::Result { .. } => (true, true),
        FromWorkerMessage::Gpu { .. }
        | FromWorkerMessage::Heartbeat { .. }
        | FromWorkerMessage::Ready { .. } => (false, true),
        _ => (false, false),
    };
    let most = if with_values {
        FRAME_FDS_FROM_WORKER_MAX
    } else {
        0
    };
    if fds > most {
        return Err(protocol_violation("it sent descriptors that it may not"));
    }
    // Its owner reads nothing but answers.
    if role.is_gpu_only() && !is_of_a_call {
        return Err(protocol_violation("its role sends no such message"));
    }
    Ok(())
}

fn protocol_violation(why: &str) -> WorkerViolation {
    WorkerViolation(WorkerEndReason::Protocol, why.to_owned())
}

/// A token bucket that fills up in a second.
fn may_log((left, at): &mut (u64, u64), bytes: u64, now: u64) -> bool {
    let since = now.saturating_sub(*at);
    let more = since.saturating_mul(LOG_BYTES_PER_S) / 1_000_000;
    if more > 0 {
        *left = left.saturating_add(more).min(LOG_BYTES_PER_S);
        *at = now;
    }
    match left.checked_sub(bytes) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_second_s_worth_at_once_and_then_its_rate() {
        let mut bucket = (LOG_BYTES_PER_S, 0);
        assert!(may_log(&mut bucket, LOG_BYTES_PER_S, 0));
        assert!(!may_log(&mut bucket, 1, 10));
        assert!(may_log(&mut bucket, LOG_BYTES_PER_S / 2, 500_000));
        assert!(!may_log(&mut bucket, LOG_BYTES_PER_S / 2, 500_001));
        // Looking often loses nothing.
        let mut bucket = (0, 0);
        for moment in 0..100_000 {
            may_log(&mut bucket, u64::MAX, moment);
        }
        assert!(bucket.0 > LOG_BYTES_PER_S / 12, "{bucket:?}");
    }
}
