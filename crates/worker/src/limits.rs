//! Every limit of this crate, with its unit and its reason. `docs/workers.md` has them as a table.

use std::time::Duration;

/// Longest frame, bytes of CBOR behind the length. What is larger travels as a sealed descriptor.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Descriptors that may travel with one frame: a call rarely has more than a few tensors.
pub const FRAME_FDS_MAX: usize = 8;
/// Nesting of the envelope; our own messages need six levels.
pub const ENVELOPE_NESTING_MAX: usize = 16;
/// Nesting of a body, as the JSON boundary has it.
pub const BODY_NESTING_MAX: usize = 64;
/// Bytes from which on a value travels as a sealed descriptor instead of inside the frame.
pub const INLINE_BYTES_MAX: usize = (64 << 10) - 1;
/// Largest sealed value that is read or mapped.
pub const SEALED_BYTES_MAX: u64 = 1 << 30;

/// How long a worker has to answer an abort before it is killed.
pub const ABORT_GRACE: Duration = Duration::from_millis(20);
/// How often a worker tells how far a running call is.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(20);
/// How long a running call may be without a sign of life from its worker.
pub const HEARTBEAT_SILENCE_MAX: Duration = Duration::from_millis(100);
/// How often a worker that was silent for so long is looked at, until it is known not to wait for a processor.
pub const SILENCE_LOOK: Duration = Duration::from_millis(25);
/// In so many looks one after the other it has to compute without a sign of life, or not to want a processor. In
/// some it may do so on a busy machine: its script has a processor and the thread that gives signs of life waits for
/// one, or its sign of life is not read yet. With three, workers were lost beside seven programs on two processors.
pub const SILENCE_LOOKS: u32 = 6;
/// It is silent as well once all looks together saw it use so many times the silence of a processor: on a busy
/// machine it waits in most of them, and a sign of life takes next to no processor time.
pub const SILENCE_BURNT: u32 = 10;
/// Shortest step of the timer that waits for a CPU budget to be used up.
pub const CPU_STEP_MIN: Duration = Duration::from_millis(5);
/// How long a service may take to dispose of itself when it is drained.
pub const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How long a worker may take from its start until it is ready, its warm-up included.
pub const START_MAX: Duration = Duration::from_secs(30);
/// How long the end of a worker that closed its socket is waited for before it is killed.
pub const LEAVING_MAX: Duration = Duration::from_millis(20);

/// Workers at once, of all roles, unless said.
pub const WORKERS_MAX: usize = 64;
/// One tenant gets one in so many of all workers, of all roles together, and one worker at the least. That holds while
/// no other tenant wants one, too: no session is ended to make room, so a tenant that came later would be refused.
pub const TENANT_WORKERS_PART: usize = 4;
/// Isolates of one tenant in one worker.
pub const SESSIONS_MAX: u32 = 16;
/// Sessions after which a worker is replaced: whatever leaks, leaks no further.
pub const SESSIONS_SERVED_MAX: u32 = 1000;
/// How long a worker waits for its tenant's next session before it is ended.
pub const LINGER: Duration = Duration::from_secs(10);
/// Calls into the host that a session may have open.
pub const CALLS_OUT_MAX: usize = 64;
/// Calls of the host that one worker may have open.
pub const CALLS_IN_MAX: usize = 256;
/// What a session may log in a second, bytes; the rest is counted and dropped.
pub const LOG_BYTES_PER_S: u64 = 64 << 10;
/// Messages of one session that wait for its owner. A worker that sends more floods its host.
pub const MESSAGES_WAITING_MAX: usize = 256;
/// Bytes of these. What is large travels beside its frame.
pub const MESSAGES_WAITING_BYTES_MAX: usize = 2 << 20;
/// Bytes that wait for a worker to read them.
pub const OUT_BYTES_MAX: usize = 8 << 20;
/// Bytes read from one worker before another gets its turn.
pub const READ_TURN_BYTES: usize = 64 << 10;
/// Frames that a worker keeps for its own threads, bytes. The control thread reads on for aborts.
pub const GUEST_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Crashes of one operation in [`CRASH_WINDOW`] that quarantine it.
pub const CRASHES_MAX: usize = 3;
/// The window of [`CRASHES_MAX`].
pub const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Operations whose crashes are remembered; the one whose last crash is oldest is forgotten first.
pub const CRASH_BOOK_MAX: usize = 4096;

/// A tenant whose workers ended twice within this time because the machine had too little memory left gets none for as
/// long: it would fill what they gave back within a second, and others would find none again.
pub const RELIEF_PAUSE: Duration = Duration::from_secs(60);

/// Open descriptors of a worker.
pub const NOFILE: u64 = 64;
/// Stack of a worker's first thread and, by glibc's rule, of every other, bytes.
pub const STACK_BYTES: u64 = 8 << 20;
/// What a worker's address space may hold beyond its memory limit, bytes: allocators reserve far
/// more than they use, and files are mapped.
pub const ADDRESS_SPACE_EXTRA: u64 = 16 << 30;
/// What a worker holds beside what its sessions were granted, bytes.
pub const MEMORY_REST: u64 = 64 << 20;
/// What all workers may hold together, in hundredths of the machine's memory, unless said.
pub const MEMORY_PERCENT: u64 = 75;
/// What a dying worker wrote last, bytes kept of it.
pub const LAST_WORDS_BYTES: usize = 2 << 10;
/// How long after a limit a worker that did not stop at it may still run; what took longer is counted.
pub const DEATH_WITHIN: Duration = Duration::from_millis(50);
/// How many deaths the percentiles are taken from.
pub const DEATHS_KEPT: usize = 1024;
/// First pause after a worker that could not be started.
pub const START_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause after workers that could not be started.
pub const START_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often a worker's memory is looked at where no cgroup limits it.
pub const MEMORY_LOOK_EVERY: Duration = Duration::from_millis(100);
