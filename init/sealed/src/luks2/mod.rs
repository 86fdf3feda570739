//! The part of LUKS2 that a sealed partition needs: it is read, verified and written here, without
//! any ioctl.
//!
//! It follows the specification "LUKS2 On-Disk Format" 1.1 and the checks of cryptsetup 2.6. Two
//! copies of a header lie one after the other, each with its own salt and checksum. The newer valid
//! one is used. Unknown JSON stays as it is.

mod af;
mod area;
mod binary;
mod change;
mod header;
mod json;
mod parts;
#[cfg(test)]
mod tests;

pub use header::{HeaderCopyId, LuksHeader, NewHeader};
pub(crate) use header::{mark, read_mark};
pub use json::KeyslotInfo;
pub use parts::LuksSegment;

/// Content of the first sector while the partition is being formatted.
const FORMATTING: &[u8] = b"alknet: this partition is being formatted\n";
/// Content of the first sector while the partition is being erased.
const ERASING: &[u8] = b"alknet: this partition is being erased\n";
/// Content of the first sector after the erasure, until a step outside the partition that belongs
/// to it is done: the next start erases again.
const UNSETTLED: &[u8] = b"alknet: this partition is erased, and that was not counted\n";
/// Unit in which disks write: a power cut tears a write at a multiple of it.
pub(crate) const TEAR_BYTES: usize = 512;

/// A mark of an unfinished operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnfinishedMark {
    Erasing,
    Formatting,
    /// Everything except this mark is erased, and a step that belongs to the erasure is not done.
    Unsettled,
}

impl UnfinishedMark {
    /// The first sector with this mark.
    pub(crate) fn sector(self) -> [u8; TEAR_BYTES] {
        let text = self.text();
        let mut sector = [0; TEAR_BYTES];
        sector[..text.len()].copy_from_slice(text);
        sector
    }

    /// The mark in `sector`, if it has one.
    pub(crate) fn parse(sector: &[u8]) -> Option<Self> {
        [Self::Erasing, Self::Formatting, Self::Unsettled]
            .into_iter()
            .find(|mark| sector == mark.sector())
    }

    const fn text(self) -> &'static [u8] {
        match self {
            Self::Erasing => ERASING,
            Self::Formatting => FORMATTING,
            Self::Unsettled => UNSETTLED,
        }
    }
}
