//! The hold on the sweep of contents.
//!
//! A file of names that was restored from a copy, or made beside a damaged one, lacks names. A sweep would delete the
//! contents of those names.

use crate::db::{META_SWEEP_HELD, ReadTransaction, WriteTransaction};
use crate::error::StoreError;
use crate::names::BucketId;

/// Why contents may be swept again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepRelease {
    /// An administrator has looked at what is lost.
    Administrator {
        /// The identity of the administrator.
        actor: String,
    },
    /// The references of all buckets are counted again by the release itself. That shows that no count is wrong; names that
    /// a repair could not bring back have no reference, and their contents go with the next sweep.
    Recount,
}

impl ReadTransaction<'_> {
    /// Whether no content may be swept.
    ///
    /// # Errors
    /// The database refuses the query. The caller must not sweep then.
    pub fn is_sweep_held(&self) -> Result<bool, StoreError> {
        // Any value holds: a damaged one must not let contents go.
        Ok(self.meta_number(META_SWEEP_HELD)?.is_some())
    }

    /// The first bucket whose number of references to a content is wrong. It reads every row of every bucket.
    fn bucket_with_wrong_references(&self) -> Result<Option<BucketId>, StoreError> {
        let buckets: Vec<BucketId> =
            self.query_all("SELECT id FROM bucket ORDER BY id", [], |row| row.get(0))?;
        // Frozen ones and those that are being deleted as well: their contents count until their
        // rows are gone.
        for bucket in buckets {
            if !self.wrong_references(bucket)?.is_empty() {
                return Ok(Some(bucket));
            }
        }
        Ok(None)
    }
}

impl WriteTransaction<'_> {
    /// Forbids the sweep of contents until [`release_sweep`](Self::release_sweep).
    ///
    /// # Errors
    /// The database refuses the statement.
    pub fn hold_sweep(&mut self) -> Result<(), StoreError> {
        self.set_meta_number(META_SWEEP_HELD, 1)
    }

    /// Allows the sweep of contents again. With [`SweepRelease::Recount`] writers wait for the count.
    ///
    /// # Errors
    /// [`StoreError::Denied`] if the count differs from the references that the buckets have. The hold stays then.
    pub fn release_sweep(&mut self, release: &SweepRelease) -> Result<(), StoreError> {
        match release {
            SweepRelease::Administrator { actor } => {
                // In the log: from here on contents can be lost for good.
                tracing::warn!(%actor, "an administrator allows the sweep of contents");
            }
            SweepRelease::Recount => {
                // A large store takes longer than a job may, and the administrator knows that writers wait.
                self.lift_deadline();
                if let Some(bucket) = self.bucket_with_wrong_references()? {
                    tracing::warn!(%bucket, "references to contents are counted wrongly");
                    return Err(StoreError::Denied(
                        "the counts of references differ from the entries",
                    ));
                }
            }
        }
        self.execute("DELETE FROM meta WHERE k = ?1", [META_SWEEP_HELD])
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::ContentHash;
    use crate::names::{ChangeRequest, FileContent, NewBucket, TreeChange};
    use crate::testing::ScratchStore;

    fn is_held(store: &ScratchStore) -> bool {
        store.read(|tx| tx.is_sweep_held()).expect("readable")
    }

    #[test]
    fn a_hold_lasts_until_it_is_released() {
        let mut store = ScratchStore::new();
        assert!(!is_held(&store));
        store.write(|tx| tx.hold_sweep()).expect("room");
        store.reopen();
        assert!(is_held(&store));
        let actor = "alice".to_owned();
        let release = SweepRelease::Administrator { actor };
        let released = store.write(move |tx| tx.release_sweep(&release));
        assert_eq!(released, Ok(()));
        assert!(!is_held(&store));
    }

    #[test]
    fn a_wrong_count_keeps_the_hold() {
        let store = ScratchStore::new();
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let (_, main) = store.write(move |tx| tx.create_bucket(&new)).expect("room");
        let content = FileContent::new(ContentHash::new([1; 32]), 10);
        let put = TreeChange::put("/a".parse().expect("a path"), content);
        let put = ChangeRequest::new(main.id, "alice", put);
        store.write(move |tx| tx.apply(&put)).expect("room");
        let broken = store.write(|tx| {
            tx.hold_sweep()?;
            tx.execute("DELETE FROM blob_bucket", []).map(drop)
        });
        broken.expect("possible");
        let recount = || store.write(|tx| tx.release_sweep(&SweepRelease::Recount));
        assert!(matches!(recount(), Err(StoreError::Denied(_))));
        assert!(is_held(&store));
        let mended = store.write(|tx| {
            let insert =
                "INSERT INTO blob_bucket(hash, bucket_id, refs) SELECT hash, 1, 1 FROM entry";
            tx.execute(insert, []).map(drop)
        });
        mended.expect("possible");
        assert_eq!(recount(), Ok(()));
        assert!(!is_held(&store));
    }
}
