//! The time of day, where it can be trusted.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says what time it is. Injected, so that what depends on it can be tested without waiting.
pub trait Clock: Send + Sync + 'static {
    /// Seconds since 1970, or nothing while the clock is not sane: a board without a battery wakes
    /// up long ago, when nothing had expired yet.
    fn now_s(&self) -> Option<u64>;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The system's clock, sane once it is not before the program was built.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    /// When the program was built, in seconds since 1970.
    pub built_s: u64,
}

impl Clock for SystemClock {
    fn now_s(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        (now >= self.built_s).then_some(now)
    }
}

/// Whether something with this end is over at the time that a [`Clock`] gave. Without a sane clock that is
/// unknown, and what may be over is.
///
/// ```
/// use alknet_core::clock::is_expired;
///
/// assert!(!is_expired(None, Some(10)));
/// assert!(is_expired(Some(10), Some(10)));
/// // Without a clock the end may have come.
/// assert!(is_expired(Some(10), None));
/// ```
#[must_use]
pub fn is_expired(expires_s: Option<u64>, now_s: Option<u64>) -> bool {
    expires_s.is_some_and(|end| now_s.is_none_or(|now| now >= end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counts_and_without_a_sane_clock_it_has_come() {
        assert!(!is_expired(Some(10), Some(9)));
        assert!(is_expired(Some(10), Some(10)));
        assert!(is_expired(Some(10), None));
        assert!(!is_expired(None, None));
    }

    #[test]
    fn a_clock_before_the_build_is_not_sane() {
        assert!(SystemClock { built_s: 0 }.now_s().is_some());
        assert_eq!(SystemClock { built_s: u64::MAX }.now_s(), None);
    }
}
