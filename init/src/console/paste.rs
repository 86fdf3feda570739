//! Detects a configuration that the user pastes at the console instead of typing an answer.

use std::fmt;

use alknet_provisioning::{CONSOLE_HEAD, CONSOLE_LINE_BYTES_MAX};
use zeroize::Zeroizing;

/// Number of hex digits at the end of the line.
const SUM_DIGITS: usize = 8;

const CTRL_C: u8 = 0x03;
const ESC: u8 = 0x1b;

/// The meaning of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyDisposition {
    /// The last character of the head: the text before it was the head, and a configuration
    /// follows.
    Begun,
    /// The end of the line.
    Done(Zeroizing<String>),
    /// The user gives the paste up.
    Left,
    /// The key does not belong to a configuration.
    Nothing,
    /// The key is part of a configuration.
    Part,
}

/// Follows the keys, and finds the head of a configuration among them.
#[derive(Default)]
pub(super) struct PasteDetector {
    /// Number of characters of the head that were typed in a row.
    matched: usize,
    /// The line from its head on. Its memory never moves, so that wiping it wipes every copy.
    line: Option<Zeroizing<Vec<u8>>>,
    /// The last key, to recognise line ends of two keys, and empty lines.
    last: u8,
    /// Whether the line ended with the last key.
    has_ended: bool,
}

impl PasteDetector {
    pub(super) fn take(&mut self, key: u8) -> KeyDisposition {
        let last = std::mem::replace(&mut self.last, key);
        if key == b'\n' && last == b'\r' && (self.line.is_some() || self.has_ended) {
            return KeyDisposition::Part;
        }
        self.has_ended = false;
        if self.follow(key) {
            // After a second head, the first line was cut off.
            let mut line = Zeroizing::new(Vec::with_capacity(CONSOLE_LINE_BYTES_MAX + 1));
            line.extend_from_slice(CONSOLE_HEAD.as_bytes());
            line.push(b' ');
            self.line = Some(line);
            return KeyDisposition::Begun;
        }
        let Some(line) = &mut self.line else {
            return KeyDisposition::Nothing;
        };
        match key {
            CTRL_C | ESC => {
                self.line = None;
                KeyDisposition::Left
            }
            b'\r' | b'\n' if is_whole(line) || matches!(last, b'\r' | b'\n') => {
                let text = String::from_utf8_lossy(line).into_owned();
                self.line = None;
                self.has_ended = true;
                KeyDisposition::Done(Zeroizing::new(text))
            }
            // Noise is left out. The checksum shows whether something is missing.
            key if key.is_ascii_graphic() || key.is_ascii_whitespace() => {
                // One byte more than the maximum shows that the line is too long.
                if line.len() <= CONSOLE_LINE_BYTES_MAX {
                    line.push(key);
                }
                KeyDisposition::Part
            }
            _ => KeyDisposition::Part,
        }
    }

    /// Number of bytes so far, during a paste.
    pub(super) fn bytes(&self) -> Option<usize> {
        self.line.as_ref().map(|line| line.len())
    }

    /// Whether a key may be the first of the head.
    pub(super) fn may_begin(&self, key: u8) -> bool {
        self.line.is_none() && CONSOLE_HEAD.as_bytes().first() == Some(&key)
    }

    /// Whether the head ends with this key. The head has its first letter only once, so a mismatch
    /// restarts at it.
    fn follow(&mut self, key: u8) -> bool {
        let head = CONSOLE_HEAD.as_bytes();
        let expected = head.get(self.matched).copied().unwrap_or(b' ');
        self.matched = if key == expected {
            self.matched + 1
        } else {
            usize::from(head.first() == Some(&key))
        };
        let is_there = self.matched > head.len();
        if is_there {
            self.matched = 0;
        }
        is_there
    }
}

/// Whether a line ends with a checksum, and so is complete. Otherwise a terminal broke the line.
fn is_whole(line: &[u8]) -> bool {
    let mut parts = line.split(u8::is_ascii_whitespace);
    let last = parts.next_back().unwrap_or_default();
    last.len() == SUM_DIGITS && last.iter().all(u8::is_ascii_hexdigit) && parts.count() > 1
}

/// The output never has the line.
impl fmt::Debug for PasteDetector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasteDetector").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use alknet_provisioning::ConsoleDocument;

    use super::*;

    fn typed(paste: &mut PasteDetector, text: &str) -> Vec<KeyDisposition> {
        let all = text.bytes().map(|key| paste.take(key));
        all.filter(|took| !matches!(took, KeyDisposition::Part | KeyDisposition::Nothing))
            .collect()
    }

    fn pasted(text: &str) -> Zeroizing<String> {
        match typed(&mut PasteDetector::default(), text).pop() {
            Some(KeyDisposition::Done(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_is_known_by_its_head_and_ends_with_its_sum() {
        let line = ConsoleDocument::line(b"[node]\nname = \"edge-1\"\n");
        let whole = format!("{}\r\n", *line);
        assert!(ConsoleDocument::parse(&pasted(&whole)).is_ok());
        // The line is broken by a terminal, comes after other input, and is begun a second time.
        let (front, back) = line.split_at(24);
        for text in [
            format!("{front}\r\n{back}\n"),
            format!("al\x1bx{whole}"),
            format!("aalk{whole}"),
            format!("{front}{whole}"),
        ] {
            assert!(ConsoleDocument::parse(&pasted(&text)).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_damaged_line_ends_as_well() {
        let line = ConsoleDocument::line(b"[node]\n");
        let cut = format!("{}\r\r", &line[..line.len() - 3]);
        assert!(ConsoleDocument::parse(&pasted(&cut)).is_err());
        let mut paste = PasteDetector::default();
        let long = format!("{CONSOLE_HEAD} {}", "A".repeat(2 * CONSOLE_LINE_BYTES_MAX));
        assert_eq!(typed(&mut paste, &long), [KeyDisposition::Begun]);
        let line = paste.line.as_ref().expect("begun");
        assert_eq!(
            line.capacity(),
            CONSOLE_LINE_BYTES_MAX + 1,
            "it never moved"
        );
        let Some(KeyDisposition::Done(text)) = typed(&mut paste, "\n\n").pop() else {
            panic!("it ends");
        };
        assert!(ConsoleDocument::parse(&text).is_err());
    }

    #[test]
    fn a_paste_can_be_left_and_a_stray_line_feed_is_ignored() {
        let mut paste = PasteDetector::default();
        let begun = typed(&mut paste, "alknet-node-1 abc\x1b");
        assert_eq!(begun, [KeyDisposition::Begun, KeyDisposition::Left]);
        assert_eq!(paste.take(b'q'), KeyDisposition::Nothing);
        let line = format!("{}\r", *ConsoleDocument::line(b"x"));
        typed(&mut paste, &line);
        assert_eq!(paste.take(b'\n'), KeyDisposition::Part);
        assert_eq!(paste.take(b'\n'), KeyDisposition::Nothing);
        assert!(!format!("{paste:?}").contains("alknet"));
    }
}
