//! The mirror: a folder in the cache with the content of the clone that builds.
//!
//! Cargo identifies what it compiles by the package's folder, and judges its age by file times. If
//! each clone compiled in place, it would compile everything again. So every clone is copied, by
//! content, into one folder, and cargo runs there. An identical file keeps its time, and the next
//! clone can use what was compiled for another.

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

/// Files that the build writes into the mirror, and that no clone has.
const GENERATED: [&str; 1] = ["compute/driver/linked-drivers"];

/// Folders that are never copied from a clone without git.
const OUTPUTS: [&str; 2] = [".git", "target"];

/// A larger untracked file is not a source, but an image or a machine's disk.
pub const LARGEST_UNTRACKED: u64 = 16 << 20;

/// The mirror may contain untracked files that only their owner may read.
const MIRROR_MODE: u32 = 0o700;

/// How many bytes of a file are in memory.
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
    /// The files of both folders afterwards.
    pub record: MirrorRecord,
}

/// Both folders after a [`sync`], for [`bring_back`].
#[derive(Debug, Default)]
pub struct MirrorRecord {
    clone: BTreeMap<PathBuf, FileStamp>,
    mirror: BTreeMap<PathBuf, FileStamp>,
}

/// Differs if the file was written in between.
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

/// Makes `mirror` contain the files of `clone`: tracked files, and untracked ones that git does not
/// ignore, but nothing in `cache` or below a symbolic link. Identical files are not touched. The
/// others get a time after `newest`, the time of the newest artefact.
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
        // Through a link in the mirror, files would be written outside of it.
        if is_below_link(mirror, &file) {
            let error = io::Error::other("a folder above it is a symbolic link");
            return Err(error_at(&to, &error));
        }
        let copied = copy(&from, &to, Some(date)).map_err(|error| error_at(&from, &error))?;
        synced.changes.written += usize::from(copied);
        // Read after the copy, so that what cargo changes later differs from it.
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

/// The time for a file that is written now. Cargo compiles a source again if it is newer than its
/// artefact, and a clock that was set back must not prevent that.
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
            // Without git, such as in an unpacked archive, every file that is not an output counts.
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
        // If a link replaced a tracked folder, git still lists the folder's files, but what the
        // link leads to is not part of the clone.
        if is_below_link(clone, &file) {
            continue;
        }
        // Git also lists files that were deleted without a commit.
        let Ok(data) = fs::symlink_metadata(clone.join(&file)) else {
            continue;
        };
        // Opening a pipe would wait for a writer.
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

/// The cache's path in the clone, if it is in it.
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

/// `None` for a folder that is not a checkout, or without git. A checkout that git cannot read is
/// an error: without its list, every ignored file would be copied.
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
        // Separated by zeros, because a name may contain a line end.
        .args(["ls-files", "-z"])
        .args(arguments)
        .output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "git cannot list its files: {}",
            stderr.trim()
        )));
    }
    Ok(paths_in(output.stdout))
}

/// The paths that git writes with `-z`.
fn paths_in(output: Vec<u8>) -> BTreeSet<PathBuf> {
    let names = output.split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| PathBuf::from(OsString::from_vec(name.to_vec())))
        .collect()
}

/// Every file in `folder` except outputs and what is below `without`, which is relative to `root`.
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

/// Removes files that are not in `files`, and folders that become empty. Returns the number of
/// files.
fn remove_others(mirror: &Path, folder: &Path, files: &BTreeSet<&Path>) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(mirror).unwrap_or(&path);
        if entry.file_type()?.is_dir() {
            removed += remove_others(mirror, &path, files)?;
            // If the clone now has a file or link of the folder's name, what the build generated in
            // the folder is removed too.
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

/// Copies a file if its content, mode or kind differs. Returns whether it did. A regular file gets
/// the time `date`.
fn copy(from: &Path, to: &Path, date: Option<SystemTime>) -> io::Result<bool> {
    let data = fs::symlink_metadata(from)?;
    if is_same(from, &data, to)? {
        return Ok(false);
    }
    to.parent().map_or(Ok(()), fs::create_dir_all)?;
    // Written beside the old file and then renamed, so that a full disk or a signal leaves the old
    // one.
    let mut name = OsString::from(".alknet-copy-");
    name.push(std::process::id().to_string());
    let fresh = to.with_file_name(name);
    let made = make(from, &data, &fresh, date).and_then(|()| fs::rename(&fresh, to));
    if made.is_err() {
        // The file may not have been created.
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
    // The umask of this process may have cleared bits.
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
    // Cheap checks first, since most files that differ do so in length.
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

/// Opens a regular file. Since it was listed, a pipe may have replaced it.
fn open(path: &Path) -> io::Result<File> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(io::Error::other("this is no regular file"));
    }
    File::open(path)
}

/// Fills `chunk` unless the file ends before. Returns how many bytes were read.
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

fn error_at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
