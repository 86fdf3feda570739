//! Writes a new program to free clusters, reads it back, and makes it the file of its boot slot.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use alknet_boot_state::BootSlot;
use alknet_fat::{BlockDevice, FatError, FatExtent, FatFileWriter, FatVolume};
use alknet_update::{BundleReader, ChosenTarget, ReleaseVersion, UpdateTarget, VerifiedTargets};

use super::delta::{self, ProgramSource, RunningProgram};
use super::disk::{SharedDevice, SlotDisk, slot_path};
use super::program::{PassingProgram, ProgramError};
use super::progress::{StagingProgress, aborted};
use super::refusal::{RefusalCode, UpdateRefusal};
use super::stage::StageUndo;
use crate::log::InitLog;

/// Bytes that are read back at a time.
const READ_BYTES: usize = 64 << 10;

/// Writes into the clusters of a file, and looks at what passes.
struct SlotOutput<'a, 'b, D> {
    writer: &'a mut FatFileWriter<'b, D>,
    passing: &'a mut PassingProgram,
    progress: &'a StagingProgress,
    failed: Option<FatError>,
}

impl<D: BlockDevice> Write for SlotOutput<'_, '_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.progress.is_given_up() {
            return Err(aborted());
        }
        self.passing.pass(bytes);
        match self.writer.write(bytes) {
            Ok(()) => {
                self.progress.count_written(bytes.len() as u64);
                Ok(bytes.len())
            }
            Err(error) => {
                let text = error.to_string();
                self.failed = Some(error);
                Err(io::Error::other(text))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a program is written, and what it is made from.
#[derive(Clone, Copy)]
pub(super) struct SlotTarget<'a> {
    pub(super) slot: BootSlot,
    /// The file from which PID 1 was started.
    pub(super) init: &'a Path,
    pub(super) progress: &'a Arc<StagingProgress>,
}

/// Writes the program of the bundle into free clusters, reads it back, and switches the slot's file to them. Returns where
/// it lies.
///
/// The partition has room for both files: [`FatVolume::write_file`] refuses otherwise. So until the switch a refusal leaves
/// the slot's earlier file.
pub(super) fn write<D: BlockDevice, R: Read>(
    disk: &mut SlotDisk<D>,
    target: SlotTarget<'_>,
    (bundle, verified, source): (&mut BundleReader<R>, &VerifiedTargets, ProgramSource),
    chosen: ChosenTarget<'_>,
    keep: &dyn Fn() -> Result<(), UpdateRefusal>,
    undo: &mut StageUndo,
) -> Result<Vec<FatExtent>, UpdateRefusal> {
    let SlotTarget {
        slot,
        init,
        progress,
    } = target;
    let path = slot_path(slot);
    // The other slot is read while this one is written.
    let device = disk.shared();
    let others = FatVolume::open(SharedDevice(&device))?;
    let mut volume = FatVolume::open(SharedDevice(&device))?;
    let before = file_extent(&volume, &path);
    let mut writer = volume.write_file(&path, chosen.target.bytes)?;
    let mut passing = PassingProgram::default();
    progress.begin_program(chosen.target.bytes);
    let mut output = SlotOutput {
        writer: &mut writer,
        passing: &mut passing,
        progress,
        failed: None,
    };
    let copied = match source {
        ProgramSource::Delta => {
            let running = RunningProgram::open(&others, slot.other(), init, progress);
            running.and_then(|running| {
                delta::copy_made(bundle, verified, (&running, chosen.target), &mut output)
            })
        }
        ProgramSource::Whole => {
            let copied = bundle.copy_target(verified, &mut output);
            copied.map_err(UpdateRefusal::from)
        }
    };
    // An error of the disk comes back as one of the output.
    if let Some(error) = output.failed {
        return Err(error.into());
    }
    copied?;
    require_version(passing.finish(), &chosen.release.version)?;
    let extents = read_back(&mut writer, chosen.target, progress)?;
    keep()?;
    let finished = writer.finish();
    if finished.is_ok() || file_extent(&volume, &path) != before {
        undo.switched();
    }
    finished?;
    Ok(extents)
}

/// Where a file begins on the volume, and its size.
fn file_extent<D: BlockDevice>(volume: &FatVolume<D>, path: &str) -> Option<(u64, u32)> {
    let file = volume.open_file(path).ok()?;
    let first = file.extents().first()?;
    Some((first.at, file.size()))
}

fn require_version(
    found: Result<ReleaseVersion, ProgramError>,
    wanted: &ReleaseVersion,
) -> Result<(), UpdateRefusal> {
    let why = match found {
        Ok(found) if found == *wanted => return Ok(()),
        Ok(found) => format!("it says that it is version {found}"),
        Err(error) => error.to_string(),
    };
    let text = format_args!(
        "the program of version {wanted} is not what its release says: {why}; get another bundle from its publisher"
    );
    Err(UpdateRefusal::new(RefusalCode::Malformed, text))
}

/// Reads the program from the clusters that it was written to, and compares it with what was signed. The slot has its
/// earlier file meanwhile. Returns where the program lies.
fn read_back<D: BlockDevice>(
    writer: &mut FatFileWriter<'_, D>,
    target: &UpdateTarget,
    progress: &StagingProgress,
) -> Result<Vec<FatExtent>, UpdateRefusal> {
    let mut file = writer.read_back()?;
    let mut check = target.check();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        progress.require_wanted()?;
        let read = file.read(&mut buffer).map_err(not_kept)?;
        if read == 0 {
            break;
        }
        check.update(&buffer[..read]).map_err(not_kept)?;
    }
    check.finish().map_err(not_kept)?;
    Ok(file.extents().to_vec())
}

fn not_kept(error: impl std::fmt::Display) -> UpdateRefusal {
    UpdateRefusal::new(
        RefusalCode::Disk,
        format_args!(
            "the disk did not keep the new program ({error}), and the boot slot that does not run is as it was; replace the disk"
        ),
    )
}

/// Refuses a file that the disk lost after it became that of the slot. The slot is empty then: its earlier file is gone.
///
/// The bytes of the program were compared before. So it is enough that the file lies where they do.
pub(super) fn require_kept<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    extents: &[FatExtent],
    log: &InitLog,
) -> Result<(), UpdateRefusal> {
    let why = match file_extents(disk, slot) {
        Ok(found) if found == extents => return Ok(()),
        Ok(_) => "its file lies elsewhere".to_owned(),
        Err(error) => error.to_string(),
    };
    leave_empty(disk, slot, log);
    Err(UpdateRefusal::new(
        RefusalCode::Disk,
        format_args!(
            "the disk lost the new program ({why}), and the boot slot that does not run is empty now: it has neither this \
             program nor the one from before; replace the disk, and send the bundle of the program that you want there again"
        ),
    ))
}

/// Where the file of a slot lies, as the disk has it.
fn file_extents<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
) -> Result<Vec<FatExtent>, FatError> {
    let volume = disk.volume()?;
    let file = volume.open_file(&slot_path(slot))?;
    Ok(file.extents().to_vec())
}

/// Removes a file that the disk lost: no loader and no person must take it for a program.
fn leave_empty<D: BlockDevice>(disk: &mut SlotDisk<D>, slot: BootSlot, log: &InitLog) {
    let removed = disk
        .volume()
        .and_then(|mut volume: FatVolume<_>| volume.remove_file(&slot_path(slot)));
    if let Err(error) = removed {
        log.error(format_args!("the file of boot slot {slot} stays: {error}"));
    }
}
