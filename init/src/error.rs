//! What can go wrong in PID 1.

use std::{io, path::PathBuf};

/// Why PID 1 could not do something. Nothing of this ends PID 1: each becomes a problem that the
/// console and `node/info` show, except where the text says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// Not started by the kernel as the machine's init.
    #[error(
        "this process is PID 1 of a container, not of a machine; run `alknet serve` there instead"
    )]
    NotTheMachine,
    /// A system call on a path failed.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no memory for the vault.
    #[error("no memory for the vault: {0}")]
    Vault(alknet_vault::AreaError),
    /// The node could not be started.
    #[error("cannot start the node: {0}; it is tried again")]
    Spawn(io::Error),
}

impl InitError {
    /// Turns an I/O error on `path` into ours; for `map_err`.
    pub(crate) fn at(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { what, path, source }
    }
}
