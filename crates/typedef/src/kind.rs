//! The kinds, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The beginning of every keyword of this crate.
pub(crate) const PREFIX: &str = "TypeDef:";

/// The second keyword beside a string: the limit of its bytes.
pub(crate) const MAX_BYTES: &str = "TypeDef:maxBytes";

/// The kind of a field.
///
/// ```
/// use alknet_typedef::FieldKind;
///
/// assert_eq!(FieldKind::of_keyword("TypeDef:Int16"), Some(FieldKind::Int16));
/// assert_eq!(FieldKind::Int16.scalar_bytes(), Some(2));
/// assert_eq!(FieldKind::String.scalar_bytes(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FieldKind {
    /// Items of one kind, one after the other.
    Array,
    /// The upper half of a [`Float32`](Self::Float32).
    BFloat16,
    /// One byte, 0 or 1.
    Boolean,
    /// Bytes; base64url in JSON.
    Bytes,
    /// A `u32` that counts the members of `enum`.
    Enum,
    /// IEEE 754 binary16.
    Float16,
    /// IEEE 754 binary32.
    Float32,
    /// IEEE 754 binary64.
    Float64,
    /// `i16`.
    Int16,
    /// `i32`.
    Int32,
    /// `i64`; a decimal string in JSON beyond ±2^53.
    Int64,
    /// `i8`.
    Int8,
    /// Names and values of one kind; packed only.
    Record,
    /// UTF-8 text.
    String,
    /// Fields in an order.
    Struct,
    /// Zero bytes: names a tensor of the same file.
    Tensor,
    /// A date and time of RFC 3339, as text.
    Timestamp,
    /// `u16`.
    Uint16,
    /// `u32`.
    Uint32,
    /// `u64`; a decimal string in JSON beyond 2^53.
    Uint64,
    /// `u8`.
    Uint8,
    /// A tag, and the variant of that tag.
    Union,
}

impl FieldKind {
    /// All kinds, by name.
    pub const ALL: [Self; 22] = [
        Self::Array,
        Self::BFloat16,
        Self::Boolean,
        Self::Bytes,
        Self::Enum,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Int8,
        Self::Record,
        Self::String,
        Self::Struct,
        Self::Tensor,
        Self::Timestamp,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Uint8,
        Self::Union,
    ];

    /// The kind that a keyword such as `TypeDef:Int8` names.
    #[must_use]
    pub fn of_keyword(keyword: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.keyword() == keyword)
    }

    /// Its keyword, `TypeDef:<name>`.
    #[must_use]
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Array => "TypeDef:Array",
            Self::BFloat16 => "TypeDef:BFloat16",
            Self::Boolean => "TypeDef:Boolean",
            Self::Bytes => "TypeDef:Bytes",
            Self::Enum => "TypeDef:Enum",
            Self::Float16 => "TypeDef:Float16",
            Self::Float32 => "TypeDef:Float32",
            Self::Float64 => "TypeDef:Float64",
            Self::Int16 => "TypeDef:Int16",
            Self::Int32 => "TypeDef:Int32",
            Self::Int64 => "TypeDef:Int64",
            Self::Int8 => "TypeDef:Int8",
            Self::Record => "TypeDef:Record",
            Self::String => "TypeDef:String",
            Self::Struct => "TypeDef:Struct",
            Self::Tensor => "TypeDef:Tensor",
            Self::Timestamp => "TypeDef:Timestamp",
            Self::Uint16 => "TypeDef:Uint16",
            Self::Uint32 => "TypeDef:Uint32",
            Self::Uint64 => "TypeDef:Uint64",
            Self::Uint8 => "TypeDef:Uint8",
            Self::Union => "TypeDef:Union",
        }
    }

    /// The keyword without its prefix `TypeDef:`.
    #[must_use]
    pub fn name(self) -> &'static str {
        &self.keyword()[PREFIX.len()..]
    }

    /// Bytes of a number, a truth value or an `Enum`, which is also its alignment; `None` for others.
    #[must_use]
    pub const fn scalar_bytes(self) -> Option<u8> {
        match self {
            Self::Boolean | Self::Int8 | Self::Uint8 => Some(1),
            Self::BFloat16 | Self::Float16 | Self::Int16 | Self::Uint16 => Some(2),
            Self::Enum | Self::Float32 | Self::Int32 | Self::Uint32 => Some(4),
            Self::Float64 | Self::Int64 | Self::Uint64 => Some(8),
            _ => None,
        }
    }

    /// Whether it is text or bytes, with an encoding.
    pub(crate) const fn is_text(self) -> bool {
        matches!(self, Self::Bytes | Self::String | Self::Timestamp)
    }

    /// Whether it is a floating-point number.
    pub(crate) const fn is_float(self) -> bool {
        matches!(
            self,
            Self::BFloat16 | Self::Float16 | Self::Float32 | Self::Float64
        )
    }

    /// Whether it consists of other kinds.
    pub(crate) const fn is_composite(self) -> bool {
        matches!(
            self,
            Self::Array | Self::Record | Self::Struct | Self::Union
        )
    }

    /// Smallest and largest value of an integer.
    pub(crate) const fn integers(self) -> Option<(i128, i128)> {
        Some(match self {
            Self::Int8 => (i8::MIN as i128, i8::MAX as i128),
            Self::Int16 => (i16::MIN as i128, i16::MAX as i128),
            Self::Int32 => (i32::MIN as i128, i32::MAX as i128),
            Self::Int64 => (i64::MIN as i128, i64::MAX as i128),
            Self::Uint8 => (0, u8::MAX as i128),
            Self::Uint16 => (0, u16::MAX as i128),
            Self::Uint32 => (0, u32::MAX as i128),
            Self::Uint64 => (0, u64::MAX as i128),
            _ => return None,
        })
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_keyword_names_its_kind() {
        for kind in FieldKind::ALL {
            assert_eq!(FieldKind::of_keyword(kind.keyword()), Some(kind));
            assert_eq!(kind.keyword(), format!("{PREFIX}{kind:?}"));
            assert_eq!(serde_json::to_value(kind).expect("a name"), kind.name());
        }
        assert!(
            FieldKind::ALL
                .windows(2)
                .all(|pair| pair[0].name() < pair[1].name())
        );
        assert_eq!(FieldKind::of_keyword("TypeDef:Int128"), None);
    }
}
