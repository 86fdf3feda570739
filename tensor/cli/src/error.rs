//! How a command ends when it does not end well.

use std::io;

use alknet_tensor::{TensorError, TensorErrorCode};
use thiserror::Error;

/// Why a command failed. Each has the stable code and the exit code that the command line shows.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TensorCliError {
    /// The reader of standard output went away, which `| head` does.
    #[error("the reader went away")]
    Closed,
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// A file is not what was asked for, or cannot be read.
    #[error("{0}")]
    Tensor(#[from] TensorError),
    /// The command line says nothing sensible.
    #[error("{0}")]
    Usage(String),
}

impl TensorCliError {
    /// The stable code: those of containers as they are, `LOCAL` and `USAGE` beside them.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Output(_) => "LOCAL",
            Self::Tensor(error) => error.code().as_str(),
            Self::Usage(_) => "USAGE",
        }
    }

    /// The exit code: 0 where the reader of standard output is gone, 1 where something of this
    /// computer failed, 2 where the command line or a file is wrong.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Output(_) => 1,
            Self::Tensor(error) if error.code() == TensorErrorCode::Io => 1,
            Self::Tensor(_) | Self::Usage(_) => 2,
        }
    }

    /// One line without the code.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Tensor(error) => error.what().to_owned(),
            other => other.to_string(),
        }
    }
}

impl From<io::Error> for TensorCliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Output(error),
        }
    }
}
