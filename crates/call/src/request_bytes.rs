//! Bytes of running requests, of incomplete frames, and of unread answers: each of the three has an account of its
//! own, with the same shares.

mod claim;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_core::{Identity, NetworkPrefix, PeerId, SitePrefix};
use tokio::sync::Notify;

use crate::error::CallError;
use crate::limits::{
    BYTES_PER_NODE, BYTES_SHARE, BYTES_SITE_SHARE, BYTES_SUBSCRIPTIONS, BYTES_SUBSCRIPTIONS_SHARE,
    BYTES_UNKNOWN_PEERS, BYTES_UNKNOWN_PEERS_SHARE, REQUEST_BYTES_FREE, leaves_capacity,
};
use crate::sync::lock;
pub(crate) use claim::RequestClaim;

/// Counts the bytes of requests that came in frames, for their requesters and for the node, from admission to the end
/// of the run: a handler may keep its input while it runs, and the run of an idempotency key outlives the request and
/// its connection. Without a bound a requester could have this node pass inputs on to a peer that reads them and
/// answers none.
#[derive(Debug)]
pub(crate) struct RequestBytes {
    bounds: RequestByteLimits,
    counted: Mutex<RequestByteTotals>,
    /// [`RequestByteTotals::node`], for [`has_capacity`](Self::has_capacity), which runs for every event.
    node: AtomicUsize,
    /// Notified when a claim gives bytes back.
    given_back: Notify,
}

/// The most bytes at once.
#[derive(Clone, Copy, Debug)]
struct RequestByteLimits {
    node: usize,
    each: usize,
    unknown_peers: usize,
    unknown_each: usize,
    site: usize,
    subscriptions: usize,
    subscriptions_each: usize,
}

#[derive(Debug, Default)]
struct RequestByteTotals {
    node: usize,
    unknown_peers: RequesterTotals,
    subscriptions: usize,
    each: HashMap<Requester, RequesterTotals>,
    /// The bytes of the unknown peers of all networks of a site together.
    sites: HashMap<SitePrefix, usize>,
}

/// The bytes of one requester, or of all unknown peers.
#[derive(Clone, Copy, Debug, Default)]
struct RequesterTotals {
    bytes: usize,
    /// Of these, the bytes of subscriptions.
    subscriptions: usize,
}

/// Why the node keeps the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestRetention {
    /// Until an answer, which has a deadline.
    Once,
    /// For as long as a subscription runs, which need not end.
    Subscribed,
}

/// The room that a claim needs to [grow](RequestBytes::grow).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrowLimit {
    /// None: the bytes are in memory already.
    Anyway,
    /// Some room has to be left before it grows. The claim may then exceed it once, because an event's length shows
    /// only when the event is made, and the node would wait without end for room for one that is always too long.
    Begins,
    /// With it the requester has at most half of the room that there would be. The other half is for the answers that
    /// it reads: where waiting events had all, it could read none of them.
    Half,
    /// Like `Half`; or its requester has nothing else, and then some room has to be left: of the events that wait to be
    /// passed on, one always has room, whatever others have.
    First,
    /// Room for all of it has to be left.
    Wholly,
}

/// Requests of one requester count together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Requester {
    Known(PeerId),
    /// Unknown peers of one network.
    Network(NetworkPrefix),
    /// Unknown peers on a carriage without addresses.
    Nowhere,
}

impl Requester {
    pub(crate) fn from_identity(identity: Option<&Identity>, from: Option<SocketAddr>) -> Self {
        match (identity, from) {
            (Some(identity), _) => Self::Known(identity.id.clone()),
            (None, Some(from)) => Self::Network(NetworkPrefix::from_ip(from.ip())),
            (None, None) => Self::Nowhere,
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// The site that it has other networks in.
    fn site(&self) -> Option<SitePrefix> {
        match self {
            Self::Network(network) if network.has_neighbours() => Some(network.site()),
            _ => None,
        }
    }
}

/// The exhausted limit, and its size.
type Full = (&'static str, usize);

impl RequestByteLimits {
    /// The limit of one requester.
    fn own(&self, requester: &Requester) -> Full {
        match requester.is_known() {
            true => ("bytes of requests of one identity at once", self.each),
            false => (
                "bytes of requests of one network's unknown peers at once",
                self.unknown_each,
            ),
        }
    }

    /// Whether a requester may have `bytes` more. One request, or event, may be longer than the whole limit where the
    /// requester has nothing else.
    fn check_capacity(
        &self,
        counted: &RequestByteTotals,
        requester: &Requester,
        bytes: usize,
    ) -> Result<(), Full> {
        let own = counted.requester_totals(requester).bytes + bytes;
        let node = counted.node + bytes;
        let (what, each) = self.own(requester);
        // Beside other bytes the limit is strict.
        if own > each && own > bytes {
            return Err((what, each));
        }
        let of_site = requester.site().map_or(0, |site| {
            counted.sites.get(&site).copied().unwrap_or_default() + bytes
        });
        let unknown_full =
            counted.unknown_peers.bytes + bytes > self.unknown_peers || of_site > self.site;
        let others = node > bytes && !leaves_capacity(own, node, self.node);
        if others || !requester.is_known() && unknown_full {
            return Err(("bytes of requests of all requesters at once", self.node));
        }
        Ok(())
    }

    /// Whether a requester may have subscriptions with `own` bytes where those of all have `all`, and those of
    /// unknown peers `unknown_peers` if it is one, the new one of `bytes` included. They may run for ever: their bytes
    /// come from no other request's share, and those of unknown peers from no known peer's share.
    fn subscribe(
        &self,
        own: usize,
        unknown_peers: Option<usize>,
        all: usize,
        bytes: usize,
    ) -> Result<(), CallError> {
        let each = match unknown_peers {
            None => self.subscriptions_each,
            Some(_) => self.subscriptions_each / BYTES_UNKNOWN_PEERS_SHARE,
        };
        if own > each && own > bytes {
            let what = "bytes of subscriptions of one requester at once";
            return Err(CallError::overloaded(what, each));
        }
        let unknown_too_many = unknown_peers.is_some_and(|all| all > self.subscriptions_each);
        let others = all > bytes && !leaves_capacity(own, all, self.subscriptions);
        if unknown_too_many || others {
            let what = "bytes of subscriptions of all requesters at once";
            return Err(CallError::overloaded(what, self.subscriptions));
        }
        Ok(())
    }
}

impl RequestByteTotals {
    fn requester_totals(&self, requester: &Requester) -> RequesterTotals {
        self.each.get(requester).copied().unwrap_or_default()
    }

    fn add(&mut self, requester: &Requester, bytes: usize, subscribed: usize) {
        self.node += bytes;
        self.subscriptions += subscribed;
        if !requester.is_known() {
            self.unknown_peers.bytes += bytes;
            self.unknown_peers.subscriptions += subscribed;
        }
        if let Some(site) = requester.site() {
            *self.sites.entry(site).or_default() += bytes;
        }
        let own = self.each.entry(requester.clone()).or_default();
        own.bytes += bytes;
        own.subscriptions += subscribed;
    }

    fn take(&mut self, requester: &Requester, bytes: usize, subscribed: usize) {
        self.node -= bytes;
        self.subscriptions -= subscribed;
        if !requester.is_known() {
            self.unknown_peers.bytes -= bytes;
            self.unknown_peers.subscriptions -= subscribed;
        }
        if let Some(site) = requester.site()
            && let Some(of_site) = self.sites.get_mut(&site)
        {
            *of_site -= bytes;
            if *of_site == 0 {
                self.sites.remove(&site);
            }
        }
        if let Some(own) = self.each.get_mut(requester) {
            own.bytes -= bytes;
            own.subscriptions -= subscribed;
            if own.bytes == 0 {
                self.each.remove(requester);
            }
        }
    }
}

impl Default for RequestBytes {
    fn default() -> Self {
        Self::new(BYTES_PER_NODE)
    }
}

impl RequestBytes {
    /// An account for a node that has room for `node` bytes.
    pub(crate) fn new(node: usize) -> Self {
        let unknown_peers = node / BYTES_UNKNOWN_PEERS;
        let subscriptions = node / BYTES_SUBSCRIPTIONS;
        Self {
            bounds: RequestByteLimits {
                node,
                each: node / BYTES_SHARE,
                unknown_peers,
                unknown_each: unknown_peers / BYTES_UNKNOWN_PEERS_SHARE,
                site: unknown_peers / BYTES_SITE_SHARE,
                subscriptions,
                subscriptions_each: subscriptions / BYTES_SUBSCRIPTIONS_SHARE,
            },
            counted: Mutex::default(),
            node: AtomicUsize::new(0),
            given_back: Notify::new(),
        }
    }

    /// The bytes that count now, and the limit.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (lock(&self.counted).node, self.bounds.node)
    }

    /// Counts a request of `bytes` until the claim is dropped; `None` for a request too short to count. One request
    /// at a time may be longer than the room of its requester or of the node: the configuration sets how long a frame
    /// may be.
    ///
    /// # Errors
    /// `OVERLOADED` where there is no room now.
    pub(crate) fn claim(
        self: &Arc<Self>,
        requester: Requester,
        bytes: usize,
        retention: RequestRetention,
    ) -> Result<Option<Arc<RequestClaim>>, CallError> {
        // The limit of requests in flight bounds short ones: counting each would only take the lock.
        if bytes <= REQUEST_BYTES_FREE {
            return Ok(None);
        }
        let mut counted = lock(&self.counted);
        let room = self.bounds.check_capacity(&counted, &requester, bytes);
        room.map_err(|(what, most)| CallError::overloaded(what, most))?;
        let subscribed = if retention == RequestRetention::Subscribed {
            bytes
        } else {
            0
        };
        if retention == RequestRetention::Subscribed {
            let own = counted.requester_totals(&requester).subscriptions + bytes;
            let unknown_peers = counted.unknown_peers.subscriptions + bytes;
            let unknown_peers = (!requester.is_known()).then_some(unknown_peers);
            let all = counted.subscriptions + bytes;
            self.bounds.subscribe(own, unknown_peers, all, bytes)?;
        }
        counted.add(&requester, bytes, subscribed);
        // Under the lock: the copy must not go back to an older count.
        self.node.store(counted.node, Ordering::Release);
        drop(counted);
        Ok(Some(Arc::new(RequestClaim {
            all: Arc::clone(self),
            requester,
            bytes,
            subscribed,
        })))
    }

    /// Counts `bytes` more for a requester, where there is room; the caller gives them back by
    /// [`shrink`](Self::shrink).
    pub(crate) fn grow(&self, requester: &Requester, bytes: usize, fit: GrowLimit) -> bool {
        let mut counted = lock(&self.counted);
        let needed = match fit {
            GrowLimit::Anyway => None,
            GrowLimit::Begins => Some(1),
            // `room` adds this to the requester's bytes: twice what it would have then.
            GrowLimit::First | GrowLimit::Half => {
                Some(counted.requester_totals(requester).bytes + 2 * bytes)
            }
            GrowLimit::Wholly => Some(bytes),
        };
        let room = |needed| {
            self.bounds
                .check_capacity(&counted, requester, needed)
                .is_ok()
        };
        if !needed.is_none_or(room) {
            return false;
        }
        counted.add(requester, bytes, 0);
        self.node.store(counted.node, Ordering::Release);
        true
    }

    /// Counts `bytes` more for a requester that has the `held` bytes and nothing else, if it may begin a request.
    pub(crate) fn grow_alone(&self, requester: &Requester, bytes: usize, held: usize) -> bool {
        let mut counted = lock(&self.counted);
        // Another connection of the requester has bytes as well: then the usual limits apply.
        if counted.requester_totals(requester).bytes != held {
            return false;
        }
        // The requester's own bytes do not count against it here.
        counted.take(requester, held, 0);
        let room = self.bounds.check_capacity(&counted, requester, 1).is_ok();
        let now = if room { held + bytes } else { held };
        if now > 0 {
            counted.add(requester, now, 0);
        }
        self.node.store(counted.node, Ordering::Release);
        room
    }

    /// Gives back the bytes that [`grow`](Self::grow) counted.
    pub(crate) fn shrink(&self, requester: &Requester, bytes: usize) {
        let mut counted = lock(&self.counted);
        counted.take(requester, bytes, 0);
        self.node.store(counted.node, Ordering::Release);
    }

    /// Whether a requester has room for more. While all have less than the smallest share, this does not call
    /// `requester`.
    pub(crate) fn has_capacity(&self, requester: impl FnOnce() -> Requester) -> bool {
        // No share can be exhausted yet: the lock is not needed.
        if self.node.load(Ordering::Acquire) < self.bounds.unknown_each {
            return true;
        }
        let requester = requester();
        let counted = lock(&self.counted);
        self.bounds.check_capacity(&counted, &requester, 1).is_ok()
    }

    /// Whether a requester has reached its own limit, whatever others have.
    pub(crate) fn is_spent(&self, requester: &Requester) -> bool {
        let (_, each) = self.bounds.own(requester);
        lock(&self.counted).requester_totals(requester).bytes >= each
    }

    /// Resolves once a claim gives bytes back after this call.
    pub(crate) fn given_back(&self) -> impl Future<Output = ()> {
        self.given_back.notified()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::error::ErrorCode;
    use crate::limits::{BYTES_PER_NODE_MIN, FRAME_BYTES_DEFAULT, bytes_for_memory};

    const MIB: usize = 1 << 20;

    fn known(id: &str) -> Requester {
        Requester::Known(id.parse().expect("a peer id"))
    }

    fn unknown(network: u8) -> Requester {
        unknown_at(Ipv4Addr::new(192, 0, network, 1).into())
    }

    fn unknown_at(address: IpAddr) -> Requester {
        Requester::from_identity(None, Some(SocketAddr::from((address, 1))))
    }

    /// Claims until there is no room.
    fn takes_all(
        all: &Arc<RequestBytes>,
        requester: &Requester,
        bytes: usize,
    ) -> Vec<Option<Arc<RequestClaim>>> {
        takes_all_kept(all, requester, bytes, RequestRetention::Once)
    }

    fn takes_all_kept(
        all: &Arc<RequestBytes>,
        requester: &Requester,
        bytes: usize,
        retention: RequestRetention,
    ) -> Vec<Option<Arc<RequestClaim>>> {
        let next = || all.claim(requester.clone(), bytes, retention).ok();
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn one_identity_has_half_and_two_leave_others_room() {
        let all = Arc::new(RequestBytes::new(bytes_for_memory(512 << 20)));
        let eve = takes_all(&all, &known("eve"), FRAME_BYTES_DEFAULT);
        assert_eq!(eve.len(), 32);
        let refused = all.claim(known("eve"), FRAME_BYTES_DEFAULT, RequestRetention::Once);
        let refused = refused.expect_err("half of them");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retryable && refused.retry_after_ms.is_some());
        let mallory = takes_all(&all, &known("mallory"), MIB);
        assert_eq!(mallory.len(), 16, "the last quarter is left");
        let many: Vec<_> = (0..100)
            .map(|n| takes_all(&all, &known(&format!("many-{n}")), 16 << 10))
            .collect();
        assert!(
            all.claim(known("ada"), 2 * REQUEST_BYTES_FREE, RequestRetention::Once)
                .is_ok()
        );
        let short = all.claim(known("eve"), REQUEST_BYTES_FREE, RequestRetention::Once);
        assert!(short.expect("it is not counted").is_none());
        drop((eve, mallory, many));
        let counted = lock(&all.counted);
        assert_eq!((counted.node, counted.each.len()), (0, 0));
    }

    #[test]
    fn unknown_peers_have_a_quarter_and_one_network_a_quarter_of_it() {
        let all = Arc::new(RequestBytes::new(16 * MIB));
        let bytes = 64 << 10;
        let mut held = takes_all(&all, &unknown(1), bytes);
        assert_eq!(held.len(), 16);
        (2..10).for_each(|n| held.extend(takes_all(&all, &unknown(n), bytes)));
        assert_eq!(held.len(), 64);
        assert_eq!(takes_all(&all, &known("ada"), bytes).len(), 128);
        drop(held);
        assert_eq!(lock(&all.counted).unknown_peers.bytes, 0);
    }

    #[test]
    fn unknown_peers_of_one_site_have_half_of_what_unknown_peers_have() {
        let all = Arc::new(RequestBytes::new(16 * MIB));
        let bytes = 64 << 10;
        let at = |site, network: u16| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, site, network << 8, 0, 0, 0, 1);
            takes_all(&all, &unknown_at(address.into()), bytes)
        };
        let one: Vec<_> = (0..256).flat_map(|network| at(1, network)).collect();
        assert_eq!(one.len(), 32);
        let other: Vec<_> = (0..256).flat_map(|network| at(2, network)).collect();
        assert_eq!(other.len(), 32);
        drop((one, other));
        assert!(lock(&all.counted).sites.is_empty());
    }

    /// Subscriptions of operations that are open to unknown peers.
    #[test]
    fn subscriptions_of_unknown_peers_leave_known_ones_theirs() {
        for memory in [128 << 20, 512 << 20, 2 << 30] {
            let all = Arc::new(RequestBytes::new(bytes_for_memory(memory)));
            let subscribe = |requester: &Requester| {
                takes_all_kept(&all, requester, 16 << 10, RequestRetention::Subscribed)
            };
            let of_one = all.bounds.subscriptions_each / 4 / (16 << 10);
            let mut held = subscribe(&unknown(0));
            assert_eq!(held.len(), of_one, "one network");
            (1..100).for_each(|n| held.extend(subscribe(&unknown(n))));
            assert_eq!(held.len(), 4 * of_one);
            let due = all.bounds.subscriptions_each.min(MIB);
            let ada = all.claim(known("ada"), due, RequestRetention::Subscribed);
            assert!(ada.is_ok(), "{memory}");
            // Their requests that end have more.
            assert!(!takes_all(&all, &unknown(0), 16 << 10).is_empty());
            drop((held, ada));
            assert_eq!(lock(&all.counted).unknown_peers.subscriptions, 0);
        }
    }

    /// Otherwise it could never be made.
    #[test]
    fn a_request_that_is_longer_than_the_room_is_made_alone() {
        let all = Arc::new(RequestBytes::new(BYTES_PER_NODE_MIN));
        let long = all
            .claim(known("ada"), 64 * MIB, RequestRetention::Once)
            .expect("alone");
        assert!(
            all.claim(known("ada"), MIB, RequestRetention::Once)
                .is_err()
        );
        assert!(
            all.claim(known("eve"), MIB, RequestRetention::Once)
                .is_err()
        );
        drop(long);
        assert!(all.claim(known("eve"), MIB, RequestRetention::Once).is_ok());
    }

    /// Another requester could take the released bytes, so the claim releases nothing first.
    #[test]
    fn a_claim_that_finds_no_room_to_grow_keeps_what_it_has() {
        let all = Arc::new(RequestBytes::new(BYTES_PER_NODE_MIN));
        let (ada, eve) = (known("ada"), known("eve"));
        let mut growing = RequestClaim::empty(&all, &ada);
        growing.resize(&ada, MIB).expect("a quarter");
        let eves = takes_all(&all, &eve, MIB);
        assert_eq!(eves.len(), 2);
        let refused = growing.resize(&ada, 2 * MIB).expect_err("the last quarter");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert_eq!(lock(&all.counted).requester_totals(&ada).bytes, MIB);
        assert!(takes_all(&all, &known("trudy"), MIB).is_empty());
        // From now on it counts for another requester, and not for both.
        growing
            .resize(&known("bob"), MIB)
            .expect("as much as before");
        assert_eq!(lock(&all.counted).requester_totals(&ada).bytes, 0);
        drop(eves);
        growing.resize(&known("bob"), 2 * MIB).expect("half of it");
        drop(growing);
        let counted = lock(&all.counted);
        assert_eq!((counted.node, counted.each.len()), (0, 0));
    }

    /// One frame may be longer than the whole limit, however small its steps are.
    #[test]
    fn a_claim_grows_beyond_the_room_where_it_is_alone() {
        let all = Arc::new(RequestBytes::new(BYTES_PER_NODE_MIN));
        let ada = known("ada");
        let mut growing = RequestClaim::empty(&all, &ada);
        for step in 1..=64 {
            growing.resize(&ada, step * MIB).expect("alone");
        }
        assert!(
            all.claim(known("eve"), MIB, RequestRetention::Once)
                .is_err()
        );
    }

    /// Padded subscriptions of an operation that uses nothing of their input, as many as each identity may have.
    #[test]
    fn subscriptions_that_do_not_end_leave_three_quarters_to_requests() {
        let all = Arc::new(RequestBytes::new(bytes_for_memory(512 << 20)));
        let bytes = 256 << 10;
        let subscribe =
            |id: &str| takes_all_kept(&all, &known(id), bytes, RequestRetention::Subscribed);
        let four: Vec<_> = ["eve", "mallory", "trudy", "craig"].map(subscribe).into();
        // 4 MiB for each, and the last quarter of the 16 MiB is left.
        let held_each: Vec<_> = four.iter().map(Vec::len).collect();
        assert_eq!(held_each, [16, 16, 16, 0]);
        let more: Vec<_> = (0..100).map(|n| subscribe(&format!("many-{n}"))).collect();
        assert!(more.iter().all(Vec::is_empty));
        let short = all.claim(known("ada"), 16 << 10, RequestRetention::Subscribed);
        assert!(short.is_ok(), "a short one finds room");
        // One identity has half of everything for its requests as before.
        let requests = takes_all(&all, &known("ada"), FRAME_BYTES_DEFAULT);
        assert!(requests.len() >= 31, "{}", requests.len());
        drop((four, more, short, requests));
        let counted = lock(&all.counted);
        assert_eq!((counted.node, counted.subscriptions), (0, 0));
        assert!(counted.each.is_empty());
    }
}
