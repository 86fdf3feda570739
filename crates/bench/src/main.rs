//! `cargo xtask bench`: measures, and prints rows. A program of its own, so that `up` and
//! `test` do not compile the peers that are measured.

mod boot;
mod call;
mod child;
mod compute;
mod empty;
mod fs;
mod http;
mod image;
mod not_met;
mod rows;
mod runtime;
mod tensor;
mod update;
mod vault;
mod work_cost;

use std::path::PathBuf;
use std::process::ExitCode;

use alknet_tasks::cache;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::test;
use clap::{Parser, Subcommand};

use self::fs::FsBenchProcessRole;
use self::http::{IdlePart, idle};
use self::rows::{BenchHeader, BenchReport, BenchRow};

/// Runs of each case; the middle one counts.
const ROUNDS: usize = 10;

/// The binary's own: a benchmark with another one would measure another binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure, and print rows; exit code 1 when a bound is missed that docs/SPECIFICATION.md promises
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    bin_name = "cargo xtask bench",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Example: cargo xtask bench call http --rounds 5 --json rows.json"
)]
struct BenchArgs {
    #[command(subcommand)]
    part: Option<BenchPart>,
    /// Folder to look for sources in before any other place
    #[arg(long, value_name = "DIR")]
    sources: Option<PathBuf>,
    /// Benchmarks to run: boot, call, compute, fs, http, image, runtime, tensor, update, vault; or sections of one: fs/blobs, fs/bulk, fs/import, fs/memory, fs/names, fs/puts, fs/sendme, fs/sync [default: all]
    names: Vec<String>,
    /// Write header and rows to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Runs of each case
    #[arg(long, default_value_t = ROUNDS, value_name = "N", value_parser = at_least_one)]
    rounds: usize,
}

#[derive(Debug, Subcommand)]
enum BenchPart {
    /// A process of the benchmark of HTTP
    #[command(hide = true, subcommand)]
    BenchIdle(IdlePart),
    /// A process of the benchmark of files
    #[command(hide = true, subcommand)]
    BenchFs(FsBenchProcessRole),
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| "give a number of 1 or more".to_owned())
}

/// One benchmark: its name and what measures it.
type BenchEntry = (
    &'static str,
    fn(&mut XtaskContext, usize) -> Result<Vec<BenchRow>>,
);

/// Every benchmark.
const BENCHES: [BenchEntry; 10] = [
    ("boot", boot::run),
    ("call", call::run),
    ("compute", compute::run),
    ("fs", fs::run),
    ("http", http::run),
    ("image", image::run),
    ("runtime", runtime::run),
    ("tensor", tensor::run),
    ("update", update::run),
    ("vault", vault::run),
];

fn main() -> ExitCode {
    let arguments = BenchArgs::parse();
    let done = match &arguments.part {
        Some(BenchPart::BenchIdle(part)) => idle(part),
        Some(BenchPart::BenchFs(role)) => fs::play(role),
        None => XtaskContext::from_environment(arguments.sources.clone()).and_then(|mut cx| {
            let _in_use = cache::in_use(&cx)?;
            run(&mut cx, &arguments)
        }),
    };
    alknet_tasks::exit_code(done)
}

/// Measures what was asked for. All of it is measured and printed before a missed bound fails the run.
fn run(cx: &mut XtaskContext, arguments: &BenchArgs) -> Result<()> {
    test::lengthen_deadlines()?;
    let mut rows = Vec::new();
    for (name, bench) in chosen(&arguments.names)? {
        rows.extend(cx.step(name, |cx| bench(cx, arguments.rounds))?);
    }
    let report = BenchReport {
        header: BenchHeader::of_this_machine(cx, arguments.rounds),
        rows,
    };
    print!("{}{}", report.header, report.table());
    if let Some(file) = &arguments.json {
        std::fs::write(file, report.json())
            .map_err(TaskError::io(format!("write {}", file.display())))?;
    }
    eprint!("{}", cx.table());
    held(&report)
}

/// Fails where a bound was missed and docs/SPECIFICATION.md does not say that it is not met.
fn held(report: &BenchReport) -> Result<()> {
    let missed = report.missed();
    if missed.is_empty() {
        return Ok(());
    }
    Err(TaskError::Step {
        what: format!("{} bounds of benchmarks", missed.len()),
        how: format!(
            "missed: {}; measure once more on a machine at rest, and mend what is slower or say in \
             docs/SPECIFICATION.md that the bound is not met",
            missed.join(", ")
        ),
        log: None,
    })
}

fn chosen(names: &[String]) -> Result<Vec<BenchEntry>> {
    if names.is_empty() {
        return Ok(BENCHES.to_vec());
    }
    let find = |name: &String| {
        let known = || BENCHES.into_iter().chain(fs::SECTIONS);
        known().find(|(known, _)| known == name).ok_or_else(|| {
            let known: Vec<_> = known().map(|(name, _)| name).collect();
            TaskError::Arguments(format!(
                "no benchmark \"{name}\", only {}",
                known.join(", ")
            ))
        })
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::rows::Goal;
    use super::*;

    #[test]
    fn an_unknown_benchmark_is_refused_with_the_known_ones() {
        assert_eq!(chosen(&[]).expect("all").len(), BENCHES.len());
        let error = chosen(&["bot".to_owned()])
            .expect_err("misspelt")
            .to_string();
        assert!(error.contains("bot") && error.contains("boot"), "{error}");
    }

    #[test]
    fn a_section_is_a_benchmark_by_itself() {
        let [section, whole] = ["fs/names", "fs"].map(str::to_owned);
        let names = chosen(&[section, whole]).expect("both are known");
        let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["fs/names", "fs"]);
    }

    #[test]
    fn the_help_names_every_benchmark() {
        let help = BenchArgs::command().render_long_help().to_string();
        for (name, _) in BENCHES.into_iter().chain(fs::SECTIONS) {
            assert!(help.contains(name), "{name}");
        }
    }

    #[test]
    fn a_missed_bound_fails_the_run_and_one_that_is_listed_does_not() {
        let report = |case: &str, unit, ours| BenchReport {
            header: BenchHeader::default(),
            rows: vec![BenchRow::lower("boot", case, unit, ours).goal(Goal::Ours(1.0))],
        };
        let answered = "microvm: power-on to answered call";
        let missed = held(&report(answered, "s wall", 1.1)).expect_err("missed");
        assert_eq!(missed.exit_code(), 1);
        assert!(
            missed.to_string().contains("boot microvm: power-on"),
            "{missed}"
        );
        held(&report(answered, "s wall", 1.0)).expect("met");
        held(&report(answered, "CPU s", 1.1)).expect("listed");
        let worse = held(&report(answered, "CPU s", 2.5)).expect_err("worse than it was");
        assert_eq!(worse.exit_code(), 1);
    }

    #[test]
    fn a_round_is_needed() {
        assert!(at_least_one("0").is_err() && at_least_one("x").is_err());
        assert_eq!(at_least_one("3"), Ok(3));
    }
}
