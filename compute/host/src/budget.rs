//! The budget of the bytes that an identity keeps in memory over time.

use std::time::Instant;

use crate::limits::BYTE_SECONDS_MAX;

/// Seconds after which used budget has been given back.
const DAY: u128 = 24 * 3600;

/// Byte-milliseconds that were used, less those that time has given back.
#[derive(Debug)]
pub(crate) struct ByteTimeBudget {
    used: u128,
    at: Instant,
}

impl ByteTimeBudget {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { used: 0, at: now }
    }

    /// Charges `bytes` for the time since the last call.
    pub(crate) fn settle(&mut self, bytes: u64, now: Instant) {
        let millis = now.saturating_duration_since(self.at).as_millis();
        // In 128 bits the product cannot overflow in the life of a node.
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
