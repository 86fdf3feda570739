//! The identities of a document, in the form that the rest of the node uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;

use crate::entry::{ApiKey, PeerEntry};
use crate::identities::IdentityEntries;
use crate::identity::{PeerId, PeerIdError, ScopeSet};
use crate::token::TokenHash;

use super::{ApiKeyConfig, NodeConfig, PeerConfig, hub};

impl NodeConfig {
    /// The identities of the document. Keys and names that a correct document cannot hold are left out.
    #[must_use]
    pub fn entries(&self) -> IdentityEntries {
        let admin = |(n, key): (usize, &String)| Some((admin_id(n).ok()?, key.parse().ok()?));
        let mut peers: Vec<_> = self.peers.iter().filter_map(peer).collect();
        let hubs: Vec<_> = hub::entries(&self.join, &peers).collect();
        peers.extend(hubs);
        IdentityEntries {
            admins: self
                .node
                .admin_keys
                .iter()
                .enumerate()
                .filter_map(admin)
                .collect(),
            peers,
            api_keys: self.api_keys.iter().filter_map(api_key).collect(),
        }
    }
}

impl NodeConfig {
    /// Every scope that the document grants, with its key, `peers[0].scopes[0]`.
    #[must_use]
    pub fn granted_scopes(&self) -> Vec<(String, &str)> {
        let peers = self.peers.iter().enumerate();
        let peers = peers.map(|(n, it)| (format!("peers[{n}]"), &it.scopes));
        let tokens = self.api_keys.iter().enumerate();
        let tokens = tokens.map(|(n, it)| (format!("api_keys[{n}]"), &it.scopes));
        let roles = self.hub.role.iter().enumerate();
        let roles = roles.map(|(n, it)| (format!("hub.role[{n}]"), &it.scopes));
        let hubs = self.join.iter().enumerate();
        let hubs = hubs.map(|(n, it)| (format!("join[{n}]"), &it.scopes));
        let every = peers.chain(tokens).chain(roles).chain(hubs);
        every
            .flat_map(|(entry, scopes)| {
                let scopes = scopes.iter().enumerate();
                scopes.map(move |(m, it)| (format!("{entry}.scopes[{m}]"), it.as_str()))
            })
            .collect()
    }
}

/// The name of the n-th key of `node.admin_keys`: `admin`, `admin-2`, `admin-3`, ….
pub(super) fn admin_id(n: usize) -> Result<PeerId, PeerIdError> {
    match n {
        0 => "admin".parse(),
        n => format!("admin-{}", n + 1).parse(),
    }
}

fn peer(peer: &PeerConfig) -> Option<PeerEntry> {
    Some(PeerEntry {
        peer_id: peer.peer_id.parse().ok()?,
        keys: peer
            .keys
            .iter()
            .filter_map(|key| key.parse().ok())
            .collect(),
        key_ends: BTreeMap::new(),
        token_hashes: peer.tokens.iter().filter_map(|t| t.parse().ok()).collect(),
        scopes: peer.scopes.iter().collect(),
        resources: resources(&peer.resources),
        addresses: peer
            .addresses
            .iter()
            .filter_map(|a| a.parse().ok())
            .collect(),
        display_name: peer.display_name.clone(),
        labels: BTreeMap::new(),
        enabled: peer.enabled,
        expires: peer.expires.map(seconds),
        max_connections: peer.max_connections,
        removal: None,
        lost_scopes: ScopeSet::default(),
    })
}

fn api_key(key: &ApiKeyConfig) -> Option<ApiKey> {
    let sha256 = HEXLOWER.decode(key.sha256.as_bytes()).ok()?;
    let token = TokenHash {
        key_id: key.key_id.parse().ok()?,
        sha256: sha256.try_into().ok()?,
    };
    Some(ApiKey {
        scopes: key.scopes.iter().collect(),
        resources: resources(&key.resources),
        description: key.description.clone(),
        expires: key.expires.map(seconds),
        ..ApiKey::new(token)
    })
}

fn resources(held: &BTreeMap<String, Vec<String>>) -> BTreeMap<Arc<str>, Vec<Arc<str>>> {
    let names = |names: &Vec<String>| names.iter().map(|name| name.as_str().into()).collect();
    held.iter()
        .map(|(kind, held)| (kind.as_str().into(), names(held)))
        .collect()
}

/// Seconds since 1970. A moment before 1970 becomes 0, which has ended as well.
fn seconds(moment: Timestamp) -> u64 {
    u64::try_from(moment.as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_that_no_document_can_hold_have_no_entry() {
        let mut config = NodeConfig::default();
        config.node.admin_keys = vec!["nonsense".into(), format!("spki:{}", "01".repeat(32))];
        let document = format!(
            "[[peers]]\npeer_id = \"a\"\nkeys = [\"ed25519:{}\"]\n",
            "02".repeat(32)
        );
        config.peers = NodeConfig::parse(document.as_bytes())
            .expect("a correct document")
            .peers;
        assert_eq!(config.entries().peers.len(), 1);
        config.peers[0].peer_id = "No Such Name".into();
        let entries = config.entries();
        assert!(entries.peers.is_empty());
        assert_eq!(entries.admins.len(), 1);
        assert_eq!(entries.admins[0].0.as_str(), "admin-2");
    }
}
