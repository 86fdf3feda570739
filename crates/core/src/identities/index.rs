//! The table that answers: built once per change, read without a lock.

use std::collections::HashMap;
use std::sync::Arc;

use crate::entry::{ApiKey, PeerEntry};
use crate::identity::{Identity, IdentityKind, PeerId, PeerKey};
use crate::token::{KeyId, TokenHash};

use super::Entries;

/// Somebody behind a key or a token.
#[derive(Clone)]
pub(super) struct Holder {
    pub(super) identity: Arc<Identity>,
    pub(super) enabled: bool,
    pub(super) expires: Option<u64>,
}

#[derive(Default)]
pub(super) struct Index {
    by_key: HashMap<PeerKey, Holder>,
    by_token: HashMap<KeyId, (TokenHash, Holder)>,
    max_connections: HashMap<PeerId, u32>,
}

impl Index {
    /// Takes names, keys and tokens from the first source that has them.
    pub(super) fn new(sources: &[&Entries], generation: u64) -> Self {
        let mut index = Self::default();
        for (n, source) in sources.iter().enumerate() {
            let taken = |id: &PeerId| sources[..n].iter().any(|earlier| earlier.holds(id));
            for (id, key) in source.admins.iter().filter(|(id, _)| !taken(id)) {
                index.admin(id, key, generation);
            }
            for peer in source.peers.iter().filter(|peer| !taken(&peer.peer_id)) {
                index.peer(peer, generation);
            }
            for key in source.api_keys.iter().filter(|key| !taken(&key.id())) {
                index.api_key(key, generation);
            }
        }
        index
    }

    pub(super) fn by_key(&self, key: &PeerKey) -> Option<&Holder> {
        self.by_key.get(key)
    }

    /// Found by its name, and then compared whole.
    pub(super) fn by_token(&self, token: &TokenHash) -> Option<&Holder> {
        let (known, holder) = self.by_token.get(&token.key_id)?;
        known.matches(token).then_some(holder)
    }

    pub(super) fn max_connections(&self, peer: &PeerId) -> Option<u32> {
        self.max_connections.get(peer).copied()
    }

    fn admin(&mut self, id: &PeerId, key: &PeerKey, generation: u64) {
        let holder = Holder {
            identity: Arc::new(Identity {
                id: id.clone(),
                kind: IdentityKind::Peer,
                scopes: ["*"].into_iter().collect(),
                resources: Default::default(),
                generation,
            }),
            enabled: true,
            expires: None,
        };
        self.by_key.entry(*key).or_insert(holder);
    }

    fn peer(&mut self, peer: &PeerEntry, generation: u64) {
        let identity = |kind| Identity {
            id: peer.peer_id.clone(),
            kind,
            scopes: peer.scopes.clone(),
            resources: peer.resources.clone(),
            generation,
        };
        let holder = |kind| Holder {
            identity: Arc::new(identity(kind)),
            enabled: peer.enabled,
            expires: peer.expires,
        };
        let by_key = holder(IdentityKind::Peer);
        for key in &peer.keys {
            let holder = Holder {
                expires: earlier(peer.expires, peer.key_ends.get(key).copied()),
                ..by_key.clone()
            };
            self.by_key.entry(*key).or_insert(holder);
        }
        let by_token = holder(IdentityKind::Token);
        for token in &peer.token_hashes {
            let entry = self.by_token.entry(token.key_id);
            entry.or_insert_with(|| (*token, by_token.clone()));
        }
        if let Some(max) = peer.max_connections {
            self.max_connections.insert(peer.peer_id.clone(), max);
        }
    }

    fn api_key(&mut self, key: &ApiKey, generation: u64) {
        let holder = Holder {
            identity: Arc::new(Identity {
                id: key.id(),
                kind: IdentityKind::Token,
                scopes: key.scopes.clone(),
                resources: key.resources.clone(),
                generation,
            }),
            enabled: true,
            expires: key.expires,
        };
        let entry = self.by_token.entry(key.token.key_id);
        entry.or_insert((key.token, holder));
    }
}

/// Which of two ends comes first, where nothing is no end.
fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("keys", &self.by_key.len())
            .field("tokens", &self.by_token.len())
            .finish()
    }
}
