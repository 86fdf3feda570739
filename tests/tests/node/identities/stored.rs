//! Peers that are written while the node runs.

use alknet_core::{
    Carriage, IdentityEntries, IdentityProvider, IdentityStore, PeerEntry, PeerId, PeerPatch,
};
use alknet_endpoint::EndpointLimits;
use alknet_tls::NodeKey;
use tokio::time::timeout;

use super::lab::{IdentityLab, TestIdentity, document, hung};

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];

fn id(text: &str) -> PeerId {
    text.parse().expect("a peer id")
}

fn entry(name: &str, key: &NodeKey) -> PeerEntry {
    PeerEntry {
        keys: vec![key.public()],
        scopes: ["work"].into_iter().collect(),
        ..PeerEntry::new(id(name))
    }
}

/// The test does not call the sweep, because the change itself must reach the open connections.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_reaches_connections_that_live() {
    for carriage in CARRIAGES {
        let lab = IdentityLab::start("", EndpointLimits::default());
        let (old, new) = (NodeKey::generate(), NodeKey::generate());
        let (old, new) = (old.expect("a key"), new.expect("a key"));
        let stays = TestIdentity::new("stays");
        for peer in [entry("edge", &old), entry("stays", &stays.key)] {
            lab.identities.put(peer).await.expect("a new peer");
        }
        let other = lab.connect(&stays.key, carriage).await;
        let first = lab.connect(&old, carriage).await;
        assert_eq!(first.work().await.expect("allowed").value(), "edge");

        let rotate = lab
            .identities
            .rotate(id("edge"), old.public(), new.public());
        assert!(rotate.await.expect("a rotation").is_some());
        let second = lab.connect(&new, carriage).await;
        for client in [&first, &second] {
            assert_eq!(client.work().await.expect("allowed").value(), "edge");
        }

        let mut generation = lab.identities.watch();
        let narrower = PeerPatch {
            scopes: Some(Default::default()),
            ..PeerPatch::default()
        };
        generation.borrow_and_update();
        lab.identities
            .patch(id("edge"), narrower)
            .await
            .expect("a peer");
        assert!(generation.has_changed().expect("it lives"));
        let narrowed = async { while first.work().await.is_ok() {} };
        timeout(hung(), narrowed).await.expect("it is narrowed");
        let code = second.work().await.expect_err("narrower").code;
        assert_eq!(code.name(), "FORBIDDEN");

        // Both keys are removed with the peer.
        assert_eq!(lab.identities.remove(id("edge")).await, Ok(true));
        for client in [&first, &second] {
            let expected = (carriage == Carriage::Quic).then_some(1);
            assert_eq!(client.code().await, expected);
        }
        other.work().await.expect("nothing happened to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_hides_what_the_store_has_and_says_so() {
    let edge = TestIdentity::new("edge");
    let lab = IdentityLab::start("", EndpointLimits::default());
    lab.identities
        .put(entry("stored", &edge.key))
        .await
        .expect("a new peer");
    let mine = lab.connect(&edge.key, Carriage::Quic).await;
    assert_eq!(mine.work().await.expect("allowed").value(), "stored");
    // The same key under another name: the node closes the connection, because its peer now has
    // another identity.
    let applied = lab.apply(&document(std::slice::from_ref(&edge)));
    assert_eq!(applied.warnings.len(), 1, "{applied:?}");
    assert_eq!(applied.warnings[0].id, "stored");
    assert_eq!(mine.code().await, Some(1));
    let again = lab.connect(&edge.key, Carriage::Quic).await;
    assert_eq!(again.work().await.expect("allowed").value(), "edge");
    assert!(
        lab.identities
            .hidden_by(&IdentityEntries::default())
            .is_empty()
    );
}
