//! The life of one connection after its handshake.

mod permit;

use std::any::Any;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, Carriage, CloseCode, ConnId, Connection, ConnectionInfo,
    HandlerError, HandlerRegistry, Identity, IdentityProvider, PeerId, PeerKey, PollOnWake,
    ProtocolHandler, StreamSource,
};
use alknet_tls::PeerProof;
use futures_util::FutureExt;
use tokio::sync::watch;

use crate::accept::HandshakeTasks;
use crate::admission::{Admission, AdmissionLimit, CapacityScope, RecognisedPeer};
use crate::counters::EndpointTotals;
use crate::limits::EndpointLimits;
use crate::live::{End, LiveConnections};
use crate::metrics::EndpointMeters;
use crate::self_dial::SelfDials;
use crate::windows::{ReceiveWindows, WindowCredit};

use permit::ConnectionPermit;

pub(crate) use permit::ConnectionReservation;

/// Time for which a connection whose handler has finished waits until the peer has taken what was sent: QUIC throws
/// unacknowledged data away when it closes.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Time that a connection has to finish once a newer one of the same peer takes over.
const SUPERSEDED: Duration = Duration::from_secs(5);

/// Close code and reason of such a connection.
const SUPERSEDED_END: End = (CloseCode::Superseded, "superseded");

/// Close code and reason of an unknown peer's connection whose slot another one needs.
const EVICTED_END: End = (CloseCode::Overload, "another connection needs the place");

/// Close code and reason of a connection whose memory the node needs.
pub(crate) const RELIEF_END: End = (CloseCode::Overload, "the node has too little memory");

/// What the accept loops and every connection share.
pub(crate) struct EndpointShared {
    pub(crate) registry: HandlerRegistry,
    pub(crate) identities: Arc<dyn IdentityProvider>,
    pub(crate) limits: EndpointLimits,
    pub(crate) totals: EndpointTotals,
    pub(crate) meters: EndpointMeters,
    pub(crate) live: Arc<LiveConnections>,
    pub(crate) admission: Mutex<Admission>,
    pub(crate) handshakes: HandshakeTasks,
    pub(crate) windows: Arc<ReceiveWindows>,
    pub(crate) self_dials: Arc<SelfDials>,
    /// True once the node drains.
    pub(crate) stop: watch::Sender<bool>,
}

impl EndpointShared {
    pub(crate) fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connections of peers that are no longer known. The other ones get the scopes that their peers have
    /// now.
    pub(crate) fn sweep(&self) {
        for _ in 0..self.live.sweep(&*self.identities) {
            self.totals.revoked.add();
        }
        // The list is a copy: the lock of admission is not held while each key is looked up.
        let mut gone = self.admission().remembered();
        gone.retain(|seen| {
            let who = self.identities.by_key(&seen.key);
            // An administrator that lost this right keeps its addresses no longer than other peers do.
            who.is_none_or(|who| {
                let now = RecognisedPeer::new(&who, seen.key);
                now.id != seen.id || seen.is_admin && !now.is_admin
            })
        });
        let gone: Vec<_> = gone.into_iter().map(|seen| seen.id).collect();
        self.admission().forget(&gone);
    }

    /// Counts that a client at `from` showed a key or a token of no known peer, where one is required.
    fn auth_failed(&self, from: IpAddr) {
        self.totals.auth_failures.add();
        if self.penalty(from).is_some() {
            self.totals.penalty_refusals.add();
            self.meters.hit(AdmissionLimit::FailedLogins);
            return;
        }
        let shut_out = self.admission().fail(from, Instant::now());
        if let Some(time) = shut_out {
            self.totals.penalties.add();
            tracing::warn!(
                addr = %from,
                seconds = time.as_secs(),
                "too many failed logins: guesses from this network are refused"
            );
        }
    }

    /// For how long the node still refuses guesses from the network of `from`, if it does.
    fn penalty(&self, from: IpAddr) -> Option<Duration> {
        self.admission().penalty(from, Instant::now())
    }

    /// Charges the handshake of a connection to its network, now that its address is proven and the node knows
    /// whether it knows the peer. Known peers pay nothing within their free number, and get back what they paid.
    /// Returns false where the network or the peer had too many.
    fn settle(
        &self,
        connection: &Connection,
        from: IpAddr,
        who: Option<&Resolved>,
        paid: bool,
    ) -> bool {
        let (carriage, now) = (connection.carriage(), Instant::now());
        let mut admission = self.admission();
        let allowed = match who {
            Some((key, Some(identity))) => {
                let peer = RecognisedPeer::new(identity, *key);
                admission.recognise(carriage, &peer, from, paid, now)
            }
            _ => paid || admission.charge(carriage, from, now),
        };
        drop(admission);
        if !allowed {
            self.meters.hit(AdmissionLimit::HandshakeRate);
            self.totals.handshakes_refused.add();
        }
        allowed
    }

    /// Ends a connection for a newer one of the known peer `comer`, or of an unknown one. `newest_wins`: in the
    /// protocol of the newer one a peer's newest connection replaces its oldest. Returns whether there was one that may
    /// end.
    fn evict(&self, full: CapacityScope, comer: Option<&PeerId>, newest_wins: bool) -> bool {
        match comer {
            Some(comer) => self.evict_for_known(full, comer, newest_wins),
            None => self.evict_for_unknown(full),
        }
    }

    /// An unknown peer's connection gives way first, except those to which unknown peers have a right, then one of the
    /// known peer that has the most. At last, any of an unknown peer does for the first connection of `comer`, and one
    /// of `comer`'s own where it has as many as it may.
    fn evict_for_known(&self, full: CapacityScope, comer: &PeerId, newest_wins: bool) -> bool {
        let own_max = self.identities.max_connections(comer);
        let admission = self.admission();
        let has_surplus = admission.has_surplus_of_unknown();
        let is_first = !admission.has_connection(comer);
        let has_capacity = admission.has_capacity(comer, own_max);
        let tokens = admission.token_holders();
        let own = match has_capacity || !newest_wins {
            true => Vec::new(),
            false => admission.replaceable(comer),
        };
        drop(admission);
        // A peer that has as many as it may ends one of its own only. Otherwise it could end one of others after the
        // other, although it is refused next.
        let evicted = has_surplus && self.live.evict(full, EVICTED_END)
            || has_capacity && self.live.evict_known(Some(comer), &tokens, EVICTED_END)
            || is_first && self.live.evict(full, EVICTED_END);
        if evicted {
            self.totals.evicted.add();
        }
        // `identify` counts the connection that it replaces.
        evicted
            || own
                .into_iter()
                .any(|conn| self.live.end(conn, SUPERSEDED_END))
    }

    /// Another unknown peer's connection gives way first, then one of the known peer that has the most, as long as
    /// unknown peers have fewer than they have a right to.
    fn evict_for_unknown(&self, full: CapacityScope) -> bool {
        let evicted = self.live.evict(full, EVICTED_END) || self.evict_known_for_unknown(full);
        if evicted {
            self.totals.evicted.add();
        }
        evicted
    }

    fn evict_known_for_unknown(&self, full: CapacityScope) -> bool {
        // The limits of one network and of one site hold in any case.
        if !matches!(full, CapacityScope::UnknownPeers(_)) {
            return false;
        }
        let admission = self.admission();
        if !admission.has_capacity_for_unknown() {
            return false;
        }
        let tokens = admission.token_holders();
        drop(admission);
        self.live.evict_known(None, &tokens, EVICTED_END)
    }

    /// Makes room for a newer connection of the same peer.
    fn supersede(self: &Arc<Self>, drain: ConnId, end: Option<ConnId>) {
        self.totals.superseded.add();
        if let Some(end) = end {
            self.live.end(end, SUPERSEDED_END);
        }
        self.live.ask_to_drain(drain);
        let live = Arc::clone(&self.live);
        tokio::spawn(async move {
            tokio::time::sleep(SUPERSEDED).await;
            live.end(drain, SUPERSEDED_END);
        });
    }

    /// The identity to which a proven key belongs, and the name of the key by which the node knows it.
    fn resolve(&self, proof: PeerProof) -> Resolved {
        proof
            .names()
            .find_map(|name| Some((name, Some(self.identities.by_key(&name)?))))
            .unwrap_or((proof.key, None))
    }
}

/// A proven key, and the identity that it belongs to, if any.
type Resolved = (PeerKey, Option<Arc<Identity>>);

/// A connection whose handshake is done.
pub(crate) struct AcceptedConnection {
    pub(crate) source: Box<dyn StreamSource>,
    /// Its receive window, where the carriage has one.
    pub(crate) credit: Option<Arc<WindowCredit>>,
    pub(crate) info: ConnectionInfo,
    pub(crate) proof: Option<PeerProof>,
    pub(crate) from: IpAddr,
}

/// Serves a connection to its end. `reservation` counts a QUIC connection that gets no slot; it is `None` over TCP.
/// `paid` says whether the handshake was charged to its network when it began.
pub(crate) async fn serve(
    shared: Arc<EndpointShared>,
    arrived: AcceptedConnection,
    mut reservation: Option<ConnectionReservation>,
    paid: bool,
) {
    let AcceptedConnection {
        source,
        credit,
        info,
        proof,
        from,
    } = arrived;
    let connection = Connection::from_source(source, info);
    // The reference is weak: `shared` has the connection in its table, and the connection owns this closure.
    let watching = Arc::downgrade(&shared);
    connection.on_auth_failure(move || {
        if let Some(shared) = watching.upgrade() {
            shared.auth_failed(from);
        }
    });
    let watching = Arc::downgrade(&shared);
    connection.set_penalty(move || watching.upgrade()?.penalty(from));
    let resolved = proof.map(|proof| shared.resolve(proof));
    let known = resolved
        .as_ref()
        .and_then(|(_, identity)| identity.as_ref());
    let known = known.map(|identity| identity.id.clone());
    if let Some(reservation) = &mut reservation {
        reservation.belongs_to(resolved.as_ref());
    }
    if !shared.settle(&connection, from, resolved.as_ref(), paid) {
        return close(&connection, (CloseCode::Overload, "too many handshakes"));
    }
    let taken =
        ConnectionPermit::take(&shared, &connection, from, known.as_ref(), credit.is_some());
    let mut permit = match taken {
        Ok(permit) => permit,
        Err(end) => return close(&connection, end),
    };
    if let Some(reservation) = reservation {
        reservation.release();
    }
    if let Some(credit) = &credit {
        credit.begin(&shared.windows, from);
    }
    permit.watch(&connection, credit);
    match admit(&shared, &connection, resolved, &mut permit) {
        Ok(admitted) => run(&shared, &connection, from, admitted).await,
        Err(end) => close(&connection, end),
    }
}

fn close(connection: &Connection, (code, reason): End) {
    tracing::info!(
        conn = connection.id().0,
        addr = connection.remote_addr().map(tracing::field::display),
        "connection refused: {code} {reason}"
    );
    connection.close(code, reason);
}

pub(crate) type Admitted = (AuthContext, AlpnSpec, Arc<dyn ProtocolHandler>);

/// Finds the handler, and decides whether this peer may reach it.
fn admit(
    shared: &Arc<EndpointShared>,
    connection: &Connection,
    resolved: Option<Resolved>,
    permit: &mut ConnectionPermit<'_>,
) -> Result<Admitted, End> {
    let info = connection.info();
    let totals = &shared.totals;
    let (spec, handler) = shared
        .registry
        .get(&info.alpn, info.carriage)
        .ok_or_else(|| {
            totals.no_handler.add();
            (CloseCode::NoHandler, "no such protocol")
        })?;
    let (key, identity) = match resolved {
        Some((key, identity)) => {
            let meters = &shared.meters;
            let known = identity.is_some();
            let counter = if known {
                &meters.keys_ok
            } else {
                &meters.keys_unknown
            };
            counter.add(1);
            (Some(key), identity)
        }
        None => (None, None),
    };
    if identity.is_none() && spec.auth == AuthNeed::Tls {
        // For this protocol a later token could not prove who the peer is. Where a protocol takes tokens, its handler
        // decides: the node does not refuse a client that sends a valid one for what others behind the same network
        // guess.
        let penalised = shared.penalty(permit.from).is_some();
        totals.policy_refusals.add();
        shared.auth_failed(permit.from);
        return Err(match penalised {
            true => (CloseCode::Overload, "too many failed logins"),
            false => (CloseCode::Policy, "unknown key"),
        });
    }
    // The peer's own limit is asked before the identity is set, so that a refused connection never acts in its name.
    if let Some(identity) = &identity {
        permit.identify(&identity.id, spec.newest_wins)?;
        connection
            .set_identity(Arc::clone(identity))
            .expect("a new connection has no identity yet");
        connection.raise_budget(spec.limits);
    }
    let auth = AuthContext {
        identity,
        key,
        alpn: Arc::clone(&info.alpn),
        sni: info.sni.clone(),
        remote_addr: info.remote_addr,
        carriage: info.carriage,
        early_data: false,
    };
    Ok((auth, spec.clone(), Arc::clone(handler)))
}

pub(crate) async fn run(
    shared: &EndpointShared,
    connection: &Connection,
    from: IpAddr,
    (auth, spec, handler): Admitted,
) {
    let peer = auth.identity.as_ref().map(|identity| identity.id.clone());
    let meters = shared.meters.for_alpn(spec.id);
    let (_guard, ended) = shared.live.insert(
        connection,
        from,
        auth.key,
        peer.clone(),
        Arc::clone(&meters),
    );
    // The peer may have been revoked between its lookup and the entry in the table.
    if shared.live.sweep_one(connection.id(), &*shared.identities) {
        shared.totals.revoked.add();
    }
    if *shared.stop.borrow() {
        return close(connection, (CloseCode::Shutdown, "shutting down"));
    }
    let open = ConnectionLog::start(shared, connection, &spec, &auth, peer);
    let work = {
        let connection = connection.clone();
        AssertUnwindSafe(async move { handler.handle(connection, auth).await }).catch_unwind()
    };
    let mut from_outside = PollOnWake::new(ended_by(ended));
    let (code, reason) = tokio::select! {
        // This comes first: once the node has revoked the peer, a handler that is ready does nothing more.
        biased;
        end = &mut from_outside => end,
        result = work => match result {
            Ok(Ok(())) => {
                last_bytes(connection, from_outside).await
            }
            Ok(Err(HandlerError::Closed)) if connection.is_drain_requested() => superseded(),
            Ok(Err(error)) => close_of(&error),
            Err(panic) => {
                shared.totals.handler_panics.add();
                meters.panics.add(1);
                tracing::error!(
                    conn = connection.id().0,
                    alpn = spec.name(),
                    "handler panicked: {}",
                    panic_text(&*panic)
                );
                (CloseCode::Internal, "internal error".to_owned())
            }
        }
    };
    connection.close(code, &reason);
    open.finish(code);
}

async fn ended_by(mut ended: watch::Receiver<Option<End>>) -> (CloseCode, String) {
    let end = ended.wait_for(Option::is_some).await.ok().and_then(|e| *e);
    // The sender is in the table for as long as the guard of `run` lives, so that this wait does not fail.
    let (code, reason) = end.unwrap_or((CloseCode::Normal, ""));
    (code, reason.to_owned())
}

fn superseded() -> (CloseCode, String) {
    let (code, reason) = SUPERSEDED_END;
    (code, reason.to_owned())
}

/// The handler has finished well: gives the peer a moment to read the end and to close.
async fn last_bytes(
    connection: &Connection,
    from_outside: impl Future<Output = (CloseCode, String)>,
) -> (CloseCode, String) {
    let content = if connection.is_drain_requested() {
        superseded()
    } else {
        (CloseCode::Normal, String::new())
    };
    // Over TCP `close` itself waits until the peer has read the end.
    if !connection.is_multi() {
        return content;
    }
    tokio::select! {
        biased;
        end = from_outside => end,
        _ = tokio::time::timeout(LAST_BYTES, connection.closed()) => content,
    }
}

/// The close code for a handler that failed.
pub(crate) fn close_of(error: &HandlerError) -> (CloseCode, String) {
    let (code, reason) = match error {
        HandlerError::AuthRequired => (CloseCode::Policy, "authentication required"),
        HandlerError::Closed => (CloseCode::Normal, ""),
        HandlerError::Forbidden => (CloseCode::Policy, "forbidden"),
        HandlerError::Overloaded => (CloseCode::Overload, "overloaded"),
        HandlerError::Protocol(text) => (CloseCode::Protocol, text.as_ref()),
        HandlerError::Timeout => (CloseCode::Timeout, "timed out"),
        // Any other error says what failed within the node, which is not for the peer to know.
        _ => (CloseCode::Internal, "internal error"),
    };
    (code, reason.to_owned())
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The log lines and counters of a connection. Dropping it writes the last line, also when the task is aborted.
struct ConnectionLog<'a> {
    shared: &'a EndpointShared,
    connection: &'a Connection,
    alpn: String,
    peer: Option<PeerId>,
    key8: Option<String>,
    since: tokio::time::Instant,
    code: Option<CloseCode>,
}

/// Writes a log line about a connection: its constant fields, and more.
macro_rules! log_line {
    ($open:expr, $name:literal $(, $($more:tt)+)?) => {
        tracing::info!(
            conn = $open.connection.id().0,
            alpn = $open.alpn,
            carriage = %$open.connection.carriage(),
            peer = $open.peer.as_ref().map(PeerId::as_str),
            key8 = $open.key8,
            addr = $open.connection.remote_addr().map(tracing::field::display),
            $($($more)+,)?
            $name
        )
    };
}

impl<'a> ConnectionLog<'a> {
    fn start(
        shared: &'a EndpointShared,
        connection: &'a Connection,
        spec: &AlpnSpec,
        auth: &AuthContext,
        peer: Option<PeerId>,
    ) -> Self {
        let totals = &shared.totals;
        totals.connections_open.add();
        match auth.carriage {
            Carriage::Iroh => totals.connections_iroh.add(),
            Carriage::Tcp => totals.connections_tcp.add(),
            // The carrier was counted already.
            Carriage::Memory => {}
            Carriage::Both | Carriage::Quic => totals.connections_quic.add(),
        }
        let open = Self {
            shared,
            connection,
            alpn: spec.name(),
            peer,
            key8: auth.key.map(|key| key.short()),
            since: tokio::time::Instant::now(),
            code: None,
        };
        log_line!(open, "conn.open");
        open
    }

    fn finish(mut self, code: CloseCode) {
        self.code = Some(code);
    }
}

impl Drop for ConnectionLog<'_> {
    fn drop(&mut self) {
        self.shared.totals.connections_open.remove();
        let traffic = self.connection.traffic();
        log_line!(
            self,
            "conn.close",
            dur = %format_args!("{:.3}", self.since.elapsed().as_secs_f64()),
            rx = traffic.rx.get(),
            tx = traffic.tx.get(),
            streams = traffic.streams.get(),
            code = self.code.map(CloseCode::code)
        );
    }
}
