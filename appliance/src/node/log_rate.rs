//! Rate limits for records that peers, servers and callers can cause as often as they like.
//!
//! The ring has a megabyte: without a rate, one server that repeats a request would push out all
//! other records.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_call::CAUSE_TARGET;
use alknet_http::UNKNOWN_ACCESS_TARGET;
use alknet_hub::ENROL_REFUSED_TARGET;
use alknet_sessions::{CONSOLE_TARGET, SESSION_END_TARGET};
use alknet_worker::WORKER_LOSS_TARGET;
use tracing::Event;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};

use super::log_ring::{SITE_END, site_and_network};

/// The period in which records are counted.
pub(crate) const RATE_PERIOD: Duration = Duration::from_secs(60);
/// Maximum number of records that each call site in a library has in a period.
pub(crate) const LIBRARY_RECORDS_MAX: u32 = 10;
/// Maximum number of records of failed servers and peers that each call site has in a period. A
/// record has 4 KiB at most, so they take a quarter of the ring.
const CAUSE_RECORDS_MAX: u32 = 60;
/// Maximum number of those for one operation: a caller can make it fail as often as it likes.
const CAUSE_RECORDS_OF_OPERATION: u32 = 10;
/// Maximum number of those for one namespace: a server can have a thousand operations, and let each
/// fail.
const CAUSE_RECORDS_OF_NAMESPACE: u32 = 30;
/// Number of those that are reserved for the first record of a namespace: if many servers fail
/// together, each of the others still has one record.
const CAUSE_RECORDS_OF_FIRSTS: u32 = 20;
/// Lines of scripts, of each level that scripts write them at, in a period. As many as those above, and as long.
const SCRIPT_RECORDS_MAX: u32 = 60;
/// The part of these lines for scripts of one owner: it can open as many sessions as it likes, one after another.
const SCRIPT_RECORDS_OF_OWNER: u32 = 30;
/// The part of these lines that only the first line of an owner may take.
const SCRIPT_RECORDS_OF_FIRSTS: u32 = 10;
/// Lines for requests without an identity in a period: ten a second.
const UNKNOWN_REQUESTS_MAX: u32 = 600;
/// The part of these lines for one network.
const UNKNOWN_REQUESTS_OF_NETWORK: u32 = 120;
/// The part of these lines for all networks of one site, two networks' lines: one client may have all 256 networks of
/// an IPv6 /48.
const UNKNOWN_REQUESTS_OF_SITE: u32 = 240;
/// Those that only the first request of a site may take.
const UNKNOWN_REQUESTS_OF_FIRSTS: u32 = 100;
/// The field that names the operation in a record of a failed server or peer.
const OPERATION_FIELD: &str = "operation";
/// The field of the same meaning for a whole import, which names its namespace.
const IMPORT_FIELD: &str = "import";
/// The field that names whose script wrote a line.
const OWNER_FIELD: &str = "owner";
/// Target of what the node says of its imports: a server decides how often it is read again, and how that fails.
pub(crate) const IMPORT_TARGET: &str = "alknet::imports";
/// The namespace of promoted operations, each of which has another author.
const PROMOTED_NAMESPACE: &str = "js";

/// What the records of one target may take.
struct RecordRate {
    /// Maximum number of records that each call site has in a period.
    records_max: u32,
    /// How payers share these records. `None` if a record has no payer.
    shares: Option<PayerShares>,
}

/// How the payers of a call site's records share them. A payer is an operation, the owner of a script, or a network.
struct PayerShares {
    /// The payer of a record.
    payer: fn(&Event<'_>) -> String,
    /// The group of a payer.
    group: fn(&str) -> &str,
    /// Maximum number of records of one payer.
    of_payer: u32,
    /// Maximum number of records of the payers of one group.
    of_group: u32,
    /// Number of records that only the first one of a group may take.
    firsts: u32,
}

/// Rate of what says why servers, peers and imports failed.
const CAUSES: RecordRate = RecordRate {
    records_max: CAUSE_RECORDS_MAX,
    shares: Some(PayerShares {
        payer: PayerField::of_event,
        group: namespace,
        of_payer: CAUSE_RECORDS_OF_OPERATION,
        of_group: CAUSE_RECORDS_OF_NAMESPACE,
        firsts: CAUSE_RECORDS_OF_FIRSTS,
    }),
};
/// Rate of the lines of scripts, and of what their workers cause. Each owner is a group of its own.
const SCRIPT_LINES: RecordRate = RecordRate {
    records_max: SCRIPT_RECORDS_MAX,
    shares: Some(PayerShares {
        payer: PayerField::of_event,
        group: |owner| owner,
        of_payer: SCRIPT_RECORDS_OF_OWNER,
        of_group: SCRIPT_RECORDS_OF_OWNER,
        firsts: SCRIPT_RECORDS_OF_FIRSTS,
    }),
};
/// Rate of the lines for requests without an identity, in the access log and to join a hub. The networks of a site are a
/// group.
const UNKNOWN_REQUESTS: RecordRate = RecordRate {
    records_max: UNKNOWN_REQUESTS_MAX,
    shares: Some(PayerShares {
        payer: site_and_network,
        group: site,
        of_payer: UNKNOWN_REQUESTS_OF_NETWORK,
        of_group: UNKNOWN_REQUESTS_OF_SITE,
        firsts: UNKNOWN_REQUESTS_OF_FIRSTS,
    }),
};
/// Rate of what libraries say.
const LIBRARIES: RecordRate = RecordRate {
    records_max: LIBRARY_RECORDS_MAX,
    shares: None,
};
/// The node's own targets whose records have a rate. What it says of itself has limits where it happens, but for these.
static RATES: [(&str, RecordRate); 7] = [
    (CAUSE_TARGET, CAUSES),
    (IMPORT_TARGET, CAUSES),
    (CONSOLE_TARGET, SCRIPT_LINES),
    (SESSION_END_TARGET, SCRIPT_LINES),
    (WORKER_LOSS_TARGET, SCRIPT_LINES),
    (UNKNOWN_ACCESS_TARGET, UNKNOWN_REQUESTS),
    (ENROL_REFUSED_TARGET, UNKNOWN_REQUESTS),
];

/// Counts of records by call site. The program has a fixed number of call sites.
pub(crate) struct LogRates<K = Identifier> {
    call_sites: Mutex<HashMap<K, RatePeriod>>,
    /// Whether a call site may have left records out. Most records need no further check.
    has_left_out: AtomicBool,
}

/// Counts of one call site since `since`.
struct RatePeriod {
    target: &'static str,
    rate: &'static RecordRate,
    since: Instant,
    records: u32,
    left_out: u64,
    used: UsedShares,
}

/// The payers and their groups that used a call site's records. Only records that are kept add a
/// name, so there are no more names than records.
#[derive(Default)]
struct UsedShares {
    payers: HashMap<Box<str>, u32>,
    groups: HashMap<Box<str>, u32>,
}

/// A record with a rate limit.
struct RatedRecord<'a, K> {
    call_site: K,
    target: &'static str,
    rate: &'static RecordRate,
    /// Whose share it takes: the operation that it is about, for records of why servers and peers failed, the owner of
    /// a script, for its lines, and the network, for requests of unknown peers.
    payer: Option<&'a str>,
}

/// The decision about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RateDecision {
    /// The log keeps the record. In the period before, the call site left this many out.
    Keep { left_out: u64 },
    /// The call site has reached its limit.
    LeaveOut,
}

/// Records that were left out, and that no later record of their call site has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeftOutRecords {
    /// The target of the call site.
    pub(crate) target: &'static str,
    /// Number of records that were left out.
    pub(crate) left_out: u64,
}

impl<K> Default for LogRates<K> {
    fn default() -> Self {
        Self {
            call_sites: Mutex::default(),
            has_left_out: AtomicBool::new(false),
        }
    }
}

impl LogRates {
    /// Counts a record and decides about it.
    pub(crate) fn count(&self, event: &Event<'_>, now: Instant) -> RateDecision {
        let metadata = event.metadata();
        let target = metadata.target();
        let Some(rate) = rate_of(target) else {
            return RateDecision::Keep { left_out: 0 };
        };
        let payer = rate.shares.as_ref().map(|shares| (shares.payer)(event));
        let record = RatedRecord {
            call_site: metadata.callsite(),
            target,
            rate,
            payer: payer.as_deref(),
        };
        self.count_at(record, now)
    }
}

impl<K: Eq + Hash> LogRates<K> {
    fn count_at(&self, record: RatedRecord<'_, K>, now: Instant) -> RateDecision {
        let RatedRecord {
            call_site,
            target,
            rate,
            payer,
        } = record;
        let begun = || RatePeriod::new(target, rate, now);
        let mut call_sites = self.lock();
        let period = call_sites.entry(call_site).or_insert_with(begun);
        let mut left_out = 0;
        if period.has_ended(now) {
            left_out = period.left_out;
            *period = begun();
        }
        if period.takes(payer) {
            return RateDecision::Keep { left_out };
        }
        period.left_out += 1;
        self.has_left_out.store(true, Ordering::Relaxed);
        RateDecision::LeaveOut
    }

    /// Reports the records that were left out in ended periods, each once: the next record of the
    /// same call site may never come.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<LeftOutRecords> {
        if !self.has_left_out.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut call_sites = self.lock();
        let mut overdue = Vec::new();
        let mut more_later = false;
        for period in call_sites.values_mut().filter(|period| period.left_out > 0) {
            if !period.has_ended(now) {
                more_later = true;
                continue;
            }
            overdue.push(LeftOutRecords {
                target: period.target,
                left_out: std::mem::take(&mut period.left_out),
            });
        }
        self.has_left_out.store(more_later, Ordering::Relaxed);
        overdue
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, RatePeriod>> {
        self.call_sites
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl RatePeriod {
    fn new(target: &'static str, rate: &'static RecordRate, now: Instant) -> Self {
        Self {
            target,
            rate,
            since: now,
            records: 0,
            left_out: 0,
            used: UsedShares::default(),
        }
    }

    fn has_ended(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= RATE_PERIOD
    }

    /// Whether the call site may have one more record. Counts it if so.
    fn takes(&mut self, payer: Option<&str>) -> bool {
        let is_kept = match (&self.rate.shares, payer) {
            (Some(shares), Some(payer)) => {
                self.used
                    .takes(shares, payer, self.records, self.rate.records_max)
            }
            _ => self.records < self.rate.records_max,
        };
        self.records += u32::from(is_kept);
        is_kept
    }
}

impl UsedShares {
    /// Whether a record of `payer` is kept, when the call site already has `records` of at most `records_max`. Counts
    /// it if so.
    fn takes(&mut self, shares: &PayerShares, payer: &str, records: u32, records_max: u32) -> bool {
        let group = (shares.group)(payer);
        let of_payer = self.payers.get(payer).copied().unwrap_or_default();
        let of_group = self.groups.get(group).copied().unwrap_or_default();
        let most = match of_group {
            0 => records_max,
            _ => records_max - shares.firsts,
        };
        let is_kept = records < most && of_payer < shares.of_payer && of_group < shares.of_group;
        if is_kept {
            self.payers.insert(payer.into(), of_payer + 1);
            self.groups.insert(group.into(), of_group + 1);
        }
        is_kept
    }
}

/// Finds whose share a record takes.
#[derive(Default)]
struct PayerField(String);

impl PayerField {
    /// The operation's name. Empty if the record has none.
    fn of_event(event: &Event<'_>) -> String {
        let mut found = Self::default();
        event.record(&mut found);
        found.0
    }
}

impl Visit for PayerField {
    // The places that write such records give a string.
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if [OPERATION_FIELD, IMPORT_FIELD, OWNER_FIELD].contains(&field.name()) {
            value.clone_into(&mut self.0);
        }
    }
}

/// The group of an operation whose failures are recorded: its namespace.
fn namespace(operation: &str) -> &str {
    match operation.split('/').next().unwrap_or_default() {
        // A caller that can make three of them fail must not hide why the others do.
        PROMOTED_NAMESPACE => operation,
        namespace => namespace,
    }
}

/// The group of a client without an identity: the site of its network.
fn site(network: &str) -> &str {
    network.split(SITE_END).next().unwrap_or_default()
}

/// The rate of a target's records. `None` if they have no rate.
fn rate_of(target: &str) -> Option<&'static RecordRate> {
    let own = RATES.iter().find(|(rated, _)| *rated == target);
    match own {
        Some((_, rate)) => Some(rate),
        None => (!target.starts_with("alknet")).then_some(&LIBRARIES),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use tracing::Subscriber;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    const KEPT: RateDecision = RateDecision::Keep { left_out: 0 };

    fn of_library(call_site: &'static str) -> RatedRecord<'static, &'static str> {
        RatedRecord {
            call_site,
            target: "rmcp::service",
            rate: &LIBRARIES,
            payer: None,
        }
    }

    fn of_cause(operation: &str) -> RatedRecord<'_, &'static str> {
        RatedRecord {
            call_site: "a failure",
            target: CAUSE_TARGET,
            rate: &CAUSES,
            payer: Some(operation),
        }
    }

    fn of_script(owner: &str) -> RatedRecord<'_, &'static str> {
        RatedRecord {
            call_site: "a line",
            target: CONSOLE_TARGET,
            rate: &SCRIPT_LINES,
            payer: Some(owner),
        }
    }

    #[test]
    fn lines_of_scripts_have_a_share_for_each_owner_and_one_for_all() {
        let rates = LogRates::default();
        let start = Instant::now();
        let kept = |owner: &str, times: u32| {
            let all = (0..times).filter(|_| rates.count_at(of_script(owner), start) == KEPT);
            all.count() as u32
        };
        assert_eq!(kept("a", 100_000), SCRIPT_RECORDS_OF_OWNER);
        let rest = SCRIPT_RECORDS_MAX - SCRIPT_RECORDS_OF_FIRSTS - SCRIPT_RECORDS_OF_OWNER;
        assert_eq!(kept("b", 100_000), rest);
        assert_eq!(kept("c", 100), 1, "the first line of an owner has a place");
        assert_eq!(kept("c", 100), 0);
    }

    #[test]
    fn requests_of_a_network_have_a_share_and_other_networks_a_first_line() {
        let rates = LogRates::default();
        let start = Instant::now();
        let kept = |network: &str, times: u32| {
            let request = || RatedRecord {
                call_site: "a request",
                target: UNKNOWN_ACCESS_TARGET,
                rate: &UNKNOWN_REQUESTS,
                payer: Some(network),
            };
            let all = (0..times).filter(|_| rates.count_at(request(), start) == KEPT);
            all.count() as u32
        };
        assert_eq!(kept("192.0.2.0", 5_000), UNKNOWN_REQUESTS_OF_NETWORK);
        for network in 0..10 {
            kept(&format!("198.51.{network}.0"), 5_000);
        }
        assert_eq!(kept("203.0.113.0", 100), 1);
    }

    /// Counts events at the time `at`.
    struct CountingLayer {
        rates: LogRates,
        at: Instant,
        count: Arc<AtomicU32>,
    }

    impl<S: Subscriber> Layer<S> for CountingLayer {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let is_kept = self.rates.count(event, self.at) == KEPT;
            self.count.fetch_add(u32::from(is_kept), Ordering::Relaxed);
        }
    }

    /// One client has all 256 networks of an IPv6 /48.
    #[test]
    fn all_networks_of_a_site_have_one_share_and_other_networks_theirs() {
        let kept = Arc::new(AtomicU32::new(0));
        let subscriber = tracing_subscriber::registry().with(CountingLayer {
            rates: LogRates::default(),
            at: Instant::now(),
            count: Arc::clone(&kept),
        });
        let requests = |addr: &str, times: u32| {
            for _ in 0..times {
                tracing::info!(target: UNKNOWN_ACCESS_TARGET, addr = %addr, who = "-", "http.request");
            }
            kept.swap(0, Ordering::Relaxed)
        };
        let joins = |addr: &str, times: u32| {
            for _ in 0..times {
                tracing::info!(target: ENROL_REFUSED_TARGET, addr = %addr, "enrol.refused");
            }
            kept.swap(0, Ordering::Relaxed)
        };
        let have_shares = |lines: &dyn Fn(&str, u32) -> u32| {
            let network = |n: u32| format!("[2001:db8:0:{n:x}00::1]:51123");
            let first = lines(&network(0), 200);
            assert_eq!(first, UNKNOWN_REQUESTS_OF_NETWORK);
            let of_site: u32 = (1..256).map(|n| lines(&network(n), 200)).sum();
            assert_eq!(first + of_site, UNKNOWN_REQUESTS_OF_SITE);
            for other in ["192.0.2.7:51123", "[2001:db8:1::1]:51123"] {
                assert_eq!(lines(other, 1), 1, "{other}");
            }
        };
        // Through a relay a client has a key and no address. All of them have the share of one site.
        let relayed = |key8: &str, times: u32| {
            let addr = None::<&str>;
            for _ in 0..times {
                tracing::info!(target: ENROL_REFUSED_TARGET, key8, addr, "enrol.refused");
            }
            kept.swap(0, Ordering::Relaxed)
        };
        tracing::subscriber::with_default(subscriber, || {
            have_shares(&requests);
            have_shares(&joins);
            assert_eq!(relayed("mallory1", 200), UNKNOWN_REQUESTS_OF_NETWORK);
            assert_eq!(relayed("ada00001", 1), 1, "another client has its own");
            let of_keys: u32 = (0..256).map(|n| relayed(&format!("{n:08}"), 200)).sum();
            let all = UNKNOWN_REQUESTS_OF_NETWORK + 1 + of_keys;
            assert_eq!(all, UNKNOWN_REQUESTS_OF_SITE);
            assert_eq!(joins("192.0.2.8:51123", 1), 1);
        });
    }

    #[test]
    fn ends_of_sessions_and_workers_have_the_share_of_their_owner() {
        for target in [SESSION_END_TARGET, WORKER_LOSS_TARGET] {
            let rates = LogRates::default();
            let start = Instant::now();
            let kept = |owner: &str, times: u32| {
                let end = || RatedRecord {
                    call_site: "an end",
                    target,
                    rate: rate_of(target).expect("it has a rate"),
                    payer: Some(owner),
                };
                let all = (0..times).filter(|_| rates.count_at(end(), start) == KEPT);
                all.count() as u32
            };
            assert_eq!(kept("a", 1_000), SCRIPT_RECORDS_OF_OWNER, "{target}");
            assert_eq!(kept("b", 1), 1, "{target}");
        }
    }

    #[test]
    fn promoted_operations_that_fail_hide_no_failure_of_another() {
        let rates = LogRates::default();
        let start = Instant::now();
        let kept = |operation: &str, times: u32| {
            let all = (0..times).filter(|_| rates.count_at(of_cause(operation), start) == KEPT);
            all.count()
        };
        for operation in ["js/a", "js/b", "js/c"] {
            assert_eq!(kept(operation, 60), CAUSE_RECORDS_OF_OPERATION as usize);
        }
        assert_eq!(kept("js/pay", 1), 1);
        assert_eq!(kept("forge/a", 1), 1);
    }

    #[test]
    fn each_place_of_a_library_has_a_rate_and_says_what_was_left_out() {
        let rates = LogRates::default();
        let start = Instant::now();
        let count = |now| rates.count_at(of_library("one place"), now);
        for _ in 0..LIBRARY_RECORDS_MAX {
            assert_eq!(count(start), KEPT);
        }
        for _ in 0..7 {
            assert_eq!(count(start), RateDecision::LeaveOut);
        }
        assert_eq!(rates.count_at(of_library("another"), start), KEPT);
        let later = start + RATE_PERIOD;
        assert_eq!(count(later), RateDecision::Keep { left_out: 7 });
        assert_eq!(count(later), KEPT);
        assert_eq!(rates.overdue(later + RATE_PERIOD), []);
    }

    #[test]
    fn what_a_place_left_out_does_not_wait_for_its_next_record() {
        let rates = LogRates::default();
        let start = Instant::now();
        for _ in 0..LIBRARY_RECORDS_MAX + 7 {
            rates.count_at(of_library("one place"), start);
        }
        assert_eq!(rates.overdue(start), [], "the period goes on");
        let later = start + RATE_PERIOD;
        let expected = LeftOutRecords {
            target: "rmcp::service",
            left_out: 7,
        };
        assert_eq!(rates.overdue(later), [expected]);
        assert_eq!(rates.overdue(later), [], "it was said");
        assert_eq!(rates.count_at(of_library("one place"), later), KEPT);
    }

    #[test]
    fn a_failure_that_comes_again_and_again_leaves_records_to_others() {
        let rates = LogRates::default();
        let start = Instant::now();
        let kept = |operation: &str, times: u32| {
            let all = (0..times).filter(|_| rates.count_at(of_cause(operation), start) == KEPT);
            all.count()
        };
        let of_operation = CAUSE_RECORDS_OF_OPERATION as usize;
        assert_eq!(kept("forge/a", 60), of_operation);
        assert_eq!(kept("forge/b", 1), 1);
        assert_eq!(kept("mail/send", 60), of_operation);
        // A server with many operations has its share, and leaves the other servers theirs.
        let all: usize = (0..100).map(|n| kept(&format!("forge/{n}"), 1)).sum();
        assert!(all < CAUSE_RECORDS_OF_NAMESPACE as usize, "{all}");
        assert_eq!(kept("pay/charge", 1), 1);
    }

    #[test]
    fn failures_of_many_servers_leave_the_next_one_a_record() {
        let rates = LogRates::default();
        let start = Instant::now();
        let kept = |operation: &str| rates.count_at(of_cause(operation), start) == KEPT;
        let mut all = 0;
        for server in 0..10 {
            for n in 0..100 {
                all += u32::from(kept(&format!("s{server}/{n}")));
            }
        }
        assert!(all < CAUSE_RECORDS_MAX, "{all}");
        assert!(kept("pay/charge"), "after {all} records");
        // The sum holds whatever names the operations have.
        let more = (0..200).filter(|n| kept(&format!("t{n}/x"))).count();
        assert_eq!(all as usize + 1 + more, CAUSE_RECORDS_MAX as usize);
    }

    #[test]
    fn the_node_s_own_records_have_no_rate_but_for_why_servers_failed() {
        let records_max = |target| rate_of(target).map(|rate| rate.records_max);
        for target in ["alknet_endpoint::accept", "alknet_sessions::host"] {
            assert_eq!(records_max(target), None, "{target}");
        }
        for (target, most) in [
            (CAUSE_TARGET, CAUSE_RECORDS_MAX),
            (IMPORT_TARGET, CAUSE_RECORDS_MAX),
            (CONSOLE_TARGET, SCRIPT_RECORDS_MAX),
            (UNKNOWN_ACCESS_TARGET, UNKNOWN_REQUESTS_MAX),
            ("rmcp::service", LIBRARY_RECORDS_MAX),
        ] {
            assert_eq!(records_max(target), Some(most), "{target}");
        }
    }
}
