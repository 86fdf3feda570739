//! Reads enough ELF to know that a binary needs nothing but a kernel, and strips it.
//!
//! Field offsets are those of the 64-bit little-endian format (System V ABI, chapters 4 and 5).

use alknet_embedded_exe::{EmbeddedExe, EmbeddedExeError};

const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_LITTLE: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const DYNAMIC_BYTES: usize = 16;
/// Offset and length of e_shoff, the section table's file offset.
const SECTION_TABLE: std::ops::Range<usize> = 40..48;
/// e_shnum and e_shstrndx. e_shentsize before them stays as it is.
const SECTION_COUNTS: std::ops::Range<usize> = 60..64;

/// An executable that starts without an interpreter and without a library.
#[derive(Debug)]
pub(crate) struct StaticElf<'a> {
    bytes: &'a [u8],
    loaded_end: usize,
}

impl<'a> StaticElf<'a> {
    /// Checks the executable. The error says what the file is instead and how to build the right
    /// one.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        check_header(bytes)?;
        let segments = segments(bytes)?;
        if !segments.iter().any(|segment| segment.kind == PT_LOAD) {
            return Err("it loads nothing, so it is not an executable".into());
        }
        // The machine has no dynamic loader.
        if let Some(interp) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
            return Err(not_static(&format!(
                "it asks for the interpreter {}",
                interp.text(bytes)
            )));
        }
        // A static position-independent executable has a dynamic segment as well, but names no
        // library in it.
        for segment in segments.iter().filter(|segment| segment.kind == PT_DYNAMIC) {
            check_dynamic(segment.data(bytes)?)?;
        }
        let mut loaded_end = HEADER_BYTES.max(table_end(bytes)?);
        for segment in &segments {
            // This checks that the segment lies inside the file.
            segment.data(bytes)?;
            loaded_end = loaded_end.max(segment.offset + segment.file_bytes);
        }
        Ok(Self { bytes, loaded_end })
    }

    /// The executable without symbols and section table: only what the kernel loads.
    ///
    /// This is not done by `strip`, so that the bytes do not depend on the host's binutils.
    pub(crate) fn stripped(&self) -> Vec<u8> {
        let mut out = self.bytes[..self.loaded_end].to_vec();
        // The sections behind the segments are cut off, so the header must not point to them.
        out[SECTION_TABLE].fill(0);
        out[SECTION_COUNTS].fill(0);
        out
    }

    /// [`Self::stripped`], followed by the embedded file, if the executable has one.
    pub(crate) fn packed(&self) -> Result<Vec<u8>, String> {
        let mut out = self.stripped();
        match EmbeddedExe::find_in(self.bytes) {
            Ok(carried) => {
                let at = to_usize(carried.offset)?;
                match self.bytes.get(at..) {
                    Some(carried) if at >= self.loaded_end => out.extend(carried),
                    _ => return Err("what it carries lies in what the kernel loads".into()),
                }
                Ok(out)
            }
            Err(EmbeddedExeError::None) => Ok(out),
            Err(error) => Err(error.to_string()),
        }
    }
}

struct ElfSegment {
    kind: u32,
    offset: usize,
    file_bytes: usize,
}

impl ElfSegment {
    fn data<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], String> {
        let end = self.offset.checked_add(self.file_bytes);
        end.and_then(|end| bytes.get(self.offset..end))
            .ok_or_else(|| {
                "a segment lies outside the file: it is truncated; build it again".into()
            })
    }

    fn text(&self, bytes: &[u8]) -> String {
        let data = self.data(bytes).unwrap_or_default();
        String::from_utf8_lossy(data)
            .trim_end_matches('\0')
            .to_owned()
    }
}

fn check_header(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC {
        return Err("it is no ELF file; name the alknet executable".into());
    }
    if bytes[4] != CLASS_64 || bytes[5] != DATA_LITTLE {
        return Err("it is not a 64-bit little-endian executable".into());
    }
    let machine = u16_at(bytes, 18)?;
    if machine != MACHINE_X86_64 {
        return Err(format!(
            "it is for ELF machine {machine}; this kernel runs x86-64 (62)"
        ));
    }
    match u16_at(bytes, 16)? {
        TYPE_EXEC | TYPE_DYN => Ok(()),
        other => Err(format!(
            "its ELF type is {other}, not an executable's (2 or 3)"
        )),
    }
}

fn segments(bytes: &[u8]) -> Result<Vec<ElfSegment>, String> {
    let table = to_usize(u64_at(bytes, 32)?)?;
    let size = usize::from(u16_at(bytes, 54)?);
    let count = usize::from(u16_at(bytes, 56)?);
    // The offsets in a segment's header below are those of this size.
    if count > 0 && size != SEGMENT_BYTES {
        return Err(format!(
            "its program headers are {size} bytes each, not {SEGMENT_BYTES}"
        ));
    }
    (0..count)
        .map(|index| segment(bytes, table, index))
        .collect()
}

fn segment(bytes: &[u8], table: usize, index: usize) -> Result<ElfSegment, String> {
    let at = table
        .checked_add(index * SEGMENT_BYTES)
        .ok_or_else(truncated)?;
    Ok(ElfSegment {
        kind: u32_at(bytes, at)?,
        offset: to_usize(u64_at(bytes, at.saturating_add(8))?)?,
        file_bytes: to_usize(u64_at(bytes, at.saturating_add(32))?)?,
    })
}

/// The end of the program headers. `segments` has checked that they lie inside the file.
fn table_end(bytes: &[u8]) -> Result<usize, String> {
    let table = to_usize(u64_at(bytes, 32)?)?;
    Ok(table + usize::from(u16_at(bytes, 56)?) * SEGMENT_BYTES)
}

fn check_dynamic(table: &[u8]) -> Result<(), String> {
    for entry in table.chunks_exact(DYNAMIC_BYTES) {
        match u64_at(entry, 0)? {
            DT_NULL => break,
            DT_NEEDED => return Err(not_static("it needs a shared library")),
            _ => {}
        }
    }
    Ok(())
}

fn not_static(why: &str) -> String {
    format!("{why}, and the machine has none; build it with -C target-feature=+crt-static")
}

fn truncated() -> String {
    "it is truncated; build it again".into()
}

fn to_usize(value: u64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| truncated())
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or_else(truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An executable with one loaded segment that covers the headers, `extra` segments after it,
    /// and filler in place of the symbols.
    fn elf(extra: &[(u32, &[u8])]) -> Vec<u8> {
        let count = extra.len() + 1;
        let mut body = Vec::new();
        let body_at = HEADER_BYTES + count * SEGMENT_BYTES;
        let mut table = segment_bytes(PT_LOAD, 0, body_at as u64);
        for (kind, data) in extra {
            let offset = (body_at + body.len()) as u64;
            table.extend(segment_bytes(*kind, offset, data.len() as u64));
            body.extend_from_slice(data);
        }
        let mut out = vec![0; HEADER_BYTES];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        out[16..18].copy_from_slice(&TYPE_DYN.to_le_bytes());
        out[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        out[32] = HEADER_BYTES as u8;
        out[SECTION_TABLE].fill(7);
        out[54] = SEGMENT_BYTES as u8;
        out[56] = count as u8;
        out[SECTION_COUNTS].fill(7);
        out.extend(table);
        out.extend(body);
        out.extend_from_slice(b"symbols");
        out
    }

    fn segment_bytes(kind: u32, offset: u64, size: u64) -> Vec<u8> {
        let mut out = vec![0; SEGMENT_BYTES];
        out[..4].copy_from_slice(&kind.to_le_bytes());
        out[8..16].copy_from_slice(&offset.to_le_bytes());
        out[32..40].copy_from_slice(&size.to_le_bytes());
        out
    }

    fn refused(bytes: &[u8]) -> String {
        StaticElf::parse(bytes).expect_err("must be refused")
    }

    #[test]
    fn a_static_executable_loses_only_what_is_never_loaded() {
        let whole = elf(&[(PT_DYNAMIC, &[0; 16])]);
        let stripped = StaticElf::parse(&whole).expect("it is static").stripped();
        assert_eq!(stripped.len(), whole.len() - "symbols".len());
        assert!(stripped[SECTION_TABLE].iter().all(|&byte| byte == 0));
        let again = StaticElf::parse(&stripped)
            .expect("still static")
            .stripped();
        assert_eq!(again, stripped);
    }

    #[test]
    fn what_an_executable_carries_goes_along() {
        let frame = b"not looked into";
        let carried = |unpacked| {
            [
                &frame[..],
                &alknet_embedded_exe::trailer(frame.len() as u64, unpacked),
            ]
            .concat()
        };
        let whole = [elf(&[]), carried(99)].concat();
        let parsed = StaticElf::parse(&whole).expect("it is static");
        let packed = parsed.packed().expect("it carries something whole");
        assert_eq!(packed, [parsed.stripped(), carried(99)].concat());
        let again = StaticElf::parse(&packed).expect("still static");
        assert_eq!(again.packed().expect("still there"), packed);

        let none = elf(&[]);
        let parsed = StaticElf::parse(&none).expect("it is static");
        assert_eq!(
            parsed.packed().expect("nothing to carry"),
            parsed.stripped()
        );

        let loaded = alknet_embedded_exe::trailer(whole.len() as u64, 1);
        let wrong = [elf(&[]), loaded.to_vec()].concat();
        let parsed = StaticElf::parse(&wrong).expect("it is static");
        parsed.packed().expect_err("more than there is");
        let most = wrong.len() as u64 - 32 - 1;
        let wrong = [elf(&[]), alknet_embedded_exe::trailer(most, 1).to_vec()].concat();
        let parsed = StaticElf::parse(&wrong).expect("it is static");
        parsed.packed().expect_err("it would be loaded");
    }

    #[test]
    fn the_running_test_is_static_and_stays_so_when_stripped() {
        let path = std::env::current_exe().expect("a test has a path");
        let whole = std::fs::read(path).expect("a test can read itself");
        let stripped = StaticElf::parse(&whole)
            .expect("built with crt-static")
            .stripped();
        assert!(stripped.len() < whole.len());
        StaticElf::parse(&stripped).expect("still static");
    }

    #[test]
    fn an_interpreter_is_named() {
        let why = refused(&elf(&[(PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0")]));
        assert!(why.contains("/lib64/ld-linux-x86-64.so.2,"), "{why}");
        assert!(why.contains("crt-static"), "{why}");
    }

    #[test]
    fn a_needed_library_is_refused() {
        let mut dynamic = [0; 32];
        dynamic[0] = DT_NEEDED as u8;
        assert!(refused(&elf(&[(PT_DYNAMIC, &dynamic)])).contains("shared library"));
    }

    #[test]
    fn entries_after_the_end_of_the_dynamic_table_do_not_count() {
        let mut dynamic = [0; 32];
        dynamic[16] = DT_NEEDED as u8;
        StaticElf::parse(&elf(&[(PT_DYNAMIC, &dynamic)])).expect("DT_NULL ends the table");
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        assert!(refused(b"#!/bin/sh\n").contains("no ELF file"));
        let mut arm = elf(&[]);
        arm[18] = 183;
        assert!(refused(&arm).contains("ELF machine 183"));
        let mut object = elf(&[]);
        object[16] = 1;
        assert!(refused(&object).contains("ELF type is 1"));
        let mut narrow = elf(&[]);
        narrow[4] = 1;
        assert!(refused(&narrow).contains("64-bit"));
        let mut empty = elf(&[]);
        empty[56] = 0;
        assert!(refused(&empty).contains("loads nothing"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = elf(&[]);
            bytes.truncate(20);
            bytes.append(&mut tail);
            if let Ok(elf) = StaticElf::parse(&bytes) {
                elf.stripped();
            }
        }

        #[test]
        fn every_truncation_is_refused_or_still_whole(keep in 0_usize..200) {
            let whole = elf(&[(PT_DYNAMIC, &[0; 16])]);
            let cut = &whole[..keep.min(whole.len())];
            if let Ok(elf) = StaticElf::parse(cut) {
                prop_assert!(elf.loaded_end <= cut.len());
            }
        }
    }
}
