//! What PID 1 does with a sealed partition.

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

/// Keys are overwritten in pieces of this many bytes, each whatever became of the one before.
const ERASE_BYTES: usize = 4096;

/// What is on a partition, as far as sealing is concerned.
#[derive(Debug)]
pub enum PartitionContent {
    /// A header of LUKS2 both copies of which are unusable, with the reason.
    Damaged(SealedError),
    /// It was being erased when the power went: to be finished by [`SealedPartition::erase`].
    Erasing,
    /// It was being formatted when the power went: to be done again by [`SealedPartition::format`].
    HalfFormatted,
    /// It is sealed.
    Sealed(SealedSummary),
    /// Nothing of LUKS2: blank, or something else.
    Unsealed,
}

/// What a header tells without a phrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSummary {
    /// Of the partition.
    pub uuid: String,
    /// Of the vault, as our token names it. Without that token, another program formatted the partition.
    pub vault: Option<String>,
    /// Every key slot.
    pub slots: Vec<KeyslotInfo>,
    /// Where and how the data are encrypted; else why that cannot be used here.
    pub segment: Result<LuksSegment, String>,
    /// One copy of the header is damaged or older; loading repairs it.
    pub one_copy: bool,
}

/// What came of erasing.
#[derive(Debug)]
pub struct EraseReport {
    /// Bytes that were overwritten: the header, every key slot and the vault.
    pub overwritten: u64,
    /// Whether the device accepted that it need not keep the rest. Where it did not, the data stay there, encrypted
    /// with a key that no longer exists.
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

/// A partition that is being formatted: its data can be written, and the header comes when they are.
/// A power cut before leaves [`PartitionContent::HalfFormatted`].
#[derive(Debug)]
pub struct FormattingPartition {
    disk: File,
    bytes: u64,
    header: LuksHeader,
    key: VolumeKey,
}

impl FormattingPartition {
    /// Maps the data, to be written.
    pub fn map(&self, options: &VolumeOptions) -> Result<OpenVolume, SealedError> {
        let (uuid, segment) = (self.header.uuid(), self.header.segment()?);
        volume::map(&self.disk, self.bytes, &uuid, &segment, &self.key, options)
    }

    /// Writes the header: from now on the partition is sealed.
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
    /// Begins what [`format`](Self::format) does, for a caller that has data to write before the partition counts as
    /// sealed: a file system that is whole whenever there is a header.
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

    /// Opens the data: the key slot by its phrase, then a mapping in the kernel.
    pub fn open(
        &self,
        slot: u32,
        phrase: &[u8],
        options: &VolumeOptions,
    ) -> Result<OpenVolume, SealedError> {
        self.map(&self.unlock(slot, phrase)?, options)
    }

    /// The same with the volume key.
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

    /// Maps what was added to a partition that now has `bytes` bytes, while the data are in use.
    /// Answers whether anything was. The key slot's phrase is asked for again because the kernel does
    /// not give a volume key back.
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
    /// Looks at a partition of `bytes` bytes. Writes nothing.
    pub fn probe(disk: &D, bytes: u64) -> Result<PartitionContent, SealedError> {
        Self::look(disk, bytes).map(|found| match found {
            Ok(header) => PartitionContent::Sealed(SealedSummary::from_header(&header)),
            Err(other) => other,
        })
    }

    /// The header, or what there is in its place.
    fn look(disk: &D, bytes: u64) -> Result<Result<LuksHeader, PartitionContent>, SealedError> {
        if bytes < KEYSLOTS_AT {
            return Ok(Err(PartitionContent::Unsealed));
        }
        // Before the header: an erasure that was cut short may have left copies that look whole.
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
            // A first sector that cannot be read is neither a damaged one nor a blank one.
            Err(error @ SealedError::Damaged { .. }) => {
                marked.map(|_| Err(PartitionContent::Damaged(error)))
            }
            Err(SealedError::NotSealed) => marked.map(|_| Err(PartitionContent::Unsealed)),
            Err(error) => Err(error),
        }
    }

    /// Makes a sealed partition of one that holds nothing of value. The vault's areas stay.
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

    /// Reads the header of a partition of `bytes` bytes, and writes a damaged or older copy again. A write that fails
    /// does not keep the data from being opened: see [`repaired`](Self::repaired).
    pub fn load(disk: D, bytes: u64) -> Result<Self, SealedError> {
        let mut header = match Self::look(&disk, bytes)? {
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

    /// Which copy of the header had to be written again, and what became of that.
    pub const fn repaired(&self) -> Result<Option<HeaderCopyId>, &SealedError> {
        match &self.repaired {
            Ok(copy) => Ok(*copy),
            Err(error) => Err(error),
        }
    }

    /// What the header tells.
    #[must_use]
    pub fn summary(&self) -> SealedSummary {
        SealedSummary::from_header(&self.header)
    }

    /// Where and how the data are encrypted.
    pub fn segment(&self) -> Result<LuksSegment, SealedError> {
        self.header.segment()
    }

    /// The volume key, if `phrase` opens the key slot.
    pub fn unlock(&self, slot: u32, phrase: &[u8]) -> Result<VolumeKey, SealedError> {
        self.header.unlock(&self.disk, slot, phrase)
    }

    /// Makes `phrase` open the key slot, and nothing else any more. The data are not touched and may be
    /// in use. At a power cut one of the two phrases opens the slot.
    pub fn set_phrase(
        &mut self,
        slot: u32,
        phrase: &[u8],
        key: &VolumeKey,
    ) -> Result<(), SealedError> {
        self.header.set_phrase(&self.disk, slot, phrase, key)
    }

    /// Removes a key slot. The last that opens the data stays.
    pub fn remove_slot(&mut self, slot: u32) -> Result<(), SealedError> {
        self.header.remove_slot(&self.disk, slot)
    }

    /// Writes the mark that the partition is being erased, and returns when it is on the disk. Whatever becomes
    /// of the machine, what is found there from now on is [`PartitionContent::Erasing`]. A volume may be in use: the mark is
    /// where the header is, not where the data are.
    pub fn begin_erasing(disk: &D) -> Result<(), SealedError> {
        mark(disk, UnfinishedMark::Erasing)
    }

    /// The memo that [`set_memo`](Self::set_memo) wrote; zeroes without one, as on a partition that was just formatted.
    pub fn memo(disk: &D) -> Result<[u8; MEMO_BYTES], SealedError> {
        let mut memo = [0; MEMO_BYTES];
        disk.read(&mut memo, MEMO_AT)
            .map_err(SealedError::io("read"))?;
        Ok(memo)
    }

    /// Writes a memo for the program that uses the partition, in the clear and without authentication, and returns when
    /// it is on the disk. A volume may be in use.
    pub fn set_memo(disk: &D, memo: &[u8; MEMO_BYTES]) -> Result<(), SealedError> {
        disk.write(memo, MEMO_AT)
            .and_then(|()| disk.flush())
            .map_err(SealedError::io("write the memo of"))
    }

    /// Destroys every key: overwrites header, key slots and vault, then gives the device its blocks
    /// back where it takes them. What is left is blank. A power cut leaves a partition that says that
    /// it is being erased, whatever else is still readable, and this is called again. So does a place
    /// that cannot be written: everything else is overwritten before the error is answered.
    ///
    /// The volume is closed before; a mapping that is still there keeps the volume key in the kernel.
    pub fn erase(disk: &D, bytes: u64) -> Result<EraseReport, SealedError> {
        let erased = Self::destroy(disk, bytes, UnfinishedMark::Erasing)?;
        if bytes >= DATA_AT {
            Self::set_memo(disk, &[0; MEMO_BYTES])?;
        }
        // The mark goes last.
        Self::unmark(disk)?;
        Ok(erased)
    }

    /// The same, but for the memo, which stays beside a blank head.
    pub fn erase_all_but_memo(disk: &D, bytes: u64) -> Result<EraseReport, SealedError> {
        let erased = Self::destroy(disk, bytes, UnfinishedMark::Erasing)?;
        Self::unmark(disk)?;
        Ok(erased)
    }

    /// [`erase`](Self::erase), but for the memo and a mark, which stay: what is found there is [`PartitionContent::Erasing`], and that it
    /// [is unsettled](Self::is_unsettled). For an erasure of which the machine could not do everything that belongs to
    /// it: the next start tries again, by [`erase`](Self::erase).
    pub fn erase_unsettled(disk: &D, bytes: u64) -> Result<EraseReport, SealedError> {
        Self::destroy(disk, bytes, UnfinishedMark::Unsettled)
    }

    /// Whether [`erase_unsettled`](Self::erase_unsettled) began here and [`erase`](Self::erase) did not.
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
        // A sector that cannot be written must not save the keys behind it.
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
