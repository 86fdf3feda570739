use std::time::Duration;

use super::*;
use crate::error::StoreErrorCode;
use crate::names::{ContentPresence, FileContent, TreeChange};
use crate::store::tests::{TestFiles, content};

const GROUP: usize = 16 << 10;

/// A name that leads to bytes that are on peers only.
fn want(files: &TestFiles, at: &str, bytes: &[u8]) -> ContentHash {
    let hash = super::super::content_hash(blake3::hash(bytes));
    let wanted = FileContent {
        presence: ContentPresence::Wanted,
        ..FileContent::new(hash, bytes.len() as u64)
    };
    let put = TreeChange::put(at.parse().expect("a path"), wanted);
    files.apply(files.main, put).expect("a name");
    hash
}

fn receive(files: &TestFiles, hash: ContentHash, bytes: &[u8]) -> PartialContent {
    receive_in(files, files.bucket, hash, bytes.len() as u64).expect("room")
}

fn receive_in(
    files: &TestFiles,
    bucket: BucketId,
    hash: ContentHash,
    size: u64,
) -> Result<PartialContent, StoreError> {
    files.store().content().receive(bucket, hash, size)
}

fn status(files: &TestFiles, hash: ContentHash) -> ContentStatus {
    files.store().content().status(hash).expect("readable")
}

#[test]
fn what_arrived_outlives_a_restart() {
    let mut files = TestFiles::new();
    let bytes = content(1, 5 * GROUP + 100);
    let hash = want(&files, "/a", &bytes);
    let size = bytes.len() as u64;
    let mut partial = receive(&files, hash, &bytes);
    assert_eq!(partial.missing(9).boundaries(), [0, 96]);
    partial.write_verified(0, &bytes[..GROUP]).expect("room");
    partial
        .write_verified(2 * GROUP as u64, &bytes[2 * GROUP..4 * GROUP])
        .expect("room");
    partial.mark_partial("bob").expect("room");
    partial.save().expect("room");
    // What comes after that is lost with the process.
    partial
        .write_verified(GROUP as u64, &bytes[GROUP..2 * GROUP])
        .expect("room");
    assert_eq!(status(&files, hash), ContentStatus::Partial { size });
    drop(partial);
    files.reopen();
    let mut partial = receive(&files, hash, &bytes);
    assert_eq!(partial.missing(9).boundaries(), [16, 32, 64, 96]);
    assert_eq!(partial.missing(1).boundaries(), [16, 32]);
    partial
        .write_verified(GROUP as u64, &bytes[GROUP..2 * GROUP])
        .expect("room");
    partial
        .write_verified(4 * GROUP as u64, &bytes[4 * GROUP..])
        .expect("room");
    assert!(partial.is_whole());
    let placed = partial.place().expect("whole");
    files
        .store()
        .complete_content(placed)
        .wait()
        .expect("wanted");
    assert_eq!(status(&files, hash), ContentStatus::Complete { size });
    assert!(files.bytes(hash).expect("whole") == bytes);
    let left = fs::read_dir(files.store().content().partials()).expect("readable");
    assert_eq!(left.count(), 0);
}

#[test]
fn a_short_content_becomes_a_row() {
    let files = TestFiles::new();
    let bytes = content(2, 700);
    let hash = want(&files, "/a", &bytes);
    let mut partial = receive(&files, hash, &bytes);
    partial.write_verified(0, &bytes).expect("room");
    let placed = partial.place().expect("whole");
    files
        .store()
        .complete_content(placed)
        .wait()
        .expect("wanted");
    assert_eq!(files.bytes(hash).expect("whole"), bytes);
    assert_eq!(files.objects().len(), 0);
}

/// A disk that changes what has arrived must not give the content its name.
#[test]
fn bytes_that_changed_on_the_disk_come_again() {
    let files = TestFiles::new();
    let bytes = content(3, 3 * GROUP);
    let hash = want(&files, "/a", &bytes);
    let mut partial = receive(&files, hash, &bytes);
    partial.write_verified(0, &bytes).expect("room");
    partial.save().expect("room");
    partial.file.write_all_at(b"x", 20_000).expect("room");
    let refused = partial.place().expect_err("another hash");
    assert_eq!(refused.code(), StoreErrorCode::ContentUnavailable);
    let partial = receive(&files, hash, &bytes);
    assert_eq!(partial.missing_bytes(), bytes.len() as u64);
}

#[test]
fn one_value_receives_a_content() {
    let files = TestFiles::new();
    let bytes = content(4, GROUP + 1);
    let hash = want(&files, "/a", &bytes);
    let partial = receive(&files, hash, &bytes);
    let again = receive_in(&files, files.bucket, hash, partial.size());
    assert_eq!(again.expect_err("it is open").code(), StoreErrorCode::Busy);
    drop(partial);
    drop(receive(&files, hash, &bytes));
    // Another size begins again.
    let longer = receive_in(&files, files.bucket, hash, 5 * GROUP as u64);
    assert_eq!(longer.expect("room").missing_bytes(), 5 * GROUP as u64);
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let files = TestFiles::new();
    let bytes = content(5, GROUP + 1);
    let hash = want(&files, "/a", &bytes);
    let mut partial = receive(&files, hash, &bytes);
    let refused = partial.write_verified(GROUP as u64, b"two");
    assert_eq!(refused.expect_err("behind").code(), StoreErrorCode::Denied);
}

#[test]
fn a_full_disk_takes_no_content_from_peers() {
    let files = TestFiles::new();
    let bytes = content(6, 3 * GROUP);
    let hash = want(&files, "/a", &bytes);
    files.space.set_free(files.reserve());
    let refused = receive_in(&files, files.bucket, hash, bytes.len() as u64);
    assert_eq!(refused.expect_err("full").code(), StoreErrorCode::NoSpace);
}

#[test]
fn parts_that_no_name_wants_are_swept() {
    let files = TestFiles::new();
    let bytes = content(7, 3 * GROUP);
    let hash = want(&files, "/a", &bytes);
    let mut partial = receive(&files, hash, &bytes);
    partial.write_verified(0, &bytes[..GROUP]).expect("room");
    partial.save().expect("room");
    let sweep = || files.store().content().sweep_partials().expect("readable");
    assert_eq!(sweep(), 0, "a name wants it");
    let file = partial.file.try_clone().expect("a descriptor");
    let old = SystemTime::now() - PARTIAL_KEPT_TIME - Duration::from_secs(60);
    file.set_modified(old).expect("ours");
    assert_eq!(sweep(), 0, "it is being received");
    drop((partial, file));
    assert_eq!(sweep(), 1);
    let unknown = ContentHash::new([7; 32]);
    drop(receive_in(&files, files.bucket, unknown, 100).expect("room"));
    assert_eq!(sweep(), 1);
    // The name of one bucket keeps nothing that arrived for another one.
    let other = BucketId::new(files.bucket.number() + 1);
    drop(receive_in(&files, other, hash, 100).expect("room"));
    assert_eq!(sweep(), 1);
    // An earlier version received for all buckets together.
    let folder = files.store().content().partials();
    fs::write(folder.join(hash.to_string()), b"part").expect("room");
    fs::write(folder.join(format!("{hash}.have")), b"4\n").expect("room");
    assert_eq!(sweep(), 1);
    let left = fs::read_dir(files.store().content().partials()).expect("readable");
    assert_eq!(left.count(), 0);
}

/// The attack: a bucket waits for the same content as another one, whose part would be the beginning of its own.
#[test]
fn a_bucket_receives_nothing_of_what_came_for_another_one() {
    let files = TestFiles::new();
    let bytes = content(8, 3 * GROUP);
    let hash = want(&files, "/a", &bytes);
    let mut partial = receive(&files, hash, &bytes);
    partial.write_verified(0, &bytes[..GROUP]).expect("room");
    partial.save().expect("room");
    let other = BucketId::new(files.bucket.number() + 1);
    let size = bytes.len() as u64;
    // Also at the same time.
    let theirs = receive_in(&files, other, hash, size).expect("room");
    assert_eq!(theirs.missing_bytes(), size);
    assert_eq!(partial.missing_bytes(), size - GROUP as u64);
}
