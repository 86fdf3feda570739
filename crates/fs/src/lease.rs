//! The open store in the hands of a request.
//!
//! A store is closed by the drop of its last clone, which blocks on the disk. Requests are counted, so that a shutdown waits
//! for them and closes the store itself, on a thread that may block.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_store::Store;

/// The requests that use the store.
#[derive(Debug, Default)]
pub(crate) struct LeaseCount {
    count: Mutex<usize>,
    ended: Condvar,
}

/// The store, for as long as a request uses it.
#[derive(Debug)]
pub struct StoreLease {
    // Dropped before the request stops to count.
    store: Store,
    _counted: CountedLease,
}

#[derive(Debug)]
struct CountedLease(Arc<LeaseCount>);

impl StoreLease {
    pub(crate) fn new(store: Store, count: &Arc<LeaseCount>) -> Self {
        *count.lock() += 1;
        Self {
            store,
            _counted: CountedLease(Arc::clone(count)),
        }
    }

    /// The same store, whose reads count for an identity.
    pub(crate) fn reading_as(self, identity: &str) -> Self {
        Self {
            store: self.store.reading_as(identity),
            _counted: self._counted,
        }
    }
}

impl Deref for StoreLease {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl LeaseCount {
    /// Blocks until no request uses the store, or for this long.
    pub(crate) fn wait(&self, time_max: Duration) {
        let end = Instant::now() + time_max;
        let mut count = self.lock();
        while *count > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(requests = *count, "requests still use the store of files");
                return;
            }
            let waited = self.ended.wait_timeout(count, left);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A number is never half changed.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CountedLease {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.ended.notify_all();
    }
}
