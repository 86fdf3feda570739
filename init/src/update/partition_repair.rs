//! The repair of the boot partition after a power cut: before a version is staged, and at a start that is no trial.

use alknet_boot_state::BootSlot;
use alknet_fat::{BlockDevice, FatError, NameChoice, NamedChain, RepairRules};

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
    let rules = RepairRules {
        own: &own,
        choose: &choose,
    };
    let report = disk.volume()?.repair(&rules)?;
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
    for finding in &report.left.findings {
        log.warn(format_args!("boot partition, left as it is: {finding}"));
    }
    Ok(report.dropped_names.is_empty() && report.dropped_files.is_empty())
}
