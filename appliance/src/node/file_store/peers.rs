//! The peers from which the node fetches contents of files by their hash, and with which it synchronises their names.

use std::sync::Arc;

use alknet_core::clock::is_expired;
use alknet_core::{
    BoxError, BoxFuture, Carriage, Connection, DialError, DialErrorKind, Identities, Identity,
    IdentityProvider, PeerEntry, PeerId,
};
use alknet_endpoint::EndpointDialer;
use alknet_fs::sync::{SYNC_ALPN, SyncDialer};
use alknet_fs::{BLOBS_ALPN, BlobPeers, FsRight};
use alknet_store::BucketName;
use alknet_tls::KnownPeer;

/// The peers of the node whose addresses and keys it knows, dialled with the node's own key.
#[derive(Debug)]
pub(crate) struct ContentPeers {
    identities: Arc<Identities>,
    dialer: Arc<EndpointDialer>,
}

impl ContentPeers {
    pub(crate) fn new(identities: &Arc<Identities>, dialer: &Arc<EndpointDialer>) -> Self {
        Self {
            identities: Arc::clone(identities),
            dialer: Arc::clone(dialer),
        }
    }

    /// The peers that may be dialled now, each with the keys that it has now.
    fn dialable(&self) -> impl Iterator<Item = PeerEntry> {
        let now_s = self.identities.now_s();
        let peers = self.identities.entries().peers.into_iter();
        peers.filter_map(move |mut peer| {
            // The holder of a key that another one replaced may be any machine once the key has ended.
            let ends = std::mem::take(&mut peer.key_ends);
            peer.keys
                .retain(|key| !is_expired(ends.get(key).copied(), now_s));
            let is_known = peer.enabled && !is_expired(peer.expires, now_s);
            (is_known && !peer.keys.is_empty() && !peer.addresses.is_empty()).then_some(peer)
        })
    }

    /// Connects to a peer, only if it proves one of its keys.
    async fn dial_over(
        &self,
        carriage: Carriage,
        peer: &PeerId,
        alpn: &[u8],
    ) -> Result<Connection, DialError> {
        let entry = self.dialable().find(|entry| entry.peer_id == *peer);
        let Some(entry) = entry else {
            let text = "the node knows no address and key of such a peer";
            return Err(DialError::new(DialErrorKind::UnknownPeer, text));
        };
        let known = KnownPeer {
            id: entry.peer_id,
            keys: entry.keys,
        };
        let mut failure = DialError::new(DialErrorKind::UnknownPeer, "no address");
        // One after the other, within the time that the caller gives to all of them.
        for address in &entry.addresses {
            match self.dialer.dial_peer(carriage, &known, address, alpn).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

impl BlobPeers for ContentPeers {
    fn known(&self) -> Vec<PeerId> {
        self.dialable().map(|peer| peer.peer_id).collect()
    }

    fn synced(&self, bucket: &BucketName) -> Vec<PeerId> {
        let may_sync = |peer: &PeerEntry| FsRight::Sync.is_allowed(&peer.scopes, bucket);
        let peers = self.dialable().filter(may_sync);
        peers.map(|peer| peer.peer_id).collect()
    }

    fn connect<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, DialError>> {
        Box::pin(self.dial_over(Carriage::Quic, peer, BLOBS_ALPN))
    }
}

impl SyncDialer for ContentPeers {
    fn peers(&self) -> Vec<PeerId> {
        self.known()
    }

    fn identity(&self, peer: &PeerId) -> Option<Arc<Identity>> {
        self.identities.by_id(peer)
    }

    fn dial<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, BoxError>> {
        Box::pin(async move {
            // Over TCP as well: a session needs one stream.
            let dialled = self.dial_over(Carriage::Both, peer, SYNC_ALPN).await;
            dialled.map_err(BoxError::from)
        })
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::config::NodeConfig;
    use alknet_core::{Clock, IdentityEntries, PeerKey};

    use super::*;

    const NOW_S: u64 = 1_900_000_000;

    #[derive(Debug)]
    struct StoppedTestClock;

    impl Clock for StoppedTestClock {
        fn now_s(&self) -> Option<u64> {
            Some(NOW_S)
        }
    }

    fn entries() -> IdentityEntries {
        let [a, b, c, d] = [1, 2, 3, 4].map(|n| PeerKey::Ed25519([n; 32]));
        let text = format!(
            "[[peers]]\npeer_id = \"dialled\"\nkeys = [\"{a}\"]\naddresses = [\"127.0.0.1:9\"]\n\
             [[peers]]\npeer_id = \"no-address\"\nkeys = [\"{b}\"]\n\
             [[peers]]\npeer_id = \"disabled\"\nkeys = [\"{c}\"]\naddresses = [\"127.0.0.1:9\"]\nenabled = false\n\
             [[peers]]\npeer_id = \"expired\"\nkeys = [\"{d}\"]\naddresses = [\"127.0.0.1:9\"]\n"
        );
        let config = NodeConfig::parse(text.as_bytes()).expect("a correct document");
        let mut entries = config.entries();
        let expired = entries
            .peers
            .iter_mut()
            .find(|it| it.peer_id.as_str() == "expired");
        expired.expect("it is there").expires = Some(NOW_S);
        entries
    }

    fn peers(entries: IdentityEntries) -> ContentPeers {
        let identities = Arc::new(Identities::new(entries, Arc::new(StoppedTestClock)));
        ContentPeers::new(&identities, &Arc::new(EndpointDialer::new(None)))
    }

    #[test]
    fn only_peers_with_a_key_and_an_address_are_dialled() {
        let known = peers(entries()).known();
        let known: Vec<_> = known.iter().map(PeerId::as_str).collect();
        assert_eq!(known, ["dialled"]);
    }

    #[test]
    fn a_key_that_has_ended_is_not_dialled() {
        let mut entries = entries();
        let peer = &mut entries.peers[0];
        let (old, new) = (peer.keys[0], PeerKey::Ed25519([9; 32]));
        peer.keys.push(new);
        peer.key_ends = [(old, NOW_S)].into();
        let dialable: Vec<_> = peers(entries.clone()).dialable().collect();
        assert_eq!(dialable[0].keys, [new]);
        entries.peers[0].keys = vec![old];
        assert!(peers(entries).known().is_empty());
    }

    #[test]
    fn only_peers_that_may_synchronise_a_bucket_are_asked_for_its_contents() {
        let synced = |scopes: &[&str]| {
            let mut entries = entries();
            entries.peers[0].scopes = scopes.iter().collect();
            let bucket = "docs".parse().expect("a name");
            peers(entries).synced(&bucket).len()
        };
        assert_eq!(synced(&["fs:sync:docs"]), 1);
        assert_eq!(synced(&["fs:sync:*"]), 1);
        assert_eq!(synced(&["fs:read:docs", "fs:sync:other"]), 0);
    }

    #[test]
    fn a_peer_has_the_scopes_of_its_entry() {
        let mut entries = entries();
        entries.peers[0].scopes = ["fs:sync:docs"].iter().collect();
        let peers = peers(entries);
        let dialled = &SyncDialer::peers(&peers)[0];
        let identity = SyncDialer::identity(&peers, dialled).expect("known");
        assert!(identity.scopes.allows("fs:sync:docs"));
        assert!(!identity.scopes.allows("fs:sync:other"));
        let disabled = "disabled".parse().expect("a peer id");
        assert!(SyncDialer::identity(&peers, &disabled).is_none());
    }

    #[tokio::test]
    async fn a_peer_without_an_address_is_not_reached() {
        let peers = peers(entries());
        for name in ["no-address", "disabled", "expired", "missing"] {
            let peer = name.parse().expect("a peer id");
            let error = peers.connect(&peer).await.expect_err(name);
            assert_eq!(error.kind, DialErrorKind::UnknownPeer, "{name}");
        }
    }
}
