//! What handlers and operations may do with secrets of the node, without having them.
//!
//! The assembly makes one [`Capability`] for each credential of the configuration and hands each operation, when it is
//! registered, the [`Capabilities`] that were granted to it: an operation does not see the entries of another. What is
//! behind a capability comes and goes with the vault ([`CapabilityFiller`]), and is reached only by methods that act.
//! The types are here, and not with the registry or the vault, because protocol handlers, scripts and clients of other
//! protocols take them: all of these depend on this crate, and not on the registry or the vault.
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

/// What a capability is for.
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
    /// Every one, in the order of their names.
    pub const ALL: [Self; 6] = [
        Self::Aead,
        Self::ApiKey,
        Self::Basic,
        Self::Bearer,
        Self::Bytes,
        Self::Signer,
    ];

    /// As the configuration spells it.
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

/// Why a capability does not act. Says nothing about what is behind it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CapabilityError {
    /// It is of another kind than what is asked of it.
    #[error("the capability is of the kind {is}, which does not do that")]
    Kind {
        /// What it is.
        is: CapabilityKind,
    },
    /// The name of a record is not valid.
    #[error("a name has 1 to 128 printable ASCII characters without spaces")]
    Label,
    /// The vault is locked.
    #[error("the vault is locked")]
    Locked,
    /// The node was given no secret for it.
    #[error("the node has no secret for this capability")]
    Missing,
    /// The node has no vault, so nothing could be kept for it.
    #[error("the node has no vault")]
    NoVault,
    /// The operation was not given it.
    #[error("the operation was not given this capability")]
    NotGranted,
    /// What was sealed does not open, for whatever reason.
    #[error("this does not open")]
    NotOpened,
    /// More bytes than are signed or sealed at once.
    #[error("there are more bytes than {max}")]
    TooLarge {
        /// The most there may be.
        max: usize,
    },
    /// What was kept for it cannot be used; the node's problems say why.
    #[error("what the node keeps for this capability cannot be used")]
    Unusable,
}

impl CapabilityError {
    /// What programs switch on.
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

/// Signs. Where the key is, only the one who implements it knows.
pub trait CapabilitySigner: Send + Sync + 'static {
    /// The Ed25519 public key.
    fn public(&self) -> [u8; 32];

    /// A signature as of RFC 8032.
    ///
    /// # Errors
    /// The key was taken back.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError>;
}

/// Seals and opens records under names of the capability's own.
pub trait Aead: Send + Sync + 'static {
    /// Seals a record; one that is moved to another name does not open.
    ///
    /// # Errors
    /// The name is not valid, there are too many bytes, or the vault is locked.
    fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError>;

    /// Opens one.
    ///
    /// # Errors
    /// The same, and where it does not open.
    fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError>;
}

/// Where in a request a secret goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretLocation {
    /// Into a cookie.
    Cookie,
    /// Into a header.
    Header,
    /// Into a parameter of the query.
    Query,
}

/// What is behind a capability while the vault is open.
#[non_exhaustive]
#[expect(missing_debug_implementations, reason = "a secret is never shown")]
pub enum CapabilityBackend {
    /// For [`CapabilityKind::Aead`].
    Aead(Box<dyn Aead>),
    /// For [`CapabilityKind::ApiKey`].
    ApiKey {
        /// Where it goes.
        place: SecretLocation,
        /// The header, in lower case, the parameter or the cookie.
        name: String,
        /// Its value.
        key: Secret,
    },
    /// For [`CapabilityKind::Basic`].
    Basic {
        /// User name.
        user: String,
        /// What only they know.
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

/// Whether the vault is open at this moment. Asked at every use, so that a lock counts at once, whichever
/// process locked.
pub type CapabilityGate = Arc<dyn Fn() -> bool + Send + Sync>;

struct CapabilitySlot {
    name: Box<str>,
    kind: CapabilityKind,
    power: ArcSwapOption<CapabilityBackend>,
    /// Why there is nothing in it.
    vacant: ArcSwap<CapabilityError>,
    gate: CapabilityGate,
    /// Brings the slot up to date before each use.
    refresh: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A capability and the only way to put something behind it. It is empty at first, as of a vault that is
/// locked.
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

/// What makes a request the node's.
const HEADERS: [CapabilityKind; 3] = [
    CapabilityKind::ApiKey,
    CapabilityKind::Basic,
    CapabilityKind::Bearer,
];

/// Fills and empties a capability: the assembly's end of it.
pub struct CapabilityFiller(Arc<CapabilitySlot>);

impl CapabilityFiller {
    /// Puts something behind it. What is of another kind is not put there, and it is unusable.
    pub fn fill(&self, power: CapabilityBackend) {
        if power.kind() == self.0.kind {
            self.0.power.store(Some(Arc::new(power)));
        } else {
            self.empty(CapabilityError::Unusable);
        }
    }

    /// Takes away what is behind it, and says why. What acts at this moment ends first; then the bytes
    /// are wiped.
    pub fn empty(&self, why: CapabilityError) {
        // The reason first: an operation that finds no secret finds why.
        self.0.vacant.store(Arc::new(why));
        self.0.power.store(None);
    }

    /// Has every use call `refresh` first, which may fill or empty the capability: a secret that was replaced elsewhere
    /// counts from the next use on. Uses wait for it, so it has to be short. The first call of this method counts.
    pub fn before_use(&self, refresh: impl Fn() + Send + Sync + 'static) {
        self.0.refresh.get_or_init(|| Box::new(refresh));
    }

    /// Why it is empty; `None` while it is not.
    #[must_use]
    pub fn vacancy(&self) -> Option<CapabilityError> {
        // In the reverse order of `empty`: what is seen empty has its reason.
        let empty = self.0.power.load().is_none();
        empty.then(|| **self.0.vacant.load())
    }
}

impl fmt::Debug for CapabilityFiller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilityFiller({})", self.0.kind)
    }
}

/// One thing that an operation may do. Clones are the same; none of them can be turned into what is
/// behind it.
#[derive(Clone)]
pub struct Capability(Arc<CapabilitySlot>);

impl Capability {
    /// What the configuration calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> CapabilityKind {
        self.0.kind
    }

    /// Gives `set` what makes a request the node's: where it goes, its name there (of headers in lower case), and the
    /// value as it is, not escaped for its place. Clients of protocols call this when they write the request; the
    /// operation that asked them for the request never sees what was set.
    ///
    /// # Errors
    /// The kind is not `bearer`, `basic` or `api-key`, or there is nothing behind it.
    pub fn authorize(
        &self,
        set: &mut dyn FnMut(SecretLocation, &str, &[u8]),
    ) -> Result<(), CapabilityError> {
        const HEADER: SecretLocation = SecretLocation::Header;
        self.with(&HEADERS, |power| match power {
            CapabilityBackend::Bearer(token) => {
                // RFC 6750, section 2.1.
                set(HEADER, "authorization", &joined(b"Bearer ", token.expose()));
                Some(Ok(()))
            }
            CapabilityBackend::Basic { user, password } => {
                // RFC 7617, section 2.
                let user = joined(user.as_bytes(), b":");
                let both = joined(&user, password.expose());
                let both = Zeroizing::new(BASE64.encode(&both));
                set(HEADER, "authorization", &joined(b"Basic ", both.as_bytes()));
                Some(Ok(()))
            }
            CapabilityBackend::ApiKey { place, name, key } => {
                set(*place, name, key.expose());
                Some(Ok(()))
            }
            _ => None,
        })
    }

    /// The public key of a signer.
    ///
    /// # Errors
    /// It is no signer, or there is nothing behind it.
    pub fn public(&self) -> Result<[u8; 32], CapabilityError> {
        self.with(&[CapabilityKind::Signer], |power| match power {
            CapabilityBackend::Signer(signer) => Some(Ok(signer.public())),
            _ => None,
        })
    }

    /// Signs.
    ///
    /// # Errors
    /// The same, and as [`CapabilitySigner::sign`].
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
        self.with(&[CapabilityKind::Signer], |power| match power {
            CapabilityBackend::Signer(signer) => Some(signer.sign(message)),
            _ => None,
        })
    }

    /// Seals a record of the operation's own.
    ///
    /// # Errors
    /// It is no `aead`, there is nothing behind it, and as [`Aead::seal`].
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError> {
        self.with(&[CapabilityKind::Aead], |power| match power {
            CapabilityBackend::Aead(aead) => Some(aead.seal(name, plain)),
            _ => None,
        })
    }

    /// Opens one.
    ///
    /// # Errors
    /// The same, and as [`Aead::open`].
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError> {
        self.with(&[CapabilityKind::Aead], |power| match power {
            CapabilityBackend::Aead(aead) => Some(aead.open(name, sealed)),
            _ => None,
        })
    }

    /// Lends the bytes for the one use they are for.
    ///
    /// # Errors
    /// The kind is not `bytes`, or there is nothing behind it.
    pub fn with_bytes<R>(&self, act: impl FnOnce(&[u8]) -> R) -> Result<R, CapabilityError> {
        self.with(&[CapabilityKind::Bytes], |power| match power {
            CapabilityBackend::Bytes(bytes) => Some(Ok(act(bytes.expose()))),
            _ => None,
        })
    }

    /// `act` answers `None` for every kind but those that it is for.
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
        // After the load: what was opened before a lock is not used after it.
        if !(slot.gate)() {
            // Given back first: the bytes are wiped with the last that holds them.
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

/// What one handler or operation may do. Cannot be changed; clones share it.
#[derive(Clone, Default)]
pub struct Capabilities(Arc<BTreeMap<Box<str>, Capability>>);

impl Capabilities {
    /// These. Of two of one name the later counts.
    #[must_use]
    pub fn new(capabilities: impl IntoIterator<Item = Capability>) -> Self {
        let named = capabilities.into_iter();
        let named = named.map(|one| (Box::from(one.name()), one));
        Self(Arc::new(named.collect()))
    }

    /// The one of this name.
    ///
    /// # Errors
    /// [`CapabilityError::NotGranted`], also where there is no such thing on the node.
    pub fn get(&self, name: &str) -> Result<&Capability, CapabilityError> {
        self.0.get(name).ok_or(CapabilityError::NotGranted)
    }

    /// Every one, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.values()
    }

    /// Whether there are no capabilities in it.
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

/// One after the other, in memory that is wiped and never moved.
fn joined(first: &[u8], second: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut both = Zeroizing::new(Vec::with_capacity(first.len() + second.len()));
    both.extend_from_slice(first);
    both.extend_from_slice(second);
    both
}

#[cfg(test)]
mod tests;
