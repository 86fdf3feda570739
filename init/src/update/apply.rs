//! Puts a version on trial, and takes one back: what happens to the record and the note. The vault is `system`'s.

use std::path::Path;

use alknet_boot_state::{BootNote, BootPhase, BootRecord, BootRefusal, BootSlot};
use alknet_fat::BlockDevice;
use alknet_update::{AgreedFloor, ReleaseVersion, VersionRefusal, raised_floor};

use super::disk::{SlotDisk, SlotFile, slot_path};
use super::known_programs::{KnownStore, require_known, unverified};
use super::program::read_version;
use super::refusal::{RefusalCode, UpdateRefusal};
use super::staged::{StagedRelease, raised_by};
use super::trust_store::TrustStore;

/// What the machine knows, by which it permits a trial.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrialRules<'a> {
    pub(super) trust: &'a TrustStore,
    pub(super) known: &'a KnownStore,
    /// The folder of updates on the data partition.
    pub(super) folder: Option<&'a Path>,
    /// The version that runs.
    pub(super) version: &'a str,
}

impl TrialRules<'_> {
    /// The oldest version that may go on trial while this slot runs and is the good one.
    pub(super) fn floor(&self, running: BootSlot) -> Result<Option<ReleaseVersion>, UpdateRefusal> {
        let owed = StagedRelease::owed_floor(self.folder, running, self.version);
        Ok(raised_floor(self.trust.floor()?, owed.as_ref()))
    }

    /// The noted release of a staged program. `None` on a machine that keeps no data. Refuses a program without a note: the
    /// machine would confirm it without its floor.
    fn noted_release(&self, plan: &TrialPlan) -> Result<Option<StagedRelease>, UpdateRefusal> {
        let Some(folder) = self.folder else {
            return Ok(None);
        };
        let (slot, version) = (plan.slot, &plan.version);
        let noted = StagedRelease::load_of_program(folder, slot, version, &plan.sha256);
        noted.map(Some).ok_or_else(|| {
            let why = "its release, which has the floor, is not noted on the data disk";
            unverified(slot, version, why)
        })
    }

    /// Refuses a staged program that would raise the floor further than the caller of the start agreed to. The publisher may
    /// sign a program again with a higher floor, and any caller that may stage can bring it between the plan that the caller
    /// of the start has seen and the start.
    fn require_agreed(
        &self,
        running: BootSlot,
        release: &StagedRelease,
        agreed: &AgreedFloor,
    ) -> Result<(), UpdateRefusal> {
        let floor = self.floor(running)?;
        let raised = raised_by(floor.as_ref(), release.floor.as_ref());
        if agreed.permits(raised) {
            return Ok(());
        }
        let raised = raised.map(ToString::to_string).unwrap_or_default();
        let text = format_args!(
            "once version {} is confirmed, no version before {raised} runs here, and that is a higher floor than this start \
             was agreed to with ({agreed}); look at the plan again, and start the version again: `alknet update` shows the \
             plan, and `alknet update log` says who raised the floor",
            release.version
        );
        Err(UpdateRefusal::new(RefusalCode::FloorRaised, text))
    }
}

/// To which version and to which floor the caller of a start has agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartTerms {
    /// SHA-256 of the program that has to be staged, in hex. `None`: any program.
    pub(crate) sha256: Option<String>,
    /// The floor. `None`: any floor.
    pub(crate) floor: Option<AgreedFloor>,
}

/// A version that goes on trial, and what was read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrialPlan {
    pub(super) slot: BootSlot,
    pub(super) version: ReleaseVersion,
    /// SHA-256 of the program, in hex.
    pub(super) sha256: String,
    /// The record that puts it on trial.
    record: BootRecord,
}

/// Looks whether the staged version may go on trial: it is the program that was verified, not older than the floor, its
/// release is noted, and the caller of the start has agreed to both.
pub(super) fn plan_apply<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    rules: TrialRules<'_>,
    terms: &StartTerms,
) -> Result<TrialPlan, UpdateRefusal> {
    let record = disk.record()?;
    if record.phase() == BootPhase::Trial {
        return Err(BootRefusal::OnTrial.into());
    }
    let armed = record.arm()?;
    let plan = plan(disk, running, armed, rules)?;
    let release = rules.noted_release(&plan)?;
    let wanted = terms.sha256.as_ref();
    if wanted.is_some_and(|wanted| *wanted != plan.sha256) {
        let text = format_args!(
            "version {} is staged, and that is another program than the one that was to start; look at `alknet update \
             status`, and start it again",
            plan.version
        );
        return Err(UpdateRefusal::new(RefusalCode::OtherStaged, text));
    }
    if let (Some(release), Some(agreed)) = (&release, &terms.floor) {
        rules.require_agreed(running, release, agreed)?;
    }
    Ok(plan)
}

/// What an administrator who rolls back gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RollbackPlan {
    /// The trial that runs is given up by this record; the machine has to restart.
    GiveUp(BootRecord),
    /// The version was not started yet: one that waits for its start is staged again, and a staged one is given up.
    TakenBack,
    /// The version before goes on trial.
    Trial(TrialPlan),
}

/// Looks what a rollback does. A version that was not started yet is taken back at once.
pub(super) fn plan_rollback<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    rules: TrialRules<'_>,
) -> Result<RollbackPlan, UpdateRefusal> {
    let record = disk.record()?;
    if record.phase() == BootPhase::Staged {
        // Nothing starts it any more, and the next version is staged over it.
        disk.write_record(&record.vacate()?)?;
        return Ok(RollbackPlan::TakenBack);
    }
    let next = record.rollback()?;
    match record.phase() {
        BootPhase::Pending => {
            disk.write_record(&next)?;
            Ok(RollbackPlan::TakenBack)
        }
        BootPhase::Trial => Ok(RollbackPlan::GiveUp(next)),
        _ => plan(disk, running, next, rules).map(RollbackPlan::Trial),
    }
}

fn plan<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    record: BootRecord,
    rules: TrialRules<'_>,
) -> Result<TrialPlan, UpdateRefusal> {
    let slot = running.other();
    if record.trial() != Some(slot) {
        let text = format_args!(
            "boot slot {running} runs, and the record says that the other one is good; stage the version again, or write a new \
             image to the disk"
        );
        return Err(UpdateRefusal::new(RefusalCode::SlotDamaged, text));
    }
    let volume = disk.volume()?;
    let damaged = |why: &dyn std::fmt::Display| {
        let text = format_args!(
            "the program of boot slot {slot} is damaged: {why}; stage a version again"
        );
        UpdateRefusal::new(RefusalCode::SlotDamaged, text)
    };
    let file = SlotFile::open(&volume, &slot_path(slot)).map_err(|error| damaged(&error))?;
    let version = read_version(&file).map_err(|error| damaged(&error))?;
    if let Some(floor) = rules.floor(running)?
        && version < floor
    {
        let refusal = VersionRefusal::BelowFloor {
            offered: version,
            floor,
        };
        return Err(UpdateRefusal::new(RefusalCode::BelowFloor, refusal));
    }
    let sha256 = require_known(&file, slot, &version, &rules.known.load())?;
    Ok(TrialPlan {
        slot,
        version,
        sha256,
        record,
    })
}

/// Writes the note and then the record, after which the next start is a trial.
pub(super) fn arm<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    plan: &TrialPlan,
    note: &BootNote,
) -> Result<(), UpdateRefusal> {
    // The note of an earlier trial must not be taken for that of this one.
    disk.write_note(note)?;
    Ok(disk.write_record(&plan.record)?)
}

/// Makes the version on trial the good one. Returns the record's number, for the log.
pub(super) fn confirm<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
) -> Result<u64, UpdateRefusal> {
    let confirmed = disk.record()?.confirm(running)?;
    disk.write_record(&confirmed)?;
    Ok(confirmed.seq())
}
