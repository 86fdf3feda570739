//! Waits for expected events.

use std::time::Duration;

use alknet_test_support::{deadline, slowdown};

/// Longest wait, which is long because of other processes and emulated machines.
const PATIENCE: Duration = Duration::from_secs(180);

/// From this deadline factor on, the product's limits are reached that an idle machine does not
/// reach. A run on an idle machine has half of it, because several tests share a processor.
const BUSY: f64 = 6.0;

/// Whether this machine is so busy that an emulated processor starves.
#[must_use]
pub fn is_busy() -> bool {
    slowdown() >= BUSY
}

/// Calls `ask` repeatedly until it returns a value.
///
/// # Panics
/// `what` did not happen.
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    alknet_test_support::eventually(what, PATIENCE, ask)
}

/// A limit for a program that takes whole seconds, longer on a busy machine.
#[must_use]
pub fn whole_seconds(limit: Duration) -> String {
    deadline(limit).as_secs().max(1).to_string()
}
