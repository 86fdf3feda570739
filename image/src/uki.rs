//! A unified kernel image: the boot stub with our sections appended to it.
//!
//! Offsets are those of the PE/COFF specification, and section names those of the UAPI group's
//! specification of unified kernel images.

use std::borrow::Cow;
use std::ops::Range;

use crate::grub::{self, SCRIPT_AT, SCRIPT_BYTES};

const PE_POINTER_AT: usize = 0x3c;
const PE_MAGIC: &[u8] = b"PE\0\0";
const MACHINE_AMD64: u16 = 0x8664;
const OPTIONAL_MAGIC_64: u16 = 0x20b;
const SECTION_HEADER_BYTES: usize = 40;
/// Initialised data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;
/// The position of the certificate table's address and size in the optional header.
const CERTIFICATES_AT: usize = 112 + 4 * 8;
/// Largest alignment of a sane stub, in bytes.
const ALIGNMENT_MAX: u32 = 1 << 21;

/// One section to append.
#[derive(Debug)]
pub(crate) struct UkiSection<'a> {
    /// At most 8 bytes.
    pub(crate) name: &'static str,
    pub(crate) data: Cow<'a, [u8]>,
}

/// The sections of our image, in the order in which they lie in the file.
pub(crate) fn sections<'a>(
    os_release: String,
    cmdline: &str,
    release: &str,
    kernel: &'a [u8],
    initrd: &'a [u8],
) -> [UkiSection<'a>; 5] {
    let text = |text: String| Cow::Owned(text.into_bytes());
    [
        UkiSection {
            name: ".osrel",
            data: text(os_release),
        },
        UkiSection {
            name: ".cmdline",
            data: text(format!("{cmdline}\0")),
        },
        UkiSection {
            name: ".uname",
            data: text(release.to_owned()),
        },
        UkiSection {
            name: ".linux",
            data: Cow::Borrowed(kernel),
        },
        UkiSection {
            name: ".initrd",
            data: Cow::Borrowed(initrd),
        },
    ]
}

/// The text that a loader shows, and by which it sorts.
pub(crate) fn os_release(version: &str, git: &str) -> String {
    format!(
        "ID=alknet\nNAME=\"alknet\"\nPRETTY_NAME=\"alknet {version}\"\nVERSION_ID={version}\n\
         BUILD_ID={git}\n"
    )
}

/// The stub with `sections` and with the script by which GRUB starts the same kernel under a BIOS.
/// The error says what is unusable in the stub.
pub(crate) fn unified(
    stub: &[u8],
    cmdline: &str,
    sections: [UkiSection<'_>; 5],
) -> Result<Vec<u8>, String> {
    let layout = StubLayout::parse(stub)?;
    let first = stub.len().next_multiple_of(layout.file_align as usize);
    let before = SCRIPT_AT.checked_sub(first).ok_or_else(|| {
        format!(
            "it is {} bytes, and GRUB reads its script from byte {SCRIPT_AT} on; take a smaller stub",
            stub.len()
        )
    })?;
    // The bytes before the script belong to its section: programs that sign or check an EFI program
    // disagree about bytes between sections.
    let mut script = vec![0; before];
    // GRUB skips empty lines.
    script.resize(before + SCRIPT_BYTES, b'\n');
    let script = UkiSection {
        name: ".grubcfg",
        data: Cow::Owned(script),
    };
    let all: Vec<_> = [script].into_iter().chain(sections).collect();
    let mut out = append(stub, &all)?;
    let [kernel, initrd] = [".linux", ".initrd"].map(|name| raw_range(&out, name));
    let text = grub::script(kernel?, initrd?, cmdline)?;
    put(&mut out, SCRIPT_AT, text.as_bytes());
    Ok(out)
}

/// Where the contents of a section lie in the file, with the zeros that pad them. Of several
/// sections of this name the last one counts, which is not the stub's.
pub(crate) fn raw_range(image: &[u8], name: &str) -> Result<Range<usize>, String> {
    let layout = StubLayout::parse(image)?;
    let mut wanted = [0; 8];
    put(&mut wanted, 0, name.as_bytes());
    let headers = (0..layout.count).rev();
    for header in headers.map(|index| layout.table + index * SECTION_HEADER_BYTES) {
        if array_at::<8>(image, header)? == wanted {
            let bytes = u32_at(image, header + 16)? as usize;
            let at = u32_at(image, header + 20)? as usize;
            return Ok(at..at + bytes);
        }
    }
    Err(format!("it has no section {name}"))
}

/// Appends `sections` to the stub. The error says what is unusable in the stub.
pub(crate) fn append(stub: &[u8], sections: &[UkiSection<'_>]) -> Result<Vec<u8>, String> {
    let layout = StubLayout::parse(stub)?;
    if u32_at(stub, layout.optional + CERTIFICATES_AT + 4)? != 0 {
        return Err(
            "it is signed, and appending breaks the signature; take an unsigned stub".into(),
        );
    }
    let room = layout.headers_left();
    if room < sections.len() {
        return Err(format!(
            "it has room for {room} more sections and {} are needed; take the stub of a newer \
             systemd (257 or later)",
            sections.len()
        ));
    }
    let mut out = stub.to_vec();
    // The contents of a section begin at a multiple of the file alignment.
    out.resize(out.len().next_multiple_of(layout.file_align as usize), 0);
    let mut address = layout.end;
    let mut data_bytes = layout.data_bytes;
    for (index, section) in sections.iter().enumerate() {
        let header = layout.table + (layout.count + index) * SECTION_HEADER_BYTES;
        address = round_up(address, layout.section_align)?;
        let raw_bytes = push_data(&mut out, &section.data, layout.file_align)?;
        let raw_at = size(out.len())? - raw_bytes;
        write_header(&mut out, header, section, [address, raw_bytes, raw_at])?;
        address = address
            .checked_add(size(section.data.len())?)
            .ok_or_else(too_large)?;
        // Firmware does not use this figure. It may wrap in a stub that states nonsense.
        data_bytes = data_bytes.wrapping_add(raw_bytes);
    }
    let count = (layout.count + sections.len()) as u16;
    // NumberOfSections and SizeOfInitializedData of the PE headers.
    put(&mut out, layout.pe + 6, &count.to_le_bytes());
    put(&mut out, layout.optional + 8, &data_bytes.to_le_bytes());
    // SizeOfImage is a multiple of the section alignment.
    let image_bytes = round_up(address, layout.section_align)?;
    put(&mut out, layout.optional + 56, &image_bytes.to_le_bytes());
    // The checksum is optional for EFI programs. Zero means no checksum.
    put(&mut out, layout.optional + 64, &[0; 4]);
    Ok(out)
}

/// Refuses a file that no x86-64 firmware would start. A signed program passes.
pub(crate) fn check_program(program: &[u8]) -> Result<(), String> {
    if !program.starts_with(b"MZ") {
        return Err("it is no EFI program".into());
    }
    headers(program).map(drop)
}

/// The places of the PE header and of the optional header of a program for x86-64.
fn headers(program: &[u8]) -> Result<(usize, usize), String> {
    let pe = u32_at(program, PE_POINTER_AT)? as usize;
    let begins = program.get(pe..);
    if begins.is_none_or(|rest| !rest.starts_with(PE_MAGIC)) {
        return Err("it is no PE file; name the file of an EFI program".into());
    }
    let machine = u16_at(program, pe + 4)?;
    let optional = pe + 24;
    if machine != MACHINE_AMD64 || u16_at(program, optional)? != OPTIONAL_MAGIC_64 {
        return Err(format!(
            "it is for PE machine {machine:#x}, not x86-64 (0x8664)"
        ));
    }
    Ok((pe, optional))
}

/// The positions in the stub.
struct StubLayout {
    pe: usize,
    optional: usize,
    table: usize,
    count: usize,
    header_bytes: usize,
    section_align: u32,
    file_align: u32,
    data_bytes: u32,
    /// First free address behind the stub's own sections.
    end: u32,
}

impl StubLayout {
    fn parse(stub: &[u8]) -> Result<Self, String> {
        let (pe, optional) = headers(stub)?;
        let table = optional + usize::from(u16_at(stub, pe + 20)?);
        let count = usize::from(u16_at(stub, pe + 6)?);
        let header_bytes = u32_at(stub, optional + 60)? as usize;
        if header_bytes > stub.len() {
            return Err("its headers end behind the file: it is truncated; get it again".into());
        }
        Ok(Self {
            pe,
            optional,
            table,
            count,
            header_bytes,
            section_align: alignment(u32_at(stub, optional + 32)?)?,
            file_align: alignment(u32_at(stub, optional + 36)?)?,
            data_bytes: u32_at(stub, optional + 8)?,
            end: sections_end(stub, table, count)?,
        })
    }

    /// How many section headers fit before the first section's contents.
    fn headers_left(&self) -> usize {
        let used = self.table + self.count * SECTION_HEADER_BYTES;
        self.header_bytes.saturating_sub(used) / SECTION_HEADER_BYTES
    }
}

fn sections_end(stub: &[u8], table: usize, count: usize) -> Result<u32, String> {
    let mut end = 0;
    for header in (0..count).map(|index| table + index * SECTION_HEADER_BYTES) {
        let bytes = u32_at(stub, header + 8)?;
        let section_end = u32_at(stub, header + 12)?
            .checked_add(bytes)
            .ok_or_else(too_large)?;
        end = end.max(section_end);
    }
    Ok(end)
}

fn push_data(out: &mut Vec<u8>, data: &[u8], align: u32) -> Result<u32, String> {
    let raw_bytes = round_up(size(data.len())?, align)?;
    let end = out.len() + raw_bytes as usize;
    out.extend_from_slice(data);
    out.resize(end, 0);
    Ok(raw_bytes)
}

fn write_header(
    out: &mut [u8],
    at: usize,
    section: &UkiSection<'_>,
    [address, raw_bytes, raw_at]: [u32; 3],
) -> Result<(), String> {
    let mut header = [0; SECTION_HEADER_BYTES];
    put(&mut header, 0, section.name.as_bytes());
    put(&mut header, 8, &size(section.data.len())?.to_le_bytes());
    put(&mut header, 12, &address.to_le_bytes());
    put(&mut header, 16, &raw_bytes.to_le_bytes());
    put(&mut header, 20, &raw_at.to_le_bytes());
    put(&mut header, 36, &CHARACTERISTICS.to_le_bytes());
    put(out, at, &header);
    Ok(())
}

/// Overwrites bytes at a position that `StubLayout::parse` and `headers_left` have shown to lie inside.
fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn alignment(value: u32) -> Result<u32, String> {
    if value.is_power_of_two() && value <= ALIGNMENT_MAX {
        return Ok(value);
    }
    Err(format!(
        "its alignment {value} is not a power of two up to {ALIGNMENT_MAX}"
    ))
}

fn round_up(value: u32, align: u32) -> Result<u32, String> {
    value.checked_next_multiple_of(align).ok_or_else(too_large)
}

fn size(bytes: usize) -> Result<u32, String> {
    u32::try_from(bytes).map_err(|_| too_large())
}

fn too_large() -> String {
    "the image would pass 4 GiB, which PE cannot describe".into()
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk()).copied();
    chunk.ok_or_else(|| "it is truncated; get the stub again".into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER_BYTES: usize = 0x400;

    /// A PE file with one section, with the parts that the appender reads.
    pub(crate) fn stub() -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES + 0x200];
        put(&mut out, PE_POINTER_AT, &0x40_u32.to_le_bytes());
        put(&mut out, 0x40, PE_MAGIC);
        put(&mut out, 0x44, &MACHINE_AMD64.to_le_bytes());
        put(&mut out, 0x46, &1_u16.to_le_bytes());
        put(&mut out, 0x54, &240_u16.to_le_bytes());
        put(&mut out, 0x58, &OPTIONAL_MAGIC_64.to_le_bytes());
        put(&mut out, 0x58 + 32, &4096_u32.to_le_bytes());
        put(&mut out, 0x58 + 36, &512_u32.to_le_bytes());
        put(&mut out, 0x58 + 60, &(HEADER_BYTES as u32).to_le_bytes());
        put(&mut out, 0x58 + 64, &0xdead_u32.to_le_bytes());
        let section = UkiSection {
            name: ".text",
            data: Cow::Borrowed(&[0xcc; 0x123]),
        };
        let places = [0x1000, 0x200, HEADER_BYTES as u32];
        write_header(&mut out, 0x58 + 240, &section, places).expect("fits");
        out
    }

    fn two_sections() -> [UkiSection<'static>; 2] {
        [
            UkiSection {
                name: ".cmdline",
                data: Cow::Borrowed(b"quiet\0"),
            },
            UkiSection {
                name: ".linux",
                data: Cow::Borrowed(&[7; 5000]),
            },
        ]
    }

    #[test]
    fn sections_follow_the_last_one_on_both_alignments() {
        let uki = append(&stub(), &two_sections()).expect("has room");
        let layout = StubLayout::parse(&uki).expect("still a PE file");
        assert_eq!((layout.count, layout.end), (3, 0x3000 + 5000));
        assert_eq!(u32_at(&uki, layout.optional + 56), Ok(0x5000));
        assert_eq!(u32_at(&uki, layout.optional + 64), Ok(0));
        let header = layout.table + 2 * SECTION_HEADER_BYTES;
        assert_eq!(&uki[header..header + 8], b".linux\0\0");
        assert_eq!(u32_at(&uki, header + 12), Ok(0x3000));
        let at = u32_at(&uki, header + 20).expect("inside") as usize;
        assert_eq!(at % 512, 0);
        assert_eq!(&uki[at..at + 5000], &[7; 5000]);
        assert_eq!(uki.len(), at + 5120);
    }

    fn program(stub: &[u8]) -> Result<Vec<u8>, String> {
        let text = os_release("0.1.0", "abc");
        let sections = sections(text, "quiet panic=10", "6.12", &[7; 5000], &[9; 700]);
        unified(stub, "quiet panic=10", sections)
    }

    #[test]
    fn the_script_is_at_its_place_and_no_byte_is_outside_of_sections() {
        let program = program(&stub()).expect("has room");
        let script = &program[SCRIPT_AT..SCRIPT_AT + SCRIPT_BYTES];
        let [kernel, initrd] = [".linux", ".initrd"].map(|name| raw_range(&program, name));
        let (kernel, initrd) = (kernel.expect("appended"), initrd.expect("appended"));
        let wanted = grub::script(kernel.clone(), initrd.clone(), "quiet panic=10");
        let wanted = wanted.expect("usable");
        let (text, filling) = script.split_at(wanted.len());
        assert_eq!(text, wanted.as_bytes());
        assert!(filling.iter().all(|byte| *byte == b'\n'));
        assert_eq!(program[kernel.start..kernel.start + 5000], [7; 5000]);
        assert_eq!(program[initrd.start..initrd.start + 700], [9; 700]);

        // Signing tools hash sections, and what follows the last one.
        let layout = StubLayout::parse(&program).expect("a PE file");
        let mut end = layout.header_bytes;
        for index in 0..layout.count {
            let header = layout.table + index * SECTION_HEADER_BYTES;
            let [bytes, at] = [16, 20].map(|field| u32_at(&program, header + field));
            assert_eq!(at.expect("inside") as usize, end, "section {index}");
            end += bytes.expect("inside") as usize;
        }
        assert_eq!(end, program.len());
    }

    #[test]
    fn a_stub_that_reaches_the_script_is_refused() {
        let mut large = stub();
        large.resize(SCRIPT_AT, 0);
        program(&large).expect("exactly fits");
        large.push(0);
        let why = program(&large).expect_err("one byte too many");
        assert!(why.contains("262145"), "{why}");
    }

    #[test]
    fn a_stub_without_room_is_refused_with_the_version_to_take() {
        let layout = StubLayout::parse(&stub()).expect("a PE file");
        let many = |count| -> Vec<_> {
            (0..count)
                .map(|_| UkiSection {
                    name: ".x",
                    data: Cow::Borrowed(b"x"),
                })
                .collect()
        };
        append(&stub(), &many(layout.headers_left())).expect("fills the room");
        let why = append(&stub(), &many(layout.headers_left() + 1)).expect_err("one too many");
        assert!(why.contains("257"), "{why}");
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |bytes: &[u8]| append(bytes, &two_sections()).expect_err("must be refused");
        assert!(refused(b"MZ").contains("truncated"));
        assert!(refused(&[0; 4096]).contains("no PE file"));
        let mut arm = stub();
        put(&mut arm, 0x44, &0xaa64_u16.to_le_bytes());
        assert!(refused(&arm).contains("0xaa64"));
        let mut signed = stub();
        put(&mut signed, 0x58 + CERTIFICATES_AT + 4, &[1]);
        assert!(refused(&signed).contains("signed"));
        let mut skewed = stub();
        put(&mut skewed, 0x58 + 36, &[3, 0, 0, 0]);
        assert!(refused(&skewed).contains("power of two"));
        let mut short = stub();
        short.truncate(HEADER_BYTES - 1);
        assert!(refused(&short).contains("truncated"));
    }

    #[test]
    fn the_release_text_has_no_blank_lines_and_names_the_version() {
        let text = os_release("0.1.0", "abc");
        assert!(text.lines().all(|line| line.contains('=')), "{text}");
        assert!(text.contains("\nVERSION_ID=0.1.0\n"), "{text}");
    }

    proptest! {
        #[test]
        fn no_stub_makes_the_appender_panic(
            changes in proptest::collection::vec((0_usize..0x300, any::<u8>()), 0..30),
            keep in 0_usize..0x700,
        ) {
            let mut bytes = stub();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(keep.max(8));
            let _ = append(&bytes, &two_sections());
            let _ = program(&bytes);
        }
    }
}
