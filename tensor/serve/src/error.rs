//! The errors with which a request ends, on the wire of `alknet/tensor` and on that of calls.

use std::io;

use alknet_call::{CallError, ErrorCode};
use alknet_objects::ObjectError;
use alknet_tensor::{TensorError, TensorErrorCode};
use serde_json::json;
use thiserror::Error;

/// Error code of operations that read stored files: a file on the disk no longer matches its hash
/// or its format.
pub const TENSOR_INVALID: &str = "TENSOR_INVALID";
/// Error code of operations that store files.
pub const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// Characters of a peer's text that an error repeats.
const SAID_CHARS_MAX: usize = 200;

/// A text from a peer, or serde's message about it, cut to [`SAID_CHARS_MAX`] characters of one
/// line that a terminal may show.
pub(crate) fn excerpt(words: impl std::fmt::Display) -> String {
    let words = words.to_string();
    let mut line = String::new();
    for (at, c) in words.chars().enumerate() {
        if at == SAID_CHARS_MAX {
            line.push('…');
            break;
        }
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Why the server refuses a request. The text is one line without the code.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// As many of these run at once as the limits allow.
    #[error("at most {1} {0} at once; wait for one to end")]
    Busy(&'static str, u64),
    /// The request or the sent content is invalid.
    #[error("{}", .0.what())]
    Input(TensorError),
    /// The file does not exist, or the peer may not know of it. The peer cannot tell the two cases
    /// apart.
    #[error("no such file here")]
    Missing,
    /// The store would grow above its limit.
    #[error("the store has room for {left} bytes more, not for {wanted}")]
    Quota {
        /// Bytes that the peer wants to store.
        wanted: u64,
        /// Bytes for which the store has room.
        left: u64,
    },
    /// A stored file is damaged, or cannot be read.
    #[error("{}", .0.what())]
    Stored(TensorError),
}

impl ServeError {
    /// Invalid input, with one line that says why.
    pub(crate) fn input(code: TensorErrorCode, what: impl Into<String>) -> Self {
        Self::Input(TensorError::new(code, what))
    }

    /// The system failed. Peers may read the text, so `what` has no path of this node.
    pub(crate) fn io(what: impl std::fmt::Display, error: io::Error) -> Self {
        let error = match error.raw_os_error() {
            Some(_) => error,
            // A library may have put a path into the text.
            None => {
                tracing::warn!("{what}: {error}");
                error.kind().into()
            }
        };
        Self::Stored(TensorError::io(what, error))
    }

    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Busy(..) => "E_BUSY",
            Self::Input(error) | Self::Stored(error) => error.code().as_str(),
            Self::Missing => TensorErrorCode::NotFound.as_str(),
            Self::Quota { .. } => "E_QUOTA",
        }
    }

    /// Whether this node's system failed, rather than the file or the peer.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Stored(error) if error.code() == TensorErrorCode::Io)
    }
}

impl From<ObjectError> for ServeError {
    fn from(error: ObjectError) -> Self {
        let code = match error {
            // Another request may have removed the file.
            ObjectError::Missing(_) => return Self::Missing,
            // The log has the path or the object, and the peer does not.
            ObjectError::Io { what, source } => {
                tracing::warn!("{what}: {source}");
                return Self::io("the store of tensors", source);
            }
            ObjectError::PlacedNotSynced { hash, source, .. } => {
                tracing::warn!(file = %hash, "stored, but not synced: {source}");
                return Self::io("sync a stored file", source);
            }
            ObjectError::RemovedNotSynced { hash, source, .. } => {
                tracing::warn!(file = %hash, "removed, but not synced: {source}");
                return Self::io("sync the removal of a file", source);
            }
            // The outboard was removed, so the log alone says that the disk has failed.
            ObjectError::Damaged {
                hash,
                part,
                source: Some(source),
            } => {
                tracing::warn!(file = %hash, "{part} cannot be read: {source}");
                let text = format!("{part} of a stored file cannot be read");
                return Self::Stored(TensorError::new(TensorErrorCode::Hash, text));
            }
            ObjectError::Damaged { .. } | ObjectError::OtherHash { .. } => TensorErrorCode::Hash,
            _ => TensorErrorCode::Io,
        };
        Self::Stored(TensorError::new(code, error.to_string()))
    }
}

impl From<ServeError> for CallError {
    fn from(error: ServeError) -> Self {
        let code = match &error {
            ServeError::Busy(..) => ErrorCode::Overloaded,
            ServeError::Input(_) => ErrorCode::InvalidInput,
            ServeError::Missing => ErrorCode::NotFound,
            ServeError::Quota { .. } => ErrorCode::from_name(QUOTA_EXCEEDED),
            // A failed disk concerns the administrator; the caller gets the code of an internal
            // error.
            ServeError::Stored(_) if error.is_io() => ErrorCode::Internal,
            ServeError::Stored(_) => ErrorCode::from_name(TENSOR_INVALID),
        };
        Self::new(code, error.to_string()).with_details(json!({ "code": error.code() }))
    }
}

#[cfg(test)]
mod tests {
    use alknet_objects::{DamagedPart, Placement};

    use super::*;

    #[test]
    fn errors_of_the_system_tell_peers_no_path() {
        let path = "/var/lib/node/tensors";
        let failed = || io::Error::other(format!("no such file at path {path}"));
        let hash = blake3::hash(b"x");
        let placement = Placement::New;
        let source = failed();
        let placed = ObjectError::PlacedNotSynced {
            hash,
            placement,
            source,
        };
        let (bytes, source) = (1, failed());
        let removed = ObjectError::RemovedNotSynced {
            hash,
            bytes,
            source,
        };
        let unread = ObjectError::Damaged {
            hash,
            part: DamagedPart::Outboard,
            source: Some(failed()),
        };
        let unread = ServeError::from(unread);
        assert_eq!(unread.code(), "E_HASH");
        assert!(!unread.to_string().contains(path), "{unread}");
        let (what, source) = (format!("write to {path}"), failed());
        let unwritten = ObjectError::Io { what, source };
        let errors = [
            ServeError::from(placed),
            ServeError::from(removed),
            ServeError::from(unwritten),
            ServeError::io("name a", failed()),
        ];
        for error in errors {
            assert_eq!(error.code(), "E_IO");
            assert!(!error.to_string().contains(path), "{error}");
            let call = CallError::from(error);
            assert!(!call.message.contains(path), "{call:?}");
        }
    }

    #[test]
    fn words_of_others_stay_on_their_line() {
        assert_eq!(excerpt("a\n\u{7f}ä"), "a\\n\\u{7f}ä");
        let long = excerpt("x".repeat(10_000));
        assert_eq!(long.chars().count(), SAID_CHARS_MAX + 1);
    }

    #[test]
    fn codes_are_those_of_the_table() {
        let wrong = |code| TensorError::new(code, "x");
        let rows = [
            (ServeError::Missing, "E_NOTFOUND", "NOT_FOUND"),
            (
                ServeError::Input(wrong(TensorErrorCode::Hash)),
                "E_HASH",
                "INVALID_INPUT",
            ),
            (
                ServeError::Input(wrong(TensorErrorCode::Shape)),
                "E_SHAPE",
                "INVALID_INPUT",
            ),
            (
                ServeError::Stored(wrong(TensorErrorCode::Hash)),
                "E_HASH",
                TENSOR_INVALID,
            ),
            (
                ServeError::Stored(wrong(TensorErrorCode::Io)),
                "E_IO",
                "INTERNAL",
            ),
            (ServeError::Busy("x", 1), "E_BUSY", "OVERLOADED"),
            (
                ServeError::Quota { wanted: 2, left: 1 },
                "E_QUOTA",
                QUOTA_EXCEEDED,
            ),
        ];
        for (error, ours, theirs) in rows {
            assert_eq!(error.code(), ours);
            let call = CallError::from(error);
            assert_eq!(call.code.name(), theirs);
            assert_eq!(call.details.expect("the code")["code"], ours);
        }
    }
}
