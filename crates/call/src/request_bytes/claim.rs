//! Bytes of one request, or of one incomplete message.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{RequestBytes, Requester};
use crate::error::CallError;
use crate::sync::lock;

/// Bytes of a request that count while this lives.
#[derive(Debug)]
pub(crate) struct RequestClaim {
    pub(super) all: Arc<RequestBytes>,
    pub(super) requester: Requester,
    pub(super) bytes: usize,
    /// The same number, if it is a subscription's.
    pub(super) subscribed: usize,
}

impl RequestClaim {
    /// A claim that counts nothing yet.
    pub(crate) fn empty(all: &Arc<RequestBytes>, requester: &Requester) -> Self {
        Self {
            all: Arc::clone(all),
            requester: requester.clone(),
            bytes: 0,
            subscribed: 0,
        }
    }

    /// Counts `bytes` for this requester instead of those that it counts, in one step: no other claim takes the
    /// released room in between.
    ///
    /// # Errors
    /// `OVERLOADED` where there is no room for them. The claim then counts as before.
    pub(crate) fn resize(&mut self, requester: &Requester, bytes: usize) -> Result<(), CallError> {
        let mut counted = lock(&self.all.counted);
        // The requester's own bytes do not count against it here.
        counted.take(&self.requester, self.bytes, self.subscribed);
        let room = self.all.bounds.check_capacity(&counted, requester, bytes);
        if room.is_ok() {
            self.requester = requester.clone();
            self.bytes = bytes;
            self.subscribed = 0;
        }
        if self.bytes > 0 {
            counted.add(&self.requester, self.bytes, self.subscribed);
        }
        self.all.node.store(counted.node, Ordering::Release);
        room.map_err(|(what, most)| CallError::overloaded(what, most))
    }
}

impl Drop for RequestClaim {
    fn drop(&mut self) {
        let mut counted = lock(&self.all.counted);
        counted.take(&self.requester, self.bytes, self.subscribed);
        self.all.node.store(counted.node, Ordering::Release);
        drop(counted);
        // After the lock is free: the tasks that wake take it.
        self.all.given_back.notify_waiters();
    }
}
