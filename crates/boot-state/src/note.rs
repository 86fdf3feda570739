//! The boot note: how far a version on trial came, for the version to which the machine returns.
//!
//! PID 1 of the version on trial writes it in place while it starts, and PID 1 of the earlier version reads it after a
//! failed trial. So it lies outside of every file system, as the record does, and each version reads what any other one
//! wrote: variables that a version does not know are skipped.
//!
//! The area has two halves, which are written in turn. A power cut that tears a write leaves the other half.

use crate::error::BootNoteError;
use crate::record::SECTOR_BYTES;
use crate::slot::BootSlot;
use crate::text::number;

/// Bytes of the note's area on the disk.
pub const NOTE_BYTES: usize = 4096;
/// The first of the area's eight sectors: between GRUB's core image and the header of the record.
pub const NOTE_LBA: u64 = 2037;
/// Where the area begins on the disk, in bytes.
pub const NOTE_OFFSET: u64 = NOTE_LBA * SECTOR_BYTES as u64;
/// Bytes of one half of the area: one note.
pub const NOTE_HALF_BYTES: usize = NOTE_BYTES / 2;

/// Most bytes of a version in a note: those of a release.
pub const NOTE_VERSION_BYTES_MAX: usize = 100;
/// Most bytes of a name: a stage of the boot, the type of a slot of the vault, the mode of the data.
pub const NOTE_NAME_BYTES_MAX: usize = 32;
/// Most bytes of a sentence: why PID 1 gave up, how the node ended, where something panicked.
pub const NOTE_LINE_BYTES_MAX: usize = 240;
/// Most bytes of the codes of problems, with a comma between two.
pub const NOTE_CODES_BYTES_MAX: usize = 512;

/// The beginning of the first line; the number of the format follows.
const SIGNATURE: &[u8] = b"alknet-boot-note ";
/// The number of the format.
const FORMAT: u64 = 1;
/// Bytes of the checksum at the end of a half.
const CHECKSUM_BYTES: usize = 4;
/// What follows the last line up to the checksum.
const PADDING: u8 = b'#';

const SEQ: &str = "seq";
const SLOT: &str = "slot";
const VERSION: &str = "version";
const FROM: &str = "from";
const VAULT: &str = "vault";
const PERSON: &str = "person";
const DATA: &str = "data";
const CONFIG: &str = "config";
const STARTS: &str = "starts";
const STAGE: &str = "stage";
const ENDED: &str = "ended";
const REASON: &str = "reason";
const PANIC: &str = "panic";
const PROBLEMS: &str = "problems";

const NAMES: [&str; 14] = [
    SEQ, SLOT, VERSION, FROM, VAULT, PERSON, DATA, CONFIG, STARTS, STAGE, ENDED, REASON, PANIC,
    PROBLEMS,
];

/// Most bytes of a note, for the check that it always fits into a half.
const TEXT_BYTES_MAX: usize = {
    // The signature with its number, and for each variable its name, the equals sign and the line feed.
    let mut bytes = SIGNATURE.len() + 2;
    let mut at = 0;
    while at < NAMES.len() {
        bytes += NAMES[at].len() + 2;
        at += 1;
    }
    // The numbers have at most ten digits, three digits and one; the slot has one letter.
    bytes
        + 15
        + 2 * NOTE_VERSION_BYTES_MAX
        + 4 * NOTE_NAME_BYTES_MAX
        + 3 * NOTE_LINE_BYTES_MAX
        + NOTE_CODES_BYTES_MAX
};

const _: () = assert!(TEXT_BYTES_MAX + CHECKSUM_BYTES <= NOTE_HALF_BYTES);

/// A text of at most `BYTES` printable ASCII characters.
///
/// A character that is not printable ASCII becomes `?`, and a longer text is cut, so a note needs no allocation and no
/// text in it can begin a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteText<const BYTES: usize> {
    bytes: [u8; BYTES],
    length: usize,
}

impl<const BYTES: usize> NoteText<BYTES> {
    /// A text without a character.
    pub const EMPTY: Self = Self {
        bytes: [b' '; BYTES],
        length: 0,
    };

    /// The text, as far as it fits.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut out = Self::EMPTY;
        for character in text.chars().take(BYTES) {
            let byte = u8::try_from(character).unwrap_or(b'?');
            out.push(if (0x20..=0x7e).contains(&byte) {
                byte
            } else {
                b'?'
            });
        }
        out
    }

    /// The text of a variable. `None` for a text that [`new`](Self::new) does not make.
    fn read(value: &[u8]) -> Option<Self> {
        let is_plain = value.iter().all(|byte| (0x20..=0x7e).contains(byte));
        if !is_plain || value.len() > BYTES {
            return None;
        }
        let mut out = Self::EMPTY;
        value.iter().for_each(|byte| out.push(*byte));
        Some(out)
    }

    fn push(&mut self, byte: u8) {
        if let Some(room) = self.bytes.get_mut(self.length) {
            *room = byte;
            self.length += 1;
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Whether it has no character.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What is known of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootNote {
    /// The slot on trial.
    pub slot: BootSlot,
    /// The version on trial.
    pub version: NoteText<NOTE_VERSION_BYTES_MAX>,
    /// The version before.
    pub from: NoteText<NOTE_VERSION_BYTES_MAX>,
    /// The type of the slot of the vault that was open before, `absent` without a vault, `locked` for a closed one.
    pub vault: NoteText<NOTE_NAME_BYTES_MAX>,
    /// Whether a person had to type something at each start before, so that the vault may wait.
    pub needs_person: bool,
    /// The mode of the data before, such as `mounted`.
    pub data: NoteText<NOTE_NAME_BYTES_MAX>,
    /// How the configuration was before: `taken` if the version before took all of it. Empty in a note of a version
    /// that does not know this variable.
    pub config: NoteText<NOTE_NAME_BYTES_MAX>,
    /// How often PID 1 of the version began.
    pub starts: u8,
    /// The last stage of the boot that it reached.
    pub stage: NoteText<NOTE_NAME_BYTES_MAX>,
    /// How its node ended last.
    pub node_end: NoteText<NOTE_LINE_BYTES_MAX>,
    /// Why PID 1 restarted the machine.
    pub reason: NoteText<NOTE_LINE_BYTES_MAX>,
    /// Where something panicked last.
    pub panic: NoteText<NOTE_LINE_BYTES_MAX>,
    /// The codes of the problems that it had, with a comma between two.
    problems: NoteText<NOTE_CODES_BYTES_MAX>,
}

impl BootNote {
    /// The note of a version that has not started.
    #[must_use]
    pub const fn new(slot: BootSlot) -> Self {
        Self {
            slot,
            version: NoteText::EMPTY,
            from: NoteText::EMPTY,
            vault: NoteText::EMPTY,
            needs_person: false,
            data: NoteText::EMPTY,
            config: NoteText::EMPTY,
            starts: 0,
            stage: NoteText::EMPTY,
            node_end: NoteText::EMPTY,
            reason: NoteText::EMPTY,
            panic: NoteText::EMPTY,
            problems: NoteText::EMPTY,
        }
    }

    /// The codes of the problems that the version had. A part of the text that is not spelled like a code is left out:
    /// another program may have written the note.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        let codes = self.problems.as_str().split(',');
        codes.filter(|code| is_code(code))
    }

    /// Adds the code of a problem, unless the note has it or is full. Returns whether the note changed.
    pub fn add_problem(&mut self, code: &str) -> bool {
        let has_capacity = self.problems.length + 1 + code.len() <= NOTE_CODES_BYTES_MAX;
        if !is_code(code) || !has_capacity || self.problems().any(|known| known == code) {
            return false;
        }
        if !self.problems.is_empty() {
            self.problems.push(b',');
        }
        code.bytes().for_each(|byte| self.problems.push(byte));
        true
    }

    fn encode(&self, seq: u32) -> [u8; NOTE_HALF_BYTES] {
        let mut out = NoteWriter::new();
        out.bytes(SIGNATURE);
        out.number(FORMAT);
        out.bytes(b"\n");
        out.line(SEQ, |out| out.number(seq.into()));
        out.text(SLOT, self.slot.letter().as_bytes());
        out.text(VERSION, self.version.as_bytes());
        out.text(FROM, self.from.as_bytes());
        out.text(VAULT, self.vault.as_bytes());
        out.line(PERSON, |out| out.number(self.needs_person.into()));
        out.text(DATA, self.data.as_bytes());
        out.text(CONFIG, self.config.as_bytes());
        out.line(STARTS, |out| out.number(self.starts.into()));
        out.text(STAGE, self.stage.as_bytes());
        out.text(ENDED, self.node_end.as_bytes());
        out.text(REASON, self.reason.as_bytes());
        out.text(PANIC, self.panic.as_bytes());
        out.text(PROBLEMS, self.problems.as_bytes());
        out.finish()
    }

    fn parse(half: &[u8]) -> Result<(u32, Self), BootNoteError> {
        let values = NoteValues::read(half)?;
        let seq = values.number(SEQ)?;
        let slot = match values.required(SLOT)? {
            b"a" => BootSlot::A,
            b"b" => BootSlot::B,
            _ => return Err(BootNoteError::Value(SLOT)),
        };
        let needs_person = match values.required(PERSON)? {
            b"0" => false,
            b"1" => true,
            _ => return Err(BootNoteError::Value(PERSON)),
        };
        Ok((
            u32::try_from(seq).map_err(|_| BootNoteError::Value(SEQ))?,
            Self {
                slot,
                version: values.text(VERSION)?,
                from: values.text(FROM)?,
                vault: values.text(VAULT)?,
                needs_person,
                data: values.text(DATA)?,
                config: values.optional_text(CONFIG)?,
                starts: u8::try_from(values.number(STARTS)?)
                    .map_err(|_| BootNoteError::Value(STARTS))?,
                stage: values.text(STAGE)?,
                node_end: values.text(ENDED)?,
                reason: values.text(REASON)?,
                panic: values.text(PANIC)?,
                problems: values.text(PROBLEMS)?,
            },
        ))
    }
}

/// The bytes of the area on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteArea {
    bytes: [u8; NOTE_BYTES],
}

impl NoteArea {
    /// An area without a note, as on a new disk.
    pub const EMPTY: Self = Self {
        bytes: [0; NOTE_BYTES],
    };

    /// The area of a disk.
    #[must_use]
    pub const fn new(bytes: [u8; NOTE_BYTES]) -> Self {
        Self { bytes }
    }

    /// The bytes of the area.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; NOTE_BYTES] {
        &self.bytes
    }

    /// The newer note of the two halves.
    ///
    /// # Errors
    /// [`Absent`](BootNoteError::Absent) if the area is empty. Neither half has a note: why the first one that is not
    /// empty has none.
    pub fn read(&self) -> Result<BootNote, BootNoteError> {
        let newest = self.newest().map(|(_, (_, note))| note);
        newest.ok_or_else(|| {
            let errors = self.halves().filter_map(|half| BootNote::parse(half).err());
            let mut errors = errors.filter(|error| *error != BootNoteError::Absent);
            errors.next().unwrap_or(BootNoteError::Absent)
        })
    }

    /// Puts the note into the half whose note is not the newest one. Returns where that half begins within the area, in
    /// bytes, and its content: the caller writes it to the disk.
    pub fn put(&mut self, note: &BootNote) -> (usize, [u8; NOTE_HALF_BYTES]) {
        let (half, seq) = match self.newest() {
            // A number that wraps would make the older half the newest one. At one write a second it lasts 136 years.
            Some((half, (seq, _))) => (1 - half, seq.saturating_add(1)),
            None => (0, 1),
        };
        let at = half * NOTE_HALF_BYTES;
        let bytes = note.encode(seq);
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        (at, bytes)
    }

    /// The number of the half with the newest note, and what it has.
    fn newest(&self) -> Option<(usize, (u32, BootNote))> {
        let notes = self.halves().map(|half| BootNote::parse(half).ok());
        let notes = notes.enumerate().filter_map(|(at, note)| Some((at, note?)));
        notes.max_by_key(|(_, (seq, _))| *seq)
    }

    fn halves(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(NOTE_HALF_BYTES)
    }
}

/// A half that is being written. [`TEXT_BYTES_MAX`] says that it always fits.
struct NoteWriter {
    bytes: [u8; NOTE_HALF_BYTES],
    at: usize,
}

impl NoteWriter {
    const fn new() -> Self {
        Self {
            bytes: [PADDING; NOTE_HALF_BYTES],
            at: 0,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if let Some(room) = self.bytes.get_mut(self.at..end) {
            room.copy_from_slice(bytes);
            self.at = end;
        }
    }

    fn number(&mut self, number: u64) {
        let (digits, first) = crate::text::digits(number);
        self.bytes(digits.get(first..).unwrap_or_default());
    }

    fn line(&mut self, name: &str, value: impl FnOnce(&mut Self)) {
        self.bytes(name.as_bytes());
        self.bytes(b"=");
        value(self);
        self.bytes(b"\n");
    }

    fn text(&mut self, name: &str, value: &[u8]) {
        self.line(name, |out| out.bytes(value));
    }

    fn finish(mut self) -> [u8; NOTE_HALF_BYTES] {
        let sum = checksum(self.bytes.get(..CHECKSUM_AT).unwrap_or_default());
        for (to, from) in self.bytes.iter_mut().skip(CHECKSUM_AT).zip(sum) {
            *to = from;
        }
        self.bytes
    }
}

const CHECKSUM_AT: usize = NOTE_HALF_BYTES - CHECKSUM_BYTES;

/// The variables of a half whose checksum is right.
struct NoteValues<'a> {
    values: [Option<&'a [u8]>; NAMES.len()],
}

impl<'a> NoteValues<'a> {
    fn read(half: &'a [u8]) -> Result<Self, BootNoteError> {
        let (Some(text), Some(sum)) = (half.get(..CHECKSUM_AT), half.get(CHECKSUM_AT..)) else {
            return Err(BootNoteError::Length(half.len()));
        };
        if half.len() != NOTE_HALF_BYTES {
            return Err(BootNoteError::Length(half.len()));
        }
        if half.iter().all(|byte| *byte == 0) {
            return Err(BootNoteError::Absent);
        }
        let rest = text.strip_prefix(SIGNATURE);
        let rest = rest.ok_or(BootNoteError::Signature)?;
        // Before the format: of a damaged note nothing counts, not even its number.
        if sum != checksum(text) {
            return Err(BootNoteError::Checksum);
        }
        let (format, lines) = line(rest).ok_or(BootNoteError::Signature)?;
        match number(format) {
            Some(FORMAT) => Self::of_lines(lines),
            Some(other) => Err(BootNoteError::Format(other)),
            None => Err(BootNoteError::Signature),
        }
    }

    fn of_lines(mut rest: &'a [u8]) -> Result<Self, BootNoteError> {
        let mut read = Self {
            values: [None; NAMES.len()],
        };
        while rest.first().is_some_and(|first| *first != PADDING) {
            let (found, after) = line(rest).ok_or(BootNoteError::Line)?;
            let equals = found.iter().position(|byte| *byte == b'=');
            let (name, value) = equals
                .and_then(|at| found.split_at_checked(at))
                .and_then(|(name, value)| Some((name, value.get(1..)?)))
                .ok_or(BootNoteError::Line)?;
            let known = NAMES.iter().position(|known| known.as_bytes() == name);
            // A later version may have more.
            if let Some(place) = known.and_then(|at| read.values.get_mut(at))
                && place.replace(value).is_some()
            {
                return Err(BootNoteError::Duplicate);
            }
            rest = after;
        }
        match rest.iter().all(|byte| *byte == PADDING) {
            true => Ok(read),
            false => Err(BootNoteError::Line),
        }
    }

    fn optional(&self, name: &'static str) -> Option<&'a [u8]> {
        let at = NAMES.iter().position(|known| *known == name)?;
        self.values.get(at).copied().flatten()
    }

    fn required(&self, name: &'static str) -> Result<&'a [u8], BootNoteError> {
        self.optional(name).ok_or(BootNoteError::Missing(name))
    }

    fn number(&self, name: &'static str) -> Result<u64, BootNoteError> {
        number(self.required(name)?).ok_or(BootNoteError::Value(name))
    }

    fn text<const BYTES: usize>(
        &self,
        name: &'static str,
    ) -> Result<NoteText<BYTES>, BootNoteError> {
        NoteText::read(self.required(name)?).ok_or(BootNoteError::Value(name))
    }

    /// The text of a variable that earlier versions do not write, empty without it.
    fn optional_text<const BYTES: usize>(
        &self,
        name: &'static str,
    ) -> Result<NoteText<BYTES>, BootNoteError> {
        match self.optional(name) {
            Some(value) => NoteText::read(value).ok_or(BootNoteError::Value(name)),
            None => Ok(NoteText::EMPTY),
        }
    }
}

/// Whether a text is spelled like the code of a problem: lower-case letters, digits and hyphens.
fn is_code(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_plain)
}

/// The first line without its line feed, and the rest.
fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = text.split_at_checked(end)?;
    Some((line, rest.get(1..)?))
}

/// CRC-32 as in Ethernet and GPT (UEFI 2.10, section 5.3.2), little endian. A note is not worth a table of 1 KiB.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (POLYNOMIAL * (sum & 1))
        })
    });
    (!sum).to_le_bytes()
}
