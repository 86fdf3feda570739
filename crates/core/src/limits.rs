//! Flow-control budgets. Each number bounds memory a peer can make this node hold.

/// Which part of what is left of the last quarter one identity may have: a thirty-second. Identities that have the
/// least come first so, and one that has little finds room beside some hundred others that take all they may.
pub const BYTES_LEAST: usize = 32;

/// Whether one identity may have `own` bytes where `all` of `most` are taken, these included. In the last quarter an
/// identity has at most a part of what is left of it ([`BYTES_LEAST`]).
#[must_use]
pub fn leaves_room(own: usize, all: usize, most: usize) -> bool {
    all <= most / 4 * 3 || (all <= most && own <= (most - all) / BYTES_LEAST)
}

/// How much a peer may have open and in flight on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBudget {
    /// Concurrent bidirectional streams the peer may open.
    pub bidi_streams: u32,
    /// Concurrent unidirectional streams the peer may open.
    pub uni_streams: u32,
    /// Bytes in flight on one stream.
    pub stream_window_bytes: u32,
    /// Bytes in flight towards us on the whole connection.
    pub connection_window_bytes: u32,
    /// Bytes we buffer towards the peer.
    pub send_window_bytes: u32,
}

impl StreamBudget {
    /// Before the peer is known, for every protocol.
    pub const UNAUTHENTICATED: Self = Self {
        bidi_streams: 16,
        uni_streams: 3,
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 256 << 10,
        send_window_bytes: 256 << 10,
    };
    /// The default once the peer is known.
    pub const AUTHENTICATED: Self = Self {
        bidi_streams: 64,
        uni_streams: 4,
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 8 << 20,
        send_window_bytes: 8 << 20,
    };
    /// Call and channels, which multiplex many requests.
    pub const CALL: Self = Self {
        bidi_streams: 1024,
        uni_streams: 4,
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 16 << 20,
        send_window_bytes: 8 << 20,
    };
}
