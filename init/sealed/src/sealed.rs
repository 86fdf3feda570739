//! The operations of PID 1 on a sealed partition.

use std::{fs::File, io};

use crate::disk::{BlockStorage, noise};
use crate::error::SealedError;
use crate::limits::{DATA_AT, KEYSLOTS_AT, MEMO_AT, MEMO_BYTES, PARTITION_BYTES_MIN, SECTOR_BYTES};
use crate::luks2::{
    HeaderCopyId, KeyslotInfo, LuksHeader, LuksSegment, NewHeader, TEAR_BYTES, UnfinishedMark,
    mark, read_mark,
};
use crate::secret::VolumeKey;
use crate::volume::{self, OpenVolume, VolumeOptions};

/// Keys are overwritten in pieces of this many bytes. A failed piece does not stop the others.
const ERASE_BYTES: usize = 4096;

/// Content of a partition, as far as sealing is concerned.
#[derive(Debug)]
pub enum PartitionContent {
    /// A LUKS2 header whose two copies are unusable, with the reason.
    Damaged(SealedError),
    /// A power cut interrupted an erasure. [`SealedPartition::erase`] finishes it.
    Erasing,
    /// A power cut interrupted a formatting. [`SealedPartition::format`] does it again.
    HalfFormatted,
    /// A sealed partition.
    Sealed(SealedSummary),
    /// A blank partition, or one with something other than LUKS2.
    Unsealed,
}

/// The facts in a header that need no phrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSummary {
    /// UUID of the partition.
    pub uuid: String,
    /// UUID of the vault in this program's token. If the token is missing, another program
    /// formatted the partition.
    pub vault: Option<String>,
    /// Every key slot.
    pub slots: Vec<KeyslotInfo>,
    /// Where and how the data are encrypted, or why this program cannot use them.
    pub segment: Result<LuksSegment, String>,
    /// Whether one copy of the header is damaged or older. Loading repairs it.
    pub one_copy: bool,
}

/// The result of an erasure.
#[derive(Debug)]
pub struct EraseReport {
    /// Bytes that were overwritten: the header, every key slot and the vault.
    pub overwritten: u64,
    /// Whether the device accepted that it may drop the rest. If it did not, it keeps the data,
    /// encrypted with a key that no longer exists.
    pub discarded: io::Result<()>,
}

/// A sealed partition whose header was read.
#[derive(Debug)]
pub struct SealedPartition<D = File> {
    disk: D,
    bytes: u64,
    header: LuksHeader,
    repaired: Result<Option<HeaderCopyId>, SealedError>,
}

/// A partition that is being formatted. The caller writes the data, and then the header. After a
/// power cut in between, it is [`PartitionContent::HalfFormatted`].
#[derive(Debug)]
pub struct FormattingPartition {
    disk: File,
    bytes: u64,
    header: LuksHeader,
    key: VolumeKey,
}

impl FormattingPartition {
    /// Maps the data for writing.
    pub fn map(&self, options: &VolumeOptions) -> Result<OpenVolume, SealedError> {
        let (uuid, segment) = (self.header.uuid(), self.header.segment()?);
        volume::map(&self.disk, self.bytes, &uuid, &segment, &self.key, options)
    }

    /// Writes the header. From now on the partition is sealed.
    pub fn finish(mut self) -> Result<SealedPartition<File>, SealedError> {
        self.header.store(&self.disk)?;
        Ok(SealedPartition {
            disk: self.disk,
            bytes: self.bytes,
            header: self.header,
            repaired: Ok(None),
        })
    }
}

impl SealedPartition<File> {
    /// Begins a [`format`](Self::format) for a caller that writes data before the partition counts
    /// as sealed: whenever there is a header, the file system is then whole.
    pub fn prepare(
        disk: File,
        bytes: u64,
        new: &NewHeader<'_>,
    ) -> Result<FormattingPartition, SealedError> {
        if bytes < PARTITION_BYTES_MIN {
            return Err(SealedError::TooSmall(bytes));
        }
        let (header, key) = LuksHeader::prepare(&disk, new)?;
        Ok(FormattingPartition {
            disk,
            bytes,
            header,
            key,
        })
    }

    /// Opens the data: unlocks the key slot with its phrase, and makes a mapping in the kernel.
    pub fn open(
        &self,
        slot: u32,
        phrase: &[u8],
        options: &VolumeOptions,
    ) -> Result<OpenVolume, SealedError> {
        self.map(&self.unlock(slot, phrase)?, options)
    }

    /// Like `open`, with the volume key.
    pub fn map(&self, key: &VolumeKey, options: &VolumeOptions) -> Result<OpenVolume, SealedError> {
        let uuid = self.header.uuid();
        volume::map(
            &self.disk,
            self.bytes,
            &uuid,
            &self.segment()?,
            key,
            options,
        )
    }

    /// Maps the part that was added to a partition, which now has `bytes` bytes, while the data are
    /// in use. Returns whether any was added. It needs the key slot's phrase again, because the
    /// kernel does not return a volume key.
    pub fn grow(
        &mut self,
        volume: &mut OpenVolume,
        bytes: u64,
        slot: u32,
        phrase: &[u8],
    ) -> Result<bool, SealedError> {
        let key = self.unlock(slot, phrase)?;
        let segment = self.segment()?;
        let grown = volume.grow(&self.disk, bytes, &segment, &key)?;
        self.bytes = bytes;
        Ok(grown)
    }
}

impl<D: BlockStorage> SealedPartition<D> {
    /// Identifies a partition of `bytes` bytes. Writes nothing.
    pub fn probe(disk: &D, bytes: u64) -> Result<PartitionContent, SealedError> {
        Self::read_header(disk, bytes).map(|found| match found {
            Ok(header) => PartitionContent::Sealed(SealedSummary::from_header(&header)),
            Err(other) => other,
        })
    }

    /// The header, or what is in its place.
    fn read_header(
        disk: &D,
        bytes: u64,
    ) -> Result<Result<LuksHeader, PartitionContent>, SealedError> {
        if bytes < KEYSLOTS_AT {
            return Ok(Err(PartitionContent::Unsealed));
        }
        // The mark is read before the header: an interrupted erasure may have left copies that look
        // whole.
        let marked = read_mark(disk);
        if let Ok(Some(UnfinishedMark::Erasing | UnfinishedMark::Unsettled)) = marked {
            return Ok(Err(PartitionContent::Erasing));
        }
        match LuksHeader::load(disk) {
            Ok(header) => Ok(Ok(header)),
            Err(SealedError::Damaged { .. } | SealedError::NotSealed)
                if matches!(marked, Ok(Some(UnfinishedMark::Formatting))) =>
            {
                Ok(Err(PartitionContent::HalfFormatted))
            }
            // A first sector that cannot be read is neither damaged nor blank.
            Err(error @ SealedError::Damaged { .. }) => {
                marked.map(|_| Err(PartitionContent::Damaged(error)))
            }
            Err(SealedError::NotSealed) => marked.map(|_| Err(PartitionContent::Unsealed)),
            Err(error) => Err(error),
        }
    }

    /// Makes a sealed partition of one without anything of value. The vault's areas stay.
    pub fn format(disk: D, bytes: u64, new: &NewHeader<'_>) -> Result<Self, SealedError> {
        if bytes < PARTITION_BYTES_MIN {
            return Err(SealedError::TooSmall(bytes));
        }
        let (header, _) = LuksHeader::format(&disk, new)?;
        Ok(Self {
            disk,
            bytes,
            header,
            repaired: Ok(None),
        })
    }

    /// Reads the header of a partition of `bytes` bytes, and rewrites a damaged or older copy. If
    /// that write fails, the data can be opened all the same: see [`repaired`](Self::repaired).
    pub fn load(disk: D, bytes: u64) -> Result<Self, SealedError> {
        let mut header = match Self::read_header(&disk, bytes)? {
            Ok(header) => header,
            Err(PartitionContent::Damaged(error)) => return Err(error),
            Err(PartitionContent::Erasing) => return Err(SealedError::Erasing),
            Err(PartitionContent::HalfFormatted) => return Err(SealedError::HalfFormatted),
            Err(PartitionContent::Unsealed | PartitionContent::Sealed(_)) => {
                return Err(SealedError::NotSealed);
            }
        };
        let repaired = header.repair(&disk);
        Ok(Self {
            disk,
            bytes,
            header,
            repaired,
        })
    }

    /// The copy of the header that had to be rewritten, and whether that worked.
    pub const fn repaired(&self) -> Result<Option<HeaderCopyId>, &SealedError> {
        match &self.repaired {
            Ok(copy) => Ok(*copy),
            Err(error) => Err(error),
        }
    }

    /// The facts in the header.
    #[must_use]
    pub fn summary(&self) -> SealedSummary {
        SealedSummary::from_header(&self.header)
    }

    /// Where and how the data are encrypted.
    pub fn segment(&self) -> Result<LuksSegment, SealedError> {
        self.header.segment()
    }

    /// Unlocks the key slot with `phrase`. Returns the volume key.
    pub fn unlock(&self, slot: u32, phrase: &[u8]) -> Result<VolumeKey, SealedError> {
        self.header.unlock(&self.disk, slot, phrase)
    }

    /// Makes `phrase` the only one that opens the key slot. The data are not touched and may be in
    /// use. After a power cut, either the old or the new phrase opens the slot.
    pub fn set_phrase(
        &mut self,
        slot: u32,
        phrase: &[u8],
        key: &VolumeKey,
    ) -> Result<(), SealedError> {
        self.header.set_phrase(&self.disk, slot, phrase, key)
    }

    /// Removes a key slot. The last one that opens the data stays.
    pub fn remove_slot(&mut self, slot: u32) -> Result<(), SealedError> {
        self.header.remove_slot(&self.disk, slot)
    }

    /// Writes the mark of an erasure, and returns when it is on the disk. From now on the partition
    /// is [`PartitionContent::Erasing`], whatever happens to the machine. A volume may be in use:
    /// the mark is in the header, not in the data.
    pub fn begin_erasing(disk: &D) -> Result<(), SealedError> {
        mark(disk, UnfinishedMark::Erasing)
    }

    /// The memo that [`set_memo`](Self::set_memo) wrote. Without one it is all zeros, as on a newly
    /// formatted partition.
    pub fn memo(disk: &D) -> Result<[u8; MEMO_BYTES], SealedError> {
        let mut memo = [0; MEMO_BYTES];
        disk.read(&mut memo, MEMO_AT)
            .map_err(SealedError::io("read"))?;
        Ok(memo)
    }

    /// Writes a memo for the program that uses the partition, in the clear and not authenticated.
    /// Returns when it is on the disk. A volume may be in use.
    pub fn set_memo(disk: &D, memo: &[u8; MEMO_BYTES]) -> Result<(), SealedError> {
        disk.write(memo, MEMO_AT)
            .and_then(|()| disk.flush())
            .map_err(SealedError::io("write the memo of"))
    }

    /// Destroys every key: overwrites header, key slots and vault, and then offers the device its
    /// blocks back. What is left is blank. After a power cut the partition has the mark of an
    /// erasure, whatever else is readable, and the caller calls this again. It also calls this
    /// again after an error: if one position cannot be written, everything else is overwritten
    /// before the error is returned.
    ///
    /// The volume has to be closed before: an open mapping keeps the volume key in the kernel.
    pub fn erase(disk: &D, bytes: u64) -> Result<EraseReport, SealedError> {
        let erased = Self::destroy(disk, bytes, UnfinishedMark::Erasing)?;
        if bytes >= DATA_AT {
            Self::set_memo(disk, &[0; MEMO_BYTES])?;
        }
        // The mark is cleared last, so that an interrupted erasure is known.
        Self::unmark(disk)?;
        Ok(erased)
    }

    /// Like `erase`, except that the memo stays beside a blank header.
    pub fn erase_all_but_memo(disk: &D, bytes: u64) -> Result<EraseReport, SealedError> {
        let erased = Self::destroy(disk, bytes, UnfinishedMark::Erasing)?;
        Self::unmark(disk)?;
        Ok(erased)
    }

    /// Like [`erase`](Self::erase), except that the memo and a mark stay: the partition is
    /// [`PartitionContent::Erasing`], and [is unsettled](Self::is_unsettled). It is for an erasure
    /// of which the machine could not do every step. The next start tries again with
    /// [`erase`](Self::erase).
    pub fn erase_unsettled(disk: &D, bytes: u64) -> Result<EraseReport, SealedError> {
        Self::destroy(disk, bytes, UnfinishedMark::Unsettled)
    }

    /// Whether [`erase_unsettled`](Self::erase_unsettled) ran here and [`erase`](Self::erase) has
    /// not run since.
    pub fn is_unsettled(disk: &D) -> Result<bool, SealedError> {
        Ok(read_mark(disk)? == Some(UnfinishedMark::Unsettled))
    }

    fn unmark(disk: &D) -> Result<(), SealedError> {
        disk.write(&[0; TEAR_BYTES], 0)
            .and_then(|()| disk.flush())
            .map_err(SealedError::io("clear"))
    }

    /// Destroys every key, and leaves the mark and the memo.
    fn destroy(disk: &D, bytes: u64, with: UnfinishedMark) -> Result<EraseReport, SealedError> {
        let failed = |what| SealedError::io(what);
        let rest = TEAR_BYTES as u64;
        let overwritten = bytes.min(DATA_AT);
        if overwritten < rest {
            return Err(SealedError::TooSmall(bytes));
        }
        // A sector that cannot be written must not save the keys behind it, so errors are collected
        // and returned at the end.
        let marked = mark(disk, with);
        let mut first = Ok(());
        let after_memo = MEMO_AT + MEMO_BYTES as u64;
        let parts = [rest..overwritten.min(MEMO_AT), after_memo..overwritten];
        for part in &parts {
            for at in part.clone().step_by(ERASE_BYTES) {
                let length = (part.end - at).min(ERASE_BYTES as u64);
                let outcome = noise(disk, at, length);
                first = first.and(outcome);
            }
        }
        let flushed = disk.flush();
        let first = first.and(flushed);
        // A device accepts discards of whole sectors only.
        let unit = u64::from(SECTOR_BYTES);
        let data = (bytes - overwritten) / unit * unit;
        let discarded = match data {
            0 => Ok(()),
            data => disk.discard(overwritten, data),
        };
        marked?;
        first.map_err(failed("overwrite the keys of"))?;
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .try_for_each(|part| disk.zero(part.start, part.end - part.start))
            .and_then(|()| disk.flush())
            .map_err(failed("clear"))?;
        Ok(EraseReport {
            overwritten,
            discarded,
        })
    }
}

impl SealedSummary {
    fn from_header(header: &LuksHeader) -> Self {
        Self {
            uuid: header.uuid(),
            vault: header.vault().map(str::to_owned),
            slots: header.slots(),
            segment: header.segment().map_err(|error| error.to_string()),
            one_copy: header.has_one_copy(),
        }
    }
}
