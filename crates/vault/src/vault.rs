//! The vault: locked, or open with the seed in memory.

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

/// More than the stack that readers of the seed use, in bytes. Even a thread that only asks whether the vault is open
/// may belong to PID 1, which outlives the seed.
const SEED_STACK: usize = 32 << 10;

/// All keys of a node. Clones share the vault.
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
    /// The only memory with the seed.
    area: Arc<SeedArea>,
    device: PathIndex,
    observer: Option<Box<dyn Observer>>,
    /// Keys in use. The references are weak, so that a key is wiped when its last user drops it.
    held: Mutex<Vec<Weak<dyn Revoke>>>,
    seen: Mutex<ObservedState>,
}

/// The last change that this process made, or noticed of the other process.
struct ObservedState {
    state: VaultState,
    hard_locks: u64,
}

impl Vault {
    /// A locked vault of device 0.
    #[must_use]
    pub fn locked() -> Self {
        Self::locked_as(PathIndex::default(), None)
    }

    /// Like `locked`, for one of several nodes of the same words, with an observer of its events.
    #[must_use]
    pub fn locked_as(device: PathIndex, observer: Option<Box<dyn Observer>>) -> Self {
        let area = SeedArea::private();
        // The area is new and locked, so it accepts the device.
        let _ = area.set_device(device);
        Self::over(area, observer)
    }

    /// A vault whose seed is only in that area, and which is open if the area is: two processes with one area have
    /// one vault. Each process tracks the keys that it gave out; the other learns of them from the log only.
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

    /// Opens the vault with the words. The passphrase is BIP39's, empty for none.
    pub fn unlock(&self, words: &Entropy, passphrase: &SecretStr) -> Result<Epoch, VaultError> {
        let seed = words.seed(passphrase)?;
        // The derivation takes milliseconds, so the lock is taken only after it.
        let mut seen = self.seen();
        let epoch = self.0.area.unlock(self.0.device, &seed);
        let epoch = epoch.map(Epoch).ok_or(VaultError::AlreadyUnlocked)?;
        seen.state = VaultState::Unlocked { epoch };
        Ok(epoch)
    }

    /// Wipes the seed, for the other process as well. Keys in use go on signing. Locking a locked vault does nothing.
    pub fn lock(&self) {
        let mut seen = self.seen();
        seen.state = VaultState::Locked;
        let was_open = self.0.area.lock();
        // The observer may call the vault again, so the lock is released first.
        drop(seen);
        if was_open {
            self.tell(&AuditEvent::Locked { hard: false });
        }
    }

    /// Wipes the seed and every key in use. Keys of the other process sign nothing from now on, and are wiped when
    /// that process notices ([`Vault::notice`]).
    pub fn lock_hard(&self) {
        let mut seen = self.seen();
        // The counter rises before the keys are revoked, so that a key which is derived meanwhile is refused as well.
        seen.hard_locks = self.0.area.count_hard_lock();
        seen.state = VaultState::Locked;
        let was_open = self.0.area.lock();
        drop(seen);
        let had_keys = self.revoke_all();
        if was_open || had_keys {
            self.tell(&AuditEvent::Locked { hard: true });
        }
    }

    /// The changes that the other process made since this one last made or noticed a change. Wipes the keys of this
    /// process if all were revoked. The caller has to poll, because nothing wakes this process.
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
        // The new state is stored before the keys are revoked, so that of two threads that notice only one reports
        // the change.
        *seen = now;
        drop(seen);
        if revoked {
            self.revoke_all();
        }
        Some(StateChange { state, revoked })
    }

    /// Whether the vault is open.
    #[must_use]
    pub fn state(&self) -> VaultState {
        state_of(&self.0.area, self.0.device)
    }

    /// The memory of the seed.
    #[must_use]
    pub fn area(&self) -> &SeedArea {
        &self.0.area
    }

    /// The number of the node among the nodes of its words.
    #[must_use]
    pub fn device(&self) -> PathIndex {
        self.0.device
    }

    /// Sets the versions of the credential key that seal and open records, open or locked; for the other process as
    /// well.
    pub fn use_versions(&self, versions: KeyVersions) -> Result<(), VaultError> {
        // New records would be sealed with a version that the vault itself refuses.
        if versions.oldest > versions.current {
            return Err(VaultError::UnknownVersion(versions.current.number()));
        }
        self.0.area.set_versions(versions);
        Ok(())
    }

    /// The versions in use.
    #[must_use]
    pub fn versions(&self) -> KeyVersions {
        self.0.area.versions()
    }

    /// The Ed25519 key of a purpose that signs; `Unsupported` for other purposes.
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

    /// The NIST P-256 key of a purpose that has one; `Unsupported` for other purposes.
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

    /// Opens a record that was sealed under that label, or returns `Decrypt` without a reason.
    pub fn open(&self, label: &BlobLabel, blob: &SealedBlob) -> Result<SecretBytes, VaultError> {
        let plaintext = blob.open(&self.readable_key(blob.key_version())?, label)?;
        self.tell(&AuditEvent::Opened {
            label: label.clone(),
        });
        Ok(plaintext)
    }

    /// Seals a record again under another version: one step of a rotation. A blob that has the version already is
    /// checked and returned unchanged, so that an interrupted rotation can be run again.
    pub fn rewrap(
        &self,
        label: &BlobLabel,
        blob: &SealedBlob,
        to: KeyVersion,
    ) -> Result<SealedBlob, VaultError> {
        let target = self.readable_key(to)?;
        let plaintext = blob.open(&self.readable_key(blob.key_version())?, label)?;
        // The record was opened all the same, because only a record that opens counts as rotated.
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

    /// Seals a record again for a vault of other words, under its current version: one step of a migration.
    pub fn hand_over(
        &self,
        to: &Self,
        label: &BlobLabel,
        blob: &SealedBlob,
    ) -> Result<SealedBlob, VaultError> {
        let plaintext = self.open(label, blob)?;
        to.seal(label, plaintext.expose())
    }

    /// Seals data of any length; returns the number of its bytes.
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

    /// Opens a sealed stream; the output is complete only if this returns `Ok`.
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

    /// The secret that opens the data partition if only the words are left.
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

    /// A key in its library's type, which the vault can revoke.
    fn signing_key<K: Send + Sync + 'static>(
        &self,
        purpose: KeyPurpose,
        curve: Curve,
        read: impl FnOnce(&[u8; 32]) -> Result<K, VaultError>,
    ) -> Result<Arc<RevocableKey<K>>, VaultError> {
        if purpose.curve() != curve || !purpose.signs() {
            return Err(VaultError::Unsupported);
        }
        // The counter is read first: a key that is derived while all keys are revoked then has the old count.
        let hard_locks = self.0.area.hard_locks();
        let key = read(self.derive(purpose)?.expose())?;
        let held = RevocableKey::new(key, Arc::clone(&self.0.area), hard_locks);
        let weak: Weak<dyn Revoke> = Arc::downgrade(&(Arc::clone(&held) as Arc<dyn Revoke>));
        let mut all = self.held();
        // References to dropped keys are removed here; no other step would remove them.
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

    /// Derives the key at each request: four hashes take microseconds, and a cache would be one more secret. The copy
    /// of the seed is dropped with the derivation.
    fn derive(&self, purpose: KeyPurpose) -> Result<SecretArr<32>, VaultError> {
        without_traces::<SEED_STACK, _>(|| {
            let open = self.0.area.read(self.0.device).ok_or(VaultError::Locked)?;
            let node = ExtendedPrivateKey::at(open.seed.expose(), &purpose.path(self.0.device))?;
            Ok(node.key)
        })
    }

    /// Wipes every key that this process gave out; returns whether there were any.
    fn revoke_all(&self) -> bool {
        let held = std::mem::take(&mut *self.held());
        let keys: Vec<_> = held.iter().filter_map(Weak::upgrade).collect();
        for key in &keys {
            key.revoke();
        }
        !keys.is_empty()
    }

    // No invariant spans two steps, so the state is consistent even if a thread panicked.
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
