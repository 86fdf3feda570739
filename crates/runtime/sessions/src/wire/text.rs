//! Writes JSON text as CBOR for a worker, without a tree of it in the node.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeMap, SerializeSeq};
use serde::{Deserializer, Serialize, Serializer};

/// JSON text that is written as its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonText<'a>(pub(crate) &'a [u8]);

impl Serialize for JsonText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = serde_json::Deserializer::from_slice(self.0);
        let written = TextValue(serializer).deserialize(&mut text);
        let written = written.map_err(S::Error::custom)?;
        // Text after the value makes the whole text invalid.
        text.end().map_err(S::Error::custom)?;
        Ok(written)
    }
}

/// Writes the next value of the text.
struct TextValue<S>(S);

impl<'de, S: Serializer> DeserializeSeed<'de> for TextValue<S> {
    type Value = S::Ok;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Ok, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Converts the writer's error to the reader's.
fn failed<E: serde::de::Error>(error: impl fmt::Display) -> E {
    E::custom(error)
}

impl<'de, S: Serializer> Visitor<'de> for TextValue<S> {
    type Value = S::Ok;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<S::Ok, E> {
        self.0.serialize_bool(value).map_err(failed)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<S::Ok, E> {
        self.0.serialize_i64(value).map_err(failed)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<S::Ok, E> {
        self.0.serialize_u64(value).map_err(failed)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<S::Ok, E> {
        self.0.serialize_f64(value).map_err(failed)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<S::Ok, E> {
        self.0.serialize_str(value).map_err(failed)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<S::Ok, E> {
        self.0.serialize_unit().map_err(failed)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<S::Ok, A::Error> {
        // JSON text does not state the number of items, so the array has an indefinite length (RFC
        // 8949 section 3.2.2).
        let mut writer = self.0.serialize_seq(None).map_err(failed)?;
        while seq.next_element_seed(TextElement(&mut writer))?.is_some() {}
        writer.end().map_err(failed)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<S::Ok, A::Error> {
        // The number of members is not known either.
        let mut writer = self.0.serialize_map(None).map_err(failed)?;
        while let Some(name) = map.next_key::<String>()? {
            writer.serialize_key(&name).map_err(failed)?;
            map.next_value_seed(TextMember(&mut writer))?;
        }
        writer.end().map_err(failed)
    }
}

struct TextElement<'a, W>(&'a mut W);

impl<'de, W: SerializeSeq> DeserializeSeed<'de> for TextElement<'_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let part = SingleSerialize::new(deserializer);
        let written = self.0.serialize_element(&part);
        part.end(written)
    }
}

struct TextMember<'a, W>(&'a mut W);

impl<'de, W: SerializeMap> DeserializeSeed<'de> for TextMember<'_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let part = SingleSerialize::new(deserializer);
        let written = self.0.serialize_value(&part);
        part.end(written)
    }
}

/// The next value of the text, which can be written once.
struct SingleSerialize<'de, D: Deserializer<'de>> {
    from: Cell<Option<D>>,
    /// The error of the text itself, which is more precise than the writer's.
    error: Cell<Option<D::Error>>,
}

impl<'de, D: Deserializer<'de>> SingleSerialize<'de, D> {
    fn new(from: D) -> Self {
        Self {
            from: Cell::new(Some(from)),
            error: Cell::new(None),
        }
    }

    fn end<T, E: fmt::Display>(self, written: Result<T, E>) -> Result<(), D::Error> {
        match (self.error.take(), written) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(D::Error::custom(error)),
            (None, Ok(_)) => Ok(()),
        }
    }
}

impl<'de, D: Deserializer<'de>> Serialize for SingleSerialize<'de, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(from) = self.from.take() else {
            return Err(S::Error::custom("a value was written twice"));
        };
        TextValue(serializer).deserialize(from).map_err(|error| {
            let text = S::Error::custom(&error);
            self.error.set(Some(error));
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::{pack, unpack};

    #[test]
    fn text_is_written_as_the_value_that_it_says() {
        let value = json!({
            "b": [1, -1, 0.1, u64::MAX, i64::MIN, null, true, "\u{e9}\"\\"], "a": { "": [[], {}] },
        });
        let text = value.to_string();
        let bytes = pack(&JsonText(text.as_bytes())).expect("CBOR");
        let back: Value = unpack(&bytes).expect("the same");
        assert_eq!(back.to_string(), text);
        for broken in ["", "[1,", "[1] 2", "{\"a\":nul}", "[1e999]"] {
            assert!(pack(&JsonText(broken.as_bytes())).is_err(), "{broken}");
        }
    }
}
