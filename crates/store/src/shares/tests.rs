use super::*;
use crate::error::StoreErrorCode;
use crate::store::tests::TestFiles;

const KEY: &str = "ed25519:00";

fn new_share(files: &TestFiles, hash: ContentHash) -> NewShare {
    NewShare {
        hash,
        bucket: files.bucket,
        grantee: KEY.to_owned(),
        owner: "alice".to_owned(),
        time: Duration::from_secs(60),
        bytes_max: None,
        uses_max: None,
    }
}

fn create(files: &TestFiles, new: NewShare) -> Result<ContentShare, StoreError> {
    files.store().write(move |tx| tx.create_share(&new)).wait()
}

fn take(files: &TestFiles, grantee: &'static str, hash: ContentHash, bytes: u64) -> bool {
    let used = files
        .store()
        .write(move |tx| tx.use_share(grantee, hash, bytes));
    used.wait().expect("readable").is_some()
}

fn lasts(files: &TestFiles, id: ContentShareId) -> bool {
    let store = files.store();
    let now_ms = store.db().unix_ms();
    let lasts = store.read(move |tx| tx.share_lasts(id, now_ms));
    lasts.wait().expect("readable")
}

#[test]
fn a_share_is_for_one_key_and_one_content() {
    let files = TestFiles::new();
    let hash = files.put("/a", b"shared");
    let other = files.put("/b", b"not shared");
    create(&files, new_share(&files, hash)).expect("room");
    assert!(take(&files, KEY, hash, 6));
    assert!(take(&files, KEY, hash, u64::MAX));
    assert!(!take(&files, KEY, other, 1));
    assert!(!take(&files, "ed25519:01", hash, 1));
    assert!(!take(&files, KEY, ContentHash::new([9; 32]), 1));
}

#[test]
fn a_share_ends_by_time_bytes_and_requests() {
    let files = TestFiles::new();
    let hash = files.put("/a", b"shared");
    let mut new = new_share(&files, hash);
    new.bytes_max = Some(10);
    create(&files, new.clone()).expect("room");
    assert!(!take(&files, KEY, hash, 11));
    assert!(take(&files, KEY, hash, 6));
    assert!(!take(&files, KEY, hash, 6));
    assert!(take(&files, KEY, hash, 4));
    new.bytes_max = None;
    new.uses_max = Some(2);
    create(&files, new.clone()).expect("room");
    assert_eq!((0..3).filter(|_| take(&files, KEY, hash, 6)).count(), 2);
    new.uses_max = None;
    create(&files, new).expect("room");
    files.clock.advance(Duration::from_secs(59));
    assert!(take(&files, KEY, hash, 6));
    files.clock.advance(Duration::from_secs(1));
    assert!(!take(&files, KEY, hash, 6));
    let swept = files.store().write(|tx| tx.sweep_shares(10)).wait();
    // Also the one whose requests are used up, which stayed for a request under way.
    assert_eq!(swept, Ok(3));
    assert_eq!(files.count("SELECT count(*) FROM share"), 0);
}

#[test]
fn a_share_ends_with_the_bucket_and_by_hand() {
    let files = TestFiles::new();
    let hash = files.put("/a", b"shared");
    let share = create(&files, new_share(&files, hash)).expect("room");
    let (bucket, id) = (files.bucket, share.id);
    let listed = files.store().read(move |tx| tx.shares(bucket)).wait();
    assert_eq!(listed, Ok(vec![share]));
    let remove = || {
        files
            .store()
            .write(move |tx| tx.remove_share(bucket, id))
            .wait()
    };
    assert_eq!((remove(), remove()), (Ok(true), Ok(false)));
    assert!(!take(&files, KEY, hash, 6));
    create(&files, new_share(&files, hash)).expect("room");
    files
        .store()
        .write(move |tx| tx.delete_bucket(bucket))
        .wait()
        .expect("ours");
    assert!(!take(&files, KEY, hash, 6));
    assert_eq!(files.count("SELECT count(*) FROM share"), 0);
}

#[test]
fn a_request_goes_on_until_its_share_ends_and_not_until_it_is_used_up() {
    let files = TestFiles::new();
    let hash = files.put("/a", b"shared");
    let mut new = new_share(&files, hash);
    new.uses_max = Some(1);
    new.bytes_max = Some(6);
    let used = create(&files, new.clone()).expect("room").id;
    assert!(take(&files, KEY, hash, 6) && !take(&files, KEY, hash, 0));
    assert!(lasts(&files, used));
    // Nothing that could still be asked for is shared with the key.
    let any = files.store().read(|tx| tx.has_any_share(KEY, 0)).wait();
    assert_eq!(any, Ok(false));
    files.clock.advance(Duration::from_secs(59));
    assert!(lasts(&files, used));
    files.clock.advance(Duration::from_secs(1));
    assert!(!lasts(&files, used), "its time is over");

    let removed = create(&files, new.clone()).expect("room").id;
    assert!(lasts(&files, removed));
    let bucket = files.bucket;
    let store = files.store();
    let remove = store.write(move |tx| tx.remove_share(bucket, removed));
    assert_eq!(remove.wait(), Ok(true));
    assert!(!lasts(&files, removed), "an administrator removed it");

    let last = create(&files, new).expect("room").id;
    let deleted = files.store().write(move |tx| tx.delete_bucket(bucket));
    deleted.wait().expect("ours");
    assert!(!lasts(&files, last), "the bucket is gone");
}

/// They stay for requests under way, and must not keep an administrator from sharing.
#[test]
fn shares_that_are_used_up_give_way_to_others() {
    let files = TestFiles::new();
    let hash = files.put("/a", b"shared");
    let mut new = new_share(&files, hash);
    new.uses_max = Some(1);
    let used = create(&files, new.clone()).expect("room").id;
    assert!(take(&files, KEY, hash, 6));
    new.uses_max = None;
    let further = new.clone();
    let filled = files.store().write(move |tx| {
        for _ in 1..SHARES_PER_BUCKET_MAX {
            tx.create_share(&further)?;
        }
        Ok(())
    });
    filled.wait().expect("room");
    assert!(lasts(&files, used));
    create(&files, new.clone()).expect("the row of the used one");
    assert!(!lasts(&files, used));
    let refused = create(&files, new).expect_err("none is used up");
    assert_eq!(refused.code(), StoreErrorCode::TooLarge);
}

#[test]
fn only_what_the_bucket_has_is_shared_and_not_without_end() {
    let files = TestFiles::new();
    let hash = files.put("/a", b"shared");
    let refused = |new: NewShare| create(&files, new).expect_err("refused").code();
    let unknown = new_share(&files, ContentHash::new([9; 32]));
    assert_eq!(refused(unknown), StoreErrorCode::NotFound);
    let new = new_share(&files, hash);
    let many = NewShare {
        uses_max: Some(SHARE_USES_MAX + 1),
        ..new.clone()
    };
    assert_eq!(refused(many), StoreErrorCode::TooLarge);
    let long = NewShare {
        time: SHARE_TIME_MAX * 2,
        ..new.clone()
    };
    let share = create(&files, long).expect("room");
    assert_eq!(
        share.until_ms - share.created_ms,
        SHARE_TIME_MAX.as_millis() as u64
    );
    let filled = files.store().write(move |tx| {
        for _ in 1..SHARES_PER_BUCKET_MAX {
            tx.create_share(&new)?;
        }
        Ok(())
    });
    filled.wait().expect("room");
    assert_eq!(refused(new_share(&files, hash)), StoreErrorCode::TooLarge);
}

#[test]
fn numbers_are_read_as_they_are_shown() {
    let id = ContentShareId::random().expect("random bytes");
    assert_eq!(id.to_string().parse(), Ok(id));
    for wrong in [
        "",
        "0",
        &"0".repeat(33),
        &format!("+{}", "0".repeat(31)),
        &"AB".repeat(16),
    ] {
        assert!(wrong.parse::<ContentShareId>().is_err(), "{wrong}");
    }
}
