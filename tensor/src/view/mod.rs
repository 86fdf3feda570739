//! Views of data: elements, records and items.

mod blob;
mod bytes;
mod element;
mod float;
mod records;

use std::borrow::Cow;
use std::ops::Range;

use bytemuck::PodCastError;

use crate::dtype::{Dtype, ElementType};
use crate::error::{Result, TensorError, TensorErrorCode, fail};
use crate::header::byte_len;

pub use blob::BlobView;
pub use bytes::{AlignedBytes, ViewBytes};
pub use element::Element;
pub use records::{FieldColumn, RecordFieldValue, StructRecord, StructView};

pub(crate) use blob::{check_end, check_offsets};
pub(crate) use bytes::part;

/// Elements of one type.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    dtype: ElementType<'a>,
    shape: Cow<'a, [u64]>,
    bytes: ViewBytes<'a>,
}

impl<'a> TensorView<'a> {
    /// Views elements in memory.
    ///
    /// # Errors
    /// `E_SHAPE` if the number of bytes contradicts the shape; `E_OVERFLOW`, `E_DTYPE`.
    pub fn new(dtype: Dtype, shape: impl Into<Cow<'a, [u64]>>, bytes: &'a [u8]) -> Result<Self> {
        let shape = shape.into();
        let dtype = ElementType::Known(dtype);
        let wanted = byte_len(dtype, &shape)?;
        if wanted != bytes.len() as u64 {
            let what = format!(
                "{dtype} of shape {shape:?} is {wanted} bytes, here are {}",
                bytes.len()
            );
            return fail(TensorErrorCode::Shape, what);
        }
        Ok(Self::trusted(dtype, shape, ViewBytes::Borrowed(bytes)))
    }

    /// The same for sizes that the caller has checked.
    pub(crate) const fn trusted(
        dtype: ElementType<'a>,
        shape: Cow<'a, [u64]>,
        bytes: ViewBytes<'a>,
    ) -> Self {
        Self {
            dtype,
            shape,
            bytes,
        }
    }

    /// The element type.
    #[must_use]
    pub const fn dtype(&self) -> ElementType<'a> {
        self.dtype
    }

    /// The dimensions; an empty slice for a single element.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The bytes as they are in the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of the view, borrowed or owned.
    #[must_use]
    pub fn into_bytes(self) -> ViewBytes<'a> {
        self.bytes
    }

    /// The elements without a copy.
    ///
    /// ```
    /// use alknet_tensor::{Dtype, TensorView};
    ///
    /// let view = TensorView::new(Dtype::U8, vec![2], &[1, 2])?;
    /// assert_eq!(view.as_slice::<u8>()?, [1, 2]);
    /// # Ok::<(), alknet_tensor::TensorError>(())
    /// ```
    ///
    /// # Errors
    /// `E_DTYPE` if they have another type; `E_ALIGN` if they are not aligned for the type, so that
    /// the caller has to copy; `E_VALUE` if a boolean is neither 0 nor 1.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let known = self.known()?;
        if !T::DTYPES.contains(&known) {
            let what = format!("{known} is no {}", std::any::type_name::<T>());
            return fail(TensorErrorCode::Dtype, what);
        }
        // A `bool` of Rust with another bit pattern than 0 or 1 would be undefined behaviour.
        if known == Dtype::Bool {
            check_booleans(self.bytes())?;
        }
        bytemuck::try_cast_slice(self.bytes()).map_err(|error| match error {
            PodCastError::TargetAlignmentGreaterAndInputNotAligned => {
                let what = format!("{known} at an address that is no multiple of its size");
                TensorError::new(TensorErrorCode::Align, what)
            }
            _ => {
                let what = format!("{} bytes of {known}", self.bytes.len());
                TensorError::new(TensorErrorCode::Shape, what)
            }
        })
    }

    /// A part along the first dimension. Borrowed bytes are not copied.
    ///
    /// # Errors
    /// `E_SHAPE` if the tensor has no such rows; `E_DTYPE` if they do not begin and end at a byte,
    /// or the size of an element is unknown.
    pub fn rows(&self, rows: Range<u64>) -> Result<TensorView<'_>> {
        let range = row_bytes(self.dtype, &self.shape, &rows)?;
        let bytes = part(&self.bytes, &range)?;
        let mut shape = self.shape.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.end - rows.start;
        }
        Ok(TensorView::trusted(
            self.dtype,
            Cow::Owned(shape),
            ViewBytes::Borrowed(bytes),
        ))
    }

    /// Every element as `f32`, rounded if `f32` has fewer bits.
    ///
    /// # Errors
    /// `E_DTYPE` for complex numbers and unknown types; `E_VALUE` if a boolean is neither 0 nor 1;
    /// `E_LIMIT` if memory is exhausted.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let known = self.known()?;
        if known == Dtype::Bool {
            check_booleans(self.bytes())?;
        }
        // In 128 bits, because eight times the bytes of a view may exceed 64 bits.
        let count = self.bytes.len() as u128 * 8 / u128::from(known.bits());
        let mut out = Vec::new();
        // Small formats take up to eight times their bytes as `f32`, so the allocation may fail and
        // must not abort the process.
        let room = usize::try_from(count)
            .ok()
            .and_then(|n| out.try_reserve_exact(n).ok());
        if room.is_none() {
            return fail(
                TensorErrorCode::Limit,
                format!("no memory for {count} elements"),
            );
        }
        match float::append_f32(known, self.bytes(), &mut out) {
            Some(()) => Ok(out),
            None => fail(
                TensorErrorCode::Dtype,
                format!("{known} is not a real number"),
            ),
        }
    }

    fn known(&self) -> Result<Dtype> {
        match self.dtype {
            ElementType::Known(dtype) => Ok(dtype),
            ElementType::Opaque(name) => fail(
                TensorErrorCode::Dtype,
                format!(
                    "elements of the unknown type {}",
                    crate::error::QuotedText(name)
                ),
            ),
        }
    }
}

/// Checks that every byte is 0 or 1.
pub(crate) fn check_booleans(bytes: &[u8]) -> Result<()> {
    match bytes.iter().position(|byte| *byte > 1) {
        None => Ok(()),
        Some(at) => fail(
            TensorErrorCode::Value,
            format!("boolean {at} is {}, neither 0 nor 1", bytes[at]),
        ),
    }
}

/// The range of these rows in the bytes of a tensor.
pub(crate) fn row_bytes(
    dtype: ElementType<'_>,
    shape: &[u64],
    rows: &Range<u64>,
) -> Result<Range<u64>> {
    let Some((count, rest)) = shape.split_first() else {
        return fail(TensorErrorCode::Shape, "a single element has no rows");
    };
    if rows.start > rows.end || rows.end > *count {
        return fail(TensorErrorCode::Shape, format!("rows {rows:?} of {count}"));
    }
    // Only the product of the dimensions counts, so the number of rows may be the last factor.
    let mut shape = rest.to_vec();
    shape.push(0);
    let mut bytes_before = |row: u64| {
        if let Some(last) = shape.last_mut() {
            *last = row;
        }
        byte_len(dtype, &shape)
    };
    Ok(bytes_before(rows.start)?..bytes_before(rows.end)?)
}

#[cfg(test)]
mod tests;
