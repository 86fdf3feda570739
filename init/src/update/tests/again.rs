//! Clients that stage the same program again and again, other versions than were asked for, and versions that were left.

use super::*;

/// What the boot partition has.
fn boot_partition(bench: &UpdateBench) -> Vec<u64> {
    let sectors = bench.disk.sectors().into_iter();
    let sectors = sectors.filter(|(number, _)| *number >= 2048);
    let sum = |sector: [u8; SECTOR_BYTES]| sector.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sectors
        .flat_map(|(number, sector)| [number, sum(sector)])
        .collect()
}

/// A client with `update:stage` wears the disk, and overwrites the version before.
#[test]
fn the_program_that_runs_is_not_written_to_the_other_slot() {
    let bench = UpdateBench::updated();
    bench.disk.forget_steps();
    for _ in 0..3 {
        bench.refuses(RefusalCode::RunsAlready, |bench| {
            bench.stage(&TestRelease::new(NEW, 1)).map(drop)
        });
    }
    assert!(!bench.disk.is_written());
    assert_eq!(
        bench.disk.record().phase(),
        BootPhase::Good,
        "the version before is there"
    );
    // Another build of the same version is another program.
    let plan = bench.stage(&TestRelease::new(NEW, 2)).expect("staged");
    assert_eq!(plan.step, "same");
}

#[test]
fn a_program_that_lies_in_the_slot_is_staged_without_a_write_to_the_boot_partition() {
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    let first = bench.stage(&release).expect("staged");
    bench.disk.forget_steps();
    for _ in 0..3 {
        assert_eq!(bench.stage(&release), Ok(first.clone()));
    }
    assert!(!bench.disk.is_written(), "it was staged already");
    // After it was taken back, the record alone changes.
    let before = boot_partition(&bench);
    apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules()).expect("staged");
    assert_eq!(bench.disk.record().phase(), BootPhase::Idle);
    assert_eq!(bench.stage(&release), Ok(first));
    assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
    assert!(boot_partition(&bench) == before);
    bench.arm(&bench.disk);
    assert!(bench.disk.power_on().1 == Some(release.content()));
}

/// What is noted of a slot is no proof of what the disk has there.
#[test]
fn a_slot_whose_file_was_changed_is_written_again() {
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    bench.stage(&release).expect("staged");
    known_programs::put(&bench.disk, BootSlot::B, &program(NEW, 4096, 77));
    bench.stage(&release).expect("staged again");
    assert!(bench.disk.file(BootSlot::B) == Some(release.content()));
}

/// A caller set a moment, and another one staged another version before it.
#[test]
fn a_start_of_one_program_starts_no_other_one() {
    let bench = UpdateBench::new();
    let wanted = bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    bench.stage(&TestRelease::new("1.2.0", 2)).expect("staged");
    let apply = |bench: &UpdateBench, sha256: Option<&str>| {
        apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), sha256)
    };
    bench.refuses(RefusalCode::OtherStaged, |bench| {
        apply(bench, Some(&wanted.sha256)).map(drop)
    });
    let again = bench.stage(&TestRelease::new("1.2.0", 2)).expect("staged");
    assert!(apply(&bench, Some(&again.sha256)).is_ok() && apply(&bench, None).is_ok());
}

/// The machine and a hub do not bring back what an administrator left; an administrator may, and a newer version comes.
#[test]
fn a_version_that_was_left_is_staged_only_for_an_administrator() {
    let bench = UpdateBench::new();
    left::leave(bench.folder.path(), &version(NEW)).expect("written");
    let stage = |bench: &UpdateBench, release: &TestRelease, unasked| {
        let bundle = bench.publisher.bundle(release);
        let order = StageOrder {
            unasked,
            ..order(&bundle)
        };
        bench.stage_bundle(&bundle, &order).map(drop)
    };
    let release = TestRelease::new(NEW, 1);
    bench.refuses(RefusalCode::Left, |bench| stage(bench, &release, true));
    assert_eq!(stage(&bench, &TestRelease::new("1.2.0", 2), true), Ok(()));
    let bench = UpdateBench::new();
    left::leave(bench.folder.path(), &version(NEW)).expect("written");
    assert_eq!(stage(&bench, &release, false), Ok(()));
    let left = LeftVersions::load(Some(bench.folder.path()));
    assert!(left.has(&version(NEW)), "until it is confirmed");
}

/// A node that sends a bundle slowly gets the plan of a dry run from the metadata alone.
#[test]
fn a_dry_run_reads_no_program() {
    struct Unread;
    impl Read for Unread {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("a dry run waits for the program");
        }
    }
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    let bundle = bench.publisher.bundle(&release);
    let content = release.content();
    let begins = |at: &usize| bundle[*at..].starts_with(&content[..4096]);
    let at = (0..bundle.len()).step_by(512).find(begins);
    let mut stream = framed(&bundle[..at.expect("the program")], 512);
    // Without the frame that ends a bundle.
    stream.truncate(stream.len() - 4);
    let dry = StageOrder {
        dry_run: true,
        ..order(&bundle)
    };
    let plan = bench.stage_stream(&bench.disk, stream.as_slice().chain(Unread), &dry);
    assert_eq!(plan.map(|plan| plan.to), Ok(NEW.to_owned()));
}
