//! What a thread that handled secrets still has of them.
//!
//! Types of secrets wipe themselves where they end. On their way there they are moved and held in
//! registers. What a function saved of either stays below the frames that are left; what was in a vector
//! register stays there until other vectors come, and whenever the thread waits the kernel writes them to its
//! own memory.

mod registers;

use std::hint::black_box;

/// Does `work`, then overwrites `DEPTH` bytes of the stack that it used, and the processor's vector
/// registers; also where `work` panics. `DEPTH` is at least what `work` takes, and there is that much room.
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

/// In a frame of its own, which lies where [`overwrite`]'s will.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite<const DEPTH: usize>() {
    let mut frame = [0_u8; DEPTH];
    // Looked at, so that it is really written.
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
