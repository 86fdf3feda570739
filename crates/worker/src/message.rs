//! The messages between host and worker (`runtime.md` §3.1). In CBOR each is a map of one entry with the name of the
//! message in lower case. Times are microseconds.

use serde::{Deserialize, Serialize};

use crate::setup::ConfinementReport;
use crate::{Bytes32, CborBody, FrameBlob};

/// The messages of the host. Roles with their own protocol use `Run` and `Tell`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToWorkerMessage {
    /// Call `id` has to end now.
    Abort {
        /// The call.
        id: u64,
    },
    /// Session `sid` ends. With an `id` it disposes of itself and answers.
    Close {
        /// The session.
        sid: u64,
        /// The call to which the answer belongs.
        id: Option<u64>,
    },
    /// Runs a module.
    Eval {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// Its name.
        module: String,
        /// The hash of its source.
        source_hash: Bytes32,
        /// Its source.
        source: FrameBlob,
    },
    /// An event of a subscription of the worker.
    Event {
        /// The session.
        sid: u64,
        /// The subscription.
        id: u64,
        /// The event itself.
        event: WorkerEvent,
    },
    /// Calls an operation that the session registered.
    Invoke {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// Its name.
        op: String,
        /// Its input.
        input: FrameBlob,
    },
    /// A session begins.
    Open {
        /// The session.
        sid: u64,
        /// Its capabilities, in the role's own terms.
        caps: CborBody,
        /// Its limits, in the role's own terms.
        limits: CborBody,
        /// The bundle it runs.
        bundle_hash: Option<Bytes32>,
        /// The seed of its randomness.
        seed: Option<Bytes32>,
        /// Its clock, in the role's own terms.
        clock: CborBody,
    },
    /// The response to a call of the worker.
    Reply {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// The answer.
        reply: WorkerReply,
    },
    /// A call in the role's own protocol.
    Run {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// The content, as CBOR.
        body: CborBody,
    },
    /// A message in the role's own protocol.
    Tell {
        /// The session.
        sid: u64,
        /// The content, as CBOR.
        body: CborBody,
    },
}

/// The messages of the worker. The host believes none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FromWorkerMessage {
    /// Calls an operation of the host.
    Call {
        /// The session.
        sid: u64,
        /// The call, by the worker's own count.
        id: u64,
        /// Its name.
        op: String,
        /// Its input.
        input: FrameBlob,
        /// Its options.
        opts: CborBody,
    },
    /// The worker no longer wants a call or a subscription.
    Cancel {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
    },
    /// Whether the GPU works for a call.
    Gpu {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// Whether it works for it from now on.
        busy: bool,
    },
    /// A running call is alive. The control thread sends this every 20 ms.
    Heartbeat {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// Its fuel so far.
        ticks: u64,
        /// Its processor time so far.
        cpu_us: u64,
        /// Its memory at present, in bytes.
        mem: u64,
    },
    /// A line for the log.
    Log {
        /// The session.
        sid: u64,
        /// The severity.
        level: WorkerLogLevel,
        /// The line.
        text: String,
    },
    /// The sandbox is set up, and the worker waits for work.
    Ready {
        /// The report on the sandbox.
        confined: ConfinementReport,
    },
    /// The session offers an operation.
    Register {
        /// The session.
        sid: u64,
        /// Its description.
        spec: CborBody,
        /// The hash of its source.
        source_hash: Bytes32,
    },
    /// The result of a call of the host.
    Result {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// The answer.
        reply: WorkerReply,
        /// The cost of the call.
        stats: CallStats,
    },
    /// Subscribes to an operation of the host.
    Subscribe {
        /// The session.
        sid: u64,
        /// The subscription, by the worker's own count.
        id: u64,
        /// Its name.
        op: String,
        /// Its input.
        input: FrameBlob,
        /// Its options.
        opts: CborBody,
    },
    /// A message in the role's own protocol.
    Tell {
        /// The session.
        sid: u64,
        /// The content, as CBOR.
        body: CborBody,
    },
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerReply {
    /// The call failed.
    Err(WorkerFault),
    /// The call succeeded with this result.
    Ok(FrameBlob),
}

/// A fault, with a code of the runtime or of the operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFault {
    /// `E_FUEL`, `NOT_FOUND`, …
    pub code: String,
    /// Text for a person.
    pub message: String,
    /// Details for a program.
    #[serde(default)]
    pub details: CborBody,
}

/// A part of a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerEvent {
    /// The end of the subscription.
    End,
    /// The end of the subscription, because of this fault.
    Fail(WorkerFault),
    /// One item.
    Item(FrameBlob),
}

/// The cost of a call, by the worker's own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallStats {
    /// Fuel, in ticks of the interrupt handler.
    pub ticks: u64,
    /// Processor time.
    pub cpu_us: u64,
    /// Peak of the engine's heap, in bytes.
    pub heap_peak: u64,
    /// Peak of memory outside the heap, in bytes.
    pub external_peak: u64,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerLogLevel {
    Debug,
    Error,
    Info,
    Warn,
}

impl ToWorkerMessage {
    /// The session and number of the call that this message begins, if it begins one.
    pub(crate) const fn begins(&self) -> Option<(u64, u64)> {
        match self {
            Self::Close { sid, id: Some(id) }
            | Self::Eval { sid, id, .. }
            | Self::Invoke { sid, id, .. }
            | Self::Run { sid, id, .. } => Some((*sid, *id)),
            _ => None,
        }
    }
}

impl FromWorkerMessage {
    /// Bytes of memory that it holds beyond its own few.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Call {
                op, input, opts, ..
            }
            | Self::Subscribe {
                op, input, opts, ..
            } => op.len() + input.inline_len() + opts.as_bytes().len(),
            Self::Log { text, .. } => text.len(),
            Self::Register { spec, .. } => spec.as_bytes().len(),
            Self::Tell { body, .. } => body.as_bytes().len(),
            _ => 0,
        }
    }

    /// The session of this message, if it has one.
    pub(crate) const fn session(&self) -> Option<u64> {
        match self {
            Self::Call { sid, .. }
            | Self::Cancel { sid, .. }
            | Self::Gpu { sid, .. }
            | Self::Heartbeat { sid, .. }
            | Self::Log { sid, .. }
            | Self::Register { sid, .. }
            | Self::Result { sid, .. }
            | Self::Subscribe { sid, .. }
            | Self::Tell { sid, .. } => Some(*sid),
            Self::Ready { .. } => None,
        }
    }
}
