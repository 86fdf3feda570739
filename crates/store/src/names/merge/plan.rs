//! What a merge writes: three trees compared path by path, and then the directories that the result needs.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConflictKind, MergeConflict, MergeStrategy};
use crate::clock::HybridTimestamp;
use crate::db::{ReadTransaction, to_sql};
use crate::error::StoreError;
use crate::limits::{
    COMPONENT_BYTES_MAX, CONFLICT_NAMES_MAX, SUBTREE_ENTRIES_MAX, TRANSACTION_BYTES_MAX,
};
use crate::names::entry::{Entry, EntryState};
use crate::names::list::TreeScan;
use crate::names::resolve::TreeView;
use crate::path::{EntryPath, InvalidPath};

/// The trees of a merge.
pub(super) struct MergeTrees {
    pub(super) base: TreeView,
    /// The target.
    pub(super) ours: TreeView,
    /// The source.
    pub(super) theirs: TreeView,
}

/// The newest row of a path in each tree, which may be a deletion.
#[derive(Clone, Debug)]
struct MergeSides {
    base: Option<Entry>,
    ours: Option<Entry>,
    theirs: Option<Entry>,
}

/// A merge that is being worked out.
pub(super) struct MergePlan<'a, 'c> {
    transaction: &'a ReadTransaction<'c>,
    trees: &'a MergeTrees,
    strategy: MergeStrategy,
    sides: BTreeMap<EntryPath, MergeSides>,
    /// What each path that was looked at has after the merge. `None` is nothing.
    result: BTreeMap<EntryPath, Option<EntryState>>,
    conflicts: BTreeMap<EntryPath, ConflictKind>,
    /// Bytes of the paths and attributes of all sides.
    bytes: u64,
}

/// What a merge writes.
pub(super) struct MergeResult {
    /// Paths of the target that change, with what they are then. `None` is nothing.
    pub(super) changes: Vec<(EntryPath, Option<EntryState>)>,
    /// In the order of the paths.
    pub(super) conflicts: Vec<MergeConflict>,
}

/// Compares two versions, of which either may be missing.
fn is_same(one: Option<&Entry>, other: Option<&Entry>) -> bool {
    match (live(one), live(other)) {
        (None, None) => true,
        (Some(one), Some(other)) => one.is_same_version(other),
        _ => false,
    }
}

fn live(entry: Option<&Entry>) -> Option<&EntryState> {
    let state = entry.map(|entry| &entry.state);
    state.filter(|state| state.is_live())
}

impl MergeSides {
    fn live_theirs(&self) -> Option<EntryState> {
        live(self.theirs.as_ref()).cloned()
    }

    fn live_ours(&self) -> Option<EntryState> {
        live(self.ours.as_ref()).cloned()
    }

    /// Bytes of the path and of the attributes that the sides hold in memory.
    fn bytes(&self, path: &EntryPath) -> u64 {
        let sides = [&self.base, &self.ours, &self.theirs];
        let attributes = sides.into_iter().flatten();
        let attributes: u64 = attributes.map(|it| it.state.attribute_bytes()).sum();
        path.as_str().len() as u64 + attributes
    }

    /// What both sides did to the path, if that contradicts itself.
    fn conflict(&self) -> Option<ConflictKind> {
        let (ours, theirs) = (self.ours.as_ref(), self.theirs.as_ref());
        if is_same(theirs, self.base.as_ref()) || is_same(ours, self.base.as_ref()) {
            return None;
        }
        match (live(ours), live(theirs)) {
            (None, None) => None,
            (Some(ours), Some(theirs)) if ours.has_content_of(theirs) => None,
            (None, Some(_)) => Some(ConflictKind::DeletedInTarget),
            (Some(_), None) => Some(ConflictKind::DeletedInSource),
            (Some(ours), Some(theirs)) if ours.is_directory() || theirs.is_directory() => {
                Some(ConflictKind::DirectoryAndOther)
            }
            (Some(_), Some(_)) => Some(ConflictKind::BothChanged),
        }
    }
}

impl<'a, 'c> MergePlan<'a, 'c> {
    /// Works out a merge. With [`MergeStrategy::Fail`] the changes are of use only if there are no conflicts.
    pub(super) fn work_out(
        transaction: &'a ReadTransaction<'c>,
        trees: &'a MergeTrees,
        strategy: MergeStrategy,
    ) -> Result<MergeResult, StoreError> {
        let mut plan = Self {
            transaction,
            trees,
            strategy,
            sides: BTreeMap::new(),
            result: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            bytes: 0,
        };
        // A path that the source left as it was stays as the target has it.
        for path in transaction.changed_paths(&trees.base, &trees.theirs)? {
            plan.take_in(&path)?;
            plan.decide(&path)?;
        }
        plan.find_entries_without_directory()?;
        plan.repair_directories()?;
        plan.finish()
    }

    fn take_in(&mut self, path: &EntryPath) -> Result<(), StoreError> {
        let newest = |view: &TreeView| self.transaction.newest(view, path);
        let sides = MergeSides {
            base: newest(&self.trees.base)?,
            ours: newest(&self.trees.ours)?,
            theirs: newest(&self.trees.theirs)?,
        };
        self.bytes += sides.bytes(path);
        self.sides.insert(path.clone(), sides);
        // Entries below removed directories are added one by one, so the limit of the comparison
        // does not hold them.
        if self.sides.len() > SUBTREE_ENTRIES_MAX {
            return Err(StoreError::too_many_entries());
        }
        // Few entries with long attributes take as much memory as many.
        if self.bytes > TRANSACTION_BYTES_MAX {
            return Err(StoreError::too_many_bytes());
        }
        Ok(())
    }

    /// Decides what a path has after the merge, without a look at other paths.
    fn decide(&mut self, path: &EntryPath) -> Result<(), StoreError> {
        let Some(sides) = self.sides.get(path).cloned() else {
            return Ok(());
        };
        let (ours, theirs) = (sides.live_ours(), sides.live_theirs());
        let decided = match sides.conflict() {
            Some(kind) => {
                self.conflicts.insert(path.clone(), kind);
                self.decide_conflict(kind, &sides)?
            }
            None if is_same(sides.theirs.as_ref(), sides.base.as_ref()) => ours,
            None if is_same(sides.ours.as_ref(), sides.base.as_ref()) => theirs,
            // Both made the same content. Of the attributes, the later ones count.
            None if self.is_theirs_later(&sides)? => theirs,
            None => ours,
        };
        self.result.insert(path.clone(), decided);
        Ok(())
    }

    fn decide_conflict(
        &mut self,
        kind: ConflictKind,
        sides: &MergeSides,
    ) -> Result<Option<EntryState>, StoreError> {
        let (ours, theirs) = (sides.live_ours(), sides.live_theirs());
        Ok(match (self.strategy, kind) {
            (MergeStrategy::Fail | MergeStrategy::Ours, _) => ours,
            (MergeStrategy::Theirs, _) => theirs,
            (MergeStrategy::Latest, _) if self.is_theirs_later(sides)? => theirs,
            (MergeStrategy::Latest, _) => ours,
            // A deletion has no content to put beside: the changed version alone stays.
            (MergeStrategy::KeepBoth, ConflictKind::DeletedInTarget) => theirs,
            (MergeStrategy::KeepBoth, ConflictKind::DeletedInSource) => ours,
            (MergeStrategy::KeepBoth, _) => {
                // A directory keeps its name: everything below it would have to move otherwise.
                let theirs_stays = theirs.as_ref().is_some_and(EntryState::is_directory);
                let (stays, moves) = if theirs_stays {
                    (theirs, &sides.ours)
                } else {
                    (ours, &sides.theirs)
                };
                if let Some(entry) = moves {
                    self.keep_beside(entry)?;
                }
                stays
            }
        })
    }

    /// Puts a version under the name of a conflict.
    fn keep_beside(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let query = "SELECT actor FROM commit_ WHERE seq = ?1";
        let seq = to_sql(entry.seq);
        let actor = self.transaction.query_row(query, [seq], |row| row.get(0))?;
        let actor: String = actor.unwrap_or_default();
        // The name may be taken by a file of a user, or by an earlier merge that kept the same
        // version.
        for attempt in 1..=CONFLICT_NAMES_MAX {
            let path = conflict_path(&entry.path, &actor, entry.seq, attempt)?;
            if self.state_of(&path)?.is_none() {
                self.result.insert(path, Some(entry.state.clone()));
                return Ok(());
            }
        }
        // The names are easy to guess, and a user may have made files of all of them.
        Err(StoreError::TooLarge {
            unit: "names of the second version of an entry",
            limit: u64::from(CONFLICT_NAMES_MAX),
        })
    }

    /// What a path has after the merge, as far as it is decided.
    fn state_of(&self, path: &EntryPath) -> Result<Option<EntryState>, StoreError> {
        if let Some(state) = self.result.get(path) {
            return Ok(state.clone());
        }
        let ours = self.transaction.find(&self.trees.ours, path)?;
        Ok(ours.map(|entry| entry.state))
    }

    /// Looks at what the target has below directories that the merge removes: the source did not know of it.
    fn find_entries_without_directory(&mut self) -> Result<(), StoreError> {
        let mut removed: BTreeSet<EntryPath> = BTreeSet::new();
        for (path, sides) in &self.sides {
            let was_directory = sides.live_ours().is_some_and(|it| it.is_directory());
            let after = self.result.get(path).and_then(Option::as_ref);
            let is_directory = after.is_some_and(EntryState::is_directory);
            // Paths are in order, so that a directory comes before everything below it.
            let is_inside = path.ancestors().any(|above| removed.contains(&above));
            if was_directory && !is_directory && !is_inside {
                removed.insert(path.clone());
            }
        }
        for directory in removed {
            let mut scan = TreeScan::below(&self.trees.ours, &directory).with_attributes();
            while let Some(chunk) = scan.next_chunk(self.transaction)? {
                for entry in chunk {
                    if !self.sides.contains_key(&entry.path) {
                        self.take_in(&entry.path)?;
                        self.result.insert(entry.path, Some(entry.state));
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes sure that everything in the result lies in a directory.
    fn repair_directories(&mut self) -> Result<(), StoreError> {
        // Those that follow are in the order of their paths: a directory comes before everything below it.
        let paths: Vec<EntryPath> = self.result.keys().cloned().collect();
        for path in paths {
            if !self.result.get(&path).is_some_and(Option::is_some) {
                continue;
            }
            let mut broken = Vec::new();
            for above in path.ancestors() {
                let state = self.state_of(&above)?;
                if !state.is_some_and(|state| state.is_directory()) {
                    broken.push(above);
                }
            }
            if !broken.is_empty() {
                self.repair(&path, &broken)?;
            }
        }
        Ok(())
    }

    /// Decides between an entry and the removal of the directories above it.
    fn repair(&mut self, path: &EntryPath, broken: &[EntryPath]) -> Result<(), StoreError> {
        let Some(top) = broken.first() else {
            return Ok(());
        };
        self.note_repair(path, top)?;
        // Without its directory the entry would be a row that no listing reaches.
        if !self.stays(path, top)? {
            self.result.insert(path.clone(), None);
            return Ok(());
        }
        for above in broken {
            if self.strategy == MergeStrategy::KeepBoth
                && let Some(state) = self.state_of(above)?
            {
                let entry = self.entry_with(above, &state)?;
                if let Some(entry) = entry {
                    self.keep_beside(&entry)?;
                }
            }
            let directory = self.directory_at(above)?;
            self.result.insert(above.clone(), Some(directory));
        }
        Ok(())
    }

    /// Reports the conflict, unless one at the entry or at the directory was reported already.
    fn note_repair(&mut self, path: &EntryPath, top: &EntryPath) -> Result<(), StoreError> {
        if self.conflicts.contains_key(path) || self.conflicts.contains_key(top) {
            return Ok(());
        }
        let ours = self.transaction.find(&self.trees.ours, top)?;
        let ours_is_directory = ours.as_ref().is_some_and(|it| it.state.is_directory());
        let after = self.state_of(top)?;
        let kind = match (after, ours_is_directory) {
            (Some(_), _) => ConflictKind::DirectoryAndOther,
            (None, true) => ConflictKind::DeletedInSource,
            (None, false) => ConflictKind::DeletedInTarget,
        };
        self.conflicts.insert(top.clone(), kind);
        Ok(())
    }

    /// Whether the entry stays, and the directories above it with it.
    fn stays(&self, path: &EntryPath, top: &EntryPath) -> Result<bool, StoreError> {
        let trees = self.trees;
        let is_live = |view: &TreeView| {
            let found = self.transaction.find(view, path)?;
            Ok::<_, StoreError>(found.is_some())
        };
        match self.strategy {
            MergeStrategy::Fail | MergeStrategy::Ours => is_live(&trees.ours),
            MergeStrategy::Theirs => is_live(&trees.theirs),
            MergeStrategy::KeepBoth => Ok(true),
            MergeStrategy::Latest => {
                let wanted = self.latest(path, |state| state.is_live())?;
                let removed = self.latest(top, |state| !state.is_directory())?;
                Ok(wanted > removed)
            }
        }
    }

    /// Time of the later of both sides' versions of a path that are like this.
    fn latest(
        &self,
        path: &EntryPath,
        is_wanted: impl Fn(&EntryState) -> bool,
    ) -> Result<Option<HybridTimestamp>, StoreError> {
        let mut latest = None;
        for view in [&self.trees.ours, &self.trees.theirs] {
            let entry = self.transaction.newest(view, path)?;
            if let Some(entry) = entry.filter(|entry| is_wanted(&entry.state)) {
                latest = latest.max(self.time_of(Some(&entry))?);
            }
        }
        Ok(latest)
    }

    fn is_theirs_later(&self, sides: &MergeSides) -> Result<bool, StoreError> {
        let ours = self.time_of(sides.ours.as_ref())?;
        Ok(self.time_of(sides.theirs.as_ref())? > ours)
    }

    /// Time of the commit of a row. `None` without a row, which is earlier than any.
    fn time_of(&self, entry: Option<&Entry>) -> Result<Option<HybridTimestamp>, StoreError> {
        let Some(entry) = entry else {
            return Ok(None);
        };
        let query = "SELECT hlc FROM commit_ WHERE seq = ?1";
        let seq = to_sql(entry.seq);
        let time = self.transaction.query_row(query, [seq], |row| row.get(0))?;
        Ok(time.map(HybridTimestamp::from_bytes))
    }

    /// The version of a path with this state.
    fn entry_with(
        &self,
        path: &EntryPath,
        state: &EntryState,
    ) -> Result<Option<Entry>, StoreError> {
        for view in [&self.trees.ours, &self.trees.theirs] {
            let entry = self.transaction.find(view, path)?;
            if let Some(entry) = entry.filter(|entry| entry.state == *state) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The directory that one of the trees has there.
    fn directory_at(&self, path: &EntryPath) -> Result<EntryState, StoreError> {
        let trees = [&self.trees.ours, &self.trees.theirs, &self.trees.base];
        for view in trees {
            let entry = self.transaction.find(view, path)?;
            if let Some(entry) = entry.filter(|entry| entry.state.is_directory()) {
                return Ok(entry.state);
            }
        }
        Ok(EntryState::directory(0))
    }

    fn finish(self) -> Result<MergeResult, StoreError> {
        let mut changes = Vec::new();
        for (path, state) in self.result {
            let ours = self.transaction.find(&self.trees.ours, &path)?;
            let is_same = match (&ours, &state) {
                (None, None) => true,
                (Some(ours), Some(state)) => ours.state.is_same_version(state),
                _ => false,
            };
            // A row that changes nothing would count against the quota and appear in the history.
            if !is_same {
                changes.push((path, state));
            }
        }
        let conflicts = self.conflicts.into_iter();
        let conflicts = conflicts.map(|(path, kind)| MergeConflict { path, kind });
        Ok(MergeResult {
            changes,
            conflicts: conflicts.collect(),
        })
    }
}

/// The path of the second version of an entry: `name.conflict-ACTOR-SEQ`, in the directory of the entry.
fn conflict_path(
    path: &EntryPath,
    actor: &str,
    seq: u64,
    attempt: u32,
) -> Result<EntryPath, InvalidPath> {
    let (parent, name) = path.columns()?;
    // The actor may have slashes and colons, which a path or an address reads otherwise.
    let is_plain =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    let plain = |letter: char| if is_plain(letter) { letter } else { '-' };
    let actor: String = actor.chars().take(64).map(plain).collect();
    let again = match attempt {
        1 => String::new(),
        attempt => format!("-{attempt}"),
    };
    let suffix = format!(".conflict-{actor}-{seq:08}{again}");
    let mut end = name.len().min(COMPONENT_BYTES_MAX - suffix.len());
    // A cut inside of a letter would not be UTF-8, which every path has to be.
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let path = EntryPath::from_stored(parent, &format!("{}{suffix}", &name[..end]));
    EntryPath::parse(path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_conflict_is_a_valid_component() {
        let path = |text: &str| EntryPath::parse(text).expect("valid");
        let made = conflict_path(&path("/a/b.txt"), "key:ab/cd", 42, 1).expect("valid");
        assert_eq!(made.as_str(), "/a/b.txt.conflict-key-ab-cd-00000042");
        let made = conflict_path(&path("/b"), "", 123_456_789, 3).expect("valid");
        assert_eq!(made.as_str(), "/b.conflict--123456789-3");
        let long = format!("/{}", "ä".repeat(127));
        let made = conflict_path(&path(&long), &"x".repeat(300), u64::MAX, u32::MAX);
        let (_, name) = made.as_ref().expect("valid").split().expect("a name");
        assert!(name.len() <= COMPONENT_BYTES_MAX, "{name}");
    }
}
