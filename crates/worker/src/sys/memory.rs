//! Memory that was freed.

/// Gives what the C library keeps for later back to the system. Each thread has a place of its own to
/// keep it in: many threads that are done with much would together hold more than a worker may.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator itself holds free, under its own locks.
    unsafe { libc::malloc_trim(0) };
}
