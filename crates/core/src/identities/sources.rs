//! The two sources of entries, and the rules for changes of the second.

use std::collections::{BTreeMap, HashMap};

use crate::entry::{ApiKey, PeerEntry, PeerPatch};
use crate::identity::{PeerId, PeerKey};
use crate::rotation::RotationError;
use crate::token::KeyId;

use super::IdentityEntries;
use super::index::{IdentityIndex, LastUseDay};
use super::store::{IdentityStoreError, StoreChange, StoredIdentities};

/// A planned change: what has to be stored, and the response to the caller.
pub(super) type Plan<T> = Result<(Vec<StoreChange>, T), IdentityStoreError>;

#[derive(Clone, Default)]
pub(super) struct IdentitySources {
    pub(super) config: IdentityEntries,
    pub(super) peers: BTreeMap<PeerId, PeerEntry>,
    pub(super) api_keys: BTreeMap<KeyId, ApiKey>,
    /// The days of use, which every table shares.
    pub(super) days: BTreeMap<KeyId, LastUseDay>,
}

impl IdentitySources {
    pub(super) fn fill(&mut self, stored: StoredIdentities) {
        let peers = stored.peers.into_iter().map(StoreChange::PutPeer);
        let keys = stored.api_keys.into_iter().map(StoreChange::PutApiKey);
        for change in peers.chain(keys) {
            self.make(change);
        }
        let used = self.api_keys.iter();
        let used = used.filter_map(|(id, key)| Some((*id, LastUseDay::from_days(key.used_day?))));
        self.days = used.collect();
    }

    /// The table for the present entries.
    pub(super) fn indexed(&mut self, generation: u64) -> IdentityIndex {
        let peers = self.all_peers().flat_map(|peer| &peer.token_hashes);
        let tokens = peers.chain(self.all_api_keys().map(|key| &key.token));
        let known: std::collections::BTreeSet<_> = tokens.map(|token| token.key_id).collect();
        // Tokens that are gone must not fill the table.
        self.days.retain(|id, _| known.contains(id));
        for id in known {
            self.days.entry(id).or_default();
        }
        self.index(generation)
    }

    pub(super) fn index(&self, generation: u64) -> IdentityIndex {
        let stored = IdentityEntries {
            admins: Vec::new(),
            peers: self.peers.values().cloned().collect(),
            api_keys: self.api_keys.values().cloned().collect(),
        };
        let day = |id: &KeyId| self.days.get(id).cloned().unwrap_or_default();
        IdentityIndex::new(&[&self.config, &stored], generation, day)
    }

    /// Makes a change that was planned and stored.
    pub(super) fn make(&mut self, change: StoreChange) {
        match change {
            StoreChange::PutPeer(entry) => {
                self.peers.insert(entry.peer_id.clone(), entry);
            }
            StoreChange::RemovePeer(id) => {
                self.peers.remove(&id);
            }
            StoreChange::PutApiKey(key) => {
                self.api_keys.insert(key.token.key_id, key);
            }
            StoreChange::RemoveApiKey(id) => {
                self.api_keys.remove(&id);
            }
        }
    }

    /// Plans to put a peer whose name, keys and tokens belong to no other entry.
    pub(super) fn put(&self, entry: PeerEntry) -> Plan<()> {
        // Entries of the configuration win, so that the change would have no effect.
        if self.config.holds(&entry.peer_id) {
            return Err(IdentityStoreError::ReadOnly(entry.peer_id));
        }
        for key in &entry.keys {
            // With two holders of a key, the identity of its connections would be ambiguous.
            if let Some(holder) = self.holder_of_key(key).filter(|id| **id != entry.peer_id) {
                return Err(IdentityStoreError::KeyTaken(*key, holder.clone()));
            }
        }
        for token in &entry.token_hashes {
            let mut others = self.all_peers().filter(|p| p.peer_id != entry.peer_id);
            if others.any(|peer| holds_token(peer, &token.key_id))
                || self
                    .all_api_keys()
                    .any(|key| key.token.key_id == token.key_id)
            {
                return Err(IdentityStoreError::TokenTaken(token.key_id));
            }
        }
        let mut changes = Vec::new();
        if !entry.enabled {
            // The tokens are removed for good: a peer that is enabled again makes new ones.
            changes = self.without_made_by(&entry.peer_id);
        }
        changes.push(StoreChange::PutPeer(entry));
        Ok((changes, ()))
    }

    /// The removal of every stored token that `maker` made, and of those made by these tokens.
    fn without_made_by(&self, maker: &PeerId) -> Vec<StoreChange> {
        let mut makers = vec![maker.clone()];
        let mut gone = Vec::new();
        while let Some(maker) = makers.pop() {
            let made = self.api_keys.values().filter(|key| {
                !key.is_by_admin() && key.created_by.as_deref() == Some(maker.as_str())
            });
            for key in made {
                let id = key.token.key_id;
                // Tokens that name each other as makers must not make this loop endless.
                if !gone.contains(&id) {
                    gone.push(id);
                    makers.push(key.id());
                }
            }
        }
        gone.into_iter().map(StoreChange::RemoveApiKey).collect()
    }

    pub(super) fn patch(&self, peer: PeerId, patch: PeerPatch) -> Plan<()> {
        self.put(self.stored(peer)?.patched(patch))
    }

    pub(super) fn remove(&self, peer: PeerId) -> Plan<bool> {
        if !self.peers.contains_key(&peer) {
            return Ok((Vec::new(), false));
        }
        // Tokens that the peer made must not outlive it.
        let mut changes = self.without_made_by(&peer);
        changes.push(StoreChange::RemovePeer(peer));
        Ok((changes, true))
    }

    pub(super) fn rotate(
        &self,
        peer: PeerId,
        old: PeerKey,
        new: PeerKey,
        now_s: Option<u64>,
    ) -> Plan<Option<u64>> {
        if self.config.holds(&peer) {
            return self.rotated_by_hand(peer, old, new);
        }
        // The old key ends at a moment, which an unset clock cannot give.
        let now_s = now_s.ok_or(IdentityStoreError::ClockUnset)?;
        let before = self.stored(peer)?;
        let (after, ends) = before.clone().rotated(old, new, now_s)?;
        // A client repeats its request if the response was lost, and gets the same end again.
        if after == before {
            return Ok((Vec::new(), Some(ends)));
        }
        let mut changes = self.handed_on(&after.peer_id, old, new);
        // Last: a peer that was put out meanwhile keeps no token.
        changes.extend(self.put(after)?.0);
        Ok((changes, Some(ends)))
    }

    /// People write the configuration: this checks whether they have listed the new key already.
    fn rotated_by_hand(&self, peer: PeerId, old: PeerKey, new: PeerKey) -> Plan<Option<u64>> {
        if old == new {
            return Err(RotationError::Same.into());
        }
        let is_admin = |key: &PeerKey| self.config.admins.iter().any(|(_, held)| held == key);
        let entry = self.config.peers.iter().find(|it| it.peer_id == peer);
        let listed = entry.map_or_else(|| is_admin(&new), |entry| entry.keys.contains(&new));
        // The administrator has changed the configuration already.
        if !listed {
            return Err(IdentityStoreError::ReadOnly(peer));
        }
        // The tokens of a key that was taken out meanwhile have ended, and stay so.
        let has_both = entry.is_some_and(|entry| entry.keys.contains(&old));
        let changes = has_both.then(|| self.handed_on(&peer, old, new));
        Ok((changes.unwrap_or_default(), None))
    }

    /// The tokens that a peer made by its key `old`, as ones of its key `new`: the node forgets replaced keys.
    fn handed_on(&self, peer: &PeerId, old: PeerKey, new: PeerKey) -> Vec<StoreChange> {
        let is_of = |key: &&ApiKey| {
            key.created_by_key == Some(old) && key.created_by.as_deref() == Some(peer.as_str())
        };
        let made = self.api_keys.values().filter(is_of);
        let tied = made.map(|key| {
            StoreChange::PutApiKey(ApiKey {
                created_by_key: Some(new),
                ..key.clone()
            })
        });
        tied.collect()
    }

    pub(super) fn put_api_key(&self, key: ApiKey) -> Plan<()> {
        let id = key.id();
        if self.config.holds(&id) {
            return Err(IdentityStoreError::ReadOnly(id));
        }
        let held = |peer: &PeerEntry| holds_token(peer, &key.token.key_id);
        if self.all_peers().any(held) {
            return Err(IdentityStoreError::TokenTaken(key.token.key_id));
        }
        // The peer was disabled while it made the token, which would be valid again once the peer is enabled again.
        let maker = key.created_by.as_deref();
        let maker = maker.and_then(|id| self.peers.get(id));
        if let Some(gone) = maker.filter(|peer| !peer.enabled && !key.is_by_admin()) {
            return Err(IdentityStoreError::Unknown(gone.peer_id.clone()));
        }
        Ok((vec![StoreChange::PutApiKey(key)], ()))
    }

    pub(super) fn remove_api_key(&self, id: KeyId) -> Plan<bool> {
        if !self.api_keys.contains_key(&id) {
            return Ok((Vec::new(), false));
        }
        let mut changes = self.without_made_by(&PeerId::of_api_key(&id));
        changes.push(StoreChange::RemoveApiKey(id));
        Ok((changes, true))
    }

    /// Plans to revoke a token of a peer or of a program.
    pub(super) fn revoke_token(&self, id: KeyId) -> Plan<bool> {
        let config = &self.config;
        // Only a new document can remove a token of the configuration.
        if let Some(key) = config.api_keys.iter().find(|key| key.token.key_id == id) {
            return Err(IdentityStoreError::ReadOnly(key.id()));
        }
        if let Some(peer) = config.peers.iter().find(|peer| holds_token(peer, &id)) {
            return Err(IdentityStoreError::ReadOnly(peer.peer_id.clone()));
        }
        let holder = self.peers.values().find(|peer| holds_token(peer, &id));
        let Some(holder) = holder else {
            return self.remove_api_key(id);
        };
        let mut after = holder.clone();
        after.token_hashes.retain(|token| token.key_id != id);
        Ok((vec![StoreChange::PutPeer(after)], true))
    }

    /// The stored tokens whose day of use differs from the entry, each with the new day.
    pub(super) fn used(&self) -> Vec<StoreChange> {
        let newer = self.api_keys.iter().filter_map(|(id, key)| {
            let used_day = self.days.get(id)?.get();
            let changed = used_day.is_some() && used_day != key.used_day;
            changed.then(|| {
                StoreChange::PutApiKey(ApiKey {
                    used_day,
                    ..key.clone()
                })
            })
        });
        newer.collect()
    }

    /// The entries of the store that `config` hides, with the name of each.
    pub(super) fn hidden_by(&self, config: &IdentityEntries) -> Vec<(PeerId, String)> {
        let holders = holders(config);
        let names = self.stored_names();
        let mut hidden: Vec<_> = names
            .filter(|id| config.holds(id))
            .map(|id| (id, "the store has an entry of this name, too".to_owned()))
            .collect();
        for peer in self.peers.values().filter(|it| !config.holds(&it.peer_id)) {
            for key in &peer.keys {
                if let Some(holder) = holders.get(key) {
                    let what = format!("its key {key} in the store is that of '{holder}' here");
                    hidden.push((peer.peer_id.clone(), what));
                }
            }
        }
        hidden
    }

    /// The entries of the store that `before` hides, in part or as a whole, and `after` does not, with the name of each.
    pub(super) fn uncovered_by(
        &self,
        before: &IdentityEntries,
        after: &IdentityEntries,
    ) -> Vec<(PeerId, String)> {
        let [hid, hides] = [before, after].map(holders);
        let names = self.stored_names();
        let mut uncovered: Vec<_> = names
            .filter(|id| before.holds(id) && !after.holds(id))
            .map(|id| {
                (
                    id,
                    "the entry of this name in the store counts again".to_owned(),
                )
            })
            .collect();
        let is_hidden = |id| before.holds(id) || after.holds(id);
        for peer in self.peers.values().filter(|it| !is_hidden(&it.peer_id)) {
            for key in peer.keys.iter().filter(|key| !hides.contains_key(key)) {
                if let Some(holder) = hid.get(key) {
                    let what =
                        format!("its key {key} in the store counts again: '{holder}' had it here");
                    uncovered.push((peer.peer_id.clone(), what));
                }
            }
        }
        uncovered
    }

    /// The names of the store's entries.
    fn stored_names(&self) -> impl Iterator<Item = PeerId> {
        let tokens = self.api_keys.values().map(ApiKey::id);
        self.peers.keys().cloned().chain(tokens)
    }

    fn stored(&self, peer: PeerId) -> Result<PeerEntry, IdentityStoreError> {
        let known = self.peers.get(&peer).cloned();
        known.ok_or(IdentityStoreError::Unknown(peer))
    }

    fn holder_of_key(&self, key: &PeerKey) -> Option<&PeerId> {
        let admin = self.config.admins.iter().find(|(_, held)| held == key);
        let mut peers = self.all_peers();
        admin
            .map(|(id, _)| id)
            .or_else(|| Some(&peers.find(|peer| peer.keys.contains(key))?.peer_id))
    }

    fn all_peers(&self) -> impl Iterator<Item = &PeerEntry> {
        self.config.peers.iter().chain(self.peers.values())
    }

    fn all_api_keys(&self) -> impl Iterator<Item = &ApiKey> {
        self.config.api_keys.iter().chain(self.api_keys.values())
    }
}

fn holds_token(peer: &PeerEntry, key_id: &KeyId) -> bool {
    peer.token_hashes.iter().any(|held| held.key_id == *key_id)
}

/// Who has each key in a configuration.
fn holders(config: &IdentityEntries) -> HashMap<&PeerKey, &PeerId> {
    let admins = config.admins.iter().map(|(id, key)| (key, id));
    let keys = config.peers.iter();
    let keys = keys.flat_map(|peer| peer.keys.iter().map(move |key| (key, &peer.peer_id)));
    // The order matters: of two with one key the last stays in the map, so that an administrator wins.
    keys.chain(admins).collect()
}
