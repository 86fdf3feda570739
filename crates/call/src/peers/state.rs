//! The states of a peer on this node. Knows neither a connection nor a clock.

use std::sync::atomic::{AtomicU8, Ordering};

/// The state of a known peer's connection, from its first moment to its end.
///
/// ```text
/// identified ⇄ discovering → ready ⇄ degraded → draining → gone
/// ```
///
/// Every state leads to the last two as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// This node knows its key, and it serves nothing here: it only calls, or this node has not asked it yet.
    Identified,
    /// This node is reading its operations.
    Discovering,
    /// This node knows its operations and can call them.
    Ready,
    /// It serves, and did not answer lately: calls that name it reach it, and other calls do not choose it.
    Degraded,
    /// One side announced that it goes away: running calls may finish, and no new ones begin.
    Draining,
    /// The connection ended.
    Gone,
}

/// An event of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerEvent {
    /// The connection ended.
    Ended,
    /// Either side sent `call.goaway`.
    Goaway,
    /// A sign of life did not come in time.
    Missed,
    /// This node began to read its operations.
    Reading,
    /// This node cannot read its operations, and does not try again.
    Unreadable,
    /// This node read its operations; `serves` says whether there are any.
    Read { serves: bool },
    /// A sign of life came.
    SignOfLife,
}

impl PeerState {
    /// Every state, each at the index of its number.
    const ALL: [Self; 6] = [
        Self::Identified,
        Self::Discovering,
        Self::Ready,
        Self::Degraded,
        Self::Draining,
        Self::Gone,
    ];

    /// Its name, as operations show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identified => "identified",
            Self::Discovering => "discovering",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }

    /// Whether it serves operations that can be called now.
    #[must_use]
    pub const fn is_serving(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }

    /// The state after `event`.
    pub(crate) const fn after(self, event: PeerEvent) -> Self {
        match (self, event) {
            (Self::Gone, _) | (_, PeerEvent::Ended) => Self::Gone,
            (Self::Draining, _) | (_, PeerEvent::Goaway) => Self::Draining,
            // A peer that serves goes on serving while this node reads its operations again.
            (Self::Identified, PeerEvent::Reading) => Self::Discovering,
            (_, PeerEvent::Read { serves: true }) => Self::Ready,
            (_, PeerEvent::Read { serves: false }) => Self::Identified,
            (Self::Discovering, PeerEvent::Unreadable) => Self::Identified,
            (Self::Ready, PeerEvent::Missed) => Self::Degraded,
            (Self::Degraded, PeerEvent::SignOfLife) => Self::Ready,
            (same, _) => same,
        }
    }
}

/// The state of one connection. Every routed call reads it, and therefore without a lock.
#[derive(Debug, Default)]
pub(crate) struct AtomicPeerState(AtomicU8);

impl AtomicPeerState {
    pub(crate) fn state(&self) -> PeerState {
        PeerState::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    pub(crate) fn apply(&self, event: PeerEvent) {
        let step = |n: u8| Some(PeerState::ALL[usize::from(n)].after(event) as u8);
        // Every number stored is that of a state, so the step never fails.
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [PeerEvent; 8] = [
        PeerEvent::Ended,
        PeerEvent::Goaway,
        PeerEvent::Missed,
        PeerEvent::Reading,
        PeerEvent::Unreadable,
        PeerEvent::Read { serves: true },
        PeerEvent::Read { serves: false },
        PeerEvent::SignOfLife,
    ];

    fn after(events: &[PeerEvent]) -> PeerState {
        let life = AtomicPeerState::default();
        events.iter().for_each(|event| life.apply(*event));
        life.state()
    }

    #[test]
    fn every_state_has_its_number_and_its_name() {
        for (n, state) in PeerState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, n);
        }
        let mut names = PeerState::ALL.map(PeerState::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PeerState::ALL.len());
    }

    #[test]
    fn a_worker_lives_from_its_key_to_its_end() {
        use PeerEvent::{Ended, Goaway, Missed, Read, Reading, SignOfLife, Unreadable};
        let ready = [Reading, Read { serves: true }];
        let then = |more: &[PeerEvent]| after(&[&ready, more].concat());
        assert_eq!(after(&[]), PeerState::Identified);
        assert_eq!(after(&[Reading]), PeerState::Discovering);
        assert_eq!(then(&[]), PeerState::Ready);
        assert_eq!(then(&[Missed]), PeerState::Degraded);
        assert_eq!(then(&[Missed, Missed]), PeerState::Degraded);
        assert_eq!(then(&[Missed, SignOfLife]), PeerState::Ready);
        // It answered: that is a sign of life, too.
        assert_eq!(
            then(&[Missed, Reading, Read { serves: true }]),
            PeerState::Ready
        );
        // A peer keeps its state while this node reads its operations again, and where that fails.
        assert_eq!(then(&[Reading]), PeerState::Ready);
        assert_eq!(then(&[Reading, Unreadable]), PeerState::Ready);
        assert_eq!(then(&[Missed, Reading]), PeerState::Degraded);
        assert_eq!(then(&[Read { serves: false }]), PeerState::Identified);
        assert_eq!(then(&[Goaway]), PeerState::Draining);
        assert_eq!(
            then(&[Goaway, Read { serves: true }, SignOfLife]),
            PeerState::Draining
        );
        assert_eq!(then(&[Goaway, Ended]), PeerState::Gone);
    }

    #[test]
    fn a_peer_that_only_calls_is_identified() {
        use PeerEvent::{Missed, Read, Reading, Unreadable};
        assert_eq!(
            after(&[Reading, Read { serves: false }]),
            PeerState::Identified
        );
        assert_eq!(after(&[Reading, Unreadable]), PeerState::Identified);
        assert_eq!(after(&[Missed]), PeerState::Identified);
    }

    proptest! {
        /// No event leads back from the end, and no peer serves after a goodbye.
        #[test]
        fn the_end_is_the_end(steps in prop::collection::vec(prop::sample::select(&EVENTS[..]), 0..30)) {
            let life = AtomicPeerState::default();
            let (mut ended, mut goodbye) = (false, false);
            for event in steps {
                life.apply(event);
                ended |= event == PeerEvent::Ended;
                goodbye |= event == PeerEvent::Goaway;
                prop_assert_eq!(life.state() == PeerState::Gone, ended);
                prop_assert!(!(ended || goodbye) || !life.state().is_serving());
            }
        }
    }
}
