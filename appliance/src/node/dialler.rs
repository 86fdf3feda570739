//! How the node dials other nodes: with its key, and never to a key that the peer no longer has.

use std::collections::BTreeMap;
use std::sync::Arc;

use alknet_core::{Identities, IdentityProvider, PeerId, PeerKey};
use alknet_endpoint::EndpointDialer;
use alknet_tls::{KnownPeer, NodeKey};

/// The keys that the dialler knows.
type PeerKeyIndex = BTreeMap<PeerId, Vec<PeerKey>>;

/// Updates `dialer` after every change of the peers, so that a dial under way fails if the peer was
/// removed or has other keys. Never resolves while identities can change.
pub(crate) async fn follow(dialer: Arc<EndpointDialer>, identities: Arc<Identities>) {
    let mut changes = identities.watch();
    let mut known = PeerKeyIndex::new();
    loop {
        known = update(&dialer, known, &identities);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn update(dialer: &EndpointDialer, before: PeerKeyIndex, identities: &Identities) -> PeerKeyIndex {
    let peers = identities.entries().peers;
    let peers = peers.into_iter().filter(|peer| peer.enabled);
    let now: PeerKeyIndex = peers.map(|peer| (peer.peer_id, peer.keys)).collect();
    // The node must not dial the keys of a removed peer.
    for id in before.keys().filter(|id| !now.contains_key(*id)) {
        dialer.forget_peer(id);
    }
    let changed = now
        .iter()
        .filter(|(id, keys)| before.get(*id) != Some(*keys));
    for (id, keys) in changed {
        let peer = KnownPeer {
            id: id.clone(),
            keys: keys.clone(),
        };
        // A peer that only has tokens has no key to dial.
        if dialer.set_peer(&peer).is_err() {
            dialer.forget_peer(id);
        }
    }
    now
}

/// The node's own dialler. Without the configured certificate authorities, it reaches peers and no
/// public names.
pub(crate) fn make(key: &NodeKey, options: alknet_tls::ClientTlsOptions) -> Arc<EndpointDialer> {
    Arc::new(EndpointDialer::with_options(alknet_tls::ClientTlsOptions {
        key: Some(key.clone()),
        ..options
    }))
}

#[cfg(test)]
mod tests {
    use alknet_core::SystemClock;
    use alknet_core::config::NodeConfig;

    use super::*;

    fn entries(text: &str) -> alknet_core::IdentityEntries {
        let config = NodeConfig::parse(text.as_bytes());
        config.expect("a correct document").entries()
    }

    #[tokio::test]
    async fn the_dialler_learns_which_key_has_which_identity() {
        let [ours, theirs, other] = [1, 2, 3].map(|n| NodeKey::from_seed(&[n; 32]));
        let entry = |key: &NodeKey, rest: &str| {
            let key = key.public();
            entries(&format!(
                "[[peers]]\npeer_id = \"hub\"\nkeys = [\"{key}\"]\n{rest}"
            ))
        };
        let clock = Arc::new(SystemClock { built_s: 0 });
        let peers = Arc::new(Identities::new(entry(&theirs, ""), clock));
        let dialer = make(&ours, alknet_tls::ClientTlsOptions::default());
        let hub: PeerId = "hub".parse().expect("a peer id");
        let known = update(&dialer, PeerKeyIndex::new(), &peers);
        assert_eq!(known[&hub], [theirs.public()]);
        peers.replace_config(entry(&other, ""));
        let known = update(&dialer, known, &peers);
        assert_eq!(known[&hub], [other.public()]);
        peers.replace_config(entry(&other, "enabled = false\n"));
        assert!(update(&dialer, known, &peers).is_empty());
    }
}
