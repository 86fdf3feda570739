//! An open file of the node: a content that was opened, or a write session.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_store::{
    BucketId, ContentHash, ContentReader, Entry, EntryAddress, EntryAttributes, EntryKind,
    FILE_MODE_DEFAULT, NewWriteSession, Store, StoreError, StoreObject, SystemTimeSource,
    TimeSource, WriteSessionId, WriteSessionMode,
};
use bytes::Bytes;

use super::tree::{FsFileTree, require_parent};
use super::{FileAttributes, FileKind, FileOpening, FileStat, FileTree, FileTreeError, OpenFile};
use crate::error::{FsError, is_lack_of_content, logged_error};
use crate::lease::StoreLease;
use crate::ops::addressed::{BranchTarget, head_name, target};
use crate::rights::FsRight;
use crate::service::{FsService, blocking};

/// An open file of [`FsFileTree`]. A file that is read keeps the version that it was opened with. It counts as a
/// request of the service, whose shutdown waits for it: a server closes its connections first.
#[derive(Debug)]
pub struct FsOpenFile {
    tree: FsFileTree,
    access: FileAccess,
}

#[derive(Debug)]
enum FileAccess {
    Reader {
        address: EntryAddress,
        stat: FileStat,
        content: Arc<OpenContent>,
        is_closed: AtomicBool,
    },
    Writer {
        writer: Arc<OpenWriter>,
        may_read: bool,
        appends: bool,
    },
}

struct OpenContent {
    // Dropped before the store.
    reader: ContentReader,
    _lease: StoreLease,
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct OpenWriter {
    pub(super) session: WriteSessionId,
    pub(super) address: EntryAddress,
    actor: String,
    /// What the file shows of itself, but for its size.
    shown: Mutex<FileStat>,
    /// Held while a write finds the end of the file and goes there.
    appending: Mutex<()>,
    is_over: AtomicBool,
}

impl FsOpenFile {
    /// Opens the file at an address to read it.
    pub(super) async fn reader(
        tree: &FsFileTree,
        address: EntryAddress,
    ) -> Result<Self, FileTreeError> {
        tree.require(FsRight::Read, &address.bucket)?;
        let requester = tree.requester();
        let find = || {
            let (service, address) = (tree.service().clone(), address.clone());
            let actor = requester.actor().to_owned();
            blocking(move || FoundFile::find(&service, &actor, address))
        };
        let found = match find().await? {
            FoundFile::Awaited { bucket, hash, .. } => {
                tree.service().fetch_for_read(bucket, hash).await?;
                find().await?
            }
            here => here,
        };
        let (stat, content) = match found {
            FoundFile::Here(found) => *found,
            // The file has another content by now, or this one was damaged again.
            FoundFile::Awaited { cause, .. } => return Err(cause.into()),
        };
        Ok(Self {
            tree: tree.clone(),
            access: FileAccess::Reader {
                address,
                stat,
                content: Arc::new(content),
                is_closed: AtomicBool::new(false),
            },
        })
    }

    /// Opens a session for the file at an address.
    pub(super) async fn writer(
        tree: &FsFileTree,
        address: EntryAddress,
        request: FileOpening,
    ) -> Result<Self, FileTreeError> {
        let requester = tree.requester();
        requester.require(FsRight::Write, &address.bucket)?;
        if request.read {
            // What no write reaches shows the content of before.
            requester.require(FsRight::Read, &address.bucket)?;
        }
        let is_new = request.create && request.exclusive;
        // The name is taken, although others do not see the file yet.
        if is_new && tree.writer_at(&address).is_some() {
            return Err(StoreError::Exists(StoreObject::Entry).into());
        }
        let own = tree.clone();
        let actor = requester.actor().to_owned();
        // The file is made on the thread that opens the session: if the caller has gone, its drop ends the session.
        let opened = tree.with_store(move |store| {
            let (target, current) = writable_entry(store, &address, request)?;
            let mode = match (is_new, request.truncate) {
                (true, _) => WriteSessionMode::Create,
                (false, true) => WriteSessionMode::Truncate,
                (false, false) => WriteSessionMode::Modify,
            };
            let path = address.path.clone();
            let mut new = NewWriteSession::new(target.branch, path, mode, &actor);
            if current.is_none() {
                new.attributes = request.attributes.of_entry();
            }
            let shown = shown_before(current.as_ref(), &new.attributes);
            let writer = Arc::new(OpenWriter {
                session: store.open_session(&new)?,
                address,
                actor,
                shown: Mutex::new(shown),
                appending: Mutex::default(),
                is_over: AtomicBool::new(false),
            });
            own.add_writer(&writer);
            Ok(Self {
                tree: own,
                access: FileAccess::Writer {
                    writer,
                    may_read: request.read,
                    appends: request.append,
                },
            })
        });
        Ok(opened.await?)
    }

    /// The writer of a file that is open for writing.
    fn writing(&self) -> Result<&Arc<OpenWriter>, FileTreeError> {
        match &self.access {
            FileAccess::Writer { writer, .. } => Ok(writer),
            FileAccess::Reader { .. } => Err(FileTreeError::Denied(
                "the file is not open for writing".to_owned(),
            )),
        }
    }
}

/// What an address leads to.
enum FoundFile {
    /// A file whose bytes are on peers only, or damaged or lost here.
    Awaited {
        bucket: BucketId,
        hash: ContentHash,
        cause: StoreError,
    },
    Here(Box<(FileStat, OpenContent)>),
}

impl FoundFile {
    /// Looks for a file and opens its content. Blocks.
    fn find(service: &FsService, actor: &str, address: EntryAddress) -> Result<Self, FsError> {
        let lease = service.open_for(actor)?;
        let found = lease.read(move |tx| {
            let view = tx.view_of(&address)?;
            Ok((tx.stat(&view, &address.path)?, view.bucket()))
        });
        let (entry, bucket) = found.wait()?;
        refuse_other_kinds(&entry)?;
        let hash = entry.state.hash.unwrap_or(ContentHash::EMPTY);
        match lease.read_content_in(bucket, hash) {
            Ok(reader) => {
                let content = OpenContent {
                    reader,
                    _lease: lease,
                };
                let stat = FileStat::from_entry(&entry.state);
                Ok(Self::Here(Box::new((stat, content))))
            }
            Err(cause) if is_lack_of_content(&cause) => Ok(Self::Awaited {
                bucket,
                hash,
                cause,
            }),
            Err(error) => Err(error.into()),
        }
    }
}

/// The branch of a file that is to be written, and the file if it exists.
fn writable_entry(
    store: &Store,
    address: &EntryAddress,
    request: FileOpening,
) -> Result<(BranchTarget, Option<Entry>), FsError> {
    let branch = head_name(address)?.clone();
    let EntryAddress { bucket, path, .. } = address.clone();
    let found = store.read(move |tx| {
        let target = target(tx, &bucket, &branch)?;
        let view = tx.view(target.branch, None)?;
        let current = tx.find(&view, &path)?;
        match (&current, request.create) {
            (None, true) => require_parent(tx, &view, &path)?,
            (None, false) => return Err(StoreError::NotFound(StoreObject::Entry)),
            (Some(_), true) if request.exclusive => {
                return Err(StoreError::Exists(StoreObject::Entry));
            }
            (Some(_), _) => {}
        }
        Ok((target, current))
    });
    let (target, current) = found.wait()?;
    if let Some(entry) = &current {
        refuse_other_kinds(entry)?;
    }
    Ok((target, current))
}

/// Refuses what has no content.
fn refuse_other_kinds(entry: &Entry) -> Result<(), FsError> {
    match entry.state.kind {
        EntryKind::File => Ok(()),
        EntryKind::Symlink => Err(FsError::input(
            "the entry is a symbolic link, which the store does not follow",
        )),
        EntryKind::Directory | EntryKind::Deleted => {
            let path = entry.path.to_string();
            Err(StoreError::IsDirectory { path }.into())
        }
    }
}

/// What a file shows that is about to be written.
fn shown_before(current: Option<&Entry>, attributes: &EntryAttributes) -> FileStat {
    let now_ns = SystemTimeSource.unix_ms().saturating_mul(1_000_000);
    let now_ns = i64::try_from(now_ns).unwrap_or(i64::MAX);
    let mode = current.map_or(FILE_MODE_DEFAULT, |entry| entry.state.mode);
    FileStat {
        kind: FileKind::File,
        size: 0,
        mode: attributes.mode.unwrap_or(mode),
        mtime_ns: attributes.mtime_ns.unwrap_or(now_ns),
        hash: None,
    }
}

impl OpenWriter {
    /// The file as it is by now.
    pub(super) async fn stat(
        self: &Arc<Self>,
        tree: &FsFileTree,
    ) -> Result<FileStat, FileTreeError> {
        let size = self.run(tree, |writer, store| {
            Ok(store.sessions().size(writer.session, &writer.actor)?)
        });
        let size = size.await?;
        Ok(FileStat {
            size,
            ..self.shown().clone()
        })
    }

    pub(super) async fn set_attributes(
        self: &Arc<Self>,
        tree: &FsFileTree,
        attributes: FileAttributes,
    ) -> Result<(), FileTreeError> {
        tree.require(FsRight::Write, &self.address.bucket)?;
        let set = self.run(tree, move |writer, store| {
            let (sessions, session) = (store.sessions(), writer.session);
            let of_entry = attributes.of_entry();
            if let Some(size) = attributes.size {
                sessions.set_len(session, &writer.actor, size)?;
            }
            sessions.set_attributes(session, &writer.actor, &of_entry)?;
            let mut shown = writer.shown();
            shown.mode = of_entry.mode.unwrap_or(shown.mode);
            shown.mtime_ns = of_entry.mtime_ns.unwrap_or(shown.mtime_ns);
            Ok(())
        });
        set.await
    }

    /// Runs a call of the session, on a thread that may block.
    async fn run<T, W>(self: &Arc<Self>, tree: &FsFileTree, work: W) -> Result<T, FileTreeError>
    where
        T: Send + 'static,
        W: FnOnce(&Self, &Store) -> Result<T, FsError> + Send + 'static,
    {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(FileTreeError::closed());
        }
        let writer = Arc::clone(self);
        let done = tree.with_store(move |store| work(&writer, store));
        Ok(done.await?)
    }

    /// Marks the end of the session. Returns whether the caller is the one to end it.
    fn end(&self, tree: &FsFileTree) -> bool {
        tree.remove_writer(self.session);
        !self.is_over.swap(true, Ordering::Relaxed)
    }

    /// Plain values, which a panic elsewhere cannot leave half changed.
    fn shown(&self) -> MutexGuard<'_, FileStat> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenFile for FsOpenFile {
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, FileTreeError> {
        let length = length.min(self.tree.limits().read_bytes_max);
        let range = offset..offset.saturating_add(length as u64);
        match &self.access {
            FileAccess::Reader {
                address,
                content,
                is_closed,
                ..
            } => {
                if is_closed.load(Ordering::Relaxed) {
                    return Err(FileTreeError::closed());
                }
                self.tree.require(FsRight::Read, &address.bucket)?;
                let content = Arc::clone(content);
                let read = blocking(move || Ok(content.reader.read(range)?));
                Ok(read.await?.into())
            }
            FileAccess::Writer {
                writer, may_read, ..
            } => {
                if !may_read {
                    let text = "the file is not open for reading";
                    return Err(FileTreeError::Denied(text.to_owned()));
                }
                self.tree.require(FsRight::Read, &writer.address.bucket)?;
                let read = writer.run(&self.tree, move |writer, store| {
                    let sessions = store.sessions();
                    Ok(sessions.read(writer.session, &writer.actor, range)?)
                });
                Ok(read.await?.into())
            }
        }
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<(), FileTreeError> {
        let writer = self.writing()?;
        let appends = matches!(self.access, FileAccess::Writer { appends: true, .. });
        self.tree.require(FsRight::Write, &writer.address.bucket)?;
        let limit = self.tree.limits().write_bytes_max;
        if bytes.len() > limit {
            let unit = "bytes in one write";
            let limit = limit as u64;
            return Err(StoreError::TooLarge { unit, limit }.into());
        }
        let written = writer.run(&self.tree, move |writer, store| {
            let (sessions, session, actor) = (store.sessions(), writer.session, &writer.actor);
            if !appends {
                return Ok(sessions.write(session, actor, offset, &bytes)?);
            }
            let turn = writer.appending.lock();
            let _turn = turn.unwrap_or_else(PoisonError::into_inner);
            let end = sessions.size(session, actor)?;
            Ok(sessions.write(session, actor, end, &bytes)?)
        });
        written.await
    }

    async fn stat(&self) -> Result<FileStat, FileTreeError> {
        match &self.access {
            FileAccess::Reader { stat, .. } => Ok(stat.clone()),
            FileAccess::Writer { writer, .. } => writer.stat(&self.tree).await,
        }
    }

    async fn set_attributes(&self, attributes: FileAttributes) -> Result<(), FileTreeError> {
        self.writing()?.set_attributes(&self.tree, attributes).await
    }

    async fn sync(&self) -> Result<(), FileTreeError> {
        let FileAccess::Writer { writer, .. } = &self.access else {
            // What is read is on the disk.
            return Ok(());
        };
        let synced = writer.run(&self.tree, |writer, store| {
            Ok(store.sessions().sync(writer.session, &writer.actor)?)
        });
        synced.await
    }

    async fn close(&self) -> Result<(), FileTreeError> {
        let writer = match &self.access {
            FileAccess::Reader { is_closed, .. } => {
                return match is_closed.swap(true, Ordering::Relaxed) {
                    false => Ok(()),
                    true => Err(FileTreeError::closed()),
                };
            }
            FileAccess::Writer { writer, .. } => writer,
        };
        if !writer.end(&self.tree) {
            return Err(FileTreeError::closed());
        }
        let (writer, requester) = (Arc::clone(writer), self.tree.requester());
        let closed = self.tree.with_store(move |store| {
            let (sessions, session, actor) = (store.sessions(), writer.session, &writer.actor);
            // The right may have been taken since the file was opened.
            if let Err(refused) = requester.require(FsRight::Write, &writer.address.bucket) {
                sessions.abort(session, actor)?;
                return Err(refused);
            }
            sessions.close(session, actor, None)?;
            Ok(())
        });
        Ok(closed.await?)
    }

    async fn abort(&self) -> Result<(), FileTreeError> {
        let FileAccess::Writer { writer, .. } = &self.access else {
            return self.close().await;
        };
        if !writer.end(&self.tree) {
            return Err(FileTreeError::closed());
        }
        let writer = Arc::clone(writer);
        let aborted = self
            .tree
            .with_store(move |store| Ok(store.sessions().abort(writer.session, &writer.actor)?));
        Ok(aborted.await?)
    }
}

impl Drop for FsOpenFile {
    fn drop(&mut self) {
        let FileAccess::Writer { writer, .. } = &self.access else {
            return;
        };
        if !writer.end(&self.tree) {
            return;
        }
        let (service, writer) = (self.tree.service().clone(), Arc::clone(writer));
        // The abort blocks on the disk, and without a runtime the session is swept later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                if let Ok(lease) = service.open_for(&writer.actor)
                    && let Err(error) = lease.sessions().abort(writer.session, &writer.actor)
                {
                    let error = logged_error(&error);
                    tracing::debug!(%error, "a write session had ended already");
                }
            });
        }
    }
}

impl fmt::Debug for OpenContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenContent")
            .field("hash", &self.reader.hash())
            .finish_non_exhaustive()
    }
}
