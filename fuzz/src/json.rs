//! A second reader of JSON, made from serde's own visitors and not from the scanner under test.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A document, and the properties that the protocol forbids beyond the grammar.
pub(crate) struct ParsedDocument {
    pub(crate) value: Value,
    /// Arrays and objects within each other, at the deepest point.
    pub(crate) depth: usize,
    /// Whether an object names a member twice.
    pub(crate) twice: bool,
}

/// The result of a generic reader for `text`.
pub(crate) enum ReferenceParse {
    /// A document.
    Document(ParsedDocument),
    /// Valid by the grammar, with a part that no value here can hold: a number beyond `f64`, half a surrogate pair,
    /// more nesting than the reader follows.
    Unholdable,
    /// Not JSON.
    Invalid,
}

pub(crate) fn opinion(text: &str) -> ReferenceParse {
    let mut facts = DocumentFacts::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let seed = DepthVisitor {
        depth: 0,
        facts: &mut facts,
    };
    let read = seed.deserialize(&mut reader);
    match read.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => ReferenceParse::Document(ParsedDocument {
            value,
            depth: facts.depth,
            twice: facts.twice,
        }),
        // The scanner only checks the grammar, and takes numbers and texts that no type holds.
        Err(error) if is_about_holding(&error.to_string()) => ReferenceParse::Unholdable,
        Err(_) => ReferenceParse::Invalid,
    }
}

fn is_about_holding(error: &str) -> bool {
    let reasons = [
        "number out of range",
        "lone leading surrogate",
        "unexpected end of hex escape",
        "recursion limit exceeded",
    ];
    reasons.iter().any(|reason| error.starts_with(reason))
}

#[derive(Default)]
struct DocumentFacts {
    depth: usize,
    twice: bool,
}

struct DepthVisitor<'f> {
    depth: usize,
    facts: &'f mut DocumentFacts,
}

impl DepthVisitor<'_> {
    /// One level further in.
    fn inner(&mut self) -> DepthVisitor<'_> {
        let depth = self.depth + 1;
        self.facts.depth = self.facts.depth.max(depth);
        DepthVisitor {
            depth,
            facts: self.facts,
        }
    }
}

impl<'de> DeserializeSeed<'de> for DepthVisitor<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DepthVisitor<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let inner = self.inner();
        while let Some(item) = access.next_element_seed(DepthVisitor {
            depth: inner.depth,
            facts: &mut *inner.facts,
        })? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut members = serde_json::Map::new();
        let mut names = HashSet::new();
        let inner = self.inner();
        while let Some(name) = access.next_key::<String>()? {
            // `serde_json` keeps the last of two members with one name.
            inner.facts.twice |= !names.insert(name.clone());
            let member = access.next_value_seed(DepthVisitor {
                depth: inner.depth,
                facts: &mut *inner.facts,
            })?;
            members.insert(name, member);
        }
        Ok(members.into())
    }
}
