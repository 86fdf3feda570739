//! How much of a document is taken, and of an answer. docs/imports.md has them as a table.

/// Longest document.
pub const DOCUMENT_BYTES_MAX: usize = 16 << 20;
/// Most values in a document, examples and extensions not counted: each costs memory.
pub const VALUES_MAX: usize = 500_000;
/// Nested arrays and objects in a document.
pub const NESTING_MAX: usize = 100;
/// References one after the other.
pub const REFS_MAX: usize = 64;
/// Anchors of a YAML document, and times that any of them is used.
pub const ANCHORS_MAX: usize = 1_000;
/// Values that anchors of a YAML document may stand for, all together.
pub const ANCHORED_VALUES_MAX: usize = 100_000;
/// Most operations of a document.
pub const OPERATIONS_MAX: usize = 2_000;
/// Most parameters of an operation.
pub const PARAMETERS_MAX: usize = 256;
/// Bytes of one schema; what lies deeper takes everything.
pub const SCHEMA_BYTES_MAX: usize = 32 << 10;
/// Bytes of all schemas: documents with many operations get shorter ones.
pub const SCHEMAS_BYTES_MAX: usize = 16 << 20;
/// The shortest limit that this leads to.
pub const SCHEMA_BYTES_MIN: usize = 2 << 10;
/// Nesting of one schema without its references.
pub const SCHEMA_NESTING_MAX: usize = 24;
/// Longest description of an operation, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 1_000;
/// Longest description within a schema.
pub const REMARK_CHARS_MAX: usize = 200;
/// Bytes that values become in the address, the headers and the cookies of one request, all together. The client takes
/// addresses of [`URI_BYTES_MAX`](alknet_http_client::limits::URI_BYTES_MAX).
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of a form, or of the parts of one: what repeats names, which may be much longer than the input.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Longest answer.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Bytes that a call keeps free before it sends a change, for the answer: at least so many, and as many as the longest
/// answer has where there is room. Most servers answer a change with less.
pub const CHANGE_ANSWER_BYTES_MIN: usize = 64 << 10;
/// Calls of one server that are under way at once, subscriptions included. As many as a promoted operation has.
pub const CALLS_MAX: usize = 128;
/// Longest body of an answer that is an error.
pub const ERROR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a tree of such a body. Where it would take more, the error has the body as text.
pub const ERROR_TREE_BYTES_MAX: usize = 256 << 10;
/// Longest event of a stream, with its name and its id.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// Longest id of an event, which all later events have until there is another; longer ones are left out.
pub const EVENT_ID_BYTES_MAX: usize = 1 << 10;
/// Longest answer with an access token.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;
