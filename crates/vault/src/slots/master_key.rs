//! The master key, for a machine that has to change its vault later and cannot open a slot then.

use crate::secret::SecretArr;
use crate::slots::{Alkv, OpenAlkv, SlotError, SlotId};

/// The key that encrypts a vault's payload and that every slot contains: as valuable as the words. Zeroized on drop.
#[derive(Debug)]
pub struct MasterKey {
    vmk: SecretArr<32>,
    opened_by: SlotId,
}

impl OpenAlkv {
    /// A copy of the vault's master key.
    #[must_use]
    pub fn master_key(&self) -> MasterKey {
        MasterKey {
            vmk: SecretArr::copy_of(self.vmk.expose()),
            opened_by: self.opened_by,
        }
    }
}

impl Alkv {
    /// Opens the file without a slot, and authenticates it.
    ///
    /// # Errors
    /// An attacker changed the file, or it has another master key.
    pub fn open_by_master_key(&self, key: &MasterKey) -> Result<OpenAlkv, SlotError> {
        self.believed(SecretArr::copy_of(key.vmk.expose()), key.opened_by)
    }
}
