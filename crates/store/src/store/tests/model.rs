//! Random work with whole files, compared with the model after each step: changes, write sessions, locks, branches, merges,
//! collections, restarts and crashes, on a disk that works and on one whose calls fail.

mod branches;
mod locks;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};

use alknet_test_support::is_campaign;

use super::*;
use crate::limits::SESSION_TTL_MS_DEFAULT;
use crate::locks::{LockDepth, LockToken, NewLock};
use crate::names::{
    EntryAttributes, EntryKind, EntryPrecondition, MergeOutcome, MergeRequest, MergeStrategy,
    NewBranch,
};
use crate::outbox::EventFilter;
use crate::testing::reference::{
    DIRECTORY, Reference, ReferenceChange, ReferenceMerge, Tree, above, is_within,
};
use crate::testing::{CrashedFolder, DiskError, FailedCall, TestRandom};

use locks::{HeldLocks, PathUse, end_locks, forbids, forbids_change};
use sessions::ModelWriteSession;

/// Steps of a run with one seed, and seeds of a campaign. A campaign makes 100,000 steps on each kind of disk.
const STEPS: usize = 500;
const SEEDS: usize = 200;
/// The clock goes on by so much before a collection, so that what has no name is old enough.
const COLLECT_PAUSE: Duration = Duration::from_secs(20 * 60);
/// Of so many steps one may meet a call of the disk that fails, among so many calls.
const FAULT_OF: usize = 3;
const FAULT_CALLS: usize = 30;

/// What became of a call.
enum Attempt<T> {
    Done(T),
    Refused(StoreError),
    /// A call of the disk failed in it.
    Failed(FailedCall),
}

struct FilesRun {
    files: TestFiles,
    /// Where calls of the disk fail.
    disk: Option<Arc<SyncedFolder>>,
    random: TestRandom,
    reference: Reference,
    /// Each content that was stored, by what a tree says of it.
    contents: BTreeMap<String, Vec<u8>>,
    sessions: Vec<ModelWriteSession>,
    locks: HeldLocks,
    /// Commits of locks that made a file.
    untimed: BTreeSet<u64>,
    names: usize,
    done: BTreeMap<&'static str, usize>,
}

/// A merge takes another time for another version, and the model has no times.
fn fixed_time() -> EntryAttributes {
    EntryAttributes {
        mtime_ns: Some(0),
        ..EntryAttributes::default()
    }
}

fn shown_hash(hash: ContentHash) -> String {
    format!("file {hash}")
}

impl FilesRun {
    fn new(seed: u64, is_failing: bool) -> Self {
        let (files, disk) = match is_failing {
            true => {
                let (files, disk) = TestFiles::on_disk();
                (files, Some(disk))
            }
            false => (TestFiles::new(), None),
        };
        files.set_retention(0);
        let reference = Reference::with_main(files.main);
        Self {
            files,
            disk,
            random: TestRandom::new(seed),
            reference,
            contents: BTreeMap::new(),
            sessions: Vec::new(),
            locks: HeldLocks::new(),
            untimed: BTreeSet::new(),
            names: 0,
            done: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        self.arm();
        let what = match self.random.below(100) {
            0..34 => self.change(),
            34..60 => self.use_session(),
            60..68 => self.merge(),
            68..71 => self.rebase(),
            71..77 => self.create_branch(),
            77..79 => self.delete_branch(),
            79..86 => self.lock_or_unlock(),
            86..92 => self.collect(),
            92..96 => self.reopen(),
            _ => self.crash(),
        };
        // A fault that no call has met.
        self.end_faults();
        *self.done.entry(what).or_default() += 1;
    }

    /// Lets a call of the disk fail in this step, if there is such a disk.
    fn arm(&mut self) {
        let number = self.random.below(FAULT_CALLS) as u64;
        let error = self.random.pick(&[DiskError::Failed, DiskError::Full]);
        let is_due = self.random.is_one_in(FAULT_OF);
        let copies = self.random.is_one_in(2);
        if let Some(disk) = self.disk.as_ref().filter(|_| is_due) {
            disk.fail_call(number, error, copies);
        }
    }

    fn end_faults(&self) -> Option<FailedCall> {
        self.disk.as_ref().and_then(|disk| disk.end_faults())
    }

    fn attempt<T>(&self, result: Result<T, StoreError>) -> Attempt<T> {
        match (result, self.end_faults()) {
            (Ok(value), _) => Attempt::Done(value),
            (Err(StoreError::Damaged(reason)), _) => panic!("it is not damaged: {reason}"),
            (Err(_), Some(failed)) => {
                // Behind a job that failed with the disk, the log is emptied before the next one. Only until then may a
                // crash bring the job back.
                let next = self.files.store().write(|_| Ok(()));
                next.wait().expect("the disk works again");
                Attempt::Failed(failed)
            }
            (Err(error), None) => Attempt::Refused(error),
        }
    }

    fn any_branch(&mut self) -> BranchId {
        let live = self.reference.live();
        self.random.pick(&live)
    }

    fn tree(&self, branch: BranchId) -> &Tree {
        self.reference.branches[&branch].tree()
    }

    /// A content, and what a tree says of it.
    fn any_content(&mut self) -> (String, Vec<u8>) {
        let number = self.random.below(40);
        let len = [300, 900, 20_000, 40_000][number % 4];
        let bytes = content(number as u64, len);
        (self.remember(&bytes), bytes)
    }

    fn remember(&mut self, bytes: &[u8]) -> String {
        let hash = ContentHash::new(*blake3::hash(bytes).as_bytes());
        let shown = shown_hash(hash);
        self.contents.insert(shown.clone(), bytes.to_vec());
        shown
    }

    /// The tokens that a client brings: all of them, or none.
    fn any_tokens(&mut self) -> Vec<LockToken> {
        match self.random.is_one_in(2) {
            true => self.locks.values().map(|(token, _)| *token).collect(),
            false => Vec::new(),
        }
    }

    /// Only the main branch has locks.
    fn locks_of(&self, branch: BranchId) -> HeldLocks {
        match branch == self.files.main {
            true => self.locks.clone(),
            false => HeldLocks::new(),
        }
    }

    fn change(&mut self) -> &'static str {
        let branch = self.any_branch();
        let count = 1 + self.random.below(2);
        let tokens = self.any_tokens();
        let mut tree = self.tree(branch).clone();
        let mut locks = self.locks_of(branch);
        let mut is_allowed = true;
        let (mut changes, mut uploads) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (model, change, upload) = self.any_change(branch);
            is_allowed = is_allowed
                && !forbids_change(&locks, &tokens, &tree, &model)
                && model.apply(&mut tree).is_ok();
            end_locks(&mut locks, &model);
            changes.push(change);
            uploads.extend(upload);
        }
        let shown = format!("{changes:?}");
        let store = self.files.store();
        let prepared = uploads.iter().map(|bytes| store.put_bytes(bytes));
        let prepared: Result<Vec<_>, _> = prepared.collect();
        let request = ChangeRequest {
            branch,
            actor: "alice".to_owned(),
            message: None,
            changes,
        };
        let applied = prepared.and_then(|prepared| {
            let applied = store.apply_with(Durability::Full, request, prepared, tokens);
            applied.wait()
        });
        match self.attempt(applied) {
            Attempt::Done(receipt) => {
                assert!(is_allowed, "{shown}");
                self.note(branch, receipt.seq, tree, locks)
            }
            Attempt::Refused(error) => {
                assert!(!is_allowed, "{shown}: {error}");
                "refused change"
            }
            Attempt::Failed(failed) => self.fail(failed, (branch, tree, locks)),
        }
    }

    /// Notes a commit that the client has the answer of.
    fn note(&mut self, branch: BranchId, seq: u64, tree: Tree, locks: HeldLocks) -> &'static str {
        if branch == self.files.main {
            self.locks = locks;
        }
        // The store makes no commit where nothing changes.
        if seq == self.reference.branches[&branch].head() {
            assert_eq!(*self.tree(branch), tree);
            return "change of nothing";
        }
        self.reference.add_version(branch, seq, tree);
        "change"
    }

    /// A change failed with the disk. It is not there, or the process or the power ends, and it may be there.
    fn fail(
        &mut self,
        failed: FailedCall,
        (branch, tree, locks): (BranchId, Tree, HeldLocks),
    ) -> &'static str {
        let Some(CrashedFolder {
            of_process,
            of_power,
        }) = failed.crashed
        else {
            return "failed change";
        };
        let left = match self.random.is_one_in(2) {
            true => of_process,
            false => of_power,
        };
        self.restart_from(left);
        let found = self.files.store().read(move |tx| tx.branch(branch)).wait();
        let head = found.expect("there").head_seq;
        if head == self.reference.branches[&branch].head() {
            return "lost change";
        }
        self.note(branch, head, tree, locks);
        "unanswered change"
    }

    /// A change, and the bytes that it needs.
    fn any_change(&mut self, branch: BranchId) -> (ReferenceChange, TreeChange, Option<Vec<u8>>) {
        let (one, other) = (self.random.path(), self.random.path());
        let flag = self.random.is_one_in(2);
        let (model, change) = match self.random.below(16) {
            0..7 => {
                let (shown, bytes) = self.any_content();
                let hash = ContentHash::new(*blake3::hash(&bytes).as_bytes());
                let change = TreeChange::Put {
                    path: path(&one),
                    content: FileContent::new(hash, bytes.len() as u64),
                    attributes: fixed_time(),
                    precondition: EntryPrecondition::Any,
                };
                return (ReferenceChange::Put(one, shown), change, Some(bytes));
            }
            7 => (
                ReferenceChange::Mkdir(one.clone()),
                TreeChange::mkdir(path(&one)),
            ),
            8..12 => (
                ReferenceChange::Delete(one.clone(), flag),
                TreeChange::Delete {
                    path: path(&one),
                    is_recursive: flag,
                    precondition: EntryPrecondition::Any,
                },
            ),
            12..14 => (
                ReferenceChange::Rename(one.clone(), other.clone(), flag),
                TreeChange::Rename {
                    from: path(&one),
                    to: path(&other),
                    may_replace: flag,
                    precondition: EntryPrecondition::Any,
                },
            ),
            14 => (
                ReferenceChange::Copy(None, one.clone(), other.clone(), flag),
                TreeChange::Copy {
                    view: None,
                    from: path(&one),
                    to: path(&other),
                    is_recursive: true,
                    may_replace: flag,
                },
            ),
            _ => {
                let seq = self.kept_version(branch);
                // The file of a lock had another time there, which the model does not know.
                let seq = match self.untimed.contains(&seq) {
                    true => self.reference.branches[&branch].head(),
                    false => seq,
                };
                let then = self.reference.tree_at(branch, seq);
                let change = TreeChange::Restore {
                    path: path(&one),
                    seq,
                };
                (ReferenceChange::Restore(then, one), change)
            }
        };
        (model, change, None)
    }

    /// A version of a branch that was not collected. The head is kept.
    fn kept_version(&mut self, branch: BranchId) -> u64 {
        let versions = &self.reference.branches[&branch].versions;
        let seqs: Vec<u64> = versions.iter().map(|(seq, _)| *seq).collect();
        let seq = self.random.pick(&seqs);
        let view = self
            .files
            .store()
            .read(move |tx| tx.view(branch, Some(seq)));
        match view.wait() {
            Ok(_) => seq,
            Err(error) => {
                let head = *seqs.last().expect("a version");
                assert_eq!(error, StoreError::NotFound(StoreObject::Version));
                assert_ne!(seq, head);
                head
            }
        }
    }

    fn collect(&mut self) -> &'static str {
        self.files.clock.advance(COLLECT_PAUSE);
        let now_ms = self.files.clock.unix_ms();
        self.locks.retain(|_, (_, until_ms)| *until_ms > now_ms);
        let collected = self.files.try_collect();
        match self.attempt(collected) {
            Attempt::Done(progress) if progress.contents > 0 => "collection",
            Attempt::Done(_) => "nothing",
            Attempt::Refused(error) => panic!("{error}"),
            Attempt::Failed(_) => "failed collection",
        }
    }

    fn reopen(&mut self) -> &'static str {
        self.sessions.clear();
        let Some(disk) = self.disk.clone() else {
            self.files.reopen();
            assert!(self.files.store().db().was_closed_in_order());
            return "restart";
        };
        // A start that fails with the disk may be made again.
        let is_open = match self.files.reopen_on(&disk) {
            Err(error @ StoreOpenError::Damaged { .. }) => panic!("{error}"),
            opened => opened.is_ok(),
        };
        disk.end_faults();
        if is_open {
            return "restart";
        }
        self.files.reopen_on(&disk).expect("the disk works again");
        "failed restart"
    }

    /// Ends the process, or the power.
    fn crash(&mut self) -> &'static str {
        self.end_faults();
        let left = match &self.disk {
            Some(disk) if self.random.is_one_in(2) => disk.cut(),
            _ => {
                let dir = tempfile::tempdir().expect("a temporary directory");
                copy_folder(&self.files.root(), &dir.path().join("fs"));
                dir
            }
        };
        self.restart_from(left);
        "crash"
    }

    fn restart_from(&mut self, left: TempDir) {
        self.sessions.clear();
        self.files = match &mut self.disk {
            Some(disk) => {
                let (files, followed) = self.files.opened_copy_on_disk(left);
                *disk = followed;
                files
            }
            None => self.files.opened_copy(left),
        };
        assert!(self.files.store().is_verified());
        assert_eq!(self.files.count("SELECT count(*) FROM session"), 0);
    }

    /// What a version of a branch shows.
    fn tree_of(&self, branch: BranchId, as_of: Option<u64>) -> Tree {
        let read = self.files.store().read(move |tx| {
            let view = tx.view(branch, as_of)?;
            tx.subtree(&view, &EntryPath::root())
        });
        let entries = read.wait().expect("readable").into_iter();
        let shown = entries.map(|entry| {
            let what = match entry.state.kind {
                EntryKind::File => shown_hash(entry.state.hash.expect("a file has one")),
                EntryKind::Directory => DIRECTORY.to_owned(),
                other => other.name().to_owned(),
            };
            (entry.path.to_string(), what)
        });
        shown.collect()
    }

    /// Compares every branch with the model, one earlier version, and the bytes of every file.
    fn check(&mut self) {
        let mut shown = BTreeSet::new();
        for branch in self.reference.live() {
            let tree = self.tree_of(branch, None);
            assert_eq!(tree, *self.tree(branch));
            shown.extend(tree.into_values().filter(|it| it.starts_with("file ")));
        }
        for what in &shown {
            let hash = what.trim_start_matches("file ").parse().expect("a hash");
            let bytes = self.files.bytes(hash);
            assert!(bytes.expect(what) == self.contents[what], "{what}");
        }
        let branch = self.any_branch();
        let seq = self.kept_version(branch);
        let then = self.reference.tree_at(branch, seq);
        assert_eq!(self.tree_of(branch, Some(seq)), then);
    }

    /// Each commit has its events, which are in order.
    fn check_events(&self) {
        let (mut cursor, mut seqs) = (0, BTreeSet::new());
        loop {
            let read = self
                .files
                .store()
                .read(move |tx| tx.read_events(cursor, &EventFilter::default(), 1000));
            let page = read.wait().expect("none was removed");
            for event in &page.events {
                assert!(event.id > cursor);
                cursor = event.id;
                seqs.extend(event.seq);
            }
            if page.is_end {
                break;
            }
        }
        let versions = self.reference.branches.values().flat_map(|it| &it.versions);
        let silent = versions.filter(|(seq, _)| *seq > 0 && !seqs.contains(seq));
        assert_eq!(silent.count(), 0);
    }
}

/// Makes the steps with each seed, and returns how often each kind did something.
fn run(first_seed: u64, is_failing: bool) -> BTreeMap<&'static str, usize> {
    let seeds = if is_campaign() { SEEDS } else { 1 };
    let mut all = BTreeMap::new();
    for seed in (first_seed..).take(seeds) {
        println!("seed {seed}, {is_failing}");
        let mut run = FilesRun::new(seed, is_failing);
        for step in 0..STEPS {
            run.step();
            run.files.check_usage();
            if step % 20 == 0 {
                run.check();
            }
        }
        run.check();
        run.check_events();
        for (kind, count) in run.done {
            *all.entry(kind).or_default() += count;
        }
    }
    all
}

fn assert_done(done: &BTreeMap<&'static str, usize>, kinds: &[&str]) {
    for kind in kinds {
        assert!(
            done.get(kind).is_some_and(|count| *count > 0),
            "{kind}: {done:?}"
        );
    }
}

/// What both kinds of disk see.
const KINDS: [&str; 19] = [
    "aborted session",
    "branch",
    "change",
    "closed session",
    "collection",
    "crash",
    "deleted branch",
    "lock",
    "merge",
    "refused change",
    "refused close",
    "refused lock",
    "refused merge",
    "refused session",
    "restart",
    "session",
    "unlock",
    "written session",
    "decided merge",
];

#[test]
fn a_store_of_whole_files_behaves_as_the_model() {
    let done = run(1, false);
    assert_done(&done, &KINDS);
}

#[test]
fn a_store_of_whole_files_on_a_disk_that_fails_behaves_as_the_model() {
    let done = run(1, true);
    assert_done(&done, &KINDS);
    assert_done(
        &done,
        &[
            "failed change",
            "failed close",
            "failed collection",
            "failed restart",
            "failed session",
            "lost change",
        ],
    );
}
