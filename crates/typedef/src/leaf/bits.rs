//! Leaves as a fixed number of bytes.

use half::{bf16, f16};

use super::{Fit, LeafType};
use crate::kind::FieldKind;
use crate::schema::annotations::BytesEncoding;
use crate::value::RecordValue;

impl LeafType {
    /// Writes `value` into exactly [`fixed_bytes`](Self::fixed_bytes) bytes.
    pub(crate) fn put(&self, value: &RecordValue, big: bool, out: &mut [u8]) -> Fit<()> {
        if self.kind.scalar_bytes().is_some() {
            put_bits(self.to_bits(value)?, big, out);
            return Ok(());
        }
        match self.encoding {
            BytesEncoding::Indirect => self.put_location(value, big, out),
            _ => self.put_fixed(value, big, out),
        }
    }

    /// Reads the value in exactly [`fixed_bytes`](Self::fixed_bytes) bytes.
    pub(crate) fn take(&self, bytes: &[u8], big: bool) -> Fit<RecordValue> {
        if self.kind.scalar_bytes().is_some() {
            return self.of_bits(take_bits(bytes, big));
        }
        match self.encoding {
            BytesEncoding::Indirect => {
                let (off, len) = bytes.split_at(bytes.len() / 2);
                let [off, len] = [off, len].map(|half| take_bits(half, big));
                // The reader checks the offset only when it has the other region.
                self.check_bytes(len)?;
                Ok(RecordValue::Indirect { off, len })
            }
            _ => self.take_fixed(bytes, big),
        }
    }

    fn put_location(&self, value: &RecordValue, big: bool, out: &mut [u8]) -> Fit<()> {
        let RecordValue::Indirect { off, len } = value else {
            return Err(self.other(value));
        };
        // A place that breaks the bound would be refused on reading.
        self.check_bytes(*len)?;
        let (first, second) = out.split_at_mut(out.len() / 2);
        put_bits(*off, big, first);
        put_bits(*len, big, second);
        Ok(())
    }

    /// The bits of a scalar, in the low end.
    fn to_bits(&self, value: &RecordValue) -> Fit<u64> {
        match (self.kind, value) {
            (FieldKind::Boolean, RecordValue::Bool(value)) => Ok((*value).into()),
            (FieldKind::Enum, RecordValue::Enum(index)) => {
                self.member(*index).map(|_| (*index).into())
            }
            (kind, RecordValue::Float(value)) if kind.is_float() => {
                self.check_float(*value)?;
                Ok(float_bits(kind, *value))
            }
            (kind, RecordValue::Int(value)) if is_signed(kind) => {
                self.check_integer((*value).into())?;
                Ok(value.cast_unsigned())
            }
            (kind, RecordValue::Uint(value)) if kind.integers().is_some() && !is_signed(kind) => {
                self.check_integer((*value).into())?;
                Ok(*value)
            }
            _ => Err(self.other(value)),
        }
    }

    fn of_bits(&self, bits: u64) -> Fit<RecordValue> {
        Ok(match self.kind {
            // Equal values are equal bytes: a truth value has two forms.
            FieldKind::Boolean if bits > 1 => {
                return Err(format!("{bits:#04x} is neither 0 nor 1"));
            }
            FieldKind::Boolean => RecordValue::Bool(bits == 1),
            FieldKind::Enum => {
                // An `Enum` has four bytes.
                let index = bits as u32;
                self.member(index)?;
                RecordValue::Enum(index)
            }
            FieldKind::Int8 => RecordValue::Int((bits as i8).into()),
            FieldKind::Int16 => RecordValue::Int((bits as i16).into()),
            FieldKind::Int32 => RecordValue::Int((bits as i32).into()),
            FieldKind::Int64 => RecordValue::Int(bits.cast_signed()),
            kind if kind.is_float() => {
                let value = float(kind, bits);
                self.check_float(value)?;
                RecordValue::Float(value)
            }
            _ => RecordValue::Uint(bits),
        })
    }

    /// The member of this number, if there is one.
    pub(crate) fn member(&self, index: u32) -> Fit<&serde_json::Value> {
        let members = self.members.len();
        let member = self.members.get(index as usize);
        member.ok_or_else(|| format!("{index} is no member: the enum has {members}"))
    }

    pub(crate) fn check_integer(&self, value: i128) -> Fit<()> {
        let (min, max) = self.kind.integers().unwrap_or_default();
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(format!(
            "it is no {}: that goes from {min} to {max}",
            self.kind
        ))
    }

    /// Checks that the number is finite after rounding to the kind.
    pub(crate) fn check_float(&self, value: f64) -> Fit<()> {
        // A number that is finite here may be infinite in a smaller kind.
        if self.nonfinite || rounded(self.kind, value).is_finite() {
            return Ok(());
        }
        Err(format!(
            "it is no finite {}, and \"nonfinite\" is not said",
            self.kind
        ))
    }

    pub(crate) fn other(&self, value: &RecordValue) -> String {
        format!("{} is no {}", value.name(), self.kind)
    }
}

fn is_signed(kind: FieldKind) -> bool {
    kind.integers().is_some_and(|(min, _)| min < 0)
}

fn float_bits(kind: FieldKind, value: f64) -> u64 {
    match kind {
        FieldKind::BFloat16 => bf16::from_f64(value).to_bits().into(),
        FieldKind::Float16 => f16::from_f64(value).to_bits().into(),
        FieldKind::Float32 => (value as f32).to_bits().into(),
        _ => value.to_bits(),
    }
}

fn float(kind: FieldKind, bits: u64) -> f64 {
    match kind {
        FieldKind::BFloat16 => bf16::from_bits(bits as u16).to_f64(),
        FieldKind::Float16 => f16::from_bits(bits as u16).to_f64(),
        FieldKind::Float32 => f32::from_bits(bits as u32).into(),
        _ => f64::from_bits(bits),
    }
}

/// The nearest number of the kind.
pub(crate) fn rounded(kind: FieldKind, value: f64) -> f64 {
    float(kind, float_bits(kind, value))
}

/// The low bytes of `bits`, as many as `out` has, at most eight.
pub(crate) fn put_bits(bits: u64, big: bool, out: &mut [u8]) {
    let n = out.len();
    if big {
        out.copy_from_slice(&bits.to_be_bytes()[8 - n..]);
    } else {
        out.copy_from_slice(&bits.to_le_bytes()[..n]);
    }
}

/// At most eight bytes as a number.
pub(crate) fn take_bits(bytes: &[u8], big: bool) -> u64 {
    let add = |bits: u64, byte: &u8| bits << 8 | u64::from(*byte);
    if big {
        bytes.iter().fold(0, add)
    } else {
        bytes.iter().rev().fold(0, add)
    }
}
