//! Reads untrusted JSON: refuses a duplicate key at every level, bounds depth and number of values,
//! and keeps only what is needed.
//!
//! `serde_json` silently keeps the last of two equal keys, so a visitor of this module reads every
//! object.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode};

/// Characters of serde's message that an error repeats.
const SAID_CHARS_MAX: usize = 200;

/// The error of a visitor in full; serde itself would carry only its text.
#[derive(Debug)]
pub(super) struct VisitorContext {
    /// The name of the document that is read.
    document: &'static str,
    /// The code of an error for a value of the wrong type.
    code: Cell<TensorErrorCode>,
    /// The name of the part that is read now.
    subject: RefCell<String>,
    fault: RefCell<Option<TensorError>>,
}

impl VisitorContext {
    pub(super) fn new(document: &'static str, code: TensorErrorCode) -> Self {
        Self {
            document,
            code: Cell::new(code),
            subject: RefCell::default(),
            fault: RefCell::default(),
        }
    }

    /// Sets the code for values of the wrong type.
    pub(super) fn expect(&self, code: TensorErrorCode) {
        self.code.set(code);
    }

    /// Sets the name that errors mention.
    pub(super) fn subject(&self, name: &str) {
        let mut subject = self.subject.borrow_mut();
        subject.clear();
        subject.push_str(name);
    }

    /// Keeps the first error, and returns one that makes serde stop.
    pub(super) fn raise<E: de::Error>(&self, error: TensorError) -> E {
        // The first error counts, because later ones follow from it.
        self.fault.borrow_mut().get_or_insert(error);
        E::custom("refused")
    }

    /// The same for a code and a text.
    pub(super) fn say<E: de::Error>(&self, code: TensorErrorCode, what: impl Into<String>) -> E {
        self.raise(TensorError::new(code, what))
    }

    /// Reads all of `text`.
    ///
    /// # Errors
    /// The visitor's own; the expected code if a value has the wrong type; `E_JSON` if the text is
    /// not JSON, or goes on after its end.
    pub(super) fn read<'de, S>(&self, text: &'de str, seed: S) -> Result<()>
    where
        S: DeserializeSeed<'de, Value = ()>,
    {
        let mut json = serde_json::Deserializer::from_str(text);
        // `end` refuses text after the value.
        let done = seed.deserialize(&mut json).and_then(|()| json.end());
        done.map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &serde_json::Error) -> TensorError {
        if let Some(fault) = self.fault.borrow_mut().take() {
            return fault;
        }
        let document = self.document;
        let subject = self.subject.borrow();
        // serde's message repeats a string of the wrong type in full, so the message is cut.
        let mut message = error.to_string();
        if let Some((end, _)) = message.char_indices().nth(SAID_CHARS_MAX) {
            message.truncate(end);
            message.push('…');
        }
        match error.classify() {
            Category::Data if subject.is_empty() => {
                TensorError::new(self.code.get(), format!("{document}: {message}"))
            }
            Category::Data => {
                let subject = QuotedText(&subject);
                TensorError::new(self.code.get(), format!("{document}: {subject}: {message}"))
            }
            // The text is not JSON, whatever type was expected.
            _ => TensorError::new(TensorErrorCode::Json, format!("{document}: {message}")),
        }
    }
}

/// A text in an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextSpan {
    start: u32,
    len: u32,
}

impl TextSpan {
    /// The text in `arena`, which must be the arena that it was added to.
    pub(crate) fn text_in(self, arena: &str) -> &str {
        let start = self.start as usize;
        // A span of another arena may lie outside of this one.
        let text = arena.get(start..start + self.len as usize);
        text.unwrap_or_default()
    }

    pub(crate) const fn len(self) -> u64 {
        self.len as u64
    }
}

/// Texts end to end. A header has at most 100 MB, and its decoded texts are not longer.
#[derive(Debug, Default)]
pub(crate) struct TextArena(String);

impl TextArena {
    /// `bytes` is the size of a text that is in memory already, so it bounds the allocation.
    pub(crate) fn with_capacity_for(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    pub(crate) fn push(&mut self, text: &str) -> TextSpan {
        let start = self.0.len() as u32;
        self.0.push_str(text);
        TextSpan {
            start,
            len: text.len() as u32,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_text(self) -> Box<str> {
        self.0.into_boxed_str()
    }
}

/// Reads a string into an arena.
pub(super) struct TextSeed<'a>(pub(super) &'a mut TextArena);

impl<'de> DeserializeSeed<'de> for TextSeed<'_> {
    type Value = TextSpan;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<TextSpan, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for TextSeed<'_> {
    type Value = TextSpan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TextSpan, E> {
        Ok(self.0.push(text))
    }
}

/// The keys of one object, among which `check` finds a duplicate.
#[derive(Debug, Default)]
pub(super) struct ObjectKeys {
    arena: TextArena,
    spans: Vec<TextSpan>,
}

impl ObjectKeys {
    pub(super) fn add(&mut self, key: &str) {
        let span = self.arena.push(key);
        self.spans.push(span);
    }

    /// `E_DUPKEY` if a key comes twice in the object that errors call `what`.
    pub(super) fn check(mut self, what: impl fmt::Display) -> Result<()> {
        // Most objects have few keys, and one key cannot come twice.
        if self.spans.len() < 2 {
            return Ok(());
        }
        let text = self.arena.as_str();
        // Sorting keeps an object with very many keys from costing quadratic time.
        self.spans
            .sort_unstable_by(|a, b| a.text_in(text).cmp(b.text_in(text)));
        let twice = self
            .spans
            .windows(2)
            .find(|pair| pair[0].text_in(text) == pair[1].text_in(text));
        match twice {
            None => Ok(()),
            Some(pair) => Err(duplicate(what, pair[0].text_in(text))),
        }
    }
}

pub(super) fn duplicate(what: impl fmt::Display, key: &str) -> TensorError {
    TensorError::new(
        TensorErrorCode::DupKey,
        format!("{what}: key {} comes twice", QuotedText(key)),
    )
}

/// Limits of the depth and the number of values.
#[derive(Debug)]
pub(super) struct JsonBounds {
    pub(super) depth_max: u32,
    pub(super) nodes_max: u64,
    nodes: Cell<u64>,
}

impl JsonBounds {
    pub(super) const fn new(depth_max: u32, nodes_max: u64) -> Self {
        Self {
            depth_max,
            nodes_max,
            nodes: Cell::new(0),
        }
    }
}

/// A [`ValueWalk`] calls it for every member of every object.
pub(super) trait MemberWatcher {
    /// Called for a string under `key`, inside the value of `parent`.
    fn text(&self, parent: &str, key: &str, text: &str) -> Result<()> {
        let _ = (parent, key, text);
        Ok(())
    }

    /// Called for any other value that is neither object nor array.
    fn other(&self) -> Result<()> {
        Ok(())
    }

    /// Called at the beginning of an array.
    fn list(&self) -> Result<()> {
        Ok(())
    }
}

/// Ignores all members.
pub(super) struct IgnoredMembers;

impl MemberWatcher for IgnoredMembers {}

/// Reads any value and keeps none of it.
pub(super) struct ValueWalk<'a, W> {
    pub(super) context: &'a VisitorContext,
    pub(super) bounds: &'a JsonBounds,
    pub(super) watch: &'a W,
    /// Depth of the objects and arrays around the value.
    pub(super) depth: u32,
    pub(super) parent: &'a str,
    pub(super) key: &'a str,
}

impl<W: MemberWatcher> ValueWalk<'_, W> {
    fn node<E: de::Error>(&self) -> Result<(), E> {
        let nodes = self.bounds.nodes.get() + 1;
        self.bounds.nodes.set(nodes);
        if nodes > self.bounds.nodes_max {
            let what = format!(
                "{}: more than {} values",
                self.context.document, self.bounds.nodes_max
            );
            return Err(self.context.say(TensorErrorCode::Limit, what));
        }
        Ok(())
    }

    fn deeper<E: de::Error>(&self) -> Result<u32, E> {
        self.node()?;
        if self.depth >= self.bounds.depth_max {
            let what = format!(
                "{}: nested deeper than {}",
                self.context.document, self.bounds.depth_max
            );
            return Err(self.context.say(TensorErrorCode::Limit, what));
        }
        Ok(self.depth + 1)
    }

    fn scalar<E: de::Error>(&self) -> Result<(), E> {
        self.node()?;
        self.watch
            .other()
            .map_err(|error| self.context.raise(error))
    }
}

impl<'de, W: MemberWatcher> DeserializeSeed<'de> for ValueWalk<'_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, W: MemberWatcher> Visitor<'de> for ValueWalk<'_, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.node()?;
        let watched = self.watch.text(self.parent, self.key, text);
        watched.map_err(|error| self.context.raise(error))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let depth = self.deeper()?;
        self.watch
            .list()
            .map_err(|error| self.context.raise(error))?;
        while items
            .next_element_seed(ValueWalk { depth, ..self })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let depth = self.deeper()?;
        let mut keys = ObjectKeys::default();
        let mut key = TextArena::default();
        while let Some(span) = members.next_key_seed(TextSeed(&mut key))? {
            keys.add(span.text_in(key.as_str()));
            members.next_value_seed(ValueWalk {
                depth,
                parent: self.key,
                key: span.text_in(key.as_str()),
                ..self
            })?;
            key = TextArena::default();
        }
        let document = self.context.document;
        keys.check(document)
            .map_err(|error| self.context.raise(error))
    }
}
