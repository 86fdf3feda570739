//! Sessions while the disk fails, and while the writer has no room for their jobs.

use std::sync::mpsc;

use super::*;
use crate::db::StoreReply;
use crate::limits::WRITES_QUEUED_MAX;
use crate::store::tests::recorded;
use crate::testing::DiskFault;

/// Fills the queue of the writer until the sender is dropped.
fn fill_queue(files: &TestFiles) -> (mpsc::Sender<()>, Vec<StoreReply<()>>) {
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let (begun, has_begun) = mpsc::channel();
    let db = files.store().db();
    let mut waiting = vec![db.write(move |_| {
        begun.send(()).ok();
        may_go_on.recv().ok();
        Ok(())
    })];
    has_begun.recv().expect("the job begins");
    waiting.extend((0..WRITES_QUEUED_MAX).map(|_| db.write(|_| Ok(()))));
    (go_on, waiting)
}

fn drain_queue((go_on, waiting): (mpsc::Sender<()>, Vec<StoreReply<()>>)) {
    drop(go_on);
    for reply in waiting {
        reply.wait().expect("room");
    }
}

/// Linux reports a lost write once: the sync of the close would succeed, and the client would get its answer.
#[test]
fn a_session_whose_sync_failed_is_over() {
    let (files, recording) = recorded();
    let id = open(&files, "/a", WriteSessionMode::Truncate);
    write(&files, id, 0, &content(2, 100_000));
    recording.disk.fail_next(DiskFault::Data);
    let sessions = files.store().sessions();
    let failed = sessions.sync(id, "alice");
    assert!(
        matches!(failed, Err(StoreError::ContentFolder(_))),
        "{failed:?}"
    );
    assert_eq!(refused(close(&files, id)), StoreErrorCode::NotFound);
    assert_eq!((staged_files(&files), sessions.count()), (0, 0));
    assert!(file(&files, "/a") == Some(content(1, 70_000)));
    files.check_usage();
}

/// The same for a file that a caller stages itself.
#[test]
fn a_staged_content_whose_sync_failed_is_not_put() {
    let (files, recording) = recorded();
    let store = files.store();
    let mut staged = store.stage().expect("room");
    staged.write_at(0, &content(2, 100_000)).expect("room");
    recording.disk.fail_next(DiskFault::Data);
    staged.sync().expect_err("the disk failed");
    staged.sync().expect("it was reported");
    let put = store.put_staged(staged);
    assert!(matches!(put, Err(StoreError::ContentFolder(_))), "{put:?}");
}

#[test]
fn a_close_that_the_writer_has_no_room_for_keeps_the_upload() {
    for len in [1_000, 50_000, 300_000] {
        let files = TestFiles::new();
        let bytes = content(1, len);
        let id = open(&files, "/a", WriteSessionMode::Create);
        write(&files, id, 0, &bytes);
        let sessions = files.store().sessions();
        let queue = fill_queue(&files);
        for _ in 0..2 {
            assert_eq!(refused(close(&files, id)), StoreErrorCode::Busy);
        }
        // Its content is settled.
        let more = sessions.write(id, "alice", 0, b"x");
        assert_eq!(refused(more), StoreErrorCode::Busy);
        assert_eq!((file(&files, "/a"), sessions.count()), (None, 1));
        drain_queue(queue);
        close(&files, id).expect("room");
        assert!(file(&files, "/a") == Some(bytes));
        assert_eq!((staged_files(&files), sessions.count()), (0, 0));
        files.check_usage();
    }
}

#[test]
fn an_upload_that_waits_for_its_close_can_be_aborted() {
    let files = TestFiles::new();
    let id = open(&files, "/a", WriteSessionMode::Create);
    write(&files, id, 0, &content(1, 300_000));
    let queue = fill_queue(&files);
    assert_eq!(refused(close(&files, id)), StoreErrorCode::Busy);
    drain_queue(queue);
    let sessions = files.store().sessions();
    sessions.abort(id, "alice").expect("open");
    assert_eq!(refused(close(&files, id)), StoreErrorCode::NotFound);
    assert_eq!((file(&files, "/a"), sessions.count()), (None, 0));
    files.check_usage();
}

/// The row counts for its bucket, and its base is not collected.
#[test]
fn a_row_that_could_not_be_removed_goes_with_the_next_sweep() {
    let files = TestFiles::new();
    files.put("/a", &content(1, 70_000));
    let id = open(&files, "/a", WriteSessionMode::Modify);
    let piece = content(2, 1 << 20);
    for number in 0..9 {
        write(&files, id, number << 20, &piece);
    }
    let staged = "SELECT staged FROM usage";
    assert!(files.count(staged) > 0);
    let sessions = files.store().sessions();
    let queue = fill_queue(&files);
    sessions.abort(id, "alice").expect("open");
    assert_eq!(refused(sessions.sweep()), StoreErrorCode::Busy);
    assert_eq!((staged_files(&files), sessions.count()), (0, 0));
    drain_queue(queue);
    let rows = "SELECT count(*) FROM session";
    assert_eq!(files.count(rows), 1);
    assert_eq!(sessions.sweep(), Ok(0));
    assert_eq!((files.count(rows), files.count(staged)), (0, 0));
    files.check_usage();
}
