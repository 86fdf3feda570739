//! The limits of sessions beyond those of the isolate and of the worker, each with its unit and reason.

use std::time::Duration;

/// The longest wall-clock time for a call of a one-shot session.
pub const WALL_MAX_ONE_SHOT: Duration = Duration::from_secs(3600);
/// Like `WALL_MAX_ONE_SHOT`, for services and REPLs.
pub const WALL_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest GPU time for a call.
pub const GPU_MAX: Duration = Duration::from_secs(300);
/// The most fuel for a call: roughly what a processor does in the longest CPU time.
pub const FUEL_MAX: u64 = 10_000_000;
/// The most bytes outside the heap for a session.
pub const EXTERNAL_BYTES_MAX: usize = 4 << 30;
/// The most calls for a session.
pub const CALLS_MAX: u64 = 1_000_000;
/// Sessions at once, of all tenants.
pub const SESSIONS_MAX: usize = 4096;
/// Sessions of one tenant at once: as many as fit into the workers that one tenant may have.
pub const SESSIONS_OF_TENANT_MAX: usize = 256;
/// Operations in the list that a session gets; it may also call those that the list omits.
pub const LISTED_MAX: usize = 512;
/// Bytes of descriptions and schemas in that list.
pub const LISTED_BYTES_MAX: usize = 1 << 20;
/// Bytes of the list after which it has no imported operations. One server may have hundreds of operations with long
/// schemas, and each session of a caller that may call them would get them all.
pub const LISTED_IMPORTED_BYTES_MAX: usize = 256 << 10;
/// Items of a subscription that were sent and not yet taken, in either direction.
pub const UNACKNOWLEDGED: usize = alknet_runtime::limits::UNACKNOWLEDGED;
/// Bytes that a session may write to its console per second; the rest is counted and dropped.
pub const LOG_BYTES_PER_S: u64 = 64 << 10;
/// What a line counts beside its text, bytes: an empty line is work for the node as well. A listener's
/// [`CONSOLE_LINES`] fit into a second with half of it to spare.
pub const LOG_LINE_EXTRA_BYTES: u64 = alknet_runtime::limits::LOG_LINE_EXTRA_BYTES as u64;
/// Lines that wait for the listener of a session's console; the rest is only in the log.
pub const CONSOLE_LINES: usize = 1024;
/// Bytes of the data beside a frame: sources, and bytes that accompany a call. The memory of values has limits of its
/// own.
pub const VALUE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a worker's memory for the tree of an input, while the script's own value is made of it. Answers have no
/// tree. The smallest worker has 384 MiB (docs/workers.md): beside the tree there is room for the default heap of 64 MiB,
/// for [`ANSWERS_WAITING_BYTES_MIN`], and for 96 MiB of the worker itself and of what sessions that end have not freed.
/// Two million numbers, the most that fit into the longest text of an input
/// ([`JSON_BYTES`](alknet_runtime::limits::JSON_BYTES)), take 144 MiB.
pub const TREE_BYTES_MAX: usize = 160 << 20;
/// Bytes of answers and items that a session's script has not taken, in their encoded form: so many, or as many as its
/// heap has if that is more. A further answer is an error for the script.
pub const ANSWERS_WAITING_BYTES_MIN: usize = 64 << 20;
/// Bytes of the node's memory for the values of one session at once: inputs until they are answered, items and
/// results until they are passed on, and the operations that it registered. One value of the largest size and its
/// text fit.
pub const MEMORY_OF_SESSION_MAX: usize = 8 << 20;
/// Like `MEMORY_OF_SESSION_MAX`, for all sessions of a tenant: half of the memory for all.
pub const MEMORY_OF_TENANT_MAX: usize = 32 << 20;
/// Like `MEMORY_OF_TENANT_MAX`, for all sessions of the node. A tenant may use only a part of what is left of the last
/// quarter ([`leaves_capacity`](alknet_call::limits::leaves_capacity)), so two tenants cannot use all of it.
pub const MEMORY_MAX: usize = 64 << 20;
/// The share of registered operations of all sessions in this memory: they stay as long as their session, and values
/// do not.
pub const REGISTERED_MAX: usize = MEMORY_MAX / 4;
/// Like `REGISTERED_MAX`, for all sessions of a tenant: half of it, with the last quarter as above.
pub const REGISTERED_OF_TENANT_MAX: usize = REGISTERED_MAX / 2;
/// The share of the states of services that ended for others, of all services, in the memory of [`MEMORY_MAX`]: a
/// state stays until the next call. Beside these and the registered operations, values keep a quarter of the memory.
pub const RESTED_MAX: usize = MEMORY_MAX / 2;
/// Like `RESTED_MAX`, for all services of an author: a quarter of it. Two authors that use all of theirs leave a third
/// one room for [`RESTED_VALUE_MAX`].
pub const RESTED_OF_TENANT_MAX: usize = RESTED_MAX / 4;
/// Bytes that the node reserves for what a service leaves, before it asks the service: the largest value, and what is
/// around it in its frame.
pub const RESTED_VALUE_MAX: usize = alknet_runtime::limits::JSON_BYTES + (4 << 10);
/// The memory of a registered operation, as a multiple of the weight of its specification, with the spare room of
/// growing vectors. The worker compiles its schemas.
pub(crate) const REGISTERED_FACTOR: usize = 3;
/// The most weight of an error's details; an error with more loses them.
pub(crate) const FAULT_BYTES_MAX: usize = 256 << 10;
/// The weight of an item that counts as one of [`UNACKNOWLEDGED`]; a heavier item counts as several.
pub(crate) const ITEM_BYTES: usize = 64 << 10;
/// Levels of CBOR around and in a value of a frame.
pub(crate) const NESTING_MAX: usize = 4 * alknet_runtime::limits::JSON_DEPTH;
/// Frames of a session that the host has not taken. The host takes 256; further ones wait in the worker.
pub(crate) const UNHEARD_MAX: usize = 128;
/// Bytes of these frames after which the next frame waits. The host takes twice as many and the longest frame.
pub(crate) const UNHEARD_BYTES_MAX: usize = 512 << 10;
/// Bytes of an item or a specification, which must fit into a frame.
pub(crate) const OWN_BYTES_MAX: usize = alknet_worker::limits::FRAME_BYTES_MAX - (4 << 10);
/// The number of frames after which the host reports that it took them.
pub(crate) const HEARD_EVERY: usize = 32;
/// The number of bytes after which it does.
pub(crate) const HEARD_BYTES: usize = 64 << 10;
/// Bytes of console output that a worker collects before it sends them.
pub(crate) const LINES_BYTES: usize = 8 << 10;
/// Lines in one message of a worker. A line counts as a byte more than its text, so a worker collects no more.
pub(crate) const LINES_MAX: usize = LINES_BYTES;
/// The stack of a thread that runs an isolate: the most that an isolate may use, and the need of Rust code below it.
pub(crate) const THREAD_STACK_BYTES: usize = 8 << 20;
/// How often a worker checks its running calls: it reports their progress for the heartbeats, and stops calls that
/// ignored an abort.
pub(crate) const PULSE: Duration = Duration::from_millis(5);
/// How long a script may take to react to the abort of its call before it is stopped: the host kills the worker 20 ms
/// after the abort.
pub(crate) const ABORT_LISTEN: Duration = Duration::from_millis(5);
/// How often the opening of a session ends idle sessions of others before it is refused: another session may take the
/// room first.
pub(crate) const EVICTION_TRIES_MAX: usize = 8;
/// How long the opening of a session waits for idle sessions to end: a worker may have sixteen services, and each has
/// half a second for its `dispose`. Two of these fit.
pub const EVICTION_TIME_MAX: Duration = Duration::from_secs(1);
/// REPLs that one identity may have at once.
pub const REPLS_OF_TENANT_MAX: usize = 8;
/// How long an unused REPL stays open.
pub const REPL_IDLE: Duration = Duration::from_secs(600);
/// Bytes of a REPL's name.
pub const REPL_NAME_BYTES_MAX: usize = 64;
/// Bytes that a script may sign, seal or open at once: what the vault seals, with its header.
pub const ACT_BYTES_MAX: usize = (1 << 20) + 128;
