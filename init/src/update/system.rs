//! What PID 1 does about updates on its blocking threads: each function waits for disks.

mod log;
mod machine_start;
mod repair;
mod scrub;
mod status;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use alknet_boot_state::{BootNote, BootNoteError, BootPhase, BootRecord, BootSlot, NoteText};
use alknet_update::{ReleaseVersion, UnixSeconds, UpdateClock};

use super::anchor::UpdateAnchor;
use super::apply::{self, RollbackPlan, StartTerms, TrialPlan, TrialRules};
use super::boot_partitions::{BootPartitions, BootPartitionsError};
use super::direct::DirectDevice;
use super::disk::{BootDiskError, SlotDisk};
use super::frames::BundleFrameReader;
use super::gate::{BASELINE_UNKNOWN, CONFIG_TAKEN};
use super::judge::{StartKind, StartReport, judge};
use super::known_programs::{self, KnownStore};
use super::left_versions;
use super::measured::{SystemProgram, programs};
use super::partition_repair::ForeignCount;
use super::program::{SlotPrograms, slot_programs};
use super::refusal::{RefusalCode, UpdateRefusal};
use super::stage::{self, StageMachine, StageOrder};
use super::staged::{StagedBundle, StagedRelease, staged_last};
use super::stager::MACHINE;
use super::trust_store::TrustStore;
use super::{history, note_schedule};
use crate::control::UpdateOutcome;
use crate::log::InitLog;
use crate::media;

pub(crate) use machine_start::UpdateStart;
#[cfg(test)]
pub(super) use scrub::scrub_piece;
pub(crate) use scrub::{ScrubResult, ScrubTurn, SlotFinding, SlotScrub};
pub(crate) use status::SlotStatus;

/// The reason in the boot note of a trial that an administrator gave up.
pub(crate) const ROLLED_BACK: &str = "an administrator gave it up";

/// What is left undone if the disk cannot be read at a start: the next one does it.
const CONFIRMATION_OPEN: &str = "a confirmation that was cut short is not completed";
const END_UNLOGGED: &str = "the end of the last trial is not logged";
/// The stage that PID 1 has reached when it begins the note.
const FIRST_STAGE: &str = "mounts";
/// Folder of updates in the state directory. PID 1 alone writes there.
const FOLDER: &str = "update";

/// The machine's boot slots, as found at its start.
#[derive(Clone, Debug)]
pub(crate) struct UpdateSystem {
    partitions: Result<BootPartitions, BootPartitionsError>,
    /// The slot that runs. `None` if the machine was started in another way.
    running: Option<BootSlot>,
    version: String,
    /// The folder of updates, while the data partition is mounted.
    folder: Option<PathBuf>,
    trust: TrustStore,
    known: KnownStore,
    foreign: ForeignCount,
    log: InitLog,
}

/// Who wants a trial, and what was before it.
#[derive(Clone, Debug)]
pub(crate) struct TrialRequest {
    pub(crate) by: String,
    /// The type of the slot that opened the vault; `absent` or `locked`.
    pub(crate) vault: String,
    /// Whether a person had to type something at this start.
    pub(crate) needs_person: bool,
    /// The mode of the data.
    pub(crate) data: String,
    /// Whether the machine takes all of its configuration, and finds it again at its next start.
    pub(crate) config_taken: bool,
    /// Whether the version that runs is left for the one before.
    pub(crate) rolls_back: bool,
    /// Whether the start counts: the caller is no administrator.
    pub(crate) limited: bool,
}

/// The opened disk. While it is open, no other part of PID 1 mounts volumes.
struct SystemDisk {
    running: BootSlot,
    disk: SlotDisk<DirectDevice>,
    _media: MutexGuard<'static, ()>,
}

impl UpdateSystem {
    /// A machine that was started in another way.
    pub(crate) fn absent(log: &InitLog) -> Self {
        Self::without_disk(None, log)
    }

    /// A machine whose disk with the boot slots is not found.
    pub(crate) fn without_disk(running: Option<BootSlot>, log: &InitLog) -> Self {
        Self {
            partitions: Err(BootPartitionsError::Missing),
            running,
            version: crate::image_version().to_owned(),
            folder: None,
            trust: TrustStore::new(None),
            known: KnownStore::new(None),
            foreign: ForeignCount::default(),
            log: log.clone(),
        }
    }

    /// A machine that was started from a slot of this disk.
    #[cfg(test)]
    pub(super) fn on_disk(partitions: BootPartitions, running: BootSlot) -> Self {
        Self {
            partitions: Ok(partitions),
            running: Some(running),
            ..Self::absent(&InitLog::default())
        }
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn running(&self) -> Option<BootSlot> {
        self.running
    }

    /// Whether the machine has boot slots and was started from one.
    pub(crate) fn has_slots(&self) -> bool {
        self.partitions.is_ok() && self.running.is_some()
    }

    /// The data partition is mounted at `state_dir`, or nothing is.
    ///
    /// Returns whether that is news.
    pub(crate) fn set_data(&mut self, state_dir: Option<&Path>) -> bool {
        let folder = state_dir.map(|dir| dir.join(FOLDER));
        if folder == self.folder {
            return false;
        }
        self.trust = TrustStore::new(folder.clone());
        self.known = KnownStore::new(folder.clone());
        self.folder = folder;
        true
    }

    /// Whether the data partition is mounted, so that the machine keeps what it learns.
    pub(crate) fn has_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Judges this start. On trial it writes the boot note, and arms it for panics. A record that is damaged is replaced by
    /// a new one.
    pub(crate) fn begin(&self) -> Option<(StartReport, Option<BootNote>)> {
        let mut on = self.open_to("what this start means is not known")?;
        let record = match on.disk.record() {
            // The next read may give it. A new record in its place would confirm a version that is on trial.
            Err(error @ BootDiskError::Io { .. }) => {
                self.log
                    .error(format_args!("what this start means is not known: {error}"));
                return Some((StartReport::unread(), None));
            }
            read => read.ok(),
        };
        let note = on.disk.note().unwrap_or_else(|error| {
            self.log.warn(format_args!("{error}; it counts as missing"));
            Err(BootNoteError::Absent)
        });
        let note = note.ok();
        let failed = record.as_ref().and_then(BootRecord::failed);
        let programs = failed.map(|_| self.slot_programs(&mut on));
        let failed_version = failed
            .zip(programs.as_ref())
            .and_then(|(slot, programs)| programs.of_slot(slot));
        let report = judge(record.as_ref(), on.running, note.as_ref(), failed_version);
        let note = match report.kind {
            StartKind::StateLost => {
                self.replace_record(&mut on);
                note
            }
            StartKind::Trial => Some(self.begin_note(&mut on, note)),
            _ => note,
        };
        Some((report, note))
    }

    fn replace_record(&self, on: &mut SystemDisk) {
        let running = on.running;
        match on.disk.write_record(&BootRecord::new(running)) {
            Ok(()) => self.log.warn(format_args!(
                "the boot state record could not be read; a new one says that slot {running}, which runs, is good"
            )),
            Err(error) => self
                .log
                .error(format_args!("no boot state record can be written: {error}")),
        }
    }

    fn begin_note(&self, on: &mut SystemDisk, note: Option<BootNote>) -> BootNote {
        let known = note.filter(|note| note.slot == on.running);
        let mut note = known.unwrap_or_else(|| {
            let mut note = BootNote::new(on.running);
            note.version = NoteText::new(&self.version);
            // Empty words would tell the gate that little is required.
            note.vault = NoteText::new(BASELINE_UNKNOWN);
            note.data = NoteText::new(BASELINE_UNKNOWN);
            note.config = NoteText::new(BASELINE_UNKNOWN);
            note
        });
        note.starts = note.starts.saturating_add(1);
        note.stage = NoteText::new(FIRST_STAGE);
        if let Ok(partitions) = &self.partitions {
            note_schedule::arm(partitions.bios(), note);
        }
        if let Err(error) = on.disk.write_note(&note) {
            self.log
                .warn(format_args!("the boot note is not written: {error}"));
        }
        note
    }

    /// Writes the boot note of this trial.
    pub(crate) fn write_note(&self, note: &BootNote) -> bool {
        let written = note_schedule::write(note);
        if let Err(error) = &written {
            self.log
                .warn(format_args!("the boot note is not written: {error}"));
        }
        written.is_ok()
    }

    /// Notes the program that runs, on a machine that was never updated. This hashes a whole program, and ends before the
    /// next piece once `is_wanted` returns false.
    pub(crate) fn note_running(&self, is_wanted: impl Fn() -> bool) {
        if !self.has_folder() {
            return;
        }
        let noted = self.open().and_then(|mut on| {
            let (disk, version) = (&mut on.disk, &self.version);
            known_programs::note_running(disk, on.running, version, &self.known, is_wanted)
        });
        match noted {
            Ok(true) => self.log.info(format_args!(
                "the program of version {} is noted as the one that runs",
                self.version
            )),
            // The next look at the slots notes it.
            Err(refusal) if refusal.code == RefusalCode::Aborted => {}
            Err(refusal) if refusal.code != RefusalCode::NoSlots => self.log.warn(refusal),
            _ => {}
        }
    }

    /// Stages a bundle that comes in frames, and returns what it does. [`stage_for`](Self::stage_for) logs it as well.
    fn stage<R: Read>(
        &self,
        frames: &mut BundleFrameReader<R>,
        order: &StageOrder,
        anchor: &UpdateAnchor,
        is_time_known: bool,
    ) -> Result<StagedBundle, UpdateRefusal> {
        self.slots()?;
        let progress = frames.progress();
        // Everything below has the media, again and again.
        let _bundle = media::register_bundle(Arc::clone(&progress));
        progress.require_wanted()?;
        self.note_running(|| !progress.is_given_up());
        progress.require_wanted()?;
        // What the version that runs still owes would be lost.
        self.settle(anchor);
        progress.require_wanted()?;
        let mut on = self.open()?;
        let machine = StageMachine {
            running: on.running,
            version: &self.version,
            anchor,
            trust: &self.trust,
            known: &self.known,
            clock: clock(is_time_known),
            init: Path::new(super::delta::INIT_FILE),
            folder: self.folder.as_deref(),
            foreign: &self.foreign,
            log: &self.log,
        };
        stage::stage(&mut on.disk, frames, order, &machine)
    }

    /// Looks whether the staged version may go on trial on these terms. [`begin_trial`](Self::begin_trial) follows.
    pub(crate) fn plan_apply(&self, terms: &StartTerms) -> Result<TrialPlan, UpdateRefusal> {
        let mut on = self.open()?;
        apply::plan_apply(&mut on.disk, on.running, self.rules(), terms)
    }

    fn rules(&self) -> TrialRules<'_> {
        TrialRules {
            trust: &self.trust,
            known: &self.known,
            folder: self.folder.as_deref(),
            version: &self.version,
        }
    }

    /// Looks what a rollback does. A version that was not started yet is taken back at once.
    pub(crate) fn plan_rollback(&self, by: &str) -> Result<RollbackPlan, UpdateRefusal> {
        let mut on = self.open()?;
        let plan = apply::plan_rollback(&mut on.disk, on.running, self.rules())?;
        if plan == RollbackPlan::TakenBack {
            let programs = self.slot_programs(&mut on);
            let slot = on.running.other();
            let version = programs.of_slot(slot).unwrap_or_default();
            self.append("rolled-back", version, by, "it was not started yet");
            // One that was to start with the next restart is staged again. The machine would start its own once more.
            let is_idle = on.disk.record()?.phase() == BootPhase::Idle;
            if is_idle || self.is_staged_by_machine(slot) {
                self.leave_slot(slot);
            }
        }
        Ok(plan)
    }

    /// Whether no caller but the machine itself has staged the program of this slot.
    fn is_staged_by_machine(&self, slot: BootSlot) -> bool {
        let known = self.known.load();
        let staged = staged_last(self.folder.as_deref(), slot, known.of_slot(slot));
        staged.is_some_and(|(_, stager)| stager.by == MACHINE)
    }

    /// Puts a version on trial. The machine has to restart then.
    pub(crate) fn begin_trial(
        &self,
        plan: &TrialPlan,
        request: &TrialRequest,
    ) -> Result<(), UpdateRefusal> {
        let mut on = self.open()?;
        let mut note = BootNote::new(plan.slot);
        note.version = NoteText::new(&plan.version.to_string());
        note.from = NoteText::new(&self.version);
        note.vault = NoteText::new(&request.vault);
        note.needs_person = request.needs_person;
        note.data = NoteText::new(&request.data);
        if request.config_taken {
            note.config = NoteText::new(CONFIG_TAKEN);
        }
        if request.limited {
            self.count_start(&request.by)?;
        }
        // Not before: a version whose rollback is refused goes on, and is not left.
        if request.rolls_back {
            self.leave(&self.version);
        }
        apply::arm(&mut on.disk, plan, &note)?;
        self.append(history::STARTED, &plan.version.to_string(), &request.by, "");
        Ok(())
    }

    /// Gives the trial that runs up. The machine has to restart then.
    pub(crate) fn give_up(&self, record: &BootRecord, by: &str) -> Result<(), UpdateRefusal> {
        let mut on = self.open()?;
        let note = on.disk.note()?;
        let mut note = note.unwrap_or_else(|_| BootNote::new(on.running));
        note.reason = NoteText::new(ROLLED_BACK);
        note.version = NoteText::new(&self.version);
        // What the trial writes from now on must not replace the reason.
        note_schedule::disarm();
        on.disk.write_note(&note)?;
        self.leave(&self.version);
        on.disk.write_record(record)?;
        self.append_as("rolled-back", &self.version, by, "", record.seq());
        Ok(())
    }

    /// Notes that the machine does not install this version by itself any more.
    fn leave(&self, version: &str) {
        let version = version.parse::<ReleaseVersion>().ok();
        let noted = match (self.folder.as_deref(), &version) {
            (Some(folder), Some(version)) => left_versions::leave(folder, version),
            _ => Ok(()),
        };
        if let Err(error) = noted {
            self.log.warn(format_args!(
                "that the machine left a version is not noted: {error}"
            ));
        }
    }

    /// Notes that the machine does not install the program again that it verified in a slot. Not of what the boot
    /// partition says: an attacker who had the disk could name a version there that the machine never had, and keep it
    /// from that version.
    fn leave_slot(&self, slot: BootSlot) {
        if let Some(known) = self.known.load().of_slot(slot) {
            self.leave(&known.version.to_string());
        }
    }

    /// Makes the version on trial the good one, and does what follows.
    pub(crate) fn confirm(&self, by: &str, anchor: &UpdateAnchor) -> Result<(), UpdateRefusal> {
        let mut on = self.open()?;
        let seq = apply::confirm(&mut on.disk, on.running)?;
        note_schedule::disarm();
        self.settle_confirmed(&mut on, seq, by, anchor);
        Ok(())
    }

    /// Does what follows a confirmation, if a power cut came before it.
    pub(crate) fn settle(&self, anchor: &UpdateAnchor) {
        let owes = self.staged_release();
        let Some(owes) = owes.filter(|owes| self.running.is_some_and(|slot| owes.is_of(slot)))
        else {
            return;
        };
        let Some(mut on) = self.open_to(CONFIRMATION_OPEN) else {
            return;
        };
        match on.disk.record() {
            Ok(record)
                if record.good() == on.running && owes.version.to_string() == self.version =>
            {
                self.settle_confirmed(&mut on, record.seq(), MACHINE, anchor);
            }
            Ok(_) => {}
            Err(error) => self.log.error(format_args!("{CONFIRMATION_OPEN}: {error}")),
        }
    }

    /// The release that was staged last.
    fn staged_release(&self) -> Option<StagedRelease> {
        let read = StagedRelease::read(self.folder.as_deref()?);
        // Its floor protects from older versions, and the machine confirms the version without it.
        let read = read.inspect_err(|error| {
            self.log.error(format_args!(
                "what is noted of the staged version cannot be read, so its floor is not raised: {error}"
            ));
        });
        read.ok().flatten()
    }

    /// Everything here may be done twice.
    fn settle_confirmed(&self, on: &mut SystemDisk, seq: u64, by: &str, anchor: &UpdateAnchor) {
        let release = self.staged_release();
        let release = release.filter(|release| {
            release.is_of(on.running) && release.version.to_string() == self.version
        });
        if let Some(release) = &release
            && let Err(error) = self.raise_floor(release, anchor)
        {
            self.log.error(format_args!(
                "the floor is not raised, which the next start tries again: {error}"
            ));
            return;
        }
        let is_logged = |folder: &PathBuf| history::has_end(folder, seq);
        if !self.folder.as_ref().is_some_and(is_logged) {
            self.append_as("confirmed", &self.version, by, "", seq);
        }
        if let Err(error) = on.disk.clear_note() {
            self.log.warn(format_args!("the boot note stays: {error}"));
        }
        if let (Some(folder), Some(_)) = (&self.folder, release) {
            // If it stays, what it says is done again.
            StagedRelease::remove(folder).ok();
        }
        if let (Some(folder), Ok(version)) = (&self.folder, self.version.parse())
            && let Err(error) = left_versions::return_to(folder, &version)
        {
            self.log.warn(format_args!(
                "that the machine left version {version} is still noted: {error}"
            ));
        }
    }

    fn raise_floor(
        &self,
        release: &StagedRelease,
        anchor: &UpdateAnchor,
    ) -> Result<(), UpdateRefusal> {
        if release.floor.is_none() {
            return Ok(());
        }
        let mut trust = self.trust.load(anchor)?;
        trust.raise_floor(release.floor.as_ref());
        Ok(self.trust.save(&trust)?)
    }

    /// Logs the end of a trial, once.
    pub(crate) fn report_end(&self, end: &UpdateOutcome) {
        let Some(folder) = &self.folder else {
            return;
        };
        let Some(on) = self.open_to(END_UNLOGGED) else {
            return;
        };
        let record = match on.disk.record() {
            Ok(record) => record,
            Err(error) => {
                let text = format_args!("{END_UNLOGGED}: {error}");
                return self.log.error(text);
            }
        };
        if !history::has_end(folder, record.seq()) {
            let (event, version) = (&end.outcome, &end.version);
            self.append_as(event, version, MACHINE, &end.reason, record.seq());
            if let Some(slot) = record.failed() {
                self.leave_slot(slot);
            }
        }
    }

    /// What a TPM measures of the loader, of the program that runs and of the one that goes on trial.
    pub(crate) fn measured(&self, plan: &TrialPlan) -> Result<SystemProgram, UpdateRefusal> {
        let mut on = self.open()?;
        programs(&mut on.disk, plan.slot, Some(plan), &self.known)
    }

    /// Like `measured`, if the program in the other slot is not wanted any more: it is the one before the last update,
    /// or one whose trial failed.
    pub(crate) fn measured_unwanted(&self) -> Result<Option<SystemProgram>, UpdateRefusal> {
        let mut on = self.open()?;
        let record = on.disk.record()?;
        let is_over = matches!(record.phase(), BootPhase::Good | BootPhase::Failed);
        if record.good() != on.running || !is_over {
            return Ok(None);
        }
        let running = on.running;
        programs(&mut on.disk, running.other(), None, &self.known).map(Some)
    }

    /// The versions of the programs in the boot slots. The machine goes on without them: its log says why.
    fn slot_programs(&self, on: &mut SystemDisk) -> SlotPrograms {
        slot_programs(&mut on.disk).unwrap_or_else(|error| {
            self.log.warn(format_args!(
                "the versions in the boot slots cannot be read: {error}"
            ));
            SlotPrograms::default()
        })
    }

    fn open(&self) -> Result<SystemDisk, UpdateRefusal> {
        let (partitions, running) = self.slots()?;
        let media = media::in_turn();
        Ok(SystemDisk {
            running,
            disk: SlotDisk::open(partitions)?,
            _media: media,
        })
    }

    /// Like `open`, for what the machine does by itself: the log says what is undone without the disk.
    fn open_to(&self, undone: &str) -> Option<SystemDisk> {
        let opened = self.open();
        if let Err(refusal) = &opened
            && refusal.code != RefusalCode::NoSlots
        {
            self.log.error(format_args!("{undone}: {refusal}"));
        }
        opened.ok()
    }

    /// The disk with the boot slots, and the slot that runs.
    fn slots(&self) -> Result<(&BootPartitions, BootSlot), UpdateRefusal> {
        let partitions = self.partitions.as_ref().map_err(Clone::clone)?;
        let running = self.running.ok_or_else(|| {
            UpdateRefusal::no_slots(
                "it was not started from a boot slot, but by a hypervisor, from a CD or over the network",
            )
        })?;
        Ok((partitions, running))
    }
}

/// The time for a verification.
fn clock(is_known: bool) -> UpdateClock {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME);
    let now = UnixSeconds(now.map(|now| now.tv_sec()).unwrap_or_default());
    match is_known {
        true => UpdateClock::Known(now),
        false => UpdateClock::AtLeast(now),
    }
}
