//! Free pages of the file, which go back to the file system.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{StoreDb, WriteTransaction};
use crate::error::StoreError;
use crate::limits::{VACUUM_PAGES, VACUUM_WRITES_MAX};

/// What a step of a vacuum did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VacuumStep {
    /// Pages that the file gave back.
    pub pages: u64,
    /// Free pages that the file still has.
    pub free: u64,
    /// Whether the step was left out, because the store has had more than
    /// [`VACUUM_WRITES_MAX`](crate::limits::VACUUM_WRITES_MAX) writes since the step before.
    pub is_busy: bool,
}

/// The number of writes at the last step.
#[derive(Debug, Default)]
pub(super) struct VacuumClock(AtomicU64);

impl StoreDb {
    /// Gives back at most [`VACUUM_PAGES`] free pages, if the store was idle since the last call. The caller calls it once a
    /// minute. The file gets shorter when the log is next moved into it. Blocks.
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn vacuum_step(&self) -> Result<VacuumStep, StoreError> {
        let writes = self.inner.writes.load(Ordering::Relaxed);
        let before = self.inner.vacuum.0.swap(writes, Ordering::Relaxed);
        if writes.saturating_sub(before) > VACUUM_WRITES_MAX {
            return Ok(VacuumStep {
                is_busy: true,
                ..VacuumStep::default()
            });
        }
        let free = self.read(|tx| tx.query_count("PRAGMA freelist_count", []));
        // Most of the time: a transaction without a change would sync the log all the same.
        if free.wait()? == 0 {
            return Ok(VacuumStep::default());
        }
        self.write(|tx| tx.vacuum(VACUUM_PAGES)).wait()
    }
}

impl WriteTransaction<'_> {
    fn vacuum(&self, pages: u64) -> Result<VacuumStep, StoreError> {
        let free = || self.query_count("PRAGMA freelist_count", []);
        let before = free()?;
        let vacuum = format!("PRAGMA incremental_vacuum({pages})");
        let mut statement = self.connection().prepare(&vacuum)?;
        let mut rows = statement.query([])?;
        // Each step gives back one page.
        while rows.next()?.is_some() {}
        let left = free()?;
        Ok(VacuumStep {
            pages: before.saturating_sub(left),
            free: left,
            is_busy: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::ScratchStore;

    fn pages(store: &ScratchStore) -> u64 {
        let counted = store.read(|tx| tx.query_count("PRAGMA page_count", []));
        counted.expect("readable")
    }

    #[test]
    fn free_pages_go_back_in_steps_and_the_file_gets_shorter() {
        let mut store = ScratchStore::new();
        let fill = |store: &ScratchStore| {
            let filled = store.write(|tx| {
                let insert =
                    "INSERT INTO inline_(hash, data) VALUES (randomblob(32), zeroblob(2000000))";
                tx.execute(insert, []).map(drop)
            });
            filled.expect("room");
        };
        fill(&store);
        let before = pages(&store);
        let emptied = store.write(|tx| tx.execute("DELETE FROM inline_", []).map(drop));
        emptied.expect("room");
        assert_eq!(pages(&store), before, "a deletion alone frees nothing");
        let first = store.db().vacuum_step().expect("room");
        assert_eq!(first.pages, VACUUM_PAGES);
        let mut steps = 1;
        while store.db().vacuum_step().expect("room").free > 0 {
            steps += 1;
        }
        assert!(steps >= 3, "{steps}");
        let after = pages(&store);
        assert!(after + 240 < before, "{after} of {before}");
        assert_eq!(store.db().vacuum_step(), Ok(VacuumStep::default()));
        store.close();
        let len = fs::metadata(&store.path).expect("a file").len();
        assert_eq!(len, after * 8192);
        store.reopen();
    }

    #[test]
    fn a_store_that_is_written_to_is_left_alone() {
        let store = ScratchStore::new();
        assert!(!store.db().vacuum_step().expect("idle").is_busy);
        for _ in 0..=VACUUM_WRITES_MAX {
            store.write(|_| Ok(())).expect("room");
        }
        assert!(store.db().vacuum_step().expect("busy").is_busy);
        assert!(!store.db().vacuum_step().expect("idle").is_busy);
    }
}
