//! The client's time limits and sizes. docs/imports.md has them in a table.

use std::time::Duration;

/// Time from the resolution of the name to a connection that speaks HTTP.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time of a whole exchange, from the dial to the last byte of the body, unless the request states another.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time from the dial to the head of the response, redirects included, if the exchange has no end.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest silence within a body.
pub const BODY_IDLE: Duration = Duration::from_secs(30);
/// Longest silence within a stream of events.
pub const STREAM_IDLE: Duration = Duration::from_secs(5 * 60);
/// Longest head of a response: status line and headers.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// Most headers of a response.
pub const HEADERS_MAX: usize = 100;
/// Longest URI of a request.
pub const URI_BYTES_MAX: usize = 8 << 10;
/// Redirects that the client follows.
pub const REDIRECTS_MAX: usize = 3;
/// Retries of a query.
pub const RETRIES_MAX: u32 = 2;
/// Time before the first retry; twice as long before the second.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Longest delay that a server can request; a request for a longer one ends the retries.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// How long an idle connection stays open for the next request.
pub const POOL_IDLE: Duration = Duration::from_secs(30);
/// Idle connections to one server.
pub const POOL_PER_ORIGIN_MAX: usize = 4;
/// Idle connections in all.
pub const POOL_MAX: usize = 64;

/// Bytes by which the buffer of a body grows at least.
pub(crate) const BODY_GROWTH_BYTES: usize = 64 << 10;
/// Divisor of the growth of a long buffer: it grows by an eighth, which is also the most that it has too much.
pub(crate) const BODY_GROWTH_PART: usize = 8;

/// Bytes read at once: hyper's smallest buffer has 8 KiB, and a head must fit.
pub(crate) const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Windows of HTTP/2's flow control: of a stream, and of a connection.
pub(crate) const H2_STREAM_WINDOW: u32 = 256 << 10;
pub(crate) const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of one HTTP/2 stream that wait to be sent.
pub(crate) const H2_SEND_BUFFER: usize = 256 << 10;
