//! The versions that the machine does not install by itself any more: an administrator left them, or they failed. An
//! administrator who asks for one gets it.

use std::fs;
use std::io;
use std::path::Path;

use alknet_update::ReleaseVersion;
use serde::{Deserialize, Serialize};

/// Name of the file in the folder of updates.
const FILE: &str = "left.json";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// Most bytes of the file.
const BYTES_MAX: u64 = 16 << 10;
/// Most versions. The oldest give way.
pub(super) const LEFT_MAX: usize = 32;

/// The versions, the one that was left last at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftVersions {
    versions: Vec<ReleaseVersion>,
}

impl LeftVersions {
    /// What the file in a folder says. A damaged one says nothing: it must not keep a machine from updates.
    pub(super) fn load(folder: Option<&Path>) -> Self {
        let Some(path) = folder.map(|folder| folder.join(FILE)) else {
            return Self::default();
        };
        let is_short = fs::metadata(&path).is_ok_and(|about| about.len() <= BYTES_MAX);
        let bytes = is_short.then(|| fs::read(path).ok()).flatten();
        let left = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        left.unwrap_or_default()
    }

    pub(super) fn has(&self, version: &ReleaseVersion) -> bool {
        self.versions.contains(version)
    }

    /// Each version as text.
    pub(super) fn names(&self) -> Vec<String> {
        self.versions.iter().map(ToString::to_string).collect()
    }

    fn save(&self, folder: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        alknet_durable::replace(&folder.join(FILE), &bytes, MODE)
    }
}

/// Notes that a version was left.
pub(super) fn leave(folder: &Path, version: &ReleaseVersion) -> io::Result<()> {
    let mut left = LeftVersions::load(Some(folder));
    left.versions.retain(|known| known != version);
    let surplus = (left.versions.len() + 1).saturating_sub(LEFT_MAX);
    left.versions.drain(..surplus);
    left.versions.push(version.clone());
    left.save(folder)
}

/// Forgets that a version was left: it was confirmed.
pub(super) fn return_to(folder: &Path, version: &ReleaseVersion) -> io::Result<()> {
    let mut left = LeftVersions::load(Some(folder));
    if !left.has(version) {
        return Ok(());
    }
    left.versions.retain(|known| known != version);
    left.save(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(minor: usize) -> ReleaseVersion {
        format!("1.{minor}.0").parse().expect("a version")
    }

    #[test]
    fn the_versions_that_were_left_last_are_kept_until_they_are_confirmed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let load = || LeftVersions::load(Some(dir.path()));
        assert!(!load().has(&version(0)));
        for minor in 0..=LEFT_MAX {
            leave(dir.path(), &version(minor)).expect("written");
        }
        assert!(!load().has(&version(0)), "the oldest gave way");
        assert!(load().has(&version(1)) && load().has(&version(LEFT_MAX)));
        // A version that is left again counts as the last one, and once.
        leave(dir.path(), &version(1)).expect("written");
        assert_eq!(load().names().len(), LEFT_MAX);
        assert_eq!(load().names().last(), Some(&"1.1.0".to_owned()));
        return_to(dir.path(), &version(1)).expect("written");
        assert!(!load().has(&version(1)));
        fs::write(dir.path().join(FILE), "no JSON").expect("writable");
        assert_eq!(load(), LeftVersions::default());
        assert_eq!(LeftVersions::load(None), LeftVersions::default());
    }
}
