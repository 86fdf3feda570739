//! The format LUKS2 as far as a sealed partition needs it: read, verified, written. No ioctl here.
//!
//! After the specification "LUKS2 On-Disk Format" 1.1 and what cryptsetup 2.6 demands of it. Two
//! copies of a header lie one after the other, each with a salt and a checksum of its own; the newer
//! valid one counts. Whatever is in the JSON and not known here stays as it is.

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

/// What the first sector says while the partition is being formatted.
const FORMATTING: &[u8] = b"alknet: this partition is being formatted\n";
/// What it says while the partition is being erased.
const ERASING: &[u8] = b"alknet: this partition is being erased\n";
/// What it says once that is done, while a step outside the partition that belongs to it is not: the
/// next start erases again.
const UNSETTLED: &[u8] = b"alknet: this partition is erased, and that was not counted\n";
/// The unit in which disks write: what a power cut can tear is a multiple of it.
pub(crate) const TEAR_BYTES: usize = 512;

/// A mark that a longer piece of work has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnfinishedMark {
    Erasing,
    Formatting,
    /// Everything is erased but this, and something that belongs to it is not done.
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

    /// The mark that `sector` has.
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
