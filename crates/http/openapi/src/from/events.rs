//! Streams of server-sent events (WHATWG HTML, section 9.2).

use alknet_call::{CallError, CallOutput, ErrorCode};
use bytes::{Buf, Bytes};
use serde::Serialize;
use serde_json::value::RawValue;

use super::limits::{EVENT_BYTES_MAX, EVENT_ID_BYTES_MAX};

/// Splits bytes into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    /// The last byte was a CR, whose LF may follow.
    after_cr: bool,
    begun: bool,
    event: String,
    data: Vec<u8>,
    has_data: bool,
    id: String,
}

/// An event as the operation outputs it.
#[derive(Serialize)]
struct Event<'a, T: ?Sized> {
    event: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    data: &'a T,
}

impl Events {
    /// The next event that ends within `bytes`. This takes the bytes of that event off the front of `bytes`, or all
    /// of them if no event ends there. It returns one event at a time, because a short text may hold thousands.
    ///
    /// # Errors
    /// `PAYLOAD_TOO_LARGE` if an event is longer than the node accepts.
    pub(super) fn take(&mut self, bytes: &mut Bytes) -> Result<Option<CallOutput>, CallError> {
        let mut taken = 0;
        let mut found = None;
        for byte in bytes.iter() {
            taken += 1;
            match byte {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = *byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    found = self.end_of_line(&line);
                }
                byte => {
                    self.after_cr = false;
                    self.line.push(*byte);
                }
            }
            // The check runs for each byte, so that the incomplete event never exceeds its limit.
            if self.bytes() > EVENT_BYTES_MAX {
                let message = "the server sent an event that is too long";
                return Err(CallError::new(ErrorCode::PayloadTooLarge, message));
            }
            if found.is_some() {
                break;
            }
        }
        bytes.advance(taken);
        found.transpose()
    }

    /// The bytes of the event that is not complete yet.
    pub(super) fn bytes(&self) -> usize {
        self.line.len() + self.data.len() + self.event.len() + self.id.len()
    }

    fn end_of_line(&mut self, line: &[u8]) -> Option<Result<CallOutput, CallError>> {
        // One byte order mark may precede the first line (WHATWG HTML, section 9.2.5).
        let line = match self.begun {
            true => line,
            false => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line),
        };
        self.begun = true;
        if line.is_empty() {
            // An empty line ends an event (WHATWG HTML, section 9.2.6).
            return self.dispatch();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &[][..]),
        };
        // One space belongs to the colon, and further spaces belong to the value (WHATWG HTML, section 9.2.6).
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if self.has_data {
                    // Several lines of data are joined by line feeds (WHATWG HTML, section 9.2.6).
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            // The standard ignores an id with a NUL (WHATWG HTML, section 9.2.6).
            b"id" if !value.contains(&0) => {
                let is_short = value.len() <= EVENT_ID_BYTES_MAX;
                // Each later event repeats the id, so a long id would make every event long.
                let id = if is_short { value } else { &[][..] };
                self.id = String::from_utf8_lossy(id).into_owned();
            }
            // Comments and unknown fields are ignored.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Result<CallOutput, CallError>> {
        let event = std::mem::take(&mut self.event);
        let data = Bytes::from(std::mem::take(&mut self.data));
        // An event without data is dropped (WHATWG HTML, section 9.2.6).
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        // An event without a name has the type `message` (WHATWG HTML, section 9.2.6).
        let event = if event.is_empty() { "message" } else { &event };
        Some(self.output(event, &data))
    }

    /// Makes the output of an event. Data that are JSON pass unchanged, without a tree.
    fn output(&self, event: &str, data: &Bytes) -> Result<CallOutput, CallError> {
        let id = self.id.as_str();
        match CallOutput::from_foreign_text(data) {
            Ok(CallOutput::Raw(text)) => {
                let text = serde_json::from_slice::<&RawValue>(&text);
                let data = text.map_err(|error| CallError::internal(error.to_string()))?;
                CallOutput::json(&Event { event, id, data })
            }
            Ok(CallOutput::Value(value)) => CallOutput::json(&Event {
                event,
                id,
                data: &value,
            }),
            _ => CallOutput::json(&Event {
                event,
                id,
                data: &String::from_utf8_lossy(data),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_call::CallBody;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const STREAM: &str = "\u{feff}: hello\n\ndata: 1\r\n\r\nevent: done\rdata:{\"a\":\ndata: 2}\n\
                          id: 7\n\nevent: empty\n\ndata: [DONE]\nretry: 5\n\ndata: cut";

    fn all(parts: &[&[u8]]) -> Vec<Value> {
        let mut events = Events::default();
        let mut all = Vec::new();
        for part in parts {
            let mut part = Bytes::copy_from_slice(part);
            while let Some(event) = events.take(&mut part).expect("short") {
                all.push(CallBody::from(event).value().clone());
            }
            assert!(part.is_empty());
        }
        all
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
        for part in ["x", "event: x\n", "data: x\n"] {
            let part = Bytes::from(part.repeat(1 << 12));
            let mut events = Events::default();
            let mut ends = || events.take(&mut part.clone()).is_err();
            let most = 2 * EVENT_BYTES_MAX / part.len();
            let ended = (0..most.max(1 << 9)).any(|_| ends());
            assert_eq!(ended, !part.starts_with(b"event"), "{part:?}");
        }
        let name = ["event: ", &"x".repeat(EVENT_BYTES_MAX), "\ndata: 1\n\n"].concat();
        assert!(Events::default().take(&mut name.into()).is_err());
    }

    /// An id counts for every later event, each of which may be seven bytes.
    #[test]
    fn an_id_is_short() {
        let stream = |id: usize| format!("id: {}\ndata:\n\ndata:\n\n", "x".repeat(id));
        let fits = all(&[stream(EVENT_ID_BYTES_MAX).as_bytes()]);
        assert_eq!(
            fits[1]["id"].as_str().map(str::len),
            Some(EVENT_ID_BYTES_MAX)
        );
        let long = all(&[stream(EVENT_ID_BYTES_MAX + 1).as_bytes()]);
        assert_eq!(
            long,
            [(); 2].map(|()| json!({"event": "message", "data": ""}))
        );
    }

    #[test]
    fn data_of_short_values_become_no_tree() {
        let list = format!("[{}0]", "0,".repeat(1 << 18));
        let mut stream = Bytes::from(format!("data: {list}\n\ndata: next\n\n"));
        let event = Events::default().take(&mut stream).expect("short");
        let Some(CallOutput::Raw(text)) = event else {
            panic!("made into something else");
        };
        assert_eq!(text, format!("{{\"event\":\"message\",\"data\":{list}}}"));
        assert_eq!(stream, "data: next\n\n", "one at a time");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(parts in proptest::collection::vec("(data|id|:| |\\r|\\n|\\PC){0,20}", 0..8)) {
            let parts: Vec<_> = parts.iter().map(|part| part.as_bytes()).collect();
            all(&parts);
        }
    }
}
