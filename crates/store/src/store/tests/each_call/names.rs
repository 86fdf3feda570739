//! Requests about buckets, branches and snapshots, changes of peers, and what the node does by itself.

use super::*;
use crate::address::{BranchName, BucketName};
use crate::content::{ContentScrub, ContentStatus};
use crate::limits::EVENTS_KEPT_TIME;
use crate::names::{EntryState, SyncedChanges};

/// How the names of buckets, branches and snapshots begin that requests are about.
const MADE: &str = "made-";
/// More of them than a test makes.
const MADE_MAX: usize = 1000;

impl FailingDisk {
    /// The name of something that this request makes.
    fn made_name(&self) -> String {
        format!("{MADE}{}", self.number)
    }

    /// What is shown with something of this kind more, or without it if it is deleted. Then it is made before.
    fn with_made(
        &mut self,
        kind: &str,
        is_deletion: bool,
        make: impl FnOnce(&TestFiles),
    ) -> FileContents {
        let mut after = self.contents.clone();
        let key = format!("{kind} {}", self.made_name());
        if is_deletion {
            make(&self.files);
            self.contents.insert(key, None);
        } else {
            after.insert(key, None);
        }
        after
    }

    pub(super) fn bucket_request(&mut self, is_deletion: bool) -> (RepeatedRequest, FileContents) {
        let name: BucketName = self.made_name().parse().expect("a name");
        let new = NewBucket::new(name.clone(), "alice");
        let create = move |files: &TestFiles| {
            let new = new.clone();
            let created = files.store().write(move |tx| tx.create_bucket(&new));
            said(created.wait())
        };
        let made = create.clone();
        let after = self.with_made("bucket", is_deletion, |files| made(files).expect("room"));
        let run = move |files: &mut TestFiles| match is_deletion {
            false => create(files),
            true => {
                let name = name.clone();
                let deleted = files.store().write(move |tx| {
                    let bucket = tx.bucket_by_name(&name)?;
                    tx.delete_bucket(bucket.id)
                });
                said(deleted.wait())
            }
        };
        (Box::new(run), after)
    }

    pub(super) fn branch_request(&mut self, is_deletion: bool) -> (RepeatedRequest, FileContents) {
        let (bucket, main) = (self.files.bucket, self.files.main);
        let name: BranchName = self.made_name().parse().expect("a name");
        let new = NewBranch::new(name.clone(), main, "alice");
        let create = move |files: &TestFiles| {
            let new = new.clone();
            let created = files.store().write(move |tx| tx.create_branch(&new));
            said(created.wait())
        };
        let made = create.clone();
        let after = self.with_made("branch", is_deletion, |files| made(files).expect("room"));
        let run = move |files: &mut TestFiles| match is_deletion {
            false => create(files),
            true => {
                let name = name.clone();
                let deleted = files.store().write(move |tx| {
                    let branch = tx.branch_by_name(bucket, &name)?;
                    tx.delete_branch(branch.id, true, "alice")
                });
                said(deleted.wait())
            }
        };
        (Box::new(run), after)
    }

    pub(super) fn snapshot_request(
        &mut self,
        is_deletion: bool,
    ) -> (RepeatedRequest, FileContents) {
        let (bucket, main) = (self.files.bucket, self.files.main);
        let name: BranchName = self.made_name().parse().expect("a name");
        let new = name.clone();
        let create = move |files: &TestFiles| {
            let name = new.clone();
            let created = files
                .store()
                .write(move |tx| tx.create_snapshot(&name, main, None, "alice"));
            said(created.wait())
        };
        let made = create.clone();
        let after = self.with_made("snapshot", is_deletion, |files| made(files).expect("room"));
        let run = move |files: &mut TestFiles| match is_deletion {
            false => create(files),
            true => {
                let name = name.clone();
                let deleted = files
                    .store()
                    .write(move |tx| tx.delete_snapshot(bucket, &name));
                said(deleted.wait())
            }
        };
        (Box::new(run), after)
    }

    /// A name that comes from a peer, and one that the peer has deleted.
    pub(super) fn synced_request(&mut self, at: String) -> (RepeatedRequest, FileContents) {
        let gone = format!("/gone-{}", self.number);
        self.put(&gone, content(self.number, 300));
        let bytes = content(self.number, 20_000);
        let state = EntryState {
            kind: EntryKind::File,
            hash: Some(ContentHash::new(*blake3::hash(&bytes).as_bytes())),
            size: bytes.len() as u64,
            mode: 0o644,
            ..EntryState::deletion(1)
        };
        let synced = SyncedChanges {
            branch: self.files.main,
            actor: "bob".to_owned(),
            former: Vec::new(),
            changes: vec![(path(&at), state), (path(&gone), EntryState::deletion(2))],
        };
        let mut after = self.contents.clone();
        after.remove(&gone);
        // The bytes are on the peer.
        after.insert(at, None);
        let run = move |files: &mut TestFiles| {
            let synced = synced.clone();
            said(
                files
                    .store()
                    .write(move |tx| tx.apply_synced(&synced))
                    .wait(),
            )
        };
        (Box::new(run), after)
    }

    /// A check of all contents, which finds one that was damaged and marks it.
    pub(super) fn scrub_request(&mut self) -> (RepeatedRequest, FileContents) {
        let at = format!("/rotten-{}", self.number);
        let hash = self.files.put(&at, &content(self.number, 40_000));
        self.files.damage(hash);
        // The damage is on the disk: a power cut does not take it back.
        let objects = self.files.store().content().objects();
        let object = objects.path(&blake3::Hash::from_bytes(*hash.as_bytes()));
        let file = fs::File::open(&object).expect("it is there");
        self.disk.sync_file(&file).expect("no call fails");
        let folder = object.parent().expect("a folder");
        self.disk.sync_folder(folder).expect("no call fails");
        self.contents.insert(at, None);
        let run = move |files: &mut TestFiles| {
            let mut scrub = ContentScrub::default();
            let mut is_done = false;
            while !is_done {
                match files.store().content().scrub_step(&mut scrub, 1 << 20) {
                    Ok(step) => is_done = step.is_done,
                    Err(error) => return said::<()>(Err(error)),
                }
            }
            let status = files.store().read(move |tx| tx.content_status(hash));
            let status = status.wait().expect("readable");
            assert!(matches!(status, ContentStatus::Bad { .. }), "{status:?}");
            Ok(())
        };
        (Box::new(run), self.contents.clone())
    }

    /// Events that are too old to be kept.
    pub(super) fn prune_request(&mut self, at: &str) -> (RepeatedRequest, FileContents) {
        self.put(at, content(self.number, 100));
        let old = EVENTS_KEPT_TIME + Duration::from_secs(1);
        self.files.clock.advance(old);
        let run = |files: &mut TestFiles| {
            let pruned = files.store().write(|tx| tx.prune_outbox(1000)).wait();
            let is_whole = pruned.as_ref().is_ok_and(|it| it.is_done);
            assert!(is_whole || pruned.is_err(), "{pruned:?}");
            if is_whole {
                assert_eq!(files.count("SELECT count(*) FROM outbox"), 0);
            }
            said(pruned)
        };
        (Box::new(run), self.contents.clone())
    }
}

/// Buckets, branches and snapshots whose names begin with [`MADE`].
pub(super) fn made(files: &TestFiles) -> FileContents {
    let bucket = files.bucket;
    let read = files.store().read(move |tx| {
        let buckets = tx.buckets(None, MADE_MAX)?.into_iter();
        let branches = tx.branches(bucket, None, MADE_MAX)?.into_iter();
        let snapshots = tx.snapshots(bucket, None, MADE_MAX)?.into_iter();
        let buckets = buckets.map(|it| ("bucket", it.name.to_string()));
        let branches = branches.map(|it| ("branch", it.name.to_string()));
        let snapshots = snapshots.map(|it| ("snapshot", it.name.to_string()));
        let all = buckets.chain(branches).chain(snapshots);
        let made = all.filter(|(_, name)| name.starts_with(MADE));
        Ok(made
            .map(|(kind, name)| (format!("{kind} {name}"), None))
            .collect())
    });
    read.wait().expect("readable")
}
