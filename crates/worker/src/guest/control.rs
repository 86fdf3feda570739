//! The control thread: reads the socket whatever the other threads do, so that an abort arrives in the middle of a
//! native loop, and sends the host heartbeats of running calls.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Guest, GuestCall, lock};
use crate::frame::channel::{self, ChannelRead};
use crate::limits::{GUEST_QUEUE_BYTES_MAX, GUEST_QUEUE_FDS_MAX, READ_TURN_BYTES};
use crate::setup::UNDELIVERED_STATUS;
use crate::{Decoder, FromWorkerMessage, ToWorkerMessage, WorkerFrameError, sys};

/// Exit status of a worker whose host has gone.
const HOST_GONE: i32 = 0;

/// A message for the worker's threads.
#[derive(Debug)]
#[non_exhaustive]
pub struct GuestInput {
    /// The message.
    pub message: ToWorkerMessage,
    /// The descriptors of the message.
    pub fds: Vec<OwnedFd>,
    /// The call that the message begins. Until it is finished the host gets heartbeats.
    pub call: Option<GuestCall>,
}

/// Messages that wait for the worker's threads.
#[derive(Debug, Default)]
pub(super) struct GuestQueue {
    waiting: Mutex<WaitingInput>,
    grown: Condvar,
    shrunk: Condvar,
}

/// The messages, with the bytes of each, and what they hold together.
#[derive(Debug, Default)]
struct WaitingInput {
    messages: VecDeque<(usize, GuestInput)>,
    bytes: usize,
    fds: usize,
}

impl WaitingInput {
    fn pop(&mut self) -> Option<GuestInput> {
        let (bytes, incoming) = self.messages.pop_front()?;
        self.bytes -= bytes;
        self.fds -= incoming.fds.len();
        Some(incoming)
    }

    const fn has_capacity_for_descriptors(&self) -> bool {
        self.fds < GUEST_QUEUE_FDS_MAX
    }
}

impl GuestQueue {
    pub(super) fn pop(&self) -> GuestInput {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(incoming) = waiting.pop() {
                self.shrunk.notify_one();
                return incoming;
            }
            let slept = self.grown.wait(waiting);
            waiting = slept.unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn try_pop(&self) -> Option<GuestInput> {
        let incoming = lock(&self.waiting).pop()?;
        self.shrunk.notify_one();
        Some(incoming)
    }

    fn has_capacity_for_descriptors(&self) -> bool {
        lock(&self.waiting).has_capacity_for_descriptors()
    }

    /// Waits until the worker's threads have taken descriptors, or for this long.
    fn wait_for_capacity(&self, at_most: Duration) {
        let waiting = lock(&self.waiting);
        if !waiting.has_capacity_for_descriptors() {
            // However it ended, the caller looks again.
            drop(self.shrunk.wait_timeout(waiting, at_most));
        }
    }

    /// Adds a message. Returns false if the queue is full.
    fn push(&self, bytes: usize, incoming: GuestInput) -> bool {
        let mut waiting = lock(&self.waiting);
        // The control thread must not wait for room, because it has to read aborts.
        if waiting.bytes + bytes > GUEST_QUEUE_BYTES_MAX {
            return false;
        }
        waiting.bytes += bytes;
        waiting.fds += incoming.fds.len();
        waiting.messages.push_back((bytes, incoming));
        drop(waiting);
        self.grown.notify_one();
        true
    }
}

/// Runs until the host has gone, which ends the process.
pub(super) fn run(guest: &Guest, mut decoder: Decoder) {
    let mut scratch = vec![0; READ_TURN_BYTES];
    let mut beat_at = Instant::now();
    loop {
        match take_all(guest, &mut decoder, &mut scratch) {
            Ok(true) => {}
            Ok(false) => sys::end_now(HOST_GONE),
            Err(why) => {
                // The host keeps the end of a worker's output. If it cannot be written, the exit status is all that
                // the host gets.
                let _ = writeln!(io::stderr(), "what the host sends cannot be taken: {why}");
                sys::end_now(UNDELIVERED_STATUS)
            }
        }
        let calls: Vec<GuestCall> = lock(&guest.0.calls).values().cloned().collect();
        if calls.is_empty() {
            // Without a call there is no heartbeat to send: the thread sleeps until the host writes.
            wait(guest, None);
            beat_at = Instant::now();
            continue;
        }
        let now = Instant::now();
        if now >= beat_at {
            beat_at = now + guest.0.heartbeat;
            for call in calls {
                beat(guest, &call);
            }
        }
        wait(
            guest,
            Some(beat_at.saturating_duration_since(Instant::now())),
        );
    }
}

/// Reads until the socket is empty, or the queue holds enough descriptors. Returns whether the host lives.
fn take_all(guest: &Guest, decoder: &mut Decoder, scratch: &mut [u8]) -> Result<bool, String> {
    loop {
        // The worker has few descriptors, and without a free one the kernel drops those of the next frame. The thread
        // that takes messages from the queue runs no script, so an abort waits only until it has taken some.
        if !guest.0.queue.has_capacity_for_descriptors() {
            return Ok(true);
        }
        let text = |error: WorkerFrameError| error.to_string();
        let read = channel::read(&guest.0.host, decoder, scratch).map_err(text)?;
        while let Some((message, fds)) = decoder.next().map_err(text)? {
            take(guest, message, fds)?;
        }
        match read {
            ChannelRead::End => return Ok(false),
            ChannelRead::Some(_) => {}
            ChannelRead::Wait => return Ok(true),
        }
    }
}

fn take(guest: &Guest, message: ToWorkerMessage, fds: Vec<OwnedFd>) -> Result<(), String> {
    let mut call = None;
    if let Some((sid, id)) = message.begins() {
        let new = GuestCall::new(sid, id);
        lock(&guest.0.calls).insert(id, new.clone());
        call = Some(new);
    }
    if let ToWorkerMessage::Abort { id } = message
        && let Some(call) = lock(&guest.0.calls).get(&id)
    {
        call.abort();
    }
    let bytes = weight(&message);
    let incoming = GuestInput { message, fds, call };
    if !guest.0.queue.push(bytes, incoming) {
        return Err(format!("more than {GUEST_QUEUE_BYTES_MAX} bytes wait"));
    }
    Ok(())
}

/// Bytes of memory that a message takes, roughly.
fn weight(message: &ToWorkerMessage) -> usize {
    let blob = |blob: &crate::FrameBlob| match blob {
        crate::FrameBlob::Inline(body) => body.as_bytes().len(),
        crate::FrameBlob::Sealed { .. } => 0,
    };
    let held = match message {
        ToWorkerMessage::Eval { source, .. } => blob(source),
        ToWorkerMessage::Invoke { input, .. } => blob(input),
        ToWorkerMessage::Run { body, .. } | ToWorkerMessage::Tell { body, .. } => {
            body.as_bytes().len()
        }
        _ => 0,
    };
    held + size_of::<GuestInput>()
}

fn beat(guest: &Guest, call: &GuestCall) {
    let heartbeat = FromWorkerMessage::Heartbeat {
        sid: call.sid(),
        id: call.id(),
        ticks: call.ticks(),
        cpu_us: call.cpu_us(),
        mem: call.mem(),
    };
    // A host that has gone is noticed by the next read.
    let _ = guest.send(&heartbeat, Vec::new());
}

fn wait(guest: &Guest, at_most: Option<Duration>) {
    // The socket may be readable, and nothing is read from it now.
    if !guest.0.queue.has_capacity_for_descriptors() {
        return guest
            .0
            .queue
            .wait_for_capacity(at_most.unwrap_or(guest.0.heartbeat));
    }
    let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
    let mut fds = [PollFd::new(&guest.0.host, PollFlags::IN)];
    match poll(&mut fds, at_most.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // Without the socket the worker has no host.
        Err(_) => sys::end_now(HOST_GONE),
    }
}
