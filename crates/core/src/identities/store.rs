//! Changes of identities while the node runs: the interfaces, the changes, and the reasons for a refusal.

use thiserror::Error;

use crate::entry::{ApiKey, PeerEntry, PeerPatch};
use crate::handler::BoxFuture;
use crate::identity::{IdentityProvider, PeerId, PeerKey};
use crate::rotation::RotationError;
use crate::token::KeyId;

/// The write side: peers and tokens that are made while the node runs. It does not change entries of the
/// configuration, which are read-only and win.
pub trait IdentityStore: IdentityProvider {
    /// Adds a peer, or replaces the one of the same name.
    fn put(&self, entry: PeerEntry) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Changes a peer.
    fn patch(
        &self,
        peer: PeerId,
        patch: PeerPatch,
    ) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Removes a peer. Returns whether there was one.
    fn remove(&self, peer: PeerId) -> BoxFuture<'_, Result<bool, IdentityStoreError>>;

    /// Replaces an old key of a peer by a new one. The old key stays valid until the returned time, in seconds since
    /// 1970. For a peer of the configuration whose entry lists the new key already, the entry stays as it is and the
    /// result is `None`. Tokens that the peer made by the old key are those of the new one from then on.
    ///
    /// The caller has checked that the peer holds both keys.
    fn rotate(
        &self,
        peer: PeerId,
        old: PeerKey,
        new: PeerKey,
    ) -> BoxFuture<'_, Result<Option<u64>, IdentityStoreError>>;

    /// Adds the token of a program, or replaces the one of the same name.
    fn put_api_key(&self, key: ApiKey) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Removes the token of a program. Returns whether there was one.
    fn remove_api_key(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, IdentityStoreError>>;

    /// Revokes a token of a program or of a peer. Returns whether there was one.
    fn revoke_token(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, IdentityStoreError>>;

    /// Stores the days of the tokens' last uses. Callers call it now and then, and at the end.
    fn keep_uses(&self) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Every peer of the store, by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<PeerEntry>, IdentityStoreError>>;
}

/// All entries of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredIdentities {
    /// Entries of peers.
    pub peers: Vec<PeerEntry>,
    /// Tokens of programs.
    pub api_keys: Vec<ApiKey>,
}

/// One change of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChange {
    /// Adds or replaces a peer.
    PutPeer(PeerEntry),
    /// Removes a peer.
    RemovePeer(PeerId),
    /// Adds or replaces the token of a program.
    PutApiKey(ApiKey),
    /// Removes the token of a program.
    RemoveApiKey(KeyId),
}

/// Stores changes beyond the end of the program.
pub trait IdentityPersistence: Send + Sync + 'static {
    /// Stores all of these changes or none. Once it returns without an error, a power cut does not undo them. It may
    /// block; one thread at a time calls it.
    ///
    /// # Errors
    /// The changes are not stored.
    fn persist(&self, changes: &[StoreChange]) -> Result<(), IdentityStoreError>;
}

/// Why a store refuses a change.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityStoreError {
    /// Without the time the end of a key is unknown.
    #[error("the clock of the node is not set yet: try again once it is")]
    ClockUnset,
    /// Another entry holds the key.
    #[error("the key {0} belongs to '{1}' already: take it from there first")]
    KeyTaken(PeerKey, PeerId),
    /// The configuration has an entry of this name.
    #[error("'{0}' is an entry of the configuration, which wins: change it there")]
    ReadOnly(PeerId),
    /// The keys of the peer do not allow this rotation.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// Another entry holds the token.
    #[error("a token of the name {0} exists already: make a new one")]
    TokenTaken(KeyId),
    /// The change cannot be stored.
    #[error("the change cannot be kept, and was not made: {0}")]
    Unavailable(String),
    /// The store has no such peer.
    #[error("there is no peer '{0}'")]
    Unknown(PeerId),
}
