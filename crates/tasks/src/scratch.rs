//! Large temporary folders in the cache. A process that is killed cannot remove its own; the next
//! one that needs such a folder does.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::failure::{Failure, Result};

/// Held by the folder's owner as long as it lives, whatever ends it.
const LOCK: &str = "in-use";

/// A folder that is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes a folder `PREFIX…` in `parent`, and removes those whose owners are gone.
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self> {
        let trouble = || Failure::io(format!("make a folder in {}", parent.display()));
        fs::create_dir_all(parent).map_err(trouble())?;
        remove_orphans(parent, prefix).map_err(trouble())?;
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .map_err(trouble())?;
        let lock = File::create(folder.path().join(LOCK)).map_err(trouble())?;
        lock.lock().map_err(trouble())?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn remove_orphans(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        // Without a lock file it is being made at this moment.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        if ours && lock.try_lock().is_ok() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_removed_and_a_living_ones_folder_is_not() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let orphan = parent.path().join("build-orphan");
        let foreign = parent.path().join("other");
        for folder in [&orphan, &foreign] {
            fs::create_dir(folder).expect("writable");
            File::create(folder.join(LOCK)).expect("writable");
        }
        let living = Scratch::new(parent.path(), "build-").expect("writable");
        assert!(!orphan.exists() && foreign.exists());
        let second = Scratch::new(parent.path(), "build-").expect("writable");
        assert!(living.path().exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists() && second.path().exists());
    }
}
