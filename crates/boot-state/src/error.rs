//! Why bytes are no boot state record, and why a transition is refused.

use core::fmt;

use crate::note::NOTE_HALF_BYTES;
use crate::record::{FOREIGN_BYTES_MAX, RECORD_BYTES, VARIABLES_BYTES_MAX};

/// Why bytes are no boot state record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootRecordError {
    /// Two variables exclude each other. The name of one of them.
    Contradiction(&'static str),
    /// A variable is there twice.
    Duplicate,
    /// A backslash does not escape a backslash or a line feed.
    Escape,
    /// The unknown variables have more than [`FOREIGN_BYTES_MAX`] bytes.
    Foreign,
    /// There are so many bytes, and not [`RECORD_BYTES`].
    Length(usize),
    /// A line is no variable with a value.
    Line,
    /// This variable is missing.
    Missing(&'static str),
    /// The bytes behind the last line feed are not all `#`.
    Padding,
    /// The first line is not that of a GRUB environment block.
    Signature,
    /// The variables end behind byte [`VARIABLES_BYTES_MAX`].
    TooLong,
    /// This variable has a value that it cannot have.
    Value(&'static str),
}

impl fmt::Display for BootRecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradiction(name) => {
                write!(f, "the variable `{name}` contradicts another one")
            }
            Self::Duplicate => f.write_str("a variable is there twice"),
            Self::Escape => f.write_str("a backslash escapes another character than GRUB escapes"),
            Self::Foreign => write!(
                f,
                "the unknown variables have more than {FOREIGN_BYTES_MAX} bytes"
            ),
            Self::Length(bytes) => write!(f, "it has {bytes} bytes and not {RECORD_BYTES}"),
            Self::Line => f.write_str("a line is no variable"),
            Self::Missing(name) => write!(f, "the variable `{name}` is missing"),
            Self::Padding => f.write_str("it is not filled up with `#`"),
            Self::Signature => f.write_str("it does not begin as a GRUB environment block"),
            Self::TooLong => {
                write!(
                    f,
                    "the variables have more than {VARIABLES_BYTES_MAX} bytes"
                )
            }
            Self::Value(name) => write!(f, "the variable `{name}` has an impossible value"),
        }
    }
}

impl core::error::Error for BootRecordError {}

/// Why bytes are no boot note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootNoteError {
    /// No version has written one.
    Absent,
    /// The checksum is that of other bytes: a write was torn, or the disk is failing.
    Checksum,
    /// A variable is there twice.
    Duplicate,
    /// A later version wrote it, in a format of this number.
    Format(u64),
    /// There are so many bytes, and not [`NOTE_HALF_BYTES`].
    Length(usize),
    /// A line is no variable with a value.
    Line,
    /// This variable is missing.
    Missing(&'static str),
    /// The first line is not that of a note.
    Signature,
    /// This variable has a value that it cannot have.
    Value(&'static str),
}

impl fmt::Display for BootNoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no note"),
            Self::Checksum => f.write_str("its checksum is that of other bytes"),
            Self::Duplicate => f.write_str("a variable is there twice"),
            Self::Format(number) => write!(f, "it has the format {number} of a later version"),
            Self::Length(bytes) => write!(f, "it has {bytes} bytes and not {NOTE_HALF_BYTES}"),
            Self::Line => f.write_str("a line is no variable"),
            Self::Missing(name) => write!(f, "the variable `{name}` is missing"),
            Self::Signature => f.write_str("it does not begin as a note"),
            Self::Value(name) => write!(f, "the variable `{name}` has an impossible value"),
        }
    }
}

impl core::error::Error for BootNoteError {}

/// Why a record has no such transition. The record stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootRefusal {
    /// The other slot was not vacated, so its program may be one that the machine needs.
    NotVacated,
    /// The slot that runs is not the one on trial, or the loader did not start it.
    NotRunningTrial,
    /// No slot is on trial.
    NotOnTrial,
    /// No version waits in the other slot.
    NotStaged,
    /// The other slot has no version to which the machine could return.
    NoPrevious,
    /// The other slot is on trial, so the machine may be running it.
    OnTrial,
}

impl fmt::Display for BootRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotVacated => "the other boot slot was not vacated",
            Self::NotRunningTrial => "the version that runs is not the one on trial",
            Self::NotOnTrial => "no version is on trial",
            Self::NotStaged => "no version is staged",
            Self::NoPrevious => "there is no earlier version to return to",
            Self::OnTrial => "a version is on trial: confirm it or give it up first",
        })
    }
}

impl core::error::Error for BootRefusal {}
