//! What the vault does for certificates: it derives the account's key, and seals the certificates'
//! keys.

use alknet_core::BoxError;
use alknet_tls::acme::{AccountKey, KeySeal, SealError};
use alknet_vault::{
    BlobLabel, ExportReason, KeyPurpose, LabelError, SealedBlob, Vault, VaultError,
};
use zeroize::Zeroizing;

/// Prefix of the labels of certificates' keys.
const KIND: &str = "tls";

/// The vault, restricted to what certificates need.
pub(super) struct CertificateKeys(Vault);

impl CertificateKeys {
    pub(super) fn new(vault: &Vault) -> Self {
        Self(vault.clone())
    }
}

/// The account key is derived, so that a node restored from its words has the same account.
impl AccountKey for CertificateKeys {
    fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, BoxError> {
        let signer = self.0.p256_signer(KeyPurpose::AcmeAccount)?;
        let key = signer.pkcs8(ExportReason::AcmeClient)?;
        // The `instant-acme` client signs by itself, so it gets the key and not a signer.
        Ok(key.expose().to_vec().into())
    }
}

impl KeySeal for CertificateKeys {
    fn seal(&self, name: &str, key: &[u8]) -> Result<Vec<u8>, SealError> {
        let sealed = self.0.seal(&label(name)?, key).map_err(from_vault_error)?;
        Ok(sealed.as_bytes().to_vec())
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let label = label(name)?;
        let blob = SealedBlob::parse(sealed).map_err(from_vault_error)?;
        let key = self.0.open(&label, &blob).map_err(from_vault_error)?;
        Ok(Zeroizing::new(key.expose().to_vec()))
    }
}

fn label(name: &str) -> Result<BlobLabel, SealError> {
    let label = format!("{KIND}:{name}").parse();
    label.map_err(|error: LabelError| SealError::Refused(error.into()))
}

fn from_vault_error(error: VaultError) -> SealError {
    match error {
        VaultError::Locked => SealError::Locked(error.into()),
        other => SealError::Refused(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use alknet_vault::{Entropy, KeyVersion, KeyVersions, SecretStr};

    use super::*;

    const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----";

    fn unlocked(words: u8) -> Vault {
        let vault = Vault::locked();
        let words = Entropy::from_bytes(&[words; 16]).expect("16 bytes");
        let opened = vault.unlock(&words, &SecretStr::empty());
        opened.expect("it was locked");
        vault
    }

    fn refused(keys: &CertificateKeys, name: &str, sealed: &[u8]) -> bool {
        matches!(keys.open(name, sealed), Err(SealError::Refused(_)))
    }

    #[test]
    fn a_key_opens_for_its_certificate_and_its_words_alone() {
        let vault = unlocked(1);
        let keys = CertificateKeys::new(&vault);
        for name in ["edge.example", "*.edge.example"] {
            let sealed = keys.seal(name, KEY).expect("sealed");
            assert!(!sealed.windows(KEY.len()).any(|part| part == KEY));
            assert_eq!(keys.open(name, &sealed).expect("opened").as_slice(), KEY);
            assert!(refused(&keys, "www.example", &sealed));
            assert!(refused(&CertificateKeys::new(&unlocked(2)), name, &sealed));
            let mut changed = sealed.clone();
            changed[60] ^= 1;
            for bytes in [&changed[..], &sealed[..20], b""] {
                assert!(refused(&keys, name, bytes));
            }
            // Any holder of the vault can open the key under this label.
            let label: BlobLabel = format!("tls:{name}").parse().expect("a label");
            let blob = SealedBlob::parse(&sealed).expect("a record");
            assert_eq!(vault.open(&label, &blob).expect("opened").expose(), KEY);
        }
    }

    #[test]
    fn a_locked_vault_differs_from_an_absent_one() {
        let vault = unlocked(1);
        let keys = CertificateKeys::new(&vault);
        let sealed = keys.seal("edge.example", KEY).expect("sealed");
        vault.lock();
        let opened = keys.open("edge.example", &sealed);
        assert!(matches!(opened, Err(SealError::Locked(_))));
        let again = keys.seal("edge.example", KEY);
        assert!(matches!(again, Err(SealError::Locked(_))));
        assert!(keys.pkcs8().is_err());
        // The label is too long, which does not change by waiting.
        let long = "a.".repeat(126) + "a";
        assert!(matches!(keys.seal(&long, KEY), Err(SealError::Refused(_))));
    }

    #[test]
    fn a_version_that_is_no_longer_accepted_does_not_open() {
        let vault = unlocked(1);
        let keys = CertificateKeys::new(&vault);
        let sealed = keys.seal("edge.example", KEY).expect("sealed");
        let next = KeyVersion::new(3).expect("a version");
        let only = KeyVersions {
            current: next,
            oldest: next,
        };
        vault.use_versions(only).expect("in order");
        assert!(refused(&keys, "edge.example", &sealed));
    }
}
