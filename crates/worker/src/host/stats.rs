//! The counters of `runtime/stats`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::limits::{DEATH_WITHIN, DEATHS_KEPT};
use crate::{Sandbox, WorkerEndReason, WorkerRole};

/// The numbers at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Workers that run, by role.
    pub workers: BTreeMap<WorkerRole, u64>,
    /// Workers started so far.
    pub started: u64,
    /// Workers that ended, by reason.
    pub ended: BTreeMap<WorkerEndReason, u64>,
    /// Sessions that are open.
    pub sessions: u64,
    /// Bytes of log that were dropped because a session logged too much.
    pub log_dropped: u64,
    /// Operations in quarantine.
    pub quarantined: u64,
    /// Time from a limit to the end of a worker that did not stop at it: the median and the 99th percentile of the
    /// last thousand.
    pub death: Option<(Duration, Duration)>,
    /// All of these ends.
    pub deaths: OverrunStats,
    /// The confinement of the last worker of each role that became ready.
    pub sandbox: BTreeMap<WorkerRole, Sandbox>,
}

/// Ends of workers that did not stop at a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverrunStats {
    /// Their number.
    pub count: u64,
    /// Those that took more than [`DEATH_WITHIN`] after the limit, until their memory was free, without the time in which
    /// the worker waited for a processor before it was killed.
    pub late: u64,
    /// The longest, with that time.
    pub longest: Duration,
}

/// The numbers, and the values from which they are computed.
#[derive(Debug, Default)]
pub(super) struct StatsCounter {
    pub(super) now: WorkerStats,
    deaths: VecDeque<u64>,
}

impl StatsCounter {
    pub(super) fn ended(&mut self, role: WorkerRole, reason: WorkerEndReason) {
        *self.now.ended.entry(reason).or_default() += 1;
        if let Some(running) = self.now.workers.get_mut(&role) {
            *running = running.saturating_sub(1);
        }
    }

    pub(super) fn started(&mut self, role: WorkerRole) {
        *self.now.workers.entry(role).or_default() += 1;
        self.now.started += 1;
    }

    /// Records that a worker ended this many microseconds after its limit, in which it waited so long for a processor.
    pub(super) fn died(&mut self, after_us: u64, waited_us: u64) {
        if self.deaths.len() == DEATHS_KEPT {
            self.deaths.pop_front();
        }
        self.deaths.push_back(after_us);
        let after = Duration::from_micros(after_us);
        let deaths = &mut self.now.deaths;
        deaths.count += 1;
        let counts = after.saturating_sub(Duration::from_micros(waited_us));
        deaths.late += u64::from(counts > DEATH_WITHIN);
        deaths.longest = deaths.longest.max(after);
    }

    pub(super) fn snapshot(&self) -> WorkerStats {
        let mut sorted: Vec<u64> = self.deaths.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let last = sorted.len().checked_sub(1)?;
            let us = sorted.get((sorted.len() * percent / 100).min(last))?;
            Some(Duration::from_micros(*us))
        };
        WorkerStats {
            death: at(50).zip(at(99)),
            ..self.now.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_deaths() {
        let mut counter = StatsCounter::default();
        assert_eq!(counter.snapshot().death, None);
        for _ in 0..DEATHS_KEPT {
            counter.died(1_000_000, 0);
        }
        for us in 0..DEATHS_KEPT as u64 {
            counter.died(us, 0);
        }
        let (middle, most) = counter.snapshot().death.expect("deaths");
        assert_eq!(middle, Duration::from_micros(512));
        assert_eq!(most, Duration::from_micros(1013));
        let all = counter.snapshot().deaths;
        let remembered = DEATHS_KEPT as u64;
        assert_eq!((all.count, all.late), (2 * remembered, remembered));
        assert_eq!(all.longest, Duration::from_secs(1));
    }

    #[test]
    fn time_in_which_a_worker_waited_for_a_processor_makes_no_death_late() {
        let mut counter = StatsCounter::default();
        counter.died(900_000, 850_000);
        assert_eq!(counter.snapshot().deaths.late, 0);
        counter.died(900_000, 849_999);
        let all = counter.snapshot().deaths;
        assert_eq!((all.count, all.late), (2, 1));
        assert_eq!(all.longest, Duration::from_millis(900));
    }

    #[test]
    fn workers_come_and_go() {
        let mut counter = StatsCounter::default();
        counter.started(WorkerRole::Js);
        counter.started(WorkerRole::Js);
        counter.ended(WorkerRole::Js, WorkerEndReason::Crash);
        let stats = counter.snapshot();
        assert_eq!(stats.workers[&WorkerRole::Js], 1);
        assert_eq!(
            (stats.started, stats.ended[&WorkerEndReason::Crash]),
            (2, 1)
        );
    }
}
