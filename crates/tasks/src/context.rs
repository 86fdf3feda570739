//! The surroundings of every command: the clone, the cache, the finished steps, and how programs
//! are run.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use xtask::last_use::BuildSet;
use xtask::packages::{self, PackagePurpose};
use xtask::progress::{self, Board, BoardRow, StepTime};
use xtask::workspace::{BuildLock, Workspace};

use crate::failure::{Result, TaskError};
use crate::group::{self, ProcessGroup};

/// Lines of a failed program's log that are shown at once.
const TAIL_LINES: usize = 20;

/// How often a program is polled: often enough that the time of a step is not noticeably longer.
const POLL: Duration = Duration::from_millis(50);

/// How long programs of an abandoned step have to end in order before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// The surroundings of one command.
#[derive(Debug)]
pub struct XtaskContext {
    workspace: Workspace,
    /// Folder that the user named for sources, which is searched first.
    pub sources: Option<PathBuf>,
    steps: Vec<StepTime>,
    board: Arc<Board>,
    /// The step of this context, if there is one.
    row: Option<BoardRow>,
    /// The lock, as long as any part of this command holds it.
    held: Arc<Mutex<Weak<BuildLock>>>,
    /// When this command began, with the front's part.
    began: Instant,
    /// Set when a step that runs beside this one failed.
    abandoned: Arc<AtomicBool>,
}

/// One of several steps that run at the same time.
pub type Job<'a> = (
    &'a str,
    Box<dyn FnOnce(&mut XtaskContext) -> Result<()> + Send + 'a>,
);

/// The clone and its cache. The cache is made, or found to be one, before a command writes or locks
/// anything there: this program may be started without the front.
fn open(root: &Path, cache: &Path) -> Result<Workspace> {
    let workspace = Workspace::new(root, cache).map_err(TaskError::Workspace)?;
    workspace.open_cache().map_err(TaskError::Workspace)?;
    Ok(workspace)
}

impl XtaskContext {
    /// Makes the context from the environment that the front set.
    pub fn from_environment(sources: Option<PathBuf>) -> Result<Self> {
        let root = env::var_os("ALKNET_ROOT").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
            PathBuf::from,
        );
        let cache = xtask::cache::folder().map_err(TaskError::Workspace)?;
        let workspace = open(&root, &cache)?;
        let steps = env::var(progress::STEPS_VARIABLE)
            .map_or_else(|_| Vec::new(), |text| progress::decode_steps(&text));
        let before: f64 = steps.iter().map(|step| step.seconds).fold(0.0, f64::max);
        let now = Instant::now();
        Ok(Self {
            began: now
                .checked_sub(Duration::from_secs_f64(before))
                .unwrap_or(now),
            board: Arc::new(Board::new(&workspace.cache().join(progress::HISTORY))),
            workspace,
            sources,
            steps,
            row: None,
            held: Arc::default(),
            abandoned: Arc::default(),
        })
    }

    /// A context whose cache and history lie in `folder`.
    #[cfg(test)]
    pub(crate) fn in_folder(folder: &Path) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        Self {
            workspace: Workspace::new(&root, folder).expect("this clone"),
            sources: None,
            steps: Vec::new(),
            board: Arc::new(Board::new(&folder.join(progress::HISTORY))),
            row: None,
            held: Arc::default(),
            began: Instant::now(),
            abandoned: Arc::default(),
        }
    }

    /// The clone.
    pub fn root(&self) -> &Path {
        self.workspace.root()
    }

    /// The copy of the clone in which it is built. It is this clone's as long as the
    /// [lock](Self::claim) is held.
    pub fn mirror(&self) -> PathBuf {
        self.workspace.mirror()
    }

    /// The folder of heavy outputs.
    pub fn cache(&self) -> &Path {
        self.workspace.cache()
    }

    /// This machine's triple, which is a folder of cargo's target folder.
    pub fn triple(&self) -> &str {
        self.workspace.triple()
    }

    /// A built executable of the workspace.
    pub fn executable(&self, name: &str) -> PathBuf {
        self.workspace.executable(name)
    }

    /// Keeps other clones out of the build folder until the lock is dropped. A command that holds
    /// it gets the same lock again.
    pub fn claim(&self) -> Result<Arc<BuildLock>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // A second lock in the same process would wait for the first one for ever.
        if let Some(lock) = held.upgrade() {
            return Ok(lock);
        }
        let lock = Arc::new(self.workspace.claim().map_err(TaskError::Workspace)?);
        *held = Arc::downgrade(&lock);
        Ok(lock)
    }

    /// Copies the files that tests wrote into the sources of their build back into the clone.
    pub fn bring_back(&self, lock: &BuildLock) -> Result<()> {
        let brought = self.workspace.bring_back(lock);
        let brought = brought.map_err(TaskError::Workspace)?;
        for line in brought.lines(&self.workspace.mirror()) {
            self.board().print(&line);
        }
        Ok(())
    }

    /// A cargo command that builds where this workspace builds.
    pub fn cargo(&self, subcommand: &str) -> Command {
        self.workspace.cargo(subcommand)
    }

    /// A cargo command that builds another copy of the tree into another target folder.
    pub(crate) fn cargo_in(&self, subcommand: &str, tree: &Path, target: &Path) -> Command {
        self.workspace.cargo_in(subcommand, tree, target)
    }

    /// Sets how many builds compile at the same time from now on, here and in steps that are
    /// started from here.
    pub(crate) fn compile_beside(&mut self, builds: usize) {
        self.workspace.compile_beside(builds);
    }

    /// How many jobs one of these builds starts.
    pub(crate) fn jobs(&self) -> usize {
        self.workspace.jobs()
    }

    /// The rows of the running steps.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Every step so far.
    pub fn steps(&self) -> &[StepTime] {
        &self.steps
    }

    /// The file for a step's output.
    pub fn log(&self, name: &str) -> PathBuf {
        self.cache().join("logs").join(format!("{name}.log"))
    }

    /// Shows the step's present work.
    pub fn say(&self, what: &str) {
        if let Some(row) = &self.row {
            row.say(what);
        }
    }

    /// Runs `work` and records its time. A step within a step has its own row, and counts as part
    /// of the outer one.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = self.row.replace(self.board.start(name));
        let result = work(self);
        let row = std::mem::replace(&mut self.row, outer);
        if let Some(row) = row {
            // The time of a failed step says nothing about how long it takes.
            self.steps.push(if result.is_ok() {
                row.finish()
            } else {
                row.end()
            });
        }
        result
    }

    /// Runs all of `jobs` at once, each as a step. The first failure ends the programs that the
    /// others run, and is returned. The failures that follow from it are not.
    pub fn parallel(&mut self, jobs: Vec<Job<'_>>) -> Result<()> {
        let abandoned: Arc<AtomicBool> = Arc::default();
        let failure: Mutex<Option<TaskError>> = Mutex::new(None);
        let first = &failure;
        let contexts = jobs.into_iter().map(|(name, work)| {
            let context = Self {
                workspace: self.workspace.clone(),
                sources: self.sources.clone(),
                steps: Vec::new(),
                board: Arc::clone(&self.board),
                row: None,
                held: Arc::clone(&self.held),
                began: self.began,
                abandoned: Arc::clone(&abandoned),
            };
            (name, work, context)
        });
        let contexts: Vec<_> = contexts.collect();
        let mut all_passed = true;
        thread::scope(|scope| {
            let threads = contexts.into_iter().map(|(name, work, mut context)| {
                scope.spawn(move || {
                    let passed = context.step(name, |cx| {
                        work(cx).map_err(|failure| cx.abandon_others(first, failure))
                    });
                    (context.steps, passed.is_ok())
                })
            });
            for thread in threads.collect::<Vec<_>>() {
                let (steps, passed) = match thread.join() {
                    Ok(outcome) => outcome,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                self.steps.extend(steps);
                all_passed &= passed;
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(failure) => Err(failure),
            None if all_passed => Ok(()),
            // What ended these jobs is the failure of a step beside all of them.
            None => Err(TaskError::Abandoned),
        }
    }

    /// Ends the jobs beside this one, which failed. Keeps its failure in `first` if it is the first one.
    fn abandon_others(&self, first: &Mutex<Option<TaskError>>, failure: TaskError) -> TaskError {
        // A job that was ended because another one failed is not the cause.
        if !matches!(failure, TaskError::Abandoned) {
            // The others learn of the failure while the lock is held: what they make of their end comes second.
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(failure);
            // The other jobs would go on for minutes, and their result would not be used.
            self.abandoned.store(true, Ordering::Relaxed);
        }
        TaskError::Abandoned
    }

    /// The steps so far as a table, for the end of a command.
    pub fn table(&self) -> String {
        table(&self.steps, self.began.elapsed())
    }

    /// Runs a program whose output goes into a log. Shows progress and, if the program fails, the
    /// end of the log.
    pub fn run(&self, command: &mut Command, what: &str, log: &str) -> Result<()> {
        let mut result = self.run_all([(command, log.to_owned())], what)?;
        result.remove(0)
    }

    /// Like `run`, with several at once, each with its own log. Returns their results in the order
    /// given.
    pub fn run_all<'a>(
        &self,
        commands: impl IntoIterator<Item = (&'a mut Command, String)>,
        what: &str,
    ) -> Result<Vec<Result<()>>> {
        let row = self.row.is_none().then(|| self.board.start(what));
        self.say(what);
        let mut children: Vec<ProcessGroup> = Vec::new();
        let mut logs = Vec::new();
        for (command, log) in commands {
            let log = self.log(&log);
            let led = ProcessGroup::start(command, |command| progress::start_logged(command, &log));
            match led {
                Ok(child) => children.push(child),
                Err(error) => {
                    // The started ones are ended: without the others their work is of no use.
                    end(&children)?;
                    return Err(cannot_run(command)(error));
                }
            }
            logs.push(log);
        }
        let statuses = self.wait(children, what)?;
        drop(row);
        let outcome = |(status, log): (ExitStatus, PathBuf)| {
            if status.success() {
                return Ok(());
            }
            for line in tail(&log) {
                self.board.print(&format!("  {line}"));
            }
            Err(failed(what, status, Some(log)))
        };
        Ok(statuses.into_iter().zip(logs).map(outcome).collect())
    }

    /// Waits for programs. Ends them if a step beside this one failed.
    fn wait(&self, children: Vec<ProcessGroup>, what: &str) -> Result<Vec<ExitStatus>> {
        loop {
            let ended: io::Result<Vec<bool>> =
                children.iter().map(ProcessGroup::has_ended).collect();
            let ended = ended.map_err(TaskError::io(format!("wait for {what}")))?;
            if ended.into_iter().all(|ended| ended) {
                let statuses: io::Result<_> =
                    children.into_iter().map(ProcessGroup::reap).collect();
                return statuses.map_err(TaskError::io(format!("wait for {what}")));
            }
            if self.abandoned.load(Ordering::Relaxed) {
                end(&children)?;
                return Err(TaskError::Abandoned);
            }
            thread::sleep(POLL);
        }
    }

    /// Installs missing packages that compile a kernel or a Vulkan driver. The front does not
    /// install them if the cache has some kernel and driver.
    pub fn install_compilers(&self) -> Result<()> {
        self.install(PackagePurpose {
            compile: true,
            test: false,
            npm: false,
            peers: false,
        })
    }

    /// Installs npm's client if it is missing. The front does not install it, because the packages
    /// that it fetches stay in the cache.
    pub fn install_npm(&self) -> Result<()> {
        self.install(PackagePurpose {
            compile: false,
            test: false,
            npm: true,
            peers: false,
        })
    }

    /// Installs missing programs with which the benchmarks of images and updates compare. The front
    /// does not install them, because the other benchmarks do without.
    pub fn install_peers(&self) -> Result<()> {
        self.install(PackagePurpose {
            compile: false,
            test: false,
            npm: false,
            peers: true,
        })
    }

    fn install(&self, purpose: PackagePurpose) -> Result<()> {
        if packages::missing(purpose).is_empty() {
            return Ok(());
        }
        let row = self.board.start("system packages");
        let installed = packages::ensure(purpose, &self.cache().join("logs"), &row);
        // The same kind of error as the front's: the user has to change this machine first.
        installed.map_err(TaskError::Arguments)
    }

    /// Builds a program of the workspace and shows the package that is being compiled. The error is
    /// cargo's.
    pub fn build(&self, program: &str, set: BuildSet) -> Result<PathBuf> {
        let own;
        let row = match &self.row {
            Some(row) => row,
            None => {
                own = self.board.start("compile");
                &own
            }
        };
        let built = self.workspace.build(program, set, row);
        built.map_err(TaskError::Workspace)
    }

    /// Records the compiled units that a build used, from cargo's messages.
    pub fn record(&self, set: BuildSet, messages: &str) -> Result<()> {
        let recorded = self.workspace.record(set, messages);
        recorded.map_err(TaskError::Workspace)
    }

    /// Runs a program whose output belongs on the terminal.
    pub fn show(&self, command: &mut Command, what: &str) -> Result<()> {
        let output = command.output().map_err(cannot_run(command))?;
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(text);
            if !text.trim().is_empty() {
                self.board.print(text.trim_end());
            }
        }
        if output.status.success() {
            return Ok(());
        }
        Err(failed(what, output.status, None))
    }
}

/// Ends programs that another step's failure made useless.
fn end(children: &[ProcessGroup]) -> Result<()> {
    group::end(children, Signal::SIGTERM, GRACE).map_err(TaskError::io("end programs"))
}

fn cannot_run(command: &Command) -> impl FnOnce(io::Error) -> TaskError + use<> {
    TaskError::io(format!("run {}", command.get_program().to_string_lossy()))
}

fn failed(what: &str, status: ExitStatus, log: Option<PathBuf>) -> TaskError {
    TaskError::Step {
        what: what.to_owned(),
        how: status.to_string(),
        log,
    }
}

/// The table of steps. Steps overlap, so the total is the elapsed time and not their sum.
fn table(steps: &[StepTime], total: Duration) -> String {
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
    text += &line("total", total.as_secs_f64());
    text
}
/// The last lines of a file. None if the file cannot be read.
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
    fn the_table_ends_with_what_the_clock_says() {
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
        let text = table(&steps, Duration::from_millis(2500));
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .last()
                .is_some_and(|line| line.contains("total") && line.ends_with("2.5 s"))
        );
        assert!(table(&[], Duration::ZERO).contains("0.0 s"));
    }

    /// One program is stopped, the other ignores SIGTERM, and the step beside them fails once both
    /// run.
    #[test]
    fn programs_of_an_abandoned_step_end_whatever_they_do() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut cx = XtaskContext::in_folder(folder.path());
        let file = folder.path().join("started");
        let scripts = [
            "echo $$ >> \"$STARTED\"; kill -STOP $$; sleep 1000",
            "trap '' TERM; echo $$ >> \"$STARTED\"; while :; do sleep 0.01; done",
        ];
        let mut commands = scripts.map(|script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("STARTED", &file);
            command
        });
        let jobs: Vec<Job<'_>> = vec![
            (
                "stays",
                Box::new(|cx| {
                    let named = ["one", "two"].map(str::to_owned);
                    cx.run_all(commands.iter_mut().zip(named), "stays")
                        .map(drop)
                }),
            ),
            (
                "fails",
                Box::new(|_| {
                    group::tests::started(&file, 2);
                    Err(TaskError::Workspace("it fails".to_owned()))
                }),
            ),
        ];
        let failure = cx.parallel(jobs).expect_err("one fails");
        assert_eq!(failure.to_string(), "it fails");
        for pid in group::tests::started(&file, 2) {
            group::tests::is_gone(pid);
        }
    }

    /// A step may make an error of its own of its end, as `cargo xtask test` once did: it reported a missing source in
    /// place of a compile error.
    #[test]
    fn the_first_failure_is_reported_and_none_that_follows_from_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut cx = XtaskContext::in_folder(folder.path());
        let file = folder.path().join("started");
        let jobs: Vec<Job<'_>> = vec![
            (
                "follows",
                Box::new(|cx| {
                    let mut command = Command::new("sh");
                    let stays = "echo $$ >> \"$STARTED\"; exec sleep 1000";
                    command.args(["-c", stays]).env("STARTED", &file);
                    let ended = cx.run(&mut command, "stays", "stays");
                    let ended = ended.expect_err("the other one fails");
                    Err(TaskError::Workspace(format!("no sleep: {ended}")))
                }),
            ),
            (
                "fails",
                Box::new(|_| {
                    group::tests::started(&file, 1);
                    Err(TaskError::Workspace("it fails".to_owned()))
                }),
            ),
        ];
        let failure = cx.parallel(jobs).expect_err("one fails");
        assert_eq!(failure.to_string(), "it fails");
        // Jobs that were ended by a step beside all of them have not passed.
        let ended: Vec<Job<'_>> = vec![("ended", Box::new(|_| Err(TaskError::Abandoned)))];
        assert!(matches!(cx.parallel(ended), Err(TaskError::Abandoned)));
    }

    /// The first one ends only after the last one has begun to.
    #[test]
    fn several_children_are_waited_for_in_their_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let scripts = [
            (
                "waits",
                "until [ -e \"$LAST\" ]; do sleep 0.01; done; exit 1",
            ),
            ("passes", "exit 0"),
            ("ends", "touch \"$LAST\"; exit 2"),
        ];
        let last = folder.path().join("last");
        let mut commands = scripts.map(|(_, script)| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("LAST", &last);
            command
        });
        let logs = scripts.map(|(log, _)| log.to_owned());
        let results = cx.run_all(commands.iter_mut().zip(logs), "test");
        let results = results.expect("all of them ran").into_iter();
        let said = results.map(|result| match result {
            Ok(()) => None,
            Err(TaskError::Step { how, log, .. }) => Some((how, log)),
            Err(other) => panic!("{other}"),
        });
        let of = |code: i32, log: &str| Some((format!("exit status: {code}"), Some(cx.log(log))));
        assert_eq!(
            said.collect::<Vec<_>>(),
            [of(1, "waits"), None, of(2, "ends")]
        );
    }

    /// The front checks first, but this program is also started from where cargo put it.
    #[test]
    fn a_home_is_not_taken_for_a_cache() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let work = home.path().join("workspace/thesis.txt");
        fs::create_dir_all(work.parent().expect("a folder")).expect("writable");
        fs::write(&work, "years of work").expect("writable");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let refused = open(&root, home.path()).expect_err("files of others");
        assert!(
            refused.to_string().contains("was not made by alknet"),
            "{refused}"
        );
        assert!(work.exists());
        assert_eq!(fs::read_dir(home.path()).expect("readable").count(), 1);
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
