//! Who dials this node × what proves it × what carries it: the specification, row by row, and every
//! cell of it against a real port. Whom this node dials is in `remotes`.

mod scene;
pub(crate) mod sheet;

use std::fmt;

use scene::{Scene, Visit};
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
}

impl Outcome {
    fn text(self, column: Column) -> String {
        match (self, column) {
            (Self::As(name), _) => format!("as `{name}`"),
            (Self::Nobody, _) => "nobody".to_owned(),
            (Self::Closed, Column::Quic) => "closed, code 1".to_owned(),
            (Self::Closed, Column::Tls) => "closed".to_owned(),
            (Self::Refused, _) => "no handshake".to_owned(),
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
            Self::Other(what) => f.write_str(what),
        }
    }
}

struct Row {
    role: &'static str,
    proof: &'static str,
    shows: Shows,
    entry: Entry,
    sends: Sends,
    change: Change,
    /// Over `alknet/call`, which lets in whoever comes and asks each request who it is.
    call: Outcome,
    /// Over a protocol that takes known keys only.
    keyed: Outcome,
}

const PEER: &str = "peer";
const PROGRAM: &str = "program";
const STRANGER: &str = "stranger";
/// Name of a peer, of a program's token.
const EDGE: Outcome = Outcome::As("edge");
const TOOL: Outcome = Outcome::As("key:tool0001");

const fn knows(keys: &'static [Known]) -> Entry {
    Entry {
        keys,
        enabled: true,
        expired: false,
        token: Token::Unknown,
    }
}

const fn tokens(token: Token) -> Entry {
    Entry {
        token,
        ..knows(&[])
    }
}

const fn disabled(entry: Entry) -> Entry {
    Entry {
        enabled: false,
        ..entry
    }
}

const fn expired(entry: Entry) -> Entry {
    Entry {
        expired: true,
        ..entry
    }
}

/// Somebody whose key decides everything.
fn key(role: &'static str, proof: &'static str, shows: Shows, entry: Entry, is: Outcome) -> Row {
    Row {
        role,
        proof,
        shows,
        entry,
        sends: Sends::Nothing,
        change: Change::Never,
        call: is,
        keyed: match is {
            Outcome::Nobody => Outcome::Closed,
            other => other,
        },
    }
}

/// Somebody whose token counts over `alknet/call`, and whose key, if any, elsewhere.
fn token(proof: &'static str, entry: Entry, sends: Sends, call: Outcome) -> Row {
    Row {
        sends,
        call,
        ..key(PROGRAM, proof, Shows::Nothing, entry, Outcome::Nobody)
    }
}

fn live(row: Row, after: Entry) -> Row {
    Row {
        change: Change::Live(after),
        ..row
    }
}

fn away(row: Row, after: Entry) -> Row {
    Row {
        change: Change::Away(after),
        ..row
    }
}

fn rows() -> Vec<Row> {
    use Known::{Certificate, Next, Own, Spki};
    use Outcome::{Closed, Nobody, Refused};
    use Shows::{
        Ec, EcRenewed, EcStranger, NextRaw, NextWrapped, Raw, StolenRaw, StolenWrapped, Wrapped,
    };
    let none = knows(&[]);
    let own = knows(&[Own]);
    let next = knows(&[Next]);
    let both = knows(&[Own, Next]);
    vec![
        // Raw keys.
        key(PEER, "raw key, known", Raw, own, EDGE),
        key(PEER, "raw key, rotating: the old one", Raw, both, EDGE),
        key(PEER, "raw key, rotating: the new one", NextRaw, both, EDGE),
        key(PEER, "raw key, rotated: the old one", Raw, next, Nobody),
        key(PEER, "raw key, rotated: the new one", NextRaw, next, EDGE),
        live(
            key(
                PEER,
                "raw key, connected while a new one is added",
                Raw,
                own,
                EDGE,
            ),
            both,
        ),
        live(
            key(
                PEER,
                "raw key, rotated away while connected",
                Raw,
                own,
                Closed,
            ),
            next,
        ),
        away(
            key(
                PEER,
                "raw key, rotated away, back with a ticket",
                Raw,
                own,
                Nobody,
            ),
            next,
        ),
        key(PEER, "raw key, revoked", Raw, none, Nobody),
        live(
            key(PEER, "raw key, revoked while connected", Raw, own, Closed),
            none,
        ),
        away(
            key(
                PEER,
                "raw key, revoked, back with a ticket",
                Raw,
                own,
                Nobody,
            ),
            none,
        ),
        key(PEER, "raw key, entry disabled", Raw, disabled(own), Nobody),
        live(
            key(
                PEER,
                "raw key, entry disabled while connected",
                Raw,
                own,
                Closed,
            ),
            disabled(own),
        ),
        key(PEER, "raw key, entry expired", Raw, expired(own), Nobody),
        key(STRANGER, "raw key of nobody", Raw, none, Nobody),
        key(
            STRANGER,
            "raw key of a peer, without the private key",
            StolenRaw,
            own,
            Refused,
        ),
        // The same key in a certificate: names, dates and issuers mean nothing.
        key(PEER, "X.509, known", Wrapped(Flaw::None), own, EDGE),
        key(
            PEER,
            "X.509, known, expired",
            Wrapped(Flaw::Expired),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, not yet valid",
            Wrapped(Flaw::NotYetValid),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, wrong name",
            Wrapped(Flaw::WrongName),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, unknown authority",
            Wrapped(Flaw::UnknownAuthority),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, rotated: the old key",
            Wrapped(Flaw::None),
            next,
            Nobody,
        ),
        key(PEER, "X.509, rotated: the new key", NextWrapped, next, EDGE),
        key(PEER, "X.509, revoked", Wrapped(Flaw::None), none, Nobody),
        live(
            key(
                PEER,
                "X.509, revoked while connected",
                Wrapped(Flaw::None),
                own,
                Closed,
            ),
            none,
        ),
        away(
            key(
                PEER,
                "X.509, revoked, back with a ticket",
                Wrapped(Flaw::None),
                own,
                Nobody,
            ),
            none,
        ),
        key(PEER, "X.509, known by `spki:`", Ec, knows(&[Spki]), EDGE),
        key(
            PEER,
            "X.509, known by `spki:`, renewed",
            EcRenewed,
            knows(&[Spki]),
            EDGE,
        ),
        key(
            PEER,
            "X.509, known by `SHA256:`",
            Ec,
            knows(&[Certificate]),
            EDGE,
        ),
        key(
            PEER,
            "X.509, known by `SHA256:`, renewed",
            EcRenewed,
            knows(&[Certificate]),
            Nobody,
        ),
        key(
            STRANGER,
            "X.509 of an authority for a peer's name",
            EcStranger,
            knows(&[Spki]),
            Nobody,
        ),
        key(
            STRANGER,
            "X.509 of a peer, without the private key",
            StolenWrapped,
            own,
            Refused,
        ),
        // Tokens.
        token("token, good", tokens(Token::Good), Sends::Token, TOOL),
        token(
            "token, good, for the connection",
            tokens(Token::Good),
            Sends::Session,
            TOOL,
        ),
        token("token of a peer", tokens(Token::Peers), Sends::Token, EDGE),
        token(
            "token of a disabled peer",
            disabled(tokens(Token::Peers)),
            Sends::Token,
            Nobody,
        ),
        token(
            "token, expired",
            tokens(Token::Expired),
            Sends::Token,
            Nobody,
        ),
        token(
            "token, unknown",
            tokens(Token::Unknown),
            Sends::Token,
            Nobody,
        ),
        token(
            "no token, but something like it",
            tokens(Token::Good),
            Sends::Nonsense,
            Nobody,
        ),
        live(
            token(
                "token, revoked while connected",
                tokens(Token::Good),
                Sends::Token,
                Nobody,
            ),
            none,
        ),
        live(
            Row {
                keyed: Closed,
                ..token(
                    "token, for the connection, revoked while connected",
                    tokens(Token::Good),
                    Sends::Session,
                    Closed,
                )
            },
            none,
        ),
        // A token replaces what the key says, and a bad one is not forgiven for a good key.
        Row {
            role: PEER,
            shows: Raw,
            keyed: EDGE,
            ..token(
                "raw key, known, and a good token",
                Entry {
                    token: Token::Good,
                    ..own
                },
                Sends::Token,
                TOOL,
            )
        },
        Row {
            role: PEER,
            shows: Raw,
            keyed: EDGE,
            ..token(
                "raw key, known, and an unknown token",
                own,
                Sends::Token,
                Nobody,
            )
        },
        // Nothing.
        key(STRANGER, "nothing", Shows::Nothing, own, Nobody),
    ]
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
    let scene = Scene::start(row.entry);
    let client = scene.client(row.shows, visit);
    let Ok(mut line) = client.open(column).await else {
        return scene.refused().await;
    };
    let first = line.ask(row.sends).await;
    let got = match row.change {
        Change::Never => first,
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
            let Ok(mut line) = client.open(column).await else {
                return Got::Other("the second handshake failed".to_owned());
            };
            match client.full_handshakes() {
                1 => line.ask(row.sends).await,
                n => Got::Other(format!("{n} full handshakes")),
            }
        }
    };
    match got {
        Got::Refused => scene.refused().await,
        got => got,
    }
}
