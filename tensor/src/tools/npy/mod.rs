//! NumPy's file format, versions 1.0 to 3.0: a magic number, a length, a Python literal and the
//! elements.

mod literal;

use std::io::{Read, Write};

use crate::dtype::{Dtype, ElementType};
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::byte_len;
use crate::writer::TensorContent;

use literal::Literal;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Bytes of the literal. NumPy itself refuses more than 10,000 by default.
const LITERAL_BYTES_MAX: u32 = 64 << 10;
/// Alignment of the elements in the file.
const ALIGN: usize = 64;
/// Bytes of magic, version and length in version 1.0.
const HEAD_BYTES: usize = 10;
/// Bytes that are byte-swapped at once.
const PIECE_BYTES: usize = 64 << 10;

/// The types of NumPy, with the names that NumPy gives them without byte order.
const TYPES: [(Dtype, &str); 13] = [
    (Dtype::Bool, "b1"),
    (Dtype::U8, "u1"),
    (Dtype::I8, "i1"),
    (Dtype::I16, "i2"),
    (Dtype::U16, "u2"),
    (Dtype::F16, "f2"),
    (Dtype::I32, "i4"),
    (Dtype::U32, "u4"),
    (Dtype::F32, "f4"),
    (Dtype::C64, "c8"),
    (Dtype::F64, "f8"),
    (Dtype::I64, "i8"),
    (Dtype::U64, "u8"),
];

/// The header of a NumPy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// The element type.
    pub dtype: Dtype,
    /// Whether elements are stored with the most significant byte first.
    pub big_endian: bool,
    /// Whether the first dimension changes fastest.
    pub fortran_order: bool,
    /// The dimensions.
    pub shape: Vec<u64>,
}

/// An array whose header was read.
#[derive(Debug)]
pub struct Npy<R> {
    /// The header.
    pub header: NpyHeader,
    rest: R,
}

impl<R: Read> Npy<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// `E_HEADER` if it is no NumPy file; `E_DTYPE` for an element type that containers do not
    /// have; `E_LIMIT`, `E_IO`.
    pub fn read(mut source: R) -> Result<Self> {
        let mut head = [0; 8];
        exact(&mut source, &mut head)?;
        let [magic @ .., major, _] = head;
        if magic != *MAGIC {
            return fail(TensorErrorCode::Header, "no NumPy file");
        }
        let len = match major {
            1 => {
                let mut len = [0; 2];
                exact(&mut source, &mut len)?;
                u16::from_le_bytes(len).into()
            }
            2 | 3 => {
                let mut len = [0; 4];
                exact(&mut source, &mut len)?;
                u32::from_le_bytes(len)
            }
            _ => {
                return fail(
                    TensorErrorCode::Version,
                    format!("NumPy file of version {major}"),
                );
            }
        };
        // The limit is checked before the allocation, because the length comes from the file.
        if len > LITERAL_BYTES_MAX {
            return fail(
                TensorErrorCode::Limit,
                format!("NumPy header of {len} bytes"),
            );
        }
        let mut literal = vec![0; len as usize];
        exact(&mut source, &mut literal)?;
        let literal = std::str::from_utf8(&literal).map_err(|error| {
            TensorError::new(TensorErrorCode::Header, format!("NumPy header: {error}"))
        })?;
        Ok(Self {
            header: Literal(literal).header()?,
            rest: source,
        })
    }

    /// Bytes of the elements.
    ///
    /// # Errors
    /// `E_OVERFLOW`.
    pub fn byte_len(&self) -> Result<u64> {
        byte_len(ElementType::Known(self.header.dtype), &self.header.shape)
    }

    /// Writes the elements in the order of a container: little-endian, the last dimension fastest.
    ///
    /// # Errors
    /// `E_IO`, also if elements are missing; `E_SHAPE` if bytes are left over; `E_LIMIT` if memory
    /// to reorder them is exhausted.
    pub fn write_elements(mut self, out: &mut dyn Write) -> Result<()> {
        self.elements(out)?;
        // The zip reader checks the checksum of an entry only when its end is read.
        let mut after = [0];
        let more = self.rest.read(&mut after);
        match more.map_err(|error| TensorError::io("read a NumPy file", error))? {
            0 => Ok(()),
            _ => fail(
                TensorErrorCode::Shape,
                "a NumPy file goes on after its elements",
            ),
        }
    }

    fn elements(&mut self, out: &mut dyn Write) -> Result<()> {
        let len = self.byte_len()?;
        let write = |error| TensorError::io("copy elements", error);
        // With at most one dimension both orders are the same.
        let transposed = self.header.fortran_order && self.header.shape.len() > 1;
        if !transposed && !self.header.big_endian {
            let copied = std::io::copy(&mut self.rest.by_ref().take(len), out).map_err(write)?;
            return match copied == len {
                true => Ok(()),
                false => fail(
                    TensorErrorCode::Io,
                    format!("elements end at {copied} of {len} bytes"),
                ),
            };
        }
        let swapped = match (self.header.big_endian, self.header.dtype) {
            (false, _) => 1,
            // The real and the imaginary part are swapped separately.
            (true, Dtype::C64) => 4,
            // Types that NumPy has take 8 to 64 bits, so the cast keeps the value.
            (true, dtype) => (dtype.bits() / 8) as usize,
        };
        if !transposed {
            let mut left = len;
            let mut piece = vec![0; PIECE_BYTES];
            while left > 0 {
                // At most a piece, whose length is a multiple of every element's, so the cast keeps
                // the value.
                let now = left.min(PIECE_BYTES as u64) as usize;
                exact(&mut self.rest, &mut piece[..now])?;
                swap(&mut piece[..now], swapped);
                out.write_all(&piece[..now]).map_err(write)?;
                left -= now as u64;
            }
            return Ok(());
        }
        // The buffer grows as bytes arrive, because the header may state any length.
        let mut bytes = Vec::new();
        let read = read_all(self.rest.by_ref().take(len), &mut bytes)?;
        if read as u64 != len {
            return fail(
                TensorErrorCode::Io,
                format!("elements end at {read} of {len} bytes"),
            );
        }
        swap(&mut bytes, swapped);
        let width = (self.header.dtype.bits() / 8) as usize;
        let turned = transpose(&bytes, width, &self.header.shape)?;
        out.write_all(&turned).map_err(write)
    }
}

impl<'a, R: Read + 'a> Npy<R> {
    /// The elements as the content of a tensor with [`NpyHeader::dtype`] and [`NpyHeader::shape`].
    #[must_use]
    pub fn into_content(self) -> TensorContent<'a> {
        TensorContent::made(move |out| self.write_elements(out))
    }
}

/// The header of a NumPy file of version 1.0.
///
/// # Errors
/// `E_DTYPE` if NumPy has no such type.
pub fn npy_header(dtype: ElementType<'_>, shape: &[u64]) -> Result<Vec<u8>> {
    let found = TYPES.iter().find(|(ours, _)| dtype.known() == Some(*ours));
    let Some((ours, name)) = found else {
        let what = format!("NumPy has no type {}", QuotedText(&dtype.to_string()));
        return fail(TensorErrorCode::Dtype, what);
    };
    let order = if ours.bits() == 8 { '|' } else { '<' };
    let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
    let shape = match dims.as_slice() {
        // Python writes a tuple of one element with a comma.
        [one] => format!("({one},)"),
        more => format!("({})", more.join(", ")),
    };
    let mut literal =
        format!("{{'descr': '{order}{name}', 'fortran_order': False, 'shape': {shape}, }}");
    // The newline is the last byte before the elements.
    let whole = (HEAD_BYTES + literal.len() + 1).next_multiple_of(ALIGN);
    literal.extend((HEAD_BYTES + literal.len() + 1..whole).map(|_| ' '));
    literal.push('\n');
    let Ok(len) = u16::try_from(literal.len()) else {
        return fail(TensorErrorCode::Shape, format!("{} dimensions", dims.len()));
    };
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend(len.to_le_bytes());
    header.extend(literal.into_bytes());
    Ok(header)
}

fn exact(source: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    let read = source.read_exact(buffer);
    read.map_err(|error| TensorError::io("read a NumPy file", error))
}

/// Reverses the bytes of each part of `width` bytes.
fn swap(bytes: &mut [u8], width: usize) {
    if width > 1 {
        bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
}

/// Reorders elements of `width` bytes from the first dimension fastest to the last dimension
/// fastest.
fn transpose(bytes: &[u8], width: usize, shape: &[u64]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    out.try_reserve_exact(bytes.len())
        .map_err(|_| no_memory(bytes.len()))?;
    // The distance in elements between neighbours along each dimension. Their product is in memory,
    // so it fits a `usize`.
    let mut steps = Vec::with_capacity(shape.len());
    let mut step = 1_usize;
    for size in shape {
        steps.push(step);
        step = step.saturating_mul(usize::try_from(*size).unwrap_or(usize::MAX));
    }
    let count = bytes.len() / width;
    let mut place = vec![0_u64; shape.len()];
    let mut at = 0_usize;
    for _ in 0..count {
        out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
        for dim in (0..shape.len()).rev() {
            place[dim] += 1;
            at += steps[dim];
            if place[dim] < shape[dim] {
                break;
            }
            // Back to the beginning of this dimension, and one step along the dimension before it.
            at -= steps[dim] * usize::try_from(shape[dim]).unwrap_or(0);
            place[dim] = 0;
        }
    }
    Ok(out)
}

fn no_memory(len: usize) -> TensorError {
    TensorError::new(TensorErrorCode::Limit, format!("no memory for {len} bytes"))
}

/// Like `read_to_end`, but returns an error if memory is exhausted, where `read_to_end` would abort
/// the process.
fn read_all(mut source: impl Read, bytes: &mut Vec<u8>) -> Result<usize> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = source.read(&mut piece);
        let read = read.map_err(|error| TensorError::io("read a NumPy file", error))?;
        if read == 0 {
            return Ok(bytes.len());
        }
        bytes
            .try_reserve(read)
            .map_err(|_| no_memory(bytes.len() + read))?;
        bytes.extend_from_slice(&piece[..read]);
    }
}

#[cfg(test)]
mod tests;
