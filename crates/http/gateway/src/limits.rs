//! Limits of calls over HTTP. These are the defaults; the section `[http]` of the configuration changes some.

use std::time::Duration;

/// Bytes of requests and responses under way, and the part of them that one caller may have: the same as for requests
/// over `alknet/call`, which have their own.
pub use alknet_call::limits::{
    BYTES_LEAST, BYTES_PER_NODE, BYTES_PER_NODE_MIN, BYTES_SHARE, BYTES_UNKNOWN_PEERS,
    BYTES_UNKNOWN_PEERS_SHARE, MEMORY_PART,
};

/// Bytes of a request's body on `/call`, `/batch` and `/subscribe`.
pub const CALL_BYTES_MAX: usize = 8 << 20;
/// Nested arrays and objects in a request's body.
pub const NESTING_MAX: usize = 64;
/// Longest timeout that a request may state, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 600_000;
/// Calls in one batch.
pub const BATCH_CALLS_MAX: usize = 64;
/// Calls of one batch that run concurrently.
pub const BATCH_PARALLEL: usize = 8;
/// Time of a batch for all its calls.
pub const BATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the id of a call in a batch.
pub const BATCH_ID_BYTES_MAX: usize = 64;
/// Operations on a page of `/search`.
pub const SEARCH_LIMIT: usize = 50;
/// Most operations that a request may ask for on one page.
pub const SEARCH_LIMIT_MAX: usize = 500;
/// Characters of a namespace in a search; no operation has a longer one.
pub const NAMESPACE_CHARS_MAX: usize = 63;
/// Bytes of a search text.
pub const SEARCH_BYTES_MAX: usize = 256;
/// Concurrent calls of the whole node.
pub const CALLS_PER_NODE: usize = 256;
/// Concurrent calls of one identity.
pub const CALLS_PER_IDENTITY: usize = 32;
/// Open streams of events of one identity.
pub const STREAMS_PER_IDENTITY: usize = 64;
/// Bytes of a response that are counted before the call runs.
pub const ANSWER_BYTES_MIN: usize = 8 << 10;
/// Bytes of a batch's response for each of its calls, whatever its result: its id, and an error.
pub const BATCH_ITEM_BYTES: usize = 1 << 10;
/// Factor of the bytes counted for a body over the bytes received, up to its announced length: a client that sends
/// nothing takes nothing from others, and no more long bodies are read at once than have room.
pub const BODY_AHEAD: usize = 16;
/// Bytes up to which a request counts as small. A quarter of the bytes is for small requests and for identities with
/// few bytes: once [`FREE_EIGHTHS`] are taken, each gets a part of the rest ([`BYTES_LEAST`]).
pub const SMALL_BYTES: usize = 64 << 10;
/// Eighths of the bytes that go to the first requests of any identity. A first identity gets half of all bytes, a
/// second one the rest of these, which is a body of [`CALL_BYTES_MAX`] on a machine with 512 MiB.
pub const FREE_EIGHTHS: usize = 5;
/// Divisor of the rest of three quarters, of which one identity may have a part once those eighths are taken and its
/// request is not small: a sixteenth. With 512 MiB of memory, a third identity gets some 480 KiB.
pub const LONG_LEAST: usize = 16;
/// Requests per second of one identity, on average.
pub const REQUESTS_PER_SECOND: u32 = 50;
/// Requests that one identity may make at once before the average counts.
pub const REQUESTS_BURST: u32 = 200;
/// Requests per second without an identity, for one network (a /24 of IPv4, a /56 of IPv6).
pub const UNKNOWN_PEER_REQUESTS_PER_SECOND: u32 = 10;
/// Requests that an unknown peer may make at once before the average counts.
pub const UNKNOWN_PEER_REQUESTS_BURST: u32 = 40;
/// Identities and networks whose requests are counted at once.
pub const ACCOUNTS_MAX: usize = 8192;
/// How long a ticket for a stream of events is valid.
pub const TICKET_TIME: Duration = Duration::from_secs(30);
/// Tickets that wait for their use.
pub const TICKETS_MAX: usize = 1024;
/// Bytes that all tickets keep of their requests.
pub const TICKET_BYTES_MAX: usize = 16 << 20;
/// Divisor of the tickets, and of their bytes, of which one identity may have a part: an eighth.
pub const TICKETS_SHARE: usize = 8;
/// Violations of a schema in one error.
pub const VIOLATIONS_MAX: usize = 10;
