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
            public: key.1.verifying_key().to_bytes(),
            key: key.0,
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
            public: p256_public(&key.1),
            key: key.0,
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
            public: crate::signer::k256_public(&key.1),
            key: key.0,
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
    fn signing_key<K: Clone + Send + Sync + 'static>(
        &self,
        purpose: Purpose,
        curve: Curve,
        read: impl FnOnce(&[u8; 32]) -> Result<K, VaultError>,
    ) -> Result<(Arc<Held<K>>, K), VaultError> {
        if purpose.curve() != curve || !purpose.signs() {
            return Err(VaultError::Unsupported);
        }
        let inner = self.read();
        let key = read(self.derive_from(&inner, purpose)?.expose())?;
        let held = Held::new(key.clone());
        let weak: Weak<dyn Revoke> = Arc::downgrade(&(Arc::clone(&held) as Arc<dyn Revoke>));
        let mut all = self.held();
        all.retain(|other| other.strong_count() > 0);
        all.push(weak);
        drop((all, inner));
        self.tell(&Event::Derived { purpose });
        Ok((held, key))
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
mod tests {
    use super::*;

    const WORDS: &str = "abandon abandon abandon abandon abandon abandon \
                         abandon abandon abandon abandon abandon about";

    fn unlocked(device: u32) -> Vault {
        let vault = Vault::locked_as(Index::new(device).expect("small"), None);
        let words = Entropy::parse(WORDS).expect("words");
        vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
        vault
    }

    fn label(text: &str) -> Label {
        text.parse().expect("a label")
    }

    #[test]
    fn a_locked_vault_does_nothing() {
        let vault = Vault::locked();
        let blob = unlocked(0).seal(&label("cred:a"), b"x").expect("sealed");
        assert_eq!(vault.state(), VaultState::Locked);
        let refused = [
            vault.signer(Purpose::NodeIdentity).err(),
            vault.p256_signer(Purpose::AcmeAccount).err(),
            vault.seal(&label("cred:a"), b"x").err(),
            vault.open(&label("cred:a"), &blob).err(),
            vault
                .rewrap(&label("cred:a"), &blob, KeyVersion::FIRST)
                .err(),
            vault.mac(MacPurpose::Audit, b"x").err(),
            vault.recovery_secret().err(),
        ];
        for error in refused {
            assert!(matches!(error, Some(VaultError::Locked)), "{error:?}");
        }
    }

    #[test]
    fn epochs_count_unlockings_and_locking_twice_is_locking_once() {
        let vault = unlocked(0);
        let words = Entropy::parse(WORDS).expect("words");
        let again = vault.unlock(&words, &SecretStr::empty());
        assert!(matches!(again, Err(VaultError::AlreadyUnlocked)));
        vault.lock();
        vault.lock();
        let epoch = vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
        assert_eq!(epoch.number(), 2);
        assert_eq!(vault.clone().state(), VaultState::Unlocked { epoch });
        assert_eq!(format!("{vault:?}"), "Vault(Unlocked { epoch: Epoch(2) })");
    }

    #[test]
    fn only_keys_that_sign_are_signers() {
        let vault = unlocked(0);
        let version = Purpose::Credentials(KeyVersion::FIRST);
        for purpose in [
            version,
            Purpose::AuditMac,
            Purpose::DataRecovery,
            Purpose::AcmeAccount,
        ] {
            let error = vault.signer(purpose);
            assert!(matches!(error, Err(VaultError::Unsupported)), "{purpose}");
        }
        let error = vault.p256_signer(Purpose::NodeIdentity);
        assert!(matches!(error, Err(VaultError::Unsupported)));
    }

    #[test]
    fn siblings_share_what_they_should_and_nothing_else() {
        let (one, two) = (unlocked(0), unlocked(1));
        let differ = [
            Purpose::NodeIdentity,
            Purpose::SshHost,
            Purpose::MessageLeaf,
        ];
        for purpose in differ {
            let public = |vault: &Vault| vault.signer(purpose).expect("a key").public();
            assert_ne!(public(&one), public(&two), "{purpose}");
        }
        assert_ne!(
            one.recovery_secret().expect("open"),
            two.recovery_secret().expect("open")
        );
        let mac = |vault: &Vault| vault.mac(MacPurpose::Audit, b"x").expect("open");
        assert_ne!(mac(&one), mac(&two));
        let blob = one.seal(&label("cred:a"), b"shared").expect("sealed");
        assert_eq!(
            two.open(&label("cred:a"), &blob).expect("opened").expose(),
            b"shared"
        );
        let acme = |vault: &Vault| {
            vault
                .p256_signer(Purpose::AcmeAccount)
                .expect("open")
                .public()
        };
        assert_eq!(acme(&one), acme(&two));
    }

    #[test]
    fn rotation_rewraps_and_then_forbids() {
        let vault = unlocked(0);
        let (first, third) = (KeyVersion::FIRST, KeyVersion::new(4).expect("a version"));
        let name = label("cred:a");
        let old = vault.seal(&name, b"x").expect("sealed");
        let new = vault.rewrap(&name, &old, third).expect("rewrapped");
        assert_eq!(new.key_version(), third);
        assert_eq!(vault.rewrap(&name, &new, third).expect("again"), new);
        let versions = KeyVersions {
            current: third,
            oldest: first,
        };
        vault.use_versions(versions).expect("in order");
        assert_eq!(
            vault.seal(&name, b"y").expect("sealed").key_version(),
            third
        );
        assert!(vault.open(&name, &old).is_ok());
        let versions = KeyVersions {
            current: third,
            oldest: third,
        };
        vault.use_versions(versions).expect("in order");
        let error = vault.open(&name, &old);
        assert!(matches!(error, Err(VaultError::UnknownVersion(2))));
        assert!(vault.open(&name, &new).is_ok());
        let error = vault.rewrap(&name, &new, first);
        assert!(matches!(error, Err(VaultError::UnknownVersion(2))));
        let versions = KeyVersions {
            current: first,
            oldest: third,
        };
        assert!(vault.use_versions(versions).is_err());
        assert!(vault.rewrap(&label("cred:b"), &new, third).is_err());
    }

    #[test]
    fn a_hard_lock_takes_every_key_back() {
        let vault = unlocked(0);
        let node = vault.signer(Purpose::NodeIdentity).expect("a key");
        let acme = vault.p256_signer(Purpose::AcmeAccount).expect("a key");
        drop(vault.signer(Purpose::SshHost).expect("a key"));
        vault.lock();
        assert!(node.sign(b"x").is_ok() && acme.sign(b"x").is_ok());
        vault.lock_hard();
        let refused = [node.clone().sign(b"x").err(), acme.sign(b"x").err()];
        assert!(
            refused
                .iter()
                .all(|error| matches!(error, Some(VaultError::Locked)))
        );
        assert!(node.expose(Reason::Console).is_err());
        assert_eq!(format!("{node:?}"), "Ed25519Signer(node-identity)");
    }

    #[test]
    fn everything_that_happens_is_heard_and_nothing_secret_is_said() {
        struct Ear(Arc<Mutex<Vec<String>>>);
        impl Observer for Ear {
            fn happened(&self, event: &Event) {
                self.0.lock().expect("whole").push(format!("{event:?}"));
            }
        }
        let heard = Arc::new(Mutex::default());
        let ear: Box<dyn Observer> = Box::new(Ear(Arc::clone(&heard)));
        let vault = Vault::locked_as(Index::default(), Some(ear));
        let words = Entropy::parse(WORDS).expect("words");
        vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
        let signer = vault.signer(Purpose::SshHost).expect("a key");
        signer.expose(Reason::SshServer).expect("open");
        let name = label("cred:a");
        let blob = vault.seal(&name, b"top-secret").expect("sealed");
        vault.open(&name, &blob).expect("opened");
        vault.lock();
        let heard = heard.lock().expect("whole").join("\n");
        for part in ["Derived", "Exported", "Sealed", "Opened", "Locked"] {
            assert!(heard.contains(part), "{part} in {heard}");
        }
        assert!(!heard.contains("top-secret"));
    }

    use crate::signer::Reason;
}
