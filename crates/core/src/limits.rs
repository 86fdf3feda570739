//! Flow-control budgets. Each number bounds memory that a peer can make this node hold.

/// One identity may have this part of what is left of the last quarter: a thirty-second. So identities that have the
/// least come first, and one that has little finds room beside some hundred others that take all they may.
pub const BYTES_LEAST: usize = 32;

/// Whether one identity may have `own` bytes if all identities together have `all` of `most`, these included. In the
/// last quarter an identity may have only a part of what is left of it ([`BYTES_LEAST`]).
#[must_use]
pub fn leaves_capacity(own: usize, all: usize, most: usize) -> bool {
    all <= most / 4 * 3 || (all <= most && own <= (most - all) / BYTES_LEAST)
}

/// Streams and bytes that a peer may have open and in flight on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBudget {
    /// Concurrent bidirectional streams that the peer may open.
    pub bidi_streams: u32,
    /// Concurrent unidirectional streams that the peer may open.
    pub uni_streams: u32,
    /// Bytes in flight on one stream.
    pub stream_window_bytes: u32,
    /// Bytes in flight towards this node on the whole connection.
    pub connection_window_bytes: u32,
    /// Bytes that this node buffers towards the peer.
    pub send_window_bytes: u32,
}

impl StreamBudget {
    /// Budget of every protocol before the peer is known.
    pub const UNAUTHENTICATED: Self = Self {
        bidi_streams: 16,
        uni_streams: 3,
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 256 << 10,
        send_window_bytes: 256 << 10,
    };
    /// Default budget once the peer is known.
    pub const AUTHENTICATED: Self = Self {
        bidi_streams: 64,
        uni_streams: 4,
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 8 << 20,
        send_window_bytes: 8 << 20,
    };
    /// Budget of call and channels, which multiplex many requests.
    pub const CALL: Self = Self {
        bidi_streams: 1024,
        uni_streams: 4,
        stream_window_bytes: 1 << 20,
        connection_window_bytes: 16 << 20,
        send_window_bytes: 8 << 20,
    };
}
