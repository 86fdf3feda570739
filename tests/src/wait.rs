//! Waiting for what has to happen.

use std::time::Duration;

use alknet_test_support::{deadline, slowdown};

/// Longest wait; between processes and emulated machines it may take its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// From this factor of deadlines on, limits of the product are reached that a machine at rest does not reach. A run
/// at rest has half of it, as several tests share a processor.
const BUSY: f64 = 6.0;

/// Whether this machine has much else to do, so that an emulated processor starves.
#[must_use]
pub fn is_busy() -> bool {
    slowdown() >= BUSY
}

/// Asks again and again until the answer is there.
///
/// # Panics
/// `what` did not happen.
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    alknet_test_support::eventually(what, PATIENCE, ask)
}

/// A limit for a program that takes whole seconds, longer where this machine is busy.
#[must_use]
pub fn whole_seconds(limit: Duration) -> String {
    deadline(limit).as_secs().max(1).to_string()
}
