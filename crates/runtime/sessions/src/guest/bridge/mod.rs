//! An isolate's host, over the worker's frames.
//!
//! Each wish of the script has a number; the answer comes under the same one. What the host has not
//! taken yet is bounded: beyond that, frames wait here, in their order.
//!
//! Here is who waits for what; `queue` is what goes to the host, `side` what an isolate holds,
//! `following` a subscription, `answer` what the isolate makes of the host's answers.

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
use alknet_worker::{
    CborBody, FrameBlob, FromWorkerMessage, Guest, WorkerEvent, WorkerFault, limits,
};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::lock;
use crate::limits::UNACKNOWLEDGED;
use crate::wire::{self, HostMessage, WireCallOptions};
use answer::{ArrivedValue, gone, unsendable};
pub(super) use bridge_host::BridgeHost;
pub(super) use queue::FinalReply;
use queue::QueuedFrame;

/// One session's way to the host.
#[derive(Debug)]
pub(super) struct Bridge {
    guest: Guest,
    sid: u64,
    operations: Vec<EnvOperation>,
    calls: AtomicU64,
    state: Mutex<BridgeState>,
}

#[derive(Debug, Default)]
struct BridgeState {
    next: u64,
    open: HashMap<u64, ReplyWaiter>,
    registering: VecDeque<PendingRegistration>,
    /// What the inputs of the operations that the script registered are checked with, by name.
    inputs: HashMap<String, Arc<ValueSchema>>,
    /// Items that may be sent, by the host's call that asked for them.
    serving: HashMap<u64, ServedItems>,
    lines: Vec<(ConsoleLevel, String)>,
    lines_bytes: usize,
    /// Bytes of each frame that the host has not taken.
    unheard: VecDeque<usize>,
    unheard_bytes: usize,
    queue: VecDeque<QueuedFrame>,
    closed: bool,
}

/// An operation that the host has not answered for.
#[derive(Debug)]
struct PendingRegistration {
    name: String,
    input: Arc<ValueSchema>,
    waits: oneshot::Sender<Result<(), OpError>>,
}

/// Items of a call of the host's.
#[derive(Debug)]
struct ServedItems {
    /// What may still be sent before the host has taken something.
    room: Arc<Semaphore>,
    /// What each item took of it that the host has not taken.
    sent: VecDeque<u32>,
}

/// The host's answer.
type Replied = Result<ArrivedValue, WorkerFault>;
/// A part of a subscription: an item, or its end.
type Happened = Result<Option<ArrivedValue>, WorkerFault>;

/// Who waits for an answer of the host's.
#[derive(Debug)]
enum ReplyWaiter {
    Call(oneshot::Sender<Replied>),
    Subscription(mpsc::UnboundedSender<Happened>),
    /// The waiter has given up; the host's last word is still to come.
    GivenUp,
}

impl Bridge {
    pub(super) fn new(guest: Guest, sid: u64, operations: Vec<EnvOperation>) -> Arc<Self> {
        Arc::new(Self {
            guest,
            sid,
            operations,
            calls: AtomicU64::new(0),
            state: Mutex::default(),
        })
    }

    /// Calls that the session has made.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The host answered a call, or ended one with it.
    pub(super) fn replied(&self, id: u64, reply: alknet_worker::WorkerReply, fds: Vec<OwnedFd>) {
        let reply = match reply {
            alknet_worker::WorkerReply::Ok(value) => Ok(ArrivedValue::new(value, fds)),
            alknet_worker::WorkerReply::Err(fault) => Err(fault),
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

    /// Something of a subscription came.
    pub(super) fn happened(&self, id: u64, event: WorkerEvent, fds: Vec<OwnedFd>) {
        let event = match event {
            WorkerEvent::Item(value) => Ok(Some(ArrivedValue::new(value, fds))),
            WorkerEvent::End => Ok(None),
            WorkerEvent::Fail(fault) => Err(fault),
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

    pub(super) fn handle_message(&self, told: HostMessage) {
        let mut state = lock(&self.state);
        match told {
            HostMessage::Heard(frames) => {
                let heard = frames.min(state.unheard.len());
                let bytes: usize = state.unheard.drain(..heard).sum();
                state.unheard_bytes -= bytes;
                self.send_waiting(&mut state);
            }
            HostMessage::Registered(outcome) => {
                if let Some(asked) = state.registering.pop_front() {
                    if outcome.is_ok() {
                        state.inputs.insert(asked.name, asked.input);
                    }
                    // The script may have ended.
                    let _ = asked.waits.send(outcome);
                }
            }
            HostMessage::Taken(entry) => {
                if let Some(serving) = state.serving.get_mut(&entry) {
                    // The host takes items in the order in which they were sent.
                    let permits = serving.sent.pop_front().unwrap_or_default();
                    serving.room.add_permits(permits as usize);
                }
            }
        }
    }

    /// Refuses an input that the operation's own schema does not take.
    pub(super) fn check_input(&self, name: &str, input: &Value) -> Result<(), ScriptFailure> {
        let schema = lock(&self.state).inputs.get(name).map(Arc::clone);
        // The host calls operations that it has taken only; others are not found later.
        let checked = schema.map_or(Ok(()), |schema| schema.validate(input));
        checked.map_err(|misfit| {
            let text = format!("the input does not match the schema: {misfit}");
            ScriptFailure::new(RuntimeCode::Limit, text)
        })
    }

    /// A call of the host's may yield items from now on.
    pub(super) fn serves(&self, entry: u64) {
        let serving = ServedItems {
            room: Arc::new(Semaphore::new(UNACKNOWLEDGED)),
            sent: VecDeque::new(),
        };
        lock(&self.state).serving.insert(entry, serving);
    }

    /// It is over.
    pub(super) fn served(&self, entry: u64) {
        if let Some(serving) = lock(&self.state).serving.remove(&entry) {
            serving.room.close();
        }
    }

    /// Closes the bridge: the session's script is about to end, and takes no more answers.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.open.clear();
        state.registering.clear();
        state.lines.clear();
        // Calls that have an answer get it: the host still counts them.
        for waiting in std::mem::take(&mut state.queue) {
            if let QueuedFrame::Result(result) = waiting {
                result.send();
            }
        }
    }

    /// Takes a number for a wish, if there is room for one.
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

    /// The script does not wait any more.
    fn give_up(&self, id: u64) {
        let mut state = lock(&self.state);
        // Without an entry the last word has come, and there is nothing to end.
        if let Some(open) = state.open.get_mut(&id) {
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

    /// Sends what begins something that is answered; returns the number that it is answered by.
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
        // What the script wrote before this comes first.
        self.flush_locked(&mut state);
        let id = self.open(&mut state, waits)?;
        self.send(&mut state, message(id, input, opts), fds);
        Ok(id)
    }
}
