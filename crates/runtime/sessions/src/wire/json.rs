//! A JSON value out of CBOR, within bounds.
//!
//! Whoever sends the bytes is not believed: an array of a million nothings takes a byte each on the
//! way and many in memory. What an isolate counts before it sends is counted again here.

use std::cell::Cell;
use std::fmt;

use alknet_runtime::limits::JSON_BYTES;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};

/// A value no larger than [`JSON_BYTES`], counted as its text would be long.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Json(pub(crate) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(JSON_BYTES);
        Within(&left).deserialize(deserializer).map(Self)
    }
}

#[derive(Clone, Copy)]
struct Within<'a>(&'a Cell<usize>);

impl Within<'_> {
    fn take<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.unwrap_or(0));
        left.map(drop)
            .ok_or_else(|| E::custom("the value is larger than a value may be"))
    }
}

impl<'de> DeserializeSeed<'de> for Within<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Within<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.take(1)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.take(1)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.take(1)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.take(1)?;
        let number = Number::from_f64(value).ok_or_else(|| E::custom("no JSON number"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.take(value.len() + 1)?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.take(1)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.take(1)?;
        // What the sender says about its length is not believed either.
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.take(1)?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            self.take(name.len() + 1)?;
            let member = map.next_value_seed(self)?;
            members.insert(name, member);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::{pack, unpack};

    #[test]
    fn a_value_keeps_its_order_and_its_numbers() {
        let value = json!({ "b": [1, -1, 0.5, u64::MAX, null, true, ""], "a": { "é": {} } });
        let back: Json = unpack(&pack(&value).expect("CBOR")).expect("the same");
        assert_eq!(back.0.to_string(), value.to_string());
    }

    #[test]
    fn many_nothings_are_too_many() {
        for bomb in [
            [vec![0x9f], vec![0x80; 2 * JSON_BYTES], vec![0xff]].concat(),
            [vec![0x9f], vec![0xf6; 2 * JSON_BYTES], vec![0xff]].concat(),
            // It says that there are 2^60 items, and sends none.
            vec![0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0],
            // NaN.
            vec![0xf9, 0x7e, 0x00],
        ] {
            assert!(unpack::<Json>(&bomb).is_err());
        }
        let most = json!("x".repeat(JSON_BYTES - 1));
        assert!(unpack::<Json>(&pack(&most).expect("CBOR")).is_ok());
        let more = json!("x".repeat(JSON_BYTES));
        assert!(unpack::<Json>(&pack(&more).expect("CBOR")).is_err());
    }
}
