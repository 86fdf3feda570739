//! The folder of this computer into which files of a node are written. The names come from the node: none of them leads
//! out of the folder, neither by itself nor through a link that lies in it.

use std::fs::{File, FileTimes};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::cli::{CommandError, CommandExit, output};

/// Permission bits of a folder that is made; the umask takes bits away.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o777);
/// Permission bits that a node can give to a file; the umask takes bits away.
const FILE_BITS: u32 = 0o777;
/// How a folder below another one is opened: a link in its place is refused.
const FOLDER_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// The names of an entry below the directory that is fetched, as a node gave them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamesBelow(Vec<String>);

impl NamesBelow {
    /// Takes apart what a node gave as the path of an entry below a directory.
    ///
    /// # Errors
    /// The path is not below the directory, or has a name that would lead out of a folder.
    pub(super) fn read(directory: &str, path: &str) -> Result<Self, CommandError> {
        let below = match directory {
            "/" => path.strip_prefix('/'),
            directory => path
                .strip_prefix(directory)
                .and_then(|rest| rest.strip_prefix('/')),
        };
        let names: Vec<_> = below.into_iter().flat_map(|it| it.split('/')).collect();
        if names.is_empty() || !names.iter().all(|name| is_safe_name(name)) {
            return Err(unsafe_name(path));
        }
        Ok(Self(names.into_iter().map(str::to_owned).collect()))
    }

    /// A single name.
    ///
    /// # Errors
    /// The name would lead out of a folder.
    pub(super) fn single(name: &str) -> Result<Self, CommandError> {
        match is_safe_name(name) {
            true => Ok(Self(vec![name.to_owned()])),
            false => Err(unsafe_name(name)),
        }
    }

    /// The folders, and the name in the last of them.
    fn split(&self) -> (&[String], &str) {
        match self.0.split_last() {
            Some((name, folders)) => (folders, name),
            None => (&[], ""),
        }
    }

    /// The names with slashes between them.
    pub(super) fn shown(&self) -> String {
        self.0.join("/")
    }
}

/// Whether a name is that of an entry of its folder, and nothing else.
fn is_safe_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn unsafe_name(path: &str) -> CommandError {
    let text = format!(
        "the node names the entry '{}', which would be written outside of the folder; it is not written",
        output::one_line(path)
    );
    CommandError::new(CommandExit::Failed, "PROTOCOL", text)
}

/// A folder of this computer.
#[derive(Debug)]
pub(super) struct TargetFolder {
    folder: OwnedFd,
    path: PathBuf,
}

impl TargetFolder {
    /// Opens a folder that the user named. Links in the path of the user are followed.
    ///
    /// # Errors
    /// It is missing, or is no folder that this user can open.
    pub(super) fn open(path: &Path) -> Result<Self, CommandError> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(path, flags, Mode::empty());
        let folder = folder.map_err(|error| {
            CommandError::usage(format!(
                "cannot write into {}: {}",
                path.display(),
                io::Error::from(error)
            ))
        })?;
        Ok(Self {
            folder,
            path: path.to_owned(),
        })
    }

    /// A folder below this one, which is made if it is missing.
    ///
    /// # Errors
    /// As for [`create_folder`](Self::create_folder).
    pub(super) fn below(&self, names: &NamesBelow) -> Result<Self, CommandError> {
        let folder = self.enter(&names.0);
        Ok(Self {
            folder: folder.map_err(|error| self.failed(names, error))?,
            path: self.path_of(names),
        })
    }

    /// The path of an entry, for messages.
    pub(super) fn path_of(&self, names: &NamesBelow) -> PathBuf {
        self.path.join(names.shown())
    }

    /// Makes a folder below this one, with those above it that are missing.
    ///
    /// # Errors
    /// A link or a file is in its way, or the disk fails.
    pub(super) fn create_folder(&self, names: &NamesBelow) -> Result<(), CommandError> {
        let made = self.enter(&names.0);
        made.map(drop).map_err(|error| self.failed(names, error))
    }

    /// Whether something has this name already.
    ///
    /// # Errors
    /// A link or a file is in the way of a folder.
    pub(super) fn has(&self, names: &NamesBelow) -> Result<bool, CommandError> {
        let (folders, name) = names.split();
        let folder = self
            .enter(folders)
            .map_err(|error| self.failed(names, error))?;
        // An open without a right to the file: links and files of other users are there as well.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&folder, name, flags, Mode::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(self.failed(names, error)),
        }
    }

    /// Begins a file below this folder. It has a name of its own until it is whole.
    ///
    /// # Errors
    /// A link or a file is in the way of a folder, or the disk fails.
    pub(super) fn begin(
        &self,
        names: &NamesBelow,
        attributes: TargetAttributes,
    ) -> Result<TargetFile, CommandError> {
        let begun = self.try_begin(names, attributes);
        begun.map_err(|error| self.failed(names, error))
    }

    fn try_begin(
        &self,
        names: &NamesBelow,
        attributes: TargetAttributes,
    ) -> Result<TargetFile, Errno> {
        let (folders, name) = names.split();
        let folder = self.enter(folders)?;
        // Two commands may write into one folder.
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| Errno::EIO)?;
        let temporary = format!(".alknet-{:016x}.part", u64::from_le_bytes(random));
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(attributes.mode & FILE_BITS);
        let file = openat(&folder, temporary.as_str(), flags, mode)?;
        Ok(TargetFile {
            folder,
            file: File::from(file),
            temporary: Some(temporary),
            name: name.to_owned(),
            mtime_ms: attributes.mtime_ms,
            path: self.path_of(names),
        })
    }

    /// Opens folders one below the other, and makes those that are missing.
    fn enter(&self, folders: &[String]) -> Result<OwnedFd, Errno> {
        let mut at = openat(&self.folder, ".", FOLDER_FLAGS, Mode::empty())?;
        for name in folders {
            match mkdirat(&at, name.as_str(), FOLDER_MODE) {
                // It may be a link or a file, which the open below refuses.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
            at = openat(&at, name.as_str(), FOLDER_FLAGS, Mode::empty())?;
        }
        Ok(at)
    }

    fn failed(&self, names: &NamesBelow, error: Errno) -> CommandError {
        let path = self.path_of(names);
        let path = path.display().to_string();
        let path = output::one_line(&path);
        match error {
            // The kernel answers ELOOP for a link where none is followed, and ENOTDIR where a folder has to be.
            Errno::ELOOP | Errno::ENOTDIR => CommandError::usage(format!(
                "{path}: a link or a file is in the place of a folder; move it away, or write into another folder"
            )),
            error => {
                CommandError::local(format!("cannot write {path}: {}", io::Error::from(error)))
            }
        }
    }
}

/// Attributes of a file, as its node gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TargetAttributes {
    pub(super) mode: u32,
    pub(super) mtime_ms: i64,
}

/// A file that is being written. Dropping it removes what was written of it.
#[derive(Debug)]
pub(super) struct TargetFile {
    folder: OwnedFd,
    file: File,
    /// Its present name; `None` after the end.
    temporary: Option<String>,
    /// Its name at the end.
    name: String,
    mtime_ms: i64,
    /// Its path at the end, for errors.
    path: PathBuf,
}

impl TargetFile {
    /// Appends a block.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), CommandError> {
        let written = self.file.write_all(block);
        written.map_err(|error| self.failed(&error))
    }

    /// Gives the file its name, when its bytes are on the disk.
    ///
    /// # Errors
    /// Without `may_replace` something has the name already; or the disk fails.
    pub(super) fn finish(mut self, may_replace: bool) -> Result<PathBuf, CommandError> {
        let Some(temporary) = self.temporary.take() else {
            return Ok(self.path.clone());
        };
        if let Err(error) = self.rename(&temporary, may_replace) {
            // The drop removes it.
            self.temporary = Some(temporary);
            return Err(match error.kind() {
                io::ErrorKind::AlreadyExists => exists(&self.path),
                _ => self.failed(&error),
            });
        }
        Ok(self.path.clone())
    }

    fn rename(&self, temporary: &str, may_replace: bool) -> io::Result<()> {
        let since = Duration::from_millis(self.mtime_ms.unsigned_abs());
        let modified = match self.mtime_ms < 0 {
            true => UNIX_EPOCH.checked_sub(since),
            false => UNIX_EPOCH.checked_add(since),
        };
        let modified = modified.unwrap_or_else(SystemTime::now);
        self.file
            .set_times(FileTimes::new().set_modified(modified))?;
        // Before the rename: after a power cut the name has either no file or a whole one.
        self.file.sync_all()?;
        let (folder, name) = (&self.folder, self.name.as_str());
        let only_new = RenameFlags::RENAME_NOREPLACE;
        match may_replace {
            true => renameat(folder, temporary, folder, name)?,
            false => match renameat2(folder, temporary, folder, name, only_new) {
                // Some network file systems know no flags: what is there was looked up before the download.
                Err(Errno::EINVAL) => renameat(folder, temporary, folder, name)?,
                renamed => renamed?,
            },
        }
        // A new name is durable when its folder is.
        File::from(self.folder.try_clone()?).sync_all()
    }

    fn failed(&self, error: &io::Error) -> CommandError {
        let path = self.path.display().to_string();
        CommandError::local(format!("cannot write {}: {error}", output::one_line(&path)))
    }
}

impl Drop for TargetFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // An error leaves a file whose name says what it is.
            unlinkat(&self.folder, temporary.as_str(), UnlinkatFlags::NoRemoveDir).ok();
        }
    }
}

/// The error of a name that is taken.
pub(super) fn exists(path: &Path) -> CommandError {
    let path = path.display().to_string();
    let text = format!(
        "{} is there already: --force writes over it",
        output::one_line(&path)
    );
    CommandError::usage(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const ATTRIBUTES: TargetAttributes = TargetAttributes {
        mode: 0o640,
        mtime_ms: 1_500,
    };

    fn names(path: &str) -> NamesBelow {
        NamesBelow::read("/", path).expect(path)
    }

    /// What a lying node could give as the path of an entry.
    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        for (directory, path) in [
            ("/", "/../x"),
            ("/", "/a/../../x"),
            ("/", "/a/."),
            ("/", "/a//b"),
            ("/", "/"),
            ("/", ""),
            ("/", "a"),
            ("/", "//etc/passwd"),
            ("/", "/a\0b"),
            ("/2026", "/2026"),
            ("/2026", "/2026/"),
            ("/2026", "/20266/a"),
            ("/2026", "/2026/../x"),
            ("/2026", "/etc/passwd"),
        ] {
            let refused = NamesBelow::read(directory, path).expect_err(path);
            assert_eq!(refused.code, "PROTOCOL", "{path}");
        }
        for name in ["", ".", "..", "a/b", "a\0b"] {
            assert!(NamesBelow::single(name).is_err(), "{name:?}");
        }
        let good = NamesBelow::read("/2026", "/2026/a/..b").expect("it stays below");
        assert_eq!(good.split(), (&["a".to_owned()][..], "..b"));
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = TargetFolder::open(folder.path()).expect("it is there");
        let mut file = target.begin(&names("/a/b"), ATTRIBUTES).expect("it is new");
        file.append(b"hello ").expect("it grows");
        let at = folder.path().join("a/b");
        assert!(!at.exists());
        file.append(b"world").expect("it grows");
        let path = file.finish(false).expect("the name is free");
        assert_eq!(
            (path, fs::read(&at).ok()),
            (at.clone(), Some(b"hello world".to_vec()))
        );
        let about = fs::metadata(&at).expect("it is there");
        assert_eq!(about.permissions().mode() & 0o777 & !0o640, 0);
        let modified = about.modified().expect("it has a time");
        assert_eq!(modified, UNIX_EPOCH + Duration::from_millis(1_500));
        // An unfinished one leaves nothing.
        drop(target.begin(&names("/a/c"), ATTRIBUTES).expect("it is new"));
        let left = fs::read_dir(folder.path().join("a")).expect("a folder");
        assert_eq!(left.count(), 1);
    }

    #[test]
    fn a_file_is_replaced_only_if_the_user_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), "before").expect("the folder is ours");
        let target = TargetFolder::open(folder.path()).expect("it is there");
        let name = names("/a");
        assert_eq!(target.has(&name), Ok(true));
        assert_eq!(target.has(&names("/b")), Ok(false));
        let refused = target
            .begin(&name, ATTRIBUTES)
            .and_then(|it| it.finish(false));
        assert_eq!(refused.expect_err("it is there").exit, CommandExit::Usage);
        assert_eq!(
            fs::read(folder.path().join("a")).ok(),
            Some(b"before".to_vec())
        );
        let replaced = target
            .begin(&name, ATTRIBUTES)
            .and_then(|it| it.finish(true));
        replaced.expect("the user said so");
        assert_eq!(fs::read(folder.path().join("a")).ok(), Some(Vec::new()));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    /// A link that lies in the folder leads elsewhere: nothing is written through it, and a file in its place replaces
    /// the link itself.
    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let [inside, outside] = ["in", "out"].map(|name| folder.path().join(name));
        for made in [&inside, &outside] {
            fs::create_dir(made).expect("the folder is ours");
        }
        fs::write(outside.join("file"), "theirs").expect("the folder is ours");
        symlink(&outside, inside.join("folder")).expect("the folder is ours");
        symlink(outside.join("file"), inside.join("file")).expect("the folder is ours");
        let target = TargetFolder::open(&inside).expect("it is there");
        for refused in [
            target.begin(&names("/folder/new"), ATTRIBUTES).map(drop),
            target.create_folder(&names("/folder/new")),
            target.create_folder(&names("/folder")),
        ] {
            let refused = refused.expect_err("a link is in the way");
            assert!(refused.message.contains("a link or a file"), "{refused}");
        }
        assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 1);
        assert_eq!(target.has(&names("/file")), Ok(true));
        let file = target.begin(&names("/file"), ATTRIBUTES);
        file.and_then(|it| it.finish(true))
            .expect("it replaces the link");
        assert_eq!(
            fs::read(outside.join("file")).ok(),
            Some(b"theirs".to_vec())
        );
        let about = fs::symlink_metadata(inside.join("file")).expect("it is there");
        assert!(about.is_file());
    }
}
