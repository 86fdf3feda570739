//! The time of day, where it can be trusted.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of the current time. Callers inject it, so that code with time limits can be tested without waiting.
pub trait Clock: Send + Sync + 'static {
    /// Seconds since 1970; `None` while the clock is not sane: a board without a battery starts long in the past,
    /// when no token had expired yet.
    fn now_s(&self) -> Option<u64>;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The clock of the operating system. It counts as sane if its time is not before the build of the program.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    /// When the program was built, in seconds since 1970.
    pub built_s: u64,
}

impl Clock for SystemClock {
    fn now_s(&self) -> Option<u64> {
        // A clock before 1970 is not sane either, and its time has no number here.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        (now >= self.built_s).then_some(now)
    }
}

/// Whether something that ends at `expires_s` has ended at the time that a [`Clock`] gave. Without a sane clock
/// everything that ends counts as ended.
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
