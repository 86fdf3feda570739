//! What of a request is time on the GPU.

use std::time::{Duration, Instant};

use alknet_worker::{FromWorkerMessage, Guest, GuestCall};

/// The host's clock of a request's time on the GPU, as a worker starts and stops it.
#[derive(Clone, Copy)]
pub(super) struct GpuClock<'a> {
    guest: &'a Guest,
    call: &'a GuestCall,
}

impl<'a> GpuClock<'a> {
    pub(super) const fn for_call(guest: &'a Guest, call: &'a GuestCall) -> Self {
        Self { guest, call }
    }

    /// It runs while this is done.
    pub(super) fn runs<T>(self, work: impl FnOnce() -> T) -> T {
        self.tell(true);
        let done = work();
        self.tell(false);
        done
    }

    /// It stands while this is done, for which `took` is the account: a kernel of ours is compiled once
    /// in a worker's life, which is nothing that the caller asked for, and takes seconds where
    /// processors are slow.
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
        // A host that is gone is noticed by reading.
        let _ = (self.guest).send(&FromWorkerMessage::Gpu { sid, id, busy }, Vec::new());
    }
}
