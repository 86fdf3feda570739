//! Errors between a test and its machine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Any error of the harness. Messages end with what to do, and with the console if the machine had
/// printed something.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder got a request that the machine cannot fulfil.
    #[error("the machine cannot be built: {0}")]
    BadMachine(String),
    /// The machines of a test would have more memory than the manifest of its package says.
    #[error(
        "the machines of this test would have {all} MiB of memory together, and the Cargo.toml of its package \
         says {most_mib}: raise `machines-mib` in `package.metadata.tests` there (see \
         docs/adding-tests.md)"
    )]
    BeyondNeeds {
        /// Memory of all machines that the test would have, MiB.
        all: u32,
        /// The memory that they may have, MiB.
        most_mib: u32,
    },
    /// The machine ended while the test waited for something.
    #[error("the machine ended while waiting for {waiting}: {exit}\n{console}")]
    Ended {
        /// What the test waited for.
        waiting: String,
        /// How the machine ended.
        exit: String,
        /// The tail of the console, and the path of the whole log.
        console: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file that the machine needs does not exist.
    #[error("{what} not found at {path}; {hint}")]
    Missing {
        /// The kind of file, for the sentence of the error.
        what: &'static str,
        /// The path at which it was expected.
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
    /// A machine had gone too far when it was stopped: the host was too busy. Another one may be
    /// stopped in time.
    #[error("the machine came too far: {0}")]
    TooLate(String),
    /// QEMU answered a command with an error.
    #[error("QEMU refused {command}: {class}: {description}")]
    Qmp {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's description.
        description: String,
    },
    /// QEMU closed its control connection, or sent something invalid on it.
    #[error("the control connection to QEMU failed during {command}: {reason}")]
    QmpLost {
        /// The command.
        command: String,
        /// What the harness received.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("{waiting} did not happen within {limit:?}\n{console}")]
    Timeout {
        /// What the test waited for.
        waiting: String,
        /// The limit, scaled for the accelerator.
        limit: Duration,
        /// The tail of the console, and the path of the whole log.
        console: String,
    },
}

impl Error {
    /// An adapter for `map_err` that adds what was attempted.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Result of the harness.
pub type Result<T, E = Error> = std::result::Result<T, E>;
