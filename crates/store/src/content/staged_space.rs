//! The room that staged bytes take between two looks at the disk.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ContentFolder;
use crate::error::StoreError;
use crate::limits::STAGED_UNCHECKED_BYTES;

/// Bytes that all staging files together have grown by since the last look at the disk. One count for all: with one for
/// each file, 1024 sessions would reach 8 GiB into the reserve.
#[derive(Debug, Default)]
pub(super) struct StagedSpace(Mutex<StagedCount>);

#[derive(Debug, Default)]
struct StagedCount {
    /// Bytes since the last look.
    unchecked: u64,
    /// Those of writes that have not returned yet. The disk may not count them.
    in_flight: u64,
}

/// A write that was counted. Its bytes are in flight until this is dropped.
#[derive(Debug)]
pub(super) struct CountedWrite<'s> {
    space: &'s StagedSpace,
    bytes: u64,
}

impl StagedSpace {
    /// A panic while the lock is held leaves the counters correct.
    fn lock(&self) -> MutexGuard<'_, StagedCount> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContentFolder {
    /// Counts a write to a staging file that is about to be made.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if it would take the disk below its reserve.
    pub(super) fn count_write(&self, bytes: u64) -> Result<CountedWrite<'_>, StoreError> {
        let space = &*self.staged;
        let mut count = space.lock();
        // Not at each write: the question is a call of the system, and pieces may be small.
        if count.unchecked.saturating_add(bytes) > STAGED_UNCHECKED_BYTES {
            self.check_space(count.in_flight.saturating_add(bytes))?;
            count.unchecked = count.in_flight;
        }
        count.unchecked = count.unchecked.saturating_add(bytes);
        count.in_flight = count.in_flight.saturating_add(bytes);
        Ok(CountedWrite { space, bytes })
    }
}

impl Drop for CountedWrite<'_> {
    fn drop(&mut self) {
        let mut count = self.space.lock();
        count.in_flight = count.in_flight.saturating_sub(self.bytes);
    }
}
