//! Every bound of serving. Each one limits what a peer can make this node hold or do.

use std::time::Duration;

/// Bytes of a request, and of the head of a response.
pub const REQUEST_BYTES: usize = 64 << 10;
/// Requests of one connection that are answered at once.
pub const STREAMS: usize = 64;
/// Bytes of responses under way to one peer. A response that is larger goes alone.
pub const IN_FLIGHT_BYTES: u64 = 4 << 30;
/// Bytes that are read at once; a stream holds two such blocks at most.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Bytes of a group that is verified at once: sixteen chunks of BLAKE3.
pub const GROUP_BYTES: u64 = 16 << 10;
/// How long a request may take to arrive.
pub const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a peer may neither take bytes nor send those it promised.
pub const STALLED_TIME: Duration = Duration::from_secs(30);

/// Uploads in pieces that one peer has begun.
pub const UPLOADS_PER_PEER: usize = 4;
/// Uploads in pieces in all.
pub const UPLOADS: usize = 64;
/// How long an upload is kept that its peer does not go on with.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(600);

/// Bytes of files in a store, unless its owner says otherwise.
pub const STORE_BYTES: u64 = 64 << 30;
/// Paths in a store.
pub const PATHS: usize = 65_536;
/// Bytes of a path.
pub const PATH_BYTES: usize = 512;
/// Segments of a path.
pub const PATH_SEGMENTS: usize = 16;
/// Files that are kept open with their headers read.
pub const OPEN_FILES: usize = 16;
/// Bytes of headers beyond which none but the last is kept.
pub const OPEN_HEADER_BYTES: u64 = 16 << 20;
