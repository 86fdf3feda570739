//! Bundles that are given up before PID 1 reads the first byte, for a person who waits for the media.

use std::cell::Cell;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use alknet_test_support::deadline;

use super::super::boot_partitions::BootPartitions;
use super::*;
use crate::media;

/// The machine cannot keep its notes, so it hashes the program that runs before each bundle.
#[test]
fn the_program_that_runs_is_not_hashed_to_its_end_for_a_bundle_that_is_given_up() {
    let mut bench = UpdateBench::new();
    bench.known = KnownStore::new(None);
    let looks = Cell::new(0);
    let noted = bench.note_running_while(|| {
        looks.set(looks.get() + 1);
        looks.get() < 3
    });
    let refused = noted.expect_err("it is given up before the third piece");
    assert_eq!(refused.code, RefusalCode::Aborted, "{}", refused.text);
    assert_eq!(looks.get(), 3, "pieces");
    assert!(bench.known.load().of_slot(BootSlot::A).is_none());
    assert_eq!(bench.note_running(), Ok(true), "the next look notes it");
}

/// Another part of PID 1 has the media, and both the thread that stages and a person wait for them. The disk is gone, so a
/// bundle that is wanted would be refused for that.
#[test]
fn a_bundle_can_be_given_up_before_it_uses_the_media() {
    let data = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(data.path().join("update")).expect("a new folder");
    let missing = |name: &str| PathBuf::from("/missing").join(name);
    let partitions = BootPartitions {
        disk: "vda".to_owned(),
        bios: missing("bios"),
        esp: missing("esp"),
    };
    let mut system = UpdateSystem::on_disk(partitions, BootSlot::A);
    assert!(system.set_data(Some(data.path())));
    let anchor = UpdateAnchor::of_root(Path::new("/missing"));
    let stage = |progress: &Arc<StagingProgress>| {
        let mut frames = BundleFrameReader::new(std::io::empty(), 9, Arc::clone(progress));
        let order = StageOrder::default();
        let staged = system.stage_for("client", &mut frames, &order, &anchor, true);
        staged.expect_err("no disk").code
    };
    let progress = Arc::new(StagingProgress::default());
    progress.give_up();
    assert_eq!(stage(&progress), RefusalCode::Aborted);
    let progress = Arc::new(StagingProgress::default());
    let held = media::in_turn();
    let refused = thread::scope(|scope| {
        let staging = scope.spawn(|| stage(&progress));
        scope.spawn(|| drop(media::alone()));
        let limit = Instant::now() + deadline(Duration::from_secs(10));
        while !progress.is_given_up() && Instant::now() < limit {
            thread::yield_now();
        }
        let is_given_up = progress.is_given_up();
        drop(held);
        assert!(is_given_up, "the person does not find the bundle");
        staging.join().expect("no panic")
    });
    assert_eq!(refused, RefusalCode::Aborted);
}
