//! The penalty box: networks from which keys and tokens are guessed. No sockets, no clock.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use alknet_core::NetworkPrefix;

/// Failures within this time add up.
const WINDOW: Duration = Duration::from_secs(60);
/// The first time in the box; each further one is twice as long.
const BLOCK_FIRST: Duration = Duration::from_secs(60);
/// The longest time in the box, and the quiet time after which the next one is short again.
const BLOCK_MAX: Duration = Duration::from_secs(3600);
/// Networks that the box remembers. Beyond this number it forgets the one whose last failure is longest ago.
const REMEMBERED_MAX: usize = 8192;

#[derive(Debug, Default)]
pub(crate) struct PenaltyBox {
    records: HashMap<NetworkPrefix, PenaltyRecord>,
    /// The networks in the order of their last failures.
    order: BTreeMap<u64, NetworkPrefix>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct PenaltyRecord {
    turn: u64,
    since: Instant,
    failures: u32,
    until: Option<Instant>,
    blocks: u32,
}

impl PenaltyBox {
    /// Counts a failed proof of identity in the network `who`. Returns for how long the network is now in the box, if
    /// this failure put it there.
    pub(crate) fn fail(&mut self, who: NetworkPrefix, max: u32, now: Instant) -> Option<Duration> {
        let mut record = self.take(who, now);
        let blocked = record.fail(max, now);
        self.put(who, record);
        blocked
    }

    /// The rest of the network's time in the box, if it is there.
    pub(crate) fn left(&self, who: NetworkPrefix, now: Instant) -> Option<Duration> {
        self.records.get(&who)?.left(now)
    }

    /// The networks in the box, and the rest of their time.
    pub(crate) fn all(&self, now: Instant) -> impl Iterator<Item = (NetworkPrefix, Duration)> {
        let records = self.records.iter();
        records.filter_map(move |(who, record)| Some((*who, record.left(now)?)))
    }

    fn take(&mut self, who: NetworkPrefix, now: Instant) -> PenaltyRecord {
        let known = self.records.remove(&who);
        if let Some(record) = &known {
            self.order.remove(&record.turn);
        }
        known.unwrap_or(PenaltyRecord {
            turn: 0,
            since: now,
            failures: 0,
            until: None,
            blocks: 0,
        })
    }

    // A full table forgets the network that was heard of longest ago, so that an attacker with many networks cannot
    // grow it.
    fn put(&mut self, who: NetworkPrefix, mut record: PenaltyRecord) {
        if self.records.len() >= REMEMBERED_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.records.remove(&oldest);
        }
        record.turn = self.next;
        self.next += 1;
        self.order.insert(record.turn, who);
        self.records.insert(who, record);
    }
}

impl PenaltyRecord {
    fn fail(&mut self, max: u32, now: Instant) -> Option<Duration> {
        // Guesses while the network is blocked are refused and do not count: otherwise one client that goes on would
        // keep its neighbours out for ever.
        if self.is_blocked(now) {
            return None;
        }
        let quiet = |since: Instant, long| now.saturating_duration_since(since) >= long;
        if self.until.is_some_and(|until| quiet(until, BLOCK_MAX)) {
            self.blocks = 0;
        }
        if quiet(self.since, WINDOW) {
            self.since = now;
            self.failures = 0;
        }
        self.failures += 1;
        if self.failures < max {
            return None;
        }
        // The seventh block has the longest time already. The bound keeps the shift within its type.
        let block = BLOCK_FIRST
            .saturating_mul(1 << self.blocks.min(16))
            .min(BLOCK_MAX);
        self.blocks += 1;
        self.failures = 0;
        self.until = Some(now + block);
        Some(block)
    }

    fn is_blocked(&self, now: Instant) -> bool {
        self.left(now).is_some()
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MAX: u32 = 10;

    fn network(n: u32) -> NetworkPrefix {
        NetworkPrefix::from_ip(Ipv4Addr::from(n << 8).into())
    }

    fn held(penalties: &PenaltyBox, n: u32, now: Instant) -> bool {
        let held = penalties.left(network(n), now).is_some();
        let listed = penalties.all(now).any(|(who, _)| who == network(n));
        assert_eq!(held, listed);
        held
    }

    /// Fails as often as it takes; returns the time in the box.
    fn provoke(penalties: &mut PenaltyBox, now: Instant) -> Duration {
        for _ in 1..MAX {
            assert_eq!(penalties.fail(network(1), MAX, now), None);
        }
        assert!(!held(penalties, 1, now));
        let block = penalties.fail(network(1), MAX, now);
        assert!(held(penalties, 1, now));
        block.expect("the last one was too many")
    }

    #[test]
    fn ten_failures_in_a_minute_put_a_network_into_the_box() {
        let (mut penalties, now) = (PenaltyBox::default(), Instant::now());
        assert_eq!(provoke(&mut penalties, now), BLOCK_FIRST);
        assert!(!held(&penalties, 2, now), "another identity");
        let almost = now + BLOCK_FIRST - Duration::from_millis(1);
        assert!(held(&penalties, 1, almost));
        assert!(!held(&penalties, 1, now + BLOCK_FIRST));
    }

    #[test]
    fn slow_failures_are_forgiven() {
        let (mut penalties, start) = (PenaltyBox::default(), Instant::now());
        for minute in 0..100 {
            let now = start + WINDOW * minute;
            for _ in 1..MAX {
                assert_eq!(penalties.fail(network(1), MAX, now), None);
            }
        }
    }

    #[test]
    fn the_time_doubles_up_to_an_hour_and_a_quiet_hour_ends_that() {
        let (mut penalties, mut now) = (PenaltyBox::default(), Instant::now());
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let block = provoke(&mut penalties, now);
            assert_eq!(block, Duration::from_secs(60 * minutes));
            now += block;
        }
        now += BLOCK_MAX;
        assert_eq!(provoke(&mut penalties, now), BLOCK_FIRST);
    }

    #[test]
    fn failures_in_the_box_do_not_count() {
        let (mut penalties, now) = (PenaltyBox::default(), Instant::now());
        provoke(&mut penalties, now);
        for _ in 0..MAX * 10 {
            assert_eq!(penalties.fail(network(1), MAX, now), None);
        }
        assert!(!held(&penalties, 1, now + BLOCK_FIRST));
    }

    #[test]
    fn the_network_longest_unheard_of_is_forgotten() {
        let (mut penalties, now) = (PenaltyBox::default(), Instant::now());
        provoke(&mut penalties, now);
        for n in 0..REMEMBERED_MAX as u32 - 1 {
            penalties.fail(network(n + 10), MAX, now);
        }
        assert!(held(&penalties, 1, now));
        penalties.fail(network(2), MAX, now);
        assert!(!held(&penalties, 1, now));
        assert_eq!(penalties.records.len(), REMEMBERED_MAX);
        assert_eq!(penalties.order.len(), REMEMBERED_MAX);
    }
}
