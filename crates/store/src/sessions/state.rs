//! What an open session has: its base, and what was written over it.

use std::ops::Range;

use super::ranges::ByteRanges;
use super::rows::SessionProgress;
use super::{NewWriteSession, WriteSessionId};
use crate::content::{
    ContentFolder, ContentReader, PreparedContent, StagedContent, check_file_size,
};
use crate::db::Durability;
use crate::error::StoreError;
use crate::limits::{SESSION_MEMORY_BYTES, SESSION_RANGES_MAX};
use crate::names::BucketId;

/// Where written bytes are.
#[derive(Debug)]
pub(super) enum SessionStaging {
    /// In memory, at their offsets.
    Memory(Vec<u8>),
    /// In a file, at their offsets.
    File(StagedContent),
}

/// An open session.
#[derive(Debug)]
pub(super) struct WriteSessionState {
    pub(super) id: WriteSessionId,
    pub(super) new: NewWriteSession,
    pub(super) bucket: BucketId,
    pub(super) durability: Durability,
    /// The content that ranges without a write show.
    pub(super) base: Option<ContentReader>,
    /// Bytes of the base that are still shown.
    pub(super) base_len: u64,
    /// Where offset 0 of a write is.
    pub(super) origin: u64,
    pub(super) staging: SessionStaging,
    pub(super) written: ByteRanges,
    pub(super) size: u64,
    /// Bytes that count for the identity.
    pub(super) charged: u64,
    /// Bytes that the row counts for the bucket.
    pub(super) saved: u64,
    /// Bytes that the bucket had left at the last look.
    pub(super) quota_left: Option<u64>,
    /// Whether a write failed in the middle, so that the file has bytes that no range covers, or a sync failed.
    pub(super) is_broken: bool,
    /// The whole content, if a close has placed it and the store was too busy to name it. The session takes no writes then.
    pub(super) prepared: Option<PreparedContent>,
}

impl WriteSessionState {
    /// The range of a write, if it may be made.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`] ends the session: the declared size was wrong.
    pub(super) fn check_write(&self, at: u64, len: u64) -> Result<Range<u64>, StoreError> {
        let start = self.origin.saturating_add(at);
        let end = start.saturating_add(len);
        check_file_size(end)?;
        self.check_declared(end)?;
        let range = start..end;
        // Otherwise single bytes at every second offset would take a range each.
        if self.written.count() >= SESSION_RANGES_MAX && self.written.missing_bytes(&range) > 0 {
            return Err(StoreError::TooLarge {
                unit: "separate ranges in a session",
                limit: SESSION_RANGES_MAX as u64,
            });
        }
        Ok(range)
    }

    /// Refuses a content that ends behind its declared size.
    pub(super) fn check_declared(&self, end: u64) -> Result<(), StoreError> {
        let known = end.saturating_sub(self.origin);
        match self.new.expected_size {
            Some(given) if known > given => Err(StoreError::SizeMismatch { known, given }),
            _ => Ok(()),
        }
    }

    /// Writes bytes that were checked and counted.
    pub(super) fn store(
        &mut self,
        content: &ContentFolder,
        range: Range<u64>,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        if range.end > SESSION_MEMORY_BYTES {
            self.spill(content)?;
        }
        match &mut self.staging {
            SessionStaging::File(file) => file.write_at(range.start, bytes)?,
            SessionStaging::Memory(memory) => {
                // At most 64 KiB, so both casts keep their values.
                let (start, end) = (range.start as usize, range.end as usize);
                if memory.len() < end {
                    memory.resize(end, 0);
                }
                memory[start..end].copy_from_slice(bytes);
            }
        }
        self.size = self.size.max(range.end);
        self.written.insert(range);
        Ok(())
    }

    /// Moves what is in memory to a staging file.
    pub(super) fn spill(&mut self, content: &ContentFolder) -> Result<(), StoreError> {
        let SessionStaging::Memory(memory) = &self.staging else {
            return Ok(());
        };
        let mut file = content.stage()?;
        // Only what was written: a file of zeros is as good, and a sparse one takes no room.
        for part in self.written.covered(&(0..memory.len() as u64)) {
            let bytes = &memory[part.start as usize..part.end as usize];
            file.write_at(part.start, bytes)?;
        }
        self.staging = SessionStaging::File(file);
        Ok(())
    }

    /// Sets the length. Returns the written bytes that are gone.
    pub(super) fn set_len(&mut self, size: u64) -> Result<u64, StoreError> {
        let whole = 0..self.size;
        let before = self.written_bytes(&whole);
        match &mut self.staging {
            SessionStaging::File(file) => file.set_len(size)?,
            SessionStaging::Memory(memory) => {
                let len = usize::try_from(size).unwrap_or(usize::MAX);
                memory.truncate(len);
            }
        }
        self.written.truncate(size);
        // What was cut off does not come back when the file grows again.
        self.base_len = self.base_len.min(size);
        self.size = size;
        Ok(before - self.written_bytes(&whole))
    }

    fn written_bytes(&self, range: &Range<u64>) -> u64 {
        let covered = self.written.covered(range);
        covered.map(|part| part.end - part.start).sum()
    }

    /// What the session shows of a range, which the caller bounds: written bytes, then the base, then zeros.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let end = range.end.min(self.size);
        let range = range.start.min(end)..end;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        let at = |offset: u64| (offset - range.start) as usize;
        for part in self.written.covered(&range) {
            let target = &mut bytes[at(part.start)..at(part.end)];
            match &self.staging {
                SessionStaging::File(file) => {
                    target.copy_from_slice(&file.read_at(part.start, target.len())?);
                }
                SessionStaging::Memory(memory) => {
                    let part = part.start as usize..part.end as usize;
                    target.copy_from_slice(&memory[part]);
                }
            }
        }
        for gap in self.base_gaps(&range) {
            let target = at(gap.start)..at(gap.end);
            let Some(base) = &self.base else {
                continue;
            };
            let part = base.read(gap)?;
            bytes[target].copy_from_slice(&part);
        }
        Ok(bytes)
    }

    /// Ranges that show the base.
    pub(super) fn base_gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let end = range.end.min(self.base_len);
        let shown = range.start.min(end)..end;
        self.written.gaps(&shown).collect()
    }

    /// What the row of the session is to say.
    pub(super) fn progress(&self) -> SessionProgress {
        SessionProgress {
            id: self.id,
            bucket: self.bucket,
            staged: self.written.to_string(),
            bytes: self.charged,
            bytes_before: self.saved,
            size: self.size,
        }
    }
}
