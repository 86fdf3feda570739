//! The inputs and outputs of operations.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{CallError, ErrorCode};
use crate::inline::inline;
use crate::json::{self, JsonDefect};
use crate::memory::InputMemory;
use crate::tape::{NESTING_MAX, TREE_BYTES_FREE, TREE_FACTOR, Tape, TapeNode, TapeSize};
use crate::text;

/// A received value: its JSON text, which is parsed on the first access, and the binary data to which its
/// `{"$bin":[offset,length]}` refer.
///
/// ```
/// use alknet_call::CallBody;
///
/// let body = CallBody::json(&[1, 2, 3])?;
/// assert_eq!(body.raw().as_ref(), b"[1,2,3]");
/// assert_eq!(body.parse::<Vec<u8>>()?, [1, 2, 3]);
/// # Ok::<(), alknet_call::CallError>(())
/// ```
#[derive(Clone, Debug)]
pub struct CallBody {
    raw: Bytes,
    tail: Bytes,
    value: OnceLock<Value>,
    /// The counter for memory that is made of it.
    memory: Option<Arc<dyn InputMemory>>,
}

impl CallBody {
    /// A body of checked JSON text.
    pub(crate) fn from_parts(raw: Bytes, tail: Bytes) -> Self {
        Self {
            raw,
            tail,
            value: OnceLock::new(),
            memory: None,
        }
    }

    /// Counts the memory that is made of the body in `memory`.
    #[must_use]
    pub fn with_memory(mut self, memory: Option<Arc<dyn InputMemory>>) -> Self {
        self.memory = memory;
        self
    }

    pub(crate) fn memory(&self) -> Option<&Arc<dyn InputMemory>> {
        self.memory.as_ref()
    }

    /// Passes the value to `read` without building a tree.
    pub(crate) fn read_tape<T>(
        &self,
        read: impl FnOnce(TapeNode<'_>) -> T,
    ) -> Result<T, CallError> {
        Tape::read(&self.raw, self.memory(), read)
    }

    /// A body of JSON text that was checked.
    #[must_use]
    pub fn from_text(raw: Bytes) -> Self {
        Self::from_parts(raw, Bytes::new())
    }

    /// A value as a body.
    ///
    /// # Errors
    /// `INVALID_INPUT` if `value` has no JSON form.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self, CallError> {
        text::to_vec(value)
            .map(|text| Self::from_parts(text.into(), Bytes::new()))
            .map_err(|error| CallError::invalid_input(format!("no JSON form: {error}")))
    }

    fn from_value(value: Value, tail: Bytes) -> Self {
        let body = Self::from_parts(value.to_string().into(), tail);
        // The cell of a new body is empty.
        let _ = body.value.set(value);
        body
    }

    /// The JSON text with binary data as base64, for readers that know no mixed frames.
    ///
    /// # Errors
    /// The errors of [`inline`].
    pub(crate) fn inlined(&self) -> Result<Cow<'_, [u8]>, CallError> {
        if self.tail.is_empty() {
            return Ok(Cow::Borrowed(&self.raw));
        }
        inline(&self.raw, &self.tail).map(Cow::Owned)
    }

    pub(crate) fn null() -> Self {
        Self::from_parts(Bytes::from_static(b"null"), Bytes::new())
    }

    /// The JSON text.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The data to which `{"$bin":[offset,length]}` refer.
    #[must_use]
    pub fn tail(&self) -> &Bytes {
        &self.tail
    }

    /// The value, parsed once. Text with numbers beyond `f64` reads as `null`. For input of others an operation takes
    /// [`try_value`](Self::try_value): a tree may have 75 times the bytes of its text.
    #[must_use]
    pub fn value(&self) -> &Value {
        self.value
            .get_or_init(|| serde_json::from_slice(&self.raw).unwrap_or(Value::Null))
    }

    /// The value as a tree, for code that needs one. It counts as long as the body exists.
    ///
    /// # Errors
    /// `INVALID_INPUT` if the text holds a number beyond `f64`, or so many values that their tree has more than four
    /// times its bytes and more than 2 MiB; or the error of the counter.
    pub fn try_value(&self) -> Result<&Value, CallError> {
        if self.value.get().is_none() {
            self.weigh()?;
            let value = serde_json::from_slice(&self.raw)
                .map_err(|error| CallError::invalid_input(error.to_string()))?;
            // Another thread may have parsed the same text meanwhile. Its tree is as good.
            let _ = self.value.set(value);
        }
        Ok(self.value())
    }

    /// Bytes that a tree of the text takes.
    ///
    /// # Errors
    /// The value takes more than a tree may.
    pub(crate) fn tree_bytes(&self) -> Result<usize, CallError> {
        let bytes = TapeSize::measure(&self.raw)?.tree_bytes();
        // A list of short values makes a tree of many times its bytes.
        if bytes > TREE_BYTES_FREE.max(TREE_FACTOR * self.raw.len()) {
            return Err(CallError::invalid_input(
                "the input has too many values for its length; send long lists as binary data",
            ));
        }
        Ok(bytes)
    }

    /// Counts the bytes of a tree before it is built.
    fn weigh(&self) -> Result<(), CallError> {
        let bytes = self.tree_bytes()?;
        match &self.memory {
            Some(memory) => memory.take(bytes),
            None => Ok(()),
        }
    }

    /// The value as an owned tree.
    ///
    /// # Errors
    /// The errors of [`try_value`](Self::try_value).
    pub fn try_into_value(self) -> Result<Value, CallError> {
        self.try_value()?;
        Ok(self.value.into_inner().unwrap_or_default())
    }

    /// Whether it is `null`, as the input of a call without one.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.raw.trim_ascii() == b"null"
    }

    /// The value as `T`. An input that counts memory has the same bounds as a tree of it, because lists of small
    /// structures grow as much.
    ///
    /// # Errors
    /// `INVALID_INPUT` if the value is no `T`; as [`try_value`](Self::try_value) if it counts memory.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        let parsed = match self.value.get() {
            Some(value) => T::deserialize(value),
            None => {
                // Frames of connections are short, and this node asked for the responses itself.
                if self.memory.is_some() {
                    self.weigh()?;
                }
                serde_json::from_slice(&self.raw)
            }
        };
        parsed.map_err(|error| CallError::invalid_input(error.to_string()))
    }

    /// A member of an object as a body of its own: its text as it came, and the binary data to which it may refer.
    /// `None` if the value is no object or has no such member.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Self> {
        let text = json::member(&self.raw, name)?.get().as_bytes();
        let member = Self::from_parts(self.raw.slice_ref(text), self.tail.clone());
        Some(member.with_memory(self.memory.clone()))
    }

    /// The bytes of a `{"$bin":[offset,length]}`, if `value` is one and its range exists.
    #[must_use]
    pub fn binary(&self, value: &Value) -> Option<Bytes> {
        slice(&self.tail, value)
    }
}

impl From<CallOutput> for CallBody {
    fn from(output: CallOutput) -> Self {
        match output {
            CallOutput::Raw(text) => Self::from_parts(text, Bytes::new()),
            CallOutput::Value(value) => Self::from_value(value, Bytes::new()),
            CallOutput::Mixed(value, tail) => Self::from_value(value, tail),
            CallOutput::MixedText(text, tail) => Self::from_parts(text, tail),
        }
    }
}

/// Passes the body on as it came, with its binary data.
impl From<CallBody> for CallOutput {
    fn from(body: CallBody) -> Self {
        if body.tail.is_empty() {
            Self::Raw(body.raw)
        } else {
            Self::MixedText(body.raw, body.tail)
        }
    }
}

/// Bytes that a tree of JSON text would take, which may be 75 times those of the text. Text of a server is counted in
/// this way before any code parses it. For text that is no JSON it is what a parser builds before it finds the error.
///
/// # Errors
/// `INVALID_INPUT` if the text nests too deep, is too long, or holds a number beyond `f64`.
pub fn tree_bytes(text: &[u8]) -> Result<usize, CallError> {
    TapeSize::measure(text).map(TapeSize::tree_bytes)
}

/// The output of an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CallOutput {
    /// JSON with binary data, to which `{"$bin":[offset,length]}` refer. Peers that do not know mixed frames get
    /// base64 instead.
    Mixed(Value, Bytes),
    /// Like [`Mixed`](Self::Mixed), with JSON text that is known to be valid, as it came in a frame.
    MixedText(Bytes, Bytes),
    /// JSON text that is known to be valid.
    Raw(Bytes),
    /// A value, serialised when the frame is written.
    Value(Value),
}

impl CallOutput {
    /// Serialises now.
    ///
    /// # Errors
    /// `INTERNAL` if `value` has no JSON form.
    pub fn json(value: &impl Serialize) -> Result<Self, CallError> {
        text::to_vec(value)
            .map(|text| Self::Raw(text.into()))
            .map_err(|error| CallError::internal(format!("the output has no JSON form: {error}")))
    }

    /// Makes an output of JSON text from outside, without building a tree.
    ///
    /// # Errors
    /// `INVALID_OUTPUT` if it is no JSON, nests too deep, or holds a number beyond `f64`; or if an object names a
    /// member twice and a tree of it, in which the last one counts, would take more than any tree may.
    pub fn from_foreign_text(text: &Bytes) -> Result<Self, CallError> {
        let invalid = |reason: String| CallError::new(ErrorCode::InvalidOutput, reason);
        let parsed = serde_json::from_slice::<&RawValue>(text);
        let own = parsed.map_err(|error| invalid(error.to_string()))?.get();
        let size = TapeSize::measure(own.as_bytes()).map_err(|error| invalid(error.message))?;
        match json::check(own, NESTING_MAX) {
            Ok(()) => Ok(Self::Raw(text.slice_ref(own.as_bytes()))),
            // RFC 8259 section 4 leaves open which of two members counts. Peers refuse such text, so that this node
            // decides for the last one.
            Err(JsonDefect::Duplicate) if size.tree_bytes() <= TREE_BYTES_FREE => {
                let value =
                    serde_json::from_str(own).map_err(|error| invalid(error.to_string()))?;
                Ok(Self::Value(value))
            }
            Err(JsonDefect::Duplicate) => Err(invalid("an object names a member twice".to_owned())),
            Err(JsonDefect::Nesting) => Err(invalid(format!("nested deeper than {NESTING_MAX}"))),
        }
    }

    /// Appends its JSON text, with binary data as base64.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Raw(text) => out.extend_from_slice(text),
            Self::Value(value) => append_value(out, value),
            Self::Mixed(value, tail) => {
                let mut value = value.clone();
                inline_tree(&mut value, tail);
                append_value(out, &value);
            }
            Self::MixedText(text, tail) => out.extend_from_slice(&inline_text(text, tail)),
        }
    }

    /// The same output with its binary data as base64.
    #[must_use]
    pub(crate) fn inlined(self) -> Self {
        match self {
            Self::Mixed(mut value, tail) => {
                inline_tree(&mut value, &tail);
                Self::Value(value)
            }
            Self::MixedText(text, tail) => Self::Raw(inline_text(&text, &tail)),
            other => other,
        }
    }

    /// Bytes that it holds of a peer's frames. The memory of an operation's own output does not count here.
    pub(crate) fn kept_bytes(&self) -> usize {
        match self {
            Self::Mixed(_, tail) => tail.len(),
            Self::MixedText(text, tail) => text.len() + tail.len(),
            Self::Raw(text) => text.len(),
            Self::Value(_) => 0,
        }
    }
}

/// Appends a value, which always has a JSON form.
fn append_value(out: &mut Vec<u8>, value: &Value) {
    let start = out.len();
    if text::append(out, value).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

impl From<Value> for CallOutput {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// An item of a subscription.
#[derive(Clone, Debug)]
pub struct SubscriptionItem {
    /// The event.
    pub output: CallOutput,
    /// The position from which to resume after it, for operations that declare `resumable`.
    pub cursor: Option<Value>,
    /// Number of events that the source left out before it.
    pub dropped: u64,
}

impl<T: Into<CallOutput>> From<T> for SubscriptionItem {
    fn from(output: T) -> Self {
        Self {
            output: output.into(),
            cursor: None,
            dropped: 0,
        }
    }
}

fn slice(tail: &Bytes, value: &Value) -> Option<Bytes> {
    let pair = value.as_object().filter(|o| o.len() == 1)?.get("$bin")?;
    let [offset, len] = pair.as_array()?.as_slice() else {
        return None;
    };
    let offset = usize::try_from(offset.as_u64()?).ok()?;
    // The sender chose both numbers.
    let end = offset.checked_add(usize::try_from(len.as_u64()?).ok()?)?;
    (end <= tail.len()).then(|| tail.slice(offset..end))
}

/// Like [`inline`]. Text that would become much longer than its frame stays as it is.
fn inline_text(text: &Bytes, tail: &Bytes) -> Bytes {
    inline(text, tail).map_or_else(|_| text.clone(), Bytes::from)
}

/// Like [`inline`], in a tree that an operation of this node built.
fn inline_tree(value: &mut Value, tail: &Bytes) {
    if let Some(bytes) = slice(tail, value) {
        *value = base64::engine::general_purpose::STANDARD
            .encode(bytes)
            .into();
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|v| inline_tree(v, tail)),
        Value::Object(members) => members.values_mut().for_each(|v| inline_tree(v, tail)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(number in any::<f64>()) {
            let body = CallBody::json(&number).expect("it has a text");
            prop_assert_eq!(body.value().as_f64(), number.is_finite().then_some(number));
        }
    }

    #[test]
    fn binary_references_are_bounded() {
        let body = CallBody::from_parts(Bytes::from_static(b"{}"), Bytes::from_static(b"abcdef"));
        assert_eq!(
            body.binary(&json!({"$bin":[1,3]})).as_deref(),
            Some(&b"bcd"[..])
        );
        assert_eq!(
            body.binary(&json!({"$bin":[6,0]})).as_deref(),
            Some(&b""[..])
        );
        for bad in [
            json!({"$bin":[4,3]}),
            json!({"$bin":[u64::MAX,2]}),
            json!({"$bin":[-1,2]}),
            json!({"$bin":[1]}),
            json!({"$bin":[0,1],"x":1}),
            json!("x"),
        ] {
            assert_eq!(body.binary(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_member_is_passed_on_as_it_came() {
        let text = Bytes::from_static(br#"{"a": {"n" : 1.0e0, "$bin":[0,2]}, "b":1e999,"c":null}"#);
        let body = CallBody::from_parts(text, Bytes::from_static(b"hi"));
        let text = |name: &str| Some(body.member(name)?.raw().to_vec());
        assert_eq!(
            text("a").as_deref(),
            Some(&br#"{"n" : 1.0e0, "$bin":[0,2]}"#[..])
        );
        assert_eq!(text("b").as_deref(), Some(&b"1e999"[..]));
        assert_eq!(text("c").as_deref(), Some(&b"null"[..]));
        assert_eq!(text("d"), None);
        let reference = json!({"$bin":[0,2]});
        let member = body.member("a").expect("it is there");
        assert_eq!(member.binary(&reference).as_deref(), Some(&b"hi"[..]));
        let list = CallBody::from_parts(Bytes::from_static(b"[1]"), Bytes::new());
        assert!(list.member("a").is_none());
    }

    #[test]
    fn mixed_output_becomes_base64_for_peers_without_it() {
        let mixed = CallOutput::Mixed(json!({"a":[{"$bin":[0,2]}]}), Bytes::from_static(b"hi"));
        assert!(matches!(mixed.inlined(), CallOutput::Value(v) if v == json!({"a":["aGk="]})));
    }

    #[test]
    fn text_of_a_server_is_passed_on_without_a_tree() {
        let list = Bytes::from(format!(" [{}0]\n", "0,".repeat(1 << 19)));
        let Ok(CallOutput::Raw(passed)) = CallOutput::from_foreign_text(&list) else {
            panic!("made into something else");
        };
        assert!(passed.as_ptr() == list[1..].as_ptr() && passed.len() == list.len() - 2);
        let twice = Bytes::from_static(br#"{"a":1,"a":2}"#);
        let read =
            CallOutput::from_foreign_text(&twice).map(|read| CallBody::from(read).value().clone());
        assert_eq!(read, Ok(json!({"a":2})));
        let many = Bytes::from(format!("{{\"a\":1,\"a\":[{}0]}}", "0,".repeat(1 << 19)));
        let deep = Bytes::from(["[".repeat(200), "]".repeat(200)].concat());
        for bad in ["", "[", "1 2", "[1e999]", "\u{feff}1"].map(Bytes::from) {
            let refused = CallOutput::from_foreign_text(&bad).expect_err("no JSON");
            assert_eq!(refused.code, ErrorCode::InvalidOutput, "{bad:?}");
        }
        for bad in [many, deep, Bytes::from_static(b"\"\xff\"")] {
            assert!(CallOutput::from_foreign_text(&bad).is_err());
        }
    }

    /// A tree of it has 75 times its bytes.
    #[test]
    fn a_mixed_body_is_passed_on_without_a_tree() {
        let text = Bytes::from(format!("[{}{{\"$bin\":[0,2]}}]", "0,".repeat(1 << 19)));
        let body = CallBody::from_parts(text.clone(), Bytes::from_static(b"hi"));
        let inlined = body.inlined().expect("short").len();
        assert_eq!(
            inlined,
            text.len() - r#"{"$bin":[0,2]}"#.len() + r#""aGk=""#.len()
        );
        assert!(body.value.get().is_none(), "a tree that was not asked for");
        let output = CallOutput::from(body);
        assert_eq!(output.kept_bytes(), text.len() + 2);
        let CallOutput::MixedText(passed, tail) = output else {
            panic!("made into something else");
        };
        assert!(passed == text && passed.as_ptr() == text.as_ptr() && tail == "hi");
    }

    #[test]
    fn a_body_parses_from_text_and_from_its_value() {
        let body = CallBody::from_parts(Bytes::from_static(b"[1,2]"), Bytes::new());
        assert_eq!(body.parse::<Vec<u8>>().expect("numbers"), [1, 2]);
        assert_eq!(body.value(), &json!([1, 2]));
        assert_eq!(body.parse::<Vec<u8>>().expect("numbers"), [1, 2]);
        assert!(body.parse::<String>().is_err());
    }

    #[derive(Debug)]
    struct EndlessValue;

    impl InputMemory for EndlessValue {
        fn take(&self, _: usize) -> Result<(), CallError> {
            Ok(())
        }

        fn give_back(&self, _: usize) {}
    }

    #[test]
    fn nothing_large_is_made_of_a_list_of_short_values() {
        let of = |text: String| {
            CallBody::from_text(text.into()).with_memory(Some(Arc::new(EndlessValue)))
        };
        let long = of(format!("[{}0]", "0,".repeat(1 << 20)));
        assert!(long.parse::<Vec<u8>>().is_err());
        assert!(long.try_value().is_err());
        let short = of(format!("[{}0]", "0,".repeat(14_000)));
        assert!(short.parse::<Vec<u8>>().is_ok());
        let one = of(format!("[\"{}\"]", "x".repeat(8 << 20)));
        assert!(one.parse::<Vec<String>>().is_ok());
    }
}
