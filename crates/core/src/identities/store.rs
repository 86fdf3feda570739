//! What is written while the node runs: who may write it, what a change is, and why one is refused.

use thiserror::Error;

use crate::entry::{ApiKey, PeerEntry, PeerPatch};
use crate::handler::BoxFuture;
use crate::identity::{IdentityProvider, PeerId, PeerKey};
use crate::rotation::RotationError;
use crate::token::KeyId;

/// The write side: peers and tokens that are made while the node runs. Entries of the
/// configuration are no business of it: they are read-only and win.
pub trait IdentityStore: IdentityProvider {
    /// Adds a peer, or replaces the one of the same name.
    fn put(&self, entry: PeerEntry) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Changes a peer.
    fn patch(
        &self,
        peer: PeerId,
        patch: PeerPatch,
    ) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Forgets a peer; whether there was one.
    fn remove(&self, peer: PeerId) -> BoxFuture<'_, Result<bool, IdentityStoreError>>;

    /// Gives a peer a new key in the place of an old one, which stays valid beside it until the
    /// time returned, in seconds since 1970. Nothing is returned, and the entry stays as it is, for a
    /// peer of the configuration whose entry lists the new key already. Tokens that the peer made by
    /// the old key are those of the new one from then on.
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

    /// Forgets the token of a program; whether there was one.
    fn remove_api_key(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, IdentityStoreError>>;

    /// Takes back a token, of a program or of a peer; whether there was one.
    fn revoke_token(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, IdentityStoreError>>;

    /// Keeps on which day tokens were last used. Worth calling now and then, and at the end.
    fn keep_uses(&self) -> BoxFuture<'_, Result<(), IdentityStoreError>>;

    /// Every peer of the store, by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<PeerEntry>, IdentityStoreError>>;
}

/// Everything a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredIdentities {
    /// Entries of peers.
    pub peers: Vec<PeerEntry>,
    /// Tokens of programs.
    pub api_keys: Vec<ApiKey>,
}

/// One change of what a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChange {
    /// Adds or replaces a peer.
    PutPeer(PeerEntry),
    /// Forgets a peer.
    RemovePeer(PeerId),
    /// Adds or replaces the token of a program.
    PutApiKey(ApiKey),
    /// Forgets the token of a program.
    RemoveApiKey(KeyId),
}

/// Keeps changes beyond the end of the program.
pub trait IdentityPersistence: Send + Sync + 'static {
    /// Keeps all of these changes or none. Once it returns without an error a power cut does not
    /// undo them. May block; called by one thread at a time.
    ///
    /// # Errors
    /// They are not kept.
    fn keep(&self, changes: &[StoreChange]) -> Result<(), IdentityStoreError>;
}

/// Why a store refuses a change.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityStoreError {
    /// Ends cannot be told without the time.
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
    /// The change cannot be kept.
    #[error("the change cannot be kept, and was not made: {0}")]
    Unavailable(String),
    /// There is no such peer.
    #[error("there is no peer '{0}'")]
    Unknown(PeerId),
}
