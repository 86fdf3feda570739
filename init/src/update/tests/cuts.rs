//! A power cut at each write: one whole program starts, the record is readable, and the update goes on afterwards.

use alknet_boot_state::{BootPhase, TRIES};

use super::*;
use crate::update::partition_repair::repair;

/// Asserts that the next start has one of these programs, whole, and that the machine ends up with `last` if the version
/// that starts never confirms itself. Returns which of them started first.
fn starts(disk: &ModelDisk, programs: &[Vec<u8>], last: &[u8]) -> usize {
    let (slot, started) = disk.power_on();
    let started = started.unwrap_or_else(|| panic!("slot {slot:?} has no whole program"));
    let first = programs.iter().position(|program| *program == started);
    let first = first.expect("a program that was whole before");
    for _ in 0..=TRIES {
        disk.power_on();
    }
    let (_, at_last) = disk.power_on();
    assert!(at_last.as_deref() == Some(last), "another program at last");
    first
}

fn old() -> Vec<u8> {
    program(OLD, 4096, 0)
}

#[test]
fn a_cut_while_a_version_is_staged_starts_the_one_before() {
    for replaced in [None, Some(TestRelease::new("1.0.1", 1))] {
        let bench = UpdateBench::new();
        if let Some(before) = &replaced {
            bench.stage(before).expect("staged");
        }
        let release = TestRelease::new(NEW, 2);
        let bundle = bench.publisher.bundle(&release);
        let stream = framed(&bundle, 65_536);
        let mut cuts = 0;
        let mut staged = 0;
        let change = |disk: &ModelDisk| {
            let done = bench.stage_stream(disk, &*stream, &order(&bundle));
            done.expect("staged");
        };
        bench.disk.cut(change, &mut |disk| {
            cuts += 1;
            let record = disk.record();
            let other = disk.file(BootSlot::B);
            if record.phase() == BootPhase::Staged {
                staged += 1;
                let before = replaced.as_ref().map(TestRelease::content);
                assert!(
                    other == Some(release.content()) || other == before,
                    "{cuts}"
                );
            }
            assert_eq!(starts(&disk, &[old()], &old()), 0);
            assert!(disk.loader() == vec![b'L'; 3000]);
            // The same bundle is staged after the cut, whatever it left.
            if cuts % 5 == 1 {
                let again = bench.stage_stream(&disk, &*stream, &order(&bundle));
                again.unwrap_or_else(|refusal| panic!("{cuts}: {refusal}"));
                assert!(disk.file(BootSlot::B) == Some(release.content()));
                let report = disk.volume().check(&[]).expect("a volume");
                assert!(report.findings.is_empty(), "{cuts}: {report:?}");
            } else {
                // The next start repairs what the cut left, and changes nothing else.
                let repaired = repair(&mut disk.open(), BootSlot::B, None, &InitLog::default());
                repaired.unwrap_or_else(|error| panic!("{cuts}: {error}"));
                let report = disk.volume().check(&[]).expect("a volume");
                assert!(report.findings.is_empty(), "{cuts}: {report:?}");
                assert_eq!(starts(&disk, &[old()], &old()), 0);
            }
        });
        assert!(cuts > 60, "{cuts} cuts");
        assert!(staged > 0 && staged < cuts, "{staged} of {cuts}");
    }
}

#[test]
fn a_cut_while_a_version_is_armed_starts_the_old_or_the_new_one() {
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    bench.stage(&release).expect("staged");
    let programs = [old(), release.content()];
    let mut started = [0; 2];
    bench.disk.cut(|disk| bench.arm(disk), &mut |disk| {
        let note = disk.open().note().expect("readable");
        let is_armed = disk.record().trial().is_some();
        assert!(!is_armed || note.is_ok(), "the note comes first");
        started[starts(&disk, &programs, &old())] += 1;
    });
    assert!(started[0] > 0 && started[1] > 0, "{started:?}");
}

#[test]
fn a_cut_while_a_version_is_confirmed_leaves_a_trial_or_the_new_version() {
    let bench = UpdateBench::new();
    let release = TestRelease::new(NEW, 1);
    bench.stage(&release).expect("staged");
    bench.arm(&bench.disk);
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
    let mut confirmed = [0; 2];
    let change = |disk: &ModelDisk| {
        apply::confirm(&mut disk.open(), BootSlot::B).expect("it runs");
    };
    bench.disk.cut(change, &mut |disk| {
        let is_confirmed = disk.record().good() == BootSlot::B;
        confirmed[usize::from(is_confirmed)] += 1;
        let last = if is_confirmed {
            release.content()
        } else {
            old()
        };
        starts(&disk, &[release.content()], &last);
    });
    assert!(confirmed[0] > 0 && confirmed[1] > 0, "{confirmed:?}");
}

#[test]
fn a_cut_while_a_version_is_rolled_back_starts_one_of_the_two() {
    let bench = UpdateBench::updated();
    let new = TestRelease::new(NEW, 1).content();
    let programs = [old(), new.clone()];
    let mut started = [0; 2];
    let change = |disk: &ModelDisk| {
        let mut opened = disk.open();
        let plan = apply::plan_rollback(&mut opened, BootSlot::B, bench.rules())
            .expect("a version before");
        let RollbackPlan::Trial(plan) = plan else {
            panic!("the version before goes on trial, not {plan:?}");
        };
        apply::arm(&mut opened, &plan, &BootNote::new(plan.slot)).expect("written");
    };
    bench.disk.cut(change, &mut |disk| {
        // The version before has to prove itself, too.
        started[starts(&disk, &programs, &new)] += 1;
    });
    assert!(started[0] > 0 && started[1] > 0, "{started:?}");
}

/// The disk refuses everything after each write once: nothing that was staged is lost, and the machine starts.
#[test]
fn a_disk_that_begins_to_refuse_writes_starts_the_version_that_runs() {
    let release = TestRelease::new(NEW, 1);
    let mut writes = 0;
    loop {
        let bench = UpdateBench::new();
        bench.disk.refuse_after(writes);
        let done = bench.stage(&release);
        bench.disk.refuse_after(usize::MAX);
        match done {
            Ok(_) => break,
            Err(refusal) => assert_eq!(refusal.code, RefusalCode::Disk, "{}", refusal.text),
        }
        assert_ne!(bench.disk.record().phase(), BootPhase::Staged);
        assert_eq!(starts(&bench.disk, &[old()], &old()), 0);
        bench.stage(&release).expect("the disk writes again");
        writes += 1;
    }
    assert!(writes > 10, "{writes} writes");
}
