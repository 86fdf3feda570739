//! Signing keys that programs get one by one. A key in use survives `lock`, so that a node can go on serving;
//! `lock_hard` revokes all of them.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use ed25519_dalek::Signer as _;

use crate::area::SeedArea;
use crate::audit::{AuditEvent, ExportedSecret};
use crate::derive::KeyPurpose;
use crate::error::VaultError;
use crate::secret::{SecretArr, SecretBytes};
use crate::vault::Vault;

/// Why the bytes of a key leave the vault; the audit log records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportReason {
    /// A certificate authority's client accepts key bytes only.
    AcmeClient,
    /// The administrator requested it at the console.
    Console,
    /// iroh accepts key bytes only.
    IrohEndpoint,
    /// The SSH server accepts key bytes only.
    SshServer,
    /// The TLS library accepts key bytes only.
    TlsConfig,
}

impl fmt::Display for ExportReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AcmeClient => "acme-client",
            Self::Console => "console",
            Self::IrohEndpoint => "iroh-endpoint",
            Self::SshServer => "ssh-server",
            Self::TlsConfig => "tls-config",
        })
    }
}

/// Parses the names that `Display` writes, and no others.
impl FromStr for ExportReason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "acme-client" => Ok(Self::AcmeClient),
            "console" => Ok(Self::Console),
            "iroh-endpoint" => Ok(Self::IrohEndpoint),
            "ssh-server" => Ok(Self::SshServer),
            "tls-config" => Ok(Self::TlsConfig),
            _ => Err(()),
        }
    }
}

/// A key that this process, or the other one that has the vault, can revoke.
pub(crate) struct RevocableKey<K> {
    key: RwLock<Option<Box<K>>>,
    area: Arc<SeedArea>,
    /// The number of revocations when the key was given out.
    hard_locks: u64,
}

impl<K> RevocableKey<K> {
    pub(crate) fn new(key: K, area: Arc<SeedArea>, hard_locks: u64) -> Arc<Self> {
        Arc::new(Self {
            key: RwLock::new(Some(Box::new(key))),
            area,
            hard_locks,
        })
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&K) -> R) -> Result<R, VaultError> {
        // The other process may have revoked all keys, which the counter in the shared memory shows.
        if self.area.hard_locks() != self.hard_locks {
            return Err(VaultError::Locked);
        }
        let held = self.key.read().unwrap_or_else(|poison| poison.into_inner());
        held.as_deref().map(act).ok_or(VaultError::Locked)
    }
}

/// The action of `lock_hard` on every key; dropping a key zeroizes it.
pub(crate) trait Revoke: Send + Sync {
    fn revoke(&self);
}

impl<K: Send + Sync> Revoke for RevocableKey<K> {
    fn revoke(&self) {
        let held = self.key.write();
        *held.unwrap_or_else(|poison| poison.into_inner()) = None;
    }
}

/// An Ed25519 key. Clones share the key.
#[derive(Clone)]
pub struct Ed25519Signer {
    pub(crate) key: Arc<RevocableKey<ed25519_dalek::SigningKey>>,
    pub(crate) public: [u8; 32],
    pub(crate) purpose: KeyPurpose,
    pub(crate) vault: Vault,
}

impl Ed25519Signer {
    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// The purpose.
    #[must_use]
    pub fn purpose(&self) -> KeyPurpose {
        self.purpose
    }

    /// Signs as in RFC 8032; `Locked` once the key is revoked.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], VaultError> {
        self.key.with(|key| key.sign(message).to_bytes())
    }

    /// The 32-byte seed of RFC 8032, for a library that signs by itself. An exposed seed cannot be revoked.
    pub fn expose(&self, reason: ExportReason) -> Result<SecretArr<32>, VaultError> {
        // A revoked key fails here, and then the audit log records no export.
        let seed = self.key.with(|key| SecretArr::copy_of(key.as_bytes()))?;
        self.vault.exposed(self.purpose, reason);
        Ok(seed)
    }

    /// Like `expose`, as PKCS #8 (RFC 8410), without the public key.
    pub fn pkcs8(&self, reason: ExportReason) -> Result<SecretBytes, VaultError> {
        // The DER of a private key up to its seed (RFC 8410 section 7).
        const BEFORE: [u8; 16] = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let seed = self.expose(reason)?;
        Ok(SecretBytes::from_vec(
            [&BEFORE, seed.expose().as_slice()].concat(),
        ))
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Signer({})", self.purpose)
    }
}

/// A NIST P-256 key. Clones share the key.
#[derive(Clone)]
pub struct P256Signer {
    pub(crate) key: Arc<RevocableKey<p256::ecdsa::SigningKey>>,
    pub(crate) public: [u8; 65],
    pub(crate) purpose: KeyPurpose,
    pub(crate) vault: Vault,
}

impl P256Signer {
    /// The public key: the uncompressed point of SEC 1.
    #[must_use]
    pub fn public(&self) -> [u8; 65] {
        self.public
    }

    /// The purpose.
    #[must_use]
    pub fn purpose(&self) -> KeyPurpose {
        self.purpose
    }

    /// ES256: ECDSA over SHA-256, deterministic (RFC 6979), `r ‖ s`.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], VaultError> {
        self.key.with(|key| {
            let signature: p256::ecdsa::Signature = key.sign(message);
            signature.to_bytes().into()
        })
    }

    /// The private scalar, big endian. An exposed scalar cannot be revoked.
    pub fn expose(&self, reason: ExportReason) -> Result<SecretArr<32>, VaultError> {
        let scalar = self.key.with(|key| {
            // `to_bytes` returns a plain array, which would stay on the stack.
            let bytes = zeroize::Zeroizing::new(<[u8; 32]>::from(key.to_bytes()));
            SecretArr::copy_of(&bytes)
        })?;
        self.vault.exposed(self.purpose, reason);
        Ok(scalar)
    }

    /// Like `expose`, as PKCS #8 (RFC 5958, RFC 5915), with the public key.
    pub fn pkcs8(&self, reason: ExportReason) -> Result<SecretBytes, VaultError> {
        // The DER of a private key on P-256 up to its scalar (RFC 5915 section 3).
        const BEFORE: [u8; 36] = [
            0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce,
            0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04,
            0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
        ];
        // The DER of the optional public key up to its point (RFC 5915 section 3).
        const BETWEEN: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
        let scalar = self.expose(reason)?;
        let parts = [&BEFORE, scalar.expose().as_slice(), &BETWEEN, &self.public];
        Ok(SecretBytes::from_vec(parts.concat()))
    }
}

impl fmt::Debug for P256Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P256Signer({})", self.purpose)
    }
}

pub(crate) fn p256_public(key: &p256::ecdsa::SigningKey) -> [u8; 65] {
    let point = key.verifying_key().to_sec1_point(false);
    point
        .as_bytes()
        .try_into()
        .expect("an uncompressed point of P-256 has 65 bytes")
}

/// The Ethereum key. Clones share the key.
#[cfg(feature = "secp256k1")]
#[derive(Clone)]
pub struct EthereumSigner {
    pub(crate) key: Arc<RevocableKey<k256::ecdsa::SigningKey>>,
    pub(crate) public: [u8; 65],
}

#[cfg(feature = "secp256k1")]
impl EthereumSigner {
    /// The public key: the uncompressed point of SEC 1.
    #[must_use]
    pub fn public(&self) -> [u8; 65] {
        self.public
    }

    /// Signs a digest; returns `r ‖ s` with the smaller `s`, and the index of the signer's point (0 or 1).
    pub fn sign_digest(&self, digest: &[u8; 32]) -> Result<([u8; 64], u8), VaultError> {
        let signed = self.key.with(|key| key.sign_prehash_recoverable(digest))?;
        let (signature, recovery) = signed;
        Ok((signature.to_bytes().into(), recovery.to_byte()))
    }
}

#[cfg(feature = "secp256k1")]
impl fmt::Debug for EthereumSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EthereumSigner")
    }
}

#[cfg(feature = "secp256k1")]
pub(crate) fn k256_public(key: &k256::ecdsa::SigningKey) -> [u8; 65] {
    let point = key.verifying_key().to_sec1_point(false);
    point
        .as_bytes()
        .try_into()
        .expect("an uncompressed point of secp256k1 has 65 bytes")
}

impl Vault {
    /// Records in the audit log that bytes of a key left the vault.
    fn exposed(&self, purpose: KeyPurpose, reason: ExportReason) {
        let what = ExportedSecret::Key(purpose);
        self.tell(&AuditEvent::Exported { what, reason });
    }
}
