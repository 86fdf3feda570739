//! Streams of server-sent events (WHATWG HTML, section 9.2).

use bytes::Bytes;
use serde_json::{Map, Value};

use super::limits::EVENT_BYTES_MAX;

/// Takes bytes apart into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    /// A line end was half of one.
    after_cr: bool,
    begun: bool,
    event: String,
    data: Vec<u8>,
    has_data: bool,
    id: String,
}

/// An event was longer than is taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Events {
    /// Events that end within `bytes`.
    pub(super) fn take(&mut self, bytes: &Bytes) -> Result<Vec<Value>, TooLong> {
        let mut events = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = *byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_of_line(&line));
                }
                byte => {
                    self.after_cr = false;
                    self.line.push(*byte);
                }
            }
            if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self, line: &[u8]) -> Option<Value> {
        let line = match self.begun {
            true => line,
            false => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line),
        };
        self.begun = true;
        if line.is_empty() {
            return self.dispatch();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"id" if !value.contains(&0) => {
                self.id = String::from_utf8_lossy(value).into_owned();
            }
            // Comments, and what is not known.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Value> {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        let text = String::from_utf8_lossy(&data);
        let data = serde_json::from_str(&text).unwrap_or_else(|_| text.into_owned().into());
        let mut object = Map::new();
        let event = if event.is_empty() { "message" } else { &event };
        object.insert("event".to_owned(), event.into());
        if !self.id.is_empty() {
            object.insert("id".to_owned(), self.id.clone().into());
        }
        object.insert("data".to_owned(), data);
        Some(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const STREAM: &str = "\u{feff}: hello\n\ndata: 1\r\n\r\nevent: done\rdata:{\"a\":\ndata: 2}\n\
                          id: 7\n\nevent: empty\n\ndata: [DONE]\nretry: 5\n\ndata: cut";

    fn all(parts: &[&[u8]]) -> Vec<Value> {
        let mut events = Events::default();
        let each = parts
            .iter()
            .map(|part| events.take(&Bytes::copy_from_slice(part)));
        each.flat_map(|some| some.expect("short")).collect()
    }

    #[test]
    fn a_stream_is_its_events() {
        let expected = vec![
            json!({"event": "message", "data": 1}),
            json!({"event": "done", "id": "7", "data": {"a": 2}}),
            json!({"event": "message", "id": "7", "data": "[DONE]"}),
        ];
        assert_eq!(all(&[STREAM.as_bytes()]), expected);
        for at in 0..STREAM.len() {
            let (one, two) = STREAM.as_bytes().split_at(at);
            assert_eq!(all(&[one, two]), expected, "{at}");
        }
    }

    #[test]
    fn what_never_ends_is_too_long() {
        let mut events = Events::default();
        let part = Bytes::from(vec![b'x'; 1 << 16]);
        let ends = (0..=EVENT_BYTES_MAX >> 16).any(|_| events.take(&part) == Err(TooLong));
        assert!(ends);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(parts in proptest::collection::vec("(data|id|:| |\\r|\\n|\\PC){0,20}", 0..8)) {
            let parts: Vec<_> = parts.iter().map(|part| part.as_bytes()).collect();
            all(&parts);
        }
    }
}
