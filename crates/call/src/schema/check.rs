//! Checks of inputs and outputs against the schemas of their operations.

use std::sync::{Arc, OnceLock};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value, json};

use super::turn::{self, PermitShare, WAITING_MAX};
use super::{CompiledSchema, SchemaCheckError, SchemaError, ValidationOutcome, size};
use crate::error::{CallError, ErrorCode};
use crate::limits::{INVALID_DETAILS_BYTES, INVALID_DETAILS_MAX};
use crate::memory::InputMemory;
use crate::tape::{Tape, TapeJson, TapeNode};

/// Keywords that do not restrict `null` (JSON Schema 2020-12, validation): they describe, or bind objects only.
const SILENT_ON_NULL: [&str; 11] = [
    "$comment",
    "additionalProperties",
    "default",
    "description",
    "examples",
    "maxProperties",
    "minProperties",
    "patternProperties",
    "properties",
    "required",
    "title",
];

/// The subject of [`SchemaCheckError::Busy`].
const CHECKS: &str = "large values wait to be checked against their schemas";

/// The validator for the values of one schema. The schema itself stays with its owner, who passes the same one each
/// time.
pub(crate) struct SchemaValidator {
    takes: TrivialSchema,
    /// Compiled when first needed; the error is the compiler's.
    compiled: OnceLock<Result<CompiledSchema, SchemaError>>,
}

/// Facts about a schema that need no compiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrivialSchema {
    /// `{}` or `true`.
    Everything,
    /// `null`, which a call without input has, and maybe more.
    Null,
    Unknown,
}

impl SchemaValidator {
    pub(crate) fn new(schema: &Value) -> Self {
        let takes = match schema {
            Value::Bool(true) => TrivialSchema::Everything,
            Value::Object(keywords) if keywords.is_empty() => TrivialSchema::Everything,
            Value::Object(keywords) if takes_null(keywords) => TrivialSchema::Null,
            _ => TrivialSchema::Unknown,
        };
        Self {
            takes,
            compiled: OnceLock::new(),
        }
    }

    /// Whether every value is valid, so that no check is needed.
    pub(crate) fn takes_everything(&self) -> bool {
        self.takes == TrivialSchema::Everything
    }

    /// Refuses a schema that takes too much, without compiling it. The first check of a value reports other faults:
    /// one operation of a peer must not cost all the others.
    ///
    /// Returns the steps of the shortest check; the steps of compiling its patterns come out of `left`.
    pub(crate) fn admit(&self, schema: &Value, left: &mut u64) -> Result<u64, SchemaError> {
        if self.takes_everything() {
            return Ok(0);
        }
        match turn::run_blocking(|| size::admit(schema, left)) {
            Ok(admitted) => Ok(admitted.steps),
            Err(error @ SchemaError::TooMuch(_)) => Err(error),
            // Other faults surface at the first check of a value, and cost only that operation.
            Err(_) => Ok(0),
        }
    }

    /// Compiles the schema now.
    pub(crate) fn compile(&self, schema: &Value) -> Result<(), SchemaError> {
        if self.takes_everything() {
            return Ok(());
        }
        self.compiled(schema).map(drop).map_err(Clone::clone)
    }

    /// Whether the text is valid without a look at the schema.
    fn takes(&self, text: &[u8]) -> bool {
        self.takes_everything()
            || (self.takes == TrivialSchema::Null && text.trim_ascii() == b"null")
    }

    /// Fails with `code` where the value of `text` breaks the schema. The check counts against `memory`, and against
    /// a share of the turns if it takes long.
    pub(crate) fn check(
        &self,
        schema: &Value,
        text: &[u8],
        (memory, share): (Option<&Arc<dyn InputMemory>>, PermitShare<'_>),
        code: ErrorCode,
    ) -> Result<(), CallError> {
        if self.takes(text) {
            return Ok(());
        }
        let compiled = self.compiled(schema).map_err(|reason| {
            CallError::internal(format!("the operation has an invalid schema: {reason}"))
        })?;
        Tape::read(text, memory, |value| {
            let fit = compiled
                .check(schema, value, share)
                .map_err(|misfit| match misfit {
                    SchemaCheckError::Busy => CallError::overloaded(CHECKS, WAITING_MAX),
                    misfit => CallError::new(code.clone(), misfit.to_string()),
                })?;
            let lists_violations = match fit {
                ValidationOutcome::Yes => return Ok(()),
                // Collecting the violations takes many times the bytes of the value.
                ValidationOutcome::No => text.len() <= INVALID_DETAILS_BYTES,
                ValidationOutcome::NoAndLarge => false,
            };
            let validator = lists_violations.then_some(&compiled.validator);
            Err(violations(
                validator,
                value,
                misfit_text(schema, text, &code),
            ))
        })?
    }

    fn compiled(&self, schema: &Value) -> Result<&CompiledSchema, &SchemaError> {
        let compiled = self.compiled.get().unwrap_or_else(|| {
            // Other callers of the same operation wait here as well.
            turn::run_blocking(|| self.compiled.get_or_init(|| CompiledSchema::new(schema)))
        });
        compiled.as_ref()
    }
}

fn takes_null(keywords: &Map<String, Value>) -> bool {
    let names_null = match keywords.get("type") {
        Some(Value::String(name)) => name == "null",
        Some(Value::Array(names)) => names.iter().any(|name| name == "null"),
        _ => false,
    };
    let mut others = keywords.keys().filter(|keyword| *keyword != "type");
    names_null && others.all(|keyword| SILENT_ON_NULL.contains(&keyword.as_str()))
}

/// Lists the violations. The validator collects all of them first, which takes many times the bytes of the value, so
/// there is no list for a large value.
fn violations(
    validator: Option<&Validator<TapeJson>>,
    value: TapeNode<'_>,
    (code, message): (ErrorCode, &str),
) -> CallError {
    let Some(validator) = validator else {
        return CallError::new(code, format!("{message}; it is too large to say where"));
    };
    let details: Vec<_> = validator
        .iter_errors(value)
        .take(INVALID_DETAILS_MAX)
        .map(|error| {
            json!({
                "path": error.instance_path().as_str(),
                "keyword": error.kind().keyword(),
                "message": violation_text(&error),
            })
        })
        .collect();
    let next = match code {
        ErrorCode::InvalidInput => "see details",
        _ => "report it",
    };
    CallError::new(code, format!("{message}; {next}")).with_details(details.into())
}

/// What is wrong with a value, in a sentence of its own where the caller made one of the two usual mistakes: it gave
/// no input, or gave one to an operation that takes none.
fn misfit_text(schema: &Value, text: &[u8], code: &ErrorCode) -> (ErrorCode, &'static str) {
    let message = match code {
        ErrorCode::InvalidInput if text.trim_ascii() == b"null" => "the operation needs an input",
        ErrorCode::InvalidInput if takes_nothing(schema) => {
            "the operation takes no input: leave it out"
        }
        ErrorCode::InvalidInput => "the input does not match the schema",
        _ => "the output does not match the schema",
    };
    (code.clone(), message)
}

/// Whether the schema allows at most `null` and an object without members.
fn takes_nothing(schema: &Value) -> bool {
    let Some(keywords) = schema.as_object() else {
        return false;
    };
    let types = match keywords.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return false,
    };
    let has_members = |keyword: &str| {
        let members = keywords.get(keyword).and_then(Value::as_object);
        members.is_some_and(|members| !members.is_empty())
    };
    let is_closed = keywords.get("additionalProperties") == Some(&Value::Bool(false))
        && !has_members("properties")
        && !has_members("patternProperties");
    types
        .iter()
        .all(|name| *name == "null" || (*name == "object" && is_closed))
}

/// A violation for a person. The library's text for a member that is not allowed speaks of its own terms.
fn violation_text(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::FalseSchema => "no value is allowed here".to_owned(),
        _ => error.masked().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of an input that breaks the schema, and the texts of its violations.
    fn refused(schema: &Value, text: &[u8]) -> (String, Vec<String>) {
        let share = (None, PermitShare::Node);
        let check = SchemaValidator::new(schema);
        let refused = check.check(schema, text, share, ErrorCode::InvalidInput);
        let refused = refused.expect_err("it breaks the schema");
        let details = refused.details.expect("violations");
        let details = details.as_array().cloned().unwrap_or_default();
        let texts = details
            .iter()
            .map(|it| it["message"].as_str().unwrap_or_default().to_owned());
        (refused.message, texts.collect())
    }

    #[test]
    fn an_input_that_is_missing_or_too_much_is_called_so() {
        let takes_name = json!({"type": "object", "required": ["name"],
            "properties": {"name": {"type": "string"}}, "additionalProperties": false});
        let nothing = json!({"type": ["object", "null"], "additionalProperties": false});
        let plain = "the input does not match the schema; see details";
        for (schema, text, expected) in [
            (
                &takes_name,
                &b"null"[..],
                "the operation needs an input; see details",
            ),
            (&takes_name, b"{}", plain),
            (&takes_name, b"{\"name\":\"a\",\"x\":1}", plain),
            (
                &nothing,
                b"{\"x\":1}",
                "the operation takes no input: leave it out; see details",
            ),
            (
                &json!({"type": "null"}),
                b"{}",
                "the operation takes no input: leave it out; see details",
            ),
        ] {
            let (message, texts) = refused(schema, text);
            assert_eq!(message, expected, "{schema}");
            assert!(
                texts.iter().all(|it| !it.contains("False schema")),
                "{texts:?}"
            );
        }
    }

    #[test]
    fn what_is_known_without_compiling_is_true() {
        for schema in [
            json!(true),
            json!({}),
            json!({"type": "null"}),
            json!({"type": ["object", "null"], "required": ["a"], "additionalProperties": false}),
            json!({"type": "object"}),
            json!({"type": ["object", "null"], "enum": [1]}),
            json!({"type": ["object", "null"], "not": {"type": "null"}}),
            json!({"type": ["object", "null"], "$ref": "#/$defs/a", "$defs": {"a": false}}),
            json!(false),
        ] {
            let check = SchemaValidator::new(&schema);
            let compiled = CompiledSchema::new(&schema).expect("it is a schema");
            let compiled = compiled.validator;
            let valid = Tape::read(b"null", None, |null| compiled.is_valid(null));
            let valid = valid.expect("JSON");
            if check.takes != TrivialSchema::Unknown {
                assert!(valid, "{schema}");
            }
            let code = ErrorCode::InvalidInput;
            let checked = check.check(&schema, b" null ", (None, PermitShare::Node), code);
            assert_eq!(checked.is_ok(), valid, "{schema}");
        }
        let usual = json!({"type": ["object", "null"], "properties": {"a": false}});
        assert_eq!(SchemaValidator::new(&usual).takes, TrivialSchema::Null);
    }
}
