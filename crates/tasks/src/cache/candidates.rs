//! The parts of the cache that can be removed one by one, and their order.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::names;
use super::needs::{CacheNeeds, TARGET};
use super::units::{self, entries, is_folder};
use super::usage::{self, DiskUsage};
use crate::scratch::{self, OrphanFolder};

/// Folders whose entries are removed one by one, if their names have a [form](names) that the
/// commands write there. Other entries that are not named below are counted and never removed: they
/// are small, or no command makes them again.
const FOLDERS: [(&str, CandidateKind); 8] = [
    ("bin", CandidateKind::Front),
    ("binary", CandidateKind::Binary),
    ("gpu", CandidateKind::Gpu),
    ("image", CandidateKind::Image),
    ("kernel", CandidateKind::Kernel),
    ("sources", CandidateKind::Source),
    ("tools", CandidateKind::Tool),
    ("vulkan", CandidateKind::Driver),
];

/// Folders that are removed whole.
const WHOLE: [(&str, CandidateKind); 3] = [
    ("fuzz/corpus", CandidateKind::Corpus),
    ("fuzz/target", CandidateKind::OtherTarget),
    ("peer", CandidateKind::OtherTarget),
];

/// Folder of the saved machines of the tests.
const MACHINES: &str = "machines";

/// Folders in which a command makes temporary ones, and removes them unless it is killed.
const WITH_TEMPORARY: [&str; 2] = [MACHINES, "up"];

/// These folders have no lock. A folder whose files were not touched for this long is not in use.
const TEMPORARY_AGE: Duration = Duration::from_secs(86_400);

/// The kind of a candidate, which decides what its loss costs. The order is that of the list that
/// users see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CandidateKind {
    /// Temporary folder of a command that was killed.
    Orphan,
    /// Cargo unit of a version of the workspace's own packages that is not the current one.
    FormerUnit,
    /// Any other cargo unit.
    Unit,
    /// The data of one crate that rustc stores in the development profile.
    Incremental,
    Binary,
    /// Inputs that fuzzing found interesting.
    Corpus,
    Driver,
    /// The program that cargo starts instead of rustc.
    Front,
    Gpu,
    Image,
    Kernel,
    /// Saved machine of the tests.
    Machine,
    /// Target folder of another workspace or of other flags.
    OtherTarget,
    Source,
    Tool,
}

impl CandidateKind {
    /// What it costs to make it again.
    pub(super) const fn cost(self) -> &'static str {
        match self {
            Self::Orphan => "nothing: the command that made it was killed",
            Self::FormerUnit => "compiled again only for such a version",
            Self::Unit => "compiled again, in seconds each, when a build uses them",
            Self::Incremental => "nothing but a slower first build of the development profile",
            Self::Binary | Self::Image => "put together again in seconds",
            Self::Corpus => "found again only by fuzzing",
            Self::Driver => "about 4 minutes to build",
            Self::Front => "nothing: the commands copy it there",
            Self::Gpu => "packed again in less than a minute",
            Self::Kernel => "about 13 minutes to build",
            Self::Machine => "one boot",
            Self::OtherTarget => "some minutes to compile",
            Self::Source => "a download",
            Self::Tool => "a download, or some minutes to compile",
        }
    }

    /// The plural for many of them. The others are named one by one.
    pub(super) const fn plural(self) -> Option<&'static str> {
        match self {
            Self::FormerUnit => Some("artefacts of former versions of this project's packages"),
            Self::Unit => Some("artefacts that no recorded build of this tree uses"),
            _ => None,
        }
    }
}

/// The order of removal: the first of these first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EvictionRank {
    /// No command knows it any more.
    Orphan,
    /// It is of a former version of the workspace's own packages.
    Former,
    /// This tree does not need it, and another one may.
    Unneeded,
    /// Never removed.
    Needed,
}

/// A part of the cache that can be removed while all else stays.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) kind: CandidateKind,
    pub(super) rank: EvictionRank,
    /// Its path in the cache, or the first of its paths.
    pub(super) name: String,
    /// The paths, in the order of removal.
    pub(super) paths: Vec<PathBuf>,
    pub(super) usage: DiskUsage,
    /// For a unit of the workspace's own packages: equal for all versions of the same unit.
    versions_of: Option<String>,
    /// Held until this is dropped: a test that uses a saved machine, and a command that removes an
    /// orphan, take its lock first.
    _lock: Option<File>,
}

impl Candidate {
    fn new(cache: &Path, kind: CandidateKind, rank: EvictionRank, paths: Vec<PathBuf>) -> Self {
        let name = paths.first().map_or(cache, PathBuf::as_path);
        let name = name.strip_prefix(cache).unwrap_or(name);
        Self {
            kind,
            rank,
            name: name.to_string_lossy().into_owned(),
            paths,
            usage: DiskUsage::default(),
            versions_of: None,
            _lock: None,
        }
    }

    fn orphan(cache: &Path, path: PathBuf) -> Self {
        let (kind, rank) = (CandidateKind::Orphan, EvictionRank::Orphan);
        Self::new(cache, kind, rank, vec![path])
    }

    fn folder(cache: &Path, kind: CandidateKind, path: PathBuf, needs: &CacheNeeds) -> Self {
        let rank = if needs.folders.contains(&path) {
            EvictionRank::Needed
        } else {
            EvictionRank::Unneeded
        };
        Self::new(cache, kind, rank, vec![path])
    }
}

/// Everything that can be removed, with its usage and whether it is needed.
pub(super) fn list(cache: &Path, needs: &CacheNeeds) -> io::Result<Vec<Candidate>> {
    let mut candidates = orphans(cache)?;
    for (folder, kind) in FOLDERS {
        for entry in entries(&cache.join(folder))? {
            if names::is_ours(kind, &entry.file_name().to_string_lossy()) {
                candidates.push(Candidate::folder(cache, kind, entry.path(), needs));
            }
        }
    }
    for (folder, kind) in WHOLE {
        let path = cache.join(folder);
        // The check follows no link: the target of a link may be another program's.
        if path.parent().is_some_and(is_folder) && is_folder(&path) {
            candidates.push(Candidate::folder(cache, kind, path, needs));
        }
    }
    candidates.extend(machines(cache)?);
    candidates.extend(units_of(cache, needs)?);
    let paths: Vec<_> = candidates.iter().map(|one| one.paths.clone()).collect();
    for (candidate, usage) in candidates.iter_mut().zip(usage::measure(&paths)?) {
        // A record of the last use is more reliable than the times of files.
        let recorded = candidate.usage.last_used;
        candidate.usage = DiskUsage {
            last_used: recorded.or(usage.last_used),
            ..usage
        };
    }
    rank_versions(&mut candidates);
    Ok(candidates)
}

/// The folders that killed commands left.
fn orphans(cache: &Path) -> io::Result<Vec<Candidate>> {
    let mut orphans = Vec::new();
    for OrphanFolder { path, lock } in scratch::orphans(cache)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if names::is_scratch(&name) {
            let mut orphan = Candidate::orphan(cache, path);
            // The lock is held until the folder is removed, so that no command takes it up again.
            orphan._lock = Some(lock);
            orphans.push(orphan);
        }
    }
    for folder in WITH_TEMPORARY {
        for entry in entries(&cache.join(folder))? {
            let temporary = names::is_temporary(&entry.file_name().to_string_lossy());
            if temporary && is_old(&entry.path())? {
                orphans.push(Candidate::orphan(cache, entry.path()));
            }
        }
    }
    Ok(orphans)
}

fn is_old(path: &Path) -> io::Result<bool> {
    let usage = usage::measure(&[vec![path.to_owned()]])?;
    let last_used = usage.first().and_then(|usage| usage.last_used);
    // A time in the future means that the clock was set back, and says nothing about the age.
    let age = last_used.and_then(|last| last.elapsed().ok());
    Ok(age.is_some_and(|age| age > TEMPORARY_AGE))
}

/// The saved machines that no test uses. Each has a lock beside it, whose date is that of the last
/// use, and which stays when the machine goes.
fn machines(cache: &Path) -> io::Result<Vec<Candidate>> {
    let mut machines = Vec::new();
    for entry in entries(&cache.join(MACHINES))? {
        let path = entry.path();
        // The data that all machines share, such as their administrator, are small.
        let whole = path.join("contents.json").exists();
        let Ok(lock) = File::open(path.with_extension("lock")) else {
            continue;
        };
        // A machine that is in use is locked.
        if !whole || !is_folder(&path) || lock.try_lock().is_err() {
            continue;
        }
        let (kind, rank) = (CandidateKind::Machine, EvictionRank::Unneeded);
        let mut machine = Candidate::new(cache, kind, rank, vec![path]);
        machine.usage.last_used = Some(lock.metadata()?.modified()?);
        machine._lock = Some(lock);
        machines.push(machine);
    }
    Ok(machines)
}

/// The units that cargo compiled.
fn units_of(cache: &Path, needs: &CacheNeeds) -> io::Result<Vec<Candidate>> {
    let target = cache.join(TARGET);
    let mut candidates = Vec::new();
    for (unit, artefacts) in units::find(&target)? {
        let needed = needs.units.needed.contains(&unit);
        let (kind, rank) = match &artefacts.package {
            _ if needed => (CandidateKind::Unit, EvictionRank::Needed),
            Some(_) => (CandidateKind::Unit, EvictionRank::Unneeded),
            // Without its fingerprint cargo cannot use the rest of a unit.
            None => (CandidateKind::FormerUnit, EvictionRank::Former),
        };
        let mut candidate = Candidate::new(cache, kind, rank, artefacts.paths);
        candidate.usage.last_used = needs.units.last_used.get(&unit).copied();
        let own = artefacts
            .package
            .filter(|name| needs.members.contains(name));
        candidate.versions_of =
            own.map(|package| format!("{} {package} {}", unit.layout, artefacts.target));
        candidates.push(candidate);
    }
    for layout in units::layouts(&target)? {
        for entry in entries(&layout.join("incremental"))? {
            let (kind, rank) = (CandidateKind::Incremental, EvictionRank::Unneeded);
            candidates.push(Candidate::new(cache, kind, rank, vec![entry.path()]));
        }
    }
    Ok(candidates)
}

/// Distinguishes former versions of the workspace's own units from those that no recorded build
/// used. If one version is needed, all others are former ones. Otherwise all but the one used last
/// are former ones.
fn rank_versions(candidates: &mut [Candidate]) {
    let mut current: HashMap<String, (bool, Option<SystemTime>)> = HashMap::new();
    for candidate in candidates.iter() {
        if let Some(versions) = &candidate.versions_of {
            let this = current_by(candidate);
            let best = current.entry(versions.clone()).or_insert(this);
            *best = this.max(*best);
        }
    }
    for candidate in candidates {
        let versions = candidate.versions_of.as_ref();
        let Some(best) = versions.and_then(|versions| current.get(versions)) else {
            continue;
        };
        if candidate.rank != EvictionRank::Needed && current_by(candidate) < *best {
            candidate.kind = CandidateKind::FormerUnit;
            candidate.rank = EvictionRank::Former;
        }
    }
}

/// The key of which the current version has the greatest.
fn current_by(candidate: &Candidate) -> (bool, Option<SystemTime>) {
    let needed = candidate.rank == EvictionRank::Needed;
    (needed, candidate.usage.last_used)
}

/// The order of removal.
pub(super) fn order(candidate: &Candidate) -> (EvictionRank, SystemTime, String) {
    // A candidate without a recorded use counts as the oldest.
    let last_used = candidate.usage.last_used.unwrap_or(SystemTime::UNIX_EPOCH);
    (candidate.rank, last_used, candidate.name.clone())
}
