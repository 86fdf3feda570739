//! Unpacks a site from its archive, and lists its files.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::FileStoreError;
use super::quota::{FOLDER_BYTES, StoreReservation, bytes_on_disk};
use crate::tar::{TarEntry, TarEntryKind, TarReader};

/// Maximum bytes of the archive of a site, headers included: a site of this size takes a minute
/// over a home's uplink, and a node stores several.
pub(super) const SITE_BYTES_MAX: u64 = 256 << 20;
/// Maximum bytes of one file of a site. Larger files, such as films, belong on a server made for
/// them.
const SITE_FILE_BYTES_MAX: u64 = 64 << 20;
/// Maximum number of files and folders of one site. Each takes an inode of the data disk.
const SITE_ENTRIES_MAX: usize = 8192;
/// Maximum length of a file's path in bytes, and maximum number of its segments: the node keeps
/// names of served files in memory.
const PATH_BYTES_MAX: usize = 512;
const PATH_SEGMENTS_MAX: usize = 16;
/// Maximum length of a name in bytes: that of file systems (`NAME_MAX`).
const SEGMENT_BYTES_MAX: usize = 255;

/// Number of files, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SiteSize {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Unpacks a site from its archive into `folder`, which is empty and closed to other users. The
/// claim grows with it.
///
/// # Errors
/// The archive is damaged, has entries other than files and folders, has more than a site may have
/// or than there is room for, or has a path that the node would not serve. Files that were unpacked
/// stay in the folder.
pub(super) fn unpack(
    archive: impl Read,
    folder: &Path,
    claim: &mut StoreReservation,
) -> Result<SiteSize, FileStoreError> {
    unpack_at_most(SITE_ENTRIES_MAX, archive, folder, claim)
}

fn unpack_at_most(
    entries_max: usize,
    archive: impl Read,
    folder: &Path,
    claim: &mut StoreReservation,
) -> Result<SiteSize, FileStoreError> {
    let mut reader = TarReader::new(archive);
    let mut target = SiteFolder {
        folder,
        entries_max,
        made: BTreeSet::new(),
        size: SiteSize::default(),
        claim,
        on_disk: 0,
    };
    while let Some(entry) = reader
        .next_entry()
        .map_err(|error| from_archive_error(error, ""))?
    {
        if let Some(mut file) = target.file_of(&entry)? {
            let copied = reader.copy_to(&mut file);
            copied.map_err(|error| {
                from_archive_error(error, &String::from_utf8_lossy(&entry.path))
            })?;
        }
    }
    match target.size.files {
        0 => Err(FileStoreError::Content(
            "the archive has no file".to_owned(),
        )),
        _ => Ok(target.size),
    }
}

/// The error of the archive, or of the disk.
fn from_archive_error(error: io::Error, path: &str) -> FileStoreError {
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            FileStoreError::Content(format!("the archive cannot be read: {error}"))
        }
        _ => FileStoreError::io(format!("cannot write '{}'", shown(path)), error),
    }
}

/// A path of the archive, made safe for an error message.
fn shown(path: &str) -> String {
    let path = path.chars().take(PATH_BYTES_MAX);
    path.map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Writes the files of an archive below a folder.
struct SiteFolder<'a> {
    folder: &'a Path,
    entries_max: usize,
    made: BTreeSet<PathBuf>,
    size: SiteSize,
    claim: &'a mut StoreReservation,
    /// Bytes of the disk that the files take.
    on_disk: u64,
}

impl SiteFolder<'_> {
    /// Opens an empty file for an entry. Returns `None` for a folder, which is made with its first
    /// file.
    fn file_of(&mut self, entry: &TarEntry) -> Result<Option<File>, FileStoreError> {
        let text = String::from_utf8_lossy(&entry.path);
        let refused = |why: &str| {
            let path = shown(&text);
            Err(FileStoreError::Content(format!(
                "'{path}' cannot be stored: {why}"
            )))
        };
        let path = match site_path(&entry.path) {
            Ok(path) => path,
            Err(why) => return refused(why),
        };
        match entry.kind {
            // A folder is made with the first file in it, so that an archive cannot fill the disk
            // with empty folders.
            TarEntryKind::Folder => return Ok(None),
            TarEntryKind::Other => {
                return refused("a site has files and folders, and no links or devices");
            }
            TarEntryKind::File if path.as_os_str().is_empty() => return refused("it has no name"),
            TarEntryKind::File => {}
        }
        if entry.bytes > SITE_FILE_BYTES_MAX {
            return refused("it is longer than 64 MiB");
        }
        if let Err(error) = self.make_folders(&path) {
            return match error.kind() {
                ErrorKind::AlreadyExists => refused("a file and a folder have one name"),
                _ => Err(FileStoreError::io(
                    format!("cannot make the folder of '{text}'"),
                    error,
                )),
            };
        }
        self.size.files += 1;
        self.size.bytes += entry.bytes;
        if self.made.len() as u64 + self.size.files > self.entries_max as u64 {
            let text = format!("a site has at most {} files and folders", self.entries_max);
            return Err(FileStoreError::Content(text));
        }
        // Small files take more of the disk than of the archive, so they are claimed by what they
        // take.
        self.on_disk = self.on_disk.saturating_add(bytes_on_disk(entry.bytes));
        let folders = FOLDER_BYTES * (self.made.len() as u64 + 1);
        self.claim.grow_to(self.on_disk.saturating_add(folders))?;
        let mut options = OpenOptions::new();
        // `create_new` writes over no file and follows no link (open(2), `O_EXCL`).
        let made = options.write(true).create_new(true).mode(0o600);
        match made.open(self.folder.join(&path)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                refused("the archive has it twice, or a folder of its name")
            }
            Err(error) => Err(FileStoreError::io(format!("cannot make '{text}'"), error)),
        }
    }

    /// Makes the missing folders above a file.
    fn make_folders(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<_> = path.ancestors().skip(1).collect();
        // The last ancestor is the site itself.
        above.pop();
        for folder in above.into_iter().rev() {
            if !self.made.contains(folder) {
                let made = DirBuilder::new()
                    .mode(0o700)
                    .create(self.folder.join(folder));
                made?;
                self.made.insert(folder.to_owned());
            }
        }
        Ok(())
    }
}

/// The path below the site that an entry names. Empty for the site itself.
fn site_path(path: &[u8]) -> Result<PathBuf, &'static str> {
    let text = std::str::from_utf8(path).map_err(|_| "its name is not UTF-8")?;
    // `tar` writes the `./` for entries of the folder where it was started.
    let text = text.strip_prefix("./").unwrap_or(text);
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.is_empty() || text == "." {
        return Ok(PathBuf::new());
    }
    if text.len() > PATH_BYTES_MAX {
        return Err("its path is longer than 512 bytes");
    }
    if text.starts_with('/') {
        return Err("its path begins at the root; write it from the folder of the site");
    }
    let mut path = PathBuf::new();
    for (n, part) in text.split('/').enumerate() {
        if n >= PATH_SEGMENTS_MAX {
            return Err("it lies below more than 15 folders");
        }
        match part {
            "" => return Err("its path has two slashes together"),
            "." | ".." => return Err("its path leads out of the site, or nowhere"),
            // The node serves the paths below `/.well-known` (RFC 8615) that it knows itself, and
            // no other name with a dot.
            part if part.starts_with('.') => {
                return Err("a name in it begins with a dot, and such files are not served");
            }
            part if part.len() > SEGMENT_BYTES_MAX => {
                return Err("a name in it is longer than 255 bytes");
            }
            // The router of paths refuses such names as well.
            part if part.contains(|c: char| c.is_control() || c == '\\') => {
                return Err("a name in it has a control character or a backslash");
            }
            part => path.push(part),
        }
    }
    Ok(path)
}

/// The files below a folder with their lengths, sorted by path. It leaves out files that are
/// removed meanwhile.
pub(super) fn files(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    each_below(folder, |path, about| {
        if !about.is_dir() {
            found.push((path.to_string_lossy().into_owned(), about.len()));
        }
    })?;
    found.sort_unstable();
    Ok(found)
}

/// Bytes of the disk that everything below a folder takes.
pub(super) fn measure_on_disk(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0_u64;
    each_below(folder, |_, about| {
        // On some file systems a folder's own length says nothing.
        bytes = bytes.saturating_add(match about.is_dir() {
            true => FOLDER_BYTES,
            false => bytes_on_disk(about.len()),
        });
    })?;
    Ok(bytes)
}

/// Calls `take` with each file and folder below a folder. It leaves out entries that are removed
/// meanwhile.
fn each_below(folder: &Path, mut take: impl FnMut(&Path, &Metadata)) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let Some(entries) = unless_gone(fs::read_dir(folder.join(&below)))? else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            let Some(about) = unless_gone(entry.metadata())? else {
                continue;
            };
            let path = below.join(entry.file_name());
            take(&path, &about);
            if about.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Number of files below a folder, and their bytes.
pub(super) fn measure(folder: &Path) -> io::Result<SiteSize> {
    let files = files(folder)?;
    Ok(SiteSize {
        files: files.len() as u64,
        bytes: files.iter().map(|(_, bytes)| bytes).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::quota::StoreQuota;
    use super::*;
    use crate::tar::{END, file_header, packed};

    fn unpacked(archive: &[u8]) -> Result<Vec<(String, u64)>, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut claim = StoreReservation::new(&StoreQuota::new(u64::MAX));
        let size = unpack(archive, dir.path(), &mut claim).map_err(|error| error.to_string())?;
        let found = files(dir.path()).expect("the folder is ours");
        assert_eq!(measure(dir.path()).expect("the folder is ours"), size);
        Ok(found)
    }

    #[test]
    fn files_come_to_lie_below_the_folder() {
        let found = unpacked(&packed(&[
            ("./index.html", b"one"),
            ("docs/a/b.txt", b""),
            ("docs/c \u{e4}.txt", b"four"),
        ]));
        let expected = [
            ("docs/a/b.txt", 0),
            ("docs/c \u{e4}.txt", 4),
            ("index.html", 3),
        ];
        let expected = expected.map(|(path, bytes)| (path.to_owned(), bytes));
        assert_eq!(found.as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn a_path_that_leads_out_or_is_not_served_is_refused() {
        let long = "a".repeat(256);
        let deep = "a/".repeat(16) + "b";
        let wide = ["b"; 200].join("c/");
        for (path, words) in [
            ("../x", "leads out"),
            ("a/../../x", "leads out"),
            ("a/./x", "leads out"),
            ("/etc/passwd", "begins at the root"),
            ("a//b", "two slashes"),
            (".htpasswd", "begins with a dot"),
            (".well-known/x", "begins with a dot"),
            ("a/.git/config", "begins with a dot"),
            ("a\nb", "control character"),
            ("a\u{85}b", "control character"),
            ("a\\b", "backslash"),
            (long.as_str(), "longer than 255"),
            (deep.as_str(), "more than 15"),
            (wide.as_str(), "longer than 512"),
        ] {
            let error = unpacked(&packed(&[(path, b"x")])).expect_err(path);
            assert!(error.contains(words), "{path:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn what_is_not_one_file_is_refused() {
        for (names, words) in [
            (&[][..], "no file"),
            (&["a", "a"], "twice"),
            (&["a", "a/b"], "a file and a folder"),
            (&["a/b", "a"], "twice"),
        ] {
            let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, &b"x"[..])).collect();
            let error = unpacked(&packed(&files)).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        let mut link = packed(&[("a", b"")]);
        relabel(&mut link, b'2');
        let error = unpacked(&link).expect_err("a link");
        assert!(error.contains("no links"), "{error}");
        // The header names a length that is not in the archive.
        let mut large = file_header("a", SITE_FILE_BYTES_MAX + 1);
        large.extend(END);
        let error = unpacked(&large).expect_err("too long");
        assert!(error.contains("64 MiB"), "{error}");
    }

    /// Changes the kind of the first entry, and corrects the checksum of its header.
    fn relabel(archive: &mut [u8], kind: u8) {
        let mut sum = u32::from(kind) - u32::from(archive[156]);
        archive[156] = kind;
        let text = String::from_utf8_lossy(&archive[148..154]).into_owned();
        sum += u32::from_str_radix(&text, 8).expect("octal digits");
        archive[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    }

    #[test]
    fn a_site_has_so_many_files_and_folders_and_no_more() {
        let archive = packed(&[("a", b""), ("b/c", b""), ("b/d", b"")]);
        for (most, fits) in [(3, false), (4, true)] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut claim = StoreReservation::new(&StoreQuota::new(u64::MAX));
            let size = unpack_at_most(most, &archive[..], dir.path(), &mut claim);
            match (size, fits) {
                (Ok(size), true) => assert_eq!(size.files, 3),
                (Err(error), false) => {
                    assert!(error.to_string().contains("at most 3"), "{error}");
                }
                (size, _) => panic!("{most}: {size:?}"),
            }
        }
    }
}
