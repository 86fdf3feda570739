//! How the last sessions with each peer ended, for schedules, metrics and the people who ask.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;
use alknet_store::{BranchName, BucketName};

use super::error::SyncError;
use super::eviction::choose_row;
use super::limits::{FAILED_TOPS_MAX, RECORDS_MAX};

/// A branch and a peer that it is synchronised with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncTarget {
    /// Name of the bucket.
    pub bucket: BucketName,
    /// Name of the branch.
    pub branch: BranchName,
    /// Name of the peer.
    pub peer: PeerId,
}

/// How the last sessions about a branch with a peer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncRecord {
    /// When both had the same last, in milliseconds since 1970-01-01 UTC. `None` if they had not since the node started.
    pub equal_ms: Option<u64>,
    /// Number of the commit of this node up to which both had the same then.
    pub equal_seq: Option<u64>,
    /// Sessions in a row that ended with an error.
    pub failures: u32,
    /// Code or word of the last of them, such as `not-found` or `unreachable`.
    pub failure: Option<&'static str>,
    /// Whether a person has to change something before a session can succeed.
    pub is_lasting: bool,
    /// In a split bucket, names in the root whose sessions failed, each with the code. There may be more of them.
    pub failed_tops: BTreeMap<String, &'static str>,
}

/// The records of a node since it started.
#[derive(Debug, Default)]
pub(crate) struct SyncRecords(Mutex<RecordTable>);

#[derive(Debug, Default)]
struct RecordTable {
    rows: BTreeMap<SyncTarget, AgedRecord>,
    /// Counts the changes of rows.
    changes: u64,
}

#[derive(Debug, Default)]
struct AgedRecord {
    /// The number of the last change.
    changed: u64,
    record: SyncRecord,
}

impl SyncRecords {
    /// All records.
    pub(crate) fn list(&self) -> Vec<(SyncTarget, SyncRecord)> {
        let table = self.lock();
        let all = table.rows.iter();
        all.map(|(target, row)| (target.clone(), row.record.clone()))
            .collect()
    }

    /// The commit up to which both had the same.
    pub(super) fn equal_seq(&self, target: &SyncTarget) -> Option<u64> {
        self.lock().rows.get(target)?.record.equal_seq
    }

    /// The peers with which a bucket was synchronised, the last one first.
    pub(crate) fn peers_of(&self, bucket: &BucketName) -> Vec<PeerId> {
        let mut peers: Vec<_> = self
            .list()
            .into_iter()
            .filter(|(target, record)| target.bucket == *bucket && record.equal_ms.is_some())
            .map(|(target, record)| (record.equal_ms, target.peer))
            .collect();
        peers.sort_by(|one, other| other.cmp(one));
        let mut found = Vec::new();
        for (_, peer) in peers {
            if !found.contains(&peer) {
                found.push(peer);
            }
        }
        found
    }

    /// Notes that both have the same names up to a commit. Without one, a further session is due.
    pub(super) fn note_equal(&self, target: &SyncTarget, seq: Option<u64>, now_ms: u64) {
        let mut table = self.lock();
        let record = table.record_mut(target);
        if let Some(failure) = record.failure {
            let SyncTarget {
                bucket,
                branch,
                peer,
            } = target;
            tracing::info!(%peer, %bucket, %branch, "synchronised again after {failure}");
        }
        *record = SyncRecord {
            equal_ms: Some(now_ms),
            // An older session may end later.
            equal_seq: record.equal_seq.max(seq),
            ..SyncRecord::default()
        };
    }

    /// Notes that a session failed. Only the first of several alike is in the log: a peer may be away for weeks.
    pub(super) fn note_failure(&self, target: &SyncTarget, error: &SyncError) {
        let mut table = self.lock();
        let record = table.record_mut(target);
        let name = error.name();
        let is_new = record.failure != Some(name);
        record.failures = record.failures.saturating_add(1);
        record.failure = Some(name);
        record.is_lasting = error.is_lasting();
        drop(table);
        let SyncTarget {
            bucket,
            branch,
            peer,
        } = target;
        if is_new {
            tracing::info!(%peer, %bucket, %branch, "a synchronisation ended: {error}");
        } else {
            tracing::debug!(%peer, %bucket, %branch, "a synchronisation ended again: {error}");
        }
    }

    /// Notes how the session about a name in the root ended.
    pub(super) fn note_top(&self, target: &SyncTarget, top: &str, failure: Option<&'static str>) {
        let mut table = self.lock();
        let record = table.record_mut(target);
        let tops = &mut record.failed_tops;
        match failure {
            Some(code) if tops.contains_key(top) || tops.len() < FAILED_TOPS_MAX => {
                tops.insert(top.to_owned(), code);
            }
            Some(_) => {}
            None => {
                tops.remove(top);
            }
        }
    }

    /// A record is replaced as a whole.
    fn lock(&self) -> MutexGuard<'_, RecordTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordTable {
    /// The record of a target, for a change. In a full table it takes the place of the oldest one of the bucket with the
    /// most: branches come and go, and those of one bucket must not displace what is known of others.
    fn record_mut(&mut self, target: &SyncTarget) -> &mut SyncRecord {
        if self.rows.len() >= RECORDS_MAX && !self.rows.contains_key(target) {
            let rows = self.rows.iter();
            let aged = rows.map(|(target, row)| (target, &target.bucket, row.changed));
            if let Some(oldest) = choose_row(aged).cloned() {
                self.rows.remove(&oldest);
            }
        }
        self.changes += 1;
        let row = self.rows.entry(target.clone()).or_default();
        row.changed = self.changes;
        &mut row.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::ByeCode;

    fn target(peer: &str) -> SyncTarget {
        SyncTarget {
            bucket: "docs".parse().expect("a name"),
            branch: BranchName::main(),
            peer: peer.parse().expect("a name"),
        }
    }

    fn record(records: &SyncRecords, peer: &str) -> SyncRecord {
        let mut all = records.list().into_iter();
        let found = all.find(|(it, _)| *it == target(peer));
        found.map(|(_, record)| record).unwrap_or_default()
    }

    #[test]
    fn failures_count_until_both_have_the_same() {
        let records = SyncRecords::default();
        let ada = target("ada");
        for number in 1..=3 {
            let error = SyncError::refused(ByeCode::TooLarge, "more than a limit");
            records.note_failure(&ada, &error);
            let found = record(&records, "ada");
            assert_eq!((found.failures, found.failure), (number, Some("too-large")));
            assert!(found.is_lasting);
        }
        records.note_failure(&ada, &SyncError::Unreachable("away".into()));
        let found = record(&records, "ada");
        assert_eq!((found.failures, found.is_lasting), (4, false));
        records.note_top(&ada, "photos", Some("too-large"));
        records.note_equal(&ada, Some(7), 1000);
        // A session that began before, and ends after.
        records.note_equal(&ada, Some(5), 2000);
        let expected = SyncRecord {
            equal_ms: Some(2000),
            equal_seq: Some(7),
            ..SyncRecord::default()
        };
        assert_eq!(record(&records, "ada"), expected);
    }

    #[test]
    fn the_peer_of_the_last_session_is_first() {
        let records = SyncRecords::default();
        for (peer, ms) in [("ada", 1), ("bob", 3), ("cyd", 2)] {
            records.note_equal(&target(peer), None, ms);
        }
        let away = SyncError::Unreachable("away".into());
        records.note_failure(&target("dan"), &away);
        let bucket = "docs".parse().expect("a name");
        let peers = records.peers_of(&bucket);
        let peers: Vec<_> = peers.iter().map(PeerId::as_str).collect();
        assert_eq!(peers, ["bob", "cyd", "ada"]);
        let other = "other".parse().expect("a name");
        assert!(records.peers_of(&other).is_empty());
    }

    #[test]
    fn records_are_limited() {
        let records = SyncRecords::default();
        for number in 0..RECORDS_MAX + 10 {
            records.note_equal(&target(&format!("peer{number}")), Some(1), 1);
        }
        assert_eq!(records.list().len(), RECORDS_MAX);
        // The oldest one made room for the last one.
        assert_eq!(record(&records, "peer0"), SyncRecord::default());
        let last = format!("peer{}", RECORDS_MAX + 9);
        assert_eq!(record(&records, &last).equal_seq, Some(1));
        let ada = target(&last);
        for number in 0..FAILED_TOPS_MAX + 5 {
            records.note_top(&ada, &number.to_string(), Some("too-large"));
        }
        assert_eq!(record(&records, &last).failed_tops.len(), FAILED_TOPS_MAX);
        records.note_top(&ada, "1", None);
        assert_eq!(
            record(&records, &last).failed_tops.len(),
            FAILED_TOPS_MAX - 1
        );
    }

    /// The attack: branches that are made and deleted, until there is no room for the records of other buckets.
    #[test]
    fn a_bucket_with_many_records_displaces_its_own() {
        let records = SyncRecords::default();
        records.note_equal(&target("ada"), Some(1), 1);
        let crowd = |number: usize| SyncTarget {
            bucket: "crowd".parse().expect("a name"),
            branch: format!("b{number}").parse().expect("a name"),
            ..target("ada")
        };
        for number in 0..2 * RECORDS_MAX {
            records.note_equal(&crowd(number), Some(1), 1);
        }
        records.note_equal(&target("bob"), Some(2), 1);
        assert_eq!(records.list().len(), RECORDS_MAX);
        assert_eq!(records.equal_seq(&target("ada")), Some(1));
        assert_eq!(records.equal_seq(&target("bob")), Some(2));
    }
}
