//! Copies what cargo changed in the mirror into the clone: a lock file, a manifest, sources that a
//! tool formatted, snapshots that a test wrote.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use crate::git::git;

use super::{
    FileStamp, GENERATED, LARGEST_UNTRACKED, MirrorRecord, copy, error_at, is_below_link, is_same,
    paths_in, walk,
};

/// Folders with this name contain what cargo builds.
const TARGET: &str = "target";

/// The result of [`bring_back`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BringBackResult {
    /// Copied into the clone.
    pub files: Vec<PathBuf>,
    /// Also changed in the clone since it was copied, so the clone's content stays.
    pub conflicts: Vec<PathBuf>,
}

impl BringBackResult {
    /// Readable text: a line for each list that is not empty.
    #[must_use]
    pub fn lines(&self, mirror: &Path) -> Vec<String> {
        let names = |files: &[PathBuf]| {
            let names = files.iter().map(|file| file.display().to_string());
            names.collect::<Vec<_>>().join(", ")
        };
        let mut lines = Vec::new();
        if !self.files.is_empty() {
            lines.push(format!(
                "cargo changed in this clone: {}",
                names(&self.files)
            ));
        }
        if !self.conflicts.is_empty() {
            lines.push(format!(
                "changed by cargo and, meanwhile, in this clone, which keeps its own content: {}; until \
                 the next command cargo's is in {}",
                names(&self.conflicts),
                mirror.display()
            ));
        }
        lines
    }
}

/// Copies into `clone` what was written in `mirror` since the [`sync`](super::sync) that made
/// `record`. Files that git ignores and new files in folders named `target` are not copied. Deleted
/// files are not deleted.
pub fn bring_back(
    clone: &Path,
    mirror: &Path,
    record: &mut MirrorRecord,
) -> io::Result<BringBackResult> {
    let mut files = BTreeSet::new();
    walk(mirror, mirror, None, &mut files)?;
    let (mut changed, mut new) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        let data = fs::symlink_metadata(mirror.join(&file))?;
        if !data.is_file() && !data.is_symlink() {
            continue;
        }
        match record.mirror.get(&file) {
            Some(mark) if *mark == FileStamp::from_metadata(&data) => {}
            Some(_) => {
                changed.insert(file);
            }
            None if is_output(&file) || data.len() > LARGEST_UNTRACKED => {}
            None => {
                new.insert(file);
            }
        }
    }
    let ignored = ignored_by_git(clone, &new)?;
    changed.extend(new.difference(&ignored).cloned());
    let mut brought = BringBackResult::default();
    for file in changed {
        let (from, to) = (mirror.join(&file), clone.join(&file));
        let data = fs::symlink_metadata(&from)?;
        // If a link replaced the folder, it leads to files that are not part of the clone.
        if is_below_link(clone, &file) {
            brought.conflicts.push(file);
            continue;
        }
        if is_same(&from, &data, &to)? {
            continue;
        }
        let there = fs::symlink_metadata(&to).ok();
        // The clone's file changed since it was copied, so the user is editing it.
        if there.as_ref().map(FileStamp::from_metadata) != record.clone.get(&file).copied() {
            brought.conflicts.push(file);
            continue;
        }
        copy(&from, &to, None).map_err(|error| error_at(&to, &error))?;
        record
            .mirror
            .insert(file.clone(), FileStamp::from_metadata(&data));
        let there = fs::symlink_metadata(&to)?;
        record
            .clone
            .insert(file.clone(), FileStamp::from_metadata(&there));
        brought.files.push(file);
    }
    Ok(brought)
}

fn is_output(file: &Path) -> bool {
    file.components()
        .any(|part| part.as_os_str() == OsStr::new(TARGET))
        || GENERATED.iter().any(|name| file == Path::new(name))
}

/// The files of `files` that git ignores in the clone. Empty without git.
fn ignored_by_git(clone: &Path, files: &BTreeSet<PathBuf>) -> io::Result<BTreeSet<PathBuf>> {
    if files.is_empty() || fs::symlink_metadata(clone.join(".git")).is_err() {
        return Ok(BTreeSet::new());
    }
    let spawned = git(clone)
        .args(["check-ignore", "-z", "--stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        spawned => spawned?,
    };
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut names = Vec::new();
    for file in files {
        names.extend_from_slice(file.as_os_str().as_bytes());
        names.push(0);
    }
    // Git answers while it reads. Its failure matters more than an unfinished write.
    let writer = thread::spawn(move || stdin.write_all(&names));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    // 1 if it ignores none.
    if !matches!(output.status.code(), Some(0 | 1)) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "git cannot say which files it ignores: {}",
            stderr.trim()
        )));
    }
    Ok(paths_in(output.stdout))
}
