//! Slots of an open vault that this TPM opens: for what the machine booted, and for an image that it
//! is to boot next.

use std::io::{Read, Write};

use alknet_vault::VaultError;
use alknet_vault::slots::{Consent, NewSlot, OpenAlkv, SlotError, SlotId, SlotType};
use thiserror::Error;

use crate::predict::{PredictError, Update};
use crate::{Expected, PcrChoice, Pin, Tpm, TpmError, new_kek};

/// Why there is no such slot. The vault is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddSlotError {
    /// What the image will measure cannot be told.
    #[error("what the image will measure cannot be told: {0}")]
    Predict(#[from] PredictError),
    /// The TPM did not take the key.
    #[error("the TPM does not take the key: {0}")]
    Tpm(#[from] TpmError),
    /// The vault did not take the slot.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl<T: Read + Write> Tpm<T> {
    /// Adds a slot that opens after whatever this machine booted now. The vault has to be written by the
    /// caller, as after every change.
    ///
    /// # Errors
    /// `Tpm`, `Vault`.
    pub fn add_slot(
        &mut self,
        open: &mut OpenAlkv,
        choice: &PcrChoice,
        pin: Option<&Pin>,
    ) -> Result<SlotId, AddSlotError> {
        let kek = new_kek()?;
        let params = self.seal(&kek, choice, Expected::Current, pin)?;
        Ok(open.add(NewSlot::Tpm2(params, &kek))?)
    }

    /// Puts such a slot in the place of one that does not open any more, in one change. What made it
    /// refuse is accepted by that: it is for whoever opened the vault in another way and knows why.
    ///
    /// # Errors
    /// `Tpm`; `Vault` also where that slot is of another type.
    pub fn renew_slot(
        &mut self,
        open: &mut OpenAlkv,
        id: SlotId,
        choice: &PcrChoice,
        pin: Option<&Pin>,
    ) -> Result<SlotId, AddSlotError> {
        let mut slots = open.alkv().slots().iter();
        match slots.find(|slot| slot.id() == id) {
            None => return Err(VaultError::from(SlotError::NoSuchSlot(id)).into()),
            Some(slot) if slot.kind() == SlotType::Tpm2 => {}
            Some(_) => return Err(VaultError::from(SlotError::WrongType(id)).into()),
        }
        let kek = new_kek()?;
        let params = self.seal(&kek, choice, Expected::Current, pin)?;
        let slot = NewSlot::Tpm2(params, &kek);
        Ok(open.replace(id, slot, Consent::None)?)
    }

    /// Adds a slot that opens after this machine booted `update.next`, and not before. The slots of the
    /// image that runs stay, so that the way back is open: remove them once the next one proved itself.
    ///
    /// # Errors
    /// `Predict`, `Tpm`, `Vault`.
    pub fn add_slot_for(
        &mut self,
        open: &mut OpenAlkv,
        choice: &PcrChoice,
        update: &Update<'_>,
        pin: Option<&Pin>,
    ) -> Result<SlotId, AddSlotError> {
        let now = self.pcr_values(choice.pcrs())?;
        let then = update.predict(choice, &now)?;
        let kek = new_kek()?;
        let params = self.seal(&kek, choice, Expected::Predicted(&then), pin)?;
        Ok(open.add(NewSlot::Tpm2(params, &kek))?)
    }
}
