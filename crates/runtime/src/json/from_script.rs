//! Converts values of a script for the host.

use rquickjs::atom::PredefinedAtom;
use rquickjs::function::This;
use rquickjs::object::Filter;
use rquickjs::{Error, Function, Object, Type, Value as JsValue};
use serde_json::{Map, Number, Value};

use super::weight::{self, VALUE};
use crate::limits::{JSON_BYTES, JSON_DEPTH};

/// The largest number up to which a double represents all whole numbers.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// The most items for which memory is allocated before they are read.
const ITEMS_AT_ONCE: usize = 1024;

/// The reason why a value cannot be converted.
#[derive(Debug)]
pub(crate) enum ScriptValueError {
    /// The script threw while the value was read (in a getter, a proxy or `toJSON`), or was stopped.
    Threw(Error),
    /// The value has no JSON form; the text says what it is and where.
    Encode(String),
}

impl From<Error> for ScriptValueError {
    fn from(error: Error) -> Self {
        Self::Threw(error)
    }
}

/// Reads one value of a script, within the limits of depth and size.
pub(crate) struct ScriptValueReader<'js> {
    /// Calls into the engine. For a `BigInt`, it returns whether the number is within 2^53 of zero. For an object
    /// without members, it returns whether it is a plain object: no buffer, map or set.
    fits: Function<'js>,
    /// `Array.isArray`.
    is_array: Function<'js>,
    left: usize,
    /// The keys from the root, for the message.
    path: Vec<String>,
}

impl<'js> ScriptValueReader<'js> {
    pub(crate) fn new(fits: Function<'js>, is_array: Function<'js>) -> Self {
        Self {
            fits,
            is_array,
            left: JSON_BYTES,
            path: Vec::new(),
        }
    }

    /// `undefined` at the root is `null`.
    pub(crate) fn read(mut self, value: &JsValue<'js>) -> Result<Value, ScriptValueError> {
        // The key of the root is the empty string (ECMA-262, JSON.stringify).
        Ok(self.value(value, "")?.unwrap_or(Value::Null))
    }

    /// `None` for `undefined`.
    fn value(
        &mut self,
        value: &JsValue<'js>,
        key: &str,
    ) -> Result<Option<Value>, ScriptValueError> {
        let read = match value.type_of() {
            Type::Undefined | Type::Uninitialized => return Ok(None),
            Type::Null => self.take(VALUE).map(|()| Value::Null)?,
            Type::Bool => self
                .take(VALUE)
                .map(|()| Value::Bool(value.as_bool() == Some(true)))?,
            Type::Int | Type::Float => self.number(value.as_number().unwrap_or(f64::NAN))?,
            Type::BigInt => self.big(value)?,
            Type::String => Value::String(self.text(value)?),
            Type::Symbol => return Err(self.unfit("a symbol")),
            _ => return self.object(value, key),
        };
        Ok(Some(read))
    }

    fn number(&mut self, number: f64) -> Result<Value, ScriptValueError> {
        self.take(VALUE)?;
        if number.trunc() == number && number.abs() <= WHOLE_MAX {
            // This also turns -0 into 0, as in JSON text.
            return Ok(Value::Number(Number::from(number as i64)));
        }
        // JSON has no number for infinities and NaN (RFC 8259 section 6).
        Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| self.unfit("a number that is not finite"))
    }

    fn big(&mut self, value: &JsValue<'js>) -> Result<Value, ScriptValueError> {
        self.take(VALUE)?;
        if !self.fits.call::<_, bool>((value.clone(),))? {
            return Err(self.unfit("a BigInt beyond 2^53"));
        }
        let big = value.clone().into_big_int();
        let whole = big.ok_or(Error::Unknown)?.to_i64()?;
        Ok(Value::Number(Number::from(whole)))
    }

    fn text(&mut self, value: &JsValue<'js>) -> Result<String, ScriptValueError> {
        let text = value.as_string().ok_or(Error::Unknown)?;
        let text = match text.to_string() {
            Ok(text) => text,
            // Readers of such a text would behave unpredictably (RFC 8259 section 8.2).
            Err(Error::Utf8(_)) => return Err(self.unfit("half of a surrogate pair")),
            Err(error) => return Err(error.into()),
        };
        self.take(VALUE + weight::text(text.as_bytes()))?;
        Ok(text)
    }

    fn object(
        &mut self,
        value: &JsValue<'js>,
        key: &str,
    ) -> Result<Option<Value>, ScriptValueError> {
        if value.is_function() {
            return Err(self.unfit("a function"));
        }
        let Some(object) = value.as_object() else {
            return Err(self.unfit("a value of the engine's own"));
        };
        // The limit also ends cyclic values.
        if self.path.len() >= JSON_DEPTH {
            return Err(self.unfit("something deeper than 64 levels"));
        }
        if is_bytes(object) {
            return Err(self.unfit("bytes"));
        }
        if value.is_promise() {
            return Err(self.unfit("a promise that was not awaited"));
        }
        self.path.push(key.to_owned());
        // `toJSON` is read before any member (ECMA-262, SerializeJSONProperty).
        let own: JsValue<'js> = object.get(PredefinedAtom::ToJSON)?;
        let read = match own.into_function() {
            Some(to_json) => {
                let instead: JsValue<'js> = to_json.call((This(object.clone()), key))?;
                self.value(&instead, key)?
            }
            None if self.is_array(value)? => Some(self.array(object)?),
            None => Some(self.members(object)?),
        };
        self.path.pop();
        Ok(read)
    }

    /// Whether the value is an array by `Array.isArray`: a proxy counts as its target.
    fn is_array(&self, value: &JsValue<'js>) -> Result<bool, ScriptValueError> {
        match value.is_proxy() {
            true => Ok(self.is_array.call((value.clone(),))?),
            false => Ok(value.is_array()),
        }
    }

    fn array(&mut self, object: &Object<'js>) -> Result<Value, ScriptValueError> {
        let length: f64 = object.get(PredefinedAtom::Length)?;
        self.take(VALUE)?;
        // Each element is at least one value, so an array of four thousand million holes is refused by its size
        // instead of being iterated.
        if !(0.0..=(self.left / VALUE) as f64).contains(&length) {
            return Err(too_large());
        }
        let length = length as u32;
        // Memory is not allocated for all items at once: arrays that contain each other are counted only as they are
        // read.
        let mut items = Vec::with_capacity((length as usize).min(ITEMS_AT_ONCE));
        for index in 0..length {
            let item: JsValue<'js> = object.get(index)?;
            items.push(match self.value(&item, &index.to_string())? {
                Some(item) => item,
                // An element without a JSON form becomes `null` (ECMA-262, SerializeJSONArray).
                None => self.take(VALUE).map(|()| Value::Null)?,
            });
        }
        Ok(Value::Array(items))
    }

    fn members(&mut self, object: &Object<'js>) -> Result<Value, ScriptValueError> {
        self.take(VALUE)?;
        let mut members = Map::new();
        for key in object.own_keys::<rquickjs::String<'js>>(Filter::new().string().enum_only()) {
            let key = self.text(key?.as_value())?;
            let member: JsValue<'js> = object.get(key.as_str())?;
            // A member without a JSON form is left out (ECMA-262, SerializeJSONObject).
            if let Some(member) = self.value(&member, &key)? {
                members.insert(key, member);
            }
        }
        if members.is_empty() && !self.fits.call::<_, bool>((object.clone(),))? {
            return Err(self.unfit("bytes, a map or a set"));
        }
        Ok(Value::Object(members))
    }

    fn take(&mut self, bytes: usize) -> Result<(), ScriptValueError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(too_large()),
        }
    }

    fn unfit(&self, what: &str) -> ScriptValueError {
        let at = self.path.join(".");
        let at = if at.is_empty() {
            String::new()
        } else {
            format!(" below {at:?}")
        };
        ScriptValueError::Encode(format!("{what} has no JSON form{at}"))
    }
}

fn too_large() -> ScriptValueError {
    let text = format!(
        "the value takes more than {} MiB of memory, {VALUE} bytes for each value in it",
        JSON_BYTES >> 20
    );
    ScriptValueError::Encode(text)
}

/// Whether the object is a view of bytes. [`ScriptValueReader::members`] finds buffers: checking each object in the
/// engine would make an exception for each one without bytes.
fn is_bytes(object: &Object<'_>) -> bool {
    object.is_typed_array::<u8>()
        || object.is_typed_array::<i8>()
        || object.is_typed_array::<u16>()
        || object.is_typed_array::<i16>()
        || object.is_typed_array::<u32>()
        || object.is_typed_array::<i32>()
        || object.is_typed_array::<f32>()
        || object.is_typed_array::<f64>()
        || object.is_typed_array::<u64>()
        || object.is_typed_array::<i64>()
        || object.is_typed_array::<half::f16>()
}
