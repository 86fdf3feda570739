//! What the vault does for a capability: it signs with a derived key, seals and opens.

use alknet_core::{Aead, CapabilityError, CapabilitySigner, EncryptedData, PeerKey, Secret};
use alknet_tls::NodeKey;
use alknet_vault::limits::MAX_PLAINTEXT_BYTES;
use alknet_vault::{BlobLabel, Ed25519Signer, SealedBlob, SecretBytes, Vault, VaultError};

/// Prefix of the labels of what operations seal.
const OWN: &str = "op";
/// Maximum length in bytes of the name under which an operation seals.
const NAME_BYTES_MAX: usize = 128;

/// Opens a record of the configuration or of PID 1.
pub(super) fn open(
    vault: &Vault,
    label: &str,
    record: &EncryptedData,
) -> Result<SecretBytes, VaultError> {
    let label: BlobLabel = label.parse().map_err(|_| VaultError::Foreign)?;
    // The vault's parser reads the JSON form that the record has in the configuration.
    let text = serde_json::to_string(record).map_err(|_| VaultError::Foreign)?;
    vault.open(&label, &SealedBlob::from_json(&text)?)
}

/// A signing key that is derived from the recovery words.
pub(super) struct DerivedSigner(pub(super) Ed25519Signer);

impl CapabilitySigner for DerivedSigner {
    fn public(&self) -> [u8; 32] {
        self.0.public()
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
        self.0.sign(message).map_err(from_vault_error)
    }
}

/// A signing key from outside, which was sealed in the vault.
pub(super) struct SealedSigner {
    key: NodeKey,
    public: [u8; 32],
}

impl SealedSigner {
    /// The key of these 32 bytes. Every 32 bytes are a valid seed.
    pub(super) fn new(seed: &[u8; 32]) -> Option<Self> {
        let key = NodeKey::from_seed(seed);
        match key.public() {
            PeerKey::Ed25519(public) => Some(Self { key, public }),
            _ => None,
        }
    }
}

impl CapabilitySigner for SealedSigner {
    fn public(&self) -> [u8; 32] {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
        Ok(self.key.sign(message))
    }
}

/// Seals an operation's own data, under labels that only this credential uses.
pub(super) struct OperationDataSealer {
    vault: Vault,
    prefix: String,
}

impl OperationDataSealer {
    pub(super) fn new(vault: &Vault, name: &str) -> Self {
        Self {
            vault: vault.clone(),
            prefix: format!("{OWN}:{name}/"),
        }
    }

    fn label(&self, name: &str) -> Result<BlobLabel, CapabilityError> {
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
            return Err(CapabilityError::Label);
        }
        let label = format!("{}{name}", self.prefix);
        label.parse().map_err(|_| CapabilityError::Label)
    }
}

impl Aead for OperationDataSealer {
    fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError> {
        let sealed = self.vault.seal(&self.label(name)?, plain);
        Ok(sealed.map_err(from_vault_error)?.as_bytes().to_vec())
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError> {
        let label = self.label(name)?;
        let blob = SealedBlob::parse(sealed).map_err(from_vault_error)?;
        let opened = self.vault.open(&label, &blob).map_err(from_vault_error)?;
        Ok(Secret::new(opened.expose().to_vec()))
    }
}

fn from_vault_error(error: VaultError) -> CapabilityError {
    match error {
        VaultError::Locked => CapabilityError::Locked,
        VaultError::TooLarge { .. } => CapabilityError::TooLarge {
            max: MAX_PLAINTEXT_BYTES,
        },
        VaultError::Decrypt | VaultError::Foreign | VaultError::UnknownVersion(_) => {
            CapabilityError::NotOpened
        }
        _ => CapabilityError::Unusable,
    }
}
