//! The rows: which proof a client shows to a node with which entry, and the required outcome.

use super::role_matrix::TransportColumn;
use super::{
    CertificateFlaw, EntryChange, ExpectedOutcome, KnownKeyForm, RolePeerEntry, Sends, Shows,
    TokenCase,
};

/// One role and its proof.
pub(super) struct RoleCase {
    pub(super) role: &'static str,
    pub(super) proof: &'static str,
    pub(super) shows: Shows,
    pub(super) entry: RolePeerEntry,
    pub(super) sends: Sends,
    pub(super) change: EntryChange,
    /// Over `alknet/call`, which lets every client in and checks the identity of each request.
    pub(super) call: ExpectedOutcome,
    /// Over a protocol that takes known keys only.
    pub(super) keyed: ExpectedOutcome,
}

impl RoleCase {
    /// The required outcome over `column`, where it is `outcome` elsewhere. A client of iroh always has a raw key and
    /// shows it. An attacker with a stolen key needs no client of iroh's.
    pub(super) fn over(
        &self,
        column: TransportColumn,
        outcome: ExpectedOutcome,
    ) -> ExpectedOutcome {
        match (column, self.shows) {
            (TransportColumn::Quic | TransportColumn::Tls, _) => outcome,
            (TransportColumn::Iroh, Shows::NextRaw | Shows::Raw | Shows::StolenRaw) => outcome,
            (TransportColumn::Iroh, _) => ExpectedOutcome::Impossible,
        }
    }
}

const PEER: &str = "peer";
const PROGRAM: &str = "program";
const UNKNOWN_ROLE: &str = "unknown peer";
/// Name of a peer, of a program's token.
const EDGE: ExpectedOutcome = ExpectedOutcome::As("edge");
const TOOL: ExpectedOutcome = ExpectedOutcome::As("key:tool0001");

const fn knows(keys: &'static [KnownKeyForm]) -> RolePeerEntry {
    RolePeerEntry {
        keys,
        enabled: true,
        expired: false,
        token: TokenCase::Unknown,
    }
}

const fn tokens(token: TokenCase) -> RolePeerEntry {
    RolePeerEntry {
        token,
        ..knows(&[])
    }
}

const fn disabled(entry: RolePeerEntry) -> RolePeerEntry {
    RolePeerEntry {
        enabled: false,
        ..entry
    }
}

const fn expired(entry: RolePeerEntry) -> RolePeerEntry {
    RolePeerEntry {
        expired: true,
        ..entry
    }
}

/// A client whose key decides everything.
fn key(
    role: &'static str,
    proof: &'static str,
    shows: Shows,
    entry: RolePeerEntry,
    is: ExpectedOutcome,
) -> RoleCase {
    RoleCase {
        role,
        proof,
        shows,
        entry,
        sends: Sends::Nothing,
        change: EntryChange::Never,
        call: is,
        keyed: match is {
            ExpectedOutcome::UnknownPeer => ExpectedOutcome::Closed,
            other => other,
        },
    }
}

/// A client whose token counts over `alknet/call`, and whose key, if any, elsewhere.
fn token(
    proof: &'static str,
    entry: RolePeerEntry,
    sends: Sends,
    call: ExpectedOutcome,
) -> RoleCase {
    RoleCase {
        sends,
        call,
        ..key(
            PROGRAM,
            proof,
            Shows::Nothing,
            entry,
            ExpectedOutcome::UnknownPeer,
        )
    }
}

fn live(row: RoleCase, after: RolePeerEntry) -> RoleCase {
    RoleCase {
        change: EntryChange::Live(after),
        ..row
    }
}

fn changed_while_away(row: RoleCase, after: RolePeerEntry) -> RoleCase {
    RoleCase {
        change: EntryChange::Away(after),
        ..row
    }
}

pub(super) fn rows() -> Vec<RoleCase> {
    use ExpectedOutcome::{Closed, Refused, UnknownPeer};
    use KnownKeyForm::{Certificate, Next, Own, Spki};
    use Shows::{
        Ec, EcOther, EcRenewed, NextRaw, NextWrapped, Raw, StolenRaw, StolenWrapped, Wrapped,
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
        key(
            PEER,
            "raw key, rotated: the old one",
            Raw,
            next,
            UnknownPeer,
        ),
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
        changed_while_away(
            key(
                PEER,
                "raw key, rotated away, back with a ticket",
                Raw,
                own,
                UnknownPeer,
            ),
            next,
        ),
        key(PEER, "raw key, revoked", Raw, none, UnknownPeer),
        live(
            key(PEER, "raw key, revoked while connected", Raw, own, Closed),
            none,
        ),
        changed_while_away(
            key(
                PEER,
                "raw key, revoked, back with a ticket",
                Raw,
                own,
                UnknownPeer,
            ),
            none,
        ),
        key(
            PEER,
            "raw key, entry disabled",
            Raw,
            disabled(own),
            UnknownPeer,
        ),
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
        key(
            PEER,
            "raw key, entry expired",
            Raw,
            expired(own),
            UnknownPeer,
        ),
        key(UNKNOWN_ROLE, "unknown raw key", Raw, none, UnknownPeer),
        key(
            UNKNOWN_ROLE,
            "raw key of a peer, without the private key",
            StolenRaw,
            own,
            Refused,
        ),
        // The same key in a certificate: names, dates and issuers mean nothing.
        key(
            PEER,
            "X.509, known",
            Wrapped(CertificateFlaw::None),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, expired",
            Wrapped(CertificateFlaw::Expired),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, not yet valid",
            Wrapped(CertificateFlaw::NotYetValid),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, wrong name",
            Wrapped(CertificateFlaw::WrongName),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, known, unknown authority",
            Wrapped(CertificateFlaw::UnknownAuthority),
            own,
            EDGE,
        ),
        key(
            PEER,
            "X.509, rotated: the old key",
            Wrapped(CertificateFlaw::None),
            next,
            UnknownPeer,
        ),
        key(PEER, "X.509, rotated: the new key", NextWrapped, next, EDGE),
        key(
            PEER,
            "X.509, revoked",
            Wrapped(CertificateFlaw::None),
            none,
            UnknownPeer,
        ),
        live(
            key(
                PEER,
                "X.509, revoked while connected",
                Wrapped(CertificateFlaw::None),
                own,
                Closed,
            ),
            none,
        ),
        changed_while_away(
            key(
                PEER,
                "X.509, revoked, back with a ticket",
                Wrapped(CertificateFlaw::None),
                own,
                UnknownPeer,
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
            UnknownPeer,
        ),
        key(
            UNKNOWN_ROLE,
            "X.509 of an authority for a peer's name",
            EcOther,
            knows(&[Spki]),
            UnknownPeer,
        ),
        key(
            UNKNOWN_ROLE,
            "X.509 of a peer, without the private key",
            StolenWrapped,
            own,
            Refused,
        ),
        // Tokens.
        token("token, good", tokens(TokenCase::Good), Sends::Token, TOOL),
        token(
            "token, good, for the connection",
            tokens(TokenCase::Good),
            Sends::Session,
            TOOL,
        ),
        token(
            "token of a peer",
            tokens(TokenCase::Peers),
            Sends::Token,
            EDGE,
        ),
        token(
            "token of a disabled peer",
            disabled(tokens(TokenCase::Peers)),
            Sends::Token,
            UnknownPeer,
        ),
        token(
            "token, expired",
            tokens(TokenCase::Expired),
            Sends::Token,
            UnknownPeer,
        ),
        token(
            "token, unknown",
            tokens(TokenCase::Unknown),
            Sends::Token,
            UnknownPeer,
        ),
        token(
            "no token, but something like it",
            tokens(TokenCase::Good),
            Sends::Nonsense,
            UnknownPeer,
        ),
        live(
            token(
                "token, revoked while connected",
                tokens(TokenCase::Good),
                Sends::Token,
                UnknownPeer,
            ),
            none,
        ),
        live(
            RoleCase {
                keyed: Closed,
                ..token(
                    "token, for the connection, revoked while connected",
                    tokens(TokenCase::Good),
                    Sends::Session,
                    Closed,
                )
            },
            none,
        ),
        // A token replaces the identity of the key, and a good key does not excuse a bad token.
        RoleCase {
            role: PEER,
            shows: Raw,
            keyed: EDGE,
            ..token(
                "raw key, known, and a good token",
                RolePeerEntry {
                    token: TokenCase::Good,
                    ..own
                },
                Sends::Token,
                TOOL,
            )
        },
        RoleCase {
            role: PEER,
            shows: Raw,
            keyed: EDGE,
            ..token(
                "raw key, known, and an unknown token",
                own,
                Sends::Token,
                UnknownPeer,
            )
        },
        // The same from a client whose key this node does not know.
        RoleCase {
            shows: Raw,
            ..token(
                "unknown raw key, and a good token",
                tokens(TokenCase::Good),
                Sends::Token,
                TOOL,
            )
        },
        RoleCase {
            shows: Raw,
            ..token(
                "unknown raw key, and an unknown token",
                tokens(TokenCase::Unknown),
                Sends::Token,
                UnknownPeer,
            )
        },
        live(
            RoleCase {
                shows: Raw,
                keyed: Closed,
                ..token(
                    "unknown raw key, and a token for the connection, revoked while connected",
                    tokens(TokenCase::Good),
                    Sends::Session,
                    Closed,
                )
            },
            none,
        ),
        // No proof.
        key(UNKNOWN_ROLE, "nothing", Shows::Nothing, own, UnknownPeer),
    ]
}
