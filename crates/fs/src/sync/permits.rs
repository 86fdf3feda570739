//! Sessions and hellos that peers may have at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;

/// A limited number of permits, of which one peer gets a part. The peer counts, and not the connection, of which it may
/// have many.
#[derive(Debug)]
pub(super) struct PeerPermits {
    peer_max: usize,
    total_max: usize,
    /// Permits that each peer has. A peer without one has no row.
    taken: Mutex<HashMap<PeerId, usize>>,
}

/// A permit, which goes back when it is dropped.
#[derive(Debug)]
pub(super) struct PeerPermit {
    permits: Arc<PeerPermits>,
    peer: PeerId,
}

impl PeerPermits {
    /// So many permits for each peer, and so many for all of them.
    pub(super) fn new(peer_max: usize, total_max: usize) -> Arc<Self> {
        Arc::new(Self {
            peer_max,
            total_max,
            taken: Mutex::default(),
        })
    }

    /// A permit for a peer. `None` if it has as many as it may, or all are taken.
    pub(super) fn acquire(self: &Arc<Self>, peer: &PeerId) -> Option<PeerPermit> {
        let mut taken = self.taken();
        // A few rows at most, because each has one of the permits.
        let total: usize = taken.values().sum();
        let own = taken.get(peer).copied().unwrap_or_default();
        if own >= self.peer_max || total >= self.total_max {
            return None;
        }
        taken.insert(peer.clone(), own + 1);
        drop(taken);
        Some(PeerPermit {
            permits: Arc::clone(self),
            peer: peer.clone(),
        })
    }

    /// Permits that a peer has.
    #[cfg(test)]
    pub(super) fn count(&self, peer: &PeerId) -> usize {
        self.taken().get(peer).copied().unwrap_or_default()
    }

    /// A map of numbers is never half changed.
    fn taken(&self) -> MutexGuard<'_, HashMap<PeerId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        let mut taken = self.permits.taken();
        match taken.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            // Without a row: a node has many peers over the years.
            _ => {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_its_part_of_the_permits() {
        let permits = PeerPermits::new(2, 3);
        let [ada, bob, cyd]: [PeerId; 3] =
            ["ada", "bob", "cyd"].map(|name| name.parse().expect("a name"));
        let first = permits.acquire(&ada).expect("free");
        let second = permits.acquire(&ada).expect("free");
        assert!(permits.acquire(&ada).is_none(), "it has its part");
        let other = permits.acquire(&bob).expect("of another peer");
        assert!(permits.acquire(&cyd).is_none(), "all are taken");
        drop(first);
        assert_eq!((permits.count(&ada), permits.count(&bob)), (1, 1));
        drop(permits.acquire(&cyd).expect("one went back"));
        drop((second, other));
        assert!(permits.taken().is_empty());
    }
}
