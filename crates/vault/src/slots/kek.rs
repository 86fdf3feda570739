//! The sources of a slot's key.

use crate::crypto;
use crate::secret::{SecretArr, SecretStr};
use crate::slots::record::{SlotParams, SlotType};
use crate::slots::{KekError, KeySlot, SeedKey, SlotError, SlotId, VaultId, argon};

/// The 32 bytes with which a slot encrypts the vault's master key.
pub type Kek = SecretArr<32>;

/// A request to a [`KekSource`] for the key of a slot.
#[derive(Clone, Copy, Debug)]
pub struct KekRequest<'a> {
    /// The vault's id.
    pub vault: VaultId,
    /// The slot's number.
    pub id: SlotId,
    /// The parameters of the slot's key. They are not authenticated yet: the slot only opens if they are unchanged.
    pub params: &'a SlotParams,
}

/// A TPM, or a node that keeps the key, for slots of type `tpm2` or `kms`.
pub trait KekSource {
    /// Returns the key of that slot.
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError>;
}

/// The caller's means to open a slot.
#[expect(missing_debug_implementations, reason = "a secret is never shown")]
pub enum UnlockKey<'a> {
    /// For slots of type `passphrase`.
    Passphrase {
        /// The passphrase as typed.
        passphrase: &'a SecretStr,
        /// Memory that Argon2id may use; see [`super::memory_cap_kib`].
        cap_kib: u32,
    },
    /// For slots of type `provisioning`.
    Seed(&'a SeedKey),
    /// For slots of type `tpm2` and `kms`.
    Source(SlotType, &'a mut dyn KekSource),
    /// For slots of type `none`, which contain their key.
    Stored,
}

impl UnlockKey<'_> {
    /// Whether it is for slots of that type.
    #[must_use]
    pub fn fits(&self, kind: SlotType) -> bool {
        match self {
            Self::Passphrase { .. } => kind == SlotType::Passphrase,
            Self::Seed(_) => kind == SlotType::Provisioning,
            Self::Source(own, _) => kind == *own,
            Self::Stored => kind == SlotType::None,
        }
    }

    /// The key of one slot.
    pub(super) fn kek(&mut self, vault: VaultId, slot: &KeySlot) -> Result<Kek, SlotError> {
        match (self, slot.params()) {
            (
                Self::Passphrase {
                    passphrase,
                    cap_kib,
                },
                SlotParams::Passphrase { argon2, salt },
            ) => argon::kek(passphrase, salt, *argon2, *cap_kib),
            (Self::Seed(seed), SlotParams::Provisioning) => seed.kek(vault),
            (Self::Source(SlotType::Tpm2, source), params @ SlotParams::Tpm2(_))
            | (Self::Source(SlotType::Kms, source), params @ SlotParams::Kms(_)) => {
                let id = slot.id();
                let request = KekRequest { vault, id, params };
                source
                    .kek(request)
                    .map_err(|source| SlotError::Kek { id, source })
            }
            (Self::Stored, SlotParams::None { kek }) => Ok(Kek::copy_of(kek)),
            _ => Err(SlotError::WrongType(slot.id())),
        }
    }
}

/// The key that a seed gives for one vault.
pub(super) fn from_seed(seed: &SecretArr<32>, vault: VaultId) -> Kek {
    // The vault's id is the salt, so the same seed gives another key for another vault.
    crypto::hkdf_sha256(
        seed.expose(),
        &vault.bytes(),
        b"alknet/vault/slot/provisioning",
    )
}

/// The key of a slot whose halves are stored at two places. Each half is random and as long as the key.
pub(super) fn from_halves(share: &SecretArr<32>, half: &[u8; 32], vault: VaultId) -> Kek {
    let mut both = SecretArr::<64>::zeroed();
    let (there, here) = both.expose_mut().split_at_mut(32);
    there.copy_from_slice(share.expose());
    here.copy_from_slice(half);
    crypto::hkdf_sha256(both.expose(), &vault.bytes(), b"alknet/vault/slot/kms")
}
