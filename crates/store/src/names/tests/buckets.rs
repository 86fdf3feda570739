//! Buckets, quotas and the removal of what was deleted.

use super::*;
use crate::error::QuotaResource;

fn set(store: &TestStore, settings: BucketSettings) -> Result<Bucket, StoreError> {
    let bucket = store.bucket;
    store.write(move |tx| tx.set_bucket(bucket, &settings, "root"))
}

fn quota(bytes: Option<u64>, entries: Option<u64>) -> BucketSettings {
    BucketSettings {
        quota_bytes: Some(bytes),
        quota_entries: Some(entries),
        ..BucketSettings::default()
    }
}

/// Removes all that was deleted, a few rows at a time.
fn purge(store: &TestStore) -> usize {
    let mut rows = 0;
    loop {
        let step = store.write(|tx| tx.purge(3)).expect("room");
        assert!(step.rows <= 3);
        rows += step.rows;
        if step.is_done {
            return rows;
        }
    }
}

#[test]
fn a_bucket_has_a_name_of_its_own_and_a_main_branch() {
    let store = TestStore::new();
    let again = NewBucket::new("docs".parse().expect("a name"), "bob");
    let refused = store.write(move |tx| tx.create_bucket(&again));
    assert_eq!(code(refused), StoreErrorCode::Exists);
    for name in ["beta", "alpha"] {
        let new = NewBucket::new(name.parse().expect("a name"), "bob");
        store.write(move |tx| tx.create_bucket(&new)).expect("free");
    }
    let names =
        |buckets: Vec<Bucket>| -> Vec<_> { buckets.iter().map(|it| it.name.to_string()).collect() };
    let all = store.read(|tx| tx.buckets(None, 10)).expect("readable");
    assert_eq!(names(all), ["alpha", "beta", "docs"]);
    let after = "alpha".parse().expect("a name");
    let page = store.read(move |tx| tx.buckets(Some(&after), 1));
    assert_eq!(names(page.expect("readable")), ["beta"]);
    let bucket = store.bucket;
    let main = store.read(move |tx| tx.branch_by_name(bucket, &name("main")));
    assert_eq!(main.expect("there").id, store.main);
}

#[test]
fn settings_that_a_request_leaves_out_stay() {
    let store = TestStore::new();
    let settings = BucketSettings {
        owner: Some("carol".to_owned()),
        retention_s: Some(0),
        is_synced: Some(true),
        is_split: Some(true),
        fetch: Some(ContentFetchMode::Eager),
        durability: Some(crate::db::Durability::Normal),
        ..quota(Some(5), None)
    };
    let first = set(&store, settings).expect("there");
    assert_eq!((first.owner.as_str(), first.retention_s), ("carol", 0));
    assert_eq!((first.quota_bytes, first.quota_entries), (Some(5), None));
    let sync = BucketSync {
        fetch: ContentFetchMode::Eager,
        is_on: true,
        is_split: true,
        keeps_both: false,
    };
    assert_eq!(first.sync, sync);
    let second = set(&store, BucketSettings::default()).expect("there");
    assert_eq!(first, second);
    let events = store.events();
    assert_eq!(events.last().map(String::as_str), Some("bucket.quota"));
    assert_eq!(events.len(), 2, "only a new quota is announced");
}

#[test]
fn the_eleventh_part_of_a_quota_of_ten_is_refused() {
    let store = TestStore::new();
    set(&store, quota(Some(1000), None)).expect("there");
    for number in 1..=4 {
        store.put(store.main, &format!("/{number}"), number);
    }
    let put = |at: &str, number| TreeChange::put(path(at), content(number));
    let refused = store.apply(store.main, put("/5", 5));
    let exceeded = StoreError::QuotaExceeded {
        resource: QuotaResource::Bytes,
        limit: 1000,
        used: 1000,
    };
    assert_eq!(refused, Err(exceeded));
    // The same content again costs nothing, and a deletion is always possible.
    store.put(store.main, "/again", 4);
    set(&store, quota(Some(10), None)).expect("there");
    store.delete(store.main, "/1");
    assert_eq!(
        code(store.apply(store.main, put("/5", 5))),
        StoreErrorCode::QuotaExceeded
    );
    store.check_usage();
}

#[test]
fn versions_count_as_entries_and_deletions_do_not() {
    let store = TestStore::new();
    set(&store, quota(None, Some(3))).expect("there");
    store.put(store.main, "/d/a", 1);
    store.put(store.main, "/d/a", 2);
    store.delete(store.main, "/d");
    let refused = store.apply(store.main, TreeChange::mkdir(path("/e")));
    let exceeded = StoreError::QuotaExceeded {
        resource: QuotaResource::Entries,
        limit: 3,
        used: 3,
    };
    assert_eq!(refused, Err(exceeded));
    store.check_usage();
}

#[test]
fn a_frozen_bucket_takes_no_changes() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let frozen = |is_frozen| BucketSettings {
        is_frozen: Some(is_frozen),
        ..BucketSettings::default()
    };
    set(&store, frozen(true)).expect("there");
    let put = || TreeChange::put(path("/b"), content(2));
    let refused = store.apply(store.main, put());
    assert_eq!(code(refused), StoreErrorCode::ReadOnly);
    let new = NewBranch::new(name("x"), store.main, "alice");
    let refused = store.write(move |tx| tx.create_branch(&new));
    assert_eq!(code(refused), StoreErrorCode::ReadOnly);
    assert_eq!(store.tree(store.main), tree_of([("/a", "file 1")]));
    set(&store, frozen(false)).expect("there");
    store.apply(store.main, put()).expect("live again");
}

#[test]
fn a_deleted_bucket_is_gone_at_once_and_its_rows_later() {
    let store = TestStore::new();
    store.put(store.main, "/a/b", 1);
    let draft = store.branch("draft", store.main);
    store.put(draft, "/c", 2);
    let main = store.main;
    store
        .write(move |tx| tx.create_snapshot(&name("monday"), main, None, "alice"))
        .expect("free");
    let bucket = store.bucket;
    store
        .write(move |tx| tx.delete_bucket(bucket))
        .expect("there");
    let gone = store.read(move |tx| tx.bucket(bucket));
    assert_eq!(code(gone), StoreErrorCode::NotFound);
    let gone = store.read(move |tx| tx.view(main, None));
    assert_eq!(code(gone), StoreErrorCode::NotFound);
    let put = TreeChange::put(path("/x"), content(1));
    assert_eq!(code(store.apply(main, put)), StoreErrorCode::NotFound);
    let new = NewBucket::new("docs".parse().expect("a name"), "bob");
    let (again, _) = store.write(move |tx| tx.create_bucket(&new)).expect("free");
    assert_ne!(again.id, bucket);
    assert!(purge(&store) > 3);
    let left = store.read(|tx| {
        let mut left = Vec::new();
        for query in [
            "SELECT count(*) FROM entry",
            "SELECT count(*) FROM blob_bucket",
            "SELECT count(*) FROM commit_",
            "SELECT count(*) FROM snapshot",
            "SELECT count(*) FROM branch",
            "SELECT count(*) FROM chain",
            "SELECT count(*) FROM usage",
            "SELECT count(*) FROM bucket",
        ] {
            left.push(tx.query_count(query, [])?);
        }
        Ok(left)
    });
    assert_eq!(left, Ok(vec![0, 0, 0, 0, 1, 1, 1, 1]));
}

#[test]
fn the_nodes_own_bucket_cannot_be_deleted() {
    let store = TestStore::new();
    let new = NewBucket {
        kind: BucketKind::System,
        ..NewBucket::new("system".parse().expect("a name"), "node")
    };
    let (system, _) = store.write(move |tx| tx.create_bucket(&new)).expect("free");
    let refused = store.write(move |tx| tx.delete_bucket(system.id));
    assert_eq!(code(refused), StoreErrorCode::Denied);
}

#[test]
fn a_deleted_branch_gives_back_what_it_used() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let bucket = store.bucket;
    let usage = move |store: &TestStore| store.read(move |tx| tx.usage(bucket)).expect("there");
    let before = usage(&store);
    let draft = store.branch("draft", store.main);
    store.put(draft, "/a", 2);
    store.put(draft, "/b", 1);
    assert_eq!(usage(&store).bytes, before.bytes + 200);
    store
        .write(move |tx| tx.delete_branch(draft, false, "alice"))
        .expect("free");
    assert_eq!(usage(&store).bytes, before.bytes + 200, "not yet");
    assert_eq!(purge(&store), 2);
    assert_eq!(usage(&store), before);
    store.check_usage();
    assert_ne!(
        store.branch("draft", store.main),
        draft,
        "no number is used twice"
    );
}

#[test]
fn all_buckets_together_use_what_each_of_them_uses() {
    let store = TestStore::new();
    let new = NewBucket::new("other".parse().expect("a name"), "bob");
    let created = store.write(move |tx| tx.create_bucket(&new));
    let (other, main) = created.expect("free");
    let (docs, other) = (store.bucket, other.id);
    // The same content in both, which each of them counts.
    store.put(store.main, "/a", 1);
    store.put(main.id, "/a", 1);
    store.put(main.id, "/b", 2);
    let each = store.read(move |tx| Ok((tx.usage(docs)?, tx.usage(other)?)));
    let (first, second) = each.expect("readable");
    assert!(first.bytes > 0 && second.bytes > first.bytes);
    let both = BucketUsage {
        bytes: first.bytes + second.bytes,
        entries: first.entries + second.entries,
        staged: 0,
    };
    let total = || store.read(|tx| tx.total_usage());
    assert_eq!(total(), Ok((2, both)));
    store
        .write(move |tx| tx.delete_bucket(other))
        .expect("there");
    assert_eq!(total(), Ok((1, first)));
}
