//! Reads the value of an answer part by part.
//!
//! The host passes on what other servers answer: a list in lists has two bytes of text for each, and some eighty bytes in
//! a tree. Such a tree would be memory of the worker beside the heap that the script was granted. So a worker
//! makes no tree: each part goes into the script's own value at once. Serde has no way to hand a sink on through `ciborium`'s reader.

use alknet_runtime::{SinkStopped, ValueSink};
use alknet_worker::{CborBody, WorkerFrameError};
use ciborium_ll::{Decoder, Header, simple};

use crate::limits::NESTING_MAX;

/// Bytes of a text that are read at a time.
const CHUNK_BYTES: usize = 4 << 10;

/// Sends the value of an answer to `sink`. The answer is one that [`read`](super::read) reads as a
/// [`WireReply`](super::WireReply).
///
/// `file` is the length of the whole file that comes with it: the outermost object gets a member that refers to it.
///
/// # Errors
/// The answer has another form, or the sink has stopped.
pub(crate) fn send_reply(
    answer: &CborBody,
    sink: &mut dyn ValueSink,
    file: Option<usize>,
) -> Result<(), WorkerFrameError> {
    let mut parts = ReplyParts {
        decoder: Decoder::from(answer.as_bytes()),
        sink,
    };
    // An enum is a map of one member, and a variant of two parts is a list.
    let Header::Map(Some(1)) = parts.pull()? else {
        return Err(malformed());
    };
    let name = parts.pull()?;
    match parts.text_of(name)?.as_str() {
        "Json" => {}
        "Mixed" | "File" => {
            let Header::Array(Some(2)) = parts.pull()? else {
                return Err(malformed());
            };
        }
        _ => return Err(malformed()),
    }
    let value = parts.pull()?;
    parts.value(value, file, 0)
}

struct ReplyParts<'a, 's> {
    decoder: Decoder<&'a [u8]>,
    sink: &'s mut dyn ValueSink,
}

impl ReplyParts<'_, '_> {
    fn pull(&mut self) -> Result<Header, WorkerFrameError> {
        self.decoder.pull().map_err(|_| malformed())
    }

    fn text_of(&mut self, header: Header) -> Result<String, WorkerFrameError> {
        let Header::Text(length) = header else {
            return Err(malformed());
        };
        let (mut text, mut chunk) = (String::new(), [0; CHUNK_BYTES]);
        let mut segments = self.decoder.text(length);
        while let Some(mut segment) = segments.pull().map_err(|_| malformed())? {
            while let Some(more) = segment.pull(&mut chunk).map_err(|_| malformed())? {
                text.push_str(more);
            }
        }
        Ok(text)
    }

    /// The next header in a list or map, unless it has ended. `left` is the number of its items that come.
    fn next(&mut self, left: &mut Option<usize>) -> Result<Option<Header>, WorkerFrameError> {
        match left {
            Some(0) => return Ok(None),
            Some(left) => *left -= 1,
            None => {}
        }
        let header = self.pull()?;
        match (header, left) {
            (Header::Break, None) => Ok(None),
            _ => Ok(Some(header)),
        }
    }

    fn value(
        &mut self,
        header: Header,
        file: Option<usize>,
        depth: usize,
    ) -> Result<(), WorkerFrameError> {
        if depth > NESTING_MAX {
            return Err(malformed());
        }
        let taken = match header {
            Header::Positive(number) => self.sink.number(number as f64),
            // All bits of the number are inverted.
            Header::Negative(bits) => self.sink.number(-(bits as f64) - 1.0),
            Header::Float(number) if number.is_finite() => self.sink.number(number),
            Header::Simple(simple::TRUE) => self.sink.boolean(true),
            Header::Simple(simple::FALSE) => self.sink.boolean(false),
            Header::Simple(simple::NULL | simple::UNDEFINED) => self.sink.null(),
            Header::Text(_) => {
                let text = self.text_of(header)?;
                self.sink.text(&text)
            }
            Header::Array(items) => return self.list(items, depth),
            Header::Map(members) => return self.object(members, file, depth),
            _ => return Err(malformed()),
        };
        taken.map_err(stopped)
    }

    fn list(&mut self, mut items: Option<usize>, depth: usize) -> Result<(), WorkerFrameError> {
        self.sink.begin_list().map_err(stopped)?;
        while let Some(item) = self.next(&mut items)? {
            self.value(item, None, depth + 1)?;
        }
        self.sink.end().map_err(stopped)
    }

    fn object(
        &mut self,
        mut members: Option<usize>,
        file: Option<usize>,
        depth: usize,
    ) -> Result<(), WorkerFrameError> {
        self.sink.begin_object().map_err(stopped)?;
        while let Some(name) = self.next(&mut members)? {
            let name = self.text_of(name)?;
            self.sink.name(&name).map_err(stopped)?;
            let value = self.pull()?;
            self.value(value, None, depth + 1)?;
        }
        if let Some(length) = file {
            whole_file(self.sink, length).map_err(stopped)?;
        }
        self.sink.end().map_err(stopped)
    }
}

/// The member in which `tensor.open` looks for the whole file.
fn whole_file(sink: &mut dyn ValueSink, length: usize) -> Result<(), SinkStopped> {
    sink.name("file")?;
    sink.begin_object()?;
    sink.name("$bin")?;
    sink.begin_list()?;
    sink.number(0.0)?;
    sink.number(length as f64)?;
    sink.end()?;
    sink.end()
}

fn malformed() -> WorkerFrameError {
    WorkerFrameError::Cbor("it is no answer".to_owned())
}

fn stopped(stopped: SinkStopped) -> WorkerFrameError {
    WorkerFrameError::Cbor(stopped.to_string())
}

#[cfg(test)]
pub(crate) mod testing {
    use bytes::Bytes;

    use super::*;

    /// The parts as a text, and whether it stops after so many.
    pub(crate) struct PartsText {
        pub(crate) text: String,
        left: usize,
    }

    impl PartsText {
        pub(crate) const fn with_limit(left: usize) -> Self {
            Self {
                text: String::new(),
                left,
            }
        }

        fn take(&mut self, part: &str) -> Result<(), SinkStopped> {
            self.left = self.left.checked_sub(1).ok_or(SinkStopped)?;
            self.text.push_str(part);
            self.text.push(' ');
            Ok(())
        }
    }

    impl ValueSink for PartsText {
        fn bytes(&mut self, bytes: Bytes) {
            self.text.push_str(&format!("{} bytes ", bytes.len()));
        }

        fn null(&mut self) -> Result<(), SinkStopped> {
            self.take("null")
        }

        fn boolean(&mut self, value: bool) -> Result<(), SinkStopped> {
            self.take(&value.to_string())
        }

        fn number(&mut self, value: f64) -> Result<(), SinkStopped> {
            self.take(&value.to_string())
        }

        fn text(&mut self, value: &str) -> Result<(), SinkStopped> {
            self.take(&format!("{value:?}"))
        }

        fn begin_list(&mut self) -> Result<(), SinkStopped> {
            self.take("[")
        }

        fn begin_object(&mut self) -> Result<(), SinkStopped> {
            self.take("{")
        }

        fn name(&mut self, name: &str) -> Result<(), SinkStopped> {
            self.take(&format!("{name}:"))
        }

        fn end(&mut self) -> Result<(), SinkStopped> {
            self.take("end")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::PartsText;
    use super::*;
    use crate::wire::{JsonText, WireReply, body};

    fn sent(answer: &CborBody, file: Option<usize>, left: usize) -> Result<String, String> {
        let mut sink = PartsText::with_limit(left);
        let sent = send_reply(answer, &mut sink, file);
        sent.map(|()| sink.text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_parts_of_an_answer_come_in_its_order() {
        let text = r#"{"b":[1,-1,0.5,-9007199254740993,null,true,false,"é"],"a":{}}"#;
        let value = JsonText(text.as_bytes());
        let expected = "{ b: [ 1 -1 0.5 -9007199254740992 null true false \"é\" end a: { end end ";
        let answer = body(&WireReply::Json(value)).expect("CBOR");
        assert_eq!(sent(&answer, None, 100).as_deref(), Ok(expected));
        let answer = body(&WireReply::File(json!({}), 0)).expect("CBOR");
        let file = "{ file: { $bin: [ 0 7 end end end ";
        assert_eq!(sent(&answer, Some(7), 100).as_deref(), Ok(file));
    }

    #[test]
    fn texts_of_any_length_come_whole() {
        let long = "é".repeat(CHUNK_BYTES);
        let answer = body(&WireReply::Json(json!({ long.clone(): long }))).expect("CBOR");
        let expected = format!("{{ {long}: {long:?} end ");
        assert_eq!(sent(&answer, None, 100), Ok(expected));
    }

    #[test]
    fn a_sink_that_has_stopped_ends_the_reading() {
        let answer = body(&WireReply::Json(json!([[1], 2]))).expect("CBOR");
        assert!(sent(&answer, None, 6).is_ok());
        for left in 0..6 {
            let error = sent(&answer, None, left).expect_err("it stopped");
            assert!(error.contains("does not fit"), "{error}");
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for bytes in [
            vec![],
            vec![0xf6],
            // A kind that there is not, a list without its second part, a value that breaks off, a tag, and bytes.
            [&[0xa1, 0x61], "x".as_bytes(), &[0xf6]].concat(),
            [&[0xa1, 0x65], "Mixed".as_bytes(), &[0x81, 0xf6]].concat(),
            [&[0xa1, 0x64], "Json".as_bytes(), &[0x82, 0xf6]].concat(),
            [&[0xa1, 0x64], "Json".as_bytes(), &[0xc1, 0x00]].concat(),
            [&[0xa1, 0x64], "Json".as_bytes(), &[0x41, 0x00]].concat(),
            // NaN.
            [&[0xa1, 0x64], "Json".as_bytes(), &[0xf9, 0x7e, 0x00]].concat(),
        ] {
            let answer = CborBody::from_cbor(bytes.clone());
            assert!(sent(&answer, None, 100).is_err(), "{bytes:x?}");
        }
        let deep = [&[0xa1, 0x64], "Json".as_bytes(), &[0x81; NESTING_MAX + 2]].concat();
        assert!(sent(&CborBody::from_cbor(deep), None, 10_000).is_err());
    }
}
