//! Archives of NumPy arrays: a zip file with one `NAME.npy` for each array.

use std::io::{self, Read, Seek, SeekFrom, Write};

use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::limits::ENTRIES_MAX;
use crate::reader::ContainerReader;
use crate::source::ReadAt;
use crate::tools::npy::{Npy, npy_header};
use crate::writer::{ContainerWriter, TensorContent};

/// Suffix of the arrays' names in an archive.
const SUFFIX: &str = ".npy";
/// Bytes that are decompressed at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A source as a file with a read position. Clones share the source.
#[derive(Debug)]
pub(super) struct Cursor<'s, S> {
    source: &'s S,
    size: u64,
    at: u64,
}

impl<'s, S: ReadAt> Cursor<'s, S> {
    /// # Errors
    /// `E_IO`.
    pub(super) fn new(source: &'s S) -> Result<Self> {
        let size = source.size();
        let size = size.map_err(|error| TensorError::io("find out the size", error))?;
        Ok(Self {
            source,
            size,
            at: 0,
        })
    }
}

impl<S> Clone for Cursor<'_, S> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<S: ReadAt> Read for Cursor<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size.saturating_sub(self.at);
        // At most the length of the buffer, so the cast keeps the value.
        let len = left.min(buffer.len() as u64) as usize;
        self.source.read_exact_at(&mut buffer[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl<S> Seek for Cursor<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(back) => self.size.checked_add_signed(back),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Adds every array of an archive to a container. The arrays are decompressed while the container
/// is written, each at most to the length that its header states.
///
/// # Errors
/// `E_HEADER` if it is no archive of arrays; as [`Npy::read`].
pub(super) fn add_archive<'s, S: ReadAt, W: Write + Seek>(
    source: &'s S,
    writer: &mut ContainerWriter<'s, W>,
) -> Result<()> {
    let mut archive = ZipArchive::new(Cursor::new(source)?).map_err(broken)?;
    // The number of files comes from the archive, and each becomes an entry.
    if archive.len() > ENTRIES_MAX as usize {
        return fail(
            TensorErrorCode::Limit,
            format!("an archive of {} files", archive.len()),
        );
    }
    for at in 0..archive.len() {
        let file = archive.by_index(at).map_err(broken)?;
        let path = file.name().map_err(broken)?.into_owned();
        let Some(name) = path.strip_suffix(SUFFIX) else {
            let what = format!("{} in the archive is no array", QuotedText(&path));
            return fail(TensorErrorCode::Header, what);
        };
        let with_name = |error: TensorError| error.with_subject(QuotedText(&path));
        let header = Npy::read(file).map_err(with_name)?.header;
        let (dtype, shape) = (header.dtype, header.shape);
        // Contents are written later, in the writer's order, so each has its own handle to the
        // archive.
        let again = ZipArchive::clone(&archive);
        let content = TensorContent::made(move |out| unpack(again, at, out));
        writer.flat(name, dtype, &shape, content)?;
    }
    Ok(())
}

fn unpack<R: Read + Seek>(
    mut archive: ZipArchive<R>,
    at: usize,
    out: &mut dyn Write,
) -> Result<()> {
    let file = archive.by_index(at).map_err(broken)?;
    let buffered = io::BufReader::with_capacity(BUFFER_BYTES, file);
    Npy::read(buffered)?.write_elements(out)
}

/// Writes an archive with every tensor that has a NumPy type; records and items are written as the
/// entries that hold them.
///
/// # Errors
/// `E_DTYPE` if NumPy has no such type; `E_IO`.
pub(super) fn write_archive<S: ReadAt>(
    reader: &ContainerReader<S>,
    out: impl Write + Seek,
) -> Result<()> {
    let mut archive = ZipWriter::new(out);
    // The length is written before the bytes and may exceed 4 GiB, so the entry gets the 64 bit
    // fields of zip.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(true);
    for entry in reader.meta().entries().filter(|entry| !entry.is_pad()) {
        let path = format!("{}{SUFFIX}", entry.name());
        archive.start_file(path, options).map_err(broken)?;
        let header = npy_header(entry.dtype(), entry.shape());
        let header = header.map_err(|error| error.with_subject(QuotedText(entry.name())))?;
        let mut write = |bytes: &[u8]| {
            let written = archive.write_all(bytes);
            written.map_err(|error| TensorError::io("write the archive", error))
        };
        write(&header)?;
        reader.pass(entry.file_range(), write)?;
    }
    archive.finish().map_err(broken)?;
    Ok(())
}

fn broken(error: ZipError) -> TensorError {
    match error {
        ZipError::Io(error) => TensorError::io("the archive", error),
        other => TensorError::new(TensorErrorCode::Header, format!("the archive: {other}")),
    }
}
