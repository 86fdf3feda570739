//! What handlers and operations may do with secrets of the node, without seeing them.
//!
//! The assembly makes one [`Capability`] for each credential of the configuration. When it registers an operation, it
//! hands it the [`Capabilities`] that were granted to it: an operation does not see the entries of another. The
//! secret behind a capability comes and goes with the vault ([`CapabilityFiller`]), and only methods that use it
//! reach it. The types are here, and not with the registry or the vault, because protocol handlers, scripts and
//! clients of other protocols take them: all of these depend on this crate, and not on the registry or the vault.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//! use alknet_core::{Capabilities, CapabilityError, CapabilityKind, CapabilityBackend, Secret, capability};
//!
//! let (openai, filler) = capability("openai", CapabilityKind::Bearer, Arc::new(|| true));
//! let mine = Capabilities::new([openai]);
//! filler.fill(CapabilityBackend::Bearer(Secret::new(b"sk-test-123".to_vec())));
//! let mut headers = BTreeMap::new();
//! mine.get("openai")?.authorize(&mut |_, name, value| {
//!     headers.insert(name.to_owned(), value.to_vec());
//! })?;
//! assert_eq!(headers["authorization"], b"Bearer sk-test-123");
//!
//! filler.empty(CapabilityError::Locked);
//! assert_eq!(mine.get("openai")?.authorize(&mut |_, _, _| ()), Err(CapabilityError::Locked));
//! assert_eq!(mine.get("mail").err(), Some(CapabilityError::NotGranted));
//! # Ok::<(), CapabilityError>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use data_encoding::BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::credentials::Secret;

/// The purpose of a capability.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CapabilityKind {
    /// Seals and opens the operation's own data.
    Aead,
    /// A key in a header, a parameter of the query, or a cookie of its own.
    ApiKey,
    /// A user and a password.
    Basic,
    /// A token in the header `authorization`.
    Bearer,
    /// Bytes that only a handler of this program may use.
    Bytes,
    /// Signs with an Ed25519 key.
    Signer,
}

impl CapabilityKind {
    /// Every kind, in the order of their names.
    pub const ALL: [Self; 6] = [
        Self::Aead,
        Self::ApiKey,
        Self::Basic,
        Self::Bearer,
        Self::Bytes,
        Self::Signer,
    ];

    /// The name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aead => "aead",
            Self::ApiKey => "api-key",
            Self::Basic => "basic",
            Self::Bearer => "bearer",
            Self::Bytes => "bytes",
            Self::Signer => "signer",
        }
    }
}

impl fmt::Display for CapabilityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a capability cannot be used. The text reveals nothing of the secret behind it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CapabilityError {
    /// The capability has another kind than the one that the caller's method needs.
    #[error("the capability is of the kind {is}, which does not do that")]
    Kind {
        /// The kind of the capability.
        is: CapabilityKind,
    },
    /// The name of a record is not valid.
    #[error("a name has 1 to 128 printable ASCII characters without spaces")]
    Label,
    /// The vault is locked.
    #[error("the vault is locked")]
    Locked,
    /// The node has no secret for it.
    #[error("the node has no secret for this capability")]
    Missing,
    /// The node has no vault, which could keep a secret for it.
    #[error("the node has no vault")]
    NoVault,
    /// The operation has no grant for it.
    #[error("the operation was not given this capability")]
    NotGranted,
    /// The sealed data does not open, for whichever reason.
    #[error("this does not open")]
    NotOpened,
    /// The data has more bytes than one call signs or seals.
    #[error("there are more bytes than {max}")]
    TooLarge {
        /// Largest number of bytes.
        max: usize,
    },
    /// The stored secret cannot be used; the node's diagnostics say why.
    #[error("what the node keeps for this capability cannot be used")]
    Unusable,
}

impl CapabilityError {
    /// The code on which programs switch.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Kind { .. } => "capability_kind",
            Self::Label => "bad_label",
            Self::Locked => "vault_locked",
            Self::Missing => "credential_missing",
            Self::NoVault => "no_vault",
            Self::NotGranted => "not_granted",
            Self::NotOpened => "not_opened",
            Self::TooLarge { .. } => "too_large",
            Self::Unusable => "credential_unusable",
        }
    }
}

/// Signs messages. Only the implementation knows where the key is.
pub trait CapabilitySigner: Send + Sync + 'static {
    /// The Ed25519 public key.
    fn public(&self) -> [u8; 32];

    /// A signature as in RFC 8032.
    ///
    /// # Errors
    /// The key was withdrawn.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError>;
}

/// Seals and opens records under names that belong to the capability.
pub trait Aead: Send + Sync + 'static {
    /// Seals a record. A record that is moved to another name does not open.
    ///
    /// # Errors
    /// The name is not valid, there are too many bytes, or the vault is locked.
    fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError>;

    /// Opens a record.
    ///
    /// # Errors
    /// The errors of [`seal`](Self::seal), and the record does not open.
    fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError>;
}

/// The part of a request into which a secret goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretLocation {
    /// Into a cookie.
    Cookie,
    /// Into a header.
    Header,
    /// Into a parameter of the query.
    Query,
}

/// The secret behind a capability while the vault is open.
#[non_exhaustive]
#[expect(missing_debug_implementations, reason = "a secret is never shown")]
pub enum CapabilityBackend {
    /// For [`CapabilityKind::Aead`].
    Aead(Box<dyn Aead>),
    /// For [`CapabilityKind::ApiKey`].
    ApiKey {
        /// The part of the request into which the key goes.
        location: SecretLocation,
        /// The name of the header (in lower case), of the parameter or of the cookie.
        name: String,
        /// Its value.
        key: Secret,
    },
    /// For [`CapabilityKind::Basic`].
    Basic {
        /// User name.
        user: String,
        /// The password of that user.
        password: Secret,
    },
    /// For [`CapabilityKind::Bearer`].
    Bearer(Secret),
    /// For [`CapabilityKind::Bytes`].
    Bytes(Secret),
    /// For [`CapabilityKind::Signer`].
    Signer(Box<dyn CapabilitySigner>),
}

impl CapabilityBackend {
    const fn kind(&self) -> CapabilityKind {
        match self {
            Self::Aead(_) => CapabilityKind::Aead,
            Self::ApiKey { .. } => CapabilityKind::ApiKey,
            Self::Basic { .. } => CapabilityKind::Basic,
            Self::Bearer(_) => CapabilityKind::Bearer,
            Self::Bytes(_) => CapabilityKind::Bytes,
            Self::Signer(_) => CapabilityKind::Signer,
        }
    }
}

/// Whether the vault is open at this moment. A capability asks at every use, so that a lock takes effect at once,
/// whichever process locked the vault.
pub type CapabilityGate = Arc<dyn Fn() -> bool + Send + Sync>;

struct CapabilitySlot {
    name: Box<str>,
    kind: CapabilityKind,
    power: ArcSwapOption<CapabilityBackend>,
    /// Why the slot is empty.
    vacant: ArcSwap<CapabilityError>,
    gate: CapabilityGate,
    /// Brings the slot up to date before each use.
    refresh: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Makes a capability, and the only object that can put a secret behind it. The capability is empty at first, as when
/// the vault is locked.
#[must_use]
pub fn capability(
    name: &str,
    kind: CapabilityKind,
    gate: CapabilityGate,
) -> (Capability, CapabilityFiller) {
    let slot = Arc::new(CapabilitySlot {
        name: name.into(),
        kind,
        power: ArcSwapOption::empty(),
        vacant: ArcSwap::from_pointee(CapabilityError::Locked),
        gate,
        refresh: OnceLock::new(),
    });
    (Capability(Arc::clone(&slot)), CapabilityFiller(slot))
}

/// The kinds that authenticate a request in its head.
const HEADERS: [CapabilityKind; 3] = [
    CapabilityKind::ApiKey,
    CapabilityKind::Basic,
    CapabilityKind::Bearer,
];

/// Fills and empties a capability: the assembly has this end of it.
pub struct CapabilityFiller(Arc<CapabilitySlot>);

impl CapabilityFiller {
    /// Puts a secret behind the capability. A secret of another kind makes it unusable.
    pub fn fill(&self, power: CapabilityBackend) {
        if power.kind() == self.0.kind {
            self.0.power.store(Some(Arc::new(power)));
        } else {
            // The kind is that of the configuration: an operation was granted this one and no other.
            self.empty(CapabilityError::Unusable);
        }
    }

    /// Removes the secret and records the reason. A use that goes on at this moment ends first; then the bytes are
    /// wiped.
    pub fn empty(&self, why: CapabilityError) {
        // The reason is stored first: an operation that finds no secret finds the reason for that.
        self.0.vacant.store(Arc::new(why));
        self.0.power.store(None);
    }

    /// Has every use call `refresh` first, which may fill or empty the capability: a secret that was replaced elsewhere
    /// counts from the next use on. Uses wait for it, so it has to be short. The first call of this method counts.
    pub fn before_use(&self, refresh: impl Fn() + Send + Sync + 'static) {
        self.0.refresh.get_or_init(|| Box::new(refresh));
    }

    /// The reason for which it is empty; `None` while it has a secret.
    #[must_use]
    pub fn vacancy(&self) -> Option<CapabilityError> {
        // The loads are in the reverse order of `empty`'s stores: a slot that is seen empty has its reason.
        let empty = self.0.power.load().is_none();
        empty.then(|| **self.0.vacant.load())
    }
}

impl fmt::Debug for CapabilityFiller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilityFiller({})", self.0.kind)
    }
}

/// One secret that an operation may use. Clones share it, and no method returns the secret itself.
#[derive(Clone)]
pub struct Capability(Arc<CapabilitySlot>);

impl Capability {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its purpose.
    #[must_use]
    pub fn kind(&self) -> CapabilityKind {
        self.0.kind
    }

    /// Passes `set` what authenticates a request as the node's: the part of the request, the name there (of headers
    /// in lower case), and the value, which is not escaped. Clients of protocols call this when they write the
    /// request; the operation that asked them for it never sees the value.
    ///
    /// # Errors
    /// The kind is not `bearer`, `basic` or `api-key`, or the capability is empty.
    pub fn authorize(
        &self,
        set: &mut dyn FnMut(SecretLocation, &str, &[u8]),
    ) -> Result<(), CapabilityError> {
        const HEADER: SecretLocation = SecretLocation::Header;
        self.with(&HEADERS, |power| match power {
            CapabilityBackend::Bearer(token) => {
                // RFC 6750 section 2.1.
                set(HEADER, "authorization", &joined(b"Bearer ", token.expose()));
                Some(Ok(()))
            }
            CapabilityBackend::Basic { user, password } => {
                // RFC 7617 section 2.
                let user = joined(user.as_bytes(), b":");
                let both = joined(&user, password.expose());
                // The encoded text is as secret as the password.
                let both = Zeroizing::new(BASE64.encode(&both));
                set(HEADER, "authorization", &joined(b"Basic ", both.as_bytes()));
                Some(Ok(()))
            }
            CapabilityBackend::ApiKey {
                location,
                name,
                key,
            } => {
                set(*location, name, key.expose());
                Some(Ok(()))
            }
            _ => None,
        })
    }

    /// The public key of a signer.
    ///
    /// # Errors
    /// The kind is not `signer`, or the capability is empty.
    pub fn public(&self) -> Result<[u8; 32], CapabilityError> {
        self.with(&[CapabilityKind::Signer], |power| match power {
            CapabilityBackend::Signer(signer) => Some(Ok(signer.public())),
            _ => None,
        })
    }

    /// Signs `message`.
    ///
    /// # Errors
    /// The errors of [`public`](Self::public), and as for [`CapabilitySigner::sign`].
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
        self.with(&[CapabilityKind::Signer], |power| match power {
            CapabilityBackend::Signer(signer) => Some(signer.sign(message)),
            _ => None,
        })
    }

    /// Seals a record of the operation.
    ///
    /// # Errors
    /// The kind is not `aead`, the capability is empty, or as for [`Aead::seal`].
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError> {
        self.with(&[CapabilityKind::Aead], |power| match power {
            CapabilityBackend::Aead(aead) => Some(aead.seal(name, plain)),
            _ => None,
        })
    }

    /// Opens a record of the operation.
    ///
    /// # Errors
    /// The errors of [`seal`](Self::seal), and as for [`Aead::open`].
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError> {
        self.with(&[CapabilityKind::Aead], |power| match power {
            CapabilityBackend::Aead(aead) => Some(aead.open(name, sealed)),
            _ => None,
        })
    }

    /// Lends the bytes to `act` for one use.
    ///
    /// # Errors
    /// The kind is not `bytes`, or the capability is empty.
    pub fn with_bytes<R>(&self, act: impl FnOnce(&[u8]) -> R) -> Result<R, CapabilityError> {
        self.with(&[CapabilityKind::Bytes], |power| match power {
            CapabilityBackend::Bytes(bytes) => Some(Ok(act(bytes.expose()))),
            _ => None,
        })
    }

    /// Runs `act` on the secret if the capability has one of `kinds`. `act` returns `None` for every other kind.
    fn with<R>(
        &self,
        kinds: &[CapabilityKind],
        act: impl FnOnce(&CapabilityBackend) -> Option<Result<R, CapabilityError>>,
    ) -> Result<R, CapabilityError> {
        let slot = &*self.0;
        let wrong = CapabilityError::Kind { is: slot.kind };
        if !kinds.contains(&slot.kind) {
            return Err(wrong);
        }
        if let Some(refresh) = slot.refresh.get() {
            refresh();
        }
        let held = slot.power.load();
        let Some(power) = held.as_deref() else {
            return Err(**slot.vacant.load());
        };
        // The gate is asked after the load: a secret that was loaded before a lock is not used after it.
        if !(slot.gate)() {
            // The reference is dropped first: the bytes are wiped when their last owner drops them.
            drop(held);
            slot.vacant.store(Arc::new(CapabilityError::Locked));
            slot.power.store(None);
            return Err(CapabilityError::Locked);
        }
        act(power).unwrap_or(Err(wrong))
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capability({})", self.0.kind)
    }
}

/// The capabilities of one handler or operation. They cannot be changed, and clones share them.
#[derive(Clone, Default)]
pub struct Capabilities(Arc<BTreeMap<Box<str>, Capability>>);

impl Capabilities {
    /// Makes the set. Of two capabilities with one name the later one stays.
    #[must_use]
    pub fn new(capabilities: impl IntoIterator<Item = Capability>) -> Self {
        let named = capabilities.into_iter();
        let named = named.map(|one| (Box::from(one.name()), one));
        Self(Arc::new(named.collect()))
    }

    /// The capability of this name.
    ///
    /// # Errors
    /// [`CapabilityError::NotGranted`], also where the node has no such capability.
    pub fn get(&self, name: &str) -> Result<&Capability, CapabilityError> {
        self.0.get(name).ok_or(CapabilityError::NotGranted)
    }

    /// Every capability, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.values()
    }

    /// Whether the set has no capability.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.0.iter().map(|(name, one)| (name, one.kind()));
        f.debug_map().entries(kinds).finish()
    }
}

/// Both parts, in memory that is wiped at the end.
fn joined(first: &[u8], second: &[u8]) -> Zeroizing<Vec<u8>> {
    // The capacity is exact: a vector that grew would leave a copy of the secret in freed memory.
    let mut both = Zeroizing::new(Vec::with_capacity(first.len() + second.len()));
    both.extend_from_slice(first);
    both.extend_from_slice(second);
    both
}

#[cfg(test)]
mod tests;
