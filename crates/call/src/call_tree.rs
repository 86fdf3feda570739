//! What a request and every call below it share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The number of the next request or call.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A number that no other request or call of this process has, or had.
pub(crate) fn next_number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A request with every call below it, and with the runs of their idempotency keys.
#[derive(Debug)]
pub(crate) struct CallTree {
    number: u64,
    excused: AtomicBool,
    /// The tree that a run of an idempotency key is a part of.
    above: Option<Arc<Self>>,
}

impl CallTree {
    pub(crate) fn new() -> Self {
        Self {
            number: next_number(),
            excused: AtomicBool::new(false),
            above: None,
        }
    }

    /// That of a run of an idempotency key in the course of a request: of what happens in it alone it can be told.
    pub(crate) fn below(above: &Arc<Self>) -> Self {
        Self {
            number: above.number,
            excused: AtomicBool::new(false),
            above: Some(Arc::clone(above)),
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
        if let Some(above) = &self.above {
            above.excuse();
        }
    }

    pub(crate) fn is_excused(&self) -> bool {
        self.is_excused_itself() || self.above.as_deref().is_some_and(Self::is_excused)
    }

    /// The same of what happened in this run, and not elsewhere in the request.
    pub(crate) fn is_excused_itself(&self) -> bool {
        self.excused.load(Ordering::Relaxed)
    }
}
