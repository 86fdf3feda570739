use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use alknet_objects::ObjectDisk;
use tempfile::TempDir;

use super::*;
use crate::clock::TimeSource;
use crate::collect::CollectPhase;
use crate::limits::INLINE_BYTES_MAX;
use crate::names::{BranchId, BucketId, BucketSettings, FileContent, NewBucket};
use crate::path::EntryPath;
use crate::sessions::WriteSessionMode;
use crate::testing::{ManualSpaceSource, ManualTimeSource, SyncedFolder, copy_folder};

mod each_call;
mod model;

/// When the tests begin: later than any file of theirs.
const BEGIN_MS: u64 = 4_000_000_000_000;

/// A whole store with one bucket.
pub(crate) struct TestFiles {
    dir: TempDir,
    pub(crate) clock: Arc<ManualTimeSource>,
    pub(crate) space: Arc<ManualSpaceSource>,
    store: Option<Store>,
    pub(crate) bucket: BucketId,
    pub(crate) main: BranchId,
}

impl TestFiles {
    pub(crate) fn new() -> Self {
        Self::with_observer(Arc::new(UnobservedCommits))
    }

    pub(crate) fn with_observer(observer: Arc<dyn CommitObserver>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::open_in(dir, observer)
    }

    fn open_in(dir: TempDir, observer: Arc<dyn CommitObserver>) -> Self {
        let clock = ManualTimeSource::starting_at(BEGIN_MS);
        let space = ManualSpaceSource::ample();
        let store = open(&dir.path().join("fs"), &clock, &space, observer);
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let created = store.write(move |tx| tx.create_bucket(&new)).wait();
        let (bucket, main) = created.expect("a bucket");
        Self {
            dir,
            clock,
            space,
            store: Some(store),
            bucket: bucket.id,
            main: main.id,
        }
    }

    /// On a disk whose calls are followed.
    fn on_disk() -> (Self, Arc<SyncedFolder>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = SyncedFolder::follow(&dir.path().join("fs"));
        let files = Self::open_in(dir, Arc::new(FollowedCommits(Arc::clone(&disk))));
        (files, disk)
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    /// Bytes of the disk that the store leaves free.
    pub(crate) fn reserve(&self) -> u64 {
        let space = self.store().db().space();
        space.expect("the test's disk").reserve()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    pub(crate) fn close(&mut self) {
        self.store = None;
    }

    pub(crate) fn reopen(&mut self) {
        self.try_reopen().expect("a store");
    }

    /// The same. After an error the store is closed.
    pub(crate) fn try_reopen(&mut self) -> Result<(), StoreOpenError> {
        self.reopen_with(Arc::new(UnobservedCommits))
    }

    /// Does that on a disk that is followed.
    fn reopen_on(&mut self, disk: &Arc<SyncedFolder>) -> Result<(), StoreOpenError> {
        self.reopen_with(Arc::new(FollowedCommits(Arc::clone(disk))))
    }

    fn reopen_with(&mut self, observer: Arc<dyn CommitObserver>) -> Result<(), StoreOpenError> {
        self.close();
        let opened = try_open(&self.root(), &self.clock, &self.space, observer)?;
        self.store = Some(opened);
        Ok(())
    }

    /// Opens a copy of the files as a power cut leaves them now.
    pub(crate) fn cut(&self) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy_folder(&self.root(), &dir.path().join("fs"));
        self.opened_copy(dir)
    }

    fn opened_copy(&self, dir: TempDir) -> Self {
        self.opened_copy_with(dir, Arc::new(UnobservedCommits))
    }

    /// What a crash left, on a disk that is followed from there.
    fn opened_copy_on_disk(&self, dir: TempDir) -> (Self, Arc<SyncedFolder>) {
        let disk = SyncedFolder::follow_synced(&dir.path().join("fs"));
        let observer = Arc::new(FollowedCommits(Arc::clone(&disk)));
        (self.opened_copy_with(dir, observer), disk)
    }

    fn opened_copy_with(&self, dir: TempDir, observer: Arc<dyn CommitObserver>) -> Self {
        let clock = ManualTimeSource::starting_at(self.clock.unix_ms());
        let space = ManualSpaceSource::ample();
        let store = open(&dir.path().join("fs"), &clock, &space, observer);
        Self {
            dir,
            clock,
            space,
            store: Some(store),
            bucket: self.bucket,
            main: self.main,
        }
    }

    pub(crate) fn apply(&self, branch: BranchId, change: TreeChange) -> Result<u64, StoreError> {
        let request = ChangeRequest::new(branch, "alice", change);
        let receipt = self.store().apply(request, Vec::new()).wait();
        receipt.map(|receipt| receipt.seq)
    }

    /// Stores bytes, and names them.
    pub(crate) fn put_on(&self, branch: BranchId, at: &str, bytes: &[u8]) -> ContentHash {
        let content = self.store().put_bytes(bytes).expect("room");
        let hash = content.hash();
        let put = TreeChange::put(path(at), content.content());
        let request = ChangeRequest::new(branch, "alice", put);
        let applied = self.store().apply(request, vec![content]).wait();
        applied.expect(at);
        hash
    }

    pub(crate) fn put(&self, at: &str, bytes: &[u8]) -> ContentHash {
        self.put_on(self.main, at, bytes)
    }

    pub(crate) fn delete(&self, at: &str) {
        let deletion = TreeChange::delete(path(at));
        self.apply(self.main, deletion).expect(at);
    }

    /// The content of a file.
    pub(crate) fn hash_at(&self, at: &str) -> Option<ContentHash> {
        let (main, at) = (self.main, path(at));
        let found = self
            .store()
            .read(move |tx| tx.find(&tx.view(main, None)?, &at));
        found
            .wait()
            .expect("readable")
            .and_then(|entry| entry.state.hash)
    }

    /// All bytes of a content.
    pub(crate) fn bytes(&self, hash: ContentHash) -> Result<Vec<u8>, StoreError> {
        let reader = self.store().read_content(hash)?;
        reader.read(0..reader.size())
    }

    /// Changes a byte of a content on the disk.
    fn damage(&self, hash: ContentHash) {
        let row = self.store().write(move |tx| {
            let set = "UPDATE inline_ SET data = zeroblob(length(data)) WHERE hash = ?1";
            tx.execute(set, [hash])
        });
        if row.wait().expect("room") == 0 {
            let objects = self.store().content().objects();
            let object = objects.path(&blake3::Hash::from_bytes(*hash.as_bytes()));
            let mut bytes = fs::read(&object).expect("it is there");
            bytes[0] ^= 1;
            fs::remove_file(&object).expect("it is there");
            fs::write(&object, bytes).expect("room");
        }
    }

    pub(crate) fn set_bucket(&self, settings: BucketSettings) {
        let bucket = self.bucket;
        let set = self
            .store()
            .write(move |tx| tx.set_bucket(bucket, &settings, "root"));
        set.wait().expect("there");
    }

    pub(crate) fn set_retention(&self, retention_s: u64) {
        self.set_bucket(BucketSettings {
            retention_s: Some(retention_s),
            ..BucketSettings::default()
        });
    }

    /// Runs a collection to its end.
    pub(crate) fn collect(&self) -> CollectProgress {
        self.try_collect().expect("a step")
    }

    pub(crate) fn try_collect(&self) -> Result<CollectProgress, StoreError> {
        let mut collection = GarbageCollection::default();
        while !collection.is_done() {
            self.store().collect_step(&mut collection)?;
        }
        Ok(collection.progress())
    }

    /// The hashes of all objects.
    pub(crate) fn objects(&self) -> BTreeSet<String> {
        let listed = self.store().content().objects().objects();
        listed
            .map(|it| it.expect("readable").hash.to_string())
            .collect()
    }

    /// Number of the rows that a query counts.
    pub(crate) fn count(&self, query: &'static str) -> u64 {
        let counted = self.store().read(move |tx| tx.query_count(query, []));
        counted.wait().expect("readable")
    }

    /// Compares the counters with a count of the rows.
    pub(crate) fn check_usage(&self) {
        let bucket = self.bucket;
        let read = self.store().read(move |tx| {
            let usage = tx.usage(bucket)?;
            Ok((usage, tx.recount(bucket)?, tx.wrong_references(bucket)?))
        });
        let (usage, counted, wrong) = read.wait().expect("readable");
        assert_eq!(usage, counted);
        assert_eq!(wrong, Vec::<ContentHash>::new());
        let staged = self.count("SELECT coalesce(sum(size), 0) FROM session");
        assert_eq!(usage.staged, staged);
    }
}

/// Follows what the commits of a store write.
#[derive(Debug)]
struct FollowedCommits(Arc<SyncedFolder>);

impl CommitObserver for FollowedCommits {
    fn observe_step(&self, _: CommitStep) -> Result<(), StoreError> {
        Ok(())
    }

    fn disk(&self) -> Arc<dyn ObjectDisk> {
        Arc::clone(&self.0) as Arc<dyn ObjectDisk>
    }
}

fn open(
    root: &Path,
    clock: &Arc<ManualTimeSource>,
    space: &Arc<ManualSpaceSource>,
    observer: Arc<dyn CommitObserver>,
) -> Store {
    try_open(root, clock, space, observer).expect("a store")
}

fn try_open(
    root: &Path,
    clock: &Arc<ManualTimeSource>,
    space: &Arc<ManualSpaceSource>,
    observer: Arc<dyn CommitObserver>,
) -> Result<Store, StoreOpenError> {
    let options = FileStoreOptions {
        db: StoreDbOptions {
            time: clock.clone(),
            space: space.clone(),
            ..StoreDbOptions::default()
        },
        ..FileStoreOptions::default()
    };
    Store::open_observed(root, options, observer)
}

pub(crate) fn path(text: &str) -> EntryPath {
    text.parse().expect(text)
}

/// Bytes that differ with the number, and from group to group.
pub(crate) fn content(number: u64, len: usize) -> Vec<u8> {
    let byte = |at: usize| ((at as u64 + number) * 31 % 251) as u8;
    (0..len).map(byte).collect()
}

/// Copies the files at each step of a commit, as a power cut leaves them, and ends the commit at one of them.
#[derive(Debug)]
pub(crate) struct RecordedCommits {
    root: PathBuf,
    /// What the disk has at worst.
    pub(crate) disk: Arc<SyncedFolder>,
    copies: TempDir,
    synced: Mutex<Vec<TempDir>>,
    taken: Mutex<Vec<CommitStep>>,
    fails: Mutex<Option<CommitStep>>,
}

impl RecordedCommits {
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            disk: SyncedFolder::follow(root),
            synced: Mutex::default(),
            copies: tempfile::tempdir().expect("a temporary directory"),
            taken: Mutex::default(),
            fails: Mutex::default(),
        }
    }

    fn taken(&self) -> Vec<CommitStep> {
        self.taken.lock().expect("no panic").clone()
    }

    /// Begins again.
    fn forget(&self) {
        let mut taken = self.taken.lock().expect("no panic");
        for number in 0..taken.len() {
            let copy = self.copies.path().join(number.to_string());
            fs::remove_dir_all(copy).expect("it is ours");
        }
        taken.clear();
        self.synced.lock().expect("no panic").clear();
    }

    /// What was on the disk for certain at the step of this number.
    fn synced(&self, number: usize) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let synced = self.synced.lock().expect("no panic");
        copy_folder(&synced[number].path().join("fs"), &dir.path().join("fs"));
        dir
    }

    /// A folder with the copy of this number.
    fn copy(&self, number: usize) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let copy = self.copies.path().join(number.to_string());
        copy_folder(&copy, &dir.path().join("fs"));
        dir
    }
}

impl CommitObserver for RecordedCommits {
    fn observe_step(&self, step: CommitStep) -> Result<(), StoreError> {
        let mut taken = self.taken.lock().expect("no panic");
        let copy = self.copies.path().join(taken.len().to_string());
        copy_folder(&self.root, &copy);
        self.synced.lock().expect("no panic").push(self.disk.cut());
        taken.push(step);
        match *self.fails.lock().expect("no panic") == Some(step) {
            true => Err(StoreError::ContentFolder("the test ends it".to_owned())),
            false => Ok(()),
        }
    }

    fn disk(&self) -> Arc<dyn ObjectDisk> {
        Arc::clone(&self.disk) as Arc<dyn ObjectDisk>
    }
}

/// A store with a first version of `/a`, whose next commits are recorded.
pub(crate) fn recorded() -> (TestFiles, Arc<RecordedCommits>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let recording = Arc::new(RecordedCommits::new(&dir.path().join("fs")));
    let observer: Arc<dyn CommitObserver> = Arc::clone(&recording) as Arc<dyn CommitObserver>;
    let files = TestFiles::open_in(dir, observer);
    files.put("/a", &content(1, 70_000));
    recording.forget();
    (files, recording)
}

/// Gives `/a` another content, by a session or at once.
fn replace(files: &TestFiles, bytes: &[u8], by_session: bool) -> Result<(), StoreError> {
    let store = files.store();
    if by_session {
        let mode = WriteSessionMode::Truncate;
        let new = NewWriteSession::new(files.main, path("/a"), mode, "alice");
        let id = store.open_session(&new)?;
        store.sessions().write(id, "alice", 0, bytes)?;
        store.sessions().close(id, "alice", None).map(drop)
    } else {
        let prepared = store.put_bytes(bytes)?;
        let put = TreeChange::put(path("/a"), prepared.content());
        let request = ChangeRequest::new(files.main, "alice", put);
        store.apply(request, vec![prepared]).wait().map(drop)
    }
}

/// Were the name durable before its bytes, a cut after `RowsWritten` or `Committed` would show a file without content.
#[test]
fn a_crash_at_each_step_leaves_one_of_the_two_versions() {
    for (len, by_session) in [
        (1000, false),
        (1000, true),
        (100_000, false),
        (100_000, true),
    ] {
        let (files, recording) = recorded();
        let (before, after) = (content(1, 70_000), content(2, len));
        replace(&files, &after, by_session).expect("room");
        let mut expected = vec![CommitStep::StagingComplete];
        expected.extend((len as u64 > INLINE_BYTES_MAX).then_some(CommitStep::ObjectPlaced));
        expected.push(CommitStep::RowsWritten);
        expected.extend(by_session.then_some(CommitStep::Committed));
        assert_eq!(recording.taken(), expected);
        for (number, step) in expected.iter().enumerate() {
            let is_new = *step == CommitStep::Committed;
            let shown = if is_new { &after } else { &before };
            let cut = files.opened_copy(recording.copy(number));
            check_recovered(&cut, shown, &after, by_session);
            // What no sync has brought to the disk is lost.
            let cut = files.opened_copy(recording.synced(number));
            check_recovered(&cut, shown, &after, by_session);
            // The object has its name, and its outboard has not.
            if *step == CommitStep::ObjectPlaced {
                let dir = recording.copy(number);
                let content = dir.path().join("fs/content");
                let outboard = format!("outboards/{}-0-{len}", blake3::hash(&after));
                let (outboard, staged) = (content.join(outboard), content.join("uploads/left"));
                fs::rename(outboard, staged).expect("it is placed");
                check_recovered(&files.opened_copy(dir), shown, &after, by_session);
            }
        }
        // The client has its answer.
        check_recovered(&files.cut(), &after, &after, by_session);
        let cut = files.opened_copy(recording.disk.cut());
        check_recovered(&cut, &after, &after, by_session);
    }
}

/// What has to hold after each crash, whatever it interrupted.
fn check_recovered(cut: &TestFiles, shown: &[u8], after: &[u8], by_session: bool) {
    let hash = cut.hash_at("/a").expect("a file");
    assert!(cut.bytes(hash).expect("whole") == shown);
    assert!(cut.store().is_verified());
    assert_eq!(cut.count("SELECT count(*) FROM session"), 0);
    let uploads = fs::read_dir(cut.root().join("content/uploads"));
    assert_eq!(uploads.expect("readable").count(), 0);
    cut.check_usage();
    // One event for each version, whether its client had an answer or not.
    let puts = "SELECT count(*) FROM outbox WHERE topic = 'fs.put'";
    let versions = "SELECT count(*) FROM entry WHERE kind = 1";
    assert_eq!(cut.count(puts), cut.count(versions));
    // What the interrupted commit left is collected, and nothing else.
    cut.clock.advance(Duration::from_millis(20 * 60 * 1000));
    cut.collect();
    assert!(cut.bytes(hash).expect("whole") == shown);
    let objects = cut.count("SELECT count(DISTINCT hash) FROM entry WHERE size > 16384");
    assert_eq!(cut.objects().len() as u64, objects);
    // The same commit succeeds afterwards.
    replace(cut, after, by_session).expect("room");
    let hash = cut.hash_at("/a").expect("a file");
    assert!(cut.bytes(hash).expect("whole") == after);
    cut.check_usage();
}

/// The object of a damaged content is replaced before its row says that it is whole.
#[test]
fn a_crash_in_the_repair_of_a_content_shows_no_wrong_byte() {
    for len in [1000, 100_000] {
        let (files, recording) = recorded();
        let bytes = content(2, len);
        replace(&files, &bytes, false).expect("room");
        let hash = files.hash_at("/a").expect("a file");
        recording.forget();
        files.damage(hash);
        let missing = Err(StoreError::ContentMissing { hash });
        assert_eq!(files.bytes(hash), missing);
        replace(&files, &bytes, false).expect("room");
        assert!(files.bytes(hash).expect("mended") == bytes);
        for number in 0..recording.taken().len() {
            let cut = files.opened_copy(recording.copy(number));
            assert_eq!(cut.bytes(hash), missing);
            replace(&cut, &bytes, false).expect("room");
            assert!(cut.bytes(hash).expect("mended") == bytes);
            cut.check_usage();
        }
    }
}

#[test]
fn a_commit_that_fails_at_a_step_changes_nothing_and_frees_its_session() {
    for step in [
        CommitStep::StagingComplete,
        CommitStep::ObjectPlaced,
        CommitStep::RowsWritten,
    ] {
        for by_session in [false, true] {
            let (files, recording) = recorded();
            let before = files.hash_at("/a");
            *recording.fails.lock().expect("no panic") = Some(step);
            let failed = replace(&files, &content(2, 100_000), by_session);
            let is_failed = matches!(failed, Err(StoreError::ContentFolder(_)));
            assert!(is_failed, "{failed:?}");
            assert_eq!(files.hash_at("/a"), before);
            assert_eq!(files.store().sessions().count(), 0);
            files.check_usage();
            *recording.fails.lock().expect("no panic") = None;
            replace(&files, &content(2, 100_000), by_session).expect("room");
            files.check_usage();
        }
    }
}

/// The test asks for a name of bytes that the store may never have had.
#[test]
fn a_name_leads_to_prepared_bytes_only() {
    let files = TestFiles::new();
    let store = files.store();
    let prepared = store.put_bytes(&content(1, 100_000)).expect("room");
    let other = store.put_bytes(b"other").expect("room");
    let put = |content: FileContent, contents: Vec<PreparedContent>| {
        let change = TreeChange::put(path("/a"), content);
        let request = ChangeRequest::new(files.main, "alice", change);
        store.apply(request, contents).wait().map(drop)
    };
    let absent = StoreError::NotFound(StoreObject::Content);
    let named = prepared.content();
    assert_eq!(put(named, Vec::new()), Err(absent.clone()));
    assert_eq!(put(named, vec![other]), Err(absent.clone()));
    let longer = FileContent::new(named.hash, named.size + 1);
    assert_eq!(put(longer, vec![prepared.clone()]), Err(absent));
    let wanted = FileContent {
        presence: ContentPresence::Wanted,
        ..FileContent::new(ContentHash::new([7; 32]), 10)
    };
    assert_eq!(put(wanted, Vec::new()), Ok(()));
    assert_eq!(put(named, vec![prepared]), Ok(()));
    files.check_usage();
}

#[test]
fn a_store_comes_back_as_it_was() {
    let mut files = TestFiles::new();
    let short = files.put("/short", b"some bytes");
    let long = files.put("/long", &content(1, 300_000));
    files.reopen();
    assert!(files.store().is_verified(), "it was closed in order");
    assert_eq!(files.bytes(short).expect("whole"), b"some bytes");
    assert!(files.bytes(long).expect("whole") == content(1, 300_000));
    let mut collection = GarbageCollection::default();
    assert_eq!(collection.progress().phase, CollectPhase::Purge);
    let step = files.store().collect_step(&mut collection);
    assert_eq!(step.expect("a step").phase, CollectPhase::Prune);
}

#[test]
fn a_start_verifies_up_to_its_bound_and_the_rest_in_steps() {
    let files = TestFiles::new();
    for number in 0..3 {
        files.put(&format!("/{number}"), &content(number, 100_000));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy_folder(&files.root(), dir.path());
    let options = FileStoreOptions {
        boot_verify_bytes: 1,
        ..FileStoreOptions::default()
    };
    let store = Store::open(dir.path(), options.clone()).expect("a store");
    assert!(!store.is_verified());
    drop(store);
    // An orderly end before the verification was over.
    let store = Store::open(dir.path(), options).expect("a store");
    assert!(store.db().was_closed_in_order() && !store.is_verified());
    let mut bytes = 0;
    while !store.is_verified() {
        let step = store.verify_step(50_000).expect("readable");
        assert_eq!(step.damaged, Vec::<ContentHash>::new());
        bytes += step.bytes;
    }
    assert!(bytes >= 300_000, "{bytes}");
    let nothing = store.verify_step(u64::MAX).expect("nothing to read");
    assert_eq!((nothing.bytes, nothing.is_done), (0, true));
}
