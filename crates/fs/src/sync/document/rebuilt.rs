//! Documents that are made again of their paths: without operations that no version needs any more.

use std::collections::BTreeMap;

use alknet_store::HybridTimestamp;
use alknet_store::limits::CLOCK_MS_MIN;
use automerge::ActorId;

use super::{CHANGE_PATHS_MAX, SyncedDocument, SyncedVersion, internal};
use crate::sync::entry::{SyncActor, SyncedEntry};
use crate::sync::error::SyncError;
use crate::sync::limits::CLOCK_JUMP_MS;

/// What distinguishes the writers of documents that are made again from other hashes.
const WRITER_CONTEXT: &str = "alknet 2026-11-30 fs-sync rebuilt document";

/// Time of versions of a clock that was wrong. It comes before all that a node writes in the same millisecond.
const fn present(now_ms: u64) -> HybridTimestamp {
    HybridTimestamp::new(now_ms, 0, [0; 8])
}

/// Whether a time is one of a clock that was far ahead. A clock that is behind the making of this program says nothing.
const fn is_ahead(timestamp: HybridTimestamp, now_ms: u64) -> bool {
    now_ms >= CLOCK_MS_MIN && timestamp.ms() > now_ms.saturating_add(CLOCK_JUMP_MS)
}

impl SyncedDocument {
    /// Whether it has versions of a clock that was far ahead, which no peer takes in.
    pub(in crate::sync) fn is_ahead(&self, now_ms: u64) -> bool {
        let mut versions = self.winners.values();
        versions.any(|version| is_ahead(version.entry.timestamp, now_ms))
    }

    /// A document with the same version of each path, deletions among them, and without anything else. `actor` writes what
    /// follows. Versions of a clock that was far ahead get the present time.
    ///
    /// Without a salt, nodes whose paths have the same versions make the same changes. So they have the same document
    /// afterwards, and do not send each other one copy of it for each node.
    pub(in crate::sync) fn rebuilt(
        &self,
        actor: SyncActor,
        salt: &[u8],
        now_ms: u64,
    ) -> Result<Self, SyncError> {
        let mut values = BTreeMap::new();
        for (path, version) in &self.winners {
            let mut entry = version.entry.clone();
            if is_ahead(entry.timestamp, now_ms) {
                entry.timestamp = present(now_ms);
            }
            let bytes = entry
                .encode()
                .map_err(|error| internal(error.to_string()))?;
            values.insert(path.clone(), (entry, bytes));
        }
        let writer = writer_of(&values, salt);
        let mut rebuilt = Self::load((&self.key, self.limits), &[], writer.clone())?;
        let all: Vec<_> = values
            .iter()
            .map(|(path, (_, bytes))| (path, Some(bytes)))
            .collect();
        for some in all.chunks(CHANGE_PATHS_MAX) {
            rebuilt.change_values(some.iter().copied())?;
        }
        for (path, (entry, _)) in &values {
            let actor = writer.clone();
            let entry = entry.clone();
            rebuilt.set_winner(path, Some(SyncedVersion { entry, actor }));
        }
        rebuilt.doc.set_actor(ActorId::from(actor.as_bytes()));
        rebuilt.actor = actor;
        Ok(rebuilt)
    }
}

/// The writer of the changes of a document that is made again. It follows from them, so that no other change has its
/// numbers, unless a peer forges it.
fn writer_of(values: &BTreeMap<String, (SyncedEntry, Vec<u8>)>, salt: &[u8]) -> SyncActor {
    let mut hasher = blake3::Hasher::new_derive_key(WRITER_CONTEXT);
    let values = values.iter();
    let parts = values.flat_map(|(path, (_, bytes))| [path.as_bytes(), bytes.as_slice()]);
    for part in [salt].into_iter().chain(parts) {
        // With its length: two paths must not read as another one.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let hash = hasher.finalize();
    SyncActor::from_bytes(&hash.as_bytes()[..SyncActor::NODE_BYTES + SyncActor::COPY_BYTES])
}
