//! How often shares are released.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Releases of one share in a minute. A machine asks once when it starts.
pub const RELEASES_PER_MINUTE: usize = 6;
/// Time after its last release in which a share needs room among the releases of all shares. After this time the node
/// releases the share no matter how many others it released: the owners of other shares keep no machine from starting.
pub const RELEASE_INTERVAL: Duration = Duration::from_secs(600);
/// Releases of all shares together in a minute, without those of shares that had none within [`RELEASE_INTERVAL`]. The
/// last quarter is for shares that were not released in that minute.
pub const RELEASES_PER_MINUTE_ALL: usize = 120;
const MINUTE: Duration = Duration::from_secs(60);

/// When something happened during the last minute.
#[derive(Debug, Default)]
pub(crate) struct MinuteCounter(VecDeque<Instant>);

impl MinuteCounter {
    /// How long to wait for the next one where `most` are allowed.
    pub(crate) fn wait(&mut self, most: usize, now: Instant) -> Option<Duration> {
        while self
            .0
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            self.0.pop_front();
        }
        let first = self.0.front().filter(|_| self.0.len() >= most)?;
        Some(MINUTE.saturating_sub(now.duration_since(*first)))
    }

    /// Whether nothing happened in the minute before the last [`wait`](Self::wait).
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn note(&mut self, now: Instant) {
        self.0.push_back(now);
    }
}
