//! Large temporary folders in the cache. A killed process cannot remove its folder, so the next one
//! that needs such a folder does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::{Result, TaskError};

/// The file that the folder's owner holds locked as long as it lives, whatever ends it.
const LOCK: &str = "in-use";

/// The file's name until it is locked. Under the final name, and not yet locked, another command
/// would take the folder for an orphan.
const UNLOCKED: &str = "in-use.new";

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct ScratchFolder {
    folder: tempfile::TempDir,
    _lock: File,
}

impl ScratchFolder {
    /// Makes a folder `PREFIX…` in `parent`, and removes those whose owners are gone.
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self> {
        let io_error = || TaskError::io(format!("make a folder in {}", parent.display()));
        fs::create_dir_all(parent).map_err(io_error())?;
        // This happens here, because a killed command could not remove its own.
        remove_orphans(parent, prefix).map_err(io_error())?;
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .map_err(io_error())?;
        let lock = lock(folder.path()).map_err(io_error())?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Locks a new folder for its owner.
fn lock(folder: &Path) -> io::Result<File> {
    let [unlocked, locked] = [UNLOCKED, LOCK].map(|name| folder.join(name));
    let file = File::create(&unlocked)?;
    file.lock()?;
    // The file gets its final name only once it is locked, so that another command never finds it
    // free.
    fs::rename(unlocked, locked)?;
    Ok(file)
}

/// A folder whose owner is gone.
#[derive(Debug)]
pub(crate) struct OrphanFolder {
    pub(crate) path: PathBuf,
    /// Its owner's lock. While this holds it no other command removes the folder.
    pub(crate) lock: File,
}

fn remove_orphans(parent: &Path, prefix: &str) -> io::Result<()> {
    for orphan in orphans(parent)? {
        let name = orphan.path.file_name();
        if name.is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            fs::remove_dir_all(&orphan.path)?;
        }
    }
    Ok(())
}

/// The folders in `parent` whose owners are gone, each locked.
pub(crate) fn orphans(parent: &Path) -> io::Result<Vec<OrphanFolder>> {
    let mut orphans = Vec::new();
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let file = path.join(LOCK);
        // A folder without a lock file is being made at this moment, or is no such folder.
        if let Ok(lock) = File::open(&file)
            && lock.try_lock().is_ok()
            && is_at(&lock, &file)
        {
            orphans.push(OrphanFolder { path, lock });
        }
    }
    Ok(orphans)
}

/// Whether `file` still lies at `path`: its owner, or another command, may have removed it between
/// the opening and the locking.
fn is_at(file: &File, path: &Path) -> bool {
    let inode = |data: fs::Metadata| (data.dev(), data.ino());
    let (held, there) = (file.metadata(), fs::symlink_metadata(path));
    held.is_ok_and(|held| there.is_ok_and(|there| inode(held) == inode(there)))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn commands_that_start_at_the_same_time_leave_each_other_their_folders() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let start = Barrier::new(2);
        let command = || {
            start.wait();
            for _ in 0..2000 {
                let scratch = ScratchFolder::new(parent.path(), "build-").expect("writable");
                assert!(scratch.path().join(LOCK).exists(), "just made");
                thread::yield_now();
                assert!(scratch.path().join(LOCK).exists(), "still in use");
            }
        };
        thread::scope(|scope| {
            scope.spawn(command);
            scope.spawn(command);
        });
        let left = fs::read_dir(parent.path()).expect("readable").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn an_orphan_that_one_command_removes_is_none_for_another() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("build-orphan");
        fs::create_dir(&path).expect("writable");
        File::create(path.join(LOCK)).expect("writable");
        let found = orphans(parent.path()).expect("readable");
        assert_eq!(found.len(), 1);
        assert!(orphans(parent.path()).expect("readable").is_empty());
        ScratchFolder::new(parent.path(), "build-").expect("it passes over that one");
        assert!(path.exists());
        // The lock of a removed folder, taken late, belongs to no folder.
        let stale = File::open(path.join(LOCK)).expect("there");
        fs::remove_dir_all(&path).expect("ours");
        assert!(!is_at(&stale, &path.join(LOCK)));
    }

    #[test]
    fn an_orphan_is_removed_and_a_living_ones_folder_is_not() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let orphan = parent.path().join("build-orphan");
        let foreign = parent.path().join("other");
        for folder in [&orphan, &foreign] {
            fs::create_dir(folder).expect("writable");
            File::create(folder.join(LOCK)).expect("writable");
        }
        let living = ScratchFolder::new(parent.path(), "build-").expect("writable");
        assert!(!orphan.exists() && foreign.exists());
        let second = ScratchFolder::new(parent.path(), "build-").expect("writable");
        assert!(living.path().exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists() && second.path().exists());
    }
}
