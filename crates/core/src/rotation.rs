//! The replacement of a peer's key: the statement that the new key signs, and the keys that the peer has afterwards.
//! No connection, no clock.

use thiserror::Error;

use crate::entry::PeerEntry;
use crate::identity::{PeerId, PeerKey};

/// Seconds for which a replaced key stays valid beside its successor.
pub const OVERLAP_S: u64 = 24 * 60 * 60;

/// Seconds by which the time in a proof may differ from the node's.
pub const PROOF_SKEW_S: u64 = 10 * 60;

/// Most keys of one peer that are about to end.
pub const ENDING_KEYS_MAX: usize = 4;

/// First line of the statement. It names the purpose, so that the signature serves no other.
const DOMAIN: &str = "alknet-rotate-1";

/// The statement by which a new key declares that it succeeds an old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySuccession<'a> {
    /// The node that the statement is for; other nodes refuse it.
    pub hub: &'a PeerKey,
    /// The peer that has the keys.
    pub peer: &'a PeerId,
    /// The key that is replaced.
    pub old: &'a PeerKey,
    /// The key that signs.
    pub new: &'a PeerKey,
    /// Time of the statement, in seconds since 1970.
    pub time_s: u64,
}

impl KeySuccession<'_> {
    /// The text that the new key signs: six lines of ASCII, each ended by a line feed. No field can hold a line feed,
    /// so that no two statements have the same text.
    #[must_use]
    pub fn transcript(&self) -> Vec<u8> {
        let Self {
            hub,
            peer,
            old,
            new,
            time_s,
        } = self;
        format!("{DOMAIN}\n{hub}\n{peer}\n{old}\n{new}\n{time_s}\n").into_bytes()
    }

    /// Whether the statement was made at about this time.
    #[must_use]
    pub const fn is_timely(&self, now_s: u64) -> bool {
        self.time_s.abs_diff(now_s) <= PROOF_SKEW_S
    }
}

/// Why a key is not replaced.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotationError {
    /// The new key was itself replaced already.
    #[error("the new key was replaced already and is about to end: make another")]
    Backwards,
    /// The old key has another successor.
    #[error(
        "the key of this connection was replaced already: connect with its successor, or ask an \
         administrator to remove the peer if the successor is not yours"
    )]
    Replaced,
    /// Both keys are the same.
    #[error("the new key is the key of this connection: make another")]
    Same,
    /// The peer rotated its keys too often in a short time.
    #[error("{ENDING_KEYS_MAX} keys of this peer are about to end: wait until one has")]
    TooMany,
    /// The peer does not have the old key.
    #[error("the key of this connection does not belong to the peer")]
    Unknown,
}

/// The end, in seconds since 1970, of a key that an administrator took from its peer. The key stays known, so that no
/// older invitation lets it in as the key of a new peer.
pub const KEY_TAKEN_S: u64 = 0;

impl PeerEntry {
    /// The entry with `new` in the place of `old`, which ends [`OVERLAP_S`] after `now_s`, and that end. A repeated
    /// request changes nothing, and the end stays where it is.
    ///
    /// # Errors
    /// One of the keys cannot be in this rotation.
    pub fn rotated(
        mut self,
        old: PeerKey,
        new: PeerKey,
        now_s: u64,
    ) -> Result<(Self, u64), RotationError> {
        // Ended keys are removed first: they neither count nor stand in the way.
        self.drop_ended_keys(now_s);
        if old == new {
            return Err(RotationError::Same);
        }
        if !self.keys.contains(&old) {
            return Err(RotationError::Unknown);
        }
        if self.key_ends.contains_key(&new) {
            return Err(RotationError::Backwards);
        }
        if let Some(&ends) = self.key_ends.get(&old) {
            return if self.keys.contains(&new) {
                Ok((self, ends))
            } else {
                Err(RotationError::Replaced)
            };
        }
        // A key that was taken never ends again.
        let ending = self.key_ends.values().filter(|end| **end != KEY_TAKEN_S);
        if ending.count() >= ENDING_KEYS_MAX {
            return Err(RotationError::TooMany);
        }
        let ends = now_s.saturating_add(OVERLAP_S);
        self.key_ends.insert(old, ends);
        if !self.keys.contains(&new) {
            self.keys.push(new);
        }
        Ok((self, ends))
    }

    /// Removes keys whose end has come, but for those that were taken from the peer ([`KEY_TAKEN_S`]).
    pub fn drop_ended_keys(&mut self, now_s: u64) {
        let (keys, ends) = (&mut self.keys, &mut self.key_ends);
        let stays = |end: &u64| *end > now_s || *end == KEY_TAKEN_S;
        keys.retain(|key| ends.get(key).is_none_or(stays));
        ends.retain(|key, _| keys.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(n: u8) -> PeerKey {
        PeerKey::Ed25519([n; 32])
    }

    fn edge(keys: &[u8]) -> PeerEntry {
        PeerEntry {
            keys: keys.iter().copied().map(key).collect(),
            ..PeerEntry::new("edge".parse().expect("a peer id"))
        }
    }

    #[test]
    fn both_keys_are_the_peers_until_the_old_one_ends() {
        let (mut entry, ends) = edge(&[1]).rotated(key(1), key(2), NOW).expect("a rotation");
        assert_eq!(ends, NOW + OVERLAP_S);
        assert_eq!(entry.keys, [key(1), key(2)]);
        entry.drop_ended_keys(ends - 1);
        assert_eq!(entry.keys, [key(1), key(2)]);
        entry.drop_ended_keys(ends);
        assert_eq!(
            (entry.keys.as_slice(), entry.key_ends.len()),
            (&[key(2)][..], 0)
        );
        assert_eq!(entry.peer_id.as_str(), "edge");
    }

    #[test]
    fn asking_again_changes_nothing_and_another_successor_is_refused() {
        let (entry, ends) = edge(&[1]).rotated(key(1), key(2), NOW).expect("a rotation");
        let again = entry.clone().rotated(key(1), key(2), NOW + 60);
        assert_eq!(again, Ok((entry.clone(), ends)));
        let other = entry.clone().rotated(key(1), key(3), NOW + 60);
        assert_eq!(other, Err(RotationError::Replaced));
        let back = entry.clone().rotated(key(2), key(1), NOW + 60);
        assert_eq!(back, Err(RotationError::Backwards));
        // Once it has ended the old key belongs to no peer, and may be used by any peer again.
        let late = entry.rotated(key(1), key(2), ends);
        assert_eq!(late, Err(RotationError::Unknown));
    }

    #[test]
    fn a_key_that_an_administrator_added_before_is_taken_as_the_successor() {
        let (entry, _) = edge(&[1, 2])
            .rotated(key(1), key(2), NOW)
            .expect("a rotation");
        assert_eq!(entry.keys, [key(1), key(2)]);
        assert_eq!(entry.key_ends.len(), 1);
    }

    #[test]
    fn keys_do_not_pile_up() {
        let mut entry = edge(&[0]);
        let last = u8::try_from(ENDING_KEYS_MAX).expect("few");
        for n in 0..last {
            (entry, _) = entry.rotated(key(n), key(n + 1), NOW).expect("a rotation");
        }
        let over = entry.clone().rotated(key(last), key(99), NOW + 1);
        assert_eq!(over, Err(RotationError::TooMany));
        let later = entry.rotated(key(last), key(99), NOW + OVERLAP_S);
        let (entry, _) = later.expect("the others have ended");
        assert_eq!(entry.keys, [key(last), key(99)]);
        assert_eq!(
            edge(&[1]).rotated(key(1), key(1), NOW),
            Err(RotationError::Same)
        );
        assert_eq!(
            edge(&[1]).rotated(key(2), key(3), NOW),
            Err(RotationError::Unknown)
        );
    }

    #[test]
    fn the_transcript_is_what_the_documentation_says() {
        let peer = "edge".parse().expect("a peer id");
        let one = KeySuccession {
            hub: &PeerKey::Ed25519([0xaa; 32]),
            peer: &peer,
            old: &PeerKey::Spki([0xbb; 32]),
            new: &PeerKey::Ed25519([0xcc; 32]),
            time_s: NOW,
        };
        let text = format!(
            "alknet-rotate-1\ned25519:{}\nedge\nspki:{}\ned25519:{}\n1800000000\n",
            "aa".repeat(32),
            "bb".repeat(32),
            "cc".repeat(32)
        );
        assert_eq!(one.transcript(), text.into_bytes());
        assert!(one.is_timely(NOW + PROOF_SKEW_S) && one.is_timely(NOW - PROOF_SKEW_S));
        assert!(!one.is_timely(NOW + PROOF_SKEW_S + 1) && !one.is_timely(NOW - PROOF_SKEW_S - 1));
        assert!(!one.is_timely(0) && !one.is_timely(u64::MAX));
    }

    proptest::proptest! {
        /// Whatever is asked in whatever order: no key comes from nowhere, every ending key is one
        /// of the peer's, and while there are keys one of them does not end.
        #[test]
        fn no_order_of_requests_leaves_a_peer_without_a_lasting_key(
            steps in proptest::collection::vec((0u8..6, 0u8..6, 0u64..OVERLAP_S), 0..40)
        ) {
            let mut entry = edge(&[0]);
            let mut now = NOW;
            for (old, new, later) in steps {
                now += later;
                let before = entry.clone();
                if let Ok((after, ends)) = entry.clone().rotated(key(old), key(new), now) {
                    proptest::prop_assert!(before.keys.contains(&key(old)));
                    proptest::prop_assert!(after.keys.contains(&key(new)) && ends > now);
                    entry = after;
                }
                let lasting = |k: &&PeerKey| !entry.key_ends.contains_key(*k);
                proptest::prop_assert_eq!(entry.keys.iter().filter(lasting).count(), 1);
                proptest::prop_assert!(entry.key_ends.keys().all(|k| entry.keys.contains(k)));
                proptest::prop_assert!(entry.key_ends.len() <= ENDING_KEYS_MAX);
            }
        }
    }

    /// An attacker who has it may have an invitation as well, which is for keys that the node does not know.
    #[test]
    fn a_key_that_was_taken_stays_known_after_a_rotation() {
        let mut entry = edge(&[1, 2]);
        entry.key_ends.insert(key(1), KEY_TAKEN_S);
        let (entry, ends) = entry.rotated(key(2), key(3), NOW).expect("its own key");
        assert_eq!(entry.keys, [key(1), key(2), key(3)]);
        let (entry, _) = entry.rotated(key(3), key(4), ends).expect("its own key");
        assert_eq!(entry.keys, [key(1), key(3), key(4)]);
        assert_eq!(entry.key_ends.get(&key(1)), Some(&KEY_TAKEN_S));
    }
}
