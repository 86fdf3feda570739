//! The errors of a folder of objects.

use std::fmt;
use std::io;
use std::ops::Range;

use blake3::Hash;
use thiserror::Error;

use crate::staged::Placement;

/// Why a folder of objects cannot do something.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// Another program wrote to the file of the object, or shortened it.
    #[error("object {0} changed while it was read")]
    Changed(Hash),
    /// The disk has other bytes than were stored.
    #[error("{part} of object {hash} is not what was stored{}", reason_text(.source.as_ref()))]
    Damaged {
        /// The object.
        hash: Hash,
        /// What is damaged.
        part: DamagedPart,
        /// The error of the system, if it does not give the bytes.
        source: Option<io::Error>,
    },
    /// The system failed.
    #[error("{what}: {source}")]
    Io {
        /// What the library did, with the path or the object.
        what: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The folder has no such object.
    #[error("there is no object {0}")]
    Missing(Hash),
    /// A part of an object has another hash than the caller expects.
    #[error("bytes {range:?} have the hash {found}, not {expected}")]
    OtherHash {
        /// The part, in bytes of the object.
        range: Range<u64>,
        /// The hash of these bytes.
        found: Hash,
        /// The hash that the caller expects.
        expected: Hash,
    },
    /// The range is not one of the object's.
    #[error("bytes {range:?} of an object of {size}")]
    OutOfRange {
        /// The range, in bytes of the object.
        range: Range<u64>,
        /// Bytes of the object.
        size: u64,
    },
    /// The object has its place and takes room, but the system failed after that: a power cut may take its name away
    /// again, or it has no outboard. No pin keeps it.
    #[error("object {hash} has its place, but may lose it: {source}")]
    PlacedNotSynced {
        /// The object.
        hash: Hash,
        /// How it came to its place.
        placement: Placement,
        /// The error of the system.
        source: io::Error,
    },
    /// The object was removed and takes no room, but the system failed after that: a power cut may bring it back, or an
    /// outboard of it has stayed.
    #[error("object {hash} was removed, but may come back: {source}")]
    RemovedNotSynced {
        /// The object.
        hash: Hash,
        /// Bytes that it had.
        bytes: u64,
        /// The error of the system.
        source: io::Error,
    },
}

/// A file whose bytes are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamagedPart {
    /// The object itself: storing it again repairs it.
    Content,
    /// The outboard. It was removed, and the next reader computes it again.
    Outboard,
}

impl ObjectError {
    /// The system failed during `what`.
    pub(crate) fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io {
            what: what.to_string(),
            source,
        }
    }
}

/// What follows a text, if the system gave a reason.
fn reason_text(source: Option<&io::Error>) -> String {
    source.map_or_else(String::new, |source| format!(": {source}"))
}

impl fmt::Display for DamagedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Content => "the content",
            Self::Outboard => "the outboard",
        })
    }
}
