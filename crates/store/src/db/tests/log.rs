//! How long the log gets.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::Sender;

use super::*;
use crate::limits::LOG_BYTES_MAX;

/// Bytes that one job of these tests writes.
const JOB_BYTES: u64 = 1 << 20;

/// Holds a read in a job, which no limit ends, until the sender is used or dropped.
fn hold_read(db: &StoreDb) -> (Sender<()>, StoreReply<()>) {
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let reader = db.read(move |tx| {
        tx.query_count("SELECT count(*) FROM pin", [])?;
        begun.send(()).ok();
        may_go_on.recv().ok();
        Ok(())
    });
    has_begun.recv().expect("the job begins");
    (go_on, reader)
}

fn log_bytes(path: &Path) -> u64 {
    fs::metadata(quarantine::with(path, "-wal")).map_or(0, |log| log.len())
}

fn grow(db: &StoreDb) -> Result<(), StoreError> {
    static NUMBER: AtomicI64 = AtomicI64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let written = db.write_with(Durability::Normal, move |tx| {
        let insert =
            "INSERT OR REPLACE INTO inline_(hash, data) VALUES (zeroblob(32), zeroblob(?1))";
        let len = i64::try_from(JOB_BYTES).unwrap_or(i64::MAX) + number;
        tx.execute(insert, [len]).map(drop)
    });
    written.wait()
}

/// The bytes of the log once it takes no job any more. It has to stop below twice its limit.
fn grow_until_refused(db: &StoreDb, path: &Path) -> (u64, Option<StoreError>) {
    let jobs = 0..2 * LOG_BYTES_MAX / JOB_BYTES;
    let refused = jobs.map(|_| grow(db)).find_map(Result::err);
    (log_bytes(path), refused)
}

/// One reader is in the store, and the other is a program of its own, whose transaction no limit of the store ends.
#[test]
fn two_readers_that_stay_open_keep_the_log_within_its_limit() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (go_on, reader) = hold_read(&db);
    let foreign = open::open_reader(&path).expect("a database");
    foreign.execute_batch("BEGIN").expect("readable");
    let count = |table: &str| -> i64 {
        let query = format!("SELECT count(*) FROM {table}");
        let counted = foreign.query_row(&query, [], |row| row.get(0));
        counted.expect("readable")
    };
    assert_eq!(count("inline_"), 0);
    let (len, refused) = grow_until_refused(&db, &path);
    assert!(matches!(refused, Some(StoreError::Busy(_))), "{refused:?}");
    assert!(len < LOG_BYTES_MAX + 2 * JOB_BYTES, "{len}");
    drop(go_on);
    reader.wait().expect("readable");
    // The other one still sees its state, and the log does not get longer.
    let refused = grow(&db);
    assert!(matches!(refused, Err(StoreError::Busy(_))), "{refused:?}");
    assert_eq!(count("inline_"), 0);
    assert!(log_bytes(&path) < LOG_BYTES_MAX + 2 * JOB_BYTES);
    foreign.execute_batch("COMMIT").expect("readable");
    grow(&db).expect("no read keeps the log");
    assert!(log_bytes(&path) <= 2 * JOB_BYTES);
    assert_eq!(count("inline_"), 1);
}

#[test]
fn a_log_that_a_reader_holds_stops_at_its_limit_and_is_emptied_after_it() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (go_on, reader) = hold_read(&db);
    let (len, refused) = grow_until_refused(&db, &path);
    assert!(matches!(refused, Some(StoreError::Busy(_))), "{refused:?}");
    assert!(len >= LOG_BYTES_MAX, "{len}");
    assert!(len < LOG_BYTES_MAX + 2 * JOB_BYTES, "{len}");
    drop(go_on);
    reader.wait().expect("readable");
    grow(&db).expect("no read keeps the log");
    let len = log_bytes(&path);
    assert!(len <= 2 * JOB_BYTES, "{len}");
}

/// The limit of a read is half a minute, and the log may be full before.
#[test]
fn a_read_that_keeps_a_full_log_is_ended() {
    let (_dir, path) = scratch();
    let options = StoreDbOptions {
        space: crate::testing::ManualSpaceSource::ample(),
        // Longer than the test waits, and yet a failed test ends.
        read_time_max: Duration::from_secs(120),
        ..StoreDbOptions::default()
    };
    let db = StoreDb::open(&path, options).expect("a store");
    let endless = db.read(|tx| {
        tx.query_count("SELECT count(*) FROM pin", [])?;
        tx.query_count(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
            [],
        )
    });
    let limit = Duration::from_secs(60);
    let mut longest = 0;
    let mut grown = 0;
    alknet_test_support::eventually("the log was full and is empty", limit, || {
        for _ in 0..8 {
            // A job may be refused until the read has seen that it is to end.
            grown += u64::from(grow(&db).is_ok());
            longest = longest.max(log_bytes(&path));
        }
        let len = log_bytes(&path);
        grown * JOB_BYTES > LOG_BYTES_MAX && len < LOG_BYTES_MAX / 2
    });
    assert!(longest < LOG_BYTES_MAX + 2 * JOB_BYTES, "{longest}");
    assert_eq!(endless.wait(), Err(StoreError::TimedOut));
}

#[test]
fn pages_of_the_log_come_into_the_file_without_a_reader_in_their_way() {
    let (_dir, path) = scratch();
    let db = open(&path);
    for _ in 0..64 {
        grow(&db).expect("room");
    }
    // More than 2000 pages, and less than half of the limit.
    let len = log_bytes(&path);
    assert!(len < LOG_BYTES_MAX / 2 + JOB_BYTES, "{len}");
    let file = fs::metadata(&path).expect("a file").len();
    assert!(file > JOB_BYTES, "{file}");
}
