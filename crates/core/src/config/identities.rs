//! Who the configuration knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::identity::{Identity, IdentityKind, IdentityProvider, PeerId, PeerKey, ScopeSet};
use crate::token::AuthToken;

use super::{NodeConfig, PeerConfig};

/// Answers for the keys in a configuration: administrators hold every scope, peers those of their
/// entry, disabled peers and everybody else nothing. Keys and names that a correct document cannot
/// hold are nobody's.
pub struct ConfigIdentities {
    by_key: ArcSwap<HashMap<PeerKey, Arc<Identity>>>,
    generation: watch::Sender<u64>,
}

impl ConfigIdentities {
    /// Takes the identities of `config`; `generation` numbers this configuration.
    #[must_use]
    pub fn new(config: &NodeConfig, generation: u64) -> Self {
        Self {
            by_key: ArcSwap::from_pointee(index(config, generation)),
            generation: watch::Sender::new(generation),
        }
    }

    /// Puts another configuration in place and tells whoever watches. Returns its generation.
    pub fn replace(&self, config: &NodeConfig) -> u64 {
        let mut next = 0;
        self.generation.send_modify(|generation| {
            *generation += 1;
            next = *generation;
            // Inside, so that two replacements cannot cross: the table in place is always the one
            // of the generation announced.
            self.by_key.store(Arc::new(index(config, next)));
        });
        next
    }

    /// Number of the configuration in place.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }
}

impl IdentityProvider for ConfigIdentities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        self.by_key.load().get(key).cloned()
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

impl std::fmt::Debug for ConfigIdentities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigIdentities")
            .field("keys", &self.by_key.load().len())
            .field("generation", &self.generation())
            .finish()
    }
}

fn index(config: &NodeConfig, generation: u64) -> HashMap<PeerKey, Arc<Identity>> {
    let mut by_key = HashMap::new();
    for peer in config.peers.iter().filter(|peer| peer.enabled) {
        let Ok(id) = peer.peer_id.parse() else {
            continue;
        };
        let identity = identity(id, peer_scopes(peer), generation);
        for key in peer.keys.iter().filter_map(|key| key.parse().ok()) {
            by_key.insert(key, identity.clone());
        }
    }
    for (n, key) in config.node.admin_keys.iter().enumerate() {
        let (Ok(key), Ok(id)) = (key.parse(), admin_id(n)) else {
            continue;
        };
        let scopes = ["*"].into_iter().collect();
        by_key.insert(key, identity(id, scopes, generation));
    }
    by_key
}

/// `admin`, `admin-2`, `admin-3`, in the order of `node.admin_keys`.
fn admin_id(n: usize) -> Result<PeerId, crate::identity::PeerIdError> {
    match n {
        0 => "admin".parse(),
        n => format!("admin-{}", n + 1).parse(),
    }
}

fn peer_scopes(peer: &PeerConfig) -> ScopeSet {
    peer.scopes.iter().collect()
}

fn identity(id: PeerId, scopes: ScopeSet, generation: u64) -> Arc<Identity> {
    Arc::new(Identity {
        id,
        kind: IdentityKind::Peer,
        scopes,
        resources: BTreeMap::new(),
        generation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PeerKey {
        PeerKey::Ed25519([n; 32])
    }

    fn config(text: &str) -> NodeConfig {
        let text = (0..10).fold(text.to_owned(), |text, n| {
            text.replace(&format!("KEY{n}"), &key(n).to_string())
        });
        NodeConfig::parse(text.as_bytes()).expect("a correct document")
    }

    fn two_admins_and_peers() -> NodeConfig {
        config(
            r#"
            node.admin_keys = ["KEY1", "KEY2"]
            [[peers]]
            peer_id = "edge"
            keys = ["KEY3", "KEY4"]
            scopes = ["metrics:read", "fs:read:*"]
            [[peers]]
            peer_id = "gone"
            keys = ["KEY5"]
            enabled = false
            "#,
        )
    }

    #[test]
    fn administrators_are_numbered_and_may_do_everything() {
        let identities = ConfigIdentities::new(&two_admins_and_peers(), 1);
        for (n, id) in [(1, "admin"), (2, "admin-2")] {
            let found = identities.by_key(&key(n)).expect("an administrator");
            assert_eq!(found.id.as_str(), id);
            assert!(found.scopes.allows("node:anything"));
        }
    }

    #[test]
    fn peers_hold_what_their_entry_says_and_strangers_nothing() {
        let identities = ConfigIdentities::new(&two_admins_and_peers(), 1);
        for n in [3, 4] {
            let peer = identities.by_key(&key(n)).expect("a peer");
            assert_eq!(peer.id.as_str(), "edge");
            assert!(peer.scopes.allows("fs:read:docs") && !peer.scopes.allows("admin"));
        }
        assert!(identities.by_key(&key(5)).is_none(), "disabled");
        assert!(identities.by_key(&key(6)).is_none(), "unknown");
        assert!(identities.by_token(&AuthToken::new("x".into())).is_none());
    }

    #[test]
    fn the_same_bytes_as_another_kind_of_key_are_nobody() {
        let identities = ConfigIdentities::new(&two_admins_and_peers(), 1);
        assert!(identities.by_key(&PeerKey::Spki([1; 32])).is_none());
    }

    #[test]
    fn a_replacement_is_announced_with_its_generation() {
        let identities = ConfigIdentities::new(&two_admins_and_peers(), 7);
        let watch = identities.watch();
        assert_eq!(identities.replace(&NodeConfig::default()), 8);
        assert!(watch.has_changed().expect("the provider lives"));
        assert_eq!(*watch.borrow(), 8);
        assert!(identities.by_key(&key(1)).is_none());
        identities.replace(&two_admins_and_peers());
        assert_eq!(identities.by_key(&key(1)).map(|id| id.generation), Some(9));
    }

    #[test]
    fn names_and_keys_no_document_can_hold_are_ignored() {
        let mut config = two_admins_and_peers();
        config.node.admin_keys = vec!["nonsense".into()];
        config.peers[0].peer_id = "No Such Name".into();
        let identities = ConfigIdentities::new(&config, 1);
        assert!((0..10).all(|n| identities.by_key(&key(n)).is_none()));
    }
}
