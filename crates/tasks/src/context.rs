//! What every command works with: the clone, the cache, the steps done, and how programs are run.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use xtask::progress::{self, StepTime};
use xtask::workspace::{BuildLock, Workspace};

use crate::failed;
use crate::failure::{Failure, Result};

/// Lines of a failed program's log that are shown at once.
const TAIL_LINES: usize = 20;

/// The surroundings of one command.
#[derive(Debug)]
pub(crate) struct Context {
    workspace: Workspace,
    /// Folder the user named for sources, looked into before any other place.
    pub(crate) sources: Option<PathBuf>,
    steps: Vec<StepTime>,
}

impl Context {
    /// From the environment that the front door set.
    pub(crate) fn from_environment(sources: Option<PathBuf>) -> Result<Self> {
        let root = env::var_os("ALKNET_ROOT").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
            PathBuf::from,
        );
        let cache = xtask::cache::folder().map_err(Failure::Workspace)?;
        let workspace = Workspace::new(&root, &cache).map_err(Failure::Workspace)?;
        let steps = env::var(progress::STEPS_VARIABLE)
            .map_or_else(|_| Vec::new(), |text| progress::decode_steps(&text));
        Ok(Self {
            workspace,
            sources,
            steps,
        })
    }

    /// The clone.
    pub(crate) fn root(&self) -> &Path {
        self.workspace.root()
    }

    /// The folder of heavy outputs.
    pub(crate) fn cache(&self) -> &Path {
        self.workspace.cache()
    }

    /// What this machine runs, as cargo names it in its target folder.
    pub(crate) fn triple(&self) -> &str {
        self.workspace.triple()
    }

    /// A built executable of the workspace.
    pub(crate) fn executable(&self, name: &str) -> PathBuf {
        self.workspace.executable(name)
    }

    /// Keeps other clones out of the build folder until dropped.
    pub(crate) fn claim(&self) -> Result<BuildLock> {
        self.workspace.claim().map_err(Failure::Workspace)
    }

    /// Cargo, told where this workspace builds.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        self.workspace.cargo(subcommand)
    }

    /// The file a step's output goes to.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.cache().join("logs").join(format!("{name}.log"))
    }

    /// Does `work` and notes how long it took.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let result = work(self);
        let seconds = started.elapsed().as_secs_f64();
        self.steps.push(StepTime {
            name: name.to_owned(),
            seconds,
        });
        result
    }

    /// The steps so far as a table, for the end of a command.
    pub(crate) fn table(&self) -> String {
        table(&self.steps)
    }

    /// Runs a program whose output belongs in a log; shows progress and, when it fails, the end of
    /// the log.
    pub(crate) fn run(&self, command: &mut Command, what: &str, log: &str) -> Result<()> {
        let mut result = self.run_all([(command, log.to_owned())], what)?;
        result.remove(0)
    }

    /// The same with several at once, each with a log of its own; what came of each, in the order
    /// given.
    pub(crate) fn run_all<'a>(
        &self,
        commands: impl IntoIterator<Item = (&'a mut Command, String)>,
        what: &str,
    ) -> Result<Vec<Result<()>>> {
        let mut children: Vec<Child> = Vec::new();
        let mut logs = Vec::new();
        for (command, log) in commands {
            let log = self.log(&log);
            match progress::start_logged(command, &log) {
                Ok(child) => children.push(child),
                Err(error) => {
                    // Nobody would wait for those that have started.
                    for child in &mut children {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                    return Err(cannot_run(command)(error));
                }
            }
            logs.push(log);
        }
        let statuses = progress::watch_all(children, what);
        let statuses = statuses.map_err(Failure::io(format!("wait for {what}")))?;
        let outcome = |(status, log): (ExitStatus, PathBuf)| {
            if status.success() {
                return Ok(());
            }
            for line in tail(&log) {
                eprintln!("  {line}");
            }
            Err(failed(what, status, Some(log)))
        };
        Ok(statuses.into_iter().zip(logs).map(outcome).collect())
    }

    /// Runs a program whose output belongs on the terminal.
    pub(crate) fn show(&self, command: &mut Command, what: &str) -> Result<()> {
        eprintln!("{what} ...");
        let status = command.status().map_err(cannot_run(command))?;
        ended(what, status)
    }

    /// The same for tests; those that failed are told once more at the end.
    pub(crate) fn show_tests(&self, command: &mut Command) -> Result<()> {
        eprintln!("tests ...");
        let (status, failed) = failed::watch(command).map_err(cannot_run(command))?;
        for test in failed {
            eprint!("{}", test.text());
        }
        ended("tests", status)
    }
}

fn cannot_run(command: &Command) -> impl FnOnce(io::Error) -> Failure + use<> {
    Failure::io(format!("run {}", command.get_program().to_string_lossy()))
}

fn ended(what: &str, status: ExitStatus) -> Result<()> {
    if status.success() {
        Ok(())
    } else {
        Err(failed(what, status, None))
    }
}

fn failed(what: &str, status: ExitStatus, log: Option<PathBuf>) -> Failure {
    Failure::Step {
        what: what.to_owned(),
        how: status.to_string(),
        log,
    }
}

fn table(steps: &[StepTime]) -> String {
    let width = steps
        .iter()
        .map(|step| step.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(5);
    let line = |name: &str, seconds: f64| format!("  {name:width$}  {seconds:8.1} s\n");
    let mut text: String = steps
        .iter()
        .map(|step| line(&step.name, step.seconds))
        .collect();
    text += &line("total", steps.iter().map(|step| step.seconds).sum());
    text
}

/// The last lines of a file; none when it cannot be read.
pub(crate) fn tail(path: &Path) -> Vec<String> {
    let Ok(file) = fs::File::open(path) else {
        return Vec::new();
    };
    let lines = BufReader::new(file)
        .split(b'\n')
        .map_while(std::result::Result::ok);
    let mut last = std::collections::VecDeque::with_capacity(TAIL_LINES);
    for line in lines {
        if last.len() == TAIL_LINES {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    last.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_up() {
        let steps = [
            StepTime {
                name: "build".into(),
                seconds: 2.0,
            },
            StepTime {
                name: "kernel".into(),
                seconds: 1.5,
            },
        ];
        let text = table(&steps);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .last()
                .is_some_and(|line| line.contains("total") && line.ends_with("3.5 s"))
        );
        assert!(table(&[]).contains("0.0 s"));
    }

    #[test]
    fn the_tail_is_the_end() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        fs::write(file.path(), text).expect("it is writable");
        let lines = tail(file.path());
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 99"));
        assert!(tail(Path::new("/nonexistent")).is_empty());
    }
}
