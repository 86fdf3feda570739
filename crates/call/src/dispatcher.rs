//! What every connection of a node shares: operations, identities, limits, counters.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use alknet_core::metrics::{AUTH, Histogram, LIMIT_HITS};
use alknet_core::{
    AuthToken, ConnId, Connection, Identity, IdentityProvider, Metrics, PeerId, PeerKey,
};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access::OwnershipProvider;
use crate::backpressure::UnreadBytes;
use crate::connection::CallConnectionState;
use crate::generation::Generation;
use crate::import::ImportOptions;
use crate::keyed::KeyedCalls;
use crate::limits::{
    CALL_TIMEOUT_MAX, PeerLimits, PeerTimeouts, bytes_for_memory, results_for_memory,
};
use crate::peers::{self, PeerState, PeerTable};
use crate::registry::{Registration, Registry};
use crate::request_bytes::RequestBytes;
use crate::rules::RegistryError;
use crate::server_imports::PendingImport;
use crate::sync::lock;
use crate::watch::Announcer;

/// Serves the operations of a registry on any number of connections.
pub struct Dispatcher {
    pub(crate) registry: Arc<Registry>,
    pub(crate) ownership: Option<Arc<dyn OwnershipProvider>>,
    pub(crate) limits: PeerLimits,
    pub(crate) patience: PeerTimeouts,
    pub(crate) timeout_max: Duration,
    pub(crate) node: String,
    pub(crate) counters: DispatcherCounters,
    pub(crate) keyed: KeyedCalls,
    pub(crate) request_bytes: Arc<RequestBytes>,
    /// Bytes of requests whose frames are not complete.
    pub(crate) unfinished_bytes: Arc<RequestBytes>,
    /// Bytes of answers and events that their readers have yet to take.
    pub(crate) unread_bytes: Arc<RequestBytes>,
    /// The unread bytes of each connection that carries others, for all of those.
    carriers: Mutex<HashMap<ConnId, Weak<UnreadBytes>>>,
    announcer: Announcer,
    pub(crate) peers: Arc<PeerTable>,
    /// Whether callers may name the peer their request goes to.
    pub(crate) routes: bool,
    /// How this node imports operations of peers when they connect; `None`: it does not.
    pub(crate) imports: Option<ImportOptions>,
    identities: Option<Arc<dyn IdentityProvider>>,
    connections: Mutex<Vec<Weak<CallConnectionState>>>,
    draining: AtomicBool,
    /// Cancelled with `draining`, for code that waits for it.
    drain_token: CancellationToken,
    promoting: Mutex<()>,
}

impl Dispatcher {
    /// Serves `registry` with the default limits, to peers that it knows by their key only.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self {
            keyed: KeyedCalls::default(),
            request_bytes: Arc::default(),
            unfinished_bytes: Arc::default(),
            unread_bytes: Arc::default(),
            carriers: Mutex::default(),
            announcer: Announcer::new(&registry),
            registry: Arc::new(registry),
            ownership: None,
            limits: PeerLimits::AUTHENTICATED,
            patience: PeerTimeouts::default(),
            timeout_max: CALL_TIMEOUT_MAX,
            node: String::new(),
            counters: DispatcherCounters::default(),
            peers: Arc::default(),
            routes: false,
            imports: None,
            identities: None,
            connections: Mutex::default(),
            draining: AtomicBool::new(false),
            drain_token: CancellationToken::new(),
            promoting: Mutex::default(),
        }
    }

    /// The provider that resolves `auth_token`; without one every token is invalid.
    #[must_use]
    pub fn with_identities(mut self, identities: Arc<dyn IdentityProvider>) -> Self {
        self.identities = Some(identities);
        self
    }

    /// The provider that knows the owners of resources.
    #[must_use]
    pub fn with_ownership(mut self, ownership: Arc<dyn OwnershipProvider>) -> Self {
        self.ownership = Some(ownership);
        self
    }

    /// The limits of known peers, cut to [`PeerLimits::ABSOLUTE`].
    #[must_use]
    pub fn with_limits(mut self, limits: PeerLimits) -> Self {
        self.limits = limits.bounded();
        self
    }

    /// Sets the budgets for a machine with so much memory. Requests in frames may have an eighth of it, up to
    /// [`BYTES_PER_NODE`](crate::limits::BYTES_PER_NODE); incomplete frames as much, and unread answers as much.
    /// Results that answer repeated mutations may have a sixteenth.
    #[must_use]
    pub fn with_memory(mut self, memory_bytes: u64) -> Self {
        let node = bytes_for_memory(memory_bytes);
        self.request_bytes = Arc::new(RequestBytes::new(node));
        self.unfinished_bytes = Arc::new(RequestBytes::new(node));
        self.unread_bytes = Arc::new(RequestBytes::new(node));
        self.keyed = KeyedCalls::new(results_for_memory(memory_bytes));
        self
    }

    /// How long peers may keep this node waiting.
    #[must_use]
    pub fn with_patience(mut self, patience: PeerTimeouts) -> Self {
        self.patience = patience;
        self
    }

    /// The longest deadline of a query or mutation.
    #[must_use]
    pub fn with_timeout_max(mut self, timeout: Duration) -> Self {
        self.timeout_max = timeout;
        self
    }

    /// This node's peer id or key, as `services/list` announces it.
    #[must_use]
    pub fn with_node(mut self, node: impl Into<String>) -> Self {
        self.node = node.into();
        self
    }

    /// Imports the operations of every known peer that connects, keeps them up to date, and attaches the peer for
    /// [`PeerRef`](crate::PeerRef)s to find.
    #[must_use]
    pub fn with_imports(mut self, options: ImportOptions) -> Self {
        self.imports = Some(options);
        self
    }

    /// Lets callers with scope `peer:route:<id>` send requests on to that attached peer, which they may also call by
    /// its alias.
    #[must_use]
    pub fn with_routing(mut self) -> Self {
        self.routes = true;
        self
    }

    /// The limits of known peers.
    #[must_use]
    pub fn limits(&self) -> PeerLimits {
        self.limits
    }

    /// The attached peers.
    #[must_use]
    pub fn peers(&self) -> &PeerTable {
        &self.peers
    }

    /// The state of each connected peer. Of several connections of one peer, the attached one counts, or else the
    /// newest.
    #[must_use]
    pub fn peer_states(&self) -> HashMap<PeerId, PeerState> {
        let attached = self.peers.connections();
        let connections: Vec<_> = lock(&self.connections)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let mut known: HashMap<PeerId, ((bool, ConnId), PeerState)> = HashMap::new();
        for state in connections.iter().filter(|state| !state.is_over()) {
            let Some(peer) = peers::peer_of(state) else {
                continue;
            };
            let rank = (attached.contains(&state.info.id), state.info.id);
            // `true` is above `false`, so that the attached connection comes before newer ones.
            let newest = known.get(&peer).is_none_or(|(other, _)| rank > *other);
            if newest {
                known.insert(peer, (rank, state.life.state()));
            }
        }
        let states = known.into_iter().map(|(peer, (_, state))| (peer, state));
        states.collect()
    }

    /// The operations that it serves.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Replaces the promoted operations by these, all at once, and notifies the subscribers of `services/watch`.
    /// Running requests finish with the operations they began with. An operation that breaks a rule, has a name of
    /// the program's own or lies in a reserved namespace is left out, and [`Generation::rejected`] names it.
    ///
    /// # Errors
    /// A spec has no JSON form; everything stays as it is.
    pub fn promote(
        &self,
        number: u64,
        registrations: Vec<Registration>,
    ) -> Result<Arc<Generation>, RegistryError> {
        // The last promotion to swap also announces last.
        let _one_at_a_time = lock(&self.promoting);
        let now = self.registry.install(number, registrations)?;
        self.announce();
        Ok(now)
    }

    /// Replaces the operations from `source`, as [`Registry::import`], and notifies the subscribers of
    /// `services/watch`. Compiling and hashing long specs takes time.
    ///
    /// # Errors
    /// The errors of [`Registry::import`]; everything stays as it is.
    pub fn import(
        &self,
        source: &str,
        registrations: Vec<Registration>,
    ) -> Result<(), RegistryError> {
        // Before the lock: no promotion waits while the schemas of an import compile.
        let next = PendingImport::new(source, registrations)?;
        let _one_at_a_time = lock(&self.promoting);
        self.registry.install_import(&next)?;
        self.announce();
        Ok(())
    }

    /// Announces the present operations to watchers.
    fn announce(&self) {
        let now = self.registry.now();
        let specs = now.after("").map(|operation| &operation.spec);
        self.announcer.own(&now.digest(), specs);
    }

    /// Announces changes of the operations to their watchers.
    #[must_use]
    pub fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Adds all its counts to other numbers.
    pub fn collect(&self, into: &mut Metrics) {
        self.stats().collect(into);
        into.histogram(
            "alknet_call_seconds",
            "How long queries and mutations ran.",
            &self.counters.seconds,
        );
        let (used, most) = self.request_bytes.usage();
        into.gauge(
            "alknet_call_request_bytes",
            "Bytes of requests in frames that run.",
            &[],
            used as f64,
        );
        into.gauge(
            "alknet_call_request_bytes_max",
            "How many there may be at once.",
            &[],
            most as f64,
        );
        let (unfinished, most) = self.unfinished_bytes.usage();
        into.gauge(
            "alknet_call_unfinished_bytes",
            "Bytes of frames and messages that are not complete.",
            &[],
            unfinished as f64,
        );
        into.gauge(
            "alknet_call_unfinished_bytes_max",
            "How many there may be at once.",
            &[],
            most as f64,
        );
        let (unread, most) = self.unread_bytes.usage();
        into.gauge(
            "alknet_call_unread_bytes",
            "Bytes of answers and events that wait to be read, of connections with more than a few.",
            &[],
            unread as f64,
        );
        into.gauge(
            "alknet_call_unread_bytes_max",
            "How many there may be at once.",
            &[],
            most as f64,
        );
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> DispatcherStats {
        self.counters.snapshot()
    }

    /// Running calls of this node's own operations, and of those that it imported from servers: requests from
    /// outside, over whatever protocol, and calls between operations.
    #[must_use]
    pub fn running(&self) -> usize {
        self.registry.now().running()
    }

    /// Takes no new requests, notifies every peer, and resolves when the running requests have ended and their
    /// answers are sent. Callers bound the wait.
    pub async fn drain(&self) {
        // Before the connections are read: one that `add_connection` adds after that drains by itself.
        self.draining.store(true, Ordering::Release);
        self.drain_token.cancel();
        let connections: Vec<_> = lock(&self.connections)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        connections.iter().for_each(|state| state.start_drain());
        for state in connections {
            state.ended().await;
        }
        // Runs of idempotency keys outlive the connections that started them.
        self.keyed.drained().await;
    }

    /// Cancelled once the node drains. A stream of events without an end of its own then ends, since the drain would
    /// wait for it until its time is over.
    #[must_use]
    pub fn drain_token(&self) -> &CancellationToken {
        &self.drain_token
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn by_token(&self, token: &str) -> Option<Arc<Identity>> {
        let token = AuthToken::new(token.to_owned());
        self.identities.as_ref()?.by_token(&token)
    }

    /// The id of the peer with this name: by alias where the identities know it, else the name as an id.
    pub(crate) fn by_name(&self, name: &str) -> Option<PeerId> {
        let known = self.identities.as_ref().and_then(|it| it.by_name(name));
        known.or_else(|| name.parse().ok())
    }

    /// How long a token is still valid, where the provider knows that.
    pub(crate) fn token_ends_in(&self, token: &AuthToken) -> Option<Duration> {
        self.identities.as_ref()?.token_ends_in(token)
    }

    /// The identity of a key, given its names.
    pub(crate) fn by_keys(&self, keys: &[PeerKey]) -> Option<Arc<Identity>> {
        let identities = self.identities.as_ref()?;
        keys.iter().find_map(|key| identities.by_key(key))
    }

    /// A key by which the holder of `id`, which showed this key, is known again.
    pub(crate) fn lasting_key(&self, id: &PeerId, shown: Option<PeerKey>) -> Option<PeerKey> {
        self.identities.as_ref()?.lasting_key(id, shown)
    }

    pub(crate) fn by_id(&self, id: &PeerId) -> Option<Arc<Identity>> {
        self.identities.as_ref()?.by_id(id)
    }

    /// The number of the present table of identities, where there is a table with a number.
    pub(crate) fn table(&self) -> Option<u64> {
        self.identities.as_ref()?.table()
    }

    /// Whether an earlier looked-up identity is still current, apart from an end by date.
    pub(crate) fn is_current(&self, identity: &Identity) -> bool {
        // Without a table, or with one that has no number, every identity stays as it is.
        self.identities.is_none()
            || identity.generation == 0
            || self.table() == Some(identity.generation)
    }

    /// Signals that an identity may have changed.
    pub(crate) fn identity_changes(&self) -> Option<watch::Receiver<u64>> {
        self.identities
            .as_ref()
            .map(|identities| identities.watch())
    }

    /// The count of unread bytes for a connection that another one carries. It is that of the outermost connection,
    /// which has no more however many it carries.
    pub(crate) fn unread_of_outermost(&self, connection: &Connection) -> Option<Arc<UnreadBytes>> {
        let outermost = connection.carriers().last()?;
        let mut carriers = lock(&self.carriers);
        // Ended connections leave dead entries, which only this call removes.
        carriers.retain(|_, unread| unread.strong_count() > 0);
        let known = carriers.get(&outermost.id()).and_then(Weak::upgrade);
        Some(known.unwrap_or_else(|| {
            let unread = Arc::default();
            carriers.insert(outermost.id(), Arc::downgrade(&unread));
            unread
        }))
    }

    pub(crate) fn add_connection(&self, state: &Arc<CallConnectionState>) {
        let mut connections = lock(&self.connections);
        // The list would otherwise grow with each connection that the node ever had.
        connections.retain(|state| state.strong_count() > 0);
        connections.push(Arc::downgrade(state));
        drop(connections);
        // `drain` may have read the connections before this one was among them.
        if self.is_draining() {
            state.start_drain();
        }
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

/// Upper bounds of the buckets for call times, in seconds.
const CALL_SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

/// How long queries and mutations ran, of all operations together: with a series for each, a peer that promotes
/// operations could make any number of series.
#[derive(Debug)]
pub(crate) struct CallSeconds(Histogram);

impl Default for CallSeconds {
    fn default() -> Self {
        Self(Histogram::new(CALL_SECONDS))
    }
}

impl std::ops::Deref for CallSeconds {
    type Target = Histogram;

    fn deref(&self) -> &Histogram {
        &self.0
    }
}

/// Counts the time from its making to its end, however the call ends.
pub(crate) struct CallTimer<'a> {
    counters: &'a DispatcherCounters,
    since: tokio::time::Instant,
}

impl<'a> CallTimer<'a> {
    pub(crate) fn since(counters: &'a DispatcherCounters, since: tokio::time::Instant) -> Self {
        Self { counters, since }
    }
}

impl Drop for CallTimer<'_> {
    fn drop(&mut self) {
        self.counters.seconds.observe(self.since.elapsed());
    }
}

/// The counters of a dispatcher.
#[derive(Debug, Default)]
pub(crate) struct DispatcherCounters {
    pub(crate) seconds: CallSeconds,
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) ignored: AtomicU64,
    pub(crate) tokens_ok: AtomicU64,
    pub(crate) tokens_refused: AtomicU64,
    pub(crate) requests_full: AtomicU64,
    pub(crate) request_bytes_full: AtomicU64,
    pub(crate) unread_bytes_full: AtomicU64,
    pub(crate) subscriptions_full: AtomicU64,
    pub(crate) operation_full: AtomicU64,
}

impl DispatcherCounters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn snapshot(&self) -> DispatcherStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DispatcherStats {
            requests: read(&self.requests),
            errors: read(&self.errors),
            panics: read(&self.panics),
            protocol_errors: read(&self.protocol_errors),
            ignored: read(&self.ignored),
            tokens_ok: read(&self.tokens_ok),
            tokens_refused: read(&self.tokens_refused),
            requests_full: read(&self.requests_full),
            request_bytes_full: read(&self.request_bytes_full),
            unread_bytes_full: read(&self.unread_bytes_full),
            subscriptions_full: read(&self.subscriptions_full),
            operation_full: read(&self.operation_full),
        }
    }
}

/// What a dispatcher has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DispatcherStats {
    /// Requests received.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Operations that panicked.
    pub panics: u64,
    /// Streams or connections ended because the peer broke the protocol.
    pub protocol_errors: u64,
    /// Events ignored: of unknown type, or about no known request.
    pub ignored: u64,
    /// Tokens that were valid.
    pub tokens_ok: u64,
    /// Tokens that were unknown or had ended.
    pub tokens_refused: u64,
    /// Requests refused because their connection had its limit in flight.
    pub requests_full: u64,
    /// Requests refused because those of their requester, or all, had reached their limit of bytes.
    pub request_bytes_full: u64,
    /// Answers refused because the unread ones of their requester, or all, had reached their limit of bytes.
    pub unread_bytes_full: u64,
    /// Subscriptions refused because their connection had its limit of them.
    pub subscriptions_full: u64,
    /// Requests refused because their operation had its limit of running calls.
    pub operation_full: u64,
}

impl DispatcherStats {
    /// Adds these numbers to others.
    pub fn collect(&self, into: &mut Metrics) {
        let plain = [
            (
                "alknet_call_requests_total",
                "Requests received.",
                self.requests,
            ),
            (
                "alknet_call_errors_total",
                "Requests answered with an error.",
                self.errors,
            ),
            (
                "alknet_call_protocol_errors_total",
                "Streams or connections ended because the peer broke the protocol.",
                self.protocol_errors,
            ),
            (
                "alknet_call_ignored_total",
                "Events ignored: of unknown type, or about no known request.",
                self.ignored,
            ),
            (
                "alknet_operation_panics_total",
                "Operations that panicked.",
                self.panics,
            ),
        ];
        for (name, help, value) in plain {
            into.counter(name, help, &[], value);
        }
        let tokens = [("ok", self.tokens_ok), ("refused", self.tokens_refused)];
        for (result, value) in tokens {
            let labels = [("method", "token"), ("result", result)];
            into.counter(AUTH.0, AUTH.1, &labels, value);
        }
        let limits = [
            ("operation", self.operation_full),
            ("request_bytes", self.request_bytes_full),
            ("requests", self.requests_full),
            ("subscriptions", self.subscriptions_full),
            ("unread_bytes", self.unread_bytes_full),
        ];
        for (limit, value) in limits {
            into.counter(LIMIT_HITS.0, LIMIT_HITS.1, &[("limit", limit)], value);
        }
    }
}
