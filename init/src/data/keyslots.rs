//! The key slots of the sealed data partition, as the vault uses them: one for its own secret, one
//! for the words, and a third while the master key changes.

use alknet_sealed::limits::SLOTS_MAX;
use alknet_sealed::{BlockStorage, KeyslotInfo, SealedError, SealedPartition, VolumeKey};
use alknet_vault::SecretStr;
use alknet_vault::slots::DataKeyslots;

/// The vault's first key slot. A new master key gets another slot, and a later one gets this slot
/// again.
pub(super) const BY_VAULT: u32 = 0;
/// The key slot that the words open.
pub(super) const BY_WORDS: u32 = 1;
/// Number of this program's key slots while no change is under way.
const SETTLED: usize = 2;

/// Opens the data with a phrase, whichever key slot it belongs to. Each slot takes some
/// milliseconds, so unlikely ones come last.
pub(super) fn unlock_with<D: BlockStorage>(
    sealed: &SealedPartition<D>,
    phrase: &SecretStr,
    unlikely: impl Fn(u32) -> bool,
) -> Result<(u32, VolumeKey), SealedError> {
    let slots = sealed.summary().slots;
    let mut numbers: Vec<u32> = openable(&slots).map(|slot| slot.number).collect();
    if numbers.is_empty() {
        // The attempt with this slot returns why there is no usable one.
        numbers.push(BY_VAULT);
    }
    // The sort is stable: likely slots stay in the order of their numbers.
    numbers.sort_by_key(|number| unlikely(*number));
    let mut refused = SealedError::NoSlot(BY_VAULT);
    for number in numbers {
        match sealed.unlock(number, phrase.expose().as_bytes()) {
            Ok(key) => return Ok((number, key)),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn openable(slots: &[KeyslotInfo]) -> impl Iterator<Item = &KeyslotInfo> {
    slots.iter().filter(|slot| slot.unsupported.is_none())
}

/// The key slots that a change of the master key changes. Key slots of other programs stay as they
/// are.
pub(crate) struct DataPartitionKeys<'a, D: BlockStorage> {
    sealed: &'a mut SealedPartition<D>,
}

impl<'a, D: BlockStorage> DataPartitionKeys<'a, D> {
    pub(crate) fn for_partition(sealed: &'a mut SealedPartition<D>) -> Self {
        Self { sealed }
    }

    /// Whether a change was interrupted, so that there is a surplus key slot.
    pub(super) fn are_too_many(&self) -> bool {
        self.ours().len() > SETTLED
    }

    fn ours(&self) -> Vec<u32> {
        let slots = self.sealed.summary().slots;
        let ours = openable(&slots).filter(|slot| slot.ours);
        ours.map(|slot| slot.number).collect()
    }

    /// Whether a phrase opens a key slot. An unreadable disk is an error.
    fn opens(&self, number: u32, phrase: &SecretStr) -> Result<bool, SealedError> {
        match self.sealed.unlock(number, phrase.expose().as_bytes()) {
            Ok(_) => Ok(true),
            Err(SealedError::WrongPhrase(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl<D: BlockStorage> DataKeyslots for DataPartitionKeys<'_, D> {
    type Error = SealedError;

    fn add(&mut self, with: &SecretStr, new: &SecretStr) -> Result<(), SealedError> {
        let (_, key) = unlock_with(self.sealed, with, |slot| slot == BY_WORDS)?;
        // An interrupted change may have added the slot before the power failed.
        for number in self.ours() {
            if self.opens(number, new)? {
                return Ok(());
            }
        }
        let taken = self.sealed.summary().slots;
        let is_free = |number: &u32| taken.iter().all(|slot| slot.number != *number);
        let free = (0..SLOTS_MAX).find(is_free).ok_or(SealedError::NoRoom)?;
        self.sealed.set_phrase(free, new.expose().as_bytes(), &key)
    }

    fn keep_only(&mut self, keep: &[SecretStr]) -> Result<(), SealedError> {
        // With nothing to keep, every key slot would be removed.
        let Some(first) = keep.first() else {
            return Ok(());
        };
        let (own, _) = unlock_with(self.sealed, first, |slot| slot == BY_WORDS)?;
        for number in self.ours() {
            if number == own {
                continue;
            }
            let mut stays = false;
            // In most cases the slot is that of the words, which is last in `keep`.
            for phrase in keep.iter().rev() {
                stays = stays || self.opens(number, phrase)?;
            }
            if !stays {
                self.sealed.remove_slot(number)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
