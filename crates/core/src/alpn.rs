//! The properties of each protocol that a handler serves.

use std::fmt;

use crate::limits::StreamBudget;

/// One ALPN protocol of a handler (RFC 7301), with the facts that the endpoint needs before it hands a connection
/// over.
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
    /// The carriages on which the protocol is offered.
    pub carriage: Carriage,
    /// The proof that a peer needs to reach the handler.
    pub auth: AuthNeed,
    /// Whether 0-RTT data is acceptable. An attacker can replay early data (RFC 8446 section 8), so that only
    /// idempotent protocols may allow it.
    pub early_data: bool,
    /// Which connection gives way when a peer has as many as it may have: if true, the oldest connection of such a
    /// protocol is asked to finish; if false, the newest is refused.
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

/// The transport that carries the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carriage {
    /// Both QUIC and TLS over TCP.
    Both,
    /// Iroh's QUIC, which dials a key, on UDP sockets of its own.
    Iroh,
    /// This process: tests and nested connections.
    Memory,
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP.
    Tcp,
}

impl Carriage {
    /// Whether a protocol offered on `self` is offered on `other`. A protocol of QUIC is also offered on iroh, which
    /// is QUIC to a handler.
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

/// The authentication that a handler requires of its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthNeed {
    /// Inside the protocol. The small budget applies until the handler raises it.
    Late,
    /// No authentication.
    Open,
    /// By the TLS key: the node closes the connection of any other client than an enabled peer with code 1 before the
    /// handler starts.
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
