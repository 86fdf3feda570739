//! Keys that the caller has: the account's, and what seals those of certificates. This crate knows nothing of a vault.

use alknet_core::BoxError;
use thiserror::Error;
use zeroize::Zeroizing;

/// A key of an account that is kept elsewhere.
pub trait AccountKey: Send + Sync + 'static {
    /// The key, P-256, as PKCS #8 (RFC 5958), which goes to the library that signs with it.
    ///
    /// # Errors
    /// It cannot be had now; it is asked for again with the next order.
    fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, BoxError>;
}

/// Seals the keys of certificates, so that what lies on the disk is of no use without it.
pub trait KeySeal: Send + Sync + 'static {
    /// Seals `key`, of the certificate whose first name is `name`.
    ///
    /// # Errors
    /// It cannot be sealed, or not now.
    fn seal(&self, name: &str, key: &[u8]) -> Result<Vec<u8>, SealError>;

    /// Opens what [`KeySeal::seal`] made for the same name; for another it does not open.
    ///
    /// # Errors
    /// It was sealed by another, or was changed, or cannot be opened now.
    fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError>;
}

/// Why a key was not sealed, or not opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SealError {
    /// Not now: it is tried again.
    #[error("{0}")]
    Locked(#[source] BoxError),
    /// Not this one, however often it is tried.
    #[error("{0}")]
    Refused(#[source] BoxError),
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    use super::*;

    /// What a vault does, with one key for everything.
    pub(crate) struct FakeSeal {
        key: [u8; 32],
        locked: AtomicBool,
    }

    impl FakeSeal {
        /// That of the words with this number.
        pub(crate) fn new(words: u8) -> Self {
            Self {
                key: [words; 32],
                locked: AtomicBool::new(false),
            }
        }

        pub(crate) fn lock(&self, locked: bool) {
            self.locked.store(locked, Ordering::Relaxed);
        }

        fn key(&self) -> Result<LessSafeKey, SealError> {
            if self.locked.load(Ordering::Relaxed) {
                return Err(SealError::Locked("the vault is locked".into()));
            }
            let key = UnboundKey::new(&AES_256_GCM, &self.key).expect("32 bytes");
            Ok(LessSafeKey::new(key))
        }
    }

    /// One nonce for all of it is enough for tests.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; 12])
    }

    impl KeySeal for FakeSeal {
        fn seal(&self, name: &str, key: &[u8]) -> Result<Vec<u8>, SealError> {
            let mut bytes = key.to_vec();
            self.key()?
                .seal_in_place_append_tag(nonce(), Aad::from(name.as_bytes()), &mut bytes)
                .map_err(|_| SealError::Refused("it cannot be sealed".into()))?;
            Ok(bytes)
        }

        fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
            let mut bytes = sealed.to_vec();
            let opened = self
                .key()?
                .open_in_place(nonce(), Aad::from(name.as_bytes()), &mut bytes)
                .map_err(|_| SealError::Refused("the record cannot be decrypted".into()))?;
            Ok(Zeroizing::new(opened.to_vec()))
        }
    }
}
