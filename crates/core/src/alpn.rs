//! What a handler says about each protocol it serves.

use std::fmt;

use crate::limits::StreamBudget;

/// One ALPN protocol of a handler (RFC 7301), and what the endpoint must know before it hands a
/// connection over.
///
/// ```
/// use alknet_core::{AlpnSpec, AuthNeed, Carriage};
///
/// let spec = AlpnSpec {
///     auth: AuthNeed::Tls,
///     ..AlpnSpec::new(b"example/echo")
/// };
/// assert_eq!(spec.name(), "example/echo");
/// assert_eq!(spec.carriage, Carriage::Both);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlpnSpec {
    /// The protocol identifier as it stands in the ClientHello.
    pub id: &'static [u8],
    /// Where the protocol is offered.
    pub carriage: Carriage,
    /// Who may reach the handler at all.
    pub auth: AuthNeed,
    /// Whether 0-RTT data is acceptable. Early data can be replayed: only idempotent protocols.
    pub early_data: bool,
    /// What happens when a peer has as many connections as it may have: the newest wins and the
    /// oldest of such a protocol is asked to finish, or the newest is refused.
    pub newest_wins: bool,
    /// Flow-control budget once the peer is known.
    pub limits: StreamBudget,
}

impl AlpnSpec {
    /// A protocol on both carriages, authenticated inside the protocol, with the default budget.
    #[must_use]
    pub const fn new(id: &'static [u8]) -> Self {
        Self {
            id,
            carriage: Carriage::Both,
            auth: AuthNeed::Late,
            early_data: false,
            newest_wins: false,
            limits: StreamBudget::AUTHENTICATED,
        }
    }

    /// The identifier as text, for logs and the console.
    #[must_use]
    pub fn name(&self) -> String {
        String::from_utf8_lossy(self.id).into_owned()
    }
}

/// What the bytes of a connection travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carriage {
    /// Both QUIC and TLS over TCP.
    Both,
    /// QUIC as iroh speaks it, to a key and on a UDP socket of its own.
    Iroh,
    /// In this process: tests and nested connections.
    Memory,
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP.
    Tcp,
}

impl Carriage {
    /// Whether a protocol offered on `self` is offered on `other`. What is offered on QUIC is
    /// offered to iroh, which is QUIC to a handler.
    ///
    /// ```
    /// use alknet_core::Carriage;
    ///
    /// assert!(Carriage::Quic.covers(Carriage::Iroh));
    /// assert!(!Carriage::Tcp.covers(Carriage::Quic));
    /// ```
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self == other
            || self == Self::Both
            || other == Self::Memory
            || (self, other) == (Self::Quic, Self::Iroh)
    }
}

impl fmt::Display for Carriage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "quic+tcp",
            Self::Iroh => "iroh",
            Self::Memory => "memory",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        })
    }
}

/// How a handler wants its peers authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthNeed {
    /// Inside the protocol; the small budget applies until the handler raises it.
    Late,
    /// Not at all.
    Open,
    /// By the TLS key: anything that is no enabled peer is closed with code 1 before the handler
    /// starts.
    Tls,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iroh_gets_what_quic_gets() {
        for (offered, iroh) in [
            (Carriage::Both, true),
            (Carriage::Iroh, true),
            (Carriage::Quic, true),
            (Carriage::Tcp, false),
        ] {
            assert_eq!(offered.covers(Carriage::Iroh), iroh, "{offered}");
        }
        assert!(!Carriage::Iroh.covers(Carriage::Quic));
    }
}
