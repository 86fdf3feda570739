//! The parts of PE files that firmware measures: Microsoft's PE/COFF specification, and its
//! "Windows Authenticode Portable Executable Signature Format" for the digest.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::limits::{PE_BYTES_MAX, PE_SECTIONS_MAX};
use crate::predict::PredictError;

const POINTER_AT: usize = 0x3c;
const MAGIC: &[u8] = b"PE\0\0";
const COFF_BYTES: usize = 24;
const SECTION_BYTES: usize = 40;
/// Fields of the optional header: its kind, and the offsets in each kind.
const PE32: u16 = 0x10b;
const PE32_PLUS: u16 = 0x20b;
const HEADER_BYTES_AT: usize = 60;
const CHECKSUM_AT: usize = 64;
const DIRECTORY_BYTES: usize = 8;
/// The number of the directory that is the table of certificates.
const CERTIFICATES: usize = 4;

/// An EFI program.
#[derive(Debug)]
pub struct PeImage<'a> {
    bytes: &'a [u8],
    checksum: Range<usize>,
    /// The position of the directory entry of the certificates, if there is one.
    certificates: Option<Range<usize>>,
    certificate_bytes: usize,
    header_bytes: usize,
    sections: Vec<PeSection>,
}

#[derive(Debug)]
struct PeSection {
    name: [u8; 8],
    memory_bytes: usize,
    raw: Range<usize>,
}

impl<'a> PeImage<'a> {
    /// Reads the headers, and checks that everything they point to lies inside.
    ///
    /// # Errors
    /// `Form`, `TooLarge`, `TooManySections`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PredictError> {
        if bytes.len() > PE_BYTES_MAX {
            return Err(PredictError::TooLarge(bytes.len()));
        }
        let pe = u32_at(bytes, POINTER_AT)?;
        if !bytes.get(pe..).is_some_and(|rest| rest.starts_with(MAGIC)) {
            return Err(PredictError::Form("it has no PE header"));
        }
        // Offsets below are at most 4 GiB and some, so no sum here overflows.
        let optional = pe + COFF_BYTES;
        let optional_bytes = usize::from(u16_at(bytes, pe + 20)?);
        let directories = match u16_at(bytes, optional)? {
            PE32 => 96,
            PE32_PLUS => 112,
            _ => return Err(PredictError::Form("it is neither of 32 nor of 64 bits")),
        };
        let certificates = certificates(bytes, optional, directories, optional_bytes)?;
        let certificate_bytes = match &certificates {
            Some(entry) => u32_at(bytes, entry.start + 4)?,
            None => 0,
        };
        let header_bytes = u32_at(bytes, optional + HEADER_BYTES_AT)?;
        let count = usize::from(u16_at(bytes, pe + 6)?);
        let table = optional + optional_bytes;
        let parsed = Self {
            bytes,
            checksum: optional + CHECKSUM_AT..optional + CHECKSUM_AT + 4,
            certificates,
            certificate_bytes,
            header_bytes,
            sections: sections(bytes, table, count)?,
        };
        parsed.check(table + count * SECTION_BYTES)?;
        Ok(parsed)
    }

    fn check(&self, headers_end: usize) -> Result<(), PredictError> {
        // The digest covers the headers by this number, and must not leave out a part of the table of sections.
        if self.header_bytes > self.bytes.len() || self.header_bytes < headers_end {
            return Err(PredictError::Form(
                "its headers end elsewhere than they say",
            ));
        }
        let after = self.raw_bytes().checked_add(self.certificate_bytes);
        if after.is_none_or(|after| after > self.bytes.len()) {
            return Err(PredictError::Form("its parts are longer than the file"));
        }
        Ok(())
    }

    /// Bytes of headers and sections, as a digest counts them.
    fn raw_bytes(&self) -> usize {
        let sections = self.sections.iter().map(|section| section.raw.len());
        self.header_bytes + sections.sum::<usize>()
    }

    /// Whether there is a section of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The content of a section in memory: the first section of that name.
    ///
    /// # Errors
    /// `Form` for a section that is longer in memory than in the file.
    pub fn section(&self, name: &str) -> Result<Option<&'a [u8]>, PredictError> {
        let Some(section) = self.find(name) else {
            return Ok(None);
        };
        // The file pads a section, and the stub measures it as it is in memory.
        let content = self.bytes[section.raw.clone()].get(..section.memory_bytes);
        let longer = PredictError::Form("a section is longer in memory than in the file");
        content.ok_or(longer).map(Some)
    }

    fn find(&self, name: &str) -> Option<&PeSection> {
        let mut padded = [0; 8];
        padded
            .get_mut(..name.len())?
            .copy_from_slice(name.as_bytes());
        self.sections.iter().find(|section| section.name == padded)
    }

    /// SHA-256 over the file without the checksum, the certificates and their directory entry: the
    /// headers, the sections in the order of their positions in the file, and what follows them.
    #[must_use]
    pub fn authenticode(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        // A signature changes the checksum and the table of certificates, so both are left out.
        hash.update(&self.bytes[..self.checksum.start]);
        match &self.certificates {
            Some(entry) => {
                hash.update(&self.bytes[self.checksum.end..entry.start]);
                hash.update(&self.bytes[entry.end..self.header_bytes]);
            }
            None => hash.update(&self.bytes[self.checksum.end..self.header_bytes]),
        }
        let mut places: Vec<_> = self.sections.iter().map(|section| &section.raw).collect();
        // Authenticode hashes sections in the order of the file, which need not be that of the
        // table.
        places.sort_by_key(|raw| raw.start);
        for raw in places {
            hash.update(&self.bytes[raw.clone()]);
        }
        // The certificates are the last part of the file, and signing adds them.
        let end = self.bytes.len() - self.certificate_bytes;
        hash.update(&self.bytes[self.raw_bytes()..end]);
        hash.finalize().into()
    }
}

/// The position of the directory entry, if the header is long enough to have one.
fn certificates(
    bytes: &[u8],
    optional: usize,
    directories: usize,
    optional_bytes: usize,
) -> Result<Option<Range<usize>>, PredictError> {
    let short = PredictError::Form("its header is shorter than what it must hold");
    if directories > optional_bytes {
        return Err(short);
    }
    // The header says how many directory entries it has. An image that was never signed need not have this one.
    if u32_at(bytes, optional + directories - 4)? <= CERTIFICATES {
        return Ok(None);
    }
    let at = directories + CERTIFICATES * DIRECTORY_BYTES;
    if at + DIRECTORY_BYTES > optional_bytes {
        return Err(short);
    }
    Ok(Some(optional + at..optional + at + DIRECTORY_BYTES))
}

fn sections(bytes: &[u8], table: usize, count: usize) -> Result<Vec<PeSection>, PredictError> {
    if count > PE_SECTIONS_MAX {
        return Err(PredictError::TooManySections(count));
    }
    let headers = (0..count).map(|index| table + index * SECTION_BYTES);
    headers.map(|at| section(bytes, at)).collect()
}

fn section(bytes: &[u8], at: usize) -> Result<PeSection, PredictError> {
    let raw_bytes = u32_at(bytes, at + 16)?;
    // Without bytes in the file, its position means nothing.
    let raw_at = if raw_bytes == 0 {
        0
    } else {
        u32_at(bytes, at + 20)?
    };
    let raw = raw_at..raw_at + raw_bytes;
    if raw.end > bytes.len() {
        return Err(PredictError::Form("a section ends behind the file"));
    }
    Ok(PeSection {
        name: array_at(bytes, at)?,
        memory_bytes: u32_at(bytes, at + 8)?,
        raw,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, PredictError> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, PredictError> {
    array_at(bytes, at).map(|array| u32::from_le_bytes(array) as usize)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], PredictError> {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk()).copied();
    chunk.ok_or(PredictError::Form("it is cut short"))
}
