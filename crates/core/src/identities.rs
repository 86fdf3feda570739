//! Whom a node knows: the configuration's entries, which win, and those of a store.

mod index;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::watch;

use crate::clock::{Clock, is_expired};
use crate::entry::{ApiKey, PeerEntry, PeerPatch};
use crate::handler::BoxFuture;
use crate::identity::{Identity, IdentityProvider, PeerId, PeerKey};
use crate::token::{AuthToken, KeyId};

use index::{Holder, Index};

/// Everybody of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Keys that may do everything, with the names of their holders.
    pub admins: Vec<(PeerId, PeerKey)>,
    /// Peers.
    pub peers: Vec<PeerEntry>,
    /// Tokens of programs.
    pub api_keys: Vec<ApiKey>,
}

/// The write side: peers and tokens that are made while the node runs. Entries of the
/// configuration are no business of it: they are read-only and win.
pub trait IdentityStore: IdentityProvider {
    /// Adds a peer, or replaces the one of the same name.
    fn put(&self, entry: PeerEntry) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Changes a peer.
    fn patch(&self, peer: PeerId, patch: PeerPatch) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Forgets a peer; whether there was one.
    fn remove(&self, peer: PeerId) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Adds the token of a program, or replaces the one of the same name.
    fn put_api_key(&self, key: ApiKey) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Forgets the token of a program; whether there was one.
    fn remove_api_key(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Every peer of the store, by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<PeerEntry>, StoreError>>;
}

/// Why a store refuses a change.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else holds the key.
    #[error("the key {0} belongs to '{1}' already: take it from there first")]
    KeyTaken(PeerKey, PeerId),
    /// The configuration has an entry of this name.
    #[error("'{0}' is an entry of the configuration, which wins: change it there")]
    ReadOnly(PeerId),
    /// Somebody else holds the token.
    #[error("a token of the name {0} exists already: make a new one")]
    TokenTaken(KeyId),
    /// There is no such peer.
    #[error("there is no peer '{0}'")]
    Unknown(PeerId),
}

/// Answers for keys and tokens from a table that is rebuilt whole at every change, and keeps what
/// is written to it in memory.
pub struct Identities {
    sources: Mutex<Sources>,
    index: ArcSwap<Index>,
    generation: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Sources {
    config: Entries,
    peers: BTreeMap<PeerId, PeerEntry>,
    api_keys: BTreeMap<KeyId, ApiKey>,
}

impl Sources {
    fn index(&self, generation: u64) -> Index {
        let stored = Entries {
            admins: Vec::new(),
            peers: self.peers.values().cloned().collect(),
            api_keys: self.api_keys.values().cloned().collect(),
        };
        Index::new(&[&self.config, &stored], generation)
    }
}

impl Identities {
    /// Knows the configuration's `entries`, and an empty store.
    #[must_use]
    pub fn new(entries: Entries, clock: Arc<dyn Clock>) -> Self {
        let sources = Sources {
            config: entries,
            ..Sources::default()
        };
        let generation = 1;
        Self {
            index: ArcSwap::from_pointee(sources.index(generation)),
            sources: Mutex::new(sources),
            generation: watch::Sender::new(generation),
            clock,
        }
    }

    /// Puts other entries of the configuration in place and tells whoever watches.
    pub fn replace_config(&self, entries: Entries) {
        let mut sources = self.sources();
        sources.config = entries;
        self.rebuild(&sources);
    }

    /// Who would hold `key` with these entries of the configuration.
    #[must_use]
    pub fn preview(&self, entries: &Entries, key: &PeerKey) -> Option<Arc<Identity>> {
        let sources = self.sources();
        let preview = Sources {
            config: entries.clone(),
            peers: sources.peers.clone(),
            api_keys: sources.api_keys.clone(),
        };
        self.current(preview.index(0).by_key(key)?)
    }

    /// Number of the table in place; each identity carries the number of the one it is from.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Everybody known, whether let in or not: administrators, peers, tokens of programs.
    #[must_use]
    pub fn entries(&self) -> Entries {
        let sources = self.sources();
        let mut all = sources.config.clone();
        let known = |id: &PeerId| sources.config.holds(id);
        let peers = sources.peers.values().filter(|p| !known(&p.peer_id));
        all.peers.extend(peers.cloned());
        let keys = sources.api_keys.values().filter(|key| !known(&key.id()));
        all.api_keys.extend(keys.cloned());
        all
    }

    /// The identity, if its holder is let in now.
    fn current(&self, holder: &Holder) -> Option<Arc<Identity>> {
        let open = holder.enabled && !is_expired(holder.expires, &*self.clock);
        open.then(|| Arc::clone(&holder.identity))
    }

    fn rebuild(&self, sources: &Sources) {
        self.generation.send_modify(|generation| {
            *generation += 1;
            // Inside, so that the table in place is always the one of the generation announced.
            self.index.store(Arc::new(sources.index(*generation)));
        });
    }

    /// Changes the store and rebuilds the table, unless the change is refused.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Sources) -> Result<T, StoreError>,
    ) -> BoxFuture<'_, Result<T, StoreError>>
    where
        T: Send + 'static,
    {
        let mut sources = self.sources();
        let result = change(&mut sources);
        if result.is_ok() {
            self.rebuild(&sources);
        }
        drop(sources);
        Box::pin(std::future::ready(result))
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdentityProvider for Identities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        self.current(self.index.load().by_key(key)?)
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let hash = token.hash().ok()?;
        self.current(self.index.load().by_token(&hash)?)
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn by_name(&self, name: &str) -> Option<PeerId> {
        self.index.load().by_name(name).cloned()
    }

    fn max_connections(&self, peer: &PeerId) -> Option<u32> {
        self.index.load().max_connections(peer)
    }
}

impl IdentityStore for Identities {
    fn put(&self, entry: PeerEntry) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(|sources| sources.put(entry))
    }

    fn patch(&self, peer: PeerId, patch: PeerPatch) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(|sources| {
            let known = sources.peers.get(&peer).cloned();
            let entry = known.ok_or(StoreError::Unknown(peer))?;
            sources.put(entry.patched(patch))
        })
    }

    fn remove(&self, peer: PeerId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.change(|sources| Ok(sources.peers.remove(&peer).is_some()))
    }

    fn put_api_key(&self, key: ApiKey) -> BoxFuture<'_, Result<(), StoreError>> {
        self.change(|sources| {
            let id = key.id();
            if sources.config.holds(&id) {
                return Err(StoreError::ReadOnly(id));
            }
            let held = |peer: &PeerEntry| holds_token(peer, &key.token.key_id);
            if sources.all_peers().any(held) {
                return Err(StoreError::TokenTaken(key.token.key_id));
            }
            sources.api_keys.insert(key.token.key_id, key);
            Ok(())
        })
    }

    fn remove_api_key(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.change(|sources| Ok(sources.api_keys.remove(&key_id).is_some()))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PeerEntry>, StoreError>> {
        let all = self.sources().peers.values().cloned().collect();
        Box::pin(std::future::ready(Ok(all)))
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities")
            .field("index", &self.index.load())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl Entries {
    /// Whether somebody of this name is among them.
    #[must_use]
    pub fn holds(&self, id: &PeerId) -> bool {
        self.admins.iter().any(|(admin, _)| admin == id)
            || self.peers.iter().any(|peer| peer.peer_id == *id)
            || self.api_keys.iter().any(|key| key.id() == *id)
    }
}

impl Sources {
    /// Adds a peer whose name, keys and tokens nobody else has.
    fn put(&mut self, entry: PeerEntry) -> Result<(), StoreError> {
        if self.config.holds(&entry.peer_id) {
            return Err(StoreError::ReadOnly(entry.peer_id));
        }
        for key in &entry.keys {
            let admin = self.config.admins.iter().find(|(_, held)| held == key);
            let mut others = self.all_peers().filter(|p| p.peer_id != entry.peer_id);
            let holder = admin
                .map(|(id, _)| id)
                .or_else(|| Some(&others.find(|peer| peer.keys.contains(key))?.peer_id));
            if let Some(holder) = holder {
                return Err(StoreError::KeyTaken(*key, holder.clone()));
            }
        }
        for token in &entry.token_hashes {
            let mut others = self.all_peers().filter(|p| p.peer_id != entry.peer_id);
            let mut keys = self.config.api_keys.iter().chain(self.api_keys.values());
            if others.any(|peer| holds_token(peer, &token.key_id))
                || keys.any(|key| key.token.key_id == token.key_id)
            {
                return Err(StoreError::TokenTaken(token.key_id));
            }
        }
        self.peers.insert(entry.peer_id.clone(), entry);
        Ok(())
    }

    fn all_peers(&self) -> impl Iterator<Item = &PeerEntry> {
        self.config.peers.iter().chain(self.peers.values())
    }
}

fn holds_token(peer: &PeerEntry, key_id: &KeyId) -> bool {
    peer.token_hashes.iter().any(|held| held.key_id == *key_id)
}

#[cfg(test)]
mod tests;
