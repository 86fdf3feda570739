//! Bytes of incomplete messages.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::connection::CallConnectionState;
use crate::dispatcher::DispatcherCounters;
use crate::limits::{FRAME_BYTES_FREE, REQUEST_BYTES_FREE};
use crate::request_bytes::RequestClaim;

/// An incomplete message, which counts for the peer until its request does: a peer could have one that lacks its last
/// byte on every stream that it may open.
#[derive(Debug, Default)]
pub(crate) struct PartialMessage {
    bytes: usize,
    claim: Option<RequestClaim>,
    /// How long it has waited for room.
    waited: Duration,
}

/// There is no room for an incomplete message: its sender, or all peers, have as many bytes of others as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssemblyLimitError;

impl PartialMessage {
    /// Counts so many bytes for it. Where there is no room, its count stays as before.
    pub(crate) fn count(
        &mut self,
        state: &CallConnectionState,
        bytes: usize,
    ) -> Result<(), AssemblyLimitError> {
        let counted = self.claim(state, bytes);
        // The metrics show that this limit was reached.
        if counted.is_err() {
            DispatcherCounters::add(&state.dispatcher.counters.request_bytes_full);
        }
        counted
    }

    /// Like `count`, for a message that began at `begun`. Waits for room where the connection would otherwise end, for
    /// as long as a frame may take. Returns `begun`, moved on by the wait: while this side reads nothing, the sender
    /// can send nothing more.
    pub(crate) async fn count_from(
        &mut self,
        state: &CallConnectionState,
        bytes: usize,
        begun: Instant,
    ) -> Result<Instant, AssemblyLimitError> {
        if self.count(state, bytes).is_ok() {
            return Ok(begun);
        }
        let waiting_since = Instant::now();
        let patience = state.dispatcher.patience.partial_frame;
        let deadline = waiting_since + patience.saturating_sub(self.waited);
        while waits(state) {
            // Before the next try: the wait does not miss bytes that are given back meanwhile.
            let given_back = state.dispatcher.unfinished_bytes.given_back();
            if self.claim(state, bytes).is_ok() {
                let waited = waiting_since.elapsed();
                self.waited += waited;
                return Ok(begun + waited);
            }
            // A sender that is refused now would lose all calls of its connection.
            if timeout_at(deadline, given_back).await.is_err() {
                break;
            }
        }
        Err(AssemblyLimitError)
    }

    fn claim(
        &mut self,
        state: &CallConnectionState,
        bytes: usize,
    ) -> Result<(), AssemblyLimitError> {
        let is_counted = bytes <= self.bytes.max(REQUEST_BYTES_FREE);
        if is_counted || bytes <= FRAME_BYTES_FREE && waits(state) {
            return Ok(());
        }
        let requester = state.requester();
        let empty = || RequestClaim::empty(&state.dispatcher.unfinished_bytes, &requester);
        let claim = self.claim.get_or_insert_with(empty);
        claim
            .resize(&requester, bytes)
            .map_err(|_| AssemblyLimitError)?;
        self.bytes = bytes;
        Ok(())
    }
}

/// Whether a message waits for room: its sender is known, and all calls of the connection would end with its stream.
fn waits(state: &CallConnectionState) -> bool {
    state.ends_with_stream() && state.requester().is_known()
}

/// Stands for a guest before the node serves it; [`Dispatcher::serve_guest`](crate::Dispatcher::serve_guest) ties it
/// to the guest's connection.
#[derive(Clone, Debug, Default)]
pub struct GuestHandle(Arc<OnceLock<Weak<CallConnectionState>>>);

impl GuestHandle {
    pub(crate) fn set(&self, state: &Arc<CallConnectionState>) {
        self.0.get_or_init(|| Arc::downgrade(state));
    }
}

/// Counts the messages that the carriage of a guest assembles, each before the carriage passes it on, with the
/// incomplete frames of the guest's present identity. Dropping it gives the bytes back.
#[derive(Debug)]
pub struct UnfinishedMessage {
    guest: GuestHandle,
    unfinished: PartialMessage,
}

impl UnfinishedMessage {
    /// The count for this guest, who has sent nothing yet.
    #[must_use]
    pub fn for_guest(guest: &GuestHandle) -> Self {
        Self {
            guest: guest.clone(),
            unfinished: PartialMessage::default(),
        }
    }

    /// Counts so many bytes for the incomplete message. A short one does not count.
    ///
    /// # Errors
    /// There is no room for it, or the guest has gone.
    pub fn count(&mut self, bytes: usize) -> Result<(), AssemblyLimitError> {
        if bytes <= REQUEST_BYTES_FREE {
            return Ok(());
        }
        let state = self.guest.0.get().and_then(Weak::upgrade);
        let state = state.ok_or(AssemblyLimitError)?;
        self.unfinished.count(&state, bytes)
    }

    /// Notes that the message was passed on, or given up.
    pub fn clear(&mut self) {
        self.unfinished = PartialMessage::default();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use alknet_core::{
        BoxFuture, CloseCode, CloseReason, Connection, Identity, IdentityKind, RecvStream,
        SendStream, StreamError, StreamSource, memory_pair,
    };
    use tokio::time::sleep;

    use super::*;
    use crate::ALPN;
    use crate::dispatcher::Dispatcher;
    use crate::registry::Registry;
    use crate::request_bytes::{RequestRetention, Requester};

    const MIB: usize = 1 << 20;

    /// A connection that ends with its stream.
    struct SingleStreamConnection(Connection);

    impl StreamSource for SingleStreamConnection {
        fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
            Box::pin(self.0.accept_bi())
        }

        fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
            Box::pin(self.0.open_bi())
        }

        fn is_multi(&self) -> bool {
            false
        }

        fn close(&self, code: CloseCode, reason: &str) {
            self.0.close(code, reason);
        }

        fn closed(&self) -> BoxFuture<'_, CloseReason> {
            Box::pin(self.0.closed())
        }
    }

    /// A connection to a known peer.
    fn connection_state() -> Arc<CallConnectionState> {
        let registry = Registry::builder().build().expect("no operations");
        let dispatcher = Dispatcher::new(registry).with_memory(0);
        let (_dialled, accepted) = memory_pair(ALPN);
        let info = accepted.info().clone();
        let connection = Connection::from_source(Box::new(SingleStreamConnection(accepted)), info);
        let ada = Identity {
            id: "ada".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: Default::default(),
            resources: Default::default(),
            generation: 0,
        };
        let known = connection.set_identity(Arc::new(ada));
        known.expect("it had no identity before");
        CallConnectionState::new(connection, Arc::new(dispatcher), None)
    }

    /// A sender that the node keeps waiting for nearly as long as a frame may take would have no time for the rest.
    #[tokio::test]
    async fn time_spent_waiting_for_room_is_not_the_senders() {
        const WAITS: Duration = Duration::from_millis(20);
        let state = connection_state();
        let claim = |id: &str, bytes: usize| {
            let requester = Requester::Known(id.parse().expect("a peer id"));
            let all = &state.dispatcher.unfinished_bytes;
            all.claim(requester, bytes, RequestRetention::Once)
                .expect("there is room")
        };
        // Three quarters of the 4 MiB of the smallest node.
        let crowd = [claim("eve", 2 * MIB), claim("mallory", MIB)];
        let mut unfinished = PartialMessage::default();
        let begun = Instant::now();
        let short = unfinished.count_from(&state, FRAME_BYTES_FREE, begun);
        assert_eq!(short.await, Ok(begun));
        let mut waits = pin!(unfinished.count_from(&state, MIB / 2, begun));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        sleep(WAITS).await;
        drop(crowd);
        let moved = waits.await.expect("there is room");
        assert!(moved >= begun + WAITS, "{:?}", moved - begun);
    }
}
