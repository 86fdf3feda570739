//! Names, by the library in this process: a list of 100,000, looks at a path, a branch of 500,000 entries, and a
//! difference of 1,000. A list and a look stand beside the same of the file system, on the same disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alknet_store::{
    BranchId, BranchName, ChangeRequest, Durability, EntryPath, ListRequest, NewBranch, StoreDb,
    StoreDbOptions,
};

use super::folder::{disk_folder, settle_disk};
use super::process::cpu_seconds;
use super::tree::{
    ACTOR, file_name, fill, flat_path, make_bucket, parse_path, put_version, store_failed,
    tree_path,
};
use super::{BENCH, count_rounds, goals};
use crate::call::measure::{failed, quantile};
use crate::rows::{BenchRow, Goal, median};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

/// Name of the peer in rows.
const PEER: &str = "file system";

/// Files of the directory that is listed.
const LISTED: usize = 100_000;

/// Files of the tree beside it.
const TREE: usize = 400_000;

/// Changes of a branch that is compared.
const CHANGES: usize = 1000;

/// Looks at a path in each round.
const LOOKS: usize = 20_000;

/// Branches made in each round.
const BRANCHES: usize = 20;

/// Differences made in each round.
const DIFFERENCES: usize = 5;

/// The directory that is listed.
const DIRECTORY: &str = "listed";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum NamesFigure {
    BranchCpuMs,
    BranchMs,
    DiffMs,
    ListCpuS,
    ListS,
    LookP50Us,
    LookP99Us,
    PeerListS,
    PeerLookP50Us,
    PeerLookP99Us,
}

type Figures = BTreeMap<NamesFigure, Vec<f64>>;

/// Measures every case in turn, as often as asked.
pub(super) fn run(_: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let folder = disk_folder()?;
    eprintln!("making {} entries ...", LISTED + TREE);
    let mut bench = NamesBench::make(folder.path())?;
    settle_disk();
    let mut figures = Figures::new();
    for _ in count_rounds(rounds) {
        bench.round(&mut figures)?;
    }
    Ok(rows(&figures))
}

struct NamesBench {
    db: StoreDb,
    main: BranchId,
    /// A branch of it with changes.
    changed: BranchId,
    /// The same files as those that are listed.
    files: PathBuf,
    /// Branches made so far.
    branches: usize,
}

impl NamesBench {
    fn make(folder: &Path) -> Result<Self> {
        let opened = StoreDb::open(&folder.join("fs.db"), StoreDbOptions::default());
        let db = opened.map_err(failed("opening a store"))?;
        let main = make_bucket(&db, "bench")?;
        fill(&db, main, (0..LISTED).map(|n| flat_path(DIRECTORY, n)))?;
        fill(&db, main, (0..TREE).map(tree_path))?;
        let changed = make_branch(&db, main, "changed".to_owned())?;
        // Spread over the tree.
        for change in 0..CHANGES {
            let path = tree_path(change * (TREE / CHANGES));
            let put = put_version(&path, 1)?;
            let request = ChangeRequest::new(changed, ACTOR, put);
            let written = db.write_with(Durability::Normal, move |tx| tx.apply(&request));
            written.wait().map_err(store_failed)?;
        }
        let files = folder.join(DIRECTORY);
        fs::create_dir(&files).map_err(TaskError::io("make a folder"))?;
        for number in 0..LISTED {
            let file = File::create(files.join(file_name(number)));
            file.map_err(TaskError::io("make a file"))?;
        }
        Ok(Self {
            db,
            main,
            changed,
            files,
            branches: 0,
        })
    }

    fn round(&mut self, figures: &mut Figures) -> Result<()> {
        let mut add = |figure, value: f64| figures.entry(figure).or_default().push(value);
        let ((), wall_s, cpu_s) = timed(|| self.list())?;
        add(NamesFigure::ListS, wall_s);
        add(NamesFigure::ListCpuS, cpu_s);
        let ((), wall_s, _) = timed(|| list_files(&self.files))?;
        add(NamesFigure::PeerListS, wall_s);
        let mut took = self.looks()?;
        took.sort_unstable();
        add(NamesFigure::LookP50Us, quantile(&took, 50));
        add(NamesFigure::LookP99Us, quantile(&took, 99));
        let mut took = file_looks(&self.files)?;
        took.sort_unstable();
        add(NamesFigure::PeerLookP50Us, quantile(&took, 50));
        add(NamesFigure::PeerLookP99Us, quantile(&took, 99));
        let ((), wall_s, cpu_s) = timed(|| self.make_branches())?;
        add(NamesFigure::BranchMs, wall_s / BRANCHES as f64 * 1e3);
        add(NamesFigure::BranchCpuMs, cpu_s / BRANCHES as f64 * 1e3);
        let ((), wall_s, _) = timed(|| self.compare())?;
        add(NamesFigure::DiffMs, wall_s / DIFFERENCES as f64 * 1e3);
        Ok(())
    }

    /// Reads every page of the directory.
    fn list(&self) -> Result<()> {
        let mut request = ListRequest::new(parse_path(&format!("/{DIRECTORY}"))?);
        let (main, mut seen) = (self.main, 0);
        loop {
            let asked = request.clone();
            let page = self
                .db
                .read(move |tx| tx.list(&tx.view(main, None)?, &asked));
            let page = page.wait().map_err(store_failed)?;
            seen += page.entries.len();
            match page.next {
                Some(next) => request.after = Some(next),
                None => break,
            }
        }
        match seen == LISTED {
            true => Ok(()),
            false => Err(failed("listing")(format!("{seen} entries"))),
        }
    }

    /// Looks at paths of the whole tree, each by a read of its own. The first looks, which fill the cache, do not count.
    fn looks(&self) -> Result<Vec<Duration>> {
        let paths = scattered(TREE).map(|number| parse_path(&tree_path(number)));
        let paths = paths.collect::<Result<Vec<_>>>()?;
        paths.iter().try_for_each(|path| self.find_path(path))?;
        let timed = paths.iter().map(|path| {
            let begun = Instant::now();
            self.find_path(path)?;
            Ok(begun.elapsed())
        });
        timed.collect()
    }

    fn find_path(&self, path: &EntryPath) -> Result<()> {
        let (main, path) = (self.main, path.clone());
        let found = self
            .db
            .read(move |tx| tx.stat(&tx.view(main, None)?, &path));
        let found = found.wait().map_err(store_failed)?;
        black_box(found);
        Ok(())
    }

    fn make_branches(&mut self) -> Result<()> {
        for _ in 0..BRANCHES {
            self.branches += 1;
            make_branch(&self.db, self.main, format!("made-{}", self.branches))?;
        }
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        let (main, changed) = (self.main, self.changed);
        for _ in 0..DIFFERENCES {
            let compared = self
                .db
                .read(move |tx| tx.diff(&tx.view(main, None)?, &tx.view(changed, None)?));
            let found = compared.wait().map_err(store_failed)?.len();
            if found != CHANGES {
                return Err(failed("comparing")(format!("{found} differences")));
            }
        }
        Ok(())
    }
}

/// Makes a branch, durably.
fn make_branch(db: &StoreDb, parent: BranchId, name: String) -> Result<BranchId> {
    let name: BranchName = name.parse().map_err(failed("naming a branch"))?;
    let new = NewBranch::new(name, parent, ACTOR);
    let made = db.write(move |tx| tx.create_branch(&new)).wait();
    Ok(made.map_err(store_failed)?.id)
}

/// Numbers below a number, all over it, each as likely as any other.
fn scattered(below: usize) -> impl Iterator<Item = usize> {
    // A prime that divides no number of entries here.
    (0..LOOKS).map(move |number| number * 7919 % below)
}

fn list_files(folder: &Path) -> Result<()> {
    let listed = fs::read_dir(folder).map_err(TaskError::io("list a folder"))?;
    let mut names = Vec::new();
    for entry in listed {
        let entry = entry.map_err(TaskError::io("list a folder"))?;
        let metadata = entry.metadata().map_err(TaskError::io("look at a file"))?;
        names.push((entry.file_name(), metadata));
    }
    // The store lists in the order of the names.
    names.sort_by(|(first, _), (second, _)| first.cmp(second));
    black_box(names);
    Ok(())
}

fn file_looks(folder: &Path) -> Result<Vec<Duration>> {
    let timed = scattered(LISTED).map(|number| {
        let path = folder.join(file_name(number));
        let begun = Instant::now();
        let metadata = path.symlink_metadata();
        let took = begun.elapsed();
        black_box(metadata.map_err(TaskError::io("look at a file"))?);
        Ok(took)
    });
    timed.collect()
}

/// Does work, and returns with its result the time by the clock and that of processors, of all threads of this process.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64, f64)> {
    let pid = std::process::id();
    let (begun, before) = (Instant::now(), cpu_seconds(pid)?);
    let done = work()?;
    Ok((
        done,
        begun.elapsed().as_secs_f64(),
        cpu_seconds(pid)? - before,
    ))
}

fn rows(figures: &Figures) -> Vec<BenchRow> {
    let of = |figure| median(figures.get(&figure).cloned().unwrap_or_default());
    let lower = |case: &str, unit, figure| BenchRow::lower(BENCH, case, unit, of(figure));
    let list = "library: list of 100,000";
    let look = "library: look at a path of 500,000";
    let branch = "library: branch of 500,000, durable";
    vec![
        lower(list, "s", NamesFigure::ListS).beside(PEER, of(NamesFigure::PeerListS)),
        lower(list, "CPU s", NamesFigure::ListCpuS),
        lower(look, "us p50", NamesFigure::LookP50Us).beside(PEER, of(NamesFigure::PeerLookP50Us)),
        lower(look, "us p99", NamesFigure::LookP99Us)
            .beside(PEER, of(NamesFigure::PeerLookP99Us))
            .goal(Goal::Ours(goals::RESOLVE_P99_US)),
        lower(branch, "ms", NamesFigure::BranchMs).goal(Goal::Ours(goals::BRANCH_MS)),
        lower(branch, "CPU ms", NamesFigure::BranchCpuMs),
        lower("library: difference of 1,000", "ms", NamesFigure::DiffMs)
            .goal(Goal::Ours(goals::DIFF_MS)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn looks_are_all_over_the_tree() {
        let numbers: BTreeSet<_> = scattered(TREE).collect();
        assert_eq!(numbers.len(), LOOKS);
        let last = numbers.last().copied();
        assert!(last.is_some_and(|number| number > TREE - TREE / 100));
    }

    #[test]
    fn three_figures_are_held() {
        let held = rows(&Figures::new())
            .iter()
            .filter(|row| row.goal.is_some())
            .count();
        assert_eq!(held, 3);
    }
}
