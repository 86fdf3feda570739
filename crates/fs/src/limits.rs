//! Limits of the operations, each with what it bounds. Those of names and contents are in [`alknet_store::limits`].

use std::time::Duration;

/// Bytes of a content that `fs/put` takes. In base64 they fit into the default frame of 1 MiB.
pub const PUT_BYTES_MAX: usize = 512 << 10;

/// Bytes of one piece of a write session.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Bytes of JSON after which a page ends. The row that reaches it is in the page, so that a page fits into a frame.
pub const PAGE_BYTES_MAX: usize = 512 << 10;

/// Conflicts of a merge that an error or a result lists. Both have the number of all of them.
pub const CONFLICTS_SHOWN_MAX: usize = 100;

/// Bytes of the paths of conflicts that an error lists: with its escapes, it stays below what a peer keeps of an error.
pub const CONFLICTS_SHOWN_BYTES: usize = 16 << 10;

/// Requests a second that an identity may make to the HTTP mount, on average.
pub const MOUNT_REQUESTS_PER_SECOND: u32 = 2000;

/// Requests to the HTTP mount that an identity may make at once. A client that uploads ten thousand small files makes up to
/// five of each (PROPFIND, LOCK, PUT, UNLOCK, PROPFIND), and is not refused however fast the node answers.
pub const MOUNT_REQUESTS_BURST: u32 = 50_000;

/// Memory of a response over HTTP whose client does not read on: a block that waits, and what reads the next one.
pub const SLOW_RESPONSE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of text after which a piece of a list ends that the HTTP mount sends. The entry that reaches it is in the piece, and
/// takes less than half of [`SLOW_RESPONSE_BYTES_MAX`].
pub const LIST_PIECE_BYTES: usize = 256 << 10;

/// Subscriptions to events that the node serves at once. Each wakes up after each commit.
pub const WATCHES_MAX: usize = 2048;

/// Subscriptions to events of one identity.
pub const WATCHES_PER_IDENTITY_MAX: usize = 1024;

/// Memory of a subscription to which nothing is sent, with its share of the connection.
pub const IDLE_WATCH_BYTES_MAX: u64 = 64 << 10;

/// Events that a subscription reads at a time.
pub const WATCH_PAGE_EVENTS: usize = 100;

/// Pause of a subscription whose read found the store busy. No event is lost meanwhile.
pub const WATCH_BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a transfer after which the node asks again whether its client has the right to it. A look into the store is too
/// much for each block of a fast transfer.
pub const RIGHT_CHECK_BYTES: u64 = 8 << 20;

/// Time of a transfer after which it asks again, with the next block.
pub const RIGHT_CHECK_TIME: Duration = Duration::from_secs(2);

/// Time after which the right of a peer is looked at again whose session waits for changes.
pub const IDLE_RIGHT_CHECK_TIME: Duration = Duration::from_secs(30);

/// Bytes that a verification of a content reads between two reports.
pub const VERIFY_STEP_BYTES: u64 = 64 << 20;

/// Time after which a store that could not be used is tried again.
pub const OPEN_RETRY: Duration = Duration::from_secs(30);

/// Time for which a shutdown waits for requests that still use the store. A request that takes longer closes the store
/// itself when it ends.
pub const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// Pause between two sweeps of write sessions that their clients left.
pub const SESSION_SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Pause between two sweeps of events, locks and shares that are over, and of contents that arrive no further.
pub const ROW_SWEEP_PERIOD: Duration = Duration::from_secs(10 * 60);

/// Rows that one step of such a sweep removes. Other writers wait for one step at most.
pub const ROW_SWEEP_STEP: usize = 1000;

/// Pause between two looks at the daily copy and the reserve file.
pub const COPY_PERIOD: Duration = Duration::from_secs(60 * 60);

/// Days before today of which one has a daily copy. With none of them, the node has a problem.
pub const COPY_AGE_DAYS_MAX: u64 = 2;

/// Pause between two steps that give free pages of the file of names back.
pub const VACUUM_PERIOD: Duration = Duration::from_secs(60);

/// Pause between two collections.
pub const COLLECT_PERIOD: Duration = Duration::from_secs(6 * 60 * 60);

/// Time after the opening before the first collection, so that a boot does not wait for it.
pub const COLLECT_DELAY: Duration = Duration::from_secs(10 * 60);

/// Pause between two steps of any chore, which leaves the disk to the requests meanwhile.
pub const STEP_PAUSE: Duration = Duration::from_millis(50);

/// Time between two checks of all contents.
pub const SCRUB_PERIOD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Bytes a second that a check of all contents reads, and a verification after a start.
pub const SCRUB_BYTES_PER_SECOND: u64 = 20 << 20;

/// Bytes that one step of such a check reads.
pub const SCRUB_STEP_BYTES: u64 = 4 << 20;

/// Time after a chore failed before it is tried again.
pub const CHORE_RETRY: Duration = Duration::from_secs(10 * 60);

/// Bytes of a request for contents by hash, without its first one. Iroh's peers have the same limit.
pub const BLOB_REQUEST_BYTES_MAX: usize = 1 << 20;

/// Contents that a request tells apart. Each takes memory for as long as the request is served.
pub const BLOB_SELECTIONS_MAX: usize = 1024;

/// Beginnings and ends of ranges in a request, of all its contents together.
pub const BLOB_BOUNDARIES_MAX: usize = 8192;

/// Requests of one connection that the node serves at once.
pub const BLOB_STREAMS_MAX: usize = 64;

/// Bytes in flight on one stream of contents.
pub const BLOB_STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// Bytes a second that the node sends to one identity, if the administrator sets no other rate.
pub const BLOB_RATE_DEFAULT: u64 = 256 << 20;

/// Bytes that a request counts for at least: one for nothing costs look-ups as well.
pub const BLOB_REQUEST_COST_BYTES: u64 = 16 << 10;

/// Identities whose rates are known at once. A further one waits until another's is full again.
pub const BLOB_RATES_MAX: usize = 4096;

/// Time for a request to arrive.
pub const BLOB_REQUEST_TIME: Duration = Duration::from_secs(10);

/// Time for the next bytes, in either direction.
pub const BLOB_STALLED_TIME: Duration = Duration::from_secs(30);

/// Time to reach a peer for a content.
pub const FETCH_CONNECT_TIME: Duration = Duration::from_secs(15);

/// How long a read waits for a content from peers, if the administrator sets no other time.
pub const FETCH_TIME: Duration = Duration::from_secs(30);

/// Peers that one call names.
pub const FETCH_PEERS_MAX: usize = 16;

/// Peers that a search for a content asks at once.
pub const PROVIDERS_AT_ONCE: usize = 8;

/// Contents that the node fetches at once, each for one bucket.
pub const FETCHES_MAX: usize = 32;

/// Those of one bucket.
pub const FETCHES_PER_BUCKET_MAX: usize = 8;

/// Bytes a second that a peer sends on average, or it is given up for the next one.
pub const FETCH_RATE_MIN: u64 = 4 << 10;

/// Time for which a response of a peer may be slower than [`FETCH_RATE_MIN`].
pub const FETCH_RATE_GRACE: Duration = Duration::from_secs(30);

/// Ranges that one request of this node for a content has.
pub const FETCH_RANGES_MAX: usize = 1024;

/// Bytes of a description of what a peer has.
pub const FETCH_OBSERVED_BYTES_MAX: usize = 64 << 10;

/// Bytes of a content after which a fetch writes to the disk and reports.
pub const FETCH_BLOCK_BYTES: usize = 256 << 10;

/// Time for which a peer that sent other bytes than the hash says is not asked.
pub const FETCH_PENALTY: Duration = Duration::from_secs(10 * 60);
