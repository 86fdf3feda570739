//! Peers that sent other bytes than the hash says.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;
use tokio::time::Instant;

use crate::limits::FETCH_PENALTY;

/// Until when peers are not asked for contents. Only peers that this node has dialled get in, so their number is bounded.
#[derive(Debug, Default)]
pub(super) struct FetchPenalties(Mutex<HashMap<PeerId, Instant>>);

impl FetchPenalties {
    /// The peer is not asked for [`FETCH_PENALTY`].
    pub(super) fn add(&self, peer: &PeerId, now: Instant) {
        let mut table = self.table();
        // At each addition, so that no task has to wake up for it.
        table.retain(|_, until| *until > now);
        table.insert(peer.clone(), now + FETCH_PENALTY);
    }

    /// Whether the peer is not asked at this time.
    pub(super) fn has(&self, peer: &PeerId, now: Instant) -> bool {
        self.table().get(peer).is_some_and(|until| *until > now)
    }

    /// A table of times is never half changed.
    fn table(&self) -> MutexGuard<'_, HashMap<PeerId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_penalty_ends() {
        let penalties = FetchPenalties::default();
        let [ada, bob]: [PeerId; 2] = ["ada", "bob"].map(|name| name.parse().expect("a name"));
        let now = Instant::now();
        penalties.add(&ada, now);
        assert!(penalties.has(&ada, now) && !penalties.has(&bob, now));
        let end = now + FETCH_PENALTY;
        assert!(penalties.has(&ada, end - Duration::from_secs(1)));
        assert!(!penalties.has(&ada, end));
        penalties.add(&bob, end);
        assert_eq!(penalties.table().len(), 1);
    }
}
