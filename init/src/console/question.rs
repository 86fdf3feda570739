//! Questions of the console to a person, and the answers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::{Zeroize, Zeroizing};

/// Maximum length of an answer in bytes. Further bytes are dropped.
pub const ANSWER_BYTES_MAX: usize = 1024;
/// Maximum number of marks in place of hidden text.
const MARKS_MAX: usize = 32;

/// A question.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsoleQuestion {
    /// Information for the answer, line by line.
    lines: Vec<Zeroizing<String>>,
    /// What to type, in a few words.
    prompt: String,
    /// Whether the answer is shown as it is typed.
    shown: bool,
    /// Whether the lines are secret: they are shown only once a user is at the keyboard, and wiped
    /// from the screen.
    private: bool,
    /// Whether it only offers something secret, which the machine sends to the console where a user
    /// asks for it.
    on_request: bool,
}

impl ConsoleQuestion {
    /// A question whose answer is not shown.
    #[must_use]
    pub fn secret(prompt: impl Into<String>) -> Self {
        Self {
            lines: Vec::new(),
            prompt: prompt.into(),
            shown: false,
            private: false,
            on_request: false,
        }
    }

    /// A question in place of a private one: the machine sends that to the console where a user
    /// presses a key, and to no other. It has no secret itself.
    #[must_use]
    pub fn on_request<T: Into<String>>(lines: impl IntoIterator<Item = T>) -> Self {
        Self {
            on_request: true,
            ..Self::shown("Enter shows them here").with_lines(lines)
        }
    }

    /// A question whose answer is shown.
    #[must_use]
    pub fn shown(prompt: impl Into<String>) -> Self {
        Self {
            shown: true,
            ..Self::secret(prompt)
        }
    }

    /// Like `shown`, with these lines above it.
    #[must_use]
    pub fn with_lines<T: Into<String>>(mut self, lines: impl IntoIterator<Item = T>) -> Self {
        let lines = lines.into_iter().map(|line| Zeroizing::new(line.into()));
        self.lines = lines.collect();
        self
    }

    /// Marks the lines as secret: only a user at the keyboard sees them.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    pub(super) fn is_private(&self) -> bool {
        self.private
    }

    pub(super) fn is_on_request(&self) -> bool {
        self.on_request
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|line| line.as_str())
    }

    pub(super) fn prompt(&self) -> &str {
        &self.prompt
    }

    /// The line for an unattended terminal.
    pub(super) fn announcement(&self) -> Option<String> {
        let is_public = !self.private && !self.on_request;
        is_public.then(|| format!("alknet: asks: {}", self.prompt))
    }

    /// The visible form of an answer.
    pub(super) fn echo(&self, typed: &SecretInput) -> Zeroizing<String> {
        Zeroizing::new(if self.shown {
            String::from_utf8_lossy(&typed.bytes).into_owned()
        } else {
            "*".repeat(typed.bytes.len().min(MARKS_MAX))
        })
    }
}

/// The output never has the lines.
impl fmt::Debug for ConsoleQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleQuestion")
            .field("prompt", &self.prompt)
            .finish_non_exhaustive()
    }
}

/// Tells a console from all others of this process, also from earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleId(u64);

impl ConsoleId {
    /// An id that no console had before.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An input of the user at the keyboard.
#[derive(PartialEq, Eq)]
pub enum ConsoleInput {
    /// The user wants to choose an action on the vault.
    Begin,
    /// The user cancels the question.
    Cancel,
    /// The user typed this line.
    Line(Zeroizing<String>),
    /// The user wants to see, at this console, what a question offers.
    Look,
    /// The user pasted a configuration, or a part of one.
    Pasted(Zeroizing<String>),
}

impl fmt::Debug for ConsoleInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begin => "Begin",
            Self::Cancel => "Cancel",
            Self::Line(_) => "Line(..)",
            Self::Look => "Look",
            Self::Pasted(_) => "Pasted(..)",
        })
    }
}

/// An answer that is being typed. Its memory never moves, so that wiping it wipes every copy.
pub(super) struct SecretInput {
    bytes: Vec<u8>,
}

impl Default for SecretInput {
    fn default() -> Self {
        Self {
            bytes: Vec::with_capacity(ANSWER_BYTES_MAX),
        }
    }
}

impl SecretInput {
    pub(super) fn push(&mut self, byte: u8) {
        if self.bytes.len() < ANSWER_BYTES_MAX {
            self.bytes.push(byte);
        }
    }

    /// Removes the last character with all its bytes.
    pub(super) fn pop(&mut self) {
        while let Some(last) = self.bytes.last_mut() {
            let continues = *last & 0xc0 == 0x80;
            *last = 0;
            self.bytes.pop();
            if !continues {
                return;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.zeroize();
    }

    pub(super) fn take(&mut self) -> Zeroizing<String> {
        let text = Zeroizing::new(String::from_utf8_lossy(&self.bytes).into_owned());
        self.clear();
        text
    }
}

impl Drop for SecretInput {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for SecretInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretInput(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_edited_by_characters_and_bounded() {
        let mut typed = SecretInput::default();
        "aä".bytes().for_each(|byte| typed.push(byte));
        typed.pop();
        assert_eq!(*ConsoleQuestion::shown("x").echo(&typed), "a");
        (0..2 * ANSWER_BYTES_MAX).for_each(|_| typed.push(b'b'));
        assert_eq!(typed.take().len(), ANSWER_BYTES_MAX);
        assert_eq!(*typed.take(), "");
        typed.pop();
        assert_eq!(typed.bytes.capacity(), ANSWER_BYTES_MAX, "it never moved");
    }

    #[test]
    fn what_is_typed_unseen_is_not_shown() {
        let mut typed = SecretInput::default();
        b"hunter2".iter().for_each(|byte| typed.push(*byte));
        let question = ConsoleQuestion::secret("the passphrase")
            .with_lines(["word"])
            .private();
        assert_eq!(*question.echo(&typed), "*******");
        assert_eq!(question.announcement(), None);
        let shown = format!(
            "{question:?} {typed:?} {:?}",
            ConsoleInput::Line(typed.take())
        );
        assert!(
            !shown.contains("word\"") && !shown.contains("hunter"),
            "{shown}"
        );
    }
}
