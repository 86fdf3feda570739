//! A bundle: a whole repository in one file, which is verified while it streams by.
//!
//! The file is an uncompressed tar archive (IEEE Std 1003.1-2017, pax, "ustar Interchange Format") of plain files.
//! All of `metadata/` comes before all of `targets/`, so that a reader without a disk verifies every signature before
//! the first byte of a program.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::slice;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::error::UpdateError;
use crate::limits::{
    BUNDLE_METADATA_BYTES_MAX, BUNDLE_METADATA_FILES_MAX, DELTA_BLOCK_BYTES, TARGET_BYTES_MAX,
};
use crate::refresh::{MetadataRequest, MetadataSource, VerifiedTargets};
use crate::target::{TargetCheck, UpdateTarget};

/// The folder of documents.
pub const METADATA_FOLDER: &str = "metadata";

/// The folder of targets.
pub const TARGETS_FOLDER: &str = "targets";

/// The document that [`replace_timestamp`] replaces.
pub(crate) const TIMESTAMP: &str = "timestamp.json";

/// What messages call a bundle.
const BUNDLE: &str = "the bundle";

/// Bytes of a header, and the size to which contents are padded.
const BLOCK: usize = 512;

/// Fields of a header: where each begins, and its length.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const OWNERS: [(usize, usize); 2] = [(108, 8), (116, 8)];
const SIZE: (usize, usize) = (124, 12);
const TIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const MAGIC: (usize, usize) = (257, 8);
const PREFIX: (usize, usize) = (345, 155);

/// The magic number and version of a ustar header.
const USTAR: &[u8; 8] = b"ustar\x0000";

/// The two blocks of zeros behind the last entry.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BundleEntry {
    folder: String,
    name: String,
    bytes: u64,
}

impl BundleEntry {
    /// Reads a header. Only the headers that [`BundleWriter`] writes are possible, but for their owners and times.
    fn read(header: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let at = |(start, length): (usize, usize)| &header[start..start + length];
        if at(MAGIC) != USTAR {
            return Err("it is no tar archive in the ustar format");
        }
        if number(at(CHECKSUM)) != Some(checksum(header)) {
            return Err("a header has a wrong checksum");
        }
        // The format takes a zero for a plain file as well, for older archives (pax, typeflag).
        if !matches!(header[KIND], b'0' | 0) {
            return Err("it has other entries than plain files");
        }
        let bytes = number(at(SIZE)).ok_or("a length is no octal number")?;
        let (folder, name) = (text(at(PREFIX))?, text(at(NAME))?);
        // Programs other than ours write the folder in front of the name.
        let (folder, name) = match folder {
            "" => name.split_once('/').ok_or("a file is in no folder")?,
            folder => (folder, name),
        };
        // Programs use the name as the name of a file, which has to stay in its folder.
        if name.contains('/') || name.is_empty() || name.starts_with('.') {
            return Err("a file has a path that is not 'metadata/NAME' or 'targets/NAME'");
        }
        Ok(Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            bytes,
        })
    }

    fn header(&self) -> io::Result<[u8; BLOCK]> {
        let mut header = [0; BLOCK];
        let mut put = |(start, length): (usize, usize), bytes: &[u8]| {
            let place = header[start..start + length].get_mut(..bytes.len());
            let place = place.ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
            place.copy_from_slice(bytes);
            Ok::<(), io::Error>(())
        };
        put(NAME, self.name.as_bytes())?;
        put(PREFIX, self.folder.as_bytes())?;
        // One content has one archive: no owner, no time, and one mode.
        put(MODE, b"0000644\0")?;
        for owner in OWNERS {
            put(owner, b"0000000\0")?;
        }
        put(SIZE, format!("{:011o}\0", self.bytes).as_bytes())?;
        put(TIME, b"00000000000\0")?;
        put(MAGIC, USTAR)?;
        header[KIND] = b'0';
        let sum = format!("{:06o}\0 ", checksum(&header));
        header[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].copy_from_slice(sum.as_bytes());
        Ok(header)
    }

    /// Zeros behind the content.
    fn padding(&self) -> usize {
        let rest = (self.bytes % BLOCK as u64) as usize;
        (BLOCK - rest) % BLOCK
    }

    fn path(&self) -> String {
        format!("{}/{}", self.folder, self.name)
    }
}

/// The text up to the first zero.
fn text(field: &[u8]) -> Result<&str, &'static str> {
    let end = field.iter().position(|byte| *byte == 0);
    let field = &field[..end.unwrap_or(field.len())];
    std::str::from_utf8(field).map_err(|_| "a name is not UTF-8")
}

/// An octal number, ended by a zero or a space.
fn number(field: &[u8]) -> Option<u64> {
    let field = std::str::from_utf8(field).ok()?;
    let digits = field.trim_end_matches(['\0', ' ']);
    let is_octal = digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    is_octal
        .then(|| u64::from_str_radix(digits, 8).ok())
        .flatten()
}

/// The sum of all bytes, with spaces in the place of the checksum.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    let field = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
    let bytes = header.iter().enumerate();
    let bytes = bytes.map(|(at, byte)| if field.contains(&at) { b' ' } else { *byte });
    bytes.map(u64::from).sum()
}

/// Writes a bundle: the same content always becomes the same bytes.
///
/// ```
/// use alknet_update::{BundleReader, BundleWriter};
///
/// let mut bundle = Vec::new();
/// let mut writer = BundleWriter::new(&mut bundle);
/// writer.metadata("timestamp.json", b"{}")?;
/// writer.target("hello.txt", 5, &mut &b"hello"[..])?;
/// writer.finish()?;
/// assert_eq!(bundle.len(), 6 * 512);
/// let names: Vec<_> = BundleReader::open(&*bundle)?.metadata_names().map(str::to_owned).collect();
/// assert_eq!(names, ["timestamp.json"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BundleWriter<W> {
    output: W,
    /// Whether a target was written: no metadata may follow.
    has_targets: bool,
}

impl<W: Write> BundleWriter<W> {
    /// Begins a bundle.
    pub fn new(output: W) -> Self {
        Self {
            output,
            has_targets: false,
        }
    }

    /// Writes a document. All documents come before the first target.
    ///
    /// # Errors
    /// A target was written before, the name is too long, or writing fails.
    pub fn metadata(&mut self, name: &str, document: &[u8]) -> io::Result<()> {
        if self.has_targets {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "metadata comes before the targets",
            ));
        }
        let entry = BundleEntry {
            folder: METADATA_FOLDER.to_owned(),
            name: name.to_owned(),
            bytes: document.len() as u64,
        };
        self.entry(&entry, &mut &*document)
    }

    /// Writes a target of this length, whose file name has the hash if the repository is consistent.
    ///
    /// # Errors
    /// The name is too long, the input has another length, or reading or writing fails.
    pub fn target(&mut self, file: &str, bytes: u64, input: &mut dyn Read) -> io::Result<()> {
        self.has_targets = true;
        let entry = BundleEntry {
            folder: TARGETS_FOLDER.to_owned(),
            name: file.to_owned(),
            bytes,
        };
        self.entry(&entry, input)
    }

    fn entry(&mut self, entry: &BundleEntry, input: &mut dyn Read) -> io::Result<()> {
        self.output.write_all(&entry.header()?)?;
        // One byte more than the length shows that the input is longer.
        let mut limited = input.take(entry.bytes + 1);
        let copied = io::copy(&mut limited, &mut self.output)?;
        if copied != entry.bytes {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "a file changed while it was written",
            ));
        }
        self.output.write_all(&END[..entry.padding()])
    }

    /// Ends the bundle, and returns the output.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&END)?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// Copies a bundle with another document in the place of its timestamp. Verifies nothing.
///
/// # Errors
/// The input is no bundle, has no timestamp or ends too early, or reading or writing fails.
pub fn replace_timestamp(
    input: impl Read,
    document: &[u8],
    output: impl Write,
) -> Result<(), UpdateError> {
    let documents = BTreeMap::from([(TIMESTAMP.to_owned(), document.to_vec())]);
    replace_documents(input, documents, output)
}

/// Copies a bundle with other documents in the places of those with the same names. Verifies nothing.
pub(crate) fn replace_documents(
    input: impl Read,
    mut documents: BTreeMap<String, Vec<u8>>,
    output: impl Write,
) -> Result<(), UpdateError> {
    let failed = |error| UpdateError::source(BUNDLE, error);
    let mut reader = BundleReader {
        input,
        metadata: BTreeMap::new(),
        next: None,
    };
    let mut writer = BundleWriter::new(output);
    while let Some(entry) = reader.entry()? {
        let mut content = reader.input.by_ref().take(entry.bytes);
        let replaced = match entry.folder == METADATA_FOLDER {
            true => documents.remove(&entry.name),
            false => None,
        };
        let copied = match replaced {
            Some(document) => io::copy(&mut content, &mut io::sink())
                .and_then(|_| writer.metadata(&entry.name, &document)),
            None => writer.entry(&entry, &mut content),
        };
        copied.map_err(failed)?;
        reader.skip_padding(&entry)?;
    }
    if let Some((file, _)) = documents.pop_first() {
        return Err(UpdateError::Missing { file });
    }
    writer.finish().map_err(failed)?;
    Ok(())
}

/// Reads a bundle once, from its beginning to its end.
pub struct BundleReader<R> {
    input: R,
    metadata: BTreeMap<String, Vec<u8>>,
    /// The target that comes next, whose header is read.
    next: Option<BundleEntry>,
}

impl<R> fmt::Debug for BundleReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleReader")
            .field("metadata", &self.metadata.keys())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl<R: Read> BundleReader<R> {
    /// Reads all metadata, at most 2 MiB, and the header of the first target.
    ///
    /// # Errors
    /// The input is no bundle, ends too early, has too much metadata, or cannot be read.
    pub fn open(input: R) -> Result<Self, UpdateError> {
        let mut reader = Self {
            input,
            metadata: BTreeMap::new(),
            next: None,
        };
        let mut left = BUNDLE_METADATA_BYTES_MAX;
        while let Some(entry) = reader.entry()? {
            if entry.folder == TARGETS_FOLDER {
                reader.next = Some(entry);
                break;
            }
            // The limits come before the reading: unsigned headers decide how much memory the reader takes.
            let rest = left.checked_sub(entry.bytes);
            let has_capacity = reader.metadata.len() < BUNDLE_METADATA_FILES_MAX;
            left = rest
                .filter(|_| has_capacity)
                .ok_or_else(|| UpdateError::TooLarge {
                    file: "the metadata of the bundle".to_owned(),
                    max: BUNDLE_METADATA_BYTES_MAX,
                })?;
            let document = reader.document(&entry)?;
            // Two programs could disagree about which of two documents with one name counts.
            if reader
                .metadata
                .insert(entry.name.clone(), document)
                .is_some()
            {
                let why = format_args!("{} is there twice", entry.path());
                return Err(UpdateError::malformed(BUNDLE, why));
            }
        }
        Ok(reader)
    }

    /// The names of the documents.
    pub fn metadata_names(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The documents, by their names.
    pub(crate) const fn documents(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.metadata
    }

    /// The next header, `None` behind the last entry.
    fn entry(&mut self) -> Result<Option<BundleEntry>, UpdateError> {
        let mut header = [0; BLOCK];
        self.fill(&mut header)?;
        // The first block of zeros ends the archive; the second one need not be read.
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let entry = BundleEntry::read(&header);
        let entry = entry.map_err(|why| UpdateError::malformed(BUNDLE, why))?;
        if ![METADATA_FOLDER, TARGETS_FOLDER].contains(&entry.folder.as_str()) {
            let why = "it has files outside of 'metadata' and 'targets'";
            return Err(UpdateError::malformed(BUNDLE, why));
        }
        Ok(Some(entry))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), UpdateError> {
        let filled = self.input.read_exact(buffer);
        filled.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => UpdateError::malformed(BUNDLE, "it was cut off"),
            _ => UpdateError::source(BUNDLE, error),
        })
    }

    /// The content of a document, whose length the caller has bounded.
    fn document(&mut self, entry: &BundleEntry) -> Result<Vec<u8>, UpdateError> {
        let mut document = Vec::new();
        let read = self
            .input
            .by_ref()
            .take(entry.bytes)
            .read_to_end(&mut document);
        read.map_err(|error| UpdateError::source(BUNDLE, error))?;
        if document.len() as u64 != entry.bytes {
            return Err(UpdateError::malformed(BUNDLE, "it was cut off"));
        }
        self.skip_padding(entry)?;
        Ok(document)
    }

    fn skip_padding(&mut self, entry: &BundleEntry) -> Result<(), UpdateError> {
        let mut padding = [0; BLOCK];
        self.fill(&mut padding[..entry.padding()])
    }

    /// The target that comes next in the file, `None` behind the last one.
    ///
    /// # Errors
    /// No such target was signed, or the entry has another length than the signed one.
    pub fn next_target<'a>(
        &self,
        verified: &'a VerifiedTargets,
    ) -> Result<Option<&'a UpdateTarget>, UpdateError> {
        let Some(entry) = &self.next else {
            return Ok(None);
        };
        let target = verified.target_of_file(&entry.name)?;
        // The header is not signed. A wrong length is refused here, before a byte of the target is written anywhere.
        if target.bytes != entry.bytes {
            return Err(UpdateError::Length {
                file: target.name.clone(),
                expected: target.bytes,
            });
        }
        Ok(Some(target))
    }

    /// Copies the next target to `output`, or only checks it if `output` is [`io::sink`]. Until this returns, nothing
    /// of `output` may be used.
    ///
    /// # Errors
    /// The bytes are not the signed ones, the bundle ends too early, or reading or writing fails.
    pub fn copy_target(
        &mut self,
        verified: &VerifiedTargets,
        output: &mut dyn Write,
    ) -> Result<(), UpdateError> {
        let Some(target) = self.next_target(verified)? else {
            return Err(UpdateError::Missing {
                file: TARGETS_FOLDER.to_owned(),
            });
        };
        // Without this bound `copy` would read into the header of the next entry.
        target.copy(&mut self.input.by_ref().take(target.bytes), output)?;
        self.advance(target.bytes)
    }

    /// Lets `act` read the next target, which is a delta, reads what it leaves, and checks all of it. `act` gets signed
    /// bytes alone, block by block. Until this returns, nothing that `act` made of them may be used, because more may have
    /// to follow.
    ///
    /// # Errors
    /// The bytes are not the signed ones, the bundle ends too early, or reading fails.
    pub fn read_delta<T>(
        &mut self,
        verified: &VerifiedTargets,
        act: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<T, UpdateError> {
        let Some(target) = self.next_target(verified)? else {
            return Err(UpdateError::Missing {
                file: TARGETS_FOLDER.to_owned(),
            });
        };
        let mut input = self.input.by_ref().take(target.bytes);
        // A target that is no delta has no hashes, so its first block is refused before `act` gets it.
        let hashes = target.delta.as_ref().map_or(&[][..], |delta| &delta.blocks);
        let mut reader = DeltaReader {
            input: CheckedTarget {
                check: target.check(),
                input: &mut input,
            },
            left: target.bytes,
            hashes: hashes.iter(),
            block: Vec::new(),
            given: 0,
            is_wrong: false,
        };
        let done = act(&mut reader);
        // `act` may have stopped early, and the signed hash covers the rest as well.
        let rest = io::copy(&mut reader, &mut io::sink());
        if reader.is_wrong {
            return Err(UpdateError::Hash {
                file: target.name.clone(),
            });
        }
        rest.map_err(|error| UpdateError::source(BUNDLE, error))?;
        reader.input.check.finish()?;
        self.advance(target.bytes)?;
        Ok(done)
    }

    /// Leaves the next target out, without a check of its bytes.
    ///
    /// # Errors
    /// The bundle ends too early, or cannot be read.
    pub fn skip_target(&mut self) -> Result<(), UpdateError> {
        let Some(bytes) = self.next.as_ref().map(|entry| entry.bytes) else {
            return Ok(());
        };
        let skipped = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink());
        let skipped = skipped.map_err(|error| UpdateError::source(BUNDLE, error))?;
        // `io::copy` ends without an error where the input ends.
        if skipped != bytes {
            return Err(UpdateError::malformed(BUNDLE, "it was cut off"));
        }
        self.advance(bytes)
    }

    /// Goes on to the next header, behind a content of this length.
    fn advance(&mut self, bytes: u64) -> Result<(), UpdateError> {
        if let Some(entry) = self.next.take() {
            debug_assert_eq!(entry.bytes, bytes, "the whole content was read");
            self.skip_padding(&entry)?;
        }
        let next = self.entry()?;
        if next
            .as_ref()
            .is_some_and(|next| next.folder != TARGETS_FOLDER)
        {
            return Err(UpdateError::malformed(
                BUNDLE,
                "metadata follows behind a target",
            ));
        }
        // A target that the machine does not need is skipped unchecked, so its length needs a limit of its own.
        if let Some(long) = next.as_ref().filter(|next| next.bytes > TARGET_BYTES_MAX) {
            return Err(UpdateError::TooLarge {
                file: long.path(),
                max: TARGET_BYTES_MAX,
            });
        }
        self.next = next;
        Ok(())
    }
}

/// A target that is checked while it is read.
struct CheckedTarget<'a, R> {
    check: TargetCheck<'a>,
    input: &'a mut R,
}

impl<R: Read> Read for CheckedTarget<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let checked = self.check.update(&buffer[..read]);
        checked.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(read)
    }
}

/// A delta, of which a block is handed on once its hash was compared.
struct DeltaReader<'a, R> {
    input: CheckedTarget<'a, R>,
    /// Bytes that were not read yet.
    left: u64,
    hashes: slice::Iter<'a, String>,
    block: Vec<u8>,
    /// Bytes of the block that were handed on.
    given: usize,
    /// Whether a block had other bytes than the signed ones.
    is_wrong: bool,
}

impl<R: Read> DeltaReader<'_, R> {
    /// Reads the next block. Behind the last one, and where the input ends too early, the block is empty.
    fn advance(&mut self) -> io::Result<()> {
        let length = self.left.min(DELTA_BLOCK_BYTES as u64);
        self.given = 0;
        self.block.clear();
        // `act` may read on after the refusal, and must not get the blocks behind the wrong one.
        if self.is_wrong {
            return Err(ErrorKind::InvalidData.into());
        }
        let read = self
            .input
            .by_ref()
            .take(length)
            .read_to_end(&mut self.block)?;
        self.left -= read as u64;
        // An early end looks like the end of the delta here. `read_delta` finds that bytes are missing.
        if (read as u64) < length || read == 0 {
            self.block.clear();
            self.left = 0;
            return Ok(());
        }
        let found = HEXLOWER.encode(&Sha256::digest(&self.block));
        if self.hashes.next() != Some(&found) {
            self.is_wrong = true;
            self.block.clear();
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

impl<R: Read> Read for DeltaReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.block.len() {
            self.advance()?;
        }
        let rest = &self.block[self.given..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.given += length;
        Ok(length)
    }
}

impl<R: Read> MetadataSource for BundleReader<R> {
    fn metadata(&mut self, request: &MetadataRequest) -> Result<Option<Vec<u8>>, UpdateError> {
        let Some(document) = self.metadata.get(&request.name) else {
            return Ok(None);
        };
        // `open` checked only the sum of all documents, and each role has a smaller limit.
        if document.len() as u64 > request.bytes_max {
            return Err(UpdateError::TooLarge {
                file: request.name.clone(),
                max: request.bytes_max,
            });
        }
        Ok(Some(document.clone()))
    }
}
