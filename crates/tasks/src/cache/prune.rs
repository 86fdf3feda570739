//! Removes candidates from the cache until it is small enough.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use xtask::last_use::BuildSet;
use xtask::workspace::BuildLock;

use super::candidates::{self, Candidate, CandidateKind, EvictionRank};
use super::command_lock::CommandLock;
use super::folders::{self, FolderUsage};
use super::marked::MarkedCache;
use super::needs::{CacheNeeds, TARGET};
use super::{size, units, when};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;

/// What was removed, or would be.
#[derive(Debug)]
pub(super) struct PruneReport {
    candidates: Vec<Candidate>,
    before: u64,
    after: u64,
    limit: u64,
    /// Bytes that this tree needs, of the remaining ones.
    needed: u64,
    /// Builds without a record, whose artefacts therefore do not count as needed.
    unrecorded: Vec<BuildSet>,
    dry_run: bool,
}

/// Brings the cache below `limit` bytes, as far as this tree's needs allow. With `dry_run` it
/// removes nothing.
pub(super) fn run(cx: &XtaskContext, limit: u64, dry_run: bool) -> Result<PruneReport> {
    // This precedes the locks: a folder that is no cache of this project gets none.
    let cache = MarkedCache::find(cx.cache())?;
    // The locks are held until everything is removed and counted again.
    let locks = if dry_run {
        None
    } else {
        Some(PruneLocks::take(cx)?)
    };
    let pruned = prune(cache, &CacheNeeds::collect(cx)?, limit, dry_run);
    drop(locks);
    pruned
}

pub(super) fn prune(
    cache: MarkedCache<'_>,
    needs: &CacheNeeds,
    limit: u64,
    dry_run: bool,
) -> Result<PruneReport> {
    let cache = cache.path();
    let counting = || TaskError::io(format!("count what {} holds", cache.display()));
    let total = || folders::rows(cache).map(|rows| FolderUsage::total(&rows).bytes);
    let before = total().map_err(counting())?;
    let mut removable = candidates::list(cache, needs).map_err(counting())?;
    let is_needed = |candidate: &Candidate| candidate.rank == EvictionRank::Needed;
    let needed = removable.iter().filter(|one| is_needed(one));
    let needed = needed.map(|one| one.usage.bytes).sum();
    // Removing files with links elsewhere frees nothing.
    removable.retain(|one| !is_needed(one) && one.usage.freed > 0);
    removable.sort_by_cached_key(candidates::order);
    let mut after = before;
    let mut chosen = Vec::new();
    for candidate in removable {
        if after < limit {
            break;
        }
        after = after.saturating_sub(candidate.usage.freed);
        chosen.push(candidate);
    }
    if !dry_run && !chosen.is_empty() {
        remove(cache, &chosen)?;
        // The size is counted again, because another program may have written meanwhile.
        after = total().map_err(counting())?;
    }
    Ok(PruneReport {
        candidates: chosen,
        before,
        after,
        limit,
        needed,
        unrecorded: needs.units.missing.clone(),
        dry_run,
    })
}

/// Moves each path aside before it is deleted, so that a killed command leaves no half of a folder
/// where the next one looks for a whole one. A path that is a mount point or lies behind one is an
/// error: this program did not put it there.
pub(super) fn remove(cache: &Path, candidates: &[Candidate]) -> Result<()> {
    let aside = ScratchFolder::new(cache, "removed-")?;
    let paths = candidates.iter().flat_map(|one| &one.paths);
    for (n, path) in paths.enumerate() {
        let moved = aside.path().join(n.to_string());
        // The path disappears in one step: a deletion that is cut short would leave half an
        // artefact there.
        let removed = match fs::rename(path, &moved) {
            Ok(()) => delete(&moved),
            Err(error) => match error.kind() {
                // A command that does not take the lock may have removed it.
                io::ErrorKind::NotFound => Ok(()),
                // Overlayfs moves no folder that a lower layer has (its documentation, "Renaming
                // directories").
                io::ErrorKind::CrossesDevices if is_same_mount(path, aside.path()) => delete(path),
                io::ErrorKind::CrossesDevices | io::ErrorKind::ResourceBusy => {
                    return Err(mount_error(path));
                }
                // The rename needs room for one more name, which may be missing when room is to be
                // made.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => delete(path),
                _ => Err(error),
            },
        };
        removed.map_err(TaskError::io(format!("remove {}", path.display())))?;
    }
    Ok(())
}

/// The error for a mount in the cache. A user mounted it for a reason that this command does not
/// know.
fn mount_error(path: &Path) -> TaskError {
    TaskError::Arguments(format!(
        "{} is not removed: it is a mount point, or lies on another file system than the rest of the cache; unmount \
         that, or delete by hand what is in it",
        path.display()
    ))
}

/// Whether both are found through the same mount.
fn is_same_mount(one: &Path, other: &Path) -> bool {
    let ids = (mount_id(one), mount_id(other));
    // An unreadable id counts as another mount: then the path stays.
    matches!(ids, (Ok(Some(one)), Ok(Some(other))) if one == other)
}

/// The kernel's id of the mount through which `path` is found, from proc_pid_fdinfo(5).
fn mount_id(path: &Path) -> io::Result<Option<String>> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd()))?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    Ok(id.map(|id| id.trim().to_owned()))
}

/// Deletes a file, a folder, or a symbolic link without its target.
fn delete(path: &Path) -> io::Result<()> {
    let deleted = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match deleted {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        deleted => deleted,
    }
}

impl PruneReport {
    /// Bytes that the cache holds now, or would hold.
    pub(super) const fn after(&self) -> u64 {
        self.after
    }

    /// Fails if the cache is not below the limit.
    pub(super) fn check(&self) -> Result<()> {
        if self.after < self.limit {
            return Ok(());
        }
        Err(TaskError::CacheFull {
            left: size(self.after),
            needed: size(self.needed),
            limit: size(self.limit),
        })
    }

    /// The text for people: what was removed, its cost, and the remaining size.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if !self.candidates.is_empty() {
            text += if self.dry_run {
                "would be removed:\n"
            } else {
                "removed:\n"
            };
        }
        for (kind, candidates) in self.by_kind() {
            if let Some(plural) = kind.plural() {
                let freed = candidates.iter().map(|one| one.usage.freed).sum();
                text += &line(freed, &format!("{} {plural}", candidates.len()), kind);
                continue;
            }
            for candidate in candidates {
                let used = candidate.usage.last_used;
                let used =
                    used.map_or_else(String::new, |last| format!(", last used {}", when(last)));
                let what = format!("{}{used}", candidate.name);
                text += &line(candidate.usage.freed, &what, kind);
            }
        }
        if !self.unrecorded.is_empty() {
            let sets: Vec<String> = self.unrecorded.iter().map(ToString::to_string).collect();
            text += &format!(
                "no build of this was recorded yet, so that none of its artefacts counts as needed: {}; \
                 `cargo xtask test` records all\n",
                sets.join(", ")
            );
        }
        text + &format!(
            "the cache: {} before, {} {}; the limit is {}\n",
            size(self.before),
            size(self.after),
            if self.dry_run { "then" } else { "now" },
            size(self.limit)
        )
    }

    pub(super) fn json(&self) -> Value {
        let candidate = |candidate: &Candidate| {
            json!({
                "path": candidate.name,
                "bytes": candidate.usage.freed,
                "last_used": candidate.usage.last_used.map(when),
                "cost": candidate.kind.cost(),
            })
        };
        json!({
            "before_bytes": self.before,
            "after_bytes": self.after,
            "limit_bytes": self.limit,
            "needed_bytes": self.needed,
            "dry_run": self.dry_run,
            "removed": self.candidates.iter().map(candidate).collect::<Vec<_>>(),
        })
    }

    fn by_kind(&self) -> BTreeMap<CandidateKind, Vec<&Candidate>> {
        let mut kinds: BTreeMap<CandidateKind, Vec<&Candidate>> = BTreeMap::new();
        for candidate in &self.candidates {
            kinds.entry(candidate.kind).or_default().push(candidate);
        }
        kinds
    }
}

fn line(bytes: u64, what: &str, kind: CandidateKind) -> String {
    format!("  {:>10}  {what}: {}\n", size(bytes), kind.cost())
}

/// Locks that no other command may hold while candidates are removed.
#[derive(Debug)]
struct PruneLocks {
    _commands: CommandLock,
    _build: Arc<BuildLock>,
    _cargo: Vec<File>,
}

impl PruneLocks {
    /// Waits until no command of ours and no cargo uses the cache.
    fn take(cx: &XtaskContext) -> Result<Self> {
        let commands = CommandLock::alone(cx.cache()).map_err(TaskError::io("lock the cache"))?;
        let build = cx.claim()?;
        let cargo = cargo_locks(cx.cache()).map_err(TaskError::io("lock cargo's build folders"))?;
        Ok(Self {
            _commands: commands,
            _build: build,
            _cargo: cargo,
        })
    }
}

/// Takes cargo's own locks: a cargo that a user started holds none of ours.
fn cargo_locks(cache: &Path) -> io::Result<Vec<File>> {
    let hold = |path: &PathBuf| {
        let file = File::options().write(true).open(path)?;
        file.lock()?;
        Ok(file)
    };
    let paths = units::cargo_locks(&cache.join(TARGET))?;
    paths.iter().map(hold).collect()
}
