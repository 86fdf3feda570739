//! Files that are whole whenever the power fails.
//!
//! [`replace`] puts a file in the place of another, or of none, and [`replace_all`] does that for files that belong
//! together; [`remove_left`] removes what power cuts left beside them; [`sync_folder`] is for those who move and remove
//! files themselves; [`private`] makes the file that a database then opens.

mod left;
mod set;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub use left::{RemoveLeftError, remove_left};
pub use set::{ReplaceAllError, replace_all};

/// What the name of a file has before and behind it until the file is whole.
const NEW_NAME: (&str, &str) = (".", ".new");

/// Permission bits of a file that only its owner may read and write.
const PRIVATE: u32 = 0o600;

/// How often another call may come first.
const TRIES: usize = 1000;

/// Longest wait of a call for the locks of other calls, each of which holds its lock while it writes and syncs one
/// file. A slow disk may need seconds for that. Another user can take a lock, too, and keep it.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(30);

/// Pause before a lock is tried again. flock(2) has no wait with a limit.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Puts a file with this content and exactly these permission bits at `path`; the folder has to be
/// there. When this returns, it is on the disk.
///
/// A power cut before that leaves the file of before or the new one, each whole, or on FAT an empty one,
/// and perhaps a part of the new one beside it as `.NAME.new`, which only its owner can open. A cut right
/// before the new file gets its name leaves it with these permission bits, by which other users may be able
/// to open and lock it: [`remove_left`] removes it before they run. The next call for the same file removes
/// that part as well and makes its own file: it never writes into one with other permission bits, or one
/// that another process has open. Several calls for one file, of one process or of many, come after each
/// other.
///
/// A link at `path` is replaced, not followed.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("node.key");
/// alknet_durable::replace(&file, b"first", 0o600)?;
/// alknet_durable::replace(&file, b"second", 0o600)?;
/// assert_eq!(std::fs::read(&file)?, b"second");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// The errors of the disk, and [`ResourceBusy`](io::ErrorKind::ResourceBusy) if another program keeps `.NAME.new`
/// locked for half a minute. The file is the one before then. Nothing of this call is beside it, except after
/// `ResourceBusy` perhaps an empty `.NAME.new`, which the next call removes. Only where the new name could not be synced
/// the file is the new one, and a power cut may bring the old one back, or on FAT an empty one.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_within(path, content, mode, LOCK_WAIT_MAX)
}

/// Does that with another limit for the wait for locks.
fn replace_within(path: &Path, content: &[u8], mode: u32, wait: Duration) -> io::Result<()> {
    let new = beside(path)?;
    // Locked until the end.
    let mut file = begin(&new, wait)?;
    let filled = fill(&mut file, content);
    let put = filled.and_then(|()| rename_with_mode(&file, &new, path, mode));
    if put.is_err() {
        // What is in it may be secret, and room may be what is missing. The next call would do it too.
        fs::remove_file(&new).ok();
    }
    put?;
    // On FAT the entry of the new name says that the file is empty until the file itself is synced again
    // (`vfat_rename` in Linux). On other file systems this costs nothing beside the folder.
    file.sync_all()?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Returns when the names in a folder are on the disk. The parent of a bare name, which is empty, is the
/// folder that the process is in.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)?.sync_all()
}

/// Makes sure that there is a file that only its owner can read, empty if it was missing; a program that
/// makes one without a mode leaves that to the umask.
///
/// # Errors
/// The file cannot be made or changed, or what is there is no file.
pub fn private(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if about.permissions().mode() & 0o777 & !PRIVATE != 0 {
        fs::set_permissions(path, Permissions::from_mode(PRIVATE))?;
    }
    Ok(())
}

/// The folder of a file. That of a bare name is the one that the process is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What the file is called until it is whole.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        let text = format!("'{}' is no name of a file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let (before, behind) = NEW_NAME;
    let mut new = OsString::from(before);
    new.push(name);
    new.push(behind);
    Ok(path.with_file_name(new))
}

/// Whether a file is called so only until it is whole.
fn is_new_name(name: &OsStr) -> bool {
    let (before, behind) = NEW_NAME;
    let rest = name.as_encoded_bytes().strip_prefix(before.as_bytes());
    let name = rest.and_then(|rest| rest.strip_suffix(behind.as_bytes()));
    name.is_some_and(|name| !name.is_empty())
}

/// A file of our own at `new`, which no other call removes or moves before it is closed.
fn begin(new: &Path, wait: Duration) -> io::Result<File> {
    // One for all tries: another user may put one locked file there after the other.
    let deadline = Instant::now() + wait;
    for _ in 0..TRIES {
        // Another user may lock a file that this user can open, and keep the lock (flock(2)). So the file gets the
        // permission bits of the caller only right before its rename.
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(new);
        match made {
            Ok(file) => {
                // After an error the file stays. Who holds its lock may be a call that takes it for what a power cut
                // left: then another new file can have this name by now, and a removal by the name would hit that one.
                lock(&file, new, deadline)?;
                // Until it was locked, another call may have taken it for what a power cut left.
                if is_at(&file, new)? {
                    return Ok(file);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => clear(new, deadline)?,
            Err(error) => return Err(error),
        }
    }
    let text = "others write this file all the time";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// Locks the file at `new`, or gives up at the deadline.
fn lock(file: &File, new: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                let text = format!("another program keeps {} locked: end it", new.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
        }
    }
}

/// Removes what a power cut left at `new`, or returns when the call whose it is has ended.
fn clear(new: &Path, deadline: Instant) -> io::Result<()> {
    let found = match fs::symlink_metadata(new) {
        Ok(found) => found,
        Err(error) => return unless_absent(error),
    };
    // No call made anything else than a file.
    let opened = found.is_file().then(|| open_left(new));
    let held = match opened.transpose() {
        Ok(held) => held,
        // No call of ours can be writing it.
        Err(error) if is_of_no_call(&error) => None,
        Err(error) => return unless_absent(error),
    };
    if let Some(file) = &held {
        lock(file, new, deadline)?;
        if !is_at(file, new)? {
            return Ok(());
        }
    }
    fs::remove_file(new).or_else(unless_absent)
}

/// Opens what a power cut left. A link or a pipe can come there after the look: the open follows no link, and waits for
/// no reader of a pipe.
fn open_left(new: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true);
    let options = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(new)
}

/// Whether the error of an open says that no call of this library made the file: it is another user's, a link (ELOOP),
/// or a pipe that no process reads (ENXIO).
fn is_of_no_call(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
        || matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO))
}

/// Whether this file is still called so.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) => unless_absent(error).map(|()| false),
    }
}

fn unless_absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

/// Writes the content of a new file to the disk. Its owner alone can open it until [`rename_with_mode`].
fn fill(file: &mut File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_all()
}

/// Gives a new file its permission bits and its name.
fn rename_with_mode(file: &File, new: &Path, path: &Path, mode: u32) -> io::Result<()> {
    // Not before the content is on the disk: a power cut leaves what has the temporary name, and no lock. A file that
    // another user can open then could be locked for as long as that user likes. The journals of ext4 and XFS
    // keep the order of the two changes; elsewhere a cut may leave the final name with its owner's bits alone. A cut between
    // the two leaves the temporary name with the bits of the caller, until `remove_left` or the next call removes it.
    if file.metadata()?.mode() & 0o777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    fs::rename(new, path)
}

#[cfg(test)]
mod tests;
