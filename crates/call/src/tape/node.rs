//! One value of a text, as the validator of schemas reads it.

use std::borrow::Cow;

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node as JsonNode, NodeIdentity, Object, cmp};
use memchr::{memchr, memchr2};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use super::build::behind;
use super::same;
use super::{CONTAINER, HEAD_WORDS, SEARCH_WORDS, SEARCHED_MEMBERS, Tape};
use crate::json::string_end;

/// The index of a node that is the name of a member, and in no table.
const NAME: u32 = u32::MAX;

/// The most bytes that one byte of a string takes where it is written with escapes: `\u0061`.
const ESCAPED_BYTES_MAX: usize = 6;

/// The validator's type for text with its table.
#[derive(Debug)]
pub(crate) struct TapeJson;

/// One value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TapeNode<'t> {
    /// The whole text; for a name, its characters.
    text: &'t str,
    words: &'t [u32],
    /// The index of its first word.
    at: u32,
}

/// A name that a validator looks up in objects.
pub(crate) struct TapeKey {
    name: Box<str>,
    hash: u32,
}

impl TapeKey {
    fn new(name: &str) -> Self {
        Self {
            hash: same::hash_of(name),
            name: name.into(),
        }
    }
}

impl<'t> TapeNode<'t> {
    pub(super) fn at(tape: &'t Tape<'_>, at: u32) -> Self {
        Self {
            text: tape.text,
            words: &tape.words,
            at,
        }
    }

    fn word(&self) -> u32 {
        self.words
            .get(self.at as usize)
            .copied()
            .unwrap_or_default()
    }

    /// The text from its offset on.
    fn rest(&self) -> &'t str {
        let from = (self.word() & !CONTAINER) as usize;
        self.text.get(from..).unwrap_or_default()
    }

    /// Its first byte; 0 for a name.
    fn first(&self) -> u8 {
        match self.at {
            NAME => 0,
            _ => self.rest().bytes().next().unwrap_or_default(),
        }
    }

    /// The text of a scalar.
    fn scalar(&self) -> &'t str {
        let rest = self.rest();
        // The text was checked when the tape was made, so that a scalar ends at one of these.
        let end = rest.find([',', ']', '}', ':', ' ', '\t', '\n', '\r']);
        &rest[..end.unwrap_or(rest.len())]
    }

    pub(super) fn within(&self, at: u32) -> Self {
        Self { at, ..*self }
    }

    /// The string without its escapes; `None` for a value that is not a string.
    pub(super) fn string(&self) -> Option<Cow<'t, str>> {
        if self.at == NAME {
            return Some(Cow::Borrowed(self.text));
        }
        (self.first() == b'"').then(|| unquoted(self.rest()))
    }

    /// Passes a string on as it reads, in parts, and nothing for other values. It copies no string with escapes.
    pub(super) fn parts(&self, mut part: impl FnMut(&str)) {
        if self.at == NAME {
            return part(self.text);
        }
        if self.first() != b'"' {
            return;
        }
        let mut rest = quoted(self.rest());
        while let Some(at) = memchr(b'\\', rest.as_bytes()) {
            let (plain, escaped) = rest.split_at(at);
            part(plain);
            let (character, behind) = unescaped(escaped);
            match character {
                Some(character) => part(character.encode_utf8(&mut [0; 4])),
                None => part(&escaped[..escaped.len() - behind.len()]),
            }
            rest = behind;
        }
        part(rest);
    }

    /// Whether it is a string that reads as `text`. Takes time by the length of `text`, never by its own: schemas
    /// compare short texts, and a string from outside may have megabytes.
    fn reads_as(&self, text: &str) -> bool {
        if self.at == NAME {
            return self.text == text;
        }
        self.first() == b'"' && quotes(self.rest(), text)
    }

    fn container(&self, bracket: u8) -> Option<UnparsedItems<'t>> {
        if self.first() != bracket {
            return None;
        }
        let head = self.at as usize;
        Some(UnparsedItems {
            next: self.within(self.at + HEAD_WORDS),
            left: self.words.get(head + 2).copied().unwrap_or_default(),
            end: self.words.get(head + 1).copied().unwrap_or_default(),
        })
    }

    /// The value at a path (RFC 6901) of objects and arrays.
    pub(crate) fn pointer(&self, pointer: &str) -> Option<Self> {
        if pointer.is_empty() {
            return Some(*self);
        }
        pointer
            .strip_prefix('/')?
            .split('/')
            .try_fold(*self, |node, part| {
                // In this order: RFC 6901, section 4.
                let part = part.replace("~1", "/").replace("~0", "~");
                if let Some(object) = node.container(b'{') {
                    return object.member(&TapeKey::new(&part));
                }
                // An index has no leading zeros (RFC 6901, section 4), and `parse` would take a
                // sign.
                let canonical = part == "0" || !part.starts_with(['0', '+']);
                let n = part.parse().ok().filter(|_| canonical)?;
                node.container(b'[')?.nth(n)
            })
    }

    /// The value as a tree; only for values known to be small.
    pub(crate) fn tree(&self) -> Value {
        if self.at == NAME {
            return Value::String(self.text.to_owned());
        }
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter();
        values.next().and_then(Result::ok).unwrap_or_default()
    }

    /// The value as it is written.
    pub(crate) fn text(&self) -> &'t str {
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<&RawValue>();
        let text = values.next().and_then(Result::ok);
        text.map(RawValue::get).unwrap_or_default()
    }

    pub(super) fn address(&self) -> (usize, u32) {
        (self.words.as_ptr() as usize, self.at)
    }
}

/// The text between the quotes, as it is written.
fn quoted(rest: &str) -> &str {
    let end = string_end(rest.as_bytes(), 0).saturating_sub(1);
    rest.get(1..end).unwrap_or_default()
}

/// The character of the escape that `text` begins with, and the rest after it; `None` for one half of a surrogate
/// pair.
fn unescaped(text: &str) -> (Option<char>, &str) {
    let plain = match text.as_bytes().get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return from_hex(text),
        Some(other) => char::from(*other),
        None => return (None, ""),
    };
    (Some(plain), text.get(2..).unwrap_or_default())
}

/// Like `unescaped`, where it is `\u` and four digits, or two of them (RFC 8259, section 7).
fn from_hex(text: &str) -> (Option<char>, &str) {
    let unit = |text: &str| {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let behind = text.get(6..).unwrap_or_default();
    let units = [unit(text), unit(behind)].map(Option::unwrap_or_default);
    match char::decode_utf16(units).next() {
        // Two escapes make one character outside the basic plane (RFC 8259 section 7).
        Some(Ok(pair)) if pair.len_utf16() == 2 => {
            (Some(pair), behind.get(6..).unwrap_or_default())
        }
        Some(Ok(single)) => (Some(single), behind),
        _ => (None, behind),
    }
}

/// The text between quotes, decoded.
pub(super) fn unquoted(quoted: &str) -> Cow<'_, str> {
    let quoted = &quoted[..string_end(quoted.as_bytes(), 0)];
    if quoted.contains('\\')
        && let Ok(text) = serde_json::from_str::<String>(quoted)
    {
        return Cow::Owned(text);
    }
    let inner = quoted.len().saturating_sub(1);
    Cow::Borrowed(quoted.get(1..inner).unwrap_or_default())
}

/// Whether the string that `quoted` begins with reads as `text`.
fn quotes(quoted: &str, text: &str) -> bool {
    let bytes = quoted.as_bytes();
    let plain = bytes.get(1..=text.len()).unwrap_or_default();
    match memchr2(b'"', b'\\', plain).map(|at| plain[at]) {
        None => return plain == text.as_bytes() && bytes.get(text.len() + 1) == Some(&b'"'),
        // It ends before `text` does.
        Some(b'"') => return false,
        Some(_) => {}
    }
    // Both quotes, and one byte that shows whether the string goes on.
    let most = text.len() * ESCAPED_BYTES_MAX + 3;
    let window = &bytes[..most.min(bytes.len())];
    let end = string_end(window, 0);
    let goes_on = end == window.len() && window.len() < bytes.len();
    !goes_on && quoted.get(..end).is_some_and(|own| unquoted(own) == text)
}

/// The contents of an array or object that the caller has not read yet.
#[derive(Clone, Debug)]
pub(crate) struct UnparsedItems<'t> {
    next: TapeNode<'t>,
    left: u32,
    /// The index of the word after the contents.
    end: u32,
}

impl<'t> UnparsedItems<'t> {
    pub(super) fn count_left(&self) -> usize {
        self.left as usize
    }

    /// A name and its value.
    pub(super) fn next_member(&mut self) -> Option<(TapeNode<'t>, TapeNode<'t>)> {
        self.left = self.left.checked_sub(1)?;
        let name = self.next;
        let value = name.within(name.at + 1);
        self.next = name.within(behind(name.words, value.at));
        Some((name, value))
    }

    /// A member of an object that the caller has not read yet.
    pub(super) fn member(&self, key: &TapeKey) -> Option<TapeNode<'t>> {
        // Few members are compared faster than hashed.
        if self.left < SEARCHED_MEMBERS {
            let mut members = self.clone();
            while let Some((name, value)) = members.next_member() {
                if name.reads_as(&key.name) {
                    return Some(value);
                }
            }
            return None;
        }
        let first = (self.end - self.left * SEARCH_WORDS) as usize;
        let list = self.next.words.get(first..self.end as usize)?;
        let (pairs, _) = list.as_chunks::<2>();
        // The list is sorted by hash.
        let from = pairs.partition_point(|[hash, _]| *hash < key.hash);
        let alike = pairs[from..]
            .iter()
            .take_while(|[hash, _]| *hash == key.hash);
        let names = alike.map(|[_, at]| self.next.within(*at));
        let mut found = names.filter(|name| name.reads_as(&key.name));
        found.next().map(|name| name.within(name.at + 1))
    }

    /// A member of an object, by a name without a prepared key.
    pub(super) fn get_named(&self, name: &str) -> Option<TapeNode<'t>> {
        self.member(&TapeKey::new(name))
    }
}

impl<'t> Iterator for UnparsedItems<'t> {
    type Item = TapeNode<'t>;

    fn next(&mut self) -> Option<TapeNode<'t>> {
        self.left = self.left.checked_sub(1)?;
        let item = self.next;
        self.next = item.within(behind(item.words, item.at));
        Some(item)
    }
}

/// The members of an object.
#[derive(Debug)]
pub(crate) struct TapeMembers<'t>(UnparsedItems<'t>);

impl<'t> Iterator for TapeMembers<'t> {
    type Item = (Cow<'t, str>, TapeNode<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.0.next_member()?;
        Some((name.string().unwrap_or_default(), value))
    }
}

impl Json for TapeJson {
    type Node<'t> = TapeNode<'t>;
    type PreparedKey = TapeKey;
    type StringBuffer = ();

    fn prepare_key(key: &str) -> TapeKey {
        TapeKey::new(key)
    }

    fn with_string_node<T>((): &mut (), string: &str, f: impl FnOnce(TapeNode<'_>) -> T) -> T {
        f(TapeNode {
            text: string,
            words: &[],
            at: NAME,
        })
    }
}

impl<'t> JsonNode<'t, TapeJson> for TapeNode<'t> {
    type Object = UnparsedItems<'t>;
    type Array = UnparsedItems<'t>;
    type Number = Number;

    fn as_object(&self) -> Option<UnparsedItems<'t>> {
        self.container(b'{')
    }

    fn as_array(&self) -> Option<UnparsedItems<'t>> {
        self.container(b'[')
    }

    fn as_string(&self) -> Option<Cow<'t, str>> {
        self.string()
    }

    fn as_number(&self) -> Option<Number> {
        if !self.is_number() {
            return None;
        }
        serde_json::from_str(self.scalar()).ok()
    }

    fn as_boolean(&self) -> Option<bool> {
        match self.first() {
            b't' => Some(true),
            b'f' => Some(false),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        self.first() == b'n'
    }

    fn is_number(&self) -> bool {
        matches!(self.first(), b'-' | b'0'..=b'9')
    }

    fn json_type(&self) -> JsonType {
        match self.first() {
            b'{' => JsonType::Object,
            b'[' => JsonType::Array,
            // 0 stands for a name, which has no quotes.
            0 | b'"' => JsonType::String,
            b't' | b'f' => JsonType::Boolean,
            b'n' => JsonType::Null,
            _ => JsonType::Number,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        match expected {
            Value::Null => self.is_null(),
            Value::Bool(truth) => self.as_boolean() == Some(*truth),
            Value::Number(number) => self
                .as_number()
                .is_some_and(|own| cmp::equal_numbers(&own, number)),
            Value::String(text) => self.reads_as(text),
            Value::Array(items) => self.as_array().is_some_and(|own| {
                own.count_left() == items.len()
                    && own.zip(items).all(|(own, item)| own.equals_value(item))
            }),
            Value::Object(members) => self.as_object().is_some_and(|own| {
                own.count_left() == members.len()
                    && members.iter().all(|(name, expected)| {
                        let value = own.get_named(name);
                        value.is_some_and(|value| value.equals_value(expected))
                    })
            }),
        }
    }

    fn to_value(&self) -> Cow<'t, Value> {
        Cow::Owned(self.tree())
    }

    fn identity(&self) -> Option<NodeIdentity> {
        let (address, at) = self.address();
        (at != NAME).then(|| NodeIdentity::tagged(address, at))
    }
}

impl<'t> Object<'t, TapeJson> for UnparsedItems<'t> {
    type Node = TapeNode<'t>;
    type MemberName = Cow<'t, str>;
    type MembersIter = TapeMembers<'t>;

    fn len(&self) -> usize {
        self.count_left()
    }

    fn get(&self, key: &TapeKey) -> Option<TapeNode<'t>> {
        self.member(key)
    }

    fn members(&self) -> TapeMembers<'t> {
        TapeMembers(self.clone())
    }
}

impl<'t> Array<'t, TapeJson> for UnparsedItems<'t> {
    type Node = TapeNode<'t>;
    type ElementsIter = Self;

    fn len(&self) -> usize {
        self.count_left()
    }

    fn elements(&self) -> Self {
        self.clone()
    }

    fn is_unique(&self) -> bool {
        same::all_differ(self)
    }
}
