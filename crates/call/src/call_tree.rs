//! What a request and every call below it share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::error::CallError;
use crate::upstream::UpstreamFailure;

/// The number of the next request or call.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A number that no other request or call of this process has, or had.
pub(crate) fn next_number() -> u64 {
    // The number alone matters; it orders nothing else.
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

/// How many calls have sent a change to a server outside of this node: of one call with all below it, or of a whole
/// request. A call that was answered still counts, whatever the answer: what comes after it must not have it repeated.
#[derive(Debug, Default)]
pub(crate) struct SentChanges {
    count: AtomicUsize,
    /// That of what made the call.
    above: Option<Arc<Self>>,
}

impl SentChanges {
    /// For a call that is a part of what `above` counts.
    pub(crate) fn below(above: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            above: Some(Arc::clone(above)),
        })
    }

    /// Notes one more call that has sent a change, or one fewer: the server has not taken it.
    pub(crate) fn note(&self, sent: bool) {
        match sent {
            true => self.count.fetch_add(1, Ordering::AcqRel),
            false => self.count.fetch_sub(1, Ordering::AcqRel),
        };
        if let Some(above) = &self.above {
            above.note(sent);
        }
    }

    /// Whether there is such a call.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// The same error, for what made the change: no error says that it may be made again.
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
    /// What calls in it have sent to servers.
    changes: Arc<SentChanges>,
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
            changes: Arc::default(),
            upstream: AtomicU8::new(0),
            above: None,
        }
    }

    /// That of a run of an idempotency key in the course of a request: of what happens in it alone it can be told.
    /// `changes` counts what the call has sent that waits for the run.
    pub(crate) fn below(above: &Arc<Self>, changes: &Arc<SentChanges>) -> Self {
        Self {
            number: above.number,
            hindrance: AtomicU8::new(Hindrance::None as u8),
            changes: SentChanges::below(changes),
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

    /// What calls in it have sent to servers.
    pub(crate) fn changes(&self) -> &Arc<SentChanges> {
        &self.changes
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
