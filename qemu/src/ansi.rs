//! Removes control sequences from a terminal's stream (ECMA-48).

/// Strips a stream piece by piece. Sequences and characters may be cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct EscapeStripper {
    state: EscapeState,
    /// Bytes of a UTF-8 character whose rest has not come yet.
    partial: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
enum EscapeState {
    /// After `ESC [`: parameters until a final byte.
    Csi,
    /// After `ESC`.
    Escape,
    /// After `ESC` and intermediate bytes: one final byte.
    EscapeIntermediate,
    /// After `ESC ]`, `ESC P`, `ESC X`, `ESC ^`, `ESC _`: until BEL or `ESC \`.
    String,
    #[default]
    Text,
}

impl EscapeStripper {
    /// The text in `bytes`: no control sequences, no carriage returns. Bytes that are not UTF-8
    /// become replacement characters. A sequence that moves the cursor to another row ends the
    /// line, so that a painted screen reads as lines.
    pub(crate) fn strip(&mut self, bytes: &[u8]) -> String {
        for &byte in bytes {
            self.step(byte);
        }
        self.take_text()
    }

    fn step(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (_, 0x1b) => EscapeState::Escape,
            (EscapeState::Text, _) => {
                // Other control characters, such as the carriage return, mean nothing in a text of
                // lines.
                if byte == b'\n' || byte == b'\t' || byte >= 0x20 {
                    self.partial.push(byte);
                }
                EscapeState::Text
            }
            (EscapeState::Escape, b'[') => EscapeState::Csi,
            (EscapeState::Escape, b']' | b'P' | b'X' | b'^' | b'_') => EscapeState::String,
            (EscapeState::Escape | EscapeState::EscapeIntermediate, 0x20..=0x2f) => {
                EscapeState::EscapeIntermediate
            }
            (EscapeState::Csi, 0x20..=0x3f) => EscapeState::Csi,
            // These move the cursor to another line, which is a line end for a reader of text.
            (EscapeState::Csi, b'B' | b'E' | b'H' | b'd' | b'f') => {
                self.partial.push(b'\n');
                EscapeState::Text
            }
            (EscapeState::String, 0x07) => EscapeState::Text,
            (EscapeState::String, _) => EscapeState::String,
            (EscapeState::Csi | EscapeState::Escape | EscapeState::EscapeIntermediate, _) => {
                EscapeState::Text
            }
        };
    }

    /// Takes everything that is complete. An unfinished character stays for the next piece.
    fn take_text(&mut self) -> String {
        let mut text = String::with_capacity(self.partial.len());
        let mut rest = self.partial.as_slice();
        let keep = loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break Vec::new();
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    // A character may be cut between two reads. Its beginning waits for the rest.
                    let Some(bad) = error.error_len() else {
                        break after.to_vec();
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        };
        self.partial = keep;
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strip(bytes: &[u8]) -> String {
        EscapeStripper::default().strip(bytes)
    }

    #[test]
    fn sequences_go_and_text_stays() {
        assert_eq!(strip(b"\x1b[1;32mok\x1b[0m\r\n"), "ok\n");
        assert_eq!(strip(b"\x1b]0;title\x07a\x1b]8;;x\x1b\\b"), "ab");
        assert_eq!(strip(b"\x1b(Ba\x1bcb\x1b[?25lc"), "abc");
        assert_eq!(strip(b"\x1b[1;1Ha\x1b[2;1Hb"), "\na\nb");
        assert_eq!(strip("█▀ ü".as_bytes()), "█▀ ü");
    }

    #[test]
    fn nonsense_is_replaced() {
        assert_eq!(strip(b"a\xffb"), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn cutting_the_stream_changes_nothing(bytes: Vec<u8>, at: prop::sample::Index) {
            let at = at.index(bytes.len() + 1);
            let mut stripper = EscapeStripper::default();
            let mut pieces = stripper.strip(&bytes[..at]);
            pieces.push_str(&stripper.strip(&bytes[at..]));
            prop_assert_eq!(pieces, strip(&bytes));
        }
    }
}
