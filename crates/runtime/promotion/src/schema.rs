//! JSON Schemas: whether a value fits, and which parts of it are secret.

use alknet_call::limits::PATTERN_BYTES_MAX;
use jsonschema::PatternOptions;
use serde_json::{Map, Value};

use crate::limits::NESTING_MAX;

/// The keyword that marks what no record may hold.
const SECRET: &str = "x-secret";
/// What stands in the place of a secret.
pub const REDACTED: &str = "[secret]";

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

/// Puts [`REDACTED`] in the place of everything that `schema` marks by `"x-secret": true`.
pub fn redact(schema: &Value, value: &mut Value) {
    let mut meet = |secret: &mut Value| *secret = Value::from(REDACTED);
    Walk::new(schema, &mut meet).walk(schema, value, NESTING_MAX);
}

/// Whether `value` holds something that `schema` marks as secret and that is not redacted.
#[must_use]
pub(crate) fn tells(schema: &Value, value: &Value) -> bool {
    let mut found = false;
    let mut meet = |secret: &mut Value| found |= !secret.is_null() && *secret != REDACTED;
    Walk::new(schema, &mut meet).walk(schema, &mut value.clone(), NESTING_MAX);
    found
}

/// Meets every part of a value that is marked. A schema that is deeper than values may be, or that
/// takes too many steps, marks everything: strangers write schemas as well.
struct Walk<'w> {
    root: &'w Value,
    steps: usize,
    meet: &'w mut dyn FnMut(&mut Value),
}

/// Steps of one walk: a schema may refer to itself many times over.
const STEPS_MAX: usize = 1_000_000;

impl<'w> Walk<'w> {
    fn new(root: &'w Value, meet: &'w mut dyn FnMut(&mut Value)) -> Self {
        Self {
            root,
            steps: STEPS_MAX,
            meet,
        }
    }

    fn walk(&mut self, schema: &Value, value: &mut Value, left: usize) {
        let Some(schema) = schema.as_object() else {
            return;
        };
        if schema.get(SECRET) == Some(&Value::Bool(true)) {
            return (self.meet)(value);
        }
        let (Some(left), Some(steps)) = (left.checked_sub(1), self.steps.checked_sub(1)) else {
            return (self.meet)(value);
        };
        self.steps = steps;
        for also in applied(self.root, schema) {
            self.walk(also, value, left);
        }
        match value {
            Value::Array(items) => {
                let first = schema.get("prefixItems").and_then(Value::as_array);
                for (n, item) in items.iter_mut().enumerate() {
                    let own = first.and_then(|first| first.get(n));
                    if let Some(schema) = own.or_else(|| schema.get("items")) {
                        self.walk(schema, item, left);
                    }
                }
            }
            Value::Object(members) => {
                for (name, member) in members.iter_mut() {
                    for schema in of_member(schema, name) {
                        self.walk(schema, member, left);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The schemas that hold for the same value. Which of several a value takes is not asked: what one of
/// them calls secret is secret.
fn applied<'s>(root: &'s Value, schema: &'s Map<String, Value>) -> impl Iterator<Item = &'s Value> {
    let lists = ["allOf", "anyOf", "oneOf"].into_iter();
    let lists = lists.filter_map(|word| schema.get(word)?.as_array());
    let single = ["then", "else"]
        .into_iter()
        .filter_map(|word| schema.get(word));
    let named = schema.get("$ref").and_then(Value::as_str);
    let named = named.and_then(|name| root.pointer(name.strip_prefix('#')?));
    lists.flatten().chain(single).chain(named)
}

/// The schemas of a member: its own, or that of every other.
fn of_member<'s>(schema: &'s Map<String, Value>, name: &str) -> Vec<&'s Value> {
    let own = schema.get("properties").and_then(|all| all.get(name));
    // Whether a pattern fits is not asked either.
    let patterns = schema.get("patternProperties").and_then(Value::as_object);
    let patterns = patterns.into_iter().flat_map(Map::values);
    let other = || schema.get("additionalProperties");
    own.or_else(other).into_iter().chain(patterns).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn redacted(schema: &Value, mut value: Value) -> Value {
        redact(schema, &mut value);
        value
    }

    #[test]
    fn secrets_are_found_wherever_a_schema_says_so() {
        let secret = json!({ "type": "string", "x-secret": true });
        let schema = json!({
            "$defs": { "login": { "properties": { "password": secret } } },
            "properties": {
                "name": {},
                "token": secret,
                "list": { "items": secret },
                "pair": { "prefixItems": [{}, secret] },
                "login": { "$ref": "#/$defs/login" },
                "either": { "anyOf": [{}, { "properties": { "key": secret } }] },
                "open": { "x-secret": false },
            },
            "additionalProperties": { "properties": { "pin": secret } },
        });
        let value = json!({
            "name": "a", "token": "b", "list": ["c", 1], "pair": ["d", "e", "f"],
            "login": { "user": "g", "password": { "deep": "h" } },
            "either": { "key": "i" }, "open": "j", "more": { "pin": 1, "x": 2 },
        });
        assert!(tells(&schema, &value));
        let clean = redacted(&schema, value);
        assert_eq!(
            clean,
            json!({
                "name": "a", "token": "[secret]", "list": ["[secret]", "[secret]"],
                "pair": ["d", "[secret]", "f"],
                "login": { "user": "g", "password": "[secret]" },
                "either": { "key": "[secret]" }, "open": "j", "more": { "pin": "[secret]", "x": 2 },
            })
        );
        assert!(!tells(&schema, &clean));
        assert_eq!(
            redacted(&json!({ "x-secret": true }), json!([1])),
            json!("[secret]")
        );
    }

    #[test]
    fn a_schema_without_end_ends() {
        let schema = json!({ "$ref": "#" });
        assert_eq!(redacted(&schema, json!("a")), json!("[secret]"));
        let twice = json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }] });
        assert_eq!(redacted(&twice, json!("a")), json!("[secret]"));
        let schema = json!({ "properties": { "a": { "$ref": "#" }, "b": { "x-secret": true } } });
        let value = json!({ "a": { "a": { "b": 1 } } });
        assert_eq!(
            redacted(&schema, value),
            json!({ "a": { "a": { "b": "[secret]" } } })
        );
    }

    #[test]
    fn schemas_are_checked_without_fetching() {
        assert!(check(&json!({ "type": "number" }), &json!(1)).is_ok());
        assert!(check(&json!({ "type": "number" }), &json!("1")).is_err());
        assert!(check(&json!({ "$ref": "http://127.0.0.1/x" }), &json!(1)).is_err());
        assert!(check(&json!({ "type": "nonsense" }), &json!(1)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_secret_is_left(names in proptest::collection::vec("[a-c]", 1..6), last in any::<i64>()) {
            let mut schema = json!({ "x-secret": true });
            let mut value = json!(last);
            for name in names {
                schema = json!({ "properties": { name.clone(): schema } });
                value = json!({ name: value });
            }
            let clean = redacted(&schema, value);
            prop_assert!(!tells(&schema, &clean));
        }
    }
}
