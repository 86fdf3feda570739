//! What admission decides about a client, and which limit the client met.

use alknet_core::NetworkPrefix;

use super::HandshakeId;

/// What to do with a first QUIC packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuicDecision {
    /// Start the handshake after ending `evict`. A handshake that was not `paid` for is charged once the client has
    /// proved its address by finishing it.
    Accept {
        ticket: HandshakeId,
        evict: Option<HandshakeId>,
        paid: bool,
    },
    /// Drop the packet and answer nothing.
    Ignore,
    /// Answer that the node has no room.
    Refuse(AdmissionLimit),
    /// Ask for proof of the address, because of a limit or because the client has not proved it yet.
    Retry(Option<AdmissionLimit>),
}

/// Whether a client has proved the address from which its first QUIC packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressValidation {
    /// The client has proved it.
    Proven,
    /// An attacker may have forged it.
    Unproven,
    /// An attacker may have forged it, and the node cannot send it the reason for a failed handshake.
    Unanswerable,
}

/// What to do with an accepted TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpDecision {
    /// Start the handshake after ending `evict`.
    Accept {
        ticket: HandshakeId,
        evict: Option<HandshakeId>,
    },
    /// Drop the connection.
    Refuse(AdmissionLimit),
}

/// The limits of admission, each of which has a counter in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdmissionLimit {
    Connections,
    ConnectionsPerAddress,
    ConnectionsPerPeer,
    FailedLogins,
    HandshakeRate,
    Handshakes,
    HandshakesUnproven,
    Memory,
    Retries,
}

impl AdmissionLimit {
    /// Each limit with its name in metrics, in the order of the enum.
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Connections, "connections"),
        (Self::ConnectionsPerAddress, "connections_per_address"),
        (Self::ConnectionsPerPeer, "connections_per_peer"),
        (Self::FailedLogins, "failed_logins"),
        (Self::HandshakeRate, "handshake_rate"),
        (Self::Handshakes, "handshakes"),
        (Self::HandshakesUnproven, "handshakes_unproven"),
        (Self::Memory, "memory"),
        (Self::Retries, "retries"),
    ];
}

/// The limit at which a new connection finds no free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CapacityScope {
    /// All slots are taken: a known peer takes the slot of an unknown one.
    All,
    /// The slots of unknown peers of this network are taken.
    Network(NetworkPrefix),
    /// The slots of unknown peers of a site are taken. The new peer came from this network of the site.
    Site(NetworkPrefix),
    /// The slots of all unknown peers are taken. The new peer came from this network.
    UnknownPeers(NetworkPrefix),
    /// The library still has the memory of too many ended connections, of one network, one site or all unknown peers.
    /// Ending another connection frees none of it soon.
    Closing,
}

impl CapacityScope {
    /// The limit that was reached.
    pub(crate) const fn limit(self) -> AdmissionLimit {
        match self {
            Self::All | Self::UnknownPeers(_) => AdmissionLimit::Connections,
            Self::Network(_) | Self::Site(_) | Self::Closing => {
                AdmissionLimit::ConnectionsPerAddress
            }
        }
    }
}
