//! Reads bytes into a tree whose memory is limited. Members that the import does not use are
//! skipped while the document is read.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::DocumentError;
use super::limits::{
    ANCHORED_VALUES_MAX, ANCHORS_MAX, DOCUMENT_BYTES_MAX, NESTING_MAX, VALUES_MAX,
};

/// Members whose own members have names that the author chose.
const NAMED: [&str; 19] = [
    "$defs",
    "callbacks",
    "content",
    "definitions",
    "dependentSchemas",
    "encoding",
    "headers",
    "links",
    "mapping",
    "parameters",
    "pathItems",
    "paths",
    "patternProperties",
    "properties",
    "requestBodies",
    "responses",
    "schemas",
    "scopes",
    "securitySchemes",
];

/// Members that hold data instead of descriptions.
const DATA: [&str; 3] = ["const", "default", "enum"];

/// Members that are left out, in addition to all that begin with `x-`.
const LEFT_OUT: [&str; 6] = [
    "callbacks",
    "example",
    "examples",
    "externalDocs",
    "links",
    "xml",
];

/// Reads a document, which is JSON or YAML.
///
/// # Errors
/// The document is neither, or exceeds a limit.
pub fn read(bytes: &[u8]) -> Result<Value, DocumentError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooMuch {
            what: "bytes",
            most: DOCUMENT_BYTES_MAX,
        });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| DocumentError::Syntax("it is not UTF-8".to_owned()))?;
    // A reader may ignore a byte order mark (RFC 8259 section 8.1).
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let left = Cell::new(VALUES_MAX);
    let tree = BoundedValue {
        left: &left,
        kind: MemberRole::Node,
    };
    // JSON is read by its own parser: YAML's limits on anchors and events do not apply to it.
    let read = match text.trim_start().starts_with('{') {
        true => json(text, tree),
        false => yaml(text, tree),
    };
    read.map_err(|reason| match left.get() {
        0 => DocumentError::TooMuch {
            what: "values",
            most: VALUES_MAX,
        },
        _ => DocumentError::Syntax(reason),
    })
}

fn json(text: &str, tree: BoundedValue<'_>) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = tree.deserialize(&mut reader).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(value)
}

fn yaml(text: &str, tree: BoundedValue<'_>) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * VALUES_MAX,
            max_nodes: 2 * VALUES_MAX,
            max_depth: NESTING_MAX,
            max_anchors: ANCHORS_MAX,
            max_aliases: ANCHORS_MAX,
            max_recorded_anchor_events: ANCHORED_VALUES_MAX,
            max_total_scalar_bytes: DOCUMENT_BYTES_MAX,
            max_documents: 1,
            max_merge_keys: ANCHORS_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ANCHORED_VALUES_MAX,
            max_replay_stack_depth: 16,
        },
        // YAML 1.2 reads `yes` and `on` as strings.
        strict_booleans: true,
    };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        tree.deserialize(reader)
    })
    .map_err(|error| error.to_string())
}

/// The role of an object's members.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MemberRole {
    /// The members are data for the server, which the import does not interpret.
    Data,
    /// The author chose the names of the members.
    Named,
    /// The format defines the names of the members.
    Node,
}

impl MemberRole {
    fn below(self, name: &str) -> Self {
        match self {
            Self::Data => Self::Data,
            Self::Named => Self::Node,
            Self::Node if DATA.contains(&name) => Self::Data,
            Self::Node if NAMED.contains(&name) => Self::Named,
            Self::Node => Self::Node,
        }
    }

    fn leaves_out(self, name: &str) -> bool {
        self == Self::Node && (name.starts_with("x-") || LEFT_OUT.contains(&name))
    }
}

#[derive(Clone, Copy)]
struct BoundedValue<'a> {
    left: &'a Cell<usize>,
    kind: MemberRole,
}

impl BoundedValue<'_> {
    fn one<E: Error>(self) -> Result<(), E> {
        let left = self.left.get().saturating_sub(1);
        self.left.set(left);
        match left {
            0 => Err(E::custom("too many values")),
            _ => Ok(()),
        }
    }

    fn below(self, name: &str) -> Self {
        Self {
            kind: self.kind.below(name),
            ..self
        }
    }
}

impl<'de> DeserializeSeed<'de> for BoundedValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BoundedValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.one()?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.one()?;
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.one()?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.one()?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.one()?;
        // YAML has infinities and NaN, but JSON has neither (RFC 8259 section 6).
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.one()?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        self.one()?;
        let mut values = Vec::new();
        // `parameters` is a list in an operation, but has chosen names among the components.
        let each = match self.kind {
            MemberRole::Named => self.below(""),
            _ => self,
        };
        while let Some(value) = list.next_element_seed(each)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.one()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key_seed(MemberNameSeed)? {
            if self.kind.leaves_out(&name) {
                // Skipped values do not count against the limit.
                members.next_value::<IgnoredAny>()?;
            } else {
                let value = members.next_value_seed(self.below(&name))?;
                object.insert(name, value);
            }
        }
        Ok(Value::Object(object))
    }
}

/// Reads a member's name. In YAML a name may be a number, such as a status.
struct MemberNameSeed;

impl<'de> DeserializeSeed<'de> for MemberNameSeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for MemberNameSeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        Ok(name.to_owned())
    }

    fn visit_u64<E: Error>(self, name: u64) -> Result<String, E> {
        Ok(name.to_string())
    }

    fn visit_i64<E: Error>(self, name: i64) -> Result<String, E> {
        Ok(name.to_string())
    }

    fn visit_f64<E: Error>(self, name: f64) -> Result<String, E> {
        Ok(name.to_string())
    }

    fn visit_bool<E: Error>(self, name: bool) -> Result<String, E> {
        Ok(name.to_string())
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        Ok("null".to_owned())
    }
}
