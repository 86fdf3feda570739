//! Limits of a WebSocket. The call protocol limits the length of a message.

use std::time::Duration;

/// The most fragments of one message.
pub(super) const FRAGMENTS_MAX: u32 = 1024;

/// How long a fragmented message, or the header of a frame, may stay incomplete.
const PARTIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The time from one ping to the next.
const PING_EVERY: Duration = Duration::from_secs(20);

/// How long the peer may keep this node waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct WsTimeouts {
    /// The limit for the rest of a message that has begun.
    pub(super) partial: Duration,
    /// The time from one ping to the next.
    pub(super) ping_every: Duration,
}

impl Default for WsTimeouts {
    fn default() -> Self {
        Self {
            partial: PARTIAL_TIMEOUT,
            ping_every: PING_EVERY,
        }
    }
}

/// The pings in a row without any bytes from the peer, after which the WebSocket ends.
pub(super) const PINGS_MISSED_MAX: u32 = 2;

/// How long a closed WebSocket waits until the peer has read the reason.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The peer's bytes that the node discards meanwhile.
pub(super) const GOODBYE_BYTES_MAX: usize = 4 << 20;

/// The bytes of the longest frame that the node sends: pings and the close frame are sent between two frames. Each
/// WebSocket holds this number of bytes while the client receives nothing, in addition to those that count for its
/// reader. A frame of HTTP/2 and a record of TLS are no longer.
pub(super) const FRAME_SENT_BYTES: usize = 16 << 10;

/// The control frames that are handled before another task gets its turn.
pub(super) const CONTROLS_PER_TURN: u32 = 32;

/// The least and the most bytes that one read requests from the connection.
pub(super) const READ_BYTES: std::ops::RangeInclusive<usize> = (4 << 10)..=(64 << 10);

/// An empty buffer with more capacity is freed.
pub(super) const KEPT_BYTES_MAX: usize = 4 << 10;
