//! Why the command failed.

use std::io;
use std::path::{Path, PathBuf};

use alknet_vault::{MnemonicError, VaultError};
use thiserror::Error;

/// Why the command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// The user stopped at the terminal, or did not confirm the words.
    #[error("the words were not confirmed, and nothing was written")]
    Aborted,
    /// The node would refuse the document. All its mistakes, one per line.
    #[error("{0}")]
    Document(String),
    /// Something on this computer failed.
    #[error("{0}")]
    Local(String),
    /// The reader of the output closed it.
    #[error("the reader went away")]
    Pipe,
    /// The command line or a file that it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// The vault's library failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The words are not valid recovery words.
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

    /// The stable name of the error.
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

    /// An error of standard output.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Pipe,
            _ => Self::Local(format!("cannot write to standard output: {error}")),
        }
    }
}
