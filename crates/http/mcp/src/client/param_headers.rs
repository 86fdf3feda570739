//! Headers that repeat arguments of a call (`x-mcp-header` in a tool's schema). A server of the newest version may
//! require them for a proxy in front of it that does not read bodies.

use std::borrow::Cow;
use std::collections::HashSet;

use alknet_call::CallError;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue};
use rmcp::model::JsonObject;
use serde_json::Value;

use crate::client::tools::shown;
use crate::limits::PARAM_HEADER_BYTES_MAX;

const ANNOTATION: &str = "x-mcp-header";
const PREFIX: &str = "mcp-param-";
/// The text before and after an encoded value, which a header could not hold unencoded.
const ENCODED: (&str, &str) = ("=?base64?", "?=");

/// The part of a schema that names the arguments which become headers. It uses no more memory than the schema.
#[derive(Debug, Default)]
pub(super) struct ParamHeaders {
    /// The name of the header for this argument itself.
    name: Option<HeaderName>,
    members: Vec<(String, Self)>,
}

/// The headers of one request, which carries them to the transport.
#[derive(Clone, Debug)]
pub(super) struct ParamHeaderValues(pub(super) HeaderMap);

impl ParamHeaders {
    /// Reads the annotations of a tool's input schema.
    ///
    /// # Errors
    /// The reason why the protocol does not allow the tool.
    pub(super) fn from_schema(schema: &JsonObject) -> Result<Self, String> {
        if schema.contains_key(ANNOTATION) || is_misplaced(schema, true) {
            return Err(format!(
                "{ANNOTATION} stands where it names no argument of its input"
            ));
        }
        Self::from_properties(schema.get("properties"), &mut HashSet::new())
    }

    fn from_properties(
        properties: Option<&Value>,
        taken: &mut HashSet<HeaderName>,
    ) -> Result<Self, String> {
        let mut members = Vec::new();
        let properties = properties.and_then(Value::as_object);
        for (argument, schema) in properties.into_iter().flatten() {
            let mut one = Self::from_properties(schema.get("properties"), taken)?;
            if let Some(header) = schema.get(ANNOTATION) {
                one.name = Some(header_name(argument, header, schema, taken)?);
            }
            if one.name.is_some() || !one.members.is_empty() {
                members.push((argument.clone(), one));
            }
        }
        Ok(Self {
            name: None,
            members,
        })
    }

    /// The headers for these arguments.
    ///
    /// # Errors
    /// `INVALID_INPUT` if the headers are too long.
    pub(super) fn values(&self, arguments: &JsonObject) -> Result<HeaderMap, CallError> {
        let mut headers = HeaderMap::new();
        let mut left = PARAM_HEADER_BYTES_MAX;
        self.collect(arguments, &mut left, &mut headers)?;
        Ok(headers)
    }

    fn collect(
        &self,
        arguments: &JsonObject,
        left: &mut usize,
        headers: &mut HeaderMap,
    ) -> Result<(), CallError> {
        for (argument, one) in &self.members {
            let Some(value) = arguments.get(argument) else {
                continue;
            };
            if let (Some(name), Some(text)) = (&one.name, plain(value)) {
                let bytes = name.as_str().len() + text.len();
                *left = left.checked_sub(bytes).ok_or_else(too_long)?;
                let value = HeaderValue::try_from(encoded(&text).into_owned());
                let value = value.map_err(|error| CallError::internal(error.to_string()))?;
                headers.insert(name.clone(), value);
            }
            if let Value::Object(members) = value {
                one.collect(members, left, headers)?;
            }
        }
        Ok(())
    }
}

fn too_long() -> CallError {
    CallError::invalid_input(format!(
        "the server wants arguments as headers that have more than {PARAM_HEADER_BYTES_MAX} bytes together"
    ))
}

/// Whether an annotation is at another location than a property that is reached through properties alone.
fn is_misplaced(schema: &JsonObject, reached: bool) -> bool {
    let any = |map: &Value, reached: bool| match map {
        Value::Object(map) => map.values().any(|value| holds_misplaced(value, reached)),
        _ => false,
    };
    schema
        .iter()
        .any(|(keyword, value)| match keyword.as_str() {
            ANNOTATION => !reached,
            "properties" => any(value, reached),
            "$defs" | "definitions" | "dependentSchemas" | "patternProperties" => any(value, false),
            // These keywords hold values, not schemas.
            "default" | "const" | "enum" | "examples" => false,
            _ => holds_misplaced(value, false),
        })
}

fn holds_misplaced(value: &Value, reached: bool) -> bool {
    match value {
        Value::Object(schema) => is_misplaced(schema, reached),
        Value::Array(items) => items.iter().any(|item| holds_misplaced(item, false)),
        _ => false,
    }
}

fn header_name(
    argument: &str,
    header: &Value,
    schema: &Value,
    taken: &mut HashSet<HeaderName>,
) -> Result<HeaderName, String> {
    let invalid = |why: &str| format!("{ANNOTATION} of its argument '{}' {why}", shown(argument));
    let header = header.as_str().filter(|header| !header.is_empty());
    let header = header.ok_or_else(|| invalid("is no text"))?;
    let name = HeaderName::try_from(format!("{PREFIX}{header}"));
    let name = name.map_err(|_| invalid("is no name of a header"))?;
    let kind = schema.get("type").and_then(Value::as_str);
    if !matches!(kind, Some("string" | "integer" | "boolean")) {
        return Err(invalid("is not at a text, an integer or a boolean"));
    }
    // Names of headers ignore case, and two arguments with one header would hide each other.
    match taken.insert(name.clone()) {
        true => Ok(name),
        false => Err(invalid("is that of another one")),
    }
}

/// The text of a value as the body has it, but a string without its quotes.
fn plain(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(value) => Some(Cow::Owned(value.to_string())),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

fn encoded(text: &str) -> Cow<'_, str> {
    let (before, after) = ENCODED;
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = text.as_bytes();
    let is_visible = bytes.iter().all(|byte| (0x20..=0x7e).contains(byte));
    // A header loses blanks at its ends (RFC 9110 section 5.5).
    let has_blank_end = is_blank(bytes.first()) || is_blank(bytes.last());
    // The server would decode a value that looks encoded.
    let looks_encoded = text.starts_with(before) && text.ends_with(after);
    match is_visible && !has_blank_end && !looks_encoded {
        true => Cow::Borrowed(text),
        false => Cow::Owned(format!("{before}{}{after}", BASE64.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> JsonObject {
        match value {
            Value::Object(members) => members,
            other => panic!("{other} is no object"),
        }
    }

    fn param_headers(properties: Value) -> Result<ParamHeaders, String> {
        ParamHeaders::from_schema(&object(json!({"properties": properties})))
    }

    #[test]
    fn arguments_become_headers() {
        let headers = param_headers(json!({
            "region": {"type": "string", "x-mcp-header": "Region"},
            "text": {"type": "string"},
            "place": {"properties": {
                "floor": {"type": "integer", "x-mcp-header": "floor"},
                "inside": {"type": "boolean", "x-mcp-header": "inside"},
            }},
        }));
        let headers = headers.expect("headers");
        let arguments = json!({
            "region": "eu", "text": "long", "place": {"floor": -3, "inside": true},
        });
        let values = headers.values(&object(arguments)).expect("short ones");
        assert_eq!(values.len(), 3);
        assert_eq!(values["mcp-param-region"], "eu");
        assert_eq!(values["mcp-param-floor"], "-3");
        assert_eq!(values["mcp-param-inside"], "true");
        let values = headers.values(&object(json!({"region": null})));
        assert!(values.expect("no header").is_empty());
    }

    #[test]
    fn what_no_header_can_hold_is_encoded() {
        assert_eq!(encoded("Grüße"), "=?base64?R3LDvMOfZQ==?=");
        assert_eq!(encoded(" a"), "=?base64?IGE=?=");
        assert_eq!(encoded("a\r\nb: c"), "=?base64?YQ0KYjogYw==?=");
        assert_eq!(
            encoded("=?base64?YQ==?="),
            "=?base64?PT9iYXNlNjQ/WVE9PT89?="
        );
        assert_eq!(encoded("a b"), "a b");
        assert_eq!(encoded(""), "");
    }

    #[test]
    fn headers_have_a_length() {
        let headers =
            param_headers(json!({"a": {"type": "string", "x-mcp-header": "a"}})).expect("one");
        let with = |bytes: usize| headers.values(&object(json!({"a": "x".repeat(bytes)})));
        assert!(with(PARAM_HEADER_BYTES_MAX - PREFIX.len() - 1).is_ok());
        let refused = with(PARAM_HEADER_BYTES_MAX - PREFIX.len()).expect_err("one byte more");
        assert!(refused.message.contains("headers"), "{refused}");
    }

    #[test]
    fn tools_that_the_protocol_does_not_allow_say_why() {
        for properties in [
            json!({"a": {"type": "string", "x-mcp-header": ""}}),
            json!({"a": {"type": "string", "x-mcp-header": 7}}),
            json!({"a": {"type": "string", "x-mcp-header": "a b"}}),
            json!({"a": {"type": "number", "x-mcp-header": "a"}}),
            json!({"a": {"x-mcp-header": "a"}}),
            json!({
                "a": {"type": "string", "x-mcp-header": "a"},
                "b": {"type": "string", "x-mcp-header": "A"},
            }),
            json!({"a": {"items": {"type": "string", "x-mcp-header": "a"}}}),
            json!({"a": {"anyOf": [{"type": "string", "x-mcp-header": "a"}]}}),
        ] {
            let refused = param_headers(properties.clone()).map(|_| ());
            assert!(
                refused.is_err_and(|why| why.contains(ANNOTATION)),
                "{properties}"
            );
        }
        let root = object(json!({"x-mcp-header": "a"}));
        assert!(ParamHeaders::from_schema(&root).is_err());
        let value = json!({"a": {"type": "object", "default": {"x-mcp-header": 7}}});
        assert!(param_headers(value).is_ok());
    }
}
