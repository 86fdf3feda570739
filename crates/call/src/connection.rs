//! The state of one connection: the peer's requests in flight here, this side's in flight there, and the streams that
//! both travel on.

mod ending;
mod limits;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use alknet_core::{
    AuthContext, CloseCode, Connection, HandlerError, Identity, IdentityKind, PeerId, RecvStream,
    SendStream, StreamError,
};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission;
use crate::backpressure::{RequesterSource, UnreadBytes, UnreadQuota};
use crate::call_stream::{self, CallStream, StreamEnd};
use crate::context::ConnInfo;
use crate::dispatcher::{Dispatcher, DispatcherCounters};
use crate::envelope::{CreditPayload, Envelope, EventKind, GoawayPayload};
use crate::error::CallError;
use crate::frame::FrameBody;
use crate::inbound::Inbound;
use crate::layers::OperationOverlay;
use crate::limits::{FRAME_BYTES_DEFAULT, SHARED_STREAMS};
use crate::outbound::{Outbound, PartialEvent};
use crate::peers::{self, AtomicPeerState, PeerEvent, PeerState};
use crate::request_bytes::Requester;
use crate::retry::PeerRetryInfo;
use crate::session::TokenSession;
use crate::sync::lock;
use ending::{ENDED, EndOnDrop, SUPERSEDED};
pub(crate) use limits::{UNKNOWN, UnreadReservation};

/// One connection.
pub(crate) struct CallConnectionState {
    pub(crate) connection: Connection,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) info: ConnInfo,
    /// The peer's requests in flight here.
    pub(crate) inbound: Inbound,
    pub(crate) outbound: Outbound,
    pub(crate) session: Arc<TokenSession>,
    /// Answers and events that the peer has yet to take.
    pub(crate) unread: Arc<UnreadBytes>,
    /// Events of all its subscriptions that this node read for it and that it does not take yet.
    pub(crate) ahead: Arc<UnreadBytes>,
    /// Requests to the peer that it has yet to take.
    pub(crate) unsent: Arc<UnreadBytes>,
    /// When the peer last sent a request, or one of its requests ended.
    last_request: Mutex<Instant>,
    /// What this side knows of the peer's operations.
    pub(crate) known: PeerRetryInfo,
    streams: Mutex<Vec<Weak<CallStream>>>,
    shared: [tokio::sync::Mutex<Option<Arc<CallStream>>>; SHARED_STREAMS],
    tasks: TaskTracker,
    cancel: CancellationToken,
    drain: CancellationToken,
    goaway_sent: AtomicBool,
    goaway_received: AtomicBool,
    /// Cancelled once the peer asked for no more requests because it stops.
    peer_stops: CancellationToken,
    peer_mixed: AtomicBool,
    /// Whether the peer knows that this side takes mixed frames.
    announced_mixed: AtomicBool,
    peer_frame_bytes: AtomicUsize,
    next_shared: AtomicU64,
    failure: Mutex<Option<(CloseCode, &'static str)>>,
    /// The imports from a peer that has no name: they live and die with this connection.
    imports: ArcSwapOption<OperationOverlay>,
    /// Running calls that this node passed on to the peer.
    forwarded: AtomicUsize,
    /// The peer's state, from its first moment to its end.
    pub(crate) life: AtomicPeerState,
    /// Ends the upkeep of the imports.
    follow: CancellationToken,
    /// The code and reason with which this side ends the connection, once it does.
    goodbye: OnceLock<(CloseCode, Box<str>)>,
    /// Cancelled when the driver has to notify the peer before it ends the connection.
    leaving: CancellationToken,
    kind: PeerRole,
    /// The peer whose key the handshake of this connection proved.
    pub(crate) holder: Option<PeerId>,
}

/// What the other side is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerRole {
    /// A client that connected by another protocol and speaks this one inside it.
    Guest,
    /// Requests come over another protocol, in which this side cannot send any to the peer.
    OneWay,
    /// A client or server that may be a peer.
    Peer,
}

impl CallConnectionState {
    pub(crate) fn new(
        connection: Connection,
        dispatcher: Arc<Dispatcher>,
        auth: Option<&AuthContext>,
    ) -> Arc<Self> {
        let state = Arc::new(Self::make(connection, dispatcher, auth, PeerRole::Peer));
        state.dispatcher.add_connection(&state);
        state
    }

    /// A connection of another protocol, which passes its requests in one by one.
    pub(crate) fn one_way(
        connection: Connection,
        dispatcher: Arc<Dispatcher>,
        auth: Option<&AuthContext>,
    ) -> Arc<Self> {
        Arc::new(Self::make(connection, dispatcher, auth, PeerRole::OneWay))
    }

    /// The connection of a guest, which connected by another protocol; see [`Dispatcher::serve_guest`].
    pub(crate) fn guest(
        connection: Connection,
        dispatcher: Arc<Dispatcher>,
        auth: &AuthContext,
    ) -> Arc<Self> {
        let state = Arc::new(Self::make(
            connection,
            dispatcher,
            Some(auth),
            PeerRole::Guest,
        ));
        state.dispatcher.add_connection(&state);
        state
    }

    fn make(
        connection: Connection,
        dispatcher: Arc<Dispatcher>,
        auth: Option<&AuthContext>,
        kind: PeerRole,
    ) -> Self {
        let session: Arc<TokenSession> = Arc::default();
        let requester_source = requester_source(&connection, &session);
        let share = || UnreadQuota::new(&dispatcher.unread_bytes, &requester_source);
        let carrier = dispatcher.unread_of_outermost(&connection);
        // Only a proved key makes a peer, not an identity that another layer set.
        let holder = auth.filter(|auth| auth.key.is_some());
        let holder = holder.and_then(|auth| auth.identity.as_ref());
        // A connection that carries this one may have its identity from a token, and a token is no peer's.
        let holder = holder.filter(|holder| holder.kind == IdentityKind::Peer);
        Self {
            holder: holder.map(|holder| holder.id.clone()),
            info: ConnInfo::new(&connection, auth),
            inbound: Inbound::default(),
            outbound: Outbound::new(connection.info().dialled),
            unread: Arc::new(UnreadBytes::shared(share(), carrier)),
            ahead: Arc::new(UnreadBytes::shared(share(), None)),
            connection,
            session,
            unsent: Arc::default(),
            last_request: Mutex::new(Instant::now()),
            known: PeerRetryInfo::default(),
            dispatcher,
            streams: Mutex::default(),
            shared: Default::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            drain: CancellationToken::new(),
            goaway_sent: AtomicBool::new(false),
            goaway_received: AtomicBool::new(false),
            peer_stops: CancellationToken::new(),
            peer_mixed: AtomicBool::new(false),
            announced_mixed: AtomicBool::new(false),
            // The default holds until the peer announces its own in `services/list`.
            peer_frame_bytes: AtomicUsize::new(FRAME_BYTES_DEFAULT),
            next_shared: AtomicU64::new(0),
            failure: Mutex::default(),
            imports: ArcSwapOption::empty(),
            forwarded: AtomicUsize::new(0),
            life: AtomicPeerState::default(),
            follow: CancellationToken::new(),
            goodbye: OnceLock::new(),
            leaving: CancellationToken::new(),
            kind,
        }
    }

    /// Whether the other side connected by another protocol.
    pub(crate) fn is_guest(&self) -> bool {
        self.kind == PeerRole::Guest
    }

    /// Serves the connection until it ends. Dropping the future ends it, too.
    pub(crate) async fn drive(self: Arc<Self>) -> Result<(), HandlerError> {
        let guard = EndOnDrop(Arc::clone(&self));
        self.follow_peer();
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            _ = self.connection.closed() => {}
            () = self.hang_up_when_written() => {}
            () = self.drain_on_request() => {}
            () = self.unknown_for_too_long() => {}
            () = self.serve() => {}
        }
        let failure = lock(&self.failure).take();
        match failure {
            Some((code, why)) => {
                self.connection.close(code, why);
                drop(guard);
                Err(match code {
                    CloseCode::Timeout => HandlerError::Timeout,
                    _ => HandlerError::Protocol(why.into()),
                })
            }
            None => {
                if self.is_superseded() {
                    self.connection.close(CloseCode::Superseded, SUPERSEDED);
                } else if self.has_sent_goaway() {
                    self.connection.close(CloseCode::Shutdown, "draining");
                }
                drop(guard);
                Ok(())
            }
        }
    }

    /// Starts the drain when a newer connection takes over. Never resolves: `serve` ends the connection.
    async fn drain_on_request(&self) {
        self.connection.drain_requested().await;
        self.start_drain();
        std::future::pending().await
    }

    async fn serve(self: &Arc<Self>) {
        if self.connection.is_multi() {
            tokio::select! {
                () = self.accept_streams() => return,
                () = self.drain.cancelled() => {}
            }
        // One stream carries everything here: the connection is over when its tasks are.
        } else {
            if self.shared_stream(0).await.is_err() {
                return;
            }
            let over = self.tasks.clone();
            // `wait` resolves for a closed tracker only; the tracker still takes tasks.
            over.close();
            tokio::select! {
                () = over.wait() => return,
                () = self.drain.cancelled() => {}
            }
        }
        self.send_goaway().await;
        self.tasks.close();
        let late = self.turn_late_streams_away();
        tokio::pin!(late);
        loop {
            tokio::select! {
                () = self.tasks.wait() => {}
                () = &mut late => {}
            }
            // A request may have opened a stream of its own after the last stream ended. From here on requests find
            // the connection closed before they send anything, and can go over another connection.
            if self.outbound.close_if_empty(ENDED) || self.tasks.is_empty() {
                return;
            }
        }
    }

    async fn accept_streams(self: &Arc<Self>) {
        loop {
            match self.connection.accept_bi().await {
                Ok((send, recv)) => drop(self.spawn_stream(CallStream::new(), send, recv)),
                Err(StreamError::Closed(_) | StreamError::Timeout) => return,
                // A stream that broke at its start ends none of the others.
                Err(error) => tracing::debug!(%error, "a stream could not be accepted"),
            }
        }
    }

    /// Ends every stream that the peer opened before it read the notice of the drain, with that notice. Requests on a
    /// stream that nothing reads would otherwise have no answer until the connection ends, which other requests may
    /// delay for as long as the drain lasts. Never resolves.
    async fn turn_late_streams_away(self: &Arc<Self>) {
        // The only stream of a single carriage is there from the start.
        while self.connection.is_multi() {
            match self.connection.accept_bi().await {
                Ok((send, recv)) => {
                    let stream = CallStream::new();
                    // Before the stream runs: its writer ends it as soon as nothing is left to write.
                    stream.out.push(|out| self.append_goaway(out));
                    self.spawn_stream(stream, send, recv);
                }
                Err(StreamError::Closed(_) | StreamError::Timeout) => break,
                Err(error) => tracing::debug!(%error, "a stream could not be accepted"),
            }
        }
        std::future::pending().await
    }

    fn spawn_stream(
        self: &Arc<Self>,
        stream: CallStream,
        send: SendStream,
        recv: RecvStream,
    ) -> Arc<CallStream> {
        let stream = Arc::new(stream);
        let mut streams = lock(&self.streams);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&stream));
        drop(streams);
        // In a box: a future that a function passes on is otherwise stored twice.
        let run = Box::pin(call_stream::run(
            Arc::clone(self),
            Arc::clone(&stream),
            send,
            recv,
        ));
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(run).await;
        });
        stream
    }

    /// A stream for one request. Where that is a subscription that this node passes on, the bytes on the stream count
    /// with its events that are `waiting`.
    pub(crate) async fn open_call_stream(
        self: &Arc<Self>,
        waiting: Option<Arc<UnreadBytes>>,
    ) -> Result<Arc<CallStream>, StreamError> {
        // The other protocol has no streams that this side could open.
        if self.kind == PeerRole::OneWay {
            return Err(StreamError::Unsupported);
        }
        let (send, recv) = self.connection.open_bi().await?;
        Ok(self.spawn_stream(CallStream::single_call(waiting), send, recv))
    }

    /// A stream for many requests that is open, unless all of them are being opened.
    pub(crate) fn usable_stream(&self) -> Option<Arc<CallStream>> {
        self.shared.iter().find_map(|slot| {
            let stream = slot.try_lock().ok()?.clone()?;
            stream.is_usable().then_some(stream)
        })
    }

    /// A stream for many requests. It opens when a request first needs it, and again after it ended.
    pub(crate) async fn any_shared_stream(
        self: &Arc<Self>,
    ) -> Result<Arc<CallStream>, StreamError> {
        let turn = self.next_shared.fetch_add(1, Ordering::Relaxed) as usize;
        let streams = if self.connection.is_multi() {
            // Requests alternate, so that one slow stream does not hold up all of them.
            SHARED_STREAMS
        } else {
            1
        };
        self.shared_stream(turn % streams).await
    }

    async fn shared_stream(self: &Arc<Self>, index: usize) -> Result<Arc<CallStream>, StreamError> {
        if self.kind == PeerRole::OneWay {
            return Err(StreamError::Unsupported);
        }
        // The lock lasts until the stream is open: a second caller waits for that stream and opens no other.
        let mut slot = self.shared[index].lock().await;
        if let Some(stream) = slot.as_ref().filter(|stream| stream.is_usable()) {
            return Ok(Arc::clone(stream));
        }
        // On a carriage with one stream, both sides have that stream from the start.
        let (send, recv) = if self.connection.is_multi() {
            self.connection.open_bi().await?
        } else {
            self.connection.accept_bi().await?
        };
        let stream = self.spawn_stream(CallStream::new(), send, recv);
        *slot = Some(Arc::clone(&stream));
        Ok(stream)
    }

    /// Handles one frame, which `making` counted. An error ends the stream that the frame came on.
    pub(crate) async fn receive(
        self: &Arc<Self>,
        stream: &Arc<CallStream>,
        frame: Bytes,
        making: PartialEvent,
    ) -> Result<(), StreamEnd> {
        let body = FrameBody::parse(frame)?;
        // A side that sends mixed frames can read them.
        if body.tail.is_some() {
            self.peer_mixed.store(true, Ordering::Release);
        }
        let event = Envelope::parse(&body.envelope, self.limits().nesting)?;
        match event.kind {
            // The peer would not receive the answer.
            EventKind::Requested if self.is_over() || stream.out.is_ended() => self.ignored(),
            EventKind::Requested => return admission::admit(self, stream, &body, &event).await,
            // The peer gives up a request of its own; any other id is one of this side's requests, which the peer
            // aborted.
            EventKind::Aborted if self.inbound.abort(&event.id) => {}
            EventKind::Credit => self.credit(&event),
            EventKind::Goaway => {
                // The only other reason of the protocol is a newer connection of this side.
                let payload = event.members::<GoawayPayload<'_>>();
                if payload.is_ok_and(|payload| payload.reason != SUPERSEDED) {
                    self.peer_stops.cancel();
                }
                self.goaway_received.store(true, Ordering::Release);
                // The peer announced that it takes no new requests: routing must stop choosing it.
                self.life.apply(PeerEvent::Goaway);
                // The peer serves nothing new: the upkeep of its imports has no more work.
                self.follow.cancel();
            }
            EventKind::Aborted | EventKind::Completed | EventKind::Error | EventKind::Responded => {
                let delivered = self.outbound.deliver(self, stream, &body, &event, making);
                delivered.await;
            }
            // Later versions of the protocol may add events.
            EventKind::Unknown => self.ignored(),
        }
        Ok(())
    }

    fn credit(&self, event: &Envelope<'_>) {
        let request = self.inbound.find(&event.id);
        let credit = event.members::<CreditPayload>();
        match (request, credit) {
            (Some(request), Ok(CreditPayload { n })) => {
                if let Some(window) = &request.credit {
                    window.add(n);
                }
            }
            // Credit may cross the end of its subscription on the way.
            _ => self.ignored(),
        }
    }

    pub(crate) fn ignored(&self) {
        DispatcherCounters::add(&self.dispatcher.counters.ignored);
    }

    // Limits and facts about the peer.

    /// The identity that the peer acts as, with its present rights: the one it authenticated as, else that of its
    /// key. The watches of the endpoint and of this crate update the identity on the connection, and until then it
    /// may be outdated.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        let stored = identity(&self.connection, &self.session)?;
        match self.dispatcher.is_current(&stored) {
            true => Some(stored),
            false => self.identity_now(),
        }
    }

    /// The requester that the peer's bytes count for.
    pub(crate) fn requester(&self) -> Requester {
        Requester::from_identity(self.identity().as_deref(), self.info.remote_addr)
    }

    /// The identity of a token. An unknown token is a guess, and the connection counts it. After too many guesses
    /// from the peer's network, the error says so.
    pub(crate) fn by_token(&self, token: &str) -> Result<Arc<Identity>, CallError> {
        self.resolve_token(token).map_err(|error| {
            // Before the connection counts this guess: the guess that uses up the allowance still gets the error for
            // a bad token.
            let refused = self.connection.penalty().map(CallError::too_many_guesses);
            self.connection.auth_failed();
            refused.unwrap_or(error)
        })
    }

    /// Like `by_token`, without counting a guess: the calling code counts it.
    pub(crate) fn resolve_token(&self, token: &str) -> Result<Arc<Identity>, CallError> {
        let counters = &self.dispatcher.counters;
        match self.dispatcher.by_token(token) {
            Some(identity) => {
                DispatcherCounters::add(&counters.tokens_ok);
                self.connection.authenticated(&identity.id);
                Ok(identity)
            }
            None => {
                DispatcherCounters::add(&counters.tokens_refused);
                Err(CallError::bad_token())
            }
        }
    }

    /// Bytes of the longest frame the peer takes.
    pub(crate) fn peer_frame_bytes(&self) -> usize {
        self.peer_frame_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn set_peer_protocol(&self, frame_bytes: Option<usize>, mixed: bool) {
        if let Some(bytes) = frame_bytes {
            // A peer that announces nothing keeps the default limit.
            self.peer_frame_bytes.store(bytes, Ordering::Release);
        }
        // The mark is never removed: the peer may have proved it by a mixed frame before.
        self.peer_mixed.fetch_or(mixed, Ordering::AcqRel);
    }

    pub(crate) fn peer_takes_mixed(&self) -> bool {
        self.peer_mixed.load(Ordering::Acquire)
    }

    /// Whether the peer takes mixed frames and has not yet received one from this side.
    pub(crate) fn announces_mixed(&self) -> bool {
        self.peer_takes_mixed() && !self.announced_mixed.load(Ordering::Relaxed)
    }

    /// Notes that a mixed frame is on its way.
    pub(crate) fn announced_mixed(&self) {
        self.announced_mixed.store(true, Ordering::Relaxed);
    }

    /// Whether the peer asked for no more requests.
    pub(crate) fn has_received_goaway(&self) -> bool {
        self.goaway_received.load(Ordering::Acquire)
    }

    pub(crate) fn has_sent_goaway(&self) -> bool {
        self.goaway_sent.load(Ordering::Acquire)
    }

    pub(crate) fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    // The peer's requests.

    /// Whether the peer may use `id` at all. The side that accepted the connection prefixes its ids with `~`, and the
    /// side that dialled must not. This side also serves accepting peers of earlier versions, which use no prefix.
    pub(crate) fn may_be_peers(&self, id: &str) -> bool {
        self.connection.info().dialled || !id.starts_with('~')
    }

    // What the peer serves.

    /// Imports the operations of a known peer, keeps them up to date, and checks that the peer still answers, where
    /// this node imports.
    fn follow_peer(self: &Arc<Self>) {
        if self.dispatcher.imports.is_some() && !self.is_guest() {
            let state = Arc::clone(self);
            tokio::spawn(async move {
                let follow = state.follow.clone();
                let upkeep =
                    async { tokio::join!(peers::follow(&state), peers::watch_over(&state)) };
                follow.run_until_cancelled(upkeep).await;
            });
        }
    }

    pub(crate) fn imports(&self) -> Option<Arc<OperationOverlay>> {
        self.imports.load_full()
    }

    pub(crate) fn set_imports(&self, overlay: OperationOverlay) {
        self.imports.store(Some(Arc::new(overlay)));
    }

    /// Running calls that this node passed on to the peer.
    pub(crate) fn forwarded(&self) -> usize {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Whether the peer takes new requests.
    pub(crate) fn is_ready(&self) -> bool {
        !self.has_received_goaway() && !self.is_superseded() && !self.is_over()
    }

    /// Whether the peer takes new requests and answered lately.
    pub(crate) fn is_well(&self) -> bool {
        self.is_ready() && self.life.state() != PeerState::Degraded
    }

    /// Whether the connection has ended, or is about to end.
    pub(crate) fn is_over(&self) -> bool {
        self.goodbye.get().is_some() || self.cancel.is_cancelled()
    }
}

fn identity(connection: &Connection, session: &TokenSession) -> Option<Arc<Identity>> {
    session.identity().or_else(|| connection.identity())
}

/// Names the requester that unread bytes count for, however it proved its identity.
fn requester_source(connection: &Connection, session: &Arc<TokenSession>) -> Arc<RequesterSource> {
    let (connection, session) = (connection.clone(), Arc::clone(session));
    Arc::new(move || {
        let identity = identity(&connection, &session);
        Requester::from_identity(identity.as_deref(), connection.remote_addr())
    })
}

impl std::fmt::Debug for CallConnectionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallConnectionState")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Counts a call that this node passes on, while the call runs.
pub(crate) struct ForwardingGuard(Arc<CallConnectionState>);

impl ForwardingGuard {
    pub(crate) fn new(state: &Arc<CallConnectionState>) -> Self {
        state.forwarded.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for ForwardingGuard {
    fn drop(&mut self) {
        self.0.forwarded.fetch_sub(1, Ordering::Relaxed);
    }
}
