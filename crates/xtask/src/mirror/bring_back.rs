//! What cargo changed in the mirror goes into the clone: a lock file, a manifest, sources that a tool
//! formatted, snapshots that a test wrote.

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
    FileStamp, GENERATED, LARGEST_UNTRACKED, MirrorRecord, copy, is_below_link, is_same, named,
    paths_in, walk,
};

/// Folders of this name hold what cargo builds.
const TARGET: &str = "target";

/// What came of [`bring_back`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BringBackResult {
    /// Copied into the clone.
    pub files: Vec<PathBuf>,
    /// Changed in the clone as well since it was copied, so that the clone's own content stays.
    pub conflicts: Vec<PathBuf>,
}

impl BringBackResult {
    /// For people: a line for each list that is not empty.
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

/// Copies into `clone` what was written in `mirror` since the [`sync`](super::sync) that gave `record`,
/// except what git ignores and new files in folders named `target`. Deleted files are not deleted.
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
        // A link that has taken the folder's place since leads to files that are not the clone's.
        if is_below_link(clone, &file) {
            brought.conflicts.push(file);
            continue;
        }
        if is_same(&from, &data, &to)? {
            continue;
        }
        let there = fs::symlink_metadata(&to).ok();
        // The clone's file changed since it was copied, so a person is at work on it.
        if there.as_ref().map(FileStamp::from_metadata) != record.clone.get(&file).copied() {
            brought.conflicts.push(file);
            continue;
        }
        copy(&from, &to, None).map_err(|error| named(&to, &error))?;
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

/// Those of `files` that git ignores in the clone; none without git.
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
    // Git answers while it reads. What it says of a failure matters more than that it read no further.
    let writer = thread::spawn(move || stdin.write_all(&names));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    // 1 when it ignores none.
    if !matches!(output.status.code(), Some(0 | 1)) {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "git cannot say which files it ignores: {}",
            said.trim()
        )));
    }
    Ok(paths_in(output.stdout))
}
