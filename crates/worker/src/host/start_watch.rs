//! Decides how long the start of a worker may take. Times are microseconds of one clock.

use std::time::Duration;

use super::StartLimits;
use crate::limits::START_LOOKS;

/// Watches one start. A worker that sleeps until its time is over will not become ready. One that computes, or that waits
/// for a processor, on a machine that is slow or busy, will: the host looks at it again and again, and the start goes on
/// until a look finds no progress, or until a limit of processor time or of all time.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartWatch {
    /// The time from which on the worker has to make progress.
    patient_until: u64,
    /// The time at which the start is over in any case.
    end: u64,
    /// The processor time that it may have used after `patient_until`.
    cpu_max: u64,
    /// The time between two looks.
    step: u64,
    /// The clock of the process at the last look.
    used: u64,
    /// The time of the next look.
    at: u64,
}

impl StartWatch {
    /// Begins with the process, whose clock begins at zero.
    pub(super) fn new(now: u64, limits: StartLimits) -> Self {
        let step = (us(limits.idle) / u64::from(START_LOOKS)).max(1);
        let patient_until = now.saturating_add(us(limits.idle));
        let end = now.saturating_add(us(limits.wall));
        Self {
            patient_until,
            end,
            cpu_max: us(limits.cpu),
            step,
            used: 0,
            // Nothing is decided before: this look is the one with which the next one compares.
            at: patient_until.saturating_sub(step).min(end),
        }
    }

    /// The time at which to call [`Self::is_over`] next.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Looks at the worker, if that is due. `process` reads the clock of its process, and `can_run` whether one of its
    /// threads could run if it got a processor.
    pub(super) fn is_over(
        &mut self,
        now: u64,
        process: impl FnOnce() -> Option<u64>,
        can_run: impl FnOnce() -> bool,
    ) -> bool {
        if now < self.at {
            return false;
        }
        // Only a process that has ended has no clock, and it makes no progress.
        let used = process().unwrap_or(self.used);
        let goes_on =
            now < self.patient_until || used < self.cpu_max && (used > self.used || can_run());
        let next = now.saturating_add(self.step);
        self.at = if now < self.patient_until {
            next.min(self.patient_until).min(self.end)
        } else {
            next.min(self.end)
        };
        self.used = used;
        now >= self.end || !goes_on
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    /// Looks at a worker that starts at 7 s whenever that is due, and returns when the start was over, in microseconds
    /// since it began.
    fn over(process: impl Fn(u64) -> Option<u64>, can_run: impl Fn(u64) -> bool) -> u64 {
        let began = 7 * S;
        let mut watch = StartWatch::new(began, StartLimits::default());
        loop {
            let now = watch.at();
            let since = now - began;
            if watch.is_over(now, || process(since), || can_run(since)) {
                return since;
            }
            assert!(watch.at() > now, "it goes on");
        }
    }

    #[test]
    fn a_worker_that_sleeps_is_ended_as_before() {
        assert_eq!(over(|_| Some(0), |_| false), 30 * S);
        // What it used before it fell asleep says nothing.
        assert_eq!(over(|now| Some(now.min(5 * S)), |_| false), 30 * S);
        assert_eq!(over(|_| None, |_| false), 30 * S, "it has ended");
    }

    #[test]
    fn a_worker_that_computes_has_two_minutes_of_processor_time() {
        assert_eq!(over(Some, |_| true), 120 * S);
        // Its threads sleep at the looks, and compute between them.
        assert_eq!(over(|now| Some(now / 2), |_| false), 240 * S);
        // Sixteen threads used it in half a minute.
        assert_eq!(over(|now| Some(now * 16), |_| true), 30 * S);
    }

    #[test]
    fn a_worker_that_gets_no_processor_has_five_minutes() {
        assert_eq!(over(|_| Some(S), |_| true), 300 * S);
        assert_eq!(over(|now| Some(now / 50), |_| false), 300 * S);
    }

    #[test]
    fn a_worker_that_falls_asleep_later_is_ended_at_the_next_look() {
        assert_eq!(over(|now| Some(now.min(40 * S)), |_| false), 45 * S);
        assert_eq!(over(|_| Some(0), |now| now <= 40 * S), 42 * S);
    }

    /// The host waits for a processor as well. Its first look then has no earlier one to compare with.
    #[test]
    fn a_look_that_comes_late_takes_all_processor_time_for_progress() {
        let late = |used| {
            let mut watch = StartWatch::new(0, StartLimits::default());
            let is_over = watch.is_over(100 * S, || Some(used), || false);
            (is_over, watch.at())
        };
        assert_eq!(late(S), (false, 103 * S));
        assert!(late(0).0);
        let mut watch = StartWatch::new(0, StartLimits::default());
        assert!(watch.is_over(300 * S, || Some(S), || true));
    }

    #[test]
    fn it_looks_only_when_that_is_due() {
        let mut watch = StartWatch::new(0, StartLimits::default());
        assert_eq!(watch.at(), 27 * S);
        let early = watch.is_over(27 * S - 1, || unreachable!(), || unreachable!());
        assert!(!early);
        assert!(!watch.is_over(28 * S, || Some(0), || unreachable!()));
        assert_eq!(watch.at(), 30 * S);
    }

    #[test]
    fn limits_that_the_clock_cannot_express_are_no_limits() {
        let limits = StartLimits {
            idle: Duration::from_secs(1),
            cpu: Duration::MAX,
            wall: Duration::MAX,
        };
        let mut watch = StartWatch::new(S, limits);
        assert!(!watch.is_over(u64::MAX - 1, || Some(u64::MAX - 1), || true));
        let limits = StartLimits {
            idle: Duration::MAX,
            ..limits
        };
        assert!(StartWatch::new(S, limits).at() > 1000 * S);
    }
}
