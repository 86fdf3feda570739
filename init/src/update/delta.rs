//! The program of a bundle, if the bundle has only what differs from the program that runs.
//!
//! What a delta makes is compared with the signed length and SHA-256 like every program, so nothing here has to be
//! trusted. A delta that does not fit is refused, and its sender takes the whole program.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use alknet_boot_state::BootSlot;
use alknet_delta::limits::READS_OF_PROGRAM_MAX;
use alknet_delta::{DeltaBase, DeltaError, apply_delta, library_version};
use alknet_fat::{BlockDevice, FatVolume};
use alknet_update::{
    BundleReader, DeltaInfo, TargetCheck, UpdateError, UpdateTarget, VerifiedTargets,
};

use super::disk::{SharedDevice, SlotFile, slot_path};
use super::progress::StagingProgress;
use super::refusal::{RefusalCode, UpdateRefusal};

/// The file from which the kernel started PID 1.
pub(super) const INIT_FILE: &str = "/init";
/// Bytes of the slot that are read at a time. Pieces of a delta are short, and follow each other.
const BLOCK_BYTES: usize = 64 << 10;
/// What to do about every delta that does not fit.
const TAKE_WHOLE: &str = "send the bundle with the whole program";

/// What a bundle has of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProgramSource {
    Delta,
    Whole,
}

/// Whether a target is the program, or makes it from the one with this SHA-256.
fn source_of(
    target: &UpdateTarget,
    wanted: &UpdateTarget,
    running: &str,
) -> Option<Result<ProgramSource, UpdateRefusal>> {
    if target.name == wanted.name {
        return Some(Ok(ProgramSource::Whole));
    }
    let delta = target.delta.as_ref();
    let delta = delta.filter(|delta| delta.target == wanted.name)?;
    Some(require_usable(delta, running).map(|()| ProgramSource::Delta))
}

fn require_usable(delta: &DeltaInfo, running: &str) -> Result<(), UpdateRefusal> {
    let here = library_version();
    if delta.base != running {
        return Err(of_delta(DeltaError::OtherBase));
    }
    match delta.library == here {
        true => Ok(()),
        false => Err(of_delta(DeltaError::Library {
            wanted: delta.library,
            here,
        })),
    }
}

/// Reads past the targets before the first one that is the program, or makes it.
pub(super) fn find_source<R: Read>(
    bundle: &mut BundleReader<R>,
    verified: &VerifiedTargets,
    wanted: &UpdateTarget,
    running: &str,
) -> Result<ProgramSource, UpdateRefusal> {
    let mut refused = None;
    loop {
        let Some(target) = bundle.next_target(verified)? else {
            let missing = || UpdateError::Missing {
                file: wanted.name.clone(),
            };
            return Err(refused.unwrap_or_else(|| missing().into()));
        };
        match source_of(target, wanted, running) {
            Some(Ok(source)) => return Ok(source),
            Some(Err(refusal)) => refused = Some(refusal),
            None => {}
        }
        bundle.skip_target()?;
    }
}

/// The bytes of the delta that comes next, if it makes the program. Refuses a bundle whose first file is a delta that
/// does not fit, and that is too short for the program itself: a dry run reads no further.
pub(super) fn delta_bytes<R: Read>(
    bundle: &BundleReader<R>,
    verified: &VerifiedTargets,
    (wanted, running): (&UpdateTarget, &str),
    bundle_bytes: u64,
) -> Result<Option<u64>, UpdateRefusal> {
    let Some(target) = bundle.next_target(verified)? else {
        return Ok(None);
    };
    match source_of(target, wanted, running) {
        Some(Ok(ProgramSource::Delta)) => Ok(Some(target.bytes)),
        Some(Err(refusal)) if bundle_bytes < wanted.bytes => Err(refusal),
        _ => Ok(None),
    }
}

/// The program that runs: its file in the slot, and the file `/init` of its initial file system.
pub(super) struct RunningProgram<'a, D> {
    slot: SlotFile<'a, D>,
    init: File,
    init_bytes: u64,
    block: RefCell<SlotBlock>,
    /// Bytes that may still be read of the slot's file.
    left: Cell<u64>,
    progress: Arc<StagingProgress>,
}

/// The part of the slot's file that was read last.
#[derive(Debug, Default)]
struct SlotBlock {
    at: u64,
    bytes: Vec<u8>,
}

impl<'a, D: BlockDevice> RunningProgram<'a, D> {
    pub(super) fn open(
        volume: &'a FatVolume<SharedDevice<'a, D>>,
        running: BootSlot,
        init: &Path,
        progress: &Arc<StagingProgress>,
    ) -> Result<RunningProgram<'a, SharedDevice<'a, D>>, UpdateRefusal> {
        let unreadable = |error: io::Error| of_delta(DeltaError::Base(error));
        let init = File::open(init).map_err(unreadable)?;
        let slot = SlotFile::open(volume, &slot_path(running));
        let slot = slot.map_err(|error| unreadable(io::Error::other(error)))?;
        let left = slot.len().saturating_mul(READS_OF_PROGRAM_MAX);
        Ok(RunningProgram {
            slot,
            left: Cell::new(left),
            init_bytes: init.metadata().map_err(unreadable)?.len(),
            init,
            block: RefCell::default(),
            progress: Arc::clone(progress),
        })
    }
}

impl<D> RunningProgram<'_, D> {
    /// Counts bytes that are read next.
    fn count(&self, bytes: u64) -> io::Result<()> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.unwrap_or_default());
        left.map(drop)
            .ok_or_else(|| io::Error::other(DeltaError::Reads))
    }
}

impl<D: BlockDevice> DeltaBase for RunningProgram<'_, D> {
    fn program_bytes(&self) -> u64 {
        self.slot.len()
    }

    fn init_bytes(&self) -> u64 {
        self.init_bytes
    }

    fn read_program(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut block = self.block.borrow_mut();
        let (mut rest, mut at) = (buffer, at);
        while !rest.is_empty() {
            let begin = at - at % BLOCK_BYTES as u64;
            if block.at != begin || block.bytes.is_empty() {
                let left = self.slot.len().saturating_sub(begin);
                let length = left.min(BLOCK_BYTES as u64) as usize;
                self.count(length as u64)?;
                block.bytes.resize(length, 0);
                let read = self.slot.read_at(&mut block.bytes, begin);
                if let Err(error) = read {
                    block.bytes.clear();
                    return Err(error);
                }
                block.at = begin;
            }
            let within = (at - begin) as usize;
            let known = block.bytes.get(within..).unwrap_or_default();
            let length = known.len().min(rest.len());
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (head, behind) = rest.split_at_mut(length);
            head.copy_from_slice(&known[..length]);
            rest = behind;
            at += length as u64;
        }
        Ok(())
    }

    fn read_init(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.init.read_exact_at(buffer, at)
    }

    fn is_given_up(&self) -> bool {
        self.progress.is_given_up()
    }
}

/// Writes the program that the next target of the bundle makes, and compares it with what was signed.
pub(super) fn copy_made<R: Read>(
    bundle: &mut BundleReader<R>,
    verified: &VerifiedTargets,
    (base, wanted): (&dyn DeltaBase, &UpdateTarget),
    output: &mut dyn Write,
) -> Result<(), UpdateRefusal> {
    let mut made = CheckedOutput {
        check: wanted.check(),
        output,
    };
    let applied = bundle.read_delta(verified, |delta| {
        apply_delta(delta, base, wanted.bytes, &mut made)
    })?;
    applied.map_err(of_delta)?;
    made.check.finish().map_err(|error| {
        let text = format_args!(
            "the delta of this bundle did not make the signed program ({error}); {TAKE_WHOLE}"
        );
        UpdateRefusal::new(RefusalCode::Delta, text)
    })
}

/// An output whose bytes are checked while they pass.
struct CheckedOutput<'a> {
    check: TargetCheck<'a>,
    output: &'a mut dyn Write,
}

impl Write for CheckedOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check.update(bytes).map_err(io::Error::other)?;
        self.output.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn of_delta(error: DeltaError) -> UpdateRefusal {
    let code = match &error {
        // The node does not want the whole program either.
        DeltaError::GivenUp => return UpdateRefusal::given_up(),
        // Whatever its disk does not give back, the whole program needs none of it.
        DeltaError::Library { .. } => RefusalCode::OtherLibrary,
        DeltaError::OtherBase => RefusalCode::OtherBase,
        _ => RefusalCode::Delta,
    };
    UpdateRefusal::new(code, format_args!("{error}; {TAKE_WHOLE}"))
}
