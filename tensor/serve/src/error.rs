//! What a request can end with, on this protocol's wire and on that of calls.

use alknet_call::{CallError, ErrorCode};
use alknet_tensor::{TensorError, TensorErrorCode};
use serde_json::json;
use thiserror::Error;

/// Declared by operations that read what is stored: it is not what it was.
pub const TENSOR_INVALID: &str = "TENSOR_INVALID";
/// Declared by operations that store.
pub const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// Characters of a peer's words that an error repeats.
const SAID_CHARS_MAX: usize = 200;

/// What a peer sent, or serde says of it: on one line that a terminal may show, and not for ever.
pub(crate) fn said(words: impl std::fmt::Display) -> String {
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

/// Why a request is refused. The text is one line without the code.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// As much of this goes on as may.
    #[error("at most {1} {0} at once; wait for one to end")]
    Busy(&'static str, u64),
    /// What was asked or sent is wrong.
    #[error("{}", .0.what())]
    Input(TensorError),
    /// No such file, or none that may be known of: the two are not told apart.
    #[error("no such file here")]
    Missing,
    /// The store would be larger than it may be.
    #[error("the store has room for {left} bytes more, not for {wanted}")]
    Quota {
        /// What was to be stored.
        wanted: u64,
        /// What still fits.
        left: u64,
    },
    /// What is stored is wrong, or cannot be read.
    #[error("{}", .0.what())]
    Stored(TensorError),
}

impl ServeError {
    /// Wrong input, said in one line.
    pub(crate) fn input(code: TensorErrorCode, what: impl Into<String>) -> Self {
        Self::Input(TensorError::new(code, what))
    }

    /// The system failed.
    pub(crate) fn io(what: impl std::fmt::Display, error: std::io::Error) -> Self {
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

    /// Whether the system failed, and not the file or the peer.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Stored(error) if error.code() == TensorErrorCode::Io)
    }
}

impl From<ServeError> for CallError {
    fn from(error: ServeError) -> Self {
        let code = match &error {
            ServeError::Busy(..) => ErrorCode::Overloaded,
            ServeError::Input(_) => ErrorCode::InvalidInput,
            ServeError::Missing => ErrorCode::NotFound,
            ServeError::Quota { .. } => ErrorCode::from_name(QUOTA_EXCEEDED),
            ServeError::Stored(_) if error.is_io() => ErrorCode::Internal,
            ServeError::Stored(_) => ErrorCode::from_name(TENSOR_INVALID),
        };
        Self::new(code, error.to_string()).with_details(json!({ "code": error.code() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_stay_on_their_line() {
        assert_eq!(said("a\n\u{7f}ä"), "a\\n\\u{7f}ä");
        let long = said("x".repeat(10_000));
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
