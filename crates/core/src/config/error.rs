//! The mistakes of a configuration document.

use std::fmt;

use thiserror::Error;

/// One mistake in a configuration document: its place, what is wrong and what to do. It displays as one line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}; {fix}", self.summary())]
pub struct ConfigError {
    /// Key path, `peers[1].keys[0]`; empty if the mistake concerns the document as a whole.
    pub path: String,
    /// Line of the document, from 1; `None` if no single line has the mistake.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What the administrator can do about it.
    pub fix: String,
}

impl ConfigError {
    /// The place and what is wrong, without the remedy, for callers that show [`Self::fix`] apart.
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

/// A value of the document in the form in which a message may show it: one line, of bounded length.
pub(super) fn quote(text: &str) -> String {
    // Control characters could change the state of the console that shows the message.
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
