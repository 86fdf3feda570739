//! The time, of this machine or of a test.

use std::time::{Duration, SystemTime};

use alknet_core::BoxFuture;

/// The current time, and sleeping.
pub(super) trait AcmeClock: Send + Sync + 'static {
    /// Seconds of Unix time.
    fn now(&self) -> u64;

    /// Resolves after `time`.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
pub(super) struct AcmeSystemClock;

impl AcmeClock for AcmeSystemClock {
    fn now(&self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            // A clock before 1970 gives 0, which is before every floor, so that the planner counts it as wrong.
            .map_or(0, |since| since.as_secs())
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}
