//! Why nothing was written.

use std::io;
use std::path::{Path, PathBuf};

use alknet_vault::{MnemonicError, VaultError};
use thiserror::Error;

/// What can go wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// The person at the terminal stopped, or could not say the words.
    #[error("the words were not confirmed, and nothing was written")]
    Aborted,
    /// The document would be refused; every mistake of it, one a line.
    #[error("{0}")]
    Document(String),
    /// Something of this computer failed.
    #[error("{0}")]
    Local(String),
    /// The reader of the output went away.
    #[error("the reader went away")]
    Pipe,
    /// The command line or a file it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// The vault's library failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The words are no recovery words.
    #[error(transparent)]
    Words(#[from] MnemonicError),
    /// A file could not be written.
    #[error("{path} cannot be written ({source})", path = path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl ProvisionError {
    /// The exit code of the command.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::Pipe => 0,
            Self::Document(_) | Self::Usage(_) => 2,
            Self::Words(_) => 12,
            Self::Local(_) | Self::Vault(_) | Self::Write { .. } => 1,
            Self::Aborted => 130,
        }
    }

    /// Its stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Aborted => "ABORTED",
            Self::Document(_) => "INVALID_INPUT",
            Self::Local(_) | Self::Vault(_) | Self::Write { .. } => "LOCAL",
            Self::Pipe => "CLOSED",
            Self::Usage(_) => "USAGE",
            Self::Words(_) => "BAD_MNEMONIC",
        }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write {
            path: path.to_owned(),
            source,
        }
    }

    /// Of standard output.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Pipe,
            _ => Self::Local(format!("cannot write to standard output: {error}")),
        }
    }
}
