//! JSON for signatures: the reader is strict, and the writer has one form for each value.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::BundleError;
use crate::limits::{BUNDLE_BYTES_MAX, NESTING_MAX};

/// The canonical text of a value: no blanks, the members of each object in the byte order of their
/// names, strings with only the escapes that JSON requires, and numbers in their shortest form.
#[must_use]
pub fn canonical(value: &Value) -> String {
    alknet_runtime::canonical(value).to_string()
}

/// Parses one JSON value from an author, with nothing after it.
///
/// # Errors
/// The text is too long, nests too deeply, has a member twice in one object, or is not JSON.
pub fn read(text: &[u8]) -> Result<Value, BundleError> {
    if text.len() > BUNDLE_BYTES_MAX {
        return Err(BundleError::TooLarge(text.len()));
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let mut flaw = None;
    let read = StrictValue {
        left: NESTING_MAX,
        flaw: &mut flaw,
    };
    let value = read.deserialize(&mut reader).and_then(|value| {
        reader.end()?;
        Ok(value)
    });
    value.map_err(|error| flaw.unwrap_or_else(|| BundleError::Json(error.to_string())))
}

/// Reads a value of any kind with at most this many more levels.
struct StrictValue<'f> {
    left: usize,
    /// The error, if it is more precise than a text.
    flaw: &'f mut Option<BundleError>,
}

impl<'f> StrictValue<'f> {
    fn deeper<E: Error>(&mut self) -> Result<usize, E> {
        self.left.checked_sub(1).ok_or_else(|| {
            *self.flaw = Some(BundleError::Nesting);
            E::custom("it nests too deeply")
        })
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, it: bool) -> Result<Value, E> {
        Ok(Value::Bool(it))
    }

    fn visit_i64<E: Error>(self, it: i64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_u64<E: Error>(self, it: u64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_f64<E: Error>(self, it: f64) -> Result<Value, E> {
        let number = Number::from_f64(it).ok_or_else(|| E::custom("a number beyond all bounds"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, it: &str) -> Result<Value, E> {
        Ok(Value::String(it.to_owned()))
    }

    fn visit_string<E: Error>(self, it: String) -> Result<Value, E> {
        Ok(Value::String(it))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let left = self.deeper()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(StrictValue {
            left,
            flaw: &mut *self.flaw,
        })? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        let left = self.deeper()?;
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            // Readers differ in which of two members they use, so a signature could cover another
            // meaning than a reviewer saw.
            if all.contains_key(&name) {
                let error = A::Error::custom("a member is named twice");
                *self.flaw = Some(BundleError::Duplicate(name));
                return Err(error);
            }
            let member = members.next_value_seed(StrictValue {
                left,
                flaw: &mut *self.flaw,
            })?;
            all.insert(name, member);
        }
        Ok(Value::Object(all))
    }
}
