//! The stack and the registers of PID 1's threads, which outlive what they handle.

/// How far below its caller a piece of work may leave something, bytes: an eighth of a thread's stack, and
/// many times what opening a vault takes.
const DEPTH: usize = 256 << 10;

/// Does `work`, then overwrites the stack and the registers that it used.
pub(crate) fn after<T>(work: impl FnOnce() -> T) -> T {
    alknet_vault::without_traces::<DEPTH, T>(work)
}
