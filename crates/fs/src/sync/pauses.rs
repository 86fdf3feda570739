//! Pauses after sessions that ended with an error: a peer that sent what cannot be merged would send it again at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::PeerId;
use alknet_store::{BranchName, BucketName};

use super::error::ByeCode;
use super::limits::{PAUSE_MAX, PAUSE_MIN, PAUSES_MAX};
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
    until: Instant,
}

impl SyncPauses {
    /// How long the peer still has to wait.
    pub(super) fn left(&self, key: &PauseKey, now: Instant) -> Duration {
        let pauses = self.lock();
        let until = pauses.get(key).map(|pause| pause.until);
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
            Some(_) => {
                if pauses.len() >= PAUSES_MAX && !pauses.contains_key(&key) {
                    pauses.retain(|_, pause| pause.until > now);
                }
                // More peers than this at once are beyond what pauses can help with.
                if pauses.len() < PAUSES_MAX || pauses.contains_key(&key) {
                    let pause = pauses.entry(key).or_insert(SyncPause {
                        failures: 0,
                        until: now,
                    });
                    pause.failures = pause.failures.saturating_add(1);
                    pause.until = now + pause_after(pause.failures, PAUSE_MIN, PAUSE_MAX);
                }
            }
        }
    }

    /// A map is never half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<PauseKey, SyncPause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_limited_number_of_pauses_is_remembered() {
        let (pauses, now) = (SyncPauses::default(), Instant::now());
        for number in 0..PAUSES_MAX + 10 {
            pauses.note(key(number), Some(ByeCode::ClockAhead), now);
        }
        assert_eq!(pauses.lock().len(), PAUSES_MAX);
        let later = now + PAUSE_MIN;
        pauses.note(key(PAUSES_MAX), Some(ByeCode::ClockAhead), later);
        assert_eq!(pauses.lock().len(), 1);
    }
}
