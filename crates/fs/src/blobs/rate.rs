//! How many bytes the node sends to each identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::limits::BLOB_RATES_MAX;

/// Pause before a further identity looks again for room in the table.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// The rates of all identities. All connections of one identity share a rate.
#[derive(Debug)]
pub(super) struct BlobRates {
    bytes_per_second: u64,
    by_identity: Mutex<HashMap<String, ByteDebt>>,
}

/// When the bytes that were sent to an identity are paid for by its rate. A second of debt is free.
#[derive(Clone, Copy, Debug)]
struct ByteDebt {
    paid_at: Instant,
}

impl ByteDebt {
    const BURST: Duration = Duration::from_secs(1);

    /// Adds bytes, and returns how long the next ones have to wait.
    fn add(&mut self, bytes: u64, bytes_per_second: u64, now: Instant) -> Duration {
        // In 128 bits, because a large content has more bytes than its nanoseconds leave room for in 64.
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let begin = self.paid_at.max(now);
        self.paid_at = begin.checked_add(time).unwrap_or(begin);
        self.paid_at
            .saturating_duration_since(now)
            .saturating_sub(Self::BURST)
    }
}

impl BlobRates {
    pub(super) fn new(bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes_per_second,
            by_identity: Mutex::default(),
        })
    }

    /// Counts bytes that are about to be sent to an identity, and waits until its rate allows them.
    pub(super) async fn wait(&self, identity: &str, bytes: u64) {
        let pause = loop {
            match self.add(identity, bytes, Instant::now()) {
                Some(pause) => break pause,
                None => sleep(FULL_PAUSE).await,
            }
        };
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }

    /// Returns how long the bytes have to wait, or `None` if the table is full.
    fn add(&self, identity: &str, bytes: u64, now: Instant) -> Option<Duration> {
        let mut table = self.table();
        if let Some(debt) = table.get_mut(identity) {
            return Some(debt.add(bytes, self.bytes_per_second, now));
        }
        if table.len() >= BLOB_RATES_MAX {
            // An entry is kept for as long as it has a debt, so that a new connection does not pay it.
            table.retain(|_, debt| debt.paid_at > now);
        }
        if table.len() >= BLOB_RATES_MAX {
            return None;
        }
        let mut debt = ByteDebt { paid_at: now };
        let pause = debt.add(bytes, self.bytes_per_second, now);
        table.insert(identity.to_owned(), debt);
        Some(pause)
    }

    /// A table of times is never half changed.
    fn table(&self) -> MutexGuard<'_, HashMap<String, ByteDebt>> {
        self.by_identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_identity_has_its_rate_and_a_second_in_advance() {
        let rates = BlobRates::new(1000);
        let now = Instant::now();
        let add = |who: &str, bytes, at| rates.add(who, bytes, at).expect("room");
        assert_eq!(add("ada", 1000, now), Duration::ZERO);
        assert_eq!(add("ada", 500, now), Duration::from_millis(500));
        assert_eq!(add("bob", 1000, now), Duration::ZERO);
        // The debt is paid with time, and a pause gives no more than a second in advance.
        let later = now + Duration::from_secs(10);
        assert_eq!(add("ada", 1000, later), Duration::ZERO);
        assert_eq!(add("ada", 1000, later), Duration::from_secs(1));
    }

    #[test]
    fn a_table_full_of_debts_takes_no_further_identity() {
        let rates = BlobRates::new(1);
        let now = Instant::now();
        for at in 0..BLOB_RATES_MAX {
            rates.add(&at.to_string(), 10, now).expect("room");
        }
        assert_eq!(rates.add("one more", 1, now), None);
        assert!(rates.add("7", 1, now).is_some());
        let later = now + Duration::from_secs(20);
        assert!(rates.add("one more", 1, later).is_some());
        assert!(rates.table().len() < BLOB_RATES_MAX);
    }
}
