//! What the client waits for, and how much it takes. docs/imports.md has them as a table.

use std::time::Duration;

/// Everything from the name to a connection that speaks HTTP.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole exchange, from the dial to the last byte of the body, unless the request says otherwise.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// From the dial to the head of the answer, redirects included, where the exchange has no end.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence within a body.
pub const BODY_IDLE: Duration = Duration::from_secs(30);
/// Longest silence within a stream of events.
pub const STREAM_IDLE: Duration = Duration::from_secs(5 * 60);
/// Longest head of an answer: status line and headers.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// Most headers of an answer.
pub const HEADERS_MAX: usize = 100;
/// Longest URI of a request.
pub const URI_BYTES_MAX: usize = 8 << 10;
/// Redirects that are followed.
pub const REDIRECTS_MAX: usize = 3;
/// Times that a query is asked again.
pub const RETRIES_MAX: u32 = 2;
/// Before the first of these; twice as long before the second.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Longest delay that a server can ask for; what asks for more is not asked again.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// How long a connection is kept for the next request.
pub const POOL_IDLE: Duration = Duration::from_secs(30);
/// Connections that are kept for one server.
pub const POOL_PER_ORIGIN_MAX: usize = 4;
/// Connections that are kept at all.
pub const POOL_MAX: usize = 64;

/// Bytes by which the buffer of a body grows at least.
pub(crate) const BODY_GROWTH_BYTES: usize = 64 << 10;
/// Which part of what it has a long buffer grows by: an eighth, which is the most that it has too much.
pub(crate) const BODY_GROWTH_PART: usize = 8;

/// Bytes read at once: hyper's smallest buffer is 8 KiB, and a head has to fit.
pub(crate) const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Flow control of HTTP/2: of a stream, and of a connection.
pub(crate) const H2_STREAM_WINDOW: u32 = 256 << 10;
pub(crate) const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// The same for what is written: bytes of one stream that wait to be sent.
pub(crate) const H2_SEND_BUFFER: usize = 256 << 10;
