//! The vault itself: locked, or open with the seed in memory.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use crate::audit::Event;
use crate::bip39::{Entropy, Seed};
use crate::blob::stream::{self, StreamError};
use crate::blob::{Blob, Label};
use crate::crypto;
use crate::derive::slip10::Node;
use crate::derive::{Curve, Index, KeyVersion, MacPurpose, Purpose};
use crate::error::VaultError;
use crate::secret::{SecretArr, SecretBytes, SecretStr};
use crate::signer::{Ed25519Signer, Held, P256Signer, Revoke, p256_public};

/// Which unlocking it is: 1 is the first since the program started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Whether keys can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VaultState {
    /// Nothing is in memory.
    Locked,
    /// The seed is in memory.
    Unlocked {
        /// Since which unlocking.
        epoch: Epoch,
    },
}

/// Whoever hears what the vault did: the audit log's writer.
pub trait Observer: Send + Sync {
    /// Called after the fact and outside all locks, so that the vault may be used from inside.
    fn happened(&self, event: &Event);
}

/// Which versions of the credential key are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyVersions {
    /// What new blobs are sealed with.
    pub current: KeyVersion,
    /// The oldest that is still opened; older ones were rotated away.
    pub oldest: KeyVersion,
}

impl Default for KeyVersions {
    fn default() -> Self {
        Self {
            current: KeyVersion::FIRST,
            oldest: KeyVersion::FIRST,
        }
    }
}

/// All keys of a node. Clones are the same vault.
///
/// ```
/// use alknet_vault::{Entropy, Purpose, SecretStr, Vault, WordCount};
///
/// let vault = Vault::locked();
/// let words = Entropy::generate(WordCount::TwentyFour)?;
/// vault.unlock(&words, &SecretStr::empty())?;
///
/// let node = vault.signer(Purpose::NodeIdentity)?;
/// let signature = node.sign(b"it is me")?;
///
/// let label = "cred:openai".parse()?;
/// let blob = vault.seal(&label, b"sk-test-123")?;
/// assert_eq!(vault.open(&label, &blob)?.expose(), b"sk-test-123");
///
/// vault.lock();
/// assert!(vault.open(&label, &blob).is_err());
/// assert!(node.sign(b"still me").is_ok());
/// vault.lock_hard();
/// assert!(node.sign(b"no more").is_err());
/// # Ok::<(), alknet_vault::VaultError>(())
/// ```
#[derive(Clone)]
pub struct Vault(Arc<Shared>);

struct Shared {
    device: Index,
    observer: Option<Box<dyn Observer>>,
    inner: RwLock<Inner>,
    /// Keys that are out there. Weak, so that a key that nobody has any more is gone.
    held: Mutex<Vec<Weak<dyn Revoke>>>,
}

#[derive(Default)]
struct Inner {
    seed: Option<Seed>,
    epoch: u64,
    versions: KeyVersions,
}

impl Vault {
    /// A vault of device 0 with nothing in it.
    #[must_use]
    pub fn locked() -> Self {
        Self::locked_as(Index::default(), None)
    }

    /// The same for one of several nodes of the same words, with somebody who hears what happens.
    #[must_use]
    pub fn locked_as(device: Index, observer: Option<Box<dyn Observer>>) -> Self {
        Self(Arc::new(Shared {
            device,
            observer,
            inner: RwLock::default(),
            held: Mutex::default(),
        }))
    }

    /// Takes the words in. The passphrase is BIP39's, empty for none.
    pub fn unlock(&self, words: &Entropy, passphrase: &SecretStr) -> Result<Epoch, VaultError> {
        // Derived outside the lock: it takes a millisecond.
        let seed = words.seed(passphrase)?;
        let mut inner = self.write();
        if inner.seed.is_some() {
            return Err(VaultError::AlreadyUnlocked);
        }
        inner.seed = Some(seed);
        inner.epoch += 1;
        Ok(Epoch(inner.epoch))
    }

    /// Wipes the seed. Keys that were handed out go on signing. Locking twice is locking once.
    pub fn lock(&self) {
        if self.write().seed.take().is_some() {
            self.tell(&Event::Locked { hard: false });
        }
    }

    /// Wipes the seed and every key that was handed out.
    pub fn lock_hard(&self) {
        let mut inner = self.write();
        let was_open = inner.seed.take().is_some();
        // Still under the lock, so that no key is handed out between.
        let held = std::mem::take(&mut *self.held());
        let keys: Vec<_> = held.iter().filter_map(Weak::upgrade).collect();
        for key in &keys {
            key.revoke();
        }
        drop(inner);
        if was_open || !keys.is_empty() {
            self.tell(&Event::Locked { hard: true });
        }
    }

    /// Whether it is open.
    #[must_use]
    pub fn state(&self) -> VaultState {
        let inner = self.read();
        match inner.seed {
            Some(_) => VaultState::Unlocked {
                epoch: Epoch(inner.epoch),
            },
            None => VaultState::Locked,
        }
    }

    /// Which of the nodes of its words it is.
    #[must_use]
    pub fn device(&self) -> Index {
        self.0.device
    }

    /// Says which versions of the credential key are sealed with and opened, open or locked.
    pub fn use_versions(&self, versions: KeyVersions) -> Result<(), VaultError> {
        if versions.oldest > versions.current {
            return Err(VaultError::UnknownVersion(versions.current.number()));
        }
        self.write().versions = versions;
        Ok(())
    }

    /// Which versions are in use.
    #[must_use]
    pub fn versions(&self) -> KeyVersions {
        self.read().versions
    }

    /// The Ed25519 key of a purpose that signs; `Unsupported` for the others.
    pub fn signer(&self, purpose: Purpose) -> Result<Ed25519Signer, VaultError> {
        let key = self.signing_key(purpose, Curve::Ed25519, |bytes| {
            Ok(ed25519_dalek::SigningKey::from_bytes(bytes))
        })?;
        Ok(Ed25519Signer {
            public: key.with(|key| key.verifying_key().to_bytes())?,
            key,
            purpose,
            vault: self.clone(),
        })
    }

    /// The NIST P-256 key of a purpose that has one; `Unsupported` for the others.
    pub fn p256_signer(&self, purpose: Purpose) -> Result<P256Signer, VaultError> {
        let key = self.signing_key(purpose, Curve::NistP256, |bytes| {
            p256::ecdsa::SigningKey::from_bytes(bytes.into()).map_err(|_| VaultError::Unsupported)
        })?;
        Ok(P256Signer {
            public: key.with(p256_public)?,
            key,
            purpose,
            vault: self.clone(),
        })
    }

    /// The Ethereum key.
    #[cfg(feature = "secp256k1")]
    pub fn ethereum_signer(&self) -> Result<crate::signer::EthereumSigner, VaultError> {
        let key = self.signing_key(Purpose::Ethereum, Curve::Secp256k1, |bytes| {
            k256::ecdsa::SigningKey::from_bytes(bytes.into()).map_err(|_| VaultError::Unsupported)
        })?;
        Ok(crate::signer::EthereumSigner {
            public: key.with(crate::signer::k256_public)?,
            key,
        })
    }

    /// Seals a secret from outside under the current version of the credential key.
    pub fn seal(&self, label: &Label, plaintext: &[u8]) -> Result<Blob, VaultError> {
        let version = self.versions().current;
        let blob = Blob::seal(&self.credential_key(version)?, version, label, plaintext)?;
        self.tell(&Event::Sealed {
            label: label.clone(),
        });
        Ok(blob)
    }

    /// Opens what was sealed under that label, or says `Decrypt` and no more.
    pub fn open(&self, label: &Label, blob: &Blob) -> Result<SecretBytes, VaultError> {
        let plaintext = blob.open(&self.readable_key(blob.key_version())?, label)?;
        self.tell(&Event::Opened {
            label: label.clone(),
        });
        Ok(plaintext)
    }

    /// Seals anew under another version: one step of a rotation. A blob of that version already is
    /// checked and answered as it is, so that a rotation that was interrupted may be run again.
    pub fn rewrap(&self, label: &Label, blob: &Blob, to: KeyVersion) -> Result<Blob, VaultError> {
        let target = self.readable_key(to)?;
        let plaintext = blob.open(&self.readable_key(blob.key_version())?, label)?;
        if blob.key_version() == to {
            return Ok(blob.clone());
        }
        let sealed = Blob::seal(&target, to, label, plaintext.expose())?;
        self.tell(&Event::Rotated {
            label: label.clone(),
            to,
        });
        Ok(sealed)
    }

    /// Seals data of any length; answers how many bytes there were.
    pub fn seal_stream(
        &self,
        label: &Label,
        from: &mut impl Read,
        to: &mut impl Write,
    ) -> Result<u64, StreamError> {
        let version = self.versions().current;
        let bytes = stream::seal(&self.credential_key(version)?, version, label, from, to)?;
        self.tell(&Event::Sealed {
            label: label.clone(),
        });
        Ok(bytes)
    }

    /// Opens a sealed stream; what was written is only whole if this answers `Ok`.
    pub fn open_stream(
        &self,
        label: &Label,
        from: &mut impl Read,
        to: &mut impl Write,
    ) -> Result<u64, StreamError> {
        let bytes = stream::open(|version| self.readable_key(version), label, from, to)?;
        self.tell(&Event::Opened {
            label: label.clone(),
        });
        Ok(bytes)
    }

    /// HMAC-SHA256 of a message.
    pub fn mac(&self, purpose: MacPurpose, message: &[u8]) -> Result<[u8; 32], VaultError> {
        let key = self.derive(purpose.purpose())?;
        Ok(crypto::hmac_sha256(key.expose(), message))
    }

    /// What opens the data partition when only the words are left.
    pub fn recovery_secret(&self) -> Result<SecretArr<32>, VaultError> {
        let secret = self.derive(Purpose::DataRecovery)?;
        self.tell(&Event::Derived {
            purpose: Purpose::DataRecovery,
        });
        Ok(secret)
    }

    pub(crate) fn tell(&self, event: &Event) {
        if let Some(observer) = &self.0.observer {
            observer.happened(event);
        }
    }

    /// A key, in the form its library wants, of which the vault keeps the means to take it back.
    fn signing_key<K: Send + Sync + 'static>(
        &self,
        purpose: Purpose,
        curve: Curve,
        read: impl FnOnce(&[u8; 32]) -> Result<K, VaultError>,
    ) -> Result<Arc<Held<K>>, VaultError> {
        if purpose.curve() != curve || !purpose.signs() {
            return Err(VaultError::Unsupported);
        }
        let inner = self.read();
        let key = read(self.derive_from(&inner, purpose)?.expose())?;
        let held = Held::new(key);
        let weak: Weak<dyn Revoke> = Arc::downgrade(&(Arc::clone(&held) as Arc<dyn Revoke>));
        let mut all = self.held();
        all.retain(|other| other.strong_count() > 0);
        all.push(weak);
        drop((all, inner));
        self.tell(&Event::Derived { purpose });
        Ok(held)
    }

    /// The credential key of a version that may be opened.
    fn readable_key(&self, version: KeyVersion) -> Result<SecretArr<32>, VaultError> {
        if version < self.versions().oldest {
            return Err(VaultError::UnknownVersion(version.number()));
        }
        self.credential_key(version)
    }

    fn credential_key(&self, version: KeyVersion) -> Result<SecretArr<32>, VaultError> {
        self.derive(Purpose::Credentials(version))
    }

    fn derive(&self, purpose: Purpose) -> Result<SecretArr<32>, VaultError> {
        self.derive_from(&self.read(), purpose)
    }

    /// Derived anew each time: four hashes take microseconds, and a cache would be one more secret.
    fn derive_from(&self, inner: &Inner, purpose: Purpose) -> Result<SecretArr<32>, VaultError> {
        let seed = inner.seed.as_ref().ok_or(VaultError::Locked)?;
        let node = Node::at(seed.expose(), &purpose.path(self.0.device))?;
        Ok(node.key)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // No invariant spans two steps, so what a panicking thread left is whole.
        self.0
            .inner
            .read()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0
            .inner
            .write()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Revoke>>> {
        self.0
            .held
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({:?})", self.state())
    }
}

#[cfg(test)]
mod tests;
