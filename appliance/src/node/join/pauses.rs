//! Pauses between attempts to reach a hub. Knows no clock and no randomness.

use std::time::Duration;

/// Longest first pause.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// The pauses after one failure and the next: any length up to a bound that doubles, so that a
/// thousand nodes whose hub restarts do not come back in step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pauses(u32);

impl Pauses {
    /// The next one; `random` is any number, each as likely as the other.
    pub(super) fn next(&mut self, random: u32) -> Duration {
        let bound = FIRST
            .saturating_mul(2u32.saturating_pow(self.0))
            .min(LONGEST);
        self.0 = self.0.saturating_add(1);
        bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_of_any_length_up_to_a_bound_that_doubles() {
        let mut pauses = Pauses::default();
        let bounds: Vec<_> = (0..9).map(|_| pauses.next(u32::MAX).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pauses.next(0), Duration::ZERO);
        let half = pauses.next(u32::MAX / 2).as_millis();
        assert!((29_999..=30_000).contains(&half), "{half}");
    }
}
