//! A folder as the archive in which a site travels.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::vec;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::cli::CommandError;
use crate::tar::{END, file_header, padding};

/// The files of a folder, one after the other.
#[derive(Debug)]
pub(super) struct SiteArchive {
    folder: File,
    files: vec::IntoIter<(String, u64)>,
    /// What is read next: a header, or what stands behind a file.
    ready: Cursor<Vec<u8>>,
    /// The file that is read, its length, and how much of it is left.
    open: Option<(File, u64, u64)>,
    is_over: bool,
    /// Bytes of the whole archive.
    pub(super) bytes: u64,
    /// Names that begin with a dot: no node serves them.
    pub(super) left_out: usize,
}

impl SiteArchive {
    /// Looks at every file of a folder. None is read yet.
    ///
    /// # Errors
    /// The folder has something else than files and folders, or a name that is not UTF-8, or cannot be read.
    pub(super) fn open(folder: &Path) -> Result<Self, CommandError> {
        let at = folder.display();
        let opened = File::open(folder)
            .map_err(|error| CommandError::usage(format!("cannot read {at}: {error}")))?;
        let (files, left_out) = found(folder)?;
        if files.is_empty() {
            let text = format!("{} has no file", folder.display());
            return Err(CommandError::usage(text));
        }
        let bytes = files.iter().map(|(path, bytes)| {
            let header = file_header(path, *bytes).len() as u64;
            header + bytes + padding(*bytes).len() as u64
        });
        Ok(Self {
            folder: opened,
            bytes: bytes.sum::<u64>() + END.len() as u64,
            files: files.into_iter(),
            ready: Cursor::default(),
            open: None,
            is_over: false,
            left_out,
        })
    }

    /// Goes on to the next part of the archive; `false` at its end.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some((_, bytes, left)) = self.open.take() {
            // The header stated the size already, and what follows would be read as the next header.
            if left > 0 {
                let text = "a file became shorter while it was read: try again";
                return Err(io::Error::other(text));
            }
            self.ready = Cursor::new(padding(bytes));
            return Ok(true);
        }
        match self.files.next() {
            Some((path, bytes)) => {
                let file = open_below(&self.folder, &path)
                    .map_err(|error| io::Error::other(format!("{path}: {error}")))?;
                self.ready = Cursor::new(file_header(&path, bytes));
                self.open = Some((file, bytes, bytes));
            }
            None if self.is_over => return Ok(false),
            None => {
                self.is_over = true;
                self.ready = Cursor::new(END.to_vec());
            }
        }
        Ok(true)
    }
}

impl Read for SiteArchive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = self.ready.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            if let Some((file, _, left)) = &mut self.open {
                // A file that grew is cut where its header says.
                let read = file.take(*left).read(buffer)?;
                if read > 0 {
                    *left -= read as u64;
                    return Ok(read);
                }
            }
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}

/// Opens a file by its path below a folder, in which no name may be a link.
///
/// The folder can be another user's, and have changed since its files were looked at: a link in it could lead to a file
/// that only the user of this process may read, and would put that on a public site. A named pipe would be waited for.
fn open_below(folder: &File, path: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = OwnedFd::from(folder.try_clone()?);
    for name in folders.split('/').filter(|name| !name.is_empty()) {
        at = openat(&at, name, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    }
    // Without O_NONBLOCK the open of a named pipe ends only once another process writes to it.
    let file = File::from(openat(&at, name, flags | OFlag::O_NONBLOCK, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is a file no more: try again"));
    }
    Ok(file)
}

/// The files below a folder in the order of their paths, and how many names begin with a dot.
fn found(folder: &Path) -> Result<(Vec<(String, u64)>, usize), CommandError> {
    let (mut files, mut left_out) = (Vec::new(), 0);
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        let at = folder.join(&below);
        let failed = |error: io::Error| {
            CommandError::usage(format!("cannot read {}: {error}", at.display()))
        };
        for entry in fs::read_dir(&at).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let shown = entry.path();
            let refused = |why: &str| CommandError::usage(format!("{}: {why}", shown.display()));
            let name = entry.file_name().into_string();
            let name = name.map_err(|_| refused("its name is not UTF-8"))?;
            if name.starts_with('.') {
                left_out += 1;
                continue;
            }
            let path = match below.as_str() {
                "" => name,
                below => format!("{below}/{name}"),
            };
            // Of a link this is the link itself.
            let about = entry.metadata().map_err(failed)?;
            if about.is_dir() {
                folders.push(path);
            } else if about.is_file() {
                files.push((path, about.len()));
            } else {
                return Err(refused(
                    "a site has files and folders only: put a copy in the place of a link",
                ));
            }
        }
    }
    // The same folder makes the same archive, whatever order the file system lists it in.
    files.sort_unstable();
    Ok((files, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::packed;

    fn write(folder: &Path, name: &str, content: &[u8]) {
        fs::write(folder.join(name), content).expect("a writable directory");
    }

    #[test]
    fn a_folder_is_packed_in_the_order_of_its_paths() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("docs/a")).expect("a writable directory");
        fs::create_dir(dir.path().join(".git")).expect("a writable directory");
        let large = vec![7; 100_000];
        write(dir.path(), "index.html", b"one");
        write(dir.path(), "docs/a/b.txt", &large);
        write(dir.path(), "docs/empty", b"");
        write(dir.path(), ".env", b"secret");
        let mut archive = SiteArchive::open(dir.path()).expect("files and folders");
        assert_eq!(archive.left_out, 2);
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).expect("they are there");
        assert_eq!(bytes.len() as u64, archive.bytes);
        let expected = packed(&[
            ("docs/a/b.txt", &large[..]),
            ("docs/empty", b""),
            ("index.html", b"one"),
        ]);
        assert_eq!(bytes, expected);
    }

    /// The owner of the folder puts something else in the place of a file after it was looked at.
    #[test]
    fn a_file_that_became_something_else_is_not_packed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let folder = dir.path().join("site");
        let (file, docs) = (folder.join("docs/z.txt"), folder.join("docs"));
        let secret = dir.path().join("secret");
        fs::create_dir(&secret).expect("a writable directory");
        write(&secret, "z.txt", b"secret");
        let packed = |swap: &dyn Fn()| {
            fs::remove_dir_all(&folder).ok();
            fs::create_dir_all(&docs).expect("a writable directory");
            fs::write(&file, b"public").expect("a writable directory");
            let mut archive = SiteArchive::open(&folder).expect("files and folders");
            swap();
            let mut bytes = Vec::new();
            let read = archive.read_to_end(&mut bytes);
            assert!(!bytes.windows(6).any(|bytes| bytes == b"secret"));
            read.err().map(|error| error.to_string())
        };
        assert_eq!(packed(&|| ()), None);
        let remove = || fs::remove_file(&file).expect("it is there");
        let to_link = || {
            remove();
            std::os::unix::fs::symlink(secret.join("z.txt"), &file).expect("a link");
        };
        let to_linked_folder = || {
            fs::remove_dir_all(&docs).expect("it is there");
            std::os::unix::fs::symlink(&secret, &docs).expect("a link");
        };
        let to_pipe = || {
            remove();
            nix::unistd::mkfifo(&file, Mode::S_IRWXU).expect("a named pipe");
        };
        let swaps: [&dyn Fn(); 3] = [&to_link, &to_linked_folder, &to_pipe];
        for swap in swaps {
            let why = packed(swap).expect("it is refused");
            assert!(why.starts_with("docs/z.txt: "), "{why}");
        }
    }

    #[test]
    fn what_is_no_file_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let refused = |words: &str| {
            let error = SiteArchive::open(dir.path()).expect_err(words);
            assert!(error.message.contains(words), "{error}");
        };
        refused("has no file");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("a link");
        refused("link: a site has files");
        let absent = SiteArchive::open(&dir.path().join("absent")).expect_err("absent");
        assert!(absent.message.contains("cannot read"), "{absent}");
    }
}
