//! The client that dials this node × its proof × its carriage: the specification, row by row, and every cell of it
//! against a real port. Servers that this node dials are in `remotes`.

mod client;
pub(crate) mod role_matrix;
mod rows;
mod scene;

use std::fmt;

use client::{RoleTestClient, Visit};
use role_matrix::{RoleMatrix, TransportColumn};
use rows::{RoleCase, rows};
use scene::RoleTestNode;

/// The proof that a client shows in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Nothing,
    /// Its Ed25519 key, raw.
    Raw,
    /// The key that follows it in a rotation, raw.
    NextRaw,
    /// Another peer's public key without the private one: signed with another key.
    StolenRaw,
    /// Its Ed25519 key in a self-signed certificate with this flaw.
    Wrapped(CertificateFlaw),
    /// The key that follows, in a certificate.
    NextWrapped,
    /// Another peer's certificate without the private key.
    StolenWrapped,
    /// A P-256 key in a certificate.
    Ec,
    /// The same key in another certificate.
    EcRenewed,
    /// Another P-256 key, certified by an authority for the name of a peer.
    EcOther,
}

/// The fault of a certificate, apart from being a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CertificateFlaw {
    None,
    Expired,
    NotYetValid,
    WrongName,
    UnknownAuthority,
}

/// A key by which an entry of this node may know its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KnownKeyForm {
    /// The Ed25519 key of [`Shows::Raw`] and [`Shows::Wrapped`].
    Own,
    Next,
    /// SHA-256 of the P-256 key.
    Spki,
    /// SHA-256 of the certificate of [`Shows::Ec`].
    Certificate,
}

/// The entry in this node: the peer `edge`, and a program's token.
#[derive(Clone, Copy, Debug)]
struct RolePeerEntry {
    keys: &'static [KnownKeyForm],
    enabled: bool,
    expired: bool,
    token: TokenCase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenCase {
    Unknown,
    Good,
    Expired,
    /// The token is `edge`'s own, not a program's.
    Peers,
}

/// The token that a client sends once it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    Nothing,
    /// The token, with its request.
    Token,
    /// The token, once for the whole connection.
    Session,
    /// A text that is not a token.
    Nonsense,
}

/// What happens to the entry, and when.
#[derive(Clone, Copy, Debug)]
enum EntryChange {
    Never,
    /// While the client is connected; it goes on with the same connection.
    Live(RolePeerEntry),
    /// While the client is away; it comes back with the ticket of its first connection.
    Away(RolePeerEntry),
}

/// The required outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpectedOutcome {
    /// It acts as this identity.
    As(&'static str),
    /// The node serves it as an unknown peer: an operation that needs an identity answers `UNAUTHENTICATED`.
    UnknownPeer,
    /// The node ends the connection: code 1, which TLS cannot carry.
    Closed,
    /// The handshake fails, and no handler gets the connection.
    Refused,
    /// Clients of this carriage cannot show such a proof. The handshake of a client made by hand fails.
    Impossible,
}

impl ExpectedOutcome {
    fn text(self, column: TransportColumn) -> String {
        match (self, column) {
            (Self::As(name), _) => format!("as `{name}`"),
            (Self::UnknownPeer, _) => "unknown peer".to_owned(),
            (Self::Closed, TransportColumn::Iroh | TransportColumn::Quic) => {
                "closed, code 1".to_owned()
            }
            (Self::Closed, TransportColumn::Tls) => "closed".to_owned(),
            (Self::Refused, _) => "no handshake".to_owned(),
            (Self::Impossible, _) => "not possible".to_owned(),
        }
    }
}

/// The observed outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ObservedOutcome {
    As(String),
    UnknownPeer,
    Closed(Option<u64>),
    Refused,
    Impossible,
    Other(String),
}

impl fmt::Display for ObservedOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As(name) => write!(f, "as `{name}`"),
            Self::UnknownPeer => f.write_str("unknown peer"),
            Self::Closed(Some(code)) => write!(f, "closed, code {code}"),
            Self::Closed(None) => f.write_str("closed"),
            Self::Refused => f.write_str("no handshake"),
            Self::Impossible => f.write_str("not possible"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dials_us() {
    let mut head = vec!["who".to_owned(), "proof".to_owned()];
    for protocol in ["calls", "known keys only"] {
        head.extend(TransportColumn::ALL.map(|column| format!("{protocol}, {}", column.name())));
    }
    let mut sheet = RoleMatrix::new(&head);
    for row in rows() {
        sheet.row(row.role, row.proof);
        for (visit, expected) in [(Visit::Call, row.call), (Visit::Keyed, row.keyed)] {
            for column in TransportColumn::ALL {
                let expected = row.over(column, expected);
                let got = cell(&row, visit, expected, column).await;
                sheet.cell(&expected.text(column), &got);
            }
        }
        sheet.end_row();
    }
    sheet.check();
}

/// One cell, on a node of its own: the node shuts out a client that fails too often.
async fn cell(
    row: &RoleCase,
    visit: Visit,
    expected: ExpectedOutcome,
    column: TransportColumn,
) -> ObservedOutcome {
    let scene = RoleTestNode::start(row.entry, column).await;
    let client = scene.client(row.shows, visit, column).await;
    let got = match talk(row, &scene, &client, expected).await {
        ObservedOutcome::Refused => scene.refused().await,
        got => got,
    };
    client.close().await;
    match (expected, got) {
        (ExpectedOutcome::Impossible, ObservedOutcome::Refused) => ObservedOutcome::Impossible,
        (_, got) => got,
    }
}

/// The outcome of a connection, in its client's view.
async fn talk(
    row: &RoleCase,
    scene: &RoleTestNode,
    client: &RoleTestClient,
    expected: ExpectedOutcome,
) -> ObservedOutcome {
    let Ok(mut line) = client.open().await else {
        return ObservedOutcome::Refused;
    };
    let first = line.ask(row.sends).await;
    match row.change {
        EntryChange::Never => first,
        _ if first == ObservedOutcome::Refused => first,
        EntryChange::Live(after) => {
            scene.change(after);
            // A request at once could overtake the end.
            match expected {
                ExpectedOutcome::Closed => line.ended().await,
                _ => line.ask(row.sends).await,
            }
        }
        EntryChange::Away(after) => {
            drop(line);
            scene.change(after);
            let Ok(mut line) = client.open().await else {
                return ObservedOutcome::Other("the second handshake failed".to_owned());
            };
            match client.full_handshakes() {
                1 => line.ask(row.sends).await,
                n => ObservedOutcome::Other(format!("{n} full handshakes")),
            }
        }
    }
}
