//! An isolate's host, over the worker's frames.
//!
//! Each wish of the script has a number; the answer comes under the same one. What the host has not
//! taken yet is bounded: beyond that, frames wait here, in their order.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use alknet_runtime::{
    BoxFuture, CallOptions, Host, Items, Level, OpError, Operation, Registration, Reply,
};
use alknet_worker::{
    Blob, Body, Event, Fault, FrameError, FromWorker, Guest, GuestCall, Mapped, limits,
};
use bytes::Bytes;
use futures_util::Stream;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::lock;
use crate::limits::{LINES_BYTES, UNACKNOWLEDGED, UNHEARD_MAX};
use crate::wire::{self, Answer, Down, Json, Offer, Opts, Up};

/// One session's way to the host.
#[derive(Debug)]
pub(super) struct Bridge {
    guest: Guest,
    sid: u64,
    operations: Vec<Operation>,
    calls: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<u64, Open>,
    registering: VecDeque<oneshot::Sender<Result<(), OpError>>>,
    /// Items that may be sent, by the host's call that asked for them.
    serving: HashMap<u64, Arc<Semaphore>>,
    lines: Vec<(Level, String)>,
    lines_bytes: usize,
    unheard: usize,
    queue: VecDeque<Waiting>,
    closed: bool,
}

/// Who waits for an answer of the host's.
#[derive(Debug)]
enum Open {
    Call(oneshot::Sender<(alknet_worker::Reply, Vec<OwnedFd>)>),
    Subscription(mpsc::UnboundedSender<(Event, Vec<OwnedFd>)>),
    /// Nobody any more; the host's last word is still to come.
    GivenUp,
}

#[derive(Debug)]
enum Waiting {
    Frame(FromWorker, Vec<OwnedFd>),
    Result(Verdict),
}

/// The answer to a call of the host's, when everything before it has been sent.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) guest: Guest,
    pub(super) call: GuestCall,
    pub(super) reply: alknet_worker::Reply,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) heap: u64,
    pub(super) external: u64,
}

impl Verdict {
    fn send(self) {
        let sent = self
            .guest
            .finish(&self.call, self.reply, self.fds, self.heap, self.external);
        if let Err(error) = sent {
            // Too large for a frame, or the host is gone, which ends this process.
            let fault = Fault {
                code: "E_ENCODE".to_owned(),
                message: format!("the answer cannot be sent: {error}"),
                details: Body::default(),
            };
            let reply = alknet_worker::Reply::Err(fault);
            let _ = self.guest.finish(&self.call, reply, Vec::new(), 0, 0);
        }
    }
}

impl Bridge {
    pub(super) fn new(guest: Guest, sid: u64, operations: Vec<Operation>) -> Arc<Self> {
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
    pub(super) fn replied(&self, id: u64, reply: alknet_worker::Reply, fds: Vec<OwnedFd>) {
        match lock(&self.state).open.remove(&id) {
            Some(Open::Call(waits)) => {
                // Whoever waited may be gone.
                let _ = waits.send((reply, fds));
            }
            Some(Open::Subscription(waits)) => {
                let last = match reply {
                    alknet_worker::Reply::Err(fault) => Event::Fail(fault),
                    alknet_worker::Reply::Ok(_) => Event::End,
                };
                let _ = waits.send((last, fds));
            }
            Some(Open::GivenUp) | None => {}
        }
    }

    /// Something of a subscription came.
    pub(super) fn happened(&self, id: u64, event: Event, fds: Vec<OwnedFd>) {
        let mut state = lock(&self.state);
        let last = matches!(event, Event::End | Event::Fail(_));
        if let Some(Open::Subscription(waits)) = state.open.get(&id) {
            let _ = waits.send((event, fds));
        }
        if last {
            state.open.remove(&id);
        }
    }

    pub(super) fn told(&self, told: Down) {
        let mut state = lock(&self.state);
        match told {
            Down::Heard(frames) => {
                state.unheard = state.unheard.saturating_sub(frames);
                self.send_waiting(&mut state);
            }
            Down::Registered(outcome) => {
                if let Some(waits) = state.registering.pop_front() {
                    let _ = waits.send(outcome);
                }
            }
            Down::Taken(entry) => {
                if let Some(room) = state.serving.get(&entry) {
                    room.add_permits(1);
                }
            }
        }
    }

    /// A call of the host's may yield items from now on.
    pub(super) fn serves(&self, entry: u64) {
        let room = Arc::new(Semaphore::new(UNACKNOWLEDGED));
        lock(&self.state).serving.insert(entry, room);
    }

    /// It is over.
    pub(super) fn served(&self, entry: u64) {
        if let Some(room) = lock(&self.state).serving.remove(&entry) {
            room.close();
        }
    }

    /// Answers a call of the host's, behind everything that was said before.
    pub(super) fn finish(&self, result: Verdict) {
        let mut state = lock(&self.state);
        self.flush_locked(&mut state);
        match state.queue.is_empty() {
            true => result.send(),
            false => state.queue.push_back(Waiting::Result(result)),
        }
    }

    /// Nobody listens any more.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.open.clear();
        state.registering.clear();
        state.lines.clear();
        // Calls that have an answer get it: the host still counts them.
        for waiting in std::mem::take(&mut state.queue) {
            if let Waiting::Result(result) = waiting {
                result.send();
            }
        }
    }

    pub(super) fn has_lines(&self) -> bool {
        !lock(&self.state).lines.is_empty()
    }

    /// Sends the lines of the console that were collected.
    pub(super) fn flush(&self) {
        self.flush_locked(&mut lock(&self.state));
    }

    fn flush_locked(&self, state: &mut State) {
        if state.lines.is_empty() {
            return;
        }
        state.lines_bytes = 0;
        let lines = Up::Lines(std::mem::take(&mut state.lines));
        self.tell(state, &lines);
    }

    fn tell(&self, state: &mut State, up: &Up) {
        // What a script's own value made too deep was refused before it came here.
        if let Ok(body) = wire::body(up) {
            let sid = self.sid;
            self.send(state, FromWorker::Tell { sid, body }, Vec::new());
        }
    }

    /// Sends a frame, or lets it wait until the host has taken some.
    fn send(&self, state: &mut State, message: FromWorker, fds: Vec<OwnedFd>) {
        if state.closed {
            return;
        }
        state.queue.push_back(Waiting::Frame(message, fds));
        self.send_waiting(state);
    }

    fn send_waiting(&self, state: &mut State) {
        while let Some(waiting) = state.queue.pop_front() {
            match waiting {
                Waiting::Result(result) => result.send(),
                Waiting::Frame(..) if state.unheard >= UNHEARD_MAX => {
                    state.queue.push_front(waiting);
                    return;
                }
                Waiting::Frame(message, fds) => {
                    state.unheard += 1;
                    // A host that is gone ends this process; a frame that is none was checked
                    // before.
                    let _ = self.guest.send(&message, fds);
                }
            }
        }
    }

    /// Takes a number for a wish, if there is room for one.
    fn open(&self, state: &mut State, open: Open) -> Result<u64, OpError> {
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
        if let Some(open) = state.open.get_mut(&id) {
            *open = Open::GivenUp;
            let sid = self.sid;
            self.send(&mut state, FromWorker::Cancel { sid, id }, Vec::new());
        }
    }

    fn begin_call(
        &self,
        path: &str,
        input: &Value,
        opts: &mut Opts,
        tail: Option<Bytes>,
    ) -> Result<(u64, oneshot::Receiver<(alknet_worker::Reply, Vec<OwnedFd>)>), OpError> {
        let mut fds = Vec::new();
        opts.tail = tail
            .map(|tail| Blob::pack(tail.to_vec(), &mut fds))
            .transpose()
            .map_err(|error| unsendable(&error))?;
        let input = wire::blob(input, &mut fds).map_err(|error| unsendable(&error))?;
        let opts = wire::body(opts).map_err(|error| unsendable(&error))?;
        let (waits, answer) = oneshot::channel();
        let mut state = lock(&self.state);
        self.flush_locked(&mut state);
        let id = self.open(&mut state, Open::Call(waits))?;
        let message = FromWorker::Call {
            sid: self.sid,
            id,
            op: path.to_owned(),
            input,
            opts,
        };
        self.send(&mut state, message, fds);
        Ok((id, answer))
    }

    fn begin_subscription(
        &self,
        path: &str,
        input: &Value,
        options: CallOptions,
    ) -> Result<(u64, mpsc::UnboundedReceiver<(Event, Vec<OwnedFd>)>), OpError> {
        let mut fds = Vec::new();
        let opts = Opts {
            options,
            ..Opts::default()
        };
        let input = wire::blob(input, &mut fds).map_err(|error| unsendable(&error))?;
        let opts = wire::body(&opts).map_err(|error| unsendable(&error))?;
        let (waits, events) = mpsc::unbounded_channel();
        let mut state = lock(&self.state);
        self.flush_locked(&mut state);
        let id = self.open(&mut state, Open::Subscription(waits))?;
        let message = FromWorker::Subscribe {
            sid: self.sid,
            id,
            op: path.to_owned(),
            input,
            opts,
        };
        self.send(&mut state, message, fds);
        Ok((id, events))
    }
}

/// What the isolate holds is the bridge itself.
#[derive(Debug)]
struct Wish {
    bridge: Arc<Bridge>,
    id: u64,
    done: bool,
}

impl Drop for Wish {
    fn drop(&mut self) {
        if !self.done {
            self.bridge.give_up(self.id);
        }
    }
}

/// What an isolate holds.
#[derive(Debug)]
pub(super) struct Side(pub(super) Arc<Bridge>);

impl Host for Side {
    fn call(
        &self,
        path: &str,
        input: Value,
        options: CallOptions,
    ) -> BoxFuture<Result<Reply, OpError>> {
        let mut opts = Opts {
            options,
            ..Opts::default()
        };
        let begun = self.0.begin_call(path, &input, &mut opts, None);
        await_reply(Arc::clone(&self.0), begun)
    }

    fn call_with_bytes(
        &self,
        path: &str,
        input: Value,
        bytes: Bytes,
        map: bool,
    ) -> BoxFuture<Result<Reply, OpError>> {
        let mut opts = Opts {
            map,
            ..Opts::default()
        };
        let tail = (!bytes.is_empty()).then_some(bytes);
        let begun = self.0.begin_call(path, &input, &mut opts, tail);
        await_reply(Arc::clone(&self.0), begun)
    }

    fn subscribe(&self, path: &str, input: Value, options: CallOptions) -> Items {
        match self.0.begin_subscription(path, &input, options) {
            Err(error) => Box::pin(futures_util::stream::iter([Err(error)])),
            Ok((id, events)) => {
                let wish = Wish {
                    bridge: Arc::clone(&self.0),
                    id,
                    done: false,
                };
                Box::pin(Following {
                    wish,
                    events,
                    yielded: 0,
                    acknowledged: 0,
                })
            }
        }
    }

    fn list(&self, prefix: &str) -> Vec<Operation> {
        let fits = |operation: &&Operation| operation.path.starts_with(prefix);
        self.0.operations.iter().filter(fits).cloned().collect()
    }

    fn register(
        &self,
        registration: Registration,
        script: [u8; 32],
    ) -> BoxFuture<Result<(), OpError>> {
        let offer: Offer = registration;
        let spec = match wire::body(&offer) {
            Ok(spec) => spec,
            Err(error) => return Box::pin(std::future::ready(Err(unsendable(&error)))),
        };
        let (waits, answer) = oneshot::channel();
        let mut state = lock(&self.0.state);
        if state.closed {
            return Box::pin(std::future::ready(Err(gone())));
        }
        self.0.flush_locked(&mut state);
        state.registering.push_back(waits);
        let message = FromWorker::Register {
            sid: self.0.sid,
            spec,
            source_hash: alknet_worker::Hash(script),
        };
        self.0.send(&mut state, message, Vec::new());
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn emit(&self, entry: u64, item: Value) -> BoxFuture<Result<(), OpError>> {
        let bridge = Arc::clone(&self.0);
        let room = lock(&self.0.state).serving.get(&entry).cloned();
        Box::pin(async move {
            let Some(room) = room else { return Err(gone()) };
            let Ok(permit) = room.acquire().await else {
                return Err(gone());
            };
            // Given back when the host says that an item was taken.
            permit.forget();
            let mut state = lock(&bridge.state);
            bridge.flush_locked(&mut state);
            bridge.tell(&mut state, &Up::Item(entry, Json(item)));
            Ok(())
        })
    }

    fn log(&self, level: Level, text: &str) {
        let mut state = lock(&self.0.state);
        state.lines_bytes += text.len() + 1;
        state.lines.push((level, text.to_owned()));
        if state.lines_bytes >= LINES_BYTES {
            self.0.flush_locked(&mut state);
        }
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let patterns =
            jsonschema::PatternOptions::regex().size_limit(alknet_call::limits::PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .with_pattern_options(patterns)
            .build(schema);
        let validator = validator.map_err(|error| format!("the schema is none: {error}"))?;
        validator
            .validate(value)
            .map_err(|error| format!("{}: {error}", error.instance_path()))
    }
}

fn await_reply(
    bridge: Arc<Bridge>,
    begun: Result<(u64, oneshot::Receiver<(alknet_worker::Reply, Vec<OwnedFd>)>), OpError>,
) -> BoxFuture<Result<Reply, OpError>> {
    let (id, answer) = match begun {
        Ok(begun) => begun,
        Err(error) => return Box::pin(std::future::ready(Err(error))),
    };
    let wish = Wish {
        bridge,
        id,
        done: false,
    };
    Box::pin(async move {
        // As a whole: a block that took only the flag would drop the wish here and now.
        let mut wish = wish;
        let answer = answer.await;
        wish.done = true;
        let (reply, fds) = answer.map_err(|_| gone())?;
        match reply {
            alknet_worker::Reply::Ok(blob) => answered(blob, &fds),
            alknet_worker::Reply::Err(fault) => Err(op_error(&fault)),
        }
    })
}

/// The script's side of a subscription. An item counts as taken when the isolate, which keeps as many
/// as may wait, asks for the one that many later.
struct Following {
    wish: Wish,
    events: mpsc::UnboundedReceiver<(Event, Vec<OwnedFd>)>,
    yielded: u32,
    acknowledged: u32,
}

impl Following {
    fn acknowledge(&mut self) {
        let kept = u32::try_from(UNACKNOWLEDGED - 1).unwrap_or(u32::MAX);
        let taken = self.yielded.saturating_sub(kept);
        let more = taken.saturating_sub(self.acknowledged);
        if more > 0 {
            self.acknowledged = taken;
            let bridge = &self.wish.bridge;
            let mut state = lock(&bridge.state);
            bridge.tell(&mut state, &Up::Taken(self.wish.id, more));
        }
    }
}

impl Stream for Following {
    type Item = Result<Reply, OpError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        if self.wish.done {
            return Poll::Ready(None);
        }
        self.acknowledge();
        let event = match self.events.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(event) => event,
        };
        let Some((event, fds)) = event else {
            self.wish.done = true;
            return Poll::Ready(Some(Err(gone())));
        };
        Poll::Ready(match event {
            Event::Item(blob) => {
                self.yielded += 1;
                Some(answered(blob, &fds))
            }
            Event::End => {
                self.wish.done = true;
                None
            }
            Event::Fail(fault) => {
                self.wish.done = true;
                Some(Err(op_error(&fault)))
            }
        })
    }
}

/// The isolate's form of an answer.
fn answered(blob: Blob, fds: &[OwnedFd]) -> Result<Reply, OpError> {
    let answer: Answer = wire::open(blob, fds).map_err(|error| unsendable(&error))?;
    Ok(match answer {
        Answer::Json(value) => Reply::Json(value.0),
        Answer::Mixed(value, tail) => {
            let sealed = tail.sealed(fds).map_err(|error| unsendable(&error))?;
            let bytes = match sealed {
                Some(sealed) => {
                    let mapped = sealed.map().map_err(|error| unsendable(&error))?;
                    Bytes::from_owner(mapped)
                }
                None => tail
                    .read(fds, u64::MAX)
                    .map_err(|error| unsendable(&error))?
                    .into(),
            };
            Reply::Mixed(value.0, bytes)
        }
        Answer::File(value, at) => {
            let fd = fds
                .get(at)
                .and_then(|fd| fd.try_clone().ok())
                .ok_or_else(gone)?;
            let mapped = Mapped::of_file(fd).map_err(|error| unsendable(&error))?;
            let bytes = Bytes::from_owner(mapped);
            let mut value = value.0;
            if let Some(members) = value.as_object_mut() {
                // `tensor.open` looks for the whole file here.
                let whole = serde_json::json!({ "$bin": [0, bytes.len()] });
                members.insert("file".to_owned(), whole);
            }
            Reply::Mixed(value, bytes)
        }
    })
}

fn op_error(fault: &Fault) -> OpError {
    wire::read(&fault.details).unwrap_or_else(|_| OpError::new(&fault.code, &fault.message))
}

fn unsendable(error: &FrameError) -> OpError {
    OpError::new("INVALID_INPUT", format!("the value cannot travel: {error}"))
}

fn gone() -> OpError {
    OpError::new("ABORTED", "the session is over")
}
