//! Keys that sent an enrolment request without a token, and wait for an administrator to let them in.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use alknet_core::{NetworkPrefix, PeerKey, SitePrefix};

use crate::fingerprint::fingerprint;
use crate::names::Alias;

/// Most keys that wait.
pub const PENDING_MAX: usize = 32;
/// How long a key waits after its last request.
pub const PENDING_TIME: Duration = Duration::from_secs(600);

/// How long after its last request a key makes room for any other: a node that waits asks again every five seconds, and
/// a program that keeps others out with many keys has to go on with each of them.
const LATE: Duration = Duration::from_secs(60);

/// A key that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingKey {
    /// The key, proven.
    pub key: PeerKey,
    /// Six words of it.
    pub fingerprint: String,
    /// What it wants to be called.
    pub name: Option<Alias>,
    /// What it says about itself.
    pub labels: BTreeMap<String, String>,
    /// Where its last request came from.
    pub from: Option<SocketAddr>,
    /// When its first request came.
    pub since: Instant,
    /// When its last request came.
    pub last: Instant,
}

/// The keys that wait. Knows no clock: every call says what time it is.
#[derive(Debug, Default)]
pub struct PendingKeys(Vec<PendingKey>);

impl PendingKeys {
    /// Lets a key wait, or wait on. Where too many wait, a key makes room that did not ask again in time, or one of the
    /// site and the network that have more than those of the new one: keys cost nothing, and one host would keep all
    /// others out. Keys without an address make room for one another. `None` where no key makes room.
    pub fn add(
        &mut self,
        key: PeerKey,
        name: Option<Alias>,
        labels: BTreeMap<String, String>,
        from: Option<SocketAddr>,
        now: Instant,
    ) -> Option<&PendingKey> {
        self.forget_late(now);
        let known = self.0.iter().position(|waiting| waiting.key == key);
        if known.is_none() && self.0.len() >= PENDING_MAX {
            let leaves = self
                .late(now)
                .or_else(|| self.crowded(network(from)))
                .or_else(|| self.without_address(from))?;
            self.0.remove(leaves);
        }
        let since = match known {
            Some(at) => self.0.remove(at).since,
            None => now,
        };
        // Behind all others: `late` takes the order of the list for that of the last requests.
        self.0.push(PendingKey {
            fingerprint: fingerprint(&key),
            key,
            name,
            labels,
            from,
            since,
            last: now,
        });
        self.0.last()
    }

    /// The keys that wait now, in the order of their last requests.
    pub fn list(&mut self, now: Instant) -> Vec<PendingKey> {
        self.forget_late(now);
        self.0.clone()
    }

    /// What waits under this key or fingerprint.
    pub fn find(&mut self, which: &str, now: Instant) -> Option<PendingKey> {
        self.forget_late(now);
        let wanted = |waiting: &&PendingKey| {
            waiting.fingerprint == which
                || which.parse().is_ok_and(|key: PeerKey| key == waiting.key)
        };
        self.0.iter().find(wanted).cloned()
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &PeerKey) {
        self.0.retain(|waiting| waiting.key != *key);
    }

    /// The key whose last request is the oldest, if that is long ago.
    fn late(&self, now: Instant) -> Option<usize> {
        let is_late = |waiting: &PendingKey| now.saturating_duration_since(waiting.last) >= LATE;
        self.0.iter().position(is_late)
    }

    /// A key of the site that has the most, and of the network there that has the most, if they have more than those
    /// of `comer` would: sites first, since one host may have all 256 networks of one. Of those, one that asked
    /// once before those that asked again.
    fn crowded(&self, comer: Option<NetworkPrefix>) -> Option<usize> {
        let crowd = PendingCounts::from_keys(&self.0);
        let may_go = |waiting: &PendingKey| crowd.is_fuller(network(waiting.from), comer);
        let rank = |waiting: &PendingKey| {
            let (site, network) = crowd.counts(network(waiting.from));
            (site, network, waiting.since == waiting.last)
        };
        // The last maximum is taken: the one that waits longest comes last.
        let all = self.0.iter().enumerate().rev();
        let leaves = all
            .filter(|(_, waiting)| may_go(waiting))
            .max_by_key(|(_, waiting)| rank(waiting));
        leaves.map(|(at, _)| at)
    }

    /// For a comer through a relay, of those who came through one the key that waits longest. All of them count as one
    /// network, in which one program may have any number of keys and ask again with each in time: none of them
    /// tells an honest node from those. So each has its turn, and a node that was pushed out is there again with its
    /// next request.
    fn without_address(&self, from: Option<SocketAddr>) -> Option<usize> {
        if from.is_some() {
            return None;
        }
        let all = self.0.iter().enumerate();
        let relayed = all.filter(|(_, waiting)| waiting.from.is_none());
        let longest = relayed.min_by_key(|(_, waiting)| waiting.since);
        longest.map(|(at, _)| at)
    }

    fn forget_late(&mut self, now: Instant) {
        self.0
            .retain(|waiting| now.saturating_duration_since(waiting.last) < PENDING_TIME);
    }
}

/// How many keys of each network and of each site wait.
struct PendingCounts {
    networks: HashMap<Option<NetworkPrefix>, usize>,
    sites: HashMap<Option<SitePrefix>, usize>,
}

impl PendingCounts {
    fn from_keys(all: &[PendingKey]) -> Self {
        let mut crowd = Self {
            networks: HashMap::new(),
            sites: HashMap::new(),
        };
        for network in all.iter().map(|waiting| network(waiting.from)) {
            *crowd.networks.entry(network).or_default() += 1;
            *crowd
                .sites
                .entry(network.map(NetworkPrefix::site))
                .or_default() += 1;
        }
        crowd
    }

    /// Of the site, and of the network.
    fn counts(&self, network: Option<NetworkPrefix>) -> (usize, usize) {
        let site = self.sites.get(&network.map(NetworkPrefix::site)).copied();
        let own = self.networks.get(&network).copied();
        (site.unwrap_or(0), own.unwrap_or(0))
    }

    /// Whether `one` has more than `comer` with one key more.
    fn is_fuller(&self, one: Option<NetworkPrefix>, comer: Option<NetworkPrefix>) -> bool {
        let (of_one, of_comer) = (self.counts(one), self.counts(comer));
        if one.map(NetworkPrefix::site) == comer.map(NetworkPrefix::site) {
            of_one.1 > of_comer.1 + 1
        } else {
            of_one.0 > of_comer.0 + 1
        }
    }
}

/// What counts as one place that requests come from.
fn network(from: Option<SocketAddr>) -> Option<NetworkPrefix> {
    from.map(|from| NetworkPrefix::from_ip(from.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> PeerKey {
        PeerKey::Ed25519([u8::try_from(n).expect("a small number"); 32])
    }

    /// Each from a site of its own.
    fn ask(pending: &mut PendingKeys, n: usize, now: Instant) -> bool {
        let from = format!("192.0.{n}.1:1").parse().expect("an address");
        let added = pending.add(key(n), None, BTreeMap::new(), Some(from), now);
        added.is_some()
    }

    /// At how many of a hundred moments an honest node waits that asks through a relay, beside an attacker who
    /// asks through one at every so many moments with the next of so many keys.
    fn waits_beside(keys: u16, every: u32) -> u32 {
        const MOMENT: Duration = Duration::from_millis(50);
        // A node that waits asks again every five seconds.
        const HONEST_EVERY: u32 = 100;
        const FIRST: u32 = 1000;
        const LAST: u32 = 4000;
        let key = |n: u16| PeerKey::Spki(std::array::from_fn(|at| n.to_be_bytes()[at % 2]));
        let (honest, direct) = (key(u16::MAX), key(u16::MAX - 1));
        let address = "192.0.2.1:1".parse().ok();
        let mut pending = PendingKeys::default();
        let (mut now, mut there) = (Instant::now(), 0);
        for n in 0..LAST {
            let mut ask = |key, from| {
                let added = pending.add(key, None, BTreeMap::new(), from, now);
                added.is_some()
            };
            if n % every == 0 {
                let turn = u16::try_from(n / every).expect("a small number");
                ask(key(turn % keys), None);
            }
            if n >= FIRST && n % HONEST_EVERY == 0 {
                assert!(ask(honest, None) && ask(direct, address), "{n}");
            }
            if n > FIRST {
                let waits = |key| pending.0.iter().any(|waiting| waiting.key == key);
                assert!(waits(direct), "one with an address stays: {n}");
                there += u32::from(waits(honest));
            }
            now += MOMENT;
        }
        100 * there / (LAST - FIRST)
    }

    /// All who come through relays count as one network.
    #[test]
    fn keys_that_come_through_a_relay_do_not_keep_others_out() {
        // As many as may wait, each again within half a minute.
        let kept = u16::try_from(PENDING_MAX).expect("a small number");
        let waits = waits_beside(kept, 18);
        assert!(waits > 70, "{waits}");
        // As fast as all relayed ones may begin handshakes, each time another one.
        let waits = waits_beside(10_000, 1);
        assert!(waits > 25, "{waits}");
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let mut pending = PendingKeys::default();
        let now = Instant::now();
        assert!((0..PENDING_MAX).all(|n| ask(&mut pending, n, now)));
        assert!(!ask(&mut pending, PENDING_MAX, now));
        assert!(
            ask(&mut pending, 0, now),
            "a waiting applicant may ask again"
        );
        pending.remove(&key(1));
        assert!(ask(&mut pending, PENDING_MAX, now));
    }

    /// From 4,096 addresses of one network, or from all over.
    #[test]
    fn one_host_does_not_keep_others_out() {
        let mut pending = PendingKeys::default();
        let now = Instant::now();
        let mut ask_from = |n: usize, from: &str| {
            let from = from.parse().expect("an address");
            let added = pending.add(key(n), None, BTreeMap::new(), Some(from), now);
            added.is_some()
        };
        assert!((0..PENDING_MAX).all(|n| ask_from(n, &format!("[2001:db8::{n}]:1"))));
        assert!(!ask_from(100, "[2001:db8::1:1]:1"));
        let other = |n: usize| format!("192.0.2.{n}:1");
        assert!((0..PENDING_MAX / 2).all(|n| ask_from(101 + n, &other(n))));
        assert!(!ask_from(200, &other(200)), "no more than the first");
        assert!(!ask_from(100, "[2001:db8::1:1]:1"));
        assert_eq!(pending.list(now).len(), PENDING_MAX);
        assert!(pending.find(&key(101).to_string(), now).is_some());
    }

    /// A host that has all networks of a /48 asks with another key from another one, again and again.
    #[test]
    fn a_host_with_many_networks_does_not_push_out_those_that_wait() {
        let mut pending = PendingKeys::default();
        let now = Instant::now();
        let ask_from = |pending: &mut PendingKeys, n: u16, from: &str, now| {
            let key = PeerKey::Spki(std::array::from_fn(|at| n.to_be_bytes()[at % 2]));
            let from = from.parse().expect("an address");
            let added = pending.add(key, None, BTreeMap::new(), Some(from), now);
            added.map(|added| added.key)
        };
        let host = |n: u16| format!("[2001:db8:0:{:x}::1]:1", (n % 256) << 8);
        let honest = ask_from(&mut pending, 5000, "192.0.2.1:1", now).expect("it waits");
        let neighbour = ask_from(&mut pending, 5001, "[2001:db8:0:7700::7]:1", now);
        let neighbour = neighbour.expect("it waits");
        let mut later = now;
        // After ten seconds no key of the host is late, and one has to make room all the same.
        let comers = [(100, 5002, "203.0.113.1:1"), (1199, 5003, "198.51.100.1:1")];
        for n in 0..1200 {
            ask_from(&mut pending, n, &host(n), later);
            // Ten a second; those that wait ask every five seconds.
            later += Duration::from_millis(100);
            if n % 50 == 0 {
                ask_from(&mut pending, 5000, "192.0.2.1:1", later);
                ask_from(&mut pending, 5001, "[2001:db8:0:7700::7]:1", later);
            }
            let waits = |key| pending.0.iter().any(|waiting| waiting.key == key);
            assert!(waits(honest) && waits(neighbour), "{n}");
            let comers = comers.iter().filter(|(at, ..)| *at == n);
            for (_, key, from) in comers {
                let new = ask_from(&mut pending, *key, from, later);
                assert!(new.is_some(), "{n}: there is room for another");
            }
        }
    }

    /// Thirty-two sites, each with one key that asked once.
    #[test]
    fn a_key_that_does_not_ask_again_in_time_makes_room() {
        let mut pending = PendingKeys::default();
        let now = Instant::now();
        let mut ask_from = |n: usize, now| {
            let from = format!("192.0.{n}.1:1").parse().expect("an address");
            let added = pending.add(key(n), None, BTreeMap::new(), Some(from), now);
            added.is_some()
        };
        assert!((0..PENDING_MAX).all(|n| ask_from(n, now)));
        assert!(!ask_from(100, now), "each has as many as the new one");
        let later = now + LATE;
        assert!(ask_from(0, later) && ask_from(100, later));
        assert!(pending.0.iter().any(|waiting| waiting.key == key(0)));
        assert!(pending.0.iter().all(|waiting| waiting.key != key(1)));
    }

    #[test]
    fn an_applicant_that_stays_away_is_forgotten() {
        let mut pending = PendingKeys::default();
        let now = Instant::now();
        assert!(ask(&mut pending, 1, now) && ask(&mut pending, 2, now));
        let later = now + PENDING_TIME / 2;
        assert!(ask(&mut pending, 2, later));
        let late = now + PENDING_TIME;
        let waiting: Vec<_> = pending
            .list(late)
            .iter()
            .map(|waiting| waiting.key)
            .collect();
        assert_eq!(waiting, [key(2)]);
        assert_eq!(pending.list(late)[0].since, now);
        let words = fingerprint(&key(2));
        assert!(pending.find(&words, late).is_some());
        assert!(pending.find(&key(2).to_string(), late).is_some());
        assert!(pending.find(&words, later + PENDING_TIME).is_none());
    }
}
