//! How fast a peer sends a content.

use std::time::Duration;

use crate::limits::{BLOB_STALLED_TIME, FETCH_RATE_MIN};

/// What a peer has sent of a response, and how long this node waited for it. The time that its own disk takes does not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct FetchPace {
    /// Time for which the peer may be slower than [`FETCH_RATE_MIN`], of all its time together.
    grace: Duration,
    waited: Duration,
    bytes: u64,
}

impl FetchPace {
    /// That of a response of which nothing has come.
    pub(super) const fn new(grace: Duration) -> Self {
        Self {
            grace,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The time that the peer has for its next bytes. It has none if it was too slow so far.
    pub(super) fn left(&self) -> Duration {
        let earned = self.bytes.saturating_mul(1000) / FETCH_RATE_MIN;
        let allowed = self.grace.saturating_add(Duration::from_millis(earned));
        allowed.saturating_sub(self.waited).min(BLOB_STALLED_TIME)
    }

    /// Notes bytes that came, and the time that they took.
    pub(super) fn note(&mut self, bytes: usize, waited: Duration) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.waited = self.waited.saturating_add(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::FETCH_RATE_GRACE;

    const SECOND: Duration = Duration::from_secs(1);

    /// How long a peer goes on that sends so many bytes each second, up to an hour.
    fn last_second(bytes_per_second: u64) -> u64 {
        let mut pace = FetchPace::new(FETCH_RATE_GRACE);
        let mut second = 0;
        while second < 3600 && pace.left() >= SECOND {
            pace.note(bytes_per_second as usize, SECOND);
            second += 1;
        }
        second
    }

    #[test]
    fn a_peer_has_to_be_as_fast_as_the_least_rate() {
        assert_eq!(last_second(FETCH_RATE_MIN), 3600);
        assert_eq!(last_second(0), FETCH_RATE_GRACE.as_secs());
        // 16 KiB each half minute.
        let trickle = last_second(550);
        assert!((30..40).contains(&trickle), "{trickle}");
    }

    #[test]
    fn a_pause_of_a_fast_peer_has_a_limit_too() {
        let mut pace = FetchPace::new(FETCH_RATE_GRACE);
        pace.note(1 << 30, SECOND);
        assert_eq!(pace.left(), BLOB_STALLED_TIME);
    }
}
