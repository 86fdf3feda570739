//! The time of a request on the GPU.

use std::time::{Duration, Instant};

use alknet_worker::{FromWorkerMessage, Guest, GuestCall};

/// The host's clock of a request's time on the GPU; the worker starts and stops it.
#[derive(Clone, Copy)]
pub(super) struct GpuClock<'a> {
    guest: &'a Guest,
    call: &'a GuestCall,
}

impl<'a> GpuClock<'a> {
    pub(super) const fn for_call(guest: &'a Guest, call: &'a GuestCall) -> Self {
        Self { guest, call }
    }

    /// Runs the clock during `work`.
    pub(super) fn runs<T>(self, work: impl FnOnce() -> T) -> T {
        self.tell(true);
        let done = work();
        self.tell(false);
        done
    }

    /// Stops the clock during `work` and adds its time to `took`: a kernel of this program is compiled once in a
    /// worker's life, at no request of the caller, and takes seconds on slow processors.
    pub(super) fn stands<T>(self, took: &mut Duration, work: impl FnOnce() -> T) -> T {
        self.tell(false);
        let begun = Instant::now();
        let done = work();
        *took += begun.elapsed();
        self.tell(true);
        done
    }

    fn tell(self, busy: bool) {
        let (sid, id) = (self.call.sid(), self.call.id());
        // A host that is gone shows in the next read.
        let _ = (self.guest).send(&FromWorkerMessage::Gpu { sid, id, busy }, Vec::new());
    }
}
