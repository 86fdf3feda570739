//! The faults of a document.

use alknet_call::AdapterError;
use thiserror::Error;

use super::limits::REFS_MAX;

/// The reason why a document cannot be imported. Locations are JSON pointers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// A chain of references is too long or endless.
    #[error("at {at}: more than {REFS_MAX} references one after the other")]
    Endless {
        /// Where the chain begins.
        at: String,
    },
    /// A reference to another document.
    #[error("at {at}: {reference} is in another document; bundle both into one")]
    External {
        /// The reference.
        reference: String,
        /// Where the reference is.
        at: String,
    },
    /// A reference to something that the document lacks.
    #[error("at {at}: {reference} is not in the document")]
    Missing {
        /// The reference.
        reference: String,
        /// Where the reference is.
        at: String,
    },
    /// A value of the wrong kind.
    #[error("at {at}: this has to be {expected}")]
    Shape {
        /// The kind of value that the document needs there.
        expected: &'static str,
        /// Where the value is.
        at: String,
    },
    /// The document is neither JSON nor YAML.
    #[error("the document cannot be read: {0}")]
    Syntax(String),
    /// The document exceeds a limit.
    #[error("the document has more {what} than {most}")]
    TooMuch {
        /// What the document has too much of.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// The document has another version of OpenAPI.
    #[error("this is OpenAPI {0}; 3.0 and 3.1 are read, convert it to one of them")]
    Version(String),
}

impl DocumentError {
    pub(super) fn shape(at: impl Into<String>, expected: &'static str) -> Self {
        let at = at.into();
        Self::Shape { expected, at }
    }
}

impl From<DocumentError> for AdapterError {
    fn from(error: DocumentError) -> Self {
        let path = match &error {
            DocumentError::TooMuch { what, .. } => return Self::TooLarge(what),
            DocumentError::Endless { at }
            | DocumentError::External { at, .. }
            | DocumentError::Missing { at, .. }
            | DocumentError::Shape { at, .. } => at.clone(),
            _ => "/".to_owned(),
        };
        let text = error.to_string();
        let reason = text.strip_prefix(&format!("at {path}: "));
        let reason = reason.unwrap_or(&text).to_owned();
        Self::Schema { path, reason }
    }
}
