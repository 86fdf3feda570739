//! The audit log: the events of the vault, in lines that form a hash chain.
//!
//! Each line is canonical JSON, `{"boot","detail","ev","mac","prev","seq","t"}`: `prev` is the SHA-256 of the line
//! before, `mac` an HMAC of the line without it under a key of the vault. An attacker who changes, removes or inserts
//! a line without the words breaks the chain there. The log alone cannot show that its newest lines were cut off; an
//! administrator finds that by comparing the last number with one noted elsewhere.
//!
//! The log contains no value, key or length of a secret.
//!
//! One process writes the log: the node, which has the disk. Other processes, and PID 1 before the node runs, send
//! the node [`AuditRecord`]s, whose JSON contains no secret either.

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
    /// A boot id is empty, too long or not plain ASCII.
    #[error(
        "a boot's name is 1 to {} printable ASCII characters",
        line::MAX_BOOT_BYTES
    )]
    BadBoot,
    /// The text is no record.
    #[error("this is no record of an event")]
    BadRecord,
    /// The chain is broken here.
    #[error("{file}, line {line}: {why}")]
    Broken {
        /// The file.
        file: String,
        /// The line in the file, counted from 1; 0 for the last line if only that was read.
        line: usize,
        /// The kind of the break.
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
    /// The event exceeds the limit of a line.
    #[error("an event of more than {} bytes", limits::MAX_AUDIT_LINE_BYTES)]
    TooLong,
    /// The vault computed no authentication code, because it is locked.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// The kind of a break.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainBreak {
    /// The line has no newline.
    #[error("the line is cut off")]
    Cut,
    /// This program does not write such a line.
    #[error("this is no line of the log")]
    Form,
    /// The line was changed, or written with other words.
    #[error("the authentication code does not fit")]
    Mac,
    /// The line before it was changed or replaced.
    #[error("the line does not follow the one before")]
    Previous,
    /// Lines before it are missing.
    #[error("the number of the line does not follow")]
    Sequence,
}

#[cfg(test)]
mod tests;
