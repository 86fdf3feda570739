//! One connection that speaks HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use alknet_call::Gate;
use alknet_core::{AuthContext, Connection};
use tokio::sync::watch;

use crate::limits::{BUDGET, SESSIONS_MAX};
use crate::shared::Shared;

/// What all requests of a connection share.
pub(crate) struct Conn {
    pub(crate) connection: Connection,
    pub(crate) gate: Gate,
    /// What was said of it when it began.
    pub(crate) auth: AuthContext,
    pub(crate) remote: Option<SocketAddr>,
    /// `h1`, `h2` or `h3`, for the log.
    pub(crate) protocol: &'static str,
    pub(crate) shared: Arc<Shared>,
    running: watch::Sender<usize>,
    asked: AtomicBool,
    raised: AtomicBool,
    /// WebSockets that are open in it.
    sessions: AtomicU32,
}

impl Conn {
    pub(crate) fn new(
        connection: Connection,
        auth: &AuthContext,
        protocol: &'static str,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            gate: Gate::new(&shared.dispatcher, &connection, Some(auth)),
            auth: auth.clone(),
            remote: connection.remote_addr(),
            protocol,
            shared: Arc::clone(shared),
            running: watch::Sender::new(0),
            asked: AtomicBool::new(false),
            raised: AtomicBool::new(false),
            sessions: AtomicU32::new(0),
            connection,
        }
    }

    /// Whether nothing was asked on it yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.asked.load(Ordering::Acquire)
    }

    /// Somebody is known on it: it may have more in flight.
    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.connection.raise_budget(BUDGET);
        }
    }

    /// Requests that run.
    pub(crate) fn watch_busy(&self) -> watch::Receiver<usize> {
        self.running.subscribe()
    }

    /// Counts a request until its answer is away.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.asked.store(true, Ordering::Release);
        self.running.send_modify(|running| *running += 1);
        Busy(Arc::clone(self))
    }
}

/// A WebSocket that is open.
pub(crate) struct Session(Busy);

impl Session {
    /// A place for one more, unless the connection carries as many as it may.
    pub(crate) fn begin(conn: &Arc<Conn>) -> Option<Self> {
        let session = Self(conn.busy());
        let before = conn.sessions.fetch_add(1, Ordering::AcqRel);
        (before < SESSIONS_MAX).then_some(session)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request that runs.
pub(crate) struct Busy(Arc<Conn>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}
