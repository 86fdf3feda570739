//! JSON Schemas, compiled and checked within a budget.
//!
//! Schemas come from scripts, peers and imported servers, and the library that evaluates them can be neither
//! interrupted nor limited: a few references are enough for 2^40 steps. So this module counts the steps first
//! ([`steps`]), and refuses a check that would take too many. It also counts what compiling makes of a schema
//! ([`size`]). Work that takes long all the same has its [`turn`], beside the threads that serve.

mod check;
mod refs;
mod size;
mod steps;
mod turn;

use std::fmt;

use alknet_core::PeerId;
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use thiserror::Error;

pub(crate) use check::SchemaValidator;
pub(crate) use turn::PermitShare;
use turn::{PermitOwner, ValidationPermit, WAITING_MAX};

use crate::error::CallError;
use crate::limits::{
    PATTERN_BYTES_MAX, PATTERN_CACHE_BYTES_MAX, SCHEMA_DETAIL_STEPS_MAX, SCHEMA_STEPS_MAX,
};
use crate::tape::{Tape, TapeJson, TapeNode};

/// A JSON Schema from anywhere, ready to check values.
#[derive(Clone, Debug)]
pub struct ValueSchema {
    source: Value,
    compiled: CompiledSchema,
    /// The owner of the share that its checks take; `None` where no peer sent it.
    owner: Option<PermitOwner>,
}

impl ValueSchema {
    /// Compiles a schema of the program's own. It waits for that however many others wait. The compiler fetches
    /// nothing, and does not check `format`.
    ///
    /// # Errors
    /// The value is not a schema, or takes more to compile or evaluate than a schema may.
    pub fn new(source: &Value) -> Result<Self, SchemaError> {
        Self::owned(source, None)
    }

    /// Compiles a schema from a peer, `None` for a peer without a proved identity. Compiling it and checking large
    /// values against it count to that peer's share of the processors and of the waiting turns.
    ///
    /// # Errors
    /// The errors of [`Self::new`], and [`SchemaError::Busy`] where the share is used up.
    pub fn of_peer(source: &Value, peer: Option<&PeerId>) -> Result<Self, SchemaError> {
        Self::owned(source, Some(PermitOwner::for_peer(peer)))
    }

    fn owned(source: &Value, owner: Option<PermitOwner>) -> Result<Self, SchemaError> {
        Ok(Self {
            compiled: CompiledSchema::in_turn(source, PermitShare::of_owner(owner.as_ref()))?,
            source: source.clone(),
            owner,
        })
    }

    /// Checks a value.
    ///
    /// # Errors
    /// The first path at which the value breaks the schema, or that checking it takes too many steps.
    pub fn validate(&self, value: &Value) -> Result<(), SchemaCheckError> {
        // The library hashes trees by keys of its own, for which a sender may choose different values with the same
        // hash: this goes through the text and the hashes of the tape.
        let text = value.to_string();
        let check = |value: TapeNode<'_>| self.check_node(value);
        Tape::read(text.as_bytes(), None, check).unwrap_or_else(|error| Err(unread(error)))
    }

    fn check_node(&self, value: TapeNode<'_>) -> Result<(), SchemaCheckError> {
        let share = PermitShare::of_owner(self.owner.as_ref());
        let error = match self.compiled.check(&self.source, value, share)? {
            ValidationOutcome::Yes => return Ok(()),
            ValidationOutcome::No => self.compiled.validator.validate(value).err(),
            ValidationOutcome::NoAndLarge => None,
        };
        Err(match error {
            Some(error) => SchemaCheckError::Violation {
                path: error.instance_path().to_string(),
                reason: error.to_string(),
            },
            None => SchemaCheckError::Violation {
                path: String::new(),
                reason: "the value does not fit; it is too large to say where".to_owned(),
            },
        })
    }
}

/// The error for a value that nests deeper than a text may, or is longer.
fn unread(error: CallError) -> SchemaCheckError {
    SchemaCheckError::Violation {
        path: String::new(),
        reason: error.message,
    }
}

/// Why a schema is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaError {
    /// The peer that sent it, or all peers together, have as many waiting schemas and large values as they may.
    #[error("too many schemas are being compiled; try again")]
    Busy,
    /// The compiler refuses it.
    #[error("{0}")]
    Invalid(String),
    /// It refers to a part that it lacks.
    #[error("the reference {0:?} leads nowhere in the schema; a schema has to be whole by itself")]
    Reference(String),
    /// It is too large, or takes too much to compile or evaluate.
    #[error("{0}")]
    TooMuch(&'static str),
}

/// Why a value does not match a schema.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaCheckError {
    /// The limit of waiting long checks is reached.
    #[error("too many large values are being checked against their schemas; try again")]
    Busy,
    /// Checking it takes more steps than a check may.
    #[error(
        "checking the value against its schema takes more than {SCHEMA_STEPS_MAX} steps; send a smaller one"
    )]
    TooMuch,
    /// A path in it that breaks the schema.
    #[error("{path}: {reason}")]
    Violation {
        /// A JSON Pointer; empty for the whole value.
        path: String,
        /// The fault there.
        reason: String,
    },
}

/// The compiled form of a schema. The schema itself stays with its owner, who passes the same one each time.
#[derive(Clone)]
struct CompiledSchema {
    validator: Validator<TapeJson>,
    /// Steps for each part of a value, where that is a constant.
    flat: Option<u64>,
}

impl fmt::Debug for CompiledSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledSchema").finish_non_exhaustive()
    }
}

/// The outcome of a check.
enum ValidationOutcome {
    Yes,
    No,
    /// Like `No`, for a value that takes many steps: finding where it breaks the schema would take as many again, and
    /// much memory.
    NoAndLarge,
}

impl CompiledSchema {
    fn new(schema: &Value) -> Result<Self, SchemaError> {
        Self::in_turn(schema, PermitShare::Node)
    }

    fn in_turn(schema: &Value, share: PermitShare<'_>) -> Result<Self, SchemaError> {
        // Each waiting check holds a thread: only so many schemas of peers may wait.
        let most = match share {
            PermitShare::Node => usize::MAX,
            PermitShare::Peer(_) => WAITING_MAX,
        };
        // The node serves other requests while this runs, however long the largest schema takes.
        turn::run_blocking(|| {
            let _turn = ValidationPermit::wait(most, share).ok_or(SchemaError::Busy)?;
            Self::compile(schema)
        })
    }

    fn compile(schema: &Value) -> Result<Self, SchemaError> {
        // One schema has few patterns, so they need no further budget.
        let mut left = u64::MAX;
        let flat = size::admit(schema, &mut left)?.flat;
        let patterns = PatternOptions::regex()
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_CACHE_BYTES_MAX);
        let validator = jsonschema::options_for()
            // A schema from a peer must not make this node fetch documents.
            .offline()
            .with_pattern_options(patterns)
            // JSON Schema Validation, section 7.2.1: `format` describes a value and asserts nothing by default.
            .should_validate_formats(false)
            .build(schema)
            .map_err(|error| SchemaError::Invalid(error.to_string()))?;
        Ok(Self { validator, flat })
    }

    /// Checks a value: a small one at once, as most are, and a large one in its turn.
    fn check(
        &self,
        schema: &Value,
        value: TapeNode<'_>,
        share: PermitShare<'_>,
    ) -> Result<ValidationOutcome, SchemaCheckError> {
        let is_valid = || self.validator.is_valid(value);
        if self.takes_at_most(schema, value, SCHEMA_DETAIL_STEPS_MAX) {
            return Ok(if is_valid() {
                ValidationOutcome::Yes
            } else {
                ValidationOutcome::No
            });
        }
        turn::run_blocking(|| {
            let _turn = ValidationPermit::wait(WAITING_MAX, share).ok_or(SchemaCheckError::Busy)?;
            match self.takes_at_most(schema, value, SCHEMA_STEPS_MAX) {
                true if is_valid() => Ok(ValidationOutcome::Yes),
                true => Ok(ValidationOutcome::NoAndLarge),
                false => Err(SchemaCheckError::TooMuch),
            }
        })
    }

    /// Whether checking `value` takes no more steps than `most`.
    fn takes_at_most(&self, schema: &Value, value: TapeNode<'_>, most: u64) -> bool {
        let few = |each: u64| steps::parts::<TapeJson>(&value, most / each).is_some();
        self.flat.is_some_and(few) || steps::count::<TapeJson>(schema, value, most).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use serde_json::{Map, json};

    use super::*;
    use crate::error::ErrorCode;
    use crate::limits::{SCHEMA_DEPTH_MAX, SCHEMA_PATTERNS_MAX, SCHEMA_VALUES_MAX};

    /// Longer than every step here takes by far, and shorter than uncounted work would. Other tests take turns as
    /// well.
    fn long() -> Duration {
        alknet_test_support::deadline(Duration::from_secs(10))
    }

    /// Bytes of memory of this process.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        let pages = text
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<usize>().ok());
        pages.expect("a number") * 4096
    }

    /// `depth` definitions, each made from the next by `make`; the last one is `last`.
    fn chain(depth: usize, last: Value, make: impl Fn(Value) -> Value) -> Value {
        let mut defs = json!({ format!("d{depth}"): last });
        for at in 0..depth {
            let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
            defs[format!("d{at}")] = make(next);
        }
        json!({ "$ref": "#/$defs/d0", "$defs": defs })
    }

    fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
        (0..depth).fold(json!(1), |value, _| wrap(value))
    }

    #[track_caller]
    fn refused(schema: &Value) -> SchemaError {
        match ValueSchema::new(schema) {
            Err(error) => error,
            Ok(_) => panic!("it was taken"),
        }
    }

    #[track_caller]
    fn too_much(schema: &Value, value: &Value) {
        let schema = ValueSchema::new(schema).expect("a schema");
        assert_eq!(schema.validate(value), Err(SchemaCheckError::TooMuch));
    }

    #[test]
    fn what_no_value_could_be_checked_against_is_no_schema() {
        let twice = |word: &'static str| {
            move |next: Value| {
                let both = vec![next; 2];
                json!({ word: both })
            }
        };
        for word in ["allOf", "anyOf", "oneOf"] {
            let bomb = chain(40, json!({ "type": "string" }), twice(word));
            assert!(matches!(refused(&bomb), SchemaError::TooMuch(_)), "{word}");
        }
        let conditions = chain(40, json!(true), |next| json!({ "if": next, "then": next }));
        assert!(matches!(refused(&conditions), SchemaError::TooMuch(_)));
        // The compiler compiles each level twice for the one around it.
        let deep = nested(60, |schema| {
            let schema = if schema.is_object() {
                schema
            } else {
                json!({})
            };
            json!({ "unevaluatedProperties": schema })
        });
        assert!(matches!(refused(&deep), SchemaError::TooMuch(_)));
        let long = chain(2 * SCHEMA_DEPTH_MAX, json!(true), |next| next);
        assert!(matches!(refused(&long), SchemaError::TooMuch(_)));
        let many = json!({ "enum": (0..SCHEMA_VALUES_MAX).collect::<Vec<_>>() });
        assert!(matches!(refused(&many), SchemaError::TooMuch(_)));
        let patterns = (0..=SCHEMA_PATTERNS_MAX).map(|n| json!({ "pattern": format!("a{n}") }));
        let patterns = json!({ "anyOf": patterns.collect::<Vec<_>>() });
        assert!(matches!(refused(&patterns), SchemaError::TooMuch(_)));
        let twice = vec!["a|b"; SCHEMA_PATTERNS_MAX as usize];
        let taken: Vec<_> = twice
            .iter()
            .map(|same| json!({ "pattern": same }))
            .collect();
        ValueSchema::new(&json!({ "anyOf": taken })).expect("the same pattern again takes nothing");
        let nowhere = json!({ "properties": { "a": { "$ref": "#/$defs/none" } } });
        assert!(matches!(refused(&nowhere), SchemaError::Invalid(_)));
        let nowhere = json!({ "$ref": "#/$defs/none" });
        assert!(matches!(refused(&nowhere), SchemaError::Reference(_)));
    }

    /// Each of these compiles to gigabytes, or without end.
    #[test]
    fn a_schema_that_compiles_to_far_more_than_it_is_is_none() {
        // The compiler stores the path to each schema with it.
        let name = "x".repeat(500_000);
        let many = json!({ "properties": { name: { "anyOf": vec![json!({}); 5_000] } } });
        assert!(matches!(refused(&many), SchemaError::TooMuch(_)));
        // And the identifier that it is in.
        let id = format!("https://example.org/{}", "x".repeat(500_000));
        let many = json!({ "$id": id, "anyOf": vec![json!({}); 5_000] });
        assert!(matches!(refused(&many), SchemaError::TooMuch(_)));
        // The compiler compiles the target of a reference again for each reference that leads around it.
        let many = json!({ "anyOf": vec![json!({ "items": { "$ref": "#" } }); 3_000] });
        let mut around = nested(60, |inner| {
            let inner = if inner.is_object() {
                inner
            } else {
                many.clone()
            };
            json!({ "items": inner })
        });
        let pointer = |depth: usize| json!({ "$ref": format!("#{}", "/items".repeat(depth)) });
        around["$defs"] = json!(
            (1..60)
                .map(|n| (n.to_string(), pointer(n)))
                .collect::<Map<_, _>>()
        );
        assert!(matches!(refused(&around), SchemaError::TooMuch(_)));
        // There are 2^30 ways from the first resource to the last, and the compiler follows each by itself.
        let mut defs = Map::new();
        for n in 0..30 {
            for (own, other) in [("a", "b"), ("b", "a")] {
                let next =
                    |name: &str| json!({ "$ref": format!("https://example.org/{name}{}", n + 1) });
                let schema = json!({
                    "$id": format!("https://example.org/{own}{n}"),
                    "properties": { "one": next(own), "two": next(other) },
                });
                defs.insert(format!("{own}{n}"), schema);
            }
        }
        for last in ["a30", "b30"] {
            let id = format!("https://example.org/{last}");
            defs.insert(last.to_owned(), json!({ "$id": id }));
        }
        let ways = json!({ "$ref": "https://example.org/a0", "$defs": defs });
        assert!(matches!(refused(&ways), SchemaError::TooMuch(_)));
        // Each of so few patterns takes a hundred kilobytes, and the library would compile each by itself.
        let patterns = (0..60).map(|n| json!({ "pattern": format!("^[ab]{{2000}}c{n}$") }));
        let patterns = json!({ "anyOf": patterns.collect::<Vec<_>>() });
        assert!(matches!(refused(&patterns), SchemaError::TooMuch(_)));
    }

    #[test]
    fn a_check_that_would_take_too_long_is_not_begun() {
        let numbers: Vec<_> = (0..10_000).map(|n| f64::from(n) + 0.5).collect();
        too_much(
            &json!({ "items": { "enum": numbers } }),
            &json!(vec![7; 400_000]),
        );
        let both = vec![json!({ "$ref": "#/$defs/a" }); 2];
        let a = json!({ "items": { "anyOf": both } });
        too_much(
            &json!({ "$ref": "#/$defs/a", "$defs": { "a": a } }),
            &nested(60, |value| json!([value])),
        );
        let a = json!({
            "properties": { "v": { "$ref": "#/$defs/a" } },
            "unevaluatedProperties": { "$ref": "#/$defs/a" },
            "anyOf": [{ "properties": { "v": { "$ref": "#/$defs/a" } } }, true],
        });
        too_much(
            &json!({ "$ref": "#/$defs/a", "$defs": { "a": a } }),
            &nested(60, |value| json!({ "v": value })),
        );
        too_much(
            &json!({ "pattern": "(a{50}){50}" }),
            &json!("a".repeat(1 << 20)),
        );
        too_much(&json!({ "uniqueItems": true }), &json!(vec![0; 600_000]));
        let media = json!({ "contentMediaType": "application/json" });
        too_much(
            &json!({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "allOf": vec![media; 1_000],
            }),
            &json!("1".repeat(1 << 20)),
        );
    }

    /// A long text written with escapes.
    fn escaped_name(number: usize, letters: usize) -> String {
        format!("{}{number}", "\\u0061".repeat(letters))
    }

    fn checked(check: &SchemaValidator, schema: &Value, text: &str) -> Result<(), CallError> {
        let code = ErrorCode::InvalidInput;
        check.check(schema, text.as_bytes(), (None, PermitShare::Node), code)
    }

    #[track_caller]
    fn refused_soon(schema: &Value, text: &str) {
        let check = SchemaValidator::new(schema);
        check.compile(schema).expect("a schema");
        let began = Instant::now();
        let checked = checked(&check, schema, text);
        let message = checked.expect_err("it takes too much").message;
        let too_much = SchemaCheckError::TooMuch.to_string();
        assert_eq!(message, too_much);
        assert!(began.elapsed() < long(), "{:?}", began.elapsed());
    }

    /// In an earlier version each reference kept a copy of the name: 6,500 of these with a name of 10 MB are 65 GB.
    #[test]
    fn counting_keeps_no_names() {
        let to = |n: usize| json!({ "$ref": format!("#/$defs/{n}") });
        let all: Vec<_> = (0..2_500).map(to).collect();
        let defs: Map<_, _> = (0..2_500).map(|n| (n.to_string(), json!({}))).collect();
        let schema = json!({ "propertyNames": { "allOf": all }, "$defs": defs });
        let check = SchemaValidator::new(&schema);
        check.compile(&schema).expect("a schema");
        let text = format!("{{\"{}\":0}}", "a".repeat(1 << 20));
        let before = resident();
        let mut most = before;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let checked = checked(&check, &schema, &text);
                done.store(true, Ordering::Relaxed);
                checked.expect("any name fits");
            });
            while !done.load(Ordering::Relaxed) {
                most = most.max(resident());
                thread::sleep(Duration::from_millis(1));
            }
        });
        // Other tests run meanwhile.
        let more = most.saturating_sub(before);
        assert!(more < 1 << 30, "{more} bytes more");
    }

    /// In an earlier version each of these decoded megabytes again for each of thousands of keywords, without
    /// counting it.
    #[test]
    fn names_and_texts_are_decoded_within_the_budget() {
        let members: Vec<_> = (0..16)
            .map(|n| format!("\"{}\":0", escaped_name(n, 20_000)))
            .collect();
        let object = format!("{{{}}}", members.join(","));
        let objects = format!("[{}]", [object.as_str(); 10].join(","));
        let dependent: Map<_, _> = (0..15_000)
            .map(|n| (format!("k{n}"), json!(true)))
            .collect();
        // Looking up a name takes no time for the names already known: all is well within the budget, and quick.
        let schema = json!({
            "$ref": "#/$defs/a",
            "$defs": { "a": {} },
            "items": { "dependentSchemas": dependent },
        });
        let check = SchemaValidator::new(&schema);
        check.compile(&schema).expect("a schema");
        let began = Instant::now();
        let checked = checked(&check, &schema, &objects);
        checked.expect("it fits");
        assert!(began.elapsed() < long(), "{:?}", began.elapsed());
        // Going through the members decodes them, each time.
        let through = vec![json!({ "propertyNames": {} }); 5_000];
        refused_soon(&json!({ "items": { "allOf": through } }), &objects);
        let text = format!("\"{}\"", escaped_name(0, 160_000));
        let lengths = vec![json!({ "propertyNames": {}, "maxLength": 1 }); 6_000];
        refused_soon(&json!({ "allOf": lengths }), &text);
        let numbers: Vec<_> = (0..15_000).collect();
        refused_soon(
            &json!({ "items": { "$ref": "#/$defs/a" }, "$defs": { "a": { "enum": numbers } } }),
            &format!("[{}[]]", "[],".repeat(480_000)),
        );
    }

    /// A thousand integers near 2^63 are one `f64`. An earlier version hashed them by it, and compared all of them
    /// pairwise.
    #[test]
    fn integers_that_share_a_float_are_compared_quickly() {
        let schema = json!({ "uniqueItems": true });
        let numbers: Vec<_> = (0..200_000_u64).map(|n| (1 << 63) + n).collect();
        let check = SchemaValidator::new(&schema);
        let text = json!(numbers).to_string();
        let began = Instant::now();
        let checked = checked(&check, &schema, &text);
        checked.expect("all of them differ");
        let tree = ValueSchema::new(&schema).expect("a schema");
        assert_eq!(tree.validate(&json!(numbers)), Ok(()));
        assert!(began.elapsed() < long(), "{:?}", began.elapsed());
    }

    #[test]
    fn schemas_as_people_write_them_have_room() {
        let tree = json!({
            "$ref": "#/$defs/node",
            "$defs": { "node": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "type": "string", "pattern": "^[a-z0-9-]{1,63}$" },
                    "kind": { "enum": ["file", "folder", "link"] },
                    "children": { "type": "array", "items": { "$ref": "#/$defs/node" } },
                },
                "additionalProperties": false,
            } },
        });
        let leaf = json!({ "name": "leaf", "kind": "file", "children": [] });
        let folder = json!({ "name": "folder", "children": vec![leaf; 50] });
        let root = json!({ "name": "root", "children": vec![folder; 100] });
        let schema = ValueSchema::new(&tree).expect("a schema");
        assert_eq!(schema.validate(&root), Ok(()));
        let mut broken = root.clone();
        broken["children"][7]["children"][3]["kind"] = json!("fifo");
        assert!(matches!(
            schema.validate(&broken),
            Err(SchemaCheckError::Violation { .. })
        ));
        // A list of numbers, and an anchor, an identifier and a schema of schemas to refer to.
        let numbers =
            ValueSchema::new(&json!({ "items": { "type": "integer" } })).expect("a schema");
        assert_eq!(numbers.validate(&json!(vec![7; 300_000])), Ok(()));
        for (schema, value) in [
            (
                json!({ "$ref": "#name", "$defs": { "a": { "$anchor": "name", "type": "null" } } }),
                json!(null),
            ),
            (
                json!({
                    "$id": "https://example.org/a", "$ref": "b",
                    "$defs": { "b": { "$id": "https://example.org/b", "type": "null" } },
                }),
                json!(null),
            ),
            (
                json!({ "$ref": "https://json-schema.org/draft/2020-12/schema" }),
                json!({ "type": "string" }),
            ),
            (
                json!({ "$ref": "#/$defs/a%20b~1c", "$defs": { "a b/c": { "type": "null" } } }),
                json!(null),
            ),
        ] {
            let compiled = ValueSchema::new(&schema).map(|schema| schema.validate(&value));
            assert_eq!(compiled, Ok(Ok(())), "{schema}");
        }
    }

    #[test]
    fn a_large_invalid_value_is_refused_without_a_path() {
        let schema = ValueSchema::new(&json!({ "items": { "type": "string" } })).expect("a schema");
        let path = |value: &Value| match schema.validate(value) {
            Err(SchemaCheckError::Violation { path, .. }) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path(&json!(["a", 1])), "/1");
        assert_eq!(path(&json!(vec![1; 100_000])), "");
    }
}
