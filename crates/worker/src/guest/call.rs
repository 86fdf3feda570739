//! A call of the host while it runs in the worker.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::sys::ThreadClock;

/// One call, which an interrupt handler polls. Clones share it.
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
    /// The thread that works for the call, and the value of its clock when it began.
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

    /// The session of the call.
    #[must_use]
    pub fn sid(&self) -> u64 {
        self.0.sid
    }

    /// The number of the call.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Whether the call has to end now.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        // Relaxed ordering is enough, because the flag publishes no other memory.
        self.0.aborted.load(Ordering::Relaxed)
    }

    /// Reports the progress that heartbeats carry: fuel so far, and bytes in use.
    pub fn progress(&self, ticks: u64, mem: u64) {
        self.0.ticks.store(ticks, Ordering::Relaxed);
        self.0.mem.store(mem, Ordering::Relaxed);
    }

    /// From now on the calling thread's processor time counts for the call, until the returned guard is dropped. One
    /// thread at a time; the call may go on in another one later.
    #[must_use]
    pub fn on_this_thread(&self) -> ThreadCallGuard {
        let clock = ThreadClock::of_this_thread();
        *lock(&self.0.here) = Some((clock, clock.us()));
        ThreadCallGuard(self.clone())
    }

    /// Processor time of the call so far, in microseconds.
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

/// Marks that a thread works for a call.
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
