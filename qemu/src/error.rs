//! What can go wrong between a test and its machine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Any error of the harness. Messages end with what to do, and with the console where one spoke.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder was asked for something the machine cannot have.
    #[error("the machine cannot be built: {0}")]
    BadMachine(String),
    /// The machines of a test would have more memory than the manifest of its package says.
    #[error(
        "the machines of this test would have {all} MiB of memory together, and the Cargo.toml of its package \
         says {most_mib}: raise `machines-mib` in `package.metadata.tests` there (see \
         docs/adding-tests.md)"
    )]
    BeyondNeeds {
        /// Of all machines that the test would have, MiB.
        all: u32,
        /// What they may have, MiB.
        most_mib: u32,
    },
    /// The machine ended while something was awaited.
    #[error("the machine ended while waiting for {waiting}: {exit}\n{console}")]
    Ended {
        /// What was awaited.
        waiting: String,
        /// How it ended.
        exit: String,
        /// Tail of the console and where the whole log is.
        console: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file the machine needs is not there.
    #[error("{what} not found at {path}; {hint}")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// The instruction counter cannot be used.
    #[error("guest instructions cannot be counted: {0}")]
    NoCounter(String),
    /// QEMU ended before the machine ran.
    #[error("QEMU did not start ({status}); it said:\n{stderr}")]
    NotStarted {
        /// Exit status.
        status: String,
        /// Its standard error.
        stderr: String,
    },
    /// A machine was stopped further on than it was to be: the host was too busy. Another one may be stopped in time.
    #[error("the machine came too far: {0}")]
    TooLate(String),
    /// QEMU answered a command with an error.
    #[error("QEMU refused {command}: {class}: {description}")]
    Qmp {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU closed its control connection, or spoke nonsense on it.
    #[error("the control connection to QEMU failed during {command}: {reason}")]
    QmpLost {
        /// The command.
        command: String,
        /// What was seen.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("{waiting} did not happen within {limit:?}\n{console}")]
    Timeout {
        /// What was awaited.
        waiting: String,
        /// How long, scaled for the accelerator.
        limit: Duration,
        /// Tail of the console and where the whole log is.
        console: String,
    },
}

impl Error {
    /// Adapter for `map_err` that says what was attempted.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Result of the harness.
pub type Result<T, E = Error> = std::result::Result<T, E>;
