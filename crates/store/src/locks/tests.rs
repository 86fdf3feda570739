use super::*;
use crate::error::StoreErrorCode;
use crate::names::{MergeRequest, NewBranch, NewBucket};
use crate::testing::ScratchStore;

const TIME: Duration = Duration::from_secs(600);

/// A store with one bucket, whose actor is `alice` unless a test says otherwise.
struct LockStore {
    store: ScratchStore,
    main: BranchId,
}

impl LockStore {
    fn new() -> Self {
        let store = ScratchStore::new();
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let (_, main) = store.write(move |tx| tx.create_bucket(&new)).expect("room");
        let main = main.id;
        Self { store, main }
    }

    fn lock(
        &self,
        at: &str,
        owner: &str,
        depth: LockDepth,
        tokens: &[LockToken],
    ) -> Result<LockedEntry, StoreError> {
        let new = NewLock::exclusive(self.main, path(at), owner, depth, TIME);
        let tokens = tokens.to_vec();
        self.store.write(move |tx| tx.lock_entry(&new, &tokens))
    }

    fn token(&self, at: &str, depth: LockDepth) -> LockToken {
        let locked = self.lock(at, "alice", depth, &[]);
        locked.expect("free").lock.token
    }

    /// Makes a change in the name of an owner.
    fn change(
        &self,
        actor: &str,
        change: TreeChange,
        tokens: &[LockToken],
    ) -> Result<CommitReceipt, StoreError> {
        let request = ChangeRequest::new(self.main, actor, change);
        let tokens = tokens.to_vec();
        self.store
            .write(move |tx| tx.apply_locked(&request, &tokens))
    }

    fn put(&self, at: &str, tokens: &[LockToken]) -> Result<CommitReceipt, StoreError> {
        self.change("alice", put(at), tokens)
    }

    fn own_lock_at(&self, at: &str) -> Option<EntryLock> {
        let (main, at, now_ms) = (self.main, path(at), self.store.read_ms());
        let read = self.store.read(move |tx| tx.entry_lock(main, &at, now_ms));
        read.expect("readable")
    }

    fn unlock(&self, at: &str, owner: &str, token: LockToken) -> Result<(), StoreError> {
        let (main, at, owner) = (self.main, path(at), owner.to_owned());
        self.store
            .write(move |tx| tx.unlock_entry(main, &at, &owner, token))
    }

    fn exists(&self, at: &str) -> bool {
        let (main, at) = (self.main, path(at));
        let read = self
            .store
            .read(move |tx| tx.find(&tx.view(main, None)?, &at));
        read.expect("readable").is_some()
    }
}

fn path(text: &str) -> EntryPath {
    text.parse().expect("a path")
}

fn put(at: &str) -> TreeChange {
    TreeChange::put(path(at), FileContent::new(ContentHash::new([1; 32]), 100))
}

/// The path of the lock that refused.
fn locked_by<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result.expect_err("refused") {
        StoreError::Locked { path } => path,
        other => panic!("{other}"),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorCode {
    result.expect_err("refused").code()
}

#[test]
fn a_locked_file_takes_changes_with_its_token_only() {
    let store = LockStore::new();
    store.put("/a/f", &[]).expect("free");
    let token = store.token("/a/f", LockDepth::Zero);
    assert_eq!(locked_by(store.put("/a/f", &[])), "/a/f");
    store.put("/a/f", &[token]).expect("its token");
    // Another identity has read the token from a property.
    let stolen = store.change("mallory", put("/a/f"), &[token]);
    assert_eq!(locked_by(stolen), "/a/f");
    for change in [
        TreeChange::delete(path("/a/f")),
        TreeChange::delete(path("/a")),
        TreeChange::rename(path("/a"), path("/b")),
        TreeChange::rename(path("/a/f"), path("/a/g")),
        TreeChange::SetAttributes {
            path: path("/a/f"),
            attributes: EntryAttributes::default(),
            precondition: EntryPrecondition::Any,
        },
        TreeChange::Restore {
            path: path("/a"),
            seq: 1,
        },
    ] {
        assert_eq!(locked_by(store.change("alice", change, &[])), "/a/f");
    }
    // Beside it everything is free.
    store.put("/a/g", &[]).expect("free");
    store.unlock("/a/f", "alice", token).expect("its own");
    store.put("/a/f", &[]).expect("unlocked");
}

#[test]
fn a_locked_directory_keeps_its_names_and_with_infinity_all_below() {
    let store = LockStore::new();
    for at in ["/a/f", "/a/d/f", "/b/f", "/b/d/f"] {
        store.put(at, &[]).expect("free");
    }
    let zero = store.token("/a", LockDepth::Zero);
    let infinity = store.token("/b", LockDepth::Infinity);
    // Depth 0: the content below is free, and the names in it are not.
    store.put("/a/f", &[]).expect("content");
    store.put("/a/d/new", &[]).expect("two levels below");
    assert_eq!(locked_by(store.put("/a/new", &[])), "/a");
    assert_eq!(locked_by(store.put("/a/new/deep/f", &[])), "/a");
    store.put("/a/new/deep/f", &[zero]).expect("its token");
    let delete = store.change("alice", TreeChange::delete(path("/a/f")), &[]);
    assert_eq!(locked_by(delete), "/a");
    let made = store.change("alice", TreeChange::mkdir(path("/a/d")), &[]);
    assert_eq!(code(made), StoreErrorCode::Exists);
    for at in ["/b/f", "/b/d/f", "/b/d/new", "/b/x/y"] {
        assert_eq!(locked_by(store.put(at, &[zero])), "/b");
        store.put(at, &[infinity]).expect("its token");
    }
    let copy = TreeChange::Copy {
        view: None,
        from: path("/b/f"),
        to: path("/free"),
        is_recursive: true,
        may_replace: false,
    };
    store.change("alice", copy, &[]).expect("a source is read");
}

#[test]
fn no_entry_is_covered_twice() {
    let store = LockStore::new();
    store.put("/a/d/f", &[]).expect("free");
    let token = store.token("/a/d", LockDepth::Infinity);
    for (at, depth) in [
        ("/a/d", LockDepth::Zero),
        ("/a/d/f", LockDepth::Zero),
        ("/a", LockDepth::Infinity),
        ("/", LockDepth::Infinity),
    ] {
        // Also with the token: a second lock of the same owner is refused.
        assert_eq!(locked_by(store.lock(at, "alice", depth, &[token])), "/a/d");
    }
    store.token("/a", LockDepth::Zero);
    store.token("/ab", LockDepth::Infinity);
    let other = store.lock("/a/d/f", "bob", LockDepth::Zero, &[]);
    assert_eq!(locked_by(other), "/a/d");
}

#[test]
fn a_lock_of_a_free_name_makes_an_empty_file() {
    let store = LockStore::new();
    let locked = store.lock("/new", "alice", LockDepth::Zero, &[]);
    let locked = locked.expect("free");
    assert!(locked.made.is_some());
    let main = store.main;
    let read = store.store.read(move |tx| {
        let entry = tx.stat(&tx.view(main, None)?, &path("/new"))?;
        let inline = "SELECT length(data) FROM inline_ WHERE hash = ?1";
        let bytes = tx.query_row(inline, [ContentHash::EMPTY], |row| row.get::<_, i64>(0))?;
        Ok((entry.state.hash, entry.state.size, bytes))
    });
    assert_eq!(read, Ok((Some(ContentHash::EMPTY), 0, Some(0))));
    let again = store.lock("/new2", "alice", LockDepth::Zero, &[]);
    assert!(again.expect("free").made.is_some(), "the content is known");
    // An advisory lock of a free name makes nothing.
    let advisory = NewLock::advisory(store.main, path("/later"), "alice", TIME);
    let taken = store.store.write(move |tx| tx.lock_entry(&advisory, &[]));
    assert_eq!(taken.expect("free").made, None);
    assert!(!store.exists("/later"));
    // A name in a locked directory is not free.
    let root = store.token("/", LockDepth::Zero);
    let inside = store.lock("/x", "alice", LockDepth::Zero, &[]);
    assert_eq!(locked_by(inside), "/");
    assert!(!store.exists("/x"));
    let inside = store.lock("/x", "alice", LockDepth::Zero, &[root]);
    assert!(inside.expect("its token").made.is_some());
}

#[test]
fn an_advisory_lock_excludes_locks_and_no_writer() {
    let mut store = LockStore::new();
    let take = |store: &LockStore, owner: &str| {
        let new = NewLock::advisory(store.main, path("/a"), owner, TIME);
        store.store.write(move |tx| tx.lock_entry(&new, &[]))
    };
    let token = take(&store, "alice").expect("free").lock.token;
    store.store.reopen();
    assert_eq!(locked_by(take(&store, "bob")), "/a");
    store.put("/a", &[]).expect("advisory");
    let delete = store.change("bob", TreeChange::delete(path("/a")), &[]);
    delete.expect("advisory");
    assert!(store.own_lock_at("/a").is_some(), "a lock of the name");
    assert_eq!(
        code(store.unlock("/a", "bob", token)),
        StoreErrorCode::NotFound
    );
    store.unlock("/a", "alice", token).expect("its own");
    take(&store, "bob").expect("free again");
}

#[test]
fn a_lock_ends_by_itself_unless_it_is_renewed() {
    let store = LockStore::new();
    let token = store.token("/a", LockDepth::Infinity);
    store.store.time.advance(TIME / 2);
    let (main, below) = (store.main, path("/a/b"));
    let renew = move |owner: &'static str| {
        let below = below.clone();
        move |tx: &mut WriteTransaction<'_>| {
            tx.renew_lock(main, &below, owner, token, Duration::MAX)
        }
    };
    let foreign = store.store.write(renew("bob"));
    assert_eq!(code(foreign), StoreErrorCode::NotFound);
    let renewed = store.store.write(renew("alice")).expect("its own");
    let longest = store.store.read_ms() + 3_600_000;
    assert_eq!(renewed.until_ms, longest, "clamped");
    store
        .store
        .time
        .advance(LOCK_TIME_MAX - Duration::from_secs(1));
    assert_eq!(locked_by(store.put("/a", &[])), "/a");
    store.store.time.advance(Duration::from_secs(1));
    store.put("/a", &[]).expect("ended");
    assert_eq!(store.own_lock_at("/a"), None);
    let late = store.store.write(renew("alice"));
    assert_eq!(code(late), StoreErrorCode::NotFound);
    let swept = store.store.write(|tx| tx.sweep_locks(10));
    assert_eq!(swept.expect("possible").rows, 1);
    store.token("/a", LockDepth::Zero);
}

#[test]
fn locks_end_with_their_entry_and_do_not_move() {
    let store = LockStore::new();
    store.put("/a/f", &[]).expect("free");
    let token = store.token("/a/f", LockDepth::Zero);
    let rename = TreeChange::rename(path("/a"), path("/b"));
    store.change("alice", rename, &[token]).expect("its token");
    assert_eq!(store.own_lock_at("/a/f"), None);
    store.put("/b/f", &[]).expect("a move takes no lock along");
    let token = store.token("/b", LockDepth::Infinity);
    let delete = TreeChange::delete(path("/b"));
    store.change("alice", delete, &[token]).expect("its token");
    store.put("/b", &[]).expect("the lock is gone");
}

#[test]
fn a_merge_leaves_locked_files_alone() {
    let store = LockStore::new();
    store.put("/a", &[]).expect("free");
    let new = NewBranch::new("draft".parse().expect("a name"), store.main, "alice");
    let draft = store.store.write(move |tx| tx.create_branch(&new));
    let draft = draft.expect("free").id;
    let content = FileContent::new(ContentHash::new([2; 32]), 5);
    let change = ChangeRequest::new(draft, "alice", TreeChange::put(path("/a"), content));
    store
        .store
        .write(move |tx| tx.apply(&change))
        .expect("free");
    let token = store.token("/a", LockDepth::Zero);
    let merge = MergeRequest::new(draft, store.main, "alice");
    let merged = {
        let merge = merge.clone();
        store.store.write(move |tx| tx.merge(&merge))
    };
    assert_eq!(locked_by(merged), "/a");
    store.unlock("/a", "alice", token).expect("its own");
    store.store.write(move |tx| tx.merge(&merge)).expect("free");
}

#[test]
fn locks_are_bounded() {
    let store = LockStore::new();
    let fill = |count: u64, owner: &'static str| {
        let main = store.main;
        store.store.write(move |tx| {
            (0..count).try_for_each(|number| {
                let at = path(&format!("/{owner}{number}"));
                let new = NewLock::advisory(main, at, owner, TIME);
                tx.lock_entry(&new, &[]).map(drop)
            })
        })
    };
    fill(LOCKS_OF_OWNER_MAX, "al\"ice").expect("room");
    let more = |owner: &str| {
        let new = NewLock::advisory(store.main, path("/more"), owner, TIME);
        store.store.write(move |tx| tx.lock_entry(&new, &[]))
    };
    assert_eq!(code(more("al\"ice")), StoreErrorCode::TooLarge);
    more("bob").expect("another owner");
    let long = NewLock {
        note: "x".repeat(LOCK_NOTE_BYTES_MAX + 1),
        ..NewLock::advisory(store.main, path("/note"), "bob", TIME)
    };
    let long = store.store.write(move |tx| tx.lock_entry(&long, &[]));
    assert_eq!(code(long), StoreErrorCode::TooLarge);
    // Lapsed ones do not count.
    store.store.time.advance(TIME);
    let swept = store.store.write(|tx| tx.sweep_locks(10_000));
    assert_eq!(swept.expect("possible").rows, 1001);
    more("al\"ice").expect("room");
}

/// The attack: a few identities take as many locks as each may have, and none is left.
#[test]
fn many_owners_leave_locks_to_others() {
    let store = LockStore::new();
    // Rows of locks that no call took, because the calls would take a minute.
    let main = store.main;
    let filled = store.store.write(move |tx| {
        for owner in 0..LOCKS_MAX / LOCKS_OF_OWNER_MAX - 1 {
            for number in 0..LOCKS_OF_OWNER_MAX {
                let lock = EntryLock {
                    token: LockToken::random()?,
                    path: path(&format!("/{owner}/{number}")),
                    owner: format!("crowd-{owner}"),
                    note: String::new(),
                    depth: LockDepth::Zero,
                    kind: LockKind::Advisory,
                    until_ms: tx.unix_ms() + 1000,
                };
                tx.insert_lock(main, &lock)?;
            }
        }
        Ok(())
    });
    filled.expect("room");
    let mut taken = 0;
    let refused = loop {
        let new = NewLock::advisory(main, path(&format!("/last/{taken}")), "last", TIME);
        match store.store.write(move |tx| tx.lock_entry(&new, &[])) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code(), StoreErrorCode::TooLarge);
    assert!((1..LOCKS_OF_OWNER_MAX / 5).contains(&taken), "{taken}");
    let new = NewLock::advisory(main, path("/alice"), "alice", TIME);
    let other = store.store.write(move |tx| tx.lock_entry(&new, &[]));
    other.expect("some are left");
}
