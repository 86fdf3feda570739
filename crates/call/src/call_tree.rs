//! The state that a request shares with every call below it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::error::CallError;
use crate::upstream::UpstreamFailure;

/// The number of the next request or call.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A number that no other request or call of this process has or had.
pub(crate) fn next_number() -> u64 {
    // Only the number matters: it orders no other memory.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether a part of a request was refused for want of capacity, or ended because a caller left it too little time,
/// and which operations that excuses. Each variant excuses those of the variants before it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Hindrance {
    /// No part was refused.
    None,
    /// A peer, or another party outside this node, says so: the same request may succeed later, and no operation is
    /// excused.
    Elsewhere,
    /// This node refused, because the request has too many calls. The operation that was called caused that; those
    /// below it did not.
    Below,
    /// This node refused, and others may have taken the capacity.
    Here,
}

impl Hindrance {
    fn from_bits(noted: u8) -> Self {
        let all = [Self::None, Self::Elsewhere, Self::Below, Self::Here];
        all.into_iter()
            .find(|one| *one as u8 == noted)
            // Only `hinder` writes the byte, so that every value is one of the variants.
            .unwrap_or(Self::None)
    }
}

/// Number of calls that have sent a change to a server outside of this node: of one call with all below it, or of a
/// whole request. A call that was answered still counts, whatever the response was: later code must not cause it to
/// be repeated.
#[derive(Debug, Default)]
pub(crate) struct SentChanges {
    count: AtomicUsize,
    /// The counter of the caller.
    above: Option<Arc<Self>>,
}

impl SentChanges {
    /// A counter for a call that is a part of what `above` counts.
    pub(crate) fn below(above: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            above: Some(Arc::clone(above)),
        })
    }

    /// Counts one more call that has sent a change, or one fewer, because the server did not take the change.
    pub(crate) fn note(&self, sent: bool) {
        match sent {
            true => self.count.fetch_add(1, Ordering::AcqRel),
            false => self.count.fetch_sub(1, Ordering::AcqRel),
        };
        if let Some(above) = &self.above {
            above.note(sent);
        }
    }

    /// Whether a call has sent a change.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// The error for the caller of a call that made a change: it never says that the request may be repeated.
    pub(crate) fn settled(&self, error: CallError) -> CallError {
        match self.any() {
            true => error.not_retryable(),
            false => error,
        }
    }
}

/// A request with every call below it, and with the runs of their idempotency keys.
#[derive(Debug)]
pub(crate) struct CallTree {
    number: u64,
    /// A [`Hindrance`].
    hindrance: AtomicU8,
    /// Changes that its calls have sent to servers.
    changes: Arc<SentChanges>,
    /// Failures of servers of imported operations: bits of [`UpstreamFailure`].
    upstream: AtomicU8,
    /// Whether a capability of this node had nothing to act with.
    vacant: AtomicBool,
    /// The tree of which a run of an idempotency key is a part.
    above: Option<Arc<Self>>,
}

impl CallTree {
    pub(crate) fn new() -> Self {
        Self {
            number: next_number(),
            hindrance: AtomicU8::new(Hindrance::None as u8),
            changes: Arc::default(),
            upstream: AtomicU8::new(0),
            vacant: AtomicBool::new(false),
            above: None,
        }
    }

    /// The tree of a run of an idempotency key in the course of a request, which sees its own events apart. `changes`
    /// counts what the waiting call has sent.
    pub(crate) fn below(above: &Arc<Self>, changes: &Arc<SentChanges>) -> Self {
        Self {
            number: above.number,
            hindrance: AtomicU8::new(Hindrance::None as u8),
            changes: SentChanges::below(changes),
            upstream: AtomicU8::new(0),
            vacant: AtomicBool::new(false),
            above: Some(Arc::clone(above)),
        }
    }

    /// Its number, which no other tree of this process has or had.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Records a refusal in the course of the request.
    pub(crate) fn hinder(&self, by: Hindrance) {
        // The variants are in the order of what they excuse: the greatest one wins.
        self.hindrance.fetch_max(by as u8, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.hinder(by);
        }
    }

    /// Changes that its calls have sent to servers.
    pub(crate) fn changes(&self) -> &Arc<SentChanges> {
        &self.changes
    }

    /// Records the failure of a server that an imported operation called in the course of the request.
    pub(crate) fn note_upstream(&self, failure: UpstreamFailure) {
        self.upstream.fetch_or(failure as u8, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.note_upstream(failure);
        }
    }

    /// Whether a server failed in this way.
    pub(crate) fn saw_upstream(&self, failure: UpstreamFailure) -> bool {
        let own = self.upstream.load(Ordering::Relaxed) & failure as u8 != 0;
        let above = self.above.as_deref();
        own || above.is_some_and(|above| above.saw_upstream(failure))
    }

    /// Records that a capability had nothing to act with in the course of the request.
    pub(crate) fn note_vacant(&self) {
        self.vacant.store(true, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.note_vacant();
        }
    }

    /// Whether a capability had nothing to act with.
    pub(crate) fn saw_vacant(&self) -> bool {
        let above = self.above.as_deref();
        self.vacant.load(Ordering::Relaxed) || above.is_some_and(Self::saw_vacant)
    }

    /// The greatest hindrance in the course of the request.
    pub(crate) fn hindrance(&self) -> Hindrance {
        let own = self.hindrance_itself();
        let above = self.above.as_deref().map(Self::hindrance);
        above.map_or(own, |above| own.max(above))
    }

    /// The greatest hindrance in this run, without the rest of the request.
    pub(crate) fn hindrance_itself(&self) -> Hindrance {
        Hindrance::from_bits(self.hindrance.load(Ordering::Relaxed))
    }
}
