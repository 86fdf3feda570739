//! What remotes are shown, and what a changed entry does.

use std::sync::Arc;

use alknet_core::PeerKey;
use alknet_endpoint::{DialError, Dialer, Target};
use alknet_tls::{ClientTlsOptions, KnownPeer, NodeKey};

use crate::authority::{Authority, Foreign};
use crate::support::{CARRIAGES, ECHO, Node, ask};

/// Peers are shown our key in the form they take; public servers are not, unless that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_shown_our_key() {
    let authority = Authority::new();
    let (public_key, spki) = authority.certified(&["localhost"]);
    let own = NodeKey::from_seed(&[6; 32]);
    for carriage in CARRIAGES {
        let foreign = Foreign::start(Arc::clone(&public_key), false).await;
        let target: Target = format!("localhost:{}", foreign.port(carriage))
            .parse()
            .expect("a target");
        for (pins, present, expected) in [
            (vec![spki], false, own.public().to_string()),
            (vec![], false, "nobody".to_owned()),
            (vec![], true, own.public().to_string()),
        ] {
            let dialer = Dialer::with_options(ClientTlsOptions {
                key: Some(own.clone()),
                roots: authority.roots(),
                webpki_ip: false,
                present_key_to_public: present,
            });
            let target = target.clone().with_pins(pins);
            let connection = dialer.dial_over(carriage, &target, ECHO).await;
            let answer = ask(&connection.expect("dial"), b"?").await;
            assert_eq!(answer.expect("an answer"), expected, "{carriage} {present}");
        }
    }
}

/// A ticket from the time of the old keys opens nothing once the entry has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_entry_counts_at_once() {
    let node = Node::start();
    let (dialer, _) = node.peer("friend");
    let peer = |keys: &[PeerKey]| KnownPeer {
        id: "hub".parse().expect("a peer id"),
        keys: keys.to_vec(),
    };
    let (before, other) = (peer(&[node.key.public()]), NodeKey::from_seed(&[8; 32]));
    let after = peer(&[other.public()]);
    for carriage in CARRIAGES {
        for _ in 0..2 {
            let connection = dialer
                .dial_peer(carriage, &before, &node.target(), ECHO)
                .await
                .expect("dial");
            assert_eq!(ask(&connection, b"x").await.expect("echo"), "x");
        }
        let refused = dialer
            .dial_peer(carriage, &after, &node.target(), ECHO)
            .await;
        match refused {
            Err(DialError::PinMismatch(mismatch)) => {
                assert_eq!(mismatch.expected, [other.public()]);
                assert_eq!(mismatch.got, node.key.public());
            }
            other => panic!("{other:?}"),
        }
        dialer.set_peer(&before).expect("an entry with a key");
        dialer
            .dial_peer(carriage, &before, &node.target(), ECHO)
            .await
            .expect("dial");
        dialer.forget_peer(&before.id);
    }
    assert!(dialer.set_peer(&peer(&[])).is_err());
}
