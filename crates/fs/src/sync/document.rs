//! The document of a branch: a map from paths to values, of which each writer may have put another one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use alknet_store::{
    EntryKind, EntryPath, EntryState, HybridTimestamp, PathRule, SyncDocumentKey, SyncRow,
};
use automerge::sync::{Message, State, SyncDoc};
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{
    ActorId, Automerge, ChangeHash, ObjId, ROOT, ReadDoc, SaveOptions, ScalarValue, Value,
};

use super::entry::{SyncActor, SyncedEntry};
use super::error::{ByeCode, SyncError};
use super::incoming::{OperationId, ReceivedChanges, checked_message, contain, invalid};
use super::limits::{FORMER_VERSIONS_MAX, SYNC_BYTES_MAX, TOMBSTONE_MS};

/// Permission bits of a directory that no peer needs to hear of.
const PLAIN_DIRECTORY_MODE: u32 = alknet_store::DIRECTORY_MODE_DEFAULT;

/// Paths that one change of this node writes. A peer that lacks more than a third of the changes gets the whole document:
/// with a tree in a single change, that would be so for every new file.
const CHANGE_PATHS_MAX: usize = 1000;

/// A version of a path, with its writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyncedVersion {
    pub(super) entry: SyncedEntry,
    pub(super) actor: SyncActor,
}

impl SyncedVersion {
    /// The greatest one is the version that a path has on every node.
    const fn rank(&self) -> (HybridTimestamp, &SyncActor) {
        (self.entry.timestamp, &self.actor)
    }
}

/// What follows from changes for the store.
#[derive(Debug, Default)]
pub(super) struct AffectedPaths {
    /// Paths that the store may have otherwise than the document.
    pub(super) paths: BTreeSet<String>,
    /// Versions that lost without having been in the store.
    pub(super) former: BTreeMap<String, Vec<SyncedVersion>>,
    /// Versions that get a name of another document of the branch. They are written to the store, and that document takes
    /// them in as the node's own.
    pub(super) elsewhere: BTreeMap<EntryPath, EntryState>,
    /// Entries that were left out, by the name of the rule.
    pub(super) refused: BTreeMap<&'static str, u64>,
}

/// The document of a branch in memory.
pub(super) struct SyncedDocument {
    key: SyncDocumentKey,
    /// Paths that it may have, deleted ones counted.
    paths_max: usize,
    doc: Automerge,
    actor: SyncActor,
    /// The highest number of an operation. The library has 32 bits for it.
    last_operation: u64,
    /// The winner of each valid path. It follows from the document.
    winners: BTreeMap<String, SyncedVersion>,
}

impl SyncedDocument {
    /// Reads the parts of a document. None make an empty one.
    pub(super) fn load(
        (key, paths_max): (&SyncDocumentKey, usize),
        chunks: &[Vec<u8>],
        actor: SyncActor,
    ) -> Result<Self, SyncError> {
        let bytes = chunks.concat();
        let loaded = contain(|| match bytes.is_empty() {
            true => Ok(Automerge::new()),
            false => Automerge::load(&bytes),
        });
        let loaded = loaded?.map_err(|error| {
            let reason = format!("the stored document is damaged: {error}");
            SyncError::refused(ByeCode::Internal, reason)
        })?;
        let doc = loaded.with_actor(ActorId::from(actor.as_bytes()));
        let last = contain(|| {
            let changes = doc.get_changes_meta(&[]);
            changes.iter().map(|change| change.max_op).max()
        })?;
        let mut document = Self {
            key: key.clone(),
            paths_max,
            doc,
            actor,
            last_operation: last.unwrap_or_default(),
            winners: BTreeMap::new(),
        };
        let keys: Vec<String> = document.doc.keys(ROOT).collect();
        for key in keys {
            if document.parse_path(&key).is_ok() {
                document.update_winner(&key)?;
            }
        }
        Ok(document)
    }

    /// The last changes of the document.
    pub(super) fn heads(&self) -> Vec<ChangeHash> {
        self.doc.get_heads()
    }

    /// The changes behind these heads, as a part to store.
    pub(super) fn save_after(&self, heads: &[ChangeHash]) -> Result<Vec<u8>, SyncError> {
        contain(|| self.doc.save_after(heads))
    }

    /// The whole document, as a part to store. Changes whose predecessors never came are left out.
    pub(super) fn save(&self) -> Result<Vec<u8>, SyncError> {
        let options = SaveOptions {
            retain_orphans: false,
            ..SaveOptions::default()
        };
        contain(|| self.doc.save_with_options(options))
    }

    /// The version of a path that counts.
    pub(super) fn winner(&self, path: &str) -> Option<&SyncedVersion> {
        self.winners.get(path)
    }

    /// Paths with a version, deleted ones counted.
    #[cfg(test)]
    pub(super) fn paths(&self) -> impl Iterator<Item = (&str, &SyncedVersion)> {
        let all = self.winners.iter();
        all.map(|(path, version)| (path.as_str(), version))
    }

    /// The next message for a peer. `None` while it owes an answer, and when both have the same.
    pub(super) fn generate(&self, state: &mut State) -> Result<Option<Vec<u8>>, SyncError> {
        let message = contain(|| self.doc.generate_sync_message(state))?;
        let bytes = message.map(Message::encode);
        match bytes {
            Some(bytes) if bytes.len() > SYNC_BYTES_MAX => Err(SyncError::refused(
                ByeCode::TooLarge,
                format!("a sync message of {} bytes", bytes.len()),
            )),
            other => Ok(other),
        }
    }

    /// Takes in a message of a peer. After an error the document is not to be used: a part of the message may be in it.
    pub(super) fn receive(
        &mut self,
        state: &mut State,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<ReceivedChanges, SyncError> {
        let message = checked_message(bytes)?;
        let before = self.doc.get_heads();
        #[cfg(test)]
        let panics = message.heads.contains(&super::incoming::PANICKING_HEAD);
        let received = contain(|| self.doc.receive_sync_message(state, message))?;
        // No message is known at which the library panics, so that a test says when it does.
        #[cfg(test)]
        contain(|| assert!(!panics, "a test asks for a panic"))?;
        received.map_err(|error| invalid(error.to_string()))?;
        let mut changes = contain(|| self.doc.get_changes(&before))?;
        // In an order in which each change comes behind those that it knows of.
        changes.sort_by_key(|change| change.start_op());
        let mut received = ReceivedChanges::default();
        for change in &changes {
            // A change follows those that it knows of. One with a number far ahead would leave no numbers for others.
            if change.start_op().get() > self.last_operation + 1 {
                return Err(invalid("the number of an operation is too high"));
            }
            self.last_operation = self.last_operation.max(change.max_op());
            contain(|| received.add(change, now_ms))??;
        }
        Ok(received)
    }

    /// Takes in rows that this node wrote. Rows that a peer's later version outdoes are left out, and their paths are
    /// among the affected ones: the store has to follow.
    ///
    /// `is_empty` says whether the store has an empty directory at a path.
    pub(super) fn take_in<E>(
        &mut self,
        rows: &[SyncRow],
        mut is_empty: impl FnMut(&EntryPath) -> Result<bool, E>,
        affected: &mut AffectedPaths,
    ) -> Result<Result<(), SyncError>, E> {
        let mut puts: BTreeMap<String, SyncedEntry> = BTreeMap::new();
        for row in rows {
            let key = row.path.as_str();
            let current = self.winners.get(key).map(|it| &it.entry);
            let live = current.filter(|it| it.state.is_live());
            let is_later = current.is_none_or(|it| row.timestamp > it.timestamp);
            let is_same = current.is_some_and(|it| it.has_state_of(&row.state));
            let is_worth_it = match row.state.kind {
                // A path without a version needs no deletion.
                EntryKind::Deleted => live.is_some(),
                EntryKind::Directory => {
                    let has_bits = row.state.mode != PLAIN_DIRECTORY_MODE;
                    has_bits || live.is_some() || is_empty(&row.path)?
                }
                EntryKind::File | EntryKind::Symlink => true,
            };
            if is_worth_it && !is_same {
                if is_later {
                    puts.insert(key.to_owned(), entry_of(row));
                } else {
                    affected.paths.insert(key.to_owned());
                }
            }
            // A directory that was only implied has to stay when the last entry below it goes.
            if !row.state.is_live()
                && let Some(parent) = row.path.parent()
                && !parent.is_root()
                && !self.has_directory(parent.as_str())
                && is_empty(&parent)?
            {
                let directory = EntryState {
                    kind: EntryKind::Directory,
                    mode: PLAIN_DIRECTORY_MODE,
                    ..row.state.clone()
                };
                let entry = SyncedEntry {
                    state: directory,
                    timestamp: row.timestamp,
                };
                puts.insert(parent.as_str().to_owned(), entry);
            }
        }
        Ok(self.put_all(puts, affected))
    }

    /// Whether the path has a version of its own that is a directory.
    fn has_directory(&self, path: &str) -> bool {
        let winner = self.winners.get(path);
        winner.is_some_and(|it| it.entry.state.is_directory())
    }

    /// Works out what changes of a peer mean for the store, and for the entries that they leave without a place.
    pub(super) fn resolve(
        &mut self,
        received: &ReceivedChanges,
        affected: &mut AffectedPaths,
    ) -> Result<(), SyncError> {
        for key in &received.keys {
            let path = match self.parse_path(key) {
                Ok(path) => path,
                Err(rule) => {
                    *affected.refused.entry(rule).or_default() += 1;
                    continue;
                }
            };
            let versions = self.update_winner(key)?;
            affected.paths.insert(key.clone());
            let above = path.ancestors().map(|it| it.as_str().to_owned());
            affected.paths.extend(above);
            if versions.invalid > 0 {
                *affected.refused.entry("value").or_default() += versions.invalid;
            }
            let former = self.former_versions(key, versions.all, &received.operations);
            if !former.is_empty() {
                affected.former.insert(key.clone(), former);
            }
        }
        match self.winners.len() > self.paths_max {
            true => Err(self.too_many_paths()),
            false => Ok(()),
        }
    }

    /// Which of both it is says whether a split helps. The name in the root is that of a file, and not in the text.
    fn too_many_paths(&self) -> SyncError {
        let of = match self.key.top {
            Some(_) => "the branch has a directory in its root with",
            None => "the branch has",
        };
        let reason = format!("{of} more than {} paths", self.paths_max);
        SyncError::refused(ByeCode::TooLarge, reason)
    }

    /// The path of a key. An error is the name of the rule that it breaks.
    fn parse_path(&self, key: &str) -> Result<EntryPath, &'static str> {
        let path = EntryPath::parse(key).map_err(|invalid| invalid.rule.name())?;
        if path.is_root() {
            return Err(PathRule::Root.name());
        }
        match self.key.contains(&path) {
            true => Ok(path),
            // Two documents with one path would overwrite each other's versions.
            false => Err("other-document"),
        }
    }

    /// The versions of a path that came and lost. What lost of this node's own is in its history already.
    fn former_versions(
        &self,
        key: &str,
        all: Vec<(OperationId, SyncedVersion)>,
        received: &HashSet<OperationId>,
    ) -> Vec<SyncedVersion> {
        let Some(winner) = self.winners.get(key) else {
            return Vec::new();
        };
        let lost = all.into_iter().filter(|(id, version)| {
            let is_live = version.entry.state.is_live();
            is_live
                && received.contains(id)
                && version != winner
                && !winner.entry.has_state_of(&version.entry.state)
        });
        let mut lost: Vec<_> = lost.map(|(_, version)| version).collect();
        lost.sort_by(|one, other| other.rank().cmp(&one.rank()));
        lost.truncate(FORMER_VERSIONS_MAX);
        lost.reverse();
        lost
    }

    /// Files and links that stand where others have a directory: each with the name that it gets instead.
    pub(super) fn displaced(&self, paths: &BTreeSet<String>) -> Vec<(String, SyncedVersion)> {
        let stands = |path: &&String| {
            let winner = self.winners.get(*path).map(|it| &it.entry.state);
            let is_entry = winner.is_some_and(|it| it.is_live() && !it.is_directory());
            is_entry && self.has_live_below(path)
        };
        let found = paths.iter().filter(stands);
        let versions = found.filter_map(|path| Some((path.clone(), self.winners.get(path)?)));
        versions
            .map(|(path, version)| (path, version.clone()))
            .collect()
    }

    /// Puts a version beside its path, under a name that says whose it is.
    pub(super) fn put_beside(
        &mut self,
        path: &str,
        version: &SyncedVersion,
        timestamp: HybridTimestamp,
        affected: &mut AffectedPaths,
    ) -> Result<(), SyncError> {
        let Some(beside) = conflict_path(path, version) else {
            return Ok(());
        };
        // Every node finds the same name. The first one that puts it there is enough, and one that a user deleted stays
        // deleted.
        if self.winners.contains_key(beside.as_str()) {
            return Ok(());
        }
        let state = version.entry.state.clone();
        if !self.key.contains(&beside) {
            affected.elsewhere.insert(beside, state);
            return Ok(());
        }
        let entry = SyncedEntry { state, timestamp };
        let puts = BTreeMap::from([(beside.as_str().to_owned(), entry)]);
        self.put_all(puts, affected)
    }

    /// Makes a path a directory.
    pub(super) fn put_directory(
        &mut self,
        path: &str,
        timestamp: HybridTimestamp,
        affected: &mut AffectedPaths,
    ) -> Result<(), SyncError> {
        let state = directory_state();
        let entry = SyncedEntry { state, timestamp };
        self.put_all(BTreeMap::from([(path.to_owned(), entry)]), affected)
    }

    /// What the store has to have at a path, and whether it is a directory only because something lies below it.
    pub(super) fn wanted(&self, path: &str) -> (EntryState, bool) {
        let winner = self.winners.get(path).map(|it| &it.entry.state);
        match winner.filter(|it| it.is_live()) {
            Some(state) if state.is_directory() => (state.clone(), false),
            _ if self.has_live_below(path) => (directory_state(), true),
            Some(state) => (state.clone(), false),
            None => (deleted_state(), false),
        }
    }

    /// Removes deletions that every peer has had the time to hear of.
    pub(super) fn remove_old_deletions(&mut self, now_ms: u64) -> Result<(), SyncError> {
        let is_old = |version: &SyncedVersion| {
            let until = version.entry.timestamp.ms().saturating_add(TOMBSTONE_MS);
            !version.entry.state.is_live() && until < now_ms
        };
        let old = self.winners.iter().filter(|(_, version)| is_old(version));
        let old: Vec<String> = old.map(|(path, _)| path.clone()).collect();
        if old.is_empty() {
            return Ok(());
        }
        self.change(|transaction| {
            old.iter().try_for_each(|path| {
                let deleted = transaction.delete(ROOT, path.as_str());
                deleted.map_err(|error| internal(error.to_string()))
            })
        })?;
        for path in &old {
            self.winners.remove(path);
        }
        Ok(())
    }

    fn has_live_below(&self, path: &str) -> bool {
        let (from, to) = (format!("{path}/"), format!("{path}0"));
        let bounds = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        let mut below = self.winners.range::<str, _>(bounds);
        below.any(|(_, version)| version.entry.state.is_live())
    }

    /// Writes values of this node.
    fn put_all(
        &mut self,
        puts: BTreeMap<String, SyncedEntry>,
        affected: &mut AffectedPaths,
    ) -> Result<(), SyncError> {
        let mut written = Vec::new();
        for (path, entry) in puts {
            match entry.encode() {
                Ok(bytes) => written.push((path, entry, bytes)),
                // An entry of the store that no peer would take.
                Err(_) => *affected.refused.entry("value").or_default() += 1,
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        let new = written
            .iter()
            .filter(|it| !self.winners.contains_key(&it.0));
        if self.winners.len() + new.count() > self.paths_max {
            return Err(self.too_many_paths());
        }
        for some in written.chunks(CHANGE_PATHS_MAX) {
            self.change(|transaction| {
                some.iter().try_for_each(|(path, _, bytes)| {
                    let value = ScalarValue::Bytes(bytes.clone());
                    let put = transaction.put(ROOT, path.as_str(), value);
                    put.map_err(|error| internal(error.to_string()))
                })
            })?;
        }
        for (path, entry, _) in written {
            affected.paths.insert(path.clone());
            let actor = self.actor.clone();
            self.winners.insert(path, SyncedVersion { entry, actor });
        }
        Ok(())
    }

    /// Makes one change of this node, or none.
    fn change(
        &mut self,
        work: impl FnOnce(&mut automerge::transaction::Transaction<'_>) -> Result<(), SyncError>,
    ) -> Result<(), SyncError> {
        let doc = &mut self.doc;
        let last = contain(|| {
            let mut transaction = doc.transaction();
            work(&mut transaction)?;
            // Without a time: two nodes that do the same get the same bytes.
            transaction.commit_with(CommitOptions::default().with_time(0));
            Ok::<_, SyncError>(doc.get_last_local_change())
        })??;
        let last = last.map_or(0, |change| change.max_op());
        self.last_operation = self.last_operation.max(last);
        Ok(())
    }

    /// Reads the versions of a path again.
    fn update_winner(&mut self, key: &str) -> Result<PathVersions, SyncError> {
        let versions = self.versions(key)?;
        let winner = versions.all.iter().map(|(_, version)| version);
        match winner.max_by(|one, other| one.rank().cmp(&other.rank())) {
            Some(winner) => {
                let winner = winner.clone();
                self.winners.insert(key.to_owned(), winner);
            }
            None => {
                self.winners.remove(key);
            }
        }
        Ok(versions)
    }

    /// All versions of a path that no later one has replaced.
    fn versions(&self, key: &str) -> Result<PathVersions, SyncError> {
        let values = contain(|| self.doc.get_all(ROOT, key))?;
        let values = values.map_err(|error| invalid(error.to_string()))?;
        let mut versions = PathVersions::default();
        for (value, id) in values {
            match (decode(&value), id) {
                (Some(entry), ObjId::Id(number, actor, _)) => {
                    let bytes = actor.to_bytes().to_vec();
                    let actor = SyncActor::from_bytes(&bytes);
                    let version = SyncedVersion { entry, actor };
                    versions.all.push(((number, bytes), version));
                }
                _ => versions.invalid += 1,
            }
        }
        Ok(versions)
    }
}

/// The versions of a path.
#[derive(Default)]
struct PathVersions {
    all: Vec<(OperationId, SyncedVersion)>,
    /// Values that are no version.
    invalid: u64,
}

fn decode(value: &Value<'_>) -> Option<SyncedEntry> {
    match value {
        Value::Scalar(scalar) => match scalar.as_ref() {
            ScalarValue::Bytes(bytes) => SyncedEntry::decode(bytes).ok(),
            _ => None,
        },
        Value::Object(_) => None,
    }
}

fn entry_of(row: &SyncRow) -> SyncedEntry {
    let state = EntryState {
        xattr: None,
        ..row.state.clone()
    };
    let timestamp = row.timestamp;
    SyncedEntry { state, timestamp }
}

const fn deleted_state() -> EntryState {
    EntryState {
        kind: EntryKind::Deleted,
        hash: None,
        size: 0,
        mode: 0,
        mtime_ns: 0,
        target: None,
        xattr: None,
    }
}

fn directory_state() -> EntryState {
    EntryState {
        kind: EntryKind::Directory,
        mode: PLAIN_DIRECTORY_MODE,
        ..deleted_state()
    }
}

/// `name.conflict-ACTOR-TIME` in the directory of the path. `None` if there is no such path.
fn conflict_path(path: &str, version: &SyncedVersion) -> Option<EntryPath> {
    let (parent, name) = path.rsplit_once('/')?;
    let time = version.entry.timestamp;
    let actor = version.actor.to_string();
    let actor = actor.get(..8).unwrap_or_default();
    let suffix = format!(".conflict-{actor}-{}.{}", time.ms(), time.counter());
    let room = alknet_store::limits::COMPONENT_BYTES_MAX.saturating_sub(suffix.len());
    let name = &name[..name.floor_char_boundary(room)];
    EntryPath::parse(&format!("{parent}/{name}{suffix}")).ok()
}

fn internal(reason: impl Into<String>) -> SyncError {
    SyncError::refused(ByeCode::Internal, reason)
}
