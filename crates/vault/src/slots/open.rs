//! An open vault file: its contents, and changes of its slots.

use std::fmt;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::bip39::Entropy;
use crate::crypto;
use crate::derive::PathIndex;
use crate::error::VaultError;
use crate::limits::{MAX_PASSPHRASE_BYTES, MAX_SLOTS};
use crate::secret::{SecretArr, SecretBytes, SecretStr};
use crate::slots::copies::TEXT_BYTES_MAX;
use crate::slots::first_count::FirstCountForm;
use crate::slots::record::SlotParams;
use crate::slots::{
    Alkv, Argon2Params, FirstBootPermissions, FirstCount, Kek, KeySlot, KmsParams, SeedKey,
    SlotError, SlotId, SlotType, Tpm2Params, VaultId, alkv, argon,
};

/// Largest integer that every reader of JSON reads exactly.
const MAX_SAFE: u64 = (1 << 53) - 1;

/// The contents of a new vault.
#[derive(Debug)]
pub struct NewVault {
    /// The words.
    pub entropy: Entropy,
    /// BIP39's passphrase; empty for none.
    pub passphrase: SecretStr,
    /// The number of the node among the nodes of these words.
    pub device: PathIndex,
    /// Seconds since 1970.
    pub created_s: u64,
    /// The permissions of its first boot.
    pub pending: FirstBootPermissions,
    /// The counter of the TPM that will open it.
    pub first_count: Option<FirstCount>,
}

impl NewVault {
    /// Device 0 of words without a passphrase, without permissions and without a TPM's counter.
    #[must_use]
    pub fn new(entropy: Entropy, created_s: u64) -> Self {
        Self {
            entropy,
            passphrase: SecretStr::empty(),
            device: PathIndex::default(),
            created_s,
            pending: FirstBootPermissions::default(),
            first_count: None,
        }
    }
}

/// A slot that will be made.
#[expect(missing_debug_implementations, reason = "a secret is never shown")]
#[non_exhaustive]
pub enum NewSlot<'a> {
    /// Another node keeps the key `kek`.
    Kms(KmsParams, &'a Kek),
    /// The key is stored in the slot, for development.
    None,
    /// A person types the passphrase.
    Passphrase {
        /// The passphrase, which the person typed twice.
        passphrase: &'a SecretStr,
        /// See [`super::calibrate`].
        cost: Argon2Params,
        /// See [`super::memory_cap_kib`].
        cap_kib: u32,
    },
    /// A medium carries the seed.
    Provisioning(&'a SeedKey),
    /// A TPM keeps the key `kek`.
    Tpm2(Tpm2Params, &'a Kek),
}

impl NewSlot<'_> {
    pub(super) fn make(
        self,
        vault: VaultId,
        id: SlotId,
        vmk: &SecretArr<32>,
    ) -> Result<KeySlot, VaultError> {
        match self {
            Self::Kms(params, kek) => KeySlot::wrap(vault, id, SlotParams::Kms(params), kek, vmk),
            Self::None => {
                let kek = crypto::random::<32>()?;
                let under = Kek::copy_of(&kek);
                KeySlot::wrap(vault, id, SlotParams::None { kek }, &under, vmk)
            }
            Self::Passphrase {
                passphrase,
                cost,
                cap_kib,
            } => {
                if passphrase.is_empty() {
                    // An empty passphrase would make the file open to every reader.
                    return Err(SlotError::BadParams("an empty passphrase").into());
                }
                let salt = crypto::random()?;
                let kek = argon::kek(passphrase, &salt, cost, cap_kib)?;
                let params = SlotParams::Passphrase { argon2: cost, salt };
                KeySlot::wrap(vault, id, params, &kek, vmk)
            }
            Self::Provisioning(seed) => {
                let kek = seed.kek(vault)?;
                KeySlot::wrap(vault, id, SlotParams::Provisioning, &kek, vmk)
            }
            Self::Tpm2(params, kek) => KeySlot::wrap(vault, id, SlotParams::Tpm2(params), kek, vmk),
        }
    }
}

/// Whether the administrator confirmed to have the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// The administrator has them: without a slot with a passphrase, only the words help if the devices are lost.
    HaveTheWords,
    /// The administrator did not confirm it.
    None,
}

/// An open vault file. Every change makes a new generation, which [`super::VaultCopies::save`] writes.
pub struct OpenAlkv {
    pub(super) alkv: Alkv,
    pub(super) vmk: SecretArr<32>,
    /// The master key of the copies on the disk, if it differs from this one.
    pub(super) former: Option<SecretArr<32>>,
    pub(super) contents: VaultContents,
    pub(super) opened_by: SlotId,
}

impl OpenAlkv {
    /// Makes a vault with one slot. A slot that is bound to the vault's id needs [`OpenAlkv::create_for`].
    pub fn create(vault: NewVault, first: NewSlot<'_>) -> Result<Self, VaultError> {
        Self::create_for(vault, |_| Ok(first))
    }

    /// Like `create`, with a slot that `first` makes once the id of the vault is known.
    pub fn create_for<'a>(
        vault: NewVault,
        first: impl FnOnce(VaultId) -> Result<NewSlot<'a>, VaultError>,
    ) -> Result<Self, VaultError> {
        Self::create_as(VaultId::generate()?, vault, first)
    }

    /// Like `create_for`, with a given id, for a [`SeedKey`] that was made first and names it.
    pub fn create_as<'a>(
        uuid: VaultId,
        vault: NewVault,
        first: impl FnOnce(VaultId) -> Result<NewSlot<'a>, VaultError>,
    ) -> Result<Self, VaultError> {
        if vault.passphrase.expose().len() > MAX_PASSPHRASE_BYTES {
            return Err(crate::error::MnemonicError::PassphraseTooLong.into());
        }
        let contents = VaultContents {
            entropy: vault.entropy,
            passphrase: vault.passphrase,
            // A clock that is wrong must not make a payload that JSON readers misread.
            created_s: vault.created_s.min(MAX_SAFE),
            pending: vault.pending,
            first_count: vault.first_count,
        };
        let vmk = crypto::random_secret()?;
        let opened_by = SlotId(0);
        let mut open = Self {
            alkv: Alkv {
                uuid,
                generation: 0,
                device: vault.device,
                slots: vec![first(uuid)?.make(uuid, opened_by, &vmk)?],
                payload: alkv::seal_payload(uuid, &vmk, &contents)?,
                mac: [0; 32],
            },
            vmk,
            former: None,
            contents,
            opened_by,
        };
        let slots = open.alkv.slots.clone();
        open.change(slots)?;
        Ok(open)
    }

    /// The file to write.
    #[must_use]
    pub fn alkv(&self) -> &Alkv {
        &self.alkv
    }

    /// The words.
    #[must_use]
    pub fn entropy(&self) -> &Entropy {
        &self.contents.entropy
    }

    /// BIP39's passphrase; empty for none.
    #[must_use]
    pub fn passphrase(&self) -> &SecretStr {
        &self.contents.passphrase
    }

    /// When the vault was made, in seconds since 1970.
    #[must_use]
    pub fn created_s(&self) -> u64 {
        self.contents.created_s
    }

    /// The permissions of its first boot that are left.
    #[must_use]
    pub fn pending(&self) -> FirstBootPermissions {
        self.contents.pending
    }

    /// The counter of a TPM when the vault was made, until [`FirstBootPermissions::partition`] is withdrawn. Vaults
    /// of earlier programs, and those without a TPM's counter, have none.
    #[must_use]
    pub fn first_count(&self) -> Option<FirstCount> {
        self.contents.first_count
    }

    /// Withdraws permissions of the first boot, which cannot be given again. Returns whether one of them was still
    /// given, so that the new generation must be written.
    ///
    /// # Errors
    /// The kernel has no randomness, or the vault is at its last generation. The vault is then unchanged.
    pub fn conclude(&mut self, ended: FirstBootPermissions) -> Result<bool, VaultError> {
        let pending = self.contents.pending.without(ended);
        if pending == self.contents.pending {
            return Ok(false);
        }
        let contents = VaultContents {
            pending,
            // Without the field, programs from before it was introduced can read the payload.
            first_count: self.contents.first_count.filter(|_| pending.partition),
            ..self.contents.copied()
        };
        let payload = alkv::seal_payload(self.alkv.uuid, &self.vmk, &contents)?;
        let former = std::mem::replace(&mut self.alkv.payload, payload);
        if let Err(error) = self.change(self.alkv.slots.clone()) {
            // The change failed, so the vault in memory must stay the one that was written.
            self.alkv.payload = former;
            return Err(error);
        }
        self.contents = contents;
        Ok(true)
    }

    /// The slot that opened it.
    #[must_use]
    pub fn opened_by(&self) -> SlotId {
        self.opened_by
    }

    /// The secret of the data partition's first key slot; LUKS gets it as [`luks_phrase`].
    #[must_use]
    pub fn data_secret(&self) -> SecretArr<32> {
        crypto::hkdf_sha256(self.vmk.expose(), &[], b"alknet/data/luks0")
    }

    /// Distinguishes the node of these words from every other node: HKDF-SHA256 of the data recovery key, compared in
    /// constant time. Id and generation are in the clear, and a file with those of another vault can be valid under a
    /// master key of its own; it has the same fingerprint only if it has the same words, passphrase and device.
    /// Changes of slots and of the master key do not change it. It reveals neither the words nor a key, but is kept
    /// in memory only.
    ///
    /// # Errors
    /// The passphrase is longer than BIP39's limit, which only a modified program writes.
    pub fn fingerprint(&self) -> Result<SecretArr<32>, VaultError> {
        let key = self.recovery_key()?;
        let info = b"alknet/vault/fingerprint";
        Ok(crypto::hkdf_sha256(key.expose(), &[], info))
    }

    /// Adds a slot and returns its number.
    pub fn add(&mut self, slot: NewSlot<'_>) -> Result<SlotId, VaultError> {
        let mut slots = self.alkv.slots.clone();
        let id = self.push(&mut slots, slot)?;
        self.change(slots)?;
        Ok(id)
    }

    /// Removes a slot. An attacker who has an old copy of the file and the key of the slot can still open that copy;
    /// only new words help against that.
    pub fn remove(&mut self, id: SlotId, consent: Consent) -> Result<(), VaultError> {
        let mut slots = self.alkv.slots.clone();
        let removed = Self::take(&mut slots, id)?;
        // A file without slots could not be opened again.
        if slots.is_empty() {
            return Err(SlotError::LastSlot(id).into());
        }
        Self::needs_no_words(&removed, &slots, consent)?;
        self.change(slots)
    }

    /// Replaces a slot by another in one change, for example a new passphrase for an old one.
    pub fn replace(
        &mut self,
        id: SlotId,
        slot: NewSlot<'_>,
        consent: Consent,
    ) -> Result<SlotId, VaultError> {
        let mut slots = self.alkv.slots.clone();
        let removed = Self::take(&mut slots, id)?;
        let new = self.push(&mut slots, slot)?;
        Self::needs_no_words(&removed, &slots, consent)?;
        self.change(slots)?;
        Ok(new)
    }

    fn push(&self, slots: &mut Vec<KeySlot>, slot: NewSlot<'_>) -> Result<SlotId, VaultError> {
        if slots.len() >= MAX_SLOTS {
            return Err(SlotError::Full.into());
        }
        // The number is above every number in use, including a slot that is being replaced, so that the slots stay in
        // order.
        let last = self.alkv.slots.last().map_or(0, |slot| slot.id.0);
        let id = SlotId(last.checked_add(1).ok_or(SlotError::Full)?);
        slots.push(slot.make(self.alkv.uuid, id, &self.vmk)?);
        Ok(id)
    }

    fn take(slots: &mut Vec<KeySlot>, id: SlotId) -> Result<KeySlot, SlotError> {
        let at = slots.iter().position(|slot| slot.id == id);
        Ok(slots.remove(at.ok_or(SlotError::NoSuchSlot(id))?))
    }

    pub(super) fn needs_no_words(
        removed: &KeySlot,
        left: &[KeySlot],
        consent: Consent,
    ) -> Result<(), SlotError> {
        let typed = |slot: &KeySlot| slot.kind() == SlotType::Passphrase;
        if typed(removed) && !left.iter().any(typed) && consent == Consent::None {
            return Err(SlotError::LastInteractive(removed.id));
        }
        Ok(())
    }

    pub(super) fn change(&mut self, slots: Vec<KeySlot>) -> Result<(), VaultError> {
        let mut next = Alkv {
            slots,
            generation: self.alkv.generation + 1,
            ..self.alkv.clone()
        };
        next.mac = next.mac_under(&self.vmk);
        // The limits are checked first, so that the vault in memory stays the one that was written.
        if next.generation > MAX_SAFE || next.to_text().len() > TEXT_BYTES_MAX {
            return Err(SlotError::TooLarge.into());
        }
        self.alkv = next;
        Ok(())
    }
}

impl fmt::Debug for OpenAlkv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAlkv")
            .field("uuid", &self.alkv.uuid)
            .field("slots", &self.alkv.slots)
            .finish_non_exhaustive()
    }
}

/// A secret as a LUKS passphrase: base64url without padding.
#[must_use]
pub fn luks_phrase(secret: &SecretArr<32>) -> SecretStr {
    SecretStr::from_string(BASE64URL_NOPAD.encode(secret.expose()))
}

/// The encrypted contents: `{"bip39_passphrase"?,"created","entropy","first_count"?,"pending"?}`, the secrets in
/// base64.
pub(super) struct VaultContents {
    pub(super) entropy: Entropy,
    pub(super) passphrase: SecretStr,
    pub(super) created_s: u64,
    pub(super) pending: FirstBootPermissions,
    pub(super) first_count: Option<FirstCount>,
}

/// The fields borrow from the decrypted text, so that no copy is made.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VaultContentsForm<'a> {
    bip39_passphrase: Option<&'a str>,
    created: u64,
    entropy: &'a str,
    /// Absent for vaults without a TPM's counter, and once the partition is complete.
    #[serde(default, borrow)]
    first_count: Option<FirstCountForm<'a>>,
    /// Absent if no permission is left.
    #[serde(default, borrow)]
    pending: Vec<&'a str>,
}

impl VaultContents {
    pub(super) fn copied(&self) -> Self {
        Self {
            entropy: self.entropy.copied(),
            passphrase: SecretStr::from(self.passphrase.expose()),
            created_s: self.created_s,
            pending: self.pending,
            first_count: self.first_count,
        }
    }

    pub(super) fn read(text: &SecretBytes) -> Result<Self, SlotError> {
        let bad = || SlotError::Form("its payload is malformed");
        let form: VaultContentsForm<'_> =
            serde_json::from_slice(text.expose()).map_err(|_| bad())?;
        let bytes = |text: &str| BASE64.decode(text.as_bytes()).map(Zeroizing::new);
        let entropy = bytes(form.entropy).map_err(|_| bad())?;
        let passphrase = bytes(form.bip39_passphrase.unwrap_or_default()).map_err(|_| bad())?;
        let passphrase = std::str::from_utf8(&passphrase).map_err(|_| bad())?;
        let first_count = form.first_count.as_ref();
        let first_count = first_count.map(|form| FirstCount::read(form).ok_or_else(bad));
        let first_count = first_count.transpose()?;
        Ok(Self {
            entropy: Entropy::from_bytes(&entropy).map_err(|_| bad())?,
            passphrase: SecretStr::from(passphrase),
            created_s: form.created,
            pending: FirstBootPermissions::from_names(&form.pending).ok_or_else(bad)?,
            first_count,
        })
    }

    pub(super) fn text(&self) -> SecretBytes {
        // The text is assembled by hand, because serde_json would leave copies of the secrets in its buffers.
        let encoded = |bytes: &[u8]| Zeroizing::new(BASE64.encode(bytes));
        let entropy = encoded(self.entropy.bytes());
        let passphrase = encoded(self.passphrase.expose().as_bytes());
        let created = self.created_s.to_string();
        let with = if passphrase.is_empty() {
            ["", "", ""]
        } else {
            ["\"bip39_passphrase\":\"", &passphrase, "\","]
        };
        let names = self.pending.names();
        let pending = if names.is_empty() {
            String::new()
        } else {
            format!(",\"pending\":[\"{}\"]", names.join("\",\""))
        };
        let first_count = self.first_count.map_or_else(String::new, |first| {
            format!(",\"first_count\":{}", first.text())
        });
        let parts = [
            &["{"],
            with.as_slice(),
            &["\"created\":", &created, ",\"entropy\":\"", &entropy, "\""],
            &[first_count.as_str(), pending.as_str(), "}"],
        ];
        SecretBytes::from_vec(parts.concat().concat().into_bytes())
    }
}
