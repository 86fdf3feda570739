//! Limits for requests at `/mcp` and for the servers whose tools the node imports.

use std::time::Duration;

/// Bytes of one request at `/mcp`.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Bytes of a message without the arguments of the tool that it calls.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Nested arrays and objects in the arguments of a tool.
pub const NESTING_MAX: usize = 64;
/// Operations that an administrator may pin as tools of their own.
pub const PINNED_MAX: usize = 32;
/// Bytes of a tool's name; the protocol sets this limit.
pub const TOOL_NAME_BYTES_MAX: usize = 128;

/// Tools that the node imports from one server.
pub const TOOLS_MAX: usize = 1024;
/// Pages of a list of tools.
pub const PAGES_MAX: usize = 128;
/// Bytes of all descriptions and schemas of one server's tools.
pub const LISTING_BYTES_MAX: usize = 8 << 20;
/// Bytes of the schemas of one tool.
pub const SCHEMA_BYTES_MAX: usize = 256 << 10;
/// Characters of a description that the node keeps.
pub const DESCRIPTION_CHARS_MAX: usize = 2000;
/// Bytes of one answer.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Bytes of memory that the trees of one answer take, or those of all pages of a list: 233,016 values. The library
/// makes the trees, and a value of two bytes takes 144 bytes in them.
pub const TREE_BYTES_MAX: usize = 32 << 20;
/// Like `TREE_BYTES_MAX`, for a message that answers nothing: a notification or request of the server, and its
/// greeting.
pub const NOTE_TREE_BYTES_MAX: usize = 2 << 20;
/// Bytes of a response body that only reports an error.
pub const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Bytes of the answer of a tool that failed. If it is longer, the node passes on only its message, because an error
/// keeps the tree of its answer.
pub const ERROR_BYTES_MAX: usize = 1 << 20;
/// The least number of bytes that a call reserves for the answer before it sends a change. If memory has room, the
/// call reserves as many bytes as the longest answer has.
pub const CHANGE_ANSWER_BYTES_MIN: usize = 64 << 10;
/// Bytes of the headers that repeat arguments, names and values together. Servers accept little more.
pub const PARAM_HEADER_BYTES_MAX: usize = 16 << 10;
/// Bytes of one event of a stream.
pub const EVENT_BYTES_MAX: usize = 16 << 20;
/// Bytes of one answer that arrives as a stream, with everything that precedes it.
pub const STREAM_BYTES_MAX: usize = 64 << 20;
/// Calls of one server that are in progress at once.
pub const CALLS_MAX: usize = 32;
/// The share of these for the requests of one identity, or of the unknown peers of one network.
pub const CALLS_OF_ONE_MAX: usize = CALLS_MAX / 2;
/// If this number of calls is in progress, a requester gets a permit only if it has none.
pub const CALLS_SHARED: usize = CALLS_MAX / 4 * 3;
/// The share of these calls for the requests of all unknown peers.
pub const CALLS_UNKNOWN_MAX: usize = CALLS_MAX / 4;
/// The limit for sending the cancellation of a call; the node gives it up after that. The call keeps its permit until
/// then, and the cancellations of one requester are sent one after the other. The answer to a request of the server
/// has the same limit.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of a server on one connection whose answers are not posted yet; further ones get no answer. The library
/// keeps a task for each, and posts one answer after the other.
pub const SERVER_REQUESTS_MAX: usize = 32;
/// Bytes of the id and of the method of such a request, as the server wrote them: the answer repeats them.
pub const SERVER_REQUEST_NAME_BYTES_MAX: usize = 256;
/// How long a request counts that the server has cancelled and that therefore gets no answer. Half of this time
/// suffices to post or give up all answers together.
pub const SERVER_REQUEST_EXPIRY: Duration = Duration::from_secs(330);
/// The limit for reading a list of tools, including the greeting.
pub const LISTING_TIMEOUT: Duration = Duration::from_secs(60);
/// The limit for a call without a deadline of its own.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The interval after which the node lists the tools again, unless the server announces a change before.
pub const REFRESH: Duration = Duration::from_secs(600);
/// The shortest time between two listings, however often a server announces that its tools changed.
pub const REFRESH_MIN: Duration = Duration::from_secs(5);
/// The first wait before the node tries an unreachable server again; each further wait is twice as long.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const RETRY_LONGEST: Duration = Duration::from_secs(60);
