//! Finds what schemas mark as secret, and redacts it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::OpError;
use crate::limits::JSON_DEPTH;

/// The keyword that marks what no record may contain.
const SECRET: &str = "x-secret";
/// The text in the place of a secret.
pub const REDACTED: &str = "[secret]";

/// The schemas of one operation.
pub trait OperationSchemas: fmt::Debug + Send + Sync {
    /// The schema of the input.
    fn input(&self) -> &Value;

    /// The schema of the output, or of one item.
    fn output(&self) -> &Value;

    /// The codes that the operation declares, each with the schema of its details.
    fn errors(&self) -> Vec<(&str, &Value)>;
}

/// The schemas of an operation that marks secrets; `None` inside for one that marks nothing.
#[derive(Clone, Debug, Default)]
pub struct SecretMarks(Option<Arc<dyn OperationSchemas>>);

#[derive(Debug)]
struct OwnedSchemas {
    input: Value,
    output: Value,
    errors: BTreeMap<String, Value>,
}

impl OperationSchemas for OwnedSchemas {
    fn input(&self) -> &Value {
        &self.input
    }

    fn output(&self) -> &Value {
        &self.output
    }

    fn errors(&self) -> Vec<(&str, &Value)> {
        let errors = self.errors.iter();
        errors
            .map(|(code, schema)| (code.as_str(), schema))
            .collect()
    }
}

impl SecretMarks {
    /// The marks of an operation, with copies of these schemas; `errors` are the codes that it declares, each with
    /// the schema of its details.
    pub fn from_schemas<'s>(
        input: &Value,
        output: &Value,
        errors: impl IntoIterator<Item = (&'s str, &'s Value)>,
    ) -> Self {
        let owned = |(code, schema): (&str, &Value)| (code.to_owned(), schema.clone());
        Self::within(Arc::new(OwnedSchemas {
            input: input.clone(),
            output: output.clone(),
            errors: errors.into_iter().map(owned).collect(),
        }))
    }

    /// The marks of an operation whose schemas are shared, so that a record of many calls has no further copies.
    #[must_use]
    pub fn within(schemas: Arc<dyn OperationSchemas>) -> Self {
        let own = [schemas.input(), schemas.output()].into_iter().any(marks);
        let any = own
            || schemas
                .errors()
                .into_iter()
                .any(|(_, schema)| marks(schema));
        Self(any.then_some(schemas))
    }

    /// Redacts the secrets of an input.
    pub fn redact_input(&self, input: &mut Value) {
        if let Some(schemas) = &self.0 {
            redact(schemas.input(), input);
        }
    }

    /// Redacts the secrets of an output, or of one item.
    pub fn redact_output(&self, output: &mut Value) {
        if let Some(schemas) = &self.0 {
            redact(schemas.output(), output);
        }
    }

    /// Redacts the secrets of an error. If the operation marks anything, the message is redacted, because it may
    /// quote a secret, and details without a schema are removed.
    pub fn redact_error(&self, error: &mut OpError) {
        let Some(schemas) = &self.0 else { return };
        REDACTED.clone_into(&mut error.message);
        let declared = schemas.errors();
        let own = declared.iter().find(|(code, _)| *code == error.code);
        match own {
            Some((_, schema)) => redact(schema, &mut error.details),
            None => *error.details = Value::Null,
        }
    }
}

/// Replaces everything that `schema` marks with `"x-secret": true` by [`REDACTED`].
pub fn redact(schema: &Value, value: &mut Value) {
    if marks(schema) {
        let mut meet = |secret: &mut Value| *secret = Value::from(REDACTED);
        SecretWalk::new(schema, &mut meet).walk(schema, value, JSON_DEPTH);
    }
}

/// Whether `value` contains something that `schema` marks as secret and that is not redacted.
#[must_use]
pub fn tells(schema: &Value, value: &Value) -> bool {
    let mut found = false;
    // Null and a redacted value reveal nothing.
    let mut meet = |secret: &mut Value| found |= !secret.is_null() && *secret != REDACTED;
    if marks(schema) {
        // The walk may change its value, so it gets a copy here.
        SecretWalk::new(schema, &mut meet).walk(schema, &mut value.clone(), JSON_DEPTH);
    }
    found
}

/// Whether the schema marks anything.
fn marks(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(marks),
        Value::Object(members) => {
            members.get(SECRET) == Some(&Value::Bool(true)) || members.values().any(marks)
        }
        _ => false,
    }
}

/// Calls a function for each part of a value that is marked. A schema that nests deeper than values may, takes too
/// many steps, or refers to something outside itself marks everything, because authors write schemas too.
struct SecretWalk<'w> {
    root: &'w Value,
    steps: usize,
    meet: &'w mut dyn FnMut(&mut Value),
}

/// The most steps of one walk: a schema may refer to itself many times.
const STEPS_MAX: usize = 1_000_000;

impl<'w> SecretWalk<'w> {
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
        let Some(named) = referenced_schemas(self.root, schema) else {
            return (self.meet)(value);
        };
        for also in applied(schema).chain(named) {
            self.walk(also, value, left);
        }
        match value {
            Value::Array(items) => {
                for (n, item) in items.iter_mut().enumerate() {
                    for schema in of_item(schema, n) {
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

/// The schemas that apply to the same value. The walk does not check which of several schemas a value matches: what
/// one of them marks is secret.
fn applied(schema: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let lists = ["allOf", "anyOf", "oneOf"].into_iter();
    let lists = lists.filter_map(|word| schema.get(word)?.as_array());
    let single = ["if", "then", "else", "not"].into_iter();
    let single = single.filter_map(|word| schema.get(word));
    let dependent = schema.get("dependentSchemas").and_then(Value::as_object);
    let dependent = dependent.into_iter().flat_map(Map::values);
    lists.flatten().chain(single).chain(dependent)
}

/// The schemas that this one refers to; `None` if one of them is missing.
fn referenced_schemas<'s>(root: &'s Value, schema: &Map<String, Value>) -> Option<Vec<&'s Value>> {
    let words = ["$ref", "$dynamicRef"].into_iter();
    let names = words.filter_map(|word| schema.get(word));
    let found = names.map(|name| root.pointer(name.as_str()?.strip_prefix('#')?));
    found.collect()
}

/// The schemas of the item at this index.
fn of_item(schema: &Map<String, Value>, n: usize) -> impl Iterator<Item = &Value> {
    let first = schema.get("prefixItems").and_then(Value::as_array);
    let own = first.and_then(|first| first.get(n));
    let also = ["contains", "unevaluatedItems"].into_iter();
    let also = also.filter_map(|word| schema.get(word));
    // `items` is for the items beyond `prefixItems` (JSON Schema Core, section 10.3.1.2).
    own.or_else(|| schema.get("items")).into_iter().chain(also)
}

/// The schemas of a member: its own, or the one for all other members.
fn of_member<'s>(schema: &'s Map<String, Value>, name: &str) -> Vec<&'s Value> {
    let own = schema.get("properties").and_then(|all| all.get(name));
    // Whether a pattern matches is not checked either.
    let patterns = schema.get("patternProperties").and_then(Value::as_object);
    let patterns = patterns.into_iter().flat_map(Map::values);
    let other = || schema.get("additionalProperties");
    let left = schema.get("unevaluatedProperties");
    // This schema is for members without a schema of their own (JSON Schema Core, section 10.3.2.3).
    let single = own.or_else(other).into_iter().chain(left);
    single.chain(patterns).collect()
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
        let marked = json!({ "a": { "x-secret": true } });
        let schema = json!({ "$ref": "#", "properties": marked });
        assert_eq!(redacted(&schema, json!("a")), json!("[secret]"));
        let twice = json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }], "properties": marked });
        assert_eq!(redacted(&twice, json!("a")), json!("[secret]"));
        // Without anything secret nothing has to be looked for.
        assert_eq!(redacted(&json!({ "$ref": "#" }), json!("a")), json!("a"));
        let schema = json!({ "properties": { "a": { "$ref": "#" }, "b": { "x-secret": true } } });
        let value = json!({ "a": { "a": { "b": 1 } } });
        assert_eq!(
            redacted(&schema, value),
            json!({ "a": { "a": { "b": "[secret]" } } })
        );
    }

    #[test]
    fn a_schema_that_is_elsewhere_hides_what_it_may_mark() {
        for name in ["#anchor", "https://example.org/login", "#/$defs/none"] {
            let schema = json!({ "properties": {
                "a": { "$ref": name }, "b": { "x-secret": true }, "c": {},
            } });
            let clean = redacted(&schema, json!({ "a": { "pin": 1 }, "b": 2, "c": 3 }));
            assert_eq!(clean, json!({ "a": "[secret]", "b": "[secret]", "c": 3 }));
        }
    }

    #[test]
    fn an_error_keeps_what_its_schema_shows() {
        let secret = json!({ "properties": { "pin": { "x-secret": true } } });
        let plain = json!({});
        let marks = SecretMarks::from_schemas(
            &secret,
            &plain,
            [("WRONG_PIN", &secret), ("JAMMED", &plain)],
        );
        let told = |marks: &SecretMarks, code: &str| {
            let mut error = OpError::new(code, "1234 is wrong");
            *error.details = json!({ "pin": "1234", "tries": 2 });
            marks.redact_error(&mut error);
            (error.code.clone(), error.message, *error.details)
        };
        let (code, message, details) = told(&marks, "WRONG_PIN");
        assert_eq!((code.as_str(), message.as_str()), ("WRONG_PIN", REDACTED));
        assert_eq!(details, json!({ "pin": REDACTED, "tries": 2 }));
        assert_eq!(told(&marks, "INVALID_INPUT").2, Value::Null);
        let open = SecretMarks::from_schemas(&plain, &plain, [("WRONG_PIN", &plain)]);
        assert_eq!(told(&open, "WRONG_PIN").1, "1234 is wrong");
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
