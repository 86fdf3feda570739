//! The file of the program that runs is damaged on the boot partition, as a failing disk leaves it.

use alknet_boot_state::TRIES;

use super::verified_programs::put;
use super::*;
use crate::update::partition_repair::repair;

/// Repairs the partition as a start does that runs `running`. Returns whether that slot still has a file.
fn stays(bench: &UpdateBench, running: BootSlot) -> bool {
    let disk = &bench.disk;
    let rules = Some(bench.rules());
    let repaired = repair(&mut disk.open(), running.other(), rules, &bench.log);
    repaired.expect("the model takes writes");
    assert!(disk.loader() == vec![b'L'; 3000]);
    let found = disk.volume().list(r"\EFI\ALKNET").expect("a folder");
    found
        .iter()
        .any(|entry| entry.name() == running.file_name())
}

/// Nothing else could start the machine: the other slot is empty, or has a version that failed.
#[test]
fn the_program_that_runs_stays_without_a_version_before() {
    let bench = UpdateBench::new();
    bench.disk.lengthen_entry(BootSlot::A);
    assert!(stays(&bench, BootSlot::A), "the other slot is empty");

    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    bench.arm(&bench.disk);
    for _ in 0..=TRIES {
        bench.disk.power_on();
    }
    assert_eq!(bench.disk.record().phase(), BootPhase::Failed);
    bench.disk.lengthen_entry(BootSlot::A);
    assert!(stays(&bench, BootSlot::A), "the other version failed");
}

#[test]
fn the_program_that_runs_goes_where_the_version_before_is_whole() {
    let bench = UpdateBench::updated();
    bench.disk.lengthen_entry(BootSlot::B);
    assert!(!stays(&bench, BootSlot::B));
    let (slot, program) = bench.disk.power_on();
    assert_eq!(slot, Some(BootSlot::A));
    assert!(program.is_some(), "the version before is whole");
    is_clean(&bench);
}

type Attack = fn(&mut UpdateBench);

/// What keeps a machine that was updated from the version before, in slot a.
const ATTACKS: [(&str, Attack); 4] = [
    ("one byte is another one", |bench| {
        let mut program = bench.disk.file(BootSlot::A).expect("the version before");
        program[500_000] ^= 1;
        put(&bench.disk, BootSlot::A, &program);
    }),
    ("it is below the floor", |bench| {
        let mut trust = bench.trust.load(&bench.anchor).expect("seen");
        trust.raise_floor(Some(&version("1.0.5")));
        bench.trust.save(&trust).expect("written");
    }),
    ("the floor cannot be read", |bench| {
        fs::write(bench.folder.path().join("trust.json"), "{").expect("writable");
    }),
    ("its hash is not noted", |bench| {
        bench.known = KnownStore::new(None)
    }),
];

/// The loader could read the file that runs, and nothing says so of the one before.
#[test]
fn the_program_that_runs_stays_beside_one_that_the_machine_may_not_start() {
    for (attack, change) in ATTACKS {
        let mut bench = UpdateBench::updated();
        change(&mut bench);
        bench.disk.lengthen_entry(BootSlot::B);
        let sectors = bench.disk.sectors();
        assert!(stays(&bench, BootSlot::B), "{attack}");
        assert!(bench.disk.sectors() == sectors, "{attack}: it wrote");
    }
}

#[track_caller]
fn is_clean(bench: &UpdateBench) {
    let report = bench.disk.volume().check(&[]).expect("a volume");
    assert!(report.findings.is_empty(), "{report:?}");
}

/// Both files have chains of their sizes, so only the noted hashes tell which of them has its own bytes.
#[test]
fn of_two_programs_that_cross_the_one_stays_that_is_whole() {
    let bench = UpdateBench::updated();
    let whole = BootSlot::ALL.map(|slot| bench.disk.file(slot));
    bench.disk.cross_into_other(BootSlot::B);
    let crossed = bench.disk.file(BootSlot::B).expect("a chain of its size");
    assert!(whole[1] != Some(crossed), "the bytes are other ones");
    assert!(!stays(&bench, BootSlot::B));
    assert!(bench.disk.power_on() == (Some(BootSlot::A), whole[0].clone()));
    is_clean(&bench);

    let bench = UpdateBench::updated();
    bench.disk.cross_into_other(BootSlot::A);
    assert!(stays(&bench, BootSlot::B));
    assert!(bench.disk.power_on() == (Some(BootSlot::B), whole[1].clone()));
    assert_eq!(bench.disk.file(BootSlot::A), None);
    is_clean(&bench);
}

/// Neither program is the noted one, or the machine may not start the one that is. The next update can be written.
#[test]
fn the_program_that_runs_stays_where_it_crosses_one_that_the_machine_may_not_start() {
    for (attack, change) in ATTACKS {
        let mut bench = UpdateBench::updated();
        change(&mut bench);
        bench.disk.cross_into_other(BootSlot::B);
        let crossed = bench.disk.file(BootSlot::B);
        assert!(stays(&bench, BootSlot::B), "{attack}");
        assert!(bench.disk.file(BootSlot::B) == crossed, "{attack}");
        assert!(bench.disk.file(BootSlot::A).is_none(), "{attack}");
        is_clean(&bench);
    }
}

/// Writes of an update until it is too late for its sender to give it up: PID 1 has read the program back, and switches
/// the file of the slot.
fn writes_until_switch(stream: &[u8], order: &StageOrder) -> usize {
    let bench = UpdateBench::updated();
    let is_too_late = |writes: &usize| {
        let progress = Arc::default();
        bench.disk.give_up_after(*writes, &progress);
        let staged = bench.staged_with(&bench.disk, stream, order, progress);
        staged.is_ok()
    };
    (1..1_000)
        .find(is_too_late)
        .expect("the machine runs the other program")
}

/// PID 1 runs from memory, and its start has removed the file of its slot.
#[test]
fn no_version_is_staged_over_the_only_program() {
    let mut bench = UpdateBench::updated();
    let before = bench.disk.file(BootSlot::A);
    assert!(before.is_some());
    bench.disk.lengthen_entry(BootSlot::B);
    assert!(!stays(&bench, BootSlot::B));
    let release = TestRelease::new("1.2.0", 2);
    let bundle = bench.publisher.bundle(&release);
    let (stream, whole) = (framed(&bundle, 40_000), order(&bundle));
    let dry = StageOrder {
        dry_run: true,
        ..whole.clone()
    };
    for order in [&whole, &dry] {
        bench.refuses(RefusalCode::SlotDamaged, |bench| {
            bench.stage_bundle(&bundle, order).map(drop)
        });
    }
    let writes = writes_until_switch(&stream, &whole);
    for writes in writes - 2..writes + 2 {
        let progress = Arc::default();
        bench.disk.give_up_after(writes, &progress);
        let staged = bench.staged_with(&bench.disk, &*stream, &whole, progress);
        let refusal = staged.expect_err("it would be the only program");
        assert_eq!(refusal.code, RefusalCode::SlotDamaged, "{}", refusal.text);
        assert!(refusal.text.contains("restart"), "{}", refusal.text);
        assert!(bench.disk.file(BootSlot::A) == before, "{writes} writes");
    }
    let (slot, program) = bench.disk.power_on();
    assert_eq!(slot, Some(BootSlot::A));
    assert!(program == before, "the version before is whole");
    // After the restart the other slot is the one that is written.
    bench.running = BootSlot::A;
    bench.version = OLD.to_owned();
    bench.stage(&release).expect("staged");
    assert!(bench.disk.file(BootSlot::A) == before);
    assert!(bench.disk.file(BootSlot::B) == Some(release.content()));
}

#[test]
fn no_version_is_staged_without_a_loader() {
    let bench = UpdateBench::new();
    let removed = bench.disk.volume().remove_file(LOADER);
    removed.expect("it is there");
    let before = bench.disk.sectors();
    let refused = bench.stage(&TestRelease::new(NEW, 1));
    let refusal = refused.expect_err("no loader");
    assert_eq!(refusal.code, RefusalCode::SlotDamaged, "{}", refusal.text);
    assert!(refusal.text.contains(LOADER), "{}", refusal.text);
    assert!(bench.disk.sectors() == before);
}

#[test]
fn a_version_is_staged_where_another_name_leads_to_the_program_that_runs() {
    let bench = UpdateBench::updated();
    let running = bench.disk.file(BootSlot::B);
    let other = bench.disk.name_again(BootSlot::B);
    let read = |path: &str| bench.disk.volume().read_file(path, u32::MAX).ok();
    assert!(read(&other) == running, "one chain has two names");
    let release = TestRelease::new("1.2.0", 2);
    bench.stage(&release).expect("staged");
    assert!(bench.disk.file(BootSlot::B) == running);
    assert!(bench.disk.file(BootSlot::A) == Some(release.content()));
    assert!(read(&other).is_none(), "the other name is gone");
    is_clean(&bench);
}
