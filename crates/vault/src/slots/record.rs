//! A key slot: the parameters of its key, and the master key encrypted under that key.

use std::fmt;

use crate::crypto::{self, IV, TAG};
use crate::error::VaultError;
use crate::limits::{MAX_KMS_ADDRESSES, MAX_KMS_NAME_BYTES, MAX_TPM_PART_BYTES, MAX_TPM_PCRS};
use crate::secret::SecretArr;
use crate::slots::{Argon2Params, Kek, SlotError, VaultId, form, kek};

/// Bytes of an encrypted master key: IV, ciphertext and tag.
pub(super) const WRAPPED: usize = IV + 32 + TAG;

/// The number of a slot within its vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(super) u32);

impl SlotId {
    /// The id with that number, whether a slot has it or not.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The type of a slot, by the source of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlotType {
    /// Another node releases the key.
    Kms,
    /// The key is stored in the slot, for development; such a vault is not sealed.
    None,
    /// A person types a passphrase.
    Passphrase,
    /// A medium carries a seed.
    Provisioning,
    /// A TPM releases it.
    Tpm2,
}

impl SlotType {
    /// The name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kms => "kms",
            Self::None => "none",
            Self::Passphrase => "passphrase",
            Self::Provisioning => "provisioning",
            Self::Tpm2 => "tpm2",
        }
    }

    /// The type with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "kms" => Some(Self::Kms),
            "none" => Some(Self::None),
            "passphrase" => Some(Self::Passphrase),
            "provisioning" => Some(Self::Provisioning),
            "tpm2" => Some(Self::Tpm2),
            _ => None,
        }
    }

    /// Whether the slot opens without a person who types.
    #[must_use]
    pub fn is_unattended(self) -> bool {
        // Only a passphrase must be typed by a person.
        self != Self::Passphrase
    }
}

/// The parameters of a slot's key. A slot with changed parameters does not open.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotParams {
    /// See [`SlotType::Kms`].
    Kms(KmsParams),
    /// The key itself.
    None {
        /// The key in the clear.
        kek: [u8; 32],
    },
    /// The cost of an attempt, and the salt.
    Passphrase {
        /// Memory and passes.
        argon2: Argon2Params,
        /// Random salt.
        salt: [u8; 16],
    },
    /// No parameters: `seed.key` has the whole key.
    Provisioning,
    /// See [`SlotType::Tpm2`].
    Tpm2(Tpm2Params),
}

impl SlotParams {
    /// The type of the slot.
    #[must_use]
    pub fn kind(&self) -> SlotType {
        match self {
            Self::Kms(_) => SlotType::Kms,
            Self::None { .. } => SlotType::None,
            Self::Passphrase { .. } => SlotType::Passphrase,
            Self::Provisioning => SlotType::Provisioning,
            Self::Tpm2(_) => SlotType::Tpm2,
        }
    }
}

/// Shows the type only, because one kind of parameters contains a key.
impl fmt::Debug for SlotParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some parameters contain the key itself, so only the type is shown.
        write!(f, "SlotParams({})", self.kind().name())
    }
}

/// A sealed object of a TPM 2.0, with the state to which it is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm2Params {
    public: Vec<u8>,
    private: Vec<u8>,
    pcrs: Vec<u8>,
    policy: [u8; 32],
    pin: bool,
    values: Vec<[u8; 32]>,
}

impl Tpm2Params {
    /// `public` and `private` as in [`Self::public`] and [`Self::private`]; the PCRs of the SHA-256 bank in rising
    /// order.
    pub fn new(
        public: Vec<u8>,
        private: Vec<u8>,
        pcrs: Vec<u8>,
        policy: [u8; 32],
        pin: bool,
    ) -> Result<Self, SlotError> {
        let part = |bytes: &[u8]| (1..=MAX_TPM_PART_BYTES).contains(&bytes.len());
        if !part(&public) || !part(&private) {
            return Err(SlotError::BadParams("a TPM object of a size it never has"));
        }
        // The order is a part of the TPM's policy, and one order makes one text.
        let rising = pcrs.windows(2).all(|two| two[0] < two[1]);
        let known = pcrs.iter().all(|pcr| usize::from(*pcr) < MAX_TPM_PCRS);
        if pcrs.is_empty() || !rising || !known {
            return Err(SlotError::BadParams(
                "PCRs that are missing, unknown or not in order",
            ));
        }
        Ok(Self {
            public,
            private,
            pcrs,
            policy,
            pin,
            values: Vec::new(),
        })
    }

    /// Adds the values that the PCRs must have, in the order of the PCRs. They open nothing; they serve to report
    /// later which PCR has another value.
    pub fn with_values(self, values: Vec<[u8; 32]>) -> Result<Self, SlotError> {
        if values.len() != self.pcrs.len() {
            return Err(SlotError::BadParams("another number of values than PCRs"));
        }
        Ok(Self { values, ..self })
    }

    /// The public part: `TPM2B_PUBLIC` of the sealed object, and then `TPM2B_NAME` of the storage key
    /// that it was sealed under.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The private part, `TPM2B_PRIVATE`, which only that TPM can read.
    #[must_use]
    pub fn private(&self) -> &[u8] {
        &self.private
    }

    /// The PCRs to which the object is bound.
    #[must_use]
    pub fn pcrs(&self) -> &[u8] {
        &self.pcrs
    }

    /// The digest of the policy.
    #[must_use]
    pub fn policy(&self) -> &[u8; 32] {
        &self.policy
    }

    /// Whether the TPM requires a PIN as well.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.pin
    }

    /// The values that the PCRs must have, in their order; empty if they were not recorded. The TPM's policy decides,
    /// not these.
    #[must_use]
    pub fn values(&self) -> &[[u8; 32]] {
        &self.values
    }
}

/// A key of which another node of the owner keeps one half and the slot the other; one half alone reveals nothing
/// about the key.
#[derive(Clone, PartialEq, Eq)]
pub struct KmsParams {
    peer: String,
    addresses: Vec<String>,
    key: String,
    client: [u8; 32],
    half: [u8; 32],
}

impl KmsParams {
    /// `peer` is the node's fingerprint, `ed25519:` and 64 hex digits; `addresses` are `HOST:PORT`; `key` is the name
    /// of the share on that node; `client` is the Ed25519 seed with which this slot authenticates itself there; and
    /// `half` is the half of the slot, random like the share.
    pub fn new(
        peer: String,
        addresses: Vec<String>,
        key: String,
        client: [u8; 32],
        half: [u8; 32],
    ) -> Result<Self, SlotError> {
        // Capital digits would be a second spelling of the same fingerprint.
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let hex = peer.strip_prefix("ed25519:");
        if !hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(digit)) {
            return Err(SlotError::BadParams("a peer that is no fingerprint"));
        }
        let plain = |text: &str| {
            (1..=MAX_KMS_NAME_BYTES).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !plain(&key) {
            return Err(SlotError::BadParams("a key name that is no plain text"));
        }
        // Both characters separate the parts of a join string.
        let address = |text: &String| plain(text) && !text.contains(['@', ',']);
        let few = (1..=MAX_KMS_ADDRESSES).contains(&addresses.len());
        if !few || !addresses.iter().all(address) {
            return Err(SlotError::BadParams(
                "addresses that are missing, malformed or too many",
            ));
        }
        Ok(Self {
            peer,
            addresses,
            key,
            client,
            half,
        })
    }

    /// The fingerprint of the node.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The node's addresses, the most promising first.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The name of the share.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The seed with which the slot authenticates itself. It is stored in the clear: an attacker who has it may
    /// request the share, and is refused once the share is revoked.
    #[must_use]
    pub fn client(&self) -> &[u8; 32] {
        &self.client
    }

    /// The half of the slot.
    #[must_use]
    pub fn half(&self) -> &[u8; 32] {
        &self.half
    }

    /// The key of the slot, from the share that the other node released.
    #[must_use]
    pub fn kek(&self, share: &SecretArr<32>, vault: VaultId) -> Kek {
        kek::from_halves(share, &self.half, vault)
    }
}

/// Omits the seed and the half.
impl fmt::Debug for KmsParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsParams")
            .field("peer", &self.peer)
            .field("addresses", &self.addresses)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A key slot of a vault.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySlot {
    pub(super) id: SlotId,
    pub(super) params: SlotParams,
    pub(super) wrapped: [u8; WRAPPED],
}

impl KeySlot {
    /// Encrypts the master key under `kek`.
    pub(super) fn wrap(
        vault: VaultId,
        id: SlotId,
        params: SlotParams,
        kek: &Kek,
        vmk: &SecretArr<32>,
    ) -> Result<Self, VaultError> {
        // A nonce must not repeat under one key (NIST SP 800-38D section 8).
        let iv = crypto::random::<IV>()?;
        let mut sealed = iv.to_vec();
        crypto::encrypt(
            kek,
            &iv,
            &aad(vault, id, &params),
            vmk.expose(),
            &mut sealed,
        );
        let mut wrapped = [0; WRAPPED];
        wrapped.copy_from_slice(&sealed);
        Ok(Self {
            id,
            params,
            wrapped,
        })
    }

    /// Decrypts the master key.
    pub(super) fn unwrap(&self, vault: VaultId, kek: &Kek) -> Result<SecretArr<32>, SlotError> {
        let (iv, sealed) = self.wrapped.split_at(IV);
        let wrong_key = || SlotError::WrongKey(self.id);
        let iv = iv.try_into().map_err(|_| wrong_key())?;
        let aad = aad(vault, self.id, &self.params);
        let vmk = crypto::decrypt(kek, iv, &aad, sealed).map_err(|_| wrong_key())?;
        SecretArr::from_slice(vmk.expose()).ok_or_else(wrong_key)
    }

    /// The slot's number.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The type of the slot.
    #[must_use]
    pub fn kind(&self) -> SlotType {
        self.params.kind()
    }

    /// The parameters of the slot's key.
    #[must_use]
    pub fn params(&self) -> &SlotParams {
        &self.params
    }
}

impl fmt::Debug for KeySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySlot({}, {})", self.id, self.kind().name())
    }
}

/// The additional authenticated data of a slot: `uuid ‖ be32(id) ‖ be16(length of the type) ‖ type ‖ canonical
/// parameters`.
fn aad(vault: VaultId, id: SlotId, params: &SlotParams) -> Vec<u8> {
    let kind = params.kind().name().as_bytes();
    let length = u16::try_from(kind.len()).expect("types have short names");
    [
        vault.bytes().as_slice(),
        &id.0.to_be_bytes(),
        // The length separates the type from the parameters, so that no two slots have the same data.
        &length.to_be_bytes(),
        kind,
        form::params_text(params).as_bytes(),
    ]
    .concat()
}
