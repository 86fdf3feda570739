//! An attacker who has the disk while the machine is off writes the record and both programs as wanted.

use alknet_boot_state::TRIES;
use alknet_tpm::predict::MeasuredImage;

use super::*;
use crate::update::known_programs::KnownProgram;

/// A program of the attacker, which says that it is this version.
fn foreign(version: &str) -> Vec<u8> {
    program(version, 4096, 99)
}

/// Puts a program into a slot.
pub(super) fn put(disk: &ModelDisk, slot: BootSlot, program: &[u8]) {
    let length = program.len() as u64;
    let mut volume = disk.volume();
    volume
        .replace_file(&slot_path(slot), length, &mut &*program, &mut |_| {})
        .expect("room");
}

fn plan_apply(bench: &UpdateBench) -> Result<(), UpdateRefusal> {
    apply::plan_apply(&mut bench.disk.open(), bench.running, bench.rules(), &ANY).map(drop)
}

fn plan_rollback(bench: &UpdateBench) -> Result<(), UpdateRefusal> {
    apply::plan_rollback(&mut bench.disk.open(), bench.running, bench.rules()).map(drop)
}

/// The record of a machine that runs slot a and has a staged version in the other one.
fn staged() -> BootRecord {
    let vacated = BootRecord::new(BootSlot::A).vacate().expect("it runs a");
    vacated.stage().expect("vacated")
}

/// The same of one that runs slot a and was updated from slot b.
fn previous() -> BootRecord {
    let vacated = BootRecord::new(BootSlot::B).vacate().expect("it runs b");
    let armed = vacated
        .stage()
        .and_then(|staged| staged.arm())
        .expect("staged");
    assert_eq!(armed.tries(), TRIES);
    let all = alknet_boot_state::BootSlots::ALL;
    let started = alknet_boot_state::loader_choice(Some(&armed), all).write;
    let confirmed = started.expect("counted").confirm(BootSlot::A);
    confirmed.expect("it runs")
}

#[test]
fn a_program_that_was_never_verified_does_not_go_on_trial() {
    let bench = UpdateBench::new();
    put(&bench.disk, BootSlot::B, &foreign(NEW));
    bench.disk.put_record(&staged().encode());
    bench.refuses(RefusalCode::Unverified, plan_apply);
    bench.disk.put_record(&previous().encode());
    assert_eq!(bench.disk.record().phase(), BootPhase::Good);
    bench.refuses(RefusalCode::Unverified, plan_rollback);
}

#[test]
fn a_program_in_place_of_a_verified_one_of_its_version_does_not_go_on_trial() {
    // Before the trial.
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    put(&bench.disk, BootSlot::B, &foreign(NEW));
    bench.refuses(RefusalCode::Unverified, plan_apply);
    // After the confirmation, which removes what was noted for the floor.
    let bench = UpdateBench::updated();
    StagedRelease::remove(bench.folder.path()).expect("writable");
    let before = bench.disk.file(BootSlot::A).expect("the version before");
    put(&bench.disk, BootSlot::A, &foreign(OLD));
    bench.refuses(RefusalCode::Unverified, plan_rollback);
    put(&bench.disk, BootSlot::A, &before);
    plan_rollback(&bench).expect("the one that ran at the first start");
}

#[test]
fn nothing_but_what_runs_is_noted_without_a_bundle_and_only_once() {
    let bench = UpdateBench::new();
    let known = bench.known.load();
    assert!(known.of_slot(BootSlot::B).is_none());
    put(&bench.disk, BootSlot::A, &foreign(OLD));
    assert_eq!(bench.note_running(), Ok(false));
    assert_eq!(bench.known.load(), known);
    // A file that is another version than what runs is not what runs.
    let mut other = UpdateBench::new();
    other.known = KnownStore::new(None);
    other.version = NEW.to_owned();
    let refused = other.note_running().expect_err("another version");
    assert_eq!(refused.code, RefusalCode::SlotDamaged);
    // Of a damaged file nothing is known.
    let path = bench.folder.path().join("programs.json");
    fs::write(path, "{").expect("writable");
    assert_eq!(bench.known.load(), known_programs::KnownPrograms::default());
}

/// The program that is measured for the TPM is the one whose hash was compared.
#[test]
fn other_bytes_than_the_compared_ones_are_not_measured() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    let plan = apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &ANY);
    let plan = plan.expect("staged");
    let measure = |bench: &UpdateBench| {
        let measured = measured::programs(
            &mut bench.disk.open(),
            BootSlot::B,
            Some(&plan),
            &bench.known,
        );
        measured.expect_err("no program of a test is measured").code
    };
    assert_eq!(measure(&bench), RefusalCode::Unpredictable);
    put(&bench.disk, BootSlot::B, &foreign(NEW));
    assert_eq!(measure(&bench), RefusalCode::Unverified);
}

/// The programs of the tests are no EFI programs, so nothing could be computed of them.
#[test]
fn what_was_measured_of_a_known_program_counts_for_its_hash_alone() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    let plan = || {
        let plan = apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &ANY);
        plan.expect("staged")
    };
    let first = plan();
    let [running, next] = [1, 2].map(|byte| MeasuredImage::from_digests([[byte; 32]; 3]));
    let measure = |slot, plan| {
        let disk = &mut bench.disk.open();
        measured::program(disk, slot, plan, &bench.known).map_err(|error| error.code)
    };
    let note = |sha256| bench.known.note_measured(BootSlot::B, sha256, &next);
    note("another hash");
    let unpredictable = Err(RefusalCode::Unpredictable);
    assert_eq!(measure(BootSlot::B, Some(&first)), unpredictable);
    note(&first.sha256);
    assert_eq!(measure(BootSlot::B, Some(&first)), Ok(next));

    let sha256 = "00".repeat(32);
    let mut known = bench.known.load();
    let version = "1.0.0".parse().expect("a version");
    known.put(BootSlot::A, KnownProgram::new(version, sha256.clone()));
    bench.known.save(&known).expect("writable");
    bench.known.note_measured(BootSlot::A, &sha256, &running);
    assert_eq!(measure(BootSlot::A, None), Ok(running));

    bench.stage(&TestRelease::new("1.2.1", 2)).expect("staged");
    assert_eq!(measure(BootSlot::B, Some(&plan())), unpredictable);
}

#[test]
fn a_refused_bundle_leaves_what_is_known_as_it_was() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new("1.0.1", 1)).expect("staged");
    let known = bench.known.load();
    let bundle = bench.publisher.bundle(&TestRelease::new(NEW, 2));
    let cut = &bundle[..bundle.len() - 700];
    bench.stage_bundle(cut, &order(&bundle)).expect_err("cut");
    assert_eq!(bench.known.load(), known);
    plan_apply(&bench).expect("the version of before is whole");
}

/// Wherever the disk begins to refuse writes, what is known of a slot is what lies there. The record is the earlier one, or
/// that of a slot that is given up: the disk takes neither the earlier one again nor, after the switch, the next one.
#[test]
fn a_disk_that_refuses_the_new_program_keeps_the_known_one() {
    let (before, after) = (TestRelease::new("1.0.1", 1), TestRelease::new(NEW, 2));
    let (mut records, mut switched) = ([0; 2], 0);
    for writes in 0.. {
        let bench = UpdateBench::new();
        bench.stage(&before).expect("staged");
        let (known, earlier) = (bench.known.load(), bench.disk.record());
        let vacated = earlier.vacate().expect("no version is on trial");
        bench.disk.refuse_after(writes);
        let done = bench.stage(&after);
        bench.disk.refuse_after(usize::MAX);
        let (kept, record) = (bench.disk.file(BootSlot::B), bench.disk.record());
        if done.is_ok() {
            assert!(kept == Some(after.content()), "{writes} writes");
            break;
        }
        if kept == Some(after.content()) {
            assert_ne!(bench.known.load(), known, "{writes} writes");
            assert_eq!(record, vacated, "{writes} writes");
            switched += 1;
        } else {
            assert_eq!(bench.known.load(), known, "{writes} writes");
            assert!(kept == Some(before.content()), "{writes} writes");
            let found = [earlier, vacated].iter().position(|it| *it == record);
            let found = found.unwrap_or_else(|| panic!("{record:?} after {writes} writes"));
            records[found] += 1;
        }
        bench.stage(&after).expect("the disk writes again");
    }
    let [as_before, given_up] = records;
    let all_occur = as_before > 0 && given_up > 0 && switched > 0;
    assert!(all_occur, "{records:?}, {switched} after the switch");
}

/// A floor that cannot be read may forbid any version.
#[test]
fn no_version_goes_on_trial_without_the_floor() {
    for content in ["{", "{\"format\":2}"] {
        let bench = UpdateBench::new();
        bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
        fs::write(bench.folder.path().join("trust.json"), content).expect("writable");
        bench.refuses(RefusalCode::TrustDamaged, plan_apply);
        let bench = UpdateBench::updated();
        fs::write(bench.folder.path().join("trust.json"), content).expect("writable");
        bench.refuses(RefusalCode::TrustDamaged, plan_rollback);
    }
}

/// An administrator who takes the keys out of the configuration does not take the floor away.
#[test]
fn the_floor_counts_without_keys() {
    let mut bench = UpdateBench::updated();
    let mut trust = bench.trust.load(&bench.anchor).expect("seen");
    trust.raise_floor(Some(&version("1.0.5")));
    bench.trust.save(&trust).expect("written");
    bench.anchor = bench.anchor.with_owner(&[], 1);
    bench.anchor.trust().expect_err("no keys");
    bench.refuses(RefusalCode::BelowFloor, plan_rollback);
}
