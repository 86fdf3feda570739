//! The file of the program that runs is damaged on the boot partition, as a failing disk leaves it.

use alknet_boot_state::TRIES;

use super::*;
use crate::update::partition_repair::repair;

/// Repairs the partition as a start does that runs `running`. Returns whether that slot still has a file.
fn stays(disk: &ModelDisk, running: BootSlot) -> bool {
    let repaired = repair(&mut disk.open(), running.other(), &InitLog::default());
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
    assert!(stays(&bench.disk, BootSlot::A), "the other slot is empty");

    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    bench.arm(&bench.disk);
    for _ in 0..=TRIES {
        bench.disk.power_on();
    }
    assert_eq!(bench.disk.record().phase(), BootPhase::Failed);
    bench.disk.lengthen_entry(BootSlot::A);
    assert!(stays(&bench.disk, BootSlot::A), "the other version failed");
}

#[test]
fn the_program_that_runs_goes_where_the_version_before_is_whole() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    bench.arm(&bench.disk);
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
    let confirmed = bench.disk.record().confirm(BootSlot::B);
    bench.disk.put_record(&confirmed.expect("it runs").encode());
    bench.disk.lengthen_entry(BootSlot::B);
    assert!(!stays(&bench.disk, BootSlot::B));
    let (slot, program) = bench.disk.power_on();
    assert_eq!(slot, Some(BootSlot::A));
    assert!(program.is_some(), "the version before is whole");
    let report = bench.disk.volume().check(&[]).expect("a volume");
    assert!(report.findings.is_empty(), "{report:?}");
}
