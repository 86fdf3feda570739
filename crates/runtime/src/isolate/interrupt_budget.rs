//! The state of a running isolate that other threads see and set, and the budget of its calls.
//!
//! The engine asks after every 10 000 poll points whether to continue. The answer is computed here
//! from a counter (fuel, which is the same on every machine), the thread's CPU clock, and a flag
//! that another thread sets. Once the answer was "no", it stays "no", and the isolate is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use nix::time::{ClockId, clock_gettime};

use crate::error::RuntimeCode;

/// The reasons to stop, with their values in the atomic.
const STOPS: [(u8, RuntimeCode); 5] = [
    (1, RuntimeCode::Abort),
    (2, RuntimeCode::Timeout),
    (3, RuntimeCode::Fuel),
    (4, RuntimeCode::Memory),
    (5, RuntimeCode::Limit),
];

/// The state that the isolate's thread and its watchers share.
#[derive(Debug, Default)]
pub struct InterruptBudget {
    /// 0 means to continue; another value is a row of [`STOPS`].
    stop: AtomicU8,
    ticks: AtomicU64,
    ticks_max: AtomicU64,
    /// The CPU time inside the engine and its limit, in microseconds.
    cpu_us: AtomicU64,
    cpu_us_max: AtomicU64,
    /// The thread's CPU clock when the engine was entered; `u64::MAX` outside.
    entered_us: AtomicU64,
    external: AtomicU64,
    external_peak: AtomicU64,
    waker: AtomicWaker,
    /// The isolate that runs this one as a test case.
    parent: Option<Arc<Self>>,
}

impl InterruptBudget {
    pub(crate) fn new(parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            entered_us: AtomicU64::new(u64::MAX),
            parent,
            ..Self::default()
        })
    }

    /// Ends the isolate: at the next poll point if it runs, or at once if it waits.
    pub fn stop(&self, code: RuntimeCode) {
        let row = STOPS.iter().find(|(_, known)| *known == code);
        // A code without a row ends it like an abort.
        let value = row.map_or(1, |(value, _)| *value);
        // The first reason stays: later ones do not replace it.
        let _ = self
            .stop
            .compare_exchange(0, value, Ordering::AcqRel, Ordering::Acquire);
        // An isolate that waits must notice the stop.
        self.waker.wake();
    }

    /// The reason why the isolate must end, if there is one.
    #[must_use]
    pub fn stopped(&self) -> Option<RuntimeCode> {
        let value = self.stop.load(Ordering::Acquire);
        let own = STOPS.iter().find(|(known, _)| *known == value);
        own.map(|(_, code)| *code)
            .or_else(|| self.parent.as_ref().and_then(|parent| parent.stopped()))
    }

    /// The ticks of fuel since the isolate was made.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// The CPU time inside the engine since the isolate was made.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        Duration::from_micros(self.cpu_us.load(Ordering::Relaxed))
    }

    /// The bytes outside the heap that scripts hold now, and the most so far.
    #[must_use]
    pub fn external(&self) -> (u64, u64) {
        let now = self.external.load(Ordering::Relaxed);
        (now, self.external_peak.load(Ordering::Relaxed))
    }

    pub(crate) fn waker(&self) -> &AtomicWaker {
        &self.waker
    }

    /// Adds a call's allowance. Overlapping calls may use what the others leave.
    pub(crate) fn allow(&self, ticks: u64, cpu: Duration) {
        self.ticks_max.fetch_add(ticks, Ordering::Relaxed);
        let micros = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
        self.cpu_us_max.fetch_add(micros, Ordering::Relaxed);
    }

    /// Sets the allowance of a call that runs alone. Timers and reactions that outlive the call may
    /// use the rest.
    pub(crate) fn renew(&self, ticks: u64, cpu: Duration) {
        self.ticks_max.store(self.ticks(), Ordering::Relaxed);
        let used = self.cpu_us.load(Ordering::Relaxed);
        self.cpu_us_max.store(used, Ordering::Relaxed);
        self.allow(ticks, cpu);
    }

    /// Records that the engine is entered: from here on the thread's time counts as the script's.
    pub(crate) fn enter(&self) {
        self.entered_us.store(thread_us(), Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        let entered = self.entered_us.swap(u64::MAX, Ordering::Relaxed);
        let spent = thread_us().saturating_sub(entered);
        self.cpu_us.fetch_add(spent, Ordering::Relaxed);
    }

    /// Whether the call used up its ticks.
    pub(crate) fn is_out_of_fuel(&self) -> bool {
        self.ticks.load(Ordering::Relaxed) > self.ticks_max.load(Ordering::Relaxed)
    }

    /// Answers the engine's question. `true` ends the script.
    pub(crate) fn interrupt(&self) -> bool {
        let ticks = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        if ticks > self.ticks_max.load(Ordering::Relaxed) {
            self.stop(RuntimeCode::Fuel);
        }
        self.over_time();
        self.stopped().is_some()
    }

    /// Checks only the CPU clock, for work of the runtime between two entries into the engine.
    pub(crate) fn over_time(&self) -> bool {
        let entered = self.entered_us.load(Ordering::Relaxed);
        let running = thread_us().saturating_sub(entered);
        let spent = self.cpu_us.load(Ordering::Relaxed).saturating_add(running);
        let over = spent > self.cpu_us_max.load(Ordering::Relaxed);
        if over {
            self.stop(RuntimeCode::Timeout);
        }
        over
    }

    /// Reserves `bytes` outside the heap, if they fit into `max`.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        bytes: usize,
        max: usize,
    ) -> Option<ExternalReservation> {
        let bytes = bytes as u64;
        let mut held = self.external.load(Ordering::Relaxed);
        loop {
            let next = held.checked_add(bytes).filter(|next| *next <= max as u64)?;
            match self
                .external
                .compare_exchange(held, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => {
                    self.external_peak.fetch_max(next, Ordering::Relaxed);
                    return Some(ExternalReservation {
                        budget: Arc::clone(self),
                        bytes,
                    });
                }
                Err(now) => held = now,
            }
        }
    }
}

/// Bytes that count against the session's external limit until this is dropped.
#[derive(Debug)]
pub(crate) struct ExternalReservation {
    budget: Arc<InterruptBudget>,
    bytes: u64,
}

impl Drop for ExternalReservation {
    fn drop(&mut self) {
        self.budget
            .external
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn thread_us() -> u64 {
    // The clock exists on every Linux; without it, fuel and the host's own timers would end the
    // script.
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuel_ends_after_exactly_what_was_allowed() {
        let budget = InterruptBudget::new(None);
        budget.allow(3, Duration::from_secs(60));
        budget.enter();
        assert_eq!(
            [(); 4].map(|()| budget.interrupt()),
            [false, false, false, true]
        );
        assert_eq!(budget.stopped(), Some(RuntimeCode::Fuel));
    }

    #[test]
    fn the_first_reason_stays() {
        let budget = InterruptBudget::new(None);
        budget.stop(RuntimeCode::Timeout);
        budget.stop(RuntimeCode::Abort);
        assert_eq!(budget.stopped(), Some(RuntimeCode::Timeout));
    }

    #[test]
    fn a_test_case_ends_with_the_session_that_runs_it() {
        let parent = InterruptBudget::new(None);
        let child = InterruptBudget::new(Some(Arc::clone(&parent)));
        parent.stop(RuntimeCode::Abort);
        assert_eq!(child.stopped(), Some(RuntimeCode::Abort));
    }

    #[test]
    fn external_bytes_are_given_back_and_never_pass_the_limit() {
        let budget = InterruptBudget::new(None);
        let first = budget.reserve(60, 100).expect("60 of 100");
        assert!(budget.reserve(41, 100).is_none());
        let second = budget.reserve(40, 100).expect("all of it");
        drop(first);
        drop(second);
        assert_eq!(budget.external(), (0, 100));
        assert!(budget.reserve(usize::MAX, 100).is_none());
    }
}
