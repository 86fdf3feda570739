//! Every limit of sessions beyond those of the isolate and of the worker, with its unit and reason.

use std::time::Duration;

/// Longest time by the clock on the wall that a call of a one-shot session can be given.
pub const WALL_MAX_ONE_SHOT: Duration = Duration::from_secs(3600);
/// The same for services and REPLs.
pub const WALL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest time on the GPU that a call can be given.
pub const GPU_MAX: Duration = Duration::from_secs(300);
/// Most fuel that a call can be given: what a processor does in the longest CPU time, roughly.
pub const FUEL_MAX: u64 = 10_000_000;
/// Most bytes outside the heap that a session can be given.
pub const EXTERNAL_BYTES_MAX: usize = 4 << 30;
/// Most calls that a session can be given.
pub const CALLS_MAX: u64 = 1_000_000;
/// Sessions at once, over all tenants.
pub const SESSIONS_MAX: usize = 4096;
/// Sessions of one tenant at once: as many as the workers hold that one tenant may have.
pub const SESSIONS_OF_TENANT_MAX: usize = 256;
/// Operations in the list that a session gets; it may call those that are left out all the same.
pub const LISTED_MAX: usize = 512;
/// Bytes of descriptions and schemas in that list.
pub const LISTED_BYTES_MAX: usize = 1 << 20;
/// Bytes of the list beyond which it has no operation that was imported from a server: one server has hundreds, with
/// long schemas, and every session of a caller that may call them would get them all.
pub const LISTED_IMPORTED_BYTES_MAX: usize = 256 << 10;
/// Items of a subscription that were sent and not taken, in either direction.
pub const UNACKNOWLEDGED: usize = alknet_runtime::limits::UNACKNOWLEDGED;
/// What a session may write to its console in a second, bytes; the rest is counted and dropped.
pub const LOG_BYTES_PER_S: u64 = 64 << 10;
/// What a line counts beside its text, bytes: an empty line is work for the node as well. A listener's
/// [`CONSOLE_LINES`] fit into a second with half of it to spare.
pub const LOG_LINE_EXTRA_BYTES: u64 = alknet_runtime::limits::LOG_LINE_EXTRA_BYTES as u64;
/// Lines that wait for the listener of a session's console; the rest is in the log only.
pub const CONSOLE_LINES: usize = 1024;
/// Bytes of what travels beside a frame, at most: sources, and bytes that go with a call. Values are
/// bounded by what they take in memory.
pub const VALUE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the node's memory that the values of one session take at once: inputs until they are answered,
/// items and results until they are passed on, and the operations that it registered. One value of the
/// largest size, and its text.
pub const MEMORY_OF_SESSION_MAX: usize = 8 << 20;
/// The same for all sessions of a tenant: half of what is there for all.
pub const MEMORY_OF_TENANT_MAX: usize = 32 << 20;
/// The same for all sessions of the node. Of the last quarter a tenant has a part of what is left of it only
/// ([`leaves_room`](alknet_call::limits::leaves_room)): so two do not take all.
pub const MEMORY_MAX: usize = 64 << 20;
/// Of these, what registered operations of all sessions take: they stay for as long as their session, and values do
/// not.
pub const REGISTERED_MAX: usize = MEMORY_MAX / 4;
/// The same for all sessions of a tenant: half of what is there for all, with the last quarter as above.
pub const REGISTERED_OF_TENANT_MAX: usize = REGISTERED_MAX / 2;
/// How many times the weight of its specification a registered operation takes, with what vectors grow by. Its
/// schemas are compiled in the worker.
pub(crate) const REGISTERED_FACTOR: usize = 3;
/// Weight of the details of an error, at most; an error with more loses them.
pub(crate) const FAULT_BYTES_MAX: usize = 256 << 10;
/// Weight of an item that counts as one of [`UNACKNOWLEDGED`]; a heavier one counts as several.
pub(crate) const ITEM_BYTES: usize = 64 << 10;
/// Levels of CBOR around and in a value that crosses.
pub(crate) const NESTING_MAX: usize = 4 * alknet_runtime::limits::JSON_DEPTH;
/// Frames of a session on their way to the host. The host takes 256; the rest waits in the worker.
pub(crate) const UNHEARD_MAX: usize = 128;
/// Bytes of these from which on the next frame waits. The host takes twice as many and the longest frame.
pub(crate) const UNHEARD_BYTES_MAX: usize = 512 << 10;
/// Bytes of an item or a specification, which go within a frame.
pub(crate) const OWN_BYTES_MAX: usize = alknet_worker::limits::FRAME_BYTES_MAX - (4 << 10);
/// How many frames the host takes before it says so.
pub(crate) const HEARD_EVERY: usize = 32;
/// Or how many bytes.
pub(crate) const HEARD_BYTES: usize = 64 << 10;
/// Bytes of console that a worker collects before it sends them.
pub(crate) const LINES_BYTES: usize = 8 << 10;
/// Stack of a thread that runs an isolate: the most an isolate may use, and what Rust needs below.
pub(crate) const THREAD_STACK_BYTES: usize = 8 << 20;
/// How often a worker looks at its running calls: tells the heartbeats how far they are, and stops
/// what did not listen.
pub(crate) const PULSE: Duration = Duration::from_millis(5);
/// How long a script may take to hear that its call was aborted before it is stopped: the host kills
/// the worker 20 ms after the abort.
pub(crate) const ABORT_LISTEN: Duration = Duration::from_millis(5);
/// REPLs that one identity keeps at once.
pub const REPLS_OF_TENANT_MAX: usize = 8;
/// How long an unused REPL is kept.
pub const REPL_IDLE: Duration = Duration::from_secs(600);
/// Bytes of a REPL's name.
pub const REPL_NAME_BYTES_MAX: usize = 64;
/// Bytes that a script signs, seals or opens at once: what the vault seals, with its header.
pub const ACT_BYTES_MAX: usize = (1 << 20) + 128;
