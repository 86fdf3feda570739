//! Bounds, of what comes in at `/mcp` and of what servers that are imported from may say.

use std::time::Duration;

/// Bytes of one request at `/mcp`.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Bytes of what a message has beside the arguments of the tool that it calls.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Nested arrays and objects in the arguments of a tool.
pub const NESTING_MAX: usize = 64;
/// Operations that are tools of their own.
pub const PINNED_MAX: usize = 32;
/// Bytes of a tool's name, as the protocol has it.
pub const TOOL_NAME_BYTES_MAX: usize = 128;

/// Tools that are taken from one server.
pub const TOOLS_MAX: usize = 1024;
/// Pages that a list of tools may have.
pub const PAGES_MAX: usize = 128;
/// Bytes of all descriptions and schemas of one server's tools.
pub const LISTING_BYTES_MAX: usize = 8 << 20;
/// Bytes of the schemas of one tool.
pub const SCHEMA_BYTES_MAX: usize = 256 << 10;
/// Characters of a description that are kept.
pub const DESCRIPTION_CHARS_MAX: usize = 2000;
/// Bytes of one answer.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Bytes that the trees of one answer take, or those of all pages of a list: 233,016 values. The library makes them, and
/// a value of two bytes takes 144.
pub const TREE_BYTES_MAX: usize = 32 << 20;
/// The same of a message that answers nothing: what a server tells or asks by itself, and its greeting.
pub const NOTE_TREE_BYTES_MAX: usize = 2 << 20;
/// Bytes of the body of an answer that only tells an error.
pub const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Bytes of the answer of a tool that failed, beyond which only its message is passed on: an error keeps its tree.
pub const ERROR_BYTES_MAX: usize = 1 << 20;
/// Bytes that a call keeps free before it sends a change, for the answer: at least so many, and as many as the longest
/// answer has where there is room.
pub const CHANGE_ANSWER_BYTES_MIN: usize = 64 << 10;
/// Bytes of the headers that a server wants arguments as, names and values together: servers take little more.
pub const PARAM_HEADER_BYTES_MAX: usize = 16 << 10;
/// Bytes of one event of a stream.
pub const EVENT_BYTES_MAX: usize = 16 << 20;
/// Bytes of one answer that comes as a stream, with everything that comes before it.
pub const STREAM_BYTES_MAX: usize = 64 << 20;
/// Calls of one server that are under way at once.
pub const CALLS_MAX: usize = 32;
/// Of these, calls that belong to requests of one identity, or of the unknown peers of one network.
pub const CALLS_OF_ONE_MAX: usize = CALLS_MAX / 2;
/// Calls under way beyond which a requester gets a place only if it has none.
pub const CALLS_SHARED: usize = CALLS_MAX / 4 * 3;
/// Calls that belong to requests of all unknown peers.
pub const CALLS_UNKNOWN_MAX: usize = CALLS_MAX / 4;
/// A server takes the cancellation of a call within this time, or the node gives it up. The call keeps its place until
/// then, and the cancellations of one requester are sent one after the other. The answer to a request of the server has
/// the same time.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of a server on one connection whose answers are not posted yet; further ones have no answer. The library
/// keeps a task for each, and posts one answer after the other.
pub const SERVER_REQUESTS_MAX: usize = 32;
/// Bytes of the id of such a request, and of its method, as the server wrote them: what answers it repeats them.
pub const SERVER_REQUEST_NAME_BYTES_MAX: usize = 256;
/// A request of a server that is never answered, as the server cancelled it, counts so long. All answers together are
/// posted or given up in half of it.
pub const SERVER_REQUEST_EXPIRY: Duration = Duration::from_secs(330);
/// A list of tools is read within this time, greeting included.
pub const LISTING_TIMEOUT: Duration = Duration::from_secs(60);
/// A call without a deadline of its own is answered within this time.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Tools are listed again after so long, unless the server says before that they changed.
pub const REFRESH: Duration = Duration::from_secs(600);
/// The least time between two listings, however often a server says that its tools changed.
pub const REFRESH_MIN: Duration = Duration::from_secs(5);
/// The first wait before a server that could not be reached is tried again; each further one is twice
/// as long.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const RETRY_LONGEST: Duration = Duration::from_secs(60);
