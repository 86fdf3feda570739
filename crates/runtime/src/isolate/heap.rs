//! The engine's memory: the C library's, counted, and refused beyond the limit.
//!
//! The engine keeps a limit of its own, but does not tell that it was reached: a script sees an error
//! for which there may be no memory either, and then a thrown `null`. Here it is written down.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rquickjs::allocator::Allocator;

/// What an engine has allocated, and may.
#[derive(Debug)]
pub(crate) struct HeapAccount {
    used: AtomicUsize,
    max: AtomicUsize,
    refused: AtomicBool,
}

impl HeapAccount {
    /// Without a limit, until there is one.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            max: AtomicUsize::new(usize::MAX),
            refused: AtomicBool::new(false),
        })
    }

    /// Refuses from now on what would make it more than so many bytes.
    pub(super) fn limit(&self, bytes: usize) {
        self.max.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that are allocated.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the engine ever asked for more than it may have.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether `more` bytes fit, instead of `less` of those that are there.
    fn has_room(&self, more: usize, less: usize) -> bool {
        let rest = self.used().saturating_sub(less);
        let fits = rest
            .checked_add(more)
            .is_some_and(|all| all <= self.max.load(Ordering::Relaxed));
        if !fits {
            self.refused.store(true, Ordering::Relaxed);
        }
        fits
    }

    fn took(&self, block: *mut c_void) -> *mut u8 {
        self.used.fetch_add(size_of_block(block), Ordering::Relaxed);
        block.cast()
    }
}

/// One engine's, which is in one thread at a time: the account is read from others.
pub(super) struct CountingAllocator(pub(super) Arc<HeapAccount>);

/// Bytes of a block of the C library's, which may be more than were asked for; none of none.
fn size_of_block(block: *mut c_void) -> usize {
    // SAFETY: blocks come from the functions below alone, and are asked about before they are freed.
    unsafe { libc::malloc_usable_size(block) }
}

// SAFETY: every block is the C library's, aligned for whatever it may hold, and of the size asked for
// or more; what it cannot or may not give is a null pointer.
unsafe impl Allocator for CountingAllocator {
    fn alloc(&mut self, size: usize) -> *mut u8 {
        match self.0.has_room(size, 0) {
            // SAFETY: any size may be asked for.
            true => self.0.took(unsafe { libc::malloc(size) }),
            false => std::ptr::null_mut(),
        }
    }

    fn calloc(&mut self, count: usize, size: usize) -> *mut u8 {
        match self.0.has_room(count.saturating_mul(size), 0) {
            // SAFETY: any size may be asked for; a product too large gives a null pointer.
            true => self.0.took(unsafe { libc::calloc(count, size) }),
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&mut self, ptr: *mut u8) {
        let block = ptr.cast();
        self.0
            .used
            .fetch_sub(size_of_block(block), Ordering::Relaxed);
        // SAFETY: the caller's block is one of ours, and it does not use it any more.
        unsafe { libc::free(block) };
    }

    unsafe fn realloc(&mut self, ptr: *mut u8, new_size: usize) -> *mut u8 {
        let block = ptr.cast();
        let old = size_of_block(block);
        if !self.0.has_room(new_size, old) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's block is one of ours, and it uses what is returned instead of it.
        let moved = unsafe { libc::realloc(block, new_size) };
        if moved.is_null() {
            // The old one is still there, and counted.
            return std::ptr::null_mut();
        }
        self.0.used.fetch_sub(old, Ordering::Relaxed);
        self.0.took(moved)
    }

    unsafe fn usable_size(ptr: *mut u8) -> usize {
        size_of_block(ptr.cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_and_bounded() {
        let heap = HeapAccount::new();
        let mut memory = CountingAllocator(Arc::clone(&heap));
        let first = memory.alloc(1000);
        let second = memory.calloc(10, 100);
        assert!(heap.used() >= 2000 && !first.is_null() && !second.is_null());
        // SAFETY: `calloc` gave a thousand bytes.
        let zeros = unsafe { std::slice::from_raw_parts(second, 1000) };
        assert_eq!(zeros, [0; 1000]);

        heap.limit(10_000);
        assert!(!heap.was_refused());
        let used = heap.used();
        // SAFETY: both blocks are from above, and replaced by what is returned where that is one.
        unsafe {
            assert!(memory.realloc(first, 9_500).is_null());
            assert!(heap.was_refused() && heap.used() == used);
            let first = memory.realloc(first, 2_000);
            assert!(!first.is_null() && heap.used() > used);
            memory.dealloc(first);
            memory.dealloc(second);
        }
        assert_eq!(heap.used(), 0);
        assert!(memory.alloc(usize::MAX).is_null());
        assert!(memory.calloc(usize::MAX, 2).is_null());
    }
}
