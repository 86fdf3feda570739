//! Results of keyed mutations, which answer repeated requests. The cache knows neither clocks nor tasks; the caller
//! passes the time, counted from any fixed point.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{ConnId, PeerId, PeerKey};

use crate::tape::Digest;

/// The requester that used a key. Two requesters that use the same key have two entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IdempotencyOwner {
    /// An unknown peer that showed no key: valid for one connection.
    Connection(ConnId),
    /// An unknown peer that can prove to be the same again.
    Key(PeerKey),
    /// A known identity.
    Known(PeerId),
}

impl IdempotencyOwner {
    /// The identity whose share it counts in; unknown peers have one share together.
    fn share(&self) -> Option<&PeerId> {
        match self {
            Self::Known(id) => Some(id),
            Self::Connection(_) | Self::Key(_) => None,
        }
    }
}

/// The name of a result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdempotencyKey {
    pub(crate) owner: IdempotencyOwner,
    pub(crate) operation: Box<str>,
    /// The peer that the request is routed to, if not to this node.
    pub(crate) peer: Option<Box<str>>,
    pub(crate) key: Box<str>,
}

/// How much the cache keeps, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdempotencyLimits {
    /// The time since the call ended.
    pub(crate) time: Duration,
    /// Results of one identity.
    pub(crate) entries: usize,
    /// Results of all identities. Beyond them the identity with the most bytes loses its oldest result.
    pub(crate) bytes: usize,
}

/// What a request with a key has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IdempotencyLookup<R, T> {
    /// An earlier request used the key with another input.
    Conflict,
    /// The call has ended, with this result.
    Ended(T),
    /// Every entry of this identity is a running call.
    Full,
    /// The call is running; the value waits for it.
    Join(R),
    /// Make the call and [`IdempotencyCache::end`] it.
    Run(Serial),
}

/// Tells a call from a later one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Serial(u64);

/// The results of every identity. `R` waits for a running call, `T` is its result.
#[derive(Debug)]
pub(crate) struct IdempotencyCache<R, T> {
    limits: IdempotencyLimits,
    entries: HashMap<Arc<IdempotencyKey>, IdempotencyEntry<R, T>>,
    /// Ended calls, oldest first.
    ended: BTreeMap<Serial, Arc<IdempotencyKey>>,
    shares: HashMap<Option<PeerId>, IdempotencyUsage>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct IdempotencyEntry<R, T> {
    hash: Digest,
    serial: Serial,
    state: IdempotencyState<R, T>,
}

#[derive(Debug)]
enum IdempotencyState<R, T> {
    Ended {
        result: T,
        bytes: usize,
        at: Duration,
    },
    Running(R),
}

#[derive(Debug, Default)]
struct IdempotencyUsage {
    entries: usize,
    ended: BTreeSet<Serial>,
    /// Bytes of the results of the ended calls.
    bytes: usize,
}

impl<R: Clone, T: Clone> IdempotencyCache<R, T> {
    pub(crate) fn new(limits: IdempotencyLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            ended: BTreeMap::new(),
            shares: HashMap::new(),
            bytes: 0,
            next: 0,
        }
    }

    /// A request came. Others wait with `waiting` if this request has to run.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        name: &Arc<IdempotencyKey>,
        hash: Digest,
        waiting: R,
    ) -> IdempotencyLookup<R, T> {
        // First: an expired result must not answer.
        self.forget_old(now);
        if let Some(entry) = self.entries.get(name) {
            return match &entry.state {
                // Before the state: neither a result nor a running call belongs to another input.
                _ if entry.hash != hash => IdempotencyLookup::Conflict,
                IdempotencyState::Ended { result, .. } => IdempotencyLookup::Ended(result.clone()),
                IdempotencyState::Running(waiting) => IdempotencyLookup::Join(waiting.clone()),
            };
        }
        // The limit of one identity costs only its own oldest result.
        if !self.evict_for(name) {
            return IdempotencyLookup::Full;
        }
        let serial = self.next_serial();
        let share = name.owner.share().cloned();
        self.shares.entry(share).or_default().entries += 1;
        let entry = IdempotencyEntry {
            hash,
            serial,
            state: IdempotencyState::Running(waiting),
        };
        self.entries.insert(Arc::clone(name), entry);
        IdempotencyLookup::Run(serial)
    }

    /// The call ended: with a result of so many bytes, or with one that is not worth keeping, so that the next
    /// request runs again.
    pub(crate) fn end(
        &mut self,
        now: Duration,
        name: &Arc<IdempotencyKey>,
        serial: Serial,
        result: Option<(T, usize)>,
    ) {
        // `remember` gives an entry another serial: the guard of a run that ended finds nothing to forget.
        let is_it = self
            .entries
            .get(name)
            .is_some_and(|entry| entry.serial == serial);
        if !is_it {
            return;
        }
        match result {
            None => self.forget(name),
            Some((result, bytes)) => self.remember(now, name, result, bytes),
        }
    }

    fn remember(&mut self, now: Duration, name: &Arc<IdempotencyKey>, result: T, bytes: usize) {
        // Age is the order of ending, so the serial is a new one.
        let serial = self.next_serial();
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.serial = serial;
        entry.state = IdempotencyState::Ended {
            result,
            bytes,
            at: now,
        };
        self.bytes += bytes;
        self.ended.insert(serial, Arc::clone(name));
        let share = name.owner.share().cloned();
        let share = self.shares.entry(share).or_default();
        share.ended.insert(serial);
        share.bytes += bytes;
        // After the insert: the new result counts as the newest of its identity.
        while self.bytes > self.limits.bytes && self.forget_of_largest() {}
    }

    fn next_serial(&mut self) -> Serial {
        self.next += 1;
        Serial(self.next)
    }

    fn forget_old(&mut self, now: Duration) {
        while let Some(name) = self.ended.values().next() {
            let expired = match self.entries.get(name).map(|entry| &entry.state) {
                Some(IdempotencyState::Ended { at, .. }) => {
                    now.saturating_sub(*at) >= self.limits.time
                }
                _ => true,
            };
            if !expired || !self.forget_oldest() {
                return;
            }
        }
    }

    /// Makes room for one more entry of the same identity; `false` when all of its entries are running calls.
    fn evict_for(&mut self, name: &IdempotencyKey) -> bool {
        let share = self.shares.get(&name.owner.share().cloned());
        let Some(share) = share.filter(|share| share.entries >= self.limits.entries) else {
            return true;
        };
        let oldest = share
            .ended
            .first()
            .and_then(|serial| self.ended.get(serial));
        match oldest.cloned() {
            Some(oldest) => {
                self.forget(&oldest);
                true
            }
            None => false,
        }
    }

    /// Forgets the oldest result of the identity whose results take most: an identity with few results keeps them.
    fn forget_of_largest(&mut self) -> bool {
        let with_oldest =
            // Of two equal shares, the one with the older result loses it.
            |share: &IdempotencyUsage| Some((share.bytes, Reverse(*share.ended.first()?)));
        let largest = self.shares.values().filter_map(with_oldest).max();
        let oldest = largest.and_then(|(_, Reverse(oldest))| self.ended.get(&oldest).cloned());
        if let Some(oldest) = &oldest {
            self.forget(oldest);
        }
        oldest.is_some()
    }

    fn forget_oldest(&mut self) -> bool {
        let oldest = self.ended.values().next().cloned();
        if let Some(oldest) = &oldest {
            self.forget(oldest);
        }
        oldest.is_some()
    }

    fn forget(&mut self, name: &Arc<IdempotencyKey>) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        self.ended.remove(&entry.serial);
        let bytes = match entry.state {
            IdempotencyState::Ended { bytes, .. } => bytes,
            IdempotencyState::Running(_) => 0,
        };
        self.bytes -= bytes;
        let share = name.owner.share().cloned();
        if let Some(mine) = self.shares.get_mut(&share) {
            mine.entries -= 1;
            mine.bytes -= bytes;
            mine.ended.remove(&entry.serial);
            if mine.entries == 0 {
                self.shares.remove(&share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: IdempotencyLimits = IdempotencyLimits {
        time: Duration::from_secs(600),
        entries: 3,
        bytes: 100,
    };

    type Tested = IdempotencyCache<u32, u32>;

    fn name(owner: &str, key: &str) -> Arc<IdempotencyKey> {
        Arc::new(IdempotencyKey {
            owner: IdempotencyOwner::Known(owner.parse().expect("a peer id")),
            operation: "fs/write".into(),
            peer: None,
            key: key.into(),
        })
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn run(results: &mut Tested, now: u64, name: &Arc<IdempotencyKey>) -> Serial {
        match results.begin(at(now), name, [0; 2], 0) {
            IdempotencyLookup::Run(serial) => serial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_duplicate_joins_and_a_later_one_is_answered() {
        let mut results = Tested::new(ROOM);
        let a = name("a", "k");
        let serial = match results.begin(at(0), &a, [1; 2], 7) {
            IdempotencyLookup::Run(serial) => serial,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            results.begin(at(1), &a, [1; 2], 8),
            IdempotencyLookup::Join(7)
        );
        assert_eq!(
            results.begin(at(1), &a, [2; 2], 8),
            IdempotencyLookup::Conflict
        );
        results.end(at(2), &a, serial, Some((42, 10)));
        assert_eq!(
            results.begin(at(3), &a, [1; 2], 8),
            IdempotencyLookup::Ended(42)
        );
        assert_eq!(
            results.begin(at(3), &a, [2; 2], 8),
            IdempotencyLookup::Conflict
        );
        // Another identity, another key, and another peer make another call.
        run(&mut results, 3, &name("b", "k"));
        run(&mut results, 3, &name("a", "l"));
        let elsewhere = IdempotencyKey {
            peer: Some("worker".into()),
            ..IdempotencyKey::clone(&a)
        };
        run(&mut results, 3, &Arc::new(elsewhere));
    }

    #[test]
    fn results_last_exactly_as_long_as_said() {
        let mut results = Tested::new(ROOM);
        let a = name("a", "k");
        let serial = run(&mut results, 0, &a);
        results.end(at(100), &a, serial, Some((1, 10)));
        assert_eq!(
            results.begin(at(699), &a, [0; 2], 0),
            IdempotencyLookup::Ended(1)
        );
        run(&mut results, 700, &a);
        assert_eq!(results.bytes, 0);
    }

    #[test]
    fn what_is_not_worth_keeping_runs_again_and_a_late_end_changes_nothing() {
        let mut results = Tested::new(ROOM);
        let a = name("a", "k");
        let first = run(&mut results, 0, &a);
        results.end(at(1), &a, first, None);
        let second = run(&mut results, 2, &a);
        results.end(at(3), &a, first, Some((9, 1)));
        assert_eq!(
            results.begin(at(3), &a, [0; 2], 5),
            IdempotencyLookup::Join(0)
        );
        results.end(at(4), &a, second, Some((3, 1)));
        assert_eq!(
            results.begin(at(5), &a, [0; 2], 5),
            IdempotencyLookup::Ended(3)
        );
    }

    #[test]
    fn the_oldest_result_of_an_identity_makes_room_and_running_calls_do_not() {
        let mut results = Tested::new(ROOM);
        let names: Vec<_> = (0..4).map(|n| name("a", &n.to_string())).collect();
        for name in &names[..3] {
            let serial = run(&mut results, 0, name);
            results.end(at(1), name, serial, Some((0, 1)));
        }
        run(&mut results, 2, &names[3]);
        run(&mut results, 2, &names[0]);
        run(&mut results, 2, &names[1]);
        assert_eq!(
            results.begin(at(2), &names[2], [0; 2], 0),
            IdempotencyLookup::Full
        );
        run(&mut results, 2, &name("b", "0"));
    }

    #[test]
    fn unknown_peers_share_their_room_but_not_their_results() {
        let mut results = Tested::new(ROOM);
        let unknown = |owner| {
            Arc::new(IdempotencyKey {
                owner,
                operation: "x/y".into(),
                peer: None,
                key: "k".into(),
            })
        };
        for n in 0..3 {
            run(
                &mut results,
                0,
                &unknown(IdempotencyOwner::Connection(ConnId(n))),
            );
        }
        let key = unknown(IdempotencyOwner::Key(PeerKey::Ed25519([1; 32])));
        assert_eq!(
            results.begin(at(0), &key, [0; 2], 0),
            IdempotencyLookup::Full
        );
    }

    #[test]
    fn bytes_are_bounded_over_all_identities() {
        let mut results = Tested::new(ROOM);
        let (a, b) = (name("a", "k"), name("b", "k"));
        for name in [&a, &b] {
            let serial = run(&mut results, 0, name);
            results.end(at(1), name, serial, Some((0, 60)));
        }
        assert_eq!(results.bytes, 60);
        run(&mut results, 2, &a);
        assert_eq!(
            results.begin(at(2), &b, [0; 2], 0),
            IdempotencyLookup::Ended(0)
        );
    }

    #[test]
    fn the_identity_with_most_results_makes_room_and_the_others_keep_theirs() {
        let mut results = Tested::new(IdempotencyLimits {
            entries: 100,
            ..ROOM
        });
        let ends = |results: &mut Tested, name: &Arc<IdempotencyKey>, bytes| {
            let serial = run(results, 0, name);
            results.end(at(1), name, serial, Some((7, bytes)));
        };
        let small = name("small", "k");
        ends(&mut results, &small, 10);
        for n in 0..50 {
            ends(&mut results, &name("large", &n.to_string()), 20);
            ends(&mut results, &name("other", &n.to_string()), 15);
        }
        assert_eq!(
            results.begin(at(2), &small, [0; 2], 0),
            IdempotencyLookup::Ended(7)
        );
        let newest = [("large", "49"), ("other", "49")].map(|(owner, key)| name(owner, key));
        for name in &newest {
            assert_eq!(
                results.begin(at(2), name, [0; 2], 0),
                IdempotencyLookup::Ended(7)
            );
        }
        assert!(results.bytes <= ROOM.bytes && results.bytes > ROOM.bytes - 20);
    }

    proptest! {
        /// Whatever happens in whatever order, the sums agree with the kept results.
        #[test]
        fn the_sums_agree_with_the_results(
            steps in proptest::collection::vec((0u8..3, 0u8..3, 0u8..6, 0usize..50, 0u64..400), 1..80)
        ) {
            let mut results = Tested::new(ROOM);
            let mut running = Vec::new();
            let mut now = 0;
            for (what, owner, key, bytes, passed) in steps {
                now += passed;
                let name = name(&owner.to_string(), &key.to_string());
                match what {
                    0 => if let IdempotencyLookup::Run(serial) = results.begin(at(now), &name, [0; 2], 0) {
                        running.push((name, serial));
                    },
                    _ => if let Some((name, serial)) = running.pop() {
                        let result = (what == 1).then_some((0, bytes));
                        results.end(at(now), &name, serial, result);
                    },
                }
                let stored: usize = results.entries.values().map(|entry| match entry.state {
                    IdempotencyState::Ended { bytes, .. } => bytes,
                    IdempotencyState::Running(_) => 0,
                }).sum();
                prop_assert_eq!(stored, results.bytes);
                prop_assert!(results.bytes <= ROOM.bytes);
                let shares: usize = results.shares.values().map(|share| share.entries).sum();
                prop_assert_eq!(shares, results.entries.len());
                let bytes: usize = results.shares.values().map(|share| share.bytes).sum();
                prop_assert_eq!(bytes, results.bytes);
                prop_assert!(results.shares.values().all(|s| s.entries <= ROOM.entries));
                let ended: usize = results.shares.values().map(|share| share.ended.len()).sum();
                prop_assert_eq!(ended, results.ended.len());
                prop_assert_eq!(results.entries.len(), running.len() + ended);
            }
        }
    }
}
