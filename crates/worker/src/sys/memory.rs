//! Returning freed memory to the system.

/// Returns memory to the system that the C library keeps for later. Each thread has an arena of its own: many threads
/// that have freed much would together hold more than a worker may.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator itself holds free, under its own locks.
    unsafe { libc::malloc_trim(0) };
}
