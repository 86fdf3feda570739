//! A call of the host's while it runs in the worker.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::sys::ThreadClock;

/// One call; clones are the same. What an interrupt handler looks at.
#[derive(Clone, Debug)]
pub struct GuestCall(Arc<GuestCallState>);

#[derive(Debug)]
struct GuestCallState {
    sid: u64,
    id: u64,
    aborted: AtomicBool,
    ticks: AtomicU64,
    mem: AtomicU64,
    /// Processor time of the threads that have left the call.
    spent_us: AtomicU64,
    /// The thread that is in it, and what its clock showed when it came.
    here: Mutex<Option<(ThreadClock, u64)>>,
}

impl GuestCall {
    pub(super) fn new(sid: u64, id: u64) -> Self {
        Self(Arc::new(GuestCallState {
            sid,
            id,
            aborted: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            mem: AtomicU64::new(0),
            spent_us: AtomicU64::new(0),
            here: Mutex::new(None),
        }))
    }

    /// The session it belongs to.
    #[must_use]
    pub fn sid(&self) -> u64 {
        self.0.sid
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Whether it is to end now.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        // Relaxed: nothing else is read by this flag.
        self.0.aborted.load(Ordering::Relaxed)
    }

    /// Tells the heartbeats how far it is: fuel so far, and bytes it has now.
    pub fn progress(&self, ticks: u64, mem: u64) {
        self.0.ticks.store(ticks, Ordering::Relaxed);
        self.0.mem.store(mem, Ordering::Relaxed);
    }

    /// From now on the calling thread's processor time is the call's, until what this returns is
    /// dropped. One thread at a time; a call may come back on another.
    #[must_use]
    pub fn on_this_thread(&self) -> ThreadCallGuard {
        let clock = ThreadClock::of_this_thread();
        *lock(&self.0.here) = Some((clock, clock.us()));
        ThreadCallGuard(self.clone())
    }

    /// Its processor time so far, microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> u64 {
        let now = match *lock(&self.0.here) {
            Some((clock, since)) => clock.us().saturating_sub(since),
            None => 0,
        };
        self.0.spent_us.load(Ordering::Relaxed).saturating_add(now)
    }

    pub(super) fn ticks(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }

    pub(super) fn mem(&self) -> u64 {
        self.0.mem.load(Ordering::Relaxed)
    }

    pub(super) fn abort(&self) {
        self.0.aborted.store(true, Ordering::Relaxed);
    }
}

/// A thread is in a call.
#[derive(Debug)]
pub struct ThreadCallGuard(GuestCall);

impl Drop for ThreadCallGuard {
    fn drop(&mut self) {
        let mut here = lock(&self.0.0.here);
        if let Some((clock, since)) = here.take() {
            let spent = clock.us().saturating_sub(since);
            self.0.0.spent_us.fetch_add(spent, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_adds_up_over_threads() {
        let call = GuestCall::new(1, 2);
        assert_eq!(call.cpu_us(), 0);
        let work = |call: &GuestCall| {
            let from = call.cpu_us();
            let _here = call.on_this_thread();
            while call.cpu_us() < from + 2000 {
                std::hint::spin_loop();
            }
        };
        work(&call);
        let other = call.clone();
        std::thread::spawn(move || work(&other))
            .join()
            .expect("it ends");
        assert!(call.cpu_us() >= 4000);
        // No thread is in the call: its time stands still.
        assert_eq!(call.cpu_us(), call.cpu_us());
    }
}
