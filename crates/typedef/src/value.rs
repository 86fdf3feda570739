//! What a field holds.

/// A value out of bytes, or for them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RecordValue {
    /// Of an `Array`.
    Array(Vec<Self>),
    /// Of a `Boolean`.
    Bool(bool),
    /// Of `Bytes`.
    Bytes(Vec<u8>),
    /// Of an `Enum`: which of its members, from 0.
    Enum(u32),
    /// Of a `Float16`, `BFloat16`, `Float32` or `Float64`; rounded to the field when written.
    Float(f64),
    /// Where the content lies in another region, in bytes: of an `indirect` text.
    Indirect {
        /// From the beginning of that region.
        off: u64,
        /// How many.
        len: u64,
    },
    /// Of an `Int8`, `Int16`, `Int32` or `Int64`.
    Int(i64),
    /// Of a `Record`: names and values, each name once.
    Record(Vec<(String, Self)>),
    /// Of a `Struct`: its fields, in the schema's order.
    Struct(Vec<(String, Self)>),
    /// Of a `Tensor`: there is nothing in the bytes.
    Tensor,
    /// Of a `String` or `Timestamp`.
    Text(String),
    /// Of a `Uint8`, `Uint16`, `Uint32` or `Uint64`.
    Uint(u64),
    /// Of a `Union`: the name of the variant in its mapping, and what it holds.
    Union(String, Box<Self>),
}

impl RecordValue {
    /// What it is, for messages.
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
