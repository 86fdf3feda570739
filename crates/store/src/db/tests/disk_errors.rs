//! The disk fails at the log of the file.

use super::*;
use crate::testing::{DiskError, DiskFault, SyncedFolder};

/// A folder whose syncs are followed, and the file in it.
fn followed() -> (TempDir, Arc<SyncedFolder>, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("fs");
    let folder = SyncedFolder::follow(&root);
    fs::create_dir(&root).expect("writable");
    (dir, folder, root.join("fs.db"))
}

/// The notes that a start after a power cut finds.
fn notes_after_cut(folder: &SyncedFolder) -> Vec<i64> {
    let dir = folder.cut();
    let db = open(&dir.path().join("fs/fs.db"));
    assert!(!db.was_closed_in_order());
    notes(&db)
}

/// A job of many pages, which the log has without a sync.
fn write_unsynced(db: &StoreDb) {
    let written = db.write_with(Durability::Normal, |tx| {
        let insert = "INSERT INTO inline_(hash, data) VALUES (randomblob(32), randomblob(200000))";
        tx.execute(insert, []).map(drop)
    });
    written.wait().expect("room");
}

/// With `synchronous=FULL` emptied, the log would not be on the disk at the answer.
#[test]
fn an_answer_comes_behind_the_sync_of_the_log() {
    let (_dir, folder, path) = followed();
    let db = open(&path);
    for number in 1..4 {
        note(&db, number).wait().expect("room");
        let expected: Vec<_> = (1..=number).collect();
        assert_eq!(notes_after_cut(&folder), expected);
    }
    db.write_with(Durability::Normal, |tx| insert(tx, 9))
        .wait()
        .expect("room");
    assert_eq!(notes_after_cut(&folder), [1, 2, 3], "it asked for no sync");
}

/// The disk loses the pages of a job that asked for no sync, and says so at the next commit alone. The commits after it would
/// lie behind a hole in the log, where no start finds them.
#[test]
fn no_answer_comes_behind_a_hole_in_the_log() {
    let (_dir, folder, path) = followed();
    let db = open(&path);
    note(&db, 1).wait().expect("room");
    write_unsynced(&db);
    folder.fail_next(DiskFault::Database("-wal"));
    let failed = note(&db, 2).wait();
    assert!(matches!(failed, Err(StoreError::Database(_))), "{failed:?}");
    note(&db, 3).wait().expect("the disk works again");
    assert_eq!(notes_after_cut(&folder), [1, 3]);
    note(&db, 4).wait().expect("room");
    assert_eq!(notes_after_cut(&folder), [1, 3, 4]);
    drop(db);
    assert!(open(&path).was_closed_in_order());
}

/// While the log cannot be emptied, no job is answered as durable.
#[test]
fn no_job_succeeds_until_the_log_is_emptied() {
    let (_dir, folder, path) = followed();
    let db = open(&path);
    note(&db, 1).wait().expect("room");
    write_unsynced(&db);
    folder.fail_next(DiskFault::Database("-wal"));
    note(&db, 2).wait().expect_err("the disk failed");
    folder.fail_next(DiskFault::Database("fs.db"));
    note(&db, 3).wait().expect_err("the disk failed again");
    note(&db, 4).wait().expect("the disk works again");
    assert_eq!(notes_after_cut(&folder), [1, 4]);
}

/// A store whose log may have a hole is checked by the next start.
#[test]
fn a_store_that_could_not_empty_its_log_was_not_closed_in_order() {
    let (_dir, folder, path) = followed();
    let db = open(&path);
    write_unsynced(&db);
    folder.fail_next(DiskFault::Database("-wal"));
    note(&db, 2).wait().expect_err("the disk failed");
    folder.fail_next(DiskFault::Database("fs.db"));
    drop(db);
    assert!(!open(&path).was_closed_in_order());
}

/// The statements of a start go to the log as well. If the disk loses one of them, the start fails, and the next one finds
/// all pages in the memory of the system.
#[test]
fn no_answer_comes_behind_a_hole_that_a_failed_start_left() {
    let (_dir, folder, path) = followed();
    drop(open(&path));
    let mut refused = 0;
    for number in 1..30 {
        let calls = u64::try_from(number).expect("small");
        folder.fail_call(calls, DiskError::Failed, false);
        let opened = StoreDb::open(&path, StoreDbOptions::default());
        folder.end_faults();
        refused += usize::from(opened.is_err());
        drop(opened);
        let db = open(&path);
        note(&db, number).wait().expect("the disk works");
        let expected: Vec<_> = (1..=number).collect();
        assert_eq!(notes_after_cut(&folder), expected, "call {calls}");
    }
    assert!(refused > 3, "{refused} starts failed");
}
