use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use alknet_test_support::deadline;

use super::*;
use crate::clock::TimeSource;
use crate::content::object_hash;
use crate::error::{StoreErrorCode, StoreObject};
use crate::limits::{COLLECT_AGE_MS_MIN, READERS};
use crate::names::{BucketSettings, ChangeRequest, MergeRequest, NewBranch, NewBucket, TreeChange};
use crate::sessions::{NewWriteSession, WriteSessionMode};
use crate::store::tests::{TestFiles, content, path};
use crate::sweep::SweepRelease;

mod damage;
mod history;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A store that keeps no former versions.
fn without_retention() -> TestFiles {
    let files = TestFiles::new();
    files.set_retention(0);
    files
}

/// Lets contents grow old enough to be removed, and collects.
fn collect_later(files: &TestFiles) -> CollectProgress {
    files
        .clock
        .advance(Duration::from_millis(2 * COLLECT_AGE_MS_MIN));
    files.collect()
}

fn branch(files: &TestFiles, name: &str, parent: BranchId) -> BranchId {
    let new = NewBranch::new(name.parse().expect("a name"), parent, "alice");
    let created = files.store().write(move |tx| tx.create_branch(&new)).wait();
    created.expect("a branch").id
}

/// Paths and contents of a version.
fn tree_at(
    files: &TestFiles,
    branch: BranchId,
    as_of: Option<u64>,
) -> Result<Vec<(String, Option<ContentHash>)>, StoreError> {
    let read = files.store().read(move |tx| {
        let view = tx.view(branch, as_of)?;
        tx.subtree(&view, &crate::path::EntryPath::root())
    });
    let entries = read.wait()?.into_iter();
    Ok(entries
        .map(|it| (it.path.to_string(), it.state.hash))
        .collect())
}

#[test]
fn deleted_files_give_their_space_back() {
    let files = without_retention();
    let long = files.put("/long", &content(1, 100_000));
    let short = files.put("/short", b"short");
    let left = files.put("/left", &content(2, 200_000));
    files.delete("/long");
    files.delete("/short");
    // The clock has not moved: the contents are too young.
    files.collect();
    assert!(files.bytes(long).is_ok() && files.bytes(short).is_ok());
    let progress = collect_later(&files);
    assert_eq!((progress.contents, progress.bytes), (2, 100_005));
    for gone in [long, short] {
        let code = files.bytes(gone).expect_err("gone").code();
        assert_eq!(code, StoreErrorCode::NotFound);
    }
    assert_eq!(files.objects().len(), 1);
    assert_eq!(files.count("SELECT count(*) FROM inline_"), 0);
    assert!(files.bytes(left).is_ok());
    let bucket = files.bucket;
    let usage = files.store().read(move |tx| tx.usage(bucket)).wait();
    let usage = usage.expect("there");
    assert_eq!((usage.bytes, usage.entries), (200_000, 1));
    // The rows of the deletions are gone as well.
    assert_eq!(files.count("SELECT count(*) FROM entry"), 1);
    files.check_usage();
}

#[test]
fn a_content_of_another_bucket_stays() {
    let files = without_retention();
    let hash = files.put("/a", &content(1, 100_000));
    let new = NewBucket::new("other".parse().expect("a name"), "bob");
    let created = files.store().write(move |tx| tx.create_bucket(&new)).wait();
    let (_, other) = created.expect("a bucket");
    files.put_on(other.id, "/copy", &content(1, 100_000));
    files.delete("/a");
    assert_eq!(collect_later(&files).contents, 0);
    assert!(files.bytes(hash).is_ok());
}

#[test]
fn versions_stay_for_the_retention_of_their_bucket() {
    let files = TestFiles::new();
    files.set_retention(2 * DAY_MS / 1000);
    let first = files.put("/a", &content(1, 100_000));
    files.clock.advance(Duration::from_millis(DAY_MS));
    let second = files.put("/a", &content(2, 100_000));
    files.clock.advance(Duration::from_millis(DAY_MS));
    // The first version was replaced a day ago, so that it still counts.
    files.collect();
    assert!(files.bytes(first).is_ok());
    files.clock.advance(Duration::from_millis(DAY_MS + 1));
    let progress = files.collect();
    assert_eq!((progress.rows, progress.contents), (1, 1));
    assert!(files.bytes(first).is_err());
    assert!(files.bytes(second).is_ok());
    files.check_usage();
}

/// A version with fewer files than it had would look like a deletion to its reader, and to a merge.
#[test]
fn a_version_that_may_be_incomplete_is_refused() {
    let files = without_retention();
    files.put("/a", b"first");
    let main = files.main;
    let seq = files
        .apply(main, TreeChange::mkdir(path("/d")))
        .expect("free");
    let before = tree_at(&files, main, Some(seq)).expect("there");
    assert_eq!(before.len(), 2);
    files.put("/a", b"second");
    assert_eq!(tree_at(&files, main, Some(seq)), Ok(before));
    collect_later(&files);
    let gone = tree_at(&files, main, Some(seq)).expect_err("old");
    assert_eq!(gone.code(), StoreErrorCode::NotFound);
    // The head is there by its number, too.
    let head = files.store().read(move |tx| tx.branch(main)).wait();
    let head = head.expect("there").head_seq;
    let by_number = tree_at(&files, main, Some(head));
    assert_eq!(by_number, tree_at(&files, main, None));
    let old = NewBranch {
        seq: Some(seq),
        ..NewBranch::new("old".parse().expect("a name"), main, "alice")
    };
    let refused = files.store().write(move |tx| tx.create_branch(&old)).wait();
    assert_eq!(refused.expect_err("old").code(), StoreErrorCode::NotFound);
}

/// Otherwise the version would be there again, with fewer files than it had.
#[test]
fn a_longer_retention_does_not_bring_back_what_is_gone() {
    let files = without_retention();
    files.put("/a", b"first");
    let main = files.main;
    let seq = files
        .apply(main, TreeChange::mkdir(path("/d")))
        .expect("free");
    files.clock.advance(Duration::from_millis(DAY_MS));
    files.put("/a", b"second");
    files.collect();
    let is_gone = || {
        let tree = tree_at(&files, main, Some(seq));
        tree == Err(StoreError::NotFound(StoreObject::Version))
    };
    assert!(is_gone());
    // The version was the last one at the end of this retention.
    files.set_retention(DAY_MS / 2 / 1000);
    files.collect();
    assert!(is_gone());
}

#[test]
fn snapshots_and_branches_keep_what_they_show() {
    let files = without_retention();
    let main = files.main;
    let first = files.put("/a", &content(1, 100_000));
    let draft = branch(&files, "draft", main);
    let second = files.put("/a", &content(2, 100_000));
    let monday = "monday"
        .parse::<crate::address::BranchName>()
        .expect("a name");
    let name = monday.clone();
    let snapshot = files
        .store()
        .write(move |tx| tx.create_snapshot(&name, main, None, "alice"));
    let seq = snapshot.wait().expect("free").seq;
    let third = files.put("/a", &content(3, 100_000));
    let fourth = files.put("/a", &content(4, 100_000));
    let shown = (
        tree_at(&files, draft, None),
        tree_at(&files, main, Some(seq)),
        tree_at(&files, main, None),
    );
    assert_eq!(
        collect_later(&files).contents,
        1,
        "only the third is needed by no view"
    );
    let after = (
        tree_at(&files, draft, None),
        tree_at(&files, main, Some(seq)),
        tree_at(&files, main, None),
    );
    assert_eq!(shown, after);
    for (hash, is_left) in [
        (first, true),
        (second, true),
        (third, false),
        (fourth, true),
    ] {
        assert_eq!(files.bytes(hash).is_ok(), is_left);
    }
    let bucket = files.bucket;
    let deleted = files.store().write(move |tx| {
        tx.delete_snapshot(bucket, &monday)?;
        tx.delete_branch(draft, false, "alice")
    });
    deleted.wait().expect("free");
    assert_eq!(collect_later(&files).contents, 2);
    assert!(files.bytes(fourth).is_ok());
    files.check_usage();
}

/// Without its base, a merge would take the unchanged file of the source for a change.
#[test]
fn a_merge_after_a_collection_has_its_base() {
    let files = without_retention();
    let main = files.main;
    files.put("/a", &content(1, 50));
    files.put("/b", &content(1, 60));
    let draft = branch(&files, "draft", main);
    files.put_on(draft, "/b", &content(2, 60));
    let merge = || {
        let request = MergeRequest::new(draft, main, "alice");
        files.store().write(move |tx| tx.merge(&request)).wait()
    };
    merge().expect("no conflict");
    // The base of the next merge is the version of the draft that was merged, and main goes on.
    files.put("/a", &content(3, 50));
    files.put_on(draft, "/b", &content(4, 60));
    collect_later(&files);
    files.put("/a", &content(5, 50));
    collect_later(&files);
    merge().expect("no conflict");
    let (a, b) = (files.hash_at("/a"), files.hash_at("/b"));
    let expected = [content(5, 50), content(4, 60)].map(|it| {
        let hash = blake3::hash(&it);
        Some(crate::content::content_hash(hash))
    });
    assert_eq!([a, b], expected);
    files.check_usage();
}

#[test]
fn a_deletion_that_hides_a_file_of_the_parent_stays() {
    let files = without_retention();
    files.put("/a", b"of main");
    let draft = branch(&files, "draft", files.main);
    let deletion = TreeChange::delete(path("/a"));
    files.apply(draft, deletion).expect("there");
    collect_later(&files);
    assert_eq!(tree_at(&files, draft, None), Ok(Vec::new()));
    assert_eq!(tree_at(&files, files.main, None).expect("there").len(), 1);
}

/// The attack: the content is old and without a name, and a writer is about to name it while the collection runs.
#[test]
fn a_content_that_a_commit_is_about_to_name_is_not_swept() {
    let files = without_retention();
    for bytes in [content(1, 100), content(1, 100_000)] {
        let hash = files.put("/a", &bytes);
        files.delete("/a");
        files
            .clock
            .advance(Duration::from_millis(2 * COLLECT_AGE_MS_MIN));
        let prepared = files.store().put_bytes(&bytes).expect("room");
        // The names of the collection run between the pin and the commit.
        files.collect();
        let put = TreeChange::put(path("/b"), prepared.content());
        let request = ChangeRequest::new(files.main, "alice", put);
        let applied = files.store().apply(request, vec![prepared]).wait();
        applied.expect("room");
        assert!(files.bytes(hash).expect("whole") == bytes);
        collect_later(&files);
        assert!(files.bytes(hash).expect("whole") == bytes);
        files.delete("/b");
        assert_eq!(collect_later(&files).contents, 1);
        assert!(files.bytes(hash).is_err());
    }
}

#[test]
fn pins_and_sessions_keep_contents() {
    let files = without_retention();
    let hash = files.put("/a", &content(1, 100_000));
    let folder = files.store().content().clone();
    let until = files.clock.unix_ms() + DAY_MS;
    folder
        .pin_content(hash, "alice", Some(until), false)
        .expect("there");
    let edited = files.put("/edited", &content(2, 100_000));
    let modify = WriteSessionMode::Modify;
    let session = NewWriteSession::new(files.main, path("/edited"), modify, "alice");
    let session = files.store().open_session(&session).expect("there");
    files.delete("/a");
    files.delete("/edited");
    assert_eq!(collect_later(&files).contents, 0);
    assert!(files.bytes(hash).is_ok() && files.bytes(edited).is_ok());
    let sessions = files.store().sessions();
    sessions.abort(session, "alice").expect("it is open");
    assert_eq!(collect_later(&files).contents, 1);
    files.clock.advance(Duration::from_millis(DAY_MS));
    assert_eq!(files.collect().contents, 1);
    assert_eq!(files.count("SELECT count(*) FROM pin"), 0);
    assert!(files.bytes(hash).is_err() && files.bytes(edited).is_err());
}

#[test]
fn an_object_without_a_row_is_removed_once_it_is_old() {
    let files = TestFiles::new();
    let left = files.put("/left", &content(2, 100_000));
    let orphan = files.store().put_bytes(&content(1, 100_000)).expect("room");
    let hash = object_hash(orphan.hash());
    files.collect();
    assert_eq!(files.objects().len(), 2, "it is pinned");
    drop(orphan);
    let object = files.store().content().objects().path(&hash);
    let modified = fs::metadata(object).and_then(|it| it.modified());
    let modified = modified.expect("it is there").duration_since(UNIX_EPOCH);
    let modified = modified.expect("it was written now").as_millis();
    let modified = u64::try_from(modified).expect("this millennium");
    files.clock.set(modified + COLLECT_AGE_MS_MIN - 1);
    files.collect();
    assert_eq!(files.objects().len(), 2, "it is young");
    files.clock.set(modified + COLLECT_AGE_MS_MIN);
    assert_eq!(files.collect().contents, 1);
    assert_eq!(files.objects().len(), 1);
    assert!(files.bytes(left).is_ok());
}

/// After a repair, contents may look unused because their names are lost.
#[test]
fn a_held_sweep_removes_no_content() {
    let files = without_retention();
    let (long, short) = (content(1, 100_000), content(2, 100));
    let hashes = [files.put("/long", &long), files.put("/short", &short)];
    files.delete("/long");
    files.delete("/short");
    // A content whose row is lost as well.
    drop(files.store().put_bytes(&content(3, 100_000)).expect("room"));
    files
        .store()
        .write(|tx| tx.hold_sweep())
        .wait()
        .expect("room");
    let held = collect_later(&files);
    assert_eq!((held.contents, held.bytes), (0, 0));
    assert_eq!(files.objects().len(), 2);
    assert!(files.bytes(hashes[0]).expect("whole") == long);
    assert!(files.bytes(hashes[1]).expect("whole") == short);
    let release = SweepRelease::Recount;
    let released = files.store().write(move |tx| tx.release_sweep(&release));
    released.wait().expect("the counts are right");
    assert_eq!(collect_later(&files).contents, 3);
    assert_eq!(files.objects().len(), 0);
}

/// A counter that the disk has damaged does not cost a content, and neither does a name that comes at the last moment.
#[test]
fn a_content_with_a_name_stays_whatever_its_counter_says() {
    let files = without_retention();
    let hash = files.put("/a", &content(1, 100_000));
    let lost = files
        .store()
        .write(|tx| tx.execute("DELETE FROM blob_bucket", []));
    assert_eq!(lost.wait(), Ok(1));
    assert_eq!(collect_later(&files).contents, 0);
    assert!(files.bytes(hash).is_ok());
    let (db, folder) = (files.store().db(), files.store().content());
    assert_eq!(sweep::remove_object(db, folder, hash), Ok(false));
    assert!(files.bytes(hash).is_ok());
}

/// The lock of the pins is held while a removal asks for names, and a reader that ends a pin waits for that lock.
#[test]
fn a_removal_does_not_wait_for_readers() {
    let files = TestFiles::new();
    let orphan = files.store().put_bytes(&content(1, 100_000)).expect("room");
    let hash = orphan.hash();
    drop(orphan);
    let (db, folder) = (files.store().db(), files.store().content());
    let gate = Arc::new(Barrier::new(READERS + 1));
    let reads = (0..READERS).map(|_| {
        let gate = Arc::clone(&gate);
        db.read(move |_| {
            gate.wait();
            Ok(())
        })
    });
    let reads: Vec<_> = reads.collect();
    let (sender, removed) = mpsc::channel();
    let removed = thread::scope(|scope| {
        scope.spawn(move || sender.send(sweep::remove_object(db, folder, hash)));
        let removed = removed.recv_timeout(deadline(Duration::from_secs(10)));
        // The readers end whatever became of the removal.
        gate.wait();
        removed
    });
    assert_eq!(removed, Ok(Ok(true)));
    for read in reads {
        read.wait().expect("it ends");
    }
}

#[test]
fn a_stored_content_that_gets_a_further_name_is_not_swept() {
    let files = without_retention();
    for bytes in [content(1, 100), content(1, 100_000)] {
        let hash = files.put("/a", &bytes);
        let pinned = files.store().content().pin_stored(hash).expect("there");
        files.delete("/a");
        collect_later(&files);
        let put = TreeChange::put(path("/b"), pinned.content());
        let request = ChangeRequest::new(files.main, "alice", put);
        let applied = files.store().apply(request, vec![pinned]).wait();
        applied.expect("room");
        assert!(files.bytes(hash).expect("whole") == bytes);
        files.delete("/b");
    }
}

/// A peer that has not seen the deletion would bring the file back.
#[test]
fn a_synchronised_bucket_keeps_its_deletions() {
    let files = without_retention();
    files.set_bucket(BucketSettings {
        is_synced: Some(true),
        ..BucketSettings::default()
    });
    files.put("/a", &content(1, 100_000));
    files.delete("/a");
    assert_eq!(collect_later(&files).contents, 1);
    let deletions = "SELECT count(*) FROM entry WHERE kind = 0";
    assert_eq!(files.count(deletions), 1);
}

/// Each step is a transaction of its own, and the position is right where a page ends within the versions of one path.
#[test]
fn many_versions_are_pruned_in_steps() {
    let files = without_retention();
    let main = files.main;
    let versions = COLLECT_STEP_ROWS as u64 * 2 + 7;
    let stored = files.store().put_bytes(b"the same").expect("room");
    for _ in 0..versions / 100 {
        let content = stored.clone();
        let written = files.store().write(move |tx| {
            tx.record_content(&content)?;
            for _ in 0..100 {
                let put = TreeChange::put(path("/a"), content.content());
                tx.apply(&ChangeRequest::new(main, "alice", put))?;
            }
            Ok(())
        });
        written.wait().expect("room");
    }
    files.put("/b", b"another");
    let mut collection = GarbageCollection::default();
    let mut rows = 0;
    while !collection.is_done() {
        let progress = files.store().collect_step(&mut collection).expect("a step");
        assert!(progress.rows - rows <= COLLECT_STEP_ROWS as u64);
        rows = progress.rows;
        files.check_usage();
    }
    assert_eq!(rows, versions / 100 * 100 - 1);
    assert_eq!(files.count("SELECT count(*) FROM entry"), 2);
}

/// Writers go on until a collection has removed something between their names.
#[test]
fn a_collection_during_parallel_uploads_loses_nothing() {
    const WRITERS: u64 = 16;
    let files = without_retention();
    let (removed, writing) = (AtomicU64::new(0), AtomicU64::new(WRITERS));
    let end = Instant::now() + deadline(Duration::from_secs(60));
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (files, removed, writing) = (&files, &removed, &writing);
            scope.spawn(move || {
                let at = format!("/{writer}");
                let is_over = |round| {
                    let is_removed = removed.load(Ordering::SeqCst) > 0;
                    round >= 8 && (is_removed || Instant::now() >= end)
                };
                for round in (0..).take_while(|round| !is_over(*round)) {
                    // All writers name the same few contents, and each of them one of its own: the collection finds
                    // those of one kind or the other without a name in between.
                    let number = match round % 3 {
                        0 => 100 + writer,
                        _ => (writer + round) % 3,
                    };
                    let len = if round % 2 == 0 { 100 } else { 20_000 };
                    let bytes = content(number, len);
                    let hash = files.put(&at, &bytes);
                    assert!(files.bytes(hash).expect("whole") == bytes);
                    files.delete(&at);
                }
                files.put(&at, &content(writer, 20_000));
                writing.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while writing.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            files
                .clock
                .advance(Duration::from_millis(2 * COLLECT_AGE_MS_MIN));
            removed.fetch_add(files.collect().contents, Ordering::SeqCst);
        }
    });
    assert!(
        removed.load(Ordering::SeqCst) > 0,
        "a sweep met the writers"
    );
    for writer in 0..WRITERS {
        let hash = files.hash_at(&format!("/{writer}")).expect("a file");
        assert!(files.bytes(hash).expect("whole") == content(writer, 20_000));
    }
    collect_later(&files);
    assert_eq!(files.objects().len() as u64, WRITERS);
    files.check_usage();
}
