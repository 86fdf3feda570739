//! Clients that stage the same program again and again, other versions than were asked for, and versions that were left.

use std::os::unix::fs::MetadataExt;

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

/// A person at the console waits for the media, so PID 1 gives up the bundle whose thread has them. That thread has only
/// begun to hash the program in the slot, behind a node that computes.
#[test]
fn a_program_in_the_slot_is_not_hashed_to_its_end_for_a_bundle_that_is_given_up() {
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    bench.stage(&release).expect("staged");
    let bundle = bench.publisher.bundle(&release);
    let stream = framed(&bundle, 65_536);
    let progress = Arc::default();
    bench.disk.give_up_at_read(BootSlot::B, &progress);
    let refused = bench.staged_with(&bench.disk, &*stream, &order(&bundle), progress);
    let refused = refused.expect_err("it is given up");
    assert_eq!(refused.code, RefusalCode::Aborted, "{}", refused.text);
    assert_eq!(bench.disk.reads_since(), 1, "of pieces of the program");
    assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
}

/// What is noted of a slot is no proof of what the disk has there.
#[test]
fn a_slot_whose_file_was_changed_is_written_again() {
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    bench.stage(&release).expect("staged");
    verified_programs::put(&bench.disk, BootSlot::B, &program(NEW, 4096, 77));
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
        let terms = StartTerms {
            sha256: sha256.map(str::to_owned),
            floor: None,
        };
        apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &terms)
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
    left_versions::leave(bench.folder.path(), &version(NEW)).expect("written");
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
    left_versions::leave(bench.folder.path(), &version(NEW)).expect("written");
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

/// A client with `update:stage`, or a hub, stages what lies in the slot until the log has nothing else.
#[test]
fn a_program_that_is_staged_again_and_again_is_logged_once() {
    let bench = UpdateBench::new();
    let data = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(data.path().join("update")).expect("a new folder");
    let mut system = UpdateSystem::absent(&bench.log);
    assert!(system.set_data(Some(data.path())));
    let logged = |system: &UpdateSystem| -> Vec<(String, String)> {
        let records = system.records().into_iter();
        records.map(|it| (it.version, it.by)).collect()
    };
    let bundle = bench.publisher.bundle(&TestRelease::new(NEW, 1));
    let stage_as = |by: &str, limited| {
        let stream = framed(&bundle, 65_536);
        let staged = bench.staged_stream(&bench.disk, &*stream, &order(&bundle));
        system.log_staged(&staged.expect("staged"), by, limited);
    };
    let stage = |by: &str| stage_as(by, false);
    let entry = |by: &str| (NEW.to_owned(), by.to_owned());
    for _ in 0..4 {
        stage("client");
    }
    assert_eq!(logged(&system), [entry("client")]);
    // The log says who staged the version that waits: a hub does not replace that of an administrator.
    stage("admin");
    stage("admin");
    assert_eq!(logged(&system), [entry("client"), entry("admin")]);
    // A client that may not start versions does not make it a version of its own, which the machine and hubs may replace.
    stage_as("eve", true);
    assert_eq!(logged(&system), [entry("client"), entry("admin")]);
    // After it was taken back, the record changes, and that is an event.
    apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules()).expect("staged");
    stage("admin");
    assert_eq!(logged(&system).len(), 3);
    // The other way round the log has the administrator.
    apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules()).expect("staged");
    stage_as("eve", true);
    stage_as("eve", true);
    stage("admin");
    let records = system.records().into_iter().skip(3);
    let of_last: Vec<_> = records.map(|it| (it.by, it.limited)).collect();
    assert_eq!(
        of_last,
        [("eve".to_owned(), true), ("admin".to_owned(), false)]
    );
}

/// The attack: a client with `update:stage` brings other signed metadata, with a higher floor, for the program that an
/// administrator has staged, and so raises the floor to which the administrator has agreed.
#[test]
fn a_client_that_raises_the_floor_of_a_staged_program_is_in_the_log() {
    let bench = UpdateBench::new();
    let data = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(data.path().join("update")).expect("a new folder");
    let mut system = UpdateSystem::absent(&bench.log);
    assert!(system.set_data(Some(data.path())));
    let first = TestRelease::new(NEW, 1);
    let higher = TestRelease {
        floor: Some(NEW.to_owned()),
        program: Some(first.content()),
        ..TestRelease::new(NEW, 2)
    };
    let stage = |release: &TestRelease, by: &str, limited| {
        let bundle = bench.publisher.bundle(release);
        let stream = framed(&bundle, 65_536);
        let staged = bench.staged_stream(&bench.disk, &*stream, &order(&bundle));
        system.log_staged(&staged.expect("staged"), by, limited);
    };
    let logged = || -> Vec<String> {
        let records = system.records().into_iter();
        let lines =
            records.map(|it| format!("{} {} {}: {}", it.event, it.version, it.by, it.reason));
        lines.collect()
    };
    let staged = format!("staged {NEW} admin: ");
    let noted = format!("noted {NEW} eve: once it is confirmed, no version before {NEW} runs here");
    stage(&first, "admin", false);
    stage(&first, "eve", true);
    assert_eq!(logged(), [staged.as_str()]);
    // The last record `staged` stays the one of the administrator, whose version hubs and the machine leave alone.
    for _ in 0..3 {
        stage(&higher, "eve", true);
        stage(&higher, "admin", false);
    }
    assert_eq!(logged(), [staged.clone(), noted.clone()]);
    // So is one that brings the note back.
    StagedRelease::remove(bench.folder.path()).expect("it is there");
    stage(&higher, "eve", true);
    assert_eq!(logged(), [staged, noted.clone(), noted]);
}

/// A client with `update:read` has the channel checked again and again: what is there, and what is refused.
#[test]
fn dry_runs_write_nothing_to_the_data_disk() {
    let bench = UpdateBench::new();
    let bundle = bench.publisher.bundle(&TestRelease::new(NEW, 1));
    let dry = StageOrder {
        dry_run: true,
        ..order(&bundle)
    };
    let check = || bench.stage_bundle(&bundle, &dry);
    let file = || {
        fs::metadata(bench.folder.path().join("trust.json"))
            .expect("saved")
            .ino()
    };
    let first = check().expect("a plan");
    let seen = file();
    for _ in 0..5 {
        assert_eq!(check(), Ok(first.clone()));
        assert_eq!(file(), seen, "each check replaces the file");
    }
    let data = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(data.path().join("update")).expect("a new folder");
    let mut system = UpdateSystem::absent(&bench.log);
    assert!(system.set_data(Some(data.path())));
    let refused = |order: &StageOrder| {
        let stream = framed(&bundle, 65_536);
        let mut frames = BundleFrameReader::new(&*stream, order.bytes, Arc::default());
        let refused = system.stage_for(&mut frames, order, &bench.anchor, true);
        assert_eq!(refused.expect_err("no slots").code, RefusalCode::NoSlots);
        system.records().len()
    };
    assert_eq!(refused(&dry), 0);
    assert_eq!(refused(&order(&bundle)), 1);
}

/// A client that may fill the data disk must not end the limit of its starts by that.
#[test]
fn a_start_that_cannot_be_counted_is_refused() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let mut system = UpdateSystem::absent(&InitLog::default());
    assert_eq!(system.count_start("client"), Ok(()), "it keeps nothing");
    assert!(system.set_data(Some(data.path())));
    let refused = system.count_start("client").expect_err("no folder");
    assert_eq!(refused.code, RefusalCode::Disk, "{}", refused.text);
    fs::create_dir(data.path().join("update")).expect("a new folder");
    assert_eq!(system.check_rate("client"), Ok(()));
    while system.check_rate("client").is_ok() {
        assert_eq!(system.count_start("client"), Ok(()));
    }
    assert_eq!(system.check_rate("hub"), Ok(()));
}

/// A version was confirmed, and a power cut, or a client that fills the disk, came before its floor was raised.
#[test]
fn nothing_gets_below_a_floor_that_a_confirmation_owes() {
    let mut bench = UpdateBench::new();
    let release = TestRelease {
        floor: Some(NEW.to_owned()),
        ..TestRelease::new(NEW, 1)
    };
    bench.stage(&release).expect("staged");
    bench.arm(&bench.disk);
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
    bench.running = BootSlot::B;
    bench.version = NEW.to_owned();
    let rollback = |bench: &UpdateBench| {
        let plan = apply::plan_rollback(&mut bench.disk.open(), BootSlot::B, bench.rules());
        plan.map(drop)
    };
    assert_eq!(rollback(&bench), Ok(()), "a trial is given up");
    apply::confirm(&mut bench.disk.open(), BootSlot::B).expect("it runs");
    assert_eq!(bench.trust.floor(), Ok(None), "it is owed");
    bench.refuses(RefusalCode::BelowFloor, rollback);
    // A release that is staged now would take the place of the note.
    for (number, version) in [(2, "1.0.5"), (3, "1.2.0")] {
        let bundle = bench.publisher.bundle(&TestRelease::new(version, number));
        let order = StageOrder {
            downgrade: Some("1.0.5".to_owned()),
            ..order(&bundle)
        };
        bench.refuses(RefusalCode::Disk, |bench| {
            bench.stage_bundle(&bundle, &order).map(drop)
        });
    }
    let owes = StagedRelease::load(bench.folder.path()).expect("it is there");
    assert_eq!(owes.floor, Some(version(NEW)));
    // The next start raises the floor, and removes the note.
    let mut trust = bench.trust.load(&bench.anchor).expect("seen");
    trust.raise_floor(owes.floor.as_ref());
    bench.trust.save(&trust).expect("written");
    StagedRelease::remove(bench.folder.path()).expect("it is there");
    bench.refuses(RefusalCode::BelowFloor, rollback);
    bench.stage(&TestRelease::new("1.2.0", 4)).expect("staged");
}

/// The attack: the publisher signs metadata for a program again, with another floor. A caller stages the program with those
/// of the lower floor, and an administrator before or afterwards with those of the higher one.
#[test]
fn a_staged_program_keeps_the_highest_floor_that_was_signed_for_it() {
    let first = TestRelease::new(NEW, 1);
    let again = |floor: Option<&str>, number| TestRelease {
        floor: floor.map(str::to_owned),
        program: Some(first.content()),
        ..TestRelease::new(NEW, number)
    };
    let low = Some("0.9.0");
    for floors in [
        [None, Some(NEW), None],
        [low, Some(NEW), low],
        [None, low, Some(NEW)],
    ] {
        let mut bench = UpdateBench::new();
        let mut highest: Option<ReleaseVersion> = None;
        for (floor, number) in floors.into_iter().zip(1..) {
            let is_higher = floor.map(version) > highest;
            let before = StagedRelease::load(bench.folder.path());
            bench.disk.forget_steps();
            let release = again(floor, number);
            if number > 1 && is_higher {
                refuses_the_note(&bench, &release);
            }
            let plan = bench.stage(&release).expect("staged");
            highest = highest.max(floor.map(version));
            assert_eq!(plan.floor, highest.as_ref().map(ToString::to_string));
            let noted = StagedRelease::load(bench.folder.path()).expect("noted");
            assert_eq!(noted.floor, highest, "{floors:?}, number {number}");
            if number > 1 && !is_higher {
                assert_eq!(Some(noted), before);
                assert!(!bench.disk.is_written(), "it was staged already");
            }
        }
        bench.arm(&bench.disk);
        assert!(bench.disk.power_on().1 == Some(first.content()));
        bench.running = BootSlot::B;
        bench.version = NEW.to_owned();
        apply::confirm(&mut bench.disk.open(), BootSlot::B).expect("it runs");
        let floor = bench.rules().floor(BootSlot::B);
        assert_eq!(floor, Ok(Some(version(NEW))), "{floors:?}");
        bench.refuses(RefusalCode::BelowFloor, |bench| {
            apply::plan_rollback(&mut bench.disk.open(), BootSlot::B, bench.rules()).map(drop)
        });
    }
}

/// Asserts that a data disk which takes no note keeps the earlier one beside the staged program.
fn refuses_the_note(bench: &UpdateBench, release: &TestRelease) {
    let before = StagedRelease::load(bench.folder.path());
    let obstacle = bench.folder.path().join(".staged.json.new");
    fs::create_dir(&obstacle).expect("a new folder");
    bench.refuses(RefusalCode::Disk, |bench| bench.stage(release).map(drop));
    assert_eq!(StagedRelease::load(bench.folder.path()), before);
    fs::remove_dir(&obstacle).expect("it is ours");
}

/// The same for a program that was taken back, or whose file was changed: then it is staged once more, and its note is there.
#[test]
fn a_program_that_is_staged_once_more_keeps_its_floor() {
    let first = TestRelease {
        floor: Some(NEW.to_owned()),
        ..TestRelease::new(NEW, 1)
    };
    let later = TestRelease {
        program: Some(first.content()),
        ..TestRelease::new(NEW, 2)
    };
    let take_back = |bench: &UpdateBench| {
        let plan = apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules());
        plan.map(drop).expect("staged");
    };
    let change = |bench: &UpdateBench| {
        verified_programs::put(&bench.disk, BootSlot::B, &program(NEW, 4096, 77));
    };
    for undone in [&take_back as &dyn Fn(&UpdateBench), &change] {
        let bench = UpdateBench::new();
        bench.stage(&first).expect("staged");
        undone(&bench);
        let plan = bench.stage(&later).expect("staged");
        assert_eq!(plan.floor.as_deref(), Some(NEW));
        let noted = StagedRelease::load(bench.folder.path()).expect("noted");
        assert_eq!(noted.floor, Some(version(NEW)));
        // Another program of the version has the floor of its own release.
        let other = bench.stage(&TestRelease::new(NEW, 3)).expect("staged");
        assert_eq!(other.floor, None);
        let noted = StagedRelease::load(bench.folder.path()).expect("noted");
        assert_eq!(noted.floor, None);
    }
}

#[test]
fn the_files_of_others_are_counted_again_after_a_staging() {
    let bench = UpdateBench::new();
    let count = || {
        let counted = bench.foreign.get(&mut bench.disk.open(), BootSlot::B);
        counted.expect("a volume").files
    };
    assert_eq!(count(), 0);
    let mut volume = bench.disk.volume();
    let written = volume.replace_file(r"\NVVARS", 4, &mut &b"vars"[..], &mut |_| {});
    written.expect("room");
    assert_eq!(count(), 0, "the number is kept");
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    assert_eq!(count(), 1);
}
