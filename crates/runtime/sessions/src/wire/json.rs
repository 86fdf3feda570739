//! Reads a JSON value from CBOR: a worker's within limits, and the host's within the memory of a worker.
//!
//! The node does not trust the worker: an array of a million nulls has a byte each in the frame and 72 bytes each in
//! memory. The isolate counts a value before it sends it, and the node counts it again here in the same unit.
//!
//! The worker trusts the host, but the host passes on what other servers answer: a list in lists has two bytes of text
//! for each, and a list that grows as `Vec` does has room for four items. Such a tree would take the worker's memory,
//! with the states of all services in it, so the worker counts what a tree really takes.

use std::cell::Cell;
use std::fmt;

use alknet_runtime::limits::JSON_BYTES;
use alknet_runtime::weight::{self, VALUE};
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value};

use crate::limits::TREE_BYTES_MAX;

/// A value that weighs no more than [`JSON_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Json(pub(crate) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(JSON_BYTES);
        let allowance = JsonAllowance {
            left: &left,
            unit: AllowanceUnit::Weight,
        };
        allowance.deserialize(deserializer).map(Self)
    }
}

/// A value of the host, which takes no more memory than [`TREE_BYTES_MAX`]. Names of its members have any length:
/// `serde_json`'s own reader asks for the name of a member as a `str`, and ciborium has 4 KiB for one. The items go
/// straight into the value. An untagged enum would make a second tree of the whole value first, outside the memory
/// that the script is granted.
#[derive(Debug, PartialEq)]
pub(crate) struct LongNamed(Value);

impl LongNamed {
    pub(crate) fn into_value(self) -> Value {
        self.0
    }
}

impl<'de> Deserialize<'de> for LongNamed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(TREE_BYTES_MAX);
        let allowance = JsonAllowance {
            left: &left,
            unit: AllowanceUnit::Memory,
        };
        allowance.deserialize(deserializer).map(Self)
    }
}

/// What an allocator adds to a block: its own data and the padding to a size of its classes.
const BLOCK_EXTRA_BYTES: usize = 16;
/// Above so many bytes of padding a block has whole pages of its own.
const BLOCK_PADDING_MAX: usize = 4 << 10;
/// A list with a larger block is not copied into one of its exact size: both would be there at once, and the pages of
/// the larger one that no item needs take no memory.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// The memory of a block with so many bytes.
const fn block(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let padding = bytes / 8;
    let padding = if padding > BLOCK_PADDING_MAX {
        BLOCK_PADDING_MAX
    } else {
        padding
    };
    bytes.saturating_add(padding + BLOCK_EXTRA_BYTES)
}

/// The memory of the members of an object: a table of their places, and the members.
fn object(members: usize) -> usize {
    if members == 0 {
        return 0;
    }
    // The table has at least four slots, of which one in eight stays free, and their number is a power of two.
    let slots = members.saturating_mul(8).div_ceil(7);
    let slots = slots.max(4).next_power_of_two();
    let slot = size_of::<usize>() + 1;
    let member = size_of::<(u64, String, Value)>();
    block(slots.saturating_mul(slot) + 2 * size_of::<usize>())
        + block(members.saturating_mul(member))
}

/// What an allowance counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AllowanceUnit {
    /// The memory that the tree takes, with the spare room of its lists.
    Memory,
    /// The [`weight`], in which the worker counts the same value.
    Weight,
}

#[derive(Clone, Copy)]
struct JsonAllowance<'a> {
    left: &'a Cell<usize>,
    unit: AllowanceUnit,
}

impl JsonAllowance<'_> {
    /// How many of the `declared` values there is room for, if each item is as many of them.
    fn capacity_for(self, declared: Option<usize>, values: usize) -> usize {
        let most = self.left.get() / (values * VALUE);
        declared.unwrap_or(0).min(most)
    }

    fn take<E: Error>(self, unit: AllowanceUnit, bytes: usize) -> Result<(), E> {
        if unit != self.unit {
            return Ok(());
        }
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.unwrap_or(0));
        left.map(drop)
            .ok_or_else(|| E::custom("the value is larger than a value may be"))
    }

    fn give_back(self, bytes: usize) {
        if self.unit == AllowanceUnit::Memory {
            self.left.set(self.left.get().saturating_add(bytes));
        }
    }

    /// Takes what a value weighs beside its content. In memory, it has its place in the list that it is in.
    fn value<E: Error>(self) -> Result<(), E> {
        self.take(AllowanceUnit::Weight, VALUE)
    }

    fn text<E: Error>(self, text: &str) -> Result<(), E> {
        self.take(AllowanceUnit::Weight, weight::text(text.as_bytes()))?;
        self.take(AllowanceUnit::Memory, block(text.len()))
    }
}

/// A list that is being read. A `Vec` that grows by itself begins with room for four items.
struct ReadItems<'a, T> {
    items: Vec<T>,
    allowance: JsonAllowance<'a>,
}

impl<'a, T> ReadItems<'a, T> {
    /// With room for `count` items.
    fn new<E: Error>(allowance: JsonAllowance<'a>, count: usize) -> Result<Self, E> {
        let mut new = Self {
            items: Vec::new(),
            allowance,
        };
        new.grow(count)?;
        Ok(new)
    }

    fn bytes(count: usize) -> usize {
        block(count.saturating_mul(size_of::<T>()))
    }

    fn grow<E: Error>(&mut self, count: usize) -> Result<(), E> {
        let more = Self::bytes(count).saturating_sub(Self::bytes(self.items.capacity()));
        self.allowance.take(AllowanceUnit::Memory, more)?;
        self.items.reserve_exact(count - self.items.len());
        Ok(())
    }

    fn push<E: Error>(&mut self, item: T) -> Result<(), E> {
        let count = self.items.len();
        if count == self.items.capacity() {
            self.grow((count * 2).max(1))?;
        }
        self.items.push(item);
        Ok(())
    }

    /// The items in a list without spare room, unless it is long.
    fn into_fitted(mut self) -> Vec<T> {
        let (count, capacity) = (self.items.len(), self.items.capacity());
        if count == capacity || Self::bytes(capacity) > COPIED_BYTES_MAX {
            return self.items;
        }
        // Allocators leave a block that shrinks by less than half as it is, so the items go into another one.
        let mut fitted = Vec::with_capacity(count);
        fitted.append(&mut self.items);
        let spare = Self::bytes(capacity).saturating_sub(Self::bytes(count));
        self.allowance.give_back(spare);
        fitted
    }

    /// Frees the list.
    fn into_each(self, mut each: impl FnMut(T)) {
        let bytes = Self::bytes(self.items.capacity());
        self.items.into_iter().for_each(&mut each);
        self.allowance.give_back(bytes);
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
        self.value()?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.value()?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.value()?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.value()?;
        let number = Number::from_f64(value).ok_or_else(|| E::custom("no JSON number"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.value()?;
        self.text(&value)?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.value()?;
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.value()?;
        // The capacity is the declared number, so that no more is allocated than counts; a number beyond the
        // remaining room is ignored.
        let mut items = ReadItems::new(self, self.capacity_for(seq.size_hint(), 1))?;
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item)?;
        }
        Ok(Value::Array(items.into_fitted()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.value()?;
        // A `Map` that grows by itself begins with room for three members. A member counts as two values, because its
        // name is one too.
        let mut read = ReadItems::new(self, self.capacity_for(map.size_hint(), 2))?;
        while let Some(name) = map.next_key::<String>()? {
            self.value()?;
            self.text(&name)?;
            let member = map.next_value_seed(self)?;
            read.push((name, member))?;
        }
        let count = read.items.len();
        self.take(AllowanceUnit::Memory, object(count))?;
        let mut members = Map::with_capacity(count);
        read.into_each(|(name, member)| drop(members.insert(name, member)));
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::{JsonText, pack, unpack};

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

    /// A list of these texts, as the host sends the answer of another server.
    fn listed(unit: &str, count: usize) -> Vec<u8> {
        let text = format!("[{}{unit}]", format!("{unit},").repeat(count - 1));
        pack(&JsonText(text.as_bytes())).expect("CBOR")
    }

    /// The spare room of the lists and objects of a tree, in items and members.
    fn spare(value: &Value) -> usize {
        match value {
            Value::Array(items) => {
                let own = items.capacity() - items.len();
                own + items.iter().map(spare).sum::<usize>()
            }
            Value::Object(members) => members.values().map(spare).sum(),
            _ => 0,
        }
    }

    #[test]
    fn lists_of_answers_have_no_spare_room() {
        for unit in ["[0]", "[[[]],[0,0,0]]", "[0,0,0,0,0]", "{\"a\":[[0]]}"] {
            let bytes = listed(unit, 3);
            let tree = unpack::<LongNamed>(&bytes).expect("a value").into_value();
            let each: Value = serde_json::from_str(unit).expect("JSON");
            assert_eq!(tree, json!([each, each, each]));
            assert_eq!(spare(&tree), 0, "{unit}");
            let Json(same) = unpack(&bytes).expect("a value");
            assert_eq!(spare(&same), 0, "{unit}");
        }
    }

    /// What an allowance for a tree has left after the value.
    struct LeftBytes(usize);

    impl<'de> Deserialize<'de> for LeftBytes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let left = Cell::new(TREE_BYTES_MAX);
            let allowance = JsonAllowance {
                left: &left,
                unit: AllowanceUnit::Memory,
            };
            allowance.deserialize(deserializer)?;
            Ok(Self(left.get()))
        }
    }

    /// As much of a tree as is counted, in a few shapes that have least text for their memory.
    #[test]
    fn an_allowance_counts_what_a_tree_takes() {
        let of = |unit: &str, count: usize| {
            let LeftBytes(left) = unpack(&listed(unit, count)).expect("a value");
            TREE_BYTES_MAX - left
        };
        let list = |count: usize| ReadItems::<Value>::bytes(count);
        assert_eq!(of("0", 4), list(4));
        assert_eq!(of("[0]", 4), list(4) + 4 * list(1));
        assert_eq!(of("[0,0,0]", 3), 4 * list(3));
        assert_eq!(of("{\"\":0}", 2), list(2) + 2 * object(1));
        assert_eq!(of("\"abc\"", 1), list(1) + block(3));
        // A long list keeps its spare room, and that counts as well.
        assert_eq!(of("0", 1025), list(2048));
        let member = size_of::<u64>() + size_of::<String>() + VALUE;
        assert!(object(1) >= member + 4 * size_of::<usize>());
    }

    #[test]
    fn a_tree_that_is_too_large_for_a_worker_is_an_error() {
        for unit in ["[[[[]]]]", "{\"\":{\"\":0}}"] {
            let few = listed(unit, 10);
            assert!(unpack::<LongNamed>(&few).is_ok(), "{unit}");
        }
        let deep = format!("{}{}", "[".repeat(58), "]".repeat(58));
        // The innermost list has no item, and the outermost one counts beside these.
        let most = TREE_BYTES_MAX / (57 * ReadItems::<Value>::bytes(1));
        assert!(
            (deep.len() + 1) * (most + 1) < JSON_BYTES,
            "one is passed on"
        );
        assert!(unpack::<LongNamed>(&listed(&deep, most + 1)).is_err());
    }
}
