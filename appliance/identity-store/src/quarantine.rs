//! Where damaged files go: beside the good one, under a name that says so, and never away.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the name of a file that was set aside has behind the file's own.
const DAMAGED: &str = ".damaged-";

/// Files that belong to a database, by what they have behind its name.
const BESIDE: [&str; 3] = ["-wal", "-journal", "-shm"];

/// Files set aside at most; a disk that damages more has to be looked at first.
const ASIDE_MAX: u32 = 100;

/// Moves the file away, and then its log: the other way round, a power cut in between would leave a
/// file that could pass for a whole one.
pub(crate) fn set(path: &Path) -> io::Result<()> {
    let free = names(path).find(|name| !name.exists());
    let free = free
        .ok_or_else(|| io::Error::other(format!("{ASIDE_MAX} damaged files lie there already")))?;
    // The file before its log: with the file gone, `finish` sees at the next start that the log is still to follow.
    fs::rename(path, &free)?;
    move_log(path, &free)
}

/// Ends what a power cut interrupted: a log without its file belongs to the one set aside last.
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
        // The log belongs to the damaged file: beside a new one of that name SQLite would play it back.
        match fs::rename(with(path, suffix), with(to, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    alknet_durable::sync_folder(path.parent().unwrap_or(path))
}

/// The files that were set aside, oldest first.
pub(crate) fn found(path: &Path) -> Vec<PathBuf> {
    names(path).filter(|name| name.exists()).collect()
}

fn names(path: &Path) -> impl Iterator<Item = PathBuf> {
    (1..=ASIDE_MAX).map(move |n| with(path, &format!("{DAMAGED}{n}")))
}

pub(crate) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
