//! Errors before a handshake.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key file has the wrong size.
    #[error(
        "{path} holds {bytes} bytes, and a key is a seed of exactly 32; restore it from a backup, \
         or move it away to get a new identity"
    )]
    KeyLength {
        /// The file.
        path: PathBuf,
        /// Number of bytes in it.
        bytes: usize,
    },
    /// Other users can read a key file.
    #[error(
        "{path} has mode {mode:04o} and may hold 0600 at most; run 'chmod 600 {path}', and replace \
         the key if others could read it"
    )]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file belongs to another user.
    #[error(
        "{path} belongs to user {owner} and not to you (user {us}), so that its key is not used; name a file or a \
         directory of your own"
    )]
    KeyOwner {
        /// The file.
        path: PathBuf,
        /// The user that it belongs to.
        owner: u32,
        /// The user of this process.
        us: u32,
    },
    /// A key file could not be read.
    #[error("cannot read {path}: {source}")]
    KeyRead {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A key file could not be written.
    #[error("cannot write {path}: {source}; check that the directory exists and has room")]
    KeyWrite {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The dialled host is no DNS name.
    #[error("this is no host name that a certificate could be for")]
    Name,
    /// A pinned dial has no pin.
    #[error("a pinned connection needs at least one key; write ed25519:<64 hex>@host:port")]
    NoPins,
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
    /// The file of trusted authorities cannot be used.
    #[error("cannot use {path} as trusted authorities: {reason}; give PEM certificates")]
    Roots {
        /// The file.
        path: PathBuf,
        /// Reason, for a person.
        reason: String,
    },
    /// The TLS library refused a configuration.
    #[error("TLS configuration refused: {0}")]
    Rustls(#[from] rustls::Error),
    /// A file of the node's own state is damaged.
    #[error("{path} cannot be used: {reason}; move it away to start over")]
    State {
        /// The file.
        path: PathBuf,
        /// Reason, for a person.
        reason: String,
    },
    /// The target is an address without a pin, for which any server could answer.
    #[error("{0} is an address without a pinned key; write ed25519:<64 hex>@{0}")]
    UnknownPeer(String),
}
