//! The files of a node as a tree.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alknet_store::{
    BranchName, BucketName, ChangeRequest, EntryAddress, EntryAttributes, EntryKind, EntryPath,
    EntryPrecondition, EntryState, ListRequest, ReadTransaction, Store, StoreError, StoreObject,
    TreeChange, TreeView, WriteSessionId,
};

use super::open::{FsOpenFile, OpenWriter};
use super::tree_path::TreePath;
use super::{
    DirectoryPage, FileAttributes, FileKind, FileOpening, FileSpace, FileStat, FileTree,
    FileTreeError, FileTreeLimits, NamedFile, OpenFile,
};
use crate::error::FsError;
use crate::ops::addressed::{BranchTarget, head_name, target};
use crate::requester::FsRequester;
use crate::rights::FsRight;
use crate::service::{FsService, blocking};

/// Permission bits that can be set.
const MODE_MASK: u32 = 0o7777;
const NS_PER_MS: i64 = 1_000_000;

/// Any of these shows the root of a bucket.
const VISIBLE: [FsRight; 6] = [
    FsRight::Read,
    FsRight::Write,
    FsRight::Admin,
    FsRight::Merge,
    FsRight::Push,
    FsRight::Sync,
];

/// The files of a node as a [`FileTree`], for one client: with the rights of its requester, and with locks, write
/// sessions and quotas as for the operations. Clones share it.
///
/// The root has the buckets that the requester sees. `/BUCKET` is the branch `main`, `/BUCKET@BRANCH` another branch,
/// `/BUCKET#SEQ` a former version, and `/BUCKET/.snap/NAME` a snapshot.
///
/// [`FileTree::stat`] of a path that this tree has open for writing describes the open file, as clients expect that
/// have made a file. Reads and listings show the version of before, and so does everything to other clients.
#[derive(Clone, Debug)]
pub struct FsFileTree(Arc<TreeState>);

#[derive(Debug)]
struct TreeState {
    service: FsService,
    requester: RwLock<FsRequester>,
    /// Open files that are written, in the order in which they were opened. The limit of sessions of an identity bounds
    /// them.
    writers: Mutex<Vec<Arc<OpenWriter>>>,
}

impl FsFileTree {
    /// The files of a node for a client.
    #[must_use]
    pub fn new(service: FsService, requester: FsRequester) -> Self {
        Self(Arc::new(TreeState {
            service,
            requester: RwLock::new(requester),
            writers: Mutex::default(),
        }))
    }

    /// Gives the client other rights, which each later call asks, also one of a file that is open. The identity stays.
    pub fn set_requester(&self, requester: FsRequester) {
        let current = self.0.requester.write();
        // Replaced as a whole, so that a panic elsewhere leaves nothing half changed.
        *current.unwrap_or_else(PoisonError::into_inner) = requester;
    }

    pub(super) fn requester(&self) -> FsRequester {
        let current = self.0.requester.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn require(&self, right: FsRight, bucket: &BucketName) -> Result<(), FsError> {
        self.requester().require(right, bucket)
    }

    pub(super) fn service(&self) -> &FsService {
        &self.0.service
    }

    /// Runs work on the store, on a thread that may block.
    pub(super) async fn with_store<T, W>(&self, work: W) -> Result<T, FsError>
    where
        T: Send + 'static,
        W: FnOnce(&Store) -> Result<T, FsError> + Send + 'static,
    {
        let service = self.0.service.clone();
        let done = blocking(move || {
            let lease = service.open()?;
            work(&lease)
        });
        done.await
    }

    pub(super) fn add_writer(&self, writer: &Arc<OpenWriter>) {
        self.writers().push(Arc::clone(writer));
    }

    pub(super) fn remove_writer(&self, session: WriteSessionId) {
        self.writers().retain(|writer| writer.session != session);
    }

    /// The file at this address that was opened for writing last.
    pub(super) fn writer_at(&self, address: &EntryAddress) -> Option<Arc<OpenWriter>> {
        let writers = self.writers();
        let found = writers.iter().rev().find(|it| it.address == *address);
        found.map(Arc::clone)
    }

    fn has_writer_below(&self, address: &EntryAddress) -> bool {
        self.writers().iter().any(|writer| {
            let EntryAddress {
                bucket,
                version,
                path,
            } = &writer.address;
            *bucket == address.bucket
                && *version == address.version
                && (*path == address.path || path.is_below(&address.path))
        })
    }

    /// The list is whole between any two statements, so that a panic elsewhere does not harm it.
    fn writers(&self) -> MutexGuard<'_, Vec<Arc<OpenWriter>>> {
        let writers = self.0.writers.lock();
        writers.unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the change that `plan` finds right in the tree of an address, in one commit.
    async fn change<P>(&self, address: EntryAddress, plan: P) -> Result<(), FileTreeError>
    where
        P: FnOnce(&ReadTransaction<'_>, &TreeView, &EntryPath) -> Result<TreeChange, StoreError>
            + Send
            + 'static,
    {
        let requester = self.requester();
        requester.require(FsRight::Write, &address.bucket)?;
        let branch = head_name(&address)?.clone();
        let changed = self.with_store(move |store| {
            let EntryAddress { bucket, path, .. } = address;
            let planned = store.read(move |tx| {
                let target = target(tx, &bucket, &branch)?;
                let view = tx.view(target.branch, None)?;
                Ok((target, plan(tx, &view, &path)?))
            });
            let (
                BranchTarget {
                    branch, durability, ..
                },
                change,
            ) = planned.wait()?;
            let request = ChangeRequest::new(branch, requester.actor(), change);
            let applied = store.apply_with(durability, request, Vec::new(), Vec::new());
            applied.wait()?;
            Ok(())
        });
        Ok(changed.await?)
    }

    /// Buckets that the requester sees, behind a name.
    async fn buckets(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<DirectoryPage, FileTreeError> {
        let visible = self.requester().buckets(&VISIBLE);
        let after = after.map(BucketName::parse).transpose()?;
        let listed = self.with_store(move |store| {
            // One more than the page, which says whether there is a next one.
            let found = store.read(move |tx| visible.existing(tx, after.as_ref(), limit + 1));
            Ok(found.wait()?)
        });
        let files = listed.await?.into_iter().map(|bucket| NamedFile {
            name: bucket.name.to_string(),
            stat: FileStat::directory(bucket.created_ms),
        });
        Ok(DirectoryPage::from_files(files.collect(), limit))
    }

    /// Snapshots of a bucket, behind a name.
    async fn snapshots(
        &self,
        bucket: BucketName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<DirectoryPage, FileTreeError> {
        self.require(FsRight::Read, &bucket)?;
        let after = after.map(BranchName::parse).transpose()?;
        let listed = self.with_store(move |store| {
            let found = store.read(move |tx| {
                let bucket = tx.bucket_by_name(&bucket)?;
                tx.snapshots(bucket.id, after.as_ref(), limit + 1)
            });
            Ok(found.wait()?)
        });
        let files = listed.await?.into_iter().map(|snapshot| NamedFile {
            name: snapshot.name.to_string(),
            stat: FileStat::directory(snapshot.created_ms),
        });
        Ok(DirectoryPage::from_files(files.collect(), limit))
    }

    /// Refuses a requester that may not see an entry. The root of a tree shows itself to every requester with a right.
    fn require_stat(&self, address: &EntryAddress) -> Result<(), FsError> {
        let requester = self.requester();
        match address.path.is_root() {
            true => requester.require_any(&VISIBLE, &address.bucket),
            false => requester.require(FsRight::Read, &address.bucket),
        }
    }

    /// The state of the entry at an address.
    async fn entry(&self, address: EntryAddress) -> Result<EntryState, FsError> {
        let found = self.with_store(move |store| {
            let found = store.read(move |tx| tx.stat(&tx.view_of(&address)?, &address.path));
            Ok(found.wait()?)
        });
        Ok(found.await?.state)
    }
}

impl FileTree for FsFileTree {
    type File = FsOpenFile;

    fn limits(&self) -> FileTreeLimits {
        FileTreeLimits::STORE
    }

    async fn stat(&self, path: &str) -> Result<FileStat, FileTreeError> {
        let address = match TreePath::parse(path)? {
            TreePath::Root => return Ok(FileStat::directory(0)),
            TreePath::Snapshots(bucket) => {
                // Only to see that the bucket exists.
                self.snapshots(bucket, None, 1).await?;
                return Ok(FileStat::directory(0));
            }
            TreePath::Entry(address) => address,
        };
        self.require_stat(&address)?;
        if let Some(writer) = self.writer_at(&address)
            && let Ok(stat) = writer.stat(self).await
        {
            return Ok(stat);
        }
        Ok(FileStat::from_entry(&self.entry(address).await?))
    }

    async fn list(
        &self,
        path: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<DirectoryPage, FileTreeError> {
        let limit = limit.clamp(1, self.limits().page_files_max);
        let address = match TreePath::parse(path)? {
            TreePath::Root => return self.buckets(after, limit).await,
            TreePath::Snapshots(bucket) => return self.snapshots(bucket, after, limit).await,
            TreePath::Entry(address) => address,
        };
        self.require(FsRight::Read, &address.bucket)?;
        let after = after.map(|name| address.path.child(name)).transpose()?;
        let request = ListRequest {
            after,
            limit,
            ..ListRequest::new(address.path.clone())
        };
        let listed = self.with_store(move |store| {
            let page = store.read(move |tx| tx.list(&tx.view_of(&address)?, &request));
            Ok(page.wait()?)
        });
        let page = listed.await?;
        let files = page.entries.iter().filter_map(|entry| {
            let (_, name) = entry.path.split()?;
            Some(NamedFile {
                name: name.to_owned(),
                stat: FileStat::from_entry(&entry.state),
            })
        });
        Ok(DirectoryPage {
            files: files.collect(),
            has_more: page.next.is_some(),
        })
    }

    async fn read_link(&self, path: &str) -> Result<String, FileTreeError> {
        let address = entry_address(path)?;
        self.require(FsRight::Read, &address.bucket)?;
        let target = self.entry(address).await?.target;
        target.ok_or_else(|| FsError::input("the entry is no symbolic link").into())
    }

    async fn space(&self, path: &str) -> Result<FileSpace, FileTreeError> {
        let bucket = match TreePath::parse(path)? {
            TreePath::Root => None,
            TreePath::Snapshots(bucket) => Some(bucket),
            TreePath::Entry(address) => Some(address.bucket),
        };
        if let Some(bucket) = &bucket {
            self.requester().require_any(&VISIBLE, bucket)?;
        }
        let measured = self.with_store(move |store| {
            let disk = store.db().space()?;
            let space = FileSpace {
                total_bytes: disk.total,
                free_bytes: disk.free.saturating_sub(disk.reserve()),
            };
            let Some(bucket) = bucket else {
                return Ok(space);
            };
            let used = store.read(move |tx| {
                let bucket = tx.bucket_by_name(&bucket)?;
                Ok((bucket.quota_bytes, tx.usage(bucket.id)?))
            });
            let (quota, usage) = used.wait()?;
            let quota = quota.unwrap_or(u64::MAX);
            let left = quota.saturating_sub(usage.bytes.saturating_add(usage.staged));
            Ok(FileSpace {
                total_bytes: space.total_bytes.min(quota),
                free_bytes: space.free_bytes.min(left),
            })
        });
        Ok(measured.await?)
    }

    async fn open(&self, path: &str, request: FileOpening) -> Result<FsOpenFile, FileTreeError> {
        let address = entry_address(path)?;
        match request.write || request.append {
            true => FsOpenFile::writer(self, address, request).await,
            false => FsOpenFile::reader(self, address).await,
        }
    }

    async fn make_directory(
        &self,
        path: &str,
        attributes: FileAttributes,
    ) -> Result<(), FileTreeError> {
        let attributes = attributes.of_entry();
        let made = self.change(entry_address(path)?, move |tx, view, path| {
            require_parent(tx, view, path)?;
            Ok(TreeChange::Mkdir {
                path: path.clone(),
                attributes,
                may_exist: false,
            })
        });
        made.await
    }

    async fn remove_file(&self, path: &str) -> Result<(), FileTreeError> {
        let removed = self.change(entry_address(path)?, |tx, view, path| {
            if tx.stat(view, path)?.state.is_directory() {
                let path = path.to_string();
                return Err(StoreError::IsDirectory { path });
            }
            Ok(deletion(path))
        });
        removed.await
    }

    async fn remove_directory(&self, path: &str) -> Result<(), FileTreeError> {
        let removed = self.change(entry_address(path)?, |tx, view, path| {
            if !tx.stat(view, path)?.state.is_directory() {
                let path = path.to_string();
                return Err(StoreError::NotDirectory { path });
            }
            Ok(deletion(path))
        });
        removed.await
    }

    async fn rename(&self, from: &str, to: &str, may_replace: bool) -> Result<(), FileTreeError> {
        let (from, to) = (entry_address(from)?, entry_address(to)?);
        // Before the trees are compared, so that the answer says nothing of a bucket that the requester does not see.
        self.require(FsRight::Write, &to.bucket)?;
        self.require(FsRight::Write, &from.bucket)?;
        if from.bucket != to.bucket || from.version != to.version {
            let text = "a file is moved within its branch; copy it to another one";
            return Err(FileTreeError::Unsupported(text.to_owned()));
        }
        // The session of an open file has the path that it was opened with, and would make the file there again.
        if self.has_writer_below(&from) {
            let text = "the file is open for writing; close it first";
            return Err(FileTreeError::Failed(text.to_owned()));
        }
        let to = to.path;
        let renamed = self.change(from, move |tx, view, from| {
            tx.stat(view, from)?;
            require_parent(tx, view, &to)?;
            if !may_replace && tx.find(view, &to)?.is_some() {
                return Err(StoreError::Exists(StoreObject::Entry));
            }
            Ok(TreeChange::Rename {
                from: from.clone(),
                to,
                may_replace,
                precondition: EntryPrecondition::Present,
            })
        });
        renamed.await
    }

    async fn copy_file(&self, from: &str, to: &str) -> Result<(), FileTreeError> {
        let (from, to) = (entry_address(from)?, entry_address(to)?);
        self.require(FsRight::Read, &from.bucket)?;
        let copied = self.change(to, move |tx, view, to| {
            require_parent(tx, view, to)?;
            let source = tx.view_of(&from)?;
            if tx.stat(&source, &from.path)?.state.is_directory() {
                let path = from.path.to_string();
                return Err(StoreError::IsDirectory { path });
            }
            let is_own = source.branch() == view.branch() && !from.is_read_only();
            Ok(TreeChange::Copy {
                view: (!is_own).then_some(source),
                from: from.path,
                to: to.clone(),
                is_recursive: false,
                may_replace: false,
            })
        });
        copied.await
    }

    async fn make_link(&self, path: &str, target: &str) -> Result<(), FileTreeError> {
        let target = target.to_owned();
        let made = self.change(entry_address(path)?, move |tx, view, path| {
            require_parent(tx, view, path)?;
            Ok(TreeChange::Symlink {
                path: path.clone(),
                target,
                may_replace: false,
            })
        });
        made.await
    }

    async fn set_attributes(
        &self,
        path: &str,
        attributes: FileAttributes,
    ) -> Result<(), FileTreeError> {
        let address = entry_address(path)?;
        if let Some(writer) = self.writer_at(&address) {
            return writer.set_attributes(self, attributes).await;
        }
        if attributes.size.is_some() {
            let request = FileOpening {
                write: true,
                ..FileOpening::default()
            };
            let file = FsOpenFile::writer(self, address, request).await?;
            file.set_attributes(attributes).await?;
            return file.close().await;
        }
        let attributes = attributes.of_entry();
        let set = self.change(address, move |tx, view, path| {
            tx.stat(view, path)?;
            Ok(TreeChange::SetAttributes {
                path: path.clone(),
                attributes,
                precondition: EntryPrecondition::Present,
            })
        });
        set.await
    }
}

impl FileStat {
    fn directory(unix_ms: u64) -> Self {
        let unix_ms = i64::try_from(unix_ms).unwrap_or_default();
        Self {
            kind: FileKind::Directory,
            size: 0,
            mode: alknet_store::DIRECTORY_MODE_DEFAULT,
            mtime_ns: unix_ms.saturating_mul(NS_PER_MS),
            hash: None,
        }
    }

    pub(super) fn from_entry(state: &EntryState) -> Self {
        let (kind, size) = match state.kind {
            EntryKind::Directory => (FileKind::Directory, 0),
            // As readlink(2) and lstat(2) have it.
            EntryKind::Symlink => {
                let target = state.target.as_deref().unwrap_or_default();
                (FileKind::Symlink, target.len() as u64)
            }
            EntryKind::File | EntryKind::Deleted => (FileKind::File, state.size),
        };
        Self {
            kind,
            size,
            mode: state.mode,
            mtime_ns: state.mtime_ns,
            hash: state.hash,
        }
    }
}

impl FileAttributes {
    /// The attributes of a row, without the length, which is the content's.
    pub(super) fn of_entry(self) -> EntryAttributes {
        EntryAttributes {
            mode: self.mode.map(|mode| mode & MODE_MASK),
            mtime_ns: self.mtime_ns,
            xattr: None,
        }
    }
}

impl DirectoryPage {
    /// A page of files of which one more than the page was asked for.
    fn from_files(mut files: Vec<NamedFile>, limit: usize) -> Self {
        let has_more = files.len() > limit;
        files.truncate(limit);
        Self { files, has_more }
    }
}

/// The address of an entry. The other directories of the tree take no changes.
fn entry_address(path: &str) -> Result<EntryAddress, FileTreeError> {
    match TreePath::parse(path)? {
        TreePath::Entry(address) => Ok(address),
        TreePath::Root | TreePath::Snapshots(_) => {
            let text = "the directories of buckets and snapshots are not changed here";
            Err(FileTreeError::Denied(text.to_owned()))
        }
    }
}

/// Refuses a path whose directory does not exist. The store would make it.
pub(super) fn require_parent(
    tx: &ReadTransaction<'_>,
    view: &TreeView,
    path: &EntryPath,
) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    if tx.stat(view, &parent)?.state.is_directory() {
        return Ok(());
    }
    let path = parent.to_string();
    Err(StoreError::NotDirectory { path })
}

fn deletion(path: &EntryPath) -> TreeChange {
    TreeChange::Delete {
        path: path.clone(),
        is_recursive: false,
        precondition: EntryPrecondition::Present,
    }
}
