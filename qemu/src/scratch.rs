//! Scratch directories that do not outlive their use for long.
//!
//! A directory is removed when its owner is dropped. If the owner is killed instead, the next
//! harness to start removes it: each directory holds a file that its owner keeps locked, and a lock
//! that another process can take belongs to no living process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::error::{Error, Result};

/// A private directory, removed with its owner.
#[derive(Debug)]
pub struct ScratchDir {
    dir: tempfile::TempDir,
    _lock: File,
}

impl ScratchDir {
    /// Makes a directory, and once per process removes what killed processes left.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        let base = base()?;
        SWEEP.call_once(|| sweep(&base));
        Self::in_dir(&base)
    }

    /// Its path.
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
        let lock = lock(dir.path()).map_err(Error::io("locking a scratch directory"))?;
        Ok(Self { dir, _lock: lock })
    }
}

/// The file that the directory's owner holds locked as long as it lives, whatever ends it.
const LOCK: &str = "lock";

/// The file's name until it is locked. Under the final name, and not yet locked, another process
/// would take the directory for one whose owner is gone.
const UNLOCKED: &str = "lock.new";

/// Mode of a folder that other users cannot enter.
const PRIVATE: u32 = 0o700;

/// Longest base that leaves room for a socket's name: `sun_path` has 108 bytes.
const BASE_BYTES_MAX: usize = 60;

/// The base, below the temporary directory, or below `/tmp` if that is too long for socket names.
/// It exists, and other users cannot enter it.
pub(crate) fn base() -> Result<PathBuf> {
    let dir = std::env::temp_dir();
    let dir = if dir.as_os_str().len() > BASE_BYTES_MAX {
        PathBuf::from("/tmp")
    } else {
        dir
    };
    let base = dir.join(format!("alknet-qemu-{}", nix::unistd::getuid()));
    make_private(&base)?;
    Ok(base)
}

/// Makes a folder that belongs to this user alone, or narrows the permissions of one that this user
/// has. Its name can be guessed: in a folder that every user can write to, another user may have
/// made it, or a link in its place.
fn make_private(folder: &Path) -> Result<()> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE)
        .create(folder);
    let opened = made.and_then(|()| {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(folder)?;
        if opened.metadata()?.uid() != nix::unistd::getuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        // An older version may have made the folder, with another mode.
        opened.set_permissions(Permissions::from_mode(PRIVATE))
    });
    opened.map_err(Error::io(format!(
        "{} has to be a folder of this user's, and no link; remove it, or set TMPDIR to another folder",
        folder.display()
    )))
}

/// Locks a new directory for its owner.
fn lock(dir: &Path) -> io::Result<File> {
    let [unlocked, locked] = [UNLOCKED, LOCK].map(|name| dir.join(name));
    let file = File::create(&unlocked)?;
    file.lock()?;
    // The file gets this name only once it is locked: a sweep of another process takes an unlocked
    // one for abandoned.
    fs::rename(unlocked, locked)?;
    Ok(file)
}

/// Removes every directory whose owner is gone. One without a lock file is being made at this
/// moment.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let file = path.join(LOCK);
        let Ok(lock) = File::open(&file) else {
            continue;
        };
        if lock.try_lock().is_ok() && is_at(&lock, &file) {
            tracing::debug!(path = %path.display(), "removing what a killed run left");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Whether `file` still lies at `path`: its owner, or another process, may have removed it between
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

    use alknet_test_support::skipped;

    use super::*;

    #[test]
    fn others_cannot_enter_the_folder_of_a_user() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let folder = dir.path().join("of-one-user");
        let mode = || {
            let metadata = fs::metadata(&folder).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        make_private(&folder).expect("a new folder");
        assert_eq!(mode(), PRIVATE);
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("it is ours");
        make_private(&folder).expect("it is ours");
        assert_eq!(mode(), PRIVATE, "it was narrowed");
    }

    #[test]
    fn what_is_in_the_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let (target, link, file) = (
            dir.path().join("a"),
            dir.path().join("b"),
            dir.path().join("c"),
        );
        fs::create_dir(&target).expect("the directory is ours");
        std::os::unix::fs::symlink(&target, &link).expect("the directory is ours");
        fs::write(&file, "").expect("the directory is ours");
        for place in [&link, &file] {
            let error = make_private(place)
                .expect_err("it is no folder")
                .to_string();
            let names = error.contains(&place.display().to_string());
            assert!(names && error.contains("TMPDIR"), "{error}");
        }
        if nix::unistd::getuid().is_root() {
            std::os::unix::fs::chown(&target, Some(65_534), None).expect("we are root");
            let error = make_private(&target)
                .expect_err("it is another user's")
                .to_string();
            assert!(error.contains("another user"), "{error}");
        } else {
            skipped("root", "no folder of another user is refused");
        }
    }

    #[test]
    fn a_directory_goes_with_its_owner() {
        let scratch = ScratchDir::new().expect("the temporary directory is writable");
        let path = scratch.path().to_owned();
        fs::write(scratch.file("x"), b"x").expect("the directory is ours");
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn the_sweep_removes_only_unheld_folders() {
        let base = tempfile::tempdir().expect("the temporary directory is writable");
        let held = ScratchDir::in_dir(base.path()).expect("the directory is ours");
        let left = base.path().join("vm-left");
        let young = base.path().join("vm-young");
        fs::create_dir(&left)
            .and_then(|()| fs::create_dir(&young))
            .expect("the directory is ours");
        drop(lock(&left).expect("the directory is ours"));
        sweep(base.path());
        assert!(held.path().exists(), "held by us");
        assert!(!left.exists(), "its owner is gone");
        assert!(young.exists(), "no lock yet: it is being made");
        // The lock of a directory that another process removed, taken late, belongs to no
        // directory.
        let lock = held.file(LOCK);
        let stale = File::open(&lock).expect("it is there");
        assert!(is_at(&stale, &lock));
        drop(held);
        assert!(!is_at(&stale, &lock));
    }

    /// Two processes start at the same time, and each sweeps while the other one makes its
    /// directory.
    #[test]
    fn the_sweep_leaves_a_directory_that_is_being_made() {
        let base = tempfile::tempdir().expect("the temporary directory is writable");
        let start = Barrier::new(2);
        let process = || {
            start.wait();
            for _ in 0..2000 {
                sweep(base.path());
                let scratch = ScratchDir::in_dir(base.path()).expect("the directory is ours");
                assert!(scratch.file(LOCK).exists(), "just made");
                thread::yield_now();
                assert!(scratch.file(LOCK).exists(), "still in use");
            }
        };
        thread::scope(|scope| {
            scope.spawn(process);
            scope.spawn(process);
        });
        let left = fs::read_dir(base.path()).expect("it is ours").count();
        assert_eq!(left, 0);
    }
}
