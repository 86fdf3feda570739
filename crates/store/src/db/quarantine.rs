//! Quarantine for damaged files: each is renamed and stays beside the good one. The program never deletes them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Suffix of a quarantined file behind the original file's name.
const DAMAGED: &str = ".damaged-";

/// Suffixes of the files that belong to a database.
const BESIDE: [&str; 3] = ["-wal", "-journal", "-shm"];

/// Maximum number of quarantined files. A disk that damages more needs an administrator first.
const QUARANTINED_MAX: u32 = 100;

/// Moves the file away, and then its log, and returns the new path. In the other order, a power cut in between would
/// leave a file without its log, which could pass for a whole one.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    // A free name, because a rename would replace an earlier damaged file, which may be the better
    // one to repair.
    let free = names(path).find(|name| !name.exists());
    let free = free.ok_or_else(|| {
        io::Error::other(format!("{QUARANTINED_MAX} damaged files lie there already"))
    })?;
    // With the file gone and its log still there, `finish` knows at the next start that a power cut
    // came in between.
    fs::rename(path, &free)?;
    move_log(path, &free)?;
    Ok(free)
}

/// Finishes a move that a power cut interrupted: a log without its file belongs to the last
/// quarantined file.
pub(crate) fn finish(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    match found(path).last() {
        Some(last) => move_log(path, last),
        None => Ok(()),
    }
}

fn move_log(path: &Path, to: &Path) -> io::Result<()> {
    for suffix in BESIDE {
        // The log belongs to the damaged file: SQLite would replay it into a new file of that name.
        match fs::rename(with(path, suffix), with(to, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    alknet_durable::sync_folder(path.parent().unwrap_or(path))
}

/// The quarantined files, oldest first.
pub(crate) fn found(path: &Path) -> Vec<PathBuf> {
    names(path).filter(|name| name.exists()).collect()
}

fn names(path: &Path) -> impl Iterator<Item = PathBuf> {
    (1..=QUARANTINED_MAX).map(move |n| with(path, &format!("{DAMAGED}{n}")))
}

/// The path with a suffix behind the name of the file.
pub(crate) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
