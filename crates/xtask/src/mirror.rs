//! The mirror: one folder in the cache with the content of the clone that builds.
//!
//! Cargo names what it compiles by the folder of the package and judges its age by the times of its
//! files. Compiled in place, each clone would compile everything once more. So every clone is copied,
//! by content, into one folder, and cargo runs there: a file that is the same keeps its time, and what
//! was compiled for one clone is good for the next.

mod bring_back;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::git::git;

pub use self::bring_back::{BringBackResult, bring_back};

/// Files that the build itself writes into the mirror; no clone has them.
const GENERATED: [&str; 1] = ["compute/driver/linked-drivers"];

/// Folders that are never copied from a clone without git.
const OUTPUTS: [&str; 2] = [".git", "target"];

/// A file that git does not track and that is larger is no source: an image, or a disk of a machine.
pub const LARGEST_UNTRACKED: u64 = 16 << 20;

/// The mirror may hold untracked files that only their owner may read.
const MIRROR_MODE: u32 = 0o700;

/// How much of a file is in memory.
const CHUNK: usize = 64 << 10;

/// How many files a [`sync`] changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorChanges {
    /// New, or with other content.
    pub written: usize,
    /// No longer in the clone.
    pub removed: usize,
}

/// The result of a [`sync`].
#[derive(Debug, Default)]
pub struct SyncResult {
    /// What it changed.
    pub changes: MirrorChanges,
    /// Files that were too large to be copied.
    pub left_out: Vec<PathBuf>,
    /// The files of both folders then.
    pub record: MirrorRecord,
}

/// Both folders after a [`sync`], for [`bring_back`].
#[derive(Debug, Default)]
pub struct MirrorRecord {
    clone: BTreeMap<PathBuf, FileStamp>,
    mirror: BTreeMap<PathBuf, FileStamp>,
}

/// Differs when a file was written in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    mode: u32,
    length: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn from_metadata(data: &Metadata) -> Self {
        Self {
            inode: data.ino(),
            mode: data.mode(),
            length: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
        }
    }
}

/// Makes `mirror` hold what `clone` holds: tracked files and untracked ones that git does not ignore,
/// except what lies below `cache` or below a symbolic link. Files with the same content are not touched; the others are dated
/// later than `newest`, the time of the newest artefact.
pub fn sync(
    clone: &Path,
    mirror: &Path,
    cache: &Path,
    newest: SystemTime,
) -> io::Result<SyncResult> {
    let mut synced = SyncResult::default();
    let files = files_of(clone, cache, &mut synced.left_out)?;
    let names: BTreeSet<&Path> = files.keys().map(PathBuf::as_path).collect();
    make_private(mirror)?;
    synced.changes.removed = remove_others(mirror, mirror, &names)?;
    let date = date_after(newest);
    for (file, data) in files {
        let (from, to) = (clone.join(&file), mirror.join(&file));
        // A link in the mirror would have files written outside of it.
        if is_below_link(mirror, &file) {
            let error = io::Error::other("a folder above it is a symbolic link");
            return Err(named(&to, &error));
        }
        let copied = copy(&from, &to, Some(date)).map_err(|error| named(&from, &error))?;
        synced.changes.written += usize::from(copied);
        // After the copy: what cargo changes later differs from this.
        let there = fs::symlink_metadata(&to)?;
        synced
            .record
            .mirror
            .insert(file.clone(), FileStamp::from_metadata(&there));
        synced
            .record
            .clone
            .insert(file, FileStamp::from_metadata(&data));
    }
    Ok(synced)
}

/// The time of a file that is written now: cargo compiles a source again when it is later than what was
/// made of it, which a clock that was set back since would prevent.
fn date_after(newest: SystemTime) -> SystemTime {
    let now = SystemTime::now();
    if now > newest {
        now
    } else {
        newest + Duration::from_secs(1)
    }
}

fn make_private(mirror: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(MIRROR_MODE)
        .create(mirror)?;
    if fs::metadata(mirror)?.mode() & 0o777 != MIRROR_MODE {
        fs::set_permissions(mirror, Permissions::from_mode(MIRROR_MODE))?;
    }
    Ok(())
}

/// The files of a clone, relative to it.
fn files_of(
    clone: &Path,
    cache: &Path,
    left_out: &mut Vec<PathBuf>,
) -> io::Result<BTreeMap<PathBuf, Metadata>> {
    let inner = cache_within(clone, cache);
    let listed = match listed_by_git(clone)? {
        Some(listed) => listed,
        None => {
            let mut listed = CheckoutFiles::default();
            // Without git everything counts that is no output, such as in an unpacked archive.
            walk(clone, clone, inner.as_deref(), &mut listed.untracked)?;
            listed
        }
    };
    let mut files = BTreeMap::new();
    let tracked = listed.tracked.into_iter().map(|file| (file, true));
    let untracked = listed.untracked.into_iter().map(|file| (file, false));
    for (file, tracked) in tracked.chain(untracked) {
        if inner.as_ref().is_some_and(|inner| file.starts_with(inner)) {
            continue;
        }
        // Git goes on listing the files of a tracked folder whose place a link has taken. What the link leads to is
        // not the clone's.
        if is_below_link(clone, &file) {
            continue;
        }
        // Git also lists files that were deleted and not yet committed as such.
        let Ok(data) = fs::symlink_metadata(clone.join(&file)) else {
            continue;
        };
        // To open a pipe would wait for a writer.
        if !data.is_file() && !data.is_symlink() {
            continue;
        }
        if !tracked && data.len() > LARGEST_UNTRACKED {
            left_out.push(file);
            continue;
        }
        files.insert(file, data);
    }
    Ok(files)
}

/// Whether a folder above `file`, which is relative to `root`, is a symbolic link.
fn is_below_link(root: &Path, file: &Path) -> bool {
    let mut above = file.ancestors().skip(1);
    above.any(|folder| {
        let named = !folder.as_os_str().is_empty();
        named && fs::symlink_metadata(root.join(folder)).is_ok_and(|data| data.is_symlink())
    })
}

/// Where the cache lies in the clone, if it does.
fn cache_within(clone: &Path, cache: &Path) -> Option<PathBuf> {
    let (clone, cache) = (fs::canonicalize(clone).ok()?, fs::canonicalize(cache).ok()?);
    let inner = cache.strip_prefix(clone).ok()?;
    (!inner.as_os_str().is_empty()).then(|| inner.to_owned())
}

#[derive(Debug, Default)]
struct CheckoutFiles {
    tracked: BTreeSet<PathBuf>,
    untracked: BTreeSet<PathBuf>,
}

/// `None` for a folder that is no checkout, or where there is no git. That git cannot read a checkout is
/// an error: without its list every ignored file would be copied.
fn listed_by_git(clone: &Path) -> io::Result<Option<CheckoutFiles>> {
    if fs::symlink_metadata(clone.join(".git")).is_err() {
        return Ok(None);
    }
    let tracked = list(clone, &["--cached"]);
    let untracked = list(clone, &["--others", "--exclude-standard"]);
    match (tracked, untracked) {
        (Ok(tracked), Ok(untracked)) => Ok(Some(CheckoutFiles { tracked, untracked })),
        (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn list(clone: &Path, arguments: &[&str]) -> io::Result<BTreeSet<PathBuf>> {
    let output = git(clone)
        // With zeros between them, since a name may have a line end.
        .args(["ls-files", "-z"])
        .args(arguments)
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "git cannot list its files: {}",
            said.trim()
        )));
    }
    Ok(paths_in(output.stdout))
}

/// What git writes with `-z`.
fn paths_in(output: Vec<u8>) -> BTreeSet<PathBuf> {
    let names = output.split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| PathBuf::from(OsString::from_vec(name.to_vec())))
        .collect()
}

/// Every file below `folder` but outputs and what lies below `without`, which is relative to `root`.
fn walk(
    root: &Path,
    folder: &Path,
    without: Option<&Path>,
    files: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
        if OUTPUTS.iter().any(|name| relative == Path::new(name)) || without == Some(&*relative) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            walk(root, &path, without, files)?;
        } else {
            files.insert(relative);
        }
    }
    Ok(())
}

/// Removes what is not among `files`, and folders that are empty then; how many files went.
fn remove_others(mirror: &Path, folder: &Path, files: &BTreeSet<&Path>) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(mirror).unwrap_or(&path);
        if entry.file_type()?.is_dir() {
            removed += remove_others(mirror, &path, files)?;
            // A file or a link of the clone may have taken the folder's name: what the build generated in it goes, too.
            if files.contains(relative) {
                fs::remove_dir_all(&path)?;
            } else if fs::read_dir(&path)?.next().is_none() {
                fs::remove_dir(&path)?;
            }
        } else if !files.contains(relative)
            && !GENERATED.iter().any(|name| relative == Path::new(name))
        {
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Copies a file when its content, its mode or its kind differs; whether it did. A regular file gets
/// the time `date`.
fn copy(from: &Path, to: &Path, date: Option<SystemTime>) -> io::Result<bool> {
    let data = fs::symlink_metadata(from)?;
    if is_same(from, &data, to)? {
        return Ok(false);
    }
    to.parent().map_or(Ok(()), fs::create_dir_all)?;
    // Beside the old file and then in its place, which a full disk or a signal leaves as it is.
    let mut name = OsString::from(".alknet-copy-");
    name.push(std::process::id().to_string());
    let fresh = to.with_file_name(name);
    let made = make(from, &data, &fresh, date).and_then(|()| fs::rename(&fresh, to));
    if made.is_err() {
        // It may not have been made at all.
        let _ = fs::remove_file(&fresh);
    }
    made.map(|()| true)
}

fn make(from: &Path, data: &Metadata, fresh: &Path, date: Option<SystemTime>) -> io::Result<()> {
    match fs::remove_file(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if data.is_symlink() {
        return symlink(fs::read_link(from)?, fresh);
    }
    let mut source = open(from)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(data.mode() & 0o777)
        .open(fresh)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = read_full(&mut source, &mut chunk)?;
        if read == 0 {
            break;
        }
        file.write_all(&chunk[..read])?;
    }
    // The mask of this process may have taken bits away.
    file.set_permissions(data.permissions())?;
    date.map_or(Ok(()), |date| file.set_modified(date))
}

/// Whether `to` is what [`copy`] would make of `from`, whose metadata is `data`.
fn is_same(from: &Path, data: &Metadata, to: &Path) -> io::Result<bool> {
    let Ok(there) = fs::symlink_metadata(to) else {
        return Ok(false);
    };
    if data.is_symlink() {
        return Ok(there.is_symlink() && fs::read_link(to)? == fs::read_link(from)?);
    }
    let alike =
        there.is_file() && there.len() == data.len() && there.permissions() == data.permissions();
    // Cheap differences first: most files that differ do so in length.
    if !alike {
        return Ok(false);
    }
    let (mut one, mut other) = (open(from)?, open(to)?);
    let [mut left, mut right] = [(); 2].map(|()| vec![0; CHUNK]);
    loop {
        let read = read_full(&mut one, &mut left)?;
        if read != read_full(&mut other, &mut right)? || left[..read] != right[..read] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

/// Opens a regular file. What took its place since it was listed may be a pipe.
fn open(path: &Path) -> io::Result<File> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(io::Error::other("this is no regular file"));
    }
    File::open(path)
}

/// Fills `chunk` unless the file ends before; how much was read.
fn read_full(file: &mut File, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
