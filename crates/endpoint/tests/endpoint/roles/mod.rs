//! Who dials this node × what proves it × what carries it: the specification, row by row, and every
//! cell of it against a real port. Whom this node dials is in `remotes`.

mod client;
mod rows;
mod scene;
pub(crate) mod sheet;

use std::fmt;

use client::{Client, Visit};
use rows::{Row, rows};
use scene::Scene;
use sheet::{Column, Sheet};

/// What a client shows in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Nothing,
    /// Its Ed25519 key, raw.
    Raw,
    /// The key that follows it in a rotation, raw.
    NextRaw,
    /// Somebody's public key without the private one: signed with another.
    StolenRaw,
    /// Its Ed25519 key in a self-signed certificate with this flaw.
    Wrapped(Flaw),
    /// The key that follows, in a certificate.
    NextWrapped,
    /// Somebody's certificate without the private key.
    StolenWrapped,
    /// A P-256 key in a certificate.
    Ec,
    /// The same key in another certificate.
    EcRenewed,
    /// Another P-256 key, certified by an authority for the name of a peer.
    EcStranger,
}

/// What is wrong with a certificate, beside that it is a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    Expired,
    NotYetValid,
    WrongName,
    UnknownAuthority,
}

/// A key by which an entry of this node may know its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// The Ed25519 key of [`Shows::Raw`] and [`Shows::Wrapped`].
    Own,
    Next,
    /// SHA-256 of the P-256 key.
    Spki,
    /// SHA-256 of the certificate of [`Shows::Ec`].
    Certificate,
}

/// What this node knows: the peer `edge`, and a program's token.
#[derive(Clone, Copy, Debug)]
struct Entry {
    keys: &'static [Known],
    enabled: bool,
    expired: bool,
    token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Unknown,
    Good,
    Expired,
    /// The token is `edge`'s own, not a program's.
    Peers,
}

/// What a client sends once it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    Nothing,
    /// The token, with its request.
    Token,
    /// The token, once for the whole connection.
    Session,
    /// Something that is no token.
    Nonsense,
}

/// What happens to the entry, and when.
#[derive(Clone, Copy, Debug)]
enum Change {
    Never,
    /// While the client is connected; it goes on with the same connection.
    Live(Entry),
    /// While the client is away; it comes back with the ticket of its first connection.
    Away(Entry),
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It acts as this identity.
    As(&'static str),
    /// It is served as nobody: whatever needs somebody answers `UNAUTHENTICATED`.
    Nobody,
    /// The node ends the connection: code 1, which TLS cannot carry.
    Closed,
    /// The handshake fails; no handler hears of it.
    Refused,
    /// Nobody shows such a thing over this carriage: its clients cannot. The handshake of one that is
    /// made by hand fails.
    Impossible,
}

impl Outcome {
    fn text(self, column: Column) -> String {
        match (self, column) {
            (Self::As(name), _) => format!("as `{name}`"),
            (Self::Nobody, _) => "nobody".to_owned(),
            (Self::Closed, Column::Iroh | Column::Quic) => "closed, code 1".to_owned(),
            (Self::Closed, Column::Tls) => "closed".to_owned(),
            (Self::Refused, _) => "no handshake".to_owned(),
            (Self::Impossible, _) => "not possible".to_owned(),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Got {
    As(String),
    Nobody,
    Closed(Option<u64>),
    Refused,
    Impossible,
    Other(String),
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As(name) => write!(f, "as `{name}`"),
            Self::Nobody => f.write_str("nobody"),
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
        head.extend(Column::ALL.map(|column| format!("{protocol}, {}", column.name())));
    }
    let mut sheet = Sheet::new(&head);
    for row in rows() {
        sheet.row(row.role, row.proof);
        for (visit, expected) in [(Visit::Call, row.call), (Visit::Keyed, row.keyed)] {
            for column in Column::ALL {
                let expected = row.over(column, expected);
                let got = cell(&row, visit, expected, column).await;
                sheet.cell(&expected.text(column), &got);
            }
        }
        sheet.end_row();
    }
    sheet.check();
}

/// One cell, on a node of its own: whoever fails too often is shut out.
async fn cell(row: &Row, visit: Visit, expected: Outcome, column: Column) -> Got {
    let scene = Scene::start(row.entry, column).await;
    let client = scene.client(row.shows, visit, column).await;
    let got = match talk(row, &scene, &client, expected).await {
        Got::Refused => scene.refused().await,
        got => got,
    };
    client.close().await;
    match (expected, got) {
        (Outcome::Impossible, Got::Refused) => Got::Impossible,
        (_, got) => got,
    }
}

/// What comes of a connection, as its client sees it.
async fn talk(row: &Row, scene: &Scene, client: &Client, expected: Outcome) -> Got {
    let Ok(mut line) = client.open().await else {
        return Got::Refused;
    };
    let first = line.ask(row.sends).await;
    match row.change {
        Change::Never => first,
        _ if first == Got::Refused => first,
        Change::Live(after) => {
            scene.change(after);
            // Asking at once could overtake the end.
            match expected {
                Outcome::Closed => line.ended().await,
                _ => line.ask(row.sends).await,
            }
        }
        Change::Away(after) => {
            drop(line);
            scene.change(after);
            let Ok(mut line) = client.open().await else {
                return Got::Other("the second handshake failed".to_owned());
            };
            match client.full_handshakes() {
                1 => line.ask(row.sends).await,
                n => Got::Other(format!("{n} full handshakes")),
            }
        }
    }
}
