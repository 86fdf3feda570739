//! Limits of HTTP connections and requests. `alknet_gateway::limits` has those of calls.

use std::time::Duration;

pub use alknet_call::limits::UNKNOWN_CONNECTION_MAX;
use alknet_core::StreamBudget;

/// Bytes of a request's line and headers.
pub const HEADER_BYTES_MAX: usize = 32 << 10;
/// Header fields of a request.
pub const HEADER_FIELDS_MAX: usize = 100;
/// Bytes of a path with its query.
pub const URL_BYTES_MAX: usize = 8 << 10;
/// The limit for the headers of a request, and for the first request of a connection.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long no bytes of an incomplete body may arrive.
pub const BODY_IDLE: Duration = Duration::from_secs(30);
/// The least average rate of a body after [`BODY_GRACE`], in bytes per second.
pub const BODY_BYTES_PER_SECOND: u64 = 1 << 10;
/// How long a body may be slower than that.
pub const BODY_GRACE: Duration = Duration::from_secs(10);
/// Bytes of a message to the tool server for models.
pub const MCP_BYTES_MAX: usize = 4 << 20;
/// The limit for a body that is read completely before it is used: a client with 1.2 Mbit/s sends the longest body in
/// that time. The memory that counts as in progress is free again after it.
pub const BODY_TIME: Duration = Duration::from_secs(60);
/// How long a client may leave a response unread, in addition to a second for each [`BODY_BYTES_PER_SECOND`] of its
/// bytes.
pub const READER_PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes that the node reads and discards of a body whose response came before its end.
pub const LINGER_BYTES: usize = 16 << 20;
/// The limit for that.
pub const LINGER_TIME: Duration = Duration::from_secs(10);
/// How long the node keeps a connection without a request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Streams that a peer may have open on one connection of HTTP/2 or HTTP/3.
pub const STREAMS_MAX: u32 = 128;
/// Bytes in flight to the node on one connection of HTTP/2, on all of its streams together. They wait in the library
/// and count against no account, and an address may have 128 connections.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// Streams on one HTTP/2 connection that a peer may reset before the node responds to them.
pub const RESETS_MAX: usize = 16;
/// Bytes of a response that the library buffers for one stream of HTTP/2 until the client receives them.
pub const SEND_BUFFER: usize = 64 << 10;
/// Bytes of a response that are handed on at once over HTTP/2: the memory that a stream may use for a client that
/// receives nothing.
pub const ANSWER_PIECE: usize = 16 << 10;
/// Like `ANSWER_PIECE`, over HTTP/1.1 and HTTP/3, where each connection uses this memory instead of each stream.
pub const ANSWER_PIECE_LARGE: usize = 64 << 10;
/// Streams that a client of HTTP/2 may reset on one connection before the average counts: a browser that leaves a
/// page resets its open streams.
pub const RESETS_BURST: u32 = 2 * STREAMS_MAX;
/// Streams that the client may reset per second on average.
pub const RESETS_PER_SECOND: u32 = 20;
/// Bytes of frames that one connection of HTTP/2 writes at once.
pub const GATHERED_BYTES: usize = 64 << 10;
/// How often the node sends a comment on a stream without events.
pub const EVENT_PING: Duration = Duration::from_secs(15);
/// Bytes of one event that the node sends.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// The longest file of a static site that is cached in memory.
pub const SITE_FILE_BYTES: u64 = 64 << 10;
/// Bytes of all cached files together.
pub const SITE_CACHE_BYTES: usize = 8 << 20;
/// Names of a static site that the cache knows.
pub const SITE_NAMES: usize = 4096;
/// How long a new or removed file or packed form may go unnoticed. A change of a file's content is noticed at once.
pub const SITE_LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Bytes that are read at once of a file that is not cached. Each response in progress holds this number of bytes.
pub const SITE_CHUNK: usize = 32 << 10;
/// Files of a static site longer than [`SITE_FILE_BYTES`] that are open at once for clients that have not received all of
/// them. A node with few files has fewer.
pub const SITE_OPEN_FILES_MAX: usize = 2048;
/// Part of them that only known peers may have: a quarter.
pub const SITE_OPEN_FILES_RESERVED: usize = 4;
/// Bytes that count for a mount's response that is read while the client receives it: the current block and the next
/// one.
pub const VIEW_BYTES: usize = 512 << 10;
/// Names of a static site that are looked up on disk at once.
pub const SITE_LOOKS: usize = 16;
/// Ranges of one request for a file.
pub const SITE_RANGES_MAX: usize = 1;
/// Seconds that a browser may cache the response to a preflight request.
pub const CORS_MAX_AGE_S: u32 = 600;
/// Seconds that a client may remember the offer of HTTP/3.
pub const ALT_SVC_MAX_AGE_S: u32 = 86_400;
/// Seconds for which a browser must use TLS for this host.
pub const HSTS_MAX_AGE_S: u32 = 31_536_000;
/// Connections that port 80 accepts at once.
pub const PORT80_CONNECTIONS_MAX: usize = 64;
/// The limit for one connection on port 80, from the first byte to the last.
pub const PORT80_TIME: Duration = Duration::from_secs(10);

/// The budget of an authenticated HTTP/3 client.
pub const BUDGET: StreamBudget = StreamBudget {
    bidi_streams: STREAMS_MAX,
    uni_streams: 8,
    stream_window_bytes: 1 << 20,
    connection_window_bytes: 8 << 20,
    send_window_bytes: 8 << 20,
};

/// WebSockets that one connection of HTTP/2 carries.
pub const SESSIONS_MAX: u32 = 16;

/// A machine with at most this many bytes of memory is a small one, and the node does a quarter of the work at once.
pub const SMALL_MEMORY_BYTES: u64 = 512 << 20;

/// The time limits for clients. Tests use shorter ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// The limit for the head of a request, and for the first request of a connection.
    pub head: Duration,
    /// The limit for the next request of a connection.
    pub keep_alive: Duration,
    /// The limit for authentication, whatever the client requests meanwhile. After it, the node accepts no further
    /// request of the client.
    pub unknown_peer: Duration,
    /// The limit for more bytes of an incomplete body.
    pub body_idle: Duration,
    /// The limit for a body that is slower than [`BODY_BYTES_PER_SECOND`].
    pub body_grace: Duration,
    /// The limit for all of a body that is read completely.
    pub body_time: Duration,
    /// The limit for a client that receives nothing of a response.
    pub reader: Duration,
    /// The limit for an event, after which the node sends a comment.
    pub event_ping: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            head: HEADER_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            unknown_peer: UNKNOWN_CONNECTION_MAX,
            body_idle: BODY_IDLE,
            body_grace: BODY_GRACE,
            body_time: BODY_TIME,
            reader: READER_PATIENCE,
            event_ping: EVENT_PING,
        }
    }
}
