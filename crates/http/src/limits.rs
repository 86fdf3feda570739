//! Bounds of HTTP connections and requests. Those of calls are in `alknet_gateway::limits`.

use std::time::Duration;

pub use alknet_call::limits::UNKNOWN_CONNECTION_MAX;
use alknet_core::StreamBudget;

/// Bytes of a request's line and headers.
pub const HEADER_BYTES_MAX: usize = 32 << 10;
/// Header fields of a request.
pub const HEADER_FIELDS_MAX: usize = 100;
/// Bytes of a path with its query.
pub const URL_BYTES_MAX: usize = 8 << 10;
/// How long the headers of a request may take, and the first request of a connection.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may come of a body that is not whole.
pub const BODY_IDLE: Duration = Duration::from_secs(30);
/// Bytes a second that a body has to come with, on average, after [`BODY_GRACE`].
pub const BODY_BYTES_PER_SECOND: u64 = 1 << 10;
/// How long a body may come slower.
pub const BODY_GRACE: Duration = Duration::from_secs(10);
/// Bytes of a message for models' tools.
pub const MCP_BYTES_MAX: usize = 4 << 20;
/// How long a body may take that is read whole before anything is done with it: a client with 1.2 Mbit/s sends the
/// longest in that time. What counts as memory under way is then free again.
pub const BODY_TIME: Duration = Duration::from_secs(60);
/// How long a client may leave an answer unread, besides a second for each [`BODY_BYTES_PER_SECOND`] of what it
/// has to take.
pub const READER_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that are read and thrown away of a body that was answered before it was whole.
pub const LINGER_BYTES: usize = 16 << 20;
/// How long that may take.
pub const LINGER_TIME: Duration = Duration::from_secs(10);
/// How long a connection is kept without a request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Streams that a peer may have open on one connection of HTTP/2 or HTTP/3.
pub const STREAMS_MAX: u32 = 128;
/// Bytes in flight towards us on one connection of HTTP/2, on all of its streams together. They wait in the library,
/// where they count for no account: an address may have 128 connections.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// Streams that a peer may reset before we answered them, and not waited for, on HTTP/2.
pub const RESETS_MAX: usize = 16;
/// Bytes kept of an answer that its reader has not taken, on one stream of HTTP/2.
pub const SEND_BUFFER: usize = 64 << 10;
/// Bytes of an answer that are handed on at once over HTTP/2: what a stream may hold for a client that takes
/// nothing of it.
pub const ANSWER_PIECE: usize = 16 << 10;
/// The same over HTTP/1.1 and HTTP/3, where a connection holds it and not each stream.
pub const ANSWER_PIECE_LARGE: usize = 64 << 10;
/// Streams that a client of HTTP/2 may reset on one connection before the average counts: a browser that leaves a
/// page resets what is open of it.
pub const RESETS_BURST: u32 = 2 * STREAMS_MAX;
/// Streams that it may reset in a second, on average.
pub const RESETS_PER_SECOND: u32 = 20;
/// Bytes of frames that one connection of HTTP/2 writes at once.
pub const GATHERED_BYTES: usize = 64 << 10;
/// How often a comment is sent on a stream of events on which nothing happens.
pub const EVENT_PING: Duration = Duration::from_secs(15);
/// Bytes of one event on its way out.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// Longest file of a static site that is kept in memory.
pub const SITE_FILE_BYTES: u64 = 64 << 10;
/// Bytes of files kept in memory, together.
pub const SITE_CACHE_BYTES: usize = 8 << 20;
/// Names of a static site that something is known of.
pub const SITE_NAMES: usize = 4096;
/// How long a file or a packed form that was added or taken away may go unnoticed. What changes in a
/// file is noticed at once.
pub const SITE_LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Bytes read at once of a file that is not. Each answer under way holds as many.
pub const SITE_CHUNK: usize = 32 << 10;
/// Bytes that are counted for an answer of another part that reads on as the client takes it: one block under way,
/// and the next.
pub const VIEW_BYTES: usize = 512 << 10;
/// Names of a static site that are looked up on disk at once.
pub const SITE_LOOKS: usize = 16;
/// Ranges of one request for a file.
pub const SITE_RANGES_MAX: usize = 1;
/// Seconds that a browser may remember the answer to a preflight request.
pub const CORS_MAX_AGE_S: u32 = 600;
/// Seconds that a client may remember that HTTP/3 is served.
pub const ALT_SVC_MAX_AGE_S: u32 = 86_400;
/// Seconds that a browser is to ask this host over TLS only.
pub const HSTS_MAX_AGE_S: u32 = 31_536_000;
/// Connections taken at once on port 80.
pub const PORT80_CONNECTIONS_MAX: usize = 64;
/// How long one connection on port 80 may take, from first to last byte.
pub const PORT80_TIME: Duration = Duration::from_secs(10);

/// What a client of HTTP/3 may have open once it is known.
pub const BUDGET: StreamBudget = StreamBudget {
    bidi_streams: STREAMS_MAX,
    uni_streams: 8,
    stream_window_bytes: 1 << 20,
    connection_window_bytes: 8 << 20,
    send_window_bytes: 8 << 20,
};

/// WebSockets that one connection of HTTP/2 carries.
pub const SESSIONS_MAX: u32 = 16;

/// Memory, in bytes, with which a machine is a small one, and the node does a quarter of it at once.
pub const SMALL_MEMORY_BYTES: u64 = 512 << 20;

/// How long clients are waited for. Tests wait less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// For the head of a request, and for the first request of a connection.
    pub head: Duration,
    /// For the next request of a connection.
    pub keep_alive: Duration,
    /// For a client to prove who it is, whatever it asks meanwhile. Then no more of its requests are taken.
    pub stranger: Duration,
    /// For more of a body that is not whole.
    pub body_idle: Duration,
    /// For a body that comes slower than [`BODY_BYTES_PER_SECOND`].
    pub body_grace: Duration,
    /// For all of a body that is read whole.
    pub body_time: Duration,
    /// For a client that takes nothing of an answer.
    pub reader: Duration,
    /// For an event, before a comment is sent.
    pub event_ping: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            head: HEADER_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            stranger: UNKNOWN_CONNECTION_MAX,
            body_idle: BODY_IDLE,
            body_grace: BODY_GRACE,
            body_time: BODY_TIME,
            reader: READER_PATIENCE,
            event_ping: EVENT_PING,
        }
    }
}
