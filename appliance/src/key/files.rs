//! The files of a rotation, beside the key: `identity.key.new` until it is used, `identity.key.old`
//! while it is still valid, and `identity.key.nodes`, who knows which; `node.key.new` and so on where
//! the key is a node's. A power cut at any moment leaves a key that works, and the next run goes on
//! from there.

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

/// Where the key is, and everything beside it.
pub(crate) struct KeyFiles {
    key: PathBuf,
}

/// Who knows the key, and how far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RotationRecord {
    /// The key of the rotation that runs, or ran last and whose overlap lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new: Option<PeerKey>,
    /// When the old key is deleted, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_until_s: Option<u64>,
    /// The nodes.
    pub(crate) targets: Vec<RotationTarget>,
}

/// A node that knows the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RotationTarget {
    /// How it is dialled.
    pub(crate) target: String,
    /// Whether it knows the new key.
    pub(crate) told: bool,
    /// Who we are to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer_id: Option<String>,
    /// When it refuses the old key, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) old_key_ends: Option<String>,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RotationStage {
    /// The old key is in use.
    Before,
    /// The new one is; nodes can still be told by the old one.
    After,
}

/// The keys of a rotation.
pub(crate) struct RotationKeys {
    pub(crate) stage: RotationStage,
    /// Absent when it is gone, or not made yet.
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

    /// Waits for these nodes and no others. A node that has the new key already stays marked so.
    pub(crate) fn wait_for(&mut self, targets: Vec<String>) {
        self.targets.retain(|node| targets.contains(&node.target));
        targets.iter().for_each(|target| self.add(target));
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.targets.iter().all(|node| node.told)
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
            node.told = false;
            node.old_key_ends = None;
        }
    }

    /// When the last node refuses the old key, as far as they said.
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

    /// Deletes the old key once no node takes it any more. What goes wrong is said in the log, and
    /// left for the next time.
    pub(crate) fn tidy(&self) {
        self.tidy_at(now_s());
    }

    fn tidy_at(&self, now_s: u64) {
        let mut record = match self.record() {
            Ok(record) => record,
            Err(error) => return tracing::warn!("no old key is deleted: {}", error.message),
        };
        let over = record.old_until_s.is_some_and(|end| now_s >= end);
        // Between the note and the rename the old key is still the one in use.
        if !over || self.in_use().ok() != record.new {
            return;
        }
        let old = self.old();
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

    /// One rotation at a time: until the file is dropped.
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

    /// What is remembered.
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

    /// Remembers, durably.
    pub(crate) fn write(&self, record: &RotationRecord) -> Result<(), CommandError> {
        let path = self.beside(".nodes");
        let bytes = serde_json::to_vec_pretty(record).map_err(CommandError::local)?;
        alknet_durable::replace(&path, &bytes, 0o600).map_err(|error| {
            CommandError::local(format!("cannot write {}: {error}", path.display()))
        })
    }

    /// The keys as the files have them; a new one, not kept yet, where no rotation runs.
    pub(crate) fn keys(&self, record: &RotationRecord) -> Result<RotationKeys, CommandError> {
        let key = self.load()?;
        // The rename was done: the key in use is the one that the record calls new.
        if record.new == Some(key.public()) {
            return Ok(RotationKeys {
                stage: RotationStage::After,
                old: NodeKey::load(&self.old()).map_err(CommandError::local)?,
                new: key,
            });
        }
        let made = NodeKey::load(&self.beside(".new")).map_err(CommandError::local)?;
        let goes_on = made.as_ref().map(NodeKey::public) == record.new;
        // A third key made now would be one that these nodes never heard of.
        if !goes_on && record.targets.iter().any(|node| node.told) {
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

    /// Keeps the new key before a hub hears of it.
    pub(crate) fn begin(
        &self,
        keys: RotationKeys,
        record: &mut RotationRecord,
    ) -> Result<RotationKeys, CommandError> {
        if keys.stage == RotationStage::Before {
            let path = self.beside(".new");
            // On the disk before a node hears of it: a key that is lost after that cannot be made again.
            if !path.exists() {
                keys.new.store(&path).map_err(CommandError::local)?;
            }
            record.new = Some(keys.new.public());
        }
        self.write(record)?;
        Ok(keys)
    }

    /// Puts the new key in the place of the old one, which is kept beside it. Everything but the
    /// last step can be done again.
    pub(crate) fn swap(
        &self,
        keys: &RotationKeys,
        record: &mut RotationRecord,
    ) -> Result<(), CommandError> {
        if let Some(old) = &keys.old {
            old.store(&self.old()).map_err(CommandError::local)?;
        }
        record.old_until_s = record.latest_end_s().max(Some(now_s() + OVERLAP_S));
        // Before the rename, which is what shows at the next start that the key was changed.
        self.write(record)?;
        fs::rename(self.beside(".new"), &self.key)
            .and_then(|()| alknet_durable::sync_folder(self.dir()))
            .map_err(|error| {
                CommandError::local(format!("cannot replace {}: {error}", self.key.display()))
            })
    }

    /// Keeps the old key for as long as any node takes it, those told late included.
    pub(crate) fn prolong(&self, record: &mut RotationRecord) -> Result<(), CommandError> {
        record.old_until_s = record.old_until_s.max(record.latest_end_s());
        self.write(record)
    }

    /// The public half of the key in use.
    pub(crate) fn in_use(&self) -> Result<PeerKey, CommandError> {
        Ok(self.load()?.public())
    }

    /// Where the old key is while it is valid.
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
