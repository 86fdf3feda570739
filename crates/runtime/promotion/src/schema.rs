//! Checks values against JSON Schemas.

use alknet_call::{SchemaCheckError, SchemaError, ValueSchema};
use alknet_core::PeerId;
use serde_json::Value;

/// The reason why a value is not known to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SchemaMismatch {
    /// The value was not checked: the most checks of the author, or of all authors, are running and waiting.
    Busy(String),
    /// The first location that does not match, or the fault of the schema.
    No(String),
}

impl From<SchemaError> for SchemaMismatch {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Busy => Self::Busy(error.to_string()),
            other => Self::No(format!("the schema is invalid: {other}")),
        }
    }
}

impl From<SchemaCheckError> for SchemaMismatch {
    fn from(error: SchemaCheckError) -> Self {
        match error {
            SchemaCheckError::Busy => Self::Busy(error.to_string()),
            other => Self::No(other.to_string()),
        }
    }
}

/// Whether `value` matches the author's `schema`. The check counts in the share of `author`, and fetches nothing.
///
/// # Errors
/// The value does not match, or it was not checked.
pub(crate) fn check(schema: &Value, value: &Value, author: &PeerId) -> Result<(), SchemaMismatch> {
    Ok(ValueSchema::of_peer(schema, Some(author))?.validate(value)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_are_checked_without_fetching() {
        let author: PeerId = "ada".parse().expect("a name");
        let fits = |schema: Value, value: Value| check(&schema, &value, &author).is_ok();
        assert!(fits(json!({ "type": "number" }), json!(1)));
        assert!(!fits(json!({ "type": "number" }), json!("1")));
        assert!(!fits(json!({ "$ref": "http://127.0.0.1/x" }), json!(1)));
        assert!(!fits(json!({ "type": "nonsense" }), json!(1)));
    }

    /// A schema that is not valid is the author's mistake, and a full queue is not.
    #[test]
    fn a_full_queue_and_an_invalid_value_give_different_errors() {
        assert!(matches!(
            SchemaMismatch::from(SchemaError::Busy),
            SchemaMismatch::Busy(_)
        ));
        assert!(matches!(
            SchemaMismatch::from(SchemaCheckError::Busy),
            SchemaMismatch::Busy(_)
        ));
        assert!(matches!(
            SchemaMismatch::from(SchemaError::TooMuch("x")),
            SchemaMismatch::No(_)
        ));
        assert!(matches!(
            SchemaMismatch::from(SchemaCheckError::TooMuch),
            SchemaMismatch::No(_)
        ));
    }
}
