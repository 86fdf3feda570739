//! Putting a peer out, so that it does not let itself in again.

use alknet_core::{IdentityStoreError, KeyId, PeerId, PeerPatch, ScopeSet};

use crate::store::TokenStoreError;

use super::{EnrolError, EnrolmentService};

impl EnrolmentService {
    /// Takes everything from a peer but its id and its keys, by which it stays known as one that is
    /// not let in, also by an invitation made before. Those that it joined by, and those that it made, take
    /// in no further key; returns their names.
    ///
    /// # Errors
    /// There is no such peer, or it is one of the configuration, or the stores fail.
    pub async fn remove(&self, peer: &PeerId) -> Result<Vec<KeyId>, EnrolError> {
        let _turn = self.turn.lock().await;
        let tombstone = PeerPatch {
            enabled: Some(false),
            scopes: Some(ScopeSet::default()),
            display_name: Some(None),
            removal: Some(self.removals::<EnrolError>().await?.saturating_add(1)),
            ..PeerPatch::default()
        };
        // The peer before its invitations: where the machine stops in between, `by_token` refuses
        // those of a removed peer.
        self.peers.patch(peer.clone(), tombstone).await?;
        let mut closed = Vec::new();
        for mut record in self.tokens.list().await? {
            if record.closed || !record.is_of(peer) {
                continue;
            }
            record.closed = true;
            let name = record.hash.key_id;
            if !self.tokens.replace(record).await? {
                return Err(EnrolError::Overloaded(
                    "an invitation of the peer is being used; remove it once more",
                ));
            }
            closed.push(name);
        }
        Ok(closed)
    }

    /// Removals counted so far. Peers that are forgotten take their number with them, so that tokens
    /// are asked as well: no number is given twice while a token remembers it.
    pub(super) async fn removals<E>(&self) -> Result<u64, E>
    where
        E: From<IdentityStoreError> + From<TokenStoreError>,
    {
        let (peers, tokens) = (self.peers.list().await?, self.tokens.list().await?);
        let peers = peers.iter().filter_map(|peer| peer.removal);
        let tokens = tokens.iter().filter_map(|token| token.removals);
        Ok(peers.chain(tokens).max().unwrap_or_default())
    }
}
