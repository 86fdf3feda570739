//! `vault.alkv`: the encrypted words, and the key slots that open them.
//!
//! A random 32-byte vault master key encrypts the entropy; every slot holds that key encrypted
//! under one of its own. A slot's key comes from a passphrase that a person types, from a medium,
//! from a TPM or from another node, or, for development, it is stored in the slot. The file is
//! canonical JSON and exists twice ([`VaultCopies`]).
//!
//! ```
//! use alknet_vault::slots::{Alkv, UnlockKey, NewSlot, NewVault, OpenAlkv};
//! use alknet_vault::{Entropy, WordCount};
//!
//! let vault = NewVault::new(Entropy::generate(WordCount::TwentyFour)?, 1_767_225_600);
//! let open = OpenAlkv::create(vault, NewSlot::None)?;
//!
//! let read = Alkv::parse(open.alkv().to_text().as_bytes())?;
//! let again = read.open(read.slots()[0].id(), &mut UnlockKey::Stored)?;
//! assert_eq!(again.entropy(), open.entropy());
//! # Ok::<(), alknet_vault::VaultError>(())
//! ```

mod alkv;
mod argon;
mod attempts;
mod copies;
mod error;
mod first_boot;
mod first_count;
mod form;
mod kek;
mod master_key;
mod open;
mod record;
mod rekey;
mod seed_key;

use crate::limits::ARGON2_MAX_KIB;

pub use alkv::{Alkv, VaultId};
pub use argon::{Argon2Params, attempt, calibrate};
pub use attempts::{Attempts, delay};
pub use copies::{CopyStorage, FileCopyStorage, LoadedCopies, VaultCopies, VaultCopyId};
pub use error::{KekError, SlotError};
pub use first_boot::FirstBootPermissions;
pub use first_count::FirstCount;
pub use kek::{Kek, KekRequest, KekSource, UnlockKey};
pub use master_key::MasterKey;
pub use open::{Consent, NewSlot, NewVault, OpenAlkv, luks_phrase};
pub use record::{KeySlot, KmsParams, SlotId, SlotParams, SlotType, Tpm2Params};
pub use rekey::{DataKeyslots, RekeyError, change_master_key, settle};
pub use seed_key::SeedKey;

/// Memory that Argon2id may use on a machine with this much RAM: a quarter.
#[must_use]
pub fn memory_cap_kib(ram_kib: u64) -> u32 {
    u32::try_from(ram_kib / 4)
        .unwrap_or(ARGON2_MAX_KIB)
        .min(ARGON2_MAX_KIB)
}

#[cfg(test)]
mod tests;
