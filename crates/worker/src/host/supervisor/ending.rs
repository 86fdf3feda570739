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
    /// Kills a worker for the first of these calls that did not stop at its limit. `reads` are left for all workers that
    /// are due at once, and each worker has one in any case.
    pub(super) fn kill_for(
        &mut self,
        number: u64,
        calls: &[(u64, LimitCause)],
        reads: &mut u32,
        scratch: &mut [u8],
    ) {
        // This thread waits for a processor as well: the answers may have come since it last read, behind other frames.
        let mut more = true;
        while more {
            if self.left_of(number, calls).is_none() {
                return;
            }
            more = self.read(number, scratch) && *reads > 0;
            *reads = reads.saturating_sub(1);
        }
        if let Some(cause) = self.left_of(number, calls) {
            self.end(number, cause.into(), "");
        }
    }

    /// The limit of the first of these calls that still runs.
    fn left_of(&self, number: u64, calls: &[(u64, LimitCause)]) -> Option<LimitCause> {
        let worker = self.workers.get(&number)?;
        let left = calls.iter().find(|(id, _)| worker.calls.contains_key(id));
        left.map(|(_, cause)| *cause)
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
        self.releaser.release(worker);
        if !matches!(
            reason,
            WorkerEndReason::Relieved | WorkerEndReason::Shutdown
        ) {
            worker.overrun = worker.first_overrun();
        }
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
        // Before the rest is read: the worker decides how much it leaves, and that would count as time that it needed to end.
        let now = self.now();
        self.read_rest(number, scratch);
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let Some(exit) = worker.collect() else {
            return;
        };
        // The output is read before the end is judged, because its last lines are a part of the loss.
        worker.listen(scratch);
        let loss = worker.judge(exit);
        let (role, pid) = (worker.role, worker.pid());
        // A worker that ends by itself did not stop at a limit either. The time counts until the process has ended: code that
        // has taken a worker over could have it killed at once, and end it slowly.
        let grace = u64::try_from(self.config.abort_grace.as_micros()).unwrap_or(u64::MAX);
        let overrun = worker.overrun.or_else(|| worker.first_overrun());
        let overrun = overrun.filter(|overrun| now.saturating_sub(overrun.reached_at) >= grace);
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

    /// Reads what a worker has sent until its end, unless the host has ended it or it has left.
    fn read_rest(&mut self, number: u64, scratch: &mut [u8]) {
        while let Some(worker) = self.workers.get_mut(&number)
            && matches!(worker.state, WorkerState::Starting(_) | WorkerState::Ready)
            && let Ok(ChannelRead::Some(_)) = worker.read(scratch)
        {
            self.take_rest(number);
        }
    }

    fn take_rest(&mut self, number: u64) {
        if let Err(WorkerViolation(_, why)) = self.take_messages(number) {
            tracing::debug!(
                worker = number,
                why,
                "the last words of a worker make no sense"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use alknet_test_support::eventually;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use tokio::sync::oneshot;

    use super::*;
    use crate::host::handle::SupervisorCommand;
    use crate::host::spawn::SpawnedWorker;
    use crate::host::start_watch::StartWatch;
    use crate::host::stats::StatsCounter;
    use crate::host::watch::CallWatch;
    use crate::host::worker::{RunningWorkerCall, WorkerProcess};
    use crate::host::{CallLimits, StartLimits, WorkerAnswer, WorkersConfig};
    use crate::limits::{KILL_READS_MAX, READ_TURN_BYTES};
    use crate::sys::{LaunchedProcess, ProcessMemory};
    use crate::{
        CallStats, CborBody, FrameBlob, FromWorkerMessage, WorkerLogLevel, WorkerReply, WorkerRole,
        encode,
    };

    const WORKER: u64 = 1;
    /// How long ago the host began, and with it the time of its calls.
    const RUNS_FOR: Duration = Duration::from_secs(2);
    /// Time after an abort that no process needs to end once it is killed, on any machine.
    const LONG: Duration = Duration::from_secs(60);
    /// Bytes that a worker held at its last check. No whole number of pages, so no process has as much.
    const HELD: u64 = 1;

    type Answer = oneshot::Receiver<Result<WorkerAnswer, WorkerCallError>>;

    /// The host's thread, which the test runs, and a worker whose end of the channel the test has.
    struct AbortedWorker {
        supervisor: WorkerSupervisor,
        channel: UnixStream,
        process: Child,
        /// Reads that are left before kills.
        reads: u32,
        _ends: (Sender<SupervisorCommand>, Receiver<SpawnJob>),
    }

    impl AbortedWorker {
        fn new() -> Self {
            let (host, own) = UnixStream::pair().expect("sockets");
            let (output, _) = UnixStream::pair().expect("sockets");
            let process = Command::new("sleep").arg("600").spawn().expect("it starts");
            let pid = i32::try_from(process.id()).expect("a process id");
            let known = Pid::from_raw(pid).expect("a process id");
            let pidfd = pidfd_open(known, PidfdFlags::NONBLOCK).expect("it lives");
            let memory = Arc::new(ProcessMemory::open(pid).expect("it lives"));
            let born = SpawnedWorker {
                process: LaunchedProcess { pid, pidfd, memory },
                channel: host.into(),
                output: output.into(),
                leaf: None,
                gaps: Vec::new(),
            };
            let unread = Duration::from_secs(60);
            let start = StartWatch::new(0, StartLimits::default());
            let mut worker =
                WorkerProcess::new(born, WorkerRole::Js, false, start, u64::MAX, unread);
            worker.state = WorkerState::Ready;
            worker.was_ready = true;
            let (orders, commands) = channel();
            let (jobs, done) = channel();
            let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).expect("an event"));
            let stats = Arc::new(Mutex::new(StatsCounter::default()));
            let config = WorkersConfig::this_executable();
            let supervisor = WorkerSupervisor::new(config, commands, wake, jobs, stats);
            let mut supervisor = supervisor.expect("it is set up");
            supervisor.began -= RUNS_FOR;
            supervisor.workers.insert(WORKER, worker);
            Self {
                supervisor,
                channel: own,
                process,
                reads: KILL_READS_MAX,
                _ends: (orders, done),
            }
        }

        /// Begins a call that is aborted at once.
        fn call(&mut self, id: u64) -> Answer {
            self.call_aborted_at(id, 0)
        }

        fn call_aborted_at(&mut self, id: u64, at: u64) -> Answer {
            let mut watch = CallWatch::new(0, CallLimits::default(), u64::MAX, 0, false);
            watch.give_up(at);
            watch.order(at, || Some(0), || true);
            let (reply, answer) = oneshot::channel();
            let running = RunningWorkerCall {
                sid: 1,
                watch,
                operation: None,
                reply,
            };
            let worker = self.supervisor.workers.get_mut(&WORKER);
            worker.expect("it is there").calls.insert(id, running);
            answer
        }

        /// The worker answers a call, after a line that the host does not want, which is longer than one read.
        fn answers(&mut self, id: u64) {
            let log = FromWorkerMessage::Log {
                sid: 9,
                level: WorkerLogLevel::Info,
                text: "x".repeat(READ_TURN_BYTES),
            };
            let value = CborBody::encode(&()).expect("a value");
            let result = FromWorkerMessage::Result {
                sid: 1,
                id,
                reply: WorkerReply::Ok(FrameBlob::Inline(value)),
                stats: CallStats::default(),
            };
            for message in [log, result] {
                let frame = encode(&message, 0).expect("a frame");
                self.channel.write_all(&frame).expect("the host reads");
            }
        }

        /// Kills the worker if one of these calls has no answer. Returns whether it was killed.
        fn is_killed(&mut self, ids: &[u64]) -> bool {
            let calls: Vec<_> = ids.iter().map(|id| (*id, LimitCause::Aborted)).collect();
            let mut scratch = vec![0; READ_TURN_BYTES];
            let reads = &mut self.reads;
            self.supervisor
                .kill_for(WORKER, &calls, reads, &mut scratch);
            let worker = self.supervisor.workers.get(&WORKER).expect("it is there");
            assert_eq!(
                worker.overrun.is_some(),
                matches!(worker.state, WorkerState::Dying(..))
            );
            worker.overrun.is_some()
        }

        /// The worker breaks its channel right after an abort, and its process ends this much later. Returns how many ends
        /// count.
        fn breaks_its_channel_and_ends(&mut self, later: Duration) -> u64 {
            self.supervisor.config.abort_grace = LONG;
            let _answer = self.call_aborted_at(7, self.supervisor.now());
            let reason = WorkerEndReason::Protocol;
            self.supervisor.end(WORKER, reason, "");
            self.supervisor.began -= later;
            let mut scratch = vec![0; READ_TURN_BYTES];
            eventually("it is collected", LONG, || {
                self.supervisor.process_ended(WORKER, &mut scratch);
                self.supervisor.workers.is_empty()
            });
            self.supervisor.count().now.deaths.count
        }
    }

    impl Drop for AbortedWorker {
        fn drop(&mut self) {
            // Once the host has collected it, its number may be another process's.
            if self.supervisor.workers.contains_key(&WORKER) {
                // The host may have killed it.
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
    }

    fn is_obeyed(answer: &mut Answer) -> bool {
        matches!(
            answer.try_recv(),
            Ok(Err(WorkerCallError::Limit { killed: false, .. }))
        )
    }

    /// The host's thread had no processor while the worker answered, in more bytes than the host reads at once.
    #[test]
    fn an_answer_that_waits_unread_keeps_its_worker() {
        let mut worker = AbortedWorker::new();
        let mut answer = worker.call(7);
        worker.answers(7);
        assert!(!worker.is_killed(&[7]));
        assert!(is_obeyed(&mut answer));
    }

    /// The attack: the worker answers one of its calls at the last moment, for another one that computes on.
    #[test]
    fn an_answer_to_one_call_keeps_no_worker_for_another() {
        let mut worker = AbortedWorker::new();
        let (mut first, mut second) = (worker.call(7), worker.call(8));
        worker.answers(7);
        assert!(worker.is_killed(&[7, 8]));
        assert!(is_obeyed(&mut first));
        assert!(!is_obeyed(&mut second));
    }

    /// The attack: bytes that are no frame end the worker by another reason than the limit at which it did not stop.
    #[test]
    fn a_worker_that_breaks_its_channel_after_a_limit_counts() {
        let mut worker = AbortedWorker::new();
        let mut answer = worker.call(7);
        worker
            .channel
            .write_all(&[0xff; 64])
            .expect("the host reads");
        assert!(worker.is_killed(&[7]));
        let state = &worker.supervisor.workers[&WORKER].state;
        assert!(matches!(
            state,
            WorkerState::Dying(WorkerEndReason::Protocol, _)
        ));
        assert!(!is_obeyed(&mut answer));
    }

    /// The attack: ends within the time after an abort make later ones look rare.
    #[test]
    fn a_worker_that_ends_in_its_time_after_an_abort_does_not_count() {
        let mut worker = AbortedWorker::new();
        assert_eq!(worker.breaks_its_channel_and_ends(LONG / 10), 0);
    }

    /// The attack: bytes that are no frame have the worker killed within its time after an abort, and it has so much memory
    /// that its process ends after that time.
    #[test]
    fn a_worker_that_is_killed_in_its_time_after_an_abort_and_ends_later_counts() {
        let mut worker = AbortedWorker::new();
        assert_eq!(worker.breaks_its_channel_and_ends(LONG), 1);
    }

    /// The attack: a worker dies while the host looks for memory. A thread that reads how much a process has may be the
    /// last one that holds it, and then frees it.
    #[test]
    fn the_memory_of_dying_workers_is_not_read() {
        let mut worker = AbortedWorker::new();
        for dies in [false, true] {
            let known = worker.supervisor.workers.get_mut(&WORKER);
            known.expect("it is there").held = HELD;
            if dies {
                worker.supervisor.end(WORKER, WorkerEndReason::Idle, "");
            }
            assert_eq!(worker.supervisor.relieve(0), 0);
            let held = worker.supervisor.workers[&WORKER].held;
            assert_eq!(held == HELD, dies, "{held}");
        }
    }

    /// The attack: a worker fills memory while the node has no descriptor left, and so cannot read how much the worker has.
    #[test]
    fn a_worker_whose_memory_cannot_be_read_holds_what_it_held() {
        let mut worker = AbortedWorker::new();
        let _answer = worker.call(7);
        // Without its process nothing of it is left in /proc, and the host has not seen its end.
        worker.process.kill().expect("it lives");
        worker.process.wait().expect("ours");
        let known = worker.supervisor.workers.get_mut(&WORKER);
        known.expect("it is there").held = HELD;
        let now = worker.supervisor.now();
        worker.supervisor.check_memory(WORKER, now);
        assert_eq!(worker.supervisor.relieve(0), 0);
        let known = &worker.supervisor.workers[&WORKER];
        assert_eq!((known.held, known.memory_checked_at), (HELD, now));
    }

    /// The attack: a worker that computes on after one limit ends for another one that it reached later.
    #[test]
    fn the_limit_that_was_reached_first_counts() {
        let mut worker = AbortedWorker::new();
        let _later = worker.call_aborted_at(7, 980_000);
        let _first = worker.call_aborted_at(8, 0);
        assert!(worker.is_killed(&[7, 8]));
        let overrun = worker.supervisor.workers[&WORKER].overrun;
        assert_eq!(overrun.map(|overrun| overrun.reached_at), Some(0));
    }

    /// The attack: workers send so much that the host does nothing else before their kills.
    #[test]
    fn the_host_reads_only_until_the_answer_and_only_so_much_for_all_workers() {
        let mut worker = AbortedWorker::new();
        let mut answer = worker.call(7);
        worker.answers(7);
        worker.answers(8);
        assert!(!worker.is_killed(&[7]));
        assert_eq!(worker.reads, KILL_READS_MAX - 2);
        assert!(is_obeyed(&mut answer));
        // Others have used up the reads, so this worker has one, which does not reach its answer.
        let mut worker = AbortedWorker::new();
        worker.reads = 0;
        let mut answer = worker.call(7);
        worker.answers(7);
        assert!(worker.is_killed(&[7]));
        assert!(!is_obeyed(&mut answer));
    }
}
