//! The sizes of one commit, how they are kept, and what changed since another commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::symbols::SizeTable;
use crate::digest;
use crate::failure::{Result, TaskError};

/// Digits of a commit's name in the name of its ledger, as manifests have them.
pub(super) const COMMIT_DIGITS: usize = 12;

/// The folder in the cache.
const FOLDER: &str = "sizes";

/// Ledgers that the cache keeps, the newest: a ledger has about 20 kB.
const LEDGERS_KEPT: usize = 200;

/// Commits before the checked-out one among which an earlier ledger is looked for.
const ANCESTORS: &str = "--max-count=1000";

/// The groups of a ledger, in the order in which they are shown.
pub(super) const LIBRARIES: &str = "binary";
pub(super) const SECTIONS: &str = "binary-without-symbols";
pub(super) const KERNEL: &str = "kernel";
pub(super) const GPU: &str = "gpu";
pub(super) const GPU_LIBRARIES: &str = "gpu-program";
pub(super) const FORMS: &str = "forms";
pub(super) const GROUPS: [&str; 6] = [LIBRARIES, SECTIONS, KERNEL, GPU, GPU_LIBRARIES, FORMS];

/// Rows with limits.
pub(super) const BZIMAGE: &str = "bzImage";
pub(super) const PACKED: &str = "packed";
pub(super) const UKI: &str = "uki";

/// The sizes of one commit, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SizeLedger {
    /// The first [`COMMIT_DIGITS`] digits of its name.
    pub commit: String,
    /// Sizes by group and name.
    pub groups: BTreeMap<String, SizeTable>,
    /// Crates of which the binary has several versions.
    pub duplicates: BTreeMap<String, Vec<String>>,
}

/// A size, and the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SizeChange {
    pub group: &'static str,
    pub name: String,
    pub bytes: u64,
    /// `None` without an earlier ledger.
    pub before: Option<u64>,
}

impl SizeChange {
    /// Bytes that were added.
    pub(super) fn growth(&self) -> i64 {
        let before = self.before.unwrap_or(self.bytes);
        signed(self.bytes) - signed(before)
    }
}

/// No program has so many bytes that this would be less.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl SizeLedger {
    /// A size of the ledger, 0 if it is not there.
    pub(super) fn bytes(&self, group: &str, name: &str) -> u64 {
        let table = self.groups.get(group);
        table
            .and_then(|table| table.get(name))
            .copied()
            .unwrap_or(0)
    }

    /// Every size of the ledger and of the earlier one, the largest of each group first.
    pub(super) fn changes(&self, earlier: Option<&Self>) -> Vec<SizeChange> {
        let mut changes = Vec::new();
        for group in GROUPS {
            let names = [Some(self), earlier].into_iter().flatten();
            let names = names.filter_map(|ledger| ledger.groups.get(group));
            let names: BTreeSet<&String> = names.flat_map(BTreeMap::keys).collect();
            let rows = names.into_iter().map(|name| SizeChange {
                group,
                name: name.clone(),
                bytes: self.bytes(group, name),
                before: earlier.map(|ledger| ledger.bytes(group, name)),
            });
            let mut rows: Vec<SizeChange> = rows.collect();
            rows.sort_by(|one, other| {
                let by_bytes = other.bytes.cmp(&one.bytes);
                by_bytes.then_with(|| one.name.cmp(&other.name))
            });
            changes.extend(rows);
        }
        changes
    }

    /// Writes the ledger into the cache, and removes the oldest ones.
    pub(super) fn store(&self, cache: &Path) -> Result<()> {
        let path = path(cache, &self.commit);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| TaskError::Workspace(error.to_string()))?;
        let write = || -> io::Result<()> {
            let folder = cache.join(FOLDER);
            fs::create_dir_all(&folder)?;
            let mut fresh = tempfile::NamedTempFile::new_in(&folder)?;
            io::Write::write_all(&mut fresh, &text)?;
            fresh.persist(&path).map_err(|failed| failed.error)?;
            forget_old(&folder)
        };
        write().map_err(TaskError::io(format!("write {}", path.display())))
    }

    /// The ledger of a commit, if the cache has it. One in an older form counts as missing.
    pub(super) fn load(cache: &Path, commit: &str) -> Option<Self> {
        let text = fs::read(path(cache, commit)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The ledger of the nearest commit that has one, of those before the checked-out one, and of that
    /// one itself if the tree has changes that are not committed.
    pub(super) fn nearest(cache: &Path, root: &Path, is_changed: bool) -> Option<Self> {
        let commits = ancestors(root);
        let mut commits = commits.iter().skip(usize::from(!is_changed));
        commits.find_map(|commit| Self::load(cache, commit))
    }
}

fn path(cache: &Path, commit: &str) -> PathBuf {
    cache.join(FOLDER).join(format!("{commit}.json"))
}

/// Removes all but the newest ledgers. Files with other names stay.
fn forget_old(folder: &Path) -> io::Result<()> {
    let mut ledgers: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let commit = name.to_str().and_then(|name| name.strip_suffix(".json"));
        if commit.is_some_and(|commit| digest::is_hex(commit, COMMIT_DIGITS)) {
            ledgers.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    ledgers.sort();
    let surplus = ledgers.len().saturating_sub(LEDGERS_KEPT);
    for (_, path) in ledgers.into_iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// The checked-out commit and those before it. A copy without history has none.
fn ancestors(root: &Path) -> Vec<String> {
    let output = crate::git(root)
        .args(["log", ANCESTORS, "--format=%H"])
        .output();
    let text = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    let text = String::from_utf8_lossy(&text);
    text.lines().filter_map(shortened).collect()
}

/// The name of a commit's ledger.
pub(super) fn shortened(commit: &str) -> Option<String> {
    commit.get(..COMMIT_DIGITS).map(str::to_owned)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A ledger of a commit with these groups, names and bytes.
    pub(in crate::sizes) fn ledger(commit: &str, sizes: &[(&str, &str, u64)]) -> SizeLedger {
        let mut ledger = SizeLedger {
            commit: commit.to_owned(),
            ..SizeLedger::default()
        };
        for (group, name, bytes) in sizes {
            let group = ledger.groups.entry((*group).to_owned()).or_default();
            group.insert((*name).to_owned(), *bytes);
        }
        ledger
    }

    #[test]
    fn a_change_has_both_sizes_also_of_what_came_and_what_went() {
        let now = ledger("b", &[(LIBRARIES, "kept", 10), (LIBRARIES, "new", 30)]);
        let before = ledger("a", &[(LIBRARIES, "kept", 15), (LIBRARIES, "gone", 5)]);
        let changes = now.changes(Some(&before));
        let seen = changes
            .iter()
            .map(|it| (it.name.as_str(), it.bytes, it.growth()));
        let expected = [("new", 30, 30), ("kept", 10, -5), ("gone", 0, -5)];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
        assert!(now.changes(None).iter().all(|it| it.growth() == 0));
    }

    #[test]
    fn a_stored_ledger_is_found_by_its_commit() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let stored = ledger("0123456789ab", &[(KERNEL, BZIMAGE, 7)]);
        stored.store(cache.path()).expect("writable");
        let found = SizeLedger::load(cache.path(), "0123456789ab");
        assert_eq!(found, Some(stored));
        assert_eq!(SizeLedger::load(cache.path(), "ba9876543210"), None);
        let broken = path(cache.path(), "ba9876543210");
        fs::write(broken, "[]").expect("writable");
        assert_eq!(SizeLedger::load(cache.path(), "ba9876543210"), None);
    }

    #[test]
    fn only_the_newest_ledgers_stay() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = cache.path().join(FOLDER);
        fs::create_dir(&folder).expect("writable");
        for n in 0..LEDGERS_KEPT + 3 {
            let file = fs::File::create(folder.join(format!("{n:012x}.json"))).expect("writable");
            let age = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n as u64);
            file.set_modified(age).expect("ours to date");
        }
        fs::write(folder.join("notes.json"), "mine").expect("writable");
        forget_old(&folder).expect("removable");
        let left = fs::read_dir(&folder).expect("readable").count();
        assert_eq!(left, LEDGERS_KEPT + 1, "the newest, and a file of the user");
        assert!(!folder.join("000000000002.json").exists());
        assert!(folder.join("000000000003.json").exists());
    }
}
