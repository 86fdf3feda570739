//! Pauses between attempts to reach a peer. The caller provides the clock and the randomness.

use std::time::Duration;

/// A pause of random length after each failure, up to a bound that doubles: the thousand nodes of a hub that restarts
/// do not come back in step ("full jitter").
///
/// ```
/// use std::time::Duration;
///
/// use alknet_core::Backoff;
///
/// let mut pauses = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
/// assert_eq!(pauses.next(u32::MAX), Duration::from_secs(1));
/// assert_eq!(pauses.next(u32::MAX), Duration::from_secs(2));
/// assert_eq!(pauses.next(u32::MAX), Duration::from_secs(3));
/// pauses.reset();
/// assert_eq!(pauses.next(0), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses of at most `first` at the beginning and of at most `longest` in the end.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// The next pause. `random` is uniformly distributed over all numbers.
    pub fn next(&mut self, random: u32) -> Duration {
        // The power saturates: a peer that is away for months must not make the bound overflow.
        let doubled = 2u32.saturating_pow(self.failures);
        let bound = self.first.saturating_mul(doubled).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// The connection was stable: the next pause is a short one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_of_any_length_up_to_a_bound_that_doubles() {
        let mut pauses = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let bounds: Vec<_> = (0..9).map(|_| pauses.next(u32::MAX).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pauses.next(0), Duration::ZERO);
        let half = pauses.next(u32::MAX / 2).as_millis();
        assert!((29_999..=30_000).contains(&half), "{half}");
        for _ in 0..100 {
            assert!(pauses.next(u32::MAX) <= Duration::from_secs(60));
        }
        pauses.reset();
        assert_eq!(pauses.next(u32::MAX), Duration::from_secs(1));
    }
}
