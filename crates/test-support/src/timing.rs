//! Whether the times of two kinds of requests can be told apart: the two-sample Kolmogorov-Smirnov test.
//!
//! Times are compared with each other and never with a fixed number of seconds.

use std::time::Duration;

/// Requests of each kind that are compared.
pub const TIMING_SAMPLES: usize = 2000;

/// How often two equal kinds may be mistaken for different ones: once in a million comparisons, if times are independent of
/// each other.
const FALSE_ALARM: f64 = 1e-6;

/// How many comparisons in a row must distinguish two kinds. Times are not independent: a burst of work by the kernel or by
/// the host's other guests affects neighbouring requests. So the bound is exceeded more often than [`FALSE_ALARM`] says, even
/// when the test runs alone. If that happened once in a hundred comparisons, one of seven would fail in 7 runs of 100, but
/// three in a row would in 7 of a million. The price is small: what one comparison finds with a probability of 0.99 is found
/// with one of 0.97.
const IN_A_ROW: usize = 3;

/// Two kinds of requests count as distinguishable only if they are this many times further apart than requests of one kind,
/// sent directly after them. Beside other programs, times depend on each other so much that even those of one kind exceed the
/// bound.
const OF_ONE_KIND: f64 = 1.5;

/// What [`timing_difference`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimedKinds {
    /// Requests of both kinds, in turns.
    Both,
    /// Requests of the first kind in the place of both.
    FirstTwice,
}

/// The distance of two samples: the largest difference of their empirical distributions.
#[must_use]
pub fn timing_distance(mut one: Vec<Duration>, mut other: Vec<Duration>) -> f64 {
    one.sort_unstable();
    other.sort_unstable();
    let share = |sample: &[Duration], time: &Duration| {
        let below = sample.partition_point(|taken| taken <= time);
        below as f64 / sample.len() as f64
    };
    let times = one.iter().chain(&other);
    times
        .map(|time| (share(&one, time) - share(&other, time)).abs())
        .fold(0.0, f64::max)
}

/// The distance of two samples of [`TIMING_SAMPLES`] from one distribution, with a probability of one in a million of a larger
/// one.
#[must_use]
pub fn timing_bound() -> f64 {
    let samples = TIMING_SAMPLES as f64;
    (-(FALSE_ALARM / 2.0).ln() / samples).sqrt()
}

/// Compares two kinds of requests. `compare` sends [`TIMING_SAMPLES`] of each, in turns, and returns the
/// [`timing_distance`] of their times. Returns the distances if several comparisons in a row tell them apart.
pub fn timing_difference(mut compare: impl FnMut(TimedKinds) -> f64) -> Option<Vec<f64>> {
    let told_apart = || {
        let distance = compare(TimedKinds::Both);
        let is_far = distance > timing_bound();
        let is_told_apart = is_far && distance > compare(TimedKinds::FirstTwice) * OF_ONE_KIND;
        is_told_apart.then_some(distance)
    };
    let distances: Vec<_> = std::iter::repeat_with(told_apart)
        .take(IN_A_ROW)
        .map_while(|distance| distance)
        .collect();
    (distances.len() == IN_A_ROW).then_some(distances)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_comparison_alone_tells_nothing_apart() {
        assert_eq!(timing_difference(|_| 0.01), None);
        // As far apart as requests of one kind are.
        assert_eq!(timing_difference(|_| 0.5), None);
        let apart = |kinds| match kinds {
            TimedKinds::Both => 0.5,
            TimedKinds::FirstTwice => 0.1,
        };
        assert_eq!(timing_difference(apart), Some(vec![0.5; IN_A_ROW]));
        let mut left = 2;
        let twice = |kinds| match kinds {
            TimedKinds::Both if left > 0 => {
                left -= 1;
                0.5
            }
            _ => 0.05,
        };
        assert_eq!(timing_difference(twice), None);
    }
}
