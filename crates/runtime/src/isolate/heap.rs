//! The engine's memory: it comes from the C library, is counted, and is refused beyond the limit.
//!
//! The engine has a limit of its own, but does not report that it was reached: a script sees an error, for which
//! there may be no memory either, and then a thrown `null`. This module records the refusal.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rquickjs::allocator::Allocator;

/// The part of the heap that values of others leave.
const RESERVED_PART: usize = 8;

/// The bytes that an engine has allocated, and their limit.
#[derive(Debug)]
pub(crate) struct HeapQuota {
    used: AtomicUsize,
    peak: AtomicUsize,
    max: AtomicUsize,
    refused: AtomicBool,
}

impl HeapQuota {
    /// An account without a limit at first.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            max: AtomicUsize::new(usize::MAX),
            refused: AtomicBool::new(false),
        })
    }

    /// Refuses from now on allocations that would exceed this number of bytes.
    pub(super) fn limit(&self, bytes: usize) {
        self.max.store(bytes, Ordering::Relaxed);
    }

    /// The allocated bytes.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were allocated at once.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Whether the engine asked for more than it may have, since [`forget_refusal`](Self::forget_refusal).
    pub(crate) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Forgets a refusal: the call that caused it is over.
    pub(super) fn forget_refusal(&self) {
        self.refused.store(false, Ordering::Relaxed);
    }

    /// Does something that may not use the last eighth of the heap, and whose refusals do not count as the script's: the
    /// size of an input, or of an answer, is chosen by others. What is left is for the code that gets the value, or learns
    /// that there was no room for it.
    pub(crate) fn with_reserve<T>(&self, work: impl FnOnce() -> T) -> T {
        let (max, refused) = (self.max.load(Ordering::Relaxed), self.was_refused());
        self.limit(max - max / RESERVED_PART);
        let done = work();
        self.limit(max);
        self.refused.store(refused, Ordering::Relaxed);
        done
    }

    /// Whether `more` bytes fit in the place of `less` of the allocated ones.
    fn has_capacity(&self, more: usize, less: usize) -> bool {
        let rest = self.used().saturating_sub(less);
        let has_capacity = rest
            .checked_add(more)
            .is_some_and(|all| all <= self.max.load(Ordering::Relaxed));
        if !has_capacity {
            self.refused.store(true, Ordering::Relaxed);
        }
        has_capacity
    }

    fn took(&self, block: *mut c_void) -> *mut u8 {
        let bytes = size_of_block(block);
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // The engine is on one thread at a time, so no other one writes in between.
        if used > self.peak() {
            self.peak.store(used, Ordering::Relaxed);
        }
        block.cast()
    }
}

/// The allocator of one engine, which is on one thread at a time; other threads read the account.
pub(super) struct CountingAllocator(pub(super) Arc<HeapQuota>);

/// The bytes of a block of the C library, which may be more than were requested; 0 for a null pointer.
fn size_of_block(block: *mut c_void) -> usize {
    // SAFETY: blocks come only from the functions below, and are measured before they are freed.
    unsafe { libc::malloc_usable_size(block) }
}

// SAFETY: each block comes from the C library, is aligned for any type, and has at least the requested size; a
// refused or failed allocation is a null pointer.
unsafe impl Allocator for CountingAllocator {
    fn alloc(&mut self, size: usize) -> *mut u8 {
        match self.0.has_capacity(size, 0) {
            // SAFETY: any size may be requested.
            true => self.0.took(unsafe { libc::malloc(size) }),
            false => std::ptr::null_mut(),
        }
    }

    fn calloc(&mut self, count: usize, size: usize) -> *mut u8 {
        match self.0.has_capacity(count.saturating_mul(size), 0) {
            // SAFETY: any size may be requested; a product that overflows gives a null pointer.
            true => self.0.took(unsafe { libc::calloc(count, size) }),
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&mut self, ptr: *mut u8) {
        let block = ptr.cast();
        self.0
            .used
            .fetch_sub(size_of_block(block), Ordering::Relaxed);
        // SAFETY: the caller's block comes from this allocator, and the caller does not use it any more.
        unsafe { libc::free(block) };
    }

    unsafe fn realloc(&mut self, ptr: *mut u8, new_size: usize) -> *mut u8 {
        let block = ptr.cast();
        let old = size_of_block(block);
        if !self.0.has_capacity(new_size, old) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's block comes from this allocator, and the caller uses the returned block instead of it.
        let moved = unsafe { libc::realloc(block, new_size) };
        if moved.is_null() {
            // The old block still exists and is still counted.
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
        let heap = HeapQuota::new();
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
        assert!(heap.peak() >= 3000, "what was freed counts");
        assert!(heap.peak() < 9_500, "what was refused does not");
        assert!(memory.alloc(usize::MAX).is_null());
        assert!(memory.calloc(usize::MAX, 2).is_null());
    }
}
