//! How many records a minute has in the log of what peers, servers and callers can bring about as often as they like.
//!
//! The ring keeps a megabyte: without a rate one server that asks and asks would leave nothing else in it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use alknet_call::CAUSE_TARGET;
use tracing::Metadata;
use tracing::callsite::Identifier;

/// The time for which records are counted.
pub(crate) const RATE_PERIOD: Duration = Duration::from_secs(60);
/// Records that each place in a library has in a period.
pub(crate) const LIBRARY_RECORDS_MAX: u32 = 10;
/// Records of why servers and peers failed, in a period. A record has 4 KiB at most: a quarter of the ring.
pub(crate) const CAUSE_RECORDS_MAX: u32 = 60;

/// What the places in the program have had. There are as many as the program has.
pub(crate) struct LogRates<K = Identifier>(Mutex<HashMap<K, RatePeriod>>);

/// What one place has had since then.
struct RatePeriod {
    since: Instant,
    records: u32,
    left_out: u64,
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RateDecision {
    /// It is kept. So many of the same place were left out in the period before.
    Keep { left_out: u64 },
    /// The place has had as many as it may.
    LeaveOut,
}

impl<K> Default for LogRates<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl LogRates {
    /// Counts a record.
    pub(crate) fn count(&self, metadata: &Metadata<'_>, now: Instant) -> RateDecision {
        match records_max(metadata.target()) {
            Some(most) => self.count_at(metadata.callsite(), most, now),
            None => RateDecision::Keep { left_out: 0 },
        }
    }
}

impl<K: Eq + Hash> LogRates<K> {
    fn count_at(&self, place: K, most: u32, now: Instant) -> RateDecision {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let period = places.entry(place).or_insert(RatePeriod {
            since: now,
            records: 0,
            left_out: 0,
        });
        let mut left_out = 0;
        if now.saturating_duration_since(period.since) >= RATE_PERIOD {
            left_out = period.left_out;
            *period = RatePeriod {
                since: now,
                records: 0,
                left_out: 0,
            };
        }
        if period.records == most {
            period.left_out += 1;
            return RateDecision::LeaveOut;
        }
        period.records += 1;
        RateDecision::Keep { left_out }
    }
}

/// Records of one place in a period; `None` for what the node says of itself, which has limits where it happens.
fn records_max(target: &str) -> Option<u32> {
    match target {
        CAUSE_TARGET => Some(CAUSE_RECORDS_MAX),
        _ if target.starts_with("alknet") => None,
        _ => Some(LIBRARY_RECORDS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_of_a_library_has_a_rate_and_says_what_was_left_out() {
        let rates = LogRates::default();
        let start = Instant::now();
        let count = |now| rates.count_at("one place", LIBRARY_RECORDS_MAX, now);
        for _ in 0..LIBRARY_RECORDS_MAX {
            assert_eq!(count(start), RateDecision::Keep { left_out: 0 });
        }
        for _ in 0..7 {
            assert_eq!(count(start), RateDecision::LeaveOut);
        }
        let other = rates.count_at("another", LIBRARY_RECORDS_MAX, start);
        assert_eq!(other, RateDecision::Keep { left_out: 0 });
        let later = start + RATE_PERIOD;
        assert_eq!(count(later), RateDecision::Keep { left_out: 7 });
        assert_eq!(count(later), RateDecision::Keep { left_out: 0 });
    }

    #[test]
    fn the_node_s_own_records_have_no_rate_but_for_why_servers_failed() {
        assert_eq!(records_max("alknet_endpoint::accept"), None);
        assert_eq!(records_max(CAUSE_TARGET), Some(CAUSE_RECORDS_MAX));
        assert_eq!(records_max("rmcp::service"), Some(LIBRARY_RECORDS_MAX));
    }
}
