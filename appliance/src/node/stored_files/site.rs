//! The files of a stored site: taken out of an archive, and listed.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::FileStoreError;
use super::room::{FOLDER_BYTES, RoomClaim, bytes_on_disk};
use crate::tar::{TarEntry, TarEntryKind, TarReader};

/// Bytes of the archive of a site, headers included: a site of this size takes a minute over a home's uplink, and a
/// node stores several.
pub(super) const SITE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one file of a site. Larger ones, such as films, belong on a server made for them.
const SITE_FILE_BYTES_MAX: u64 = 64 << 20;
/// Files and folders of one site. Each takes an inode of the data disk.
const SITE_ENTRIES_MAX: usize = 8192;
/// Longest path of a file, in bytes, and most folders above it: names of files are kept in memory when they are served.
const PATH_BYTES_MAX: usize = 512;
const PATH_SEGMENTS_MAX: usize = 16;
/// Longest name of a file, in bytes: as long as file systems have it (`NAME_MAX`).
const SEGMENT_BYTES_MAX: usize = 255;

/// Files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SiteSize {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Takes a site out of its archive into `folder`, which is empty and closed to others. The claim grows with it.
///
/// # Errors
/// The archive is damaged, has something else than files and folders, or more than a site may have or than there is
/// room for; or a path of it is not served. What was taken out is still there.
pub(super) fn unpack(
    archive: impl Read,
    folder: &Path,
    claim: &mut RoomClaim,
) -> Result<SiteSize, FileStoreError> {
    unpack_at_most(SITE_ENTRIES_MAX, archive, folder, claim)
}

fn unpack_at_most(
    entries_max: usize,
    archive: impl Read,
    folder: &Path,
    claim: &mut RoomClaim,
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
    while let Some(entry) = reader.next_entry().map_err(|error| of_archive(error, ""))? {
        if let Some(mut file) = target.file_of(&entry)? {
            let copied = reader.copy_to(&mut file);
            copied.map_err(|error| of_archive(error, &String::from_utf8_lossy(&entry.path)))?;
        }
    }
    match target.size.files {
        0 => Err(FileStoreError::Content(
            "the archive has no file".to_owned(),
        )),
        _ => Ok(target.size),
    }
}

/// An error of the archive, or of the disk.
fn of_archive(error: io::Error, path: &str) -> FileStoreError {
    match error.kind() {
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            FileStoreError::Content(format!("the archive cannot be read: {error}"))
        }
        _ => FileStoreError::io(format!("cannot write '{}'", shown(path)), error),
    }
}

/// A path of the archive as an error may repeat it.
fn shown(path: &str) -> String {
    let path = path.chars().take(PATH_BYTES_MAX);
    path.map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Where files of an archive come to lie.
struct SiteFolder<'a> {
    folder: &'a Path,
    entries_max: usize,
    made: BTreeSet<PathBuf>,
    size: SiteSize,
    claim: &'a mut RoomClaim,
    /// Bytes that the files take.
    on_disk: u64,
}

impl SiteFolder<'_> {
    /// An empty file for an entry; `None` for a folder, which is made with its first file.
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
            // Folders are made with the files in them, so that an archive cannot fill the disk with empty ones.
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
        // Small files take more than their bytes, and the archive has few of those.
        self.on_disk = self.on_disk.saturating_add(bytes_on_disk(entry.bytes));
        let folders = FOLDER_BYTES * (self.made.len() as u64 + 1);
        self.claim.grow_to(self.on_disk.saturating_add(folders))?;
        let mut options = OpenOptions::new();
        // Never over a file that is there, and through no link: this folder has none.
        let made = options.write(true).create_new(true).mode(0o600);
        match made.open(self.folder.join(&path)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                refused("the archive has it twice, or a folder of its name")
            }
            Err(error) => Err(FileStoreError::io(format!("cannot make '{text}'"), error)),
        }
    }

    /// Makes every folder above a file that is not there yet.
    fn make_folders(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<_> = path.ancestors().skip(1).collect();
        // The last one is the site itself.
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

/// The path below the site that an entry names; empty for the site itself.
fn site_path(path: &[u8]) -> Result<PathBuf, &'static str> {
    let text = std::str::from_utf8(path).map_err(|_| "its name is not UTF-8")?;
    // As `tar` writes what lies in the folder where it was started.
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
            // RFC 8615 has `/.well-known`; the node serves those that it knows itself.
            part if part.starts_with('.') => {
                return Err("a name in it begins with a dot, and such files are not served");
            }
            part if part.len() > SEGMENT_BYTES_MAX => {
                return Err("a name in it is longer than 255 bytes");
            }
            // The router of paths knows no such name either.
            part if part.contains(|c: char| c.is_control() || c == '\\') => {
                return Err("a name in it has a control character or a backslash");
            }
            part => path.push(part),
        }
    }
    Ok(path)
}

/// The files below a folder with their lengths, in the order of their paths. What is removed meanwhile is left out.
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
        // A folder's own length says nothing on some file systems.
        bytes = bytes.saturating_add(match about.is_dir() {
            true => FOLDER_BYTES,
            false => bytes_on_disk(about.len()),
        });
    })?;
    Ok(bytes)
}

/// Shows `take` each file and folder below a folder. What is removed meanwhile is left out.
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

fn unless_gone<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        looked => looked.map(Some),
    }
}

/// How much lies below a folder.
pub(super) fn measure(folder: &Path) -> io::Result<SiteSize> {
    let files = files(folder)?;
    Ok(SiteSize {
        files: files.len() as u64,
        bytes: files.iter().map(|(_, bytes)| bytes).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::room::StoreRoom;
    use super::*;
    use crate::tar::{END, file_header, packed};

    fn unpacked(archive: &[u8]) -> Result<Vec<(String, u64)>, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut claim = RoomClaim::new(&StoreRoom::new(u64::MAX));
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
        // Of a length that was never sent.
        let mut large = file_header("a", SITE_FILE_BYTES_MAX + 1);
        large.extend(END);
        let error = unpacked(&large).expect_err("too long");
        assert!(error.contains("64 MiB"), "{error}");
    }

    /// Makes the first entry one of another kind, and its header right again.
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
            let mut claim = RoomClaim::new(&StoreRoom::new(u64::MAX));
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
