//! How many events the peer may send of a subscription of this side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::limits::{STREAM_EVENTS_BYTES, WINDOW_FORWARDED, WINDOW_FORWARDED_MAX};

/// The credit of one subscription, as its subscriber gives it.
#[derive(Debug)]
pub(crate) struct SubscriptionCredit {
    /// Events that the peer may send, or has sent, and that the subscriber has not taken.
    open: u32,
    /// The same credit, as the reader of the stream counts it.
    granted: Arc<CreditGrant>,
    window: CreditSizing,
}

/// How much credit the peer may have.
#[derive(Debug)]
enum CreditSizing {
    Fixed(u32),
    /// As many events as take [`STREAM_EVENTS_BYTES`], going by the bytes of the last ones.
    Fitting {
        bytes: usize,
    },
}

impl SubscriptionCredit {
    /// Credit for a fixed number of events, however long they are.
    pub(crate) fn fixed(window: u32) -> Self {
        Self::new(window, CreditSizing::Fixed(window))
    }

    /// Credit for few events where they are long and for more where they are short.
    pub(crate) fn fitting() -> Self {
        Self::new(WINDOW_FORWARDED, CreditSizing::Fitting { bytes: 0 })
    }

    fn new(first: u32, window: CreditSizing) -> Self {
        Self {
            open: first,
            granted: Arc::new(CreditGrant(AtomicU32::new(first))),
            window,
        }
    }

    /// Events that the peer may send at first.
    pub(crate) fn first(&self) -> u32 {
        self.open
    }

    /// The same credit for the reader of the stream.
    pub(crate) fn granted(&self) -> &Arc<CreditGrant> {
        &self.granted
    }

    /// Notes that the subscriber took an event of so many bytes. Returns how many more the peer may send, in halves
    /// of the window: few frames, and the peer never runs out of credit.
    pub(crate) fn took(&mut self, bytes: usize) -> Option<u32> {
        self.open = self.open.saturating_sub(1);
        let window = match &mut self.window {
            CreditSizing::Fixed(window) => *window,
            CreditSizing::Fitting { bytes: lately } => {
                // A short event among long ones must not widen the window at once.
                *lately = bytes.max(*lately / 2);
                fitting(*lately)
            }
        };
        // The window may have shrunk below the open credit.
        let more = window.checked_sub(self.open)?;
        // Half a window at a time: a frame for each event would double the frames.
        if more < window.div_ceil(2) {
            return None;
        }
        self.open = window;
        // Before the frame goes out: the peer may answer at once, and its events must count as granted.
        self.granted.add(more);
        Some(more)
    }
}

/// The number of open events of so many bytes.
fn fitting(bytes: usize) -> u32 {
    let events = STREAM_EVENTS_BYTES / bytes.max(1);
    let events = u32::try_from(events).unwrap_or(u32::MAX);
    // Without credit for one event the subscription would stand still.
    events.clamp(1, WINDOW_FORWARDED_MAX)
}

/// Events that the peer may send, as the reader of the stream counts them.
#[derive(Debug)]
pub(crate) struct CreditGrant(AtomicU32);

impl CreditGrant {
    /// Allows so many more events.
    pub(crate) fn add(&self, more: u32) {
        let add = |left: u32| Some(left.saturating_add(more));
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// Counts one event. `false` where the peer had no credit for it: a peer may know nothing of credit.
    pub(crate) fn spend(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        let spent = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        spent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_window_is_given_back_in_halves() {
        let mut credit = SubscriptionCredit::fixed(5);
        let given: Vec<_> = (0..6).map(|_| credit.took(1 << 20)).collect();
        assert_eq!(given, [None, None, Some(3), None, None, Some(3)]);
        assert_eq!(SubscriptionCredit::fixed(1).took(0), Some(1));
    }

    /// However the lengths change, the peer never has credit for more events than the last lengths allow.
    #[test]
    fn a_window_by_bytes_follows_the_length_of_the_events() {
        let mut credit = SubscriptionCredit::fitting();
        let granted = Arc::clone(credit.granted());
        assert_eq!(credit.first(), WINDOW_FORWARDED);
        // Short ones: as many as there may be, ten thousand in a second over a path of 100 ms.
        let short = credit.took(100).expect("it is the first");
        assert_eq!(short, WINDOW_FORWARDED_MAX + 1 - WINDOW_FORWARDED);
        assert!(short >= 1000, "{short}");
        assert_eq!(credit.open, WINDOW_FORWARDED_MAX);
        // Long events: no credit until the others are taken, and then for one at a time.
        for left in (1..WINDOW_FORWARDED_MAX).rev() {
            assert_eq!(credit.took(STREAM_EVENTS_BYTES), None, "{left}");
            assert_eq!(credit.open, left);
        }
        assert_eq!(credit.took(STREAM_EVENTS_BYTES), Some(1));
        assert_eq!(credit.took(4 * STREAM_EVENTS_BYTES), Some(1));
        // Events that were long once do not narrow the window for ever.
        let more: u32 = (0..40).filter_map(|_| credit.took(100)).sum();
        assert!(more > WINDOW_FORWARDED_MAX, "{more}");
        // The counted credit equals the credit that the peer got.
        let total = WINDOW_FORWARDED + short + 2 + more;
        assert!((0..total).all(|_| granted.spend()));
        assert!(!granted.spend());
    }
}
