//! Progress of work that takes longer than two seconds: a row for each running step with the time
//! that it took last, and the output of programs in log files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often rows are drawn on a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// How often a line is printed if the output is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Steps shorter than this took their result from the cache, so their time does not predict the
/// next one.
const REMEMBERED_FROM: Duration = Duration::from_secs(3);

/// The file in the cache with the last time of each step that did its work.
pub const HISTORY: &str = "times/steps";

/// Environment variable that passes the steps done so far to `alknet-tasks`.
pub const STEPS_VARIABLE: &str = "ALKNET_STEPS";

/// A command for which the front estimates the remaining time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimedCommand {
    /// `up`, until the machine has answered a call.
    Up,
    /// `test` without a selection.
    Test,
}

impl TimedCommand {
    /// The command that the arguments call, if it is one of these.
    #[must_use]
    pub fn from_arguments(arguments: &[String]) -> Option<Self> {
        let (command, options) = arguments.split_first()?;
        match command.as_str() {
            "up" => Some(Self::Up),
            // Anything else selects tests, or builds something else.
            "test" => options
                .iter()
                .all(|word| word == "--times")
                .then_some(Self::Test),
            _ => None,
        }
    }

    /// The name in the history of everything after the front.
    const fn rest(self) -> &'static str {
        match self {
            Self::Up => "rest of up",
            Self::Test => "rest of test",
        }
    }
}

/// A finished step, for the closing table.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// Starts `command` with its output in `log`.
pub fn start_logged(command: &mut process::Command, log: &Path) -> io::Result<Child> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
}

/// The rows of the running steps. A separate thread draws them until this is dropped.
#[derive(Debug)]
pub struct Board {
    shared: Arc<BoardShared>,
    printer: Option<JoinHandle<()>>,
}

/// A running step. It ends when this is dropped.
#[derive(Debug)]
pub struct BoardRow {
    shared: Arc<BoardShared>,
    id: u64,
    name: String,
    started: Instant,
}

#[derive(Debug)]
struct BoardShared {
    state: Mutex<BoardState>,
    /// Notified when the board ends, so that the command does not wait for the next drawing.
    changed: Condvar,
    /// How long steps took last time, by name, in seconds.
    history: Mutex<BTreeMap<String, f64>>,
    file: PathBuf,
    terminal: bool,
    began: Instant,
}

#[derive(Debug, Default)]
struct BoardState {
    rows: Vec<DisplayedRow>,
    /// Announced steps that have not started.
    ahead: Vec<String>,
    next: u64,
    /// Rows on the terminal that the next drawing replaces.
    drawn: usize,
    ended: bool,
}

#[derive(Debug)]
struct DisplayedRow {
    id: u64,
    name: String,
    detail: String,
    started: Instant,
}

impl Board {
    /// A board without rows. `history` is the file with the times of steps. It need not exist.
    #[must_use]
    pub fn new(history: &Path) -> Self {
        let known = fs::read_to_string(history).unwrap_or_default();
        let known = decode_steps(&known.replace('\n', ";"));
        let shared = Arc::new(BoardShared {
            state: Mutex::default(),
            changed: Condvar::new(),
            history: Mutex::new(known.into_iter().map(|s| (s.name, s.seconds)).collect()),
            file: history.to_owned(),
            terminal: io::stderr().is_terminal(),
            began: Instant::now(),
        });
        let printing = Arc::clone(&shared);
        let printer = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || printing.print())
            .ok();
        Self { shared, printer }
    }

    /// Starts a step.
    #[must_use]
    pub fn start(&self, name: &str) -> BoardRow {
        let started = Instant::now();
        let mut state = self.shared.state();
        let id = state.next;
        state.next += 1;
        state.ahead.retain(|ahead| ahead != name);
        state.rows.push(DisplayedRow {
            id,
            name: name.to_owned(),
            detail: String::new(),
            started,
        });
        drop(state);
        if !self.shared.terminal {
            let last = self.shared.expected(name);
            let last = last.map_or_else(String::new, |last| format!(" (last time {})", span(last)));
            eprintln!("{name} ...{last}");
        }
        BoardRow {
            shared: Arc::clone(&self.shared),
            id,
            name: name.to_owned(),
            started,
        }
    }

    /// Prints a line above the rows.
    pub fn print(&self, line: &str) {
        let mut state = self.shared.state();
        if self.shared.terminal {
            draw(&mut state, &[]);
        }
        let mut out = io::stdout().lock();
        // The work goes on if the output is closed.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    /// Announces that `alknet-tasks` follows with `command`. The estimate is the time that it took
    /// last.
    pub fn announce_rest(&self, command: TimedCommand) {
        self.announce(&[command.rest()]);
    }

    /// Remembers how long `command` took since this board was made, for the next front.
    pub fn remember_rest(&self, command: TimedCommand) {
        let elapsed = self.shared.began.elapsed();
        self.shared.remember(command.rest(), elapsed);
    }

    /// Announces steps that follow, for the estimate of the remaining time.
    pub fn announce(&self, names: &[&str]) {
        let mut state = self.shared.state();
        state
            .ahead
            .extend(names.iter().map(|name| (*name).to_owned()));
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        if let Some(printer) = self.printer.take() {
            // The thread does not panic, and a missed drawing does no harm.
            let _ = printer.join();
        }
    }
}

impl BoardRow {
    /// Shows what the step is doing now.
    pub fn say(&self, detail: &str) {
        let mut state = self.shared.state();
        if let Some(shown) = state.rows.iter_mut().find(|shown| shown.id == self.id) {
            detail.clone_into(&mut shown.detail);
        }
    }

    /// Ends the step and remembers how long it took.
    #[must_use]
    pub fn finish(self) -> StepTime {
        let elapsed = self.started.elapsed();
        if elapsed >= REMEMBERED_FROM {
            self.shared.remember(&self.name, elapsed);
        }
        if !self.shared.terminal {
            eprintln!("{}: done in {}", self.name, span(elapsed));
        }
        self.end()
    }

    /// Ends a failed step, whose time is not remembered.
    #[must_use]
    pub fn end(self) -> StepTime {
        StepTime {
            name: self.name.clone(),
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}

impl Drop for BoardRow {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.rows.retain(|shown| shown.id != self.id);
    }
}

impl BoardShared {
    fn state(&self) -> MutexGuard<'_, BoardState> {
        // The rows are consistent between any two statements, so they can be drawn after a panic
        // elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self, name: &str) -> Option<Duration> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history
            .get(name)
            .map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))
    }

    /// If the history cannot be written, only an estimate is lost.
    fn remember(&self, name: &str, elapsed: Duration) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.insert(name.to_owned(), elapsed.as_secs_f64());
        let steps = history.iter().map(|(name, seconds)| StepTime {
            name: name.clone(),
            seconds: *seconds,
        });
        let text = encode_steps(&steps.collect::<Vec<_>>()).replace(';', "\n");
        let _ = self
            .file
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&self.file, text + "\n"));
    }

    fn print(&self) {
        let every = if self.terminal {
            DRAW_EVERY
        } else {
            LINE_EVERY
        };
        let mut state = self.state();
        while !state.ended {
            let waited = self
                .changed
                .wait_timeout_while(state, every, |state| !state.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.ended {
                break;
            }
            let lines = self.lines(&state);
            if self.terminal {
                draw(&mut state, &lines);
            } else if !lines.is_empty() {
                eprintln!("{}", lines.join(" · "));
            }
        }
        if self.terminal {
            draw(&mut state, &[]);
        }
    }

    fn lines(&self, state: &BoardState) -> Vec<String> {
        let one = |shown: &DisplayedRow| {
            let mut line = format!("{} {}", shown.name, span(shown.started.elapsed()));
            if let Some(last) = self.expected(&shown.name) {
                line += &format!(" of about {}", span(last));
            }
            if !shown.detail.is_empty() {
                line += &format!(" ({})", shown.detail);
            }
            line
        };
        let mut lines: Vec<String> = state.rows.iter().map(one).collect();
        if lines.is_empty() {
            return lines;
        }
        if let Some(left) = self.left(state) {
            lines.push(format!("about {} left", span(left)));
        }
        if self.terminal {
            lines.push(format!("{} so far", span(self.began.elapsed())));
        }
        lines
    }

    /// The longest remaining time of the running steps, plus all that follow. `None` if no step's
    /// time is known.
    fn left(&self, state: &BoardState) -> Option<Duration> {
        let running = state.rows.iter().filter_map(|shown| {
            let expected = self.expected(&shown.name)?;
            Some(expected.saturating_sub(shown.started.elapsed()))
        });
        let ahead = state.ahead.iter().filter_map(|name| self.expected(name));
        let (running, ahead) = (running.max(), ahead.reduce(|one, other| one + other));
        match (running, ahead) {
            (None, None) => None,
            (running, ahead) => Some(running.unwrap_or_default() + ahead.unwrap_or_default()),
        }
    }
}

/// Replaces the rows drawn last.
fn draw(state: &mut BoardState, lines: &[String]) {
    let mut text = String::new();
    if state.drawn > 0 {
        text += &format!("\x1b[{}A\r\x1b[J", state.drawn);
    }
    for line in lines {
        // A line that the terminal wraps would take two rows, and the next drawing would start too
        // low.
        let cut: String = line.chars().take(100).collect();
        text += &format!("{cut}\n");
    }
    state.drawn = lines.len();
    let mut out = io::stderr().lock();
    // A closed terminal shows nothing anyway.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `12 s`, and from two minutes on `3:05 min`.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    if seconds < 120 {
        format!("{seconds} s")
    } else {
        format!("{}:{:02} min", seconds / 60, seconds % 60)
    }
}

/// Writes steps as `name=seconds;name=seconds`, for [`STEPS_VARIABLE`].
#[must_use]
pub fn encode_steps(steps: &[StepTime]) -> String {
    let one = |step: &StepTime| {
        format!(
            "{}={:.3}",
            step.name.replace(['=', ';', '\n'], " "),
            step.seconds
        )
    };
    steps.iter().map(one).collect::<Vec<_>>().join(";")
}

/// Reads the output of [`encode_steps`]. Anything that is not a step is skipped.
#[must_use]
pub fn decode_steps(text: &str) -> Vec<StepTime> {
    let one = |part: &str| {
        let (name, seconds) = part.split_once('=')?;
        Some(StepTime {
            name: name.to_owned(),
            seconds: seconds
                .parse()
                .ok()
                // The text comes from the environment or a file, and infinity is not a valid
                // duration.
                .filter(|seconds: &f64| seconds.is_finite())?,
        })
    };
    text.split(';').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_the_environment() {
        let steps = vec![
            StepTime {
                name: "system packages".into(),
                seconds: 1.25,
            },
            StepTime {
                name: "a=b;c".into(),
                seconds: 30.0,
            },
        ];
        let read = decode_steps(&encode_steps(&steps));
        assert_eq!(read[0], steps[0]);
        assert_eq!(read[1].name, "a b c");
    }

    #[test]
    fn nonsense_in_the_environment_is_no_step() {
        assert!(decode_steps("").is_empty());
        assert!(decode_steps("x;y=z;=;a=inf").is_empty());
    }

    #[test]
    fn output_goes_to_the_log_and_the_status_comes_back() {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let log = folder.path().join("log");
        let mut command = process::Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let mut child = start_logged(&mut command, &log).expect("sh starts");
        assert_eq!(child.wait().expect("it ends").code(), Some(3));
        let text = fs::read_to_string(&log).expect("the log was written");
        assert!(text.contains("out") && text.contains("err"), "{text}");
    }

    #[test]
    fn what_is_left_is_the_longest_that_runs_and_what_follows() {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let file = folder.path().join("times");
        fs::write(&file, "kernel=795\nworkspace=600\nimage=3\nnonsense\n").expect("writable");
        let board = Board::new(&file);
        let (kernel, workspace) = (board.start("kernel"), board.start("workspace"));
        board.announce(&["image", "boot"]);
        workspace.say("compiling alknet");
        let lines = board.shared.lines(&board.shared.state()).join("\n");
        assert!(lines.contains("kernel 0 s of about 13:15 min"), "{lines}");
        assert!(lines.contains("(compiling alknet)"), "{lines}");
        assert!(lines.contains("about 13:18 min left"), "{lines}");
        drop(kernel.finish());
        let lines = board.shared.lines(&board.shared.state()).join("\n");
        assert!(
            !lines.contains("kernel") && lines.contains("10:03 min left"),
            "{lines}"
        );
        // Results from the cache, which came at once, do not predict the next time.
        let text = fs::read_to_string(&file).expect("readable");
        assert!(text.contains("kernel=795\n"), "{text}");
    }

    #[test]
    fn the_front_knows_how_long_the_rest_takes() {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let file = folder.path().join("times");
        fs::write(&file, "project commands=70\nrest of up=600\n").expect("writable");
        let board = Board::new(&file);
        let built = board.start("project commands");
        board.announce_rest(TimedCommand::Up);
        let lines = board.shared.lines(&board.shared.state()).join("\n");
        assert!(lines.contains("about 11:10 min left"), "{lines}");
        drop(built);
        board.remember_rest(TimedCommand::Up);
        let text = fs::read_to_string(&file).expect("readable");
        assert!(text.contains("rest of up=0."), "{text}");
    }

    #[test]
    fn what_selects_tests_has_no_estimate() {
        let command = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            TimedCommand::from_arguments(&words)
        };
        assert_eq!(command("up --smoke --form raw"), Some(TimedCommand::Up));
        assert_eq!(command("test"), Some(TimedCommand::Test));
        assert_eq!(command("test --times"), Some(TimedCommand::Test));
        assert_eq!(command("test vault"), None);
        assert_eq!(command("test --since main"), None);
        assert_eq!(command("kernel"), None);
    }

    #[test]
    fn a_long_step_is_remembered() {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let file = folder.path().join("long");
        let board = Board::new(&file);
        board
            .shared
            .remember("kernel", Duration::from_millis(12_500));
        assert_eq!(
            board.shared.expected("kernel"),
            Some(Duration::from_millis(12_500))
        );
        drop(board);
        let again = Board::new(&file);
        assert_eq!(
            again.shared.expected("kernel"),
            Some(Duration::from_millis(12_500))
        );
    }

    #[test]
    fn spans_are_written_for_people() {
        let said = [5, 119, 120, 795].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(said, ["5 s", "119 s", "2:00 min", "13:15 min"]);
    }
}
