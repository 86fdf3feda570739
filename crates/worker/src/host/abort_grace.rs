//! The time that a worker has to answer an abort. Times are microseconds of one clock.

use crate::limits::{ABORT_LOOKS, ABORT_PART, ABORT_WAIT_MAX};

/// The grace after an abort. All sessions of a worker end with it, so time in which a busy machine kept the worker from
/// running does not count: the host looks at the worker again and again, and of the time between two looks in which it
/// waited for a processor, only the processor time counts that it used. All of it counts as soon as the worker has used a
/// part of the grace since it read the abort: one that obeys uses less, however long its threads wait for each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct AbortGrace {
    began: u64,
    grace: u64,
    /// The time between two looks.
    step: u64,
    looked_at: u64,
    /// The clock of the process at the last look.
    used: u64,
    /// Whether the worker has read the abort.
    has_read: bool,
    /// The processor time that it used since the look after that.
    used_since: Option<u64>,
    /// The time between all looks.
    watched: u64,
    /// The part of the grace that has passed.
    passed: u64,
    /// The time between looks in which the worker waited for a processor.
    waited: u64,
    /// The time of the next look.
    at: u64,
}

impl AbortGrace {
    /// Begins with the abort. `used` is the clock of the worker's process.
    pub(super) fn new(now: u64, grace: u64, used: u64) -> Self {
        let mut begun = Self {
            began: now,
            grace,
            step: (grace / u64::from(ABORT_LOOKS)).max(1),
            looked_at: now,
            used,
            has_read: false,
            used_since: None,
            watched: 0,
            passed: 0,
            waited: 0,
            at: now,
        };
        begun.set_next(now);
        begun
    }

    /// The time at which to call [`Self::is_over`] next.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Records that the worker has read the abort.
    pub(super) const fn note_read(&mut self) {
        self.has_read = true;
    }

    /// The time until the last look in which the worker waited for a processor.
    pub(super) const fn waited(&self) -> u64 {
        self.waited
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
        // A worker that waits for ever would keep its caller, and what it does, for ever.
        let most = self.grace.saturating_mul(u64::from(ABORT_WAIT_MAX));
        // Only a process that has ended has no clock.
        let Some(used) = process().filter(|_| now < self.began.saturating_add(most)) else {
            return true;
        };
        let since = now.saturating_sub(self.looked_at);
        let ran = used.saturating_sub(self.used);
        let waits = ran < since / 2 && can_run();
        let lost = if waits { since - ran } else { 0 };
        self.passed = self.passed.saturating_add(since - lost);
        self.watched = self.watched.saturating_add(since);
        let used_since = self.used_since.map(|its| its.saturating_add(ran));
        if used_since.is_some_and(|its| its.saturating_mul(ABORT_PART) >= self.grace) {
            self.passed = self.watched;
        } else {
            self.waited = self.waited.saturating_add(lost);
        }
        self.used_since = used_since.or_else(|| self.has_read.then_some(0));
        (self.looked_at, self.used) = (now, used);
        self.set_next(now);
        self.passed >= self.grace
    }

    /// Sets the time of the next look. Each call has one at the end of its grace. A worker that has read the abort and
    /// did not wait so far is not looked at before. All other looks at all calls come at the same times: then the
    /// worker's threads are read once for all of them.
    fn set_next(&mut self, now: u64) {
        let next = (now / self.step)
            .saturating_add(1)
            .saturating_mul(self.step);
        let end = self.began.saturating_add(self.grace);
        self.at = if now >= end {
            next
        } else if self.used_since.is_some() && self.waited < self.step {
            end
        } else {
            next.min(end)
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MS: u64 = 1000;
    const GRACE: u64 = 20 * MS;

    /// Looks at the worker, which reads the abort at once, whenever that is due, and returns when the grace was over.
    fn over(
        grace: &mut AbortGrace,
        process: impl Fn(u64) -> u64,
        can_run: impl Fn(u64) -> bool,
    ) -> u64 {
        grace.note_read();
        over_unread(grace, process, can_run)
    }

    fn over_unread(
        grace: &mut AbortGrace,
        process: impl Fn(u64) -> u64,
        can_run: impl Fn(u64) -> bool,
    ) -> u64 {
        loop {
            let now = grace.at();
            if grace.is_over(now, || Some(process(now)), || can_run(now)) {
                return now;
            }
            assert!(grace.at() > now, "it goes on");
        }
    }

    #[test]
    fn a_worker_that_sleeps_or_computes_has_the_grace() {
        for (share, can_run) in [(0, false), (1, true)] {
            let mut grace = AbortGrace::new(7 * MS, GRACE, 0);
            let process = |now: u64| (now - 7 * MS) * share;
            assert_eq!(over(&mut grace, process, |_| can_run), 27 * MS);
        }
    }

    #[test]
    fn a_worker_that_waits_for_a_processor_is_killed_in_the_end() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        assert_eq!(over(&mut grace, |_| 0, |_| true), 1000 * MS);
        assert_eq!(grace.waited(), 995 * MS);
    }

    #[test]
    fn a_worker_that_ignores_the_abort_uses_no_more_than_the_grace() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        assert_eq!(over(&mut grace, |now| now / 16, |_| true), 85 * MS);
        assert_eq!(grace.waited(), 75 * MS);
    }

    /// Four programs that compute on two processors take turns, so each look finds one that ran or one that waited.
    #[test]
    fn a_worker_that_takes_turns_has_no_longer_than_others() {
        let turns = |now: u64| now / (10 * MS) * 5 * MS;
        for first in [0, 5 * MS] {
            let mut grace = AbortGrace::new(0, GRACE, 0);
            let process = |now: u64| turns(now + first);
            assert_eq!(over(&mut grace, process, |_| true), GRACE, "{first}");
            assert!(grace.waited() <= 5 * MS, "{first}");
        }
    }

    #[test]
    fn a_worker_that_has_a_processor_again_has_a_part_of_the_grace_or_sleeps_for_all_of_it() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        let process = |now: u64| now.saturating_sub(300 * MS);
        assert_eq!(over(&mut grace, process, |_| true), 305 * MS);
        let mut grace = AbortGrace::new(0, GRACE, 0);
        assert_eq!(over(&mut grace, |_| 0, |now| now <= 300 * MS), 320 * MS);
    }

    /// The host waits for a processor as well, and what it did not look at makes the grace no longer.
    #[test]
    fn a_look_that_comes_late_ends_the_grace() {
        for (used, can_run) in [(500 * MS, true), (0, false)] {
            let mut grace = AbortGrace::new(0, GRACE, 0);
            assert!(grace.is_over(500 * MS, || Some(used), || can_run));
            assert_eq!(grace.waited(), 0);
        }
    }

    #[test]
    fn a_wait_before_a_worker_computes_on_is_a_wait() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        let process = |now: u64| now.saturating_sub(20 * MS);
        assert_eq!(over(&mut grace, process, |_| true), 25 * MS);
        assert_eq!(grace.waited(), 20 * MS);
    }

    /// The thread that computes had a turn first, and then all others had one before the thread that reads.
    #[test]
    fn processor_time_before_the_worker_read_the_abort_shortens_no_grace() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        let process = |now: u64| now.min(6 * MS) + now.saturating_sub(60 * MS);
        while grace.at() <= 60 * MS {
            let now = grace.at();
            assert!(!grace.is_over(now, || Some(process(now)), || true), "{now}");
        }
        assert_eq!(over(&mut grace, process, |_| true), 70 * MS);
    }

    /// The threads of a worker that obeys wait for each other, and each uses a moment.
    #[test]
    fn a_worker_that_obeys_has_the_time_to_say_so() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        grace.note_read();
        let process = |now: u64| now / (50 * MS) * MS;
        while grace.at() <= 200 * MS {
            let now = grace.at();
            assert!(!grace.is_over(now, || Some(process(now)), || true), "{now}");
        }
    }

    #[test]
    fn a_worker_that_never_reads_the_abort_uses_no_more_than_the_grace() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        let half = |now: u64| now / 2;
        assert_eq!(over_unread(&mut grace, half, |_| true), GRACE);
        let mut grace = AbortGrace::new(0, GRACE, 0);
        let third = |now: u64| now / 3;
        assert_eq!(over_unread(&mut grace, third, |_| true), 60 * MS);
    }

    #[test]
    fn a_worker_that_did_not_wait_is_looked_at_twice() {
        let mut grace = AbortGrace::new(3 * MS, GRACE, 0);
        grace.note_read();
        assert_eq!(grace.at(), 5 * MS);
        assert!(!grace.is_over(5 * MS, || Some(2 * MS), || true));
        assert_eq!(grace.at(), 23 * MS);
        assert!(grace.is_over(23 * MS, || Some(8 * MS), || true));
    }

    #[test]
    fn a_worker_that_is_gone_has_no_time() {
        let mut grace = AbortGrace::new(0, GRACE, 0);
        assert!(!grace.is_over(4 * MS, || None, || true));
        assert!(grace.is_over(5 * MS, || None, || true));
    }

    /// Reading what its threads do takes the longer the more there are.
    #[test]
    fn calls_that_were_aborted_one_after_the_other_are_looked_at_together() {
        let mut graces = [0, MS, 2 * MS].map(|began| AbortGrace::new(began, GRACE, 0));
        let mut looks = BTreeSet::new();
        while let Some(now) = graces.iter().map(AbortGrace::at).min()
            && now <= 100 * MS
        {
            looks.insert(now);
            for grace in &mut graces {
                assert!(!grace.is_over(now, || Some(0), || true));
            }
        }
        let common = (1..=20).map(|step| step * 5 * MS);
        // Each has one at the end of its grace besides.
        let expected = common.chain([21 * MS, 22 * MS]).collect();
        assert_eq!(looks, expected);
    }
}
