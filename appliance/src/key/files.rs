//! The files of a rotation, beside the key: `identity.key.new` until the key is used,
//! `identity.key.old` while the old key is still valid, and `identity.key.nodes`, which lists the
//! nodes that know each key. For a node's own key they are `node.key.new` and so on. A power cut at
//! any moment leaves a key that works, and the next run continues the rotation.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use alknet_core::PeerKey;
use alknet_core::rotation::OVERLAP_S;
use alknet_tls::NodeKey;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cli::CommandError;

/// Path of the key. The other files of the rotation are beside it.
pub(crate) struct KeyFiles {
    key: PathBuf,
}

/// Which nodes know the new key, and how far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RotationRecord {
    /// The new key of the rotation that is running, or of the last one while both keys are valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new: Option<PeerKey>,
    /// When the old key is deleted, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_until_s: Option<u64>,
    /// The nodes that the rotation waits for.
    pub(crate) targets: Vec<RotationTarget>,
}

/// A node that knows the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RotationTarget {
    /// The address by which the node is dialled.
    pub(crate) target: String,
    /// Whether the node knows the new key. The file on disk has it under the former name.
    #[serde(rename = "told")]
    pub(crate) notified: bool,
    /// The peer id that the node gave this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer_id: Option<String>,
    /// When the node stops accepting the old key, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) old_key_ends: Option<String>,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RotationStage {
    /// The old key is in use.
    Before,
    /// The new key is in use. The old key can still authenticate the notice to a node.
    After,
}

/// The keys of a rotation.
pub(crate) struct RotationKeys {
    pub(crate) stage: RotationStage,
    /// `None` if the old key was deleted.
    pub(crate) old: Option<NodeKey>,
    pub(crate) new: NodeKey,
}

impl RotationRecord {
    pub(crate) fn add(&mut self, target: &str) {
        if !self.targets.iter().any(|node| node.target == target) {
            self.targets.push(RotationTarget {
                target: target.to_owned(),
                ..RotationTarget::default()
            });
        }
    }

    pub(crate) fn forget(&mut self, target: &str) {
        self.targets.retain(|node| node.target != target);
    }

    /// Waits for exactly these nodes. A node that already has the new key keeps its mark.
    pub(crate) fn wait_for(&mut self, targets: Vec<String>) {
        self.targets.retain(|node| targets.contains(&node.target));
        targets.iter().for_each(|target| self.add(target));
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.targets.iter().all(|node| node.notified)
    }

    /// When the old key is deleted, RFC 3339.
    pub(crate) fn old_until(&self) -> Option<String> {
        let at = i64::try_from(self.old_until_s?).ok()?;
        Some(Timestamp::from_second(at).ok()?.to_string())
    }

    /// Starts the next rotation with the same nodes, none of which has its new key yet.
    fn next(&mut self) {
        self.new = None;
        self.old_until_s = None;
        for node in &mut self.targets {
            node.notified = false;
            node.old_key_ends = None;
        }
    }

    /// The latest time at which a node stops accepting the old key, among the nodes that named one.
    fn latest_end_s(&self) -> Option<u64> {
        let ends = self.targets.iter().filter_map(|node| {
            let end: Timestamp = node.old_key_ends.as_ref()?.parse().ok()?;
            u64::try_from(end.as_second()).ok()
        });
        ends.max()
    }
}

impl KeyFiles {
    pub(crate) const fn at(key: PathBuf) -> Self {
        Self { key }
    }

    /// Deletes the old key once no node accepts it. A failure is logged, and the next call tries
    /// again.
    pub(crate) fn tidy(&self) {
        self.tidy_at(now_s());
    }

    fn tidy_at(&self, now_s: u64) {
        let mut record = match self.record() {
            Ok(record) => record,
            Err(error) => return tracing::warn!("no old key is deleted: {}", error.message),
        };
        let over = record.old_until_s.is_some_and(|end| now_s >= end);
        // Between `swap`'s note and its rename, the old key is still in use.
        if !over || self.in_use().ok() != record.new {
            return;
        }
        let old = self.old();
        // A missing file is the state that this deletion wants.
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let old = old.display();
                tracing::warn!(
                    "{old} is a key that no node accepts any more, and cannot be removed: {error}"
                );
            }
            _ => {
                record.next();
                if let Err(error) = self.write(&record) {
                    tracing::warn!("that the old key is gone is not noted: {}", error.message);
                }
            }
        }
    }

    /// Locks the rotation until the returned file is dropped. The lock is on the folder, because
    /// the files are replaced.
    pub(crate) fn lock(&self) -> Result<File, CommandError> {
        let cannot = |error: io::Error| {
            CommandError::local(format!("cannot lock {}: {error}", self.dir().display()))
        };
        let dir = File::open(self.dir()).map_err(cannot)?;
        match dir.try_lock() {
            Ok(()) => Ok(dir),
            Err(TryLockError::WouldBlock) => Err(CommandError::local(
                "another rotation of this key runs: wait until it is done",
            )),
            Err(TryLockError::Error(error)) => Err(cannot(error)),
        }
    }

    /// Reads the record. A missing file is an empty record.
    pub(crate) fn record(&self) -> Result<RotationRecord, CommandError> {
        let path = self.beside(".nodes");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let path = path.display();
                CommandError::local(format!("{path} is damaged ({error}): correct or delete it"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RotationRecord::default()),
            Err(error) => Err(CommandError::local(format!(
                "cannot read {}: {error}",
                path.display()
            ))),
        }
    }

    /// Stores the record durably.
    pub(crate) fn write(&self, record: &RotationRecord) -> Result<(), CommandError> {
        let path = self.beside(".nodes");
        let bytes = serde_json::to_vec_pretty(record).map_err(CommandError::local)?;
        alknet_durable::replace(&path, &bytes, 0o600).map_err(|error| {
            CommandError::local(format!("cannot write {}: {error}", path.display()))
        })
    }

    /// Loads the keys from the files. If no rotation is running, it makes a new key and does not
    /// store it yet.
    pub(crate) fn keys(&self, record: &RotationRecord) -> Result<RotationKeys, CommandError> {
        let key = self.load()?;
        // The rename of `swap` was done: the key in use is the one that the record calls new.
        if record.new == Some(key.public()) {
            return Ok(RotationKeys {
                stage: RotationStage::After,
                old: NodeKey::load(&self.old()).map_err(CommandError::local)?,
                new: key,
            });
        }
        let made = NodeKey::load(&self.beside(".new")).map_err(CommandError::local)?;
        let goes_on = made.as_ref().map(NodeKey::public) == record.new;
        // Some nodes know a new key that is not in the file. A third key would be unknown to them.
        if !goes_on && record.targets.iter().any(|node| node.notified) {
            return Err(CommandError::local(format!(
                "{} is gone, and nodes know its key: put it back, or delete {} and let an \
                 administrator remove the key there",
                self.beside(".new").display(),
                self.beside(".nodes").display()
            )));
        }
        let new = match made {
            Some(made) => made,
            None => NodeKey::generate().map_err(CommandError::local)?,
        };
        Ok(RotationKeys {
            stage: RotationStage::Before,
            old: Some(key),
            new,
        })
    }

    /// Stores the new key before the first hub learns it.
    pub(crate) fn begin(
        &self,
        keys: RotationKeys,
        record: &mut RotationRecord,
    ) -> Result<RotationKeys, CommandError> {
        if keys.stage == RotationStage::Before {
            let path = self.beside(".new");
            // The disk has the key before a node learns it: a key that is lost after that cannot be
            // made again.
            if !path.exists() {
                keys.new.store(&path).map_err(CommandError::local)?;
            }
            record.new = Some(keys.new.public());
        }
        self.write(record)?;
        Ok(keys)
    }

    /// Replaces the old key with the new one, and keeps the old one beside it. Every step but the
    /// last one can be repeated.
    pub(crate) fn swap(
        &self,
        keys: &RotationKeys,
        record: &mut RotationRecord,
    ) -> Result<(), CommandError> {
        if let Some(old) = &keys.old {
            old.store(&self.old()).map_err(CommandError::local)?;
        }
        record.old_until_s = record.latest_end_s().max(Some(now_s() + OVERLAP_S));
        // The record is written before the rename: at the next start, the rename shows that the key
        // was changed.
        self.write(record)?;
        fs::rename(self.beside(".new"), &self.key)
            .and_then(|()| alknet_durable::sync_folder(self.dir()))
            .map_err(|error| {
                CommandError::local(format!("cannot replace {}: {error}", self.key.display()))
            })
    }

    /// Keeps the old key until the last node stops accepting it, including nodes that learned the
    /// new key late.
    pub(crate) fn prolong(&self, record: &mut RotationRecord) -> Result<(), CommandError> {
        record.old_until_s = record.old_until_s.max(record.latest_end_s());
        self.write(record)
    }

    /// The public half of the key in use.
    pub(crate) fn in_use(&self) -> Result<PeerKey, CommandError> {
        Ok(self.load()?.public())
    }

    /// Path of the old key while it is valid.
    pub(crate) fn old(&self) -> PathBuf {
        self.beside(".old")
    }

    fn load(&self) -> Result<NodeKey, CommandError> {
        let key = NodeKey::load(&self.key).map_err(CommandError::local)?;
        key.ok_or_else(|| {
            CommandError::usage("there is no key to replace yet: 'alknet identity' makes the first")
        })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.key);
        name.push(suffix);
        name.into()
    }

    fn dir(&self) -> &Path {
        match self.key.parent() {
            // The parent of a bare file name is empty, and means the current folder.
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        }
    }
}

/// Seconds since 1970 on this computer.
fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests;
