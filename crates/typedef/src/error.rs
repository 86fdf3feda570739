//! What can fail, and where.

use std::fmt;

use thiserror::Error;

use crate::pointer::join;

/// Characters of a foreign library's message that this crate passes on.
const WHY_CHARS_MAX: usize = 300;

/// Every refusal of this crate. Each message names the path and the fault there.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TypedefError {
    /// Bytes or a value do not match their field.
    #[error("{}: {why}", field(path))]
    Access {
        /// The field, as a JSON pointer (RFC 6901) into the record; empty for the whole.
        path: String,
        /// The fault.
        why: String,
    },
    /// The schema is valid, and has no layout in this mode.
    #[error("{} has no layout: {why}", field(path))]
    Layout {
        /// The field, as a JSON pointer (RFC 6901) into the record; empty for the whole.
        path: String,
        /// The fault.
        why: String,
    },
    /// A limit is exceeded.
    #[error("{0}")]
    Limit(LimitExceeded),
    /// The schema breaks a rule.
    #[error("the schema at #{ptr}: {why}")]
    Schema {
        /// The path, as a JSON pointer (RFC 6901) into the schema; empty for the root.
        ptr: String,
        /// The fault.
        why: String,
    },
    /// A JSON value breaks the schema. At least one violation, at most
    /// [`VIOLATIONS_MAX`](crate::limits::VIOLATIONS_MAX).
    #[error("{}", list(.0))]
    Validation(Vec<Violation>),
}

/// The exceeded limit, and how much it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitExceeded {
    /// What the limit counts.
    pub what: &'static str,
    /// The highest allowed number.
    pub max: u64,
}

/// One path at which a value breaks the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path, as a JSON pointer (RFC 6901) into the value.
    pub path: String,
    /// The violated keyword.
    pub keyword: String,
    /// The fault in words, without the value.
    pub message: String,
}

impl TypedefError {
    pub(crate) fn access(path: &str, why: impl Into<String>) -> Self {
        Self::Access {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    /// The same error, with its path below `part`.
    pub(crate) fn under(self, part: &str) -> Self {
        match self {
            Self::Access { path, why } => Self::Access {
                path: join("", part) + &path,
                why,
            },
            other => other,
        }
    }

    pub(crate) fn layout(path: &str, why: impl Into<String>) -> Self {
        Self::Layout {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    pub(crate) fn limit(what: &'static str, max: u64) -> Self {
        Self::Limit(LimitExceeded { what, max })
    }

    pub(crate) fn schema(ptr: &str, why: impl Into<String>) -> Self {
        Self::Schema {
            ptr: ptr.to_owned(),
            why: why.into(),
        }
    }
}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too much: {} may be at most {}", self.what, self.max)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", field(&self.path), self.message)
    }
}

/// A message of another library, not longer than a screen takes.
pub(crate) fn short(message: &str) -> String {
    match message.char_indices().nth(WHY_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

fn field(path: &str) -> &str {
    if path.is_empty() { "the value" } else { path }
}

fn list(violations: &[Violation]) -> String {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    lines.join("; ")
}
