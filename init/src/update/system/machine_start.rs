//! What PID 1 finds out about the boot slots before it opens the data, and once more afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use alknet_boot_state::{BootNote, BootSlot};
use alknet_provisioning::SourcePaths;

use super::UpdateSystem;
use crate::data;
use crate::log::InitLog;
use crate::machine::panic_text;
use crate::update::boot_partitions::{self, BootPartitions, BootPartitionsError, OwnDiskSigns};
use crate::update::gate::GateBaseline;
use crate::update::judge::{StartKind, StartReport};
use crate::update::{note_schedule, running};

/// The folder with the firmware's variables.
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";

/// What PID 1 finds out about the boot slots before it opens the data.
#[derive(Debug)]
pub(crate) struct UpdateStart {
    pub(crate) system: UpdateSystem,
    /// What this start means, if the machine has boot slots.
    pub(crate) report: Option<StartReport>,
    /// The note of the last trial, or of this one.
    pub(crate) note: Option<BootNote>,
}

impl UpdateStart {
    /// Looks at the disk. A failure of this part must not keep the machine from its data.
    pub(crate) fn begin(log: &InitLog) -> Self {
        let slot = slot_of_start();
        caught(log, || Self::on(found_disk(None), slot, log)).unwrap_or_else(|| Self {
            system: UpdateSystem::without_disk(slot, log),
            report: None,
            note: None,
        })
    }

    /// Looks again after the data were opened, or not: the disk may have been slow to appear, and `data`, the name of the
    /// opened data partition below `/dev`, tells it from another disk of the same build. `is_unread` says that the disk
    /// did not give the record before. `None` if nothing else is found than before.
    pub(crate) fn again(
        before: &UpdateSystem,
        is_unread: bool,
        data: Option<&str>,
    ) -> Option<Self> {
        // A machine that was started in another way has nothing to look for.
        before.running?;
        let log = &before.log;
        caught(log, || {
            let found = found_disk(data);
            let is_read_again = is_unread && found.is_ok();
            (is_read_again || before.is_replaced_by(&found)).then(|| {
                // The note of another disk must not get what this start writes.
                note_schedule::disarm();
                Self::on(found, before.running, log)
            })
        })
        .flatten()
    }

    fn on(
        partitions: Result<BootPartitions, BootPartitionsError>,
        running: Option<BootSlot>,
        log: &InitLog,
    ) -> Self {
        let system = UpdateSystem {
            partitions,
            ..UpdateSystem::without_disk(running, log)
        };
        let (report, note) = system.begin().unzip();
        Self {
            system,
            report,
            note: note.flatten(),
        }
    }

    /// Whether the disk did not give the record.
    pub(crate) fn is_unread(report: Option<&StartReport>) -> bool {
        report.is_some_and(|report| report.kind == StartKind::Unread)
    }

    /// Whether a blank disk may become this machine's data. On trial it may not if the version before had its data
    /// open: they are on another disk, which this version does not find, and with new data the machine would be another
    /// node. If the machine was started from a boot slot whose disk is not known, it may be on trial.
    pub(crate) fn takes_blank_disk(&self) -> bool {
        match &self.report {
            Some(report) if report.kind == StartKind::Trial => {
                GateBaseline::from_note(self.note.as_ref()).takes_blank_disk()
            }
            // The disk did not give the record, which would say whether this version is on trial.
            report if Self::is_unread(report.as_ref()) => false,
            Some(_) => true,
            // A loader counts tries only of slots: a machine without them is never on trial.
            None => self.system.running.is_none(),
        }
    }
}

impl UpdateSystem {
    /// Whether another look has found a disk, and another one than before. One that was found stays when a second one
    /// appears.
    fn is_replaced_by(&self, found: &Result<BootPartitions, BootPartitionsError>) -> bool {
        found.is_ok() && *found != self.partitions
    }
}

/// The disk that the machine was started from.
fn found_disk(data: Option<&str>) -> Result<BootPartitions, BootPartitionsError> {
    let started_from = running::boot_partition(Path::new(EFI_VARIABLES));
    let signs = OwnDiskSigns {
        started_from: started_from.as_deref(),
        data,
    };
    boot_partitions::find(Path::new("/sys"), signs, |disk, start| {
        data::partition_guid(&Path::new("/dev").join(disk), start)
    })
}

/// The boot slot that runs. It is read apart from the disk: a machine whose disk cannot be looked at may be on trial.
fn slot_of_start() -> Option<BootSlot> {
    alknet_provisioning::running_slot(&SourcePaths::system())
}

/// What `look` returns. `None` if it panics.
fn caught<T>(log: &InitLog, look: impl FnOnce() -> T) -> Option<T> {
    let looked = catch_unwind(AssertUnwindSafe(look));
    let logged = looked.map_err(|payload| {
        let why = panic_text(&*payload);
        log.error(format_args!("the boot slots are not looked at: {why}"));
    });
    logged.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(running: Option<BootSlot>, report: Option<StartKind>) -> UpdateStart {
        UpdateStart {
            system: UpdateSystem::without_disk(running, &InitLog::default()),
            report: report.map(|kind| StartReport { kind, ended: None }),
            note: None,
        }
    }

    fn disk(name: &str) -> BootPartitions {
        let device = |number| Path::new("/dev").join(format!("{name}{number}"));
        BootPartitions {
            disk: name.to_owned(),
            bios: device(1),
            esp: device(2),
        }
    }

    /// A loader started a slot, and its record cannot be asked whether that slot is on trial.
    #[test]
    fn a_machine_that_does_not_know_whether_it_is_on_trial_takes_no_blank_disk() {
        let slot = Some(BootSlot::B);
        assert!(!start(slot, None).takes_blank_disk());
        assert!(!start(slot, Some(StartKind::Unread)).takes_blank_disk());
        assert!(start(slot, Some(StartKind::Good)).takes_blank_disk());
        // The note is lost.
        assert!(!start(slot, Some(StartKind::Trial)).takes_blank_disk());
        // A hypervisor, a CD or the network started it: its first start makes the data.
        assert!(start(None, None).takes_blank_disk());
    }

    #[test]
    fn a_disk_that_was_found_stays_beside_a_second_one() {
        let ambiguous = || Err(BootPartitionsError::Ambiguous(vec!["vda".to_owned()]));
        let found = UpdateSystem::on_disk(disk("vda"), BootSlot::A);
        assert!(!found.is_replaced_by(&Ok(disk("vda"))));
        assert!(!found.is_replaced_by(&ambiguous()));
        // That of an attacker appeared before the own one, which has the opened data.
        assert!(found.is_replaced_by(&Ok(disk("vdb"))));
        let mut system = UpdateSystem::without_disk(Some(BootSlot::A), &InitLog::default());
        assert!(!system.is_replaced_by(&Err(BootPartitionsError::Missing)));
        assert!(system.is_replaced_by(&Ok(disk("vda"))));
        system.partitions = ambiguous();
        assert!(system.is_replaced_by(&Ok(disk("vda"))));
    }
}
