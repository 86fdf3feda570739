//! One worker, as the supervisor manages it: its channel, its calls, its end.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::sync::oneshot;

use super::WorkerAnswer;
use super::cgroup::WorkerCgroup;
use super::handle::EncodedFrame;
use super::idle_frames::IdleFrames;
use super::spawn::SpawnedWorker;
use super::start_watch::StartWatch;
use super::unread::{DescriptorQuota, UnreadDescriptors};
use super::watch::{CallWatch, LimitOverrun};
use crate::frame::channel::{self, ChannelRead};
use crate::limits::{LAST_WORDS_BYTES, READ_TURN_BYTES};
use crate::setup::UNDELIVERED_STATUS;
use crate::sys::{ABORTED_STATUS, LaunchedProcess, ProcessMemory, is_all_read, process_cpu_us};
use crate::{
    Bytes32, ConfinementGap, Decoder, FromWorkerMessage, ToWorkerMessage, WorkerCallError,
    WorkerEndReason, WorkerFrameError, WorkerLoss, WorkerRole, encode,
};

/// The channel for the result of a call.
pub(super) type ReplyTo = oneshot::Sender<Result<WorkerAnswer, WorkerCallError>>;

/// A worker that has executed.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    pub(super) role: WorkerRole,
    /// Whether it has folders of the host.
    pub(super) binds: bool,
    pub(super) state: WorkerState,
    /// Whether it has been ready: before that, its end is a failed start.
    pub(super) was_ready: bool,
    pub(super) gaps: Vec<ConfinementGap>,
    /// Calls that run in it, by number.
    pub(super) calls: BTreeMap<u64, RunningWorkerCall>,
    /// Sessions in it.
    pub(super) sessions: Vec<u64>,
    /// Bytes that wait to be sent. The sessions' owners read this before they send more.
    pub(super) waiting: Arc<AtomicUsize>,
    /// Room for frames with descriptors.
    pub(super) descriptors: DescriptorQuota,
    /// Frames that begin and end nothing.
    pub(super) idle_frames: IdleFrames,
    unread: UnreadDescriptors,
    pub(super) memory_checked_at: u64,
    /// Bytes that its sessions were granted.
    pub(super) granted: u64,
    /// Bytes that it may hold. The number never falls, because a worker does not give freed memory back at once.
    memory_max: u64,
    /// Bytes that it held at the last check.
    pub(super) held: u64,
    /// The first limit at which it had not stopped when it was killed, also if it still had time to.
    pub(super) overrun: Option<LimitOverrun>,
    process: LaunchedProcess,
    leaf: Option<WorkerCgroup>,
    socket: OwnedFd,
    decoder: Decoder,
    out: VecDeque<OutgoingFrame>,
    output: OwnedFd,
    last_words: Vec<u8>,
    ended: bool,
}

/// The phases of a worker's life.
#[derive(Debug)]
pub(super) enum WorkerState {
    /// Not ready.
    Starting(StartWatch),
    Ready,
    /// It closed its socket; the host kills it at this time if it has not ended.
    Leaving {
        by: u64,
    },
    /// Killed; the host waits for its end.
    Dying(WorkerEndReason, String),
}

/// A call in a worker.
#[derive(Debug)]
pub(super) struct RunningWorkerCall {
    pub(super) sid: u64,
    pub(super) watch: CallWatch,
    pub(super) operation: Option<Bytes32>,
    pub(super) reply: ReplyTo,
}

#[derive(Debug)]
struct OutgoingFrame {
    frame: EncodedFrame,
    sent: usize,
}

/// What became of the frames that waited to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushOutcome {
    /// All were sent.
    Done,
    /// The socket takes no more.
    Full,
    /// The next one waits until the worker has read descriptors, or the kernel takes more.
    HeldBack,
}

/// The way in which a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerExit {
    Signal(i32),
    Status(i32),
}

impl WorkerProcess {
    pub(super) fn new(
        born: SpawnedWorker,
        role: WorkerRole,
        binds: bool,
        start: StartWatch,
        memory_max: u64,
        unread: Duration,
    ) -> Self {
        Self {
            role,
            binds,
            state: WorkerState::Starting(start),
            was_ready: false,
            gaps: born.gaps,
            calls: BTreeMap::new(),
            sessions: Vec::new(),
            waiting: Arc::default(),
            descriptors: DescriptorQuota::default(),
            idle_frames: IdleFrames::default(),
            unread: UnreadDescriptors::new(unread),
            memory_checked_at: 0,
            granted: 0,
            memory_max,
            held: 0,
            overrun: None,
            process: born.process,
            leaf: born.leaf,
            socket: born.channel,
            decoder: Decoder::default(),
            out: VecDeque::new(),
            output: born.output,
            last_words: Vec::new(),
            ended: false,
        }
    }

    pub(super) const fn memory_max(&self) -> u64 {
        self.memory_max
    }

    /// Raises its memory limit to `bytes`, if that is more than before.
    pub(super) fn allow_memory(&mut self, bytes: u64) {
        if bytes <= self.memory_max {
            return;
        }
        self.memory_max = bytes;
        if let Some(Err(error)) = self.leaf.as_ref().map(|leaf| leaf.set_memory(bytes)) {
            tracing::debug!(%error, "a worker's group keeps its memory");
        }
    }

    pub(super) const fn pid(&self) -> i32 {
        self.process.pid
    }

    pub(super) const fn pidfd(&self) -> &OwnedFd {
        &self.process.pidfd
    }

    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) const fn output(&self) -> &OwnedFd {
        &self.output
    }

    /// Processor time of all its threads, in microseconds.
    pub(super) fn cpu_us(&self) -> Option<u64> {
        process_cpu_us(self.process.pid)
    }

    /// Bytes of memory that belong to it alone. `None` once it has ended, or if they cannot be read. Only its cgroup counts
    /// mapped files and shared memory, which others may have as well.
    pub(super) fn private_bytes(&self) -> Option<u64> {
        self.process.memory.private_bytes()
    }

    /// How much memory it has.
    pub(super) const fn memory(&self) -> &Arc<ProcessMemory> {
        &self.process.memory
    }

    /// Queues a frame of the host itself. An abort goes before all frames that have not begun to be sent.
    pub(super) fn tell(&mut self, message: &ToWorkerMessage, urgent: bool) {
        // The host's own messages without a body are far below any limit.
        if let Ok(bytes) = encode(message, 0) {
            self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
            let frame = EncodedFrame {
                bytes,
                fds: Vec::new(),
                permit: None,
            };
            self.queue(frame, urgent);
        }
    }

    /// Queues a frame that `waiting` counts already.
    pub(super) fn queue(&mut self, frame: EncodedFrame, urgent: bool) {
        let outgoing = OutgoingFrame { frame, sent: 0 };
        // No frame may interrupt one that is half sent.
        let begun = self.out.front().is_some_and(|first| first.sent > 0);
        match (urgent, begun) {
            (false, _) => self.out.push_back(outgoing),
            (true, false) => self.out.push_front(outgoing),
            (true, true) => self.out.insert(1, outgoing),
        }
    }

    /// Sends as much as the socket takes and the worker has read descriptors for.
    pub(super) fn flush(&mut self, now: u64) -> io::Result<FlushOutcome> {
        while let Some(first) = self.out.front_mut() {
            let begins = first.sent == 0;
            let fds: &[OwnedFd] = if begins { &first.frame.fds } else { &[] };
            if begins && self.unread.hold_back(now, fds.len(), &self.socket) {
                return Ok(FlushOutcome::HeldBack);
            }
            let rest = &first.frame.bytes[first.sent..];
            match channel::send(self.socket.as_fd(), rest, fds, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(FlushOutcome::Full);
                }
                // Other processes of this user left descriptors unread: the worker has done nothing wrong.
                Err(error) if channel::is_too_many_unread(&error) => {
                    self.unread.wait(now);
                    return Ok(FlushOutcome::HeldBack);
                }
                Err(error) => return Err(error),
                Ok(sent) => {
                    self.unread.sent(now, fds.len());
                    first.sent += sent;
                }
            }
            if first.sent == first.frame.bytes.len() {
                self.waiting.fetch_sub(first.sent, Ordering::Relaxed);
                self.out.pop_front();
            }
        }
        Ok(FlushOutcome::Done)
    }

    /// The time at which to look whether it has read its descriptors.
    pub(super) const fn look_at(&self) -> Option<u64> {
        self.unread.look_at()
    }

    /// Whether it left descriptors unread for longer than it may.
    pub(super) fn leaves_descriptors(&mut self, now: u64) -> bool {
        self.unread.are_left(now, &self.socket)
    }

    /// Reads once.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> Result<ChannelRead, WorkerFrameError> {
        let turn = scratch.len().min(READ_TURN_BYTES);
        let read = channel::read(self.socket.as_fd(), &mut self.decoder, &mut scratch[..turn])?;
        if read == ChannelRead::End {
            self.ended = true;
        }
        Ok(read)
    }

    /// The limit that was reached first of those at which its calls have not stopped so far.
    pub(super) fn first_overrun(&self) -> Option<LimitOverrun> {
        let overruns = self.calls.values().map(|running| running.watch.overrun());
        overruns.flatten().min_by_key(|overrun| overrun.reached_at)
    }

    /// Records that the worker has read the aborts of its calls, if it has read everything that was sent to it.
    pub(super) fn note_read(&mut self) {
        let watches = self.calls.values_mut().map(|running| &mut running.watch);
        let mut aborted = watches.filter(|watch| watch.ended().is_some()).peekable();
        if aborted.peek().is_some() && self.out.is_empty() && is_all_read(&self.socket) {
            aborted.for_each(CallWatch::note_read);
        }
    }

    pub(super) fn message(
        &mut self,
    ) -> Result<Option<(FromWorkerMessage, Vec<OwnedFd>)>, WorkerFrameError> {
        self.decoder.next()
    }

    /// Whether the channel was closed between two frames.
    pub(super) fn ended_cleanly(&self) -> bool {
        self.ended && self.decoder.end().is_ok()
    }

    /// Keeps the end of its output. Returns whether more may come.
    pub(super) fn listen(&mut self, scratch: &mut [u8]) -> bool {
        match rustix::io::read(&self.output, &mut *scratch) {
            Ok(0) => false,
            Ok(bytes) => {
                self.last_words.extend_from_slice(&scratch[..bytes]);
                let surplus = self.last_words.len().saturating_sub(LAST_WORDS_BYTES);
                self.last_words.drain(..surplus);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The end of its output, in one line.
    pub(super) fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.last_words);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Kills the worker: none of its instructions runs after this.
    pub(super) fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process.pidfd, Signal::KILL);
        if let Some(leaf) = &self.leaf {
            leaf.kill();
        }
    }

    /// The way in which it ended, once it has. To be called until it returns a value, and not again.
    pub(super) fn collect(&self) -> Option<WorkerExit> {
        let id = WaitId::PidFd(self.process.pidfd.as_fd());
        match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => Some(match status.terminating_signal() {
                Some(signal) => WorkerExit::Signal(signal),
                None => WorkerExit::Status(status.exit_status().unwrap_or_default()),
            }),
            Ok(None) => None,
            // Another part of the host's process collected it: it has ended, and the way is not known here.
            Err(_) => Some(WorkerExit::Signal(Signal::KILL.as_raw())),
        }
    }

    /// Determines the reason of its end.
    pub(super) fn judge(&self, exit: WorkerExit) -> WorkerLoss {
        let signal = match exit {
            WorkerExit::Signal(signal) => Some(signal),
            WorkerExit::Status(ABORTED_STATUS) => Some(Signal::ABORT.as_raw()),
            WorkerExit::Status(_) => None,
        };
        let own = |reason| WorkerLoss {
            reason,
            signal,
            detail: self.last_words(),
            alone: false,
        };
        if let WorkerState::Dying(reason, detail) = &self.state {
            return WorkerLoss {
                detail: detail.clone(),
                ..own(*reason)
            };
        }
        match signal.map(Signal::from_named_raw) {
            Some(Some(Signal::SYS)) => own(WorkerEndReason::Violation),
            Some(Some(Signal::KILL)) if self.ran_out_of_memory() => own(WorkerEndReason::Memory),
            Some(Some(Signal::KILL)) => own(WorkerEndReason::Killed),
            Some(_) => own(WorkerEndReason::Crash),
            None => own(match exit {
                WorkerExit::Status(UNDELIVERED_STATUS) => WorkerEndReason::Undelivered,
                _ => WorkerEndReason::Exit,
            }),
        }
    }

    /// Whether the kernel killed it because its group had no memory left.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.leaf
            .as_ref()
            .is_some_and(WorkerCgroup::ran_out_of_memory)
    }

    /// Takes its cgroup, to remove it.
    pub(super) fn take_leaf(&mut self) -> Option<WorkerCgroup> {
        self.leaf.take()
    }
}
