//! The allocator of every role: mimalloc, which in PID 1 overwrites memory when it is freed.
//!
//! PID 1 never ends, so what remains in its memory after the vault is locked matters. This
//! project's own types wipe themselves, but a document with recovery words passes through parsers
//! that do not know what it is.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use mimalloc::MiMalloc;

/// Whether this process overwrites memory that it frees. It is set once, before a second thread
/// starts.
static WIPES: AtomicBool = AtomicBool::new(false);

/// Makes this process overwrite the memory that it frees.
pub(crate) fn wipe_what_is_freed() {
    WIPES.store(true, Ordering::Relaxed);
}

/// How often threads were asked to return their free memory.
static RETURN_REQUESTS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The value of the counter when this thread last returned its memory.
    static LAST_RETURN: Cell<u64> = const { Cell::new(0) };
}

unsafe extern "C" {
    /// mimalloc returns this thread's free memory to the kernel.
    safe fn mi_collect(force: bool);
}

/// Asks all threads to return their free memory. An idle thread keeps its memory until it runs
/// again.
pub(crate) fn ask_back() {
    RETURN_REQUESTS.fetch_add(1, Ordering::Relaxed);
}

/// Returns this thread's free memory to the kernel, if `ask_back` was called since the thread last
/// did so.
pub(crate) fn give_back() {
    let requests = RETURN_REQUESTS.load(Ordering::Relaxed);
    if LAST_RETURN.replace(requests) != requests {
        mi_collect(true);
    }
}

/// mimalloc as the global allocator, whose requests the calling thread counts.
#[derive(Debug)]
pub(crate) struct NodeAllocator;

// SAFETY: every request goes to mimalloc unchanged, and memory from mimalloc goes back to it with
// the layout that it was allocated with. `realloc` by hand allocates with the same alignment, and
// both areas are valid for the bytes that are copied: the shorter of the two lengths.
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
        // mimalloc may move the area and free the old one itself, without wiping it. Hence a wiping
        // process moves it by hand.
        if !WIPES.load(Ordering::Relaxed) {
            // SAFETY: as above.
            return unsafe { MiMalloc.realloc(place, layout, bytes) };
        }
        // SAFETY: the caller promises that `bytes`, rounded up to the alignment, is a valid length.
        let resized = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        // SAFETY: `bytes` is not zero, as the caller promises.
        let new = unsafe { self.alloc(resized) };
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
    // The fence keeps the compiler from removing the write, which no later read needs.
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resized_keeps_its_bytes() {
        wipe_what_is_freed();
        // This test runs with the allocator of this program.
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
        // SAFETY: the vector has 36 bytes from the second one on.
        unsafe { wipe(bytes[1..].as_mut_ptr(), 35) };
        assert_eq!((bytes[0], bytes[36]), (0x5a, 0x5a));
        assert!(bytes[1..36].iter().all(|byte| *byte == 0));
    }
}
