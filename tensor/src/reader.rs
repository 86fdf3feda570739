//! Opens a container and reads from it.

use std::borrow::Cow;
#[cfg(not(target_family = "wasm"))]
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use blake3::Hash;

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::{
    BlobInfo, HeaderEntry, Meta, PREFIX_BYTES, StructInfo, Tensor, TensorKind, header_len,
};
use crate::limits::ContainerLimits;
#[cfg(not(target_family = "wasm"))]
use crate::source::MappedFile;
use crate::source::ReadAt;
use crate::view::{AlignedBytes, BlobView, StructView, TensorView, ViewBytes, row_bytes};

/// Bytes that are read at once in a pass over the data.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// An open container, whose header was parsed and checked.
///
/// ```
/// use alknet_tensor::{TensorContent, Dtype, ContainerLimits, ContainerReader, ContainerWriter};
///
/// let mut writer = ContainerWriter::new(std::io::Cursor::new(Vec::new()));
/// writer.flat("w", Dtype::F32, &[2], TensorContent::from(&[0, 0, 128, 63, 0, 0, 0, 64][..]))?;
/// let (_, file) = writer.finish()?;
///
/// let reader = ContainerReader::from_bytes(file.into_inner().into(), &ContainerLimits::default())?;
/// assert_eq!(reader.view("w")?.to_f32()?, [1.0, 2.0]);
/// # Ok::<(), alknet_tensor::TensorError>(())
/// ```
#[derive(Debug)]
pub struct ContainerReader<S> {
    source: S,
    meta: Meta,
}

impl ContainerReader<Arc<[u8]>> {
    /// Opens a container in memory. Views borrow from it.
    ///
    /// # Errors
    /// The errors of [`ContainerReader::open`].
    pub fn from_bytes(bytes: Arc<[u8]>, limits: &ContainerLimits) -> Result<Self> {
        Self::open(bytes, limits)
    }
}

#[cfg(not(target_family = "wasm"))]
impl ContainerReader<MappedFile> {
    /// Maps a file and opens it. Views borrow from the mapping.
    ///
    /// # Errors
    /// The errors of [`ContainerReader::open`]; `E_IO` if the file cannot be mapped.
    ///
    /// # Safety
    /// The file must not be changed or shortened for the life of the reader; see [`MappedFile::new`].
    pub unsafe fn map(file: &File, limits: &ContainerLimits) -> Result<Self> {
        // SAFETY: the caller guarantees that the file does not change.
        let mapped = unsafe { MappedFile::new(file) };
        let mapped = mapped.map_err(|error| TensorError::io("map the file", error))?;
        Self::open(mapped, limits)
    }
}

impl<S: ReadAt> ContainerReader<S> {
    /// Reads the header of a container.
    ///
    /// # Errors
    /// `E_IO` if the source fails; any code of the format that needs no data.
    pub fn open(source: S, limits: &ContainerLimits) -> Result<Self> {
        let size = source.size();
        let size = size.map_err(|error| TensorError::io("find out the size", error))?;
        let mut prefix = [0; PREFIX_BYTES as usize];
        // A file that is shorter than the prefix has no header.
        let Some(after) = size.checked_sub(PREFIX_BYTES) else {
            return fail(
                TensorErrorCode::Header,
                format!("a file of {size} bytes has no header"),
            );
        };
        read_exact(&source, &mut prefix, 0)?;
        let len = header_len(&prefix, size, limits)?;
        let range = PREFIX_BYTES..PREFIX_BYTES + len;
        // A header that is mapped or in memory is parsed without a copy.
        let meta = match source.slice_at(range) {
            Some(header) => Meta::parse(header, after - len, limits)?,
            None => {
                let header = AlignedBytes::read(len, |at, piece| {
                    read_exact(&source, piece, PREFIX_BYTES + at)
                })?;
                Meta::parse(&header, after - len, limits)?
            }
        };
        Ok(Self { source, meta })
    }

    /// The parsed header.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The source.
    #[must_use]
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// Drops the header and returns the source.
    #[must_use]
    pub fn into_source(self) -> S {
        self.source
    }

    /// The names of the tensors in the order in which a reader should load them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.meta.tensors().map(|tensor| tensor.name())
    }

    /// The tensor with this name.
    ///
    /// # Errors
    /// `E_NOTFOUND`.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.meta.tensor(name)
    }

    /// All elements of a tensor; for a struct or a blob, its bytes.
    ///
    /// # Errors
    /// `E_NOTFOUND`; `E_IO` if it cannot be read; `E_LIMIT` if memory is exhausted.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let entry = self.tensor(name)?.entry();
        let bytes = self.bytes(&entry, 0..entry.byte_len())?;
        Ok(TensorView::trusted(
            entry.dtype(),
            Cow::Borrowed(entry.shape()),
            bytes,
        ))
    }

    /// Some rows of a tensor; the other rows are not read.
    ///
    /// # Errors
    /// The errors of [`ContainerReader::view`] and [`TensorView::rows`].
    pub fn rows(&self, name: &str, rows: Range<u64>) -> Result<TensorView<'_>> {
        let entry = self.tensor(name)?.entry();
        let range = row_bytes(entry.dtype(), entry.shape(), &rows)
            .map_err(|error| error.with_subject(format_args!("tensor {}", QuotedText(name))))?;
        let bytes = self.bytes(&entry, range)?;
        let mut shape = entry.shape().to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.end - rows.start;
        }
        Ok(TensorView::trusted(entry.dtype(), Cow::Owned(shape), bytes))
    }

    /// The records of a struct.
    ///
    /// # Errors
    /// `E_NOTFOUND`; `E_DTYPE` if the tensor is no struct; `E_IO`, `E_LIMIT`.
    pub fn strukt(&self, name: &str) -> Result<StructView<'_>> {
        let (entry, records) = self.records(name)?;
        let bytes = self.bytes(&entry, 0..entry.byte_len())?;
        Ok(StructView::trusted(records, records.count(), bytes))
    }

    /// Some records of a struct; the other records are not read.
    ///
    /// # Errors
    /// The errors of [`ContainerReader::strukt`]; `E_SHAPE` if the struct has no such records.
    pub fn strukt_rows(&self, name: &str, rows: Range<u64>) -> Result<StructView<'_>> {
        let (entry, records) = self.records(name)?;
        let range = row_bytes(entry.dtype(), entry.shape(), &rows)
            .map_err(|error| error.with_subject(format_args!("struct {}", QuotedText(name))))?;
        let bytes = self.bytes(&entry, range)?;
        Ok(StructView::trusted(records, rows.end - rows.start, bytes))
    }

    /// The items of a blob.
    ///
    /// # Errors
    /// `E_NOTFOUND`; `E_DTYPE` if the tensor is no blob; `E_LAYOUT` if its offsets do not rise from 0 to its end;
    /// `E_IO`, `E_LIMIT`.
    pub fn blob(&self, name: &str) -> Result<BlobView<'_>> {
        let (entry, blob) = self.items(name)?;
        let label = format!("blob {}", QuotedText(name));
        let offsets = blob.offsets();
        let offsets = self.bytes(&offsets, 0..offsets.byte_len())?;
        let data = self.bytes(&entry, 0..entry.byte_len())?;
        BlobView::new(blob.enc(), data, offsets).map_err(|error| error.with_subject(label))
    }

    /// One item of a blob; the other items are not read.
    ///
    /// # Errors
    /// The errors of [`ContainerReader::blob`], for the two offsets around the item; `E_NOTFOUND` if the blob has fewer
    /// items.
    pub fn item(&self, name: &str, at: u64) -> Result<ViewBytes<'_>> {
        let (entry, blob) = self.items(name)?;
        let label = QuotedText(name);
        if at >= blob.count() {
            let what = format!("blob {label}: item {at} of {}", blob.count());
            return fail(TensorErrorCode::NotFound, what);
        }
        // A blob has one offset more than items, and the entry of all offsets has a size of 64 bits, so the sum does
        // not overflow.
        let two = self.bytes(&blob.offsets(), at * 8..at * 8 + 16)?;
        let (two, _) = two.as_chunks::<8>();
        let [start, end] = [two[0], two[1]].map(u64::from_le_bytes);
        if start > end || end > entry.byte_len() {
            let what = format!(
                "blob {label}: item {at} is bytes {start} to {end} of {}",
                entry.byte_len()
            );
            return fail(TensorErrorCode::Layout, what);
        }
        self.bytes(&entry, start..end)
    }

    /// Reads a part of an entry into `buffer`. `offset` counts from the beginning of the entry.
    ///
    /// # Errors
    /// `E_SHAPE` if the part does not lie within the entry; `E_IO`.
    pub fn read_into(&self, entry: &HeaderEntry<'_>, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = entry.byte_len();
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > len) {
            let what = format!(
                "entry {}: {} bytes from {offset} on, of {len}",
                QuotedText(entry.name()),
                buffer.len()
            );
            return fail(TensorErrorCode::Shape, what);
        }
        read_exact(&self.source, buffer, entry.file_range().start + offset)
    }

    /// BLAKE3 of the header with its length prefix. A reader that has this hash from a trusted source can verify
    /// every tensor.
    ///
    /// # Errors
    /// `E_IO`.
    pub fn header_hash(&self) -> Result<Hash> {
        self.hash(0..self.meta.data_start())
    }

    /// BLAKE3 of these bytes of the file.
    ///
    /// # Errors
    /// `E_IO`.
    pub fn hash(&self, range: Range<u64>) -> Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        self.pass(range, |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finalize())
    }

    /// Passes these bytes of the file to `visit`, in pieces of at most a MiB that begin at multiples of a MiB from
    /// the first byte on.
    ///
    /// # Errors
    /// `E_IO`, and the error of `visit`.
    pub fn pass(
        &self,
        range: Range<u64>,
        mut visit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(CHUNK_BYTES as u64);
            match self.source.slice_at(at..at + len) {
                Some(bytes) => visit(bytes)?,
                None => {
                    // At most a MiB, so the cast keeps the value.
                    buffer.resize(len as usize, 0);
                    read_exact(&self.source, &mut buffer, at)?;
                    visit(&buffer)?;
                }
            }
            at += len;
        }
        Ok(())
    }

    fn records(&self, name: &str) -> Result<(HeaderEntry<'_>, StructInfo<'_>)> {
        let tensor = self.tensor(name)?;
        match tensor.kind() {
            TensorKind::Struct(records) => Ok((tensor.entry(), records)),
            other => fail(
                TensorErrorCode::Dtype,
                format!("tensor {} is {}, no struct", QuotedText(name), other.name()),
            ),
        }
    }

    fn items(&self, name: &str) -> Result<(HeaderEntry<'_>, BlobInfo<'_>)> {
        let tensor = self.tensor(name)?;
        match tensor.kind() {
            TensorKind::Blob(blob) => Ok((tensor.entry(), blob)),
            other => fail(
                TensorErrorCode::Dtype,
                format!("tensor {} is {}, no blob", QuotedText(name), other.name()),
            ),
        }
    }

    /// Bytes of an entry; `range` counts from its beginning and must lie within it.
    fn bytes(&self, entry: &HeaderEntry<'_>, range: Range<u64>) -> Result<ViewBytes<'_>> {
        let start = entry.file_range().start;
        let range = start + range.start..start + range.end;
        if let Some(bytes) = self.source.slice_at(range.clone()) {
            return Ok(ViewBytes::Borrowed(bytes));
        }
        let read = AlignedBytes::read(range.end - range.start, |at, piece| {
            read_exact(&self.source, piece, range.start + at)
        });
        let read = read.map(ViewBytes::Owned);
        read.map_err(|error| error.with_subject(format_args!("entry {}", QuotedText(entry.name()))))
    }
}

fn read_exact(source: &(impl ReadAt + ?Sized), buffer: &mut [u8], offset: u64) -> Result<()> {
    let read = source.read_exact_at(buffer, offset);
    read.map_err(|error| {
        let what = format!("read {} bytes at {offset}", buffer.len());
        TensorError::io(what, error)
    })
}
