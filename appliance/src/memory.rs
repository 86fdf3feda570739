//! The allocator of every role: mimalloc, which in PID 1 overwrites what is given back.
//!
//! PID 1 never ends, and a lock is worth what is left in its memory after it. Types of ours wipe
//! themselves, but a document with words in it passes through parsers that do not know what it is.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use mimalloc::MiMalloc;

/// Whether this process overwrites what it gives back. Set once, before there is another thread.
static WIPES: AtomicBool = AtomicBool::new(false);

/// From now on this process overwrites the memory that it gives back.
pub(crate) fn wipe_what_is_freed() {
    WIPES.store(true, Ordering::Relaxed);
}

/// How often threads were asked to give back what is free.
static ASKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// When this one last did.
    static GAVE: Cell<u64> = const { Cell::new(0) };
}

unsafe extern "C" {
    /// Has mimalloc give the kernel what is free of this thread's memory.
    safe fn mi_collect(force: bool);
}

/// Asks all threads for what is free of their memory. Each keeps it for itself, for as long as it has nothing to do.
pub(crate) fn ask_back() {
    ASKED.fetch_add(1, Ordering::Relaxed);
}

/// Gives the kernel what is free of this thread's memory, if it was asked for that since it last did.
pub(crate) fn give_back() {
    let asked = ASKED.load(Ordering::Relaxed);
    if GAVE.replace(asked) != asked {
        mi_collect(true);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct NodeAllocator;

// SAFETY: every request goes to mimalloc as it came, and what mimalloc gave goes back to it with the
// layout that it was asked for. Where memory is resized by hand, the new place is asked for with the
// same alignment, and both are valid for the bytes that are copied: the shorter of the two lengths.
unsafe impl GlobalAlloc for NodeAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the one that mimalloc asks for.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if WIPES.load(Ordering::Relaxed) {
            // SAFETY: the caller gives back `layout.size()` bytes and has no other use of them.
            unsafe { wipe(place, layout.size()) };
        }
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if !WIPES.load(Ordering::Relaxed) {
            // SAFETY: as above.
            return unsafe { MiMalloc.realloc(place, layout, bytes) };
        }
        // SAFETY: the caller promises that `bytes`, rounded up to the alignment, is a valid length.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        // SAFETY: `bytes` is not zero, as the caller promises.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both have so many bytes, and were given out separately.
            unsafe { ptr::copy_nonoverlapping(place, new, layout.size().min(bytes)) };
            // SAFETY: the caller gives the old place up where this succeeds.
            unsafe { self.dealloc(place, layout) };
        }
        new
    }
}

/// Overwrites memory that is about to be freed.
///
/// # Safety
/// `bytes` bytes from `place` on may be written.
unsafe fn wipe(place: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { ptr::write_bytes(place, 0, bytes) };
    // Keeps the compiler from dropping the write, which no later read needs.
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resized_keeps_its_bytes() {
        wipe_what_is_freed();
        // Through the allocator of this very program.
        let mut bytes = Vec::new();
        for n in 0..100_000_u32 {
            bytes.extend_from_slice(&n.to_le_bytes());
        }
        bytes.truncate(4000);
        bytes.shrink_to_fit();
        let numbers = bytes.chunks_exact(4).map(|four| four.try_into());
        let numbers: Vec<u32> = numbers.flatten().map(u32::from_le_bytes).collect();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_wiped_is_zero() {
        let mut bytes = [0x5a_u8; 37];
        // SAFETY: it has 36 bytes from the second on.
        unsafe { wipe(bytes[1..].as_mut_ptr(), 35) };
        assert_eq!((bytes[0], bytes[36]), (0x5a, 0x5a));
        assert!(bytes[1..36].iter().all(|byte| *byte == 0));
    }
}
