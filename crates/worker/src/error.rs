//! What can go wrong, on either side.

use std::fmt;
use std::io;

use crate::limits::{FRAME_BYTES_MAX, FRAME_FDS_MAX, SEALED_BYTES_MAX};
use crate::{ConfinementLevel, Sandbox, WorkerRole};

/// A frame, or what travels with it, is not as agreed. Never the reader's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerFrameError {
    /// The bytes are no CBOR of the expected shape.
    #[error("not a message: {0}")]
    Cbor(String),
    /// The peer closed the socket inside a frame.
    #[error("the channel closed inside a frame")]
    Cut,
    /// A frame of no bytes.
    #[error("an empty frame")]
    Empty,
    /// The frame names descriptors that did not come, or others came.
    #[error("{came} descriptors came with a message that has {named}")]
    Descriptors {
        /// How many the frame names.
        named: usize,
        /// How many there were.
        came: usize,
    },
    /// The channel itself failed.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
    /// Values inside values inside values.
    #[error("nested too deep")]
    Nesting,
    /// A descriptor that was to be sealed memory is something else, or could still change.
    #[error("the descriptor is not sealed memory: {0}")]
    NotSealed(&'static str),
    /// Longer than a frame may be.
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// More descriptors than a frame may have.
    #[error("more than {FRAME_FDS_MAX} descriptors with one frame")]
    TooManyDescriptors,
    /// More bytes in a sealed descriptor than one may have.
    #[error("{0} bytes of sealed memory are more than {SEALED_BYTES_MAX}")]
    TooMuch(u64),
}

/// A worker could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Folders were asked for in a role that must not open any.
    #[error("a worker of role {0} gets no folders")]
    BindsRefused(WorkerRole),
    /// A folder's name inside the worker is not one plain name.
    #[error("`{0}` is no name for a folder inside a worker")]
    BindName(String),
    /// The executable cannot be used.
    #[error("the worker's executable cannot be used")]
    Executable(#[source] io::Error),
    /// There is no such role.
    #[error("there is no worker role `{0}`")]
    NoSuchRole(String),
    /// The host's configuration has no workers of this role.
    #[error("workers of role {0} are not configured")]
    NotConfigured(WorkerRole),
    /// As many workers as may be are running.
    #[error("as many workers as may be are running")]
    Overloaded,
    /// The walls are lower than what is asked for.
    #[error("the sandbox is {} where at least {minimum} is required", .sandbox.level)]
    Policy {
        /// What is required.
        minimum: ConfinementLevel,
        /// What there is.
        sandbox: Sandbox,
    },
    /// The tenant's workers ended a moment ago because the machine had too little memory left.
    #[error("memory ran short: the workers of this identity were ended for it")]
    Relieved,
    /// It did not start, or did not get ready.
    #[error("a worker of role {role} did not start: {why}")]
    Start {
        /// Of this role.
        role: WorkerRole,
        /// The step and the cause.
        why: String,
    },
    /// The supervisor has been shut down.
    #[error("the workers have been shut down")]
    Stopped,
    /// The supervisor could not be set up.
    #[error("the supervisor could not be set up")]
    Supervisor(#[source] io::Error),
    /// The tenant has its share of the workers, and a session in each.
    #[error("this identity has as many workers as one may have")]
    TenantShare,
}

impl WorkerError {
    /// The code of the runtime (`runtime.md` §6.1) for this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Policy { .. } => "E_POLICY",
            Self::Overloaded | Self::Relieved | Self::TenantShare => "E_QUOTA",
            _ => "E_WORKER_LOST",
        }
    }
}

/// The limit at which a call was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitCause {
    /// The caller gave up.
    Aborted,
    /// The call's processor time.
    Cpu,
    /// The time a service has to dispose of itself.
    Drain,
    /// The call's time on the GPU.
    Gpu,
    /// No sign of life while the call ran.
    Silent,
    /// The call's time by the clock on the wall.
    Wall,
}

impl LimitCause {
    /// The code of the runtime for a call that ended so.
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
    /// It closed its socket and lived on.
    ClosedChannel,
    /// It used its processor time and did not stop.
    Cpu,
    /// A fatal signal of its own making: a bug in a driver, an engine or generated code.
    Crash,
    /// A service did not dispose of itself in time.
    Drain,
    /// It ended by itself.
    Exit,
    /// It sent more than it may.
    Flood,
    /// It used its time on the GPU and did not stop.
    Gpu,
    /// A process other than the host killed it.
    Killed,
    /// Its work was done: no session, no tenant that would come back.
    Idle,
    /// It used more memory than it may.
    Memory,
    /// It sent what is no message.
    Protocol,
    /// The machine had too little memory left, and its tenant had most in workers.
    Relieved,
    /// The host shuts down.
    Shutdown,
    /// It gave no sign of life while a call ran.
    Silent,
    /// It did not get ready, or is not walled in as required.
    Start,
    /// It made a system call that no honest worker makes.
    Violation,
    /// It used its time by the clock on the wall and did not stop.
    Wall,
}

impl WorkerEndReason {
    /// Every reason, in the order of its counters.
    pub const ALL: [Self; 18] = [
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
        Self::Violation,
        Self::Wall,
    ];

    /// As `runtime/stats` shows it.
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
            Self::Violation => "violation",
            Self::Wall => "wall",
        }
    }

    /// Whether it speaks against the operation that ran.
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
    /// Reason, for a person.
    pub reason: WorkerEndReason,
    /// The signal that ended it, where one did and it has been collected already.
    pub signal: Option<i32>,
    /// More about it: what was wrong with its message, or what it wrote last.
    pub detail: String,
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

/// A call came to no answer of the worker's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerCallError {
    /// More waits for the worker than may.
    #[error("the worker does not read what it is sent")]
    Busy,
    /// The call or what travels with it makes no frame.
    #[error("the call cannot be sent: {0}")]
    Frame(#[from] WorkerFrameError),
    /// It reached a limit of its own, or was given up.
    #[error("the call was ended: {cause:?}")]
    Limit {
        /// Limit that the worker reached.
        cause: LimitCause,
        /// Whether the worker had to be killed for it.
        killed: bool,
    },
    /// The worker was lost, by its own doing or a sibling's.
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

/// The worker's own side failed; it can only end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A frame of the host's, or the channel.
    #[error(transparent)]
    Frame(#[from] WorkerFrameError),
    /// A step of walling itself in failed that must not.
    #[error("cannot {what}: {source}")]
    Confine {
        /// Which step.
        what: &'static str,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// There is no host at the other end of descriptor 3.
    #[error("there is no host at descriptor 3")]
    NoHost,
    /// Host and worker are not of one version, or not of one mind about the role.
    #[error("the host expects another worker: {0}")]
    Setup(String),
    /// What the role does before its walls close failed.
    #[error("the warm-up failed: {0}")]
    WarmUp(String),
}
