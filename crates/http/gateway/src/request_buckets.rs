//! The requests that one caller has left: in general, and at each mount with a budget of its own.

use std::time::{Duration, Instant};

use alknet_core::MountRequestBudget;

/// Longest time that a refused caller is asked to wait.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Requests per second on average, and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestRate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

impl RequestRate {
    /// The rate at a mount. The mount raises what the configuration permits, and never lowers it.
    fn at_mount(self, budget: MountRequestBudget) -> Self {
        let per_second = self.per_second.max(budget.per_second);
        Self {
            per_second,
            // A burst below the rate would make the rate unreachable.
            burst: self.burst.max(budget.burst).max(per_second),
        }
    }
}

/// The token buckets of one caller.
#[derive(Debug)]
pub(crate) struct RequestBuckets {
    general: CallTokenBucket,
    /// One for each mount with a budget that the caller has used, by its prefix. A node has few mounts.
    mounts: Vec<(&'static str, CallTokenBucket)>,
}

#[derive(Debug)]
struct CallTokenBucket {
    /// Requests that are left of the burst.
    left: f64,
    at: Instant,
}

impl CallTokenBucket {
    fn full(rate: RequestRate, at: Instant) -> Self {
        Self {
            left: f64::from(rate.burst),
            at,
        }
    }

    /// Takes one request, or says how long it is until there is one.
    fn take(&mut self, rate: RequestRate, now: Instant) -> Result<(), Duration> {
        let (per_second, burst) = (f64::from(rate.per_second), f64::from(rate.burst));
        // The request began before one that was counted already, so no time has passed.
        let now = now.max(self.at);
        let passed = now.duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * per_second).min(burst);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        // A rate of zero cannot be a divisor.
        let wait = (1.0 - self.left) / per_second.max(0.001);
        Err(Duration::from_secs_f64(wait.min(WAIT_MAX.as_secs_f64())))
    }
}

impl RequestBuckets {
    /// The buckets of a new caller, which has its whole burst.
    pub(crate) fn new(rate: RequestRate, now: Instant) -> Self {
        Self {
            general: CallTokenBucket::full(rate, now),
            mounts: Vec::new(),
        }
    }

    /// Counts a request that began at `now`.
    ///
    /// # Errors
    /// The caller sent too many lately. It may try again after this time.
    pub(crate) fn take(&mut self, rate: RequestRate, now: Instant) -> Result<(), Duration> {
        self.general.take(rate, now)
    }

    /// Counts a request to the mount with this prefix, where the caller has this budget apart from `rate`.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub(crate) fn take_at_mount(
        &mut self,
        (prefix, budget): (&'static str, MountRequestBudget),
        rate: RequestRate,
        now: Instant,
    ) -> Result<(), Duration> {
        let rate = rate.at_mount(budget);
        let found = self.mounts.iter_mut().find(|(at, _)| *at == prefix);
        if let Some((_, bucket)) = found {
            return bucket.take(rate, now);
        }
        let mut bucket = CallTokenBucket::full(rate, now);
        let taken = bucket.take(rate, now);
        self.mounts.push((prefix, bucket));
        taken
    }

    /// When the last request began.
    pub(crate) fn last(&self) -> Instant {
        let mounts = self.mounts.iter().map(|(_, bucket)| bucket.at);
        mounts.fold(self.general.at, Instant::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: RequestRate = RequestRate {
        per_second: 10,
        burst: 3,
    };

    const BUDGET: MountRequestBudget = MountRequestBudget {
        per_second: 20,
        burst: 40,
    };

    /// Requests until the first refusal, and the time that it names.
    fn taken(mut take: impl FnMut() -> Result<(), Duration>) -> (u32, Duration) {
        let mut count = 0;
        loop {
            match take() {
                Ok(()) => count += 1,
                Err(wait) => break (count, wait),
            }
        }
    }

    #[test]
    fn a_mount_with_a_budget_is_counted_apart() {
        let now = Instant::now();
        let mut buckets = RequestBuckets::new(RATE, now);
        let at_mount = taken(|| buckets.take_at_mount(("/fs", BUDGET), RATE, now));
        assert_eq!(at_mount, (40, Duration::from_millis(50)));
        let other = taken(|| buckets.take_at_mount(("/git", BUDGET), RATE, now));
        assert_eq!(other.0, 40);
        assert_eq!(taken(|| buckets.take(RATE, now)).0, 3);
        let later = now + Duration::from_millis(100);
        let again = taken(|| buckets.take_at_mount(("/fs", BUDGET), RATE, later));
        assert_eq!((again.0, buckets.last()), (2, later));
        assert_eq!(taken(|| buckets.take(RATE, later)).0, 1);
    }

    #[test]
    fn a_budget_never_lowers_what_the_configuration_permits() {
        let now = Instant::now();
        let small = MountRequestBudget {
            per_second: 1,
            burst: 1,
        };
        let mut buckets = RequestBuckets::new(RATE, now);
        // The burst is the rate at least, without which the rate could not be reached.
        let taken = taken(|| buckets.take_at_mount(("/fs", small), RATE, now));
        assert_eq!(taken, (10, Duration::from_millis(100)));
    }
}
