//! Stages a version: verifies a bundle while it streams, and writes its program to the boot slot that does not run.

use std::io::{self, Read};

use alknet_boot_state::{BootPhase, BootRecord, BootSlot};
use alknet_fat::{BlockDevice, FatError, FatFinding, FatReport};
use alknet_update::limits::{BUNDLE_METADATA_BYTES_MAX, TARGET_BYTES_MAX, TARGETS_MAX};
use alknet_update::{
    BundleReader, ChosenTarget, DowngradeConsent, ReleaseInfo, ReleaseVersion, UpdateClock,
    UpdateMachine, UpdateStep, VerifiedTargets,
};
use data_encoding::HEXLOWER;

use super::anchor::UpdateAnchor;
use super::delta;
use super::disk::{SlotDisk, SlotFile, slot_path};
use super::frames::{BundleFrameReader, FramesEnd};
use super::known_programs::{KnownProgram, KnownPrograms, KnownStore, digest_for_staging};
use super::left_versions::LeftVersions;
use super::other_channel::{may_be_beta, require_own_channel};
use super::partition_repair::{ForeignCount, own_paths, repair};
use super::progress::StagingProgress;
use super::refusal::{RefusalCode, UpdateRefusal};
use super::slot_write::{SlotTarget, require_kept, write};
use super::staged::{StagedBundle, StagedRelease, raised_by};
use super::stager::{keeps_stager, noted_stager, require_replaceable, stager_to_note};
use super::trust_store::TrustStore;
use crate::control::UpdatePlan;
use crate::log::InitLog;

/// Longest bundle: metadata and targets as long as any.
const BUNDLE_BYTES_MAX: u64 = BUNDLE_METADATA_BYTES_MAX + TARGETS_MAX as u64 * TARGET_BYTES_MAX;
/// Room for folders of the boot partition, in clusters, beside the program.
const FOLDER_CLUSTERS: u64 = 4;

/// What a caller asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StageOrder {
    /// The caller.
    pub(crate) by: String,
    /// Bytes of the bundle.
    pub(crate) bytes: u64,
    /// The one older version that is permitted.
    pub(crate) downgrade: Option<String>,
    /// Verifies and plans only.
    pub(crate) dry_run: bool,
    /// No administrator asks for it.
    pub(crate) unasked: bool,
    /// It comes from another source than the channel that the machine follows, an administrator or a hub.
    pub(crate) other_source: bool,
    /// The caller may not start versions.
    pub(crate) limited: bool,
    /// The configuration names the channel `stable`, or none.
    pub(crate) follows_stable: bool,
}

/// The machine as staging sees it.
pub(super) struct StageMachine<'a> {
    pub(super) running: BootSlot,
    pub(super) version: &'a str,
    pub(super) anchor: &'a UpdateAnchor,
    pub(super) trust: &'a TrustStore,
    pub(super) known: &'a KnownStore,
    pub(super) clock: UpdateClock,
    /// The file from which PID 1 was started: a delta takes most of a new program from it.
    pub(super) init: &'a std::path::Path,
    /// The folder of updates on the data partition.
    pub(super) folder: Option<&'a std::path::Path>,
    /// The number of foreign files, which a staging may change.
    pub(super) foreign: &'a ForeignCount,
    pub(super) log: &'a InitLog,
}

/// What a refusal brings back as long as the other slot has the file that it had.
#[derive(Debug, Default)]
pub(super) struct StageUndo {
    before: Option<StateBefore>,
    /// Whether the file of the slot is the new one, or was.
    is_switched: bool,
}

impl StageUndo {
    /// The file of the slot is the new one, and the record from before says nothing of it.
    pub(super) fn switched(&mut self) {
        self.before = None;
        self.is_switched = true;
    }
}

/// What the machine says of its boot slots before a bundle is staged.
#[derive(Debug)]
pub(super) struct StateBefore {
    record: BootRecord,
    known: KnownPrograms,
    staged: Option<StagedRelease>,
    /// Whether the slot has the program of the bundle already.
    lies_there: bool,
}

impl StateBefore {
    fn load(record: BootRecord, lies_there: bool, at: &StageMachine<'_>) -> Self {
        Self {
            record,
            known: at.known.load(),
            staged: at.folder.and_then(StagedRelease::load),
            lies_there,
        }
    }

    /// Makes record and notes say this again, in the order that [`stage`] gives.
    fn restore<D: BlockDevice>(&self, disk: &mut SlotDisk<D>, at: &StageMachine<'_>) {
        if !self.lies_there {
            // The new notes do not fit the slot's file. Either they were not written, or the disk has the vacated record.
            if self.restore_notes(at) {
                self.restore_record(disk, at);
            }
            return;
        }
        // The new notes fit the slot's file, and the disk may have kept the record although it reported an error. Then they
        // have to stay unless the earlier record is back for sure. What a disk gives after a write that it did not flush
        // may come from its cache, so the record that is read counts only before this write.
        let is_as_before = disk.record().is_ok_and(|found| found == self.record);
        if self.restore_record(disk, at) || is_as_before {
            self.restore_notes(at);
        }
    }

    /// Returns whether the noted release is as before.
    fn restore_notes(&self, at: &StageMachine<'_>) -> bool {
        // If this fails, the program of before is not known any more and has to be staged again, which is safe.
        if at.known.load() != self.known
            && let Err(error) = at.known.save(&self.known)
        {
            at.log.error(format_args!(
                "what is known of the programs is not as before: {error}"
            ));
        }
        if let Some(folder) = at.folder
            && let Err(error) = self.restore_staged(folder)
        {
            at.log.error(format_args!(
                "what is noted of the staged version is not as before: {error}"
            ));
            // With the record of before, the version that starts would count as another one. The slot counts as empty.
            return false;
        }
        true
    }

    /// Returns whether the disk has kept the record of before.
    fn restore_record<D: BlockDevice>(
        &self,
        disk: &mut SlotDisk<D>,
        at: &StageMachine<'_>,
    ) -> bool {
        // The slot's file is the one of before as well. If this fails after the record was vacated, the slot counts as
        // empty, which is safe.
        let written = disk.write_record(&self.record);
        if let Err(error) = &written {
            at.log.error(format_args!(
                "the boot state record is not as before: {error}"
            ));
        }
        written.is_ok()
    }

    fn restore_staged(&self, folder: &std::path::Path) -> io::Result<()> {
        match &self.staged {
            before if *before == StagedRelease::load(folder) => {}
            Some(before) => before.save(folder)?,
            None => StagedRelease::remove(folder)?,
        }
        Ok(())
    }
}

/// The kind of this machine, which a program has to fit.
///
/// No name for `needs` is defined yet, so this version refuses a release that has any.
fn machine() -> UpdateMachine {
    UpdateMachine {
        arch: std::env::consts::ARCH.to_owned(),
        board: "generic".to_owned(),
        form: "raw".to_owned(),
        provides: Vec::new(),
    }
}

/// Stages the bundle in `frames`. After a refusal, and after a panic of this part, both slots, the record and the notes are
/// as they were, with three exceptions. Where the disk lost the new program after it became the file of the slot, the slot
/// is empty. Where the disk began to refuse writes or flushes after it took a record, that record may stay. After the vacated
/// one the slot counts as empty, and has its earlier file or, after the switch, the new one. After the one that says `staged`
/// the version is staged, and the notes are its own. Where staging failed after a new note replaced the earlier one, and the
/// data disk does not take the earlier one again, the slot has its earlier file, and no version goes on trial from it: without
/// the earlier release the vacated record stays, and without the earlier known programs a trial of the slot is refused as
/// unverified. A data disk that is full before the notes is no such case: it refuses both. Neither is a program that its slot
/// has already: its new notes fit the file, and stay if the earlier ones cannot be restored. Each exception ends with the
/// next bundle that is staged on disks that take writes.
///
/// Whenever the power fails, no record says `staged` beside the release of another program than that of the slot's file: its
/// floor would not be raised after the trial. A new program gets its notes while the record on the disk is the vacated one,
/// and after a refusal the earlier record follows the earlier notes. A program that its slot has already gets its notes
/// before its record, and after a refusal the earlier notes follow the earlier record.
pub(super) fn stage<D: BlockDevice, R: Read>(
    disk: &mut SlotDisk<D>,
    frames: &mut BundleFrameReader<R>,
    order: &StageOrder,
    at: &StageMachine<'_>,
) -> Result<StagedBundle, UpdateRefusal> {
    let mut undo = StageUndo::default();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        stage_or_leave(disk, frames, order, at, &mut undo)
    }));
    let done = done.unwrap_or_else(|payload| {
        let why = crate::machine::panic_text(&*payload);
        at.log
            .error(format_args!("staging an update failed: {why}"));
        Err(UpdateRefusal::failed())
    });
    if let (Err(_), Some(before)) = (&done, undo.before) {
        before.restore(disk, at);
    }
    at.foreign.forget();
    // What the slot has after the switch matters more than a sender that gave the bundle up when it was too late.
    done.map_err(|refusal| match undo.is_switched {
        true => refusal,
        false => of_stream(refusal, frames),
    })
}

/// The refusal, unless the stream ended early: that is the reason then.
fn of_stream<R: Read>(refusal: UpdateRefusal, frames: &BundleFrameReader<R>) -> UpdateRefusal {
    // A refusal with another reason may come first, and the stream was not read to its end then.
    match frames.end() {
        _ if frames.progress().is_given_up() => UpdateRefusal::given_up(),
        None if frames.is_silent() => UpdateRefusal::new(
            RefusalCode::Silent,
            "the bundle stopped arriving, and was given up; send it again",
        ),
        Some(FramesEnd::Aborted) => UpdateRefusal::given_up(),
        Some(FramesEnd::Broken(why)) => UpdateRefusal::new(
            RefusalCode::Truncated,
            format_args!("the bundle did not arrive: {why}; send it again"),
        ),
        Some(FramesEnd::Ended) if is_about_reading(refusal.code) => UpdateRefusal::new(
            RefusalCode::Truncated,
            format_args!("the bundle ended early ({refusal}); send the whole file"),
        ),
        _ => refusal,
    }
}

fn is_about_reading(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::Malformed | RefusalCode::Truncated)
}

fn stage_or_leave<D: BlockDevice, R: Read>(
    disk: &mut SlotDisk<D>,
    frames: &mut BundleFrameReader<R>,
    order: &StageOrder,
    at: &StageMachine<'_>,
    undo: &mut StageUndo,
) -> Result<StagedBundle, UpdateRefusal> {
    require_size(order)?;
    let progress = frames.progress();
    let before = disk.record()?;
    let record = usable_record(before, at)?;
    let mut bundle = BundleReader::open(frames)?;
    let verified = verify(&mut bundle, order, at)?;
    let (chosen, mut release, mut plan) = choose(&verified, order, at)?;
    let slot = at.running.other();
    if !order.dry_run {
        check_wanted(&plan, chosen.release, order, at)?;
    }
    let base = running_sha256(disk, at, &progress)?;
    let wanted = (chosen.target, base.as_str());
    plan.delta_bytes = delta::delta_bytes(&bundle, &verified, wanted, order.bytes)?;
    if order.dry_run {
        check_capacity(disk, slot, at, chosen.target.bytes)?;
        return Ok(StagedBundle {
            plan,
            was_staged: false,
            was_noted: false,
            kept_stager: None,
        });
    }
    if before.good() == at.running {
        StagedRelease::require_settled(at.folder, at.running, at.version)?;
        require_replaceable(&before, slot, order, at)?;
    }
    let stager = noted_stager(slot, &release, at).filter(|_| record.phase() == BootPhase::Staged);
    release.stager = Some(stager_to_note(stager.as_ref(), order));
    let kept_stager = stager.clone().filter(|noted| keeps_stager(noted, order));
    let lies_there = lies_there(disk, slot, &plan, at, &progress)?;
    let bytes = if lies_there { 0 } else { plan.bytes };
    check_capacity(disk, slot, at, bytes)?;
    let is_whole = repair(disk, slot, None, at.log)?;
    progress.require_wanted()?;
    let keep = || keep_release(slot, &release, at);
    if lies_there && is_whole {
        undo.before = Some(StateBefore::load(before, true, at));
        let noted = at.folder.map(StagedRelease::load);
        let was_noted =
            noted.is_none_or(|noted| noted.is_some_and(|noted| noted.is_same_release(&release)));
        let is_kept = was_noted && stager == release.stager;
        let was_staged = stage_again(disk, &record, is_kept, keep)?;
        return Ok(StagedBundle {
            plan,
            was_staged,
            was_noted,
            kept_stager,
        });
    }
    let source = delta::find_source(&mut bundle, &verified, chosen.target, &base)?;
    undo.before = Some(StateBefore::load(before, false, at));
    let vacated = record.vacate()?;
    disk.write_record(&vacated)?;
    let from = (&mut bundle, &verified, source);
    let target = SlotTarget {
        slot,
        init: at.init,
        progress: &progress,
    };
    let extents = write(disk, target, from, chosen, &keep, undo)?;
    require_kept(disk, slot, &extents, at.log)?;
    disk.write_record(&vacated.stage()?)?;
    Ok(StagedBundle {
        plan,
        was_staged: false,
        was_noted: false,
        kept_stager,
    })
}

fn require_size(order: &StageOrder) -> Result<(), UpdateRefusal> {
    match order.bytes > BUNDLE_BYTES_MAX {
        true => Err(UpdateRefusal::new(
            RefusalCode::TooLarge,
            format_args!(
                "the bundle has {} bytes, {BUNDLE_BYTES_MAX} at most; make one of fewer files",
                order.bytes
            ),
        )),
        false => Ok(()),
    }
}

/// The record, in which the slot that runs is the good one.
fn usable_record(record: BootRecord, at: &StageMachine<'_>) -> Result<BootRecord, UpdateRefusal> {
    if record.phase() == BootPhase::Trial {
        return Err(alknet_boot_state::BootRefusal::OnTrial.into());
    }
    if record.good() == at.running {
        return Ok(record);
    }
    // The good slot did not start: it is the one to write again.
    at.log.warn(format_args!(
        "boot slot {} takes over from the good one, which did not start",
        at.running
    ));
    Ok(record.take_over(at.running)?)
}

fn verify<R: Read>(
    bundle: &mut BundleReader<R>,
    order: &StageOrder,
    at: &StageMachine<'_>,
) -> Result<VerifiedTargets, UpdateRefusal> {
    let before = at.trust.load(at.anchor)?;
    let (mut trust, verified) = before.clone().refresh(at.clock).run(bundle);
    // The releases of another channel have higher numbers: with them the machine would refuse its own channel as too old.
    if order.other_source || may_be_beta(order, verified.as_ref().ok()) {
        trust.restore_seen(&before);
    }
    // Also after a failure: a new root revokes stolen keys whatever is wrong behind it. And only then if there is something
    // new: callers that may only read can have the same metadata verified again and again.
    if trust.is_to_save(&before) {
        at.trust.save(&trust).map_err(|error| {
            let text = format_args!("what the machine trusts cannot be kept: {error}; free space on the data disk, or replace it");
            UpdateRefusal::new(RefusalCode::Disk, text)
        })?;
    }
    if at.trust.is_volatile() {
        at.log.warn(
            "what this machine has seen of update metadata is kept in memory: a restart forgets it, and the floor with it",
        );
    }
    Ok(verified?)
}

/// The program for this machine, what is to be noted of its release, and what the update does.
fn choose<'a>(
    verified: &'a VerifiedTargets,
    order: &StageOrder,
    at: &StageMachine<'_>,
) -> Result<(ChosenTarget<'a>, StagedRelease, UpdatePlan), UpdateRefusal> {
    let running: ReleaseVersion = at.version.parse().map_err(|error| {
        let text = format_args!(
            "the version that runs is not that of a release: {error}; write a new image to the disk"
        );
        UpdateRefusal::new(RefusalCode::Malformed, text)
    })?;
    let floor = at.trust.floor()?;
    let consent = match order.downgrade {
        Some(_) => DowngradeConsent::Given,
        None => DowngradeConsent::NotGiven,
    };
    let chosen = verified.choose(&machine(), &running, floor.as_ref(), consent)?;
    let version = &chosen.release.version;
    let is_named = order.downgrade.as_deref() == Some(version.to_string().as_str());
    if chosen.step == UpdateStep::Downgrade && !is_named {
        let named = order.downgrade.as_deref().unwrap_or_default();
        let text = format_args!(
            "the bundle has version {version}, which is older than {running}, and {named} was permitted; name {version} if \
             you want that one"
        );
        return Err(UpdateRefusal::new(RefusalCode::Downgrade, text));
    }
    let slot = at.running.other();
    let release = StagedRelease::new(
        slot,
        version.clone(),
        chosen.target.bytes,
        HEXLOWER.encode(&chosen.target.sha256),
        chosen.release.floor.clone(),
    );
    let release = release.with_noted_floor(at.folder, slot);
    let plan = UpdatePlan {
        from: at.version.to_owned(),
        to: version.to_string(),
        step: match chosen.step {
            UpdateStep::Downgrade => "downgrade",
            UpdateStep::Same => "same",
            UpdateStep::Upgrade => "upgrade",
        }
        .to_owned(),
        bytes: chosen.target.bytes,
        delta_bytes: None,
        sha256: release.sha256.clone(),
        changes: chosen.release.changes.clone(),
        floor: raised(floor.as_ref(), release.floor.as_ref()),
        bundle_floor: raised(floor.as_ref(), chosen.release.floor.as_ref()),
        needs_person: None,
        time_known: verified.is_time_known(),
    };
    Ok((chosen, release, plan))
}

/// Refuses the program that runs. If no administrator asks for the version, it also refuses one that the machine left, and
/// one that comes before a release on a machine that follows the releases: no signature says of which channel a bundle is,
/// so the version has to.
fn check_wanted(
    plan: &UpdatePlan,
    release: &ReleaseInfo,
    order: &StageOrder,
    at: &StageMachine<'_>,
) -> Result<(), UpdateRefusal> {
    let known = at.known.load();
    if known
        .of_slot(at.running)
        .is_some_and(|known| known.sha256 == plan.sha256)
    {
        let text = format_args!(
            "this program of version {} runs already; nothing is to be done",
            plan.to
        );
        return Err(UpdateRefusal::new(RefusalCode::RunsAlready, text));
    }
    require_own_channel(order, release)?;
    let is_left = order.unasked && LeftVersions::load(at.folder).has(&release.version);
    match is_left {
        true => Err(UpdateRefusal::new(
            RefusalCode::Left,
            format_args!(
                "version {} failed here, or an administrator left it; `alknet update` installs it all the same",
                plan.to
            ),
        )),
        false => Ok(()),
    }
}

/// Whether the slot has this program already. Then the disk keeps its file, however often the program is staged.
fn lies_there<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    plan: &UpdatePlan,
    at: &StageMachine<'_>,
    progress: &StagingProgress,
) -> Result<bool, UpdateRefusal> {
    let known = at.known.load();
    let is_known = known
        .of_slot(slot)
        .is_some_and(|known| known.sha256 == plan.sha256);
    let lies_there = is_known
        && disk.volume().is_ok_and(|volume| {
            let file = SlotFile::open(&volume, &slot_path(slot));
            file.is_ok_and(|file| {
                file.len() == plan.bytes
                    && digest_for_staging(&file, progress).is_ok_and(|found| found == plan.sha256)
            })
        });
    // The answer means nothing if the hash was left off.
    progress.require_wanted()?;
    Ok(lies_there)
}

/// Stages a program that its slot has already, by the record alone. A record that says so already stays as it is, and so do
/// notes that are the ones to keep. Returns whether the record did.
fn stage_again<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    record: &BootRecord,
    is_noted: bool,
    keep: impl FnOnce() -> Result<(), UpdateRefusal>,
) -> Result<bool, UpdateRefusal> {
    let is_staged = record.phase() == BootPhase::Staged;
    // A staged program that lost its note does not start until it has one again. One whose note has a lower floor than this
    // release would be confirmed with the lower floor. One that another caller takes over is that caller's from now on. If
    // the note cannot be changed, the one that is left is of the slot's program all the same, so the record may stay.
    if !is_staged || !is_noted {
        keep()?;
    }
    if !is_staged {
        disk.write_record(&record.vacate()?.stage()?)?;
    }
    Ok(is_staged)
}

/// The floor after the confirmation, if that raises it.
fn raised(floor: Option<&ReleaseVersion>, release: Option<&ReleaseVersion>) -> Option<String> {
    raised_by(floor, release).map(ToString::to_string)
}

/// Refuses a boot partition on which a program that has to stay is damaged or missing, or that has too little room.
fn check_capacity<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    at: &StageMachine<'_>,
    bytes: u64,
) -> Result<(), UpdateRefusal> {
    let volume = disk.volume()?;
    let (loader, running, other) = own_paths(slot);
    let report = volume.check(&[loader, &running, &other])?;
    for path in [loader, &running] {
        let opened = volume.open_file(path);
        if is_damaged(&report, path) || (path == loader && opened.is_err()) {
            let text = format_args!(
                "{path} on the boot partition is damaged, and an update must not touch it; write a new image to the disk, or copy \
                 the file from one"
            );
            return Err(UpdateRefusal::new(RefusalCode::SlotDamaged, text));
        }
        // A missing file is no finding. The repair at the start may have removed that of the program which runs from memory,
        // and then the slot that this update would write has the only program.
        if let Err(error) = opened {
            let text = format_args!(
                "the program that runs cannot be read from the boot partition ({error}), and an update would write over the \
                 only other one; restart the machine first"
            );
            return Err(UpdateRefusal::new(RefusalCode::SlotDamaged, text));
        }
    }
    if report.foreign_files > 0 {
        at.log.info(format_args!(
            "the boot partition has {} foreign files of {} bytes, which stay",
            report.foreign_files, report.foreign_bytes
        ));
    }
    let cluster = u64::from(report.cluster_bytes.max(1));
    let needed = bytes.div_ceil(cluster) + FOLDER_CLUSTERS;
    // Clusters that a power cut lost are free after the repair.
    let lost = report.findings.iter().map(|finding| match finding {
        FatFinding::LostClusters { clusters, .. } => u64::from(*clusters),
        _ => 0,
    });
    let free = u64::from(report.free_clusters) + lost.sum::<u64>();
    match needed > free {
        true => Err(FatError::Full {
            needed: needed * cluster,
            free: free * cluster,
        }
        .into()),
        false => Ok(()),
    }
}

/// Whether a program that has to stay may have lost bytes.
///
/// A file whose chain has a second name has not: both names lead to all of its clusters. The repair drops every other
/// file's name, and a folder's name stays, which writes nothing by itself. A refusal would keep the machine from the
/// update after which the repair may drop the file's own name.
fn is_damaged(report: &FatReport, path: &str) -> bool {
    let is_same = |found: &str| found.eq_ignore_ascii_case(path);
    report.findings.iter().any(|finding| match finding {
        FatFinding::Chain { path, .. } => is_same(path),
        FatFinding::CrossedChains { path, into } => is_same(path) || is_same(into),
        _ => false,
    })
}

/// SHA-256 of the program that runs, in hex: what is noted of its slot, or what the slot has.
fn running_sha256<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    at: &StageMachine<'_>,
    progress: &StagingProgress,
) -> Result<String, UpdateRefusal> {
    if let Some(known) = at.known.load().of_slot(at.running) {
        return Ok(known.sha256.clone());
    }
    let volume = disk.volume()?;
    // A slot that cannot be read is refused when its room is checked. No delta fits it.
    let file = SlotFile::open(&volume, &slot_path(at.running)).ok();
    let digest = file.and_then(|file| digest_for_staging(&file, progress).ok());
    progress.require_wanted()?;
    Ok(digest.unwrap_or_default())
}

/// Notes the program, without which it does not start, and the release for the time after the trial. That is before the
/// file becomes the new one, because the data disk may be full.
fn keep_release(
    slot: BootSlot,
    release: &StagedRelease,
    at: &StageMachine<'_>,
) -> Result<(), UpdateRefusal> {
    let mut program = KnownProgram::new(release.version.clone(), release.sha256.clone());
    program.stager = release.stager.clone().map(Box::new);
    let mut known = at.known.load();
    known.put(slot, program);
    let Some(folder) = at.folder else {
        return at.known.save(&known).map_err(not_noted);
    };
    let (path, content) = release.file(folder).map_err(not_noted)?;
    // A restore of one note needs free space as well. So a disk that has none has to refuse before either is replaced.
    let noted = at.known.save_with(&known, (&path, &content));
    noted.map_err(not_noted)
}

fn not_noted(error: io::Error) -> UpdateRefusal {
    let text = format_args!(
        "what was verified cannot be noted on the data disk: {error}; free space there"
    );
    UpdateRefusal::new(RefusalCode::Disk, text)
}
