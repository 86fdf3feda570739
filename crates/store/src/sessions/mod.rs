//! Write sessions: a private version of one path, which becomes the file at once when the session is closed.
//!
//! Readers see the version of before until then, and a session that is aborted, expires or is lost in a crash leaves the
//! file as it was. Only one file is staged for a session, and nothing is copied when it is opened: ranges without a write
//! show the content that the session began from.

mod commit;
pub(crate) mod ranges;
mod registry;
mod rows;
mod state;
mod write;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::TimeSource;
use crate::content::{ContentFolder, ContentReader, check_file_size};
use crate::db::{Durability, ReadTransaction, StoreDb};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::{SESSION_TTL_MS_DEFAULT, STAGED_BYTES_DEFAULT};
use crate::locks::LockToken;
use crate::names::{
    BranchId, BranchState, BucketId, BucketState, EntryAttributes, EntryKind, EntryPrecondition,
};
use crate::path::EntryPath;
use ranges::ByteRanges;
use registry::{SessionRegistry, WriteSessionSlot};
use state::{SessionStaging, WriteSessionState};

/// How a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteSessionMode {
    /// Empty, and nothing may be at the path, at the close as well.
    Create,
    /// Empty, whatever is at the path.
    Truncate,
    /// With the present content, or empty where no file is.
    Modify,
    /// The same, and offset 0 of a write is the end of that content.
    Append,
}

impl WriteSessionMode {
    /// The name in the row and in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Truncate => "truncate",
            Self::Modify => "modify",
            Self::Append => "append",
        }
    }

    /// The mode with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Create, Self::Truncate, Self::Modify, Self::Append];
        all.into_iter().find(|mode| mode.name() == name)
    }
}

/// The random name of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriteSessionId([u8; 16]);

impl WriteSessionId {
    /// Takes the bytes as they are.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes of the name.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        let filled = getrandom::fill(&mut bytes);
        filled.map_err(|error| StoreError::ContentFolder(error.to_string()))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for WriteSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A session to be opened.
#[derive(Clone, Debug)]
pub struct NewWriteSession {
    /// The branch that is written to.
    pub branch: BranchId,
    /// The file.
    pub path: EntryPath,
    /// How the session begins.
    pub mode: WriteSessionMode,
    /// The identity that opens it, which alone may use it, and is the actor of the commit.
    pub identity: String,
    /// Bytes that the content will have, or that are appended. Another size at the close is refused, and a write behind it
    /// ends the session. `None` is not known.
    pub expected_size: Option<u64>,
    /// What is expected at the path, at the opening and at the close.
    pub precondition: EntryPrecondition,
    /// Attributes that the file gets.
    pub attributes: EntryAttributes,
    /// Tokens of locks that the identity has. They count at the opening and at the close.
    pub lock_tokens: Vec<LockToken>,
}

impl NewWriteSession {
    /// A session without conditions.
    #[must_use]
    pub fn new(branch: BranchId, path: EntryPath, mode: WriteSessionMode, identity: &str) -> Self {
        Self {
            branch,
            path,
            mode,
            identity: identity.to_owned(),
            expected_size: None,
            precondition: EntryPrecondition::Any,
            attributes: EntryAttributes::default(),
            lock_tokens: Vec::new(),
        }
    }
}

/// What a session became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedSession {
    /// BLAKE3 of the content.
    pub hash: ContentHash,
    /// Bytes of the content.
    pub size: u64,
    /// Number of the commit.
    pub seq: u64,
}

/// Limits of sessions that an administrator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSessionOptions {
    /// Bytes that the open sessions of one identity stage at most.
    pub staged_bytes_max: u64,
    /// Milliseconds without a call after which a session is swept.
    pub ttl_ms: u64,
}

impl Default for WriteSessionOptions {
    fn default() -> Self {
        Self {
            staged_bytes_max: STAGED_BYTES_DEFAULT,
            ttl_ms: SESSION_TTL_MS_DEFAULT,
        }
    }
}

/// The open sessions of a store. Every call blocks on the disk. A clone shares them.
#[derive(Clone)]
pub struct WriteSessions {
    db: StoreDb,
    content: ContentFolder,
    time: Arc<dyn TimeSource>,
    options: WriteSessionOptions,
    registry: Arc<SessionRegistry>,
    /// Rows of sessions that are over and could not be removed.
    leftover: Arc<Mutex<Vec<SessionRow>>>,
}

/// The row of a session, and what it counts.
#[derive(Clone, Copy, Debug)]
struct SessionRow {
    id: WriteSessionId,
    bucket: BucketId,
    /// Bytes that the row counts for the bucket.
    saved: u64,
}

/// What a session begins from.
struct SessionTarget {
    bucket: BucketId,
    durability: Durability,
    /// The file at the path.
    base: Option<ContentHash>,
    quota_left: Option<u64>,
}

impl WriteSessions {
    /// Removes the sessions of the time before the start: their staging files are gone.
    pub(crate) fn start(
        db: StoreDb,
        content: ContentFolder,
        time: Arc<dyn TimeSource>,
        options: WriteSessionOptions,
    ) -> Result<Self, StoreError> {
        db.write(|tx| tx.remove_all_sessions()).wait()?;
        Ok(Self {
            db,
            content,
            time,
            options,
            registry: Arc::new(SessionRegistry::new(options.staged_bytes_max)),
            leftover: Arc::default(),
        })
    }

    /// The same sessions, whose rows are read by this handle.
    pub(crate) fn reading_as(&self, db: &StoreDb) -> Self {
        Self {
            db: db.clone(),
            content: self.content.reading_as(db),
            ..self.clone()
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// The branch takes no changes; something else than expected is at the path; a lock covers it, and the session has not
    /// its token ([`StoreError::Locked`]); the identity has too many sessions or staged bytes; the declared size is above the
    /// quota of the bucket, or reaches into the reserve of the disk.
    pub fn open(&self, new: &NewWriteSession) -> Result<WriteSessionId, StoreError> {
        let declared = new.expected_size.unwrap_or_default();
        check_file_size(declared)?;
        self.content.check_space(declared)?;
        let id = WriteSessionId::random()?;
        self.registry.begin(&new.identity, declared)?;
        let opened = self.open_counted(id, new);
        // The count goes with a session that was not opened.
        if opened.is_err() {
            self.registry.end(id, &new.identity, 0);
        }
        opened.map(|()| id)
    }

    fn open_counted(&self, id: WriteSessionId, new: &NewWriteSession) -> Result<(), StoreError> {
        let request = new.clone();
        let target = self.db.read(move |tx| tx.session_target(&request)).wait()?;
        let base = match (new.mode, target.base) {
            (WriteSessionMode::Modify | WriteSessionMode::Append, Some(hash)) => {
                Some(self.content.reader_in(target.bucket, hash)?)
            }
            _ => None,
        };
        let base_hash = base.as_ref().map(ContentReader::hash);
        let request = new.clone();
        let inserted = self
            .db
            .write(move |tx| tx.insert_session(id, &request, base_hash));
        inserted.wait()?;
        let base_len = base.as_ref().map_or(0, ContentReader::size);
        let origin = match new.mode {
            WriteSessionMode::Append => base_len,
            _ => 0,
        };
        let state = WriteSessionState {
            id,
            new: new.clone(),
            bucket: target.bucket,
            durability: target.durability,
            base,
            base_len,
            origin,
            staging: SessionStaging::Memory(Vec::new()),
            written: ByteRanges::default(),
            size: base_len,
            charged: 0,
            saved: 0,
            quota_left: target.quota_left,
            is_broken: false,
            prepared: None,
        };
        let slot = WriteSessionSlot {
            identity: new.identity.clone(),
            touched_ms: AtomicU64::new(self.time.unix_ms()),
            state: Mutex::new(Some(state)),
        };
        self.registry.insert(id, slot);
        Ok(())
    }

    /// Ends a session without a change of its file. If the store is too busy to remove its row,
    /// [`sweep`](Self::sweep) does it.
    ///
    /// # Errors
    /// The identity has no such session.
    pub fn abort(&self, id: WriteSessionId, identity: &str) -> Result<(), StoreError> {
        let slot = self.registry.find(id, identity, self.time.unix_ms())?;
        let state = slot.lock().take();
        let state = state.ok_or(StoreError::NotFound(StoreObject::Session))?;
        self.discard_later(&state);
        Ok(())
    }

    /// Ends sessions that no call has used for the time of the options, and removes rows that could not be removed when
    /// their sessions ended. Returns the number of the sessions.
    ///
    /// # Errors
    /// The database refuses a statement. The next call tries again.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        self.remove_leftover()?;
        let oldest = self.time.unix_ms().checked_sub(self.options.ttl_ms);
        // Nothing is older than 1970.
        let Some(oldest) = oldest else {
            return Ok(0);
        };
        let mut swept = 0;
        for slot in self.registry.idle_since(oldest) {
            let mut locked = slot.lock();
            // A call may have come while the lock was waited for.
            if slot.touched_ms.load(Ordering::Relaxed) > oldest {
                continue;
            }
            // A session that is being closed at this moment has no state any more.
            if let Some(state) = locked.take() {
                self.discard_later(&state);
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Whether a session is open. It does not count as a call of its identity.
    #[must_use]
    pub fn is_open(&self, id: WriteSessionId) -> bool {
        self.registry.is_open(id)
    }

    /// Number of open sessions.
    #[must_use]
    pub fn count(&self) -> usize {
        self.registry.count()
    }

    /// Removes the row of a session that is over, and its count. The staging file goes with the state. A row that cannot be
    /// removed now is left to [`sweep`](Self::sweep): it counts for its bucket, and keeps a content from being collected.
    fn discard_later(&self, state: &WriteSessionState) {
        // The count first: it must not stay where the database fails.
        self.registry
            .end(state.id, &state.new.identity, state.charged);
        let row = SessionRow {
            id: state.id,
            bucket: state.bucket,
            saved: state.saved,
        };
        if let Err(error) = self.remove_row(row) {
            tracing::warn!(%error, "the row of a write session stays until the next sweep");
            self.lock_leftover().push(row);
        }
    }

    fn remove_row(&self, row: SessionRow) -> Result<(), StoreError> {
        let SessionRow { id, bucket, saved } = row;
        let removed = self
            .db
            .write(move |tx| tx.remove_session(id, bucket, saved));
        removed.wait()
    }

    /// Removes the rows that could not be removed when their sessions ended.
    fn remove_leftover(&self) -> Result<(), StoreError> {
        // One by one, and without the lock while the disk is waited for.
        loop {
            let row = self.lock_leftover().pop();
            let Some(row) = row else {
                return Ok(());
            };
            if let Err(error) = self.remove_row(row) {
                self.lock_leftover().push(row);
                return Err(error);
            }
        }
    }

    /// A panic while the lock is held leaves whole rows.
    fn lock_leftover(&self) -> MutexGuard<'_, Vec<SessionRow>> {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadTransaction<'_> {
    /// Looks at what a session is to write to.
    fn session_target(&self, new: &NewWriteSession) -> Result<SessionTarget, StoreError> {
        new.path.columns()?;
        let branch = self.branch(new.branch)?;
        let bucket = self.bucket(branch.bucket)?;
        // The commit checks all of this again. Here it spares an upload that could not end well.
        if bucket.state != BucketState::Live {
            return Err(StoreError::ReadOnly("the bucket is frozen"));
        }
        if branch.state != BranchState::Open {
            return Err(StoreError::ReadOnly("the branch is closed"));
        }
        if branch.is_protected {
            return Err(StoreError::Denied("the branch takes merges only"));
        }
        let entry = self.find(&self.view(branch.id, None)?, &new.path)?;
        if entry.as_ref().is_some_and(|it| it.state.is_directory()) {
            return Err(StoreError::IsDirectory {
                path: new.path.to_string(),
            });
        }
        if new.mode == WriteSessionMode::Create && entry.is_some() {
            return Err(StoreError::Exists(StoreObject::Entry));
        }
        new.precondition.require(entry.as_ref())?;
        let file = entry.filter(|entry| entry.state.kind == EntryKind::File);
        let declared = new.expected_size.unwrap_or_default();
        Ok(SessionTarget {
            bucket: bucket.id,
            durability: bucket.durability,
            base: file.and_then(|entry| entry.state.hash),
            quota_left: self.check_quota(bucket.id, declared)?,
        })
    }
}

impl fmt::Debug for WriteSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteSessions")
            .field("options", &self.options)
            .field("open", &self.count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
