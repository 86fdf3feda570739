//! What a request and every call below it share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::upstream::UpstreamFailure;

/// The number of the next request or call.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A number that no other request or call of this process has, or had.
pub(crate) fn next_number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether something in the course of a request was refused for want of room, or ended because a caller left it too
/// little time, and which operations that excuses. Each variant excuses what those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Hindrance {
    /// Nothing was.
    None,
    /// By a peer, or another party outside this node, whose word it is: the same request may succeed later, and no
    /// operation is excused.
    Elsewhere,
    /// By this node, because the request has as many calls as it may. The operation that was asked for brought that
    /// about; those below it did not.
    Below,
    /// By this node, in which others may have taken the room.
    Here,
}

impl Hindrance {
    fn from_bits(noted: u8) -> Self {
        let all = [Self::None, Self::Elsewhere, Self::Below, Self::Here];
        all.into_iter()
            .find(|one| *one as u8 == noted)
            .unwrap_or(Self::None)
    }
}

/// A request with every call below it, and with the runs of their idempotency keys.
#[derive(Debug)]
pub(crate) struct CallTree {
    number: u64,
    /// A [`Hindrance`].
    hindrance: AtomicU8,
    /// Calls in it that sent a change to a server, of which the node does not know whether the server made it.
    open_changes: AtomicUsize,
    /// How servers of imported operations failed: bits of [`UpstreamFailure`].
    upstream: AtomicU8,
    /// The tree that a run of an idempotency key is a part of.
    above: Option<Arc<Self>>,
}

impl CallTree {
    pub(crate) fn new() -> Self {
        Self {
            number: next_number(),
            hindrance: AtomicU8::new(Hindrance::None as u8),
            open_changes: AtomicUsize::new(0),
            upstream: AtomicU8::new(0),
            above: None,
        }
    }

    /// That of a run of an idempotency key in the course of a request: of what happens in it alone it can be told.
    pub(crate) fn below(above: &Arc<Self>) -> Self {
        Self {
            number: above.number,
            hindrance: AtomicU8::new(Hindrance::None as u8),
            open_changes: AtomicUsize::new(0),
            upstream: AtomicU8::new(0),
            above: Some(Arc::clone(above)),
        }
    }

    /// No other tree of this process has it, or had it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Notes what happened in the course of it.
    pub(crate) fn hinder(&self, by: Hindrance) {
        self.hindrance.fetch_max(by as u8, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.hinder(by);
        }
    }

    /// Notes one more call whose change may have been made, or one fewer.
    pub(crate) fn set_change_open(&self, open: bool) {
        match open {
            true => self.open_changes.fetch_add(1, Ordering::AcqRel),
            false => self.open_changes.fetch_sub(1, Ordering::AcqRel),
        };
        if let Some(above) = &self.above {
            above.set_change_open(open);
        }
    }

    /// Whether there is such a call in this run.
    pub(crate) fn has_open_change(&self) -> bool {
        self.open_changes.load(Ordering::Acquire) > 0
    }

    /// Notes that a server failed so which an imported operation asked in the course of it.
    pub(crate) fn note_upstream(&self, failure: UpstreamFailure) {
        self.upstream.fetch_or(failure as u8, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.note_upstream(failure);
        }
    }

    /// Whether one failed so.
    pub(crate) fn saw_upstream(&self, failure: UpstreamFailure) -> bool {
        let own = self.upstream.load(Ordering::Relaxed) & failure as u8 != 0;
        let above = self.above.as_deref();
        own || above.is_some_and(|above| above.saw_upstream(failure))
    }

    /// The most that happened in the course of it.
    pub(crate) fn hindrance(&self) -> Hindrance {
        let own = self.hindrance_itself();
        let above = self.above.as_deref().map(Self::hindrance);
        above.map_or(own, |above| own.max(above))
    }

    /// The same of what happened in this run, and not elsewhere in the request.
    pub(crate) fn hindrance_itself(&self) -> Hindrance {
        Hindrance::from_bits(self.hindrance.load(Ordering::Relaxed))
    }
}
