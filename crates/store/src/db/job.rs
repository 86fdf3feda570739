//! What one job of the writer may do: others wait for it, and its rows lie in the log until the commit.

use std::time::Instant;

use super::WriteTransaction;
use crate::error::StoreError;
use crate::limits::{SUBTREE_ENTRIES_MAX, TRANSACTION_BYTES_MAX, WRITE_TIME_MAX};

/// What the present job has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JobWork {
    entries: u64,
    bytes: u64,
    /// Whether the job makes a change again that the store took before its file was damaged.
    is_replay: bool,
}

impl WriteTransaction<'_> {
    /// Begins the count and the time of a job.
    pub(super) fn begin_job(&self) {
        self.work.set(JobWork::default());
        self.set_deadline(Some(Instant::now() + WRITE_TIME_MAX));
    }

    /// Ends the time of a job: what the writer itself does has no limit.
    pub(super) fn end_job(&self) {
        self.set_deadline(None);
    }

    /// Lifts the time limit of the present job, for an administrator who waits for it.
    pub(crate) fn lift_deadline(&self) {
        self.set_deadline(None);
    }

    /// Counts entries that the job is about to touch.
    ///
    /// # Errors
    /// There are too many of them in one job.
    pub(crate) fn count_entries(&self, entries: u64) -> Result<(), StoreError> {
        let mut work = self.work.get();
        // Saturating, because a caller may announce any number.
        work.entries = work.entries.saturating_add(entries);
        if work.entries > SUBTREE_ENTRIES_MAX as u64 {
            return Err(StoreError::too_many_entries());
        }
        self.work.set(work);
        Ok(())
    }

    /// Counts bytes of a row that the job is about to write.
    ///
    /// # Errors
    /// There are too many of them in one job.
    pub(crate) fn count_bytes(&self, bytes: u64) -> Result<(), StoreError> {
        let mut work = self.work.get();
        work.bytes = work.bytes.saturating_add(bytes);
        if work.bytes > TRANSACTION_BYTES_MAX {
            return Err(StoreError::too_many_bytes());
        }
        self.work.set(work);
        Ok(())
    }

    /// Makes the rest of the job a repetition of changes that the store took before: no quota, no lock and no frozen bucket
    /// refuses them a second time.
    pub(crate) fn begin_replay(&self) {
        // The count stays: a repetition is bounded like the change was.
        let is_replay = true;
        let work = self.work.get();
        self.work.set(JobWork { is_replay, ..work });
    }

    /// Whether the job repeats changes that the store took before.
    pub(crate) fn is_replay(&self) -> bool {
        self.work.get().is_replay
    }
}

impl StoreError {
    /// The error of a change or a comparison of too many entries at once.
    pub(crate) const fn too_many_entries() -> Self {
        Self::TooLarge {
            unit: "entries in one transaction",
            limit: SUBTREE_ENTRIES_MAX as u64,
        }
    }

    /// The error of a change or a comparison whose paths and attributes are too long together.
    pub(crate) const fn too_many_bytes() -> Self {
        Self::TooLarge {
            unit: "bytes of paths and attributes in one transaction",
            limit: TRANSACTION_BYTES_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ScratchStore;

    /// Without the look at the time, a job of many statements keeps all other writers waiting.
    #[test]
    fn a_job_behind_its_time_writes_nothing_more() {
        let store = ScratchStore::new();
        let late = store.write(|tx| {
            tx.execute("INSERT INTO meta VALUES ('late', 1)", [])?;
            tx.set_deadline(Some(Instant::now()));
            tx.execute("INSERT INTO meta VALUES ('later', 1)", [])
        });
        assert_eq!(late, Err(StoreError::TimedOut));
        let left = store.write(|tx| {
            let left = "SELECT count(*) FROM meta WHERE k IN ('late', 'later')";
            tx.query_count(left, [])
        });
        assert_eq!(left, Ok(0), "the next job has a time of its own");
    }

    #[test]
    fn each_job_has_its_own_count() {
        let store = ScratchStore::new();
        let most = SUBTREE_ENTRIES_MAX as u64;
        for _ in 0..2 {
            store.write(move |tx| tx.count_entries(most)).expect("room");
        }
        let more = store.write(move |tx| {
            tx.count_entries(most)?;
            tx.count_entries(1)
        });
        assert_eq!(more, Err(StoreError::too_many_entries()));
        let more = store.write(move |tx| tx.count_bytes(TRANSACTION_BYTES_MAX + 1));
        assert_eq!(more, Err(StoreError::too_many_bytes()));
    }
}
