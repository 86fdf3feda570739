//! One HTTP connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use alknet_call::LocalCaller;
use alknet_core::{AuthContext, Connection, Identity, PeerId, StreamBudget};
use alknet_gateway::CallerQuota;
use tokio::sync::Notify;

use crate::authority::AuthorityCache;
use crate::limits::{BODY_BYTES_PER_SECOND, BUDGET, HttpTimeouts, SESSIONS_MAX};
use crate::shared::HttpShared;

/// The connection may have more bytes in flight than an unknown peer's one.
const BYTES: u8 = 1;

/// The connection may also have more streams.
const STREAMS: u8 = 2;

/// The state that all requests of a connection share.
pub(crate) struct HttpConnection {
    pub(crate) connection: Connection,
    pub(crate) gate: LocalCaller,
    /// What authentication found out when the connection began.
    pub(crate) auth: AuthContext,
    pub(crate) remote: Option<SocketAddr>,
    /// The ALPN, for the log.
    pub(crate) protocol: &'static str,
    pub(crate) shared: Arc<HttpShared>,
    /// Requests that run and began before the client was asked to leave.
    running: AtomicUsize,
    /// Requests that run and began after the client was asked to leave.
    late: AtomicUsize,
    leaving: AtomicBool,
    /// Notified when the last request of either counter ends.
    ended: Notify,
    began: Instant,
    /// Whether the connection reads the heads of requests one after another, so that their time can be limited.
    watched: AtomicBool,
    /// When the incomplete head began, in nanoseconds since the connection began, plus one; 0 without such a head.
    head_ns: AtomicU64,
    /// When the last request ended, in milliseconds since the connection began.
    ended_ms: AtomicU64,
    owed: ResponseBacklog,
    /// Wrong tokens that are not counted yet.
    guesses: AtomicU32,
    had_request: AtomicBool,
    /// The limits that the connection has beyond those of every connection: [`BYTES`], then [`STREAMS`].
    raised: AtomicU8,
    /// The open WebSockets of the connection.
    sessions: AtomicU32,
    /// The result for the last request's authority.
    pub(crate) last: AuthorityCache,
    /// The account of the last request's caller.
    counted: Mutex<Option<CachedQuota>>,
}

/// The account that counts the requests of one caller.
struct CachedQuota {
    who: Option<PeerId>,
    account: Weak<CallerQuota>,
}

impl HttpConnection {
    pub(crate) fn new(
        connection: Connection,
        auth: &AuthContext,
        protocol: &'static str,
        shared: &Arc<HttpShared>,
    ) -> Self {
        Self {
            gate: LocalCaller::new(&shared.dispatcher, &connection, Some(auth)),
            auth: auth.clone(),
            remote: connection.remote_addr(),
            protocol,
            shared: Arc::clone(shared),
            running: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            ended: Notify::new(),
            began: Instant::now(),
            watched: AtomicBool::new(false),
            head_ns: AtomicU64::new(0),
            ended_ms: AtomicU64::new(0),
            owed: ResponseBacklog::new(shared.settings().patience.reader),
            guesses: AtomicU32::new(0),
            had_request: AtomicBool::new(false),
            raised: AtomicU8::new(0),
            sessions: AtomicU32::new(0),
            last: AuthorityCache::default(),
            counted: Mutex::default(),
            connection,
        }
    }

    /// The time limits for the client.
    pub(crate) fn patience(&self) -> HttpTimeouts {
        self.shared.settings().patience
    }

    /// Whether no request has begun on the connection yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.had_request.load(Ordering::Acquire)
    }

    /// Raises the limits of a connection whose caller has authenticated. More streams are allowed once half of the
    /// first ones are in use, because each permitted stream takes memory from then on.
    pub(crate) fn raise(&self) {
        let granted = StreamBudget::UNAUTHENTICATED.bidi_streams;
        let running = self.running.load(Ordering::Acquire);
        let (step, bidi_streams) = match running >= granted as usize / 2 {
            false => (BYTES, granted),
            true => (STREAMS, BUDGET.bidi_streams),
        };
        // If several requests arrive at once, only one of them raises the limits.
        if self.raised.fetch_max(step, Ordering::AcqRel) < step {
            self.connection.raise_budget(StreamBudget {
                bidi_streams,
                ..BUDGET
            });
        }
    }

    /// The account that counts the requests of `who` on this connection. Nearly all requests have the same caller.
    pub(crate) fn account(&self, who: Option<&Identity>) -> Arc<CallerQuota> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let id = who.map(|who| &who.id);
        let last = counted.as_ref().filter(|last| last.who.as_ref() == id);
        if let Some(account) = last.and_then(|last| last.account.upgrade()) {
            return account;
        }
        let account = self.shared.gateway.account(who, self.remote);
        *counted = Some(CachedQuota {
            who: id.cloned(),
            // The reference is weak, so the gateway can drop an account that no request uses.
            account: Arc::downgrade(&account),
        });
        account
    }

    /// How long no request has run; `None` while one runs.
    ///
    /// A task that waits for an idle connection checks this from time to time instead of being woken at each request,
    /// which may be a thousand times a second.
    pub(crate) fn quiet(&self) -> Option<Duration> {
        let idle = self.running.load(Ordering::Acquire) == 0;
        let ended = Duration::from_millis(self.ended_ms.load(Ordering::Acquire));
        idle.then(|| self.began.elapsed().saturating_sub(ended))
    }

    /// How long the connection may still use an unknown peer's connection slot; `None` if its client has
    /// authenticated.
    pub(crate) fn stays(&self, most: Duration) -> Option<Duration> {
        let proved = self.connection.is_identified() || self.connection.is_authenticated();
        (!proved).then(|| most.saturating_sub(self.began.elapsed()))
    }

    /// Asks the client to leave: [`finished_earlier`](Self::finished_earlier) does not wait for requests that begin
    /// from now on.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// From now on the reader of the connection reports bytes by [`bytes_arrived`](Self::bytes_arrived).
    pub(crate) fn watch(&self) {
        self.watched.store(true, Ordering::Release);
    }

    /// Whether the reader reports bytes.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// Bytes arrived. While no request runs, they belong to the head of a request.
    pub(crate) fn bytes_arrived(&self) {
        let none = self.head_ns.load(Ordering::Acquire) == 0;
        if none && self.running.load(Ordering::Acquire) == 0 {
            let now = nanos(self.began.elapsed()).saturating_add(1);
            self.head_ns.store(now, Ordering::Release);
        }
    }

    /// How long ago the incomplete head began, if there is one.
    pub(crate) fn head_since(&self) -> Option<Duration> {
        let since = self.head_ns.load(Ordering::Acquire).checked_sub(1)?;
        let since = Duration::from_nanos(since);
        Some(self.began.elapsed().saturating_sub(since))
    }

    /// When the request began whose head is now complete.
    pub(crate) fn began(&self) -> Instant {
        match self.head_ns.swap(0, Ordering::AcqRel) {
            0 => Instant::now(),
            // `bytes_arrived` adds one, because 0 means that there is no head.
            since => self.began + Duration::from_nanos(since - 1),
        }
    }

    /// Records whether a token was `wrong`. The guess is counted with the next request or at the end of the
    /// connection, because the time of a response must not show whether a guess was counted.
    pub(crate) fn guessed(&self, wrong: bool) {
        self.guesses.fetch_add(u32::from(wrong), Ordering::AcqRel);
    }

    fn count_guesses(&self) {
        for _ in 0..self.guesses.swap(0, Ordering::AcqRel) {
            self.gate.guessed();
        }
    }

    /// Records that a response sends this number of bytes. Returns when the client must have received them.
    pub(crate) fn owes(&self, now: Instant, bytes: usize) -> Instant {
        let since = now.saturating_duration_since(self.began);
        now + self.owed.more(since, bytes)
    }

    /// Records that the client received them.
    pub(crate) fn taken(&self) {
        self.owed.taken();
    }

    /// Whether the client receives responses too slowly or not at all.
    pub(crate) fn is_stalled(&self) -> bool {
        self.owed.is_late(self.began.elapsed())
    }

    /// Resolves when no request runs.
    pub(crate) async fn finished(&self) {
        let late = || self.late.load(Ordering::Acquire);
        self.until(|| self.running.load(Ordering::Acquire) == 0 && late() == 0)
            .await;
    }

    /// Resolves when no request runs that began before the client was asked to leave.
    pub(crate) async fn finished_earlier(&self) {
        self.until(|| self.running.load(Ordering::Acquire) == 0)
            .await;
    }

    /// Resolves when `is_so` returns true, which is checked whenever the last of the requests ends.
    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // The future is enabled before the check, so that a request which ends in between still wakes it.
            ended.as_mut().enable();
            if is_so() {
                return;
            }
            ended.await;
        }
    }

    fn counter(&self, late: bool) -> &AtomicUsize {
        if late { &self.late } else { &self.running }
    }

    /// Counts a request until its response is sent.
    pub(crate) fn busy(self: &Arc<Self>) -> RequestGuard {
        self.count_guesses();
        self.had_request.store(true, Ordering::Release);
        self.hold()
    }

    /// Counts the work that a request leaves after its response. It does nothing else, because it runs within the
    /// time of the response.
    pub(crate) fn hold(self: &Arc<Self>) -> RequestGuard {
        let late = self.leaving.load(Ordering::Acquire);
        self.counter(late).fetch_add(1, Ordering::AcqRel);
        RequestGuard {
            conn: Arc::clone(self),
            late,
            ended: None,
        }
    }
}

/// The bytes that a client has not received yet.
struct ResponseBacklog {
    /// How long the client may receive nothing, whatever the amount is.
    patience: Duration,
    /// Responses whose last bytes the client has not received.
    answers: AtomicUsize,
    /// The deadline for that, in milliseconds since the connection began.
    until_ms: AtomicU64,
}

impl ResponseBacklog {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            answers: AtomicUsize::new(0),
            until_ms: AtomicU64::new(0),
        }
    }

    /// Adds bytes; more bytes extend the time that the client has.
    fn more(&self, now: Duration, bytes: usize) -> Duration {
        let rate = BODY_BYTES_PER_SECOND as f64;
        let time = self.patience + Duration::from_secs_f64(bytes as f64 / rate);
        // Several responses may be under way, and the latest deadline counts.
        self.until_ms
            .fetch_max(millis(now + time), Ordering::AcqRel);
        self.answers.fetch_add(1, Ordering::AcqRel);
        time
    }

    fn taken(&self) {
        self.answers.fetch_sub(1, Ordering::AcqRel);
    }

    fn is_late(&self, now: Duration) -> bool {
        let until = self.until_ms.load(Ordering::Acquire);
        self.answers.load(Ordering::Acquire) > 0 && millis(now) > until
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.count_guesses();
    }
}

/// An open WebSocket.
pub(crate) struct WebSocketGuard(RequestGuard);

impl WebSocketGuard {
    /// Counts one more WebSocket, unless the connection carries the most that it may.
    pub(crate) fn begin(conn: &Arc<HttpConnection>) -> Option<Self> {
        let session = Self(conn.busy());
        // The guard exists before the check, so that its drop undoes the count of a refused session.
        let before = conn.sessions.fetch_add(1, Ordering::AcqRel);
        (before < SESSIONS_MAX).then_some(session)
    }
}

impl Drop for WebSocketGuard {
    fn drop(&mut self) {
        self.0.conn.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request that runs.
pub(crate) struct RequestGuard {
    conn: Arc<HttpConnection>,
    /// Whether the request began after the client was asked to leave.
    late: bool,
    ended: Option<Instant>,
}

impl RequestGuard {
    /// Sets when the request ended; otherwise it ends when this is dropped.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let conn = &self.conn;
        let now = self.ended.unwrap_or_else(Instant::now);
        let now = millis(now.saturating_duration_since(conn.began));
        // The time is stored before the counter falls: a check that finds no running request then reads the right
        // time.
        conn.ended_ms.store(now, Ordering::Release);
        if conn.counter(self.late).fetch_sub(1, Ordering::AcqRel) == 1 {
            conn.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::READER_PATIENCE;

    #[test]
    fn a_client_has_time_by_what_it_has_to_take() {
        let at = Duration::from_secs;
        let owed = ResponseBacklog::new(READER_PATIENCE);
        assert!(!owed.is_late(at(1_000_000)), "nothing is on its way");
        owed.more(at(0), 10 << 10);
        assert!(!owed.is_late(READER_PATIENCE + at(10)));
        assert!(owed.is_late(READER_PATIENCE + at(11)));
        // Another answer goes on: the connection is not dead.
        owed.more(at(30), 0);
        assert!(!owed.is_late(READER_PATIENCE + at(30)));
        owed.taken();
        owed.taken();
        assert!(!owed.is_late(at(1_000_000)));
    }
}
