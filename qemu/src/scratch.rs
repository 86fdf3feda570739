//! Scratch directories that never outlive their use for long.
//!
//! A directory is removed when its owner is dropped. When the owner is killed instead, the next
//! harness to start removes it: each directory holds a file its owner keeps locked, and a lock that
//! can be taken belongs to nobody alive.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::error::{Error, Result};

/// A private directory, gone with its owner.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes a directory, and once per process sweeps away what killed processes left.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        let base = base();
        fs::create_dir_all(&base).map_err(Error::io(format!("creating {}", base.display())))?;
        SWEEP.call_once(|| sweep(&base));
        Self::in_dir(&base)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Path of a file inside.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn in_dir(base: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("vm-")
            .tempdir_in(base)
            .map_err(Error::io(format!(
                "creating a directory in {}",
                base.display()
            )))?;
        let lock =
            lock_file(dir.path()).map_err(Error::io("creating the lock of a scratch directory"))?;
        lock.lock()
            .map_err(Error::io("locking a scratch directory"))?;
        Ok(Self { dir, _lock: lock })
    }
}

/// Longest base that leaves room for a socket's name: `sun_path` has 108 bytes.
const BASE_BYTES_MAX: usize = 60;

/// Below the temporary directory, or below `/tmp` where that is too long for socket names.
fn base() -> PathBuf {
    let dir = std::env::temp_dir();
    let dir = if dir.as_os_str().len() > BASE_BYTES_MAX {
        PathBuf::from("/tmp")
    } else {
        dir
    };
    dir.join(format!("alknet-qemu-{}", nix::unistd::getuid()))
}

fn lock_file(dir: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("lock"))
}

/// Removes every directory whose owner is gone. One without a lock file is just being made.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(lock) = File::open(path.join("lock")) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            tracing::debug!(path = %path.display(), "removing what a killed run left");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner() {
        let scratch = Scratch::new().expect("the temporary directory is writable");
        let path = scratch.path().to_owned();
        fs::write(scratch.file("x"), b"x").expect("the directory is ours");
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn the_sweep_removes_what_nobody_holds_and_nothing_else() {
        let base = tempfile::tempdir().expect("the temporary directory is writable");
        let held = Scratch::in_dir(base.path()).expect("the directory is ours");
        let left = base.path().join("vm-left");
        let young = base.path().join("vm-young");
        fs::create_dir(&left)
            .and_then(|()| fs::create_dir(&young))
            .expect("the directory is ours");
        drop(lock_file(&left).expect("the directory is ours"));
        sweep(base.path());
        assert!(held.path().exists(), "held by us");
        assert!(!left.exists(), "its owner is gone");
        assert!(young.exists(), "no lock yet: somebody is making it");
    }
}
