//! Limits of the store, each with what it bounds.

use std::time::Duration;

/// Bytes of a whole path, with its slashes.
pub const PATH_BYTES_MAX: usize = 4096;

/// Bytes of one component of a path. Linux has the same limit for a file name.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Components of a path.
pub const PATH_DEPTH_MAX: usize = 64;

/// Bytes of the name of a bucket.
pub const BUCKET_NAME_BYTES_MAX: usize = 63;

/// Bytes of the name of a branch or a snapshot.
pub const BRANCH_NAME_BYTES_MAX: usize = 128;

/// Largest sequence number that an address may have, and the limit of a branch's own level.
pub const SEQ_MAX: u64 = 1 << 62;

/// Levels that a read looks through: the branch itself and its ancestors. A branch below that gets copies of the rows.
pub const CHAIN_LEVELS_MAX: usize = 16;

/// Branches of a bucket.
pub const BRANCHES_MAX: u64 = 10_000;

/// Snapshots of a bucket.
pub const SNAPSHOTS_MAX: u64 = 10_000;

/// Entries that all changes of one job of the writer touch together, and paths that a comparison looks at. Other writers
/// wait for the job. An entry that a move takes along counts once.
pub const SUBTREE_ENTRIES_MAX: usize = 200_000;

/// Bytes of paths, targets of links and extended attributes that one job of the writer writes, or that a comparison or a
/// merge holds in memory.
pub const TRANSACTION_BYTES_MAX: u64 = 128 << 20;

/// Bytes of paths and of targets of links in one document of the synchronisation. A node holds several copies of them in
/// memory while it compares a tree with its document.
pub const SYNC_ROW_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a path that cost no quota of bytes: the entry counts against the quota of entries already.
pub const PATH_BYTES_FREE: u64 = 256;

/// Names in the root of a branch of a split bucket, deleted ones counted. Each has a document of its own for the
/// synchronisation with peers.
pub const SYNC_TOPS_MAX: usize = 1000;

/// Changes in one batch.
pub const BATCH_CHANGES_MAX: usize = 1000;

/// Entries or versions in one page of a listing.
pub const PAGE_ENTRIES_MAX: usize = 1000;

/// Memory that paging through a directory takes, however many names it has: a page, and what SQLite keeps of the file.
pub const LISTING_MEMORY_BYTES_MAX: u64 = 24 << 20;

/// Names that a merge tries for the second version of an entry.
pub const CONFLICT_NAMES_MAX: u32 = 100;

/// Conflicts that a refused merge lists. The error has the number of all of them.
pub const CONFLICTS_LISTED_MAX: usize = 1000;

/// Positions that the search for a merge base visits.
pub const MERGE_BASE_STEPS_MAX: usize = 100_000;

/// Bytes of one file.
pub const FILE_BYTES_MAX: u64 = 64 << 30;

/// Bytes of the contents of a bucket, if its creator sets no other quota.
pub const BUCKET_BYTES_DEFAULT: u64 = 10 << 30;

/// Entries of a bucket, if its creator sets no other quota.
pub const BUCKET_ENTRIES_DEFAULT: u64 = 1_000_000;

/// Seconds for which a bucket keeps former versions, if its creator sets no other time.
pub const RETENTION_DEFAULT_S: u64 = 7 * 24 * 60 * 60;

/// Bytes of the extended attributes of an entry. They are a part of its row, which listings skip.
pub const XATTR_BYTES_MAX: usize = 16 << 10;

/// Bytes of the target of a symbolic link, as `PATH_MAX` of Linux.
pub const SYMLINK_TARGET_BYTES_MAX: usize = 4096;

/// Bytes of the name of the actor of a change.
pub const ACTOR_BYTES_MAX: usize = 256;

/// Bytes of the message of a commit.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Jobs in one transaction.
pub const GROUP_JOBS_MAX: usize = 256;

/// Time for which the writer takes further jobs into a transaction.
pub const GROUP_TIME_MAX: Duration = Duration::from_millis(5);

/// Time of one job of the writer. A longer one is taken back.
pub const WRITE_TIME_MAX: Duration = Duration::from_secs(60);

/// Jobs that wait for the writer. A further one gets [`StoreError::Busy`](crate::StoreError::Busy).
pub const WRITES_QUEUED_MAX: usize = 4096;

/// Connections that read.
pub const READERS: usize = 4;

/// Connections that the reads of one identity use at once. Its further reads wait, and those of others do not.
pub const READERS_PER_IDENTITY: usize = 2;

/// Reads that wait for a connection. A further one gets [`StoreError::Busy`](crate::StoreError::Busy).
pub const READS_QUEUED_MAX: usize = 4096;

/// Reads of one identity that wait for a connection.
pub const READS_QUEUED_PER_IDENTITY_MAX: usize = 2048;

/// Time of one read. SQLite cannot empty its log beyond the oldest read, so a longer one lets the log grow. A read ends
/// earlier when the log has [`LOG_BYTES_MAX`].
pub const READ_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes of the log of the database at which no further transaction begins before the log is empty. The writer empties it at
/// half of that; at the whole it ends the reads and the copy that keep it, and refuses jobs with
/// [`StoreError::Busy`](crate::StoreError::Busy) until they have ended. The log gets longer by one transaction at most.
pub const LOG_BYTES_MAX: u64 = 64 << 20;

/// Free pages that one step of a vacuum gives back to the file system. A page has 8 KiB.
pub const VACUUM_PAGES: u64 = 64;

/// Writes between two steps of a vacuum up to which the store counts as idle.
pub const VACUUM_WRITES_MAX: u64 = 600;

/// Milliseconds by which the clock of a peer may be ahead. A later time is clamped.
pub const CLOCK_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

/// Milliseconds since 1970 up to 2026: a clock below them is not set yet, and decides nothing.
pub const CLOCK_MS_MIN: u64 = 1_767_225_600_000;

/// Time for which the outbox keeps an event.
pub const EVENTS_KEPT_TIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Events that the outbox keeps, the newest ones.
pub const EVENTS_KEPT_MAX: u64 = 1_000_000;

/// Bytes of stored events that the outbox keeps, those of the newest ones. A path of control signs takes six times its
/// length.
pub const EVENTS_KEPT_BYTES_MAX: u64 = 512 << 20;

/// Surplus events that the writer removes with each new one, so that the outbox never grows far beyond its bytes.
pub const EVENTS_PRUNED_AT_ONCE: usize = 16;

/// Pause between two reads of a watch that has read all events. Commits that come meanwhile cost one read together.
pub const WATCH_PAUSE: Duration = Duration::from_millis(20);

/// Events in one page.
pub const EVENTS_PAGE_MAX: usize = 1000;

/// Bytes of stored events after which a page ends. The event that reaches it is in the page.
pub const EVENTS_PAGE_BYTES_MAX: usize = 4 << 20;

/// Events that one read looks at, whether its filter takes them or not.
pub const EVENTS_SCANNED_MAX: usize = 20_000;

/// Events that one query loads. An event has at most two paths, each escaped in JSON.
pub const EVENTS_CHUNK: usize = 100;

/// Named consumers of the outbox.
pub const CONSUMERS_MAX: u64 = 1024;

/// Named consumers of one bucket, so that one bucket cannot use up those of all others.
pub const CONSUMERS_PER_BUCKET_MAX: u64 = 64;

/// Bytes of the name of a consumer or a queue.
pub const CONSUMER_NAME_BYTES_MAX: usize = 128;

/// Longest lease of a consumer or a job. The owner renews it; after a crash the next one waits for so long.
pub const LEASE_TIME_MAX: Duration = Duration::from_secs(60 * 60);

/// Shortest lease of a job. A lease that has ended at once would let one call claim the same job without end.
pub const LEASE_TIME_MIN: Duration = Duration::from_secs(1);

/// Jobs of one queue, dead ones counted.
pub const QUEUE_JOBS_MAX: u64 = 10_000;

/// Queues of one store that have jobs. A job for one more queue is refused.
pub const QUEUES_MAX: u64 = 256;

/// Queues of one bucket that have jobs.
pub const QUEUES_PER_BUCKET_MAX: u64 = 16;

/// Bytes of the payload of a job.
pub const JOB_PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Bytes of the key of a job.
pub const JOB_KEY_BYTES_MAX: usize = 256;

/// Jobs that one call claims or lists.
pub const JOBS_PAGE_MAX: usize = 100;

/// Times that a job is claimed. After the last one fails, the job is dead.
pub const JOB_TRIES_MAX: u32 = 20;

/// Pause before the second try of a job. Each further pause is twice as long.
pub const JOB_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest pause between two tries of a job.
pub const JOB_PAUSE_MAX: Duration = Duration::from_secs(10 * 60);

/// Locks of entries in the whole store.
pub const LOCKS_MAX: u64 = 11_000;

/// Locks of entries of one owner, so that one client cannot use up those of all others.
pub const LOCKS_OF_OWNER_MAX: u64 = 1000;

/// Part of the free locks of the store that one owner may have: the more there are, the fewer an owner gets.
pub const LOCKS_SHARE_DIVISOR: u64 = 10;

/// Longest time of a lock. WebDAV clients ask for an infinite one and renew it (RFC 4918 §10.7 lets the server choose).
pub const LOCK_TIME_MAX: Duration = Duration::from_secs(60 * 60);

/// Bytes of the text by which the owner of a WebDAV lock describes itself.
pub const LOCK_NOTE_BYTES_MAX: usize = 4096;

/// Daily copies of the file of names.
pub const COPIES_KEPT: usize = 3;

/// Smallest free space below which the store takes no writes that grow it.
pub const RESERVE_BYTES_MIN: u64 = 64 << 20;

/// Part of the file system below which the store takes no writes that grow it, in percent.
pub const RESERVE_PERCENT: u64 = 5;

/// Bytes of the file that is freed first when the space runs out, so that deletions have room for their rows.
pub const RESERVE_FILE_BYTES: u64 = 8 << 20;

/// Bytes of the largest content that lies in the file of names.
pub const INLINE_BYTES_MAX: u64 = 16 << 10;

/// Lost events that the report of a repair lists. It has the number of all of them.
pub const LOST_EVENTS_LISTED_MAX: usize = 1000;

/// Numbers of events and commits that a repair leaves out where the damaged file does not say which was its last.
pub const REPAIR_NUMBERS_SKIPPED: u64 = 1_000_000;

/// Bytes of one block of a read.
pub const READ_BLOCK_BYTES: usize = 256 << 10;

/// Memory of a content that is being read, however long it is and however slowly its bytes are taken: one block, and the
/// hashes on the way to it.
pub const OPEN_READ_BYTES_MAX: u64 = 1 << 20;

/// Memory of a file while it is written, closed and read by ranges, however long it is: the hashes of its groups beyond
/// some of them, and its outboard, are in files.
pub const FILE_MEMORY_BYTES_MAX: u64 = 16 << 20;

/// Bytes of a content from peers after which what has arrived is noted on the disk, so that a restart loses less.
pub const PARTIAL_SAVE_BYTES: u64 = 8 << 20;

/// Time after which a content that arrives no further is removed.
pub const PARTIAL_KEPT_TIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Shares of contents in the whole store.
pub const SHARES_MAX: u64 = 10_000;

/// Shares of contents of one bucket.
pub const SHARES_PER_BUCKET_MAX: u64 = 1000;

/// Longest time of a share.
pub const SHARE_TIME_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Requests that a share allows at most.
pub const SHARE_USES_MAX: u64 = 1_000_000;

/// Contents that a recursive pin protects below the pinned one. All of their rows are in one transaction.
pub const PIN_CHILDREN_MAX: usize = 10_000;

/// Bytes that a start verifies after one that did not end in order. The rest is verified in steps afterwards.
pub const BOOT_VERIFY_BYTES_DEFAULT: u64 = 1 << 30;

/// Rows of contents that one query of a verification or a sweep takes.
pub const CONTENT_PAGE_ROWS: usize = 4096;

/// Rows that one step of the collection looks at or removes. Other writers wait for one step at most.
pub const COLLECT_STEP_ROWS: usize = 1000;

/// Contents that one step of the collection removes. Each removal syncs a folder.
pub const COLLECT_STEP_CONTENTS: usize = 64;

/// Milliseconds by which the time may go on between two collections of a bucket. Beyond that, the clock may be wrong, and
/// the collection removes no further history and ends no branch.
pub const COLLECT_JUMP_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;

/// Milliseconds that the clock goes on from a jump before a collection believes it.
pub const COLLECT_JUMP_WAIT_MS: u64 = 24 * 60 * 60 * 1000;

/// Milliseconds that a content without a name stays at least: a writer may be about to name it.
pub const COLLECT_AGE_MS_MIN: u64 = 10 * 60 * 1000;

/// Open write sessions of one identity.
pub const SESSIONS_PER_IDENTITY_MAX: usize = 16;

/// Open write sessions of the store. A further one gets [`StoreError::Busy`](crate::StoreError::Busy).
pub const SESSIONS_MAX: usize = 1024;

/// Part of the free sessions of the store that one identity may have: the more there are, the fewer an identity gets.
pub const SESSIONS_SHARE_DIVISOR: usize = 16;

/// Bytes that the open write sessions of one identity stage, if the options name no other limit.
pub const STAGED_BYTES_DEFAULT: u64 = 2 << 30;

/// Bytes of a session that stay in memory until it is closed. A longer content gets a staging file.
pub const SESSION_MEMORY_BYTES: u64 = 64 << 10;

/// Staged bytes of a session after which its row is written, and the quota of its bucket looked at again.
pub const SESSION_SAVE_BYTES: u64 = 8 << 20;

/// Bytes that all staging files together grow by before the room on the disk is looked at again.
pub const STAGED_UNCHECKED_BYTES: u64 = 8 << 20;

/// Contents up to which those that proved damaged or lost are counted: each count reads all that it counts.
pub const DAMAGED_CONTENTS_COUNTED_MAX: u64 = 1000;

/// Steps in a row that a check of all contents leaves out while callers read and write much.
pub const SCRUB_PAUSES_MAX: u32 = 100;

/// Separate ranges that the writes of a session may leave. Each takes memory for as long as the session is open.
pub const SESSION_RANGES_MAX: usize = 65_536;

/// Milliseconds without a write after which a session is swept, if the options name no other time.
pub const SESSION_TTL_MS_DEFAULT: u64 = 60 * 60 * 1000;
