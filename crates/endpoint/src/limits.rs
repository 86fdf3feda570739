//! The limits on what unknown peers may cost this node.

use std::time::Duration;

/// Bytes of the receive window with which every QUIC connection begins, of known and unknown peers. A client sends a
/// quarter of them before it has any packet of the node.
pub(crate) const WINDOW_BYTES_FIRST: u32 = 64 << 10;
/// Bytes of the window that a known peer's connection gets at once where there is room for it: those of two of its
/// streams.
pub(crate) const WINDOW_BYTES_START: u32 = 2 << 20;

/// Limits of admission. Each number bounds memory or work that an unknown peer can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLimits {
    /// Connections served at once.
    pub connections_max: u32,
    /// Connections served at once for the unknown peers of one network: a /24 of IPv4 or a /56 of IPv6. One token
    /// gets as many slots of known peers.
    pub per_address_max: u32,
    /// Connections served at once for one peer, over all its keys and protocols, unless its configured entry has a
    /// number of its own.
    pub per_peer_max: u32,
    /// TCP handshakes under way; one more ends the oldest of the network that has the most.
    pub tcp_handshakes_max: u32,
    /// TCP handshakes under way from one network; one more ends the oldest of that network.
    pub tcp_handshakes_per_address_max: u32,
    /// QUIC handshakes under way with addresses that may be forged. Beyond them a client must prove its address.
    pub unvalidated_handshakes_max: u32,
    /// QUIC handshakes begun in one second with addresses that may be forged. Beyond them a client must prove its
    /// address.
    pub unvalidated_handshakes_per_second_max: u32,
    /// QUIC handshakes under way with proven addresses; one more ends the oldest of the network that has the most.
    pub validated_handshakes_max: u32,
    /// Requests for such a proof in one second. Further packets get no answer. Each request is a tenth of the packet
    /// that it answers, so that an attacker gains little by reflecting a flood with forged addresses. Without any
    /// request, an honest client would not get in beside such a flood.
    pub retries_per_second_max: u32,
    /// Handshakes that a network may have in a burst.
    pub handshake_burst: u32,
    /// Handshakes per second that a network earns back.
    pub handshakes_per_second: u32,
    /// Failed logins of a network in a minute. After them the node refuses guesses from that network for a while.
    pub failures_per_minute_max: u32,
    /// Time that a handshake may take; fixed once the port is bound.
    pub handshake_timeout: Duration,
    /// Bytes that the receive windows of all QUIC connections may have beyond those with which each begins; fixed
    /// once the port is bound.
    pub window_bytes: usize,
}

impl EndpointLimits {
    /// Bytes of memory that the limits reckon for one idle connection.
    const CONNECTION_BYTES: u64 = 64 << 10;
    /// Largest number of connections on any machine.
    const CONNECTIONS_MAX: u64 = 4096;

    /// Largest sum of receive windows, in bytes, on a machine with much memory.
    const WINDOW_BYTES_MAX: usize = 256 << 20;
    /// Smallest sum of receive windows, in bytes, on a machine with little memory.
    const WINDOW_BYTES_MIN: usize = 4 << 20;
    /// Part of the machine's memory that receive windows get between these two: an eighth.
    const WINDOW_MEMORY_PART: u64 = 8;

    /// One slot in this many is for known peers alone.
    const RESERVED: u32 = 4;

    /// One slot in this many is for unknown peers where known ones have all others.
    const FOR_UNKNOWN: u32 = 32;

    /// Connections of unknown peers that known peers leave their slots, and that get a slot of the known peer that has
    /// the most: a client that shows a token, asks for enrolment or has a browser is unknown when it connects.
    #[must_use]
    pub const fn unknown_peers_min(&self) -> u32 {
        let part = self.connections_max / Self::FOR_UNKNOWN;
        if part == 0 { 1 } else { part }
    }

    /// Connections served at once for unknown peers. The other slots are for known peers alone.
    #[must_use]
    pub const fn unknown_peers_max(&self) -> u32 {
        self.connections_max - self.connections_max / Self::RESERVED
    }

    /// Connections that may have a known peer's slot by a token.
    #[must_use]
    pub const fn token_holders_max(&self) -> u32 {
        self.connections_max / 2
    }

    /// The limits of a machine with `memory_bytes`. Connections take at most a quarter of it, and their windows,
    /// beyond those with which each begins, an eighth.
    ///
    /// ```
    /// use alknet_endpoint::EndpointLimits;
    ///
    /// let small = EndpointLimits::for_memory(64 << 20);
    /// let large = EndpointLimits::for_memory(8 << 30);
    /// assert!(small.connections_max < large.connections_max);
    /// assert_eq!(small.per_peer_max, large.per_peer_max);
    /// ```
    #[must_use]
    pub fn for_memory(memory_bytes: u64) -> Self {
        let connections = (memory_bytes / 4 / Self::CONNECTION_BYTES).min(Self::CONNECTIONS_MAX);
        let windows = usize::try_from(memory_bytes / Self::WINDOW_MEMORY_PART);
        let windows = windows.unwrap_or(usize::MAX);
        Self {
            connections_max: u32::try_from(connections).unwrap_or(u32::MAX),
            window_bytes: windows.clamp(Self::WINDOW_BYTES_MIN, Self::WINDOW_BYTES_MAX),
            ..Self::default()
        }
    }
}

impl Default for EndpointLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            per_address_max: 64,
            per_peer_max: 16,
            tcp_handshakes_max: 256,
            tcp_handshakes_per_address_max: 64,
            unvalidated_handshakes_max: 64,
            unvalidated_handshakes_per_second_max: 256,
            validated_handshakes_max: 256,
            retries_per_second_max: 16_384,
            handshake_burst: 60,
            handshakes_per_second: 20,
            failures_per_minute_max: 10,
            handshake_timeout: Duration::from_secs(5),
            window_bytes: Self::WINDOW_BYTES_MAX,
        }
    }
}
