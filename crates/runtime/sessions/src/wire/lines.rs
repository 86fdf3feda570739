//! Reads the console lines of a worker. An empty line has seven bytes in a frame and 32 in the list, so a message may
//! have no more lines than a worker of this node collects.

use std::fmt;

use alknet_runtime::ConsoleLevel;
use serde::Deserializer;
use serde::de::{Error as _, SeqAccess, Visitor};

use crate::limits::LINES_MAX;

type ConsoleLines = Vec<(ConsoleLevel, String)>;

pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ConsoleLines, D::Error> {
    deserializer.deserialize_seq(LinesVisitor)
}

struct LinesVisitor;

impl<'de> Visitor<'de> for LinesVisitor {
    type Value = ConsoleLines;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {LINES_MAX} lines")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ConsoleLines, A::Error> {
        // The announced length is the worker's word: the list grows with the lines that are there.
        let mut lines = Vec::new();
        while let Some(line) = seq.next_element()? {
            if lines.len() == LINES_MAX {
                return Err(A::Error::invalid_length(LINES_MAX + 1, &self));
            }
            lines.push(line);
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{GuestMessage, pack, unpack};

    /// A frame of 1 MiB has 150,000 empty lines, which took 5 MB.
    #[test]
    fn a_message_has_no_more_lines_than_a_worker_collects() {
        let message = |lines: usize| {
            let lines = vec![(ConsoleLevel::Info, String::new()); lines];
            pack(&GuestMessage::Lines(lines)).expect("CBOR")
        };
        let most = unpack(&message(LINES_MAX)).expect("as many as may be");
        assert!(matches!(most, GuestMessage::Lines(lines) if lines.len() == LINES_MAX));
        let refused = unpack::<GuestMessage>(&message(LINES_MAX + 1));
        let error = refused.expect_err("one line too many").to_string();
        assert!(error.contains("lines"), "{error}");
    }
}
