//! Where the key of a slot comes from.

use crate::crypto;
use crate::secret::{SecretArr, SecretStr};
use crate::slots::record::{SlotParams, SlotType};
use crate::slots::{KekError, KeySlot, SeedKey, SlotError, SlotId, VaultId, argon};

/// The 32 bytes that a slot encrypts the vault's master key under.
pub type Kek = SecretArr<32>;

/// What a [`KekSource`] gets about the slot whose key it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct KekRequest<'a> {
    /// Of which vault.
    pub vault: VaultId,
    /// Which slot.
    pub id: SlotId,
    /// What the slot says about its key. Not authenticated yet: the slot only opens if it is as it was.
    pub params: &'a SlotParams,
}

/// A TPM, or a node that keeps the key: whatever answers for slots of type `tpm2` or `kms`.
pub trait KekSource {
    /// The key of that slot.
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError>;
}

/// What the caller has to open a slot with.
#[expect(missing_debug_implementations, reason = "a secret is never shown")]
pub enum UnlockKey<'a> {
    /// For `passphrase`.
    Passphrase {
        /// As it was typed.
        passphrase: &'a SecretStr,
        /// Memory that Argon2id may take; see [`super::memory_cap_kib`].
        cap_kib: u32,
    },
    /// For `provisioning`.
    Seed(&'a SeedKey),
    /// For `tpm2` and `kms`.
    Source(SlotType, &'a mut dyn KekSource),
    /// For `none`: it is in the slot.
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

/// The key of a seed for one vault.
pub(super) fn of_seed(seed: &SecretArr<32>, vault: VaultId) -> Kek {
    // The vault's id as salt: the same seed gives another key in another vault.
    crypto::hkdf_sha256(
        seed.expose(),
        &vault.bytes(),
        b"alknet/vault/slot/provisioning",
    )
}

/// The key of a slot whose halves lie at two places. Each half is random and as long as the key.
pub(super) fn of_halves(share: &SecretArr<32>, half: &[u8; 32], vault: VaultId) -> Kek {
    let mut both = SecretArr::<64>::zeroed();
    let (there, here) = both.expose_mut().split_at_mut(32);
    there.copy_from_slice(share.expose());
    here.copy_from_slice(half);
    crypto::hkdf_sha256(both.expose(), &vault.bytes(), b"alknet/vault/slot/kms")
}
