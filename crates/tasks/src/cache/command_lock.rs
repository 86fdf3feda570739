//! The lock of commands that use the cache.
//!
//! The build lock keeps two builds apart, and a scratch folder's lock keeps that folder. Neither
//! shows that a command starts a machine from an image that it has just found in the cache. So
//! every command holds a shared lock as long as it runs, and pruning takes it exclusively.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The locked file in the cache.
const FILE: &str = "running-commands";

/// A lock that is released when this is dropped, or when the process ends.
#[derive(Debug)]
pub struct CommandLock {
    _lock: File,
}

impl CommandLock {
    /// Takes the lock for a command that uses the cache. Waits while the cache is being pruned.
    pub(super) fn beside_others(cache: &Path) -> io::Result<Self> {
        let file = open(cache)?;
        // The first try does not wait, so that the user sees what the command waits for.
        if file.try_lock_shared().is_err() {
            eprintln!("waiting for `cargo xtask cache --prune` ...");
            file.lock_shared()?;
        }
        Ok(Self { _lock: file })
    }

    /// Takes the lock for the command that removes. Waits until no other command runs.
    pub(super) fn alone(cache: &Path) -> io::Result<Self> {
        let file = open(cache)?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another `cargo xtask` command that uses the cache ...");
            file.lock()?;
        }
        Ok(Self { _lock: file })
    }
}

fn open(cache: &Path) -> io::Result<File> {
    fs::create_dir_all(cache)?;
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(cache.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_run_side_by_side_and_pruning_alone() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let [one, two] =
            [(); 2].map(|()| CommandLock::beside_others(cache.path()).expect("both at once"));
        let file = open(cache.path()).expect("it is there");
        assert!(file.try_lock().is_err(), "two commands run");
        drop((one, two));
        // This waits: a child that another test is starting may still hold a copy of the
        // descriptor.
        file.lock().expect("no command runs");
        drop(file);
        let alone = CommandLock::alone(cache.path()).expect("no command runs");
        let file = open(cache.path()).expect("it is there");
        assert!(file.try_lock_shared().is_err(), "the cache is being pruned");
        drop(alone);
    }
}
