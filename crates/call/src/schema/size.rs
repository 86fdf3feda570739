//! What a schema takes before any value is checked against it.

use jsonschema::json::SerdeJson;
use serde_json::{Map, Value};

use super::SchemaError;
use super::steps::{self, Stop};
use crate::limits::{SCHEMA_PATTERNS_MAX, SCHEMA_VALUES_MAX};

/// Keywords that make the work on one part of a value depend on more than the schema's size.
const UNEVEN: [&str; 9] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "pattern",
    "patternProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords whose schemas `unevaluatedProperties` and `unevaluatedItems` beside them look into, for which
/// the library compiles these once more.
const LOOKED_INTO: [&str; 14] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "dependentSchemas",
    "else",
    "if",
    "items",
    "oneOf",
    "prefixItems",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Refuses a schema that takes too much to compile, or to evaluate for any value at all. Answers with the
/// steps that each part of a value takes, where that is a constant.
pub(super) fn admit(schema: &Value) -> Result<Option<u64>, SchemaError> {
    let mut seen = Seen::default();
    let built = seen.built(schema);
    if built.once > SCHEMA_VALUES_MAX {
        return Err(SchemaError::TooMuch(
            "the schema has more values than a schema may, or compiles to more",
        ));
    }
    if seen.patterns > SCHEMA_PATTERNS_MAX {
        return Err(SchemaError::TooMuch("the schema has too many patterns"));
    }
    if !seen.uneven {
        return Ok(Some(built.once.max(1)));
    }
    match steps::count::<SerdeJson>(schema, &Value::Null) {
        Ok(_) => Ok(None),
        Err(Stop::Deep) => Err(SchemaError::TooMuch(
            "references of the schema follow each other too far",
        )),
        Err(Stop::Reference(to)) => Err(SchemaError::Reference(to)),
        Err(Stop::Steps) => Err(SchemaError::TooMuch(
            "evaluating the schema takes more steps than a check may, whatever the value",
        )),
    }
}

#[derive(Default)]
struct Seen {
    patterns: u64,
    uneven: bool,
}

/// How many values the library makes something of.
#[derive(Clone, Copy, Default)]
struct Built {
    /// In compiling the schema.
    once: u64,
    /// And again for each `unevaluated…` that looks into it.
    again: u64,
}

impl Seen {
    /// Values are as deep as a JSON text may be, and so is this.
    fn built(&mut self, schema: &Value) -> Built {
        let mut built = Built { once: 1, again: 1 };
        match schema {
            Value::Array(items) => {
                for item in items {
                    built.add(self.built(item), true);
                }
            }
            Value::Object(words) => {
                for (word, value) in words {
                    self.meet(word, value);
                    let looked_into = LOOKED_INTO.contains(&word.as_str());
                    built.add(self.built(value), looked_into);
                }
                if looks(words) {
                    built.once = built.once.saturating_add(built.again);
                }
            }
            _ => {}
        }
        built
    }

    fn meet(&mut self, word: &str, value: &Value) {
        self.uneven |= UNEVEN.contains(&word);
        self.patterns += match (word, value) {
            ("pattern", Value::String(_)) => 1,
            ("patternProperties", Value::Object(all)) => all.len() as u64,
            _ => 0,
        };
    }
}

impl Built {
    fn add(&mut self, part: Self, looked_into: bool) {
        self.once = self.once.saturating_add(part.once);
        if looked_into {
            let again = part.once.saturating_add(part.again);
            self.again = self.again.saturating_add(again);
        }
    }
}

fn looks(words: &Map<String, Value>) -> bool {
    words.contains_key("unevaluatedProperties") || words.contains_key("unevaluatedItems")
}
