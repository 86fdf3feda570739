//! What a node knows about somebody who may connect, whether the configuration says so or a store.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dial::PeerAddr;
use crate::identity::{PeerId, PeerKey, ScopeSet};
use crate::token::TokenHash;

/// A peer: several keys and tokens, one name. Rotation changes the keys, never the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEntry {
    /// The stable name.
    pub peer_id: PeerId,
    /// Its keys; the one that the peer proves to hold names it.
    pub keys: Vec<PeerKey>,
    /// Its bearer tokens.
    pub token_hashes: Vec<TokenHash>,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Resources it holds, by type.
    pub resources: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Where it can be dialled.
    pub addresses: Vec<HostPort>,
    /// What people call it.
    pub display_name: Option<String>,
    /// A disabled peer is known and refused.
    pub enabled: bool,
    /// When the entry ends, in seconds since 1970.
    pub expires: Option<u64>,
    /// Connections it may have at once; the node's own number where absent.
    pub max_connections: Option<u32>,
}

impl PeerEntry {
    /// A peer without keys, tokens and rights.
    #[must_use]
    pub fn new(peer_id: PeerId) -> Self {
        Self {
            peer_id,
            keys: Vec::new(),
            token_hashes: Vec::new(),
            scopes: ScopeSet::default(),
            resources: BTreeMap::new(),
            addresses: Vec::new(),
            display_name: None,
            enabled: true,
            expires: None,
            max_connections: None,
        }
    }

    /// The same after `patch`.
    #[must_use]
    pub fn patched(mut self, patch: PeerPatch) -> Self {
        fn set<T>(field: &mut T, new: Option<T>) {
            if let Some(new) = new {
                *field = new;
            }
        }
        set(&mut self.keys, patch.keys);
        set(&mut self.token_hashes, patch.token_hashes);
        set(&mut self.scopes, patch.scopes);
        set(&mut self.resources, patch.resources);
        set(&mut self.addresses, patch.addresses);
        set(&mut self.display_name, patch.display_name);
        set(&mut self.enabled, patch.enabled);
        set(&mut self.expires, patch.expires);
        set(&mut self.max_connections, patch.max_connections);
        self
    }
}

/// Changes to a peer: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPatch {
    /// All keys from now on.
    pub keys: Option<Vec<PeerKey>>,
    /// All tokens from now on.
    pub token_hashes: Option<Vec<TokenHash>>,
    /// All scopes from now on.
    pub scopes: Option<ScopeSet>,
    /// All resources from now on.
    pub resources: Option<BTreeMap<Arc<str>, Vec<Arc<str>>>>,
    /// All addresses from now on.
    pub addresses: Option<Vec<HostPort>>,
    /// The name for people, or none.
    pub display_name: Option<Option<String>>,
    /// Whether it is let in.
    pub enabled: Option<bool>,
    /// When the entry ends, or never.
    pub expires: Option<Option<u64>>,
    /// Its own number of connections, or the node's.
    pub max_connections: Option<Option<u32>>,
}

/// A token of a program rather than of a peer. Its identity is `key:<8 characters>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Name and hash of the token.
    pub token: TokenHash,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Resources it holds, by type.
    pub resources: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// What it is for.
    pub description: Option<String>,
    /// When it ends, in seconds since 1970.
    pub expires: Option<u64>,
}

impl ApiKey {
    /// Whose calls it makes.
    #[must_use]
    pub fn id(&self) -> PeerId {
        PeerId::of_api_key(&self.token.key_id)
    }
}

/// Where a peer can be dialled: a host name or an address, and a port if it is not 443.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Longest host name in its text form, in bytes.
const HOST_BYTES_MAX: usize = 253;
/// The one port.
const PORT_DEFAULT: u16 = 443;

impl HostPort {
    /// Host name or address, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        // A zone is a number of the machine that wrote it, and means another card elsewhere.
        if text.contains('%') {
            return Err(HostPortError);
        }
        if let Ok(SocketAddr::V6(v6)) = text.parse() {
            return Self::new(&v6.ip().to_string(), v6.port());
        }
        let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Ok(v6) = bracketed.unwrap_or(text).parse::<Ipv6Addr>() {
            return Self::new(&v6.to_string(), PORT_DEFAULT);
        }
        let (host, port) = match text.split_once(':') {
            None => (text, PORT_DEFAULT),
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
                (host, port.parse().map_err(|_| HostPortError)?)
            }
            Some(_) => return Err(HostPortError),
        };
        let label = |label: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=63).contains(&label.len()) && label.bytes().all(plain)
        };
        if host.len() > HOST_BYTES_MAX || !host.split('.').all(label) {
            return Err(HostPortError);
        }
        Self::new(host, port)
    }
}

impl HostPort {
    fn new(host: &str, port: u16) -> Result<Self, HostPortError> {
        let addr = Self {
            host: host.to_owned(),
            port,
        };
        // What cannot be dialled is no address, however well it is formed.
        match addr.to_string().parse::<PeerAddr>() {
            Ok(_) => Ok(addr),
            Err(_) => Err(HostPortError),
        }
    }
}

impl TryFrom<String> for HostPort {
    type Error = HostPortError;

    fn try_from(text: String) -> Result<Self, HostPortError> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(addr: HostPort) -> Self {
        addr.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The text is no address of a peer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an address is HOST or HOST:PORT, the name in lower case, IPv6 with a port in brackets")]
pub struct HostPortError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_a_port() {
        for (text, shown) in [
            ("edge.example.org", "edge.example.org:443"),
            ("edge:4433", "edge:4433"),
            ("192.0.2.1", "192.0.2.1:443"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ] {
            let addr: HostPort = text.parse().expect(text);
            assert_eq!(addr.to_string(), shown);
            assert_eq!(shown.parse(), Ok(addr));
        }
        for bad in [
            "",
            ":1",
            "a:0",
            "a:",
            "a:65536",
            "a:+1",
            "a:b:c",
            "A",
            "a b",
            "[::1",
            "http://a",
            "-a",
            "a-.b",
            "1.2.3",
            "01.2.3.4",
            "[fe80::1%2]:443",
        ] {
            assert_eq!(bad.parse::<HostPort>(), Err(HostPortError), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_address_that_reads_back_or_none(text in "[a-z0-9.:\\[\\]%-]{0,40}") {
            if let Ok(addr) = text.parse::<HostPort>() {
                let dialled = addr.to_string().parse::<PeerAddr>();
                proptest::prop_assert!(dialled.is_ok_and(|d| d.address() == addr.to_string()));
                proptest::prop_assert_eq!(addr.to_string().parse(), Ok(addr));
            }
        }
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let mut entry = PeerEntry::new("edge".parse().expect("a peer id"));
        entry.expires = Some(7);
        entry.keys = vec![PeerKey::Spki([1; 32])];
        let patched = entry.clone().patched(PeerPatch {
            enabled: Some(false),
            expires: Some(None),
            ..PeerPatch::default()
        });
        assert!(!patched.enabled && patched.expires.is_none());
        assert_eq!(patched.keys, entry.keys);
    }
}
