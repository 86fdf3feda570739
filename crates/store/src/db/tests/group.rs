//! Group commit: many jobs in one transaction, each with its own result.

use std::sync::mpsc::{Receiver, Sender};

use super::*;
use crate::limits::GROUP_JOBS_MAX;

/// Holds the writer in a job until the sender is used or dropped. The jobs after it are one group with it.
fn hold(db: &StoreDb, durability: Durability) -> (Sender<()>, StoreReply<()>) {
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let (begun, has_begun) = mpsc::channel();
    let held = db.write_with(durability, move |_| {
        begun.send(()).ok();
        may_go_on.recv().ok();
        Ok(())
    });
    wait_for(&has_begun);
    (go_on, held)
}

fn wait_for(begun: &Receiver<()>) {
    begun.recv().expect("the job begins");
}

/// The setting of a connection, as a job sees it.
fn synchronous(db: &StoreDb, durability: Durability) -> StoreReply<i64> {
    db.write_with(durability, |tx| {
        let value = tx
            .connection()
            .pragma_query_value(None, "synchronous", |row| row.get(0));
        Ok(value?)
    })
}

#[test]
fn a_job_that_fails_or_panics_takes_back_itself_alone() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let mut replies = Vec::new();
    for number in 0..6 {
        replies.push(db.write(move |tx| {
            insert(tx, number)?;
            match number {
                1 => Err(StoreError::Denied("a test")),
                2 => panic!("a fault"),
                // An error of SQLite itself: the number is taken.
                3 => insert(tx, 0),
                _ => Ok(()),
            }
        }));
    }
    let results: Vec<_> = replies.into_iter().map(StoreReply::wait).collect();
    assert_eq!(results[0], Ok(()));
    assert_eq!(results[1], Err(StoreError::Denied("a test")));
    assert_eq!(results[2], Err(StoreError::Panicked("a fault".to_owned())));
    assert!(matches!(results[3], Err(StoreError::Database(_))));
    assert_eq!((&results[4], &results[5]), (&Ok(()), &Ok(())));
    assert_eq!(notes(&db), [0, 4, 5]);
}

#[test]
fn a_job_sees_what_earlier_jobs_of_its_group_wrote() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (go_on, held) = hold(&db, Durability::Full);
    let replies: Vec<_> = (0..2 * GROUP_JOBS_MAX as i64)
        .map(|number| {
            db.write(move |tx| {
                insert(tx, number)?;
                tx.query_count("SELECT count(*) FROM pin", [])
            })
        })
        .collect();
    drop(go_on);
    held.wait().expect("room");
    for (at, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.wait(), Ok(at as u64 + 1));
    }
}

#[test]
fn events_are_announced_after_their_commit_and_those_of_failed_jobs_never() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let events = db.last_event();
    assert_eq!(*events.borrow(), 0);
    let first = db.write(event).wait().expect("room");
    assert_eq!(*events.borrow(), first);
    let failed = db.write(|tx| {
        event(tx)?;
        Err::<(), _>(StoreError::NoSpace)
    });
    assert_eq!(failed.wait(), Err(StoreError::NoSpace));
    assert_eq!(*events.borrow(), first);
    // A job without events between two with some.
    let (go_on, held) = hold(&db, Durability::Full);
    let replies = [db.write(event), db.write(event), db.write(|_| Ok(0))];
    assert_eq!(*events.borrow(), first);
    drop(go_on);
    held.wait().expect("room");
    let numbers = replies.map(|reply| reply.wait().expect("room"));
    assert_eq!(numbers, [first + 1, first + 2, 0]);
    assert_eq!(*events.borrow(), first + 2);
    let count = db.read(|tx| tx.query_count("SELECT count(*) FROM outbox", []));
    assert_eq!(count.wait(), Ok(3));
    // A receiver of now waits for further ones.
    assert!(!db.last_event().has_changed().expect("open"));
    assert!(events.has_changed().expect("open"));
    drop(db);
    assert_eq!(*open(&path).last_event().borrow(), first + 2);
}

#[test]
fn a_full_disk_refuses_only_the_job_that_needs_the_room() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let limit = db.write(|tx| {
        let pages: i64 = tx
            .connection()
            .pragma_query_value(None, "page_count", |row| row.get(0))?;
        let limit = format!("PRAGMA max_page_count = {}", pages + 4);
        tx.connection().query_row(&limit, [], |_| Ok(()))?;
        Ok(())
    });
    limit.wait().expect("set");
    let (go_on, held) = hold(&db, Durability::Full);
    let before = note(&db, 1);
    let large = db.write(|tx| {
        event(tx)?;
        let insert = "INSERT INTO inline_(hash, data) VALUES (zeroblob(32), zeroblob(1000000))";
        tx.execute(insert, []).map(drop)
    });
    let after = note(&db, 2);
    drop(go_on);
    assert_eq!(held.wait(), Ok(()));
    assert_eq!(large.wait(), Err(StoreError::NoSpace));
    assert_eq!((before.wait(), after.wait()), (Ok(()), Ok(())));
    assert_eq!(notes(&db), [1, 2]);
    assert_eq!(*db.last_event().borrow(), 0);
}

#[test]
fn a_job_that_asks_for_a_sync_is_in_no_transaction_without_one() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (normal, full) = (1, 2);
    let (go_on, held) = hold(&db, Durability::Normal);
    let replies = [
        (synchronous(&db, Durability::Normal), normal),
        (synchronous(&db, Durability::Full), full),
        // It may use the sync of the one before.
        (synchronous(&db, Durability::Normal), full),
    ];
    drop(go_on);
    held.wait().expect("room");
    for (reply, expected) in replies {
        assert_eq!(reply.wait(), Ok(expected));
    }
}

#[test]
fn a_full_queue_refuses_further_jobs() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (go_on, held) = hold(&db, Durability::Full);
    let waiting: Vec<_> = (0..WRITES_QUEUED_MAX as i64)
        .map(|it| note(&db, it))
        .collect();
    assert!(matches!(note(&db, -1).wait(), Err(StoreError::Busy(_))));
    drop(go_on);
    held.wait().expect("room");
    for reply in waiting {
        assert_eq!(reply.wait(), Ok(()));
    }
    assert_eq!(notes(&db).len(), WRITES_QUEUED_MAX);
}

#[test]
fn jobs_in_the_queue_run_before_the_store_closes() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (go_on, held) = hold(&db, Durability::Full);
    let reply = note(&db, 1);
    drop(go_on);
    drop(db);
    assert_eq!((held.wait(), reply.wait()), (Ok(()), Ok(())));
    assert_eq!(notes(&open(&path)), [1]);
}
