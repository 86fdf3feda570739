//! The task behind a session: it alone speaks with the worker, and it lives as long as the session.
//!
//! `wishes` is what the script asks of the node, `console` what it says.

mod console;
mod wishes;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::Env;
use alknet_core::Capabilities;
use alknet_runtime::{Code, Failure, Level, OpError, Record};
use alknet_worker::{Body, Call, CallLimits, FromWorker, Hash, Request, Told};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::memory::{Held, Refused};
use super::outgoing::{Outgoing, Said};
use super::reach::Reach;
use super::session::Entrance;
use super::shared::{Reason, Shared};
use super::{Console, Session, SessionSpec, Sessions};
use crate::limits::{HEARD_BYTES, HEARD_EVERY};
use crate::wire::{self, Down, Up};
use console::LogBudget;

/// What the holders of a session ask for.
pub(super) enum Command {
    /// The session is over.
    Close(Reason),
    /// Who follows the console from now on.
    Console(Option<Console>),
    /// A call into the session ended. Told back once everything was heard that came before.
    Ended(u64, Option<oneshot::Sender<()>>),
    /// Where calls of the script's are written down from now on.
    Record(Option<Record>),
    /// A call into the session begins.
    Start(Box<Start>),
    /// An item that the script yielded in a call was taken.
    Taken(u64),
}

/// A call into the session.
pub(super) struct Start {
    pub(super) asked: Asked,
    pub(super) limits: CallLimits,
    pub(super) bundle: Hash,
    /// In the course of what, and what can be called: nothing without.
    pub(super) env: Option<Env>,
    /// Who takes what the script yields.
    pub(super) items: Option<mpsc::Sender<Item>>,
    pub(super) begun: oneshot::Sender<Call>,
    /// Ends the call with what the node itself saw.
    pub(super) stop: oneshot::Sender<Failure>,
}

/// An item of what a script yields.
pub(super) struct Item {
    /// In which call.
    pub(super) call: u64,
    pub(super) value: Value,
    pub(super) _held: Held,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Close(_) => "Close",
            Self::Console(_) => "Console",
            Self::Ended(..) => "Ended",
            Self::Record(_) => "Record",
            Self::Start(_) => "Start",
            Self::Taken(_) => "Taken",
        })
    }
}

/// What a session is asked.
pub(super) enum Asked {
    /// To work.
    Call(Request),
    /// To leave.
    Farewell,
}

/// A call into the session that runs.
struct Running {
    id: u64,
    env: Option<Env>,
    items: Option<mpsc::Sender<Item>>,
    farewell: bool,
    gpu_left: Duration,
    stop: Option<oneshot::Sender<Failure>>,
}

pub(super) struct Actor {
    sessions: Arc<Sessions>,
    worker: alknet_worker::Session,
    shared: Arc<Shared>,
    entrance: Entrance,
    layer: Arc<alknet_call::Session>,
    queue: mpsc::UnboundedReceiver<Command>,
    outgoing: Outgoing,
    said: mpsc::UnboundedReceiver<Said>,
    /// In the order in which they began.
    running: Vec<Running>,
    /// Names of its own operations.
    offered: HashSet<String>,
    reach: Reach,
    capabilities: Capabilities,
    calls_max: u64,
    console: Option<Console>,
    record: Option<Record>,
    log: LogBudget,
    heard: usize,
    heard_bytes: usize,
}

/// Whether the session goes on.
type Next = ControlFlow<Reason>;

const ON: Next = ControlFlow::Continue(());
/// No honest worker does that.
const LIES: Next = ControlFlow::Break(Reason::WorkerLost);

impl Actor {
    pub(super) fn new(
        sessions: &Arc<Sessions>,
        worker: alknet_worker::Session,
        shared: Arc<Shared>,
        session: &Session,
        queue: mpsc::UnboundedReceiver<Command>,
        spec: SessionSpec,
        reach: Reach,
    ) -> Self {
        let (sender, said) = mpsc::unbounded_channel();
        let files = sessions.config.files.clone();
        Self {
            sessions: Arc::clone(sessions),
            worker,
            shared,
            entrance: session.entrance.clone(),
            layer: session.layer(),
            queue,
            outgoing: Outgoing::new(sender, files),
            said,
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
        }
    }

    pub(super) async fn run(mut self) {
        let reason = loop {
            let next = tokio::select! {
                biased;
                command = self.queue.recv() => match command {
                    Some(command) => self.take(command),
                    None => ControlFlow::Break(Reason::Done),
                },
                said = self.said.recv() => match said {
                    Some(said) => self.pass_on(said),
                    None => ON,
                },
                frame = self.worker.next() => match frame {
                    Some((message, fds)) => self.hear(message, fds),
                    None => ControlFlow::Break(Reason::WorkerLost),
                },
            };
            if let ControlFlow::Break(reason) = next {
                break reason;
            }
        };
        self.outgoing.give_up_all();
        self.sessions.forget(&self.shared, reason);
    }

    fn take(&mut self, command: Command) -> Next {
        match command {
            Command::Close(reason) => return ControlFlow::Break(reason),
            Command::Console(console) => self.console = console,
            Command::Ended(id, heard) => {
                while let Some((message, fds)) = self.worker.try_next() {
                    if let stop @ ControlFlow::Break(_) = self.hear(message, fds) {
                        return stop;
                    }
                }
                self.running.retain(|running| running.id != id);
                self.show_running();
                if let Some(heard) = heard {
                    // Whoever waited may be gone.
                    let _ = heard.send(());
                }
            }
            Command::Record(record) => {
                if let Some(record) = &record {
                    record.keep_in(self.shared.memory().recording());
                }
                self.record = record;
            }
            Command::Start(start) => self.start(*start),
            Command::Taken(id) => {
                // A worker that cannot be told is about to be lost.
                let _ = self.tell(&Down::Taken(id));
            }
        }
        ON
    }

    fn start(&mut self, start: Start) {
        let farewell = matches!(start.asked, Asked::Farewell);
        let call = match start.asked {
            Asked::Call(request) => self.worker.call(request, start.limits, Some(start.bundle)),
            Asked::Farewell => self.worker.drain(),
        };
        let id = call.id();
        if start.begun.send(call).is_err() {
            // Whoever asked is gone, and the call was given up with its handle.
            return;
        }
        self.sessions.count_call();
        self.running.push(Running {
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

    /// In the course of which call the script calls now. The engine cannot tell which of several it
    /// is, so it is the newest of those that are nearest to a request: calls that the session makes
    /// into itself end before it, and what they began must not end with them.
    fn course(&self) -> Option<(u64, &Env)> {
        let newest_first = self.running.iter().rev();
        newest_first
            .filter_map(|running| Some((running.id, running.env.as_ref()?)))
            .min_by_key(|(_, env)| env.depth())
    }

    /// One message of the worker's.
    fn hear(&mut self, message: FromWorker, fds: Vec<OwnedFd>) -> Next {
        self.heard += 1;
        self.heard_bytes += message.bytes();
        if self.heard >= HEARD_EVERY || self.heard_bytes >= HEARD_BYTES {
            self.heard_bytes = 0;
            let heard = std::mem::take(&mut self.heard);
            if self.tell(&Down::Heard(heard)).is_err() {
                return LIES;
            }
        }
        match message {
            FromWorker::Call {
                id,
                op,
                input,
                opts,
                ..
            } => self.wish(id, &op, false, (input, opts), fds),
            FromWorker::Subscribe {
                id,
                op,
                input,
                opts,
                ..
            } => self.wish(id, &op, true, (input, opts), fds),
            FromWorker::Cancel { id, .. } => {
                if self.outgoing.give_up(id) {
                    let error = OpError::new("ABORTED", "the script gave it up");
                    return self.refuse(id, &error, None);
                }
                ON
            }
            FromWorker::Register {
                spec, source_hash, ..
            } => self.register(&spec, source_hash),
            // Texts and bytes, which take no more in memory than in their frame.
            FromWorker::Tell { body, .. } => match wire::read(&body) {
                Ok(up) => self.told(up),
                Err(_) => LIES,
            },
            FromWorker::Log { text, .. } => {
                self.line(Level::Info, text);
                ON
            }
            _ => ON,
        }
    }

    fn told(&mut self, up: Up) -> Next {
        match up {
            Up::Taken(id, items) => self.outgoing.allow(id, items as usize),
            Up::Item(id, item) => return self.item(id, &item),
            Up::Lines(lines) => {
                for (level, text) in lines {
                    self.line(level, text);
                }
            }
        }
        ON
    }

    /// An item of what the script yields in a call.
    fn item(&mut self, id: u64, item: &Body) -> Next {
        let running = self.running.iter_mut().find(|running| running.id == id);
        let Some((items, stop)) = running.and_then(|it| Some((it.items.as_ref()?, &mut it.stop)))
        else {
            // Nobody asked for items, or does no more.
            return ON;
        };
        let item = match self.shared.memory().read::<wire::Json>(item.as_bytes()) {
            Ok((value, held)) => Item {
                call: id,
                value: value.0,
                _held: held,
            },
            Err(Refused::Wrong) => return LIES,
            Err(full @ (Refused::Full | Refused::TooMuch)) => {
                let stop = stop.take();
                self.excuse(full);
                if let Some(stop) = stop {
                    // It may have ended at this moment.
                    let _ = stop.send(Failure::new(Code::Quota, full.error("item").message));
                }
                return ON;
            }
        };
        match items.try_send(item) {
            Err(mpsc::error::TrySendError::Full(_)) => LIES,
            _ => ON,
        }
    }

    /// Notes with every call that runs here that others left no room: which of them is refused the engine cannot tell.
    fn excuse(&self, refused: Refused) {
        if refused == Refused::Full {
            let courses = self.running.iter().filter_map(|it| it.env.as_ref());
            courses.for_each(Env::excuse);
        }
    }

    fn tell(&self, down: &Down) -> Result<(), ()> {
        let body = wire::body(down).map_err(drop)?;
        self.worker.tell(Told::Role(body), Vec::new()).map_err(drop)
    }
}
