//! `test`: everything that continuous integration runs.

mod booted;
mod checks;
mod harness;
mod history;
mod load;
mod metadata;
mod needs;
mod null;
mod plan;
mod programs;
mod report;
mod schedule;
mod since;
#[cfg(test)]
mod tests;
mod wasm;

use std::iter;
use std::thread;

use xtask::memory::{self, MemoryWatch};
use xtask::progress::TimedCommand;

pub(crate) use self::booted::Variables;
use self::booted::variables;
pub use self::booted::{BootArtifacts, command};
pub(crate) use self::checks::DENY;
pub use self::checks::deny_program;
pub(crate) use self::load::TestEnvironment;
pub use self::load::lengthen_deadlines;
use self::needs::TestNeeds;
use self::null::NullDevice;
use self::plan::TestPlan;
use self::programs::{TestBuild, TestProgram, WORKSPACE};
use self::since::PackageChoice;
use crate::cache::CacheSizeMonitor;
use crate::context::XtaskContext;
use crate::driver;
use crate::failure::{Result, TaskError};

/// Tests and the harness multiply their deadlines by this decimal number. If the user sets it, it
/// is not measured.
const SLOWDOWN_VARIABLE: &str = "ALKNET_TEST_SLOWDOWN";

/// Memory that the machines of one test may have together, MiB: `MACHINES` of
/// `crates/test-support`.
const MACHINES_VARIABLE: &str = "ALKNET_TEST_MACHINES_MIB";

/// If it is set, tests write their snapshots instead of comparing them.
const BLESS_VARIABLE: &str = "ALKNET_BLESS";

/// The file in which tests record that they skipped themselves.
const SKIPS_VARIABLE: &str = "ALKNET_TEST_SKIPS";

/// A measurement of more than a thousand times slower is a mistake, and deadlines would become
/// weeks. This is `SLOWDOWN_MAX` of `crates/test-support`, which is a library of tests only.
const SLOWDOWN_MAX: f64 = 1000.0;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
// The drivers' arguments would be a group of the same name.
#[group(skip)]
#[command(
    after_help = "Examples:\n  cargo xtask test\n  cargo xtask test vault --times\n  \
    cargo xtask test --since main"
)]
pub struct TestArgs {
    /// Run only tests whose name contains this, and no other checks
    filter: Option<String>,
    /// Test only the packages that changed since this commit, branch or tag, and those above them
    #[arg(long, value_name = "REF")]
    since: Option<String>,
    /// Print how long each program and the slowest tests took
    #[arg(long)]
    times: bool,
    #[command(flatten)]
    drivers: driver::DriverArgs,
    /// Further arguments for cargo's build of the tests, such as `--package NAME`
    #[arg(last = true)]
    cargo: Vec<String>,
}

impl TestArgs {
    /// Whether every test is to run.
    fn are_whole(&self) -> bool {
        self.filter.is_none() && self.since.is_none() && self.cargo.is_empty()
    }
}

/// The parts of a whole run that the arguments select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scope {
    /// Test programs: not if `--since` finds no package.
    tests: bool,
    /// Format, licences and dependencies: they concern the tree, whichever packages are tested.
    checks: bool,
    /// Examples in the documentation, which cargo runs for all packages at once.
    documentation: bool,
}

impl Scope {
    fn from_arguments(arguments: &TestArgs, takes_packages: bool) -> Self {
        Self {
            tests: takes_packages,
            checks: arguments.filter.is_none(),
            documentation: arguments.are_whole(),
        }
    }
}

/// How much slower the machine is than at rest, and the factor by which deadlines are longer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slowdown {
    at_start: f64,
    deadlines: f64,
}

impl Slowdown {
    /// The factor that the user has set, or else the present one.
    fn set_or_measured() -> Result<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let set = std::env::var_os(SLOWDOWN_VARIABLE);
        let set = set.as_ref().map(|text| text.to_string_lossy());
        Self::from_setting(set.as_deref(), || load::slowdown(processors))
    }

    /// The larger of this and a later measurement: load that began meanwhile goes on, and load that
    /// has ended may come back.
    fn or_larger(self, later: Self) -> Self {
        if later.at_start > self.at_start {
            later
        } else {
            self
        }
    }

    /// `set` is the value of the variable, if it is set. Otherwise the factor is measured.
    fn from_setting(set: Option<&str>, measure: impl FnOnce() -> f64) -> Result<Self> {
        let at_start = match set {
            None => measure(),
            Some(text) => {
                let factor = text.trim().parse().ok();
                let factor = factor.filter(|factor: &f64| factor.is_finite() && *factor >= 1.0);
                factor.ok_or_else(|| {
                    TaskError::Arguments(format!(
                        "{SLOWDOWN_VARIABLE} is {text:?}, and has to be a number of at least 1"
                    ))
                })?
            }
        };
        Ok(Self {
            at_start: at_start.min(SLOWDOWN_MAX),
            // Our own tests load the machine, too.
            deadlines: (at_start * schedule::CROWD as f64).min(SLOWDOWN_MAX),
        })
    }
}

/// Runs the checks and the tests. The failures stand at the end, followed by the time of each step.
pub fn run(cx: &mut XtaskContext, arguments: &TestArgs) -> Result<()> {
    let processors = memory::test_processors();
    let mut slowdown = Slowdown::set_or_measured()?;
    let memory = MemoryWatch::go_on();
    let mut cache = CacheSizeMonitor::begin(cx);
    let null = NullDevice::new();
    let result = all(cx, arguments, processors, &mut slowdown, &null, &mut cache);
    eprint!("{}", cx.table());
    eprintln!(
        "  {}",
        report::slowdown(slowdown.at_start, slowdown.deadlines)
    );
    eprint!("{}", memory.report());
    eprint!("{}", null.report());
    eprint!("{}", cache.report());
    if arguments.are_whole() && result.is_ok() {
        cx.board().remember_rest(TimedCommand::Test);
    }
    result
}

fn all(
    cx: &mut XtaskContext,
    arguments: &TestArgs,
    processors: usize,
    slowdown: &mut Slowdown,
    null: &NullDevice,
    cache: &mut CacheSizeMonitor,
) -> Result<()> {
    cx.board().print(&format!(
        "this machine is {:.1} times slower than at rest",
        slowdown.at_start
    ));
    // The time of some of the tests says nothing about the time of all.
    let tests = if arguments.are_whole() {
        "tests"
    } else {
        "chosen tests"
    };
    cx.board().announce(&["images", "build tests", tests]);
    // From here to the end, programs and pages in the mirror stay those of this clone.
    let lock = cx.claim()?;
    null.restore_if_lost(cx, "before the run");
    let selection = selection(cx, arguments)?;
    let scope = Scope::from_arguments(arguments, selection.is_some());
    if scope.checks {
        // It takes two seconds. A run that fails for it shall fail before half an hour of
        // compiling.
        cx.step("format", |cx| checks::format(cx))?;
    }
    let booted = BootArtifacts::ensure(cx, &arguments.drivers.vulkan)?;
    null.restore_if_lost(cx, "after the images were built");
    if !scope.documentation {
        cx.board().print("documentation examples are left out");
    }
    let mut built = TestBuild::default();
    let mut jobs: Vec<crate::context::Job<'_>> = Vec::new();
    if let Some(selection) = &selection {
        jobs.push((
            "build tests",
            Box::new(|cx| {
                built = TestBuild::ensure(cx, &selection.cargo)?;
                built.programs.retain(|program| selection.takes(program));
                Ok(())
            }),
        ));
    }
    if scope.checks {
        jobs.push(("dependencies", Box::new(|cx| checks::dependencies(cx))));
    }
    cx.parallel(jobs)?;
    null.restore_if_lost(cx, "after the tests were built");
    if scope.checks {
        // Not beside the tests' build: cargo lets only one build at a time into the target folder.
        cx.step("libraries for WebAssembly", |cx| wasm::check(cx))?;
    }
    if scope.tests {
        // No work of this command runs at this moment, so this measures the load of others.
        *slowdown = slowdown.or_larger(Slowdown::set_or_measured()?);
    }
    cache.built();
    if !scope.tests {
        return Ok(());
    }
    let needs = TestNeeds::read(&mut cx.cargo("metadata"))?;
    let plan = TestPlan {
        filter: arguments.filter.as_deref(),
        processors,
        machines_mib: alknet_qemu::machines_mib(),
        needs: &needs,
        slowdown: slowdown.at_start,
        deadlines: slowdown.deadlines,
        null,
    };
    let variables = variables(cx, &booted)?;
    let result = cx.step(tests, |cx| {
        plan.run(cx, built.programs, &variables, arguments)
    });
    if std::env::var_os(BLESS_VARIABLE).is_some() {
        cx.bring_back(&lock)?;
    }
    drop(lock);
    for warning in &built.warnings {
        eprint!("{warning}");
    }
    result?;
    judge_lints(scope, built.warnings.len())
}

/// Fails a run with checks for warnings of the compiler and of the lints, after all tests have
/// passed.
fn judge_lints(scope: Scope, warnings: usize) -> Result<()> {
    if !scope.checks || warnings == 0 {
        return Ok(());
    }
    Err(TaskError::Step {
        what: "lints".to_owned(),
        how: format!("{warnings} warnings"),
        log: None,
    })
}

/// What is built and run.
struct TestSelection {
    /// Arguments of cargo.
    cargo: Vec<String>,
    /// With `--since`, the programs that run.
    choice: Option<PackageChoice>,
}

impl TestSelection {
    fn takes(&self, program: &TestProgram) -> bool {
        let choice = self.choice.as_ref();
        choice.is_none_or(|choice| choice.takes(&program.package, &program.target))
    }
}

/// What is to be built and run. `None` if no package is concerned.
fn selection(cx: &XtaskContext, arguments: &TestArgs) -> Result<Option<TestSelection>> {
    // The whole workspace, so that libraries keep the features with which they were compiled.
    let whole = iter::once(WORKSPACE.to_owned());
    let Some(reference) = &arguments.since else {
        return Ok(Some(TestSelection {
            cargo: whole.chain(arguments.cargo.iter().cloned()).collect(),
            choice: None,
        }));
    };
    let choice = since::choose(cx, reference)?;
    let list = |names: &std::collections::BTreeSet<String>| {
        names
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    cx.board().print(&format!(
        "since {reference}: testing {} packages: {}",
        choice.taken.len(),
        list(&choice.taken)
    ));
    cx.board().print(&format!(
        "left out: {} packages: {}",
        choice.left_out.len(),
        list(&choice.left_out)
    ));
    if choice.taken.is_empty() {
        return Ok(None);
    }
    let excluded = choice
        .left_out
        .iter()
        .flat_map(|name| ["--exclude".to_owned(), name.clone()]);
    let cargo = whole
        .chain(excluded)
        .chain(arguments.cargo.iter().cloned())
        .collect();
    Ok(Some(TestSelection {
        cargo,
        choice: Some(choice),
    }))
}
