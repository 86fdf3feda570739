//! Time, as this machine tells it or as a test does.

use std::time::{Duration, SystemTime};

use alknet_core::BoxFuture;

/// What time it is, and how it passes.
pub(super) trait AcmeClock: Send + Sync + 'static {
    /// Seconds of Unix time.
    fn now(&self) -> u64;

    /// Resolves when so much time has passed.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
pub(super) struct AcmeSystemClock;

impl AcmeClock for AcmeSystemClock {
    fn now(&self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            // A clock before 1970 is before every floor, and the planner does not believe it.
            .map_or(0, |since| since.as_secs())
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}
