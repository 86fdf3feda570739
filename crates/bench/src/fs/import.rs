//! An import of 10,000 small files: `alknet fs put` of a folder beside `git add` and `git commit` of it, once as git does it
//! and once with everything synced.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::folder::{disk_folder, settle_disk};
use super::node::{BUCKET, FsBenchNode, NodeSetup};
use super::process::run_program;
use super::{BENCH, count_rounds};
use crate::rows::{BenchRow, median};
use crate::work_cost::WorkCost;
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

/// Files of the folder.
const FILES: usize = 10_000;

/// Files of each folder in it.
const FOLDER_FILES: usize = 100;

/// Bytes of the shortest and of the longest file.
const BYTES: std::ops::Range<usize> = 200..8000;

/// Who imports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ImportSide {
    Ours,
    Git,
    GitSynced,
}

impl ImportSide {
    const ALL: [Self; 3] = [Self::Ours, Self::Git, Self::GitSynced];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "alknet",
            Self::Git => "git",
            Self::GitSynced => "git, synced",
        }
    }

    /// How git writes. By itself it syncs no file of an object.
    const fn settings(self) -> &'static [&'static str] {
        match self {
            Self::GitSynced => &["-c", "core.fsync=all", "-c", "core.fsyncMethod=batch"],
            _ => &[],
        }
    }
}

/// Measures every side in turn, as often as asked.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let program = binary::plain(cx)?;
    let mut costs: BTreeMap<ImportSide, Vec<WorkCost>> = BTreeMap::new();
    for round in count_rounds(rounds) {
        // The node keeps contents that it has seen, so that each round needs others.
        let source = ImportSource::make(round)?;
        let setup = NodeSetup::make(&program, 0, 0)?;
        let node = setup.start_with_bucket(cx)?;
        for side in ImportSide::ALL {
            settle_disk();
            let cost = match side {
                ImportSide::Ours => source.put(&node)?,
                _ => source.commit(side)?,
            };
            costs.entry(side).or_default().push(cost);
        }
    }
    Ok(rows(&costs))
}

/// A folder with files, and room for repositories beside it.
struct ImportSource {
    folder: TempDir,
}

impl ImportSource {
    /// Other contents in each round.
    fn make(round: usize) -> Result<Self> {
        let folder = disk_folder()?;
        let made = Self { folder };
        let what = || TaskError::io("write a file");
        for number in 0..FILES {
            let below = made.files().join(format!("{:03}", number / FOLDER_FILES));
            fs::create_dir_all(&below).map_err(what())?;
            // A prime, so that the lengths do not come in order.
            let bytes = BYTES.start + number * 7919 % BYTES.len();
            let mut content = vec![0; bytes];
            let mut hasher = blake3::Hasher::new();
            hasher.update(format!("{round} {number}").as_bytes());
            hasher.finalize_xof().fill(&mut content);
            fs::write(below.join(format!("{number:05}.txt")), content).map_err(what())?;
        }
        Ok(made)
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// The time of processors is that of the command and of the node.
    fn put(&self, node: &FsBenchNode<'_>) -> Result<WorkCost> {
        let (target, address) = (node.target_word(), format!("{BUCKET}:/imported"));
        let files = self.files();
        let mut put = node.command([
            OsStr::new("put"),
            target.as_ref(),
            files.as_os_str(),
            address.as_ref(),
        ]);
        let before = node.cpu_seconds()?;
        let ((), cost) = WorkCost::measure(|| run_program(&mut put))?;
        Ok(WorkCost {
            cpu_s: cost.cpu_s + node.cpu_seconds()? - before,
            ..cost
        })
    }

    fn commit(&self, side: ImportSide) -> Result<WorkCost> {
        let repository = self.folder.path().join(format!("{side:?}.git"));
        let git = |words: &[&str]| run_program(self.git(&repository, side).args(words));
        // A repository is made once, and an import is what is compared.
        git(&["init", "--quiet"])?;
        let ((), cost) = WorkCost::measure(|| {
            git(&["add", "--all"])?;
            git(&["commit", "--quiet", "--message", "import"])
        })?;
        Ok(cost)
    }

    /// git with no settings but these, and nothing that goes on in the background.
    fn git(&self, repository: &Path, side: ImportSide) -> Command {
        let mut command = Command::new("git");
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_DIR", repository)
            .env("GIT_WORK_TREE", self.files())
            .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
            .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
            .args(side.settings());
        command
    }
}

fn rows(costs: &BTreeMap<ImportSide, Vec<WorkCost>>) -> Vec<BenchRow> {
    let of = |side, part: fn(&WorkCost) -> f64| {
        let all = costs.get(&side).into_iter().flatten();
        median(all.map(part).collect())
    };
    let mut rows = Vec::new();
    for peer in [ImportSide::Git, ImportSide::GitSynced] {
        let both = |part: fn(&WorkCost) -> f64| [ImportSide::Ours, peer].map(|side| of(side, part));
        let case = format!("import of 10,000 files: {}", peer.name());
        let [ours, theirs] = both(|cost| FILES as f64 / cost.wall_s);
        rows.push(BenchRow::higher(BENCH, &case, "files/s", ours).beside(peer.name(), theirs));
        let [ours, theirs] = both(|cost| cost.cpu_s);
        rows.push(BenchRow::lower(BENCH, &case, "CPU s", ours).beside(peer.name(), theirs));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_is_shown_with_and_without_syncs() {
        let cost = |wall_s| WorkCost { wall_s, cpu_s: 1.0 };
        let costs = ImportSide::ALL.map(|side| (side, vec![cost(2.0)]));
        let rows = rows(&costs.into());
        let ratios: Vec<_> = rows.iter().filter_map(|row| row.ratio).collect();
        assert_eq!(ratios, [1.0; 4]);
        assert!(rows.iter().all(|row| row.goal.is_none()));
    }
}
