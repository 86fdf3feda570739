//! Limits for documents and responses. docs/imports.md lists them in a table.

/// The longest document.
pub const DOCUMENT_BYTES_MAX: usize = 16 << 20;
/// The most values in a document, without examples and extensions: each value takes memory.
pub const VALUES_MAX: usize = 500_000;
/// The deepest nesting of arrays and objects in a document.
pub const NESTING_MAX: usize = 100;
/// The longest chain of references.
pub const REFS_MAX: usize = 64;
/// The most anchors of a YAML document, and the most uses of one of them.
pub const ANCHORS_MAX: usize = 1_000;
/// The most values that the anchors of a YAML document may stand for together.
pub const ANCHORED_VALUES_MAX: usize = 100_000;
/// The most operations of a document.
pub const OPERATIONS_MAX: usize = 2_000;
/// The most parameters of an operation.
pub const PARAMETERS_MAX: usize = 256;
/// The most bytes of one schema; beyond them, a nested schema allows every value.
pub const SCHEMA_BYTES_MAX: usize = 32 << 10;
/// The most bytes of all schemas together: documents with many operations get shorter ones.
pub const SCHEMAS_BYTES_MAX: usize = 16 << 20;
/// The lowest limit for one schema that this leads to.
pub const SCHEMA_BYTES_MIN: usize = 2 << 10;
/// The deepest nesting of one schema without its references.
pub const SCHEMA_NESTING_MAX: usize = 24;
/// The longest description of an operation, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 1_000;
/// The longest description within a schema.
pub const REMARK_CHARS_MAX: usize = 200;
/// The most bytes of all values in the address, the headers and the cookies of one request together. The client
/// accepts addresses of [`URI_BYTES_MAX`](alknet_http_client::limits::URI_BYTES_MAX).
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most bytes of a form or of the parts of one. Forms repeat names, so they may be much longer than the input.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// The longest response.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The least number of bytes that a call reserves for the response before it sends a change. If memory has room, the
/// call reserves as many bytes as the longest response has. Most servers respond to a change with less.
pub const CHANGE_ANSWER_BYTES_MIN: usize = 64 << 10;
/// The most calls of one server that are in progress at once, including subscriptions: as many as a promoted
/// operation has.
pub const CALLS_MAX: usize = 128;
/// The longest body of a response that reports an error.
pub const ERROR_BYTES_MAX: usize = 64 << 10;
/// The most bytes of a tree of such a body. If the tree would take more, the error has the body as text.
pub const ERROR_TREE_BYTES_MAX: usize = 256 << 10;
/// The longest event of a stream, including its name and its id.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// The longest id of an event. All later events have the same id until the stream sends another one; a longer id is
/// left out.
pub const EVENT_ID_BYTES_MAX: usize = 1 << 10;
/// The longest response with an access token.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;
