//! Puts a version on trial, and takes one back: what happens to the record and the note. The vault is `system`'s.

use alknet_boot_state::{BootNote, BootPhase, BootRecord, BootRefusal, BootSlot};
use alknet_fat::BlockDevice;
use alknet_update::{ReleaseVersion, VersionRefusal};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::disk::{SlotDisk, SlotFile, slot_path};
use super::program::read_version;
use super::refusal::{RefusalCode, UpdateRefusal};
use super::staged::StagedRelease;

/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// A version that goes on trial, and what was read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrialPlan {
    pub(super) slot: BootSlot,
    pub(super) version: ReleaseVersion,
    /// The record that puts it on trial.
    record: BootRecord,
}

/// Looks whether the staged version may go on trial: it is whole, and not older than the floor.
pub(super) fn plan_apply<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    floor: Option<&ReleaseVersion>,
    staged: Option<&StagedRelease>,
) -> Result<TrialPlan, UpdateRefusal> {
    let record = disk.record()?;
    if record.phase() == BootPhase::Trial {
        return Err(BootRefusal::OnTrial.into());
    }
    let armed = record.arm()?;
    plan(disk, running, armed, floor, staged)
}

/// What an administrator who rolls back gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RollbackPlan {
    /// The trial that runs is given up by this record; the machine has to restart.
    GiveUp(BootRecord),
    /// The version was not started yet, and is staged again.
    TakenBack,
    /// The version before goes on trial.
    Trial(TrialPlan),
}

/// Looks what a rollback does. A version that was not started yet is taken back at once.
pub(super) fn plan_rollback<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    floor: Option<&ReleaseVersion>,
) -> Result<RollbackPlan, UpdateRefusal> {
    let record = disk.record()?;
    let next = record.rollback()?;
    match record.phase() {
        BootPhase::Pending => {
            disk.write_record(&next)?;
            Ok(RollbackPlan::TakenBack)
        }
        BootPhase::Trial => Ok(RollbackPlan::GiveUp(next)),
        _ => plan(disk, running, next, floor, None).map(RollbackPlan::Trial),
    }
}

fn plan<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    record: BootRecord,
    floor: Option<&ReleaseVersion>,
    staged: Option<&StagedRelease>,
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
    if let Some(floor) = floor.filter(|floor| version < **floor) {
        let refusal = VersionRefusal::BelowFloor {
            offered: version,
            floor: floor.clone(),
        };
        return Err(UpdateRefusal::new(RefusalCode::BelowFloor, refusal));
    }
    // A record that was staged by another machine of the same disk has no release here.
    let staged = staged.filter(|staged| staged.is_of(slot) && staged.version == version);
    if let Some(staged) = staged {
        let found = digest(&file).map_err(|error| damaged(&error))?;
        if found != staged.sha256 {
            return Err(damaged(
                &"its SHA-256 is another one than when it was staged",
            ));
        }
    }
    Ok(TrialPlan {
        slot,
        version,
        record,
    })
}

fn digest<D: BlockDevice>(file: &SlotFile<'_, D>) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < file.len() {
        let left = usize::try_from(file.len() - at).unwrap_or(usize::MAX);
        let piece = &mut buffer[..left.min(READ_BYTES)];
        file.read_at(piece, at)?;
        hash.update(&*piece);
        at += piece.len() as u64;
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
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
