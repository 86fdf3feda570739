//! The parts of a PE file that its signature covers.

use alknet_image::begins_as_program;
use sha2::{Digest, Sha256};

use super::AuthenticodeError;

/// Place of the offset of the PE header.
const HEADER_POINTER_AT: usize = 0x3c;
const DOS_MARK: &[u8] = b"MZ";
const COFF_BYTES: usize = 24;
const SECTION_BYTES: usize = 40;
/// The optional header of a program with 64-bit addresses, and with 32-bit ones.
const PE32_PLUS: u16 = 0x20b;
const PE32: u16 = 0x10b;
/// Place of the checksum in the optional header, the same in both.
const CHECKSUM_AT: usize = 64;
const HEADERS_SIZE_AT: usize = 60;
/// The directory of certificates is the fifth.
const CERTIFICATES: usize = 4;
/// The table of certificates begins at a multiple of so many bytes.
pub(super) const ALIGNMENT: usize = 8;
/// The head of an entry: length, revision 2.0, and PKCS #7 signed data.
const ENTRY_HEAD_BYTES: usize = 8;
const REVISION: u16 = 0x0200;
const PKCS_SIGNED_DATA: u16 = 0x0002;
/// Places of the revision and of the kind in the head of an entry.
const REVISION_AT: usize = 4;
const KIND_AT: usize = 6;

/// Offsets of the headers that a signature depends on.
struct HeaderOffsets {
    coff: usize,
    optional: usize,
    /// The entry of the directory that says where the certificates are.
    directory: usize,
}

/// An EFI program without a signature, padded for one.
pub(super) struct EfiProgram {
    bytes: Vec<u8>,
    checksum_at: usize,
    directory_at: usize,
    headers_bytes: usize,
    /// The raw data of the sections: place and size, in the order of their places.
    sections: Vec<(usize, usize)>,
}

impl HeaderOffsets {
    fn parse(program: &[u8]) -> Result<Self, AuthenticodeError> {
        let has_dos_header = program.starts_with(DOS_MARK);
        // Firmware may load it all the same.
        if begins_as_program(program) && !has_dos_header {
            return Err(AuthenticodeError::Program(
                "it begins with a PE or TE header, without a DOS header",
            ));
        }
        let cut = || AuthenticodeError::Program("it is cut short");
        let header = number(program, HEADER_POINTER_AT, 4).ok_or_else(cut)?;
        let is_pe = has_dos_header
            && program
                .get(header..)
                .is_some_and(|rest| rest.starts_with(b"PE\0\0"));
        if !is_pe {
            return Err(AuthenticodeError::Program("it has no PE header"));
        }
        let optional = header + COFF_BYTES;
        let magic = number(program, optional, 2).ok_or_else(cut)? as u16;
        let directories = match magic {
            PE32_PLUS => optional + 112,
            PE32 => optional + 96,
            _ => return Err(AuthenticodeError::Program("its optional header is unknown")),
        };
        // The number of directories stands before the first of them.
        let count = number(program, directories - 4, 4).ok_or_else(cut)?;
        if count <= CERTIFICATES {
            return Err(AuthenticodeError::Program("it has no room for a signature"));
        }
        Ok(Self {
            coff: header,
            optional,
            directory: directories + CERTIFICATES * 8,
        })
    }
}

impl EfiProgram {
    pub(super) fn parse(program: &[u8]) -> Result<Self, AuthenticodeError> {
        let cut = || AuthenticodeError::Program("it is cut short");
        let HeaderOffsets {
            coff: header,
            optional,
            directory: directory_at,
        } = HeaderOffsets::parse(program)?;
        if number(program, directory_at, 4).ok_or_else(cut)? != 0 {
            return Err(AuthenticodeError::Signed);
        }
        let headers_bytes = number(program, optional + HEADERS_SIZE_AT, 4).ok_or_else(cut)?;
        let optional_bytes = number(program, header + 20, 2).ok_or_else(cut)?;
        let sections = number(program, header + 6, 2).ok_or_else(cut)?;
        let table = optional + optional_bytes;
        let sections = sections_of(program, table, sections)?;
        let first = sections.first().map_or(headers_bytes, |(at, _)| *at);
        if headers_bytes < directory_at + 8 || first != headers_bytes {
            return Err(AuthenticodeError::Program("its headers have no end"));
        }
        if program.len() < headers_bytes
            || sections.iter().any(|(at, size)| at + size > program.len())
        {
            return Err(cut());
        }
        let mut bytes = program.to_vec();
        // The padding before the table is signed, too, as sbsign does.
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        Ok(Self {
            bytes,
            checksum_at: optional + CHECKSUM_AT,
            directory_at,
            headers_bytes,
            sections,
        })
    }

    /// Takes the signatures off a signed program.
    pub(super) fn split(program: &[u8]) -> Result<(Self, Vec<Vec<u8>>), AuthenticodeError> {
        let cut = || AuthenticodeError::Program("it is cut short");
        let directory = HeaderOffsets::parse(program)?.directory;
        let start = number(program, directory, 4).ok_or_else(cut)?;
        let bytes = number(program, directory + 4, 4).ok_or_else(cut)?;
        if start == 0 {
            return Err(AuthenticodeError::Unsigned);
        }
        let is_last = start.checked_add(bytes) == Some(program.len());
        // No hash would cover bytes behind the table.
        if !is_last || start % ALIGNMENT != 0 || start < directory + 8 {
            return Err(AuthenticodeError::Program(
                "its signatures are not at its end",
            ));
        }
        let mut unsigned = program[..start].to_vec();
        unsigned[directory..directory + 8].fill(0);
        Ok((Self::parse(&unsigned)?, signatures_of(&program[start..])?))
    }

    /// The digest of everything but the checksum, the directory of certificates and the certificates.
    pub(super) fn hash(&self) -> Vec<u8> {
        let mut hasher = Sha256::new();
        let bytes = &self.bytes;
        hasher.update(&bytes[..self.checksum_at]);
        hasher.update(&bytes[self.checksum_at + 4..self.directory_at]);
        hasher.update(&bytes[self.directory_at + 8..self.headers_bytes]);
        let mut end = self.headers_bytes;
        for (at, size) in &self.sections {
            hasher.update(&bytes[*at..at + size]);
            end = at + size;
        }
        hasher.update(&bytes[end..]);
        hasher.finalize().to_vec()
    }

    /// The program with this signature at its end.
    pub(super) fn with_signature(self, signature: &[u8]) -> Vec<u8> {
        let mut out = self.bytes;
        let start = out.len();
        let entry = ENTRY_HEAD_BYTES + signature.len();
        out.extend((entry as u32).to_le_bytes());
        out.extend(REVISION.to_le_bytes());
        out.extend(PKCS_SIGNED_DATA.to_le_bytes());
        out.extend(signature);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        let table = (out.len() - start) as u32;
        let directory = [(start as u32).to_le_bytes(), table.to_le_bytes()].concat();
        out[self.directory_at..self.directory_at + 8].copy_from_slice(&directory);
        // Firmware does not look at it, and one of before would be wrong.
        out[self.checksum_at..self.checksum_at + 4].fill(0);
        out
    }
}

/// The signatures in a table of certificates. Firmware refuses the program if the entries, each with its padding, do not
/// end where the table ends. It reads entries of some other kinds in ways of its own, and signing programs write none.
fn signatures_of(mut table: &[u8]) -> Result<Vec<Vec<u8>>, AuthenticodeError> {
    let uneven = || AuthenticodeError::Program("its signatures do not end with their table");
    let mut signatures = Vec::new();
    while !table.is_empty() {
        let length = number(table, 0, 4).ok_or_else(uneven)?;
        let revision = number(table, REVISION_AT, 2).ok_or_else(uneven)?;
        let kind = number(table, KIND_AT, 2).ok_or_else(uneven)?;
        let signature = table.get(ENTRY_HEAD_BYTES..length).ok_or_else(uneven)?;
        if (revision, kind) != (usize::from(REVISION), usize::from(PKCS_SIGNED_DATA)) {
            return Err(AuthenticodeError::Program(
                "its table of signatures has an entry of another kind",
            ));
        }
        signatures.push(signature.to_vec());
        let next = length.next_multiple_of(ALIGNMENT);
        table = table.get(next..).ok_or_else(uneven)?;
    }
    Ok(signatures)
}

/// The raw data of the sections, in the order of their places. They follow each other without a gap: what firmware
/// hashes of a gap is not the same everywhere.
fn sections_of(
    program: &[u8],
    table: usize,
    count: usize,
) -> Result<Vec<(usize, usize)>, AuthenticodeError> {
    let cut = || AuthenticodeError::Program("it is cut short");
    let mut sections = Vec::new();
    for section in 0..count {
        let at = table + section * SECTION_BYTES;
        let size = number(program, at + 16, 4).ok_or_else(cut)?;
        let place = number(program, at + 20, 4).ok_or_else(cut)?;
        if size > 0 {
            sections.push((place, size));
        }
    }
    sections.sort_unstable();
    let is_gap = |pair: &[(usize, usize)]| pair[0].0 + pair[0].1 != pair[1].0;
    match sections.windows(2).any(is_gap) {
        true => Err(AuthenticodeError::Program(
            "its sections have gaps or overlap",
        )),
        false => Ok(sections),
    }
}

/// A little-endian number of so many bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let digits = bytes.get(at..at.checked_add(size)?)?;
    Some(
        digits
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest program with one section, and 5 bytes behind it.
    fn program() -> Vec<u8> {
        let mut out = vec![0; 0x800 + 5];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x80_u32.to_le_bytes());
        put(0x80, b"PE\0\0\x64\x86\x01\0");
        put(0x94, &240_u16.to_le_bytes());
        put(0x96, &0x0206_u16.to_le_bytes());
        put(0x98, &0x20b_u16.to_le_bytes());
        put(0x98 + 60, &0x600_u32.to_le_bytes());
        put(0x98 + 108, &16_u32.to_le_bytes());
        put(0x188, b".text\0\0\0");
        put(0x198, &0x200_u32.to_le_bytes());
        put(0x19c, &0x600_u32.to_le_bytes());
        out
    }

    fn refusal(program: &[u8]) -> String {
        EfiProgram::parse(program)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn only_the_checksum_and_the_signature_are_left_out() {
        let plain = EfiProgram::parse(&program()).expect("a program").hash();
        for (at, is_covered) in [
            (0x98 + 64, false),
            (0x10, true),
            (0x600, true),
            (0x803, true),
        ] {
            let mut changed = program();
            changed[at] ^= 1;
            let hash = EfiProgram::parse(&changed).expect("a program").hash();
            assert_eq!(hash != plain, is_covered, "{at:#x}");
        }
    }

    #[test]
    fn signatures_come_off_only_the_end() {
        let plain = EfiProgram::parse(&program()).expect("a program");
        let (hash, signed) = (plain.hash(), plain.with_signature(b"signature"));
        let (unsigned, signatures) = EfiProgram::split(&signed).expect("signed");
        assert_eq!(unsigned.hash(), hash);
        // The padding of the entry is no part of the signature.
        assert_eq!(signatures, [b"signature"]);
        let refusal = |program: &[u8]| {
            let refused = EfiProgram::split(program).err();
            refused.expect("it is refused").to_string()
        };
        assert!(refusal(&program()).contains("no signature"));
        let longer = [&signed[..], &[0; 8]].concat();
        assert!(refusal(&longer).contains("not at its end"));
    }

    #[test]
    fn what_is_no_program_or_signed_is_refused() {
        let signed = EfiProgram::parse(&program())
            .expect("a program")
            .with_signature(b"x");
        assert_eq!(signed.len() % ALIGNMENT, 0);
        assert!(refusal(&signed).contains("signature already"));
        assert!(refusal(b"MZ").contains("cut short"));
        for alone in [&b"PE\0\0"[..], b"VZ"] {
            assert!(refusal(alone).contains("without a DOS header"));
        }
        assert!(refusal(&[0; 0x200]).contains("no PE header"));
        assert!(refusal(&program()[..0x700]).contains("cut short"));
        let mut gap = program();
        gap[0x86] = 2;
        gap[0x1c0..0x1c8].copy_from_slice(&[1, 0, 0, 0, 0x02, 0x08, 0, 0]);
        assert!(refusal(&gap).contains("gaps"), "{}", refusal(&gap));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(
            at in 0_usize..0x200,
            bytes in proptest::collection::vec(any::<u8>(), 1..64),
        ) {
            let mut changed = program();
            changed[at..at + bytes.len()].copy_from_slice(&bytes);
            if let Ok(program) = EfiProgram::parse(&changed) {
                program.hash();
                let mut signed = program.with_signature(b"signature");
                let _ = EfiProgram::split(&signed);
                signed[at..at + bytes.len()].copy_from_slice(&bytes);
                let _ = EfiProgram::split(&signed);
            }
        }
    }
}
