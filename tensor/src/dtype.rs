//! Element types. Their names, sizes and order are those of safetensors 0.8.

use std::fmt;

/// The type of an element.
///
/// The order is the stock writer's: the writer packs entries by descending type, then by name.
///
/// ```
/// use alknet_tensor::Dtype;
///
/// assert_eq!(Dtype::from_name("BF16"), Some(Dtype::Bf16));
/// assert_eq!(Dtype::F4.bits(), 4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 0 or 1 in a byte.
    Bool,
    /// E2M1, two in a byte, the first in the low half.
    F4,
    /// E2M3, 6 bits each, from the lowest bit on.
    F6E2M3,
    /// E3M2, 6 bits each, from the lowest bit on.
    F6E3M2,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// IEEE-like, with infinities.
    F8E5M2,
    /// Without infinities.
    F8E4M3,
    /// A power of two: the scale of the block formats.
    F8E8M0,
    /// Without infinities and without a negative zero.
    F8E4M3Fnuz,
    /// Without infinities and without a negative zero.
    F8E5M2Fnuz,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 16 bits.
    U16,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
    /// IEEE 754 binary32.
    F32,
    /// Two binary32: real and imaginary part.
    C64,
    /// IEEE 754 binary64.
    F64,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 64 bits.
    U64,
}

impl Dtype {
    /// Every type, in the stock writer's order.
    pub const ALL: [Self; 22] = [
        Self::Bool,
        Self::F4,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::U8,
        Self::I8,
        Self::F8E5M2,
        Self::F8E4M3,
        Self::F8E8M0,
        Self::F8E4M3Fnuz,
        Self::F8E5M2Fnuz,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::Bf16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::C64,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// The name in a header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::F4 => "F4",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::C64 => "C64",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bits of an element.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::F4 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::Bool
            | Self::U8
            | Self::I8
            | Self::F8E5M2
            | Self::F8E4M3
            | Self::F8E8M0
            | Self::F8E4M3Fnuz
            | Self::F8E5M2Fnuz => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An element type as a file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType<'a> {
    /// A type of this crate.
    Known(Dtype),
    /// A type of another program: its bytes can be read, its elements cannot.
    Opaque(&'a str),
}

impl ElementType<'_> {
    /// The type, if this crate knows it.
    #[must_use]
    pub const fn known(self) -> Option<Dtype> {
        match self {
            Self::Known(dtype) => Some(dtype),
            Self::Opaque(_) => None,
        }
    }
}

impl fmt::Display for ElementType<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(dtype) => dtype.fmt(f),
            Self::Opaque(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_listed_once_in_order() {
        assert!(Dtype::ALL.is_sorted_by(|a, b| a < b));
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("f32"), None);
    }
}
