//! A new master key: what makes old copies of the file and old keys of slots worth nothing for what
//! comes after.
//!
//! A slot only holds the new key under its own, so that every slot that is to stay needs what opens it;
//! the caller names the slots for which it does not have that, and they are lost. The words, and all that
//! is derived from them, stay as they are.
//!
//! # The data partition
//! Its first secret hangs on the master key, so that both change, in steps of which each leaves a vault
//! and a partition that fit ([`change_master_key`]):
//!
//! 1. a key slot for the new secret is written beside the old one;
//! 2. the vault's copies are written, first the older, then the other;
//! 3. key slots of the partition that neither the new secret nor the words open are removed.
//!
//! Before the first copy is whole, a start finds the old vault, and the old secret opens the partition;
//! from then on it is the new vault and the new secret. A start after a power cut finds one of both and
//! [`settle`] ends what was begun. The volume key is the same: an attacker who had that, and the disk,
//! still reads the data. Only a new partition helps against that.

use thiserror::Error;

use crate::crypto;
use crate::derive::KeyPurpose;
use crate::derive::slip10::ExtendedPrivateKey;
use crate::error::VaultError;
use crate::secret::{SecretArr, SecretStr};
use crate::slots::{
    Alkv, Consent, CopyStorage, KeySlot, NewSlot, OpenAlkv, SlotError, SlotId, SlotParams,
    UnlockKey, VaultCopies, alkv, luks_phrase,
};

/// The key slots of the data partition, as the program that has it offers them. Both steps end when they
/// are on the disk, may be repeated, and leave what was there if they fail.
pub trait DataKeyslots {
    /// Why a step failed.
    type Error;

    /// Adds a key slot for `new`, opened by `with`. If `new` opens one already, nothing is done.
    fn add(&mut self, with: &SecretStr, new: &SecretStr) -> Result<(), Self::Error>;

    /// Removes every key slot that none of `keep` opens. If the first of them opens none, it fails and
    /// removes nothing.
    fn keep_only(&mut self, keep: &[SecretStr]) -> Result<(), Self::Error>;
}

/// Where a change of the master key stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RekeyError<E> {
    /// At the data partition.
    #[error("the key slots of the data partition: {0}")]
    Data(E),
    /// At the vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl OpenAlkv {
    /// The same vault under a new master key, which is in memory only until it is written. `keep` has the
    /// key of every slot that stays; every other is named in `lose`.
    ///
    /// # Errors
    /// `Unnamed` with the slots that are in neither, `NoSuchSlot`, `WrongKey` and others of opening a
    /// slot; `LastSlot` if none would stay, `LastInteractive` without consent.
    pub fn rekey(
        &self,
        keep: &mut [(SlotId, UnlockKey<'_>)],
        lose: &[SlotId],
        consent: Consent,
    ) -> Result<Self, VaultError> {
        let named = || keep.iter().map(|(id, _)| id).chain(lose);
        let all = self.alkv.slots();
        if let Some(id) = named().find(|id| all.iter().all(|slot| slot.id() != **id)) {
            return Err(SlotError::NoSuchSlot(*id).into());
        }
        let times = |slot: &&KeySlot| named().filter(|id| **id == slot.id()).count();
        let unnamed: Vec<_> = all
            .iter()
            .filter(|slot| times(slot) == 0)
            .map(KeySlot::id)
            .collect();
        if !unnamed.is_empty() {
            return Err(SlotError::Unnamed(unnamed).into());
        }
        if all.iter().any(|slot| times(&slot) > 1) {
            return Err(SlotError::BadParams("a slot that is named twice").into());
        }
        let stays = |slot: &&KeySlot| !lose.contains(&slot.id());
        let left: Vec<_> = all.iter().filter(stays).cloned().collect();
        let first = left.first().map(KeySlot::id);
        let first = first.ok_or(SlotError::LastSlot(self.opened_by))?;
        for lost in all.iter().filter(|slot| !stays(slot)) {
            Self::needs_no_words(lost, &left, consent)?;
        }
        let mut next = Self {
            alkv: self.alkv.clone(),
            vmk: crypto::random_secret()?,
            former: Some(SecretArr::copy_of(self.vmk.expose())),
            contents: self.contents.copied(),
            opened_by: if lose.contains(&self.opened_by) {
                first
            } else {
                self.opened_by
            },
        };
        let mut slots = Vec::with_capacity(left.len());
        for slot in &left {
            let key = keep.iter_mut().find(|(id, _)| *id == slot.id());
            let (_, key) = key.ok_or_else(|| SlotError::Unnamed(vec![slot.id()]))?;
            slots.push(next.moved(slot, key, self)?);
        }
        next.alkv.payload = alkv::seal_payload(next.alkv.uuid, &next.vmk, &next.contents)?;
        next.change(slots)?;
        Ok(next)
    }

    /// What opens the data partition, as LUKS is given it: of the master key, and of the words.
    pub fn data_phrases(&self) -> Result<[SecretStr; 2], VaultError> {
        let recovery = self.recovery_key()?;
        Ok([luks_phrase(&self.data_secret()), luks_phrase(&recovery)])
    }

    /// What the words alone give for the data partition.
    pub(super) fn recovery_key(&self) -> Result<SecretArr<32>, VaultError> {
        let seed = self.entropy().seed(self.passphrase())?;
        let path = KeyPurpose::DataRecovery.path(self.alkv.device());
        Ok(ExtendedPrivateKey::at(seed.expose(), &path)?.key)
    }

    /// A slot of `old` as it is under the new master key.
    fn moved(
        &self,
        slot: &KeySlot,
        key: &mut UnlockKey<'_>,
        old: &Self,
    ) -> Result<KeySlot, VaultError> {
        let uuid = self.alkv.uuid;
        let kek = key.kek(uuid, slot)?;
        // A slot that opens to another master key was put there by an attacker.
        if slot.unwrap(uuid, &kek)? != old.vmk {
            return Err(SlotError::Tampered.into());
        }
        match slot.params() {
            // The old one lies in every old copy.
            SlotParams::None { .. } => NewSlot::None.make(uuid, slot.id(), &self.vmk),
            params => KeySlot::wrap(uuid, slot.id(), params.clone(), &kek, &self.vmk),
        }
    }

    /// Whether a copy is of this vault, before or after its master key changed.
    pub(super) fn wrote(&self, alkv: &Alkv) -> bool {
        let fits = |vmk| alkv.mac_under(vmk) == alkv.mac;
        fits(&self.vmk) || self.former.as_ref().is_some_and(fits)
    }
}

/// Writes what [`OpenAlkv::rekey`] made of `old`, and changes the secret of the data partition with it.
/// If it ends in the middle, [`settle`] with what the next start opens brings it to one end.
pub fn change_master_key<A: CopyStorage, D: DataKeyslots>(
    copies: &mut VaultCopies<A>,
    data: &mut D,
    old: &OpenAlkv,
    next: &OpenAlkv,
) -> Result<(), RekeyError<D::Error>> {
    let [with, _] = old.data_phrases()?;
    let phrases = next.data_phrases()?;
    // The data first: whichever copy of the vault the next start opens, the partition opens by it.
    data.add(&with, &phrases[0]).map_err(RekeyError::Data)?;
    copies.save(next).map_err(VaultError::from)?;
    // Only once no copy of the vault has the old master key.
    data.keep_only(&phrases).map_err(RekeyError::Data)
}

/// Ends what a power cut interrupted: makes both copies the one that was opened, then removes the key
/// slots of the data partition that do not belong to it. Harmless where nothing was interrupted.
pub fn settle<A: CopyStorage, D: DataKeyslots>(
    copies: &mut VaultCopies<A>,
    data: &mut D,
    open: &OpenAlkv,
) -> Result<(), RekeyError<D::Error>> {
    // The copies first: as long as an old one is left, what opens with it is not removed.
    copies.save(open).map_err(VaultError::from)?;
    let phrases = open.data_phrases()?;
    data.keep_only(&phrases).map_err(RekeyError::Data)
}

#[cfg(test)]
mod tests;
