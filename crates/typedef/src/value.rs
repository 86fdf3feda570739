//! The value of a field.

/// A value read from bytes, or to be written.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RecordValue {
    /// The items of an `Array`.
    Array(Vec<Self>),
    /// The value of a `Boolean`.
    Bool(bool),
    /// The content of `Bytes`.
    Bytes(Vec<u8>),
    /// The index of an `Enum`'s member, from 0.
    Enum(u32),
    /// The value of a `Float16`, `BFloat16`, `Float32` or `Float64`; rounded to the field when written.
    Float(f64),
    /// The location of the content in another region, in bytes, for an `indirect` text.
    Indirect {
        /// The offset in that region.
        off: u64,
        /// The number of bytes.
        len: u64,
    },
    /// The value of an `Int8`, `Int16`, `Int32` or `Int64`.
    Int(i64),
    /// The content of a `Record`: names and values, each name once.
    Record(Vec<(String, Self)>),
    /// The fields of a `Struct`, in the schema's order.
    Struct(Vec<(String, Self)>),
    /// A `Tensor`, which has no bytes.
    Tensor,
    /// The content of a `String` or `Timestamp`.
    Text(String),
    /// The value of a `Uint8`, `Uint16`, `Uint32` or `Uint64`.
    Uint(u64),
    /// The content of a `Union`: the name of the variant in its mapping, and the variant's value.
    Union(String, Box<Self>),
}

impl RecordValue {
    /// Its kind, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Array(_) => "an array",
            Self::Bool(_) => "a truth value",
            Self::Bytes(_) => "bytes",
            Self::Enum(_) => "a member of an enum",
            Self::Float(_) => "a floating-point number",
            Self::Indirect { .. } => "a place in another region",
            Self::Int(_) => "a signed integer",
            Self::Record(_) => "a record",
            Self::Struct(_) => "a struct",
            Self::Tensor => "a tensor",
            Self::Text(_) => "text",
            Self::Uint(_) => "an unsigned integer",
            Self::Union(..) => "a union",
        }
    }
}
