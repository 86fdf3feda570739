//! The subscriptions to events that are open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;
use alknet_store::StoreError;

use crate::limits::{WATCHES_MAX, WATCHES_PER_IDENTITY_MAX};

/// Open subscriptions, by identity.
#[derive(Debug, Default)]
pub(crate) struct WatchCount(Mutex<HashMap<PeerId, usize>>);

/// An open subscription. It stops to count when it is dropped.
#[derive(Debug)]
pub(crate) struct WatchPermit {
    count: Arc<WatchCount>,
    identity: PeerId,
}

impl WatchCount {
    /// Counts one more.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the identity or the node has too many.
    pub(crate) fn enter(self: &Arc<Self>, identity: &PeerId) -> Result<WatchPermit, StoreError> {
        let mut table = self.table();
        let own = table.get(identity).copied().unwrap_or_default();
        if own >= WATCHES_PER_IDENTITY_MAX {
            return Err(StoreError::Busy("the identity has too many subscriptions"));
        }
        if table.values().sum::<usize>() >= WATCHES_MAX {
            return Err(StoreError::Busy("too many subscriptions are open"));
        }
        table.insert(identity.clone(), own + 1);
        drop(table);
        Ok(WatchPermit {
            count: Arc::clone(self),
            identity: identity.clone(),
        })
    }

    /// Number of open subscriptions.
    pub(crate) fn count(&self) -> usize {
        self.table().values().sum()
    }

    /// The table holds plain numbers, which a panic elsewhere cannot leave half changed.
    fn table(&self) -> MutexGuard<'_, HashMap<PeerId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.count.table().entry(self.identity.clone()) {
            // Identities come and go; an entry of 0 would stay in memory for each of them.
            let left = entry.get().saturating_sub(1);
            if left == 0 {
                entry.remove();
            } else {
                *entry.get_mut() = left;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_and_all_of_them_have_so_many() {
        let count = Arc::new(WatchCount::default());
        let peer = |at: usize| -> PeerId { format!("p{at}").parse().expect("a name") };
        let mut open = Vec::new();
        for at in 0..WATCHES_MAX {
            let identity = peer(at / WATCHES_PER_IDENTITY_MAX);
            open.push(count.enter(&identity).expect("room"));
        }
        assert!(count.enter(&peer(0)).is_err(), "of this identity");
        assert!(count.enter(&peer(99)).is_err(), "of all");
        open.pop();
        let last = count.enter(&peer(99)).expect("room again");
        drop((open, last));
        assert!(count.table().is_empty());
    }
}
