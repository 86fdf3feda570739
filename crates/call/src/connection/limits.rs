//! What the peer of a connection may have open, and how long it may stay unknown.

use std::sync::Arc;

use alknet_core::CloseCode;
use tokio::time::Instant;

use super::CallConnectionState;
use crate::backpressure::{UnreadBytes, UnreadLimitError};
use crate::error::{CallError, ErrorCode};
use crate::limits::{OVERLOAD_RETRY_MS, PeerLimits};
use crate::request_bytes::GrowLimit;
use crate::sync::lock;

/// Why a connection ends whose peer did not authenticate in time.
pub(crate) const UNKNOWN: &str = "not authenticated in time";

/// Counts bytes as waiting while it lives.
#[derive(Debug)]
pub(crate) struct UnreadReservation {
    waiting: Arc<UnreadBytes>,
    bytes: usize,
}

impl UnreadReservation {
    /// Adds `bytes` to those that wait.
    pub(crate) fn new(waiting: &Arc<UnreadBytes>, bytes: usize) -> Self {
        waiting.add(bytes);
        Self::claimed(waiting, bytes)
    }

    /// Takes over bytes that count already.
    pub(crate) fn claimed(waiting: &Arc<UnreadBytes>, bytes: usize) -> Self {
        Self {
            waiting: Arc::clone(waiting),
            bytes,
        }
    }

    /// How many they are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether they count in `waiting`.
    pub(crate) fn is_of(&self, waiting: &Arc<UnreadBytes>) -> bool {
        Arc::ptr_eq(&self.waiting, waiting)
    }

    /// Counts `bytes` instead. Only the growth needs room, and no other claim takes room in between. `false` where
    /// there is too little room: then the count stays as before.
    pub(crate) fn resize(&mut self, bytes: usize, fit: GrowLimit) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && self.waiting.claim(more, fit, |_| true).is_err() {
            return false;
        }
        self.waiting.taken(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }
}

impl Drop for UnreadReservation {
    fn drop(&mut self) {
        self.waiting.taken(self.bytes);
    }
}

impl CallConnectionState {
    /// Waits until the peer has taken enough answers that this side reads its next request. Where its requester has
    /// no room left, a peer that reads may still send requests, and gets short answers.
    pub(crate) async fn wait_until_read(&self) {
        self.unread
            .wait_for_capacity(self.limits().queued_bytes)
            .await;
    }

    /// Whether this node may read further events for the peer before it takes some.
    pub(crate) fn may_keep(&self) -> bool {
        self.ahead.is_below(self.limits().queued_bytes) && self.ahead.may_grow()
    }

    /// Waits until [`may_keep`](Self::may_keep) holds.
    pub(crate) async fn wait_keep(&self) {
        self.ahead
            .wait_for_capacity(self.limits().queued_bytes)
            .await;
    }

    /// Whether the peer has taken enough answers that events may follow.
    pub(crate) fn is_read(&self) -> bool {
        self.unread.is_below(self.limits().queued_bytes) && self.unread.may_grow()
    }

    /// Counts `len` bytes as bytes that the peer has yet to take, unless too many wait. An event may follow while
    /// [`is_read`](Self::is_read) holds. Requests that began before the limit was reached may still fill as much
    /// again with their answers, or one frame more where frames are longer. One answer alone always may. The limit of
    /// its requester on all connections bounds both.
    pub(crate) fn claim_unread(&self, event: bool, len: usize) -> Result<(), UnreadLimitError> {
        let limits = self.limits();
        let more = limits.queued_bytes.max(limits.frame_bytes);
        let most = limits.queued_bytes.saturating_add(more);
        let fit = if event {
            GrowLimit::Begins
        } else {
            GrowLimit::Wholly
        };
        // One lock for the check and the count: two answers cannot both take the last room.
        self.unread.claim(len, fit, |waiting| {
            waiting == 0
                || if event {
                    waiting < limits.queued_bytes
                } else {
                    waiting.saturating_add(len) <= most
                }
        })
    }

    /// Counts a request of `len` bytes that this node passes on as one that the peer has yet to take. The count lasts
    /// until the guard is dropped: the queue counts the request from then on. Refuses where too many bytes wait,
    /// because the requester may be in league with a peer that reads nothing. Requests of this node's own are never
    /// refused.
    pub(crate) fn claim_unsent(&self, len: usize) -> Result<UnreadReservation, CallError> {
        let most = self.dispatcher.limits.queued_bytes;
        let may = |waiting: usize| waiting == 0 || waiting.saturating_add(len) <= most;
        let claimed = self.unsent.claim(len, GrowLimit::Wholly, may);
        claimed.map_err(|_| {
            let waiting = self.unsent.bytes();
            let message = format!("{waiting} bytes of requests wait to be read by the peer");
            let error = CallError::new(ErrorCode::Overloaded, message);
            error.with_retry_after_ms(OVERLOAD_RETRY_MS)
        })?;
        Ok(UnreadReservation::claimed(&self.unsent, len))
    }

    /// What the peer may have open, as a known or an unknown peer.
    pub(crate) fn limits(&self) -> PeerLimits {
        if self.is_known() {
            self.dispatcher.limits
        } else {
            PeerLimits {
                // This side chose the server that it dialled: only the server's requests have the limits of an
                // unknown peer.
                nesting: self.nesting(),
                ..PeerLimits::UNAUTHENTICATED
            }
        }
    }

    /// Whether the peer is known. Authenticating gives the connection an identity, too.
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

    /// Bytes of the longest frame that this side takes from the peer.
    pub(crate) fn frame_bytes(&self) -> usize {
        if self.connection.info().dialled {
            self.dispatcher.limits.frame_bytes
        } else {
            self.limits().frame_bytes
        }
    }

    pub(crate) fn is_unknown_on_single(&self) -> bool {
        !self.connection.is_multi() && !self.connection.info().dialled && !self.is_known()
    }

    /// Notes that an unknown peer sent a request, or that one of its requests ended.
    pub(crate) fn note_request(&self) {
        if !self.is_known() {
            *lock(&self.last_request) = Instant::now();
        }
    }

    /// Whether the peer proved its identity, even for one request only: then it does not count as an unknown peer.
    pub(crate) fn has_proved(&self) -> bool {
        self.is_known() || self.connection.is_authenticated()
    }

    /// Resolves once an unknown peer has sent no request for as long as it may, or has been connected for as long as
    /// an unknown peer may, whatever it sends. The carriage itself only notices a silent peer, and keeping a
    /// connection open takes a few bytes a minute: a PING on QUIC, a frame that is no request on TCP, a subscription
    /// that every peer may have, or a small request.
    pub(super) async fn unknown_for_too_long(&self) {
        // This side chose the server that it dialled; a guest's time limits are those of its own login.
        if self.connection.info().dialled || self.is_guest() {
            return std::future::pending().await;
        }
        let patience = self.dispatcher.patience;
        let began = Instant::now();
        while !self.is_known() {
            // Bytes are no request: a peer that opens a stream and resets it sends a few of them.
            let idle = if self.inbound.is_empty() {
                let last = *lock(&self.last_request);
                patience.unknown_idle.saturating_sub(last.elapsed())
            } else {
                // The peer may be silent while one of its requests runs.
                patience.unknown_idle
            };
            let left = if self.has_proved() {
                // A peer that proved its identity for one request may stay, and sends further requests with its
                // tokens.
                idle
            } else {
                let stays = patience.unknown_connection;
                idle.min(stays.saturating_sub(began.elapsed()))
            };
            if left.is_zero() {
                let why = if idle.is_zero() { "idle" } else { UNKNOWN };
                lock(&self.failure).get_or_insert((CloseCode::Timeout, why));
                return;
            }
            tokio::time::sleep(left).await;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::memory_pair;

    use super::*;
    use crate::ALPN;
    use crate::dispatcher::Dispatcher;
    use crate::registry::Registry;

    /// The requester and the peer, which reads nothing, are in league with each other.
    #[tokio::test]
    async fn unread_requests_are_forwarded_up_to_a_bound() {
        let registry = Registry::builder().build().expect("no operations");
        let dispatcher = Arc::new(Dispatcher::new(registry));
        let most = dispatcher.limits.queued_bytes;
        let (dialled, _accepted) = memory_pair(ALPN);
        let state = CallConnectionState::one_way(dialled, dispatcher, None);
        let alone = state.claim_unsent(most * 2).expect("one always may");
        let refused = state.claim_unsent(1).expect_err("too many wait");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retryable && refused.retry_after_ms.is_some());
        drop(alone);
        let halves = [(); 2].map(|()| state.claim_unsent(most / 2).expect("room"));
        assert!(state.claim_unsent(1).is_err());
        drop(halves);
        assert_eq!(state.unsent.bytes(), 0);
    }
}
