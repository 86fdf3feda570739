//! Removes what power cuts left of new files.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::{clear, is_new_name};

/// Failures that an error keeps. An attacker who writes to a disk can leave any number of them, and the caller is PID 1.
const KEPT_MAX: usize = 8;

/// The error of [`remove_left`]: the first eight of what it could not remove, and the number of the others.
#[derive(Debug, Default)]
pub struct RemoveLeftError {
    /// New files that stay, or the folder if that cannot be read, with the error of the system: the first eight. Never empty in
    /// an error that [`remove_left`] returns.
    pub failures: Vec<(PathBuf, io::Error)>,
    /// Number of the failures that are not among these.
    pub more: usize,
}

impl RemoveLeftError {
    fn add(&mut self, path: PathBuf, error: io::Error) {
        match self.failures.len() < KEPT_MAX {
            true => self.failures.push((path, error)),
            false => self.more += 1,
        }
    }
}

impl fmt::Display for RemoveLeftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (path, error)) in self.failures.iter().enumerate() {
            let between = if number == 0 { "" } else { "; " };
            write!(f, "{between}{}: {error}", path.display())?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Error for RemoveLeftError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let (_, error) = self.failures.first()?;
        Some(error)
    }
}

/// Removes the new files that power cuts have left in a folder, as the next call for each of these files does. The new file of
/// a call that goes on stays. What cannot be removed keeps none of the others from being removed.
///
/// To be called before programs of other users run that can read the folder: each of them can lock such a file, and the next
/// call then waits for half a minute and fails.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join(".node.key.new"), b"fir")?;
/// alknet_durable::remove_left(folder.path())?;
/// assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The folder cannot be read, or some of its new files cannot be removed. The error names the first eight of them, and has the
/// number of the others.
pub fn remove_left(folder: &Path) -> Result<(), RemoveLeftError> {
    let mut failed = RemoveLeftError::default();
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) if is_new_name(&entry.file_name()) => {
                        let left = entry.path();
                        if let Err(error) = clear_unlocked(&left) {
                            failed.add(left, error);
                        }
                    }
                    Ok(_) => {}
                    Err(error) => failed.add(folder.to_owned(), error),
                }
            }
        }
        Err(error) => failed.add(folder.to_owned(), error),
    }
    match failed.failures.is_empty() {
        true => Ok(()),
        false => Err(failed),
    }
}

/// Removes a new file, unless a call goes on with it: then it is no leftover, as its lock shows.
fn clear_unlocked(left: &Path) -> io::Result<()> {
    match clear(left, Instant::now()) {
        Err(error) if is_locked(&error) => Ok(()),
        cleared => cleared,
    }
}

/// Whether the error says that another call has the lock. The system says EBUSY of a file on which another one is mounted, and
/// that one stays.
pub(crate) fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy && error.raw_os_error().is_none()
}
