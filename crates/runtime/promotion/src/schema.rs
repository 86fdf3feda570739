//! JSON Schemas: whether a value fits.

use alknet_call::limits::PATTERN_BYTES_MAX;
use jsonschema::PatternOptions;
use serde_json::Value;

/// Whether `value` fits `schema`; nothing is fetched for it.
///
/// # Errors
/// The first place that does not fit, or what is wrong with the schema.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let validator = jsonschema::options()
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
        .should_validate_formats(false)
        .build(schema)
        .map_err(|error| format!("the schema is none: {error}"))?;
    validator
        .validate(value)
        .map_err(|error| format!("{}: {error}", error.instance_path()))
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
