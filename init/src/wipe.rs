//! The stack of a thread that handled keys.
//!
//! Types of secrets wipe themselves where they end. On their way there they are moved, and what they were
//! moved from stays below the frames that are left, in a thread whose stack is kept for the next one.

use std::hint::black_box;

/// How far below its caller a piece of work may leave something, bytes: a tenth of a thread's stack, and
/// many times what opening a vault takes.
const DEPTH: usize = 256 << 10;

/// Does `work`, then overwrites the stack that it used.
pub(crate) fn after<T>(work: impl FnOnce() -> T) -> T {
    let outcome = apart(work);
    overwrite();
    outcome
}

/// In a frame of its own, which lies where [`overwrite`]'s will.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite() {
    let mut frame = [0_u8; DEPTH];
    // Looked at, so that it is really written.
    black_box(&mut frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn secret() -> usize {
        let bytes = black_box([0x5a_u8; 4096]);
        black_box(&bytes).as_ptr().addr()
    }

    #[test]
    fn work_runs_once_and_lies_where_the_stack_is_overwritten() {
        let here = black_box(0_u8);
        let above = std::ptr::from_ref(&here).addr();
        let below = after(secret);
        assert!(above > below && above - below < DEPTH);
    }
}
