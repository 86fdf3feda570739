use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::clock::TimeSource;
use crate::error::StoreErrorCode;
use crate::limits::{INLINE_BYTES_MAX, READ_BLOCK_BYTES, SCRUB_PAUSES_MAX, STAGED_UNCHECKED_BYTES};
use crate::store::tests::{TestFiles, content};

/// The file of a content.
fn object_path(files: &TestFiles, hash: ContentHash) -> PathBuf {
    files.store().content().objects().path(&object_hash(hash))
}

/// Replaces the file of a content by these bytes, as a faulty disk or another program may.
fn overwrite(files: &TestFiles, hash: ContentHash, bytes: &[u8]) {
    let file = object_path(files, hash);
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("it is ours");
    fs::write(&file, bytes).expect("room");
}

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorCode {
    result.expect_err("refused").code()
}

fn bad_events(files: &TestFiles) -> u64 {
    files.count("SELECT count(*) FROM outbox WHERE topic = 'blob.bad'")
}

fn status(files: &TestFiles, hash: ContentHash) -> ContentStatus {
    files.store().content().status(hash).expect("readable")
}

#[test]
fn short_contents_are_rows_and_longer_ones_objects() {
    let files = TestFiles::new();
    for (len, objects) in [
        (0, 0),
        (1, 0),
        (INLINE_BYTES_MAX as usize, 0),
        (INLINE_BYTES_MAX as usize + 1, 1),
        (1_000_000, 2),
    ] {
        let bytes = content(len as u64, len);
        let hash = files.put("/a", &bytes);
        assert_eq!(hash, content_hash(blake3::hash(&bytes)));
        assert!(files.bytes(hash).expect("whole") == bytes);
        assert_eq!(files.objects().len(), objects, "{len}");
        let size = len as u64;
        assert_eq!(status(&files, hash), ContentStatus::Complete { size });
    }
    assert_eq!(files.count("SELECT count(*) FROM inline_"), 3);
    files.check_usage();
}

#[test]
fn a_staged_file_that_is_short_becomes_a_row() {
    let files = TestFiles::new();
    let store = files.store();
    let mut staged = store.stage().expect("room");
    staged.write_at(50_000, b"end").expect("room");
    staged.set_len(100).expect("room");
    staged.write_at(98, b"ab").expect("room");
    let prepared = store.put_staged(staged).expect("room");
    let mut expected = vec![0; 98];
    expected.extend(b"ab");
    assert_eq!(prepared.hash(), content_hash(blake3::hash(&expected)));
    assert_eq!(prepared.inline(), Some(expected.as_slice()));
    assert_eq!(files.objects().len(), 0);
}

#[test]
fn ranges_come_in_blocks_that_are_not_too_large() {
    let files = TestFiles::new();
    for len in [10_000, 3 * READ_BLOCK_BYTES + 5] {
        let bytes = content(3, len);
        let hash = files.put("/a", &bytes);
        let reader = files.store().read_content(hash).expect("there");
        let len = len as u64;
        for range in [
            0..len,
            1..len,
            5..6,
            100..9_000,
            len - 1..len,
            len..len + 1,
            0..0,
            len / 2..u64::MAX,
        ] {
            let blocks = reader.blocks(range.clone());
            let blocks = blocks.collect::<Result<Vec<_>, _>>().expect("whole");
            assert!(
                blocks
                    .iter()
                    .all(|it| it.len() <= READ_BLOCK_BYTES && !it.is_empty())
            );
            let end = range.end.min(len) as usize;
            let start = (range.start as usize).min(end);
            assert!(blocks.concat() == bytes[start..end], "{range:?} of {len}");
        }
    }
}

#[test]
fn a_damaged_object_is_refused_marked_and_mended() {
    let files = TestFiles::new();
    let bytes = content(1, 600_000);
    let hash = files.put("/a", &bytes);
    assert_eq!(files.store().db().damaged_contents(), 0);
    let mut damaged = bytes.clone();
    damaged[400_000] ^= 1;
    overwrite(&files, hash, &damaged);
    // What comes before the damage is served, and not a byte of the damaged group.
    let reader = files.store().read_content(hash).expect("its tree is whole");
    let blocks: Vec<_> = reader.blocks(0..600_000).take(1000).collect();
    let (last, whole) = blocks.split_last().expect("some");
    let whole = whole.iter().map(|it| it.clone().expect("whole"));
    let whole = whole.collect::<Vec<_>>().concat();
    assert!(whole.len() <= 400_000 && bytes.starts_with(&whole));
    assert_eq!(last.clone(), Err(StoreError::ContentMissing { hash }));
    let size = 600_000;
    assert_eq!(status(&files, hash), ContentStatus::Bad { size });
    assert_eq!(bad_events(&files), 1);
    assert_eq!(refused(files.bytes(hash)), StoreErrorCode::ContentMissing);
    assert_eq!(bad_events(&files), 1, "it is announced once");
    assert_eq!(files.store().db().damaged_contents(), 1);
    // The same content again mends it.
    files.put("/b", &bytes);
    assert!(files.bytes(hash).expect("whole") == bytes);
    assert_eq!(status(&files, hash), ContentStatus::Complete { size });
    assert_eq!(files.store().db().damaged_contents(), 0);
    let complete = "SELECT count(*) FROM outbox WHERE topic = 'blob.complete'";
    assert_eq!(files.count(complete), 1);
}

#[test]
fn contents_without_their_bytes_are_missing() {
    let files = TestFiles::new();
    let long = files.put("/long", &content(1, 100_000));
    fs::remove_file(object_path(&files, long)).expect("it is there");
    assert_eq!(refused(files.bytes(long)), StoreErrorCode::ContentMissing);
    let cut = files.put("/cut", &content(2, 100_000));
    overwrite(&files, cut, &content(2, 50_000));
    assert_eq!(refused(files.bytes(cut)), StoreErrorCode::ContentMissing);
    let short = files.put("/short", b"short");
    let damage = files.store().write(move |tx| {
        let set = "UPDATE inline_ SET data = zeroblob(length(data)) WHERE hash = ?1";
        tx.execute(set, [short]).map(drop)
    });
    damage.wait().expect("room");
    assert_eq!(refused(files.bytes(short)), StoreErrorCode::ContentMissing);
    assert_eq!(bad_events(&files), 3);
    let unknown = ContentHash::new([7; 32]);
    assert_eq!(refused(files.bytes(unknown)), StoreErrorCode::NotFound);
    assert_eq!(status(&files, unknown), ContentStatus::Missing);
    files.put("/short", b"short");
    assert_eq!(files.bytes(short).expect("mended"), b"short");
}

#[test]
fn a_damaged_outboard_is_computed_again() {
    let files = TestFiles::new();
    let bytes = content(1, 300_000);
    let hash = files.put("/a", &bytes);
    let outboard = files.root().join("content/outboards");
    let outboard = outboard.join(format!("{hash}-0-300000"));
    let mut damaged = fs::read(&outboard).expect("it is placed");
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(&outboard, damaged).expect("room");
    assert!(files.bytes(hash).expect("whole") == bytes);
    assert_eq!(bad_events(&files), 0);
}

#[test]
fn a_reader_of_the_damage_does_not_mark_what_was_stored_again() {
    let files = TestFiles::new();
    let hash = files.put("/a", &content(1, 100_000));
    let read = files.store().read(move |tx| tx.content_row(hash));
    let seen = read.wait().expect("readable").expect("known").verified_ms;
    overwrite(&files, hash, b"damaged");
    files.clock.advance(Duration::from_millis(5));
    files.put("/a", &content(1, 100_000));
    let folder = files.store().content();
    folder.report_damage(hash, seen).expect("readable");
    assert_eq!(bad_events(&files), 0);
    assert!(files.bytes(hash).is_ok());
}

#[test]
fn a_start_after_a_cut_verifies_the_newest_contents_first() {
    let files = TestFiles::new();
    let mut hashes = Vec::new();
    for number in 0..5 {
        files.clock.advance(Duration::from_millis(1000));
        let at = format!("/{number}");
        hashes.push(files.put(&at, &content(number, 100_000)));
    }
    overwrite(&files, hashes[4], &content(9, 100_000));
    fs::remove_file(object_path(&files, hashes[1])).expect("it is there");
    let cut = files.cut();
    for (number, is_bad) in [(0, false), (1, true), (2, false), (4, true)] {
        let size = 100_000;
        let expected = match is_bad {
            true => ContentStatus::Bad { size },
            false => ContentStatus::Complete { size },
        };
        assert_eq!(status(&cut, hashes[number]), expected);
    }
    assert_eq!(bad_events(&cut), 2);
    assert!(cut.store().is_verified());

    // What was stored in the millisecond of the last start is not behind the mark of that start.
    let files = TestFiles::new();
    let long = files.put("/long", &content(1, 100_000));
    let short = files.put("/short", b"short");
    overwrite(&files, long, &content(2, 100_000));
    let damage = files.store().write(move |tx| {
        let set = "UPDATE inline_ SET data = zeroblob(length(data)) WHERE hash = ?1";
        tx.execute(set, [short]).map(drop)
    });
    damage.wait().expect("room");
    let cut = files.cut();
    assert_eq!(status(&cut, long), ContentStatus::Bad { size: 100_000 });
    assert_eq!(status(&cut, short), ContentStatus::Bad { size: 5 });
}

#[test]
fn a_verification_goes_in_steps_with_the_newest_content_first() {
    let files = TestFiles::new();
    let mut hashes = Vec::new();
    for number in 0..5 {
        files.clock.advance(Duration::from_millis(1000));
        let at = format!("/{number}");
        hashes.push(files.put(&at, &content(number, 100_000)));
    }
    overwrite(&files, hashes[4], &content(9, 100_000));
    fs::remove_file(object_path(&files, hashes[1])).expect("it is there");
    let folder = files.store().content();
    let now = files.clock.unix_ms();
    let mut verification = folder.begin_verification(now, false).expect("readable");
    let mut damaged = Vec::new();
    let mut steps = 0;
    while !verification.is_done() {
        let step = folder
            .verify_step(&mut verification, 50_000)
            .expect("readable");
        damaged.extend(step.damaged);
        steps += 1;
    }
    assert!(steps > 5, "{steps}");
    assert_eq!(damaged, [hashes[4], hashes[1]]);
    // The next verification begins behind the mark.
    let mut verification = folder.begin_verification(now, false).expect("readable");
    let step = folder
        .verify_step(&mut verification, u64::MAX)
        .expect("readable");
    assert!(step.is_done && step.damaged.is_empty());
}

#[test]
fn a_scrub_finds_each_kind_of_damage_and_what_was_brought_back() {
    let files = TestFiles::new();
    let damaged = files.put("/damaged", &content(1, 100_000));
    let gone = files.put("/gone", &content(2, 100_000));
    let short = files.put("/short", b"short");
    files.put("/whole", &content(3, 100_000));
    overwrite(&files, damaged, &content(4, 100_000));
    fs::remove_file(object_path(&files, gone)).expect("it is there");
    let damage = files.store().write(move |tx| {
        let set = "UPDATE inline_ SET data = zeroblob(length(data)) WHERE hash = ?1";
        tx.execute(set, [short]).map(drop)
    });
    damage.wait().expect("room");
    let run = || {
        let mut scrub = ContentScrub::default();
        let mut found = Vec::new();
        loop {
            let step = files.store().content().scrub_step(&mut scrub, 30_000);
            let step = step.expect("readable");
            assert!(step.bytes <= 30_000);
            found.extend(step.damaged);
            if step.is_done {
                found.sort();
                break found;
            }
        }
    };
    let mut expected = vec![damaged, gone, short];
    expected.sort();
    assert_eq!(run(), expected);
    assert_eq!(bad_events(&files), 3);
    overwrite(&files, damaged, &content(1, 100_000));
    assert!(run().is_empty());
    assert!(files.bytes(damaged).is_ok(), "it is whole again");
}

#[test]
fn damaged_contents_are_counted_until_they_are_stored_again_or_gone() {
    let mut files = TestFiles::new();
    files.set_retention(0);
    let count = |files: &TestFiles| files.store().db().damaged_contents();
    for number in 1..4 {
        let hash = files.put(&format!("/{number}"), &content(number, 100_000));
        fs::remove_file(object_path(&files, hash)).expect("it is there");
        assert_eq!(refused(files.bytes(hash)), StoreErrorCode::ContentMissing);
        assert_eq!(count(&files), number);
    }
    files.reopen();
    assert_eq!(count(&files), 3, "a start counts them");
    files.put("/again", &content(1, 100_000));
    assert_eq!(count(&files), 2);
    files.delete("/2");
    assert_eq!(count(&files), 2, "a former version has it");
    files.clock.advance(Duration::from_secs(20 * 60));
    files.collect();
    assert_eq!(count(&files), 1);
}

/// The row is a caller's word, and the hash covers the size as well.
#[test]
fn a_part_of_a_content_does_not_pass_for_the_whole() {
    let files = TestFiles::new();
    for bytes in [content(1, 200), content(2, 100_000)] {
        let hash = files.put("/a", &bytes);
        let damage = files.store().write(move |tx| {
            let set = "UPDATE blob SET size = size - 100 WHERE hash = ?1";
            tx.execute(set, [hash]).map(drop)
        });
        damage.wait().expect("room");
        assert_eq!(refused(files.bytes(hash)), StoreErrorCode::ContentMissing);
    }
    assert_eq!(bad_events(&files), 2);
}

#[test]
fn contents_leave_the_reserve_of_the_disk_alone() {
    let files = TestFiles::new();
    let store = files.store();
    let reserve = files.reserve();
    files.put("/a", &content(1, 100_000));
    files.space.set_free(reserve + 99_999);
    let refused_put = store.put_bytes(&content(2, 100_000));
    assert_eq!(refused(refused_put), StoreErrorCode::NoSpace);
    // Files of unknown length are looked at while they grow, all of them together.
    let mut staged: Vec<_> = (0..16).map(|_| store.stage().expect("room")).collect();
    let piece = vec![1; 1 << 20];
    files.space.set_free(reserve - 1);
    let mut grown = 0;
    for at in 0..16 {
        for file in &mut staged {
            grown += u64::from(file.write_at(at << 20, &piece).is_ok());
        }
    }
    assert!(grown << 20 <= STAGED_UNCHECKED_BYTES, "{grown} MiB");
    assert!(grown >= 7, "{grown} MiB");
    drop(staged);
    assert_eq!(refused(store.stage()), StoreErrorCode::NoSpace);
    // What frees space goes on.
    files.delete("/a");
    files.set_retention(0);
    files.clock.advance(Duration::from_secs(24 * 60 * 60));
    files.collect();
    assert_eq!(files.objects().len(), 0);
    files.space.set_free(reserve + 100_000);
    files.put("/b", &content(2, 100_000));
}

#[test]
fn a_recursive_pin_has_the_contents_of_its_sequence() {
    let files = TestFiles::new();
    let children = [content(1, 100_000), content(2, 50)];
    let hashes = children.iter().map(|bytes| blake3::hash(bytes));
    let sequence: Vec<u8> = hashes.flat_map(|hash| *hash.as_bytes()).collect();
    let sequence = files.put("/sequence", &sequence);
    let folder = files.store().content();
    folder
        .pin_content(sequence, "alice", None, true)
        .expect("it is one");
    let pins = "SELECT count(*) FROM pin";
    assert_eq!(files.count(pins), 3);
    folder
        .pin_content(sequence, "alice", Some(5), false)
        .expect("it is there");
    assert_eq!(files.count(pins), 1, "the second pin replaces the first");
    folder
        .unpin_content(sequence, "alice")
        .expect("it is there");
    assert_eq!(files.count(pins), 0);
    let text = files.put("/text", b"no hashes");
    let no_sequence = folder.pin_content(text, "alice", None, true);
    assert_eq!(refused(no_sequence), StoreErrorCode::Denied);
    let reserved = folder.pin_content(text, "seq:alice", None, false);
    assert_eq!(refused(reserved), StoreErrorCode::Denied);
}

#[test]
fn a_stored_content_gets_a_further_name() {
    let files = TestFiles::new();
    for bytes in [content(1, 50), content(2, 100_000)] {
        let hash = files.put("/a", &bytes);
        let pinned = files.store().content().pin_stored(hash).expect("there");
        assert_eq!((pinned.hash(), pinned.size()), (hash, bytes.len() as u64));
    }
    let long = files.put("/a", &content(2, 100_000));
    fs::remove_file(object_path(&files, long)).expect("it is there");
    let lost = files.store().content().pin_stored(long);
    assert_eq!(refused(lost), StoreErrorCode::ContentMissing);
    let unknown = files
        .store()
        .content()
        .pin_stored(ContentHash::new([9; 32]));
    assert_eq!(refused(unknown), StoreErrorCode::NotFound);
}

/// Bytes that this thread has read from files so far.
fn read_bytes() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/io").expect("Linux counts");
    let line = counters
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|bytes| bytes.parse().ok()).expect("a number")
}

/// Another program makes the file of a content longer, which costs it nothing: each reader, writer and check would read a
/// terabyte of zeros.
#[test]
fn a_file_that_was_extended_costs_no_read() {
    let files = TestFiles::new();
    let bytes = content(1, 100_000);
    let hash = files.put("/a", &bytes);
    let extend = || {
        let object = object_path(&files, hash);
        fs::set_permissions(&object, Permissions::from_mode(0o600)).expect("it is ours");
        let file = fs::File::options().write(true).open(&object);
        file.expect("it is there").set_len(1 << 30).expect("sparse");
    };
    let store = files.store();
    let missing = StoreErrorCode::ContentMissing;
    let before = read_bytes();
    extend();
    assert_eq!(refused(files.bytes(hash)), missing);
    // An upload of the same content mends it.
    files.put("/b", &bytes);
    assert!(files.bytes(hash).expect("mended") == bytes);
    extend();
    let mut scrub = ContentScrub::default();
    let step = store.content().scrub_step(&mut scrub, 1 << 20);
    assert_eq!(step.expect("readable").damaged, [hash]);
    files.put("/b", &bytes);
    extend();
    let folder = store.content();
    let verification = folder.begin_verification(files.clock.unix_ms(), false);
    let mut verification = verification.expect("readable");
    let step = folder.verify_step(&mut verification, u64::MAX);
    assert_eq!(step.expect("readable").damaged, [hash]);
    let read = read_bytes() - before;
    assert!(read < 64 << 20, "{read}");
}

#[test]
fn a_link_in_the_place_of_a_file_is_damage() {
    let files = TestFiles::new();
    let bytes = content(1, 100_000);
    let hash = files.put("/a", &bytes);
    let object = object_path(&files, hash);
    let elsewhere = files.root().join("elsewhere");
    fs::rename(&object, &elsewhere).expect("writable");
    std::os::unix::fs::symlink(&elsewhere, &object).expect("writable");
    let missing = StoreErrorCode::ContentMissing;
    assert_eq!(refused(files.bytes(hash)), missing);
    files.put("/b", &bytes);
    assert!(files.bytes(hash).expect("mended") == bytes);
}

#[test]
fn a_check_gives_way_to_callers_and_comes_to_its_end_all_the_same() {
    let files = TestFiles::new();
    let hash = files.put("/a", &content(1, 200_000));
    let mut scrub = ContentScrub::default();
    let mut step = || {
        let step = files.store().content().scrub_step(&mut scrub, 30_000);
        step.expect("readable")
    };
    assert!(!step().is_paused);
    files.bytes(hash).expect("whole");
    let paused = step();
    assert!(paused.is_paused && paused.bytes == 0);
    assert!(!step().is_paused, "nothing was read since");
    for _ in 0..SCRUB_PAUSES_MAX {
        files.bytes(hash).expect("whole");
        assert!(step().is_paused);
    }
    files.bytes(hash).expect("whole");
    assert!(!step().is_paused);
}
