//! The host of an isolate, over the worker's frames.
//!
//! Each request of the script has a number, which the answer repeats. The number of frames that the
//! host has not taken yet is limited: beyond it, frames wait here in their order.
//!
//! This module has the waiting requests, `queue` the frames to the host, `bridge_host` the
//! isolate's host, `subscription` a subscription, and `answer` the isolate's form of the host's
//! answers.

mod answer;
mod bridge_host;
mod queue;
mod subscription;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use alknet_call::ValueSchema;
use alknet_runtime::{
    ConsoleLevel, EnvOperation, OpError, RuntimeCode, ScriptCallOptions, ScriptFailure,
};
use alknet_worker::{CborBody, FrameBlob, FromWorkerMessage, Guest, WorkerEvent, limits};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::lock;
use crate::limits::UNACKNOWLEDGED;
use crate::wire::{self, HostMessage, WireCallOptions};
use answer::{ArrivedFault, ArrivedValue, WaitingAnswers, gone, unsendable};
pub(super) use bridge_host::BridgeHost;
pub(super) use queue::FinalReply;
use queue::QueuedFrame;

/// The connection of one session to the host.
#[derive(Debug)]
pub(super) struct Bridge {
    guest: Guest,
    sid: u64,
    operations: Vec<EnvOperation>,
    calls: AtomicU64,
    waiting: Arc<WaitingAnswers>,
    state: Mutex<BridgeState>,
}

#[derive(Debug, Default)]
struct BridgeState {
    next: u64,
    open: HashMap<u64, ReplyWaiter>,
    registering: VecDeque<PendingRegistration>,
    /// The schemas of inputs of the operations that the script registered, by name.
    inputs: HashMap<String, Arc<ValueSchema>>,
    /// The items that may be sent, by the host's call that requested them.
    serving: HashMap<u64, ServedItems>,
    lines: Vec<(ConsoleLevel, String)>,
    lines_bytes: usize,
    /// The bytes of each frame that the host has not taken.
    unheard: VecDeque<usize>,
    unheard_bytes: usize,
    queue: VecDeque<QueuedFrame>,
    closed: bool,
}

/// An operation whose registration the host has not answered.
#[derive(Debug)]
struct PendingRegistration {
    name: String,
    input: Arc<ValueSchema>,
    waits: oneshot::Sender<Result<(), OpError>>,
}

/// The items of a call of the host.
#[derive(Debug)]
struct ServedItems {
    /// The permits for what may still be sent before the host takes an item.
    window: Arc<Semaphore>,
    /// The permits of each item that the host has not taken.
    sent: VecDeque<u32>,
}

/// The host's answer.
type Replied = Result<ArrivedValue, ArrivedFault>;
/// A part of a subscription: an item, or its end.
type Happened = Result<Option<ArrivedValue>, ArrivedFault>;

/// The waiter for an answer of the host.
#[derive(Debug)]
enum ReplyWaiter {
    Call(oneshot::Sender<Replied>),
    Subscription(mpsc::UnboundedSender<Happened>),
    /// The waiter has given up; the host's last message is still to come.
    GivenUp,
}

impl Bridge {
    /// `waiting_max` are the bytes of answers that may wait for the script.
    pub(super) fn new(
        guest: Guest,
        sid: u64,
        operations: Vec<EnvOperation>,
        waiting_max: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            guest,
            sid,
            operations,
            calls: AtomicU64::new(0),
            waiting: WaitingAnswers::new(waiting_max),
            state: Mutex::default(),
        })
    }

    /// The number of calls that the session has made.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Handles the host's answer to a call, or the end of a subscription.
    pub(super) fn replied(&self, id: u64, reply: alknet_worker::WorkerReply, fds: Vec<OwnedFd>) {
        let reply = match reply {
            alknet_worker::WorkerReply::Ok(value) => {
                Ok(ArrivedValue::new(value, fds, &self.waiting))
            }
            alknet_worker::WorkerReply::Err(fault) => Err(ArrivedFault::new(fault, &self.waiting)),
        };
        match lock(&self.state).open.remove(&id) {
            Some(ReplyWaiter::Call(waits)) => {
                // The waiter may be gone.
                let _ = waits.send(reply);
            }
            Some(ReplyWaiter::Subscription(waits)) => {
                let _ = waits.send(reply.map(|_| None));
            }
            Some(ReplyWaiter::GivenUp) | None => {}
        }
    }

    /// Handles an event of a subscription.
    pub(super) fn happened(&self, id: u64, event: WorkerEvent, fds: Vec<OwnedFd>) {
        let event = match event {
            WorkerEvent::Item(value) => Ok(Some(ArrivedValue::new(value, fds, &self.waiting))),
            WorkerEvent::End => Ok(None),
            WorkerEvent::Fail(fault) => Err(ArrivedFault::new(fault, &self.waiting)),
        };
        let mut state = lock(&self.state);
        let last = !matches!(event, Ok(Some(_)));
        if let Some(ReplyWaiter::Subscription(waits)) = state.open.get(&id) {
            let _ = waits.send(event);
        }
        if last {
            state.open.remove(&id);
        }
    }

    pub(super) fn handle_message(&self, message: HostMessage) {
        let mut state = lock(&self.state);
        match message {
            HostMessage::Heard(frames) => {
                let heard = frames.min(state.unheard.len());
                let bytes: usize = state.unheard.drain(..heard).sum();
                state.unheard_bytes -= bytes;
                self.send_waiting(&mut state);
            }
            HostMessage::Registered(outcome) => {
                if let Some(registration) = state.registering.pop_front() {
                    if outcome.is_ok() {
                        state.inputs.insert(registration.name, registration.input);
                    }
                    // The script may have ended.
                    let _ = registration.waits.send(outcome);
                }
            }
            HostMessage::Taken(entry) => {
                if let Some(serving) = state.serving.get_mut(&entry) {
                    // The host takes items in the order in which they were sent.
                    let permits = serving.sent.pop_front().unwrap_or_default();
                    serving.window.add_permits(permits as usize);
                }
            }
        }
    }

    /// Refuses an input that does not match the operation's own schema.
    pub(super) fn check_input(&self, name: &str, input: &Value) -> Result<(), ScriptFailure> {
        let schema = lock(&self.state).inputs.get(name).map(Arc::clone);
        // The host calls only operations that it has accepted, and another one is not found later.
        let checked = schema.map_or(Ok(()), |schema| schema.validate(input));
        checked.map_err(|misfit| {
            let text = format!("the input does not match the schema: {misfit}");
            ScriptFailure::new(RuntimeCode::Limit, text)
        })
    }

    /// From now on, a call of the host may yield items.
    pub(super) fn serves(&self, entry: u64) {
        let serving = ServedItems {
            window: Arc::new(Semaphore::new(UNACKNOWLEDGED)),
            sent: VecDeque::new(),
        };
        lock(&self.state).serving.insert(entry, serving);
    }

    /// Ends the items of a call.
    pub(super) fn served(&self, entry: u64) {
        if let Some(serving) = lock(&self.state).serving.remove(&entry) {
            serving.window.close();
        }
    }

    /// Closes the bridge: the session's script is about to end, and needs no more answers.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.open.clear();
        state.registering.clear();
        state.lines.clear();
        // Finished calls still get their answers, because the host still counts them.
        for waiting in std::mem::take(&mut state.queue) {
            if let QueuedFrame::Result(result) = waiting {
                result.send();
            }
        }
    }

    /// Takes a number for a request, if there is room for one.
    fn open(&self, state: &mut BridgeState, open: ReplyWaiter) -> Result<u64, OpError> {
        if state.closed {
            return Err(gone());
        }
        if state.open.len() >= limits::CALLS_OUT_MAX {
            let text = "too many calls and subscriptions are not ended yet";
            return Err(OpError::new("QUOTA_EXCEEDED", text));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        state.next += 1;
        let id = state.next;
        state.open.insert(id, open);
        Ok(id)
    }

    /// Cancels a request that the script does not wait for any more.
    fn give_up(&self, id: u64) {
        let mut state = lock(&self.state);
        // Without an entry, the host's last message has arrived, and nothing is left to cancel.
        if let Some(open) = state.open.get_mut(&id) {
            // The entry stays, so that its number is not used again before the host's last message.
            *open = ReplyWaiter::GivenUp;
            let sid = self.sid;
            self.send(
                &mut state,
                FromWorkerMessage::Cancel { sid, id },
                Vec::new(),
            );
        }
    }

    fn begin_call(
        &self,
        path: &str,
        input: &Value,
        opts: &mut WireCallOptions,
        tail: Option<Bytes>,
    ) -> Result<(u64, oneshot::Receiver<Replied>), OpError> {
        let mut fds = Vec::new();
        opts.tail = tail
            .map(|tail| FrameBlob::pack(tail.to_vec(), &mut fds))
            .transpose()
            .map_err(|error| unsendable(&error))?;
        let (waits, answer) = oneshot::channel();
        let (sid, op) = (self.sid, path.to_owned());
        let call = |id, input, opts| FromWorkerMessage::Call {
            sid,
            id,
            op,
            input,
            opts,
        };
        let id = self.begin(input, opts, fds, ReplyWaiter::Call(waits), call)?;
        Ok((id, answer))
    }

    fn begin_subscription(
        &self,
        path: &str,
        input: &Value,
        options: ScriptCallOptions,
    ) -> Result<(u64, mpsc::UnboundedReceiver<Happened>), OpError> {
        let opts = WireCallOptions {
            options,
            ..WireCallOptions::default()
        };
        let (waits, events) = mpsc::unbounded_channel();
        let (sid, op) = (self.sid, path.to_owned());
        let subscribe = |id, input, opts| FromWorkerMessage::Subscribe {
            sid,
            id,
            op,
            input,
            opts,
        };
        let id = self.begin(
            input,
            &opts,
            Vec::new(),
            ReplyWaiter::Subscription(waits),
            subscribe,
        )?;
        Ok((id, events))
    }

    /// Sends a request, and returns its number.
    fn begin(
        &self,
        input: &Value,
        opts: &WireCallOptions,
        mut fds: Vec<OwnedFd>,
        waits: ReplyWaiter,
        message: impl FnOnce(u64, FrameBlob, CborBody) -> FromWorkerMessage,
    ) -> Result<u64, OpError> {
        let input = wire::blob(input, &mut fds).map_err(|error| unsendable(&error))?;
        let opts = wire::body(opts).map_err(|error| unsendable(&error))?;
        let mut state = lock(&self.state);
        // The lines that the script wrote before this come first.
        self.flush_locked(&mut state);
        let id = self.open(&mut state, waits)?;
        self.send(&mut state, message(id, input, opts), fds);
        Ok(id)
    }
}
