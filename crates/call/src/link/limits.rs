//! What the peer of a connection may have open, and for how long it may be unknown.

use alknet_core::CloseCode;

use super::Link;
use crate::limits::PeerLimits;
use crate::sync::lock;

impl Link {
    /// Waits until the peer has taken so much of what it asked for that it may ask for more.
    pub(crate) async fn wait_until_read(&self) {
        self.unread.wait_below(self.limits().queued_bytes).await;
    }

    /// Whether the peer has taken so much of what it asked for that events may follow.
    pub(crate) fn is_read(&self) -> bool {
        self.unread.bytes() < self.limits().queued_bytes
    }

    /// Whether an answer of `len` bytes may be kept beside `waiting` bytes that the peer has yet to take.
    /// The requests that were begun before there were too many may still fill as much again, or one frame
    /// more where frames are longer; one answer alone always may.
    pub(crate) fn may_leave_unread(&self, waiting: usize, len: usize) -> bool {
        let limits = self.limits();
        let more = limits.queued_bytes.max(limits.frame_bytes);
        waiting == 0 || waiting.saturating_add(len) <= limits.queued_bytes.saturating_add(more)
    }

    /// What the peer may have open: it is known, or it is not.
    pub(crate) fn limits(&self) -> PeerLimits {
        if self.is_known() {
            self.dispatcher.limits
        } else {
            PeerLimits {
                // Whoever was dialled was chosen: only its requests are a stranger's.
                nesting: self.nesting(),
                ..PeerLimits::UNAUTHENTICATED
            }
        }
    }

    /// Once somebody authenticated, the connection has an identity, too.
    fn is_known(&self) -> bool {
        self.connection.is_identified()
    }

    fn nesting(&self) -> usize {
        if self.connection.info().dialled {
            self.dispatcher.limits.nesting
        } else {
            PeerLimits::UNAUTHENTICATED.nesting
        }
    }

    /// Bytes of the longest frame taken from the peer.
    pub(crate) fn frame_bytes(&self) -> usize {
        if self.connection.info().dialled {
            self.dispatcher.limits.frame_bytes
        } else {
            self.limits().frame_bytes
        }
    }

    pub(crate) fn is_stranger_on_single(&self) -> bool {
        !self.connection.is_multi() && !self.connection.info().dialled && !self.is_known()
    }

    /// Resolves once an unknown peer has asked nothing for as long as it may. The carriage itself only
    /// notices a peer that is silent, and keeping a QUIC connection open takes a few bytes a minute. Where
    /// there is one stream only, whoever reads that stream sees to it.
    pub(super) async fn unknown_for_too_long(&self) {
        if !self.connection.is_multi() || self.connection.info().dialled || self.is_guest() {
            return std::future::pending().await;
        }
        let patience = self.dispatcher.patience.stranger_idle;
        while !self.is_known() {
            let left = if self.inbound.is_empty() {
                patience.saturating_sub(self.connection.traffic().quiet())
            } else {
                patience
            };
            if left.is_zero() {
                lock(&self.failure).get_or_insert((CloseCode::Timeout, "idle"));
                return;
            }
            tokio::time::sleep(left).await;
        }
        std::future::pending().await
    }
}
