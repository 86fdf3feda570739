//! Converts values of the host for a script.

use bytes::Bytes;
use rquickjs::object::Property;
use rquickjs::{Array, Ctx, IntoJs, Object, Result, String as JsString, Value as JsValue};
use serde_json::{Number, Value};

use crate::isolate::{IsolateState, share_bytes};

/// Makes a script's value of a host's. Properties are defined instead of assigned, so a key
/// `__proto__`, or a setter that the script added to `Object.prototype`, has no effect.
pub(crate) fn write<'js>(ctx: &Ctx<'js>, value: &Value) -> Result<JsValue<'js>> {
    match value {
        Value::Null => Ok(JsValue::new_null(ctx.clone())),
        Value::Bool(value) => Ok(JsValue::new_bool(ctx.clone(), *value)),
        Value::Number(number) => Ok(number_of(ctx, number)),
        Value::String(text) => Ok(JsString::from_str(ctx.clone(), text)?.into_value()),
        Value::Array(items) => {
            let array = Array::new(ctx.clone())?;
            for (index, item) in items.iter().enumerate() {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                array.as_object().prop(index, own(write(ctx, item)?))?;
            }
            Ok(array.into_value())
        }
        Value::Object(members) => {
            let object = Object::new(ctx.clone())?;
            for (key, member) in members {
                object.prop(key.as_str(), own(write(ctx, member)?))?;
            }
            Ok(object.into_value())
        }
    }
}

/// The same for a value with bytes: a reference to them becomes an immutable buffer of that part.
/// An object that only resembles a reference stays an object.
pub(crate) fn write_mixed<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    value: &Value,
    bytes: &Bytes,
) -> Result<JsValue<'js>> {
    if let Some(part) = part(value, bytes) {
        return share_bytes(ctx, shared, part);
    }
    match value {
        Value::Array(items) => {
            let array = Array::new(ctx.clone())?;
            for (index, item) in items.iter().enumerate() {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                let item = write_mixed(ctx, shared, item, bytes)?;
                array.as_object().prop(index, own(item))?;
            }
            Ok(array.into_value())
        }
        Value::Object(members) => {
            let object = Object::new(ctx.clone())?;
            for (key, member) in members {
                let member = write_mixed(ctx, shared, member, bytes)?;
                object.prop(key.as_str(), own(member))?;
            }
            Ok(object.into_value())
        }
        plain => write(ctx, plain),
    }
}

fn part(value: &Value, bytes: &Bytes) -> Option<Bytes> {
    let pair = value.as_object().filter(|members| members.len() == 1)?;
    let [offset, len] = pair.get("$bin")?.as_array()?.as_slice() else {
        return None;
    };
    let offset = usize::try_from(offset.as_u64()?).ok()?;
    let end = offset.checked_add(usize::try_from(len.as_u64()?).ok()?)?;
    (end <= bytes.len()).then(|| bytes.slice(offset..end))
}

fn own<'js>(value: impl IntoJs<'js>) -> Property<impl IntoJs<'js>> {
    Property::from(value).writable().enumerable().configurable()
}

fn number_of<'js>(ctx: &Ctx<'js>, number: &Number) -> JsValue<'js> {
    // The engine stores small integers without a floating-point value.
    let small = number.as_i64().and_then(|whole| i32::try_from(whole).ok());
    match small {
        Some(whole) => JsValue::new_int(ctx.clone(), whole),
        None => JsValue::new_number(ctx.clone(), number.as_f64().unwrap_or(f64::NAN)),
    }
}
