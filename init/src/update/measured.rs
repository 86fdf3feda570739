//! What a TPM measures of the programs of an update.

use alknet_boot_state::BootSlot;
use alknet_fat::{BlockDevice, FatError};
use alknet_tpm::predict::{ImageUpdate, MeasuredImage, authenticode};
use alknet_update::limits::TARGET_BYTES_MAX;

use super::apply::TrialPlan;
use super::disk::{LOADER, SlotDisk, slot_path};
use super::known_programs::{self, KnownProgram, KnownStore};
use super::refusal::{RefusalCode, UpdateRefusal};

/// Most bytes of the loader: a tenth of it is what ours has.
const LOADER_BYTES_MAX: u32 = 1 << 20;

/// The programs of an update, as a TPM will have measured them.
#[derive(Clone, Debug)]
pub(crate) struct SystemProgram {
    /// The digests of the loaders that firmware starts first.
    pub(crate) loaders: Vec<[u8; 32]>,
    pub(crate) running: MeasuredImage,
    pub(crate) next: MeasuredImage,
}

impl SystemProgram {
    /// The update as a prediction needs it.
    pub(crate) fn update(&self) -> ImageUpdate<'_> {
        ImageUpdate {
            loaders: &self.loaders,
            running: &self.running,
            next: &self.next,
        }
    }
}

/// What a TPM measures of the loader, of the program that runs and of that in slot `next`. One program is in memory at a
/// time. The bytes that are measured are those of the plan, if there is one.
pub(super) fn programs<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    next: BootSlot,
    plan: Option<&TrialPlan>,
    store: &KnownStore,
) -> Result<SystemProgram, UpdateRefusal> {
    let next_image = program(disk, next, plan, store)?;
    let loaders = match disk.volume()?.read_file(LOADER, LOADER_BYTES_MAX) {
        Ok(loader) => vec![authenticode(&loader).map_err(unpredictable)?],
        Err(FatError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(SystemProgram {
        loaders,
        running: program(disk, next.other(), None, store)?,
        next: next_image,
    })
}

/// What a TPM measures of the program in one slot.
///
/// What was measured of a known program once is noted beside its hash, and counts for each file with this hash: to hash
/// two programs four times takes longer than a boot where the processor has no instructions for SHA-256.
pub(super) fn program<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    plan: Option<&TrialPlan>,
    store: &KnownStore,
) -> Result<MeasuredImage, UpdateRefusal> {
    let known = store.load();
    let known = known.of_slot(slot);
    let known = known.filter(|known| plan.is_none_or(|plan| plan.sha256 == known.sha256));
    if let Some(measured) = known.and_then(KnownProgram::measured) {
        return Ok(measured);
    }
    let limit = u32::try_from(TARGET_BYTES_MAX).unwrap_or(u32::MAX);
    let program = disk.volume()?.read_file(&slot_path(slot), limit)?;
    let sha256 = known_programs::digest_of(&program);
    if let Some(plan) = plan
        && sha256 != plan.sha256
    {
        let why = "the disk gave other bytes than a moment before";
        return Err(known_programs::unverified(slot, &plan.version, why));
    }
    let measured = MeasuredImage::read(&program).map_err(unpredictable)?;
    store.note_measured(slot, &sha256, &measured);
    Ok(measured)
}

fn unpredictable(error: impl std::fmt::Display) -> UpdateRefusal {
    let text = format_args!(
        "what the TPM will measure cannot be predicted: {error}; at the machine, add a slot that a person opens, and start \
         from an image that this project builds"
    );
    UpdateRefusal::new(RefusalCode::Unpredictable, text)
}
