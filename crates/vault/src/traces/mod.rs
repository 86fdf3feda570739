//! Removes the traces of secrets that a thread leaves in its stack and registers.
//!
//! Types of secrets zeroize themselves when they are dropped. Before that they are moved, and held in registers.
//! Copies that a function spilled stay below the stack frames that are left; the content of a vector register stays
//! until it is overwritten, and whenever the thread waits the kernel saves it to its own memory.

mod registers;

use std::hint::black_box;

/// Does `work`, then overwrites `DEPTH` bytes of the stack below, and the processor's vector registers, even if
/// `work` panics. `DEPTH` must be at least what `work` uses, and the stack must have that much room.
pub fn without_traces<const DEPTH: usize, T>(work: impl FnOnce() -> T) -> T {
    let _overwritten = RegisterWipe::<DEPTH>;
    apart(work)
}

/// Overwrites both when it is dropped.
struct RegisterWipe<const DEPTH: usize>;

impl<const DEPTH: usize> Drop for RegisterWipe<DEPTH> {
    fn drop(&mut self) {
        overwrite::<DEPTH>();
        registers::fill();
    }
}

/// Calls `work` in a frame of its own, which lies where the frame of [`overwrite`] will.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite<const DEPTH: usize>() {
    let mut frame = [0_u8; DEPTH];
    // `black_box` keeps the compiler from removing the write.
    black_box(&mut frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPTH: usize = 64 << 10;

    #[inline(never)]
    fn secret() -> usize {
        let bytes = black_box([0x5a_u8; 4096]);
        black_box(&bytes).as_ptr().addr()
    }

    #[test]
    fn the_work_lies_where_the_stack_is_overwritten() {
        let here = black_box(0_u8);
        let above = std::ptr::from_ref(&here).addr();
        let below = without_traces::<DEPTH, _>(secret);
        assert!(above > below && above - below < DEPTH);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn no_register_has_what_it_had_before_the_work() {
        let held = registers::tests::held_after(0x5a, || without_traces::<DEPTH, _>(|| {}));
        assert!(!held.contains(&0x5a));
    }
}
