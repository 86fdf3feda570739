//! The audit log: what the vault did, in lines that hang on each other.
//!
//! Each line is canonical JSON, `{"boot","detail","ev","mac","prev","seq","t"}`: `prev` is the SHA-256 of
//! the line before, `mac` an HMAC of the line without it under a key of the vault. An attacker who
//! changes, removes or inserts a line without the words breaks the chain there. The log alone cannot show
//! that its newest lines were cut off; compare the last number with one written down elsewhere.
//!
//! No value, no key and no length of a secret is in it.
//!
//! One process writes it: the node, which has the disk it lies on. What happens in another, before the
//! node is there or beside it, is handed to it as [`AuditRecord`]s, whose JSON has no secret in it either.

mod event;
mod line;
mod log;
mod read;
mod verify;

use thiserror::Error;

use crate::error::VaultError;
use crate::limits;

pub use event::{AuditEvent, ExportedSecret, SlotName};
pub use line::{AuditRecord, BootId};
pub use log::{AuditLog, UnwrittenEvents};
pub use read::{AuditLine, newest};
pub use verify::{VerifiedLog, verify};

/// Why the log was not written or not accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A name of a boot that is empty, long or not plain.
    #[error(
        "a boot's name is 1 to {} printable ASCII characters",
        line::MAX_BOOT_BYTES
    )]
    BadBoot,
    /// A text that is no record.
    #[error("this is no record of an event")]
    BadRecord,
    /// The chain ends here.
    #[error("{file}, line {line}: {why}")]
    Broken {
        /// Which file.
        file: String,
        /// Which line of it, counted from 1; 0 for the last where only that was read.
        line: usize,
        /// What is wrong with it.
        why: ChainBreak,
    },
    /// A file could not be read or written.
    #[error("{file} cannot be used ({source})")]
    Io {
        /// Which file.
        file: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// More than a line may have.
    #[error("an event of more than {} bytes", limits::MAX_AUDIT_LINE_BYTES)]
    TooLong,
    /// The vault gave no MAC; it is locked.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainBreak {
    /// It does not end.
    #[error("the line is cut off")]
    Cut,
    /// It is no line that this program writes.
    #[error("this is no line of the log")]
    Form,
    /// It was changed, or written with other words.
    #[error("the authentication code does not fit")]
    Mac,
    /// The line before it was changed or is another.
    #[error("the line does not follow the one before")]
    Previous,
    /// Lines are missing before it.
    #[error("the number of the line does not follow")]
    Sequence,
}

#[cfg(test)]
mod tests;
