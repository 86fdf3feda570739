//! A schema from its text, refusing every text that two readers could understand in two ways.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Result;
use crate::error::{TypedefError, short};
use crate::limits::SchemaLimits;

/// Reads the text of a schema. It refuses a member that occurs twice in an object, where other readers keep the last
/// one silently.
///
/// # Errors
/// The text is too long, is not JSON, or names a member twice.
pub fn parse(text: &[u8], limits: &SchemaLimits) -> Result<Value> {
    // Before parsing, which would allocate memory for all of it.
    if text.len() as u64 > limits.schema_bytes {
        let max = limits.schema_bytes;
        return Err(TypedefError::limit("bytes of a schema", max));
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = UniqueMembersJson.deserialize(&mut reader);
    let whole = read.and_then(|value| reader.end().map(|()| value));
    whole.map_err(|error| TypedefError::schema("", short(&format!("no JSON: {error}"))))
}

/// Any JSON whose objects name each member once. The reader under it bounds the depth.
struct UniqueMembersJson;

impl<'de> DeserializeSeed<'de> for UniqueMembersJson {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> std::result::Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueMembersJson {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Self)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let value = access.next_value_seed(Self)?;
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("'{name}' stands twice")));
            }
            members.insert(name, value);
        }
        Ok(members.into())
    }
}
