//! The repair of the boot partition after a power cut: before a version is staged, and at a start that is no trial.

use alknet_boot_state::BootSlot;
use alknet_fat::{BlockDevice, BootFiles, FatError, RepairReport};

use super::apply::TrialRules;
use super::disk::{LOADER, SlotDisk, SlotFile, slot_path};
use super::known_programs::digest;
use crate::control::ForeignFiles;
use crate::log::InitLog;

/// The loader, the program that runs, and the file that is written.
pub(super) fn own_paths(slot: BootSlot) -> (&'static str, String, String) {
    (LOADER, slot_path(slot.other()), slot_path(slot))
}

/// Counts the files of firmware, of other systems and of the owner. PID 1 leaves them alone, and they take room that an
/// update may need.
pub(super) fn count_foreign<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
) -> Result<ForeignFiles, FatError> {
    let (loader, running, written) = own_paths(slot);
    let report = disk.volume()?.check(&[loader, &running, &written])?;
    Ok(ForeignFiles {
        files: report.foreign_files,
        bytes: report.foreign_bytes,
    })
}

/// Repairs what a power cut left on the boot partition, where `slot` does not run. Returns whether every file is still
/// there.
///
/// The program that runs stays even if its file is damaged: its loader could read it, and without it the machine might
/// not start again. It goes only if the slot has the whole program of the version before, which the loader starts then,
/// and `rules_before` permit that version. Without them it never goes: the slot is about to be written.
pub(super) fn repair<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    rules_before: Option<TrialRules<'_>>,
    log: &InitLog,
) -> Result<bool, FatError> {
    let (loader, running, written) = own_paths(slot);
    let files = BootFiles {
        loader,
        running: &running,
        written: &written,
    };
    let mut report = disk.volume()?.repair_boot_files(&files, false)?;
    let mut is_whole = log_report(&report, log);
    let has_left = !report.left.findings.is_empty();
    if let Some(trial) = rules_before.filter(|_| has_left)
        && has_version_before(disk, slot, trial)?
    {
        report = disk.volume()?.repair_boot_files(&files, true)?;
        is_whole &= log_report(&report, log);
    }
    for finding in &report.left.findings {
        log.warn(format_args!("boot partition, left as it is: {finding}"));
    }
    Ok(is_whole)
}

/// Whether the slot has the program of the version before the last update, and the machine may start it: each of its bytes
/// is as noted, and it is not below the floor.
fn has_version_before<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    rules: TrialRules<'_>,
) -> Result<bool, FatError> {
    let record = disk.record();
    let is_before = record.is_ok_and(|record| record.is_version_before(slot));
    let known = rules.known.load();
    let Some(known) = known.of_slot(slot).filter(|_| is_before) else {
        return Ok(false);
    };
    // A floor that cannot be read may forbid any version.
    let floor = rules.floor(slot.other());
    let is_permitted = floor.is_ok_and(|floor| floor.is_none_or(|floor| known.version >= floor));
    if !is_permitted {
        return Ok(false);
    }
    let volume = disk.volume()?;
    let file = SlotFile::open(&volume, &slot_path(slot));
    Ok(file.is_ok_and(|file| digest(&file).is_ok_and(|found| found == known.sha256)))
}

/// Says what a repair did. Returns whether every file is still there.
fn log_report(report: &RepairReport, log: &InitLog) -> bool {
    for path in report.dropped_names.iter().chain(&report.dropped_files) {
        log.warn(format_args!(
            "boot partition: {path} was damaged and is gone"
        ));
    }
    if report.freed_clusters > 0 {
        log.info(format_args!(
            "boot partition: {} lost clusters are free again",
            report.freed_clusters
        ));
    }
    report.dropped_names.is_empty() && report.dropped_files.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::testing::{ModelDisk, program};

    #[test]
    fn files_of_others_are_counted_and_those_of_the_machine_are_not() {
        let disk = ModelDisk::new(&program("1.0.0", 4096, 0));
        let count = || count_foreign(&mut disk.open(), BootSlot::B).expect("a volume");
        assert_eq!(count(), ForeignFiles { files: 0, bytes: 0 });
        for (path, bytes) in [(r"\NVVARS", 700), (r"\ALKNET.TXT", 5)] {
            let written = disk.volume().replace_file(
                path,
                bytes,
                &mut std::io::Read::take(std::io::repeat(1), bytes),
                &mut |_| {},
            );
            written.expect("room");
        }
        let expected = ForeignFiles {
            files: 2,
            bytes: 705,
        };
        assert_eq!(count(), expected);
    }
}
