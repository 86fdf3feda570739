//! Records real calls for use in tests.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use super::replay::{RecordedBytes, RecordedCall};
use super::secret::SecretMarks;
use crate::error::OpError;
use crate::json::weight;
use crate::limits::{RECORDED_BYTES_MAX, RECORDED_MAX, RECORDED_MEMORY_FACTOR};

/// Records calls and their answers in the order in which they began, without what the schemas of the called
/// operations mark as secret. Clones write to the same record.
///
/// The host, which knows these schemas and sees the calls, writes the record; the script never does.
#[derive(Clone, Debug, Default)]
pub struct CallRecorder(Arc<Mutex<RecorderState>>);

/// The memory for a record.
pub trait RecorderCapacity: fmt::Debug + Send + Sync {
    /// Takes more bytes until this is dropped; returns `false` if there is no room for them.
    fn take(&self, bytes: usize) -> bool;
}

/// The recorded calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordedCalls {
    /// The `calls` of a test case.
    pub calls: Vec<RecordedCall>,
    /// How many calls the record omits: those that sent bytes or took a file, those without an answer, those whose
    /// answer a record cannot represent, and those beyond [`RECORDED_MAX`] or [`RECORDED_BYTES_MAX`].
    pub left_out: usize,
}

#[derive(Debug, Default)]
struct RecorderState {
    entries: Vec<RecorderEntry>,
    /// The length of all calls as text.
    bytes: usize,
    left_out: usize,
    ended: bool,
    /// The memory for the record; without it, only [`RECORDED_BYTES_MAX`] applies.
    capacity: Option<Arc<dyn RecorderCapacity>>,
}

/// The size of a recorded part.
#[derive(Clone, Copy, Debug, Default)]
struct RecordSize {
    /// The unit of [`RecorderState::bytes`].
    bytes: usize,
    memory: usize,
}

impl RecordSize {
    /// The size of a value: its text, or its memory if that is far larger.
    fn measure(value: &Value) -> Self {
        let memory = weight::estimate(value);
        Self {
            bytes: text_len(value).max(memory / RECORDED_MEMORY_FACTOR),
            memory,
        }
    }

    /// The size with further bytes that are no value.
    const fn and(self, bytes: usize) -> Self {
        Self {
            bytes: self.bytes + bytes,
            memory: self.memory + bytes,
        }
    }
}

#[derive(Debug)]
struct RecorderEntry {
    call: RecordedCall,
    /// `None` for an unknown operation, whose input is not recorded either.
    marks: Option<SecretMarks>,
    bytes: usize,
    state: AnswerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerState {
    /// The call has no answer so far.
    Open,
    /// The call has its answer, or all parts of it until now.
    Good,
    /// The call cannot be recorded.
    Bad,
    /// The call found no operation, so it is not needed: a replay gives the same answer to every unknown call.
    Needless,
}

impl CallRecorder {
    /// Records the beginning of a call or a subscription. An unknown operation has no `marks`.
    #[must_use]
    pub fn begin(&self, path: &str, input: &Value, marks: Option<SecretMarks>) -> RecorderTicket {
        let mut input = match &marks {
            Some(_) => input.clone(),
            None => Value::Null,
        };
        if let Some(marks) = &marks {
            marks.redact_input(&mut input);
        }
        let call = RecordedCall {
            path: path.to_owned(),
            input,
            output: None,
            bytes: None,
            error: None,
        };
        RecorderTicket {
            at: lock(&self.0).begin(call, marks),
            state: Arc::clone(&self.0),
        }
    }

    /// From now on the record takes its memory from `capacity`, and omits what finds no room.
    pub fn keep_in(&self, capacity: Arc<dyn RecorderCapacity>) {
        lock(&self.0).capacity = Some(capacity);
    }

    /// Counts a call that a record cannot represent.
    pub fn leave_out(&self) {
        lock(&self.0).left_out += 1;
    }

    /// Ends the record and returns it.
    #[must_use]
    pub fn end(&self) -> RecordedCalls {
        let mut state = lock(&self.0);
        // Tickets of open calls may still be used later.
        state.ended = true;
        let open = state
            .entries
            .iter()
            .filter(|it| it.state == AnswerState::Open);
        let left_out = state.left_out + open.count();
        let entries = std::mem::take(&mut state.entries).into_iter();
        let good = entries.filter(|it| it.state == AnswerState::Good);
        RecordedCalls {
            calls: good.map(|it| it.call).collect(),
            left_out,
        }
    }
}

/// A call whose beginning was recorded.
#[derive(Clone, Debug)]
pub struct RecorderTicket {
    state: Arc<Mutex<RecorderState>>,
    /// `None` if there was no room.
    at: Option<usize>,
}

impl RecorderTicket {
    /// Records the answer. `{"$bin": [offset, length]}` in `output` refers to `bytes`, as in
    /// [`OpReply::Mixed`](crate::OpReply::Mixed).
    pub fn answered(&self, output: &Value, bytes: Option<&[u8]>) {
        self.grow(|call, marks| {
            let mut output = output.clone();
            marks.redact_output(&mut output);
            let mut more = RecordSize::measure(&output);
            if let Some(bytes) = bytes {
                // Bytes without a reference may have been a secret.
                let mut copied = Vec::new();
                gather(&mut output, bytes, &mut copied)?;
                more = more.and(base64_len(copied.len()));
                call.bytes = Some(RecordedBytes(copied.into()));
            }
            call.output = Some(output);
            Some(more)
        });
    }

    /// Records an item of a subscription. The record has all items as one array, and their bytes behind each other.
    pub fn yielded(&self, item: &Value, bytes: Option<&[u8]>) {
        self.grow(|call, marks| {
            let mut item = item.clone();
            marks.redact_output(&mut item);
            let mut more = RecordSize::measure(&item).and(1);
            if let Some(bytes) = bytes {
                let before = call.bytes.take();
                // No copy: the record is the only owner.
                let mut copied = before.map_or_else(Vec::new, |RecordedBytes(it)| it.into());
                let length = copied.len();
                gather(&mut item, bytes, &mut copied)?;
                more = more.and(base64_len(copied.len()) - base64_len(length));
                call.bytes = Some(RecordedBytes(copied.into()));
            }
            let items = call.output.get_or_insert_with(|| json!([]));
            items.as_array_mut()?.push(item);
            Some(more)
        });
    }

    /// Records that a subscription ended or was cancelled.
    pub fn left(&self) {
        self.grow(|call, _| {
            call.output.get_or_insert_with(|| json!([]));
            Some(RecordSize::default())
        });
    }

    /// Records a failure; a subscription may have had items before.
    pub fn failed(&self, error: &OpError) {
        if error.code == "NOT_FOUND" && lock(&self.state).is_needless(self.at) {
            return;
        }
        self.grow(|call, marks| {
            let mut error = error.clone();
            marks.redact_error(&mut error);
            let details = RecordSize::measure(&error.details);
            let text = text_len(&error);
            let more = RecordSize {
                bytes: text.max(details.bytes),
                memory: text.saturating_add(details.memory),
            };
            call.error = Some(error);
            Some(more)
        });
    }

    /// Counts an answer that a record cannot represent.
    pub fn leave_out(&self) {
        self.grow(|_, _| None);
    }

    /// Adds to the call if it can be recorded; `add` returns by how much it grows.
    fn grow(&self, add: impl FnOnce(&mut RecordedCall, &SecretMarks) -> Option<RecordSize>) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let Some(entry) = self.at.and_then(|at| state.entries.get_mut(at)) else {
            return;
        };
        if matches!(entry.state, AnswerState::Bad | AnswerState::Needless) {
            return;
        }
        let marks = entry.marks.as_ref();
        // All parts of an unknown operation may be secret.
        let more = marks.and_then(|marks| add(&mut entry.call, marks));
        let bytes = state.bytes;
        let is_accepted = |more: &RecordSize| {
            bytes + more.bytes <= RECORDED_BYTES_MAX && has_capacity(state.capacity.as_ref(), *more)
        };
        match more.filter(is_accepted) {
            Some(more) => {
                entry.state = AnswerState::Good;
                entry.bytes += more.bytes;
                state.bytes += more.bytes;
            }
            None => {
                entry.state = AnswerState::Bad;
                // An omitted call uses no room.
                entry.call = RecordedCall::default();
                state.bytes -= std::mem::take(&mut entry.bytes);
                state.left_out += 1;
            }
        }
    }
}

impl RecorderState {
    fn begin(&mut self, call: RecordedCall, marks: Option<SecretMarks>) -> Option<usize> {
        let input = RecordSize::measure(&call.input);
        let bytes = text_len(&call).max(input.bytes);
        let memory = input.memory.saturating_add(call.path.len());
        let has_space =
            self.entries.len() < RECORDED_MAX && self.bytes + bytes <= RECORDED_BYTES_MAX;
        let has_space =
            has_space && has_capacity(self.capacity.as_ref(), RecordSize { bytes, memory });
        if self.ended || !has_space {
            self.left_out += 1;
            return None;
        }
        self.bytes += bytes;
        self.entries.push(RecorderEntry {
            call,
            marks,
            bytes,
            state: AnswerState::Open,
        });
        Some(self.entries.len() - 1)
    }

    /// Whether the call is of an unknown operation, so that the record need not contain its failure.
    fn is_needless(&mut self, at: Option<usize>) -> bool {
        let entry = at.and_then(|at| self.entries.get_mut(at));
        let unknown = entry.filter(|entry| entry.marks.is_none());
        unknown.is_some_and(|entry| {
            entry.state = AnswerState::Needless;
            true
        })
    }
}

/// Copies the bytes that `value` refers to from `bytes` to the end of `copied`, within the limit of a record, and
/// updates the references.
fn gather(value: &mut Value, bytes: &[u8], copied: &mut Vec<u8>) -> Option<()> {
    if let Some(place) = value.get_mut("$bin") {
        let (offset, len): (usize, usize) = serde_json::from_value(place.take()).ok()?;
        let part = bytes.get(offset..offset.checked_add(len)?)?;
        // A value may refer to the same bytes many times.
        if base64_len(copied.len() + len) > RECORDED_BYTES_MAX {
            return None;
        }
        *place = json!([copied.len(), len]);
        copied.extend_from_slice(part);
        return Some(());
    }
    match value {
        Value::Array(items) => items
            .iter_mut()
            .try_for_each(|item| gather(item, bytes, copied)),
        Value::Object(members) => members
            .values_mut()
            .try_for_each(|member| gather(member, bytes, copied)),
        _ => Some(()),
    }
}

fn has_capacity(capacity: Option<&Arc<dyn RecorderCapacity>>, more: RecordSize) -> bool {
    capacity.is_none_or(|capacity| capacity.take(more.memory))
}

/// The length of bytes in base64.
const fn base64_len(bytes: usize) -> usize {
    // Each three bytes, or the rest of them, become four characters (RFC 4648 section 4).
    bytes.div_ceil(3) * 4
}

/// The length of a value's text, without making the text.
fn text_len(value: &impl Serialize) -> usize {
    struct JsonByteCounter(usize);
    impl Write for JsonByteCounter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = JsonByteCounter(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        // A value without a text does not fit into a record.
        Err(_) => RECORDED_BYTES_MAX + 1,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Option<SecretMarks> {
        Some(SecretMarks::default())
    }

    fn answered(record: &CallRecorder, path: &str, output: &Value, bytes: Option<&[u8]>) {
        let noted = record.begin(path, &json!({}), open());
        noted.answered(output, bytes);
    }

    fn said(calls: &RecordedCalls) -> Value {
        serde_json::to_value(&calls.calls).expect("JSON")
    }

    #[test]
    fn calls_are_in_the_order_in_which_they_began() {
        let record = CallRecorder::default();
        let [one, two, three] = [1, 2, 3].map(|n| record.begin("a/b", &json!(n), open()));
        let flows = record.begin("a/items", &json!(null), open());
        flows.yielded(&json!("x"), None);
        three.answered(&json!(30), None);
        two.failed(&OpError::new("OUT_OF_INK", "no ink"));
        one.answered(&json!(10), None);
        // One that has no answer, and a subscription that goes on.
        let _ = record.begin("a/b", &json!(4), open());
        flows.yielded(&json!("y"), None);
        let calls = record.end();
        assert_eq!(calls.left_out, 1);
        let error = json!({ "code": "OUT_OF_INK", "message": "no ink", "retryable": false,
            "details": null, "path": "" });
        assert_eq!(
            said(&calls),
            json!([
                { "path": "a/b", "input": 1, "output": 10 },
                { "path": "a/b", "input": 2, "error": error },
                { "path": "a/b", "input": 3, "output": 30 },
                { "path": "a/items", "input": null, "output": ["x", "y"] },
            ])
        );
        flows.yielded(&json!("z"), None);
        assert_eq!(record.end().calls, []);
    }

    #[test]
    fn no_secret_is_in_it() {
        let secret = json!({ "x-secret": true });
        let input = json!({ "properties": { "pin": secret } });
        let output = json!({ "properties": { "token": secret, "key": secret } });
        let marks = || Some(SecretMarks::from_schemas(&input, &output, []));
        let record = CallRecorder::default();
        let input = json!({ "pin": "1234", "door": 1 });
        let noted = record.begin("door/open", &input, marks());
        noted.answered(&json!({ "token": "t-1", "open": true }), None);
        let noted = record.begin("door/open", &input, marks());
        noted.failed(&OpError::new("INVALID_INPUT", "1234 is no number"));
        let noted = record.begin("door/watch", &input, marks());
        noted.yielded(&json!({ "token": "t-2" }), None);
        let noted = record.begin("door/image", &input, marks());
        let image = json!({ "key": { "$bin": [0, 2] }, "pixels": { "$bin": [2, 3] } });
        noted.answered(&image, Some(&[9, 9, 1, 2, 3]));
        // An unknown operation, whose secrets are not marked.
        record
            .begin("none/such", &input, None)
            .failed(&OpError::new("NOT_FOUND", ""));
        record
            .begin("none/such", &input, None)
            .answered(&json!("t-3"), None);
        record
            .begin("none/such", &input, None)
            .failed(&OpError::new("QUOTA_EXCEEDED", "1234"));
        let calls = record.end();
        let text = said(&calls).to_string();
        assert!(!text.contains("1234") && !text.contains("t-"), "{text}");
        assert_eq!((calls.calls.len(), calls.left_out), (4, 2));
        let image = said(&calls)[3].clone();
        assert_eq!(
            (&image["output"], &image["bytes"]),
            (
                &json!({ "key": "[secret]", "pixels": { "$bin": [0, 3] } }),
                &json!("AQID")
            )
        );
    }

    #[test]
    fn bytes_of_items_are_behind_each_other() {
        let record = CallRecorder::default();
        let blocks = record.begin("fs/read", &json!({}), open());
        blocks.yielded(&json!({ "length": 3 }), None);
        blocks.yielded(&json!({ "bytes": { "$bin": [0, 2] } }), Some(&[1, 2]));
        blocks.yielded(&json!({ "bytes": { "$bin": [1, 1] } }), Some(&[9, 3, 9]));
        blocks.left();
        let wrong = record.begin("fs/read", &json!({}), open());
        wrong.yielded(&json!({ "bytes": { "$bin": [1, 2] } }), Some(&[1, 2]));
        // In base64 these need more than a record has.
        let long = vec![0; RECORDED_BYTES_MAX / 2];
        let many = record.begin("fs/read", &json!({}), open());
        for _ in 0..2 {
            many.yielded(
                &json!({ "bytes": { "$bin": [0, long.len()] } }),
                Some(&long),
            );
        }
        let calls = record.end();
        assert_eq!(calls.left_out, 2);
        let items = json!([
            { "length": 3 },
            { "bytes": { "$bin": [0, 2] } },
            { "bytes": { "$bin": [2, 1] } },
        ]);
        let expected = json!([
            { "path": "fs/read", "input": {}, "output": items, "bytes": "AQID" },
        ]);
        assert_eq!(said(&calls), expected);
    }

    #[test]
    fn what_no_record_can_say_is_counted() {
        let record = CallRecorder::default();
        record.leave_out();
        record.begin("a/b", &json!({}), open()).leave_out();
        // It points to what it has not.
        answered(&record, "a/b", &json!({ "$bin": [1, 3] }), Some(&[1, 2, 3]));
        let calls = record.end();
        assert_eq!((calls.calls.len(), calls.left_out), (0, 3));
    }

    #[test]
    fn a_record_is_bounded() {
        let record = CallRecorder::default();
        for _ in 0..RECORDED_MAX + 2 {
            answered(&record, "a/b", &json!(1), None);
        }
        let calls = record.end();
        assert_eq!((calls.calls.len(), calls.left_out), (RECORDED_MAX, 2));

        let record = CallRecorder::default();
        let third = "x".repeat(RECORDED_BYTES_MAX / 3);
        for _ in 0..3 {
            answered(&record, "a/b", &json!(third), None);
        }
        // What did not fit takes no room.
        answered(&record, "a/b", &json!(1), None);
        let calls = record.end();
        assert_eq!((calls.calls.len(), calls.left_out), (3, 1));

        // Neither do items, or bytes that are pointed to again and again.
        let record = CallRecorder::default();
        let items = record.begin("a/items", &json!(null), open());
        for _ in 0..4 {
            items.yielded(&json!(third), None);
        }
        let bytes = vec![0; RECORDED_BYTES_MAX / 8];
        let again = vec![json!({ "$bin": [0, bytes.len()] }); 1000];
        answered(&record, "a/b", &json!(again), Some(&bytes));
        answered(
            &record,
            "a/b",
            &json!({ "$bin": [0, bytes.len()] }),
            Some(&bytes),
        );
        let calls = record.end();
        assert_eq!((calls.calls.len(), calls.left_out), (1, 2));
        assert!(said(&calls).to_string().len() <= RECORDED_BYTES_MAX);
    }
}
