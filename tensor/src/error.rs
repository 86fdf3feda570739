//! The error of the whole crate: a stable code, and a text that names what is wrong.

use std::fmt;
use std::io;

use thiserror::Error;

/// Characters of a name from a file that an error repeats.
const QUOTED_CHARS_MAX: usize = 80;

/// The kind of an error. Its text is the same on every interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorErrorCode {
    /// Bytes lie at an offset where elements of this type cannot be viewed.
    Align,
    /// A JSON object has one key twice.
    DupKey,
    /// The element type is unknown, has no such view, or does not fill whole bytes.
    Dtype,
    /// Bytes do not match the hash in the header.
    Hash,
    /// The header's frame or one of its members breaks the format.
    Header,
    /// Reading or writing failed, or the file ended early.
    Io,
    /// The header is not JSON in UTF-8.
    Json,
    /// A layout contradicts its entry, its schema or itself.
    Layout,
    /// A value is above the limits.
    Limit,
    /// The file has no such tensor, record, item or field.
    NotFound,
    /// A size does not fit 64 bits.
    Overflow,
    /// `mt.index` or `mt.schema` breaks the format.
    Schema,
    /// A shape does not match the bytes, or a range lies outside the shape.
    Shape,
    /// Entries leave a hole, overlap, or do not end with the file.
    Tiling,
    /// A value is not valid for its type.
    Value,
    /// The container has a later major version.
    Version,
}

impl TensorErrorCode {
    /// Every code, sorted by name.
    pub const ALL: [Self; 16] = [
        Self::Align,
        Self::DupKey,
        Self::Dtype,
        Self::Hash,
        Self::Header,
        Self::Io,
        Self::Json,
        Self::Layout,
        Self::Limit,
        Self::NotFound,
        Self::Overflow,
        Self::Schema,
        Self::Shape,
        Self::Tiling,
        Self::Value,
        Self::Version,
    ];

    /// The stable text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Align => "E_ALIGN",
            Self::DupKey => "E_DUPKEY",
            Self::Dtype => "E_DTYPE",
            Self::Hash => "E_HASH",
            Self::Header => "E_HEADER",
            Self::Io => "E_IO",
            Self::Json => "E_JSON",
            Self::Layout => "E_LAYOUT",
            Self::Limit => "E_LIMIT",
            Self::NotFound => "E_NOTFOUND",
            Self::Overflow => "E_OVERFLOW",
            Self::Schema => "E_SCHEMA",
            Self::Shape => "E_SHAPE",
            Self::Tiling => "E_TILING",
            Self::Value => "E_VALUE",
            Self::Version => "E_VERSION",
        }
    }
}

impl fmt::Display for TensorErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error with its code: `E_TILING: entry "b" begins at 8, the one before it ends at 4`.
#[derive(Debug, Error)]
#[error("{code}: {what}")]
pub struct TensorError {
    code: TensorErrorCode,
    what: String,
    #[source]
    source: Option<io::Error>,
}

impl TensorError {
    /// An error of this code; `what` names the mistake on one line.
    pub fn new(code: TensorErrorCode, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            source: None,
        }
    }

    /// A failure of the system during `what`.
    pub fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self {
            code: TensorErrorCode::Io,
            what: format!("{what}: {source}"),
            source: Some(source),
        }
    }

    /// The kind of the error.
    #[must_use]
    pub const fn code(&self) -> TensorErrorCode {
        self.code
    }

    /// The text without the code.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The same error with `subject` before its text.
    pub(crate) fn with_subject(mut self, subject: impl fmt::Display) -> Self {
        self.what = format!("{subject}: {}", self.what);
        self
    }
}

/// The result of this crate's functions.
pub type Result<T, E = TensorError> = std::result::Result<T, E>;

/// Shorthand for the end of most checks.
pub(crate) fn fail<T>(code: TensorErrorCode, what: impl Into<String>) -> Result<T> {
    Err(TensorError::new(code, what))
}

/// A text from a file as an error may repeat it: escaped and cut to a line.
pub(crate) struct QuotedText<'a>(pub(crate) &'a str);

impl fmt::Display for QuotedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = self.0.char_indices().nth(QUOTED_CHARS_MAX);
        match cut {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_different_names_in_order() {
        let names: Vec<_> = TensorErrorCode::ALL
            .iter()
            .map(|code| code.as_str())
            .collect();
        let mut sorted = names.clone();
        sorted.sort_by_key(|name| name.to_lowercase());
        sorted.dedup();
        assert_eq!(sorted.len(), TensorErrorCode::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("E_")));
    }

    #[test]
    fn names_from_files_are_escaped_and_cut() {
        assert_eq!(QuotedText("a\n\u{1b}b").to_string(), r#""a\n\u{1b}b""#);
        let long = "ä".repeat(200);
        let said = QuotedText(&long).to_string();
        assert_eq!(said.chars().count(), QUOTED_CHARS_MAX + 3);
        assert!(said.ends_with('…'));
    }
}
