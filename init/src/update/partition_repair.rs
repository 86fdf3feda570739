//! The repair of the boot partition after a power cut: before a version is staged, and at a start that is no trial.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_boot_state::{BootRecord, BootSlot, ProgramNotes};
use alknet_fat::{BlockDevice, BootFiles, FatError, FatVolume, RepairReport};

use super::apply::TrialRules;
use super::disk::{LOADER, SlotDisk, SlotFile, slot_path};
use super::known_programs::digest;
use crate::control::ForeignFiles;
use crate::log::InitLog;

/// The loader, the program that runs, and the file that is written.
pub(super) fn own_paths(slot: BootSlot) -> (&'static str, String, String) {
    (LOADER, slot_path(slot.other()), slot_path(slot))
}

/// How many files of firmware, of other systems and of the owner the boot partition has. PID 1 leaves them alone, and
/// they take room that an update may need.
///
/// A count reads every folder of the partition. While the machine runs, a version that is staged is all that changes much
/// there, so the number is kept from one count to the next staging. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct ForeignCount(Arc<Mutex<Option<ForeignFiles>>>);

impl ForeignCount {
    /// The number that is kept, or else the one that the disk has now, where `slot` does not run.
    pub(super) fn get<D: BlockDevice>(
        &self,
        disk: &mut SlotDisk<D>,
        slot: BootSlot,
    ) -> Result<ForeignFiles, FatError> {
        let mut kept = self.lock();
        if let Some(count) = *kept {
            return Ok(count);
        }
        let count = count_foreign(disk, slot)?;
        *kept = Some(count);
        Ok(count)
    }

    /// The partition may have other files from now on.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<ForeignFiles>> {
        // The value is replaced as a whole, so it is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_foreign<D: BlockDevice>(
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
    // Without a record nothing says that the slot has the version before.
    let known = rules_before.and_then(|rules| Some((rules, disk.record().ok()?)));
    let report = disk.volume()?.repair_boot_files(&files, |volume| {
        known.is_some_and(|(rules, record)| permits_before(volume, slot, &record, rules))
    })?;
    let is_whole = log_report(&report, log);
    for finding in &report.left.findings {
        log.warn(format_args!("boot partition, left as it is: {finding}"));
    }
    Ok(is_whole)
}

/// Whether the machine may start the version before, in `slot`, in the place of the program that runs.
fn permits_before<D: BlockDevice>(
    volume: &FatVolume<D>,
    slot: BootSlot,
    record: &BootRecord,
    rules: TrialRules<'_>,
) -> bool {
    let running = slot.other();
    // A floor that cannot be read may forbid any version.
    let Ok(floor) = rules.floor(running) else {
        return false;
    };
    let known = rules.known.load();
    let other = known.of_slot(slot);
    let notes = ProgramNotes {
        running_sha256: known.of_slot(running).map(|known| &*known.sha256),
        other: other.map(|known| (&known.version, &*known.sha256)),
        floor: floor.as_ref(),
    };
    notes.permit_version_before(record, running, |slot| {
        let file = SlotFile::open(volume, &slot_path(slot)).ok()?;
        digest(&file).ok()
    })
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
        let kept = ForeignCount::default();
        let count = || {
            kept.forget();
            let count = kept.get(&mut disk.open(), BootSlot::B);
            count.expect("a volume")
        };
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
    #[test]
    fn files_of_others_are_counted_once_until_the_partition_changes() {
        let disk = ModelDisk::new(&program("1.0.0", 4096, 0));
        let kept = ForeignCount::default();
        let count = || kept.clone().get(&mut disk.open(), BootSlot::B);
        let none = ForeignFiles { files: 0, bytes: 0 };
        assert_eq!(count().expect("a volume"), none);
        let mut volume = disk.volume();
        let written = volume.replace_file(r"\NVVARS", 4, &mut &b"vars"[..], &mut |_| {});
        written.expect("room");
        assert_eq!(count().expect("it is kept"), none);
        kept.forget();
        let one = ForeignFiles { files: 1, bytes: 4 };
        assert_eq!(count().expect("a volume"), one);
        // A count that failed is not kept.
        kept.forget();
        disk.refuse_reads(Some(disk.tables()));
        count().expect_err("the table cannot be read");
        disk.refuse_reads(None);
        assert_eq!(count().expect("a volume"), one);
    }
}
