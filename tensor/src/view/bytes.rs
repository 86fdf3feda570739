//! Bytes that are borrowed from a source or were read into memory.

use std::ops::{Deref, Range};

use crate::error::{Result, TensorError, TensorErrorCode, fail};

/// Bytes read at once: a piece stays in the processor's cache while it is copied, and memory is touched no faster
/// than bytes arrive.
const READ_BYTES: usize = 1 << 20;

/// Owned bytes with the alignment of every element type.
#[derive(Clone, Debug, Default)]
pub struct AlignedBytes {
    words: Vec<u64>,
    len: usize,
}

impl AlignedBytes {
    /// Fills `len` bytes piece by piece; `fill` gets the offset of each piece.
    pub(crate) fn read(
        len: u64,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let too_long =
            || TensorError::new(TensorErrorCode::Limit, format!("no memory for {len} bytes"));
        let whole = usize::try_from(len).map_err(|_| too_long())?;
        let mut words = Vec::new();
        // The length may come from a file: if memory is exhausted this returns an error, where a plain `reserve`
        // would abort the process.
        words
            .try_reserve_exact(whole.div_ceil(8))
            .map_err(|_| too_long())?;
        let mut at = 0;
        while at < whole {
            let end = whole.min(at + READ_BYTES);
            words.resize(end.div_ceil(8), 0);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
            fill(at as u64, &mut bytes[at..end])?;
            at = end;
        }
        Ok(Self { words, len: whole })
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        &bytes[..self.len]
    }
}

/// The bytes of a view.
#[derive(Clone, Debug)]
pub enum ViewBytes<'a> {
    /// Borrowed from a source in memory.
    Borrowed(&'a [u8]),
    /// Read from another source.
    Owned(AlignedBytes),
}

impl Deref for ViewBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A part of `bytes`.
///
/// # Errors
/// `E_SHAPE` if the range does not lie within them.
pub(crate) fn part<'b>(bytes: &'b [u8], range: &Range<u64>) -> Result<&'b [u8]> {
    let inside = usize::try_from(range.start)
        .ok()
        .zip(usize::try_from(range.end).ok());
    match inside.and_then(|(start, end)| bytes.get(start..end)) {
        Some(part) => Ok(part),
        None => fail(
            TensorErrorCode::Shape,
            format!("bytes {range:?} of {} bytes", bytes.len()),
        ),
    }
}
