//! Interfaces for keys of the caller: the account's key, and the seal for keys of certificates. This crate knows no
//! vault.

use alknet_core::BoxError;
use thiserror::Error;
use zeroize::Zeroizing;

/// A key of an account that the caller has.
pub trait AccountKey: Send + Sync + 'static {
    /// The key, P-256, as PKCS #8 (RFC 5958). The library that signs with it gets it.
    ///
    /// # Errors
    /// The key is not available now. The next order asks again.
    fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, BoxError>;
}

/// Seals the keys of certificates, so that a stolen disk does not reveal them.
pub trait KeySeal: Send + Sync + 'static {
    /// Seals `key` of the certificate whose first name is `name`.
    ///
    /// # Errors
    /// The key cannot be sealed, or cannot be sealed now.
    fn seal(&self, name: &str, key: &[u8]) -> Result<Vec<u8>, SealError>;

    /// Opens a record that [`KeySeal::seal`] made for the same name. Under another name it does not open.
    ///
    /// # Errors
    /// Another seal made the record, it was changed, or it cannot be opened now.
    fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError>;
}

/// Why a key was not sealed or opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SealError {
    /// The seal is locked; a later attempt may succeed.
    #[error("{0}")]
    Locked(#[source] BoxError),
    /// The record or key is refused, however often the caller tries.
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
        /// The seal of the words with this number.
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
