//! Changes of peers: how the document takes them in, and which versions of a path there are.

use std::collections::HashSet;

use automerge::sync::{State, SyncDoc};
use automerge::{AutomergeError, Change, ChangeHash, ObjId, ROOT, ReadDoc, ScalarValue, Value};

use super::{AffectedPaths, SyncedDocument, SyncedVersion};
use crate::sync::entry::{SyncActor, SyncedEntry};
use crate::sync::error::SyncError;
use crate::sync::incoming::{OperationId, ReceivedChanges, checked_message, contain, invalid};
use crate::sync::limits::{CHANGES_MAX, FORMER_VERSIONS_MAX, INVALID_KEYS_MAX};
use crate::sync::unpack::ScannedChange;

impl SyncedDocument {
    /// Takes in a message of a peer. After an error the document is not to be used: a part of the message may be in it.
    pub(in crate::sync) fn receive(
        &mut self,
        state: &mut State,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<ReceivedChanges, SyncError> {
        let (message, scanned) = checked_message(bytes)?;
        // The peer has begun its document again. It would never get what it is believed to have.
        let has_begun_again =
            !message.have.is_empty() && message.have.iter().all(|it| it.last_sync.is_empty());
        if has_begun_again && !state.shared_heads.is_empty() {
            state.shared_heads.clear();
            state.sent_hashes.clear();
        }
        let before = self.doc.get_heads();
        #[cfg(test)]
        let panics = message
            .heads
            .contains(&crate::sync::incoming::PANICKING_HEAD);
        let received = contain(|| self.doc.receive_sync_message(state, message))?;
        // No message is known at which the library panics, so that a test says when it does.
        #[cfg(test)]
        contain(|| assert!(!panics, "a test asks for a panic"))?;
        received.map_err(|error| {
            self.is_contradicted = matches!(error, AutomergeError::DuplicateSeqNumber(..));
            invalid(error.to_string())
        })?;
        let mut changes = contain(|| self.doc.get_changes(&before))?;
        // In an order in which each change comes behind those that it knows of.
        changes.sort_by_key(|change| change.start_op());
        let mut received = ReceivedChanges::default();
        for change in &changes {
            // A change follows those that it knows of. One with a number far ahead would leave no numbers for others.
            if change.start_op().get() > self.last_operation + 1 {
                return Err(invalid("the number of an operation is too high"));
            }
            self.last_operation = self.last_operation.max(change.max_op());
            contain(|| received.add(change, now_ms))??;
        }
        self.note_waiting(&scanned, &changes)?;
        Ok(received)
    }

    /// Notes which changes of a message wait for others, and refuses more of them than a peer has a reason to send.
    fn note_waiting(
        &mut self,
        scanned: &[ScannedChange],
        added: &[Change],
    ) -> Result<(), SyncError> {
        if contain(|| self.doc.get_missing_deps(&[]))?.is_empty() {
            self.waiting.clear();
            return Ok(());
        }
        let added: HashSet<ChangeHash> = added.iter().map(Change::hash).collect();
        self.waiting.retain(|hash, _| !added.contains(hash));
        for change in scanned {
            let hash = ChangeHash(change.hash);
            // A change that came before does not wait.
            let is_known = || self.doc.get_change_meta_by_hash(&hash).is_some();
            if !added.contains(&hash) && !contain(is_known)? {
                self.waiting.insert(hash, change.bytes);
            }
        }
        let bytes: usize = self.waiting.values().sum();
        match bytes > self.limits.waiting_bytes_max || self.waiting.len() > CHANGES_MAX {
            true => Err(invalid("too many changes wait for changes before them")),
            false => Ok(()),
        }
    }

    /// Works out what changes of a peer mean for the store, and for the entries that they leave without a place.
    pub(in crate::sync) fn resolve(
        &mut self,
        received: &ReceivedChanges,
        affected: &mut AffectedPaths,
    ) -> Result<(), SyncError> {
        let mut cleaned = Vec::new();
        for key in &received.keys {
            let path = match self.parse_path(key) {
                Ok(path) => path,
                Err(rule) => {
                    // A peer may have removed it already.
                    if self.versions(key)?.has_values() {
                        *affected.refused.entry(rule).or_default() += 1;
                        cleaned.push((key.clone(), None));
                        check_cleaned(&cleaned)?;
                    }
                    continue;
                }
            };
            let was_live = self.has_live(key);
            let versions = self.update_winner(key)?;
            let is_deleted = self.winners.contains_key(key) && !self.has_live(key);
            affected.is_growing |= self.has_live(key) || is_deleted && !was_live;
            affected.paths.insert(key.clone());
            let above = path.ancestors().map(|it| it.as_str().to_owned());
            affected.paths.extend(above);
            if versions.invalid > 0 {
                *affected.refused.entry("value").or_default() += versions.invalid;
                let winner = self.winners.get(key).map(|it| &it.entry);
                cleaned.push((key.clone(), winner.and_then(|it| it.encode().ok())));
            }
            let former = self.former_versions(key, versions.all, &received.operations);
            if !former.is_empty() {
                affected.former.insert(key.clone(), former);
            }
            check_cleaned(&cleaned)?;
        }
        self.check_size(self.winners.len(), self.path_bytes)?;
        affected.is_growing |= !cleaned.is_empty();
        self.clean(&cleaned)
    }

    /// Whether the path has a version that is no deletion.
    fn has_live(&self, path: &str) -> bool {
        let winner = self.winners.get(path);
        winner.is_some_and(|it| it.entry.state.is_live())
    }

    /// Removes keys and values that break a rule: they would stay for ever, and no listing shows them. A key with a version
    /// gets that alone.
    fn clean(&mut self, cleaned: &[(String, Option<Vec<u8>>)]) -> Result<(), SyncError> {
        if cleaned.is_empty() {
            return Ok(());
        }
        self.change_values(cleaned.iter().map(|(key, value)| (key, value.as_ref())))?;
        for (key, _) in cleaned.iter().filter(|(_, value)| value.is_some()) {
            self.update_winner(key)?;
        }
        Ok(())
    }

    /// The versions of a path that came and lost. What lost of this node's own is in its history already.
    fn former_versions(
        &self,
        key: &str,
        all: Vec<(OperationId, SyncedVersion)>,
        received: &HashSet<OperationId>,
    ) -> Vec<SyncedVersion> {
        let Some(winner) = self.winners.get(key) else {
            return Vec::new();
        };
        let lost = all.into_iter().filter(|(id, version)| {
            let is_live = version.entry.state.is_live();
            is_live
                && received.contains(id)
                && version != winner
                && !winner.entry.has_state_of(&version.entry.state)
        });
        let mut lost: Vec<_> = lost.map(|(_, version)| version).collect();
        lost.sort_by(|one, other| other.rank().cmp(&one.rank()));
        lost.truncate(FORMER_VERSIONS_MAX);
        lost.reverse();
        lost
    }

    /// Reads the versions of a path again.
    pub(super) fn update_winner(&mut self, key: &str) -> Result<PathVersions, SyncError> {
        let versions = self.versions(key)?;
        let winner = versions.all.iter().map(|(_, version)| version);
        let winner = winner.max_by(|one, other| one.rank().cmp(&other.rank()));
        self.set_winner(key, winner.cloned());
        Ok(versions)
    }

    /// All versions of a path that no later one has replaced.
    fn versions(&self, key: &str) -> Result<PathVersions, SyncError> {
        let values = contain(|| self.doc.get_all(ROOT, key))?;
        let values = values.map_err(|error| invalid(error.to_string()))?;
        let mut versions = PathVersions::default();
        for (value, id) in values {
            match (decode(&value), id) {
                (Some(entry), ObjId::Id(number, actor, _)) => {
                    let bytes = actor.to_bytes().to_vec();
                    let actor = SyncActor::from_bytes(&bytes);
                    let version = SyncedVersion { entry, actor };
                    versions.all.push(((number, bytes), version));
                }
                _ => versions.invalid += 1,
            }
        }
        Ok(versions)
    }
}

/// The versions of a path.
#[derive(Default)]
pub(super) struct PathVersions {
    all: Vec<(OperationId, SyncedVersion)>,
    /// Values that are no version.
    invalid: u64,
}

impl PathVersions {
    const fn has_values(&self) -> bool {
        !self.all.is_empty() || self.invalid > 0
    }
}

/// Refuses more invalid keys and values than a peer has that follows the protocol.
fn check_cleaned<T>(cleaned: &[T]) -> Result<(), SyncError> {
    match cleaned.len() > INVALID_KEYS_MAX {
        true => Err(invalid("too many keys or values break a rule")),
        false => Ok(()),
    }
}

fn decode(value: &Value<'_>) -> Option<SyncedEntry> {
    match value {
        Value::Scalar(scalar) => match scalar.as_ref() {
            ScalarValue::Bytes(bytes) => SyncedEntry::decode(bytes).ok(),
            _ => None,
        },
        Value::Object(_) => None,
    }
}
