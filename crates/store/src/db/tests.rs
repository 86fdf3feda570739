use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::outbox::{EventPayload, EventTopic};

mod disk_errors;
mod first_format;
mod group;
mod log;
mod plans;
mod readers;

/// A folder, and the path of the file in it.
fn scratch() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("fs.db");
    (dir, path)
}

fn open(path: &Path) -> StoreDb {
    let options = StoreDbOptions {
        // The disk of the machine may be almost full.
        space: crate::testing::ManualSpaceSource::ample(),
        ..StoreDbOptions::default()
    };
    StoreDb::open(path, options).expect("a store")
}

fn refused(path: &Path) -> StoreOpenError {
    let opened = StoreDb::open(path, StoreDbOptions::default());
    opened.expect_err("refused")
}

fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|it| it.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A job that leaves a row with this number.
fn note(db: &StoreDb, number: i64) -> StoreReply<()> {
    db.write(move |tx| insert(tx, number))
}

fn insert(tx: &WriteTransaction<'_>, number: i64) -> Result<(), StoreError> {
    let insert = "INSERT INTO pin(hash, owner) VALUES (zeroblob(32), ?1)";
    tx.execute(insert, [number]).map(drop)
}

/// The numbers of the rows that are there.
fn notes(db: &StoreDb) -> Vec<i64> {
    let read = db.read(|tx| {
        let query = "SELECT CAST(owner AS INTEGER) FROM pin ORDER BY 1";
        tx.query_all(query, [], |row| row.get(0))
    });
    read.wait().expect("readable")
}

/// Copies the files of a store that is open, as a power cut would leave them.
fn cut(db: &StoreDb, path: &Path) -> (TempDir, PathBuf) {
    note(db, 1).wait().expect("room");
    let (dir, copy) = scratch();
    for suffix in ["", "-wal", "-shm"] {
        let from = quarantine::with(path, suffix);
        fs::copy(from, quarantine::with(&copy, suffix)).expect("a copy");
    }
    (dir, copy)
}

#[test]
fn a_new_file_has_the_settings_of_the_schema() {
    let (dir, path) = scratch();
    let db = open(&path);
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (pragma, expected) in [
        ("application_id", STORE_APPLICATION_ID),
        ("user_version", STORE_SCHEMA_VERSION),
        ("page_size", 8192),
        ("auto_vacuum", 2),
        ("foreign_keys", 1),
        ("synchronous", 2),
        ("wal_autocheckpoint", 0),
        ("journal_size_limit", 64 << 20),
        ("trusted_schema", 0),
        ("temp_store", 2),
    ] {
        let value = db.write(move |tx| {
            let value = tx
                .connection()
                .pragma_query_value(None, pragma, |row| row.get(0));
            Ok::<i64, _>(value?)
        });
        assert_eq!(value.wait(), Ok(expected), "{pragma}");
    }
    let id = db.store_id();
    drop(db);
    assert_eq!(
        names_in(dir.path()),
        ["fs.db", "fs.db-lock"],
        "the log is empty and removed"
    );
    let db = open(&path);
    assert_eq!(db.store_id(), id);
    assert!(db.was_closed_in_order());
}

#[test]
fn readers_cannot_write() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let written = db.read(|tx| {
        tx.connection().execute("DELETE FROM meta", [])?;
        Ok(())
    });
    assert!(matches!(written.wait(), Err(StoreError::Database(_))));
}

#[test]
fn a_file_of_a_newer_program_is_left_alone() {
    let (dir, path) = scratch();
    drop(open(&path));
    let connection = Connection::open(&path).expect("a database");
    let newer = STORE_SCHEMA_VERSION + 1;
    connection
        .pragma_update(None, "user_version", newer)
        .expect("room");
    drop(connection);
    let before = (names_in(dir.path()), fs::read(&path).expect("a file"));
    let expected = StoreOpenError::Newer {
        path: path.clone(),
        version: newer,
    };
    assert_eq!(refused(&path), expected);
    // SQLite leaves the index of a log that it only read.
    let mut names = names_in(dir.path());
    names.retain(|name| name != "fs.db-shm" && name != "fs.db-wal");
    assert_eq!((names, fs::read(&path).expect("a file")), before);
}

#[test]
fn a_damaged_file_is_set_aside_with_its_log_and_no_other_is_made() {
    let (_first, path) = scratch();
    let db = open(&path);
    let (dir, copy) = cut(&db, &path);
    drop(db);
    // The second page, which the schema begins on.
    let mut bytes = fs::read(&copy).expect("a file");
    bytes.resize(8192 * 4, 0);
    bytes[100..8192].fill(0xa5);
    fs::write(&copy, &bytes).expect("room");
    fs::write(quarantine::with(&copy, "-wal"), b"a log").expect("room");
    let aside = quarantine::with(&copy, ".damaged-1");
    let expected = StoreOpenError::Damaged {
        quarantined: aside.clone(),
    };
    assert_eq!(refused(&copy), expected);
    let left = [
        "fs.db-lock",
        "fs.db.damaged-1",
        "fs.db.damaged-1-shm",
        "fs.db.damaged-1-wal",
    ];
    assert_eq!(names_in(dir.path()), left);
    // An empty store in its place would make every content look unused.
    assert_eq!(refused(&copy), expected);
    assert_eq!(names_in(dir.path()), left);

    let options = StoreDbOptions {
        begin_again: true,
        ..StoreDbOptions::default()
    };
    let db = StoreDb::open(&copy, options).expect("a new store");
    assert_eq!(db.quarantined_files(), std::slice::from_ref(&aside));
    // The new file has none of the names, so every content looks unused.
    assert_eq!(db.read(|tx| tx.is_sweep_held()).wait(), Ok(true));
    drop(db);
    // A file lies there again.
    assert_eq!(open(&copy).quarantined_files(), [aside]);
}

#[test]
fn a_move_aside_that_a_power_cut_interrupted_is_finished() {
    let (dir, path) = scratch();
    fs::write(quarantine::with(&path, ".damaged-1"), b"a file").expect("room");
    fs::write(quarantine::with(&path, "-wal"), b"its log").expect("room");
    assert!(matches!(refused(&path), StoreOpenError::Damaged { .. }));
    let left = ["fs.db-lock", "fs.db.damaged-1", "fs.db.damaged-1-wal"];
    assert_eq!(names_in(dir.path()), left);
}

#[test]
fn a_database_of_another_program_is_set_aside() {
    let (_dir, path) = scratch();
    let connection = Connection::open(&path).expect("a database");
    connection.execute_batch("CREATE TABLE t(a)").expect("room");
    drop(connection);
    assert!(matches!(refused(&path), StoreOpenError::Damaged { .. }));
    assert!(!path.exists());
}

#[test]
fn a_file_that_was_not_closed_in_order_is_checked() {
    let (_first, path) = scratch();
    let db = open(&path);
    let (_dir, copy) = cut(&db, &path);
    drop(db);
    let opened = open(&copy);
    assert!(!opened.was_closed_in_order());
    assert_eq!(notes(&opened), [1], "what was durable is there");
    drop(opened);

    // A damaged page in the middle of a table is found by the check alone.
    let db = open(&path);
    let many = db.write(|tx| (2..2000).try_for_each(|number| insert(tx, number)));
    many.wait().expect("room");
    let checkpoint = db.write(|tx| {
        tx.execute("DELETE FROM consumer", [])?;
        Ok(())
    });
    checkpoint.wait().expect("room");
    drop(db);
    let connection = Connection::open(&path).expect("a database");
    let delete = "DELETE FROM meta WHERE k = 'clean_shutdown'";
    connection.execute(delete, []).expect("room");
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'pin'";
    let root: u32 = connection
        .query_row(root, [], |row| row.get(0))
        .expect("a table");
    drop(connection);
    let mut bytes = fs::read(&path).expect("a file");
    let page = (root as usize - 1) * 8192;
    bytes[page..page + 8192].fill(0xa5);
    fs::write(&path, &bytes).expect("room");
    assert!(matches!(refused(&path), StoreOpenError::Damaged { .. }));
}

#[test]
fn one_process_opens_a_store_once() {
    let (_dir, path) = scratch();
    let db = open(&path);
    match refused(&path) {
        StoreOpenError::Unusable { reason, .. } => assert!(reason.contains("another node")),
        other => panic!("{other}"),
    }
    drop(db);
    open(&path);
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let (dir, _) = scratch();
    let path = dir.path().join("missing/fs.db");
    assert!(matches!(refused(&path), StoreOpenError::Unusable { .. }));
}

#[test]
fn a_read_ends_at_its_limit_and_its_thread_goes_on() {
    let (_dir, path) = scratch();
    let options = StoreDbOptions {
        read_time_max: Duration::from_millis(20),
        ..StoreDbOptions::default()
    };
    let db = StoreDb::open(&path, options).expect("a store");
    let endless = || {
        db.read(|tx| {
            tx.query_count(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
                [],
            )
        })
    };
    let slow: Vec<_> = (0..2 * READERS).map(|_| endless()).collect();
    for reply in slow {
        assert_eq!(reply.wait(), Err(StoreError::TimedOut));
    }
    // Many short queries are as long as one long one.
    let many = db.read(|tx| -> Result<(), StoreError> {
        loop {
            tx.query_count("SELECT count(*) FROM bucket", [])?;
        }
    });
    assert_eq!(many.wait(), Err(StoreError::TimedOut));
}

#[test]
fn a_panic_of_a_read_is_contained() {
    let (_dir, path) = scratch();
    let db = open(&path);
    for _ in 0..2 * READERS {
        let reply = db.read(|_| -> Result<(), StoreError> { panic!("a fault") });
        assert_eq!(
            reply.wait(),
            Err(StoreError::Panicked("a fault".to_owned()))
        );
    }
    note(&db, 5).wait().expect("room");
    assert_eq!(notes(&db), [5]);
}

#[test]
fn a_read_sees_one_state() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let count = "SELECT count(*) FROM pin";
    let read = db.read(move |tx| {
        let before = tx.query_count(count, [])?;
        begun.send(()).expect("the test waits");
        may_go_on.recv().expect("the test goes on");
        Ok((before, tx.query_count(count, [])?))
    });
    has_begun.recv().expect("the read begins");
    note(&db, 1).wait().expect("room");
    go_on.send(()).expect("the read waits");
    assert_eq!(read.wait(), Ok((0, 0)));
    assert_eq!(notes(&db), [1]);
}

#[tokio::test]
async fn replies_can_be_awaited() {
    let (_dir, path) = scratch();
    let db = open(&path);
    note(&db, 3).await.expect("room");
    let failed = db.write(|_| Err::<(), _>(StoreError::NoSpace)).await;
    assert_eq!(failed, Err(StoreError::NoSpace));
    let found = db.read(|tx| tx.query_count("SELECT count(*) FROM pin", []));
    assert_eq!(found.await, Ok(1));
}

#[test]
fn the_clock_goes_on_behind_its_last_value() {
    struct Fixed(u64);
    impl TimeSource for Fixed {
        fn unix_ms(&self) -> u64 {
            self.0
        }
    }
    let (_dir, path) = scratch();
    let tick = |now| {
        let options = StoreDbOptions {
            time: Arc::new(Fixed(now)),
            node: Some([3; 8]),
            ..StoreDbOptions::default()
        };
        let db = StoreDb::open(&path, options).expect("a store");
        db.write(|tx| Ok(tx.tick())).wait().expect("room")
    };
    let first = tick(1_000);
    let second = tick(500);
    assert!(second > first, "{first} {second}");
    assert_eq!((second.ms(), second.node()), (1_000, [3; 8]));
}

#[test]
fn a_job_that_drops_the_last_handle_does_not_wait_for_itself() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let (dropped, was_dropped) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let mut handle = Some(db.clone());
    let reply = db.write(move |_| {
        may_go_on.recv().ok();
        drop(handle.take());
        dropped.send(()).ok();
        Ok(())
    });
    drop(db);
    go_on.send(()).expect("the job waits");
    was_dropped.recv().expect("the job ends");
    assert_eq!(reply.wait(), Ok(()));
}

#[test]
fn a_damaged_page_is_remembered_until_the_next_start() {
    let (_dir, path) = scratch();
    let db = open(&path);
    let cause = || StoreError::Damaged("a page".to_owned());
    let failed = db.write(move |_| Err::<(), _>(cause()));
    assert_eq!(failed.wait(), Err(StoreError::Damaged("a page".to_owned())));
    assert!(db.is_damaged());
    drop(db);
    assert!(!open(&path).was_closed_in_order());
}

fn event(tx: &mut WriteTransaction<'_>) -> Result<i64, StoreError> {
    tx.emit(EventTopic::Put, None, None, &EventPayload::default())
}
