//! Changing a peer, and putting it out so that it does not let itself in again.

use alknet_core::{
    IdentityStore, IdentityStoreError, KeyId, PeerEntry, PeerId, PeerKey, PeerPatch, ScopeSet,
};

use crate::record::TokenRecord;
use crate::store::{TokenStore, TokenStoreError};

use super::{EnrolError, EnrolmentService, ROLE_LABEL};

impl EnrolmentService {
    /// Takes everything from a peer but its id and its keys, by which it stays known as one that is
    /// not let in, also by an invitation made before. Those that it joined by, and those that it made, take
    /// in no further key; returns their names.
    ///
    /// # Errors
    /// There is no such peer, or it is one of the configuration, or the stores fail.
    pub async fn remove(&self, peer: &PeerId) -> Result<Vec<KeyId>, EnrolError> {
        self.shut_out(peer, tombstone()).await
    }

    /// Removes a peer as [`remove`](Self::remove) does, and closes every other invitation made before for which
    /// `may_close` holds, for one key or for several: the peer may have the join string of one that it never used, and
    /// makes another key in no time. May be called again for a peer that is removed already. Returns the names of all
    /// that it closed.
    ///
    /// # Errors
    /// The errors of [`remove`](Self::remove).
    pub async fn remove_and_close(
        &self,
        peer: &PeerId,
        may_close: impl Fn(&TokenRecord) -> bool,
    ) -> Result<Vec<KeyId>, EnrolError> {
        let _turn = self.turn.lock().await;
        let mut closed = shut_out(&*self.tokens, &*self.peers, peer, tombstone()).await?;
        let is_meant = |record: &TokenRecord| record.admits_more() && may_close(record);
        closed.extend(close_where(&*self.tokens, is_meant).await?);
        Ok(closed)
    }

    /// Changes a peer in turn with the other decisions: an enrolment that is under way, and has looked at the peer
    /// already, does not write back what this takes away; see [`change_peer`].
    ///
    /// # Errors
    /// The errors of [`remove`](Self::remove).
    pub async fn change(&self, peer: &PeerId, change: PeerPatch) -> Result<Vec<KeyId>, EnrolError> {
        let _turn = self.turn.lock().await;
        change_peer(&*self.tokens, &*self.peers, peer, change).await
    }

    /// Changes a peer, and lets it in no more; see [`shut_out`].
    ///
    /// # Errors
    /// The errors of [`remove`](Self::remove).
    pub async fn shut_out(
        &self,
        peer: &PeerId,
        change: PeerPatch,
    ) -> Result<Vec<KeyId>, EnrolError> {
        let _turn = self.turn.lock().await;
        shut_out(&*self.tokens, &*self.peers, peer, change).await
    }

    /// Removals counted so far.
    pub(super) async fn removals<E>(&self) -> Result<u64, E>
    where
        E: From<IdentityStoreError> + From<TokenStoreError>,
    {
        removals(&*self.tokens, &*self.peers).await
    }
}

/// Changes a peer, and lets it in no more, also by an invitation made before: those that it joined by, and those that
/// it made, take in no further key. Returns their names. On a node that is a hub,
/// [`EnrolmentService::shut_out`] does it in turn with the other decisions.
///
/// # Errors
/// There is no such peer, or it is one of the configuration, or the stores fail.
pub async fn shut_out(
    tokens: &dyn TokenStore,
    peers: &dyn IdentityStore,
    peer: &PeerId,
    change: PeerPatch,
) -> Result<Vec<KeyId>, EnrolError> {
    let number = removals::<EnrolError>(tokens, peers).await?;
    let change = PeerPatch {
        enabled: Some(false),
        removal: Some(number.saturating_add(1)),
        ..change
    };
    peers.patch(peer.clone(), change).await?;
    close_invitations(tokens, peer).await
}

/// Changes a peer that stays let in, or comes back. If the change takes scopes or time from it, or keys from a peer that
/// has an invitation, no invitation made before gives them back: the change counts as a removal does, and closes the same
/// invitations. Returns their names. On a node that is a hub, [`EnrolmentService::change`] does it in turn with the other
/// decisions.
///
/// # Errors
/// There is no such peer, or it is one of the configuration, or the stores fail.
pub async fn change_peer(
    tokens: &dyn TokenStore,
    peers: &dyn IdentityStore,
    peer: &PeerId,
    mut change: PeerPatch,
) -> Result<Vec<KeyId>, EnrolError> {
    let all = peers.list().await?;
    let before = all.iter().find(|entry| entry.peer_id == *peer);
    let takes = match before {
        Some(before) if takes_keys(before, &change) => {
            // The keys of other peers have nothing to do with invitations.
            takes_rights(before, &change) || has_invitation(tokens, before).await?
        }
        Some(before) => takes_rights(before, &change),
        None => false,
    };
    if !takes {
        peers.patch(peer.clone(), change).await?;
        return Ok(Vec::new());
    }
    let number = removals::<EnrolError>(tokens, peers).await?;
    change.removal = Some(number.saturating_add(1));
    peers.patch(peer.clone(), change).await?;
    // The peer, or who found the key that it lost, has their text, and would get the scopes of the role under another
    // key.
    close_invitations(tokens, peer).await
}

/// Whether a peer has the text of an invitation, as far as the hub knows: it enrolled, or it joined by an invitation that
/// is kept, or it made one.
///
/// # Errors
/// The store fails.
pub async fn has_invitation(tokens: &dyn TokenStore, peer: &PeerEntry) -> Result<bool, EnrolError> {
    // The hub forgets invitations that are over, and keeps the label.
    if peer.labels.contains_key(ROLE_LABEL) {
        return Ok(true);
    }
    let all = tokens.list().await?;
    Ok(all.iter().any(|record| record.is_of(&peer.peer_id)))
}

/// Whether a change takes a scope from a peer, or ends it sooner.
fn takes_rights(before: &PeerEntry, change: &PeerPatch) -> bool {
    let scopes = change.scopes.as_ref();
    let ends_sooner = match (change.expires, before.expires) {
        (Some(Some(end)), Some(was)) => end < was,
        (Some(Some(_)), None) => true,
        _ => false,
    };
    ends_sooner || scopes.is_some_and(|after| !after.covers(&before.scopes))
}

/// Whether a change takes from a peer a key that counted until then.
fn takes_keys(before: &PeerEntry, change: &PeerPatch) -> bool {
    let after = before.clone().patched(change.clone());
    let is_lost = |key: &PeerKey| {
        let ends_sooner = match (after.key_ends.get(key), before.key_ends.get(key)) {
            (Some(end), Some(was)) => end < was,
            (end, _) => end.is_some(),
        };
        !after.keys.contains(key) || ends_sooner
    };
    before.keys.iter().any(is_lost)
}

/// What a removed peer keeps: its id and its keys. Its entry says which scopes it lost.
fn tombstone() -> PeerPatch {
    PeerPatch {
        scopes: Some(ScopeSet::default()),
        display_name: Some(None),
        ..PeerPatch::default()
    }
}

/// Closes the invitations that a peer joined by or made; returns their names.
async fn close_invitations(
    tokens: &dyn TokenStore,
    peer: &PeerId,
) -> Result<Vec<KeyId>, EnrolError> {
    close_where(tokens, |record| record.is_of(peer)).await
}

/// Closes the invitations for which `is_meant` holds; returns their names.
async fn close_where(
    tokens: &dyn TokenStore,
    is_meant: impl Fn(&TokenRecord) -> bool,
) -> Result<Vec<KeyId>, EnrolError> {
    let mut closed = Vec::new();
    for mut record in tokens.list().await? {
        if record.closed || !is_meant(&record) {
            continue;
        }
        record.closed = true;
        let name = record.hash.key_id;
        if !tokens.replace(record).await? {
            return Err(EnrolError::Overloaded(
                "an invitation to close is being used; repeat the command with the peer's id",
            ));
        }
        closed.push(name);
    }
    Ok(closed)
}

/// Removals counted so far. Peers that are forgotten take their number with them, so that tokens
/// are asked as well: no number is given twice while a token remembers it.
async fn removals<E>(tokens: &dyn TokenStore, peers: &dyn IdentityStore) -> Result<u64, E>
where
    E: From<IdentityStoreError> + From<TokenStoreError>,
{
    let (peers, tokens) = (peers.list().await?, tokens.list().await?);
    let peers = peers.iter().filter_map(|peer| peer.removal);
    let tokens = tokens.iter().filter_map(|token| token.removals);
    Ok(peers.chain(tokens).max().unwrap_or_default())
}
