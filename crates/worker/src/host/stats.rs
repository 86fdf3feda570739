//! What was counted, for `runtime/stats`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::limits::{DEATH_WITHIN, DEATHS_KEPT};
use crate::{Sandbox, WorkerEndReason, WorkerRole};

/// The numbers of one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Workers that run, by role.
    pub workers: BTreeMap<WorkerRole, u64>,
    /// Workers that were started.
    pub started: u64,
    /// Workers that ended, by reason.
    pub ended: BTreeMap<WorkerEndReason, u64>,
    /// Sessions that are open.
    pub sessions: u64,
    /// Bytes of log that were dropped because there were too many.
    pub log_dropped: u64,
    /// Operations in quarantine.
    pub quarantined: u64,
    /// From a limit to the end of the worker that did not stop at it, at the middle and at the 99th
    /// percentile of the last thousand.
    pub death: Option<(Duration, Duration)>,
    /// All of these ends.
    pub deaths: OverrunStats,
    /// The walls of the last worker of each role that got ready.
    pub sandbox: BTreeMap<WorkerRole, Sandbox>,
}

/// Ends of workers that did not stop at a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverrunStats {
    /// How many.
    pub count: u64,
    /// Those that took more than [`DEATH_WITHIN`] after the limit, until their memory was gone.
    pub late: u64,
    /// The longest.
    pub longest: Duration,
}

/// The numbers, and what they are made of.
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

    /// A worker ended this long after the limit, microseconds.
    pub(super) fn died(&mut self, after_us: u64) {
        if self.deaths.len() == DEATHS_KEPT {
            self.deaths.pop_front();
        }
        self.deaths.push_back(after_us);
        let after = Duration::from_micros(after_us);
        let deaths = &mut self.now.deaths;
        deaths.count += 1;
        deaths.late += u64::from(after > DEATH_WITHIN);
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
        let mut counted = StatsCounter::default();
        assert_eq!(counted.snapshot().death, None);
        for _ in 0..DEATHS_KEPT {
            counted.died(1_000_000);
        }
        for us in 0..DEATHS_KEPT as u64 {
            counted.died(us);
        }
        let (middle, most) = counted.snapshot().death.expect("deaths");
        assert_eq!(middle, Duration::from_micros(512));
        assert_eq!(most, Duration::from_micros(1013));
        let all = counted.snapshot().deaths;
        let kept = DEATHS_KEPT as u64;
        assert_eq!((all.count, all.late), (2 * kept, kept));
        assert_eq!(all.longest, Duration::from_secs(1));
    }

    #[test]
    fn workers_come_and_go() {
        let mut counted = StatsCounter::default();
        counted.started(WorkerRole::Js);
        counted.started(WorkerRole::Js);
        counted.ended(WorkerRole::Js, WorkerEndReason::Crash);
        let stats = counted.snapshot();
        assert_eq!(stats.workers[&WorkerRole::Js], 1);
        assert_eq!(
            (stats.started, stats.ended[&WorkerEndReason::Crash]),
            (2, 1)
        );
    }
}
