//! Replaces the master key, after which old copies of the file and old keys of slots open nothing that is written
//! later.
//!
//! A slot contains the new key encrypted under the slot's own key, so the caller must supply the key of every slot
//! that stays; it names the slots whose keys it lacks, and these are removed. The words, and all keys derived from
//! them, do not change.
//!
//! # The data partition
//! The partition's first secret is derived from the master key, so both change together, in steps after each of which
//! vault and partition match ([`change_master_key`]):
//!
//! 1. a key slot for the new secret is written beside the old one;
//! 2. the vault's copies are written, first the older, then the other;
//! 3. key slots of the partition that neither the new secret nor the words open are removed.
//!
//! Until the first copy is whole, a start finds the old vault, whose secret opens the partition; after that it finds
//! the new vault and the new secret. A start after a power cut finds one of the two, and [`settle`] completes the
//! change. The volume key stays the same: an attacker who has that key and the disk can still read the data, which
//! only a new partition prevents.

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

/// The key slots of the data partition, which the program that uses the partition implements. Both steps return when
/// they are on the disk, may be repeated, and change nothing if they fail.
pub trait DataKeyslots {
    /// Why a step failed.
    type Error;

    /// Adds a key slot for `new`, authorised by `with`. If `new` opens a slot already, it does nothing.
    fn add(&mut self, with: &SecretStr, new: &SecretStr) -> Result<(), Self::Error>;

    /// Removes every key slot that no phrase of `keep` opens. If the first phrase opens no slot, it fails and removes
    /// none.
    fn keep_only(&mut self, keep: &[SecretStr]) -> Result<(), Self::Error>;
}

/// The step at which a change of the master key failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RekeyError<E> {
    /// The data partition.
    #[error("the key slots of the data partition: {0}")]
    Data(E),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl OpenAlkv {
    /// The same vault under a new master key, which exists only in memory until it is written. `keep` has the key of
    /// every slot that stays; `lose` names all others.
    ///
    /// # Errors
    /// `Unnamed` with the slots that are in neither, `NoSuchSlot`, `WrongKey` and other errors of opening a slot;
    /// `LastSlot` if none would stay, `LastInteractive` without consent.
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
        // A slot in both lists could not be kept and lost at once.
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

    /// The LUKS passphrases of the data partition: from the master key, and from the words.
    pub fn data_phrases(&self) -> Result<[SecretStr; 2], VaultError> {
        let recovery = self.recovery_key()?;
        Ok([luks_phrase(&self.data_secret()), luks_phrase(&recovery)])
    }

    /// The key of the data partition that the words alone give.
    pub(super) fn recovery_key(&self) -> Result<SecretArr<32>, VaultError> {
        let seed = self.entropy().seed(self.passphrase())?;
        let path = KeyPurpose::DataRecovery.path(self.alkv.device());
        Ok(ExtendedPrivateKey::at(seed.expose(), &path)?.key)
    }

    /// A slot of `old` with the new master key.
    fn moved(
        &self,
        slot: &KeySlot,
        key: &mut UnlockKey<'_>,
        old: &Self,
    ) -> Result<KeySlot, VaultError> {
        let uuid = self.alkv.uuid;
        let kek = key.kek(uuid, slot)?;
        // A slot that contains another master key was added by an attacker.
        if slot.unwrap(uuid, &kek)? != old.vmk {
            return Err(SlotError::Tampered.into());
        }
        match slot.params() {
            // The old key is stored in every old copy, so the slot gets a new one.
            SlotParams::None { .. } => NewSlot::None.make(uuid, slot.id(), &self.vmk),
            params => KeySlot::wrap(uuid, slot.id(), params.clone(), &kek, &self.vmk),
        }
    }

    /// Whether a copy belongs to this vault, before or after the change of its master key.
    pub(super) fn wrote(&self, alkv: &Alkv) -> bool {
        let authenticates = |vmk| alkv.mac_under(vmk) == alkv.mac;
        authenticates(&self.vmk) || self.former.as_ref().is_some_and(authenticates)
    }
}

/// Writes the vault `next` that [`OpenAlkv::rekey`] made from `old`, and changes the secret of the data partition
/// with it. If this is interrupted, [`settle`] with the vault that the next start opens completes the change.
pub fn change_master_key<A: CopyStorage, D: DataKeyslots>(
    copies: &mut VaultCopies<A>,
    data: &mut D,
    old: &OpenAlkv,
    next: &OpenAlkv,
) -> Result<(), RekeyError<D::Error>> {
    let [with, _] = old.data_phrases()?;
    let phrases = next.data_phrases()?;
    // The partition gets the new secret first, so that it opens with whichever copy of the vault the next start
    // opens.
    data.add(&with, &phrases[0]).map_err(RekeyError::Data)?;
    copies.save(next).map_err(VaultError::from)?;
    // The old secret is removed only once no copy of the vault has the old master key.
    data.keep_only(&phrases).map_err(RekeyError::Data)
}

/// Completes what a power cut interrupted: writes the opened vault to both copies, then removes the key slots of the
/// data partition that do not belong to it. It changes nothing if nothing was interrupted.
pub fn settle<A: CopyStorage, D: DataKeyslots>(
    copies: &mut VaultCopies<A>,
    data: &mut D,
    open: &OpenAlkv,
) -> Result<(), RekeyError<D::Error>> {
    // The copies are written first: while an old copy exists, the secret that it gives must not be removed.
    copies.save(open).map_err(VaultError::from)?;
    let phrases = open.data_phrases()?;
    data.keep_only(&phrases).map_err(RekeyError::Data)
}

#[cfg(test)]
mod tests;
