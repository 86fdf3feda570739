//! Every limit of this crate, with its unit and its reason. `docs/workers.md` has them as a table.

use std::time::Duration;

/// Longest frame, in bytes of CBOR after the length. A larger value travels as a sealed descriptor.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Most descriptors of one frame: a call rarely has more than a few tensors.
pub const FRAME_FDS_MAX: usize = 8;
/// Most nesting levels of the envelope; this crate's messages need six.
pub const ENVELOPE_NESTING_MAX: usize = 16;
/// Most nesting levels of a body, as at the JSON boundary.
pub const BODY_NESTING_MAX: usize = 64;
/// Most bytes of a value inside the frame; a larger one travels as a sealed descriptor.
pub const INLINE_BYTES_MAX: usize = (64 << 10) - 1;
/// Largest sealed value, in bytes, that is read or mapped.
pub const SEALED_BYTES_MAX: u64 = 1 << 30;

/// Time that a worker has to answer an abort before the host kills it. Time in which it waited for a processor does not
/// count, as all its sessions end with it: beside ten programs on two processors, nine of ten workers that obeyed were
/// killed.
pub const ABORT_GRACE: Duration = Duration::from_millis(20);
/// Looks in this time at a worker that has not read the abort, or that waited for a processor.
pub const ABORT_LOOKS: u32 = 4;
/// A worker that used one part in so many of the grace since it read the abort had time to obey.
pub const ABORT_PART: u64 = 4;
/// The host kills the worker in any case once this many times the grace has passed.
pub const ABORT_WAIT_MAX: u32 = 50;
/// Reads of workers' channels, of [`READ_TURN_BYTES`] each, before the host kills those that are due at once for a limit:
/// their answers may wait behind other frames. Each worker has one read in any case.
pub const KILL_READS_MAX: u32 = 16;
/// Bytes of page tables up to which the host frees the memory of a killed worker, so that other processes do not keep the
/// worker from doing so: they map 512 MiB. The size of the tables does not bound the time. On a busy machine 480 MiB of own
/// pages of 4 KiB took 37 to 62 ms, the pages of one small file mapped again and again 15 to 29 ms, and 65,000 mappings with
/// 548 KiB of tables 122 to 142 ms. Only killed workers wait meanwhile.
pub const KILLED_TABLES_MAX: u64 = 1 << 20;
/// Killed workers that wait for the thread that frees their memory. Any more free it themselves.
pub const RELEASES_MAX: usize = 64;
/// Time between heartbeats of a running call.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(20);
/// Longest time of a running call without a heartbeat of its worker.
pub const HEARTBEAT_SILENCE_MAX: Duration = Duration::from_millis(100);
/// Time between checks of a worker that was silent for so long, until the host knows that it does not wait for a
/// processor.
pub const SILENCE_LOOK: Duration = Duration::from_millis(25);
/// Number of checks in a row in which the worker has to compute without a heartbeat, or not to want a processor. On a
/// busy machine it may do so in some: its script has a processor and its control thread waits for one, or its
/// heartbeat is not read yet. With three checks, workers were lost beside seven programs on two processors, and with six
/// one in some thousand calls beside the emulated machines of the tests.
pub const SILENCE_LOOKS: u32 = 12;
/// The worker counts as silent as well once all checks together saw it use this many times the silence of processor
/// time: on a busy machine it waits in most of them, and a heartbeat takes hardly any processor time.
pub const SILENCE_BURNT: u32 = 10;
/// Shortest step of the timer that waits until a CPU budget is used up.
pub const CPU_STEP_MIN: Duration = Duration::from_millis(5);
/// Time that a service has to dispose of itself when it is drained.
pub const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Time that a worker has from its start until it is ready, with its warm-up. One that computes, or waits for a processor,
/// has longer: the GPU program compiles a kernel in its warm-up, and on an emulated processor that other programs use as
/// well it was killed for that.
pub const START_MAX: Duration = Duration::from_secs(30);
/// Looks in this time, and in as long after it. After it the host ends a start if between two of them the worker used no
/// processor time, and if it then waits for no processor.
pub const START_LOOKS: u32 = 10;
/// Processor time that a worker may have used after [`START_MAX`] without being ready.
pub const START_CPU_MAX: Duration = Duration::from_secs(120);
/// Time after which the host ends a start in any case.
pub const START_WALL_MAX: Duration = Duration::from_secs(300);
/// Time for which the host waits for the end of a worker that closed its socket before it kills it.
pub const LEAVING_MAX: Duration = Duration::from_millis(20);

/// Default limit of workers at once, of all roles.
pub const WORKERS_MAX: usize = 64;
/// One tenant gets one in this many of all workers, of all roles together, and at least one. That holds while no
/// other tenant wants a worker as well: no session is ended to make room, so that a later tenant would be refused.
pub const TENANT_WORKERS_PART: usize = 4;
/// Most sessions of one tenant in one worker.
pub const SESSIONS_MAX: u32 = 16;
/// Sessions after which a worker is replaced, so that leaks do not grow without end.
pub const SESSIONS_SERVED_MAX: u32 = 1000;
/// Time for which a worker waits for its tenant's next session before it ends.
pub const LINGER: Duration = Duration::from_secs(10);
/// Most open calls of a session into the host.
pub const CALLS_OUT_MAX: usize = 64;
/// Most open calls of the host in one worker.
pub const CALLS_IN_MAX: usize = 256;
/// Bytes that a session may log in a second. The rest is counted and dropped.
pub const LOG_BYTES_PER_S: u64 = 64 << 10;
/// Most messages of one session that wait for its owner. A worker that sends more floods its host.
pub const MESSAGES_WAITING_MAX: usize = 256;
/// Most bytes of these messages. Large values travel beside their frames.
pub const MESSAGES_WAITING_BYTES_MAX: usize = 2 << 20;
/// Most bytes that wait for a worker to read them.
pub const OUT_BYTES_MAX: usize = 8 << 20;
/// Most descriptors that wait in the socket of a worker that has not read them; one frame may have more. All workers
/// of a tenant together have half of what the kernel lets a user with [`NOFILE`] descriptors leave there (unix(7)).
pub const UNREAD_FDS_MAX: usize = 2;
/// Time for which a worker may leave descriptors unread. After twice this time it ends. Its control thread reads
/// whatever the others do, so it takes this long only where it gets no processor.
pub const UNREAD_MAX: Duration = Duration::from_secs(5);
/// Shortest and longest pause between looks whether a worker has read its descriptors, while a frame waits for that.
pub const UNREAD_LOOK_MIN: Duration = Duration::from_micros(100);
/// The longest one.
pub const UNREAD_LOOK_MAX: Duration = Duration::from_micros(3200);
/// Most frames with descriptors that wait for a worker and whose senders wait for room. Each has one or two
/// descriptors of the host.
pub const SEALED_FRAMES_RESERVED_MAX: usize = 8;
/// Most other frames with descriptors that wait for a worker: as many as one promoted operation may have calls.
pub const SEALED_FRAMES_WAITING_MAX: usize = 128;
/// Most descriptors of a frame of a worker: of a value and of the bytes beside it.
pub const FRAME_FDS_FROM_WORKER_MAX: usize = 2;
/// Time for which a worker tries again to send a descriptor that the kernel refuses, as too many of its user's are
/// in sockets.
pub const SEND_AGAIN_MAX: Duration = Duration::from_secs(1);
/// Frames of a worker in a second that begin and end nothing, and reads of its output: lines of the log, heartbeats,
/// what is for a session or call that has ended. Twice as many at once.
pub const IDLE_FRAMES_PER_S: u64 = 1000;
/// Further frames for each running call: an honest one has 50 heartbeats a second.
pub const IDLE_FRAMES_OF_CALL_PER_S: u64 = 100;
/// Further frames for each call that the host begins: an honest one reports to the GPU's clock a few times.
pub const IDLE_FRAMES_OF_CALL: u64 = 64;
/// What a line of the log counts beside its bytes.
pub const LOG_LINE_BYTES: u64 = 64;
/// Bytes that the host reads from one worker before it reads from another.
pub const READ_TURN_BYTES: usize = 64 << 10;
/// Most bytes of frames that a worker queues for its own threads. The control thread reads on, because an abort may
/// follow.
pub const GUEST_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Descriptors in this queue from which on the control thread reads no further frame. With those of one more frame, of
/// the message that a thread handles and of the values that the worker sends, they have to fit into [`NOFILE`].
pub const GUEST_QUEUE_FDS_MAX: usize = 24;

/// Crashes of one operation within [`CRASH_WINDOW`] that put it into quarantine.
pub const CRASHES_MAX: usize = 3;
/// The window of [`CRASHES_MAX`].
pub const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Operations whose crashes are remembered. The one whose last crash is oldest is forgotten first.
pub const CRASH_BOOK_MAX: usize = 4096;

/// A tenant whose workers ended twice within this time because the machine had too little memory left gets no worker
/// for as long: it would use the freed memory within a second, and other tenants would again find none.
pub const RELIEF_PAUSE: Duration = Duration::from_secs(60);

/// Most open descriptors of a worker.
pub const NOFILE: u64 = 64;
/// Stack of a worker's first thread and, by glibc's rule, of every other one, in bytes (pthread_create(3)).
pub const STACK_BYTES: u64 = 8 << 20;
/// Bytes of a worker's address space beyond its memory limit: allocators reserve far more than they use, and files
/// are mapped.
pub const ADDRESS_SPACE_EXTRA: u64 = 16 << 30;
/// Bytes that a worker holds beyond what its sessions were granted.
pub const MEMORY_REST: u64 = 64 << 20;
/// Default memory of all workers together, in hundredths of the machine's.
pub const MEMORY_PERCENT: u64 = 75;
/// Bytes that are kept of the end of a dying worker's output.
pub const LAST_WORDS_BYTES: usize = 2 << 10;
/// Time after a limit within which a worker that did not stop has to be gone. Later ends are counted.
pub const DEATH_WITHIN: Duration = Duration::from_millis(50);
/// Number of ends from which the percentiles are computed.
pub const DEATHS_KEPT: usize = 1024;
/// First pause after a failed start of a worker.
pub const START_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause after failed starts of workers.
pub const START_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Time between checks of a worker's memory if no cgroup limits it.
pub const MEMORY_LOOK_EVERY: Duration = Duration::from_millis(100);
