//! The repair of the boot partition after a power cut: before a version is staged, and at a start that is no trial.

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_fat::{BlockDevice, FatError, NameChoice, NamedChain, RepairReport, RepairRules};

use super::disk::{LOADER, SlotDisk, slot_path};
use crate::log::InitLog;

/// The loader, the program that runs, and the file that is written.
pub(super) fn own_paths(slot: BootSlot) -> (&'static str, String, String) {
    (LOADER, slot_path(slot.other()), slot_path(slot))
}

/// Repairs what a power cut left on the boot partition, where `slot` does not run. Returns whether every file is still
/// there.
///
/// The program that runs stays even if its file is damaged: its loader could read it, and without it the machine might
/// not start again. It goes only if the slot has the whole program of the version before, which the loader starts then.
pub(super) fn repair<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    log: &InitLog,
) -> Result<bool, FatError> {
    let (loader, running, other) = own_paths(slot);
    let own = [loader, running.as_str(), other.as_str()];
    let choose = |first: &NamedChain<'_>, second: &NamedChain<'_>| {
        let is_other = |named: &NamedChain<'_>| named.path.eq_ignore_ascii_case(&other);
        // The file that is written next is worth less than the loader and the program that runs.
        match (first.is_own && second.is_own, is_other(first)) {
            (true, true) => NameChoice::Second,
            (true, false) => NameChoice::First,
            (false, _) => RepairRules::keep_own(first, second),
        }
    };
    let mut rules = RepairRules {
        own: &own,
        // The loader and the program that runs.
        needed: own.len() - 1,
        choose: &choose,
    };
    let mut report = disk.volume()?.repair(&rules)?;
    let mut is_whole = log_report(&report, log);
    if !report.left.findings.is_empty() && has_version_before(disk, slot)? {
        rules.needed = 1;
        report = disk.volume()?.repair(&rules)?;
        is_whole &= log_report(&report, log);
    }
    for finding in &report.left.findings {
        log.warn(format_args!("boot partition, left as it is: {finding}"));
    }
    Ok(is_whole)
}

/// Whether the slot has the program of the version before the last update, and its file is whole.
fn has_version_before<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
) -> Result<bool, FatError> {
    let record = disk.record();
    let is_before = record
        .is_ok_and(|record| record.phase() == BootPhase::Good && record.good() == slot.other());
    Ok(is_before && disk.volume()?.open_file(&slot_path(slot)).is_ok())
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
