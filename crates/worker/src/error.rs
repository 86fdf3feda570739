//! Errors of both sides.

use std::fmt;
use std::io;

use crate::limits::{FRAME_BYTES_MAX, FRAME_FDS_MAX, SEALED_BYTES_MAX};
use crate::{ConfinementLevel, Sandbox, WorkerRole};

/// A frame, or a descriptor with it, breaks the protocol. The sender is at fault, never the reader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerFrameError {
    /// The bytes are no CBOR of the expected shape.
    #[error("not a message: {0}")]
    Cbor(String),
    /// The peer closed the socket inside a frame.
    #[error("the channel closed inside a frame")]
    Cut,
    /// A frame has no bytes.
    #[error("an empty frame")]
    Empty,
    /// The frame names another number of descriptors than came.
    #[error("{came} descriptors came with a message that has {declared}")]
    Descriptors {
        /// Number of descriptors that the frame names.
        declared: usize,
        /// Number of descriptors that came.
        came: usize,
    },
    /// The channel itself failed.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
    /// Values are nested too deep.
    #[error("nested too deep")]
    Nesting,
    /// A descriptor that should be sealed memory is something else, or could still change.
    #[error("the descriptor is not sealed memory: {0}")]
    NotSealed(&'static str),
    /// The frame is longer than a frame may be.
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// The frame has more descriptors than a frame may have.
    #[error("more than {FRAME_FDS_MAX} descriptors with one frame")]
    TooManyDescriptors,
    /// A sealed descriptor holds more bytes than one may hold.
    #[error("{0} bytes of sealed memory are more than {SEALED_BYTES_MAX}")]
    TooMuch(u64),
}

/// Why the caller gets no worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The lease has folders, and the role may open none.
    #[error("a worker of role {0} gets no folders")]
    BindsRefused(WorkerRole),
    /// The name of a folder inside the worker is not one plain name.
    #[error("`{0}` is no name for a folder inside a worker")]
    BindName(String),
    /// The executable cannot be used.
    #[error("the worker's executable cannot be used")]
    Executable(#[source] io::Error),
    /// No role has this name.
    #[error("there is no worker role `{0}`")]
    NoSuchRole(String),
    /// The host's configuration has no workers of this role.
    #[error("workers of role {0} are not configured")]
    NotConfigured(WorkerRole),
    /// The limit of running workers is reached.
    #[error("as many workers as may be are running")]
    Overloaded,
    /// The worker has a lower sandbox level than the configuration requires.
    #[error("the sandbox is {} where at least {minimum} is required", .sandbox.level)]
    Policy {
        /// The required level.
        minimum: ConfinementLevel,
        /// The level and the gaps of the worker.
        sandbox: Sandbox,
    },
    /// The tenant's workers ended a moment ago because the machine had too little memory left.
    #[error("memory ran short: the workers of this identity were ended for it")]
    Relieved,
    /// The worker did not start, or did not become ready.
    #[error("a worker of role {role} did not start: {why}")]
    Start {
        /// The role.
        role: WorkerRole,
        /// The step and its error.
        why: String,
    },
    /// The supervisor has been shut down.
    #[error("the workers have been shut down")]
    Stopped,
    /// The supervisor could not be set up.
    #[error("the supervisor could not be set up")]
    Supervisor(#[source] io::Error),
    /// The caller of a tenant's operations has its share of the workers for such callers, or has one and the last ones
    /// are for callers that have none.
    #[error("this caller has as many of these workers as one may have")]
    CallerShare,
    /// The tenant has its share of the workers, and each has a session.
    #[error("this identity has as many workers as one may have")]
    TenantShare,
}

impl WorkerError {
    /// The code of the runtime (`runtime.md` §6.1) for this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Policy { .. } => "E_POLICY",
            Self::CallerShare | Self::Overloaded | Self::Relieved | Self::TenantShare => "E_QUOTA",
            _ => "E_WORKER_LOST",
        }
    }
}

/// The limit at which a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitCause {
    /// The caller gave up.
    Aborted,
    /// Processor time of the call.
    Cpu,
    /// Time for a service to dispose of itself.
    Drain,
    /// GPU time of the call.
    Gpu,
    /// Time without a heartbeat while the call ran.
    Silent,
    /// Wall-clock time of the call.
    Wall,
}

impl LimitCause {
    /// The code of the runtime for a call that this limit ended.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Aborted => "E_ABORT",
            Self::Cpu | Self::Drain | Self::Wall => "E_TIMEOUT",
            Self::Gpu => "E_GPU_TIMEOUT",
            Self::Silent => "E_WORKER_LOST",
        }
    }
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WorkerEndReason {
    /// A caller gave up and the worker did not stop.
    Abort,
    /// It closed its socket and did not end.
    ClosedChannel,
    /// It used its processor time and did not stop.
    Cpu,
    /// It caused a fatal signal itself: a bug in a driver, an engine or generated code.
    Crash,
    /// A service did not dispose of itself in time.
    Drain,
    /// It ended by itself.
    Exit,
    /// It sent more than it may.
    Flood,
    /// It used its GPU time and did not stop.
    Gpu,
    /// A process other than the host killed it.
    Killed,
    /// It had no work left: no session, and no tenant that would come back.
    Idle,
    /// It used more memory than it may.
    Memory,
    /// It sent bytes that are no message.
    Protocol,
    /// The machine had too little memory left, and its tenant's workers had most of it.
    Relieved,
    /// The host shut down.
    Shutdown,
    /// It sent no heartbeat while a call ran.
    Silent,
    /// It did not become ready, or has a lower sandbox level than required.
    Start,
    /// It could not take what its host sent: its descriptors or its memory for messages were used up. A session that
    /// leaves answers unread can bring this about, so it says nothing about what ran.
    Undelivered,
    /// It made a system call that no honest worker makes.
    Violation,
    /// It used its wall-clock time and did not stop.
    Wall,
}

impl WorkerEndReason {
    /// Every reason, in the order of its counters.
    pub const ALL: [Self; 19] = [
        Self::Abort,
        Self::ClosedChannel,
        Self::Cpu,
        Self::Crash,
        Self::Drain,
        Self::Exit,
        Self::Flood,
        Self::Gpu,
        Self::Killed,
        Self::Idle,
        Self::Memory,
        Self::Protocol,
        Self::Relieved,
        Self::Shutdown,
        Self::Silent,
        Self::Start,
        Self::Undelivered,
        Self::Violation,
        Self::Wall,
    ];

    /// The name in `runtime/stats`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::ClosedChannel => "closed-channel",
            Self::Cpu => "cpu",
            Self::Crash => "crash",
            Self::Drain => "drain",
            Self::Exit => "exit",
            Self::Flood => "flood",
            Self::Gpu => "gpu",
            Self::Idle => "idle",
            Self::Killed => "killed",
            Self::Memory => "memory",
            Self::Protocol => "protocol",
            Self::Relieved => "relieved",
            Self::Shutdown => "shutdown",
            Self::Silent => "silent",
            Self::Start => "start",
            Self::Undelivered => "undelivered",
            Self::Violation => "violation",
            Self::Wall => "wall",
        }
    }

    /// Whether it counts as a crash of the operation that ran.
    pub(crate) const fn is_crash(self) -> bool {
        matches!(
            self,
            Self::ClosedChannel
                | Self::Crash
                | Self::Exit
                | Self::Flood
                | Self::Memory
                | Self::Protocol
                | Self::Silent
                | Self::Violation
        )
    }
}

impl From<LimitCause> for WorkerEndReason {
    fn from(cause: LimitCause) -> Self {
        match cause {
            LimitCause::Aborted => Self::Abort,
            LimitCause::Cpu => Self::Cpu,
            LimitCause::Drain => Self::Drain,
            LimitCause::Gpu => Self::Gpu,
            LimitCause::Silent => Self::Silent,
            LimitCause::Wall => Self::Wall,
        }
    }
}

impl fmt::Display for WorkerEndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a worker was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerLoss {
    /// The reason of the end.
    pub reason: WorkerEndReason,
    /// The signal that ended it, if one did and the host has collected the process already.
    pub signal: Option<i32>,
    /// More about the end: what was wrong with its message, or the end of its output.
    pub detail: String,
    /// Whether no other call ran in the worker. With several calls the host does not know which of them ended it.
    pub alone: bool,
}

impl fmt::Display for WorkerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if let Some(signal) = self.signal {
            write!(f, ", signal {signal}")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

/// A call that has no result of the worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerCallError {
    /// Too many bytes wait for the worker.
    #[error("the worker does not read what it is sent")]
    Busy,
    /// The call or its descriptors make no valid frame.
    #[error("the call cannot be sent: {0}")]
    Frame(#[from] WorkerFrameError),
    /// The call reached its own limit, or its caller gave it up.
    #[error("the call was ended: {cause:?}")]
    Limit {
        /// The limit that the call reached.
        cause: LimitCause,
        /// Whether the host had to kill the worker for it.
        killed: bool,
    },
    /// The worker was lost, because of this call or of another one in it.
    #[error("the worker was lost: {0}")]
    Lost(WorkerLoss),
    /// The operation has crashed too many workers.
    #[error("the operation is in quarantine: it has crashed its workers")]
    Quarantined,
    /// The session is closed.
    #[error("the session is closed")]
    SessionClosed,
}

impl WorkerCallError {
    /// The code of the runtime (`runtime.md` §6.1) for this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Busy => "E_QUOTA",
            Self::Frame(_) => "E_ENCODE",
            Self::Limit { cause, .. } => cause.code(),
            Self::Lost(_) => "E_WORKER_LOST",
            Self::Quarantined => "E_POLICY",
            Self::SessionClosed => "E_DISPOSED",
        }
    }
}

/// The worker's own side failed. The worker can only end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The channel failed, or the host's frame is invalid.
    #[error(transparent)]
    Frame(#[from] WorkerFrameError),
    /// A step of the confinement failed that must succeed.
    #[error("cannot {what}: {source}")]
    Confine {
        /// The step.
        what: &'static str,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Descriptor 3 has no host at its other end.
    #[error("there is no host at descriptor 3")]
    NoHost,
    /// Host and worker have different versions or roles.
    #[error("the host expects another worker: {0}")]
    Setup(String),
    /// The warm-up of the role failed.
    #[error("the warm-up failed: {0}")]
    WarmUp(String),
}
