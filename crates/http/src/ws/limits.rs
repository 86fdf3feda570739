//! What a WebSocket may cost. How long a message may be is the call protocol's to say.

use std::time::Duration;

/// Frames that one message may be cut into.
pub(super) const FRAGMENTS_MAX: u32 = 1024;

/// How long a message that came in pieces, or a frame's head, may stay unfinished.
const PARTIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// From one ping to the next.
const PING_EVERY: Duration = Duration::from_secs(20);

/// How long the other side may leave this node waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct WsTimeouts {
    /// For the rest of a message that has begun.
    pub(super) partial: Duration,
    /// From one ping to the next.
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

/// Pings in a row after which nothing was heard.
pub(super) const PINGS_MISSED_MAX: u32 = 2;

/// How long a closed WebSocket waits until the other side has read why.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is thrown away of the other side's bytes meanwhile.
pub(super) const GOODBYE_BYTES_MAX: usize = 4 << 20;

/// Bytes of the longest frame sent: pings and the end find their place between two. Each WebSocket holds as many, beside
/// what is counted for its reader, while nothing of them is taken; a frame of HTTP/2 and a record of TLS have no more.
pub(super) const FRAME_SENT_BYTES: usize = 16 << 10;

/// Control frames that are looked at before another task has a turn.
pub(super) const CONTROLS_PER_TURN: u32 = 32;

/// Bytes asked of the connection at least and at most.
pub(super) const READ_BYTES: std::ops::RangeInclusive<usize> = (4 << 10)..=(64 << 10);

/// An empty buffer that holds more is given back.
pub(super) const KEPT_BYTES_MAX: usize = 4 << 10;
