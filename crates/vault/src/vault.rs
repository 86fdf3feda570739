//! The vault itself: locked, or open with the seed in memory.

mod state;

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::area::SeedArea;
use crate::audit::AuditEvent;
use crate::bip39::Entropy;
use crate::blob::stream::{self, BlobStreamError};
use crate::blob::{BlobLabel, SealedBlob};
use crate::crypto;
use crate::derive::slip10::ExtendedPrivateKey;
use crate::derive::{Curve, KeyPurpose, KeyVersion, MacPurpose, PathIndex};
use crate::error::VaultError;
use crate::secret::{SecretArr, SecretBytes, SecretStr};
use crate::signer::{Ed25519Signer, P256Signer, RevocableKey, Revoke, p256_public};
use crate::traces::without_traces;

pub use state::{Epoch, KeyVersions, Observer, StateChange, VaultState};

/// More than the seed's readers take of the stack, bytes. Who asks for no more than whether the vault is open
/// may be a thread of PID 1, which outlives the seed.
const SEED_STACK: usize = 32 << 10;

/// All keys of a node. Clones are the same vault.
///
/// ```
/// use alknet_vault::{Entropy, KeyPurpose, SecretStr, Vault, WordCount};
///
/// let vault = Vault::locked();
/// let words = Entropy::generate(WordCount::TwentyFour)?;
/// vault.unlock(&words, &SecretStr::empty())?;
///
/// let node = vault.signer(KeyPurpose::NodeIdentity)?;
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
pub struct Vault(Arc<VaultShared>);

struct VaultShared {
    /// The only place that has the seed.
    area: Arc<SeedArea>,
    device: PathIndex,
    observer: Option<Box<dyn Observer>>,
    /// Keys that were handed out. Weak, so that a key is gone when its last holder drops it.
    held: Mutex<Vec<Weak<dyn Revoke>>>,
    seen: Mutex<ObservedState>,
}

/// What this process did last, or noticed of the other.
struct ObservedState {
    state: VaultState,
    hard_locks: u64,
}

impl Vault {
    /// A vault of device 0 with nothing in it.
    #[must_use]
    pub fn locked() -> Self {
        Self::locked_as(PathIndex::default(), None)
    }

    /// The same for one of several nodes of the same words, with an observer that hears what happens.
    #[must_use]
    pub fn locked_as(device: PathIndex, observer: Option<Box<dyn Observer>>) -> Self {
        let area = SeedArea::private();
        // A new one is locked, and takes it.
        let _ = area.set_device(device);
        Self::over(area, observer)
    }

    /// A vault whose seed is in that area only, and which is open if the area is: two processes that
    /// have one area have one vault. What this process had handed out, it has itself; the other learns
    /// of it by nothing but the log.
    #[must_use]
    pub fn over(area: impl Into<Arc<SeedArea>>, observer: Option<Box<dyn Observer>>) -> Self {
        let area = area.into();
        let device = area.device();
        let seen = ObservedState {
            state: state_of(&area, device),
            hard_locks: area.hard_locks(),
        };
        Self(Arc::new(VaultShared {
            area,
            device,
            observer,
            held: Mutex::default(),
            seen: Mutex::new(seen),
        }))
    }

    /// Takes the words in. The passphrase is BIP39's, empty for none.
    pub fn unlock(&self, words: &Entropy, passphrase: &SecretStr) -> Result<Epoch, VaultError> {
        let seed = words.seed(passphrase)?;
        // After the derivation, which takes milliseconds: the lock is held for the change only.
        let mut seen = self.seen();
        let epoch = self.0.area.unlock(self.0.device, &seed);
        let epoch = epoch.map(Epoch).ok_or(VaultError::AlreadyUnlocked)?;
        seen.state = VaultState::Unlocked { epoch };
        Ok(epoch)
    }

    /// Wipes the seed, also for the other process. Keys that were handed out go on signing. Locking
    /// twice is locking once.
    pub fn lock(&self) {
        let mut seen = self.seen();
        seen.state = VaultState::Locked;
        let was_open = self.0.area.lock();
        // The observer may call the vault again.
        drop(seen);
        if was_open {
            self.tell(&AuditEvent::Locked { hard: false });
        }
    }

    /// Wipes the seed and every key that was handed out. Those of the other process sign nothing from
    /// now on, and are wiped when it notices ([`Vault::notice`]).
    pub fn lock_hard(&self) {
        let mut seen = self.seen();
        // Before the keys are revoked: a key that is derived meanwhile is refused by the number.
        seen.hard_locks = self.0.area.count_hard_lock();
        seen.state = VaultState::Locked;
        let was_open = self.0.area.lock();
        drop(seen);
        let had_keys = self.revoke_all();
        if was_open || had_keys {
            self.tell(&AuditEvent::Locked { hard: true });
        }
    }

    /// What the other process did since this one last did or noticed something; wipes the keys of this
    /// one if all were taken back. Asked for now and then: nothing wakes this process.
    pub fn notice(&self) -> Option<StateChange> {
        let mut seen = self.seen();
        let now = ObservedState {
            state: self.state(),
            hard_locks: self.0.area.hard_locks(),
        };
        let revoked = seen.hard_locks != now.hard_locks;
        let state = now.state;
        if !revoked && seen.state == state {
            return None;
        }
        // Taken over before the keys are revoked: two threads that notice report the change once.
        *seen = now;
        drop(seen);
        if revoked {
            self.revoke_all();
        }
        Some(StateChange { state, revoked })
    }

    /// Whether it is open.
    #[must_use]
    pub fn state(&self) -> VaultState {
        state_of(&self.0.area, self.0.device)
    }

    /// Where the seed is.
    #[must_use]
    pub fn area(&self) -> &SeedArea {
        &self.0.area
    }

    /// Which of the nodes of its words it is.
    #[must_use]
    pub fn device(&self) -> PathIndex {
        self.0.device
    }

    /// Says which versions of the credential key are sealed with and opened, open or locked; for the
    /// other process as well.
    pub fn use_versions(&self, versions: KeyVersions) -> Result<(), VaultError> {
        if versions.oldest > versions.current {
            return Err(VaultError::UnknownVersion(versions.current.number()));
        }
        self.0.area.set_versions(versions);
        Ok(())
    }

    /// Which versions are in use.
    #[must_use]
    pub fn versions(&self) -> KeyVersions {
        self.0.area.versions()
    }

    /// The Ed25519 key of a purpose that signs; `Unsupported` for the others.
    pub fn signer(&self, purpose: KeyPurpose) -> Result<Ed25519Signer, VaultError> {
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
    pub fn p256_signer(&self, purpose: KeyPurpose) -> Result<P256Signer, VaultError> {
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
        let key = self.signing_key(KeyPurpose::Ethereum, Curve::Secp256k1, |bytes| {
            k256::ecdsa::SigningKey::from_bytes(bytes.into()).map_err(|_| VaultError::Unsupported)
        })?;
        Ok(crate::signer::EthereumSigner {
            public: key.with(crate::signer::k256_public)?,
            key,
        })
    }

    /// Seals a secret from outside under the current version of the credential key.
    pub fn seal(&self, label: &BlobLabel, plaintext: &[u8]) -> Result<SealedBlob, VaultError> {
        let version = self.versions().current;
        let blob = SealedBlob::seal(&self.credential_key(version)?, version, label, plaintext)?;
        self.tell(&AuditEvent::Sealed {
            label: label.clone(),
        });
        Ok(blob)
    }

    /// Opens what was sealed under that label, or says `Decrypt` and no more.
    pub fn open(&self, label: &BlobLabel, blob: &SealedBlob) -> Result<SecretBytes, VaultError> {
        let plaintext = blob.open(&self.readable_key(blob.key_version())?, label)?;
        self.tell(&AuditEvent::Opened {
            label: label.clone(),
        });
        Ok(plaintext)
    }

    /// Seals again under another version: one step of a rotation. A blob that has that version already is
    /// checked and answered as it is, so that a rotation that was interrupted may be run again.
    pub fn rewrap(
        &self,
        label: &BlobLabel,
        blob: &SealedBlob,
        to: KeyVersion,
    ) -> Result<SealedBlob, VaultError> {
        let target = self.readable_key(to)?;
        let plaintext = blob.open(&self.readable_key(blob.key_version())?, label)?;
        // It was opened all the same: only a record that opens counts as rotated.
        if blob.key_version() == to {
            return Ok(blob.clone());
        }
        let sealed = SealedBlob::seal(&target, to, label, plaintext.expose())?;
        self.tell(&AuditEvent::Rotated {
            label: label.clone(),
            to,
        });
        Ok(sealed)
    }

    /// Seals again for a vault of other words, under its current version: one step of a migration.
    pub fn hand_over(
        &self,
        to: &Self,
        label: &BlobLabel,
        blob: &SealedBlob,
    ) -> Result<SealedBlob, VaultError> {
        let plaintext = self.open(label, blob)?;
        to.seal(label, plaintext.expose())
    }

    /// Seals data of any length; answers how many bytes there were.
    pub fn seal_stream(
        &self,
        label: &BlobLabel,
        from: &mut impl Read,
        to: &mut impl Write,
    ) -> Result<u64, BlobStreamError> {
        let version = self.versions().current;
        let bytes = stream::seal(&self.credential_key(version)?, version, label, from, to)?;
        self.tell(&AuditEvent::Sealed {
            label: label.clone(),
        });
        Ok(bytes)
    }

    /// Opens a sealed stream; what was written is only whole if this answers `Ok`.
    pub fn open_stream(
        &self,
        label: &BlobLabel,
        from: &mut impl Read,
        to: &mut impl Write,
    ) -> Result<u64, BlobStreamError> {
        let bytes = stream::open(|version| self.readable_key(version), label, from, to)?;
        self.tell(&AuditEvent::Opened {
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
        let secret = self.derive(KeyPurpose::DataRecovery)?;
        self.tell(&AuditEvent::Derived {
            purpose: KeyPurpose::DataRecovery,
        });
        Ok(secret)
    }

    pub(crate) fn tell(&self, event: &AuditEvent) {
        if let Some(observer) = &self.0.observer {
            observer.happened(event);
        }
    }

    /// A key, in the form its library wants, of which the vault keeps the means to take it back.
    fn signing_key<K: Send + Sync + 'static>(
        &self,
        purpose: KeyPurpose,
        curve: Curve,
        read: impl FnOnce(&[u8; 32]) -> Result<K, VaultError>,
    ) -> Result<Arc<RevocableKey<K>>, VaultError> {
        if purpose.curve() != curve || !purpose.signs() {
            return Err(VaultError::Unsupported);
        }
        // Read first: a key that is derived while all are taken back is of before that.
        let hard_locks = self.0.area.hard_locks();
        let key = read(self.derive(purpose)?.expose())?;
        let held = RevocableKey::new(key, Arc::clone(&self.0.area), hard_locks);
        let weak: Weak<dyn Revoke> = Arc::downgrade(&(Arc::clone(&held) as Arc<dyn Revoke>));
        let mut all = self.held();
        // Keys that were dropped leave their places here; no other step would remove them.
        all.retain(|other| other.strong_count() > 0);
        all.push(weak);
        drop(all);
        self.tell(&AuditEvent::Derived { purpose });
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
        self.derive(KeyPurpose::Credentials(version))
    }

    /// Derives the key each time: four hashes take microseconds, and a cache would be one more secret. The
    /// copy of the seed lives as long.
    fn derive(&self, purpose: KeyPurpose) -> Result<SecretArr<32>, VaultError> {
        without_traces::<SEED_STACK, _>(|| {
            let open = self.0.area.read(self.0.device).ok_or(VaultError::Locked)?;
            let node = ExtendedPrivateKey::at(open.seed.expose(), &purpose.path(self.0.device))?;
            Ok(node.key)
        })
    }

    /// Wipes every key that this process handed out; answers whether there were any.
    fn revoke_all(&self) -> bool {
        let held = std::mem::take(&mut *self.held());
        let keys: Vec<_> = held.iter().filter_map(Weak::upgrade).collect();
        for key in &keys {
            key.revoke();
        }
        !keys.is_empty()
    }

    // No invariant spans two steps, so what a panicking thread left is whole.
    fn held(&self) -> MutexGuard<'_, Vec<Weak<dyn Revoke>>> {
        let held = self.0.held.lock();
        held.unwrap_or_else(|poison| poison.into_inner())
    }

    fn seen(&self) -> MutexGuard<'_, ObservedState> {
        let seen = self.0.seen.lock();
        seen.unwrap_or_else(|poison| poison.into_inner())
    }
}

fn state_of(area: &SeedArea, device: PathIndex) -> VaultState {
    without_traces::<SEED_STACK, _>(|| match area.read(device) {
        Some(open) => VaultState::Unlocked {
            epoch: Epoch(open.epoch),
        },
        None => VaultState::Locked,
    })
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({:?})", self.state())
    }
}

#[cfg(test)]
mod tests;
