//! The small floating-point formats, and the conversion of every type to `f32`.
//!
//! Layouts: OCP 8-bit floating point (E5M2, E4M3), OCP microscaling formats (E2M1, E2M3, E3M2,
//! E8M0), and the variants without infinities and negative zero (FNUZ).

use half::{bf16, f16};

use crate::dtype::Dtype;

/// A format of sign, exponent and fraction in at most 8 bits.
struct SmallFloatFormat {
    exponent_bits: u32,
    fraction_bits: u32,
    bias: i32,
    /// Whether the highest exponent means infinity and NaN, as in IEEE 754.
    ieee: bool,
    /// The NaN patterns of a format that has some and differs from IEEE 754.
    nan: fn(u8) -> bool,
}

const E2M1: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 2,
    fraction_bits: 1,
    bias: 1,
    ieee: false,
    nan: |_| false,
};
const E2M3: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 2,
    fraction_bits: 3,
    bias: 1,
    ieee: false,
    nan: |_| false,
};
const E3M2: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 3,
    fraction_bits: 2,
    bias: 3,
    ieee: false,
    nan: |_| false,
};
const E5M2: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 5,
    fraction_bits: 2,
    bias: 15,
    ieee: true,
    nan: |_| false,
};
const E4M3: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 4,
    fraction_bits: 3,
    bias: 7,
    ieee: false,
    nan: |bits| bits & 0x7f == 0x7f,
};
const E4M3_FNUZ: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 4,
    fraction_bits: 3,
    bias: 8,
    ieee: false,
    nan: |bits| bits == 0x80,
};
const E5M2_FNUZ: SmallFloatFormat = SmallFloatFormat {
    exponent_bits: 5,
    fraction_bits: 2,
    bias: 16,
    ieee: false,
    nan: |bits| bits == 0x80,
};

impl SmallFloatFormat {
    /// The number that these bits represent. `f32` represents every number of these formats
    /// exactly.
    fn to_f32(&self, bits: u8) -> f32 {
        let fraction_max = 1_u32 << self.fraction_bits;
        let exponent_max = (1_u32 << self.exponent_bits) - 1;
        let fraction = u32::from(bits) & (fraction_max - 1);
        let exponent = (u32::from(bits) >> self.fraction_bits) & exponent_max;
        let negative = (u32::from(bits) >> (self.fraction_bits + self.exponent_bits)) & 1 == 1;
        if (self.nan)(bits) {
            return f32::NAN;
        }
        let size = if self.ieee && exponent == exponent_max {
            if fraction == 0 {
                f32::INFINITY
            } else {
                f32::NAN
            }
        } else {
            // An exponent of 0 means a subnormal number, which has no implicit leading bit.
            let (whole, exponent) = match exponent {
                0 => (fraction, 1),
                _ => (fraction + fraction_max, exponent),
            };
            // At most 4 bits times a power of two between 2^-18 and 2^15, which `f32` represents
            // exactly.
            whole as f32 * power_of_two(exponent as i32 - self.bias - self.fraction_bits as i32)
        };
        if negative { -size } else { size }
    }
}

/// A power of two as `f32`; exact for every exponent of a normal `f32`.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// E8M0: an exponent alone, and one pattern for NaN.
fn scale(bits: u8) -> f32 {
    match bits {
        0xff => f32::NAN,
        // 2^-127 is subnormal in `f32`, so it is a pattern of its own.
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(bits) << 23),
    }
}

/// Appends every element as `f32`, rounded if `f32` has fewer bits. `None` for complex numbers.
///
/// `bytes` must be whole elements.
pub(super) fn append_f32(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) -> Option<()> {
    let small = |format: &'static SmallFloatFormat| bytes.iter().map(|bits| format.to_f32(*bits));
    match dtype {
        Dtype::C64 => return None,
        Dtype::F4 => out.extend(packed::<4>(bytes).map(|bits| E2M1.to_f32(bits))),
        Dtype::F6E2M3 => out.extend(packed::<6>(bytes).map(|bits| E2M3.to_f32(bits))),
        Dtype::F6E3M2 => out.extend(packed::<6>(bytes).map(|bits| E3M2.to_f32(bits))),
        Dtype::Bool | Dtype::U8 => out.extend(bytes.iter().map(|byte| f32::from(*byte))),
        Dtype::I8 => out.extend(bytes.iter().map(|byte| f32::from(byte.cast_signed()))),
        Dtype::F8E5M2 => out.extend(small(&E5M2)),
        Dtype::F8E4M3 => out.extend(small(&E4M3)),
        Dtype::F8E8M0 => out.extend(bytes.iter().map(|bits| scale(*bits))),
        Dtype::F8E4M3Fnuz => out.extend(small(&E4M3_FNUZ)),
        Dtype::F8E5M2Fnuz => out.extend(small(&E5M2_FNUZ)),
        Dtype::I16 => out.extend(words(bytes, |word| f32::from(i16::from_le_bytes(word)))),
        Dtype::U16 => out.extend(words(bytes, |word| f32::from(u16::from_le_bytes(word)))),
        Dtype::F16 => out.extend(words(bytes, |word| f16::from_le_bytes(word).to_f32())),
        Dtype::Bf16 => out.extend(words(bytes, |word| bf16::from_le_bytes(word).to_f32())),
        Dtype::I32 => out.extend(words(bytes, |word| i32::from_le_bytes(word) as f32)),
        Dtype::U32 => out.extend(words(bytes, |word| u32::from_le_bytes(word) as f32)),
        Dtype::F32 => out.extend(words(bytes, f32::from_le_bytes)),
        Dtype::F64 => out.extend(words(bytes, |word| f64::from_le_bytes(word) as f32)),
        Dtype::I64 => out.extend(words(bytes, |word| i64::from_le_bytes(word) as f32)),
        Dtype::U64 => out.extend(words(bytes, |word| u64::from_le_bytes(word) as f32)),
    }
    Some(())
}

fn words<'a, const N: usize>(
    bytes: &'a [u8],
    read: impl Fn([u8; N]) -> f32 + 'a,
) -> impl Iterator<Item = f32> + 'a {
    let (words, _) = bytes.as_chunks::<N>();
    words.iter().map(move |word| read(*word))
}

/// Elements of `BITS` bits, beginning with the lowest bit of the first byte.
fn packed<const BITS: usize>(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let count = bytes.len() * 8 / BITS;
    (0..count).map(move |at| {
        let (byte, shift) = (at * BITS / 8, at * BITS % 8);
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |byte| u16::from(*byte));
        let bits = (low | high << 8) >> shift;
        // The mask leaves less than a byte, so the cast keeps the value.
        (bits & ((1 << BITS) - 1)) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::new();
        append_f32(dtype, bytes, &mut out).expect("a real number");
        out
    }

    /// Values of the tables in the formats' documents.
    #[test]
    fn known_values() {
        let f4 = one(Dtype::F4, &[0x10, 0x32, 0x54, 0x76, 0x98, 0xfe]);
        let want = [
            0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -4.0, -6.0,
        ];
        assert_eq!(f4, want);
        assert!(f4[8].is_sign_negative());
        assert_eq!(
            one(Dtype::F8E4M3, &[0x7e, 0x01, 0x38]),
            [448.0, 0.001_953_125, 1.0]
        );
        assert!(one(Dtype::F8E4M3, &[0xff])[0].is_nan());
        assert_eq!(
            one(Dtype::F8E5M2, &[0x7b, 0x7c, 0xfc]),
            [57344.0, f32::INFINITY, f32::NEG_INFINITY]
        );
        assert!(one(Dtype::F8E5M2, &[0x7d])[0].is_nan());
        assert_eq!(one(Dtype::F8E4M3Fnuz, &[0x7f, 0x40]), [240.0, 1.0]);
        assert!(one(Dtype::F8E4M3Fnuz, &[0x80])[0].is_nan());
        assert_eq!(one(Dtype::F8E5M2Fnuz, &[0x7f, 0x40]), [57344.0, 1.0]);
        let scales = one(Dtype::F8E8M0, &[0, 1, 127, 254]);
        assert_eq!(
            scales,
            [2_f32.powi(-127), 2_f32.powi(-126), 1.0, 2_f32.powi(127)]
        );
        assert!(one(Dtype::F8E8M0, &[255])[0].is_nan());
    }

    #[test]
    fn six_bits_are_taken_from_the_lowest_on() {
        // 0b011111, 0b100001, 0b000000, 0b111111
        let packed: u32 = 0b01_1111 | 0b10_0001 << 6 | 0b11_1111 << 18;
        let bytes = packed.to_le_bytes();
        assert_eq!(one(Dtype::F6E2M3, &bytes[..3]), [7.5, -0.125, 0.0, -7.5]);
        assert_eq!(one(Dtype::F6E3M2, &bytes[..3]), [28.0, -0.0625, 0.0, -28.0]);
    }

    #[test]
    fn whole_numbers_and_halves() {
        assert_eq!(one(Dtype::I8, &[0xff]), [-1.0]);
        assert_eq!(one(Dtype::I16, &[0, 0x80]), [-32768.0]);
        assert_eq!(one(Dtype::F16, &[0, 0x3c]), [1.0]);
        assert_eq!(one(Dtype::Bf16, &[0x80, 0x3f]), [1.0]);
        assert_eq!(one(Dtype::U64, &u64::MAX.to_le_bytes()), [2_f32.powi(64)]);
        assert!(append_f32(Dtype::C64, &[0; 8], &mut Vec::new()).is_none());
    }
}
