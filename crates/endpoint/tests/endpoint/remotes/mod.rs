//! The server that this node dials × its proof × its carriage: the specification, row by row, and every cell of it
//! against a real server. Clients that dial this node are in `roles`.

mod servers;

use std::fmt;
use std::sync::Arc;

use alknet_core::PeerKey;
use alknet_endpoint::{EndpointDialError, EndpointDialer, Target};
use alknet_tls::{ClientTlsOptions, KnownPeer, NodeKey};
use rcgen::PublicKeyData;

use servers::{PresentedKey, RemoteTestKeys, RemoteTestServer, SEED};

use crate::authority::{EndpointTestCa, ForeignServer};
use crate::roles::role_matrix::{RoleMatrix, TransportColumn};
use crate::support::{CARRIAGES, ECHO, EndpointTestNode, ask};

/// The outcome of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DialOutcome {
    /// The connection stands.
    Reached,
    /// No certificate for that name that the client trusts.
    Untrusted,
    /// Another key than the pinned one.
    Mismatch,
    /// Nothing to identify it by.
    Unknown,
    /// The handshake failed in another way.
    Broken,
}

impl fmt::Display for DialOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reached => "reached",
            Self::Untrusted => "not trusted",
            Self::Mismatch => "another key",
            Self::Unknown => "not dialled",
            Self::Broken => "no handshake",
        })
    }
}

fn end(result: &Result<alknet_core::Connection, EndpointDialError>) -> DialOutcome {
    match result {
        Ok(_) => DialOutcome::Reached,
        Err(EndpointDialError::Certificate { .. }) => DialOutcome::Untrusted,
        Err(EndpointDialError::OtherKey { .. } | EndpointDialError::PinMismatch(_)) => {
            DialOutcome::Mismatch
        }
        Err(EndpointDialError::UnknownPeer { .. }) => DialOutcome::Unknown,
        Err(EndpointDialError::Tls { .. }) => DialOutcome::Broken,
        Err(other) => panic!("{other}"),
    }
}

#[derive(Clone, Debug)]
struct RemoteCase {
    role: &'static str,
    what: &'static str,
    /// Keys of a peer entry.
    entry: Option<Vec<PeerKey>>,
    /// Keys in the address.
    pins: Vec<PeerKey>,
    host: &'static str,
    webpki_ip: bool,
    server: PresentedKey,
    end: DialOutcome,
}

impl RemoteCase {
    /// The required outcome of the dial over `column`. Iroh knows servers by `ed25519:` keys only, and only those
    /// that show them raw.
    fn over(&self, column: TransportColumn) -> DialOutcome {
        if column != TransportColumn::Iroh {
            return self.end;
        }
        let keys = self.entry.as_ref().unwrap_or(&self.pins);
        let known = keys.iter().any(|key| matches!(key, PeerKey::Ed25519(_)));
        let right = keys.contains(&NodeKey::from_seed(&SEED).public());
        match self.server {
            _ if !known => DialOutcome::Unknown,
            PresentedKey::Raw if right => DialOutcome::Reached,
            PresentedKey::Raw => DialOutcome::Mismatch,
            _ => DialOutcome::Broken,
        }
    }
}

fn row(
    role: &'static str,
    what: &'static str,
    server: PresentedKey,
    end: DialOutcome,
) -> RemoteCase {
    RemoteCase {
        role,
        what,
        entry: None,
        pins: Vec::new(),
        host: "127.0.0.1",
        webpki_ip: false,
        server,
        end,
    }
}

const PEER: &str = "peer";
const KEY: &str = "key in the address";
const NAME: &str = "public name";
const ADDRESS: &str = "address";

/// The table of docs/certificates.md, each of its rows with servers that match and servers that do not.
fn rows(cast: &RemoteTestKeys) -> Vec<RemoteCase> {
    use DialOutcome::{Broken, Mismatch, Reached, Unknown, Untrusted};
    use PresentedKey::{
        Expired, NotYetValid, OtherAuthority, OtherName, Public, Raw, StolenRaw, StolenWrapped,
        Wrapped,
    };
    let ed25519 = NodeKey::from_seed(&SEED).public();
    let next = NodeKey::from_seed(&[5; 32]).public();
    let spki = PeerKey::from_spki(&cast.ec.subject_public_key_info());
    let other_spki = PeerKey::from_spki(&cast.other_ec.subject_public_key_info());
    let public = cast.server(Public);
    let certificate = public.certificate();
    let entry = |what, keys: &[PeerKey], server, end| RemoteCase {
        entry: Some(keys.to_vec()),
        ..row(PEER, what, server, end)
    };
    let pin = |what, server, end| RemoteCase {
        pins: vec![ed25519],
        ..row(KEY, what, server, end)
    };
    let named = |row: RemoteCase| RemoteCase {
        host: "localhost",
        ..row
    };
    let name = |what, server, end| named(row(NAME, what, server, end));
    let by_ip = |what, server, end| RemoteCase {
        webpki_ip: true,
        ..row(ADDRESS, what, server, end)
    };
    vec![
        // An entry with an Ed25519 key: raw, else the same key in a certificate.
        entry("raw key, known", &[ed25519], Raw, Reached),
        entry(
            "X.509 with the known key, expired",
            &[ed25519],
            Wrapped,
            Reached,
        ),
        named(entry(
            "the same, dialled by a name it is not for",
            &[ed25519],
            Wrapped,
            Reached,
        )),
        entry(
            "raw key, rotating: the old one",
            &[ed25519, next],
            Raw,
            Reached,
        ),
        entry(
            "X.509, one of several keys",
            &[next, ed25519, spki],
            Wrapped,
            Reached,
        ),
        entry(
            "X.509, known by `spki:` beside a raw key",
            &[ed25519, spki],
            Public,
            Reached,
        ),
        entry("raw key, rotated away", &[next], Raw, Mismatch),
        entry(
            "X.509 with the key, rotated away",
            &[next],
            Wrapped,
            Mismatch,
        ),
        row(
            PEER,
            "raw key, revoked: no entry, dialled by address",
            Raw,
            Unknown,
        ),
        named(row(
            PEER,
            "raw key, revoked: no entry, dialled by name",
            Raw,
            Broken,
        )),
        named(row(
            PEER,
            "X.509, revoked: no entry, dialled by name",
            Wrapped,
            Untrusted,
        )),
        entry(
            "raw key, without the private key",
            &[ed25519],
            StolenRaw,
            Broken,
        ),
        entry(
            "X.509, without the private key",
            &[ed25519],
            StolenWrapped,
            Broken,
        ),
        named(entry(
            "valid public certificate for its name",
            &[ed25519],
            Public,
            Mismatch,
        )),
        RemoteCase {
            pins: vec![ed25519],
            ..entry(
                "raw key that the address names and the entry does not",
                &[next],
                Raw,
                Mismatch,
            )
        },
        // An entry with spki or SHA256 only: X.509, names and dates ignored.
        entry("X.509, known by `spki:`", &[spki], Public, Reached),
        named(entry(
            "X.509, known by `spki:`, dialled by name",
            &[spki],
            Public,
            Reached,
        )),
        entry(
            "X.509, known by `spki:`, expired",
            &[spki],
            Expired,
            Reached,
        ),
        entry(
            "X.509, known by `spki:`, not yet valid",
            &[spki],
            NotYetValid,
            Reached,
        ),
        entry(
            "X.509, known by `spki:`, another name",
            &[spki],
            OtherName,
            Reached,
        ),
        entry(
            "X.509, known by `spki:`, unknown authority",
            &[other_spki],
            OtherAuthority,
            Reached,
        ),
        entry("X.509, known by `SHA256:`", &[certificate], Public, Reached),
        entry(
            "X.509, known by `SHA256:`, renewed",
            &[certificate],
            Expired,
            Mismatch,
        ),
        entry("X.509, another `spki:`", &[spki], OtherAuthority, Mismatch),
        entry(
            "X.509, another `SHA256:`",
            &[certificate],
            OtherAuthority,
            Mismatch,
        ),
        entry(
            "raw key, where the entry has an `spki:` only",
            &[spki],
            Raw,
            Broken,
        ),
        // A key that the operator gave.
        pin("raw key", Raw, Reached),
        pin("X.509 with that key", Wrapped, Reached),
        RemoteCase {
            pins: vec![next],
            ..pin("another raw key", Raw, Mismatch)
        },
        pin("raw key, without the private key", StolenRaw, Broken),
        named(pin(
            "valid public certificate for its name",
            Public,
            Mismatch,
        )),
        // A name.
        name("X.509, good", Public, Reached),
        name("X.509, expired", Expired, Untrusted),
        name("X.509, not yet valid", NotYetValid, Untrusted),
        name("X.509, wrong name", OtherName, Untrusted),
        name("X.509, unknown authority", OtherAuthority, Untrusted),
        name("X.509, self-signed", Wrapped, Untrusted),
        name("raw key", Raw, Broken),
        // An address.
        row(ADDRESS, "X.509, good", Public, Unknown),
        by_ip("X.509, good, `tls.webpki_ip = true`", Public, Reached),
        by_ip("X.509, expired, `tls.webpki_ip = true`", Expired, Untrusted),
        by_ip(
            "X.509, unknown authority, `tls.webpki_ip = true`",
            OtherAuthority,
            Untrusted,
        ),
        by_ip(
            "X.509, self-signed, `tls.webpki_ip = true`",
            Wrapped,
            Untrusted,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn dialled_peers() {
    let cast = RemoteTestKeys::new();
    let mut head = vec!["server".to_owned(), "proof".to_owned()];
    head.extend(TransportColumn::ALL.map(|column| column.name().to_owned()));
    let mut sheet = RoleMatrix::new(&head);
    for row in rows(&cast) {
        sheet.row(row.role, row.what);
        for column in TransportColumn::ALL {
            let dialled = dial(&cast, &row, column).await;
            sheet.cell(&row.over(column), &end(&dialled));
        }
        sheet.end_row();
    }
    sheet.check();
}

async fn dial(
    cast: &RemoteTestKeys,
    row: &RemoteCase,
    column: TransportColumn,
) -> Result<alknet_core::Connection, EndpointDialError> {
    let server = RemoteTestServer::start(cast, row.server, column).await;
    let dialer = EndpointDialer::with_options(ClientTlsOptions {
        key: None,
        roots: cast.authority.roots(),
        webpki_ip: row.webpki_ip,
        present_key_to_public: false,
    });
    let carriage = column.carriage();
    let address = format!("{}:{}", row.host, server.port(carriage));
    let target: Target = address.parse().expect("a target");
    let target = target.with_pins(row.pins.iter().copied());
    let dialled = match &row.entry {
        None => dialer.dial_over(carriage, &target, ECHO).await,
        Some(keys) => {
            let peer = known(keys);
            dialer.dial_peer(carriage, &peer, &target, ECHO).await
        }
    };
    dialer.close().await;
    if let RemoteTestServer::Iroh(endpoint) = server {
        endpoint.close().await;
    }
    dialled
}

fn known(keys: &[PeerKey]) -> KnownPeer {
    KnownPeer {
        id: "hub".parse().expect("a peer id"),
        keys: keys.to_vec(),
    }
}

/// An entry without a key matches no server, and is not mistaken for a public one.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_without_keys_is_not_dialled() {
    let node = EndpointTestNode::start();
    for carriage in CARRIAGES {
        let refused = EndpointDialer::new(None)
            .dial_peer(carriage, &known(&[]), &node.target(), ECHO)
            .await;
        assert!(
            matches!(refused, Err(EndpointDialError::TlsSetup(_))),
            "{refused:?}"
        );
    }
}

/// The dialler shows peers its key in the form that they take; it shows public servers none, unless the configuration
/// asks for that.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_shown_our_key() {
    let authority = EndpointTestCa::new();
    let (public_key, spki) = authority.certified(&["localhost"]);
    let own = NodeKey::from_seed(&[6; 32]);
    for carriage in CARRIAGES {
        let foreign = ForeignServer::start(Arc::clone(&public_key), false).await;
        let target: Target = format!("localhost:{}", foreign.port(carriage))
            .parse()
            .expect("a target");
        for (pins, present, expected) in [
            (vec![spki], false, own.public().to_string()),
            (vec![], false, "unknown".to_owned()),
            (vec![], true, own.public().to_string()),
        ] {
            let dialer = EndpointDialer::with_options(ClientTlsOptions {
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
    let node = EndpointTestNode::start();
    let (dialer, _) = node.peer("friend");
    let (before, other) = (known(&[node.key.public()]), NodeKey::from_seed(&[8; 32]));
    let after = known(&[other.public()]);
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
            Err(EndpointDialError::PinMismatch(mismatch)) => {
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
    assert!(dialer.set_peer(&known(&[])).is_err());
}
