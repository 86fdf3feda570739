//! The stack and the registers of PID 1's threads, which outlive what they handle.

use std::thread;
use std::time::Duration;

/// How far below its caller a piece of work may leave something, bytes: an eighth of a thread's stack, and
/// many times what opening a vault takes.
const DEPTH: usize = 256 << 10;

/// Does `work`, then overwrites the stack and the registers that it used, and what the kernel keeps of those.
pub(crate) fn after<T>(work: impl FnOnce() -> T) -> T {
    let _saved = RegisterRefresh;
    alknet_vault::without_traces::<DEPTH, T>(work)
}

/// Has the kernel save this thread's registers once more when it is dropped, over those of a moment at which
/// the work was interrupted: it does so whenever a thread waits.
struct RegisterRefresh;

impl Drop for RegisterRefresh {
    fn drop(&mut self) {
        thread::sleep(Duration::from_nanos(1));
    }
}
