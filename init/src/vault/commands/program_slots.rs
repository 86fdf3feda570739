//! Slots of the TPM for the programs of updates: added before a program goes on trial, and removed when one of the two
//! programs is not wanted any more. No person is asked: the vault is opened by a slot that opens by itself.

use alknet_tpm::predict::{ImageUpdate, MeasuredImage};
use alknet_vault::audit::AuditEvent;
use alknet_vault::slots::{Alkv, Consent, KeySlot, OpenAlkv, SlotId, SlotParams};

use super::{Attempt, CommandContext, NeedInput, find, name, on_disk, opening, save};
use crate::tpm;
use crate::vault::tpm_unlock::wants_pin;

/// The PCR by which a slot names its program.
const PROGRAM_PCR: u8 = 11;

/// The slots of the TPM in a vault, as an update sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProgramSlots {
    /// There is one that opens without a person.
    pub(crate) is_unattended: bool,
    /// There is one that needs a PIN.
    pub(crate) has_pin: bool,
}

impl ProgramSlots {
    fn read(alkv: &Alkv) -> Self {
        let slots = || alkv.slots().iter().filter(|slot| is_tpm2(slot));
        Self {
            is_unattended: slots().any(|slot| !wants_pin(slot)),
            has_pin: slots().any(wants_pin),
        }
    }
}

/// The slots of the TPM in the vault of this machine.
pub(crate) fn program_slots(place: &CommandContext<'_>) -> Result<ProgramSlots, String> {
    let alkv = on_disk(place).map_err(reason)?;
    Ok(ProgramSlots::read(&alkv))
}

/// Adds a slot for the next image, unless the vault has one. Returns the new slot.
pub(crate) fn add_program_slot(
    place: &CommandContext<'_>,
    update: &ImageUpdate<'_>,
) -> Result<Option<SlotId>, String> {
    add(place, update).map_err(reason)
}

fn add(place: &CommandContext<'_>, update: &ImageUpdate<'_>) -> Attempt<Option<SlotId>> {
    if !slots_of(&on_disk(place)?, update.next).is_empty() {
        return Ok(None);
    }
    let mut open = opened(place)?;
    let id = tpm::add_slot_for_image(&mut open, update).map_err(NeedInput::refused)?;
    let added = find(open.alkv(), id)?;
    save(place, &open)?;
    let events = place.vault.events();
    events.add(AuditEvent::SlotAdded(name(&added)));
    place.log.info(format_args!(
        "slot {id} (tpm2) was added to the vault: it opens once the staged version was started"
    ));
    Ok(Some(id))
}

/// Removes the slots of a program that is not wanted any more. Those of `keep` stay, also if both are the same program.
/// Returns how many slots went.
pub(crate) fn remove_program_slots(
    place: &CommandContext<'_>,
    program: &MeasuredImage,
    keep: &MeasuredImage,
) -> Result<usize, String> {
    remove(place, program, keep).map_err(reason)
}

fn remove(
    place: &CommandContext<'_>,
    program: &MeasuredImage,
    keep: &MeasuredImage,
) -> Attempt<usize> {
    if program.pcr_11() == keep.pcr_11() {
        return Ok(0);
    }
    let listed = on_disk(place)?;
    // Without a slot for what runs, the removal could leave a vault that only the words open.
    if slots_of(&listed, program).is_empty() || slots_of(&listed, keep).is_empty() {
        return Ok(0);
    }
    let mut open = opened(place)?;
    // The list on the disk is not authenticated: the vault that opened decides.
    let unwanted = slots_of(open.alkv(), program);
    for slot in &unwanted {
        open.remove(slot.id(), Consent::None)?;
    }
    save(place, &open)?;
    for slot in &unwanted {
        place
            .vault
            .events()
            .add(AuditEvent::SlotRemoved(name(slot)));
        place.log.info(format_args!(
            "slot {} (tpm2) was removed: its program is not wanted any more",
            slot.id()
        ));
    }
    Ok(unwanted.len())
}

/// The vault in use, opened by a slot that opens without a person.
fn opened(place: &CommandContext<'_>) -> Attempt<OpenAlkv> {
    if !place.vault.is_open() {
        return Err(NeedInput::refused(super::LOCKED));
    }
    let open = opening::by_itself(place, true)?;
    let open =
        open.ok_or_else(|| NeedInput::refused("no slot of the vault opens without a person now"))?;
    let in_use = place.vault.check_in_use(&open);
    in_use.map_err(|which| NeedInput::refused(format_args!("{which}; {}", which.hint())))?;
    Ok(open)
}

/// The slots of the TPM that are bound to this program.
fn slots_of(alkv: &Alkv, program: &MeasuredImage) -> Vec<KeySlot> {
    let slots = alkv.slots().iter();
    let slots = slots.filter(|slot| is_of_program(slot, program.pcr_11()));
    slots.cloned().collect()
}

fn is_of_program(slot: &KeySlot, pcr_11: &[u8; 32]) -> bool {
    let SlotParams::Tpm2(params) = slot.params() else {
        return false;
    };
    // A slot of an early version notes no values, and is for a person to remove.
    let mut bound = params.pcrs().iter().zip(params.values());
    bound.any(|(pcr, value)| *pcr == PROGRAM_PCR && value == pcr_11)
}

fn is_tpm2(slot: &KeySlot) -> bool {
    matches!(slot.params(), SlotParams::Tpm2(_))
}

fn reason(halt: NeedInput) -> String {
    match halt {
        NeedInput::Refused(why) => why,
        NeedInput::Wants(..) => "a person has to open the vault for it".to_owned(),
    }
}
