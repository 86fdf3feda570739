//! The hybrid logical clock: physical time where clocks agree, and an order where they do not.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::limits::{CLOCK_AHEAD_MS_MAX, CLOCK_MS_MIN};

/// Milliseconds have 48 bits, which end in the year 10889.
const MS_MAX: u64 = (1 << 48) - 1;

/// How far ahead of the system the clock may be. Peers may set it ahead by half of that.
const LEAD_MS_MAX: u64 = 2 * CLOCK_AHEAD_MS_MAX;

/// Where the store takes the time from.
pub trait TimeSource: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn unix_ms(&self) -> u64;
}

/// The clock of the system. A time before 1970 counts as 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemTimeSource;

impl TimeSource for SystemTimeSource {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // A time before 1970 is a wrong one, and the hybrid clock goes on from its last value
        // anyway.
        since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }
}

/// A point in time of the hybrid clock. The order of two values is that of their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HybridTimestamp {
    ms: u64,
    counter: u16,
    node: [u8; 8],
}

impl HybridTimestamp {
    /// Bytes of a value: 6 of milliseconds and 2 of the counter, both with the highest first, and 8 of the node.
    pub const BYTES: usize = 16;

    /// Makes a value. Only the lower 48 bits of the milliseconds count.
    #[must_use]
    pub const fn new(ms: u64, counter: u16, node: [u8; 8]) -> Self {
        let ms = ms & MS_MAX;
        Self { ms, counter, node }
    }

    /// Milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn ms(&self) -> u64 {
        self.ms
    }

    /// Position among the values of the same millisecond.
    #[must_use]
    pub const fn counter(&self) -> u16 {
        self.counter
    }

    /// The node that made the value.
    #[must_use]
    pub const fn node(&self) -> [u8; 8] {
        self.node
    }

    /// The stored form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        // The highest byte first, so that the bytes sort as the times do.
        bytes[..6].copy_from_slice(&self.ms.to_be_bytes()[2..]);
        bytes[6..8].copy_from_slice(&self.counter.to_be_bytes());
        bytes[8..].copy_from_slice(&self.node);
        bytes
    }

    /// Reads the stored form. Any 16 bytes are a value.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, e, f, high, low, node @ ..] = bytes;
        Self {
            ms: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
            counter: u16::from_be_bytes([high, low]),
            node,
        }
    }
}

impl fmt::Display for HybridTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-", self.ms, self.counter)?;
        self.node
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A value of a peer, after the clock has taken it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedTimestamp {
    /// The value to store for what the peer wrote.
    pub timestamp: HybridTimestamp,
    /// Whether the peer's clock was more than [`CLOCK_AHEAD_MS_MAX`] ahead, so that the store took the latest allowed
    /// millisecond instead.
    pub is_clamped: bool,
}

/// The clock of one store. Each value is greater than all values before it, unless the clock of the system was far ahead
/// for a while: from its correction on, values have the right time. The store orders its commits by their numbers.
///
/// ```
/// use alknet_store::HybridClock;
///
/// let mut clock = HybridClock::new([1; 8]);
/// let first = clock.tick(1_000);
/// // The clock of the system was set back.
/// let second = clock.tick(900);
/// assert!(second > first);
/// ```
#[derive(Clone, Debug)]
pub struct HybridClock {
    node: [u8; 8],
    ms: u64,
    counter: u16,
}

impl HybridClock {
    /// A clock that made no value yet.
    #[must_use]
    pub const fn new(node: [u8; 8]) -> Self {
        Self {
            node,
            ms: 0,
            counter: 0,
        }
    }

    /// Continues behind a value of an earlier run of this store.
    pub fn resume(&mut self, last: HybridTimestamp) {
        self.advance(last.ms, last.counter);
    }

    /// The next value, at this time of the system.
    pub fn tick(&mut self, now_ms: u64) -> HybridTimestamp {
        // The stored form has 48 bits: a larger number would lose its upper bits and sort before
        // earlier values.
        let now_ms = now_ms.min(MS_MAX);
        let was_wrong = self.ms > now_ms.saturating_add(LEAD_MS_MAX);
        // One value of a wrong clock would set all later ones ahead, and no peer would take them in until their time has
        // come. A clock that is not set yet corrects nothing.
        if now_ms > self.ms || was_wrong && now_ms >= CLOCK_MS_MIN {
            (self.ms, self.counter) = (now_ms, 0);
        } else {
            // A full counter borrows the next millisecond. The clock is ahead of the system for that long.
            match self.counter.checked_add(1) {
                Some(next) => self.counter = next,
                None => (self.ms, self.counter) = ((self.ms + 1).min(MS_MAX), 0),
            }
        }
        HybridTimestamp::new(self.ms, self.counter, self.node)
    }

    /// Takes in a value of a peer: the next own value is greater. A value that is too far in the future is clamped: one
    /// peer with a wrong clock would otherwise set the clocks of all peers ahead, and its writes would win for as long.
    pub fn observe(&mut self, remote: HybridTimestamp, now_ms: u64) -> ObservedTimestamp {
        let latest = now_ms.saturating_add(CLOCK_AHEAD_MS_MAX).min(MS_MAX);
        let is_clamped = remote.ms > latest;
        let timestamp = if is_clamped {
            HybridTimestamp::new(latest, 0, remote.node)
        } else {
            remote
        };
        self.advance(timestamp.ms, timestamp.counter);
        ObservedTimestamp {
            timestamp,
            is_clamped,
        }
    }

    fn advance(&mut self, ms: u64, counter: u16) {
        if (ms, counter) > (self.ms, self.counter) {
            (self.ms, self.counter) = (ms, counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_grow_while_the_system_clock_stands_or_goes_back() {
        let mut clock = HybridClock::new([7; 8]);
        let times = [5, 5, 4, 6, 0, 6];
        let values: Vec<_> = times.iter().map(|now| clock.tick(*now)).collect();
        assert!(values.is_sorted_by(|a, b| a < b), "{values:?}");
        let parts: Vec<_> = values.iter().map(|it| (it.ms(), it.counter())).collect();
        assert_eq!(parts, [(5, 0), (5, 1), (5, 2), (6, 0), (6, 1), (6, 2)]);
    }

    /// The attack: a time server that says the year 2100 once.
    #[test]
    fn a_clock_that_was_far_ahead_is_left_once_it_is_right_again() {
        let year_2100 = 4_102_444_800_000;
        let now = CLOCK_MS_MIN + 1_000_000;
        let mut clock = HybridClock::new([7; 8]);
        assert_eq!(clock.tick(year_2100).ms(), year_2100);
        // A clock that is not set yet, such as that of a board without a battery, says nothing.
        assert_eq!(clock.tick(5).ms(), year_2100);
        assert_eq!(clock.tick(now).ms(), now);
        let next = clock.tick(now);
        assert_eq!((next.ms(), next.counter()), (now, 1));
        // The same after a restart.
        let mut clock = HybridClock::new([7; 8]);
        clock.resume(HybridTimestamp::new(year_2100, 3, [7; 8]));
        assert_eq!(clock.tick(now).ms(), now);
        // A small correction changes no order.
        let mut clock = HybridClock::new([7; 8]);
        let first = clock.tick(now + LEAD_MS_MAX);
        assert!(clock.tick(now) > first);
    }

    #[test]
    fn a_full_counter_takes_the_next_millisecond() {
        let mut clock = HybridClock::new([0; 8]);
        clock.resume(HybridTimestamp::new(5, u16::MAX, [9; 8]));
        let next = clock.tick(5);
        assert_eq!((next.ms(), next.counter(), next.node()), (6, 0, [0; 8]));
    }

    #[test]
    fn the_order_of_the_bytes_is_the_order_of_the_values() {
        let values = [
            HybridTimestamp::new(1, u16::MAX, [255; 8]),
            HybridTimestamp::new(255, 0, [0; 8]),
            HybridTimestamp::new(256, 0, [0; 8]),
            HybridTimestamp::new(256, 1, [0; 8]),
            HybridTimestamp::new(256, 256, [0; 8]),
            HybridTimestamp::new(256, 256, [0, 0, 0, 0, 0, 0, 0, 1]),
            HybridTimestamp::new(MS_MAX, 0, [0; 8]),
        ];
        assert!(values.is_sorted());
        assert!(values.is_sorted_by_key(|it| it.to_bytes()));
        for value in values {
            assert_eq!(HybridTimestamp::from_bytes(value.to_bytes()), value);
        }
    }

    #[test]
    fn a_value_of_a_peer_comes_before_the_next_own_one() {
        let mut clock = HybridClock::new([1; 8]);
        let remote = HybridTimestamp::new(1_000 + CLOCK_AHEAD_MS_MAX, 3, [2; 8]);
        let observed = clock.observe(remote, 1_000);
        assert!(!observed.is_clamped);
        assert_eq!(observed.timestamp, remote);
        assert!(clock.tick(1_000) > remote);
    }

    #[test]
    fn a_clock_of_a_peer_that_is_too_far_ahead_is_clamped() {
        let mut clock = HybridClock::new([1; 8]);
        let remote = HybridTimestamp::new(1_001 + CLOCK_AHEAD_MS_MAX, 3, [2; 8]);
        let observed = clock.observe(remote, 1_000);
        assert!(observed.is_clamped);
        let latest = HybridTimestamp::new(1_000 + CLOCK_AHEAD_MS_MAX, 0, [2; 8]);
        assert_eq!(observed.timestamp, latest);
        assert_eq!(clock.tick(1_000).ms(), latest.ms());
    }
}
