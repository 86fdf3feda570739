//! What a request and every call below it share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The number of the next tree.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A request with every call below it, and with the runs of their idempotency keys.
#[derive(Debug)]
pub(crate) struct CallTree {
    number: u64,
    excused: AtomicBool,
}

impl CallTree {
    pub(crate) fn new() -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            excused: AtomicBool::new(false),
        }
    }

    /// No other tree of this process has it, or had it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Something in it was refused for want of room, or ended because a caller left it too little time: what fails
    /// above proves nothing against the code that fails.
    pub(crate) fn excuse(&self) {
        self.excused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_excused(&self) -> bool {
        self.excused.load(Ordering::Relaxed)
    }
}
