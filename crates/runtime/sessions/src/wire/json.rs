//! Reads a JSON value from CBOR: a worker's within limits, and the host's as it is.
//!
//! The node does not trust the worker: an array of a million nulls has a byte each in the frame and 72 bytes each in
//! memory. The isolate counts a value before it sends it, and the node counts it again here in the same unit.

use std::cell::Cell;
use std::fmt;

use alknet_runtime::limits::JSON_BYTES;
use alknet_runtime::weight::{self, VALUE};
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};

use crate::limits::VALUE_BYTES_MAX;

/// A value that takes no more memory than [`JSON_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Json(pub(crate) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(JSON_BYTES);
        JsonAllowance(&left).deserialize(deserializer).map(Self)
    }
}

/// A value of the host, which the worker trusts. Names of its members have any length: `serde_json`'s own reader asks
/// for the name of a member as a `str`, and ciborium has 4 KiB for one. The items go straight into the value. An
/// untagged enum would make a second tree of the whole value first, outside the memory that the script is granted.
#[derive(Debug, PartialEq)]
pub(crate) struct LongNamed(Value);

impl LongNamed {
    pub(crate) fn into_value(self) -> Value {
        self.0
    }
}

impl<'de> Deserialize<'de> for LongNamed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(HOST_VALUE_BYTES_MAX);
        JsonAllowance(&left).deserialize(deserializer).map(Self)
    }
}

/// More memory than any value in a frame of the host takes: a value has at least one byte there, and a byte of text no
/// more than [`VALUE`] in memory.
const HOST_VALUE_BYTES_MAX: usize = VALUE_BYTES_MAX as usize * VALUE;

#[derive(Clone, Copy)]
struct JsonAllowance<'a>(&'a Cell<usize>);

impl JsonAllowance<'_> {
    /// How many of the `declared` values there is room for.
    fn room(self, declared: Option<usize>) -> usize {
        declared.unwrap_or(0).min(self.0.get() / VALUE)
    }

    fn take<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.unwrap_or(0));
        left.map(drop)
            .ok_or_else(|| E::custom("the value is larger than a value may be"))
    }
}

impl<'de> DeserializeSeed<'de> for JsonAllowance<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonAllowance<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.take(VALUE)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.take(VALUE)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.take(VALUE)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.take(VALUE)?;
        let number = Number::from_f64(value).ok_or_else(|| E::custom("no JSON number"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.take(VALUE + weight::text(value.as_bytes()))?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.take(VALUE)?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.take(VALUE)?;
        // The capacity is the declared number, so that no more is allocated than counts; a number beyond the
        // remaining room is ignored.
        let mut items = Vec::with_capacity(self.room(seq.size_hint()));
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.take(VALUE)?;
        // A member counts as two values, because its name is one too.
        let mut members = Map::with_capacity(self.room(map.size_hint()) / 2);
        while let Some(name) = map.next_key::<String>()? {
            self.take(VALUE + weight::text(name.as_bytes()))?;
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
        let fits = |value: &Value| unpack::<Json>(&pack(value).expect("CBOR")).is_ok();
        assert!(fits(&json!("x".repeat(JSON_BYTES - VALUE))));
        assert!(!fits(&json!("x".repeat(JSON_BYTES - VALUE + 1))));
        let most = JSON_BYTES / VALUE - 1;
        assert!(fits(&json!(vec![Value::Null; most])));
        assert!(!fits(&json!(vec![Value::Null; most + 1])));
    }
}
