//! Limits of the synchronisation, each with what it bounds.

use std::time::Duration;

/// Bytes of one message on the wire, without its length.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a part of a sync message of the document. The rest of [`MESSAGE_BYTES_MAX`] is for what is around it.
pub const PART_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64;

/// Bytes of a whole sync message of the document, which comes in parts.
pub const SYNC_BYTES_MAX: usize = 32 << 20;

/// Sync messages of several parts that the node puts together at once, for all of its sessions.
pub const ASSEMBLED_MAX: usize = 4;

/// How many times its size a sync message may have when it is unpacked.
pub const UNPACKED_FACTOR_MAX: u64 = 100;

/// Unpacked bytes that are allowed whatever the size of the message is. A tree of deleted files below one long path packs
/// better than [`UNPACKED_FACTOR_MAX`].
pub const UNPACKED_BYTES_FREE: u64 = 16 << 20;

/// Unpacked bytes of a sync message.
pub const UNPACKED_BYTES_MAX: u64 = 128 << 20;

/// Operations of a sync message for each of its bytes. A column of equal values takes a few bytes for any number of them.
pub const OPERATIONS_PER_BYTE_MAX: u64 = 4;

/// Operations that are allowed whatever the size of the message is.
pub const OPERATIONS_FREE: u64 = 65_536;

/// Operations of a sync message, whatever its size is. In memory each takes a few hundred bytes, while a run of equal ones
/// takes a few bytes on the wire.
pub const OPERATIONS_MAX: u64 = 600_000;

/// Operations of one change. The checks hold those of one change in memory at once. Nodes write far fewer into one.
pub const CHANGE_OPERATIONS_MAX: usize = 65_536;

/// Changes of a sync message that come by themselves, and not within a whole document.
pub const CHANGES_MAX: usize = 150_000;

/// Bytes of changes that wait in memory for changes before them. A filter of hashes leaves out one in a hundred changes that
/// the peer lacks, so that the rest of a long message may have to wait for a moment.
pub const WAITING_BYTES_MAX: usize = 2 * SYNC_BYTES_MAX;

/// Paths of one document, deleted ones counted.
pub const PATHS_MAX: usize = 200_000;

/// Bytes of the paths and of the targets of links of one document, as many as those that the store reads for it.
pub const PATH_BYTES_MAX: usize = alknet_store::limits::SYNC_ROW_BYTES_MAX as usize;

/// Keys and values of a document that break a rule and that no later operation has removed. A node removes those that come,
/// so that a peer that follows the protocol has none to send, beside those that it has not looked at yet.
pub const INVALID_KEYS_MAX: usize = 64;

/// Bytes that a document takes on the disk when it is packed as a whole. Above them it is made again of its paths: the
/// library keeps each operation for ever, and a peer that lacks the document gets all of them in one message.
pub const DOCUMENT_BYTES_MAX: usize = 24 << 20;

/// Bytes of a document when it is unpacked, for the same reason.
pub const DOCUMENT_UNPACKED_MAX: u64 = 96 << 20;

/// Operations of a document, for the same reason: twice as many as it may have paths.
pub const DOCUMENT_OPERATIONS_MAX: u64 = 2 * PATHS_MAX as u64;

/// Milliseconds beyond which a version of the document is one of a clock that was wrong, and not of one that is somewhat
/// ahead. It gets the present time.
pub const CLOCK_JUMP_MS: u64 = 24 * 60 * 60 * 1000;

/// Limits of one document. Tests have smaller ones.
#[derive(Clone, Copy, Debug)]
pub struct DocumentLimits {
    /// Paths that it may have, deleted ones counted. All nodes have the same.
    pub paths_max: usize,
    /// Bytes of the paths and of the targets of links that it has.
    pub path_bytes_max: usize,
    /// Operations above which it is made again of its paths.
    pub operations_max: u64,
    /// Bytes of changes that wait in memory for changes before them.
    pub waiting_bytes_max: usize,
}

impl Default for DocumentLimits {
    fn default() -> Self {
        Self {
            paths_max: PATHS_MAX,
            path_bytes_max: PATH_BYTES_MAX,
            operations_max: DOCUMENT_OPERATIONS_MAX,
            waiting_bytes_max: WAITING_BYTES_MAX,
        }
    }
}

/// Bytes of one value of a document.
pub const VALUE_BYTES_MAX: usize = 8 << 10;

/// Versions of one path that lose in one merge and become history.
pub const FORMER_VERSIONS_MAX: usize = 16;

/// Heads in a hello.
pub const HEADS_MAX: usize = 1024;

/// Hashes of contents in one message.
pub const HASHES_MAX: usize = 4096;

/// Milliseconds for which a deletion stays in the document. A peer that was away for longer can bring a file back.
pub const TOMBSTONE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// A document is written again as a whole when its parts are this many times as large as the whole was.
pub const LOG_FACTOR_MAX: usize = 4;

/// Bytes of parts below which a document is not written again.
pub const LOG_BYTES_FREE: usize = 256 << 10;

/// Time for one message to arrive after the one before, and for a peer to take one.
pub const MESSAGE_TIME: Duration = Duration::from_secs(60);

/// Time for the first message.
pub const HELLO_TIME: Duration = Duration::from_secs(10);

/// Time for the last message of a peer, behind that of this side.
pub const GOODBYE_TIME: Duration = Duration::from_secs(5);

/// Time of one merge. The session ends then, and the document on the disk stays as it was.
pub const MERGE_TIME: Duration = Duration::from_secs(60);

/// Sessions that peers have on the node. A session counts until the work for it has ended.
pub const SESSIONS_MAX: usize = 64;

/// Those of one peer, on all of its connections.
pub const SESSIONS_PER_PEER_MAX: usize = 16;

/// Streams of peers whose first message has not come.
pub const HELLOS_MAX: usize = 64;

/// Those of one peer, on all of its connections. A node opens its sessions with a peer one after the other.
pub const HELLOS_PER_PEER_MAX: usize = 4;

/// Time for which a session that a peer opened may bring nothing: no change of either side, and no part of a message about
/// one. It is longer than the merge of a peer takes. Then the session ends.
pub const FOLLOW_IDLE_TIME: Duration = Duration::from_secs(3 * 60);

/// Pause after the first session with a peer that ended with an error. Each further pause is twice as long.
pub const PAUSE_MIN: Duration = Duration::from_secs(30);

/// Longest such pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);

/// Pause after a session for which the peer was not there or not ready. Each further pause is twice as long, up to the one
/// between sessions.
pub const PAUSE_SHORT: Duration = Duration::from_secs(1);

/// Time for which a round of sessions waits for further changes here: a program that writes many files wants one session.
pub const GATHER_TIME: Duration = Duration::from_millis(500);

/// Time of one session. What it has not done by then, the next one does.
pub const SESSION_TIME_MAX: Duration = Duration::from_secs(60 * 60);

/// Peers with which the node has sessions of its own at once.
pub const DIALS_MAX: usize = 4;

/// Branches that a round looks at. Each bucket gets the same part of them at least.
pub const BRANCHES_MAX: usize = 10_000;

/// Sessions of one round with a peer. What is due besides has its turn in the next one.
pub const ROUND_SESSIONS_MAX: usize = 64;

/// Peers and branches about which the last session is remembered. A further one displaces one of the bucket with the most.
pub const RECORDS_MAX: usize = 4096;

/// Names in the root of a branch whose failed sessions are remembered.
pub const FAILED_TOPS_MAX: usize = 16;

/// Time that a session or a round waits for contents that are fetched. The names of further changes wait meanwhile.
pub const FETCHES_TIME_MAX: Duration = Duration::from_secs(60);

/// Contents that are fetched after a session because they were not fetched in one.
pub const AWAITED_FETCHES_MAX: usize = 256;

/// Of these, failures in a row after which the peer is asked for no more.
pub const AWAITED_FAILURES_MAX: usize = 16;

/// Documents of a bucket that a peer may harm within [`PAUSE_MAX`]. After that it has to pause with all others of the bucket:
/// a peer chooses the names of the documents of a split bucket.
pub const HARMED_DOCUMENTS_MAX: usize = 3;

/// The same for sessions that failed for any reason. The reason may be this node's, such as a bucket without room.
pub const FAILED_DOCUMENTS_MAX: usize = 16;

/// Peers and documents whose pauses are remembered.
pub const PAUSES_MAX: usize = 1024;
