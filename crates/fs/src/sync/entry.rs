//! The value of a path in a document.

use std::fmt;

use alknet_store::limits::{FILE_BYTES_MAX, SYMLINK_TARGET_BYTES_MAX};
use alknet_store::{ContentHash, EntryKind, EntryState, HybridTimestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::limits::VALUE_BYTES_MAX;

/// Permission bits that an entry can have.
const MODE_MASK: u32 = 0o7777;

/// What a path has, with the time at which it got it. The stored form is the one that all peers share and that stays as it
/// is: postcard of kind, hash, size, mode, time of modification, target and hybrid timestamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncedEntry {
    /// What is there. Extended attributes are not part of it.
    pub state: EntryState,
    /// When it was written.
    pub timestamp: HybridTimestamp,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct StoredEntry {
    kind: u8,
    hash: Option<[u8; 32]>,
    size: u64,
    mode: u32,
    mtime_ns: i64,
    target: Option<String>,
    hlc: [u8; HybridTimestamp::BYTES],
}

/// Why bytes are no value of a path.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidEntry {
    /// A field has a value that the kind of the entry does not have.
    #[error("a field does not fit the kind of the entry")]
    Field,
    /// The bytes are not in the stored form, or not in its shortest one.
    #[error("the bytes are not in the form of a value")]
    Form,
    /// The value is longer than any valid one.
    #[error("the value is too long")]
    Length,
}

impl SyncedEntry {
    /// The stored form. Extended attributes are left out.
    ///
    /// # Errors
    /// The entry has values that no entry of a store has.
    pub fn encode(&self) -> Result<Vec<u8>, InvalidEntry> {
        let state = &self.state;
        let stored = StoredEntry {
            kind: kind_number(state.kind),
            hash: state.hash.map(|hash| *hash.as_bytes()),
            size: state.size,
            mode: state.mode,
            mtime_ns: state.mtime_ns,
            target: state.target.clone(),
            hlc: self.timestamp.to_bytes(),
        };
        let bytes = postcard::to_allocvec(&stored).map_err(|_| InvalidEntry::Form)?;
        // What this node could not read back would end each session.
        Self::decode(&bytes).map(|_| bytes)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// The bytes are not the form that [`encode`](Self::encode) makes, or the fields contradict each other.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidEntry> {
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(InvalidEntry::Length);
        }
        let stored: StoredEntry = postcard::from_bytes(bytes).map_err(|_| InvalidEntry::Form)?;
        // One value has one form: two peers that mean the same write the same.
        let again = postcard::to_allocvec(&stored).map_err(|_| InvalidEntry::Form)?;
        if again != bytes {
            return Err(InvalidEntry::Form);
        }
        let timestamp = HybridTimestamp::from_bytes(stored.hlc);
        let state = EntryState {
            kind: kind_of(stored.kind).ok_or(InvalidEntry::Field)?,
            hash: stored.hash.map(ContentHash::new),
            size: stored.size,
            mode: stored.mode,
            mtime_ns: stored.mtime_ns,
            target: stored.target,
            xattr: None,
        };
        match is_valid(&state) {
            true => Ok(Self { state, timestamp }),
            false => Err(InvalidEntry::Field),
        }
    }

    /// Whether both are the same version of an entry, whenever they were written.
    #[must_use]
    pub fn has_state_of(&self, state: &EntryState) -> bool {
        is_same_state(&self.state, state)
    }
}

/// Whether both are the same to peers. The time of a directory or a deletion does not count: it is that of the node that
/// made it.
pub(super) fn is_same_state(one: &EntryState, other: &EntryState) -> bool {
    if !one.is_live() && !other.is_live() {
        return true;
    }
    let is_same_time = one.is_directory() || one.mtime_ns == other.mtime_ns;
    let content = |it: &EntryState| (it.kind, it.hash, it.size, it.mode);
    is_same_time && content(one) == content(other) && one.target == other.target
}

fn is_valid(state: &EntryState) -> bool {
    let has_content = state.hash.is_some();
    let fits = match state.kind {
        EntryKind::File => has_content && state.size <= FILE_BYTES_MAX && state.target.is_none(),
        EntryKind::Deleted | EntryKind::Directory => {
            !has_content && state.size == 0 && state.target.is_none()
        }
        EntryKind::Symlink => {
            let target = state.target.as_deref().unwrap_or_default();
            let is_target = !target.is_empty()
                && target.len() <= SYMLINK_TARGET_BYTES_MAX
                && !target.contains('\0');
            !has_content && state.size == 0 && is_target
        }
    };
    fits && state.mode & !MODE_MASK == 0
}

const fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Deleted => 0,
        EntryKind::File => 1,
        EntryKind::Directory => 2,
        EntryKind::Symlink => 3,
    }
}

const fn kind_of(number: u8) -> Option<EntryKind> {
    match number {
        0 => Some(EntryKind::Deleted),
        1 => Some(EntryKind::File),
        2 => Some(EntryKind::Directory),
        3 => Some(EntryKind::Symlink),
        _ => None,
    }
}

/// The writer of a version: 16 bytes of the hash of its key, and what distinguishes its copies of the document.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncActor(Vec<u8>);

impl SyncActor {
    /// Bytes that depend on the key of the node alone.
    pub const NODE_BYTES: usize = 16;

    /// Bytes that depend on the copy of the document.
    pub const COPY_BYTES: usize = 8;

    /// The writer of a node's copy of a document.
    ///
    /// A node numbers its changes. After the loss of a document, or with an older copy of it, it would use numbers again
    /// that peers know with other changes: so each copy is another writer.
    #[must_use]
    pub fn new(node_key: &[u8], copy_id: [u8; 16]) -> Self {
        let hash = blake3::hash(node_key);
        let node = hash.as_bytes().iter().take(Self::NODE_BYTES);
        let copy = copy_id.iter().take(Self::COPY_BYTES);
        Self(node.chain(copy).copied().collect())
    }

    /// The writer with these bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for SyncActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SyncActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SyncActor({self})")
    }
}
