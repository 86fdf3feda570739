//! Another program with access to the folder puts something else in the place of an object.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alknet_objects::{
    DamagedPart, ObjectDamage, ObjectError, ObjectScrub, OutboardPolicy, Placement,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::store::{GROUP, ObjectScene, content, set_mode};

/// A length to which a file is extended. Reading it takes long, and yet not for ever.
const EXTENDED: u64 = 1 << 30;

/// Bytes that this thread has read from files so far.
fn read_bytes() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/io").expect("Linux counts");
    let line = counters
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|bytes| bytes.parse().ok()).expect("a number")
}

/// The result, with the bytes that this thread has read for it.
fn count_read<T>(action: impl FnOnce() -> T) -> (T, u64) {
    let before = read_bytes();
    let result = action();
    (result, read_bytes() - before)
}

fn extend(path: &Path, len: u64) {
    set_mode(path, 0o600);
    let file = File::options().write(true).open(path);
    file.expect("it is there").set_len(len).expect("sparse");
}

fn is_damaged<T>(result: &Result<T, ObjectError>) -> bool {
    let part = DamagedPart::Content;
    matches!(result, Err(ObjectError::Damaged { part: found, .. }) if *found == part)
}

#[test]
fn a_file_that_was_extended_is_refused_without_being_read() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let bytes = content(5 * GROUP);
    let size = bytes.len() as u64;
    let hash = scene.store(&bytes, GROUP);
    extend(&scene.objects.path(&hash), EXTENDED);
    let most = 1 << 20;
    let (opened, read) = count_read(|| scene.objects.reader_of_size(&hash, size));
    assert!(is_damaged(&opened) && read < most, "{read}");
    let (opened, read) = count_read(|| scene.objects.open_file(&hash, size));
    assert!(is_damaged(&opened) && read < most, "{read}");
    let check = || {
        let mut scrub = ObjectScrub::default();
        let step = scene
            .objects
            .scrub_sized(&mut scrub, 10 << 20, |_| Some(size));
        let checked = step.expect("readable").and_then(|step| step.checked);
        checked.and_then(|checked| checked.damage)
    };
    let (damage, read) = count_read(check);
    assert!(matches!(damage, Some(ObjectDamage::OtherBytes)));
    assert!(read < most, "{read}");
    // What no row knows is not read either.
    let mut scrub = ObjectScrub::default();
    let (step, read) = count_read(|| scene.objects.scrub_sized(&mut scrub, 10 << 20, |_| None));
    assert!(
        step.expect("readable")
            .is_some_and(|step| step.checked.is_none())
    );
    assert!(read < most, "{read}");
    let mut staged = scene.objects.stage().expect("writable");
    staged.write_at(0, &bytes).expect("room");
    let (placed, read) = count_read(|| staged.place().expect("room"));
    let is_repaired =
        matches!(placed.placement(), Placement::Repaired { bytes, .. } if *bytes == EXTENDED);
    assert!(is_repaired && read < most, "{read}");
    let opened = scene.objects.reader_of_size(&hash, size);
    assert!(opened.is_ok(), "it is mended");
}

/// A link leads out of the folder, and a pipe without a writer would keep its reader waiting.
#[test]
fn a_link_and_a_pipe_are_damaged_objects_and_are_replaced() {
    for is_pipe in [false, true] {
        let scene = ObjectScene::new(OutboardPolicy::Placed);
        let bytes = content(5 * GROUP);
        let size = bytes.len() as u64;
        let hash = scene.store(&bytes, GROUP);
        let path = scene.objects.path(&hash);
        let elsewhere = scene.path("elsewhere");
        fs::rename(&path, &elsewhere).expect("writable");
        match is_pipe {
            // The content is right, and the file is another program's to change.
            false => symlink(&elsewhere, &path).expect("writable"),
            true => {
                let mode = Mode::RUSR | Mode::WUSR;
                mknodat(CWD, path.as_path(), FileType::Fifo, mode, 0).expect("writable");
            }
        }
        let objects = scene.objects.clone();
        let (sender, done) = mpsc::channel();
        thread::spawn(move || {
            let mut scrub = ObjectScrub::default();
            let step = objects.scrub(&mut scrub, 1 << 20).expect("readable");
            let checked = step.and_then(|step| step.checked).expect("at once");
            let verified = objects.verify(&hash).expect("there");
            let opened = [
                is_damaged(&objects.reader(&hash)),
                is_damaged(&objects.reader_of_size(&hash, size)),
                is_damaged(&objects.open_file(&hash, size)),
                checked.damage.is_some(),
                verified.damage.is_some(),
            ];
            let mut staged = objects.stage().expect("writable");
            staged.write_at(0, &content(5 * GROUP)).expect("room");
            let placed = staged.place().expect("room");
            let is_repaired = matches!(placed.placement(), Placement::Repaired { .. });
            sender.send((opened, is_repaired)).ok();
        });
        let waited = done.recv_timeout(Duration::from_secs(60));
        assert_eq!(waited, Ok(([true; 5], true)), "{is_pipe}");
        let found = fs::symlink_metadata(&path).expect("it is there");
        assert!(found.is_file() && found.len() == size);
        assert!(fs::read(&path).expect("readable") == bytes);
    }
}
