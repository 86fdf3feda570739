//! The disk usage of files.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Size of the system's counting blocks, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// Most threads: on a disk that is not in memory more threads help up to here.
const THREADS_MAX: usize = 8;

/// Fewer folders than this are not worth a thread.
const FOLDERS_MIN: usize = 16;

/// The usage of one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskUsage {
    /// Allocated blocks. A file that several parts have links to counts for the first of them.
    pub(super) bytes: u64,
    /// What the disk gains if this part alone is removed: without files that have links elsewhere.
    pub(super) freed: u64,
    /// Files, folders and links, each name once.
    pub(super) entries: u64,
    /// When a file was last written, or read as far as the file system records that.
    pub(super) last_used: Option<SystemTime>,
}

impl DiskUsage {
    /// Adds the usage of another part.
    pub(super) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.freed += other.freed;
        self.entries += other.entries;
        self.last_used = self.last_used.max(other.last_used);
    }
}

/// Counts the usage of `parts`, each a list of files and folders. Symbolic links are not followed.
/// Files that vanish meanwhile are not counted.
pub(super) fn measure(parts: &[Vec<PathBuf>]) -> io::Result<Vec<DiskUsage>> {
    // Without a deadline there is always an answer.
    Ok(measure_until(parts, None)?.unwrap_or_default())
}

/// Like `measure`. `None` if it takes longer than until `deadline`.
pub(super) fn measure_until(
    parts: &[Vec<PathBuf>],
    deadline: Option<Instant>,
) -> io::Result<Option<Vec<DiskUsage>>> {
    let mut found = UsageSum::new(parts.len());
    let mut folders = Vec::new();
    for (part, paths) in parts.iter().enumerate() {
        for path in paths {
            if let Some(data) = there(fs::symlink_metadata(path))? {
                found.add(part, &data);
                if data.is_dir() {
                    folders.push((part, path.clone()));
                }
            }
        }
    }
    // This goes level by level: each thread reads some folders and returns their subfolders.
    while !folders.is_empty() {
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Ok(None);
        }
        let size = folders.len().div_ceil(threads()).max(FOLDERS_MIN);
        let levels = thread::scope(|scope| {
            let read = |some| scope.spawn(move || FolderLevel::read(some, parts.len(), deadline));
            let threads: Vec<_> = folders.chunks(size).map(read).collect();
            let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
            joined.collect::<Vec<_>>()
        });
        let mut next = Vec::new();
        for level in levels {
            let level = level.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            found.merge(level.found);
            next.extend(level.folders);
        }
        folders = next;
    }
    // The last level may have been cut short.
    if deadline.is_some_and(|deadline| Instant::now() > deadline) {
        return Ok(None);
    }
    Ok(Some(found.finish()))
}

fn threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors.min(THREADS_MAX)
}

/// The metadata of a file or folder. `None` if it has vanished.
fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(data) => Ok(Some(data)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A file has replaced the folder.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(error),
    }
}

/// The content of some folders, without that of their subfolders.
struct FolderLevel {
    found: UsageSum,
    folders: Vec<(usize, PathBuf)>,
}

impl FolderLevel {
    fn read(
        folders: &[(usize, PathBuf)],
        parts: usize,
        deadline: Option<Instant>,
    ) -> io::Result<Self> {
        let mut level = Self {
            found: UsageSum::new(parts),
            folders: Vec::new(),
        };
        for (part, folder) in folders {
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                break;
            }
            for entry in there(fs::read_dir(folder))?.into_iter().flatten() {
                let Some(entry) = there(entry)? else {
                    continue;
                };
                // For a link, these are the metadata of the link itself.
                let Some(data) = there(entry.metadata())? else {
                    continue;
                };
                level.found.add(*part, &data);
                if data.is_dir() {
                    level.folders.push((*part, entry.path()));
                }
            }
        }
        Ok(level)
    }
}

/// A file with several names: how often it was found, and where.
#[derive(Clone, Copy, Debug)]
struct HardLinkedFile {
    bytes: u64,
    links: u64,
    met: u64,
    first: usize,
    last: usize,
}

/// The sum so far.
struct UsageSum {
    parts: Vec<DiskUsage>,
    /// By device and inode.
    linked: HashMap<(u64, u64), HardLinkedFile>,
}

impl UsageSum {
    fn new(parts: usize) -> Self {
        Self {
            parts: vec![DiskUsage::default(); parts],
            linked: HashMap::new(),
        }
    }

    fn add(&mut self, part: usize, data: &Metadata) {
        // `st_blocks` counts units of 512 bytes, whatever the file system's own are (inode(7)).
        let bytes = data.blocks() * BLOCK_BYTES;
        let usage = &mut self.parts[part];
        usage.entries += 1;
        usage.last_used = usage.last_used.max(last_used(data));
        // The links of a folder are its own entries, and not other names.
        if data.is_dir() || data.nlink() == 1 {
            usage.bytes += bytes;
            usage.freed += bytes;
            return;
        }
        let linked = HardLinkedFile {
            bytes,
            links: data.nlink(),
            met: 1,
            first: part,
            last: part,
        };
        self.link((data.dev(), data.ino()), linked);
    }

    fn link(&mut self, inode: (u64, u64), other: HardLinkedFile) {
        self.linked
            .entry(inode)
            .and_modify(|linked| {
                linked.met += other.met;
                linked.first = linked.first.min(other.first);
                linked.last = linked.last.max(other.last);
            })
            .or_insert(other);
    }

    fn merge(&mut self, other: Self) {
        for (usage, more) in self.parts.iter_mut().zip(&other.parts) {
            usage.add(more);
        }
        for (inode, linked) in other.linked {
            self.link(inode, linked);
        }
    }

    fn finish(mut self) -> Vec<DiskUsage> {
        for linked in self.linked.values() {
            let usage = &mut self.parts[linked.first];
            usage.bytes += linked.bytes;
            // Its bytes are freed only with its last name.
            if linked.first == linked.last && linked.met >= linked.links {
                usage.freed += linked.bytes;
            }
        }
        self.parts
    }
}

/// When a file was last written or read. The read time of a folder says nothing, because counting
/// reads it.
fn last_used(data: &Metadata) -> Option<SystemTime> {
    // A folder's time of access is that of the last listing, such as this one.
    let read = if data.is_file() { data.atime() } else { 0 };
    let seconds = u64::try_from(data.mtime().max(read)).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn write(path: &Path, bytes: usize) {
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("writable");
        fs::write(path, vec![1; bytes]).expect("writable");
    }

    fn one(path: &Path) -> DiskUsage {
        measure(&[vec![path.to_owned()]]).expect("readable")[0]
    }

    #[test]
    fn blocks_count_and_not_lengths() {
        let folder = folder();
        write(&folder.path().join("a/b/full"), 1 << 20);
        let full = one(&folder.path().join("a"));
        assert!(
            (1 << 20..(1 << 20) + 65_536).contains(&full.bytes),
            "{full:?}"
        );
        assert_eq!((full.entries, full.freed), (3, full.bytes));
        let sparse = folder.path().join("sparse");
        let file = fs::File::create(&sparse).expect("writable");
        file.set_len(1 << 30).expect("sparse");
        assert!(one(&sparse).bytes < 65_536);
    }

    #[test]
    fn a_file_with_two_names_counts_once_for_the_first_part() {
        let folder = folder();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        write(&first.join("file"), 1 << 20);
        fs::create_dir(&second).expect("writable");
        fs::hard_link(first.join("file"), second.join("link")).expect("links");
        let parts = [vec![first.clone()], vec![second.clone()]];
        let [one, two] = measure(&parts).expect("readable")[..] else {
            panic!("two parts");
        };
        assert!(one.bytes >= 1 << 20 && two.bytes < 65_536);
        // Removing one of them frees nothing of the file, and removing both does.
        assert!(one.freed < 65_536 && two.freed < 65_536);
        let both = measure(&[vec![first, second]]).expect("readable")[0];
        assert!(both.freed >= 1 << 20 && both.freed < (1 << 20) + 65_536);
        assert_eq!(both.bytes, both.freed);
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let folder = folder();
        let [inside, outside] = ["inside", "outside"].map(|name| folder.path().join(name));
        write(&outside.join("large"), 1 << 20);
        fs::create_dir(&inside).expect("writable");
        symlink(&outside, inside.join("folder")).expect("links");
        symlink(outside.join("large"), inside.join("file")).expect("links");
        symlink("nowhere", inside.join("broken")).expect("links");
        symlink("..", inside.join("circle")).expect("links");
        let usage = one(&inside);
        assert!(usage.bytes < 65_536, "{usage:?}");
        assert_eq!(usage.entries, 5);
        // A part that is a link itself is no folder, either.
        assert_eq!(one(&inside.join("folder")).entries, 1);
    }

    #[test]
    fn what_vanishes_is_no_error() {
        let folder = folder();
        assert_eq!(one(&folder.path().join("gone")), DiskUsage::default());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for n in 0..50 {
                        write(&folder.path().join(format!("{n}/a/b/file")), 1);
                    }
                    for n in 0..50 {
                        let _ = fs::remove_dir_all(folder.path().join(n.to_string()));
                    }
                }
            });
            let counted =
                (0..100).try_for_each(|_| measure(&[vec![folder.path().to_owned()]]).map(drop));
            stop.store(true, Ordering::Relaxed);
            counted.expect("no error");
        });
    }

    #[test]
    fn the_last_use_is_the_newest_files() {
        let folder = folder();
        let times = fs::FileTimes::new();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (name, modified, accessed) in [("a", 10, 20), ("b", 15, 1)] {
            let file = fs::File::create(folder.path().join(name)).expect("writable");
            let times = times.set_modified(at(modified)).set_accessed(at(accessed));
            file.set_times(times).expect("ours to date");
        }
        fs::File::open(folder.path())
            .and_then(|file| file.set_modified(at(5)))
            .expect("ours to date");
        assert_eq!(one(folder.path()).last_used, Some(at(20)));
    }

    #[test]
    fn no_count_goes_on_beyond_its_deadline() {
        let folder = folder();
        write(&folder.path().join("a/file"), 1);
        let parts = [vec![folder.path().to_owned()]];
        let past = Instant::now();
        let counted = measure_until(&parts, Some(past)).expect("readable");
        assert_eq!(counted, None);
        let later = past + Duration::from_secs(3600);
        assert!(
            measure_until(&parts, Some(later))
                .expect("readable")
                .is_some()
        );
    }
}
