//! Waiting for what has to happen.

use std::time::Duration;

use alknet_test_support::deadline;

/// Longest wait; between processes and emulated machines it may take its time.
const PATIENCE: Duration = Duration::from_secs(180);

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
