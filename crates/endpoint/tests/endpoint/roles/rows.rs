//! The rows: who shows what to a node that knows what, and what must come of it.

use super::sheet::Column;
use super::{Change, Entry, Flaw, Known, Outcome, Sends, Shows, Token};

/// One role and what proves it.
pub(super) struct Row {
    pub(super) role: &'static str,
    pub(super) proof: &'static str,
    pub(super) shows: Shows,
    pub(super) entry: Entry,
    pub(super) sends: Sends,
    pub(super) change: Change,
    /// Over `alknet/call`, which lets in whoever comes and asks each request who it is.
    pub(super) call: Outcome,
    /// Over a protocol that takes known keys only.
    pub(super) keyed: Outcome,
}

impl Row {
    /// What must come of it over `column`, where it comes to `outcome` elsewhere. A client of iroh has
    /// a raw key and shows it, always. Whoever shows a stolen one needs no client of iroh's.
    pub(super) fn over(&self, column: Column, outcome: Outcome) -> Outcome {
        match (column, self.shows) {
            (Column::Quic | Column::Tls, _) => outcome,
            (Column::Iroh, Shows::NextRaw | Shows::Raw | Shows::StolenRaw) => outcome,
            (Column::Iroh, _) => Outcome::Impossible,
        }
    }
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

pub(super) fn rows() -> Vec<Row> {
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
        // The same from somebody whose key this node does not know.
        Row {
            shows: Raw,
            ..token(
                "raw key of nobody, and a good token",
                tokens(Token::Good),
                Sends::Token,
                TOOL,
            )
        },
        Row {
            shows: Raw,
            ..token(
                "raw key of nobody, and an unknown token",
                tokens(Token::Unknown),
                Sends::Token,
                Nobody,
            )
        },
        live(
            Row {
                shows: Raw,
                keyed: Closed,
                ..token(
                    "raw key of nobody, and a token for the connection, revoked while connected",
                    tokens(Token::Good),
                    Sends::Session,
                    Closed,
                )
            },
            none,
        ),
        // Nothing.
        key(STRANGER, "nothing", Shows::Nothing, own, Nobody),
    ]
}
