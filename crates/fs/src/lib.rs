//! Serves the store of files ([`alknet_store`]) as operations `fs/*`.
//!
//! An [`FsService`] opens the store when it is first used, keeps it in order by a thread of its own, and says as
//! [`FsProblem`] why a store is not served. [`operations`] makes the operations of a service. A caller may do what the
//! scopes of its identity say ([`FsRight`]): a bucket for which it has no scope at all looks to it like one that does not
//! exist.
//!
//! [`FileTree`] is what a protocol with paths and open files needs, such as SFTP, and [`FsFileTree`] is the files of a
//! service behind it.
//!
//! A [`BlobHandler`] serves contents by their hash to other nodes, and [`BlobPeers`] is what a node gives the service to
//! fetch them with.

mod blobs;
mod chores;
pub mod dav;
mod error;
mod figures;
mod files;
mod lease;
pub mod limits;
mod mount;
mod ops;
mod path;
mod recheck;
mod requester;
mod rights;
mod service;
pub mod sync;
mod watches;

pub use blobs::{
    BLOBS_ALPN, BlobHandler, BlobOptions, BlobPeers, BlobRequest, BlobRequestError,
    BlobRequestParser, BlobSelections,
};
pub use error::FsError;
pub use figures::FsFigures;
pub use files::{
    DirectoryPage, FileAttributes, FileKind, FileOpening, FileSpace, FileStat, FileTree,
    FileTreeError, FileTreeLimits, FsFileTree, FsOpenFile, NamedFile, OpenFile, TreePath,
    resolve_path,
};
pub use lease::StoreLease;
pub use mount::{DavFiles, DavMount};
pub use ops::operations;
pub use path::{address_at, parse_address};
pub use requester::FsRequester;
pub use rights::{FsRight, VisibleBuckets};
pub use service::{FsProblem, FsService};
