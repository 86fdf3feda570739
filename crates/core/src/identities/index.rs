//! The table of identities: built once per change, read without a lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::entry::{ApiKey, PeerEntry};
use crate::identity::{Identity, IdentityKind, PeerId, PeerKey};
use crate::token::{KeyId, TokenHash};

use super::IdentityEntries;

/// The holder of a key or a token.
#[derive(Clone)]
pub(super) struct IndexedIdentity {
    pub(super) identity: Arc<Identity>,
    pub(super) enabled: bool,
    pub(super) expires: Option<u64>,
    /// The maker, of a token that was made while the node ran.
    pub(super) maker: Option<TokenIssuer>,
}

/// The maker of a token, with which the token ends.
#[derive(Clone)]
pub(super) enum TokenIssuer {
    Id(Box<str>),
    Key(PeerKey),
    /// A peer that has this name and this key: another peer may get the name of one that is gone.
    Peer(Box<str>, PeerKey),
}

/// The day of a token's last use, in days since 1970; 0 for never. It outlives the table.
#[derive(Clone, Debug, Default)]
pub(super) struct LastUseDay(Arc<AtomicU32>);

impl LastUseDay {
    pub(super) fn from_days(day: u32) -> Self {
        Self(Arc::new(AtomicU32::new(day)))
    }

    /// Records a use: one write a day, otherwise a read.
    pub(super) fn note(&self, day: u32) {
        if self.0.load(Ordering::Relaxed) != day {
            self.0.store(day, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|day| *day > 0)
    }
}

#[derive(Default)]
pub(super) struct IdentityIndex {
    generation: u64,
    by_key: HashMap<PeerKey, IndexedIdentity>,
    by_token: HashMap<KeyId, (TokenHash, IndexedIdentity, LastUseDay)>,
    by_id: HashMap<PeerId, IndexedIdentity>,
    /// Peers by id and by alias.
    names: HashMap<Arc<str>, PeerId>,
    max_connections: HashMap<PeerId, u32>,
}

impl IdentityIndex {
    /// Builds the table. Of several sources with one name, key or token the first wins.
    pub(super) fn new(
        sources: &[&IdentityEntries],
        generation: u64,
        day: impl Fn(&KeyId) -> LastUseDay,
    ) -> Self {
        let mut index = Self {
            generation,
            ..Self::default()
        };
        for (n, source) in sources.iter().enumerate() {
            // Earlier sources win: the configuration comes before the store.
            let taken = |id: &PeerId| sources[..n].iter().any(|earlier| earlier.holds(id));
            for (id, key) in source.admins.iter().filter(|(id, _)| !taken(id)) {
                index.admin(id, key, generation);
            }
            for peer in source.peers.iter().filter(|peer| !taken(&peer.peer_id)) {
                index.peer(peer, generation, &day);
            }
            for key in source.api_keys.iter().filter(|key| !taken(&key.id())) {
                index.api_key(key, generation, &day);
            }
        }
        index.name(sources);
        index
    }

    /// Adds the names. Ids come first, so that no alias hides an id.
    fn name(&mut self, sources: &[&IdentityEntries]) {
        let peers = || sources.iter().flat_map(|source| &source.peers);
        let admins = sources.iter().flat_map(|source| &source.admins);
        let ids = admins
            .map(|(id, _)| id)
            .chain(peers().map(|peer| &peer.peer_id));
        for id in ids {
            // Ids first: an alias must not stand in for the id of another peer.
            self.names.insert(id.as_str().into(), id.clone());
        }
        // Another peer may take the alias of a disabled one.
        for peer in peers().filter(|peer| peer.enabled) {
            let alias = peer.display_name.as_deref();
            if let Some(alias) = alias.filter(|alias| alias.parse::<PeerId>().is_ok()) {
                let entry = self.names.entry(alias.into());
                entry.or_insert_with(|| peer.peer_id.clone());
            }
        }
    }

    /// Its generation, which every identity in it has.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&PeerId> {
        self.names.get(name)
    }

    pub(super) fn by_key(&self, key: &PeerKey) -> Option<&IndexedIdentity> {
        self.by_key.get(key)
    }

    /// Finds a token by its name, and then compares it as a whole. A token of an unknown name is compared with a hash
    /// of zeros, so that the time of the call does not reveal whether the name is known.
    pub(super) fn by_token(&self, token: &TokenHash) -> Option<(&IndexedIdentity, &LastUseDay)> {
        let found = self.by_token.get(&token.key_id);
        // A comparison runs for an unknown name as well: the time of the answer must not show which names exist.
        let unknown = TokenHash {
            sha256: [0; 32],
            ..*token
        };
        let known = found.map_or(&unknown, |(known, ..)| known);
        let same = known.matches(token);
        let (_, holder, day) = found.filter(|_| same)?;
        Some((holder, day))
    }

    pub(super) fn by_id(&self, id: &str) -> Option<&IndexedIdentity> {
        self.by_id.get(id)
    }

    /// The maker of this token, if it is known.
    pub(super) fn maker(&self, maker: &TokenIssuer) -> Option<&IndexedIdentity> {
        match maker {
            TokenIssuer::Id(id) => self.by_id(id),
            TokenIssuer::Key(key) => self.by_key(key),
            TokenIssuer::Peer(id, key) => {
                let holder = self.by_key(key);
                holder.filter(|holder| *holder.identity.id.as_str() == **id)
            }
        }
    }

    pub(super) fn max_connections(&self, peer: &PeerId) -> Option<u32> {
        self.max_connections.get(peer).copied()
    }

    fn admin(&mut self, id: &PeerId, key: &PeerKey, generation: u64) {
        let holder = IndexedIdentity {
            identity: Arc::new(Identity {
                id: id.clone(),
                kind: IdentityKind::Peer,
                scopes: ["*"].into_iter().collect(),
                resources: Default::default(),
                generation,
            }),
            enabled: true,
            expires: None,
            maker: None,
        };
        self.by_id.insert(id.clone(), holder.clone());
        // The first entry with a key keeps it, and administrators come first.
        self.by_key.entry(*key).or_insert(holder);
    }

    fn peer(&mut self, peer: &PeerEntry, generation: u64, day: impl Fn(&KeyId) -> LastUseDay) {
        let identity = |kind| Identity {
            id: peer.peer_id.clone(),
            kind,
            scopes: peer.scopes.clone(),
            resources: peer.resources.clone(),
            generation,
        };
        let holder = |kind| IndexedIdentity {
            identity: Arc::new(identity(kind)),
            enabled: peer.enabled,
            expires: peer.expires,
            maker: None,
        };
        let by_key = holder(IdentityKind::Peer);
        self.by_id.insert(peer.peer_id.clone(), by_key.clone());
        for key in &peer.keys {
            // A replaced key may end before the entry does.
            let holder = IndexedIdentity {
                expires: earlier(peer.expires, peer.key_ends.get(key).copied()),
                ..by_key.clone()
            };
            self.by_key.entry(*key).or_insert(holder);
        }
        let by_token = holder(IdentityKind::Token);
        for token in &peer.token_hashes {
            let entry = self.by_token.entry(token.key_id);
            entry.or_insert_with(|| (*token, by_token.clone(), day(&token.key_id)));
        }
        if let Some(max) = peer.max_connections {
            self.max_connections.insert(peer.peer_id.clone(), max);
        }
    }

    fn api_key(&mut self, key: &ApiKey, generation: u64, day: impl Fn(&KeyId) -> LastUseDay) {
        let holder = IndexedIdentity {
            identity: Arc::new(Identity {
                id: key.id(),
                kind: IdentityKind::Token,
                scopes: key.scopes.clone(),
                resources: key.resources.clone(),
                generation,
            }),
            enabled: true,
            expires: key.expires,
            maker: match (&key.created_by_key, &key.created_by) {
                (Some(held), Some(id)) if !key.is_by_admin() => {
                    Some(TokenIssuer::Peer(id.as_str().into(), *held))
                }
                (Some(held), _) => Some(TokenIssuer::Key(*held)),
                (None, Some(id)) => Some(TokenIssuer::Id(id.as_str().into())),
                (None, None) => None,
            },
        };
        let id = key.token.key_id;
        self.by_id.insert(key.id(), holder.clone());
        let entry = self.by_token.entry(id);
        entry.or_insert_with(|| (key.token, holder, day(&id)));
    }
}

/// The earlier of two ends; `None` is no end.
fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl std::fmt::Debug for IdentityIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityIndex")
            .field("keys", &self.by_key.len())
            .field("tokens", &self.by_token.len())
            .finish()
    }
}
