//! Slots of an open vault that this TPM opens: for what the machine booted, and for an image that
//! it is to boot next.

use std::io::{Read, Write};

use alknet_vault::VaultError;
use alknet_vault::slots::{
    Consent, NewSlot, OpenAlkv, SlotError, SlotId, SlotParams, SlotType, Tpm2Params,
};
use thiserror::Error;

use crate::choice::BESIDE_THE_IMAGE;
use crate::pcr::{self, EMPTY};
use crate::predict::{ImageUpdate, PredictError, ProgramUpdate};
use crate::seal::storage_key;
use crate::{ExpectedPcrs, PcrChoice, PcrValues, Tpm, TpmError, TpmPin, new_kek};

/// Why there is no such slot. The vault is unchanged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddSlotError {
    /// What the image will measure cannot be predicted.
    #[error("what the image will measure cannot be predicted: {0}")]
    Predict(#[from] PredictError),
    /// The TPM did not take the key.
    #[error("the TPM does not take the key: {0}")]
    Tpm(#[from] TpmError),
    /// The vault did not take the slot.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl<T: Read + Write> Tpm<T> {
    /// Adds a slot that opens after whatever this machine booted now. The caller has to write the
    /// vault, as after every change.
    ///
    /// # Errors
    /// `Tpm`, `Vault`.
    pub fn add_slot(
        &mut self,
        open: &mut OpenAlkv,
        choice: &PcrChoice,
        pin: Option<&TpmPin>,
    ) -> Result<SlotId, AddSlotError> {
        let kek = new_kek()?;
        let params = self.seal(&kek, choice, ExpectedPcrs::Current, pin)?;
        Ok(open.add(NewSlot::Tpm2(params, &kek))?)
    }

    /// Replaces a slot that no longer opens by such a slot, in one change. This accepts the change
    /// that made the old slot refuse, so it is for a caller that opened the vault in another way
    /// and knows why.
    ///
    /// # Errors
    /// `Tpm`, and `Vault`, also if that slot is of another type.
    pub fn renew_slot(
        &mut self,
        open: &mut OpenAlkv,
        id: SlotId,
        choice: &PcrChoice,
        pin: Option<&TpmPin>,
    ) -> Result<SlotId, AddSlotError> {
        let mut slots = open.alkv().slots().iter();
        match slots.find(|slot| slot.id() == id) {
            None => return Err(VaultError::from(SlotError::NoSuchSlot(id)).into()),
            Some(slot) if slot.kind() == SlotType::Tpm2 => {}
            Some(_) => return Err(VaultError::from(SlotError::WrongType(id)).into()),
        }
        let kek = new_kek()?;
        let params = self.seal(&kek, choice, ExpectedPcrs::Current, pin)?;
        let slot = NewSlot::Tpm2(params, &kek);
        Ok(open.replace(id, slot, Consent::None)?)
    }

    /// Adds a slot that opens after this machine booted `update.next`, and not before. The slots of
    /// the running image stay, so that the way back is open: remove them once the next image proved
    /// itself.
    ///
    /// # Errors
    /// `Predict`, `Tpm`, `Vault`.
    pub fn add_slot_for(
        &mut self,
        open: &mut OpenAlkv,
        choice: &PcrChoice,
        update: &ProgramUpdate<'_>,
        pin: Option<&TpmPin>,
    ) -> Result<SlotId, AddSlotError> {
        let now = self.pcr_values(choice.pcrs())?;
        let then = update.predict(choice, &now)?;
        self.add_predicted(open, choice, &then, pin)
    }

    /// Like `add_slot_for`, for images of which only the digests are in memory.
    ///
    /// # Errors
    /// The errors of [`add_slot_for`](Self::add_slot_for).
    pub fn add_slot_for_image(
        &mut self,
        open: &mut OpenAlkv,
        choice: &PcrChoice,
        update: &ImageUpdate<'_>,
        pin: Option<&TpmPin>,
    ) -> Result<SlotId, AddSlotError> {
        let now = self.pcr_values(choice.pcrs())?;
        let then = update.predict(choice, &now)?;
        self.add_predicted(open, choice, &then, pin)
    }

    fn add_predicted(
        &mut self,
        open: &mut OpenAlkv,
        choice: &PcrChoice,
        then: &PcrValues,
        pin: Option<&TpmPin>,
    ) -> Result<SlotId, AddSlotError> {
        let kek = new_kek()?;
        let params = self.seal(&kek, choice, ExpectedPcrs::Predicted(then), pin)?;
        Ok(open.add(NewSlot::Tpm2(params, &kek))?)
    }

    /// Replaces the slots of this TPM that do not cover what comes from beside the image by slots
    /// that do, each bound to the same values as before. Returns the pairs of ids. `pin` is the PIN
    /// that opened `open`, if one did. Other slots with a PIN stay: their PINs are not known here.
    ///
    /// # Errors
    /// `Tpm`, `Vault`. Slots that were replaced before stay replaced.
    pub fn cover_slots(
        &mut self,
        open: &mut OpenAlkv,
        pin: Option<&TpmPin>,
    ) -> Result<Vec<(SlotId, SlotId)>, AddSlotError> {
        let opened_by = open.opened_by();
        let slots = open.alkv().slots().iter();
        let former = slots.filter_map(|slot| match slot.params() {
            SlotParams::Tpm2(params) if PcrChoice::is_uncovered(params.pcrs()) => {
                let pin = pin.filter(|_| params.pin() && slot.id() == opened_by);
                (params.pin() == pin.is_some()).then(|| (slot.id(), params.clone(), pin))
            }
            _ => None,
        });
        let former: Vec<_> = former.collect();
        let mut done = Vec::new();
        for (id, params, pin) in former {
            let Some(values) = bound_to(&params) else {
                continue;
            };
            // Slots of a disk that came from another machine are for its owner to remove.
            match self.with_parent(Some(&storage_key(&params)?), |_, _| Ok(())) {
                Err(TpmError::OtherTpm) => continue,
                result => result?,
            }
            // A key of its own: an older copy of the disk has a slot that still gives the former one.
            let kek = new_kek()?;
            let choice = PcrChoice::from_pcrs(values.keys().copied().collect())?;
            let params = self.seal(&kek, &choice, ExpectedPcrs::Predicted(&values), pin)?;
            let new = open.replace(id, NewSlot::Tpm2(params, &kek), Consent::None)?;
            done.push((id, new));
        }
        Ok(done)
    }
}

/// The values that a slot without PCR 12 is bound to, together with an empty PCR 12. `None` for
/// values that were not noted, or not as they were sealed.
fn bound_to(params: &Tpm2Params) -> Option<PcrValues> {
    let pcrs = params.pcrs().iter().copied();
    let mut values: PcrValues = pcrs.zip(params.values().iter().copied()).collect();
    let is_all = values.len() == params.pcrs().len();
    // The values are a note on the disk. The policy shows whether an attacker changed them.
    let is_sealed = is_all && pcr::policy(&values, params.pin()) == *params.policy();
    values.insert(BESIDE_THE_IMAGE, EMPTY);
    is_sealed.then_some(values)
}
