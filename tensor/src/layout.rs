//! Records of fixed size: the offset and the type of each field.
//!
//! The file states the offsets; they are never derived from the order of JSON keys, which differs
//! between producers. A caller that has a layout engine for the schema passes it as a
//! [`LayoutOracle`]; the layout that it computes must equal the one in the file.

mod typedef;

use std::borrow::Cow;

use crate::error::{QuotedText, Result, TensorErrorCode, fail};

pub use typedef::SchemaLayouts;

/// Bytes of the length before a field of bytes.
pub(crate) const LENGTH_BYTES: usize = 4;

/// The type of a record's field. The names are the kinds of the schema keywords.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FieldType {
    /// 0 or 1 in a byte.
    Boolean,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// Unsigned, 8 bits.
    Uint8,
    /// Unsigned, 16 bits.
    Uint16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// IEEE 754 binary16.
    Float16,
    /// The upper half of a binary32.
    BFloat16,
    /// IEEE 754 binary32.
    Float32,
    /// IEEE 754 binary64.
    Float64,
    /// Index of a member of the schema's `enum`, 32 bits.
    Enum,
    /// UTF-8 in `len` bytes, padded with zeros.
    String,
    /// RFC 3339 in `len` bytes, padded with zeros.
    Timestamp,
    /// A length of 32 bits, and that many bytes, padded with zeros to `len`.
    Bytes,
    /// `len` bytes with one of several layouts.
    Union,
    /// Offset and length, of 64 bits each, of bytes outside the record.
    Indirect,
}

impl FieldType {
    /// Every type.
    pub const ALL: [Self; 19] = [
        Self::Boolean,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Float16,
        Self::BFloat16,
        Self::Float32,
        Self::Float64,
        Self::Enum,
        Self::String,
        Self::Timestamp,
        Self::Bytes,
        Self::Union,
        Self::Indirect,
    ];

    /// The name in `mt.index`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Boolean => "Boolean",
            Self::Int8 => "Int8",
            Self::Int16 => "Int16",
            Self::Int32 => "Int32",
            Self::Int64 => "Int64",
            Self::Uint8 => "Uint8",
            Self::Uint16 => "Uint16",
            Self::Uint32 => "Uint32",
            Self::Uint64 => "Uint64",
            Self::Float16 => "Float16",
            Self::BFloat16 => "BFloat16",
            Self::Float32 => "Float32",
            Self::Float64 => "Float64",
            Self::Enum => "Enum",
            Self::String => "String",
            Self::Timestamp => "Timestamp",
            Self::Bytes => "Bytes",
            Self::Union => "Union",
            Self::Indirect => "Indirect",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Bytes of one value; `None` if `len` states them.
    #[must_use]
    pub const fn width(self) -> Option<u64> {
        match self {
            Self::Boolean | Self::Int8 | Self::Uint8 => Some(1),
            Self::Int16 | Self::Uint16 | Self::Float16 | Self::BFloat16 => Some(2),
            Self::Int32 | Self::Uint32 | Self::Float32 | Self::Enum => Some(4),
            Self::Int64 | Self::Uint64 | Self::Float64 => Some(8),
            Self::Indirect => Some(16),
            Self::String | Self::Timestamp | Self::Bytes | Self::Union => None,
        }
    }
}

/// One field of a record.
///
/// ```
/// use alknet_tensor::{FieldType, StructField};
///
/// let field = StructField::new("/at", FieldType::Float32, 8).with_len(3);
/// assert_eq!(field.bytes(), Some(12));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructField<'a> {
    /// The path as the layout engine writes it. It is compared as a whole.
    pub path: Cow<'a, str>,
    /// The type.
    pub kind: FieldType,
    /// Offset in the record, in bytes.
    pub off: u64,
    /// The number of consecutive values, or of bytes for a type without a width.
    pub len: u64,
}

impl<'a> StructField<'a> {
    /// A single value.
    pub fn new(path: impl Into<Cow<'a, str>>, kind: FieldType, off: u64) -> Self {
        Self {
            path: path.into(),
            kind,
            off,
            len: 1,
        }
    }

    /// Sets the number of values or bytes.
    #[must_use]
    pub const fn with_len(mut self, len: u64) -> Self {
        self.len = len;
        self
    }

    /// The field's bytes; `None` if they overflow 64 bits.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        match self.kind {
            FieldType::Bytes => self.len.checked_add(LENGTH_BYTES as u64),
            kind => kind.width().unwrap_or(1).checked_mul(self.len),
        }
    }
}

/// The layout of a schema's definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StructLayout {
    /// Bytes from one record to the next.
    pub stride: u64,
    /// The fields, sorted by offset.
    pub fields: Vec<StructField<'static>>,
    /// The number of members of each `Enum`, by its path.
    pub members: Vec<(String, u32)>,
}

/// Computes layouts from schemas: the interface to the schema engine.
pub trait LayoutOracle {
    /// Computes the layout of the definition `def` in `schema`, the text of a JSON Schema.
    ///
    /// # Errors
    /// One line that says what is wrong with the schema or the definition.
    fn layout(&self, schema: &str, def: &str) -> Result<StructLayout, String>;
}

/// Checks that every field lies within the record and that no two share a byte.
pub(crate) fn check_fields(name: &str, stride: u64, fields: &[StructField<'_>]) -> Result<()> {
    let name = QuotedText(name);
    let mut ranges = Vec::with_capacity(fields.len());
    for field in fields {
        let path = QuotedText(&field.path);
        // Offsets and lengths come from the file, so their sum may overflow.
        let end = field.bytes().and_then(|bytes| bytes.checked_add(field.off));
        let Some(end) = end else {
            let what = format!("struct {name}: field {path}: offset and size do not fit 64 bits");
            return fail(TensorErrorCode::Overflow, what);
        };
        if end > stride {
            let what = format!(
                "struct {name}: field {path} ends at {end}, beyond the record of {stride} bytes"
            );
            return fail(TensorErrorCode::Layout, what);
        }
        ranges.push((field.off, end, &field.path));
    }
    // Sorted by offset, two fields that overlap imply two neighbours that do.
    ranges.sort_unstable();
    for two in ranges.windows(2) {
        let [(_, end, first), (off, _, second)] = two else {
            continue;
        };
        if first == second || off < end {
            let what = format!(
                "struct {name}: fields {} and {} share bytes or a path",
                QuotedText(first),
                QuotedText(second)
            );
            return fail(TensorErrorCode::Layout, what);
        }
    }
    // Two fields with the same path need not be neighbours by offset.
    let mut paths: Vec<_> = fields.iter().map(|field| &*field.path).collect();
    paths.sort_unstable();
    match paths.windows(2).find(|two| two[0] == two[1]) {
        None => Ok(()),
        Some(two) => fail(
            TensorErrorCode::Layout,
            format!("struct {name}: field {} comes twice", QuotedText(two[0])),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stride: u64, fields: &[StructField<'_>]) -> Option<TensorErrorCode> {
        check_fields("s", stride, fields).err().map(|e| e.code())
    }

    #[test]
    fn names_are_unique() {
        for kind in FieldType::ALL {
            assert_eq!(FieldType::from_name(kind.name()), Some(kind));
        }
    }

    #[test]
    fn fields_touch_and_do_not_overlap() {
        let a = StructField::new("a", FieldType::Float64, 0);
        let b = StructField::new("b", FieldType::Uint8, 8).with_len(4);
        assert_eq!(check(12, &[b.clone(), a.clone()]), None);
        assert_eq!(check(11, &[a.clone(), b]), Some(TensorErrorCode::Layout));
        let inside = StructField::new("c", FieldType::Uint8, 7);
        assert_eq!(
            check(12, &[a.clone(), inside]),
            Some(TensorErrorCode::Layout)
        );
        let same = StructField::new("a", FieldType::Uint8, 8);
        assert_eq!(check(12, &[a, same]), Some(TensorErrorCode::Layout));
    }

    #[test]
    fn sizes_beyond_64_bits_are_refused() {
        let long = StructField::new("a", FieldType::Float64, 0).with_len(1 << 62);
        assert_eq!(check(8, &[long]), Some(TensorErrorCode::Overflow));
        let far = StructField::new("a", FieldType::Uint8, u64::MAX);
        assert_eq!(check(8, &[far]), Some(TensorErrorCode::Overflow));
    }
}
