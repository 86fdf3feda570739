//! Replaces files that belong together.

use std::collections::VecDeque;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{LOCK_WAIT_MAX, begin, beside, fill, folder_of, is_at, rename_with_mode, sync_folder};

/// The error of [`replace_all`].
#[derive(Debug)]
pub struct ReplaceAllError {
    /// The file that could not be written, replaced or synced.
    pub path: PathBuf,
    /// The files that have their new content, in the order in which they got it.
    pub replaced: Vec<PathBuf>,
    /// The error of the system.
    pub source: io::Error,
}

impl fmt::Display for ReplaceAllError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write {}: {}", self.path.display(), self.source)
    }
}

impl Error for ReplaceAllError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

impl ReplaceAllError {
    /// The error of a file before any file was replaced.
    fn before_all(path: &Path, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            replaced: Vec::new(),
            source,
        }
    }
}

/// Replaces each of these files as [`replace`](crate::replace) does, once all new ones are on the disk. An error of a
/// write, such as that of a full disk, leaves every file as it was.
///
/// The renames come one after the other, so a power cut between them, or an error of one of them, leaves some files
/// replaced and others not.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let [program, delta] = ["program.tar", "delta.tar"].map(|name| folder.path().join(name));
/// alknet_durable::replace_all(&[(&program, b"program"), (&delta, b"delta")], 0o644)?;
/// assert_eq!(std::fs::read(&delta)?, b"delta");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of [`replace`](crate::replace), or two of the paths lead to one file. `replaced` names the files that were
/// replaced all the same.
pub fn replace_all(files: &[(&Path, &[u8])], mode: u32) -> Result<(), ReplaceAllError> {
    replace_all_within(files, mode, LOCK_WAIT_MAX)
}

/// Does that with another limit for the wait for the locks of each file.
pub(crate) fn replace_all_within(
    files: &[(&Path, &[u8])],
    mode: u32,
    wait: Duration,
) -> Result<(), ReplaceAllError> {
    let mut pending = PendingFiles::default();
    for (path, content) in in_order(files)? {
        let written = pending.write(path, content, mode, wait);
        written.map_err(|source| ReplaceAllError::before_all(path, source))?;
    }
    pending.rename_all()
}

/// Sorts the files by their folders and names, and not by the text of their paths: every call locks its new files in
/// this order, so that no two calls wait for each other.
fn in_order<'a>(
    files: &[(&'a Path, &'a [u8])],
) -> Result<Vec<(&'a Path, &'a [u8])>, ReplaceAllError> {
    let key_of = |path: &'a Path| -> io::Result<(u64, u64, Option<&'a OsStr>)> {
        let folder = fs::metadata(folder_of(path))?;
        Ok((folder.dev(), folder.ino(), path.file_name()))
    };
    let mut sorted = Vec::new();
    for &(path, content) in files {
        let key = key_of(path).map_err(|source| ReplaceAllError::before_all(path, source))?;
        sorted.push((key, path, content));
    }
    sorted.sort_by_key(|(key, ..)| *key);
    let files = sorted.into_iter();
    Ok(files.map(|(_, path, content)| (path, content)).collect())
}

/// A new file under its temporary name. It is locked until the drop.
struct PendingFile {
    path: PathBuf,
    new: PathBuf,
    file: File,
    /// Permission bits that it gets with its final name.
    mode: u32,
}

impl PendingFile {
    /// As at the end of [`replace`](crate::replace).
    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        sync_folder(folder_of(&self.path))
    }
}

/// New files. A drop removes those that were not renamed.
#[derive(Default)]
struct PendingFiles(VecDeque<PendingFile>);

impl PendingFiles {
    fn write(&mut self, path: &Path, content: &[u8], mode: u32, wait: Duration) -> io::Result<()> {
        let new = beside(path)?;
        for other in &self.0 {
            // This call would wait for its own lock.
            if is_at(&other.file, &new)? {
                let text = format!("{} is the same file", other.path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        let mut file = begin(&new, wait)?;
        let written = fill(&mut file, content);
        let path = path.to_owned();
        self.0.push_back(PendingFile {
            path,
            new,
            file,
            mode,
        });
        written
    }

    fn rename_all(mut self) -> Result<(), ReplaceAllError> {
        let mut renamed = Vec::new();
        let mut outcome = Ok(());
        while let Some(next) = self.0.pop_front() {
            let put = rename_with_mode(&next.file, &next.new, &next.path, next.mode);
            if let Err(source) = put {
                outcome = Err((next.path.clone(), source));
                // For the drop.
                self.0.push_front(next);
                break;
            }
            renamed.push(next);
        }
        for file in &renamed {
            let synced = file.sync();
            outcome = outcome.and_then(|()| synced.map_err(|source| (file.path.clone(), source)));
        }
        outcome.map_err(|(path, source)| ReplaceAllError {
            path,
            replaced: renamed.into_iter().map(|file| file.path).collect(),
            source,
        })
    }
}

impl Drop for PendingFiles {
    fn drop(&mut self) {
        for file in &self.0 {
            // What is in it may be secret, and room may be what is missing. Its lock ends afterwards.
            fs::remove_file(&file.new).ok();
        }
    }
}
