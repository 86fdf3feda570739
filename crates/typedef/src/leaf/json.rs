//! Leaves in JSON.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Number, Value};

use super::bits::rounded;
use super::{Fit, LeafType};
use crate::kind::FieldKind;
use crate::value::RecordValue;

/// The largest number up to which, and down to its negative, every reader of JSON reads whole numbers exactly.
const EXACT_MAX: i128 = 1 << 53;

/// How JSON writes floats that its numbers cannot express.
const NONFINITE: [(&str, f64); 3] = [
    ("NaN", f64::NAN),
    ("Infinity", f64::INFINITY),
    ("-Infinity", f64::NEG_INFINITY),
];

impl LeafType {
    /// The value that a JSON value means for this field. This function alone decides what is valid.
    pub(crate) fn of_json(&self, value: &Value) -> Fit<RecordValue> {
        match self.kind {
            FieldKind::Boolean => {
                let value = value.as_bool().ok_or("it is neither true nor false")?;
                Ok(RecordValue::Bool(value))
            }
            FieldKind::Enum => {
                let index = self.members.iter().position(|member| same(member, value));
                let index = index.ok_or("it is no member of the enum")?;
                // The pass over the schema allows far fewer members.
                Ok(RecordValue::Enum(index as u32))
            }
            kind if kind.is_float() => self.float_of_json(value),
            kind if kind.is_text() => self.text_of_json(value),
            _ => self.integer_of_json(value),
        }
    }

    fn integer_of_json(&self, value: &Value) -> Fit<RecordValue> {
        let integer = match value {
            // Many readers of JSON hold numbers as floats, which are exact up to 2^53 only.
            Value::String(text) if self.is_wide() => integer_from_text(text)?,
            _ => integer(value).ok_or("it is no whole number")?,
        };
        self.check_integer(integer)?;
        // The check above bounds both casts.
        Ok(match self.kind {
            FieldKind::Int8 | FieldKind::Int16 | FieldKind::Int32 | FieldKind::Int64 => {
                RecordValue::Int(integer as i64)
            }
            _ => RecordValue::Uint(integer as u64),
        })
    }

    fn float_of_json(&self, value: &Value) -> Fit<RecordValue> {
        let number = match value {
            Value::String(text) if self.nonfinite => {
                let named = NONFINITE.iter().find(|(name, _)| name == text);
                named
                    .ok_or("it is neither a number nor NaN, Infinity or -Infinity")?
                    .1
            }
            _ => {
                let number = value.as_f64().ok_or("it is no number")?;
                if !rounded(self.kind, number).is_finite() {
                    return Err(format!("it is too large for a {}", self.kind));
                }
                number
            }
        };
        Ok(RecordValue::Float(rounded(self.kind, number)))
    }

    fn text_of_json(&self, value: &Value) -> Fit<RecordValue> {
        let text = value.as_str().ok_or("it is no text")?;
        let value = if self.kind == FieldKind::Bytes {
            // One text for the same bytes: no padding, and the spare bits are zero (RFC 4648, section 3.5).
            let bytes = BASE64URL_NOPAD.decode(text.as_bytes());
            RecordValue::Bytes(bytes.map_err(|_| "it is no base64url without padding")?)
        } else {
            RecordValue::Text(text.to_owned())
        };
        self.content(&value)?;
        Ok(value)
    }

    /// The JSON that means this value, in the form that [`of_json`](Self::of_json) takes.
    pub(crate) fn to_json(&self, value: &RecordValue) -> Fit<Value> {
        Ok(match value {
            RecordValue::Bool(value) => (*value).into(),
            RecordValue::Bytes(bytes) => BASE64URL_NOPAD.encode(bytes).into(),
            RecordValue::Enum(index) => self.member(*index)?.clone(),
            // JSON has no number for values that are not finite: RFC 8259, section 6.
            RecordValue::Float(value) => match Number::from_f64(*value) {
                Some(number) => number.into(),
                None if value.is_nan() => "NaN".into(),
                None if *value > 0.0 => "Infinity".into(),
                None => "-Infinity".into(),
            },
            RecordValue::Int(value) if exact((*value).into()) => (*value).into(),
            RecordValue::Int(value) => value.to_string().into(),
            RecordValue::Text(text) => text.as_str().into(),
            RecordValue::Uint(value) if exact((*value).into()) => (*value).into(),
            RecordValue::Uint(value) => value.to_string().into(),
            _ => return Err(self.other(value)),
        })
    }

    fn is_wide(&self) -> bool {
        matches!(self.kind, FieldKind::Int64 | FieldKind::Uint64)
    }
}

fn exact(value: i128) -> bool {
    (-EXACT_MAX..=EXACT_MAX).contains(&value)
}

/// The whole number in a JSON value; `1.0` is one, as in JSON Schema.
fn integer(value: &Value) -> Option<i128> {
    let Value::Number(number) = value else {
        return None;
    };
    if let Some(value) = number.as_i64() {
        return Some(value.into());
    }
    if let Some(value) = number.as_u64() {
        return Some(value.into());
    }
    let value = number.as_f64()?;
    // A number beyond an `i128` becomes its bound, which no kind holds.
    (value.fract() == 0.0).then_some(value as i128)
}

/// A whole number as text: only beyond the exact JSON numbers, and in one spelling only.
fn integer_from_text(text: &str) -> Fit<i128> {
    let value: Option<i128> = text.parse().ok();
    let value = value.filter(|value| value.to_string() == text);
    let value = value.ok_or("it is no whole number in decimal digits")?;
    if exact(value) {
        return Err("text is for whole numbers beyond 2^53 only; write the number".to_owned());
    }
    Ok(value)
}

/// Equal as in JSON Schema: 1 and 1.0 are one number.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    one == other || integer(one).is_some_and(|number| integer(other) == Some(number))
}
