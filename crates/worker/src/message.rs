//! The messages between host and worker (`runtime.md` §3.1). In CBOR each is a map of one entry,
//! named after the message in lower case; times are microseconds.

use serde::{Deserialize, Serialize};

use crate::setup::ConfinementReport;
use crate::{Bytes32, CborBody, FrameBlob};

/// What the host says. Roles with their own language use `Run` and `Tell`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToWorkerMessage {
    /// Call `id` is to end now.
    Abort {
        /// The call.
        id: u64,
    },
    /// Session `sid` ends. With an `id` it is to dispose of itself and answer.
    Close {
        /// The session.
        sid: u64,
        /// The call that the answer belongs to.
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
    /// Something of a subscription of the worker's.
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
        /// What it may reach, in the role's own terms.
        caps: CborBody,
        /// Its limits, in the role's own terms.
        limits: CborBody,
        /// The bundle it runs.
        bundle_hash: Option<Bytes32>,
        /// Where its randomness comes from.
        seed: Option<Bytes32>,
        /// What its clock shows, in the role's own terms.
        clock: CborBody,
    },
    /// The answer to a call of the worker's.
    Reply {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// The answer.
        reply: WorkerReply,
    },
    /// A call in the role's own language.
    Run {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// The content, as CBOR.
        body: CborBody,
    },
    /// A message in the role's own language.
    Tell {
        /// The session.
        sid: u64,
        /// The content, as CBOR.
        body: CborBody,
    },
}

/// What the worker says. None of it is believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FromWorkerMessage {
    /// Calls an operation of the host's.
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
    /// A call or subscription of the worker's is no longer wanted.
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
        /// Whether it does from now on.
        busy: bool,
    },
    /// A running call is alive. Comes from the control thread every 20 ms.
    Heartbeat {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// Its fuel so far.
        ticks: u64,
        /// Its processor time so far.
        cpu_us: u64,
        /// Its memory now, bytes.
        mem: u64,
    },
    /// A line for the log.
    Log {
        /// The session.
        sid: u64,
        /// How bad.
        level: WorkerLogLevel,
        /// The line.
        text: String,
    },
    /// The walls stand and the worker waits for work.
    Ready {
        /// What stands.
        confined: ConfinementReport,
    },
    /// The session wants to offer an operation.
    Register {
        /// The session.
        sid: u64,
        /// What it says about it.
        spec: CborBody,
        /// The hash of its source.
        source_hash: Bytes32,
    },
    /// The answer to a call of the host's.
    Result {
        /// The session.
        sid: u64,
        /// The call.
        id: u64,
        /// The answer.
        reply: WorkerReply,
        /// What it took.
        stats: CallStats,
    },
    /// Subscribes to an operation of the host's.
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
    /// A message in the role's own language.
    Tell {
        /// The session.
        sid: u64,
        /// The content, as CBOR.
        body: CborBody,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerReply {
    /// It failed.
    Err(WorkerFault),
    /// It came to this.
    Ok(FrameBlob),
}

/// What failed, in the codes of the runtime or of the operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFault {
    /// `E_FUEL`, `NOT_FOUND`, …
    pub code: String,
    /// For a person.
    pub message: String,
    /// For a program.
    #[serde(default)]
    pub details: CborBody,
}

/// A part of a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerEvent {
    /// Nothing more comes.
    End,
    /// Nothing more comes, because of this.
    Fail(WorkerFault),
    /// One of its items.
    Item(FrameBlob),
}

/// What a call took, by the worker's own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallStats {
    /// Fuel, in ticks of the interrupt handler.
    pub ticks: u64,
    /// Processor time.
    pub cpu_us: u64,
    /// The most memory of the engine's heap, bytes.
    pub heap_peak: u64,
    /// The most memory outside it, bytes.
    pub external_peak: u64,
}

/// How bad a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerLogLevel {
    Debug,
    Error,
    Info,
    Warn,
}

impl ToWorkerMessage {
    /// The call that this begins, if it does.
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
    /// Bytes that it holds in memory, beyond its own few.
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

    /// The session that this belongs to, if to one.
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
