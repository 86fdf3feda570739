//! JSON as TUF signs it: strict reading, and the canonical form of OLPC that all implementations hash and sign.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A value without duplicate names and without fractions.
///
/// The canonical form has neither, and readers disagree about which of two members with one name counts.
pub(crate) struct StrictJson(pub(crate) Value);

impl<'de> Deserialize<'de> for StrictJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = StrictJson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without fractions and without duplicate names")
    }

    fn visit_unit<E>(self) -> Result<StrictJson, E> {
        Ok(StrictJson(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<StrictJson, E> {
        Ok(StrictJson(Value::Bool(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<StrictJson, E> {
        Ok(StrictJson(Value::Number(Number::from(value))))
    }

    fn visit_i64<E>(self, value: i64) -> Result<StrictJson, E> {
        Ok(StrictJson(Value::Number(Number::from(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<StrictJson, E> {
        Ok(StrictJson(Value::String(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<StrictJson, E> {
        Ok(StrictJson(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<StrictJson, A::Error> {
        let mut list = Vec::new();
        while let Some(StrictJson(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(StrictJson(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<StrictJson, A::Error> {
        let mut map = Map::new();
        while let Some((name, StrictJson(value))) = members.next_entry::<String, _>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!("'{name}' is there twice")));
            }
            map.insert(name, value);
        }
        Ok(StrictJson(Value::Object(map)))
    }
}

/// The canonical form: names sorted by code point, no white space, and only `"` and `\` escaped.
///
/// Fractions have no canonical form. They are written as JSON writes them, which no signature of another
/// implementation matches; documents of other signers with fractions are refused before.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend(b"null"),
        Value::Bool(true) => out.extend(b"true"),
        Value::Bool(false) => out.extend(b"false"),
        Value::Number(number) => out.extend(number.to_string().bytes()),
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // UTF-8 sorts like code points, so the order of bytes is the order of the other implementations.
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| name.as_bytes());
            out.push(b'{');
            for (at, (name, value)) in sorted.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_text(name, out);
                out.push(b':');
                write(value, out);
            }
            out.push(b'}');
        }
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        // Control characters stay as they are: the canonical form is not JSON there, and is never parsed again.
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        let read = serde_json::from_str::<StrictJson>(text);
        read.map(|strict| strict.0)
            .map_err(|error| error.to_string())
    }

    /// The expected bytes are those of `securesystemslib.formats.encode_canonical`.
    #[test]
    fn the_canonical_form_is_the_one_of_the_other_implementations() {
        let value = json!({ "b": [1, -2, true, null], "a": "q\"\\\n\u{e9}", "": {}, "\u{e9}": [] });
        let expected = "{\"\":{},\"a\":\"q\\\"\\\\\n\u{e9}\",\"b\":[1,-2,true,null],\"\u{e9}\":[]}";
        assert_eq!(canonical(&value), expected.as_bytes());
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        let error = read(r#"{"keys":{"a":1,"b":2,"a":3}}"#).expect_err("a duplicate");
        assert!(error.starts_with("'a' is there twice"), "{error}");
    }

    #[test]
    fn a_fraction_is_refused() {
        for text in ["1.5", "[1e3]", "123456789012345678901234567890"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(read("[1,-1]"), Ok(json!([1, -1])));
    }
}
