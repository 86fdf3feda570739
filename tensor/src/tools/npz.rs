//! Archives of NumPy arrays: a zip file with one `NAME.npy` each.

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

/// What each array's name ends with in an archive.
const SUFFIX: &str = ".npy";
/// Bytes that are unpacked at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A source as a file that is read from a place on. Copies share the source.
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
        // At most the length of the buffer.
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

/// Adds every array of an archive to a container. Arrays are unpacked while the container is
/// written, and never more of one than its header says.
///
/// # Errors
/// `E_HEADER` where it is no archive of arrays; as [`Npy::read`].
pub(super) fn add_archive<'s, S: ReadAt, W: Write + Seek>(
    source: &'s S,
    writer: &mut ContainerWriter<'s, W>,
) -> Result<()> {
    let mut archive = ZipArchive::new(Cursor::new(source)?).map_err(broken)?;
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
        let said = |error: TensorError| error.with_subject(QuotedText(&path));
        let header = Npy::read(file).map_err(said)?.header;
        let (dtype, shape) = (header.dtype, header.shape);
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

/// Writes an archive with every tensor that NumPy has a type for; records and items as the entries
/// they are.
///
/// # Errors
/// `E_DTYPE` where NumPy has no such type; `E_IO`.
pub(super) fn write_archive<S: ReadAt>(
    reader: &ContainerReader<S>,
    out: impl Write + Seek,
) -> Result<()> {
    let mut archive = ZipWriter::new(out);
    // The length stands before the bytes, and may turn out to be more than 4 GiB.
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
