//! The repair of the boot partition after a power cut: before a version is staged, and at a start that is no trial.

use alknet_boot_state::BootSlot;
use alknet_fat::{BlockDevice, BootFiles, FatError, RepairReport};

use super::disk::{LOADER, SlotDisk, slot_path};
use crate::log::InitLog;

/// The loader, the program that runs, and the file that is written.
pub(super) fn own_paths(slot: BootSlot) -> (&'static str, String, String) {
    (LOADER, slot_path(slot.other()), slot_path(slot))
}

/// Repairs what a power cut left on the boot partition, where `slot` does not run. Returns whether every file is still
/// there.
pub(super) fn repair<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    log: &InitLog,
) -> Result<bool, FatError> {
    let (loader, running, written) = own_paths(slot);
    let files = BootFiles {
        loader,
        running: &running,
        written: &written,
    };
    let record = disk.record();
    let is_before = record.is_ok_and(|record| record.is_version_before(slot));
    let report = disk.volume()?.repair_boot_files(&files, is_before)?;
    let is_whole = log_report(&report, log);
    for finding in &report.left.findings {
        log.warn(format_args!("boot partition, left as it is: {finding}"));
    }
    Ok(is_whole)
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
