//! The frames to the host, in their order.

use std::os::fd::OwnedFd;

use alknet_worker::{CborBody, FromWorkerMessage, Guest, GuestCall, WorkerFault, WorkerFrameError};

use super::answer::ArrivedFault;
use super::{Bridge, BridgeState, ReplyWaiter};
use crate::guest::lock;
use crate::limits::{UNHEARD_BYTES_MAX, UNHEARD_MAX};
use crate::wire::{self, GuestMessage};

/// A frame or result that waits until the host has taken earlier ones.
#[derive(Debug)]
pub(super) enum QueuedFrame {
    Frame(FromWorkerMessage, Vec<OwnedFd>),
    Result(FinalReply),
}

/// The answer to a call of the host, which is sent after everything before it.
#[derive(Debug)]
pub(in crate::guest) struct FinalReply {
    pub(in crate::guest) guest: Guest,
    pub(in crate::guest) call: GuestCall,
    pub(in crate::guest) reply: alknet_worker::WorkerReply,
    pub(in crate::guest) fds: Vec<OwnedFd>,
    pub(in crate::guest) heap: u64,
    pub(in crate::guest) external: u64,
}

impl FinalReply {
    pub(super) fn send(self) {
        let sent = self
            .guest
            .finish(&self.call, self.reply, self.fds, self.heap, self.external);
        if let Err(error) = sent {
            // The answer is too large for a frame, or the host is gone, which ends this process.
            let fault = WorkerFault {
                code: "E_ENCODE".to_owned(),
                message: format!("the answer cannot be sent: {error}"),
                details: CborBody::default(),
            };
            let reply = alknet_worker::WorkerReply::Err(fault);
            let _ = self
                .guest
                .finish(&self.call, reply, Vec::new(), self.heap, self.external);
        }
    }
}

impl Bridge {
    /// Answers a call of the host, after all earlier messages.
    pub(in crate::guest) fn finish(&self, result: FinalReply) {
        let mut state = lock(&self.state);
        self.flush_locked(&mut state);
        match state.queue.is_empty() {
            true => result.send(),
            false => state.queue.push_back(QueuedFrame::Result(result)),
        }
    }

    pub(in crate::guest) fn has_lines(&self) -> bool {
        !lock(&self.state).lines.is_empty()
    }

    /// Sends the collected lines of the console.
    pub(in crate::guest) fn flush(&self) {
        self.flush_locked(&mut lock(&self.state));
    }

    pub(super) fn flush_locked(&self, state: &mut BridgeState) {
        if state.lines.is_empty() {
            return;
        }
        state.lines_bytes = 0;
        let lines = GuestMessage::Lines(std::mem::take(&mut state.lines));
        self.tell(state, &lines);
    }

    pub(super) fn tell(&self, state: &mut BridgeState, up: &GuestMessage) {
        // A value of a script that nests too deeply was refused before it came here.
        if let Ok(body) = wire::body(up) {
            let sid = self.sid;
            self.send(state, FromWorkerMessage::Tell { sid, body }, Vec::new());
        }
    }

    /// Sends a frame, or lets it wait until the host has taken some.
    pub(super) fn send(
        &self,
        state: &mut BridgeState,
        message: FromWorkerMessage,
        fds: Vec<OwnedFd>,
    ) {
        if state.closed {
            return;
        }
        state.queue.push_back(QueuedFrame::Frame(message, fds));
        self.send_waiting(state);
    }

    pub(super) fn send_waiting(&self, state: &mut BridgeState) {
        while let Some(waiting) = state.queue.pop_front() {
            match waiting {
                QueuedFrame::Result(result) => result.send(),
                QueuedFrame::Frame(message, fds) => {
                    let full = state.unheard_bytes >= UNHEARD_BYTES_MAX;
                    if state.unheard.len() >= UNHEARD_MAX || full {
                        // The frame returns to the front, so the order stays.
                        state.queue.push_front(QueuedFrame::Frame(message, fds));
                        return;
                    }
                    let bytes = message.bytes();
                    state.unheard.push_back(bytes);
                    state.unheard_bytes += bytes;
                    // A lost host ends this process, and the message was checked to fit into a
                    // frame before. The kernel may refuse its descriptors.
                    if let Err(error) = self.guest.send(&message, fds) {
                        state.unheard.pop_back();
                        state.unheard_bytes -= bytes;
                        fail(state, &message, &error);
                    }
                }
            }
        }
    }
}

/// Fails the call or subscription that could not be sent: its script would wait for ever.
fn fail(state: &mut BridgeState, message: &FromWorkerMessage, error: &WorkerFrameError) {
    let (FromWorkerMessage::Call { id, .. } | FromWorkerMessage::Subscribe { id, .. }) = message
    else {
        return;
    };
    let fault = ArrivedFault::bare("OVERLOADED", format!("the call cannot be sent: {error}"));
    // The waiter may be gone.
    match state.open.remove(id) {
        Some(ReplyWaiter::Call(waits)) => {
            let _ = waits.send(Err(fault));
        }
        Some(ReplyWaiter::Subscription(waits)) => {
            let _ = waits.send(Err(fault));
        }
        Some(ReplyWaiter::GivenUp) | None => {}
    }
}
