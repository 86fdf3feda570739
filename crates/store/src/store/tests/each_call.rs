//! Each call that writes to the disk fails once, and the process and the power end at each of them.
//!
//! Counted are writes, syncs and truncations of the database, and writes, syncs, renames and removals of the folder of
//! contents. These calls are not counted, so that none of them fails: one that makes a file, one that makes a folder, a
//! removal of a file of the database, and the copies, renames and removals of whole files of names for a copy of a day, for
//! a damaged file that is set aside, and for a repair.

mod names;
mod repair;

use std::collections::BTreeMap;

use alknet_test_support::is_campaign;

use super::*;
use crate::locks::{LockDepth, NewLock};
use crate::names::{EntryKind, MergeRequest, NewBranch};
use crate::testing::{CrashedFolder, DiskError};

/// More calls than any client's request makes.
const CALLS_MAX: u64 = 1000;
/// Of so many calls a run of the tests looks at one crash. A campaign looks at each.
const CRASHES_OF: u64 = 8;

/// Files of the main branch, with the bytes of those whose content is here. Buckets, branches and snapshots that a request
/// made are among them, without bytes and behind their kind.
type FileContents = BTreeMap<String, Option<Vec<u8>>>;

/// What a client, or the node itself, asks of the store.
#[derive(Clone, Copy, Debug)]
enum StoreRequest {
    ApplySynced,
    CloseSession,
    Collect,
    CopyDaily,
    CreateBranch,
    CreateBucket,
    CreateSnapshot,
    Delete,
    DeleteBranch,
    DeleteBucket,
    DeleteSnapshot,
    Lock,
    Merge,
    MendContent,
    PruneOutbox,
    PutLong,
    PutShort,
    ReceiveContent,
    Rename,
    Reopen,
    Scrub,
}

/// A request that may be made again after an error.
type RepeatedRequest = Box<dyn FnMut(&mut TestFiles) -> Result<(), String>>;

struct FailingDisk {
    files: TestFiles,
    disk: Arc<SyncedFolder>,
    contents: FileContents,
    /// Number of the request, for names that are new.
    number: u64,
}

/// An error of the disk. It must not pass for damage of the file, which would be set aside then.
fn said<T>(result: Result<T, StoreError>) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(StoreError::Damaged(reason)) => panic!("it is not damaged: {reason}"),
        Err(error) => Err(error.to_string()),
    }
}

fn try_put(files: &TestFiles, branch: BranchId, at: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let prepared = files.store().put_bytes(bytes)?;
    let put = TreeChange::put(path(at), prepared.content());
    let request = ChangeRequest::new(branch, "alice", put);
    let applied = files.store().apply(request, vec![prepared]);
    applied.wait().map(drop)
}

impl FailingDisk {
    fn new() -> Self {
        let (files, disk) = TestFiles::on_disk();
        files.set_retention(0);
        let mut scene = Self {
            files,
            disk,
            contents: FileContents::new(),
            number: 0,
        };
        scene.put("/dir/long", content(1, 70_000));
        scene.put("/short", content(2, 500));
        scene
    }

    /// Puts a file, which has to succeed.
    fn put(&mut self, at: &str, bytes: Vec<u8>) {
        self.files.put(at, &bytes);
        self.contents.insert(at.to_owned(), Some(bytes));
    }

    /// The request of this number, and what the branch shows once it has succeeded.
    fn prepare(&mut self, request: StoreRequest) -> (RepeatedRequest, FileContents) {
        self.number += 1;
        let number = self.number;
        let main = self.files.main;
        let new = format!("/new-{number}");
        match request {
            StoreRequest::PutShort => self.put_request(new, content(number, 900)),
            // Over a file that is there, and so that a folder of objects is made now and then.
            StoreRequest::PutLong => {
                self.put_request("/dir/long".to_owned(), content(number, 40_000))
            }
            StoreRequest::CloseSession => self.session_request(),
            StoreRequest::MendContent => self.mending_request(),
            StoreRequest::ReceiveContent => self.arriving_request(new),
            StoreRequest::Merge => self.merge_request(new),
            StoreRequest::ApplySynced => self.synced_request(new),
            StoreRequest::Scrub => self.scrub_request(),
            StoreRequest::PruneOutbox => self.prune_request(&new),
            StoreRequest::CreateBucket | StoreRequest::DeleteBucket => {
                self.bucket_request(matches!(request, StoreRequest::DeleteBucket))
            }
            StoreRequest::CreateBranch | StoreRequest::DeleteBranch => {
                self.branch_request(matches!(request, StoreRequest::DeleteBranch))
            }
            StoreRequest::CreateSnapshot | StoreRequest::DeleteSnapshot => {
                self.snapshot_request(matches!(request, StoreRequest::DeleteSnapshot))
            }
            StoreRequest::Delete => {
                self.put(&new, content(number, 20_000));
                let mut after = self.contents.clone();
                after.remove(&new);
                let deletion = TreeChange::delete(path(&new));
                (change_request(deletion), after)
            }
            StoreRequest::Rename => {
                let bytes = content(number, 20_000);
                self.put(&new, bytes.clone());
                let to = format!("/moved/{number}");
                let mut after = self.contents.clone();
                after.remove(&new);
                after.insert(to.clone(), Some(bytes));
                let rename = TreeChange::rename(path(&new), path(&to));
                (change_request(rename), after)
            }
            StoreRequest::Lock => {
                let time = Duration::from_secs(600);
                let lock = NewLock::exclusive(main, path(&new), "alice", LockDepth::Zero, time);
                let run = move |files: &mut TestFiles| {
                    let lock = lock.clone();
                    said(
                        files
                            .store()
                            .write(move |tx| tx.lock_entry(&lock, &[]))
                            .wait(),
                    )
                };
                (Box::new(run), self.with(new, Vec::new()))
            }
            StoreRequest::Collect => {
                for (at, len) in [("/a", 40_000), ("/b", 50)] {
                    self.files.put(at, &content(number, len));
                    self.files.delete(at);
                }
                self.files.clock.advance(Duration::from_secs(20 * 60));
                let run = |files: &mut TestFiles| said(files.try_collect());
                (Box::new(run), self.contents.clone())
            }
            StoreRequest::CopyDaily => {
                self.files.clock.advance(Duration::from_secs(24 * 60 * 60));
                let run = |files: &mut TestFiles| said(files.store().db().copy_daily());
                (Box::new(run), self.contents.clone())
            }
            StoreRequest::Reopen => {
                let disk = Arc::clone(&self.disk);
                let run = move |files: &mut TestFiles| match files.reopen_on(&disk) {
                    Err(error @ StoreOpenError::Damaged { .. }) => panic!("{error}"),
                    opened => opened.map_err(|error| error.to_string()),
                };
                (Box::new(run), self.contents.clone())
            }
        }
    }

    /// The files with one more.
    fn with(&self, at: String, bytes: Vec<u8>) -> FileContents {
        let mut after = self.contents.clone();
        after.insert(at, Some(bytes));
        after
    }

    fn merge_request(&self, at: String) -> (RepeatedRequest, FileContents) {
        let (number, main) = (self.number, self.files.main);
        let name = format!("b-{number}").parse().expect("a name");
        let branch = NewBranch::new(name, main, "alice");
        let made = self
            .files
            .store()
            .write(move |tx| tx.create_branch(&branch));
        let branch = made.wait().expect("room").id;
        let bytes = content(number, 20_000);
        self.files.put_on(branch, &at, &bytes);
        let merge = MergeRequest::new(branch, main, "alice");
        let run = move |files: &mut TestFiles| {
            let merge = merge.clone();
            said(files.store().write(move |tx| tx.merge(&merge)).wait())
        };
        (Box::new(run), self.with(at, bytes))
    }

    fn put_request(&self, at: String, bytes: Vec<u8>) -> (RepeatedRequest, FileContents) {
        let after = self.with(at.clone(), bytes.clone());
        let run = move |files: &mut TestFiles| said(try_put(files, files.main, &at, &bytes));
        (Box::new(run), after)
    }

    /// A change of a part of a file, with a sync before the end.
    fn session_request(&self) -> (RepeatedRequest, FileContents) {
        const AT: usize = 66_000;
        let at = "/dir/long";
        let piece = content(self.number, 30_000);
        let mut bytes = self.contents[at].clone().expect("it is here");
        bytes.resize(bytes.len().max(AT + piece.len()), 0);
        bytes[AT..AT + piece.len()].copy_from_slice(&piece);
        let run = move |files: &mut TestFiles| {
            let mode = WriteSessionMode::Modify;
            let new = NewWriteSession::new(files.main, path(at), mode, "alice");
            let (store, sessions) = (files.store(), files.store().sessions());
            let closed = store.open_session(&new).and_then(|id| {
                let written = sessions.write(id, "alice", AT as u64, &piece);
                let synced = written.and_then(|()| sessions.sync(id, "alice"));
                let closed = synced.and_then(|()| sessions.close(id, "alice", None));
                // A client that gives up. The session may be over by itself.
                if closed.is_err() {
                    sessions.abort(id, "alice").ok();
                    sessions.sweep().expect("the disk works again");
                }
                closed
            });
            said(closed)
        };
        (Box::new(run), self.with(at.to_owned(), bytes))
    }

    /// A file whose content was damaged, and is put once more.
    fn mending_request(&mut self) -> (RepeatedRequest, FileContents) {
        let at = format!("/damaged-{}", self.number);
        let bytes = content(self.number, 40_000);
        let hash = self.files.put(&at, &bytes);
        self.files.damage(hash);
        let missing = Err(StoreError::ContentMissing { hash });
        assert_eq!(self.files.bytes(hash), missing);
        self.contents.insert(at.clone(), None);
        self.put_request(at, bytes)
    }

    /// A file whose name is here, and whose content comes from a peer.
    fn arriving_request(&mut self, at: String) -> (RepeatedRequest, FileContents) {
        let bytes = content(self.number, 200_000);
        let hash = ContentHash::new(*blake3::hash(&bytes).as_bytes());
        let len = bytes.len() as u64;
        let wanted = FileContent {
            presence: ContentPresence::Wanted,
            ..FileContent::new(hash, len)
        };
        let put = TreeChange::put(path(&at), wanted);
        self.files.apply(self.files.main, put).expect("room");
        self.contents.insert(at.clone(), None);
        let after = self.with(at, bytes.clone());
        let run = move |files: &mut TestFiles| {
            let (store, bucket) = (files.store(), files.bucket);
            let arrive = || {
                let mut partial = store.content().receive(bucket, hash, len)?;
                let (first, second) = bytes.split_at(65_536);
                partial.write_verified(0, first)?;
                partial.save()?;
                partial.write_verified(first.len() as u64, second)?;
                let prepared = partial.place()?;
                store.complete_content(prepared).wait()
            };
            said(arrive())
        };
        (Box::new(run), after)
    }

    /// Makes a request again and again, with another call of the disk that fails, until no call fails.
    fn fail_each_call(&mut self, request: StoreRequest) {
        let mut is_over = false;
        let mut calls = 0;
        while !is_over {
            assert!(calls < CALLS_MAX, "{request:?}");
            let (mut run, after) = self.prepare(request);
            let error = match calls % 2 {
                0 => DiskError::Failed,
                _ => DiskError::Full,
            };
            let copies = is_campaign() || calls % CRASHES_OF == 0;
            self.disk.fail_call(calls, error, copies);
            let made = run(&mut self.files);
            let failed = self.disk.end_faults();
            let what = format!("{request:?}, call {calls}, {error:?}: {made:?}");
            println!("{what}");
            is_over = failed.is_none();
            assert!(!is_over || made.is_ok(), "{what}");
            // SQLite has no other word for a sync that fails.
            let is_named = made
                .as_ref()
                .err()
                .is_none_or(|it| !it.contains("storage space"));
            assert!(is_named, "{what}");
            if let Some(crashed) = failed.and_then(|failed| failed.crashed) {
                self.check_crashed(crashed, made.is_ok(), &after, &what);
            }
            // The same client, or another one, tries again.
            if made.is_err() {
                self.check_unchanged(&what);
                run(&mut self.files).expect(&what);
            }
            check(&self.files, &[&after], &what);
            self.contents = after;
            calls += 1;
        }
        println!("{request:?}: {} calls", calls - 1);
        assert!(calls > 2, "{request:?} writes something");
    }

    /// A request that failed has changed nothing. A store that could not be opened is still closed.
    fn check_unchanged(&self, what: &str) {
        if self.files.store.is_some() {
            check(&self.files, &[&self.contents], what);
        }
    }

    /// What a crash left at the call, and what a power cut leaves after the answer.
    fn check_crashed(
        &self,
        crashed: CrashedFolder,
        is_acknowledged: bool,
        after: &FileContents,
        what: &str,
    ) {
        let either = [&self.contents, after];
        let answered = match is_acknowledged {
            true => &either[1..],
            false => &either[..],
        };
        for (left, allowed, when) in [
            (crashed.of_process, &either[..], "the process ended there"),
            (crashed.of_power, &either[..], "the power was cut there"),
            (self.disk.cut(), answered, "the power was cut afterwards"),
        ] {
            let what = format!("{what}, {when}");
            let cut = self.files.opened_copy(left);
            assert!(cut.store().is_verified(), "{what}");
            let shown = check(&cut, allowed, &what);
            let uploads = fs::read_dir(cut.root().join("content/uploads"));
            assert_eq!(uploads.expect("readable").count(), 0, "{what}");
            assert_eq!(cut.count("SELECT count(*) FROM session"), 0, "{what}");
            // What was interrupted is collected, and nothing else.
            cut.clock.advance(Duration::from_secs(20 * 60));
            cut.collect();
            check(&cut, &[&shown], &what);
            let rows = cut.count("SELECT count(*) FROM blob WHERE size > 16384");
            assert!(cut.objects().len() as u64 <= rows, "{what}");
        }
    }
}

fn change_request(change: TreeChange) -> RepeatedRequest {
    Box::new(move |files: &mut TestFiles| said(files.apply(files.main, change.clone())))
}

/// What the branch shows, and what was made beside it.
fn shown(files: &TestFiles, what: &str) -> FileContents {
    let main = files.main;
    let read = files.store().read(move |tx| {
        let view = tx.view(main, None)?;
        tx.subtree(&view, &EntryPath::root())
    });
    let entries = read.wait().expect("readable").into_iter();
    let of_files = entries.filter(|entry| entry.state.kind == EntryKind::File);
    let shown = of_files.map(|entry| {
        let hash = entry.state.hash.expect("a file has one");
        let bytes = match files.bytes(hash) {
            Err(StoreError::ContentMissing { .. } | StoreError::ContentUnavailable { .. }) => None,
            bytes => Some(bytes.expect(what)),
        };
        (entry.path.to_string(), bytes)
    });
    shown.chain(names::made(files)).collect()
}

/// What has to hold at any time. Returns what is shown, which is one of those that are allowed.
fn check(files: &TestFiles, allowed: &[&FileContents], what: &str) -> FileContents {
    let shown = shown(files, what);
    assert!(
        allowed.contains(&&shown),
        "{what}: {:?}",
        shown.keys().collect::<Vec<_>>()
    );
    files.check_usage();
    // An event for each version, of those from the oldest event on that is kept.
    let silent = "SELECT count(*) FROM entry e WHERE e.kind = 1 AND e.seq >= (SELECT min(seq) FROM outbox) \
                  AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.seq = e.seq)";
    assert_eq!(files.count(silent), 0, "{what}");
    shown
}

#[test]
fn puts_whose_disk_fails_at_any_call_are_made_or_not() {
    let mut scene = FailingDisk::new();
    scene.fail_each_call(StoreRequest::PutShort);
    scene.fail_each_call(StoreRequest::PutLong);
}

#[test]
fn a_session_whose_disk_fails_at_any_call_is_closed_or_over() {
    FailingDisk::new().fail_each_call(StoreRequest::CloseSession);
}

#[test]
fn changes_whose_disk_fails_at_any_call_are_made_or_not() {
    let mut scene = FailingDisk::new();
    for request in [
        StoreRequest::Merge,
        StoreRequest::Delete,
        StoreRequest::Rename,
        StoreRequest::Lock,
    ] {
        scene.fail_each_call(request);
    }
}

#[test]
fn buckets_branches_and_snapshots_whose_disk_fails_at_any_call_are_there_or_not() {
    let mut scene = FailingDisk::new();
    for request in [
        StoreRequest::CreateBucket,
        StoreRequest::DeleteBucket,
        StoreRequest::CreateBranch,
        StoreRequest::DeleteBranch,
        StoreRequest::CreateSnapshot,
        StoreRequest::DeleteSnapshot,
    ] {
        scene.fail_each_call(request);
    }
}

#[test]
fn changes_of_peers_whose_disk_fails_at_any_call_are_made_or_not() {
    FailingDisk::new().fail_each_call(StoreRequest::ApplySynced);
}

/// The sweep is last, because the events that are compared with the versions are gone then.
#[test]
fn a_check_and_a_sweep_of_events_whose_disk_fails_at_any_call_change_nothing_else() {
    let mut scene = FailingDisk::new();
    scene.fail_each_call(StoreRequest::Scrub);
    scene.fail_each_call(StoreRequest::PruneOutbox);
}

#[test]
fn contents_whose_disk_fails_at_any_call_are_whole_or_missing() {
    let mut scene = FailingDisk::new();
    scene.fail_each_call(StoreRequest::ReceiveContent);
    scene.fail_each_call(StoreRequest::MendContent);
}

#[test]
fn a_collection_whose_disk_fails_at_any_call_removes_nothing_else() {
    FailingDisk::new().fail_each_call(StoreRequest::Collect);
}

#[test]
fn a_start_whose_disk_fails_at_any_call_may_be_made_again() {
    let mut scene = FailingDisk::new();
    scene.fail_each_call(StoreRequest::Reopen);
    scene.fail_each_call(StoreRequest::CopyDaily);
}
