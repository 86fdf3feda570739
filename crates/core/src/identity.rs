//! Identities of peers. An identity follows from the key that a peer proved to hold, never from a field that it sent.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::alpn::Carriage;
use crate::token::{AuthToken, KeyId, TokenHash};

/// Stable name of a peer, which survives the rotation of its keys. Grammar `[a-z0-9][a-z0-9._-]{0,62}`.
///
/// ```
/// use alknet_core::PeerId;
///
/// let id: PeerId = "ada-laptop".parse()?;
/// assert_eq!(id.as_str(), "ada-laptop");
/// assert!("Ada".parse::<PeerId>().is_err());
/// # Ok::<(), alknet_core::PeerIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerId(Arc<str>);

impl PeerId {
    /// Longest peer id in bytes.
    pub const MAX_BYTES: usize = 63;

    /// The identity of an API key, `key:<8 characters>`, which is no valid name of a peer.
    #[must_use]
    pub fn of_api_key(key_id: &KeyId) -> Self {
        Self(format!("key:{key_id}").into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let mut bytes = text.bytes();
        let first = bytes.next().ok_or(PeerIdError::Length(0))?;
        if text.len() > Self::MAX_BYTES {
            return Err(PeerIdError::Length(text.len()));
        }
        // An id is also a part of file names, DNS names and scopes.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !plain(first) || !bytes.all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-')) {
            return Err(PeerIdError::Character(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for PeerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PeerId {
    type Error = PeerIdError;

    fn try_from(text: String) -> Result<Self, PeerIdError> {
        text.parse()
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.0)
    }
}

/// Why a text is no peer id.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PeerIdError {
    /// A character outside the grammar.
    #[error(
        "peer id '{0}' may hold only a-z, 0-9, '.', '_' and '-', and starts with a letter or digit"
    )]
    Character(String),
    /// Empty or too long.
    #[error("a peer id has 1 to 63 characters, not {0}")]
    Length(usize),
}

/// A key that a peer proved to hold, in the form of the configuration, the logs and DNS.
///
/// ```
/// use alknet_core::PeerKey;
///
/// let key = PeerKey::Ed25519([7; 32]);
/// assert_eq!(key.short(), "07070707");
/// assert_eq!(key.to_string().parse::<PeerKey>()?, key);
/// assert_eq!(PeerKey::from_spki(&PeerKey::ed25519_spki(&[7; 32])), key);
/// # Ok::<(), alknet_core::KeyParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum PeerKey {
    /// `SHA256:<64 hex>`: SHA-256 of the leaf certificate's DER.
    Certificate([u8; 32]),
    /// `ed25519:<64 hex>`: an Ed25519 public key, from a certificate or a raw public key.
    Ed25519([u8; 32]),
    /// `spki:<64 hex>`: SHA-256 of the SubjectPublicKeyInfo of any other key.
    Spki([u8; 32]),
}

/// DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410); the 32 key bytes follow.
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

impl PeerKey {
    /// The key in a SubjectPublicKeyInfo, as TLS raw public keys carry it (RFC 7250).
    #[must_use]
    pub fn from_spki(der: &[u8]) -> Self {
        match der
            .strip_prefix(&ED25519_SPKI_PREFIX[..])
            .and_then(|k| <[u8; 32]>::try_from(k).ok())
        {
            Some(key) => Self::Ed25519(key),
            // A long key would be unwieldy in the configuration, and its hash identifies it as well.
            None => {
                use sha2::Digest;
                Self::Spki(sha2::Sha256::digest(der).into())
            }
        }
    }

    /// The SubjectPublicKeyInfo of an Ed25519 key.
    #[must_use]
    pub fn ed25519_spki(key: &[u8; 32]) -> [u8; 44] {
        let mut der = [0; 44];
        der[..12].copy_from_slice(&ED25519_SPKI_PREFIX);
        der[12..].copy_from_slice(key);
        der
    }

    /// The first eight hex digits: enough to tell keys apart in a log, too few for a pin.
    #[must_use]
    pub fn short(&self) -> String {
        let (Self::Certificate(bytes) | Self::Ed25519(bytes) | Self::Spki(bytes)) = self;
        HEXLOWER.encode(&bytes[..4])
    }
}

impl FromStr for PeerKey {
    type Err = KeyParseError;

    fn from_str(text: &str) -> Result<Self, KeyParseError> {
        let (kind, hex) = text
            .split_once(':')
            .ok_or_else(|| KeyParseError::Kind(text.to_owned()))?;
        let make = match kind {
            "SHA256" => Self::Certificate,
            "ed25519" => Self::Ed25519,
            "spki" => Self::Spki,
            _ => return Err(KeyParseError::Kind(text.to_owned())),
        };
        let bytes = HEXLOWER
            .decode(hex.as_bytes())
            .map_err(|_| KeyParseError::Hex(text.to_owned()))?;
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| KeyParseError::Hex(text.to_owned()))?;
        Ok(make(bytes))
    }
}

impl TryFrom<String> for PeerKey {
    type Error = KeyParseError;

    fn try_from(text: String) -> Result<Self, KeyParseError> {
        text.parse()
    }
}

impl From<PeerKey> for String {
    fn from(key: PeerKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes) = match self {
            Self::Certificate(bytes) => ("SHA256", bytes),
            Self::Ed25519(bytes) => ("ed25519", bytes),
            Self::Spki(bytes) => ("spki", bytes),
        };
        write!(f, "{kind}:{}", HEXLOWER.encode(bytes))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is no key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeyParseError {
    /// The digits are not 64 lower-case hexadecimal ones.
    #[error("'{0}': after the colon a key has exactly 64 lower-case hexadecimal digits")]
    Hex(String),
    /// The prefix is unknown.
    #[error("'{0}' is no key: write ed25519:<64 hex>, spki:<64 hex> or SHA256:<64 hex>")]
    Kind(String),
}

/// A sorted set of scopes. A scope is segments joined by `:`. `a:*` covers all scopes below `a:`, and `*` covers all
/// scopes.
///
/// ```
/// use alknet_core::ScopeSet;
///
/// let scopes: ScopeSet = ["node:read", "tensor:read:*"].into_iter().collect();
/// assert!(scopes.allows("tensor:read:models"));
/// assert!(!scopes.allows("tensor:write:models"));
/// assert!(scopes.covers(&["node:read"].into_iter().collect()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct ScopeSet {
    exact: Vec<Arc<str>>,
    prefixes: Vec<Arc<str>>,
    all: bool,
}

impl ScopeSet {
    /// Whether the set allows `scope`. Does not allocate.
    #[must_use]
    pub fn allows(&self, scope: &str) -> bool {
        self.all
            || self
                .exact
                .binary_search_by(|have| have.as_ref().cmp(scope))
                .is_ok()
            || self
                .prefixes
                .iter()
                .any(|prefix| scope.starts_with(prefix.as_ref()))
    }

    /// Whether this set allows every scope that `other` allows.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let below = |prefix: &Arc<str>| self.prefixes.iter().any(|p| prefix.starts_with(&**p));
        self.all
            || (!other.all
                && other.exact.iter().all(|scope| self.allows(scope))
                && other.prefixes.iter().all(below))
    }

    /// This set and the scopes of `other`.
    pub(crate) fn union(&self, other: Self) -> Self {
        let both = [self.clone(), other].map(Vec::<String>::from);
        both.into_iter().flatten().collect()
    }

    /// Whether the set allows no scope.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.exact.is_empty() && self.prefixes.is_empty()
    }
}

impl<S: AsRef<str>> FromIterator<S> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = S>>(scopes: I) -> Self {
        let mut set = Self::default();
        for scope in scopes {
            match scope.as_ref() {
                "*" => set.all = true,
                scope => match scope.strip_suffix('*') {
                    // Only a whole segment may be `*`.
                    Some(prefix) if prefix.ends_with(':') => set.prefixes.push(prefix.into()),
                    _ => set.exact.push(scope.into()),
                },
            }
        }
        // `allows` searches by bisection.
        set.exact.sort();
        set.exact.dedup();
        set.prefixes.sort();
        set.prefixes.dedup();
        set
    }
}

impl From<Vec<String>> for ScopeSet {
    fn from(scopes: Vec<String>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<ScopeSet> for Vec<String> {
    fn from(set: ScopeSet) -> Self {
        let mut scopes: Self = set.exact.iter().map(|s| s.as_ref().to_owned()).collect();
        scopes.extend(set.prefixes.iter().map(|p| format!("{p}*")));
        if set.all {
            scopes.push("*".to_owned());
        }
        scopes
    }
}

/// How an identity was established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// Without any proof.
    Anonymous,
    /// By this machine's own console or control channel.
    Local,
    /// By the key of a known peer.
    Peer,
    /// By a bearer token.
    Token,
}

/// The peer that acts, and its rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The stable name.
    pub id: PeerId,
    /// How it was established.
    pub kind: IdentityKind,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Resources it holds, by type.
    pub resources: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Number of its table; 0 for an identity of no table, which cannot be looked up again.
    pub generation: u64,
}

/// What the handshake established about a connection. Its handler gets it.
#[derive(Clone, Debug)]
pub struct AuthContext {
    /// The identity of the peer's key, if the node knows it.
    pub identity: Option<Arc<Identity>>,
    /// The key that the peer proved to hold, known or not.
    pub key: Option<PeerKey>,
    /// The negotiated protocol.
    pub alpn: Arc<[u8]>,
    /// The server name that the client asked for.
    pub sni: Option<Arc<str>>,
    /// The address of the peer.
    pub remote_addr: Option<SocketAddr>,
    /// The transport that carries the bytes.
    pub carriage: Carriage,
    /// Whether the first bytes may be a replay.
    pub early_data: bool,
}

/// Resolves keys and tokens to identities. Called for every connection and every request, so that it must be cheap.
pub trait IdentityProvider: Send + Sync + 'static {
    /// The identity that holds `key`.
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>>;

    /// The identity of `token`.
    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>>;

    /// The identity of the token with this hash, for work that goes on after its caller has gone. It does not count as
    /// a use of the token.
    fn by_token_hash(&self, _token: &TokenHash) -> Option<Arc<Identity>> {
        None
    }

    /// A number that changes whenever a result may have changed.
    fn watch(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Number of the table in force. An [`Identity`] of this [`generation`](Identity::generation) is up to date,
    /// except that it may have ended by date, which is not announced. `None` where tables have no numbers: then
    /// callers look the identity up. Called for every request. A change is in force before its caller gets the
    /// response.
    fn table(&self) -> Option<u64> {
        None
    }

    /// The present identity of `id`, if it may connect: for work that goes on after its caller has gone, and has to
    /// check the caller's rights again.
    fn by_id(&self, _id: &PeerId) -> Option<Arc<Identity>> {
        None
    }

    /// Like [`by_id`](Self::by_id) for an id that was stored as text: the token of a program has one that is no valid
    /// [`PeerId`].
    fn by_id_text(&self, _id: &str) -> Option<Arc<Identity>> {
        None
    }

    /// A key by which the holder of `id` is known again: `shown`, which it proved just now, or another one that lasts.
    /// `None` if it has no key, such as the token of a program.
    fn lasting_key(&self, id: &PeerId, shown: Option<PeerKey>) -> Option<PeerKey> {
        shown.filter(|key| self.by_key(key).is_some_and(|holder| holder.id == *id))
    }

    /// How long `token` still belongs to an identity, if its end is known. The end itself is not announced.
    fn token_ends_in(&self, _token: &AuthToken) -> Option<Duration> {
        None
    }

    /// The identity with this id, or with this alias if no identity has that id.
    fn by_name(&self, _name: &str) -> Option<PeerId> {
        None
    }

    /// The peer's own limit of connections, if it has one.
    fn max_connections(&self, _peer: &PeerId) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn peer_ids_follow_the_grammar() {
        for good in ["a", "0", "edge-1", "a.b_c-d", &"x".repeat(63)] {
            assert!(good.parse::<PeerId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "ä", "a b", "key:abc", &"x".repeat(64)] {
            assert!(bad.parse::<PeerId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn key_strings_round_trip() {
        for kind in ["SHA256", "ed25519", "spki"] {
            let text = format!("{kind}:{}", "0f".repeat(32));
            assert_eq!(
                text.parse::<PeerKey>().expect("a valid key").to_string(),
                text
            );
        }
        for bad in [
            "",
            "ed25519",
            "ed25519:",
            "ed25519:00",
            "rsa:00",
            &"ed25519:0F".repeat(2),
        ] {
            assert!(bad.parse::<PeerKey>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_no_part_of_one_is_a_key(
            kind in "SHA256|ed25519|spki",
            bytes in any::<[u8; 32]>(),
        ) {
            let text = format!("{kind}:{}", HEXLOWER.encode(&bytes));
            let key: PeerKey = text.parse().expect("a key");
            prop_assert_eq!(key.to_string(), text.as_str());
            for end in 0..text.len() {
                prop_assert!(text[..end].parse::<PeerKey>().is_err());
            }
            prop_assert!((text + "0").parse::<PeerKey>().is_err());
        }

        #[test]
        fn only_a_whole_spki_is_an_ed25519_key(bytes in any::<[u8; 32]>()) {
            let der = PeerKey::ed25519_spki(&bytes);
            prop_assert_eq!(PeerKey::from_spki(&der), PeerKey::Ed25519(bytes));
            for end in 0..der.len() {
                prop_assert!(matches!(PeerKey::from_spki(&der[..end]), PeerKey::Spki(_)));
            }
        }

        #[test]
        fn no_text_is_a_key_by_accident(text in "(ed25519|spki|SHA256|x)?:?[0-9a-fA-F]{0,66}") {
            if let Ok(key) = text.parse::<PeerKey>() {
                prop_assert_eq!(key.to_string(), text.as_str());
            }
            let _ = text.parse::<PeerId>();
        }

        #[test]
        fn scopes_round_trip(scopes in prop::collection::vec("[a-z]{1,3}(:[a-z]{1,3}){0,2}(:\\*)?|\\*", 0..8)) {
            let set: ScopeSet = scopes.iter().collect();
            let again: ScopeSet = Vec::<String>::from(set.clone()).into_iter().collect();
            prop_assert_eq!(&again, &set);
            for scope in &scopes {
                prop_assert!(set.allows(scope) || scope == "*");
                let one: ScopeSet = [scope].into_iter().collect();
                prop_assert!(set.covers(&one));
            }
            prop_assert!(set.covers(&set));
        }
    }

    #[test]
    fn covering_is_allowing_everything_the_other_allows() {
        let set = |scopes: &[&str]| scopes.iter().collect::<ScopeSet>();
        for (held, requested) in [
            (&["*"][..], &["*", "a:*", "b"][..]),
            (&["a:*", "b"], &["a:x", "a:y:*", "a:*", "b"]),
            (&["a"], &[]),
        ] {
            assert!(set(held).covers(&set(requested)), "{held:?} {requested:?}");
        }
        for (held, requested) in [
            (&["admin"][..], &["*"][..]),
            (&["a:*"], &["a"]),
            (&["a:x"], &["a:*"]),
            (&["a:x:*"], &["a:*"]),
            (&[], &["a"]),
        ] {
            assert!(!set(held).covers(&set(requested)), "{held:?} {requested:?}");
        }
    }

    #[test]
    fn an_ed25519_spki_is_the_key_itself() {
        let key = [7; 32];
        assert_eq!(
            PeerKey::from_spki(&PeerKey::ed25519_spki(&key)),
            PeerKey::Ed25519(key)
        );
        assert!(matches!(PeerKey::from_spki(b"other"), PeerKey::Spki(_)));
    }

    #[test]
    fn scopes_match_exactly_or_below_a_star() {
        let set: ScopeSet = ["node:read", "fs:write:*"].into_iter().collect();
        assert!(set.allows("node:read") && set.allows("fs:write:a:b"));
        assert!(!set.allows("node") && !set.allows("node:read:x") && !set.allows("fs:write"));
        assert!(["*"].into_iter().collect::<ScopeSet>().allows("anything"));
        assert!(!ScopeSet::default().allows("anything"));
    }
}
