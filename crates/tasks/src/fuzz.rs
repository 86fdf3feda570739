//! `soak fuzz`: every parser under libFuzzer, with the promises in `fuzz/src`.

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;

/// The campaign's name, and the folder of its package.
pub(crate) const NAME: &str = "fuzz";

/// Default minutes for each target.
pub(crate) const MINUTES: u64 = 10;

/// What the engine observes in our code and in every library below it: which edges are taken, how
/// often, and which values are compared. Each is a flag of the stable compiler.
const INSTRUMENTED: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// Longest input in bytes: long enough for two ClientHellos and for a configuration of every key,
/// short enough for thousands of runs per second.
const INPUT_BYTES_MAX: u32 = 4096;

/// Targets whose inputs are longer, and how long these may be. The engine cuts longer seeds, and an
/// archive or a volume that is cut is refused early.
const LONGER_INPUTS: [(&str, u32); 4] = [
    // What a volume of FAT16, or with sectors of 4 KiB, has behind its tables begins at 12 KiB.
    ("fat", 16 << 10),
    // A path has up to 4096 bytes, behind the names of a bucket and a branch.
    ("fs_address", 8 << 10),
    // Metadata of LUKS2 with as many levels as its parser takes.
    ("sealed", 8 << 10),
    // A whole bundle: a tar archive, in which each document takes two blocks or more.
    ("update", 16 << 10),
];

/// One input may take this many seconds. An ordinary one takes microseconds.
const INPUT_SECONDS_MAX: u32 = 10;

/// Memory of a run in MiB.
const MEMORY_MIB_MAX: u32 = 2048;

/// What to do.
#[derive(Debug)]
pub(crate) struct Campaign<'a> {
    /// Minutes for each target.
    pub(crate) minutes: u64,
    /// The only target, if one is chosen.
    pub(crate) only: Option<&'a str>,
    /// Whether interesting inputs go into the tree.
    pub(crate) keep: bool,
    /// How many targets run at once.
    pub(crate) jobs: NonZeroUsize,
}

/// Longest input of this target, in bytes.
fn input_bytes_max(target: &str) -> u32 {
    let longer = LONGER_INPUTS.iter().find(|(name, _)| *name == target);
    longer.map_or(INPUT_BYTES_MAX, |(_, bytes)| *bytes)
}

/// The number of processors, because one target runs on each.
pub(crate) fn jobs() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The result of a campaign.
#[derive(Debug)]
pub(crate) struct FuzzReport {
    /// A Markdown table, a row for each target.
    pub(crate) table: String,
    /// Inputs that break a promise.
    pub(crate) findings: Vec<PathBuf>,
}

impl Campaign<'_> {
    /// Runs the targets, some at once. A finding ends its target, not the campaign.
    pub(crate) fn run(&self, cx: &mut XtaskContext) -> Result<FuzzReport> {
        let targets = self.targets(&cx.root().join(NAME))?;
        let folder = cx.step("build the fuzz targets", |cx| build(cx))?;
        let mut rows = Vec::new();
        for some in targets.chunks(self.jobs.get()) {
            let runs = some
                .iter()
                .map(|target| FuzzTargetRun::new(cx, &folder, target));
            let runs: Vec<FuzzTargetRun> = runs.collect::<Result<_>>()?;
            let title = format!("fuzz {}", some.join(", "));
            let done = cx.step(&title, |cx| self.fuzz(cx, &runs, &title))?;
            for (run, row) in runs.iter().zip(&done) {
                cx.board().print(&row.line());
                if self.keep && row.findings.is_empty() {
                    let title = format!("minimise {}", run.name);
                    cx.step(&title, |cx| run.keep_corpus(cx, &title))?;
                }
            }
            rows.extend(done);
        }
        Ok(FuzzReport {
            table: table(&rows),
            findings: rows.into_iter().flat_map(|row| row.findings).collect(),
        })
    }

    /// Runs these targets at once.
    fn fuzz(&self, cx: &XtaskContext, runs: &[FuzzTargetRun], title: &str) -> Result<Vec<FuzzRow>> {
        let mut commands: Vec<Command> = runs.iter().map(|run| run.fuzz(self.minutes)).collect();
        let logged = commands.iter_mut().zip(runs.iter().map(FuzzTargetRun::log));
        let results = cx.run_all(logged, &format!("{title} for {} min", self.minutes))?;
        let rows = runs.iter().zip(results);
        rows.map(|(run, result)| run.row(cx, result)).collect()
    }

    /// The names of the programs in `targets/`.
    fn targets(&self, package: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for file in files(&package.join("targets"))? {
            let name = file.file_stem().unwrap_or_default();
            names.push(name.to_string_lossy().into_owned());
        }
        match self.only {
            None => Ok(names),
            Some(only) if names.iter().any(|name| name == only) => Ok(vec![only.to_owned()]),
            Some(only) => Err(TaskError::Arguments(format!(
                "no fuzz target \"{only}\", only {}",
                names.join(", ")
            ))),
        }
    }
}

/// Builds the targets into their own folder, and returns that folder.
fn build(cx: &XtaskContext) -> Result<PathBuf> {
    let target = cx.cache().join(NAME).join("target");
    let mut command = cx.cargo("build");
    command
        .args(["--release", "--package", "alknet-fuzz", "--bins"])
        .args(["--features", "engine"])
        .env("CARGO_TARGET_DIR", &target)
        // Cargo prefers these to `RUSTFLAGS`.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // The wrapper would compile these programs for the lints, and slow.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // These replace the flags in `.cargo/config.toml`: the engine is no static program.
        .env("RUSTFLAGS", INSTRUMENTED.join(" "));
    let _lock = cx.claim()?;
    cx.run(&mut command, "building the fuzz targets", "fuzz-build")?;
    Ok(target.join(cx.triple()).join("release"))
}

/// One target and its folders.
struct FuzzTargetRun {
    name: String,
    program: PathBuf,
    /// The corpus in the tree.
    tree: PathBuf,
    /// The interesting inputs of earlier runs on this machine. This run adds to them.
    own: PathBuf,
    findings: PathBuf,
}

impl FuzzTargetRun {
    fn new(cx: &XtaskContext, programs: &Path, name: &str) -> Result<Self> {
        let cache = cx.cache().join(NAME);
        let run = Self {
            name: name.to_owned(),
            program: programs.join(format!("fuzz-{name}")),
            tree: cx.root().join(NAME).join("corpus").join(name),
            own: cache.join("corpus").join(name),
            findings: cache.join("findings").join(name),
        };
        for folder in [&run.own, &run.findings] {
            let made = fs::create_dir_all(folder);
            made.map_err(TaskError::io(format!("make {}", folder.display())))?;
        }
        // A finding of an earlier campaign is no finding of this one.
        for old in files(&run.findings)? {
            let removed = fs::remove_file(&old);
            removed.map_err(TaskError::io(format!("remove {}", old.display())))?;
        }
        Ok(run)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(format!("-max_len={}", input_bytes_max(&self.name)))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .arg(format!("-artifact_prefix={}/", self.findings.display()));
        command
    }

    /// The command that runs the program for so long.
    fn fuzz(&self, minutes: u64) -> Command {
        let mut command = self.command();
        command
            .arg(format!("-max_total_time={}", minutes * 60))
            .args(["-use_value_profile=1", "-print_final_stats=1"])
            // libFuzzer writes new inputs into the first folder, and only reads the others.
            .args([&self.own, &self.tree]);
        command
    }

    fn log(&self) -> String {
        format!("fuzz-{}", self.name)
    }

    /// The result of a run that ended with this status.
    fn row(&self, cx: &XtaskContext, result: Result<()>) -> Result<FuzzRow> {
        let findings = files(&self.findings)?;
        // A program that fails without a finding is an error of the campaign.
        if findings.is_empty() {
            result?;
        }
        let output = fs::read(cx.log(&self.log()));
        let output = output.map_err(TaskError::io("read what libFuzzer said"))?;
        Ok(FuzzRow::new(
            &self.name,
            &String::from_utf8_lossy(&output),
            findings,
        ))
    }

    /// Replaces the corpus in the tree by the fewest inputs that take every edge that it and this
    /// machine's runs take.
    fn keep_corpus(&self, cx: &XtaskContext, title: &str) -> Result<()> {
        let scratch = ScratchFolder::new(cx.cache(), "fuzz-corpus-")?;
        let mut command = self.command();
        command
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .arg(scratch.path())
            .args([&self.tree, &self.own]);
        cx.run(&mut command, title, &format!("{}-minimise", self.log()))?;
        let kept = files(scratch.path())?;
        // The old corpus goes only after the merge succeeded: until then it is the only one.
        for old in files(&self.tree)? {
            let removed = fs::remove_file(&old);
            removed.map_err(TaskError::io(format!("remove {}", old.display())))?;
        }
        for file in kept {
            let to = self.tree.join(file.file_name().unwrap_or_default());
            let copied = fs::copy(&file, &to);
            copied.map_err(TaskError::io(format!("write {}", to.display())))?;
        }
        Ok(())
    }
}

/// The files in `folder`, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let io_error = || TaskError::io(format!("read {}", folder.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error())? {
        files.push(entry.map_err(io_error())?.path());
    }
    files.sort();
    Ok(files)
}

/// The result of one target.
#[derive(Debug, Default, PartialEq, Eq)]
struct FuzzRow {
    name: String,
    runs: u64,
    seconds: u64,
    /// Edges taken.
    edges: u64,
    /// Interesting inputs of this run.
    new: u64,
    findings: Vec<PathBuf>,
}

impl FuzzRow {
    /// Parses libFuzzer's output: `#1234 NEW cov: 56 ft: …` while it runs, `Done 1234 runs in 60
    /// second(s)` and `stat::…` at its end.
    fn new(name: &str, output: &str, findings: Vec<PathBuf>) -> Self {
        let mut row = Self {
            name: name.to_owned(),
            findings,
            ..Self::default()
        };
        for line in output.lines() {
            if let Some((_, rest)) = line.split_once(" cov: ") {
                row.edges = first_number(rest);
            } else if let Some(rest) = line.strip_prefix("Done ") {
                row.seconds = rest.split_once(" in ").map_or(0, |(_, s)| first_number(s));
            } else if let Some(rest) = line.strip_prefix("stat::number_of_executed_units:") {
                row.runs = first_number(rest);
            } else if let Some(rest) = line.strip_prefix("stat::new_units_added:") {
                row.new = first_number(rest);
            }
        }
        row
    }

    fn line(&self) -> String {
        let Self {
            name,
            runs,
            seconds,
            edges,
            new,
            findings,
        } = self;
        let found = match findings.as_slice() {
            [] => "none".to_owned(),
            files => files
                .iter()
                .map(|file| format!("`{}`", file.display()))
                .collect::<Vec<_>>()
                .join(", "),
        };
        format!("| {name} | {seconds} s | {runs} | {edges} | {new} | {found} |")
    }
}

fn first_number(text: &str) -> u64 {
    let digits = text.trim_start();
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().unwrap_or_default()
}

fn table(rows: &[FuzzRow]) -> String {
    let mut text = String::from(
        "| target | time | inputs | edges taken | new inputs | findings |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", row.line());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
INFO: Loaded 1 modules
#2	INITED cov: 8 ft: 8 corp: 1/1b exec/s: 0 rss: 27Mb
#5231	NEW    cov: 110 ft: 300 corp: 3/35b lim: 53 exec/s: 0 rss: 27Mb L: 29/29
Done 2331498 runs in 21 second(s)
stat::number_of_executed_units: 2331498
stat::new_units_added:          15
";

    #[test]
    fn the_engines_words_become_a_row() {
        let row = FuzzRow::new("frame", OUTPUT, Vec::new());
        let expected = FuzzRow {
            name: "frame".to_owned(),
            runs: 2_331_498,
            seconds: 21,
            edges: 110,
            new: 15,
            findings: Vec::new(),
        };
        assert_eq!(row, expected);
        assert_eq!(row.line(), "| frame | 21 s | 2331498 | 110 | 15 | none |");
    }

    #[test]
    fn a_finding_is_named_in_its_row() {
        let row = FuzzRow::new("key", "==1== ERROR: libFuzzer", vec!["a/crash-1".into()]);
        assert!(table(&[row]).contains("| `a/crash-1` |"));
    }

    #[test]
    fn the_targets_are_those_of_the_package() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        let campaign = |only| Campaign {
            minutes: 1,
            only,
            keep: false,
            jobs: NonZeroUsize::MIN,
        };
        let all = campaign(None).targets(&package).expect("a folder");
        assert!(all.iter().any(|name| name == "frame"), "{all:?}");
        let one = campaign(Some("frame"))
            .targets(&package)
            .expect("it exists");
        assert_eq!(one, ["frame"]);
        let error = campaign(Some("frames"))
            .targets(&package)
            .expect_err("none");
        assert!(error.to_string().contains("envelope"), "{error}");
    }

    /// The engine would cut a longer seed, and `--keep` would put the cut one into the tree.
    #[test]
    fn every_seed_is_as_long_as_its_target_may_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        let folders = files(&corpus).expect("a folder");
        let name = |folder: &PathBuf| folder.file_name()?.to_str().map(str::to_owned);
        let names: Vec<_> = folders.iter().filter_map(name).collect();
        for (target, bytes) in LONGER_INPUTS {
            assert!(names.iter().any(|name| name == target), "{target}");
            assert!(bytes > INPUT_BYTES_MAX, "{target}");
        }
        for (name, folder) in names.iter().zip(&folders) {
            for seed in files(folder).expect("a folder") {
                let bytes = fs::metadata(&seed).expect("a file").len();
                let most = u64::from(input_bytes_max(name));
                assert!(bytes <= most, "{}: {bytes} bytes", seed.display());
            }
        }
    }

    #[test]
    fn the_engine_gets_the_length_of_its_target() {
        let length = |name: &str| {
            let run = FuzzTargetRun {
                name: name.to_owned(),
                program: PathBuf::from("fuzz"),
                tree: PathBuf::new(),
                own: PathBuf::new(),
                findings: PathBuf::new(),
            };
            let command = run.fuzz(1);
            let mut arguments = command.get_args().filter_map(|word| word.to_str());
            let length = arguments.find_map(|word| word.strip_prefix("-max_len="));
            length.expect("it has one").to_owned()
        };
        assert_eq!(length("update"), "16384");
        assert_eq!(length("frame"), "4096");
    }
}
