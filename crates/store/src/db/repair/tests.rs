use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::hash::ContentHash;
use crate::limits::INLINE_BYTES_MAX;
use crate::locks::{LockDepth, NewLock};
use crate::names::{
    BranchId, BucketId, BucketSettings, ChangeRequest, EntryAttributes, EntryPrecondition,
    FileContent, NewBranch, NewBucket, TreeChange,
};
use crate::outbox::{ConsumerName, EventFilter, OutboxStart};
use crate::path::EntryPath;
use crate::testing::ScratchStore;

mod torn;

const LARGE: u64 = INLINE_BYTES_MAX + 1;

/// A store with a bucket, whose main branch gets changes.
struct DamagedStore {
    store: ScratchStore,
    bucket: BucketId,
    main: BranchId,
}

impl DamagedStore {
    fn new() -> Self {
        let store = ScratchStore::new();
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let (bucket, main) = store.write(move |tx| tx.create_bucket(&new)).expect("room");
        let (bucket, main) = (bucket.id, main.id);
        Self {
            store,
            bucket,
            main,
        }
    }

    fn change(&self, change: TreeChange) -> u64 {
        let request = ChangeRequest::new(self.main, "bob", change);
        let receipt = self.store.write(move |tx| tx.apply(&request));
        receipt.expect("possible").seq
    }

    fn put(&self, at: &str, number: u8, size: u64) -> u64 {
        let content = FileContent::new(ContentHash::new([number; 32]), size);
        self.change(TreeChange::put(path(at), content))
    }

    fn copy(&self) {
        self.store.db().copy_daily().expect("room");
    }

    /// Closes the store and sets its file aside, as a start does with a damaged one.
    fn set_aside(&mut self) -> PathBuf {
        self.store.close();
        quarantine::set_aside(&self.store.path).expect("possible")
    }

    fn repair(&self) -> Result<StoreRepair, StoreRepairError> {
        repair_store(&self.store.path, &self.store.options())
    }

    /// Paths, hashes and sizes of everything in the main branch.
    fn files(&self) -> Vec<(String, Option<ContentHash>, u64)> {
        let main = self.main;
        let entries = self.store.read(move |tx| {
            let view = tx.view(main, None)?;
            tx.subtree(&view, &EntryPath::root())
        });
        let entries = entries.expect("readable").into_iter();
        let mut files: Vec<_> = entries
            .map(|it| (it.path.to_string(), it.state.hash, it.state.size))
            .collect();
        files.sort();
        files
    }

    fn blob_state(&self, number: u8) -> Option<i64> {
        let hash = ContentHash::new([number; 32]);
        let query = "SELECT state FROM blob WHERE hash = ?1";
        let state = self
            .store
            .read(move |tx| tx.query_row(query, [hash], |row| row.get(0)));
        state.expect("readable")
    }
}

/// A consumer of the bucket.
fn consumer() -> ConsumerName {
    ConsumerName::parse(BucketId::new(1), "c").expect("a name")
}

fn path(text: &str) -> EntryPath {
    text.parse().expect("a path")
}

/// Overwrites a part of a file.
fn damage(file: &Path, range: std::ops::Range<usize>) {
    let mut bytes = fs::read(file).expect("a file");
    bytes[range].fill(0xa5);
    fs::write(file, bytes).expect("room");
}

#[test]
fn a_repair_takes_the_copy_and_the_changes_after_it() {
    let mut damaged = DamagedStore::new();
    damaged.put("/kept", 1, LARGE);
    damaged.put("/gone", 2, LARGE);
    let made = damaged
        .store
        .write(|tx| tx.add_outbox_consumer(&consumer(), OutboxStart::Now));
    made.expect("free");
    damaged.copy();
    damaged.put("/large", 3, LARGE);
    let inline = damaged.store.write(|tx| {
        let insert = "INSERT INTO inline_(hash, data) VALUES (?1, x'0102030405')";
        tx.execute(insert, [ContentHash::new([4; 32])]).map(drop)
    });
    inline.expect("room");
    damaged.put("/small", 4, 5);
    damaged.put("/small without bytes", 5, 6);
    damaged.change(TreeChange::mkdir(path("/d")));
    damaged.change(TreeChange::rename(path("/kept"), path("/d/moved")));
    damaged.change(TreeChange::delete(path("/gone")));
    let last = damaged.change(TreeChange::Symlink {
        path: path("/link"),
        target: "a".to_owned(),
        may_replace: false,
    });
    let branch = NewBranch::new("draft".parse().expect("a name"), damaged.main, "bob");
    let made = damaged.store.write(move |tx| tx.create_branch(&branch));
    let old_branch = made.expect("free").id;
    let last_event = *damaged.store.db().last_event().borrow();
    let aside = damaged.set_aside();

    let repair = damaged.repair().expect("a copy");
    assert_eq!(repair.damaged, aside);
    assert_eq!(repair.copy.day, "2027-01-15");
    assert_eq!((repair.recovered, repair.lost), (6, 2));
    assert!(repair.is_tail_whole);
    let lost: Vec<_> = repair
        .lost_events
        .iter()
        .map(|it| (it.topic.as_str(), it.address.as_str()))
        .collect();
    let expected = [
        ("fs.put", "docs main /link"),
        ("branch.create", "docs draft"),
    ];
    assert_eq!(lost, expected);

    damaged.store.reopen();
    assert!(!damaged.store.db().was_closed_in_order());
    let hash = |number: u8| Some(ContentHash::new([number; 32]));
    let expected = [
        ("/d".to_owned(), None, 0),
        ("/d/moved".to_owned(), hash(1), LARGE),
        ("/large".to_owned(), hash(3), LARGE),
        ("/small".to_owned(), hash(4), 5),
        ("/small without bytes".to_owned(), hash(5), 6),
    ];
    assert_eq!(damaged.files(), expected);
    // Complete where the bytes are here, and wanted where only a peer can have them.
    assert_eq!(damaged.blob_state(3), Some(2));
    assert_eq!(damaged.blob_state(4), Some(2));
    assert_eq!(damaged.blob_state(5), Some(0));
    let bucket = damaged.bucket;
    let (is_held, wrong) = damaged
        .store
        .read(move |tx| Ok((tx.is_sweep_held()?, tx.wrong_references(bucket)?)))
        .expect("readable");
    assert!(is_held);
    assert_eq!(wrong, Vec::<ContentHash>::new());
    // Numbers of before mean nothing else now.
    assert!(damaged.put("/next", 6, LARGE) > last);
    let branch = NewBranch::new("other".parse().expect("a name"), damaged.main, "bob");
    let made = damaged.store.write(move |tx| tx.create_branch(&branch));
    assert!(made.expect("free").id > old_branch);
    let read = damaged
        .store
        .read(|tx| tx.consumer_events(&consumer(), &EventFilter::default(), 10));
    match read.expect_err("a gap") {
        StoreError::EventGap { pruned, last } => {
            assert!(pruned >= last_event);
            assert!(last > pruned);
        }
        other => panic!("{other}"),
    }
}

/// The store took these changes, and what the copy had for limits then must not take them away.
#[test]
fn limits_of_the_copy_refuse_no_change_of_the_tail() {
    let mut damaged = DamagedStore::new();
    let (bucket, main) = (damaged.bucket, damaged.main);
    damaged.put("/locked", 1, LARGE);
    let lock = NewLock::exclusive(
        main,
        path("/locked"),
        "alice",
        LockDepth::Zero,
        Duration::from_secs(60),
    );
    let locked = damaged.store.write(move |tx| tx.lock_entry(&lock, &[]));
    let token = locked.expect("free").lock.token;
    let set = |store: &ScratchStore, entries, is_frozen| {
        let settings = BucketSettings {
            quota_entries: Some(entries),
            is_frozen: Some(is_frozen),
            ..BucketSettings::default()
        };
        let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
        set.expect("there");
    };
    set(&damaged.store, Some(1), true);
    damaged.copy();
    set(&damaged.store, None, false);
    let unlocked = damaged
        .store
        .write(move |tx| tx.unlock_entry(main, &path("/locked"), "alice", token));
    unlocked.expect("its own");
    damaged.put("/locked", 2, LARGE);
    damaged.put("/new", 3, LARGE);
    damaged.change(TreeChange::mkdir(path("/d")));
    damaged.set_aside();
    let repair = damaged.repair().expect("a copy");
    let lost: Vec<_> = repair
        .lost_events
        .iter()
        .map(|it| it.topic.as_str())
        .collect();
    // The quota itself is in no event.
    assert_eq!((repair.recovered, lost), (3, vec!["bucket.quota"]));
    damaged.store.reopen();
    let hash = |number: u8| Some(ContentHash::new([number; 32]));
    let expected = [
        ("/d".to_owned(), None, 0),
        ("/locked".to_owned(), hash(2), LARGE),
        ("/new".to_owned(), hash(3), LARGE),
    ];
    assert_eq!(damaged.files(), expected);
    // From here on the limits count again.
    let more = ChangeRequest::new(main, "bob", TreeChange::mkdir(path("/more")));
    let more = damaged.store.write(move |tx| tx.apply(&more));
    assert_eq!(more, Err(StoreError::ReadOnly("the bucket is frozen")));
}

/// No event has the mode or the extended attributes of an entry.
#[test]
fn attributes_count_as_lost() {
    let mut damaged = DamagedStore::new();
    damaged.put("/a", 1, LARGE);
    damaged.copy();
    let attributes = EntryAttributes {
        mode: Some(0o600),
        xattr: Some(vec![1, 2, 3]),
        ..EntryAttributes::default()
    };
    damaged.change(TreeChange::SetAttributes {
        path: path("/a"),
        attributes: attributes.clone(),
        precondition: EntryPrecondition::Any,
    });
    damaged.change(TreeChange::Put {
        path: path("/b"),
        content: FileContent::new(ContentHash::new([2; 32]), LARGE),
        attributes: attributes.clone(),
        precondition: EntryPrecondition::Any,
    });
    damaged.change(TreeChange::Mkdir {
        path: path("/d"),
        attributes,
        may_exist: false,
    });
    damaged.put("/plain", 3, LARGE);
    damaged.set_aside();
    let repair = damaged.repair().expect("a copy");
    assert_eq!((repair.recovered, repair.lost), (4, 3));
    let lost: Vec<_> = repair
        .lost_events
        .iter()
        .map(|it| it.address.as_str())
        .collect();
    assert_eq!(lost, ["docs main /a", "docs main /b", "docs main /d"]);
    damaged.store.reopen();
    assert_eq!(damaged.files().len(), 4);
}

#[test]
fn without_a_readable_tail_the_copy_is_what_is_left() {
    let mut damaged = DamagedStore::new();
    damaged.put("/kept", 1, LARGE);
    damaged.copy();
    let last = damaged.put("/lost", 2, LARGE);
    let aside = damaged.set_aside();
    damage(&aside, 0..100);
    let repair = damaged.repair().expect("a copy");
    assert_eq!((repair.recovered, repair.lost), (0, 0));
    assert!(!repair.is_tail_whole);
    damaged.store.reopen();
    let hash = Some(ContentHash::new([1; 32]));
    assert_eq!(damaged.files(), [("/kept".to_owned(), hash, LARGE)]);
    assert!(
        damaged.put("/next", 3, LARGE) > last,
        "numbers are left out"
    );
}

#[test]
fn a_damaged_copy_is_passed_over() {
    let mut damaged = DamagedStore::new();
    damaged.put("/a", 1, LARGE);
    damaged.copy();
    damaged.store.time.advance(Duration::from_secs(86_400));
    damaged.put("/b", 2, LARGE);
    damaged.copy();
    damaged.set_aside();
    let copies = store_copies(&damaged.store.path).expect("a folder");
    damage(&copies[0].path, 0..8192);
    let repair = damaged.repair().expect("the older copy");
    assert_eq!(repair.copy, copies[1]);
    assert_eq!(repair.rejected, [copies[0].path.clone()]);
    assert_eq!((repair.recovered, repair.lost), (1, 0));
    damaged.store.reopen();
    assert_eq!(damaged.files().len(), 2);
}

#[test]
fn what_is_not_damaged_is_left_alone() {
    let mut damaged = DamagedStore::new();
    damaged.copy();
    let opened = damaged.repair();
    assert!(matches!(
        opened,
        Err(StoreRepairError::Open(StoreOpenError::Unusable { .. }))
    ));
    damaged.store.close();
    assert_eq!(damaged.repair(), Err(StoreRepairError::NotDamaged));
    let connection = Connection::open(&damaged.store.path).expect("a database");
    connection
        .pragma_update(None, "user_version", 99)
        .expect("room");
    drop(connection);
    let newer = damaged.repair();
    assert!(matches!(
        newer,
        Err(StoreRepairError::Open(StoreOpenError::Newer {
            version: 99,
            ..
        }))
    ));
    assert!(damaged.store.path.exists());
}

#[test]
fn without_a_copy_or_room_the_damaged_file_stays() {
    let mut damaged = DamagedStore::new();
    damaged.store.close();
    damage(&damaged.store.path, 0..100);
    let rejected = Vec::new();
    assert_eq!(damaged.repair(), Err(StoreRepairError::NoCopy { rejected }));
    let aside = quarantine::found(&damaged.store.path);
    assert_eq!(aside.len(), 1);

    let mut damaged = DamagedStore::new();
    damaged.copy();
    let aside = damaged.set_aside();
    damaged.store.space.set_free(0);
    assert_eq!(
        damaged.repair(),
        Err(StoreRepairError::Store(StoreError::NoSpace))
    );
    assert!(aside.exists());
    damaged.store.space.set_free(1 << 30);
    damaged.repair().expect("room");
}

#[test]
fn what_a_power_cut_left_of_a_repair_does_not_stand_in_the_way() {
    let mut damaged = DamagedStore::new();
    damaged.put("/a", 1, LARGE);
    damaged.copy();
    damaged.set_aside();
    let new = quarantine::with(&damaged.store.path, REPAIR);
    for suffix in BESIDE_REPAIR {
        fs::write(quarantine::with(&new, suffix), b"half of a file").expect("room");
    }
    damaged.repair().expect("a copy");
    for suffix in BESIDE_REPAIR {
        assert!(!quarantine::with(&new, suffix).exists(), "{suffix}");
    }
    damaged.store.reopen();
    assert_eq!(damaged.files().len(), 1);
}

#[test]
fn a_report_says_that_events_after_the_copy_are_missing() {
    let take_away = ["= 3", "= 4"];
    for which in take_away {
        let mut damaged = DamagedStore::new();
        damaged.put("/a", 1, LARGE);
        damaged.copy();
        damaged.put("/b", 2, LARGE);
        damaged.put("/c", 3, LARGE);
        let aside = damaged.set_aside();
        let connection = Connection::open(&aside).expect("a database");
        let delete = format!("DELETE FROM outbox WHERE id {which}");
        assert_eq!(connection.execute(&delete, []), Ok(1));
        drop(connection);
        let repair = damaged.repair().expect("a copy");
        assert_eq!((repair.recovered, repair.lost), (1, 0));
        assert!(!repair.is_tail_whole, "without the event {which}");
    }
}

/// Copies every file of a folder.
fn duplicate(from: &Path) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("room");
    }
    dir
}

/// Whichever page is damaged, the repaired file is whole and has at least what the copy has.
#[test]
fn a_file_that_is_damaged_anywhere_is_repaired() {
    let mut damaged = DamagedStore::new();
    for number in 0..20 {
        damaged.put(&format!("/kept/{number}"), number, LARGE);
    }
    damaged.copy();
    for number in 20..40 {
        damaged.put(&format!("/new/{number}"), number, LARGE);
    }
    damaged.store.close();
    let bytes = fs::metadata(&damaged.store.path).expect("a file").len();
    let pages = usize::try_from(bytes).expect("small") / 8192;
    assert!(pages > 10);
    for page in 0..pages {
        let dir = duplicate(damaged.store.dir.path());
        let file = dir.path().join("fs.db");
        damage(&file, page * 8192..(page + 1) * 8192);
        let repair = repair_store(&file, &damaged.store.options());
        // A page that holds nothing may be damaged unseen.
        let is_seen = repair != Err(StoreRepairError::NotDamaged);
        assert!(repair.is_ok() || !is_seen, "page {page}: {repair:?}");
        assert_eq!(open::check_whole(&file), Ok(()), "page {page}");
        let db = StoreDb::open(&file, damaged.store.options()).expect("a store");
        let main = damaged.main;
        let read = db.read(move |tx| {
            let view = tx.view(main, None)?;
            let kept = tx.subtree(&view, &path("/kept"))?.len();
            Ok((kept, tx.is_sweep_held()?))
        });
        assert_eq!(read.wait(), Ok((20, is_seen)), "page {page}");
    }
}
