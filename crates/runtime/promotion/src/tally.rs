//! Counts failures of promoted operations: errors of a version's first calls, and workers that its
//! code lost.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::bundle::Blake3Hash;
use crate::limits::{CRASHES_MAX, CRASHES_WITHIN, WATCHED_CALLS, WORSE_PERCENT_MAX};
use crate::store::TallyCounts;

/// Counts the first calls of one version.
#[derive(Debug)]
pub(crate) struct CallTally {
    /// The errors of the previous version, in percent.
    baseline: u32,
    counted: Mutex<(TallyCounts, bool)>,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TallyVerdict {
    /// More calls failed than may; this is reported once.
    Failing(TallyCounts),
    /// The first calls are over, and few enough failed.
    Over(TallyCounts),
}

impl CallTally {
    /// A tally for a version that follows one with the results `before`. `counted` are the results
    /// of this version so far.
    pub(crate) fn new(before: TallyCounts, counted: TallyCounts) -> Self {
        // The node reported the verdict before it restarted.
        let over = counted.calls >= WATCHED_CALLS;
        Self {
            baseline: (before.errors * 100).checked_div(before.calls).unwrap_or(0),
            counted: Mutex::new((counted, over)),
        }
    }

    /// Counts a call that ended. More than the allowed share of the first calls may have failed
    /// before all of them were made.
    pub(crate) fn count(&self, failed: bool) -> Option<TallyVerdict> {
        let mut counted = lock(&self.counted);
        let (tallied, reported) = &mut *counted;
        if *reported {
            return None;
        }
        tallied.calls += 1;
        tallied.errors += u32::from(failed);
        let most = (self.baseline + WORSE_PERCENT_MAX) * WATCHED_CALLS / 100;
        let verdict = match *tallied {
            now if now.errors > most => TallyVerdict::Failing(now),
            now if now.calls >= WATCHED_CALLS => TallyVerdict::Over(now),
            _ => return None,
        };
        *reported = true;
        Some(verdict)
    }

    pub(crate) fn tallied(&self) -> TallyCounts {
        lock(&self.counted).0
    }
}

/// The workers that were lost while they ran some code.
#[derive(Debug, Default)]
pub(crate) struct CrashHistory(Mutex<HashMap<Blake3Hash, VecDeque<Instant>>>);

impl CrashHistory {
    /// Counts a lost worker. Returns whether this sets the code aside.
    pub(crate) fn lost(&self, code: Blake3Hash, now: Instant) -> bool {
        let mut all = lock(&self.0);
        let times = all.entry(code).or_default();
        // The code is already set aside, which is reported once.
        if times.len() >= CRASHES_MAX {
            return false;
        }
        while times
            .front()
            .is_some_and(|first| now.duration_since(*first) > CRASHES_WITHIN)
        {
            times.pop_front();
        }
        times.push_back(now);
        times.len() >= CRASHES_MAX
    }

    /// Whether the code is set aside, which lasts until the node restarts.
    pub(crate) fn is_aside(&self, code: Blake3Hash) -> bool {
        lock(&self.0)
            .get(&code)
            .is_some_and(|times| times.len() >= CRASHES_MAX)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tally_counts(calls: u32, errors: u32) -> TallyCounts {
        TallyCounts { calls, errors }
    }

    #[test]
    fn more_than_a_fifth_beyond_the_version_before_is_too_much() {
        let tally = CallTally::new(tally_counts(0, 0), tally_counts(0, 0));
        let verdicts = (0..20).filter_map(|_| tally.count(true)).count();
        assert_eq!(verdicts, 0, "a fifth is allowed");
        assert_eq!(
            tally.count(true),
            Some(TallyVerdict::Failing(tally_counts(21, 21)))
        );
        assert_eq!(tally.count(true), None, "told once");
        let worse = CallTally::new(tally_counts(50, 5), tally_counts(0, 0));
        assert_eq!((0..30).filter_map(|_| worse.count(true)).count(), 0);
        assert!(matches!(worse.count(true), Some(TallyVerdict::Failing(_))));
    }

    #[test]
    fn the_first_hundred_calls_count() {
        let tally = CallTally::new(tally_counts(0, 0), tally_counts(0, 0));
        let mut verdicts = (0..200).filter_map(|n| tally.count(n % 5 == 0));
        assert_eq!(
            verdicts.next(),
            Some(TallyVerdict::Over(tally_counts(100, 20)))
        );
        assert_eq!(verdicts.next(), None);
        let done = CallTally::new(tally_counts(0, 0), tally_counts(100, 0));
        assert_eq!((0..200).filter_map(|_| done.count(true)).count(), 0);
    }

    #[test]
    fn code_that_loses_three_workers_in_a_minute_is_set_aside() {
        let crashes = CrashHistory::default();
        let (code, start) = (Blake3Hash([1; 32]), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!crashes.lost(code, at(0)) && !crashes.lost(code, at(50)));
        assert!(!crashes.lost(code, at(61)), "the first is too long ago");
        assert!(!crashes.is_aside(code));
        assert!(crashes.lost(code, at(70)));
        assert!(crashes.is_aside(code) && !crashes.is_aside(Blake3Hash([2; 32])));
    }
}
