//! Waiting for what has to happen.

use std::time::{Duration, Instant};

/// Longest wait; between processes and emulated machines on a busy host it may take its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Asks again and again until the answer is there.
///
/// # Panics
/// `what` did not happen.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(200));
    }
}
