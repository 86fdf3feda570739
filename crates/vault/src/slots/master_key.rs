//! The master key by itself, for a machine that has to change its vault later and cannot open a slot then.

use crate::secret::SecretArr;
use crate::slots::{Alkv, OpenAlkv, SlotError, SlotId};

/// What a vault's payload is encrypted under, and what every slot holds: as good as the words. Wiped on drop.
#[derive(Debug)]
pub struct MasterKey {
    vmk: SecretArr<32>,
    opened_by: SlotId,
}

impl OpenAlkv {
    /// A copy of its master key.
    #[must_use]
    pub fn master_key(&self) -> MasterKey {
        MasterKey {
            vmk: SecretArr::copy_of(self.vmk.expose()),
            opened_by: self.opened_by,
        }
    }
}

impl Alkv {
    /// Opens it without a slot, and believes it only if it is what was written.
    ///
    /// # Errors
    /// It was changed by an attacker, or it has another master key.
    pub fn open_by_master_key(&self, key: &MasterKey) -> Result<OpenAlkv, SlotError> {
        self.believed(SecretArr::copy_of(key.vmk.expose()), key.opened_by)
    }
}
