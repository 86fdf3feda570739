//! Runs the test programs by the [schedule](super::schedule), repeats failed tests alone, and
//! reports the result.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use super::booted::Variables;
use super::harness::{self, TestOutputFormat, TestTimeouts, TestVerdict};
use super::history::TestHistory;
use super::needs::{ProgramNeeds, TestNeeds};
use super::null::NullDevice;
use super::programs::{self, TestProgram};
use super::report::{self, FailedTest, PartResult};
use super::schedule::{self, PartQueue, TestPart};
use super::{MACHINES_VARIABLE, SKIPS_VARIABLE, SLOWDOWN_VARIABLE, TestArgs};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};

/// A machine that was slower than this at the start is not at rest.
const AT_REST: f64 = 1.5;

/// The part with the examples in the documentation.
const DOCUMENTATION: &str = "documentation";

/// What runs a part's tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartSource<'a> {
    Program(&'a TestProgram),
    /// Cargo, which compiles and runs the examples in the documentation.
    Documentation,
}

/// The programs divided into the parts in which they run.
#[derive(Debug)]
pub(super) struct Division<'a> {
    pub(super) parts: Vec<(PartSource<'a>, TestPart)>,
    /// Programs that could not list their tests. They fail the run, and the parts run all the same.
    pub(super) unlisted: Vec<PartResult>,
}

/// How the tests run.
pub(super) struct TestPlan<'a> {
    pub(super) filter: Option<&'a str>,
    pub(super) processors: usize,
    /// Memory of all machines, MiB.
    pub(super) machines_mib: u64,
    pub(super) needs: &'a TestNeeds,
    /// How much slower the machine was at the start than at rest.
    pub(super) slowdown: f64,
    /// The factor by which deadlines are longer.
    pub(super) deadlines: f64,
    pub(super) null: &'a NullDevice,
}

impl TestPlan<'_> {
    pub(super) fn run(
        &self,
        cx: &XtaskContext,
        programs: Vec<TestProgram>,
        variables: &Variables,
        arguments: &TestArgs,
    ) -> Result<()> {
        if arguments.are_whole() {
            self.reject_unknown_programs(&programs)?;
        }
        let mut history = TestHistory::read(cx);
        let mut variables = variables.clone();
        variables.push((SLOWDOWN_VARIABLE, format!("{:.2}", self.deadlines).into()));
        let Division {
            mut parts,
            unlisted,
        } = self.parts(&programs, &variables)?;
        if arguments.are_whole() {
            let part = schedule::computing(DOCUMENTATION, self.processors);
            parts.push((PartSource::Documentation, part));
        }
        schedule::plan(&mut parts, &history);
        let mut ran = self.run_all(cx, &parts, &variables);
        ran.extend(unlisted);
        if let Some(why) = report::nothing_ran(&ran, self.filter) {
            return Err(TaskError::Arguments(why));
        }
        let failed = self.failed(cx, &parts, &ran, &variables);
        let broken = ran.iter().filter_map(|ran| {
            let why = ran.outcome.broken.as_ref()?;
            Some(format!(
                "FAILED: {}: {why}\n{}",
                ran.part, ran.outcome.printed
            ))
        });
        let refused = report::refused(&ran, nix::unistd::geteuid().is_root());
        let broken: Vec<String> = broken.chain(refused).collect();
        for text in failed
            .iter()
            .map(FailedTest::text)
            .chain(broken.iter().cloned())
        {
            eprint!("{text}");
        }
        eprint!("{}", report::skipped(&ran));
        eprint!("{}", report::again(&ran));
        // A reader who sees only the end of a long report needs the reasons there.
        eprint!(
            "{}",
            failed.iter().map(FailedTest::line).collect::<String>()
        );
        eprintln!("{}", report::summary(&ran));
        if arguments.times {
            println!("{}", report::times(&ran));
        }
        if arguments.are_whole() {
            let log = cx.log("test-times");
            fs::write(&log, report::all(&ran))
                .map_err(TaskError::io("write how long tests took"))?;
            if self.keeps_times() {
                history.extend(&ran);
                history.write(cx)?;
            }
        }
        match failed.len() + broken.len() {
            0 => Ok(()),
            count => Err(TaskError::Step {
                what: "tests".to_owned(),
                how: format!("{count} failed, see above"),
                log: None,
            }),
        }
    }

    /// Whether the next run can use this one's times: beside other programs a part that computes
    /// gets as little of a processor as one that sleeps uses.
    pub(super) fn keeps_times(&self) -> bool {
        self.slowdown < AT_REST
    }

    /// Fails if a manifest has needs for a test program that does not exist.
    pub(super) fn reject_unknown_programs(&self, programs: &[TestProgram]) -> Result<()> {
        let unknown = self.needs.unknown(programs);
        if unknown.is_empty() {
            return Ok(());
        }
        Err(TaskError::Workspace(format!(
            "`package.metadata.tests` has needs of {}, and there is no such test program",
            unknown.join(", ")
        )))
    }

    /// Fails if a manifest has needs for a module that does not exist.
    fn reject_unknown_modules(
        &self,
        program: &str,
        needs: &ProgramNeeds,
        tests: &[String],
    ) -> Result<()> {
        let unknown = needs.modules.keys().find(|module| {
            let prefix = format!("{module}::");
            !tests.iter().any(|test| test.starts_with(&prefix))
        });
        match unknown {
            // With a filter, not all tests are listed.
            Some(module) if self.filter.is_none() => Err(TaskError::Workspace(format!(
                "`package.metadata.tests` has needs of the module {module} of {program}, which has no such module"
            ))),
            _ => Ok(()),
        }
    }

    /// The parts in which the programs run, and the programs that cannot be divided. Fails if a
    /// program or module that a manifest has needs for does not exist or has no test.
    pub(super) fn parts<'a>(
        &self,
        programs: &'a [TestProgram],
        variables: &Variables,
    ) -> Result<Division<'a>> {
        let mut all = Vec::new();
        let mut unlisted = Vec::new();
        for program in programs {
            let name = program.name();
            let needs = self.needs.for_program(program);
            let parts = if needs.waits {
                let tests = match self.listed(program, variables) {
                    Ok(tests) => tests,
                    // The findings of the other programs must not be lost with this one.
                    Err(failure) => {
                        unlisted.push(PartResult::broken(&name, &failure));
                        continue;
                    }
                };
                if tests.is_empty() && self.filter.is_none() {
                    return Err(TaskError::Step {
                        what: format!("list the tests of {name}"),
                        how: "it has none".to_owned(),
                        log: None,
                    });
                }
                self.reject_unknown_modules(&name, &needs, &tests)?;
                schedule::modules(&name, &needs, tests)
            } else {
                vec![schedule::whole(&name, &needs, self.processors)]
            };
            let source = PartSource::Program(program);
            all.extend(parts.into_iter().map(|part| (source, part)));
        }
        Ok(Division {
            parts: all,
            unlisted,
        })
    }

    /// Names of a program's tests that match the filter.
    fn listed(&self, program: &TestProgram, variables: &Variables) -> Result<Vec<String>> {
        let mut command = Command::new(&program.path);
        command
            .current_dir(&program.folder)
            .args(["--list", "--format=terse"])
            .args(self.filter)
            .envs(programs::environment(program))
            .envs(variables.iter().map(|(name, value)| (name, value)));
        let what = format!("list the tests of {}", program.name());
        let listed = command.output().map_err(TaskError::io(&what))?;
        if !listed.status.success() {
            return Err(TaskError::Step {
                what,
                how: String::from_utf8_lossy(&listed.stderr).into_owned(),
                log: None,
            });
        }
        let listed = String::from_utf8_lossy(&listed.stdout);
        let names = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Runs every part as soon as the [`PartQueue`] has room for it, and returns the results in the
    /// order of the parts.
    pub(super) fn run_all(
        &self,
        cx: &XtaskContext,
        parts: &[(PartSource<'_>, TestPart)],
        variables: &Variables,
    ) -> Vec<PartResult> {
        let queue = parts.iter().map(|(_, part)| part);
        let mut queue = PartQueue::new(queue, self.processors, self.machines_mib);
        let mut ran = BTreeMap::new();
        thread::scope(|scope| {
            let (send, ended) = mpsc::channel();
            let mut running = 0_usize;
            loop {
                while let Some(index) = queue.start_next() {
                    running += 1;
                    let send = send.clone();
                    let (source, part) = &parts[index];
                    scope.spawn(move || {
                        let run = || match source {
                            PartSource::Program(program) => {
                                self.run_part(cx, program, part, variables)
                            }
                            PartSource::Documentation => self.documentation(cx, part, variables),
                        };
                        let result = catch_unwind(AssertUnwindSafe(run));
                        send.send((index, result))
                            .expect("the results of all are waited for");
                    });
                }
                if running == 0 {
                    break;
                }
                let (index, result) = ended.recv().expect("this thread can send, too");
                running -= 1;
                queue.ended(index);
                let result = result.unwrap_or_else(|panic| resume_unwind(panic));
                ran.insert(index, result);
            }
        });
        // A part that never fits beside the others must be reported.
        for (index, (_, part)) in parts.iter().enumerate() {
            let why = "it never ran: the plan found no place or no memory for it";
            ran.entry(index)
                .or_insert_with(|| PartResult::broken(&part.name, &why));
        }
        ran.into_values().collect()
    }

    fn run_part(
        &self,
        cx: &XtaskContext,
        program: &TestProgram,
        part: &TestPart,
        variables: &Variables,
    ) -> PartResult {
        let mut command = self.command(program, part, variables);
        command.arg(format!("--test-threads={}", part.threads));
        match &part.tests {
            Some(names) => command.arg("--exact").args(names),
            None => command.args(self.filter),
        };
        let row = cx.board().start(&part.name);
        // The results of the other parts must not be lost with this one.
        let ran = self
            .harness(&mut command, TestOutputFormat::Json, &part.name)
            .unwrap_or_else(|failure| PartResult::broken(&part.name, &failure));
        drop(row);
        self.null
            .restore_if_lost(cx, &format!("when {} ended", part.name));
        let outcome = &ran.outcome;
        if !outcome.tests.is_empty() || outcome.broken.is_some() || self.filter.is_none() {
            let mut lines = vec![String::new(), format!("     Running {}", part.name)];
            lines.extend(outcome.lines());
            cx.board().print(&lines.join("\n"));
        }
        ran
    }

    fn command(&self, program: &TestProgram, part: &TestPart, variables: &Variables) -> Command {
        let mut command = Command::new(&program.path);
        command
            .current_dir(&program.folder)
            .args(["-Z", "unstable-options", "--format=json", "--report-time"])
            // The stable compiler's harness knows these options, and uses them if this is set.
            .env("RUSTC_BOOTSTRAP", "1")
            .env(MACHINES_VARIABLE, part.machines_mib.to_string())
            .envs(programs::environment(program))
            .envs(variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs one process, with its own file for what its tests skip.
    fn harness(
        &self,
        command: &mut Command,
        format: TestOutputFormat,
        part: &str,
    ) -> Result<PartResult> {
        let skips =
            tempfile::NamedTempFile::new().map_err(TaskError::io("make a file for skips"))?;
        command.env(SKIPS_VARIABLE, skips.path());
        let outcome = harness::run(command, format, TestTimeouts::scaled(self.slowdown));
        let outcome = outcome.map_err(TaskError::io(format!("run {part}")))?;
        let text = fs::read(skips.path()).map_err(TaskError::io("read what tests skipped"))?;
        Ok(PartResult {
            part: part.to_owned(),
            outcome,
            skips: report::skips(&String::from_utf8_lossy(&text)),
        })
    }

    /// Examples in the documentation, which cargo compiles and runs. No other part of the run uses
    /// cargo's target folder.
    fn documentation(
        &self,
        cx: &XtaskContext,
        part: &TestPart,
        variables: &Variables,
    ) -> PartResult {
        let mut command = cx.cargo("test");
        command
            .args(["--release", "--workspace", "--doc", "--no-fail-fast"])
            .args(["--", &format!("--test-threads={}", part.threads)])
            .envs(variables.iter().map(|(name, value)| (name, value)));
        let name = &part.name;
        let row = cx.board().start(name);
        let ran = self
            .harness(&mut command, TestOutputFormat::Plain, name)
            .unwrap_or_else(|failure| PartResult::broken(name, &failure));
        drop(row);
        let mut lines = vec![String::new(), format!("     Running {name}")];
        lines.extend(ran.outcome.lines());
        cx.board().print(&lines.join("\n"));
        ran
    }

    /// Runs each failed test once more, alone: a test that then passes depends on what ran beside
    /// it. It has failed all the same.
    pub(super) fn failed(
        &self,
        cx: &XtaskContext,
        parts: &[(PartSource<'_>, TestPart)],
        ran: &[PartResult],
        variables: &Variables,
    ) -> Vec<FailedTest> {
        let mut all = Vec::new();
        for PartResult { part, outcome, .. } in ran {
            let found = parts.iter().find(|(_, found)| found.name == *part);
            for test in outcome.failed() {
                let passes_alone = found.and_then(|(source, part)| match source {
                    PartSource::Program(program) => {
                        self.passes_alone(cx, program, part, &test.name, variables)
                    }
                    PartSource::Documentation => None,
                });
                all.push(FailedTest {
                    part: part.clone(),
                    test: test.clone(),
                    passes_alone,
                });
            }
        }
        all
    }

    /// `None` if it cannot be run once more.
    fn passes_alone(
        &self,
        cx: &XtaskContext,
        program: &TestProgram,
        part: &TestPart,
        test: &str,
        variables: &Variables,
    ) -> Option<bool> {
        let mut command = self.command(program, part, variables);
        command.args(["--exact", test, "--test-threads=1"]);
        let row = cx.board().start(&format!("{test} alone"));
        let ran = self.harness(&mut command, TestOutputFormat::Json, &program.name());
        drop(row);
        match ran {
            Ok(PartResult { outcome, .. }) => {
                Some(outcome.passed() && outcome.count(TestVerdict::Passed) == 1)
            }
            Err(failure) => {
                cx.board()
                    .print(&format!("{test} cannot be run once more: {failure}"));
                None
            }
        }
    }
}
