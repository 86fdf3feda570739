//! Values checked against their schemas.

use std::sync::{Arc, OnceLock};

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value, json};

use crate::error::{CallError, ErrorCode};
use crate::limits::{INVALID_DETAILS_BYTES, INVALID_DETAILS_MAX, PATTERN_BYTES_MAX};
use crate::memory::InputMemory;
use crate::tape::{Node, Tape, TapeJson};

/// Keywords that say nothing about `null` (JSON Schema 2020-12, validation): they describe, or
/// bind objects only.
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

/// What the values of one schema are checked with. The schema itself stays with its owner, who
/// gives the same one each time.
pub(crate) struct Check {
    takes: Takes,
    /// Compiled when first needed; the error is what the compiler says.
    validator: OnceLock<Result<Validator<TapeJson>, String>>,
}

/// What is known of a schema without compiling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// `{}` or `true`.
    Everything,
    /// `null`, which a call without input has, and maybe more.
    Null,
    Unknown,
}

impl Check {
    pub(crate) fn new(schema: &Value) -> Self {
        let takes = match schema {
            Value::Bool(true) => Takes::Everything,
            Value::Object(keywords) if keywords.is_empty() => Takes::Everything,
            Value::Object(keywords) if takes_null(keywords) => Takes::Null,
            _ => Takes::Unknown,
        };
        Self {
            takes,
            validator: OnceLock::new(),
        }
    }

    /// Whether nothing has to be looked at.
    pub(crate) fn takes_everything(&self) -> bool {
        self.takes == Takes::Everything
    }

    /// Compiles the schema now.
    pub(crate) fn compile(&self, schema: &Value) -> Result<(), String> {
        if self.takes_everything() {
            return Ok(());
        }
        self.validator(schema).map(|_| ()).map_err(str::to_owned)
    }

    /// Whether the text is one that needs no look at the schema.
    fn takes(&self, text: &[u8]) -> bool {
        self.takes_everything() || (self.takes == Takes::Null && text.trim_ascii() == b"null")
    }

    /// Fails with `code` where the value of `text` breaks the schema. What that takes counts against `memory`.
    pub(crate) fn check(
        &self,
        schema: &Value,
        text: &[u8],
        memory: Option<&Arc<dyn InputMemory>>,
        code: ErrorCode,
    ) -> Result<(), CallError> {
        if self.takes(text) {
            return Ok(());
        }
        let validator = self.validator(schema).map_err(|reason| {
            CallError::internal(format!("the operation has an invalid schema: {reason}"))
        })?;
        Tape::look(text, memory, |value| {
            if validator.is_valid(value) {
                return Ok(());
            }
            Err(match text.len() <= INVALID_DETAILS_BYTES {
                true => violations(validator, value, code),
                false => too_long_for_details(code),
            })
        })?
    }

    fn validator(&self, schema: &Value) -> Result<&Validator<TapeJson>, &str> {
        let compiled = self.validator.get_or_init(|| compile(schema));
        compiled.as_ref().map_err(String::as_str)
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

/// Compiles a schema without any access to files or the network.
fn compile(schema: &Value) -> Result<Validator<TapeJson>, String> {
    jsonschema::options_for()
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
        .should_validate_formats(false)
        .build(schema)
        .map_err(|error| error.to_string())
}

fn violations(validator: &Validator<TapeJson>, value: Node<'_>, code: ErrorCode) -> CallError {
    let details: Vec<_> = validator
        .iter_errors(value)
        .take(INVALID_DETAILS_MAX)
        .map(|error| {
            json!({
                "path": error.instance_path().as_str(),
                "keyword": error.kind().keyword(),
                "message": error.masked().to_string(),
            })
        })
        .collect();
    let message = match code {
        ErrorCode::InvalidInput => "the input does not match the schema; see details",
        _ => "the output does not match the schema; report it",
    };
    CallError::new(code, message).with_details(details.into())
}

/// To say what is wrong takes many times the bytes of what is.
fn too_long_for_details(code: ErrorCode) -> CallError {
    let message = match code {
        ErrorCode::InvalidInput => format!(
            "the input does not match the schema; where is said of inputs up to \
             {INVALID_DETAILS_BYTES} bytes"
        ),
        _ => "the output does not match the schema; report it".to_owned(),
    };
    CallError::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let check = Check::new(&schema);
            let compiled = compile(&schema).expect("it is a schema");
            let valid = Tape::look(b"null", None, |null| compiled.is_valid(null));
            let valid = valid.expect("JSON");
            if check.takes != Takes::Unknown {
                assert!(valid, "{schema}");
            }
            let code = ErrorCode::InvalidInput;
            let checked = check.check(&schema, b" null ", None, code);
            assert_eq!(checked.is_ok(), valid, "{schema}");
        }
        let usual = json!({"type": ["object", "null"], "properties": {"a": false}});
        assert_eq!(Check::new(&usual).takes, Takes::Null);
    }
}
