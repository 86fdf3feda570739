//! Why a command of `alknet tensor` failed, with its codes and message.

use std::io;
use std::path::Path;

use alknet_tensor::{TensorError, TensorErrorCode};
use thiserror::Error;

/// Why a command failed. Each has the stable code and the exit code that the command line shows.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TensorCliError {
    /// The reader of standard output closed it, as `| head` does.
    #[error("the reader went away")]
    Closed,
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The command cannot read a file, or the file is not what the command needs.
    #[error("{0}")]
    Tensor(#[from] TensorError),
    /// The arguments contradict each other or have no meaning together.
    #[error("{0}")]
    Usage(String),
}

impl TensorCliError {
    /// The stable code: errors of containers keep their own, and the command line adds `CLOSED`,
    /// `LOCAL` and `USAGE`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Output(_) => "LOCAL",
            Self::Tensor(error) => error.code().as_str(),
            Self::Usage(_) => "USAGE",
        }
    }

    /// The exit code: 0 if the reader of standard output closed it, 1 if this computer failed, 2 if
    /// the arguments or a file are wrong.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Output(_) => 1,
            Self::Tensor(error) if error.code() == TensorErrorCode::Io => 1,
            Self::Tensor(_) | Self::Usage(_) => 2,
        }
    }

    /// The message on one line, without the code.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Tensor(error) => error.what().to_owned(),
            other => other.to_string(),
        }
    }

    /// The same with the file that the command worked on, unless its text names the file. Other errors are about no
    /// file.
    pub(crate) fn about(self, file: &Path) -> Self {
        let shown = file.display().to_string();
        match self {
            Self::Tensor(error) if !error.what().contains(&shown) => {
                let what = format!("{shown}: {}", error.what());
                TensorError::new(error.code(), what).into()
            }
            other => other,
        }
    }
}

impl From<io::Error> for TensorCliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The standard library ignores SIGPIPE, so `| head` reaches a command as EPIPE of
            // write(2).
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Output(error),
        }
    }
}
