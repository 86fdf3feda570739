//! What can be wrong with a configuration document.

use std::fmt;

use thiserror::Error;

/// One mistake in a configuration document: where it is, what is wrong, what to do. Displays as
/// one line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}; {fix}", self.summary())]
pub struct ConfigError {
    /// Key path, `peers[1].keys[0]`; empty where the document as a whole is meant.
    pub path: String,
    /// Line of the document, from 1; absent where no single line is to blame.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl ConfigError {
    /// Where it is and what is wrong, without the remedy, for those who show [`Self::fix`] apart.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{}{}", ConfigErrorLocation(self), self.what)
    }
}

struct ConfigErrorLocation<'a>(&'a ConfigError);

impl fmt::Display for ConfigErrorLocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { path, line, .. } = self.0;
        match (line, path.is_empty()) {
            (Some(line), true) => write!(f, "line {line}: "),
            (Some(line), false) => write!(f, "line {line}, {path}: "),
            (None, true) => Ok(()),
            (None, false) => write!(f, "{path}: "),
        }
    }
}

/// Longest excerpt of a document quoted in a message, in characters.
const QUOTE_CHARS_MAX: usize = 80;

/// A value of the document as a message may show it: one line, of bounded length.
pub(super) fn quote(text: &str) -> String {
    // Without control characters, which could do anything on the console that shows it.
    let mut shown: String = text
        .chars()
        .take(QUOTE_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        shown.push('…');
    }
    format!("'{shown}'")
}
