//! Pauses after sessions that ended with an error: a peer that sent what cannot be merged would send it again at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::PeerId;
use alknet_store::{BranchName, BucketName};

use super::error::ByeCode;
use super::eviction::choose_row;
use super::limits::{FAILED_DOCUMENTS_MAX, HARMED_DOCUMENTS_MAX, PAUSE_MAX, PAUSE_MIN, PAUSES_MAX};
use super::message::{SyncHello, SyncPart};

/// The peer of a session, and the document that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PauseKey {
    peer: PeerId,
    bucket: BucketName,
    branch: BranchName,
    part: SyncPart,
}

impl PauseKey {
    /// The pauses of a peer about what its hello names.
    pub(super) fn new(peer: &PeerId, hello: &SyncHello) -> Self {
        Self {
            peer: peer.clone(),
            bucket: hello.bucket.clone(),
            branch: hello.branch.clone(),
            part: hello.part.clone(),
        }
    }
}

/// The pause after so many failures in a row, of which there is one at least.
pub(super) fn pause_after(failures: u32, shortest: Duration, longest: Duration) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    shortest.saturating_mul(doubled).min(longest)
}

/// The pauses of a node.
#[derive(Debug, Default)]
pub(super) struct SyncPauses(Mutex<HashMap<PauseKey, SyncPause>>);

#[derive(Clone, Copy, Debug)]
struct SyncPause {
    failures: u32,
    /// Whether the last failure was the peer's doing.
    is_harm: bool,
    /// When the last session failed.
    failed: Instant,
    until: Instant,
}

impl SyncPauses {
    /// How long the peer still has to wait.
    pub(super) fn left(&self, key: &PauseKey, now: Instant) -> Duration {
        let pauses = self.lock();
        let until = match pauses.get(key) {
            Some(pause) => Some(pause.until),
            // A document without a failure of its own, which may be one of names that the peer makes up.
            None => bucket_pause(&pauses, key, now),
        };
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Notes how a session ended.
    pub(super) fn note(&self, key: PauseKey, code: Option<ByeCode>, now: Instant) {
        let mut pauses = self.lock();
        match code {
            // A stream that broke off says nothing about the peer's document.
            None => {}
            Some(ByeCode::Done) => {
                pauses.remove(&key);
            }
            // These are answers to a peer that pauses or has no right. They do not make the pause longer.
            Some(ByeCode::Busy | ByeCode::NotFound) => {}
            Some(code) => {
                if pauses.len() >= PAUSES_MAX && !pauses.contains_key(&key) {
                    make_room(&mut pauses, now);
                }
                let pause = pauses.entry(key).or_insert(SyncPause {
                    failures: 0,
                    is_harm: false,
                    failed: now,
                    until: now,
                });
                pause.failures = pause.failures.saturating_add(1);
                pause.is_harm = is_harm(code);
                pause.failed = now;
                pause.until = now + pause_after(pause.failures, PAUSE_MIN, PAUSE_MAX);
            }
        }
    }

    /// A map is never half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<PauseKey, SyncPause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a session with this code failed by what the peer did. Other failures may be those of an honest peer: a document
/// with too many paths fails for as long as it has them.
const fn is_harm(code: ByeCode) -> bool {
    matches!(
        code,
        ByeCode::ClockAhead | ByeCode::InvalidDocument | ByeCode::InvalidMessage | ByeCode::Timeout
    )
}

/// Until when a peer has to wait with the documents of a bucket that have no failure, because too many others failed.
fn bucket_pause(
    pauses: &HashMap<PauseKey, SyncPause>,
    key: &PauseKey,
    now: Instant,
) -> Option<Instant> {
    let is_same = |other: &PauseKey| other.peer == key.peer && other.bucket == key.bucket;
    let failed = pauses.iter().filter(|(other, _)| is_same(other));
    let failed = failed.filter(|(_, pause)| pause.is_recent(now));
    let mut times: Vec<(Instant, bool)> = failed
        .map(|(_, pause)| (pause.failed, pause.is_harm))
        .collect();
    times.sort_unstable_by(|one, other| other.cmp(one));
    // The one without which there would be too few, from the last one on.
    let decisive = times
        .get(FAILED_DOCUMENTS_MAX - 1)
        .map(|(failed, _)| failed);
    let mut harms = times.iter().filter(|(_, is_harm)| *is_harm);
    let harm = harms.nth(HARMED_DOCUMENTS_MAX - 1);
    let last = decisive.max(harm.map(|(failed, _)| failed))?;
    Some(*last + PAUSE_MAX)
}

/// Drops what says nothing any more, or else a row of the peer with the most: a peer that fails often must not keep the
/// failures of others out.
fn make_room(pauses: &mut HashMap<PauseKey, SyncPause>, now: Instant) {
    pauses.retain(|_, pause| pause.until > now || pause.is_recent(now));
    if pauses.len() < PAUSES_MAX {
        return;
    }
    let rows = pauses.iter();
    let chosen = choose_row(rows.map(|(key, pause)| (key, &key.peer, pause.failed))).cloned();
    if let Some(key) = chosen {
        pauses.remove(&key);
    }
}

impl SyncPause {
    /// Whether the failure counts for the whole bucket.
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.failed) < PAUSE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> PauseKey {
        PauseKey {
            peer: format!("peer{number}").parse().expect("a name"),
            bucket: BucketName::parse("docs").expect("a name"),
            branch: BranchName::main(),
            part: SyncPart::Whole,
        }
    }

    #[test]
    fn pauses_grow_with_each_failure_and_end_with_a_success() {
        let (pauses, now) = (SyncPauses::default(), Instant::now());
        let mut lengths = Vec::new();
        for _ in 0..7 {
            pauses.note(key(1), Some(ByeCode::InvalidDocument), now);
            lengths.push(pauses.left(&key(1), now).as_secs());
        }
        assert_eq!(lengths, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(pauses.left(&key(2), now), Duration::ZERO);
        // Another document of the same branch goes on.
        let other = PauseKey {
            part: SyncPart::Top("a".to_owned()),
            ..key(1)
        };
        assert_eq!(pauses.left(&other, now), Duration::ZERO);
        // Neither makes the pause longer or shorter.
        pauses.note(key(1), Some(ByeCode::Busy), now);
        pauses.note(key(1), None, now);
        assert_eq!(pauses.left(&key(1), now), PAUSE_MAX);
        assert_eq!(pauses.left(&key(1), now + PAUSE_MAX), Duration::ZERO);
        pauses.note(key(1), Some(ByeCode::Done), now);
        assert_eq!(pauses.left(&key(1), now), Duration::ZERO);
    }

    /// A document of a split bucket.
    fn top(peer: usize, name: usize) -> PauseKey {
        PauseKey {
            part: SyncPart::Top(name.to_string()),
            ..key(peer)
        }
    }

    /// The attack: each bad message is about another name, which has no pause.
    #[test]
    fn a_peer_that_harms_some_documents_pauses_with_all_of_the_bucket() {
        let (pauses, now) = (SyncPauses::default(), Instant::now());
        for name in 0..HARMED_DOCUMENTS_MAX {
            assert_eq!(pauses.left(&top(1, name), now), Duration::ZERO);
            pauses.note(top(1, name), Some(ByeCode::InvalidDocument), now);
        }
        assert_eq!(pauses.left(&top(1, 99), now), PAUSE_MAX);
        assert_eq!(pauses.left(&key(1), now), PAUSE_MAX, "every document");
        // Those that failed have their own pauses, so that an honest peer can make up for it.
        assert_eq!(pauses.left(&top(1, 0), now), PAUSE_MIN);
        // Other peers and other buckets go on.
        assert_eq!(pauses.left(&top(2, 99), now), Duration::ZERO);
        let other = PauseKey {
            bucket: BucketName::parse("other").expect("a name"),
            ..top(1, 99)
        };
        assert_eq!(pauses.left(&other, now), Duration::ZERO);
        assert_eq!(pauses.left(&top(1, 99), now + PAUSE_MAX), Duration::ZERO);
        pauses.note(top(1, 0), Some(ByeCode::Done), now);
        assert_eq!(pauses.left(&top(1, 99), now), Duration::ZERO);
    }

    #[test]
    fn documents_that_are_too_large_keep_others_waiting_only_if_they_are_many() {
        let (pauses, now) = (SyncPauses::default(), Instant::now());
        for name in 0..FAILED_DOCUMENTS_MAX {
            assert_eq!(pauses.left(&top(1, 99), now), Duration::ZERO, "{name}");
            pauses.note(top(1, name), Some(ByeCode::TooLarge), now);
        }
        assert_eq!(pauses.left(&top(1, 99), now), PAUSE_MAX);
    }

    #[test]
    fn a_limited_number_of_pauses_is_remembered() {
        let (pauses, now) = (SyncPauses::default(), Instant::now());
        for number in 0..PAUSES_MAX + 10 {
            pauses.note(key(number), Some(ByeCode::ClockAhead), now);
        }
        assert_eq!(pauses.lock().len(), PAUSES_MAX);
        // The last one is remembered, and one of the others was dropped for it.
        assert_eq!(pauses.left(&key(PAUSES_MAX + 9), now), PAUSE_MIN);
        let later = now + PAUSE_MAX;
        pauses.note(key(PAUSES_MAX + 10), Some(ByeCode::ClockAhead), later);
        assert_eq!(pauses.lock().len(), 1);
    }

    /// The attack: one peer fills the table, so that no other peer pauses.
    #[test]
    fn a_peer_with_many_failures_displaces_its_own() {
        let (pauses, now) = (SyncPauses::default(), Instant::now());
        let code = Some(ByeCode::TooLarge);
        pauses.note(key(2), code, now);
        for name in 0..2 * PAUSES_MAX {
            let at = now + Duration::from_millis(1);
            pauses.note(top(1, name), code, at);
        }
        pauses.note(key(3), code, now + Duration::from_millis(2));
        assert_eq!(pauses.lock().len(), PAUSES_MAX);
        for peer in [2, 3] {
            assert!(!pauses.left(&key(peer), now).is_zero(), "peer{peer}");
        }
    }
}
