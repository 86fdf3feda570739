//! The boot state record: 1,024 bytes in the form of a GRUB environment block.

use crate::error::BootRecordError;
use crate::slot::BootSlot;
use crate::text::{NUMBER_BYTES_MAX, TextWriter, number, split_line};
use crate::transition::TRIES;

/// Bytes of a sector, as GPT and GRUB count. A disk may have larger blocks.
pub const SECTOR_BYTES: usize = 512;
/// Bytes of the record, which GRUB demands of an environment block.
pub const RECORD_BYTES: usize = 1024;
/// The first of the record's two sectors: the last ones of the partition `alk-bios`.
pub const RECORD_LBA: u64 = 2046;
/// Where the record begins on the disk, in bytes.
pub const RECORD_OFFSET: u64 = RECORD_LBA * SECTOR_BYTES as u64;
/// All variables end within so many bytes: one sector, which a disk writes whole or not at all. So each change of the
/// record is one write that a power cut does not tear.
pub const VARIABLES_BYTES_MAX: usize = SECTOR_BYTES;
/// Most bytes of variables that this version does not know, with their names and line feeds.
pub const FOREIGN_BYTES_MAX: usize = 256;

/// The first line of GRUB's environment blocks.
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

const GOOD: &str = "good";
const TRIAL: &str = "trial";
const TRIES_LEFT: &str = "tries";
const STAGED: &str = "staged";
const PREVIOUS: &str = "previous";
const BOOTED: &str = "booted";
const FAILED: &str = "failed";
const SEQ: &str = "seq";

/// The known variables, in the order in which they are written.
const NAMES: [&str; 8] = [
    GOOD, TRIAL, TRIES_LEFT, STAGED, PREVIOUS, BOOTED, FAILED, SEQ,
];

/// Most bytes that the known variables take with the signature.
const KNOWN_BYTES_MAX: usize = {
    let mut bytes = SIGNATURE.len();
    let mut at = 0;
    while at < NAMES.len() {
        // The name, the equals sign, a value of one character, and the line feed.
        bytes += NAMES[at].len() + 3;
        at += 1;
    }
    // `seq` alone has a longer value.
    bytes + NUMBER_BYTES_MAX
};

const _: () = assert!(KNOWN_BYTES_MAX + FOREIGN_BYTES_MAX <= VARIABLES_BYTES_MAX);

/// What the slot that is not the good one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherSlot {
    Unused,
    Staged,
    Trial { tries: u8 },
    Previous,
    Failed,
}

/// A boot state record that was read or made. Its two slots are the good one and the other one; what the other one
/// holds is the [phase](Self::phase).
///
/// Variables that this version does not know stay as they are: the loader is not replaced with the rest of a disk, and
/// a newer version may have added some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootRecord {
    pub(crate) good: BootSlot,
    pub(crate) other: OtherSlot,
    pub(crate) booted: Option<BootSlot>,
    pub(crate) seq: u64,
    foreign: ForeignVariables,
}

impl BootRecord {
    /// What loaders act by if they cannot read the record: slot a is good, and no version is on trial. They write
    /// nothing then.
    pub const FALLBACK: Self = Self::new(BootSlot::A);

    /// A new disk's record: `good` holds the only version.
    #[must_use]
    pub const fn new(good: BootSlot) -> Self {
        Self {
            good,
            other: OtherSlot::Unused,
            booted: None,
            seq: 0,
            foreign: ForeignVariables::NONE,
        }
    }

    /// Reads a record. The order of the variables does not matter, because GRUB appends those that it adds.
    ///
    /// # Errors
    /// The bytes are no such record, or contradict themselves.
    pub fn parse(bytes: &[u8]) -> Result<Self, BootRecordError> {
        if bytes.len() != RECORD_BYTES {
            return Err(BootRecordError::Length(bytes.len()));
        }
        let read = RawVariables::read(variables(bytes)?)?;
        let good = read.slot(GOOD)?.ok_or(BootRecordError::Value(GOOD))?;
        Ok(Self {
            good,
            other: read.other(good)?,
            booted: read.slot(BOOTED)?,
            seq: number(read.required(SEQ)?).ok_or(BootRecordError::Value(SEQ))?,
            foreign: read.foreign,
        })
    }

    /// The record's bytes on the disk. They always fit, and all that ever changes is in the first sector.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = TextWriter::new();
        let holds = |what: OtherSlot| (self.other == what).then(|| self.good.other());
        out.text(SIGNATURE);
        slot_line(&mut out, GOOD, Some(self.good));
        slot_line(&mut out, TRIAL, self.trial());
        out.line(TRIES_LEFT, |out| out.number(u64::from(self.tries())));
        slot_line(&mut out, STAGED, holds(OtherSlot::Staged));
        slot_line(&mut out, PREVIOUS, holds(OtherSlot::Previous));
        slot_line(&mut out, BOOTED, self.booted);
        slot_line(&mut out, FAILED, self.failed());
        out.line(SEQ, |out| out.number(self.seq));
        out.text(self.foreign.lines());
        out.finish()
    }

    /// The slot whose version was confirmed last.
    #[must_use]
    pub const fn good(&self) -> BootSlot {
        self.good
    }

    /// The slot on trial.
    #[must_use]
    pub const fn trial(&self) -> Option<BootSlot> {
        match self.other {
            OtherSlot::Trial { .. } => Some(self.good.other()),
            _ => None,
        }
    }

    /// How many more times a loader starts the slot on trial, [`TRIES`] at most. 0 without a trial.
    #[must_use]
    pub const fn tries(&self) -> u8 {
        match self.other {
            OtherSlot::Trial { tries } => tries,
            _ => 0,
        }
    }

    /// The slot that a loader started last, if one could write that down.
    #[must_use]
    pub const fn booted(&self) -> Option<BootSlot> {
        self.booted
    }

    /// The slot whose trial failed.
    #[must_use]
    pub const fn failed(&self) -> Option<BootSlot> {
        match self.other {
            OtherSlot::Failed => Some(self.good.other()),
            _ => None,
        }
    }

    /// Whether `slot` has the version before the last update, which was confirmed.
    #[must_use]
    pub fn is_version_before(&self, slot: BootSlot) -> bool {
        self.other == OtherSlot::Previous && slot == self.good.other()
    }

    /// How many transitions the running system has made. Loaders leave it, because GRUB cannot count.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// The lines of the variables that this version does not know, each with its line feed.
    #[must_use]
    pub fn foreign_lines(&self) -> &[u8] {
        self.foreign.lines()
    }
}

fn slot_line(out: &mut TextWriter, name: &str, slot: Option<BootSlot>) {
    let letter = slot.map_or("", BootSlot::letter);
    out.line(name, |out| out.text(letter.as_bytes()));
}

/// The lines between the signature and the padding.
fn variables(bytes: &[u8]) -> Result<&[u8], BootRecordError> {
    if !bytes.starts_with(SIGNATURE) {
        return Err(BootRecordError::Signature);
    }
    let last = bytes.iter().rposition(|byte| *byte != b'#');
    // The signature ends with a line feed, so there is such a byte.
    let end = last.map_or(0, |last| last + 1);
    let text = bytes.get(SIGNATURE.len()..end).unwrap_or_default();
    // GRUB's `save_env` writes to no block that ends otherwise.
    if !(text.is_empty() || text.ends_with(b"\n")) {
        return Err(BootRecordError::Padding);
    }
    if end > VARIABLES_BYTES_MAX {
        return Err(BootRecordError::TooLong);
    }
    Ok(text)
}

/// The values of the known variables, as they are written, and the lines of the others.
struct RawVariables<'a> {
    values: [Option<&'a [u8]>; NAMES.len()],
    foreign: ForeignVariables,
}

impl<'a> RawVariables<'a> {
    fn read(mut text: &'a [u8]) -> Result<Self, BootRecordError> {
        let mut read = Self {
            values: [None; NAMES.len()],
            foreign: ForeignVariables::NONE,
        };
        while !text.is_empty() {
            let (line, rest) = split_line(text).ok_or(BootRecordError::Line)?;
            read.take(line)?;
            text = rest;
        }
        Ok(read)
    }

    fn take(&mut self, line: &'a [u8]) -> Result<(), BootRecordError> {
        let (name, value) = split_variable(line).ok_or(BootRecordError::Line)?;
        if !is_escaped_as_by_grub(value) {
            return Err(BootRecordError::Escape);
        }
        let known = NAMES.iter().position(|known| known.as_bytes() == name);
        let Some(known) = known.and_then(|at| self.values.get_mut(at)) else {
            return self.foreign.push(name, line);
        };
        match known.replace(value) {
            Some(_) => Err(BootRecordError::Duplicate),
            None => Ok(()),
        }
    }

    fn value(&self, name: &str) -> Option<&'a [u8]> {
        let at = NAMES.iter().position(|known| *known == name)?;
        self.values.get(at).copied().flatten()
    }

    fn required(&self, name: &'static str) -> Result<&'a [u8], BootRecordError> {
        self.value(name).ok_or(BootRecordError::Missing(name))
    }

    /// A variable that names a slot or none. GRUB's `save_env` removes a variable that is not set.
    fn slot(&self, name: &'static str) -> Result<Option<BootSlot>, BootRecordError> {
        let value = match name {
            GOOD => self.required(name)?,
            _ => self.value(name).unwrap_or_default(),
        };
        match value {
            b"" => Ok(None),
            b"a" => Ok(Some(BootSlot::A)),
            b"b" => Ok(Some(BootSlot::B)),
            _ => Err(BootRecordError::Value(name)),
        }
    }

    /// What the slot that is not the good one holds. It is at most one thing.
    fn other(&self, good: BootSlot) -> Result<OtherSlot, BootRecordError> {
        let tries = match self.required(TRIES_LEFT)? {
            [digit @ b'0'..=b'9'] if digit - b'0' <= TRIES => digit - b'0',
            _ => return Err(BootRecordError::Value(TRIES_LEFT)),
        };
        let mut found = None;
        for (name, holds) in [
            (TRIAL, OtherSlot::Trial { tries }),
            (STAGED, OtherSlot::Staged),
            (PREVIOUS, OtherSlot::Previous),
            (FAILED, OtherSlot::Failed),
        ] {
            let Some(slot) = self.slot(name)? else {
                continue;
            };
            if slot == good || found.is_some() {
                return Err(BootRecordError::Contradiction(name));
            }
            found = Some(holds);
        }
        match found {
            Some(trial @ OtherSlot::Trial { .. }) => Ok(trial),
            _ if tries > 0 => Err(BootRecordError::Contradiction(TRIES_LEFT)),
            found => Ok(found.unwrap_or(OtherSlot::Unused)),
        }
    }
}

/// Splits a line at its first equals sign. `None` if the part before it is no name of a variable.
fn split_variable(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (name, rest) = line.split_at_checked(equals)?;
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let is_name = name.first().is_some_and(is_letter)
        && name
            .iter()
            .all(|byte| is_letter(byte) || byte.is_ascii_digit());
    is_name.then_some((name, rest.get(1..)?))
}

/// Whether each backslash escapes a backslash or a line feed, and no byte is zero: GRUB's values are C strings.
fn is_escaped_as_by_grub(value: &[u8]) -> bool {
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        let is_good = match byte {
            0 => false,
            b'\\' => matches!(bytes.next(), Some(b'\\' | b'\n')),
            _ => true,
        };
        if !is_good {
            return false;
        }
    }
    true
}

/// The lines of unknown variables, as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ForeignVariables {
    bytes: [u8; FOREIGN_BYTES_MAX],
    length: usize,
}

impl ForeignVariables {
    const NONE: Self = Self {
        bytes: [0; FOREIGN_BYTES_MAX],
        length: 0,
    };

    fn lines(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, name: &[u8], line: &[u8]) -> Result<(), BootRecordError> {
        if self.contains(name) {
            return Err(BootRecordError::Duplicate);
        }
        for part in [line, b"\n"] {
            let end = self.length + part.len();
            let room = self.bytes.get_mut(self.length..end);
            room.ok_or(BootRecordError::Foreign)?.copy_from_slice(part);
            self.length = end;
        }
        Ok(())
    }

    fn contains(&self, name: &[u8]) -> bool {
        let mut lines = self.lines();
        while let Some((line, rest)) = split_line(lines) {
            if split_variable(line).is_some_and(|(known, _)| known == name) {
                return true;
            }
            lines = rest;
        }
        false
    }
}
