//! The entries of peers and programs that may connect, from the configuration or from a store.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::is_admin_id;
use crate::dial::PeerAddr;
use crate::identity::{PeerId, PeerKey, ScopeSet};
use crate::token::TokenHash;

/// A peer: several keys and tokens under one name. Rotation changes the keys, never the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEntry {
    /// The stable name.
    pub peer_id: PeerId,
    /// The keys. The peer proves one of them.
    pub keys: Vec<PeerKey>,
    /// The ends of the keys that others replaced, in seconds since 1970.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub key_ends: BTreeMap<PeerKey, u64>,
    /// Its bearer tokens.
    pub token_hashes: Vec<TokenHash>,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Resources it holds, by type.
    pub resources: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Its addresses for dialling; its keys are the pins.
    pub addresses: Vec<PeerAddr>,
    /// What people call it. One that follows the grammar of a peer id is an alias of it.
    pub display_name: Option<String>,
    /// Facts about it, for callers that choose among peers.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A disabled peer is known and refused.
    pub enabled: bool,
    /// End of the entry, in seconds since 1970.
    pub expires: Option<u64>,
    /// Connections that it may have at once; `None` for the node's own limit.
    pub max_connections: Option<u32>,
    /// The number of its last removal, or of the last change that took scopes or keys from it, in the order in which a
    /// hub made these; absent where there was none. An invitation is older or newer than a removal by this number and
    /// not by a clock, which can be set back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<u64>,
    /// The scopes that were taken from it and not given back, such as by its removal or before it. They give no right;
    /// who lets it in again after it was disabled, without being an administrator, has to hold them.
    #[serde(default, skip_serializing_if = "ScopeSet::is_empty")]
    pub lost_scopes: ScopeSet,
}

impl PeerEntry {
    /// A peer without keys, tokens and rights.
    #[must_use]
    pub fn new(peer_id: PeerId) -> Self {
        Self {
            peer_id,
            keys: Vec::new(),
            key_ends: BTreeMap::new(),
            token_hashes: Vec::new(),
            scopes: ScopeSet::default(),
            resources: BTreeMap::new(),
            addresses: Vec::new(),
            display_name: None,
            labels: BTreeMap::new(),
            enabled: true,
            expires: None,
            max_connections: None,
            removal: None,
            lost_scopes: ScopeSet::default(),
        }
    }

    /// Whether `scopes` allow everything that this peer may do, and what it could do before it was put out.
    #[must_use]
    pub fn is_covered_by(&self, scopes: &ScopeSet) -> bool {
        scopes.covers(&self.scopes) && (self.enabled || scopes.covers(&self.lost_scopes))
    }

    /// This entry with the changes of `patch`.
    #[must_use]
    pub fn patched(mut self, patch: PeerPatch) -> Self {
        fn set<T>(field: &mut T, new: Option<T>) {
            if let Some(new) = new {
                *field = new;
            }
        }
        set(&mut self.keys, patch.keys);
        set(&mut self.key_ends, patch.key_ends);
        // A key that is added again later must not have its end from before.
        self.key_ends.retain(|key, _| self.keys.contains(key));
        set(&mut self.token_hashes, patch.token_hashes);
        let (had, was_enabled) = (self.scopes.clone(), self.enabled);
        set(&mut self.scopes, patch.scopes);
        set(&mut self.resources, patch.resources);
        set(&mut self.addresses, patch.addresses);
        set(&mut self.display_name, patch.display_name);
        set(&mut self.labels, patch.labels);
        set(&mut self.enabled, patch.enabled);
        if self.scopes != had {
            // What an earlier change took stays: an administrator may take the scopes first, and remove the peer then.
            self.lost_scopes = self.lost_scopes.union(had);
        }
        let is_let_in = self.enabled && !was_enabled;
        if is_let_in || self.scopes.covers(&self.lost_scopes) {
            self.lost_scopes = ScopeSet::default();
        }
        set(&mut self.expires, patch.expires);
        set(&mut self.max_connections, patch.max_connections);
        set(&mut self.removal, patch.removal.map(Some));
        self
    }
}

/// Changes of a peer. `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPatch {
    /// All keys from now on.
    pub keys: Option<Vec<PeerKey>>,
    /// All ends of keys from now on, in seconds since 1970. Ends of keys that the peer does not have do not count.
    pub key_ends: Option<BTreeMap<PeerKey, u64>>,
    /// All tokens from now on.
    pub token_hashes: Option<Vec<TokenHash>>,
    /// All scopes from now on.
    pub scopes: Option<ScopeSet>,
    /// All resources from now on.
    pub resources: Option<BTreeMap<Arc<str>, Vec<Arc<str>>>>,
    /// All addresses from now on.
    pub addresses: Option<Vec<PeerAddr>>,
    /// The name for people, or `Some(None)` to remove it.
    pub display_name: Option<Option<String>>,
    /// All labels from now on.
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether the peer may connect.
    pub enabled: Option<bool>,
    /// End of the entry, or `Some(None)` for no end.
    pub expires: Option<Option<u64>>,
    /// Its own limit of connections, or `Some(None)` for the node's.
    pub max_connections: Option<Option<u32>>,
    /// The number of its removal.
    pub removal: Option<u64>,
}

/// The token of a program that is no peer. Its identity is `key:<8 characters>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Name and hash of the token.
    pub token: TokenHash,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Resources it holds, by type.
    pub resources: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// The purpose, for people.
    pub description: Option<String>,
    /// End of the token, in seconds since 1970.
    pub expires: Option<u64>,
    /// The id of the maker, of a token that was made while the node ran; `None` for a token of the configuration. The
    /// token ends with its maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A key of the maker's, without which the token is refused: administrators are named by their place in the
    /// configuration, which another one has once they are gone, and another peer may get the name of one that is gone.
    /// A peer that rotates the key ties its tokens to the new one. Absent in records of makers without a key, and in
    /// those of peers that earlier versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by_key: Option<PeerKey>,
    /// When it was made, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<u64>,
    /// The day of its last use, in days since 1970. It is no more precise, for the privacy of the token's holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_day: Option<u32>,
}

impl ApiKey {
    /// A token without rights and without a maker, as of the configuration.
    #[must_use]
    pub fn new(token: TokenHash) -> Self {
        Self {
            token,
            scopes: ScopeSet::default(),
            resources: BTreeMap::new(),
            description: None,
            expires: None,
            created_by: None,
            created_by_key: None,
            created: None,
            used_day: None,
        }
    }

    /// The identity in whose name its calls are made.
    #[must_use]
    pub fn id(&self) -> PeerId {
        PeerId::of_api_key(&self.token.key_id)
    }

    /// Whether an administrator made it whose key is known: the name says nothing then.
    pub(crate) fn is_by_admin(&self) -> bool {
        self.created_by_key.is_some() && self.created_by.as_deref().is_some_and(is_admin_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        entry.key_ends = [(entry.keys[0], 9)].into();
        let other = entry.patched(PeerPatch {
            keys: Some(vec![PeerKey::Spki([2; 32])]),
            ..PeerPatch::default()
        });
        assert!(other.key_ends.is_empty(), "the key is gone, and its end");
    }

    #[test]
    fn a_disabled_peer_is_known_by_the_scopes_that_it_lost() {
        let scopes = |scopes: &[&str]| scopes.iter().collect::<ScopeSet>();
        let mut entry = PeerEntry::new("edge".parse().expect("a peer id"));
        entry.scopes = scopes(&["node:read", "fs:*"]);
        let removes = PeerPatch {
            enabled: Some(false),
            scopes: Some(ScopeSet::default()),
            ..PeerPatch::default()
        };
        let once = entry.clone().patched(removes.clone());
        let removed = once.clone().patched(removes);
        assert_eq!((&removed.scopes, &once), (&ScopeSet::default(), &removed));
        assert!(!removed.is_covered_by(&scopes(&["node:read"])));
        assert!(removed.is_covered_by(&entry.scopes));
        let stored = serde_json::to_string(&removed).expect("it is stored");
        let read: PeerEntry = serde_json::from_str(&stored).expect("it is read");
        assert_eq!(read, removed);
        let back = removed.patched(PeerPatch {
            enabled: Some(true),
            ..PeerPatch::default()
        });
        assert!(back.is_covered_by(&ScopeSet::default()));
        // An administrator takes the scopes first, and removes the peer then.
        let taken = entry.clone().patched(PeerPatch {
            scopes: Some(ScopeSet::default()),
            ..PeerPatch::default()
        });
        assert!(taken.is_covered_by(&ScopeSet::default()), "it is let in");
        let removes = PeerPatch {
            enabled: Some(false),
            scopes: Some(ScopeSet::default()),
            ..PeerPatch::default()
        };
        assert!(
            !taken
                .clone()
                .patched(removes.clone())
                .is_covered_by(&scopes(&["node:read"]))
        );
        // The scopes are given back before that.
        let given = taken.patched(PeerPatch {
            scopes: Some(entry.scopes.clone()),
            ..PeerPatch::default()
        });
        assert_eq!(given, entry);
        // Nothing of it is in a file of an earlier version.
        let stored = serde_json::to_string(&back).expect("it is stored");
        assert!(!stored.contains("lost_scopes"), "{stored}");
    }
}
