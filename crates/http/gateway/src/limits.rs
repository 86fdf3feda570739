//! Bounds of calls over HTTP. The defaults; the `[http]` section of the configuration changes some.

use std::time::Duration;

/// Bytes of requests and answers that are under way at once, and which part of them one caller may have: as many as
/// requests over `alknet/call` have for their own.
pub use alknet_call::limits::{
    BYTES_LEAST, BYTES_PER_NODE, BYTES_PER_NODE_MIN, BYTES_SHARE, BYTES_UNKNOWN_PEERS,
    BYTES_UNKNOWN_PEERS_SHARE, MEMORY_PART,
};

/// Bytes of a request's body on `/call`, `/batch` and `/subscribe`.
pub const CALL_BYTES_MAX: usize = 8 << 20;
/// Nested arrays and objects in a request's body.
pub const NESTING_MAX: usize = 64;
/// The longest time a request may ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 600_000;
/// Calls in one batch.
pub const BATCH_CALLS_MAX: usize = 64;
/// Calls of one batch that run at once.
pub const BATCH_PARALLEL: usize = 8;
/// Time that a batch has for all its calls.
pub const BATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the id of a call in a batch.
pub const BATCH_ID_BYTES_MAX: usize = 64;
/// Operations on a page of `/search`.
pub const SEARCH_LIMIT: usize = 50;
/// The most a page may be asked to have.
pub const SEARCH_LIMIT_MAX: usize = 500;
/// Characters of a namespace that is searched for: no operation's is longer.
pub const NAMESPACE_CHARS_MAX: usize = 63;
/// Bytes of what is searched for.
pub const SEARCH_BYTES_MAX: usize = 256;
/// Calls that run at once for the whole node.
pub const CALLS_PER_NODE: usize = 256;
/// Calls that run at once for one identity.
pub const CALLS_PER_IDENTITY: usize = 32;
/// Streams of events open at once for one identity.
pub const STREAMS_PER_IDENTITY: usize = 64;
/// Bytes of an answer that are counted before the call runs.
pub const ANSWER_BYTES_MIN: usize = 8 << 10;
/// Bytes of a batch's answer for each of its calls, whatever comes of it: its id, and an error.
pub const BATCH_ITEM_BYTES: usize = 1 << 10;
/// So many times what has come of a body is counted for it, up to what is said to come: who sends nothing takes
/// nothing from others, and no more long bodies are read at once than have room.
pub const BODY_AHEAD: usize = 16;
/// Bytes up to which a request is a small one. A quarter of the bytes is for those alone, and for identities that have
/// few of them: of what is left once [`FREE_EIGHTHS`] are taken, each has a part ([`BYTES_LEAST`]).
pub const SMALL_BYTES: usize = 64 << 10;
/// Eighths of the bytes that go to the first requests, whichever identity sends them. A first identity has half of all,
/// a second one the rest of these, which is a body of [`CALL_BYTES_MAX`] on a machine with 512 MiB.
pub const FREE_EIGHTHS: usize = 5;
/// Which part of what is left of three quarters one identity may have, once those are taken and its request is no small
/// one: a sixteenth. With 512 MiB of memory a third identity has some 480 KiB so.
pub const LONG_LEAST: usize = 16;
/// Requests a second for one identity, on average.
pub const REQUESTS_PER_SECOND: u32 = 50;
/// Requests one identity may make at once before the average counts.
pub const REQUESTS_BURST: u32 = 200;
/// Requests a second without an identity, for one network (a /24 of IPv4, a /56 of IPv6).
pub const STRANGER_REQUESTS_PER_SECOND: u32 = 10;
/// Requests an unknown peer may make at once before the average counts.
pub const STRANGER_REQUESTS_BURST: u32 = 40;
/// Identities and addresses whose requests are counted at once.
pub const ACCOUNTS_MAX: usize = 8192;
/// How long a ticket for a stream of events can be used.
pub const TICKET_TIME: Duration = Duration::from_secs(30);
/// Tickets that wait to be used.
pub const TICKETS_MAX: usize = 1024;
/// Bytes of what tickets keep of their requests, together.
pub const TICKET_BYTES_MAX: usize = 16 << 20;
/// Which part of the tickets, and of their bytes, one identity may have: an eighth.
pub const TICKETS_SHARE: usize = 8;
/// Violations of a schema listed in one error.
pub const VIOLATIONS_MAX: usize = 10;
