//! JSON Schemas: whether a value fits.

use alknet_call::{SchemaCheckError, SchemaError, ValueSchema};
use alknet_core::PeerId;
use serde_json::Value;

/// Why a value is not known to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SchemaMismatch {
    /// It was not looked at: as many checks of the author, or of all, run and wait as may.
    Busy(String),
    /// The first place that does not fit, or what is wrong with the schema.
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

/// Whether `value` fits the `schema` that `author` brought, in whose share it is checked; nothing is fetched for it.
///
/// # Errors
/// It does not fit, or it was not looked at.
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
