//! Files as a protocol with paths and open files sees them, such as SFTP.
//!
//! [`FileTree`] is what a server of such a protocol needs, and [`FsFileTree`] is the files of a node behind it. A write
//! opens a private version of the file, which becomes the file when it is closed: a client that goes away leaves the
//! file as it was. Nothing here knows a wire format.

mod error;
mod open;
mod tree;
mod tree_path;

use std::future::Future;

use alknet_store::ContentHash;
use alknet_store::limits::{COMPONENT_BYTES_MAX, PAGE_ENTRIES_MAX, PATH_BYTES_MAX};
use bytes::Bytes;

use crate::limits::CHUNK_BYTES_MAX;

pub use error::FileTreeError;
pub use open::FsOpenFile;
pub use tree::FsFileTree;
pub use tree_path::{TreePath, resolve_path};

/// A tree of files.
///
/// Paths are absolute, and have neither `.` nor `..`: [`resolve_path`] makes such a one of what a client sends. No call
/// follows a symbolic link. Calls of one tree may be under way at the same time.
pub trait FileTree: Send + Sync + 'static {
    /// An open file.
    type File: OpenFile;

    /// What one call takes at most.
    fn limits(&self) -> FileTreeLimits;

    /// Describes what is at a path.
    ///
    /// # Errors
    /// Nothing is there, or the caller may not see it.
    fn stat(&self, path: &str) -> impl Future<Output = Result<FileStat, FileTreeError>> + Send;

    /// A page of a directory, in the order of the bytes of its names: what comes behind the name `after`, at most
    /// `limit` files.
    ///
    /// # Errors
    /// No directory is there, or the caller may not see it.
    fn list(
        &self,
        path: &str,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<DirectoryPage, FileTreeError>> + Send;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// No link is there, or the caller may not see it.
    fn read_link(&self, path: &str) -> impl Future<Output = Result<String, FileTreeError>> + Send;

    /// The bytes that a directory has room for.
    ///
    /// # Errors
    /// Nothing is there, or the caller may not see it.
    fn space(&self, path: &str) -> impl Future<Output = Result<FileSpace, FileTreeError>> + Send;

    /// Opens a file.
    ///
    /// # Errors
    /// The file is not as the request expects, or the caller may not open it so.
    fn open(
        &self,
        path: &str,
        request: FileOpening,
    ) -> impl Future<Output = Result<Self::File, FileTreeError>> + Send;

    /// Makes a directory in one that exists.
    ///
    /// # Errors
    /// The name is taken, or the caller may not change the tree.
    fn make_directory(
        &self,
        path: &str,
        attributes: FileAttributes,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Removes a file or a symbolic link.
    ///
    /// # Errors
    /// A directory or nothing is there, or the caller may not change the tree.
    fn remove_file(&self, path: &str) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// No directory is there, it has entries, or the caller may not change the tree.
    fn remove_directory(
        &self,
        path: &str,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Moves an entry, with everything below it. `may_replace` lets it take the place of an entry of its kind, of a
    /// directory only if that is empty.
    ///
    /// # Errors
    /// The name is taken, the file is open for writing, or the caller may not change the tree.
    /// [`FileTreeError::Unsupported`] from one branch to another.
    fn rename(
        &self,
        from: &str,
        to: &str,
        may_replace: bool,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Gives a file a copy, of which no bytes are copied.
    ///
    /// # Errors
    /// The name is taken, no file is there, or the caller may not read the one or change the other.
    fn copy_file(
        &self,
        from: &str,
        to: &str,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// The name is taken, or the caller may not change the tree.
    fn make_link(
        &self,
        path: &str,
        target: &str,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Sets attributes. Where this tree has the file open for writing, they are those of the open file.
    ///
    /// # Errors
    /// Nothing is there, or the caller may not change it.
    fn set_attributes(
        &self,
        path: &str,
        attributes: FileAttributes,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;
}

/// An open file. Calls may be under way at the same time; they come after each other, in any order. Dropping a file
/// that was written and not closed leaves the tree as it was.
pub trait OpenFile: Send + Sync + 'static {
    /// Bytes at an offset, at most as many and none behind the end. Fewer come at the end only.
    ///
    /// # Errors
    /// The file is not open for reading, its content is damaged, or the caller may not read it any more.
    fn read_at(
        &self,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = Result<Bytes, FileTreeError>> + Send;

    /// Writes bytes at an offset. A file that was opened to append takes them behind its end.
    ///
    /// # Errors
    /// The file is not open for writing, a quota or the disk is full, or the caller may not write any more.
    fn write_at(
        &self,
        offset: u64,
        bytes: Bytes,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Describes the file as it is by now.
    ///
    /// # Errors
    /// The file is closed.
    fn stat(&self) -> impl Future<Output = Result<FileStat, FileTreeError>> + Send;

    /// Sets attributes. Those of a file that is open for writing become those of the file with its content.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    fn set_attributes(
        &self,
        attributes: FileAttributes,
    ) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Returns when what was written is on the disk. It is not the file yet.
    ///
    /// # Errors
    /// The file is closed, or the disk fails.
    fn sync(&self) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Makes what was written the file, at once and durable when this returns. The file is closed also after an error.
    ///
    /// # Errors
    /// The file is closed, a quota or the disk is full, a lock covers the path, or something came to the path of a file
    /// that was opened as a new one.
    fn close(&self) -> impl Future<Output = Result<(), FileTreeError>> + Send;

    /// Closes the file and leaves the tree as it was.
    ///
    /// # Errors
    /// The file is closed.
    fn abort(&self) -> impl Future<Output = Result<(), FileTreeError>> + Send;
}

/// What calls of a tree take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTreeLimits {
    /// Bytes of one read.
    pub read_bytes_max: usize,
    /// Bytes of one write.
    pub write_bytes_max: usize,
    /// Files of one page of a directory.
    pub page_files_max: usize,
    /// Bytes of a name.
    pub name_bytes_max: usize,
    /// Bytes of a path.
    pub path_bytes_max: usize,
}

impl FileTreeLimits {
    /// Those of the files of a node.
    pub(crate) const STORE: Self = Self {
        read_bytes_max: CHUNK_BYTES_MAX,
        write_bytes_max: CHUNK_BYTES_MAX,
        page_files_max: PAGE_ENTRIES_MAX,
        name_bytes_max: COMPONENT_BYTES_MAX,
        path_bytes_max: PATH_BYTES_MAX,
    };
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A file with a content.
    File,
    /// A symbolic link.
    Symlink,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Its kind.
    pub kind: FileKind,
    /// Bytes of its content.
    pub size: u64,
    /// Permission bits, without the kind.
    pub mode: u32,
    /// Time of the last modification, in nanoseconds since 1970-01-01 UTC.
    pub mtime_ns: i64,
    /// BLAKE3 of the content. An open file that is written has none.
    pub hash: Option<ContentHash>,
}

/// A file in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The name in the directory.
    pub name: String,
    /// What it is.
    pub stat: FileStat,
}

/// A page of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryPage {
    /// The files, in the order of the bytes of their names.
    pub files: Vec<NamedFile>,
    /// Whether more come behind the last one.
    pub has_more: bool,
}

/// Attributes that a call sets. `None` leaves an attribute as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileAttributes {
    /// Length of the content: what is beyond it is cut off, and zeros fill what is missing.
    pub size: Option<u64>,
    /// Permission bits, of which the lower twelve count.
    pub mode: Option<u32>,
    /// Time of the last modification, in nanoseconds since 1970-01-01 UTC.
    pub mtime_ns: Option<i64>,
}

/// Room for files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSpace {
    /// Bytes of the file system, or of the quota if that is less.
    pub total_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOpening {
    /// Reads are made.
    pub read: bool,
    /// Writes are made.
    pub write: bool,
    /// Each write goes behind the end.
    pub append: bool,
    /// A file that does not exist is made, in a directory that exists.
    pub create: bool,
    /// With `create`: an error if something is there.
    pub exclusive: bool,
    /// The file begins empty.
    pub truncate: bool,
    /// Attributes of a file that is made.
    pub attributes: FileAttributes,
}

impl FileOpening {
    /// To read a file.
    #[must_use]
    pub fn reading() -> Self {
        Self {
            read: true,
            ..Self::default()
        }
    }

    /// To write a new content, whether the file exists or not.
    #[must_use]
    pub fn writing() -> Self {
        Self {
            write: true,
            create: true,
            truncate: true,
            ..Self::default()
        }
    }
}
