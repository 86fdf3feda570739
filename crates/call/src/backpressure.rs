//! Bytes that the peer of a connection has not taken yet, on all of its streams: of responses and events, or of
//! requests.

mod share;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::limits::UNREAD_BYTES_FREE;
use crate::request_bytes::GrowLimit;
pub(crate) use share::{RequesterSource, UnreadQuota};

/// The number of unread bytes. While too many bytes of responses wait, no request of the peer begins, because its
/// response would have to wait as well.
#[derive(Debug, Default)]
pub(crate) struct UnreadBytes {
    bytes: AtomicUsize,
    /// Notified when the number falls.
    freed: Notify,
    /// The quota beyond the connection.
    share: Option<UnreadQuota>,
    /// The bytes of all connections that the same one carries, including these.
    carrier: Option<Arc<Self>>,
}

/// Why further bytes may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnreadLimitError {
    /// This many wait on the connection, or on the one that carries it.
    Here(usize),
    /// The quota of the requester, or of all requesters, is used up.
    Share,
}

impl UnreadBytes {
    /// Counts for a requester, and together with everything that the carrier carries.
    pub(crate) fn shared(share: UnreadQuota, carrier: Option<Arc<Self>>) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            freed: Notify::new(),
            share: Some(share),
            carrier,
        }
    }

    /// Number of bytes that wait on the connection.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// The counter to which the limit of a connection applies: all that one connection carries counts as one.
    fn bounded(&self) -> &Self {
        self.carrier.as_deref().unwrap_or(self)
    }

    /// Whether fewer than `most` bytes wait, with all that the same connection carries.
    pub(crate) fn is_below(&self, most: usize) -> bool {
        self.bounded().bytes() < most
    }

    /// Adds bytes that exist already.
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

    /// Adds `bytes` if `may` holds for those that wait already, in one step: responses that become ready at the same
    /// time on several streams do not all take the same capacity. They have to [fit](GrowLimit) into the requester's
    /// quota as well.
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
        // The carrier's counter took the bytes above; this one feeds the requester's quota.
        if self.carrier.is_some() {
            self.bytes.fetch_add(bytes, Ordering::SeqCst);
        }
        let has_capacity = self
            .share
            .as_ref()
            .is_none_or(|share| share.cover(&self.bytes, fit));
        if !has_capacity {
            // The bytes were added before the quota was asked: other claims saw them meanwhile and waited.
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
        self.freed.notify_waiters();
    }

    /// Waits until fewer than `most` bytes wait, with all that the same connection carries.
    pub(crate) async fn wait_below(&self, most: usize) {
        self.bounded().wait_own_below(most).await;
    }

    async fn wait_own_below(&self, most: usize) {
        if self.bytes() < most {
            return;
        }
        loop {
            let fewer = self.freed.notified();
            tokio::pin!(fewer);
            // The waiter is enabled before the number is read, so that no change in between is missed.
            fewer.as_mut().enable();
            if self.bytes() < most {
                return;
            }
            fewer.await;
        }
    }

    /// Whether more may be added: so little waits that it does not count, or the requester's quota has room.
    pub(crate) fn may_grow(&self) -> bool {
        self.bytes() < UNREAD_BYTES_FREE || self.has_share()
    }

    /// Whether the requester's quota has room.
    pub(crate) fn has_share(&self) -> bool {
        self.share.as_ref().is_none_or(UnreadQuota::has_capacity)
    }

    /// Whether the requester has used its own whole quota, whatever others have.
    pub(crate) fn is_spent(&self) -> bool {
        self.share.as_ref().is_some_and(UnreadQuota::is_spent)
    }

    /// Waits until fewer than `most` bytes wait and more may be added.
    pub(crate) async fn wait_for_capacity(&self, most: usize) {
        loop {
            self.wait_below(most).await;
            if self.may_grow() {
                return;
            }
            tokio::select! {
                // So few bytes need no quota.
                () = self.wait_own_below(UNREAD_BYTES_FREE) => {}
                () = self.wait_share() => {}
            }
        }
    }

    /// Waits until the requester's quota has room.
    pub(crate) async fn wait_share(&self) {
        if let Some(share) = &self.share {
            share.wait_for_capacity().await;
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
