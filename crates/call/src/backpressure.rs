//! Bytes that the peer of a connection has yet to take, on all of its streams: of answers and events, or of
//! requests.

mod share;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::limits::UNREAD_BYTES_FREE;
use crate::request_bytes::GrowLimit;
pub(crate) use share::{RequesterSource, UnreadQuota};

/// How many there are. Requests of the peer are not begun while too many bytes of answers wait: what they would
/// be answered with had to be kept, too.
#[derive(Debug, Default)]
pub(crate) struct UnreadBytes {
    bytes: AtomicUsize,
    /// There are fewer.
    room: Notify,
    /// What it counts for beyond the connection.
    share: Option<UnreadQuota>,
    /// Those of everything that is carried in the same connection, these included.
    carrier: Option<Arc<Self>>,
}

/// Why bytes cannot wait, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnreadLimitError {
    /// So many wait on the connection, or in what carries it.
    Here(usize),
    /// Those of its requester, or of all, are as many as may be.
    Share,
}

impl UnreadBytes {
    /// Counted for a requester, and with what else its carrier carries.
    pub(crate) fn shared(share: UnreadQuota, carrier: Option<Arc<Self>>) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            room: Notify::new(),
            share: Some(share),
            carrier,
        }
    }

    /// How many wait on the connection.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// What the bound of a connection holds for: all that one carries is one.
    fn bounded(&self) -> &Self {
        self.carrier.as_deref().unwrap_or(self)
    }

    /// Whether fewer wait than `most`, with all that the same connection carries.
    pub(crate) fn is_below(&self, most: usize) -> bool {
        self.bounded().bytes() < most
    }

    /// Adds bytes that are there already.
    pub(crate) fn add(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(carrier) = &self.carrier {
            carrier.add(bytes);
        }
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        if let Some(share) = &self.share {
            share.cover(&self.bytes, GrowLimit::Anyway);
        }
    }

    /// Adds `bytes` where `may` holds for those that wait already, in one step: answers that are ready at the
    /// same time on several streams do not all find room for themselves. They have to [fit](GrowLimit) into the requester's
    /// share as well.
    pub(crate) fn claim(
        &self,
        bytes: usize,
        fit: GrowLimit,
        may: impl Fn(usize) -> bool,
    ) -> Result<(), UnreadLimitError> {
        let add = |waiting: usize| may(waiting).then(|| waiting.saturating_add(bytes));
        let added = self
            .bounded()
            .bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        added.map_err(UnreadLimitError::Here)?;
        if self.carrier.is_some() {
            self.bytes.fetch_add(bytes, Ordering::SeqCst);
        }
        let fits = self
            .share
            .as_ref()
            .is_none_or(|share| share.cover(&self.bytes, fit));
        if !fits {
            self.taken(bytes);
            return Err(UnreadLimitError::Share);
        }
        Ok(())
    }

    pub(crate) fn taken(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        if let Some(share) = &self.share {
            share.release(&self.bytes);
        }
        if let Some(carrier) = &self.carrier {
            carrier.taken(bytes);
        }
        self.room.notify_waiters();
    }

    /// Waits until there are fewer than `most`, with all that the same connection carries.
    pub(crate) async fn wait_below(&self, most: usize) {
        self.bounded().wait_own_below(most).await;
    }

    async fn wait_own_below(&self, most: usize) {
        if self.bytes() < most {
            return;
        }
        loop {
            let fewer = self.room.notified();
            tokio::pin!(fewer);
            // Before the bytes are looked at: what is taken in between is not missed.
            fewer.as_mut().enable();
            if self.bytes() < most {
                return;
            }
            fewer.await;
        }
    }

    /// Whether more may be added: so little waits that it is not counted, or there is room for more of its
    /// requester's.
    pub(crate) fn may_grow(&self) -> bool {
        self.bytes() < UNREAD_BYTES_FREE || self.has_share()
    }

    /// Whether there is room for more of its requester's.
    pub(crate) fn has_share(&self) -> bool {
        self.share.as_ref().is_none_or(UnreadQuota::has_room)
    }

    /// Whether its requester has all that one may have, whatever others have.
    pub(crate) fn is_spent(&self) -> bool {
        self.share.as_ref().is_some_and(UnreadQuota::is_spent)
    }

    /// Waits until fewer than `most` wait, and more may be added.
    pub(crate) async fn wait_room(&self, most: usize) {
        loop {
            self.wait_below(most).await;
            if self.may_grow() {
                return;
            }
            tokio::select! {
                () = self.wait_own_below(UNREAD_BYTES_FREE) => {}
                () = self.wait_share() => {}
            }
        }
    }

    /// Waits until there is room for more of its requester's.
    pub(crate) async fn wait_share(&self) {
        if let Some(share) = &self.share {
            share.wait_room().await;
        }
    }
}

impl Drop for UnreadBytes {
    fn drop(&mut self) {
        if let Some(carrier) = &self.carrier {
            carrier.taken(*self.bytes.get_mut());
        }
    }
}

#[cfg(test)]
mod tests;
