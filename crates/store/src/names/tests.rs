use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::address::BranchName;
use crate::clock::TimeSource;
use crate::db::{ReadTransaction, StoreDb, StoreDbOptions, WriteTransaction};
use crate::error::{StoreError, StoreErrorCode};
use crate::hash::ContentHash;
use crate::limits::PAGE_ENTRIES_MAX;
use crate::path::EntryPath;
use crate::testing::reference::Tree;

mod branches;
mod buckets;
mod changes;
mod ends;
mod large;
mod listing;
mod memory;
mod merges;
mod model;
mod sync;

/// A clock that stands, so that two runs of a test write the same.
struct FixedTimeSource;

impl TimeSource for FixedTimeSource {
    fn unix_ms(&self) -> u64 {
        1_800_000_000_000
    }
}

/// A store with one bucket.
struct TestStore {
    _dir: TempDir,
    path: PathBuf,
    db: Option<StoreDb>,
    bucket: BucketId,
    main: BranchId,
}

impl TestStore {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("fs.db");
        let db = open(&path);
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let created = db.write(move |tx| tx.create_bucket(&new)).wait();
        let (bucket, main) = created.expect("a bucket");
        Self {
            _dir: dir,
            path,
            db: Some(db),
            bucket: bucket.id,
            main: main.id,
        }
    }

    fn db(&self) -> &StoreDb {
        self.db.as_ref().expect("open")
    }

    fn reopen(&mut self) {
        self.db = None;
        self.db = Some(open(&self.path));
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.db().write(work).wait()
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.db().read(work).wait()
    }

    fn apply(&self, branch: BranchId, change: TreeChange) -> Result<u64, StoreError> {
        self.apply_all(branch, vec![change])
    }

    fn apply_all(&self, branch: BranchId, changes: Vec<TreeChange>) -> Result<u64, StoreError> {
        let request = ChangeRequest {
            branch,
            actor: "alice".to_owned(),
            message: None,
            changes,
        };
        let receipt = self.write(move |tx| tx.apply(&request));
        receipt.map(|receipt| receipt.seq)
    }

    /// Writes a file whose content has this number.
    fn put(&self, branch: BranchId, at: &str, number: u8) -> u64 {
        let put = TreeChange::put(path(at), content(number));
        self.apply(branch, put).expect(at)
    }

    fn mkdir(&self, branch: BranchId, at: &str) {
        self.apply(branch, TreeChange::mkdir(path(at))).expect(at);
    }

    fn delete(&self, branch: BranchId, at: &str) {
        self.apply(branch, TreeChange::delete(path(at))).expect(at);
    }

    fn branch(&self, name: &str, parent: BranchId) -> BranchId {
        let new = NewBranch::new(name.parse().expect("a name"), parent, "alice");
        let created = self.write(move |tx| tx.create_branch(&new));
        created.expect("a branch").id
    }

    fn merge(
        &self,
        source: BranchId,
        target: BranchId,
        strategy: MergeStrategy,
    ) -> Result<MergeOutcome, StoreError> {
        let request = MergeRequest {
            strategy,
            ..MergeRequest::new(source, target, "bob")
        };
        self.write(move |tx| tx.merge(&request))
    }

    /// Everything in a version of a branch, as text.
    fn tree_at(&self, branch: BranchId, as_of: Option<u64>) -> Tree {
        let entries = self.read(move |tx| {
            let view = tx.view(branch, as_of)?;
            tx.subtree(&view, &EntryPath::root())
        });
        let entries = entries.expect("readable").into_iter();
        entries
            .map(|entry| (entry.path.to_string(), describe(&entry.state)))
            .collect()
    }

    fn tree(&self, branch: BranchId) -> Tree {
        self.tree_at(branch, None)
    }

    /// Compares the counters with a count of the rows.
    fn check_usage(&self) {
        let bucket = self.bucket;
        let (usage, counted, wrong) = self
            .read(move |tx| {
                let usage = tx.usage(bucket)?;
                Ok((usage, tx.recount(bucket)?, tx.wrong_references(bucket)?))
            })
            .expect("readable");
        assert_eq!(usage, counted);
        assert_eq!(wrong, Vec::<ContentHash>::new());
    }

    /// Topics and paths of all events.
    fn events(&self) -> Vec<String> {
        let read = self.read(|tx| {
            let query = "SELECT topic, payload FROM outbox ORDER BY id";
            tx.query_all(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
        });
        let rows: Vec<(String, String)> = read.expect("readable");
        let rows = rows.into_iter().map(|(topic, payload)| {
            let payload: crate::outbox::EventPayload =
                serde_json::from_str(&payload).expect("an event");
            let paths = [payload.path, payload.to];
            let paths: Vec<_> = paths.into_iter().flatten().collect();
            format!("{topic} {}", paths.join(" ")).trim_end().to_owned()
        });
        rows.collect()
    }
}

fn open(path: &std::path::Path) -> StoreDb {
    let options = StoreDbOptions {
        time: Arc::new(FixedTimeSource),
        // The disk of the machine may be almost full.
        space: crate::testing::ManualSpaceSource::ample(),
        ..StoreDbOptions::default()
    };
    StoreDb::open(path, options).expect("a store")
}

fn path(text: &str) -> EntryPath {
    text.parse().expect(text)
}

fn name(text: &str) -> BranchName {
    text.parse().expect(text)
}

fn content(number: u8) -> FileContent {
    FileContent::new(ContentHash::new([number; 32]), u64::from(number) * 100)
}

fn describe(state: &EntryState) -> String {
    match state.kind {
        EntryKind::File => {
            let number = state.hash.map_or(0, |hash| hash.as_bytes()[0]);
            assert_eq!(state.size, u64::from(number) * 100);
            format!("file {number}")
        }
        EntryKind::Directory => "directory".to_owned(),
        EntryKind::Symlink => format!("link {}", state.target.as_deref().unwrap_or_default()),
        EntryKind::Deleted => "deleted".to_owned(),
    }
}

fn tree_of<const N: usize>(entries: [(&str, &str); N]) -> Tree {
    let entries = entries.into_iter();
    entries
        .map(|(path, what)| (path.to_owned(), what.to_owned()))
        .collect()
}

fn code<T: fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorCode {
    result.expect_err("refused").code()
}
