//! Records of fixed size: record by record, or one field of all records.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::StructInfo;
use crate::layout::{FieldType, LENGTH_BYTES, StructField};
use crate::view::bytes::{ViewBytes, part};
use crate::view::element::Element;

/// The records of a struct.
#[derive(Clone, Debug)]
pub struct StructView<'a> {
    info: StructInfo<'a>,
    count: u64,
    bytes: ViewBytes<'a>,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RecordFieldValue<'a> {
    /// `Boolean`.
    Bool(bool),
    /// The content of `Bytes`, or the bytes of a `Union`.
    Bytes(&'a [u8]),
    /// The floating-point types.
    Float(f64),
    /// The signed types.
    Int(i64),
    /// Several values, in order.
    List(Vec<Self>),
    /// `Indirect`: the position of bytes outside the record.
    Span {
        /// Their offset.
        offset: u64,
        /// Their number.
        len: u64,
    },
    /// `String` and `Timestamp`, without the padding zeros.
    Text(&'a str),
    /// The unsigned types, and the index of an `Enum`'s member.
    Uint(u64),
}

impl<'a> StructView<'a> {
    /// `bytes` must be `count` of the records that `info` describes.
    pub(crate) const fn trusted(info: StructInfo<'a>, count: u64, bytes: ViewBytes<'a>) -> Self {
        Self { info, count, bytes }
    }

    /// The number of records.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are no records.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes from one record to the next.
    #[must_use]
    pub const fn stride(&self) -> u64 {
        self.info.stride()
    }

    /// All records, end to end.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The fields of a record.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = StructField<'a>> + use<'a> {
        self.info.fields()
    }

    /// The field with this path.
    ///
    /// # Errors
    /// `E_NOTFOUND` if records have no such field.
    pub fn field(&self, path: &str) -> Result<StructField<'a>> {
        let found = self.info.fields().find(|field| field.path == path);
        found.ok_or_else(|| {
            TensorError::new(
                TensorErrorCode::NotFound,
                format!("no field {}", QuotedText(path)),
            )
        })
    }

    /// One record.
    ///
    /// # Errors
    /// `E_NOTFOUND` if the struct has fewer records.
    pub fn record(&self, at: u64) -> Result<StructRecord<'_>> {
        if at >= self.count {
            let what = format!("record {at} of {}", self.count);
            return fail(TensorErrorCode::NotFound, what);
        }
        let stride = self.stride();
        // The bytes are `count` records, and `at` is below `count`, so the product does not
        // overflow.
        let bytes = part(&self.bytes, &(at * stride..(at + 1) * stride))?;
        Ok(StructRecord {
            info: self.info,
            bytes,
        })
    }

    /// Every record.
    pub fn records(&self) -> impl Iterator<Item = StructRecord<'_>> {
        let info = self.info;
        // Parsing the header refuses records of no bytes; `max` only keeps the division defined.
        let stride = usize::try_from(self.stride()).unwrap_or(usize::MAX).max(1);
        let records = self.bytes.chunks_exact(stride);
        records.map(move |bytes| StructRecord { info, bytes })
    }

    /// One field of all records; its first value if it has several.
    ///
    /// # Errors
    /// `E_NOTFOUND` if records have no such field; `E_DTYPE` if it has another type.
    pub fn column<T: Element>(&self, path: &str) -> Result<FieldColumn<'_, T>> {
        let field = self.field(path)?;
        let name = QuotedText(path);
        if !T::FIELDS.contains(&field.kind) {
            let what = format!(
                "field {name} is {}, no {}",
                field.kind.name(),
                std::any::type_name::<T>()
            );
            return fail(TensorErrorCode::Dtype, what);
        }
        if field.len == 0 {
            return fail(TensorErrorCode::Dtype, format!("field {name} has no value"));
        }
        Ok(FieldColumn {
            bytes: &self.bytes,
            // A field lies within a record, and the records within the bytes, so both fit a
            // `usize`.
            stride: usize::try_from(self.stride()).unwrap_or(usize::MAX),
            off: usize::try_from(field.off).unwrap_or(usize::MAX),
            element: PhantomData,
        })
    }
}

/// One field of every record.
#[derive(Clone, Debug)]
pub struct FieldColumn<'a, T> {
    bytes: &'a [u8],
    stride: usize,
    off: usize,
    element: PhantomData<T>,
}

impl<T: Element> Iterator for FieldColumn<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let (record, rest) = self.bytes.split_at_checked(self.stride)?;
        if record.is_empty() {
            return None;
        }
        // Records have no padding for alignment, so the value is read unaligned.
        let value = record.get(self.off..)?.get(..size_of::<T>())?;
        self.bytes = rest;
        Some(bytemuck::pod_read_unaligned(value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / self.stride.max(1);
        (left, Some(left))
    }
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct StructRecord<'a> {
    info: StructInfo<'a>,
    bytes: &'a [u8],
}

impl<'a> StructRecord<'a> {
    /// The record's bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The value of the field with this path.
    ///
    /// # Errors
    /// `E_NOTFOUND` if records have no such field. `E_VALUE` if the bytes are no value of its type.
    pub fn get(&self, path: &str) -> Result<RecordFieldValue<'a>> {
        let found = self.info.fields().find(|field| field.path == path);
        let Some(field) = found else {
            return fail(
                TensorErrorCode::NotFound,
                format!("no field {}", QuotedText(path)),
            );
        };
        self.value(&field)
    }

    /// The value of a field of these records.
    ///
    /// # Errors
    /// `E_VALUE` if the bytes are no value of its type.
    pub fn value(&self, field: &StructField<'_>) -> Result<RecordFieldValue<'a>> {
        let label = || format!("field {}", QuotedText(&field.path));
        let end = field.bytes().and_then(|bytes| bytes.checked_add(field.off));
        let Some(end) = end else {
            return fail(TensorErrorCode::Overflow, format!("{}: {field:?}", label()));
        };
        let bytes =
            part(self.bytes, &(field.off..end)).map_err(|error| error.with_subject(label()))?;
        read(field.kind, field.len, bytes).map_err(|error| error.with_subject(label()))
    }
}

/// Reads `bytes` as `len` values of a kind.
fn read(kind: FieldType, len: u64, bytes: &[u8]) -> Result<RecordFieldValue<'_>> {
    match kind.width() {
        None => sized(kind, bytes),
        Some(_) if len == 1 => scalar(kind, bytes),
        Some(width) => {
            // A width is at most 16, so the cast keeps it.
            let values = bytes.chunks_exact(width as usize);
            let values = values.map(|value| scalar(kind, value));
            Ok(RecordFieldValue::List(values.collect::<Result<_>>()?))
        }
    }
}

/// Reads a field whose length the layout states.
fn sized(kind: FieldType, bytes: &[u8]) -> Result<RecordFieldValue<'_>> {
    match kind {
        FieldType::String | FieldType::Timestamp => {
            // The schema pads texts with zeros, so only zeros at the end are removed.
            let end = bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            let text = std::str::from_utf8(&bytes[..end]);
            let text =
                text.map_err(|error| TensorError::new(TensorErrorCode::Value, error.to_string()))?;
            Ok(RecordFieldValue::Text(text))
        }
        FieldType::Bytes => {
            let Some((len, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
                let what = format!("{} bytes have no room for a length", bytes.len());
                return fail(TensorErrorCode::Value, what);
            };
            let len = u32::from_le_bytes(*len);
            match rest.get(..len as usize) {
                Some(content) => Ok(RecordFieldValue::Bytes(content)),
                None => fail(
                    TensorErrorCode::Value,
                    format!("{len} bytes in a field of {}", rest.len()),
                ),
            }
        }
        _ => Ok(RecordFieldValue::Bytes(bytes)),
    }
}

/// Reads one value of a kind with a width; `bytes` must be as many.
fn scalar(kind: FieldType, bytes: &[u8]) -> Result<RecordFieldValue<'_>> {
    use RecordFieldValue::{Bool, Float, Int, Span, Uint};
    Ok(match kind {
        FieldType::Boolean => match array(bytes)? {
            [0] => Bool(false),
            [1] => Bool(true),
            [other] => {
                return fail(
                    TensorErrorCode::Value,
                    format!("boolean {other}, neither 0 nor 1"),
                );
            }
        },
        FieldType::Int8 => Int(i8::from_le_bytes(array(bytes)?).into()),
        FieldType::Int16 => Int(i16::from_le_bytes(array(bytes)?).into()),
        FieldType::Int32 => Int(i32::from_le_bytes(array(bytes)?).into()),
        FieldType::Int64 => Int(i64::from_le_bytes(array(bytes)?)),
        FieldType::Uint8 => Uint(u8::from_le_bytes(array(bytes)?).into()),
        FieldType::Uint16 => Uint(u16::from_le_bytes(array(bytes)?).into()),
        FieldType::Uint32 | FieldType::Enum => Uint(u32::from_le_bytes(array(bytes)?).into()),
        FieldType::Uint64 => Uint(u64::from_le_bytes(array(bytes)?)),
        FieldType::Float16 => Float(f16::from_le_bytes(array(bytes)?).into()),
        FieldType::BFloat16 => Float(bf16::from_le_bytes(array(bytes)?).into()),
        FieldType::Float32 => Float(f32::from_le_bytes(array(bytes)?).into()),
        FieldType::Float64 => Float(f64::from_le_bytes(array(bytes)?)),
        FieldType::Indirect => {
            let both: [u8; 16] = array(bytes)?;
            let (offset, len) = both.split_at(8);
            Span {
                offset: u64::from_le_bytes(array(offset)?),
                len: u64::from_le_bytes(array(len)?),
            }
        }
        FieldType::String | FieldType::Timestamp | FieldType::Bytes | FieldType::Union => {
            return sized(kind, bytes);
        }
    })
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    let what = || {
        TensorError::new(
            TensorErrorCode::Layout,
            format!("{} bytes for {N}", bytes.len()),
        )
    };
    bytes.try_into().map_err(|_| what())
}
