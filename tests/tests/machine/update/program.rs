//! The program of a boot slot, as a file: a unified kernel image with another version, more words on its command line,
//! or other files in its initial file system.

use std::ops::Range;
use std::time::Duration;

use alknet_image::ProgramParts;
use memchr::memmem;

use super::FIRST;

/// Where a PE file says where its header is, and what the tests change there (PE/COFF specification, "Optional Header").
pub(crate) const PE_POINTER_AT: usize = 0x3c;
const SIZE_OF_IMAGE_AT: usize = 24 + 56;
const SECTION_ALIGNMENT_AT: usize = 24 + 32;
const FILE_ALIGNMENT_AT: usize = 24 + 36;
const SECTION_BYTES: usize = 40;

/// Bytes of a block in GRUB's lists of blocks.
const BLOCK: usize = 512;
/// Archives of an initial file system begin at a multiple of so many bytes.
const ARCHIVE_ALIGNMENT: usize = 4;
/// Compresses the initial file system of a test in half a second.
const QUICK_LEVEL: i32 = 1;

/// A file in an initial file system: path, mode with the type, and content.
pub(crate) type AddedFile<'a> = (&'a str, u32, &'a [u8]);

/// The mode of a program.
pub(crate) const PROGRAM: u32 = 0o100_755;
pub(crate) const FOLDER: u32 = 0o040_755;
pub(crate) const FILE: u32 = 0o100_444;

/// The program `base` with this version. Everything else is the same.
pub(crate) fn versioned(base: &[u8], version: &str) -> Vec<u8> {
    changed(base, version, "", &[])
}

/// The program `base` with this version, with more words for the kernel, and with files in the place of those in its
/// initial file system.
pub(crate) fn changed(base: &[u8], version: &str, words: &str, files: &[AddedFile<'_>]) -> Vec<u8> {
    rewritten(base, version, words, files, InitialFiles::Base)
}

/// The program `base` with this version, which knows the name `name`, for example of a key of the configuration, as
/// `other` of the same length.
pub(crate) fn renamed(base: &[u8], version: &str, name: &str, other: &str) -> Vec<u8> {
    assert_eq!(name.len(), other.len(), "it is written in its place");
    let parts = ProgramParts::unpack(base).unwrap_or_else(|error| panic!("{error}"));
    let mut files = parts.as_new().archive.to_vec();
    let places: Vec<_> = memmem::find_iter(&files, name).collect();
    assert!(!places.is_empty(), "the program has no {name}");
    for at in places {
        files[at..at + name.len()].copy_from_slice(other.as_bytes());
    }
    let packed = zstd::bulk::compress(&files, QUICK_LEVEL).expect("memory is there");
    rewritten(base, version, "", &[], InitialFiles::Packed(&packed))
}

/// The kernel of `base`, with more words for it, in a program of this version whose initial file system has these
/// files alone. A program that no test lets come to its node costs a third so, wherever it is sent, hashed, loaded and
/// unpacked.
pub(crate) fn kernel_alone(
    base: &[u8],
    version: &str,
    words: &str,
    files: &[AddedFile<'_>],
) -> Vec<u8> {
    rewritten(base, version, words, files, InitialFiles::Empty)
}

/// What an initial file system has before files are added.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InitialFiles<'a> {
    Base,
    Empty,
    /// These, compressed.
    Packed(&'a [u8]),
}

fn rewritten(
    base: &[u8],
    version: &str,
    words: &str,
    files: &[AddedFile<'_>],
    initial: InitialFiles<'_>,
) -> Vec<u8> {
    assert_eq!(version.len(), FIRST.len(), "it is written in its place");
    let mut program = base.to_vec();
    let release = section(&program, b".osrel\0\0").raw;
    for at in memmem::find_iter(&base[release.clone()], FIRST) {
        let at = release.start + at;
        program[at..at + FIRST.len()].copy_from_slice(version.as_bytes());
    }
    if !words.is_empty() {
        add_words(&mut program, words);
    }
    let line = format!("{version}\n");
    let mut all = vec![("version", FILE, line.as_bytes())];
    all.extend(files);
    add_archive(&mut program, initial, &archive(&all));
    program
}

/// A section of the program.
pub(crate) struct ProgramSection {
    /// Where its header is.
    header: usize,
    /// Where it lies in the file, with the zeros behind it.
    pub(crate) raw: Range<usize>,
    /// Bytes without these zeros.
    pub(crate) bytes: usize,
}

/// The last section with this name: those before it are the boot stub's.
pub(crate) fn section(program: &[u8], name: &[u8; 8]) -> ProgramSection {
    let pe = number(program, PE_POINTER_AT);
    let count = usize::from(u16::from_le_bytes([program[pe + 6], program[pe + 7]]));
    let optional = usize::from(u16::from_le_bytes([program[pe + 20], program[pe + 21]]));
    let table = pe + 24 + optional;
    let mut headers = (0..count).rev().map(|index| table + index * SECTION_BYTES);
    let header = headers.find(|at| program[*at..].starts_with(name));
    let header = header.expect("the program of an image has it");
    let raw_at = number(program, header + 20);
    ProgramSection {
        header,
        raw: raw_at..raw_at + number(program, header + 16),
        bytes: number(program, header + 8),
    }
}

fn add_words(program: &mut [u8], words: &str) {
    let line = section(program, b".cmdline");
    let old = &program[line.raw.clone()][..line.bytes];
    let old = old.strip_suffix(b"\0").unwrap_or(old);
    let new = [old, b" ", words.as_bytes(), b"\0"].concat();
    // The zeros behind the section have room for a few words, so no other section moves.
    assert!(new.len() <= line.raw.len(), "too many words: {words}");
    program[line.raw.start..line.raw.start + new.len()].copy_from_slice(&new);
    put(program, line.header + 8, new.len());
    // The words are behind the others in the script as well, each within marks.
    let end = "; then\nif initrd ";
    let words = words.split(' ').map(|word| format!(" '{word}'"));
    in_script(program, end, &(words.collect::<String>() + end));
}

/// Adds an archive behind those of the initial file system, which is the last section, or in their place. The kernel
/// unpacks one after the other, so files of the last one replace the others.
fn add_archive(program: &mut Vec<u8>, initial: InitialFiles<'_>, archive: &[u8]) {
    let files = section(program, b".initrd\0");
    assert_eq!(files.raw.end, program.len(), "it is the last section");
    assert_eq!(files.bytes % ARCHIVE_ALIGNMENT, 0);
    let (kept, packed) = match initial {
        InitialFiles::Base => (files.bytes, &[][..]),
        InitialFiles::Empty => (0, &[][..]),
        InitialFiles::Packed(packed) => (0, packed),
    };
    program.truncate(files.raw.start + kept);
    program.extend_from_slice(packed);
    // The kernel skips zeros between archives.
    let padded = packed.len().next_multiple_of(ARCHIVE_ALIGNMENT);
    program.resize(program.len() + padded - packed.len(), 0);
    program.extend_from_slice(archive);
    let bytes = program.len() - files.raw.start;
    let pe = number(program, PE_POINTER_AT);
    let align = number(program, pe + FILE_ALIGNMENT_AT);
    program.resize(program.len().next_multiple_of(align), 0);
    let raw = program.len() - files.raw.start;
    put(program, files.header + 8, bytes);
    put(program, files.header + 16, raw);
    let end = number(program, files.header + 12) + bytes;
    let align = number(program, pe + SECTION_ALIGNMENT_AT);
    put(program, pe + SIZE_OF_IMAGE_AT, end.next_multiple_of(align));
    let blocks =
        |bytes: usize| format!("(uki){}+{}", files.raw.start / BLOCK, bytes.div_ceil(BLOCK));
    in_script(program, &blocks(files.raw.len()), &blocks(raw));
}

/// Replaces a word of the script by which GRUB starts the program.
fn in_script(program: &mut [u8], old: &str, new: &str) {
    let place = section(program, b".grubcfg").raw;
    let begin = memmem::find(&program[place.clone()], b"set alknet_found=1\n");
    let begin = place.start + begin.expect("its first line");
    let script = String::from_utf8(program[begin..place.end].to_vec()).expect("a text");
    let script = script.trim_end_matches('\n');
    assert!(script.contains(old), "{old} in {script}");
    let script = script.replace(old, new) + "\n";
    // GRUB skips empty lines.
    program[begin..place.end].fill(b'\n');
    program[begin..begin + script.len()].copy_from_slice(script.as_bytes());
}

/// An archive in the format "newc", as the kernel unpacks it
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(files: &[AddedFile<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let end: AddedFile<'_> = ("TRAILER!!!", 0, b"");
    for (index, (path, mode, content)) in files.iter().chain([&end]).enumerate() {
        let mode = usize::try_from(*mode).unwrap_or_default();
        let fields = [
            index + 1,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            path.len() + 1,
            0,
        ];
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        out.extend_from_slice(path.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(ARCHIVE_ALIGNMENT), 0);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(ARCHIVE_ALIGNMENT), 0);
    }
    out
}

/// A static program for x86-64 that starts the watchdog and then waits for ever: mount(2) of a devtmpfs, open(2) of
/// `/dev/watchdog0`, and pause(2).
pub(crate) fn hanging_program() -> Vec<u8> {
    const TEXTS: &[u8] = b"devtmpfs\0/dev\0/dev/watchdog0\0";
    const CODE_BYTES: u32 = 62;
    let [fs, dev, watchdog] = [0, 9, 14].map(|at| (CODE_AT + CODE_BYTES + at).to_le_bytes());
    let mut code = Vec::new();
    code.extend([0xb8, 0xa5, 0, 0, 0]); // mov eax, 165 (mount)
    code.push(0xbf); // mov edi, the name of a device
    code.extend(fs);
    code.push(0xbe); // mov esi, the folder
    code.extend(dev);
    code.push(0xba); // mov edx, the type
    code.extend(fs);
    code.extend([0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0, 0x0f, 0x05]); // no flags, no data; syscall
    code.extend([0xb8, 2, 0, 0, 0]); // mov eax, 2 (open)
    code.push(0xbf); // mov edi, the path
    code.extend(watchdog);
    code.extend([0xbe, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x05]); // for writing; syscall
    code.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]); // pause, again and again
    static_program(&code, CODE_BYTES, TEXTS)
}

/// A static program for x86-64 that the kernel starts in the place of `/init`. It leaves a child behind and becomes
/// `/init`. After `delay` the child takes a mebibyte of memory each hundredth of a second, and the kernel does not end
/// it where memory is short: fork(2), execve(2), nanosleep(2), a write to `oom_score_adj`, and mmap(2).
pub(crate) fn filling_program(delay: Duration) -> Vec<u8> {
    const CODE_BYTES: u32 = 144;
    const INIT_AT: u32 = 32;
    const SCORE_AT: u32 = INIT_AT + 6;
    const WORTH_AT: u32 = SCORE_AT + 25;
    // Two times of nanosleep(2): seconds and nanoseconds.
    let mut data = Vec::new();
    for number in [delay.as_secs(), 0, 0, 10_000_000] {
        data.extend(number.to_le_bytes());
    }
    data.extend(b"/init\0/proc/self/oom_score_adj\0-1000");
    let address = |at: u32| (CODE_AT + CODE_BYTES + at).to_le_bytes();
    let mut code = Vec::new();
    code.extend([0xb8, 57, 0, 0, 0, 0x0f, 0x05]); // mov eax, 57 (fork); syscall
    code.extend([0x85, 0xc0, 0x74, 0x20]); // test eax, eax; jz to the child
    code.push(0xbf); // mov edi, "/init"
    code.extend(address(INIT_AT));
    code.extend([0x48, 0x89, 0x7c, 0x24, 0x08]); // mov [rsp + 8], rdi: its name
    code.extend([0x48, 0x8b, 0x0c, 0x24]); // mov rcx, [rsp]: how many arguments there are
    code.extend([0x48, 0x8d, 0x74, 0x24, 0x08]); // lea rsi, [rsp + 8]: the arguments
    code.extend([0x48, 0x8d, 0x54, 0xce, 0x08]); // lea rdx, [rsi + rcx * 8 + 8]: the environment
    code.extend([0xb8, 59, 0, 0, 0, 0x0f, 0x05, 0xf4]); // mov eax, 59 (execve); syscall; hlt
    code.push(0xbf); // mov edi, the delay
    code.extend(address(0));
    code.extend([0x31, 0xf6, 0xb8, 35, 0, 0, 0, 0x0f, 0x05]); // mov eax, 35 (nanosleep); syscall
    code.push(0xbf); // mov edi, the path
    code.extend(address(SCORE_AT));
    code.extend([0xbe, 1, 0, 0, 0, 0xb8, 2, 0, 0, 0, 0x0f, 0x05]); // for writing; mov eax, 2 (open); syscall
    code.extend([0x89, 0xc7]); // mov edi, eax: the file
    code.push(0xbe); // mov esi, the text
    code.extend(address(WORTH_AT));
    code.extend([0xba, 5, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0x0f, 0x05]); // 5 bytes; mov eax, 1 (write); syscall
    let again = code.len();
    code.extend([0x31, 0xff, 0xbe, 0, 0, 0x10, 0]); // anywhere; mov esi, 1 << 20
    code.extend([0xba, 3, 0, 0, 0]); // mov edx, PROT_READ | PROT_WRITE
    code.extend([0x41, 0xba, 0x22, 0x80, 0, 0]); // mov r10d, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE
    code.extend([0x49, 0x83, 0xc8, 0xff]); // or r8, -1: of no file
    code.extend([0x45, 0x31, 0xc9, 0xb8, 9, 0, 0, 0, 0x0f, 0x05]); // mov eax, 9 (mmap); syscall
    code.push(0xbf); // mov edi, the pause
    code.extend(address(16));
    code.extend([0x31, 0xf6, 0xb8, 35, 0, 0, 0, 0x0f, 0x05]); // mov eax, 35 (nanosleep); syscall
    code.push(0xeb); // jmp to the next mebibyte
    let back = i8::try_from(code.len() + 1 - again).expect("a short way");
    code.extend((-back).to_le_bytes());
    static_program(&code, CODE_BYTES, &data)
}

/// Where a program of [`static_program`] and its code are in memory.
const PROGRAM_BASE: u32 = 0x40_0000;
const CODE_AT: u32 = PROGRAM_BASE + HEADS_BYTES;
/// Bytes of the two headers before the code.
const HEADS_BYTES: u32 = 120;

/// An executable file of one segment: code that takes this room, and behind it what it reads.
fn static_program(code: &[u8], code_bytes: u32, data: &[u8]) -> Vec<u8> {
    let room = usize::try_from(code_bytes).expect("a usize has 64 bits");
    assert!(code.len() <= room, "{} bytes of code", code.len());
    let bytes = u64::from(HEADS_BYTES + code_bytes) + data.len() as u64;
    let mut out = Vec::new();
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    out.extend(u64::from(CODE_AT).to_le_bytes()); // entry
    out.extend(64_u64.to_le_bytes()); // where the program header is
    out.extend([0; 12]); // no section headers, no flags
    out.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    out.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, readable and executable
    let base = u64::from(PROGRAM_BASE);
    for field in [0, base, base, bytes, bytes, 4096] {
        out.extend(field.to_le_bytes());
    }
    out.extend(code);
    out.resize(out.len() + room - code.len(), 0x90);
    out.extend(data);
    out
}

fn number(bytes: &[u8], at: usize) -> usize {
    let four = bytes[at..].first_chunk().expect("within the file");
    usize::try_from(u32::from_le_bytes(*four)).expect("a usize has 64 bits")
}

fn put(bytes: &mut [u8], at: usize, value: usize) {
    let value = u32::try_from(value).expect("below 4 GiB");
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
