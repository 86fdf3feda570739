//! The content of a tensor that will be written.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufReader, Read, Write};

use crate::error::{Result, TensorError, TensorErrorCode, fail};
use crate::view::Element;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 128 << 10;

/// The bytes of a tensor: in memory, or produced while the file is written.
pub struct TensorContent<'a>(ContentSource<'a>);

enum ContentSource<'a> {
    Here(Cow<'a, [u8]>),
    Made(Maker<'a>),
}

type Maker<'a> = Box<dyn FnOnce(&mut dyn Write) -> Result<()> + 'a>;

impl<'a> TensorContent<'a> {
    /// Elements of a Rust type.
    #[must_use]
    pub fn elements<T: Element>(elements: &'a [T]) -> Self {
        Self::from(bytemuck::cast_slice::<T, u8>(elements))
    }

    /// The bytes that `make` writes, which must be as many as the shape requires.
    #[must_use]
    pub fn made(make: impl FnOnce(&mut dyn Write) -> Result<()> + 'a) -> Self {
        Self(ContentSource::Made(Box::new(make)))
    }

    /// All bytes of a reader.
    #[must_use]
    pub fn reader(reader: impl Read + 'a) -> Self {
        Self::made(move |out| {
            let mut reader = BufReader::with_capacity(PIECE_BYTES, reader);
            let copied = io::copy(&mut reader, out);
            copied.map_err(|error| TensorError::io("copy content", error))?;
            Ok(())
        })
    }

    /// Checks that content in memory has `len` bytes.
    pub(super) fn check(&self, len: u64) -> Result<()> {
        match &self.0 {
            ContentSource::Here(bytes) if bytes.len() as u64 != len => fail(
                TensorErrorCode::Shape,
                format!("{} bytes of content, its shape says {len}", bytes.len()),
            ),
            _ => Ok(()),
        }
    }

    pub(super) fn write(self, out: &mut dyn Write) -> Result<()> {
        match self.0 {
            ContentSource::Made(make) => make(out),
            ContentSource::Here(bytes) => {
                let written = out.write_all(&bytes);
                written.map_err(|error| TensorError::io("write content", error))
            }
        }
    }
}

impl<'a> From<&'a [u8]> for TensorContent<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(ContentSource::Here(Cow::Borrowed(bytes)))
    }
}

impl From<Vec<u8>> for TensorContent<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self(ContentSource::Here(Cow::Owned(bytes)))
    }
}

impl fmt::Debug for TensorContent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ContentSource::Here(bytes) => write!(f, "TensorContent({} bytes)", bytes.len()),
            ContentSource::Made(_) => f.write_str("TensorContent(made)"),
        }
    }
}
