//! Consumers, pages, gaps and watches.

use std::time::Duration;

use super::*;
use crate::db::{StoreDb, StoreReply};
use crate::error::{StoreErrorCode, StoreObject};
use crate::limits::{
    CONSUMERS_MAX, CONSUMERS_PER_BUCKET_MAX, EVENTS_CHUNK, EVENTS_KEPT_BYTES_MAX, EVENTS_KEPT_TIME,
    EVENTS_PAGE_MAX,
};
use crate::names::NewBucket;
use crate::path::EntryPath;
use crate::testing::{START_MS, ScratchStore};

const LEASE: Duration = Duration::from_secs(30);

/// A store with bucket 1. Its row alone, because its event would be the first one.
fn store_with_bucket() -> ScratchStore {
    let store = ScratchStore::new();
    add_bucket(&store, 1);
    store
}

fn add_bucket(store: &ScratchStore, number: i64) {
    let made = store.write(move |tx| {
        let insert =
            "INSERT INTO bucket(id, name, owner, created_ms) VALUES (?1, 'bucket-' || ?1, 'a', 0)";
        tx.execute(insert, [number]).map(drop)
    });
    made.expect("room");
}

/// A consumer of bucket 1.
fn consumer(name: &str) -> ConsumerName {
    ConsumerName::parse(BucketId::new(1), name).expect("a name")
}

/// Writes events with these paths, each a put in bucket 1.
fn emit_paths(store: &ScratchStore, paths: &[&str]) {
    let paths: Vec<_> = paths.iter().map(|it| (*it).to_owned()).collect();
    let written = store.write(move |tx| {
        for path in &paths {
            emit_one(tx, EventTopic::Put, Some(path), None)?;
        }
        Ok(())
    });
    written.expect("room");
}

fn emit_one(
    tx: &mut WriteTransaction<'_>,
    topic: EventTopic,
    path: Option<&str>,
    to: Option<&str>,
) -> Result<i64, StoreError> {
    let payload = EventPayload {
        path: path.map(str::to_owned),
        to: to.map(str::to_owned),
        ..EventPayload::default()
    };
    let (bucket, branch) = (Some(BucketId::new(1)), Some(BranchId::new(1)));
    tx.emit(topic, bucket, branch, &payload)
}

fn emit_many(store: &ScratchStore, count: usize) {
    let written = store.write(move |tx| {
        (0..count).try_for_each(|_| emit_one(tx, EventTopic::Put, Some("/a"), None).map(drop))
    });
    written.expect("room");
}

fn page(store: &ScratchStore, after: i64, filter: &EventFilter) -> EventPage {
    let filter = filter.clone();
    let read = store.read(move |tx| tx.read_events(after, &filter, EVENTS_PAGE_MAX));
    read.expect("readable")
}

fn ids(page: &EventPage) -> Vec<i64> {
    page.events.iter().map(|event| event.id).collect()
}

fn code<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorCode {
    result.expect_err("refused").code()
}

#[test]
fn pages_follow_each_other_without_a_gap() {
    let store = ScratchStore::new();
    let total = 2 * EVENTS_CHUNK + 7;
    emit_many(&store, total);
    let (mut cursor, mut seen, mut is_end) = (0, Vec::new(), false);
    while !is_end {
        let read = store.read(move |tx| tx.read_events(cursor, &EventFilter::default(), 60));
        let page = read.expect("readable");
        assert!(page.events.len() <= 60);
        seen.extend(ids(&page));
        (cursor, is_end) = (page.cursor, page.is_end);
    }
    let all: Vec<_> = (1..=i64::try_from(total).expect("small")).collect();
    assert_eq!(seen, all);
    let whole = page(&store, 0, &EventFilter::default());
    assert_eq!((ids(&whole), whole.is_end), (all, true));
    assert_eq!(whole.events[0].ts_ms, START_MS);
    assert_eq!(whole.events[0].payload.path.as_deref(), Some("/a"));
}

#[test]
fn a_filter_takes_what_may_change_its_prefix() {
    let store = ScratchStore::new();
    emit_paths(&store, &["/a", "/a/b", "/a/b/c", "/ab", "/x"]);
    let written = store.write(|tx| {
        emit_one(tx, EventTopic::Mkdir, Some("/a"), None)?;
        emit_one(tx, EventTopic::Delete, Some("/a"), None)?;
        emit_one(tx, EventTopic::Rename, Some("/x"), Some("/a/b/d"))?;
        emit_one(tx, EventTopic::BranchMerge, None, None)?;
        tx.emit(
            EventTopic::BucketCreate,
            Some(BucketId::new(2)),
            None,
            &EventPayload::default(),
        )
    });
    written.expect("room");
    let prefix: EntryPath = "/a/b".parse().expect("a path");
    let filter = EventFilter {
        bucket: Some(BucketId::new(1)),
        prefix: Some(prefix),
        ..EventFilter::default()
    };
    let found = page(&store, 0, &filter);
    assert_eq!(ids(&found), [1, 2, 3, 7, 8, 9]);
    assert_eq!((found.cursor, found.is_end), (10, true));
    let filter = EventFilter {
        topics: vec![EventTopic::BranchMerge, EventTopic::BucketCreate],
        ..filter
    };
    assert_eq!(ids(&page(&store, 0, &filter)), [9]);
    let filter = EventFilter {
        branch: Some(BranchId::new(2)),
        ..EventFilter::default()
    };
    // An event of a whole bucket is one of each of its branches.
    assert_eq!(ids(&page(&store, 0, &filter)), [10]);
}

#[test]
fn an_event_of_a_later_program_is_passed_over() {
    let store = ScratchStore::new();
    emit_many(&store, 1);
    let later = store.write(|tx| {
        let insert = "INSERT INTO outbox(topic, payload, ts_ms) VALUES ('fs.later', '{}', 0)";
        tx.execute(insert, []).map(drop)
    });
    later.expect("room");
    emit_many(&store, 1);
    assert_eq!(ids(&page(&store, 0, &EventFilter::default())), [1, 3]);
}

#[test]
fn a_consumer_keeps_its_cursor_over_a_restart() {
    let mut store = store_with_bucket();
    emit_many(&store, 3);
    let made = store.write(|tx| tx.add_outbox_consumer(&consumer("mail/1"), OutboxStart::Oldest));
    assert_eq!(made.expect("free").cursor, 0);
    let claimed = store.write(|tx| tx.claim_outbox_consumer(&consumer("mail/1"), "a", LEASE));
    let until = START_MS + 30_000;
    assert_eq!(claimed.expect("free").lease_until_ms, Some(until));
    store
        .write(|tx| tx.acknowledge_events(&consumer("mail/1"), "a", 2))
        .expect("its own");
    store.reopen();
    let read = store.read(|tx| {
        tx.consumer_events(
            &consumer("mail/1"),
            &EventFilter::default(),
            EVENTS_PAGE_MAX,
        )
    });
    assert_eq!(ids(&read.expect("there")), [3]);
    // A late repetition does not move the cursor back, and the future cannot be acknowledged.
    store
        .write(|tx| tx.acknowledge_events(&consumer("mail/1"), "a", 1))
        .expect("its own");
    let future = store.write(|tx| tx.acknowledge_events(&consumer("mail/1"), "a", 4));
    assert_eq!(code(future), StoreErrorCode::Denied);
    let again = store.write(|tx| tx.add_outbox_consumer(&consumer("mail/1"), OutboxStart::Now));
    assert_eq!(again.expect("there").cursor, 2);
}

#[test]
fn a_lease_has_one_owner_until_it_lapses() {
    let store = store_with_bucket();
    emit_many(&store, 2);
    let add =
        |tx: &mut WriteTransaction<'_>| tx.add_outbox_consumer(&consumer("c"), OutboxStart::Now);
    assert_eq!(store.write(add).expect("free").cursor, 2);
    let claim = |owner: &'static str| {
        store.write(move |tx| tx.claim_outbox_consumer(&consumer("c"), owner, LEASE))
    };
    claim("a").expect("free");
    let until_ms = START_MS + 30_000;
    assert_eq!(claim("b"), Err(StoreError::Leased { until_ms }));
    store.time.advance(LEASE / 2);
    claim("a").expect("renewed");
    store.time.advance(LEASE / 2);
    assert_eq!(code(claim("b")), StoreErrorCode::Busy);
    store.time.advance(LEASE / 2);
    // Lapsed: the former owner must not move the cursor under the next one.
    let late = store.write(|tx| tx.acknowledge_events(&consumer("c"), "a", 2));
    assert_eq!(late, Err(StoreError::LeaseLost));
    claim("b").expect("lapsed");
    let release = |owner: &'static str| {
        store.write(move |tx| tx.release_outbox_consumer(&consumer("c"), owner))
    };
    assert_eq!(release("a"), Err(StoreError::LeaseLost));
    release("b").expect("its own");
    claim("a").expect("given back");
    store
        .write(|tx| tx.remove_outbox_consumer(&consumer("c")))
        .expect("there");
    assert_eq!(code(claim("a")), StoreErrorCode::NotFound);
}

#[test]
fn names_and_numbers_of_consumers_are_bounded() {
    let store = store_with_bucket();
    for name in ["", "a:b", "a b", "#1/a", &"x".repeat(129)] {
        let parsed = ConsumerName::parse(BucketId::new(1), name);
        assert_eq!(code(parsed), StoreErrorCode::InvalidPath);
    }
    let add = |bucket: i64, name: &str| {
        let name = ConsumerName::parse(BucketId::new(bucket), name).expect("a name");
        store.write(move |tx| tx.add_outbox_consumer(&name, OutboxStart::Now))
    };
    let fill = |bucket: i64| {
        store.write(move |tx| {
            (0..CONSUMERS_PER_BUCKET_MAX).try_for_each(|number| {
                let name = ConsumerName::parse(BucketId::new(bucket), &format!("c{number}"))?;
                tx.add_outbox_consumer(&name, OutboxStart::Now).map(drop)
            })
        })
    };
    assert_eq!(fill(1), Ok(()));
    assert_eq!(code(add(1, "more")), StoreErrorCode::TooLarge);
    // A bucket that has all of its own leaves those of others, until the store has as many as it may.
    let buckets = i64::try_from(CONSUMERS_MAX / CONSUMERS_PER_BUCKET_MAX).expect("small");
    for bucket in 2..=buckets {
        add_bucket(&store, bucket);
        assert_eq!(fill(bucket), Ok(()), "bucket {bucket}");
    }
    add_bucket(&store, buckets + 1);
    assert_eq!(code(add(buckets + 1, "c")), StoreErrorCode::TooLarge);
    assert_eq!(code(add(buckets + 2, "c")), StoreErrorCode::NotFound);
    // One that exists is added again at each start of its program.
    assert!(add(1, "c0").is_ok());
}

#[test]
fn a_consumer_behind_what_is_kept_gets_a_gap() {
    let mut store = store_with_bucket();
    emit_many(&store, 5);
    let make = store.write(|tx| {
        tx.add_outbox_consumer(&consumer("c"), OutboxStart::Oldest)?;
        tx.claim_outbox_consumer(&consumer("c"), "a", LEASE)
    });
    make.expect("free");
    store.time.advance(EVENTS_KEPT_TIME);
    emit_many(&store, 1);
    let nothing = store.write(|tx| tx.prune_outbox(10)).expect("possible");
    assert_eq!(
        (nothing.rows, nothing.is_done),
        (0, true),
        "as old as allowed"
    );
    store.time.advance(Duration::from_millis(1));
    let first = store.write(|tx| tx.prune_outbox(3)).expect("possible");
    assert_eq!((first.rows, first.is_done), (3, false));
    let rest = store.write(|tx| tx.prune_outbox(3)).expect("possible");
    assert_eq!((rest.rows, rest.is_done), (2, true));
    store.reopen();
    let gap = StoreError::EventGap { pruned: 5, last: 6 };
    let read = |store: &ScratchStore| {
        store.read(|tx| tx.consumer_events(&consumer("c"), &EventFilter::default(), 10))
    };
    assert_eq!(read(&store), Err(gap.clone()));
    assert_eq!(ids(&page(&store, 5, &EventFilter::default())), [6]);
    // A cursor that the file has not reached comes from a file that a copy replaced.
    let future = store.read(|tx| tx.read_events(7, &EventFilter::default(), 1));
    assert_eq!(future, Err(gap.clone()));
    let start = store.write(|tx| tx.add_outbox_consumer(&consumer("d"), OutboxStart::After(4)));
    assert_eq!(start, Err(gap));
    let reset = store.write(|tx| {
        tx.claim_outbox_consumer(&consumer("c"), "a", LEASE)?;
        tx.reset_outbox_consumer(&consumer("c"), "a", OutboxStart::Oldest)
    });
    assert_eq!(reset.expect("its own").cursor, 5);
    assert_eq!(ids(&read(&store).expect("no gap")), [6]);
}

#[test]
fn the_outbox_keeps_a_number_of_events_only() {
    let store = ScratchStore::new();
    emit_many(&store, 3);
    let jump = store.write(|tx| {
        let set = "UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'outbox'";
        let newest = to_sql(crate::limits::EVENTS_KEPT_MAX) + 1;
        tx.execute(set, [newest]).map(drop)
    });
    jump.expect("room");
    emit_many(&store, 1);
    let pruned = store.write(|tx| tx.prune_outbox(10)).expect("possible");
    assert_eq!((pruned.rows, pruned.is_done), (2, true));
    assert_eq!(store.read(|tx| tx.pruned_event_id()), Ok(2));
}

/// The attack: moves between names of control signs, whose events take six times as much.
#[test]
fn the_outbox_keeps_a_number_of_bytes_only() {
    let store = ScratchStore::new();
    emit_many(&store, 3);
    let sizes = store.read(|tx| {
        let query = "SELECT end_bytes, length(payload) FROM outbox ORDER BY id";
        tx.query_all(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
    });
    let sizes: Vec<(i64, i64)> = sizes.expect("readable");
    let ends = sizes.iter().scan(0, |end, (_, len)| {
        *end += len;
        Some(*end)
    });
    assert!(sizes.iter().map(|(end, _)| *end).eq(ends), "{sizes:?}");
    // As if the third event were as long as all that is kept.
    let grow = store.write(|tx| {
        let set = "UPDATE outbox SET end_bytes = end_bytes + ?1 WHERE id = 3";
        tx.execute(set, [to_sql(EVENTS_KEPT_BYTES_MAX)]).map(drop)
    });
    grow.expect("room");
    emit_many(&store, 1);
    assert_eq!(store.read(|tx| tx.pruned_event_id()), Ok(2));
    assert_eq!(ids(&page(&store, 2, &EventFilter::default())), [3, 4]);
    let pruned = store.write(|tx| tx.prune_outbox(10)).expect("possible");
    assert_eq!((pruned.rows, pruned.is_done), (0, true));
}

fn puts_one(db: &StoreDb) -> StoreReply<i64> {
    db.write(|tx| emit_one(tx, EventTopic::Put, Some("/a"), None))
}

/// The pace of a watch is tested apart, without a clock.
fn no_pause(_: Duration) -> std::future::Ready<()> {
    std::future::ready(())
}

#[tokio::test]
async fn a_watch_waits_and_resumes_by_its_cursor() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = crate::db::StoreDbOptions {
        space: crate::testing::ManualSpaceSource::ample(),
        ..crate::db::StoreDbOptions::default()
    };
    let db = StoreDb::open(&dir.path().join("fs.db"), options).expect("a store");
    puts_one(&db).await.expect("room");
    let mut watch = db.watch_events(EventFilter::default(), None);
    assert_eq!(watch.cursor(), 1);
    let mut resumed = db.watch_events(EventFilter::default(), Some(0));
    assert_eq!(
        ids(&resumed.next_page(10, no_pause).await.expect("there")),
        [1]
    );
    let topics = vec![EventTopic::Delete];
    let filter = EventFilter {
        topics,
        ..EventFilter::default()
    };
    let mut deletions = db.watch_events(filter, Some(0));
    // All of them wait while the events are written.
    let write = async {
        puts_one(&db).await.expect("room");
        let deletion = db.write(|tx| emit_one(tx, EventTopic::Delete, Some("/a"), None));
        deletion.await.expect("room");
    };
    let (page, deleted, ()) = tokio::join!(
        watch.next_page(10, no_pause),
        deletions.next_page(10, no_pause),
        write
    );
    assert_eq!(ids(&page.expect("an event"))[0], 2);
    assert_eq!(ids(&deleted.expect("an event")), [3]);
    assert_eq!(deletions.cursor(), 3);
}

/// A deleted bucket has no further event that would wake them.
#[tokio::test]
async fn watches_of_a_bucket_end_with_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = crate::db::StoreDbOptions {
        space: crate::testing::ManualSpaceSource::ample(),
        ..crate::db::StoreDbOptions::default()
    };
    let db = StoreDb::open(&dir.path().join("fs.db"), options).expect("a store");
    let new = NewBucket::new("docs".parse().expect("a name"), "alice");
    let made = db.write(move |tx| tx.create_bucket(&new)).await;
    let bucket = made.expect("room").0.id;
    let filter = EventFilter {
        bucket: Some(bucket),
        topics: vec![EventTopic::Delete],
        ..EventFilter::default()
    };
    let mut watch = db.watch_events(filter, None);
    let delete = db.write(move |tx| tx.delete_bucket(bucket));
    // The watch waits before the bucket is deleted, or finds none.
    let (page, deleted) = tokio::join!(watch.next_page(10, no_pause), delete);
    deleted.expect("it is there");
    let gone = StoreError::NotFound(StoreObject::Bucket);
    assert_eq!(page.expect_err("no event"), gone);
}

/// The consumer lists what it follows again, as after events that were removed. Nothing else notices.
#[test]
fn an_event_that_cannot_be_read_is_a_gap_for_those_before_it() {
    let store = store_with_bucket();
    emit_many(&store, 6);
    let spoilt = store.write(|tx| {
        let set = "UPDATE outbox SET payload = substr(payload, 2) WHERE id IN (3, 5)";
        tx.execute(set, []).map(drop)
    });
    spoilt.expect("room");
    let read = |after: i64| {
        store.read(move |tx| tx.read_events(after, &EventFilter::default(), EVENTS_PAGE_MAX))
    };
    let first = read(0).expect("two events are whole");
    assert_eq!(
        (ids(&first), first.cursor, first.is_end),
        (vec![1, 2], 2, false)
    );
    let gap = |pruned: i64| Err(StoreError::EventGap { pruned, last: 6 });
    assert_eq!(read(2), gap(3));
    let second = read(3).expect("one event is whole");
    assert_eq!((ids(&second), second.cursor), (vec![4], 4));
    assert_eq!(read(4), gap(5));
    let third = read(5).expect("one event is whole");
    assert_eq!((ids(&third), third.is_end), (vec![6], true));
    // A filter that leaves the events before it out comes to the same gap.
    let deletions = EventFilter {
        topics: vec![EventTopic::Delete],
        ..EventFilter::default()
    };
    let filtered = store.read(move |tx| tx.read_events(0, &deletions, 10));
    assert_eq!(filtered, gap(3));
    // Writers go on, and a consumer that begins now is not concerned.
    let made = store.write(|tx| {
        tx.add_outbox_consumer(&consumer("c"), OutboxStart::Now)?;
        emit_one(tx, EventTopic::Put, Some("/b"), None)
    });
    assert_eq!(made, Ok(7));
    let events = store.read(|tx| tx.consumer_events(&consumer("c"), &EventFilter::default(), 10));
    assert_eq!(ids(&events.expect("whole")), [7]);
    // It goes with the others of its time.
    store
        .time
        .advance(EVENTS_KEPT_TIME + Duration::from_millis(1));
    store.write(|tx| tx.prune_outbox(100)).expect("possible");
    assert_eq!(read(7).expect("none is left").events, []);
}

/// The process ends again and again between two pages, also before the consumer has noted the last one.
#[test]
fn ten_thousand_events_come_in_order_over_the_ends_of_a_consumer_and_its_store() {
    const PUTS: usize = 10_000;
    const BATCH: usize = 500;
    let mut store = store_with_bucket();
    let made = store.write(|tx| tx.add_outbox_consumer(&consumer("c"), OutboxStart::Now));
    made.expect("free");
    let mut seen = Vec::new();
    for batch in 0..PUTS / BATCH {
        emit_many(&store, BATCH);
        // A clone of it that is gone before it has acknowledged.
        let lost =
            store.read(|tx| tx.consumer_events(&consumer("c"), &EventFilter::default(), 100));
        assert_eq!(lost.expect("readable").events.len(), 100);
        if batch % 3 == 0 {
            store.reopen();
        }
        // It stays behind by a part of a batch, so that the next one begins in the middle.
        for _ in 0..4 {
            let page =
                store.read(|tx| tx.consumer_events(&consumer("c"), &EventFilter::default(), 120));
            let page = page.expect("readable");
            seen.extend(ids(&page));
            let owner = format!("owner-{batch}");
            let noted = store.write(move |tx| {
                tx.claim_outbox_consumer(&consumer("c"), &owner, LEASE)?;
                tx.acknowledge_events(&consumer("c"), &owner, page.cursor)?;
                tx.release_outbox_consumer(&consumer("c"), &owner)
            });
            noted.expect("its own");
        }
    }
    let last = i64::try_from(PUTS).expect("small");
    let rest = store
        .read(|tx| tx.consumer_events(&consumer("c"), &EventFilter::default(), EVENTS_PAGE_MAX));
    seen.extend(ids(&rest.expect("readable")));
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
}
