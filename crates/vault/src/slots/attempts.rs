//! The wait after wrong passphrases. Wrong passphrases never erase the vault, because an attacker could then destroy
//! a node by typing.

use std::time::Duration;

/// Wrong passphrases without a further wait.
const FREE: u32 = 4;

/// The longest wait.
const MOST: Duration = Duration::from_secs(60);

/// The wait after that many wrong passphrases in a row: one second after the fifth, then twice as long each time, up
/// to a minute.
#[must_use]
pub fn delay(wrong: u32) -> Duration {
    match wrong.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(MOST),
    }
}

/// Counts wrong passphrases. Times are relative to any fixed moment of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    wrong: u32,
    not_before: Duration,
}

impl Attempts {
    /// The number of wrong passphrases in a row.
    #[must_use]
    pub fn wrong_count(&self) -> u32 {
        self.wrong
    }

    /// The time until the next attempt is allowed.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        self.not_before.saturating_sub(now)
    }

    /// Sets the number of wrong passphrases in a row to one that was stored elsewhere. If it is higher, the wait
    /// begins now.
    pub fn recall(&mut self, wrong: u32, now: Duration) {
        // A lower number would let an attacker who resets the stored count skip the wait.
        if wrong > self.wrong {
            self.wrong = wrong;
            self.not_before = now.saturating_add(delay(wrong));
        }
    }

    /// Counts a wrong passphrase.
    pub fn failed(&mut self, now: Duration) {
        self.wrong = self.wrong.saturating_add(1);
        self.not_before = now.saturating_add(delay(self.wrong));
    }

    /// Resets the count after a right passphrase.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_the_fifth_on_and_end_at_a_minute() {
        let seconds: Vec<_> = (0..14).map(|wrong| delay(wrong).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(delay(u32::MAX), MOST);
    }

    #[test]
    fn those_of_before_wait_again_and_fewer_change_nothing() {
        let mut attempts = Attempts::default();
        let now = Duration::from_secs(100);
        attempts.recall(7, now);
        assert_eq!(attempts.wrong_count(), 7);
        assert_eq!(attempts.wait(now), Duration::from_secs(4));
        attempts.recall(3, now + Duration::from_secs(1));
        assert_eq!(attempts.wrong_count(), 7);
        assert_eq!(attempts.wait(now), Duration::from_secs(4));
    }

    #[test]
    fn a_right_one_forgives_the_wrong_ones() {
        let mut attempts = Attempts::default();
        let now = Duration::from_secs(100);
        for _ in 0..6 {
            assert_eq!(attempts.wrong_count(), attempts.wrong);
            attempts.failed(now);
        }
        assert_eq!(attempts.wait(now), Duration::from_secs(2));
        assert_eq!(
            attempts.wait(now + Duration::from_secs(1)),
            Duration::from_secs(1)
        );
        assert_eq!(attempts.wait(now + Duration::from_secs(5)), Duration::ZERO);
        attempts.succeeded();
        assert_eq!(attempts, Attempts::default());
    }
}
