//! Records what a node's operations did, for a test that waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::limits::CALL_TIMEOUT_DEFAULT;
use alknet_test_support::deadline;
use tokio::sync::Notify;

/// Counts what a node's operations do, so that tests wait for facts and never for time.
#[derive(Debug, Default)]
pub struct OperationProbe {
    pub started: AtomicUsize,
    pub dropped: AtomicUsize,
    pub yielded: AtomicUsize,
    pub changed: Notify,
    pub release: Notify,
}

impl OperationProbe {
    pub fn bump(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    pub async fn wait(&self, counter: impl Fn(&Self) -> &AtomicUsize, at_least: usize) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if counter(self).load(Ordering::SeqCst) >= at_least {
                    return;
                }
                changed.await;
            }
        };
        soon(wait).await;
    }
}

/// Notifies the probe when a handler is dropped.
pub struct ProbeGuard(pub Arc<OperationProbe>);

impl ProbeGuard {
    pub fn new(probe: &Arc<OperationProbe>) -> Self {
        probe.bump(&probe.started);
        Self(Arc::clone(probe))
    }
}

impl Drop for ProbeGuard {
    fn drop(&mut self) {
        self.0.bump(&self.0.dropped);
    }
}

/// A limit for every wait: shorter than a call's own deadline on a machine of any speed, since the end of that
/// deadline would pass for an abort.
const SOON: Duration = Duration::from_secs(20);
const SOON_MAX: Duration = Duration::from_secs(CALL_TIMEOUT_DEFAULT.as_secs() - 5);

/// A test that hangs fails instead.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(deadline(SOON).min(SOON_MAX), future)
        .await
        .expect("it happens")
}
