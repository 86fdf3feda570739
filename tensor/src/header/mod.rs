//! The header: a length of eight bytes, then a JSON object that describes the data.
//!
//! The parser does not touch the data, and allocates no memory by a number in the file: what it
//! keeps is proportional to the header's text. A header is read once, top to bottom, into a few
//! flat lists ([`Meta`]); names and texts lie in one arena.

#![forbid(unsafe_code)]

mod entries;
mod foreign;
mod index;
mod json;
mod level;
mod meta;
mod table;
mod tensor;

use crate::error::{Result, TensorError, TensorErrorCode, fail};
use crate::limits::ContainerLimits;

pub use meta::{HeaderEntry, Meta};
pub use tensor::{BlobInfo, StructInfo, Tensor, TensorKind};

pub(crate) use table::byte_len;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: u64 = 8;
/// Bytes of the shortest header, `{}`.
pub const HEADER_BYTES_MIN: u64 = 2;

/// The length of the header, from the first bytes of a file of `file_len` bytes.
///
/// ```
/// use alknet_tensor::{ContainerLimits, PREFIX_BYTES, header_len};
///
/// let file = [&2_u64.to_le_bytes()[..], b"{}"].concat();
/// let len = header_len(&file, file.len() as u64, &ContainerLimits::default())?;
/// assert_eq!(PREFIX_BYTES + len, 10);
/// # Ok::<(), alknet_tensor::TensorError>(())
/// ```
///
/// # Errors
/// `E_HEADER` if the file is too short for the prefix or for the length that it states, or if its first bytes are those
/// of another known format; `E_LIMIT`.
pub fn header_len(prefix: &[u8], file_len: u64, limits: &ContainerLimits) -> Result<u64> {
    let Some(prefix) = prefix.first_chunk() else {
        let what = format!("a file of {file_len} bytes has no header");
        return fail(TensorErrorCode::Header, what);
    };
    let len = u64::from_le_bytes(*prefix);
    if let Err(error) = check_len(len, limits) {
        // The number of bytes means nothing to the owner of a file that is no container at all.
        return match foreign::foreign_format(prefix) {
            Some(what) => fail(TensorErrorCode::Header, format!("it is {what}")),
            None => Err(error),
        };
    }
    if file_len
        .checked_sub(PREFIX_BYTES)
        .is_none_or(|rest| len > rest)
    {
        let what = format!("a header of {len} bytes in a file of {file_len}");
        return fail(TensorErrorCode::Header, what);
    }
    Ok(len)
}

fn check_len(len: u64, limits: &ContainerLimits) -> Result<()> {
    if len < HEADER_BYTES_MIN {
        return fail(TensorErrorCode::Header, format!("a header of {len} bytes"));
    }
    if len > limits.header_bytes {
        let what = format!(
            "a header of {len} bytes, {} are allowed",
            limits.header_bytes
        );
        return fail(TensorErrorCode::Limit, what);
    }
    Ok(())
}

impl Meta {
    /// Reads a header, without its length prefix, of a file with `data_len` bytes of data.
    ///
    /// ```
    /// use alknet_tensor::{ContainerLimits, Meta};
    ///
    /// let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    /// let meta = Meta::parse(header, 8, &ContainerLimits::default())?;
    /// assert_eq!(meta.entry("a").expect("it is there").shape(), [2]);
    /// # Ok::<(), alknet_tensor::TensorError>(())
    /// ```
    ///
    /// # Errors
    /// Any code of the format except those that need the data; see the table in `docs/tensor.md`.
    pub fn parse(header: &[u8], data_len: u64, limits: &ContainerLimits) -> Result<Self> {
        Self::read(header, Some(data_len), limits)
    }

    /// Reads the header of a file that has not arrived otherwise; the header itself states the
    /// length of the data.
    ///
    /// # Errors
    /// The errors of [`Meta::parse`].
    pub fn of_header(header: &[u8], limits: &ContainerLimits) -> Result<Self> {
        Self::read(header, None, limits)
    }

    fn read(header: &[u8], data_len: Option<u64>, limits: &ContainerLimits) -> Result<Self> {
        let len = header.len() as u64;
        check_len(len, limits)?;
        if header.first() != Some(&b'{') {
            return fail(
                TensorErrorCode::Header,
                "the header does not begin with '{'",
            );
        }
        // JSON between programs is UTF-8 (RFC 8259 section 8.1).
        let text = std::str::from_utf8(header)
            .map_err(|error| TensorError::new(TensorErrorCode::Json, format!("header: {error}")))?;
        let entries::RawHeader {
            text,
            mut entries,
            dims,
            metadata,
        } = entries::read(text, limits)?;
        let text = text.into_text();
        table::sort(&mut entries, &text);
        // After sorting, the last entry ends where the data ends.
        let data_len = data_len.unwrap_or_else(|| entries.last().map_or(0, |last| last.end));
        if PREFIX_BYTES
            .checked_add(len)
            .and_then(|d| d.checked_add(data_len))
            .is_none()
        {
            let what = format!("{data_len} bytes of data behind a header of {len}");
            return fail(TensorErrorCode::Overflow, what);
        }
        let by_name = table::EntryNames::build(&entries, &text)?;
        let table = table::EntryTable {
            text: &text,
            entries: &entries,
            dims: &dims,
            by_name: &by_name,
        };
        table::check_tiling(&table, data_len)?;
        let extension = level::read(&table, metadata.as_deref().unwrap_or_default(), limits)?;
        let (index, data_hash) = match extension {
            None => (None, None),
            Some(level::Extension { index, data_hash }) => (Some(index), data_hash),
        };
        Ok(Self {
            header_len: len,
            data_len,
            text,
            entries: entries.into_boxed_slice(),
            dims: dims.into_boxed_slice(),
            by_name,
            metadata: metadata.map(Vec::into_boxed_slice),
            index,
            data_hash,
        })
    }
}
