//! The store as a whole: names, contents, and what is being written.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::collect::{CollectProgress, GarbageCollection};
use crate::content::{
    BootVerification, CommitObserver, CommitStep, ContentFolder, ContentReader, PreparedContent,
    StagedContent, UnobservedCommits, VerifyProgress,
};
use crate::db::{
    Durability, ReadTransaction, StoreDb, StoreDbOptions, StoreOpenError, StoreReply,
    WriteTransaction,
};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::BOOT_VERIFY_BYTES_DEFAULT;
use crate::locks::LockToken;
use crate::names::{BucketId, ChangeRequest, CommitReceipt, ContentPresence, TreeChange};
use crate::sessions::{NewWriteSession, WriteSessionId, WriteSessionOptions, WriteSessions};

/// The file of names below the folder of the store.
const NAMES: &str = "fs.db";
/// The folder of contents below the folder of the store.
const CONTENTS: &str = "content";
/// Permission bits of the folder.
const FOLDER_MODE: u32 = 0o700;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct FileStoreOptions {
    /// Options of the file of names.
    pub db: StoreDbOptions,
    /// Limits of write sessions.
    pub sessions: WriteSessionOptions,
    /// Bytes that a start verifies after one that did not end in order, before the store is open. The rest is verified by
    /// [`Store::verify_step`].
    pub boot_verify_bytes: u64,
}

impl Default for FileStoreOptions {
    fn default() -> Self {
        Self {
            db: StoreDbOptions::default(),
            sessions: WriteSessionOptions::default(),
            boot_verify_bytes: BOOT_VERIFY_BYTES_DEFAULT,
        }
    }
}

/// A store of files. Clones share it, and the last one that is dropped closes it, as for [`StoreDb`].
///
/// Methods that block on the disk say so. They are not for a thread of an asynchronous runtime.
///
/// ```
/// use alknet_store::{
///     ChangeRequest, FileStoreOptions, NewBucket, NewWriteSession, Store, TreeChange, WriteSessionMode,
/// };
///
/// let folder = tempfile::tempdir()?;
/// let store = Store::open(&folder.path().join("fs"), FileStoreOptions::default())?;
/// let docs = NewBucket::new("docs".parse()?, "alice");
/// let (_, main) = store.write(move |tx| tx.create_bucket(&docs)).wait()?;
///
/// // A content at once. It stays pinned until the change has named it.
/// let content = store.put_bytes(b"first version")?;
/// let put = TreeChange::put("/report.txt".parse()?, content.content());
/// store.apply(ChangeRequest::new(main.id, "alice", put), vec![content]).wait()?;
///
/// // A change of one range, which readers see when the session is closed.
/// let path = "/report.txt".parse()?;
/// let session = NewWriteSession::new(main.id, path, WriteSessionMode::Modify, "alice");
/// let id = store.open_session(&session)?;
/// store.sessions().write(id, "alice", 0, b"final")?;
/// let closed = store.sessions().close(id, "alice", None)?;
///
/// let reader = store.read_content(closed.hash)?;
/// assert_eq!(reader.read(0..reader.size())?, b"final version");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    db: StoreDb,
    content: ContentFolder,
    sessions: WriteSessions,
    verification: Arc<Mutex<BootVerification>>,
}

impl Store {
    /// Opens the store in a folder, and makes it if it is missing. Sessions of the time before are removed. Blocks: after a
    /// start that did not end in order for as long as it takes to verify
    /// [`boot_verify_bytes`](FileStoreOptions::boot_verify_bytes).
    ///
    /// # Errors
    /// [`StoreOpenError`] says what is wrong. A damaged content is no error.
    pub fn open(folder: &Path, options: FileStoreOptions) -> Result<Self, StoreOpenError> {
        Self::open_observed(folder, options, Arc::new(UnobservedCommits))
    }

    /// The same, with an observer of each commit.
    pub(crate) fn open_observed(
        folder: &Path,
        options: FileStoreOptions,
        observer: Arc<dyn CommitObserver>,
    ) -> Result<Self, StoreOpenError> {
        let unusable = |path: &Path, reason: String| StoreOpenError::Unusable {
            path: path.to_owned(),
            reason,
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE);
        let made = builder.create(folder);
        let disk = observer.disk();
        // The name of the folder is on the disk before anything in it is acknowledged.
        let made = made.and_then(|()| match folder.parent() {
            Some(above) if !above.as_os_str().is_empty() => disk.sync_folder(above),
            _ => Ok(()),
        });
        made.map_err(|error| unusable(folder, error.to_string()))?;
        let FileStoreOptions {
            db,
            sessions,
            boot_verify_bytes,
        } = options;
        let time = Arc::clone(&db.time);
        // The names first: their lock keeps another process from emptying the staging folder.
        let db = StoreDb::open(&folder.join(NAMES), db)?;
        let contents = folder.join(CONTENTS);
        let failed = |error: StoreError| unusable(&contents, error.to_string());
        let content = ContentFolder::open(&contents, db.clone(), observer).map_err(failed)?;
        // At every start: an earlier process may have ended between the making of the folder of contents and its sync.
        let synced = disk.sync_folder(folder);
        synced.map_err(|error| unusable(folder, error.to_string()))?;
        let sessions =
            WriteSessions::start(db.clone(), content.clone(), Arc::clone(&time), sessions);
        let sessions = sessions.map_err(failed)?;
        let begun = content.begin_verification(time.unix_ms(), db.was_closed_in_order());
        let mut verification = begun.map_err(failed)?;
        // Before the first read: the last writes are what a power cut damages.
        let verified = content.verify_step(&mut verification, boot_verify_bytes);
        let verified = verified.map_err(failed)?;
        if !verified.damaged.is_empty() {
            let contents = verified.damaged.len();
            tracing::error!(
                contents,
                "contents were damaged or lost since the last start"
            );
        }
        Ok(Self {
            db,
            content,
            sessions,
            verification: Arc::new(Mutex::new(verification)),
        })
    }

    /// The same store, with a handle whose reads count for an identity, as [`StoreDb::reading_as`].
    #[must_use]
    pub fn reading_as(&self, identity: &str) -> Self {
        let db = self.db.reading_as(identity);
        Self {
            content: self.content.reading_as(&db),
            sessions: self.sessions.reading_as(&db),
            verification: Arc::clone(&self.verification),
            db,
        }
    }

    /// The file of names.
    #[must_use]
    pub const fn db(&self) -> &StoreDb {
        &self.db
    }

    /// The contents.
    #[must_use]
    pub const fn content(&self) -> &ContentFolder {
        &self.content
    }

    /// The open write sessions.
    #[must_use]
    pub const fn sessions(&self) -> &WriteSessions {
        &self.sessions
    }

    /// Runs a job in the next transaction, as [`StoreDb::write`].
    pub fn write<T, F>(&self, work: F) -> StoreReply<T>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.db.write(work)
    }

    /// Runs a read, as [`StoreDb::read`].
    pub fn read<T, F>(&self, work: F) -> StoreReply<T>
    where
        T: Send + 'static,
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.db.read(work)
    }

    /// Begins a content whose size may be unknown, as [`ContentFolder::stage`]. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn stage(&self) -> Result<StagedContent, StoreError> {
        self.content.stage()
    }

    /// Makes bytes ready to be named, as [`ContentFolder::put_bytes`]. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; or the content would be larger than any file.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<PreparedContent, StoreError> {
        self.content.put_bytes(bytes)
    }

    /// Makes a staged file ready to be named, as [`ContentFolder::put_staged`]. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn put_staged(&self, staged: StagedContent) -> Result<PreparedContent, StoreError> {
        self.content.put_staged(staged)
    }

    /// Makes the changes of a request, which name these contents, in one commit. The contents stay pinned until it has
    /// ended, and short ones get their rows in its transaction. Durable when the result is there.
    ///
    /// A [`TreeChange::Put`] of a content that is not among these is refused with [`StoreError::NotFound`], unless its bytes
    /// are said to be on peers: a name must not lead to bytes that may be gone.
    pub fn apply(
        &self,
        request: ChangeRequest,
        contents: Vec<PreparedContent>,
    ) -> StoreReply<CommitReceipt> {
        self.apply_with(Durability::Full, request, contents, Vec::new())
    }

    /// The same, with the durability of the bucket, and with tokens of locks that the actor has.
    pub fn apply_with(
        &self,
        durability: Durability,
        request: ChangeRequest,
        contents: Vec<PreparedContent>,
        tokens: Vec<LockToken>,
    ) -> StoreReply<CommitReceipt> {
        let observer = self.content.observer();
        self.db.write_with(durability, move |tx| {
            check_contents(&request, &contents)?;
            for content in &contents {
                tx.record_content(content)?;
            }
            let receipt = tx.apply_locked(&request, &tokens)?;
            observer.observe_step(CommitStep::RowsWritten)?;
            Ok(receipt)
        })
    }

    /// Notes that a content which a name leads to has arrived, so that it is here for the buckets that have a right to it.
    /// Those that wait for it get the right from [`WriteTransaction::receive_content`](crate::WriteTransaction::receive_content).
    /// Durable when the result is there.
    ///
    /// It is refused with [`StoreError::NotFound`] if the store does not know the content any more.
    pub fn complete_content(&self, content: PreparedContent) -> StoreReply<()> {
        self.db.write(move |tx| {
            if tx.content_row(content.hash())?.is_none() {
                return Err(StoreError::NotFound(StoreObject::Content));
            }
            tx.record_content(&content)
        })
    }

    /// Opens the content of a file of a bucket, as [`ContentFolder::reader_in`]. Blocks.
    ///
    /// # Errors
    /// The bucket has no right to the content, or the store does not have it whole.
    pub fn read_content_in(
        &self,
        bucket: BucketId,
        hash: ContentHash,
    ) -> Result<ContentReader, StoreError> {
        self.content.reader_in(bucket, hash)
    }

    /// Opens a content, as [`ContentFolder::reader`]: for callers that know that they may read it. A hash is no right, and
    /// neither is a name that was only announced; [`read_content_in`](Self::read_content_in) looks at that. Blocks.
    ///
    /// # Errors
    /// The store does not know the content, or does not have it whole.
    pub fn read_content(&self, hash: ContentHash) -> Result<ContentReader, StoreError> {
        self.content.reader(hash)
    }

    /// Opens a write session, as [`WriteSessions::open`]. Blocks.
    ///
    /// # Errors
    /// The session may not be opened.
    pub fn open_session(&self, new: &NewWriteSession) -> Result<WriteSessionId, StoreError> {
        self.sessions.open(new)
    }

    /// Verifies more of what the last start left, at most about this many bytes. Does nothing once all of it is verified.
    /// Blocks.
    ///
    /// # Errors
    /// The database refuses a statement, or the system fails at a file.
    pub fn verify_step(&self, bytes_max: u64) -> Result<VerifyProgress, StoreError> {
        let mut verification = self.verification();
        self.content.verify_step(&mut verification, bytes_max)
    }

    /// Whether everything that the last start left is verified.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verification().is_done()
    }

    /// Does one step of a collection. Blocks.
    ///
    /// # Errors
    /// The database refuses a statement, or the system fails at a file. The collection may go on.
    pub fn collect_step(
        &self,
        collection: &mut GarbageCollection,
    ) -> Result<CollectProgress, StoreError> {
        collection.step(&self.db, &self.content)
    }

    /// A panic of a step leaves a position that the next step goes on from.
    fn verification(&self) -> MutexGuard<'_, BootVerification> {
        let locked = self.verification.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a request that gives a name to a content which the caller did not prepare.
fn check_contents(request: &ChangeRequest, contents: &[PreparedContent]) -> Result<(), StoreError> {
    let prepared: HashMap<_, _> = contents.iter().map(|it| (it.hash(), it.size())).collect();
    for change in &request.changes {
        if let TreeChange::Put { content, .. } = change
            && content.presence == ContentPresence::Complete
            && prepared.get(&content.hash) != Some(&content.size)
        {
            return Err(StoreError::NotFound(StoreObject::Content));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
