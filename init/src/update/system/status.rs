//! What the disk says about the boot slots, for facts.

use alknet_boot_state::{BootPhase, BootSlot};

use super::{SystemDisk, UpdateSystem};
use crate::control::{ForeignFiles, UpdateOutcome, UpdateStager};
use crate::update::history;
use crate::update::known_programs::KnownProgram;
use crate::update::left_versions::LeftVersions;
use crate::update::refusal::RefusalCode;
use crate::update::staged::{StagedRelease, raised_by, staged_last};

/// What the disk says about its slots now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotStatus {
    /// As in [`UpdateFacts::state`](crate::control::UpdateFacts::state).
    pub(crate) state: String,
    pub(crate) detail: Option<String>,
    pub(crate) good: Option<String>,
    pub(crate) other_version: Option<String>,
    pub(crate) other_sha256: Option<String>,
    pub(crate) other_floor: Option<String>,
    pub(crate) staged_version: Option<String>,
    pub(crate) stager: Option<UpdateStager>,
    pub(crate) running_sha256: Option<String>,
    pub(crate) left: Vec<String>,
    pub(crate) tries: u8,
    pub(crate) floor: Option<String>,
    pub(crate) foreign_files: Option<ForeignFiles>,
    /// How the last update ended, if the log or the note says it.
    pub(crate) last: Option<UpdateOutcome>,
}

impl UpdateSystem {
    /// Reads what the disk says, for facts.
    pub(crate) fn inspect(&self) -> SlotStatus {
        let floor = self.trust.floor();
        let mut status = SlotStatus {
            detail: floor.as_ref().err().map(ToString::to_string),
            floor: floor.ok().flatten().map(|floor| floor.to_string()),
            last: self.folder.as_deref().and_then(history::last_end),
            left: LeftVersions::load(self.folder.as_deref()).names(),
            ..SlotStatus::default()
        };
        let mut on = match self.open() {
            Ok(on) => on,
            Err(refusal) => {
                let is_absent = refusal.code == RefusalCode::NoSlots;
                status.state = if is_absent { "absent" } else { "unreadable" }.to_owned();
                status.detail = Some(refusal.text);
                return status;
            }
        };
        let mut is_staged = false;
        match on.disk.record() {
            Ok(record) => {
                // The staged slot is the other one than the good one. If that did not start, what is staged runs.
                is_staged = record.phase() == BootPhase::Staged && record.good() == on.running;
                status.state = record.phase().name().to_owned();
                status.good = Some(record.good().letter().to_owned());
                status.tries = record.tries();
            }
            Err(error) => {
                status.state = "unreadable".to_owned();
                status.detail = Some(error.to_string());
            }
        }
        status.foreign_files = self.foreign_files(&mut on);
        let programs = self.slot_programs(&mut on);
        let other = programs.of_slot(on.running.other());
        status.other_version = other.map(str::to_owned);
        let known = self.known.load();
        let running = known.of_slot(on.running);
        status.running_sha256 = running.map(|known| known.sha256.clone());
        let known = known.of_slot(on.running.other());
        if is_staged
            && let Some((version, stager)) =
                staged_last(self.folder.as_deref(), on.running.other(), known)
        {
            status.staged_version = Some(version);
            status.stager = Some(stager);
        }
        let known = known.filter(|known| Some(&*known.version.to_string()) == other);
        status.other_sha256 = known.map(|known| known.sha256.clone());
        status.other_floor = known.and_then(|known| self.floor_after(on.running, known));
        status
    }

    /// The floor after the confirmation of this program in the other slot, if its noted release raises the floor.
    fn floor_after(&self, running: BootSlot, program: &KnownProgram) -> Option<String> {
        let folder = self.folder.as_deref()?;
        let (slot, version) = (running.other(), &program.version);
        let noted = StagedRelease::load_of_program(folder, slot, version, &program.sha256)?;
        let floor = self.rules().floor(running).ok()?;
        raised_by(floor.as_ref(), noted.floor.as_ref()).map(ToString::to_string)
    }

    /// The files of others on the boot partition. `None` if they cannot be counted: the log says why.
    fn foreign_files(&self, on: &mut SystemDisk) -> Option<ForeignFiles> {
        let counted = self.foreign.get(&mut on.disk, on.running.other());
        let counted = counted.inspect_err(|error| {
            self.log
                .warn(format_args!("the boot partition cannot be read: {error}"));
        });
        counted.ok()
    }
}
