//! Contents that a bucket announces without their bytes: an announcement tells nothing of other buckets, breaks nothing
//! there, and gives no right.

use super::*;
use crate::error::{QuotaResource, StoreErrorCode, StoreObject};
use crate::limits::INLINE_BYTES_MAX;
use crate::names::{
    BranchId, BucketId, BucketSettings, ChangeRequest, ContentPresence, FileContent, NewBucket,
    TreeChange,
};
use crate::sessions::{NewWriteSession, WriteSessionMode};
use crate::store::tests::{TestFiles, content, path};

/// The bucket of another tenant.
fn other_bucket(files: &TestFiles) -> (BucketId, BranchId) {
    let new = NewBucket::new("other".parse().expect("a name"), "mallory");
    let created = files.store().write(move |tx| tx.create_bucket(&new));
    let (bucket, main) = created.wait().expect("free");
    (bucket.id, main.id)
}

fn wanted(hash: ContentHash, size: u64) -> FileContent {
    FileContent {
        presence: ContentPresence::Wanted,
        ..FileContent::new(hash, size)
    }
}

fn announce(
    files: &TestFiles,
    branch: BranchId,
    at: &str,
    hash: ContentHash,
    size: u64,
) -> Result<u64, StoreError> {
    files.apply(branch, TreeChange::put(path(at), wanted(hash, size)))
}

fn hash_of(bytes: &[u8]) -> ContentHash {
    content_hash(blake3::hash(bytes))
}

/// The size that a listing shows.
fn size_at(files: &TestFiles, branch: BranchId, at: &str) -> u64 {
    let at = path(at);
    let entry = files
        .store()
        .read(move |tx| tx.stat(&tx.view(branch, None)?, &at));
    entry.wait().expect("there").state.size
}

fn used(files: &TestFiles, bucket: BucketId) -> u64 {
    let usage = files.store().read(move |tx| {
        let (usage, counted) = (tx.usage(bucket)?, tx.recount(bucket)?);
        Ok((usage, counted, tx.wrong_references(bucket)?))
    });
    let (usage, counted, wrong) = usage.wait().expect("readable");
    assert_eq!(usage, counted);
    assert_eq!(wrong, Vec::<ContentHash>::new());
    usage.bytes
}

fn read(files: &TestFiles, bucket: BucketId, hash: ContentHash) -> Result<Vec<u8>, StoreError> {
    let reader = files.store().read_content_in(bucket, hash)?;
    reader.read(0..reader.size())
}

/// Every WebDAV LOCK of a new name makes an empty file.
#[test]
fn a_wrong_size_of_the_empty_content_hinders_no_other_bucket() {
    for bytes in [Vec::new(), content(1, 100), content(1, 100_000)] {
        let files = TestFiles::new();
        let (_, mallory) = other_bucket(&files);
        let hash = hash_of(&bytes);
        announce(&files, mallory, "/trap", hash, 7).expect("the bucket has not the hash");
        assert_eq!(files.put("/a", &bytes), hash);
        assert!(files.bytes(hash).expect("whole") == bytes);
        assert_eq!(size_at(&files, files.main, "/a"), bytes.len() as u64);
        let size = bytes.len() as u64;
        let status = files.store().content().status(hash);
        assert_eq!(status, Ok(ContentStatus::Complete { size }));
        assert_eq!(used(&files, files.bucket), size);
    }
}

#[test]
fn an_announcement_does_not_tell_what_other_buckets_have() {
    let files = TestFiles::new();
    let (bucket, mallory) = other_bucket(&files);
    let secret = files.put("/secret", &content(1, 100_000));
    let unknown = ContentHash::new([9; 32]);
    for (number, hash) in [secret, unknown].into_iter().enumerate() {
        for size in [0, 7, 100_000] {
            let at = format!("/{number}-{size}");
            announce(&files, mallory, &at, hash, size).expect("the bucket has not the hash");
        }
        // The first announcement counts for the bucket.
        assert_eq!(size_at(&files, mallory, &format!("/{number}-100000")), 0);
        let status = files
            .store()
            .read(move |tx| tx.content_status_in(bucket, hash));
        assert_eq!(status.wait(), Ok(ContentStatus::Wanted { size: 0 }));
        assert_eq!(
            read(&files, bucket, hash),
            Err(StoreError::ContentUnavailable { hash })
        );
    }
    // The owner stores it once more, and deletes it: the other bucket sees nothing of either.
    files.put("/again", &content(1, 100_000));
    assert_eq!(size_at(&files, mallory, "/0-7"), 0);
    assert_eq!(
        (used(&files, bucket), used(&files, files.bucket)),
        (0, 100_000)
    );
}

/// With the right size, the row of the content says that it is here.
#[test]
fn an_announcement_gives_no_right_to_bytes_by_any_way() {
    for len in [100, 100_000] {
        let files = TestFiles::new();
        let (bucket, mallory) = other_bucket(&files);
        let bytes = content(1, len);
        let hash = files.put("/secret", &bytes);
        announce(&files, mallory, "/mine", hash, len as u64).expect("the bucket has not the hash");
        let unavailable = Err(StoreError::ContentUnavailable { hash });
        let has = |bucket: BucketId| {
            let has = files.store().read(move |tx| tx.has_content(bucket, hash));
            has.wait().expect("readable")
        };
        assert_eq!((has(bucket), has(files.bucket)), (false, true));
        assert_eq!(read(&files, bucket, hash), unavailable);
        // A session shows what it begins from.
        let mode = WriteSessionMode::Modify;
        let session = NewWriteSession::new(mallory, path("/mine"), mode, "mallory");
        let opened = files.store().open_session(&session);
        assert_eq!(opened.map(drop), unavailable.clone().map(drop));
        // Copies and moves carry the name alone, also into a bucket that never saw the announcement.
        let copy = |to: &str| TreeChange::Copy {
            view: None,
            from: path("/mine"),
            to: path(to),
            is_recursive: false,
            may_replace: false,
        };
        files.apply(mallory, copy("/copy")).expect("there");
        let rename = TreeChange::rename(path("/mine"), path("/moved"));
        files.apply(mallory, rename).expect("there");
        assert_eq!(read(&files, bucket, hash), unavailable);
        let new = NewBucket::new("third".parse().expect("a name"), "mallory");
        let created = files.store().write(move |tx| tx.create_bucket(&new));
        let (third, third_main) = created.wait().expect("free");
        let carry = |from: BranchId, at: &str| {
            let view = files.store().read(move |tx| tx.view(from, None));
            TreeChange::Copy {
                view: Some(view.wait().expect("there")),
                from: path(at),
                to: path("/carried"),
                is_recursive: false,
                may_replace: true,
            }
        };
        files
            .apply(third_main.id, carry(mallory, "/moved"))
            .expect("there");
        assert_eq!(read(&files, third.id, hash), unavailable);
        // A copy of a file that has its bytes brings the right with it.
        let owned = carry(files.main, "/secret");
        files.apply(third_main.id, owned).expect("there");
        assert!(read(&files, third.id, hash) == Ok(bytes));
        assert_eq!(read(&files, bucket, hash), unavailable);
        for bucket in [bucket, third.id, files.bucket] {
            assert_eq!(used(&files, bucket), len as u64);
        }
    }
}

#[test]
fn bytes_that_were_put_or_came_from_a_peer_give_the_right_and_the_true_size() {
    for by_peer in [false, true] {
        for len in [100, INLINE_BYTES_MAX as usize + 1] {
            let files = TestFiles::new();
            let (bucket, mallory) = other_bucket(&files);
            let bytes = content(1, len);
            let hash = hash_of(&bytes);
            announce(&files, mallory, "/a", hash, 7).expect("the bucket has not the hash");
            announce(&files, files.main, "/a", hash, 7).expect("the bucket has not the hash");
            assert_eq!(used(&files, files.bucket), 7);
            if by_peer {
                let received = files.store().put_bytes(&bytes).expect("room");
                let own = files.bucket;
                let taken = files
                    .store()
                    .write(move |tx| tx.receive_content(own, &received));
                taken.wait().expect("it was announced");
            } else {
                files.put("/b", &bytes);
            }
            assert!(read(&files, files.bucket, hash) == Ok(bytes.clone()));
            assert_eq!(size_at(&files, files.main, "/a"), len as u64);
            assert_eq!(used(&files, files.bucket), len as u64);
            // The other bucket goes on with what it knows.
            assert_eq!(size_at(&files, mallory, "/a"), 7);
            assert_eq!(used(&files, bucket), 7);
            assert!(read(&files, bucket, hash).is_err());
            files.delete("/a");
            files.set_retention(0);
            files
                .clock
                .advance(std::time::Duration::from_secs(24 * 60 * 60));
            files.collect();
            let left = if by_peer { 0 } else { len as u64 };
            assert_eq!(used(&files, files.bucket), left);
        }
    }
    let files = TestFiles::new();
    let received = files.store().put_bytes(b"unasked").expect("room");
    let bucket = files.bucket;
    let taken = files
        .store()
        .write(move |tx| tx.receive_content(bucket, &received));
    assert_eq!(
        taken.wait(),
        Err(StoreError::NotFound(StoreObject::Content))
    );
}

/// Announced as empty, a content would cost its bucket nothing.
#[test]
fn a_content_that_was_announced_as_shorter_is_paid_in_full() {
    let files = TestFiles::new();
    files.set_bucket(BucketSettings {
        quota_bytes: Some(Some(250_000)),
        ..BucketSettings::default()
    });
    let put = |number: u64| {
        let bytes = content(number, 100_000);
        let at = format!("/{number}");
        announce(&files, files.main, &at, hash_of(&bytes), 0).expect("it costs nothing");
        let prepared = files.store().put_bytes(&bytes).expect("room");
        let put = TreeChange::put(path(&at), prepared.content());
        let request = ChangeRequest::new(files.main, "alice", put);
        files.store().apply(request, vec![prepared]).wait()
    };
    put(1).expect("room");
    put(2).expect("room");
    let resource = QuotaResource::Bytes;
    let third = put(3);
    assert!(
        matches!(third, Err(StoreError::QuotaExceeded { resource: found, .. }) if found == resource),
        "{third:?}"
    );
    assert_eq!(used(&files, files.bucket), 200_000);
}

/// The code of the errors above is the same for a content of others and for one of no bucket.
#[test]
fn a_hash_that_a_bucket_has_no_name_of_is_unknown_to_it() {
    let files = TestFiles::new();
    let (bucket, _) = other_bucket(&files);
    let secret = files.put("/secret", &content(1, 100));
    for hash in [secret, ContentHash::new([9; 32])] {
        let refused = read(&files, bucket, hash).expect_err("it has no name");
        assert_eq!(refused.code(), StoreErrorCode::NotFound);
    }
}
