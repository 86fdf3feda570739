//! What an identity keeps in memory, over time.

use std::time::Instant;

use crate::limits::BYTE_SECONDS_MAX;

/// Seconds until what was used up is given back.
const DAY: u128 = 24 * 3600;

/// Byte-milliseconds that were used, less what time gave back.
#[derive(Debug)]
pub(crate) struct ByteTimeBudget {
    used: u128,
    at: Instant,
}

impl ByteTimeBudget {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { used: 0, at: now }
    }

    /// Accounts for `bytes` having been kept until now.
    pub(crate) fn settle(&mut self, bytes: u64, now: Instant) {
        let millis = now.saturating_duration_since(self.at).as_millis();
        let given_back = millis * BYTE_SECONDS_MAX / DAY;
        self.used = (self.used + u128::from(bytes) * millis).saturating_sub(given_back);
        self.at = now;
    }

    pub(crate) const fn is_spent(&self) -> bool {
        self.used >= BYTE_SECONDS_MAX * 1000
    }

    pub(crate) const fn is_whole(&self) -> bool {
        self.used == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn much_memory_for_long_uses_it_up_and_a_day_gives_it_back() {
        let start = Instant::now();
        let later = |hours: u64| start + Duration::from_secs(hours * 3600);
        let mut budget = ByteTimeBudget::new(start);
        budget.settle(80 << 30, later(1));
        assert!(budget.is_spent());
        budget.settle(0, later(8));
        assert!(!budget.is_spent() && !budget.is_whole());
        budget.settle(0, later(30));
        assert!(budget.is_whole());
        // A gibibyte may be kept for ever.
        budget.settle(1 << 30, later(3000));
        assert!(budget.is_whole());
    }
}
