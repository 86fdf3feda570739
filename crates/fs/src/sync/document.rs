//! The document of a branch: a map from paths to values, of which each writer may have put another one.

mod rebuilt;
mod received;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use alknet_store::{
    EntryKind, EntryPath, EntryState, HybridTimestamp, PathRule, SyncDocumentKey, SyncRow,
};
use automerge::sync::{Message, State, SyncDoc};
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, ChangeHash, ROOT, ReadDoc, SaveOptions, ScalarValue};

use super::entry::{SyncActor, SyncedEntry};
use super::error::{ByeCode, SyncError};
use super::incoming::contain;
use super::limits::{DocumentLimits, SYNC_BYTES_MAX, TOMBSTONE_MS};

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
    /// Whether more than deletions came or was written, which needs room on the disk.
    pub(super) is_growing: bool,
}

/// In which order rows and the versions of a document were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// In that of their times: the document has versions of peers that the writer of the rows did not know.
    ByTime,
    /// The rows came behind everything that the document has, also if the clock was set back meanwhile.
    Newest,
}

/// The document of a branch in memory.
pub(super) struct SyncedDocument {
    key: SyncDocumentKey,
    limits: DocumentLimits,
    doc: Automerge,
    actor: SyncActor,
    /// The highest number of an operation. The library has 32 bits for it.
    last_operation: u64,
    /// The winner of each valid path. It follows from the document.
    winners: BTreeMap<String, SyncedVersion>,
    /// Bytes of the paths and targets of the winners.
    path_bytes: usize,
    /// Changes whose predecessors have not come, each with its bytes. The library keeps them in memory, without a limit.
    waiting: HashMap<ChangeHash, usize>,
    /// Whether a peer has another change with the same writer and number.
    is_contradicted: bool,
}

impl SyncedDocument {
    /// Reads the parts of a document. None make an empty one.
    pub(super) fn load(
        (key, limits): (&SyncDocumentKey, DocumentLimits),
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
            limits,
            doc,
            actor,
            last_operation: last.unwrap_or_default(),
            winners: BTreeMap::new(),
            path_bytes: 0,
            waiting: HashMap::new(),
            is_contradicted: false,
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

    /// What the document is about.
    pub(super) const fn key(&self) -> &SyncDocumentKey {
        &self.key
    }

    pub(super) const fn limits(&self) -> DocumentLimits {
        self.limits
    }

    /// Whether the last message had another change with the writer and the number of one in the document, so that neither
    /// side can ever take in what the other one has.
    pub(super) const fn is_contradicted(&self) -> bool {
        self.is_contradicted
    }

    /// Operations that the document keeps, or its changes if they are more: one may have deletions of keys alone.
    pub(super) fn count_operations(&self) -> Result<u64, SyncError> {
        let stats = contain(|| self.doc.stats())?;
        Ok(stats.num_ops.max(stats.num_changes))
    }

    /// Paths that are not deleted.
    pub(super) fn live_paths(&self) -> impl Iterator<Item = &str> {
        let all = self.winners.iter();
        let live = all.filter(|(_, version)| version.entry.state.is_live());
        live.map(|(path, _)| path.as_str())
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

    /// Takes in rows that this node wrote. Rows that a peer's later version outdoes are left out, and their paths are
    /// among the affected ones: the store has to follow.
    ///
    /// `ask_empty` says whether the store has an empty directory at a path.
    pub(super) fn take_in<E>(
        &mut self,
        rows: &[SyncRow],
        order: RowOrder,
        mut ask_empty: impl FnMut(&EntryPath) -> Result<bool, E>,
        affected: &mut AffectedPaths,
    ) -> Result<Result<(), SyncError>, E> {
        // Asked once for each directory: for each of its deletions the answer would take as long as there are deletions.
        let mut known: HashMap<EntryPath, bool> = HashMap::new();
        let mut is_empty = |path: &EntryPath| -> Result<bool, E> {
            if let Some(answer) = known.get(path) {
                return Ok(*answer);
            }
            let answer = ask_empty(path)?;
            known.insert(path.clone(), answer);
            Ok(answer)
        };
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
                let entry = match (current, order) {
                    _ if is_later => Some(entry_of(row)),
                    // The clock of this node was set back, and the user saw what is replaced.
                    (Some(before), RowOrder::Newest) => Some(entry_behind(row, before)),
                    _ => None,
                };
                if let Some(entry) = entry {
                    affected.is_growing |= entry.state.is_live();
                    puts.insert(key.to_owned(), entry);
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

    /// Refuses more paths than the document may have, or longer ones.
    fn check_size(&self, paths: usize, bytes: usize) -> Result<(), SyncError> {
        if paths > self.limits.paths_max {
            return Err(self.too_many_paths());
        }
        let bytes_max = self.limits.path_bytes_max;
        if bytes > bytes_max {
            let reason = format!("paths and targets have more than {bytes_max} bytes");
            return Err(SyncError::refused(ByeCode::TooLarge, reason));
        }
        Ok(())
    }

    /// Sets or removes the version of a path that counts.
    fn set_winner(&mut self, path: &str, version: Option<SyncedVersion>) {
        let before = match version {
            Some(version) => {
                self.path_bytes += path_bytes(path, &version.entry);
                self.winners.insert(path.to_owned(), version)
            }
            None => self.winners.remove(path),
        };
        self.path_bytes -= before.map_or(0, |it| path_bytes(path, &it.entry));
    }

    /// Which of both it is says whether a split helps. The name in the root is that of a file, and not in the text.
    fn too_many_paths(&self) -> SyncError {
        let of = match self.key.top {
            Some(_) => "the branch has a directory in its root with",
            None => "the branch has",
        };
        let reason = format!("{of} more than {} paths", self.limits.paths_max);
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
        // No peer takes a change with very many operations.
        for some in old.chunks(CHANGE_PATHS_MAX) {
            self.change_values(some.iter().map(|path| (path, None)))?;
        }
        for path in &old {
            self.set_winner(path, None);
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
        // Before the change is made, which would have to be taken back.
        let (mut paths, mut bytes) = (self.winners.len(), self.path_bytes);
        for (path, entry, _) in &written {
            bytes += path_bytes(path, entry);
            match self.winners.get(path) {
                Some(before) => bytes -= path_bytes(path, &before.entry),
                None => paths += 1,
            }
        }
        self.check_size(paths, bytes)?;
        for some in written.chunks(CHANGE_PATHS_MAX) {
            let values = some.iter().map(|(path, _, bytes)| (path, Some(bytes)));
            self.change_values(values)?;
        }
        for (path, entry, _) in written {
            affected.paths.insert(path.clone());
            let actor = self.actor.clone();
            self.set_winner(&path, Some(SyncedVersion { entry, actor }));
        }
        Ok(())
    }

    /// Makes one change of this node, which puts these values and removes the keys without one.
    fn change_values<'v>(
        &mut self,
        mut values: impl Iterator<Item = (&'v String, Option<&'v Vec<u8>>)>,
    ) -> Result<(), SyncError> {
        let doc = &mut self.doc;
        let last = contain(|| {
            let mut transaction = doc.transaction();
            values.try_for_each(|(key, value)| {
                let done = match value {
                    Some(bytes) => {
                        transaction.put(ROOT, key.as_str(), ScalarValue::Bytes(bytes.clone()))
                    }
                    None => transaction.delete(ROOT, key.as_str()),
                };
                done.map_err(|error| internal(error.to_string()))
            })?;
            // Without a time: two nodes that do the same get the same bytes.
            transaction.commit_with(CommitOptions::default().with_time(0));
            Ok::<_, SyncError>(doc.get_last_local_change())
        })??;
        let last = last.map_or(0, |change| change.max_op());
        self.last_operation = self.last_operation.max(last);
        Ok(())
    }
}

/// Bytes of a path and of the target that it has.
fn path_bytes(path: &str, entry: &SyncedEntry) -> usize {
    path.len() + entry.state.target.as_ref().map_or(0, String::len)
}

fn entry_of(row: &SyncRow) -> SyncedEntry {
    let state = EntryState {
        xattr: None,
        ..row.state.clone()
    };
    let timestamp = row.timestamp;
    SyncedEntry { state, timestamp }
}

/// The entry of a row that replaces another entry, whatever its time is.
fn entry_behind(row: &SyncRow, before: &SyncedEntry) -> SyncedEntry {
    let (before, node) = (before.timestamp, row.timestamp.node());
    let timestamp = match before.counter().checked_add(1) {
        Some(counter) => HybridTimestamp::new(before.ms(), counter, node),
        None => HybridTimestamp::new(before.ms() + 1, 0, node),
    };
    SyncedEntry {
        timestamp,
        ..entry_of(row)
    }
}

pub(super) const fn deleted_state() -> EntryState {
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
