//! The errors of PID 1.

use std::{io, path::PathBuf};

/// Why an operation of PID 1 failed. These errors do not end PID 1: each becomes a problem that the
/// console and `node/info` show, except where the text says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The kernel of a machine did not start this process.
    #[error(
        "this process is PID 1 of a container, not of a machine; run `alknet serve` there instead"
    )]
    NotTheMachine,
    /// A system call on a path failed.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// The operation, as a verb.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The vault's memory could not be allocated.
    #[error("no memory for the vault: {0}")]
    Vault(alknet_vault::AreaError),
    /// The node could not be started.
    #[error("cannot start the node: {0}; it is tried again")]
    Spawn(io::Error),
}

impl InitError {
    /// Wraps an I/O error on `path`, for `map_err`.
    pub(crate) fn at(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { what, path, source }
    }
}
