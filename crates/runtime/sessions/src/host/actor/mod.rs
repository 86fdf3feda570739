//! The task of a session: it alone exchanges messages with the worker, and it lives as long as the session.
//!
//! `outgoing_calls` handles the script's requests to the node, and `console` its output.

mod console;
mod outgoing_calls;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::Env;
use alknet_core::Capabilities;
use alknet_runtime::{CallRecorder, ConsoleLevel, OpError, RuntimeCode, ScriptFailure};
use alknet_worker::{
    Bytes32, CallLimits, CborBody, FromWorkerMessage, SessionNotice, WorkerCall, WorkerRequest,
};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::allow_list::CallAllowList;
use super::memory::{MemoryReservation, ReadRefusal};
use super::outgoing::{OutgoingCalls, OutgoingReply};
use super::session::WeakSession;
use super::shared::{SessionEndReason, SessionShared};
use super::{Console, ScriptSession, ScriptSessions, SessionSpec};
use crate::limits::{HEARD_BYTES, HEARD_EVERY};
use crate::wire::{self, GuestMessage, HostMessage};
pub use console::CONSOLE_TARGET;
use console::LogBudget;

/// Commands from the holders of a session.
pub(super) enum SessionCommand {
    /// Ends the session.
    Close(SessionEndReason),
    /// Sets the listener of the console.
    Console(Option<Console>),
    /// Ends the session if no call runs in it. Otherwise the actor replies.
    EndIfIdle(oneshot::Sender<()>),
    /// A call into the session has ended. The actor replies once it has handled all earlier messages.
    Ended(u64, Option<oneshot::Sender<()>>),
    /// Sets the recorder of the script's calls.
    Record(Option<CallRecorder>),
    /// Begins a call into the session.
    Start(Box<CallStart>),
    /// The consumer took an item that the script yielded in a call.
    Taken(u64),
}

/// A call into the session.
pub(super) struct CallStart {
    pub(super) request: SessionRequest,
    pub(super) limits: CallLimits,
    /// What crashes of the worker count against.
    pub(super) operation: Option<Bytes32>,
    /// The environment of the request that the call belongs to; without it, the script can call nothing.
    pub(super) env: Option<Env>,
    /// The consumer of the items that the script yields.
    pub(super) items: Option<mpsc::Sender<YieldedItem>>,
    pub(super) begun: oneshot::Sender<WorkerCall>,
    /// Ends the call with a failure that the node itself found.
    pub(super) stop: oneshot::Sender<ScriptFailure>,
}

/// An item that a script yields.
pub(super) struct YieldedItem {
    /// The call that yielded it.
    pub(super) call: u64,
    pub(super) value: Value,
    pub(super) _held: MemoryReservation,
}

impl std::fmt::Debug for SessionCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Close(_) => "Close",
            Self::Console(_) => "Console",
            Self::EndIfIdle(_) => "EndIfIdle",
            Self::Ended(..) => "Ended",
            Self::Record(_) => "Record",
            Self::Start(_) => "Start",
            Self::Taken(_) => "Taken",
        })
    }
}

/// The kind of a call into a session.
pub(super) enum SessionRequest {
    /// To do work.
    Call(WorkerRequest),
    /// To say goodbye.
    Farewell,
}

/// A running call into the session.
struct RunningScriptCall {
    id: u64,
    env: Option<Env>,
    items: Option<mpsc::Sender<YieldedItem>>,
    farewell: bool,
    gpu_left: Duration,
    stop: Option<oneshot::Sender<ScriptFailure>>,
}

pub(super) struct SessionActor {
    sessions: Arc<ScriptSessions>,
    /// Before `queue`: a closed queue says that the worker has one session less.
    worker: alknet_worker::WorkerSession,
    shared: Arc<SessionShared>,
    weak_session: WeakSession,
    layer: Arc<alknet_call::SandboxSession>,
    queue: mpsc::UnboundedReceiver<SessionCommand>,
    outgoing: OutgoingCalls,
    replies: mpsc::UnboundedReceiver<OutgoingReply>,
    /// The running calls, in the order in which they began.
    running: Vec<RunningScriptCall>,
    /// The names of the session's own operations.
    offered: HashSet<String>,
    reach: CallAllowList,
    capabilities: Capabilities,
    calls_max: u64,
    console: Option<Console>,
    record: Option<CallRecorder>,
    log: LogBudget,
    heard: usize,
    heard_bytes: usize,
    /// The worker is gone, and the calls that ran in it are still to end.
    is_worker_lost: bool,
}

/// Whether the session continues.
type Next = ControlFlow<SessionEndReason>;

const CONTINUE: Next = ControlFlow::Continue(());
/// An honest worker never causes this.
const PROTOCOL_VIOLATION: Next = ControlFlow::Break(SessionEndReason::WorkerLost);

impl SessionActor {
    pub(super) fn new(
        sessions: &Arc<ScriptSessions>,
        worker: alknet_worker::WorkerSession,
        shared: Arc<SessionShared>,
        session: &ScriptSession,
        queue: mpsc::UnboundedReceiver<SessionCommand>,
        spec: SessionSpec,
        reach: CallAllowList,
    ) -> Self {
        let (sender, replies) = mpsc::unbounded_channel();
        let files = sessions.config.files.clone();
        let descriptors = worker.descriptor_quota();
        Self {
            sessions: Arc::clone(sessions),
            worker,
            shared,
            weak_session: session.weak_session.clone(),
            layer: session.layer(),
            queue,
            outgoing: OutgoingCalls::new(sender, files, descriptors),
            replies,
            running: Vec::new(),
            offered: HashSet::new(),
            reach,
            capabilities: spec.capabilities,
            calls_max: spec.limits.runtime.calls,
            console: spec.console,
            record: None,
            log: LogBudget::new(),
            heard: 0,
            heard_bytes: 0,
            is_worker_lost: false,
        }
    }

    pub(super) async fn run(mut self) {
        let reason = loop {
            let next = tokio::select! {
                // Commands come first, so that a session whose worker sends without end can still be closed.
                biased;
                command = self.queue.recv() => match command {
                    Some(command) => self.take(command),
                    None => ControlFlow::Break(SessionEndReason::Done),
                },
                reply = self.replies.recv() => match reply {
                    Some(reply) => self.pass_on(reply),
                    None => CONTINUE,
                },
                frame = self.worker.next(), if !self.is_worker_lost => match frame {
                    Some((message, fds)) => self.hear(message, fds),
                    None => self.lose_worker(),
                },
            };
            if let ControlFlow::Break(reason) = next {
                break reason;
            }
        };
        // The calls of a session that has ended must not go on.
        self.outgoing.give_up_all();
        self.sessions.forget(&self.shared, reason);
    }

    /// The worker has ended. If it was killed because a call had reached a limit, that call says so, and the limit is why
    /// the session ends: the actor may see the end of the worker before it.
    fn lose_worker(&mut self) -> Next {
        self.is_worker_lost = true;
        self.after_loss()
    }

    fn after_loss(&self) -> Next {
        match self.is_worker_lost && self.running.is_empty() {
            true => ControlFlow::Break(SessionEndReason::WorkerLost),
            false => CONTINUE,
        }
    }

    fn take(&mut self, command: SessionCommand) -> Next {
        match command {
            SessionCommand::Close(reason) => return ControlFlow::Break(reason),
            SessionCommand::Console(console) => self.console = console,
            SessionCommand::EndIfIdle(busy) => {
                if self.running.is_empty() {
                    return ControlFlow::Break(SessionEndReason::Done);
                }
                // The session that wanted the room may have been given up.
                let _ = busy.send(());
            }
            SessionCommand::Ended(id, heard) => {
                while let Some((message, fds)) = self.worker.try_next() {
                    if let stop @ ControlFlow::Break(_) = self.hear(message, fds) {
                        return stop;
                    }
                }
                self.running.retain(|running| running.id != id);
                self.show_running();
                if let Some(heard) = heard {
                    // The caller may have given up.
                    let _ = heard.send(());
                }
                return self.after_loss();
            }
            SessionCommand::Record(record) => {
                if let Some(record) = &record {
                    record.keep_in(self.shared.memory().recording());
                }
                self.record = record;
            }
            SessionCommand::Start(start) => self.start(*start),
            SessionCommand::Taken(id) => {
                // If the worker cannot receive this, it is about to be lost.
                let _ = self.tell(&HostMessage::Taken(id));
            }
        }
        CONTINUE
    }

    fn start(&mut self, start: CallStart) {
        let farewell = matches!(start.request, SessionRequest::Farewell);
        let call = match start.request {
            SessionRequest::Call(request) => {
                self.worker.call(request, start.limits, start.operation)
            }
            SessionRequest::Farewell => self.worker.drain(),
        };
        let id = call.id();
        if start.begun.send(call).is_err() {
            // The caller is gone, and dropping its handle has given up the call.
            return;
        }
        self.sessions.count_call();
        self.running.push(RunningScriptCall {
            id,
            env: start.env,
            items: start.items,
            farewell,
            gpu_left: start.limits.gpu.unwrap_or(Duration::MAX),
            stop: Some(start.stop),
        });
        self.show_running();
    }

    fn show_running(&self) {
        let draining = self.running.iter().any(|running| running.farewell);
        self.shared.set_running(self.running.len(), draining);
    }

    /// The call that the script's request belongs to. The engine cannot tell which of several calls it is, so this is
    /// the newest of those that are nearest to a request. Calls that the session makes into itself end before that
    /// call, and the requests that they began must not end with them.
    fn course(&self) -> Option<(u64, &Env)> {
        let newest_first = self.running.iter().rev();
        newest_first
            .filter_map(|running| Some((running.id, running.env.as_ref()?)))
            .min_by_key(|(_, env)| env.depth())
    }

    /// Handles one message of the worker.
    fn hear(&mut self, message: FromWorkerMessage, fds: Vec<OwnedFd>) -> Next {
        let next = self.handle(message, fds);
        if next == PROTOCOL_VIOLATION {
            self.fail_running();
        }
        next
    }

    /// Ends all calls with the failure of a worker that broke the protocol. Without this they would end as calls that
    /// their callers gave up, which speaks against no script.
    fn fail_running(&mut self) {
        let alone = self.running.len() == 1;
        for stop in self.running.iter_mut().filter_map(|it| it.stop.take()) {
            let failure =
                ScriptFailure::new(RuntimeCode::WorkerLost, "the worker broke the protocol");
            // With several calls the node does not know for which of them it did. A call may have ended meanwhile.
            let _ = stop.send(if alone { failure } else { failure.excuse() });
        }
    }

    fn handle(&mut self, message: FromWorkerMessage, fds: Vec<OwnedFd>) -> Next {
        self.heard += 1;
        self.heard_bytes += message.bytes();
        // The worker sends only a limited number of frames before it gets this message.
        if self.heard >= HEARD_EVERY || self.heard_bytes >= HEARD_BYTES {
            self.heard_bytes = 0;
            let heard = std::mem::take(&mut self.heard);
            if self.tell(&HostMessage::Heard(heard)).is_err() {
                return PROTOCOL_VIOLATION;
            }
        }
        match message {
            FromWorkerMessage::Call {
                id,
                op,
                input,
                opts,
                ..
            } => self.begin_outgoing(id, &op, false, (input, opts), fds),
            FromWorkerMessage::Subscribe {
                id,
                op,
                input,
                opts,
                ..
            } => self.begin_outgoing(id, &op, true, (input, opts), fds),
            FromWorkerMessage::Cancel { id, .. } => {
                // Otherwise the last answer is on its way, and another one would be too many.
                if self.outgoing.give_up(id) {
                    let error = OpError::new("ABORTED", "the script gave it up");
                    return self.refuse(id, &error, None);
                }
                CONTINUE
            }
            FromWorkerMessage::Register {
                spec, source_hash, ..
            } => self.register(&spec, source_hash),
            // The message has bytes, which take no more memory than their frame, and lines, whose number is bounded.
            FromWorkerMessage::Tell { body, .. } => match wire::read(&body) {
                Ok(up) => self.handle_message(up),
                Err(_) => PROTOCOL_VIOLATION,
            },
            FromWorkerMessage::Log { text, .. } => {
                self.line(ConsoleLevel::Info, text);
                CONTINUE
            }
            _ => CONTINUE,
        }
    }

    fn handle_message(&mut self, up: GuestMessage) -> Next {
        match up {
            GuestMessage::Taken(id, items) => self.outgoing.allow(id, items as usize),
            GuestMessage::Item(id, item) => return self.item(id, &item),
            GuestMessage::Lines(lines) => {
                for (level, text) in lines {
                    self.line(level, text);
                }
            }
        }
        CONTINUE
    }

    /// Handles an item that the script yields in a call.
    fn item(&mut self, id: u64, item: &CborBody) -> Next {
        let running = self.running.iter_mut().find(|running| running.id == id);
        let Some((items, stop)) = running.and_then(|it| Some((it.items.as_ref()?, &mut it.stop)))
        else {
            // The caller wanted no items, or wants no more.
            return CONTINUE;
        };
        let item = match self.shared.memory().read::<wire::Json>(item.as_bytes()) {
            Ok((value, held)) => YieldedItem {
                call: id,
                value: value.0,
                _held: held,
            },
            Err(ReadRefusal::Wrong) => return PROTOCOL_VIOLATION,
            Err(full @ (ReadRefusal::Full | ReadRefusal::TooMuch)) => {
                let stop = stop.take();
                self.excuse(full);
                if let Some(stop) = stop {
                    // The call may have ended at this moment.
                    let _ = stop.send(ScriptFailure::new(
                        RuntimeCode::Quota,
                        full.error("item").message,
                    ));
                }
                return CONTINUE;
            }
        };
        // The channel has room for as many items as an honest worker sends before one is taken.
        match items.try_send(item) {
            Err(mpsc::error::TrySendError::Full(_)) => PROTOCOL_VIOLATION,
            _ => CONTINUE,
        }
    }

    /// Marks all running calls as excused, because others left no room: the engine cannot tell which call was
    /// refused.
    fn excuse(&self, refused: ReadRefusal) {
        if refused == ReadRefusal::Full {
            self.shared.meet_full();
            let courses = self.running.iter().filter_map(|it| it.env.as_ref());
            courses.for_each(Env::excuse);
        }
    }

    fn tell(&self, down: &HostMessage) -> Result<(), ()> {
        let body = wire::body(down).map_err(drop)?;
        self.worker
            .tell(SessionNotice::Role(body), Vec::new())
            .map_err(drop)
    }
}
