//! The Rust types with which elements can be viewed.

use bytemuck::Pod;
use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::layout::FieldType;

/// A Rust type with which elements can be viewed. Containers are little-endian, and so is every
/// machine that this crate is built for.
pub trait Element: Pod + sealed::SealedElement {
    /// The element types with this representation.
    const DTYPES: &'static [Dtype];
    /// The field types with this representation.
    const FIELDS: &'static [FieldType];
}

mod sealed {
    pub trait SealedElement {}
}

macro_rules! elements {
    ($($rust:ty: $dtypes:expr, $fields:expr;)*) => {
        $(
            impl sealed::SealedElement for $rust {}

            impl Element for $rust {
                const DTYPES: &'static [Dtype] = &$dtypes;
                const FIELDS: &'static [FieldType] = &$fields;
            }
        )*
    };
}

elements! {
    u8: [
        Dtype::Bool,
        Dtype::U8,
        Dtype::F8E5M2,
        Dtype::F8E4M3,
        Dtype::F8E8M0,
        Dtype::F8E4M3Fnuz,
        Dtype::F8E5M2Fnuz,
    ], [FieldType::Boolean, FieldType::Uint8];
    i8: [Dtype::I8], [FieldType::Int8];
    u16: [Dtype::U16], [FieldType::Uint16];
    i16: [Dtype::I16], [FieldType::Int16];
    f16: [Dtype::F16], [FieldType::Float16];
    bf16: [Dtype::Bf16], [FieldType::BFloat16];
    u32: [Dtype::U32], [FieldType::Uint32, FieldType::Enum];
    i32: [Dtype::I32], [FieldType::Int32];
    f32: [Dtype::F32], [FieldType::Float32];
    u64: [Dtype::U64], [FieldType::Uint64];
    i64: [Dtype::I64], [FieldType::Int64];
    f64: [Dtype::F64], [FieldType::Float64];
    [f32; 2]: [Dtype::C64], [];
}

#[cfg(target_endian = "big")]
compile_error!("containers are little-endian and are viewed where they lie");
