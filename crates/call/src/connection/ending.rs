//! How streams and the connection end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use alknet_core::{CloseCode, StreamCode};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::CallConnectionState;
use crate::call_stream::CallStream;
use crate::dispatcher::DispatcherCounters;
use crate::envelope;
use crate::limits::{DRAIN_RETRY_MS, SUPERSEDED_DRAIN};
use crate::peers::PeerEvent;
use crate::send_queue::SendQueue;
use crate::sync::lock;

/// Why the older of two connections of one peer ends.
pub(super) const SUPERSEDED: &str = "a newer connection of this peer took over";

/// Why calls over an ended connection have no answer.
pub(super) const ENDED: &str = "the connection ended";

/// Like `ENDED`, where the peer had announced that it stops.
const STOPPED: &str = "the connection ended because the node stopped; call again once it runs";

impl CallConnectionState {
    /// A newer connection of the same peer took over: running calls may finish within `SUPERSEDED_DRAIN`. The
    /// endpoint drains a peer's oldest connection in the same way where the peer has too many. Of the two, the one
    /// that asks first also ends the connection when the time is over.
    // Another caller drains the connection already, and ends it.
    pub(crate) fn supersede(self: &Arc<Self>) {
        if !self.connection.ask_to_drain() {
            return;
        }
        self.start_drain();
        let state = Arc::clone(self);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(SUPERSEDED_DRAIN, state.ended()).await;
            state.close(CloseCode::Superseded, SUPERSEDED);
        });
    }

    /// Nothing answers on `stream` any more. Requests that this side sent on it fail, too, unless the stream ended in
    /// order and there are others: answers on another stream are legal. A peer that drains ends a stream once it has
    /// answered everything that it will answer there, and a request that met that end is lost.
    pub(crate) fn stream_ended(&self, stream: &Arc<CallStream>, badly: bool) {
        self.inbound
            .abort_where(|request| Arc::ptr_eq(request.stream(), stream));
        if badly || !self.connection.is_multi() || self.has_received_goaway() {
            let why = self.why_ended("the stream ended");
            self.outbound.fail_where(|on| Arc::ptr_eq(on, stream), why);
        }
    }

    /// Why calls have no answer where the peer ended the connection or the stream. `otherwise`: if the peer announced
    /// nothing.
    fn why_ended(&self, otherwise: &'static str) -> &'static str {
        match self.peer_stops.is_cancelled() {
            true => STOPPED,
            false => otherwise,
        }
    }

    pub(crate) fn protocol_error(&self, why: &'static str) {
        DispatcherCounters::add(&self.dispatcher.counters.protocol_errors);
        tracing::debug!(connection = %self.info.id, why, "the peer broke the protocol");
    }

    /// Whether all calls over the connection end with one stream. A guest's calls end with the guest.
    pub(crate) fn ends_with_stream(&self) -> bool {
        !self.connection.is_multi() && !self.is_guest()
    }

    /// Where a connection has one stream only, the end of the stream is the connection's. This side closes it in
    /// order, and the peer can tell that from a lost connection.
    pub(crate) fn fail_if_single(&self, code: CloseCode, why: &'static str) {
        if !self.connection.is_multi() {
            // The first failure is the cause; later ones follow from it.
            lock(&self.failure).get_or_insert((code, why));
            self.connection.close(code, why);
            self.cancel.cancel();
        }
    }

    pub(crate) fn start_drain(&self) {
        self.life.apply(PeerEvent::Goaway);
        self.follow.cancel();
        self.drain.cancel();
    }

    /// Resolves once this side drains.
    pub(crate) async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Cancelled once the peer announced that it stops.
    pub(crate) fn peer_stops(&self) -> &CancellationToken {
        &self.peer_stops
    }

    /// Cancelled once the connection is over.
    pub(crate) fn over(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Resolves once the connection is over.
    pub(crate) async fn ended(&self) {
        self.cancel.cancelled().await;
    }

    /// Ends the connection. Calls of this side over it fail at once, and the peer learns of the end at once.
    ///
    /// On a carriage with one stream, the end of the stream says only that this side sends no more requests, and the
    /// peer would go on with the earlier ones. There the driver ends the connection, as soon as it has sent the peer
    /// its aborts.
    pub(crate) fn close(&self, code: CloseCode, why: &str) {
        // The first reason stays.
        if self.goodbye.set((code, why.into())).is_err() {
            return;
        }
        self.follow.cancel();
        self.inbound.abort_where(|_| true);
        if self.connection.is_multi() {
            self.outbound.close(ENDED);
            return self.hang_up();
        }
        let streams = self.live_streams();
        self.outbound.abandon(&streams, ENDED);
        // With nothing left to write, the connection can end at once.
        if streams.iter().all(|stream| stream.out.is_idle()) {
            return self.hang_up();
        }
        self.leaving.cancel();
        if self.cancel.is_cancelled() {
            // The driver has gone, and may have checked before the line above.
            self.hang_up();
        }
    }

    /// Once [`close`](Self::close) left the end to the driver: ends the connection as soon as the streams have
    /// written everything. Where the peer does not take it in time, this cuts its streams off.
    pub(super) async fn hang_up_when_written(&self) {
        self.leaving.cancelled().await;
        let streams = self.live_streams();
        let written = streams
            .iter()
            .map(|stream| stream.out.wait_for_capacity(SendQueue::is_idle));
        let written = tokio::time::timeout(self.dispatcher.patience.goodbye, join_all(written));
        if written.await.is_err() {
            streams
                .iter()
                .for_each(|stream| stream.out.kill(StreamCode::Cancelled));
            self.tasks.close();
            self.tasks.wait().await;
        }
        self.hang_up();
    }

    /// Ends the connection with the code and the reason from [`close`](Self::close).
    fn hang_up(&self) {
        if let Some((code, why)) = self.goodbye.get() {
            self.connection.close(*code, why);
        }
        self.cancel.cancel();
    }

    /// Whether a newer connection of the peer took over, in the peer table or at the endpoint.
    pub(super) fn is_superseded(&self) -> bool {
        self.connection.is_drain_requested()
    }

    /// Called where a draining peer ended the last stream on which this side can send it anything: gives the peer all
    /// the credit that its subscription there may have, since no later credit would arrive.
    pub(crate) fn credit_in_advance(&self, ended: &CallStream) {
        if self.has_received_goaway() && !ended.is_single_call() && self.usable_stream().is_none() {
            self.outbound.credit_in_advance(ended);
        }
    }

    /// Announces the drain to the peer on every stream that it may be reading, or on a new one.
    pub(super) async fn send_goaway(self: &Arc<Self>) {
        let streams = self.live_streams();
        let say = |stream: &Arc<CallStream>| {
            let text = |out: &mut Vec<u8>| self.append_goaway(out);
            stream.out.push(text).is_some()
        };
        let notified = streams.iter().filter(|stream| say(stream)).count();
        if notified == 0
            && self.connection.is_multi()
            && let Ok(stream) = self.open_call_stream(None).await
        {
            say(&stream);
            stream.out.finish();
        }
        // After the event is queued: a writer that sees the flag may finish its stream at once.
        self.goaway_sent.store(true, Ordering::Release);
        streams.iter().for_each(|stream| stream.out.wake_writer());
    }

    pub(super) fn append_goaway(&self, out: &mut Vec<u8>) {
        let why = if self.is_superseded() {
            SUPERSEDED
        } else {
            "the node is shutting down"
        };
        envelope::append_goaway(out, why, DRAIN_RETRY_MS);
    }

    pub(crate) fn wake_writers(&self) {
        self.live_streams()
            .iter()
            .for_each(|stream| stream.out.wake_writer());
    }

    fn live_streams(&self) -> Vec<Arc<CallStream>> {
        lock(&self.streams)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

/// Leaves no work behind, however the driver ends.
pub(super) struct EndOnDrop(pub(super) Arc<CallConnectionState>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let state = &self.0;
        state.cancel.cancel();
        state.life.apply(PeerEvent::Ended);
        state.follow.cancel();
        state
            .dispatcher
            .peers
            // Only this connection's entry: a newer one of the peer stays.
            .detach(state.info.id, state.dispatcher.announcer());
        // Calls must not find operations of a connection that is gone.
        state.imports.store(None);
        state.inbound.abort_where(|_| true);
        let streams = std::mem::take(&mut *lock(&state.streams));
        let streams: Vec<_> = streams.iter().filter_map(Weak::upgrade).collect();
        // Unsent events must not look like a connection that ended in order.
        let cut = state.has_outbound() || streams.iter().any(|stream| !stream.out.is_idle());
        state.outbound.close(state.why_ended(ENDED));
        streams
            .iter()
            .for_each(|stream| stream.out.kill(StreamCode::Cancelled));
        if !cut {
            state.hang_up();
        }
    }
}
