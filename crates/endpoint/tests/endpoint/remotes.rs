//! Every kind of remote, met by the right server and by wrong ones.

use std::sync::Arc;

use alknet_core::PeerKey;
use alknet_endpoint::{DialError, Dialer, Target};
use alknet_tls::{ClientTlsOptions, KnownPeer, NodeKey, PeerProof};
use rustls::sign::CertifiedKey;

use crate::authority::{Authority, Foreign, raw, wrapped};
use crate::support::{CARRIAGES, ECHO, Node, ask};

const SEED: [u8; 32] = [11; 32];

/// What becomes of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Connected.
    Reached,
    /// No certificate we trust for that name.
    Untrusted,
    /// Another key than the pinned one.
    Mismatch,
    /// Nothing to know it by.
    Unknown,
    /// The handshake failed in another way.
    Broken,
}

fn end(result: &Result<alknet_core::Connection, DialError>) -> End {
    match result {
        Ok(_) => End::Reached,
        Err(DialError::Certificate { .. }) => End::Untrusted,
        Err(DialError::PinMismatch(_)) => End::Mismatch,
        Err(DialError::UnknownPeer { .. }) => End::Unknown,
        Err(DialError::Tls { .. }) => End::Broken,
        Err(other) => panic!("{other}"),
    }
}

/// One server and how it shows its key.
struct Server {
    key: Arc<CertifiedKey>,
    raw: bool,
}

impl Server {
    fn certificate(&self) -> PeerKey {
        let proof = PeerProof::from_certificate(&self.key.cert[0]).expect("a key");
        proof.certificate.expect("a certificate")
    }
}

struct Row {
    what: &'static str,
    /// Keys of a peer entry.
    entry: Option<Vec<PeerKey>>,
    /// Keys in the address.
    pins: Vec<PeerKey>,
    host: &'static str,
    webpki_ip: bool,
    server: usize,
    end: End,
}

fn row(what: &'static str, server: usize, end: End) -> Row {
    Row {
        what,
        entry: None,
        pins: Vec::new(),
        host: "127.0.0.1",
        webpki_ip: false,
        server,
        end,
    }
}

const RAW: usize = 0;
const WRAPPED: usize = 1;
const STOLEN_RAW: usize = 2;
const PUBLIC: usize = 3;
const OTHER_PUBLIC: usize = 4;
const STOLEN_WRAPPED: usize = 5;

/// The table of docs/certificates.md, row by row, each with a server that fits and with servers
/// that do not.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let (wrapped_key, ed25519) = wrapped(SEED);
    let (public_key, spki) = authority.certified(&["localhost", "127.0.0.1"]);
    let (other_key, other_spki) = stranger.certified(&["localhost", "127.0.0.1"]);
    let stolen = CertifiedKey::new(
        wrapped_key.cert.clone(),
        Arc::clone(&raw(ed25519, [1; 32]).key),
    );
    let servers = [
        Server {
            key: raw(ed25519, SEED),
            raw: true,
        },
        Server {
            key: wrapped_key,
            raw: false,
        },
        Server {
            key: raw(ed25519, [1; 32]),
            raw: true,
        },
        Server {
            key: public_key,
            raw: false,
        },
        Server {
            key: other_key,
            raw: false,
        },
        Server {
            key: Arc::new(stolen),
            raw: false,
        },
    ];
    let certificate = servers[PUBLIC].certificate();
    let ours = NodeKey::from_seed(&[5; 32]).public();
    let entry = |row: Row, keys: &[PeerKey]| Row {
        entry: Some(keys.to_vec()),
        ..row
    };
    let pins = |row: Row, keys: &[PeerKey]| Row {
        pins: keys.to_vec(),
        ..row
    };
    let named = |row: Row| Row {
        host: "localhost",
        ..row
    };
    let by_ip = |row: Row| Row {
        webpki_ip: true,
        ..row
    };
    let rows = [
        // An entry with an Ed25519 key: raw, else the same key in a certificate.
        entry(row("peer, raw", RAW, End::Reached), &[ed25519]),
        entry(
            row("peer, fallback to X.509", WRAPPED, End::Reached),
            &[ed25519],
        ),
        entry(
            row("peer by name, fallback", WRAPPED, End::Reached),
            &[ed25519],
        ),
        entry(
            row("peer, one of several keys", WRAPPED, End::Reached),
            &[ours, ed25519, spki],
        ),
        entry(
            row("peer, spki among several", PUBLIC, End::Reached),
            &[ed25519, spki],
        ),
        entry(row("peer, another raw key", RAW, End::Mismatch), &[ours]),
        entry(
            row("peer, another key in X.509", WRAPPED, End::Mismatch),
            &[ours],
        ),
        entry(
            row("peer, stolen raw key", STOLEN_RAW, End::Broken),
            &[ed25519],
        ),
        entry(
            row("peer, stolen certificate", STOLEN_WRAPPED, End::Broken),
            &[ed25519],
        ),
        named(entry(
            row("peer, valid public certificate", PUBLIC, End::Mismatch),
            &[ed25519],
        )),
        // The keys of an entry count, not those of the address.
        pins(
            entry(row("entry before address", RAW, End::Mismatch), &[ours]),
            &[ed25519],
        ),
        entry(row("an entry without keys", RAW, End::Broken), &[]),
        // An entry with spki or SHA256 only: X.509, names and dates ignored.
        entry(row("peer, spki", PUBLIC, End::Reached), &[spki]),
        named(entry(
            row("peer by name, spki", PUBLIC, End::Reached),
            &[spki],
        )),
        entry(
            row("peer, certificate", PUBLIC, End::Reached),
            &[certificate],
        ),
        entry(
            row("peer, another spki", OTHER_PUBLIC, End::Mismatch),
            &[spki],
        ),
        entry(
            row("peer, another certificate", OTHER_PUBLIC, End::Mismatch),
            &[certificate],
        ),
        entry(
            row(
                "peer, spki unknown to authorities",
                OTHER_PUBLIC,
                End::Reached,
            ),
            &[other_spki],
        ),
        entry(
            row("peer, spki and a raw server", RAW, End::Broken),
            &[spki],
        ),
        // A key that the operator gave.
        pins(row("key, raw", RAW, End::Reached), &[ed25519]),
        pins(row("key, fallback", WRAPPED, End::Reached), &[ed25519]),
        pins(row("key, another", RAW, End::Mismatch), &[ours]),
        pins(row("key, stolen", STOLEN_RAW, End::Broken), &[ed25519]),
        named(pins(
            row("key, valid public certificate", PUBLIC, End::Mismatch),
            &[ed25519],
        )),
        // A name.
        named(row("name, trusted", PUBLIC, End::Reached)),
        named(row("name, another authority", OTHER_PUBLIC, End::Untrusted)),
        named(row("name, self-signed", WRAPPED, End::Untrusted)),
        named(row("name, raw server", RAW, End::Broken)),
        // An address.
        row("address", PUBLIC, End::Unknown),
        by_ip(row("address, expected", PUBLIC, End::Reached)),
        by_ip(row(
            "address, another authority",
            OTHER_PUBLIC,
            End::Untrusted,
        )),
        by_ip(row("address, self-signed", WRAPPED, End::Untrusted)),
    ];
    let mut wrong = Vec::new();
    for carriage in CARRIAGES {
        for row in &rows {
            let server = &servers[row.server];
            let foreign = Foreign::start(Arc::clone(&server.key), server.raw).await;
            let dialer = Dialer::with_options(ClientTlsOptions {
                key: None,
                roots: authority.roots(),
                webpki_ip: row.webpki_ip,
                present_key_to_public: false,
            });
            let address = format!("{}:{}", row.host, foreign.port(carriage));
            let target: Target = address.parse().expect("a target");
            let target = target.with_pins(row.pins.iter().copied());
            let dialled = match &row.entry {
                None => dialer.dial_over(carriage, &target, ECHO).await,
                Some(keys) => {
                    let peer = KnownPeer {
                        id: "hub".parse().expect("a peer id"),
                        keys: keys.clone(),
                    };
                    match dialer.dial_peer(carriage, &peer, &target, ECHO).await {
                        Err(DialError::TlsSetup(_)) if keys.is_empty() => continue,
                        result => result,
                    }
                }
            };
            if end(&dialled) != row.end {
                let (what, expected) = (row.what, row.end);
                wrong.push(format!("{carriage}, {what}: {expected:?}, got {dialled:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

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
