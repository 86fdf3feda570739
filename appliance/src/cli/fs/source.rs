//! What is stored on a node: files and folders of this computer, or standard input.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use tokio::sync::mpsc;

use super::address::FilesAddress;
use crate::cli::{CommandError, output};

/// Bytes of one piece, as many as a node takes in one request.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// Pieces that are read ahead.
const PIECES_READ_AHEAD: usize = 4;
/// The permission bits of a file that are stored.
const MODE_BITS: u32 = 0o777;
/// Folders below each other. The node takes paths of 64 names.
const DEPTH_MAX: usize = 64;

/// Attributes of a file, for the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SourceAttributes {
    pub(super) mode: Option<u32>,
    pub(super) mtime_ms: Option<i64>,
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceKind {
    /// A file of so many bytes.
    File { bytes: u64 },
    /// A folder in which no file is.
    EmptyFolder,
    /// Standard input, whatever the path is.
    StandardInput,
}

/// A file or a folder of this computer, and where it goes.
#[derive(Clone, Debug)]
pub(super) struct SourceItem {
    pub(super) path: PathBuf,
    pub(super) address: FilesAddress,
    pub(super) kind: SourceKind,
    pub(super) attributes: SourceAttributes,
}

/// Everything that a command stores.
#[derive(Debug, Default)]
pub(super) struct SourceList {
    pub(super) items: Vec<SourceItem>,
    /// Links, pipes, devices: what a bucket would not give back as it is.
    pub(super) left_out: usize,
}

impl SourceList {
    /// Adds a file, or a folder with everything below it. A link that the user named is followed, and no other.
    ///
    /// # Errors
    /// Something cannot be read, or its name is not UTF-8.
    pub(super) fn add(&mut self, path: &Path, address: FilesAddress) -> Result<(), CommandError> {
        let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        self.add_entry(path, address, &about, 0)
    }

    fn add_entry(
        &mut self,
        path: &Path,
        address: FilesAddress,
        about: &fs::Metadata,
        depth: usize,
    ) -> Result<(), CommandError> {
        if about.is_dir() {
            return self.add_folder(path, address, depth);
        }
        if !about.is_file() {
            self.left_out += 1;
            return Ok(());
        }
        self.items.push(SourceItem {
            path: path.to_owned(),
            address,
            kind: SourceKind::File { bytes: about.len() },
            attributes: attributes_of(about),
        });
        Ok(())
    }

    fn add_folder(
        &mut self,
        path: &Path,
        address: FilesAddress,
        depth: usize,
    ) -> Result<(), CommandError> {
        if depth > DEPTH_MAX {
            let text = format!(
                "{} lies below more than {DEPTH_MAX} folders, and a path on a node has no more names",
                shown(path)
            );
            return Err(CommandError::usage(text));
        }
        let entries = fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
        let entries = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names = entries.collect::<io::Result<Vec<_>>>();
        let mut names = names.map_err(|error| unreadable(path, &error))?;
        names.sort_unstable();
        let before = self.items.len();
        for name in names {
            let at = path.join(&name);
            let name = name.to_str().ok_or_else(|| no_utf8(&at))?;
            // Of a link its own kind.
            let about = fs::symlink_metadata(&at).map_err(|error| unreadable(&at, &error))?;
            self.add_entry(&at, address.join(name), &about, depth + 1)?;
        }
        if self.items.len() == before {
            self.items.push(SourceItem {
                path: path.to_owned(),
                address,
                kind: SourceKind::EmptyFolder,
                attributes: SourceAttributes::default(),
            });
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = self.items.iter().map(|item| match item.kind {
            SourceKind::File { bytes } => bytes,
            SourceKind::EmptyFolder | SourceKind::StandardInput => 0,
        });
        bytes.sum()
    }
}

fn attributes_of(about: &fs::Metadata) -> SourceAttributes {
    let ms = about.mtime().checked_mul(1000);
    SourceAttributes {
        mode: Some(about.mode() & MODE_BITS),
        mtime_ms: ms.and_then(|ms| ms.checked_add(about.mtime_nsec() / 1_000_000)),
    }
}

/// Opens a file that was found before. A pipe that has its name by now is not waited for.
///
/// # Errors
/// It cannot be read, or is no file any more.
pub(super) fn open_file(path: &Path) -> Result<File, CommandError> {
    alknet_image::open_regular(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &impl std::fmt::Display) -> CommandError {
    CommandError::usage(format!("cannot read {}: {error}", shown(path)))
}

/// The error of a name that no path of a node can have.
pub(super) fn no_utf8(path: &Path) -> CommandError {
    CommandError::usage(format!(
        "the name of {} is not UTF-8, as names on a node are: rename it",
        shown(path)
    ))
}

fn shown(path: &Path) -> String {
    output::one_line(&path.display().to_string()).into_owned()
}

/// The pieces of a content, which a thread reads: a slow source does not hold the connection up.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    shown: String,
}

impl PieceReader {
    /// Begins to read.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        source: impl Read + Send + 'static,
        shown: &str,
    ) -> Result<Self, CommandError> {
        let (sender, pieces) = mpsc::channel(PIECES_READ_AHEAD);
        let started = thread::Builder::new().spawn(move || send_pieces(source, &sender));
        started.map_err(|error| CommandError::local(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            pieces,
            shown: shown.to_owned(),
        })
    }

    /// The next piece; `None` at the end. Only the last one is shorter than [`PIECE_BYTES`].
    ///
    /// # Errors
    /// The source cannot be read.
    pub(super) async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, CommandError> {
        let piece = self.pieces.recv().await.transpose();
        piece.map_err(|error| CommandError::local(format!("cannot read {}: {error}", self.shown)))
    }
}

/// Ends when the source does, or when no task takes pieces any more.
fn send_pieces(mut source: impl Read, sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = source
            .by_ref()
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut piece);
        let sent = match read {
            Ok(0) => return,
            Ok(_) => sender.blocking_send(Ok(piece)),
            Err(error) => sender.blocking_send(Err(error)),
        };
        if sent.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::cli::CommandExit;

    fn address(text: &str) -> FilesAddress {
        FilesAddress::read(text).expect(text)
    }

    #[test]
    fn a_folder_is_listed_with_everything_below_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for made in ["b/c", "b/empty"] {
            fs::create_dir_all(at(made)).expect("the folder is ours");
        }
        for file in ["a", "b/c/d", ".hidden"] {
            fs::write(at(file), file).expect("the folder is ours");
        }
        symlink("/etc/passwd", at("link")).expect("the folder is ours");
        let mut list = SourceList::default();
        list.add(folder.path(), address("docs:/x"))
            .expect("it is readable");
        let found: Vec<_> = list
            .items
            .iter()
            .map(|it| (it.address.to_string(), it.kind))
            .collect();
        let file = |bytes| SourceKind::File { bytes };
        assert_eq!(
            found,
            [
                ("docs:/x/.hidden".to_owned(), file(7)),
                ("docs:/x/a".to_owned(), file(1)),
                ("docs:/x/b/c/d".to_owned(), file(5)),
                ("docs:/x/b/empty".to_owned(), SourceKind::EmptyFolder),
            ]
        );
        assert_eq!((list.left_out, list.bytes()), (1, 13));
        assert!(list.items[0].attributes.mtime_ms.is_some());
    }

    #[test]
    fn a_name_that_no_path_of_a_node_can_have_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = std::ffi::OsStr::from_bytes(b"a\xff");
        fs::write(folder.path().join(name), "").expect("the folder is ours");
        let mut list = SourceList::default();
        let refused = list.add(folder.path(), address("docs:/x"));
        let refused = refused.expect_err("it is not UTF-8");
        assert_eq!(refused.exit, CommandExit::Usage);
        let mut list = SourceList::default();
        let missing = list.add(Path::new("/nonexistent"), address("docs:/x"));
        assert!(
            missing
                .expect_err("it is missing")
                .message
                .contains("/nonexistent")
        );
    }

    #[tokio::test]
    async fn pieces_have_one_length_but_for_the_last() {
        let source = io::repeat(7).take(2 * PIECE_BYTES as u64 + 5);
        let mut reader = PieceReader::start(source, "a source").expect("a thread");
        let mut lengths = Vec::new();
        while let Some(piece) = reader.next_piece().await.expect("it is readable") {
            lengths.push(piece.len());
        }
        assert_eq!(lengths, [PIECE_BYTES, PIECE_BYTES, 5]);
    }

    /// A thread that waits for a taker of its pieces ends with the reader.
    #[tokio::test]
    async fn a_reader_that_is_dropped_ends_its_thread() {
        struct EndlessSource(std::sync::mpsc::Sender<()>);
        impl Read for EndlessSource {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(0);
                Ok(buffer.len())
            }
        }
        impl Drop for EndlessSource {
            fn drop(&mut self) {
                self.0.send(()).ok();
            }
        }
        let (sender, ended) = std::sync::mpsc::channel();
        let mut reader = PieceReader::start(EndlessSource(sender), "it").expect("a thread");
        assert!(reader.next_piece().await.expect("it is readable").is_some());
        drop(reader);
        assert_eq!(ended.recv(), Ok(()));
    }
}
