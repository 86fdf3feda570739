//! One connection that speaks HTTP.

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

/// More bytes in flight than an unknown peer has.
const BYTES: u8 = 1;

/// And more streams.
const STREAMS: u8 = 2;

/// What all requests of a connection share.
pub(crate) struct HttpConnection {
    pub(crate) connection: Connection,
    pub(crate) gate: LocalCaller,
    /// What was said of it when it began.
    pub(crate) auth: AuthContext,
    pub(crate) remote: Option<SocketAddr>,
    /// Its ALPN, for the log.
    pub(crate) protocol: &'static str,
    pub(crate) shared: Arc<HttpShared>,
    /// Requests that run.
    running: AtomicUsize,
    /// Those that began after its client was asked to leave.
    late: AtomicUsize,
    leaving: AtomicBool,
    /// Told when the last of either ended.
    ended: Notify,
    began: Instant,
    /// Whether heads of requests come one after another, and are waited for.
    watched: AtomicBool,
    /// When the head began that is not whole yet, in nanoseconds since the beginning and one more; 0 without such a
    /// head.
    head_ns: AtomicU64,
    /// When one ended last, in milliseconds since the beginning.
    ended_ms: AtomicU64,
    owed: ResponseBacklog,
    /// Wrong tokens that were not counted yet.
    guesses: AtomicU32,
    asked: AtomicBool,
    /// What it was granted beyond what every connection has: [`BYTES`], then [`STREAMS`].
    raised: AtomicU8,
    /// WebSockets that are open in it.
    sessions: AtomicU32,
    /// What its last request named.
    pub(crate) last: AuthorityCache,
    /// The account of the last request's caller.
    counted: Mutex<Option<ConnectionAccount>>,
}

/// Where the requests of one caller are counted.
struct ConnectionAccount {
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
            asked: AtomicBool::new(false),
            raised: AtomicU8::new(0),
            sessions: AtomicU32::new(0),
            last: AuthorityCache::default(),
            counted: Mutex::default(),
            connection,
        }
    }

    /// How long its client is waited for.
    pub(crate) fn patience(&self) -> HttpTimeouts {
        self.shared.settings().patience
    }

    /// Whether nothing was asked on it yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.asked.load(Ordering::Acquire)
    }

    /// Raises the limits of a connection on which a caller proved who it is. More streams are granted once half of the
    /// first ones are in use: a place for each costs memory from then on.
    pub(crate) fn raise(&self) {
        let granted = StreamBudget::UNAUTHENTICATED.bidi_streams;
        let running = self.running.load(Ordering::Acquire);
        let (step, bidi_streams) = match running >= granted as usize / 2 {
            false => (BYTES, granted),
            true => (STREAMS, BUDGET.bidi_streams),
        };
        // Of requests that come at the same time one raises the budget.
        if self.raised.fetch_max(step, Ordering::AcqRel) < step {
            self.connection.raise_budget(StreamBudget {
                bidi_streams,
                ..BUDGET
            });
        }
    }

    /// Where the requests of `who` on this connection are counted. Nearly all of them are the same caller's.
    pub(crate) fn account(&self, who: Option<&Identity>) -> Arc<CallerQuota> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let id = who.map(|who| &who.id);
        let last = counted.as_ref().filter(|last| last.who.as_ref() == id);
        if let Some(account) = last.and_then(|last| last.account.upgrade()) {
            return account;
        }
        let account = self.shared.gateway.account(who, self.remote);
        *counted = Some(ConnectionAccount {
            who: id.cloned(),
            // Not held: the gateway forgets an account that nothing uses.
            account: Arc::downgrade(&account),
        });
        account
    }

    /// How long nothing has run; `None` while something does.
    ///
    /// A task that waits for it looks now and then instead of being woken at each request, which may be a thousand
    /// times a second.
    pub(crate) fn quiet(&self) -> Option<Duration> {
        let idle = self.running.load(Ordering::Acquire) == 0;
        let ended = Duration::from_millis(self.ended_ms.load(Ordering::Acquire));
        idle.then(|| self.began.elapsed().saturating_sub(ended))
    }

    /// How long it may still have an unknown peer's place; `None` where its client proved who it is.
    pub(crate) fn stays(&self, most: Duration) -> Option<Duration> {
        let proved = self.connection.is_identified() || self.connection.is_authenticated();
        (!proved).then(|| most.saturating_sub(self.began.elapsed()))
    }

    /// Its client is asked to leave: requests that begin from now on are not waited for by
    /// [`finished_earlier`](Self::finished_earlier).
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// From now on it tells when something [`came`](Self::came).
    pub(crate) fn watch(&self) {
        self.watched.store(true, Ordering::Release);
    }

    /// Whether it does.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// Something was read. While nothing runs, it belongs to the head of a request.
    pub(crate) fn came(&self) {
        let none = self.head_ns.load(Ordering::Acquire) == 0;
        if none && self.running.load(Ordering::Acquire) == 0 {
            let now = nanos(self.began.elapsed()).saturating_add(1);
            self.head_ns.store(now, Ordering::Release);
        }
    }

    /// How long the head of a request has been on its way, if one is.
    pub(crate) fn head_since(&self) -> Option<Duration> {
        let since = self.head_ns.load(Ordering::Acquire).checked_sub(1)?;
        let since = Duration::from_nanos(since);
        Some(self.began.elapsed().saturating_sub(since))
    }

    /// A head is whole: when its request began.
    pub(crate) fn began(&self) -> Instant {
        match self.head_ns.swap(0, Ordering::AcqRel) {
            0 => Instant::now(),
            since => self.began + Duration::from_nanos(since - 1),
        }
    }

    /// Notes whether a token was `wrong`. The guess is counted with the next request, or with the end of the
    /// connection: the time that counting takes must not show in the time of the answer.
    pub(crate) fn guessed(&self, wrong: bool) {
        self.guesses.fetch_add(u32::from(wrong), Ordering::AcqRel);
    }

    fn count_guesses(&self) {
        for _ in 0..self.guesses.swap(0, Ordering::AcqRel) {
            self.gate.guessed();
        }
    }

    /// So many bytes of an answer are on their way. Returns until when they are to be taken.
    pub(crate) fn owes(&self, now: Instant, bytes: usize) -> Instant {
        let since = now.saturating_duration_since(self.began);
        now + self.owed.more(since, bytes)
    }

    /// The client took them.
    pub(crate) fn taken(&self) {
        self.owed.taken();
    }

    /// Whether the client takes no answer any more, or too slowly.
    pub(crate) fn is_stalled(&self) -> bool {
        self.owed.is_late(self.began.elapsed())
    }

    /// Resolves when nothing runs.
    pub(crate) async fn finished(&self) {
        let late = || self.late.load(Ordering::Acquire);
        self.until(|| self.running.load(Ordering::Acquire) == 0 && late() == 0)
            .await;
    }

    /// Resolves when nothing runs that began before its client was asked to leave.
    pub(crate) async fn finished_earlier(&self) {
        self.until(|| self.running.load(Ordering::Acquire) == 0)
            .await;
    }

    /// Resolves when that is so, which is looked at whenever the last of the requests ended.
    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Waits before it looks: what ends in between wakes it all the same.
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

    /// Counts a request until its answer is away.
    pub(crate) fn busy(self: &Arc<Self>) -> RequestGuard {
        self.count_guesses();
        self.asked.store(true, Ordering::Release);
        self.hold()
    }

    /// Counts what is left of a request after its answer, and nothing else: this is in the time of the answer.
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

/// What a client has yet to take.
struct ResponseBacklog {
    /// How long it may take nothing, whatever there is to take.
    patience: Duration,
    /// Answers of which it has yet to take what came last.
    answers: AtomicUsize,
    /// Until when it may, in milliseconds since the connection began.
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

    /// The more there is to take, the longer it may.
    fn more(&self, now: Duration, bytes: usize) -> Duration {
        let rate = BODY_BYTES_PER_SECOND as f64;
        let time = self.patience + Duration::from_secs_f64(bytes as f64 / rate);
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

/// A WebSocket that is open.
pub(crate) struct WebSocketGuard(RequestGuard);

impl WebSocketGuard {
    /// A place for one more, unless the connection carries as many as it may.
    pub(crate) fn begin(conn: &Arc<HttpConnection>) -> Option<Self> {
        let session = Self(conn.busy());
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
    /// Whether it began after the client was asked to leave.
    late: bool,
    ended: Option<Instant>,
}

impl RequestGuard {
    /// When it ended, if not when this is dropped.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let conn = &self.conn;
        let now = self.ended.unwrap_or_else(Instant::now);
        let now = millis(now.saturating_duration_since(conn.began));
        // Before the count goes down: a look that finds nothing running finds since when.
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
