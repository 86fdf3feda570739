//! Wipes the stack and the registers of PID 1's threads, which outlive the secrets that they
//! handle.

use std::thread;
use std::time::Duration;

/// How far below its caller a piece of work may leave secrets, bytes: an eighth of a thread's
/// stack, and many times what opening a vault takes.
const DEPTH: usize = 256 << 10;

/// Runs `work`, then overwrites the stack and the registers that it used, and the kernel's copy of
/// those registers.
pub(crate) fn after<T>(work: impl FnOnce() -> T) -> T {
    let _saved = RegisterRefresh;
    alknet_vault::without_traces::<DEPTH, T>(work)
}

/// When it is dropped, makes the kernel save this thread's registers once more, over those of a
/// moment at which the work was interrupted. The kernel saves them whenever a thread waits.
struct RegisterRefresh;

impl Drop for RegisterRefresh {
    fn drop(&mut self) {
        thread::sleep(Duration::from_nanos(1));
    }
}
