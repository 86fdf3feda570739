//! Whether the maker of an invitation still has what the invitation gives.

use std::sync::Arc;

use alknet_core::config::is_admin_id;
use alknet_core::{Identity, PeerEntry, PeerKey};

use crate::names::EnrolRole;

use super::{EnrolmentService, ROLE_LABEL};

/// The scope whose holders may change every peer.
const ADMIN_SCOPE: &str = "admin";

/// Whether `maker`, of an invitation or an approval, may change a peer of the store by it. An administrator may change
/// every peer, and another one only those that enrolled and may do no more than itself, or could do no more when they
/// were put out.
pub(super) fn may_change(maker: &Identity, peer: &PeerEntry) -> bool {
    let enrolled = peer.labels.contains_key(ROLE_LABEL);
    maker.scopes.allows(ADMIN_SCOPE) || (enrolled && peer.is_covered_by(&maker.scopes))
}

impl EnrolmentService {
    /// The maker of an invitation, if it is let in, is the one that made it, and holds everything that it gives. The
    /// key is one that the maker had then; `all` are the peers of the store.
    pub(super) fn giver(
        &self,
        made_by: &str,
        key: Option<&PeerKey>,
        role: &EnrolRole,
        all: &[PeerEntry],
    ) -> Option<Arc<Identity>> {
        let maker = match key {
            // Administrators are named by their place in the configuration, which another one has once they are gone.
            Some(key) if is_admin_id(made_by) => self.peers.by_key(key),
            _ => self.peers.by_id_text(made_by),
        };
        // A peer of the configuration may be taken out, and another one added under its name.
        let is_same = |maker: &Identity| key.is_none_or(|key| self.had_key(maker, key, all));
        maker.filter(|maker| is_same(maker) && maker.scopes.covers(&role.scopes))
    }

    /// Whether a key is, or was, one of an identity. The store knows the keys that a peer replaced.
    fn had_key(&self, who: &Identity, key: &PeerKey, all: &[PeerEntry]) -> bool {
        let holder = self.peers.by_key(key);
        holder.is_some_and(|holder| holder.id == who.id)
            || all
                .iter()
                .any(|peer| peer.peer_id == who.id && peer.keys.contains(key))
    }
}
