//! JSON Schemas: whether a value fits.

use alknet_call::{Schema, SchemaError};
use alknet_core::PeerId;
use serde_json::Value;

/// Whether `value` fits the `schema` that `author` brought, in whose share it is checked; nothing is fetched for it.
///
/// # Errors
/// The first place that does not fit, what is wrong with the schema, or that the share is used up.
pub(crate) fn check(schema: &Value, value: &Value, author: &PeerId) -> Result<(), String> {
    let schema = Schema::of_peer(schema, Some(author)).map_err(|error| match error {
        SchemaError::Busy => error.to_string(),
        other => format!("the schema is none: {other}"),
    })?;
    schema.validate(value).map_err(|misfit| misfit.to_string())
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
}
