//! Bytes that the peer of a connection has yet to take, on all of its streams: of answers and events, or of
//! requests.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many there are. Requests of the peer are not begun while too many bytes of answers wait: what they would
/// be answered with had to be kept, too.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    bytes: AtomicUsize,
    /// There are fewer.
    room: Notify,
}

impl Unread {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Adds `bytes` where `may` holds for those that wait already, in one step: answers that are ready at the
    /// same time on several streams do not all find room for themselves. Returns how many wait where it does
    /// not hold.
    pub(crate) fn claim(&self, bytes: usize, may: impl Fn(usize) -> bool) -> Result<(), usize> {
        let add = |waiting: usize| may(waiting).then(|| waiting.saturating_add(bytes));
        let added = self
            .bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        added.map(drop)
    }

    pub(crate) fn taken(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.room.notify_waiters();
        }
    }

    /// Waits until there are fewer than `most`.
    pub(crate) async fn wait_below(&self, most: usize) {
        loop {
            let fewer = self.room.notified();
            tokio::pin!(fewer);
            fewer.as_mut().enable();
            if self.bytes() < most {
                return;
            }
            fewer.await;
        }
    }
}
