//! Limits of one identity, or of one network of unknown peers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_call::limits::bytes_for_memory;
use alknet_core::{MountRequestBudget, NetworkPrefix, PeerId};
use arc_swap::ArcSwap;

use crate::error::ApiError;
use crate::limits;
use crate::memory::{MemoryCaps, MemoryLease};
use crate::request_buckets::{RequestBuckets, RequestRate};

/// The limits that the configuration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests per second of one identity, on average.
    pub per_second: u32,
    /// Requests that one identity may make at once before the average counts.
    pub burst: u32,
    /// Requests per second of the unknown peers of one network, on average.
    pub unknown_peer_per_second: u32,
    /// Requests that they may make at once before the average counts.
    pub unknown_peer_burst: u32,
    /// Concurrent calls of the whole node.
    pub calls: usize,
    /// Concurrent calls of one identity.
    pub calls_each: usize,
    /// Concurrent streams of events of one identity.
    pub streams_each: usize,
    /// Bytes of requests and responses under way for the whole node.
    pub bytes: usize,
    /// Like `bytes`, for one identity.
    pub bytes_each: usize,
    /// Like `bytes`, for all unknown peers together.
    pub unknown_peer_bytes: usize,
    /// Like `bytes`, for the unknown peers of one network.
    pub unknown_peer_bytes_each: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            per_second: limits::REQUESTS_PER_SECOND,
            burst: limits::REQUESTS_BURST,
            unknown_peer_per_second: limits::UNKNOWN_PEER_REQUESTS_PER_SECOND,
            unknown_peer_burst: limits::UNKNOWN_PEER_REQUESTS_BURST,
            calls: limits::CALLS_PER_NODE,
            calls_each: limits::CALLS_PER_IDENTITY,
            streams_each: limits::STREAMS_PER_IDENTITY,
            bytes: 0,
            bytes_each: 0,
            unknown_peer_bytes: 0,
            unknown_peer_bytes_each: 0,
        }
        .with_bytes(limits::BYTES_PER_NODE)
    }
}

impl Quota {
    /// The same limits for a machine with this memory.
    #[must_use]
    pub fn for_memory(self, memory_bytes: u64) -> Self {
        self.with_bytes(bytes_for_memory(memory_bytes))
    }

    /// This quota with this many bytes under way, and the shares of them.
    fn with_bytes(self, bytes: usize) -> Self {
        let unknown_peer_bytes = bytes / limits::BYTES_UNKNOWN_PEERS;
        Self {
            bytes,
            bytes_each: bytes / limits::BYTES_SHARE,
            unknown_peer_bytes,
            unknown_peer_bytes_each: unknown_peer_bytes / limits::BYTES_UNKNOWN_PEERS_SHARE,
            ..self
        }
    }

    fn requests(&self, known: bool) -> RequestRate {
        let (per_second, burst) = match known {
            true => (self.per_second, self.burst),
            false => (self.unknown_peer_per_second, self.unknown_peer_burst),
        };
        RequestRate { per_second, burst }
    }
}

/// The caller against which requests count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum QuotaKey {
    Known(PeerId),
    /// Unknown callers of one network, because a client with one address can easily use others of its network.
    Network(NetworkPrefix),
    /// Callers on a carriage without addresses.
    Nowhere,
}

/// The load of one account.
#[derive(Debug, Default)]
pub(crate) struct QuotaLoad {
    calls: AtomicU32,
    streams: AtomicU32,
    pub(crate) bytes: AtomicUsize,
    /// Bytes of the account's small requests, and as many of each longer one.
    pub(crate) small_bytes: AtomicUsize,
    /// Bytes that requests were granted, and the most of them at once since the start, of the whole node only. Unlike
    /// `bytes` they have none of a request that is about to be refused.
    granted: AtomicUsize,
    peak: AtomicUsize,
}

impl QuotaLoad {
    /// Notes that the node grants counted bytes to a request.
    pub(crate) fn granted(&self, bytes: usize) {
        let now = self.granted.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.peak.fetch_max(now, Ordering::AcqRel);
    }

    /// Notes that a request returns granted bytes.
    pub(crate) fn returned(&self, bytes: usize) {
        self.granted.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// The quota of one identity, or of the unknown peers of one network. The server of a connection keeps it between
/// requests; a weak reference does not prevent its removal.
#[derive(Debug)]
pub struct CallerQuota {
    known: bool,
    requests: Mutex<RequestBuckets>,
    load: QuotaLoad,
}

impl CallerQuota {
    pub(crate) fn load(&self) -> &QuotaLoad {
        &self.load
    }

    fn requests(&self) -> MutexGuard<'_, RequestBuckets> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the requests of all callers.
#[derive(Debug, Default)]
pub(crate) struct HttpRateLimiter {
    quota: ArcSwap<Quota>,
    accounts: Mutex<HashMap<QuotaKey, Arc<CallerQuota>>>,
    /// The load of all unknown peers; only their bytes are counted.
    unknown_peers: Arc<QuotaLoad>,
    all: Arc<QuotaLoad>,
}

/// A permit that a call or a stream holds while it runs.
#[derive(Debug)]
pub(crate) struct ConcurrencyPermit {
    own: Arc<CallerQuota>,
    all: Arc<QuotaLoad>,
    stream: bool,
}

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        let (own, all) = (self.counter(&self.own.load), self.counter(&self.all));
        own.fetch_sub(1, Ordering::AcqRel);
        all.fetch_sub(1, Ordering::AcqRel);
    }
}

impl ConcurrencyPermit {
    fn counter<'a>(&self, load: &'a QuotaLoad) -> &'a AtomicU32 {
        if self.stream {
            &load.streams
        } else {
            &load.calls
        }
    }
}

impl HttpRateLimiter {
    /// A limiter with the limits of `quota`.
    #[must_use]
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            quota: ArcSwap::from_pointee(quota),
            ..Self::default()
        }
    }

    /// Changes the limits from now on.
    pub(crate) fn set_quota(&self, quota: Quota) {
        self.quota.store(Arc::new(quota));
    }

    /// The account of `who`, or of an unknown caller at `address`; a new account has its whole burst.
    pub(crate) fn account(
        &self,
        who: Option<&PeerId>,
        address: Option<IpAddr>,
    ) -> Arc<CallerQuota> {
        self.account_at(who, address, Instant::now())
    }

    fn account_at(
        &self,
        who: Option<&PeerId>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Arc<CallerQuota> {
        let known = who.is_some();
        let who = match (who, address) {
            (Some(id), _) => QuotaKey::Known(id.clone()),
            (None, Some(address)) => QuotaKey::Network(NetworkPrefix::from_ip(address)),
            (None, None) => QuotaKey::Nowhere,
        };
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        // Only a new caller needs room.
        if accounts.len() >= limits::ACCOUNTS_MAX && !accounts.contains_key(&who) {
            forget(&mut accounts, now);
        }
        let quota = self.quota.load();
        let account = accounts.entry(who).or_insert_with(|| {
            let buckets = RequestBuckets::new(quota.requests(known), now);
            Arc::new(CallerQuota {
                known,
                requests: Mutex::new(buckets),
                load: QuotaLoad::default(),
            })
        });
        Arc::clone(account)
    }

    /// Counts one request that began at `now`.
    ///
    /// # Errors
    /// The caller sent too many requests lately.
    pub(crate) fn request(&self, account: &CallerQuota, now: Instant) -> Result<(), ApiError> {
        let rate = self.quota.load().requests(account.known);
        account.requests().take(rate, now).map_err(too_many)
    }

    /// Counts one request to a mount with a budget of its own, which is for each identity. The requests of unknown peers
    /// count as everywhere.
    ///
    /// # Errors
    /// The caller sent too many requests lately.
    pub(crate) fn mount_request(
        &self,
        account: &CallerQuota,
        mount: (&'static str, MountRequestBudget),
        now: Instant,
    ) -> Result<(), ApiError> {
        if !account.known {
            return self.request(account, now);
        }
        let rate = self.quota.load().requests(true);
        let taken = account.requests().take_at_mount(mount, rate, now);
        taken.map_err(too_many)
    }

    /// A permit for a call.
    ///
    /// # Errors
    /// The maximum number of calls runs.
    pub(crate) fn call(&self, account: &Arc<CallerQuota>) -> Result<ConcurrencyPermit, ApiError> {
        self.permit(account, false)
    }

    /// A permit for a stream of events.
    ///
    /// # Errors
    /// The maximum number of streams is open.
    pub(crate) fn stream(&self, account: &Arc<CallerQuota>) -> Result<ConcurrencyPermit, ApiError> {
        self.permit(account, true)
    }

    fn permit(
        &self,
        account: &Arc<CallerQuota>,
        stream: bool,
    ) -> Result<ConcurrencyPermit, ApiError> {
        let quota = self.quota.load();
        let (each, all) = match stream {
            true => (quota.streams_each, usize::MAX),
            false => (quota.calls_each, quota.calls),
        };
        // The permit is made first, so that dropping it returns what was counted.
        let permit = ConcurrencyPermit {
            own: Arc::clone(account),
            all: Arc::clone(&self.all),
            stream,
        };
        let own_count = permit.counter(&permit.own.load);
        let own_count = own_count.fetch_add(1, Ordering::AcqRel) as usize;
        let in_all = permit.counter(&permit.all).fetch_add(1, Ordering::AcqRel) as usize;
        let what = if stream { "streams of events" } else { "calls" };
        if own_count >= each {
            let message = format!("at most {each} {what} at once for one identity");
            return Err(ApiError::overloaded(message, 1000));
        }
        if in_all >= all {
            let message = format!("the node runs {all} {what} at once and no more");
            return Err(ApiError::overloaded(message, 1000));
        }
        Ok(permit)
    }

    /// A lease of memory for a request, of which nothing is taken yet.
    pub(crate) fn lease(&self, account: &Arc<CallerQuota>) -> MemoryLease {
        let quota = self.quota.load();
        let most = MemoryCaps {
            node: quota.bytes,
            unknown_peers: quota.unknown_peer_bytes,
            each: match account.known {
                true => quota.bytes_each,
                false => quota.unknown_peer_bytes_each,
            },
        };
        let unknown_peers = (!account.known).then(|| Arc::clone(&self.unknown_peers));
        MemoryLease::new(
            Arc::clone(account),
            unknown_peers,
            Arc::clone(&self.all),
            most,
        )
    }

    /// Bytes that are counted now.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.all.bytes.load(Ordering::Acquire)
    }

    /// The bytes that requests have been granted: now, the most at once so far, and their limit.
    #[must_use]
    pub(crate) fn granted_bytes(&self) -> [usize; 3] {
        let [now, peak] = [&self.all.granted, &self.all.peak].map(|it| it.load(Ordering::Acquire));
        [now, peak, self.quota.load().bytes]
    }

    /// The number of running calls and streams.
    #[must_use]
    pub(crate) fn running(&self) -> (u32, u32) {
        let read = |counter: &AtomicU32| counter.load(Ordering::Acquire);
        (read(&self.all.calls), read(&self.all.streams))
    }
}

fn too_many(wait: Duration) -> ApiError {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    ApiError::overloaded("too many requests; send fewer", wait_ms)
}

/// Makes room: a caller without recent requests and without running work counts as new at its next request.
fn forget(accounts: &mut HashMap<QuotaKey, Arc<CallerQuota>>, now: Instant) {
    const LONG: Duration = Duration::from_secs(60);
    // Only the table refers to the account: no connection and no call does.
    let idle = |account: &Arc<CallerQuota>| Arc::strong_count(account) == 1;
    let quiet = |account: &CallerQuota| now.saturating_duration_since(account.requests().last());
    accounts.retain(|_, account| !idle(account) || quiet(account) < LONG);
    while accounts.len() >= limits::ACCOUNTS_MAX {
        let oldest = accounts.iter().filter(|(_, account)| idle(account));
        let oldest = oldest.min_by_key(|(_, account)| account.requests().last());
        // All accounts are in use, so the table exceeds its limit until some are released.
        let Some(who) = oldest.map(|(who, _)| who.clone()) else {
            return;
        };
        accounts.remove(&who);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn limiter() -> HttpRateLimiter {
        HttpRateLimiter::new(Quota {
            per_second: 10,
            burst: 3,
            unknown_peer_per_second: 1,
            unknown_peer_burst: 1,
            calls: 3,
            calls_each: 2,
            streams_each: 1,
            bytes: 64 * limits::SMALL_BYTES,
            bytes_each: 32 * limits::SMALL_BYTES,
            unknown_peer_bytes: 16 * limits::SMALL_BYTES,
            unknown_peer_bytes_each: 4 * limits::SMALL_BYTES,
        })
    }

    #[test]
    fn bytes_are_counted_for_the_node_and_for_each_and_given_back() {
        let limiter = limiter();
        let account = |name: &str| limiter.account(Some(&name.parse().expect("an id")), None);
        let (ada, bob, eve) = (account("ada"), account("bob"), account("eve"));
        let small = limits::SMALL_BYTES;
        let first = limiter.lease(&ada);
        first.more(30 * small).expect("room");
        let code = |refused: Result<(), ApiError>| refused.expect_err("refused").status.as_u16();
        assert_eq!(code(limiter.lease(&ada).more(3 * small)), 429, "of ada's");
        assert_eq!(code(limiter.lease(&bob).more(33 * small)), 413, "never");
        let second = limiter.lease(&bob);
        second.more(10 * small).expect("room");
        assert_eq!(
            code(limiter.lease(&eve).more(small + 1)),
            429,
            "kept for small ones"
        );
        let third = limiter.lease(&eve);
        for _ in 0..4 {
            third.more(small / 16).expect("room");
        }
        assert_eq!(code(third.more(small / 2)), 429, "kept for others");
        assert_eq!(limiter.bytes(), 40 * small + small / 4);
        first.less(10 * small);
        limiter.lease(&eve).more(2 * small).expect("room again");
        drop((first, second, third));
        assert_eq!(limiter.bytes(), 0);
        let peak = 40 * small + small / 4;
        assert_eq!(
            limiter.granted_bytes(),
            [0, peak, 64 * small],
            "without what was refused"
        );
    }

    /// They send what is counted for them, in small requests that they do not end.
    #[test]
    fn two_identities_leave_others_what_is_kept_for_small_requests() {
        let (limiter, small) = (limiter(), limits::SMALL_BYTES);
        let account = |name: &str| limiter.account(Some(&name.parse().expect("an id")), None);
        let takes_all = |account: &Arc<CallerQuota>, piece: usize| {
            let next = || {
                let lease = limiter.lease(account);
                lease.more(piece).is_ok().then_some(lease)
            };
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        let ada = account("ada");
        let mut held = takes_all(&ada, small);
        held.extend(takes_all(&account("bob"), small));
        assert_eq!(limiter.bytes(), 40 * small);
        // Others who take all that they may leave the next one something.
        for n in 0..40 {
            held.extend(takes_all(&account(&format!("other-{n}")), 1 << 10));
        }
        assert!(limiter.bytes() > 54 * small, "{}", limiter.bytes());
        let eve = limiter.lease(&account("eve"));
        assert!(eve.reserve().is_ok());
        drop((held, eve));
        let small_bytes = ada.load.small_bytes.load(Ordering::Acquire);
        assert_eq!((limiter.bytes(), small_bytes), (0, 0));
    }

    /// Long bodies, or many small ones: what is left is for long requests of others as well.
    #[test]
    fn two_identities_leave_others_long_requests() {
        const MIB: usize = 1 << 20;
        let limiter = HttpRateLimiter::new(Quota::default().for_memory(512 << 20));
        let account = |name: &str| limiter.account(Some(&name.parse().expect("an id")), None);
        for piece in [limits::CALL_BYTES_MAX, MIB, limits::SMALL_BYTES] {
            let takes_all = |name: &str| {
                let next = || {
                    let lease = limiter.lease(&account(name));
                    lease.more(piece).is_ok().then_some(lease)
                };
                std::iter::from_fn(next).collect::<Vec<_>>()
            };
            let held = (takes_all("ada"), takes_all("bob"));
            assert!(limiter.bytes() >= 40 * MIB, "{piece}: {}", limiter.bytes());
            // A body of 128 KiB, and its answer; another identity after it.
            for name in ["eve", "dan"] {
                let lease = limiter.lease(&account(name));
                lease.more(128 << 10).expect("the body has room");
                let reserve = lease.reserve().expect("so has the least of an answer");
                reserve.answer(128 << 10).expect("and all of it");
            }
            drop(held);
            assert_eq!(limiter.bytes(), 0);
        }
    }

    /// Each of their requests is a small one.
    #[test]
    fn unknown_peers_of_many_networks_leave_known_ones_their_bytes() {
        let (limiter, small) = (limiter(), limits::SMALL_BYTES);
        let mut held = Vec::new();
        for n in 0..100 {
            let address = Ipv4Addr::new(192, 0, n, 1).into();
            let account = limiter.account(None, Some(address));
            held.extend((0..10).map(|_| limiter.lease(&account)));
        }
        let had = held.iter().filter(|lease| lease.more(small).is_ok());
        assert_eq!(had.count(), 16, "four of each of four networks");
        assert_eq!(
            held.iter().filter(|lease| lease.could(1).is_ok()).count(),
            0
        );
        let account = |name: &str| limiter.account(Some(&name.parse().expect("an id")), None);
        let (ada, bob) = (
            limiter.lease(&account("ada")),
            limiter.lease(&account("bob")),
        );
        ada.more(24 * small).expect("room");
        bob.more(small / 2).expect("room");
        drop((held, ada, bob));
        assert_eq!(
            (
                limiter.bytes(),
                limiter.unknown_peers.bytes.load(Ordering::Acquire)
            ),
            (0, 0)
        );
    }

    #[test]
    fn an_answer_has_the_least_that_it_takes_before_its_call_runs() {
        let (limiter, small) = (limiter(), limits::SMALL_BYTES);
        let ada = limiter.account(Some(&"ada".parse().expect("an id")), None);
        let (rest, lease) = (limiter.lease(&ada), limiter.lease(&ada));
        let reserve = lease.reserve().expect("room");
        rest.more(32 * small - limits::ANSWER_BYTES_MIN)
            .expect("room");
        assert!(limiter.lease(&ada).reserve().is_err());
        reserve
            .answer(limits::ANSWER_BYTES_MIN)
            .expect("it was kept");
        drop(rest);
        assert_eq!(limiter.bytes(), limits::ANSWER_BYTES_MIN);
        let late = lease.reserve().expect("room").answer(33 * small);
        assert_eq!(late.expect_err("never").status.as_u16(), 413);
        lease.settle(100).expect("less");
        assert_eq!(limiter.bytes(), 100);
    }

    #[test]
    fn a_machine_with_less_memory_takes_less() {
        let bytes = |memory: u64| Quota::default().for_memory(memory).bytes;
        assert_eq!(bytes(512 << 20), 64 << 20);
        assert_eq!(bytes(0), limits::BYTES_PER_NODE_MIN);
        assert_eq!(bytes(u64::MAX), limits::BYTES_PER_NODE);
    }

    #[test]
    fn a_burst_is_used_up_and_fills_again() {
        let (limiter, who) = (limiter(), "ada".parse().expect("an id"));
        let start = Instant::now();
        let account = limiter.account_at(Some(&who), None, start);
        for _ in 0..3 {
            assert!(limiter.request(&account, start).is_ok());
        }
        let refused = limiter.request(&account, start).expect_err("used up");
        assert_eq!(refused.error.retry_after_ms, Some(100));
        let later = start + Duration::from_millis(100);
        assert!(limiter.request(&account, later).is_ok());
        assert!(limiter.request(&account, later).is_err());
        let same = limiter.account_at(Some(&who), None, later);
        assert!(Arc::ptr_eq(&account, &same), "it is found again");
        let other = "bob".parse().expect("an id");
        let other = limiter.account_at(Some(&other), None, later);
        assert!(limiter.request(&other, later).is_ok());
        limiter.set_quota(Quota {
            per_second: 1000,
            ..Quota::default()
        });
        let later = later + Duration::from_millis(1);
        assert!(
            limiter.request(&account, later).is_ok(),
            "a new quota counts"
        );
    }

    #[test]
    fn unknown_peers_are_counted_by_their_network() {
        let limiter = limiter();
        let now = Instant::now();
        let ask = |text: &str| {
            let address = text.parse().expect("an address");
            limiter.request(&limiter.account_at(None, Some(address), now), now)
        };
        assert!(ask("2001:db8::1").is_ok());
        assert!(ask("2001:db8:0:1::1").is_err());
        assert!(ask("2001:db8:0:100::1").is_ok());
        assert!(ask("192.0.2.1").is_ok());
        assert!(ask("::ffff:192.0.2.2").is_err());
    }

    #[test]
    fn places_are_given_back_the_refused_ones_too() {
        let limiter = limiter();
        let account = |name: &str| limiter.account(Some(&name.parse().expect("an id")), None);
        let (ada, bob) = (account("ada"), account("bob"));
        let places: Vec<_> = (0..2).map(|_| limiter.call(&ada).expect("room")).collect();
        assert!(limiter.call(&ada).is_err());
        assert!(limiter.stream(&ada).is_ok(), "counted apart");
        let third = limiter.call(&bob).expect("room");
        assert!(limiter.call(&bob).is_err(), "the node is full");
        drop((places, third));
        assert_eq!(limiter.running(), (0, 0));
    }

    #[test]
    fn accounts_are_bounded() {
        let limiter = limiter();
        let now = Instant::now();
        let address = |n: u32| Some(IpAddr::V4((0x0a00_0000 + (n << 8)).into()));
        let at = |n: u32| limiter.account_at(None, address(n), now);
        let oldest = limiter.account_at(None, address(1), now - Duration::from_secs(1));
        let (held, weak) = (at(0), Arc::downgrade(&oldest));
        drop(oldest);
        for n in 2..limits::ACCOUNTS_MAX as u32 + 10 {
            assert!(limiter.request(&at(n), now).is_ok());
        }
        let kept = limiter.accounts.lock().expect("no panic").len();
        assert!(kept <= limits::ACCOUNTS_MAX);
        assert!(Arc::ptr_eq(&held, &at(0)), "what is in use stays");
        assert!(weak.upgrade().is_none(), "what is not, does not");
    }
}
