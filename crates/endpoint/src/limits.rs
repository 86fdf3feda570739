//! What unknown peers may cost this node.

use std::time::Duration;

/// Bytes of the receive window with which every QUIC connection begins, of known and unknown peers: a client sends a
/// quarter of them before it has heard of the node at all.
pub(crate) const WINDOW_BYTES_FIRST: u32 = 64 << 10;
/// Bytes of the window that a known peer's connection has at once, where there is room: those of two of its streams.
pub(crate) const WINDOW_BYTES_START: u32 = 2 << 20;

/// Limits of admission. Each number bounds memory or work that an unknown peer can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLimits {
    /// Connections served at once.
    pub connections_max: u32,
    /// Connections served at once for the unknown peers of one network: a /24 of IPv4 or a /56 of IPv6. As many
    /// have a known peer's place by one token.
    pub per_address_max: u32,
    /// Connections served at once for one peer, over all its keys and protocols, unless its entry
    /// has a number of its own.
    pub per_peer_max: u32,
    /// TCP handshakes at once; one more ends the oldest of the network that has the most.
    pub tcp_handshakes_max: u32,
    /// TCP handshakes at once from one network; one more ends the oldest of that network.
    pub tcp_handshakes_per_address_max: u32,
    /// QUIC handshakes at once with addresses that may be forged; further ones must prove theirs.
    pub unvalidated_handshakes_max: u32,
    /// QUIC handshakes begun in one second with addresses that may be forged; further ones must prove theirs.
    pub unvalidated_handshakes_per_second_max: u32,
    /// QUIC handshakes at once with proven addresses; one more ends the oldest of the network that has the
    /// most.
    pub validated_handshakes_max: u32,
    /// Requests for such a proof in one second; further packets get no answer. Each request is a tenth of the packet it
    /// answers, so that a flood with forged addresses is hardly reflected. Without any, an honest client would not get
    /// in beside such a flood.
    pub retries_per_second_max: u32,
    /// Handshakes a network prefix may have in a burst.
    pub handshake_burst: u32,
    /// Handshakes per second it earns back.
    pub handshakes_per_second: u32,
    /// Failed logins of a network in a minute after which its guesses are refused for a while.
    pub failures_per_minute_max: u32,
    /// Time a handshake may take; fixed once the port is bound.
    pub handshake_timeout: Duration,
    /// Bytes that the receive windows of all QUIC connections have beside those with which each begins; fixed once the
    /// port is bound.
    pub window_bytes: usize,
}

impl EndpointLimits {
    /// Memory one idle connection is accounted with.
    const CONNECTION_BYTES: u64 = 64 << 10;
    /// Most connections on any machine.
    const CONNECTIONS_MAX: u64 = 4096;

    /// Bytes of receive windows however much memory the machine has.
    const WINDOW_BYTES_MAX: usize = 256 << 20;
    /// And however little.
    const WINDOW_BYTES_MIN: usize = 4 << 20;
    /// Which part of the machine's memory they are between these two: an eighth.
    const WINDOW_MEMORY_PART: u64 = 8;

    /// Places that only known peers get: one in so many.
    const RESERVED: u32 = 4;

    /// Connections served at once for unknown peers; the other places are kept for known ones.
    #[must_use]
    pub const fn strangers_max(&self) -> u32 {
        self.connections_max - self.connections_max / Self::RESERVED
    }

    /// Connections that have a known peer's place by a token.
    #[must_use]
    pub const fn token_holders_max(&self) -> u32 {
        self.connections_max / 2
    }

    /// The limits of a machine with `memory_bytes`: connections take a quarter of it at most, and their windows beyond
    /// what each begins with an eighth.
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
