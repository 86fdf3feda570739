//! Decides when the host asks a worker to stop a running call, and when it kills the worker. Times are microseconds
//! of one clock.

use std::cell::OnceCell;

use super::CallLimits;
use super::abort_grace::AbortGrace;
use crate::LimitCause;
use crate::limits::{ABORT_GRACE, CPU_STEP_MIN, SILENCE_BURNT, SILENCE_LOOK, SILENCE_LOOKS};

/// A worker has threads beside the call's own. This part of its processor time, and this many microseconds, may be
/// theirs before the host doubts its account of the call.
const OTHER_THREADS_SHARE: u64 = 8;
const OTHER_THREADS_US: u64 = 20_000;

/// The order for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchOrder {
    /// Ask the worker to stop it.
    Abort,
    /// Kill the worker, which did not stop, for this limit.
    Kill(LimitCause),
}

/// Watches one call.
#[derive(Debug)]
pub(super) struct CallWatch {
    wall: (u64, LimitCause),
    cpu: Option<CpuBudget>,
    gpu: Option<GpuBudget>,
    silence: u64,
    grace: u64,
    silent_at: u64,
    /// The clock of the process at the last check of a silent worker.
    silent_since: Option<u64>,
    /// Checks in a row in which it did not wait for a processor.
    silent_checks: u32,
    /// Processor time that it used in all checks.
    silent_burnt: u64,
    ending: Option<LimitEnding>,
}

/// The limit that was reached.
#[derive(Clone, Copy, Debug)]
struct LimitEnding {
    cause: LimitCause,
    reached_at: u64,
    /// Set once the worker is asked to stop the call.
    grace: Option<AbortGrace>,
}

#[derive(Debug)]
struct CpuBudget {
    budget: u64,
    used: u64,
    /// The clock of the whole process when `used` was read.
    process: u64,
    /// Processor time of the process while this was its only call.
    alone: u64,
    /// The earliest time at which the budget could be used up.
    at: u64,
}

/// A limit at which a worker did not stop. Times are microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct LimitOverrun {
    pub(super) reached_at: u64,
    pub(super) waited: u64,
}

#[derive(Debug)]
struct GpuBudget {
    budget: u64,
    used: u64,
    since: Option<u64>,
}

impl CallWatch {
    /// Watches a call that is sent now. `process` is the clock of the worker's process, `busy` whether GPU time
    /// counts from the start.
    pub(super) fn new(
        now: u64,
        limits: CallLimits,
        silence: u64,
        process: u64,
        busy: bool,
    ) -> Self {
        let us = |limit: std::time::Duration| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let cpu = limits.cpu.map(|limit| CpuBudget {
            budget: us(limit),
            used: 0,
            process,
            alone: 0,
            at: now.saturating_add(us(limit)),
        });
        let gpu = limits.gpu.map(|limit| GpuBudget {
            budget: us(limit),
            used: 0,
            since: busy.then_some(now),
        });
        Self {
            wall: (now.saturating_add(us(limits.wall)), LimitCause::Wall),
            cpu,
            gpu,
            silence,
            grace: u64::try_from(ABORT_GRACE.as_micros()).unwrap_or(u64::MAX),
            silent_at: now.saturating_add(silence),
            silent_since: None,
            silent_checks: 0,
            silent_burnt: 0,
            ending: None,
        }
    }

    /// Sets another time for the answer to an abort.
    pub(super) const fn with_grace(mut self, grace: u64) -> Self {
        self.grace = grace;
        self
    }

    /// Marks the call as the drain of a service.
    pub(super) const fn draining(mut self) -> Self {
        self.wall.1 = LimitCause::Drain;
        self
    }

    /// Records a heartbeat. `claimed` is the worker's own account of the call. It is not believed if this is the
    /// worker's only call and the process's clock disagrees.
    pub(super) fn beat(&mut self, now: u64, claimed: u64, process: u64, only: bool) {
        self.silent_at = now.saturating_add(self.silence);
        self.silent_since = None;
        self.silent_checks = 0;
        self.silent_burnt = 0;
        let Some(cpu) = &mut self.cpu else {
            return;
        };
        let burnt = process.saturating_sub(cpu.process);
        let most = cpu.used.saturating_add(burnt);
        // With several calls in one process, the kernel's clock does not show which of them used it.
        if only {
            cpu.alone = cpu.alone.saturating_add(burnt);
        }
        let least = (cpu.alone - cpu.alone / OTHER_THREADS_SHARE).saturating_sub(OTHER_THREADS_US);
        // The worker may lie in both directions, and the kernel's clock bounds what it claims.
        cpu.used = claimed.max(least).clamp(cpu.used, most);
        cpu.process = process;
        cpu.arm(now);
    }

    /// Records that the GPU works for this call from now on, or no longer.
    pub(super) fn gpu(&mut self, now: u64, busy: bool) {
        let Some(gpu) = &mut self.gpu else {
            return;
        };
        match (gpu.since, busy) {
            (None, true) => gpu.since = Some(now),
            (Some(since), false) => {
                gpu.used = gpu.used.saturating_add(now.saturating_sub(since));
                gpu.since = None;
            }
            _ => {}
        }
    }

    /// Records that the caller gave up.
    pub(super) const fn give_up(&mut self, now: u64) {
        if self.ending.is_none() {
            self.ending = Some(LimitEnding {
                cause: LimitCause::Aborted,
                reached_at: now,
                grace: None,
            });
        }
    }

    /// The next order; the caller asks until it is `None`. `process` reads the clock of the worker's process, and
    /// `can_run` whether one of its threads could run if it got a processor.
    pub(super) fn order(
        &mut self,
        now: u64,
        process: impl Fn() -> Option<u64>,
        can_run: impl Fn() -> bool,
    ) -> Option<WatchOrder> {
        if self.ending.is_none() {
            let (reached_at, cause) = self.reached(now, &process, &can_run)?;
            self.ending = Some(LimitEnding {
                cause,
                reached_at,
                grace: None,
            });
        }
        let ending = self.ending.as_mut()?;
        let Some(grace) = &mut ending.grace else {
            let used = process().unwrap_or(0);
            ending.grace = Some(AbortGrace::new(now, self.grace, used));
            // The worker first gets the chance to end the call by itself, which keeps its other sessions.
            return Some(WatchOrder::Abort);
        };
        let is_over = grace.is_over(now, process, can_run);
        is_over.then_some(WatchOrder::Kill(ending.cause))
    }

    /// The time at which to call [`Self::order`] next, if no event comes before.
    pub(super) fn deadline(&self) -> u64 {
        if let Some(ending) = &self.ending {
            return ending.grace.as_ref().map_or(0, AbortGrace::at);
        }
        let cpu = self.cpu.as_ref().map_or(u64::MAX, |cpu| cpu.at);
        let gpu = self
            .gpu
            .as_ref()
            .and_then(GpuBudget::at)
            .unwrap_or(u64::MAX);
        self.wall.0.min(cpu).min(gpu).min(self.silent_at)
    }

    /// Records that the worker has read everything that was sent to it, also the abort.
    pub(super) const fn note_read(&mut self) {
        if let Some(ending) = &mut self.ending
            && let Some(grace) = &mut ending.grace
        {
            grace.note_read();
        }
    }

    /// When the limit was reached that ended the call, and how long the worker then waited for a processor.
    pub(super) fn overrun(&self) -> Option<LimitOverrun> {
        self.ending.map(|ending| LimitOverrun {
            reached_at: ending.reached_at,
            waited: ending.grace.map_or(0, |grace| grace.waited()),
        })
    }

    /// The limit that ended the call, and when it was reached.
    pub(super) fn ended(&self) -> Option<(LimitCause, u64)> {
        self.ending.map(|ending| (ending.cause, ending.reached_at))
    }

    /// The first limit that has passed.
    fn reached(
        &mut self,
        now: u64,
        process: impl Fn() -> Option<u64>,
        can_run: impl FnOnce() -> bool,
    ) -> Option<(u64, LimitCause)> {
        let mut reached = vec![self.wall];
        if let Some(silent_at) = self.silent(now, &process, can_run) {
            reached.push((silent_at, LimitCause::Silent));
        }
        reached.extend(
            self.gpu
                .as_ref()
                .and_then(GpuBudget::at)
                .map(|at| (at, LimitCause::Gpu)),
        );
        if let Some(cpu) = &mut self.cpu
            && now >= cpu.at
            && cpu.is_used_up(now, process())
        {
            reached.push((cpu.at, LimitCause::Cpu));
        }
        let behind = reached.into_iter().filter(|(at, _)| *at <= now);
        // Several limits may have passed before this thread ran: the earliest one ended the call.
        behind.min_by_key(|(at, _)| *at)
    }

    /// The time at which the worker was silent for too long, if it was. A worker that a busy machine keeps from
    /// running is not silent: the host checks it several times, in which it has to use a processor without a
    /// heartbeat, or not to want one. A worker that gets a small share of a processor waits in most checks: there the
    /// sum of what it used decides.
    fn silent(
        &mut self,
        now: u64,
        process: impl FnOnce() -> Option<u64>,
        can_run: impl FnOnce() -> bool,
    ) -> Option<u64> {
        if now < self.silent_at {
            return None;
        }
        let check = u64::try_from(SILENCE_LOOK.as_micros()).unwrap_or(u64::MAX);
        // Only a process that has ended has no clock.
        let Some(used) = process() else {
            return Some(self.silent_at);
        };
        if let Some(before) = self.silent_since {
            let ran = used.saturating_sub(before);
            let waits = ran < check / 2 && can_run();
            self.silent_checks = if waits { 0 } else { self.silent_checks + 1 };
            self.silent_burnt = self.silent_burnt.saturating_add(ran.min(check));
        }
        let burnt_most = self.silence.saturating_mul(u64::from(SILENCE_BURNT));
        if self.silent_checks >= SILENCE_LOOKS || self.silent_burnt >= burnt_most {
            return Some(self.silent_at);
        }
        self.silent_since = Some(used);
        self.silent_at = now.saturating_add(check);
        None
    }
}

/// Calls `read` once, and returns the same value from then on.
pub(super) fn once<T: Copy>(read: impl Fn() -> T) -> impl Fn() -> T {
    let value = OnceCell::new();
    move || *value.get_or_init(&read)
}

impl CpuBudget {
    /// Sets the earliest time at which the budget can be used up: one thread uses a second in a second at most.
    fn arm(&mut self, now: u64) {
        let step = u64::try_from(CPU_STEP_MIN.as_micros()).unwrap_or(u64::MAX);
        let left = self.budget.saturating_sub(self.used);
        self.at = match left {
            0 => now,
            left => now.saturating_add(left.max(step)),
        };
    }

    /// Whether the budget is used up. Since the last heartbeat the call has used no more than the whole process: if
    /// even that is not enough, the check is put off.
    fn is_used_up(&mut self, now: u64, process: Option<u64>) -> bool {
        let Some(process) = process else {
            return true;
        };
        let burnt = process.saturating_sub(self.process);
        let most = self.used.saturating_add(burnt);
        // The time since the last sign of life counts in full, as the worker has not said otherwise.
        if most >= self.budget {
            return true;
        }
        let step = u64::try_from(CPU_STEP_MIN.as_micros()).unwrap_or(u64::MAX);
        self.at = now.saturating_add((self.budget - most).max(step));
        false
    }
}

impl GpuBudget {
    fn at(&self) -> Option<u64> {
        let left = self.budget.saturating_sub(self.used);
        self.since.map(|since| since.saturating_add(left))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: u64 = 1000;

    fn limits(wall_ms: u64, cpu_ms: Option<u64>, gpu_ms: Option<u64>) -> CallLimits {
        CallLimits {
            wall: Duration::from_millis(wall_ms),
            cpu: cpu_ms.map(Duration::from_millis),
            gpu: gpu_ms.map(Duration::from_millis),
        }
    }

    /// Asks every half millisecond until something is to be done.
    fn next(
        watch: &mut CallWatch,
        now: &mut u64,
        mut each: impl FnMut(&mut CallWatch, u64) -> u64,
    ) -> WatchOrder {
        loop {
            let process = each(watch, *now);
            if let Some(order) = watch.order(*now, || Some(process), || false) {
                return order;
            }
            *now += MS / 2;
            assert!(*now < 1_000_000 * MS, "it ends");
        }
    }

    /// Asks whenever that is due until something is to be done.
    fn when_due(
        watch: &mut CallWatch,
        process: impl Fn(u64) -> u64,
        can_run: bool,
    ) -> (u64, WatchOrder) {
        loop {
            let now = watch.deadline();
            assert!(now < 1_000_000 * MS, "it ends");
            if let Some(order) = watch.order(now, || Some(process(now)), || can_run) {
                return (now, order);
            }
        }
    }

    #[test]
    fn a_wall_limit_is_absolute_and_death_follows_20_ms_later() {
        let mut watch = CallWatch::new(7 * MS, limits(300, None, None), u64::MAX, 0, false);
        assert_eq!(watch.deadline(), 307 * MS);
        assert_eq!(watch.order(307 * MS - 1, || None, || false), None);
        assert_eq!(
            watch.order(308 * MS, || None, || false),
            Some(WatchOrder::Abort)
        );
        assert_eq!(watch.ended(), Some((LimitCause::Wall, 307 * MS)));
        let killed = when_due(&mut watch, |_| 0, false);
        assert_eq!(killed, (328 * MS, WatchOrder::Kill(LimitCause::Wall)));
    }

    #[test]
    fn processor_time_is_counted_from_heartbeats_and_waiting_is_free() {
        let mut watch = CallWatch::new(0, limits(60_000, Some(100), None), 100 * MS, 0, false);
        let mut now = 0;
        // Works half of the time, and says so.
        let order = next(&mut watch, &mut now, |watch, now| {
            if now % (20 * MS) == 0 {
                watch.beat(now, now / 2, now / 2, true);
            }
            now / 2
        });
        assert_eq!(order, WatchOrder::Abort);
        assert_eq!(watch.ended().map(|(cause, _)| cause), Some(LimitCause::Cpu));
        assert!((200 * MS..=210 * MS).contains(&now), "{now}");
    }

    #[test]
    fn a_worker_that_denies_its_processor_time_is_not_believed() {
        let mut watch = CallWatch::new(0, limits(60_000, Some(200), None), 100 * MS, 0, false);
        let mut now = 0;
        next(&mut watch, &mut now, |watch, now| {
            if now % (20 * MS) == 0 {
                watch.beat(now, 0, now, true);
            }
            now
        });
        assert_eq!(watch.ended().map(|(cause, _)| cause), Some(LimitCause::Cpu));
    }

    #[test]
    fn a_call_beside_others_is_not_charged_with_theirs() {
        let mut watch = CallWatch::new(0, limits(1000, Some(100), None), 100 * MS, 0, false);
        let mut now = 0;
        next(&mut watch, &mut now, |watch, now| {
            if now % (20 * MS) == 0 {
                watch.beat(now, 10 * MS, now, false);
            }
            now
        });
        assert_eq!(watch.ended(), Some((LimitCause::Wall, 1000 * MS)));
    }

    #[test]
    fn silence_ends_a_call_and_a_heartbeat_puts_it_off() {
        // It sleeps, or it computes.
        for (ran, can_run) in [(0, false), (25, true)] {
            let mut watch = CallWatch::new(0, limits(60_000, None, None), 100 * MS, 0, false);
            watch.beat(90 * MS, 0, 0, true);
            let mut order =
                |now: u64, looks: u64| watch.order(now * MS, || Some(looks * ran * MS), || can_run);
            assert_eq!(order(189, 0), None);
            for looks in 0..12 {
                assert_eq!(order(190 + 25 * looks, looks), None, "{looks}");
            }
            assert_eq!(order(489, 11), None);
            assert_eq!(order(490, 12), Some(WatchOrder::Abort));
            let process = |now| 12 * ran * MS + if can_run { now - 490 * MS } else { 0 };
            let killed = when_due(&mut watch, process, can_run);
            assert_eq!(killed, (510 * MS, WatchOrder::Kill(LimitCause::Silent)));
        }
    }

    #[test]
    fn a_worker_that_has_a_processor_again_has_time_for_a_sign_of_life() {
        let mut watch = CallWatch::new(0, limits(60_000, None, None), 100 * MS, 0, false);
        // It computes in eleven looks, waits in the next, and so on, until its sign of life is read.
        let mut used = 0;
        for (nth, now) in (100..30_000).step_by(25).enumerate() {
            used += if nth % 12 == 0 { 0 } else { 25 * MS };
            if nth % 23 == 22 {
                watch.beat(now * MS - 100 * MS, 0, used, true);
            }
            let order = watch.order(now * MS, || Some(used), || true);
            assert_eq!(order, None, "{now}");
        }
    }

    /// Reading what its threads do takes the longer the more there are, and every worker waits meanwhile.
    #[test]
    fn a_worker_with_many_silent_calls_is_looked_at_once() {
        let silent = || CallWatch::new(0, limits(60_000, None, None), 100 * MS, 0, false);
        let mut calls: Vec<CallWatch> = (0..256).map(|_| silent()).collect();
        let looks = std::cell::Cell::new(0);
        for now in [100, 125, 150] {
            let used = once(|| {
                looks.set(looks.get() + 1);
                Some(0)
            });
            let wants = once(|| {
                looks.set(looks.get() + 1);
                true
            });
            for call in &mut calls {
                assert_eq!(call.order(now * MS, &used, &wants), None);
            }
        }
        // Whether it wants a processor is asked from the second look on.
        assert_eq!(looks.get(), 5);
    }

    #[test]
    fn a_worker_that_is_gone_is_silent_at_once() {
        let mut watch = CallWatch::new(0, limits(60_000, None, None), 100 * MS, 0, false);
        let order = watch.order(100 * MS, || None, || true);
        assert_eq!(order, Some(WatchOrder::Abort));
    }

    #[test]
    fn a_worker_that_gets_no_processor_is_not_silent() {
        let mut watch = CallWatch::new(0, limits(60_000, None, None), 100 * MS, 0, false);
        for now in (0..30_000).step_by(25) {
            let order = watch.order(now * MS, || Some(now * MS / 100), || true);
            assert_eq!(order, None, "{now}");
        }
        // A sign of life, and it is watched as before.
        watch.beat(30_000 * MS, 0, 3_000 * MS, true);
        let mut order = |now| watch.order(now * MS, || Some(3_000 * MS), || false);
        assert_eq!(order(30_099), None);
        for look in 0..12 {
            assert_eq!(order(30_100 + 25 * look), None, "{look}");
        }
        assert_eq!(order(30_400), Some(WatchOrder::Abort));
    }

    #[test]
    fn a_worker_with_a_tenth_of_a_processor_is_silent_in_the_end() {
        let mut watch = CallWatch::new(0, limits(60_000, None, None), 100 * MS, 0, false);
        let mut order = |now: u64| watch.order(now * MS, || Some(now * MS / 10), || true);
        let ended = (0..30_000).step_by(25).find(|now| order(*now).is_some());
        // Ten times the silence, a tenth as quickly, from the first look on.
        assert_eq!(ended, Some(100 + 10_000));
    }

    #[test]
    fn the_gpu_clock_stands_still_between_dispatches() {
        let mut watch = CallWatch::new(0, limits(60_000, None, Some(100)), u64::MAX, 0, false);
        watch.gpu(10 * MS, true);
        watch.gpu(10 * MS, true);
        watch.gpu(70 * MS, false);
        assert_eq!(watch.deadline(), 60_000 * MS);
        watch.gpu(500 * MS, true);
        assert_eq!(watch.deadline(), 540 * MS);
        assert_eq!(
            watch.order(540 * MS, || None, || false),
            Some(WatchOrder::Abort)
        );
        assert_eq!(watch.ended(), Some((LimitCause::Gpu, 540 * MS)));
    }

    #[test]
    fn the_first_limit_names_the_cause_and_giving_up_later_changes_nothing() {
        let mut watch = CallWatch::new(0, limits(100, None, Some(90)), 95 * MS, 0, true);
        assert_eq!(
            watch.order(200 * MS, || None, || false),
            Some(WatchOrder::Abort)
        );
        assert_eq!(watch.ended(), Some((LimitCause::Gpu, 90 * MS)));
        watch.give_up(201 * MS);
        let killed = when_due(&mut watch, |_| 0, false);
        assert_eq!(killed, (220 * MS, WatchOrder::Kill(LimitCause::Gpu)));
    }

    #[test]
    fn giving_up_is_due_at_once() {
        let mut watch = CallWatch::new(0, limits(1000, None, None), u64::MAX, 0, false);
        watch.give_up(5 * MS);
        assert_eq!(watch.deadline(), 0);
        assert_eq!(
            watch.order(5 * MS, || None, || false),
            Some(WatchOrder::Abort)
        );
        let killed = when_due(&mut watch, |_| 0, false);
        assert_eq!(killed, (25 * MS, WatchOrder::Kill(LimitCause::Aborted)));
    }

    #[test]
    fn a_worker_that_gets_no_processor_has_time_to_answer_an_abort() {
        let mut watch = CallWatch::new(0, limits(1000, None, None), u64::MAX, 0, false);
        watch.give_up(0);
        assert_eq!(watch.order(0, || Some(0), || true), Some(WatchOrder::Abort));
        // A twentieth of a processor, of which it needs 20 ms.
        let killed = when_due(&mut watch, |now| now / 20, true);
        assert_eq!(killed, (400 * MS, WatchOrder::Kill(LimitCause::Aborted)));
        let overrun = watch.overrun().expect("it was aborted");
        assert_eq!((overrun.reached_at, overrun.waited), (0, 380 * MS));
    }

    #[test]
    fn a_farewell_ends_by_the_limit_of_the_drain() {
        let farewell = CallWatch::new(0, limits(1, None, None), u64::MAX, 0, false).draining();
        assert_eq!(farewell.wall.1, LimitCause::Drain);
    }
}
