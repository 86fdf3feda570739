//! The open connections to hubs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_call::CallConnection;
use alknet_core::PeerKey;

/// Connections to hubs that know this node, for modules that notify hubs. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct HubConnections(Arc<Mutex<HashMap<PeerKey, (u64, CallConnection)>>>);

impl HubConnections {
    /// The connection to a hub, if it is open.
    pub(crate) fn get(&self, hub: &PeerKey) -> Option<CallConnection> {
        let found = self.lock();
        found.get(hub).map(|(_, connection)| connection.clone())
    }

    /// Registers a connection until the returned guard is dropped.
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

/// Removes a registered connection when dropped.
pub(super) struct HubConnectionGuard {
    reached: HubConnections,
    hub: PeerKey,
    number: u64,
}

impl Drop for HubConnectionGuard {
    fn drop(&mut self) {
        let mut all = self.reached.lock();
        // A newer connection to the same hub may have replaced this one, and stays.
        if all.get(&self.hub).is_some_and(|(n, _)| *n == self.number) {
            all.remove(&self.hub);
        }
    }
}
