//! Which hubs are connected.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_call::CallConnection;
use alknet_core::PeerKey;

/// Connections to hubs that know this node, for parts of the node that notify hubs. Clones share
/// them.
#[derive(Clone, Default)]
pub(crate) struct HubConnections(Arc<Mutex<HashMap<PeerKey, (u64, CallConnection)>>>);

impl HubConnections {
    /// The connection to a hub, if there is one.
    pub(crate) fn get(&self, hub: &PeerKey) -> Option<CallConnection> {
        let found = self.lock();
        found.get(hub).map(|(_, connection)| connection.clone())
    }

    /// Notes a connection until what is returned is dropped.
    pub(super) fn note(&self, hub: PeerKey, connection: CallConnection) -> HubConnectionGuard {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(hub, (number, connection));
        HubConnectionGuard {
            reached: self.clone(),
            hub,
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerKey, (u64, CallConnection)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is noted.
pub(super) struct HubConnectionGuard {
    reached: HubConnections,
    hub: PeerKey,
    number: u64,
}

impl Drop for HubConnectionGuard {
    fn drop(&mut self) {
        let mut all = self.reached.lock();
        // Another may have been noted in its place.
        if all.get(&self.hub).is_some_and(|(n, _)| *n == self.number) {
            all.remove(&self.hub);
        }
    }
}
