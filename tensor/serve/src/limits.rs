//! The limits of serving. Each limits what a peer can make this node hold or do.

use std::time::Duration;

pub use alknet_objects::limits::{BLOCK_BYTES, GROUP_BYTES};

/// Bytes of a request, and of the head of a response.
pub const REQUEST_BYTES: usize = 64 << 10;
/// Bytes of the answers of `tensor/open` and `tensor/stat`: no frame has more.
pub const DESCRIPTION_BYTES: usize = 1 << 20;
/// Requests of one connection that the node serves at once.
pub const STREAMS: usize = 64;
/// Bytes of responses under way to one peer. A larger response is sent alone.
pub const IN_FLIGHT_BYTES: u64 = 4 << 30;
/// How long a request may take to arrive.
pub const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long the node waits for a peer that neither reads nor sends.
pub const STALLED_TIME: Duration = Duration::from_secs(30);

/// Bytes in memory of one peer's files that are being put: of headers, and of bytes that wait to be written. A header
/// has up to 16 MiB.
pub const UPLOAD_MEMORY_PER_PEER: usize = 32 << 20;
/// The same of all peers.
pub const UPLOAD_MEMORY: usize = 64 << 20;
/// Bytes of these that each peer may have, however much the others hold.
pub const UPLOAD_MEMORY_FREE: usize = 1 << 20;
/// How long a whole header may take to arrive.
pub const HEADER_TIME: Duration = Duration::from_secs(300);

/// Chunked uploads that one peer may have open.
pub const UPLOADS_PER_PEER: usize = 4;
/// Chunked uploads that may be open in all.
pub const UPLOADS: usize = 64;
/// How long the node keeps an upload that its peer does not continue.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(600);

/// Bytes of the disk for files and paths of a store, unless the administrator sets another limit.
pub const STORE_BYTES: u64 = 64 << 30;
/// Hash trees that a store keeps. If there are more, those that no request has used for longest are removed.
pub const TREES: usize = 1024;
/// The same for the part of a store's bytes that all trees take of the disk.
pub const TREES_PART: u64 = 64;
/// Paths in a store.
pub const PATHS: usize = 65_536;
/// Bytes of a path.
pub const PATH_BYTES: usize = 512;
/// Segments of a path.
pub const PATH_SEGMENTS: usize = 16;
/// Damaged files that a check of the store names.
pub const SCRUB_NAMED: usize = 16;
/// Files that stay open with their headers read.
pub const OPEN_FILES: usize = 16;
/// Bytes of cached headers above which only the last one stays.
pub const OPEN_HEADER_BYTES: u64 = 16 << 20;
