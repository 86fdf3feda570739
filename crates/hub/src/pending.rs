//! Keys that knocked and wait for somebody to let them in.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use alknet_core::{Network, PeerKey};

use crate::fingerprint::fingerprint;
use crate::names::Alias;

/// Most keys that wait.
pub const PENDING_MAX: usize = 32;
/// How long one waits since it last knocked.
pub const PENDING_TIME: Duration = Duration::from_secs(600);

/// A key that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knock {
    /// The key, proven.
    pub key: PeerKey,
    /// Six words of it.
    pub fingerprint: String,
    /// What it wants to be called.
    pub name: Option<Alias>,
    /// What it says about itself.
    pub labels: BTreeMap<String, String>,
    /// Where it knocked from.
    pub from: Option<SocketAddr>,
    /// When it knocked first.
    pub since: Instant,
    /// When it knocked last.
    pub last: Instant,
}

/// Those who wait. Knows no clock: every call says what time it is.
#[derive(Debug, Default)]
pub struct Pending(Vec<Knock>);

impl Pending {
    /// Lets a key wait, or wait on. Where too many wait, the oldest of the network that has the most makes room,
    /// if that has more than the network of the new one: keys cost nothing, and one host would keep all others
    /// from knocking. `None` where there is no such network.
    pub fn knock(
        &mut self,
        key: PeerKey,
        name: Option<Alias>,
        labels: BTreeMap<String, String>,
        from: Option<SocketAddr>,
        now: Instant,
    ) -> Option<&Knock> {
        self.forget_late(now);
        let known = self.0.iter().position(|knock| knock.key == key);
        if known.is_none() && self.0.len() >= PENDING_MAX {
            let crowded = self.crowded(network(from))?;
            self.0.remove(crowded);
        }
        let since = match known {
            Some(at) => self.0.remove(at).since,
            None => now,
        };
        self.0.push(Knock {
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

    /// Those who wait now, the last to knock last.
    pub fn list(&mut self, now: Instant) -> Vec<Knock> {
        self.forget_late(now);
        self.0.clone()
    }

    /// Whoever waits under this key or fingerprint.
    pub fn find(&mut self, which: &str, now: Instant) -> Option<Knock> {
        self.forget_late(now);
        let wanted = |knock: &&Knock| {
            knock.fingerprint == which || which.parse().is_ok_and(|key: PeerKey| key == knock.key)
        };
        self.0.iter().find(wanted).cloned()
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &PeerKey) {
        self.0.retain(|knock| knock.key != *key);
    }

    /// The key that waits longest of the network that has the most, if it has more than `other`.
    fn crowded(&self, other: Option<Network>) -> Option<usize> {
        let mut counts: HashMap<Option<Network>, usize> = HashMap::new();
        for knock in &self.0 {
            *counts.entry(network(knock.from)).or_default() += 1;
        }
        let others = counts.get(&other).copied().unwrap_or(0);
        let most = counts.values().copied().max().filter(|n| *n > others)?;
        let crowded = |knock: &Knock| counts[&network(knock.from)] == most;
        self.0.iter().position(crowded)
    }

    fn forget_late(&mut self, now: Instant) {
        self.0
            .retain(|knock| now.saturating_duration_since(knock.last) < PENDING_TIME);
    }
}

/// What counts as one place that knocks come from.
fn network(from: Option<SocketAddr>) -> Option<Network> {
    from.map(|from| Network::of(from.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> PeerKey {
        PeerKey::Ed25519([u8::try_from(n).expect("a small number"); 32])
    }

    fn knock(pending: &mut Pending, n: usize, now: Instant) -> bool {
        let knock = pending.knock(key(n), None, BTreeMap::new(), None, now);
        knock.is_some()
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let mut pending = Pending::default();
        let now = Instant::now();
        assert!((0..PENDING_MAX).all(|n| knock(&mut pending, n, now)));
        assert!(!knock(&mut pending, PENDING_MAX, now));
        assert!(knock(&mut pending, 0, now), "whoever waits may knock again");
        pending.remove(&key(1));
        assert!(knock(&mut pending, PENDING_MAX, now));
    }

    /// From 4,096 addresses of one network, or from all over.
    #[test]
    fn one_host_does_not_keep_others_from_knocking() {
        let mut pending = Pending::default();
        let now = Instant::now();
        let mut knock_from = |n: usize, from: &str| {
            let from = from.parse().expect("an address");
            let knock = pending.knock(key(n), None, BTreeMap::new(), Some(from), now);
            knock.is_some()
        };
        assert!((0..PENDING_MAX).all(|n| knock_from(n, &format!("[2001:db8::{n}]:1"))));
        assert!(!knock_from(100, "[2001:db8::1:1]:1"));
        let other = |n: usize| format!("192.0.2.{n}:1");
        assert!((0..PENDING_MAX / 2).all(|n| knock_from(101 + n, &other(n))));
        assert!(!knock_from(200, &other(200)), "no more than the first");
        assert!(!knock_from(100, "[2001:db8::1:1]:1"));
        assert_eq!(pending.list(now).len(), PENDING_MAX);
        assert!(pending.find(&key(101).to_string(), now).is_some());
    }

    #[test]
    fn whoever_does_not_knock_again_is_forgotten() {
        let mut pending = Pending::default();
        let now = Instant::now();
        assert!(knock(&mut pending, 1, now) && knock(&mut pending, 2, now));
        let later = now + PENDING_TIME / 2;
        assert!(knock(&mut pending, 2, later));
        let late = now + PENDING_TIME;
        let waiting: Vec<_> = pending.list(late).iter().map(|knock| knock.key).collect();
        assert_eq!(waiting, [key(2)]);
        assert_eq!(pending.list(late)[0].since, now);
        let words = fingerprint(&key(2));
        assert!(pending.find(&words, late).is_some());
        assert!(pending.find(&key(2).to_string(), late).is_some());
        assert!(pending.find(&words, later + PENDING_TIME).is_none());
    }
}
