//! JSON Schemas: whether a value fits.

use alknet_call::Schema;
use serde_json::Value;

/// Whether `value` fits `schema`; nothing is fetched for it.
///
/// # Errors
/// The first place that does not fit, or what is wrong with the schema.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let schema = Schema::new(schema).map_err(|error| format!("the schema is none: {error}"))?;
    schema.validate(value).map_err(|misfit| misfit.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_are_checked_without_fetching() {
        assert!(check(&json!({ "type": "number" }), &json!(1)).is_ok());
        assert!(check(&json!({ "type": "number" }), &json!("1")).is_err());
        assert!(check(&json!({ "$ref": "http://127.0.0.1/x" }), &json!(1)).is_err());
        assert!(check(&json!({ "type": "nonsense" }), &json!(1)).is_err());
    }
}
