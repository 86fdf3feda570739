//! Operations that crash their workers repeatedly.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::Bytes32;
use crate::limits::{CRASH_BOOK_MAX, CRASH_WINDOW, CRASHES_MAX};

/// The times of crashes by operation, in microseconds of one clock.
///
/// A crash counts against an operation only if it ran alone in its worker: otherwise a session could put the operation
/// of another one into quarantine by crashing beside it.
#[derive(Debug, Default)]
pub(super) struct OperationCrashes {
    crashes: HashMap<TenantOperation, VecDeque<u64>>,
    quarantined: HashSet<TenantOperation>,
}

/// An operation in the workers of one tenant.
///
/// The hash alone would not do: an attacker sends the same code as another tenant, crashes its own workers with it, and
/// the host would then refuse the other tenant's operation. What a tenant runs for itself says as little about what
/// others have it run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TenantOperation {
    pub(super) tenant: String,
    pub(super) lent: bool,
    pub(super) operation: Bytes32,
}

impl OperationCrashes {
    /// Records that `operation` crashed its worker. Returns whether this puts it into quarantine.
    pub(super) fn crashed(&mut self, operation: TenantOperation, now: u64) -> bool {
        if self.quarantined.contains(&operation) {
            return false;
        }
        self.evict_oldest(&operation);
        let window = u64::try_from(CRASH_WINDOW.as_micros()).unwrap_or(u64::MAX);
        let times = self.crashes.entry(operation.clone()).or_default();
        times.push_back(now);
        while times.front().is_some_and(|first| now - first >= window) {
            times.pop_front();
        }
        if times.len() < CRASHES_MAX {
            return false;
        }
        self.crashes.remove(&operation);
        if self.quarantined.len() >= CRASH_BOOK_MAX {
            // An attacker makes operations in order to crash them. Forgetting one lets it crash again, and
            // remembering all would take the node's memory.
            let any = self.quarantined.iter().next().cloned();
            any.map(|any| self.quarantined.remove(&any));
        }
        self.quarantined.insert(operation)
    }

    pub(super) fn is_quarantined(&self, operation: &TenantOperation) -> bool {
        self.quarantined.contains(operation)
    }

    /// Releases an operation for all tenants, at an administrator's request. Returns whether it was in quarantine.
    pub(super) fn release(&mut self, operation: &Bytes32) -> bool {
        let before = self.quarantined.len();
        self.quarantined.retain(|held| held.operation != *operation);
        self.quarantined.len() < before
    }

    pub(super) fn len(&self) -> usize {
        self.quarantined.len()
    }

    fn evict_oldest(&mut self, operation: &TenantOperation) {
        if self.crashes.len() < CRASH_BOOK_MAX || self.crashes.contains_key(operation) {
            return;
        }
        let oldest = self.crashes.iter().min_by_key(|(_, times)| times.back());
        let oldest = oldest.map(|(operation, _)| operation.clone());
        oldest.map(|oldest| self.crashes.remove(&oldest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn run_by(tenant: &str, lent: bool, hash: [u8; 32]) -> TenantOperation {
        TenantOperation {
            tenant: tenant.to_owned(),
            lent,
            operation: Bytes32(hash),
        }
    }

    #[test]
    fn the_third_crash_in_a_minute_quarantines() {
        let mut book = OperationCrashes::default();
        let (bad, other) = (run_by("a", false, [1; 32]), run_by("a", false, [2; 32]));
        assert!(!book.crashed(bad.clone(), 0));
        assert!(!book.crashed(other.clone(), S));
        assert!(!book.crashed(bad.clone(), 59 * S));
        assert!(
            !book.crashed(bad.clone(), 60 * S),
            "the first is a minute old"
        );
        assert!(!book.is_quarantined(&bad));
        assert!(book.crashed(bad.clone(), 61 * S));
        assert!(book.is_quarantined(&bad) && !book.is_quarantined(&other));
        assert!(!book.crashed(bad.clone(), 62 * S), "it is in already");
        assert!(book.release(&bad.operation) && !book.release(&bad.operation));
        assert!(!book.crashed(bad, 63 * S), "and starts over");
    }

    #[test]
    fn crashes_of_one_tenant_quarantine_nothing_of_another() {
        let mut book = OperationCrashes::default();
        let hostile = run_by("hostile", false, [1; 32]);
        let others = [
            run_by("honest", false, [1; 32]),
            run_by("hostile", true, [1; 32]),
        ];
        for crash in 0..3 {
            book.crashed(hostile.clone(), crash);
        }
        assert!(book.is_quarantined(&hostile));
        for other in others {
            assert!(!book.is_quarantined(&other), "{other:?}");
            assert!(!book.crashed(other, 4), "it has its own count");
        }
    }

    #[test]
    fn the_book_does_not_grow_without_end() {
        let mut book = OperationCrashes::default();
        for number in 0..2 * CRASH_BOOK_MAX as u64 {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            for crash in 0..=(number % 3) {
                book.crashed(run_by("a", false, hash), number * 10 + crash);
            }
        }
        assert!(book.crashes.len() <= CRASH_BOOK_MAX);
        assert!(book.quarantined.len() <= CRASH_BOOK_MAX);
    }
}
