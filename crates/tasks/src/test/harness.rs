//! Runs one test program, and reads its harness's output.
//!
//! The harness writes JSON with the time of each test. Children of a test write to the same output:
//! a line that is no event of the harness is stored as the program's own output. If a child writes
//! an event of the harness's form, the events do not add up: the harness first says how many tests
//! it runs and last how they ended, and each test starts once and ends once. Cargo runs the
//! examples in the documentation, and prints their results in plain lines.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::group::{self, ProcessGroup};

/// Prefix of an event of the harness.
const EVENT: &str = "{ \"type\": \"";

/// How often a silent program is checked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Most bytes kept of a line, and of a program's output beside its harness's events.
const SAID_BYTES_MAX: usize = 1 << 20;

/// Longest escape in JSON text, `\u0000`.
const ESCAPE_BYTES_MAX: usize = 6;

/// What Rust prints at the beginning of a panic.
pub(super) const PANIC: &str = "panicked at ";

/// Most lines shown of a panic: a test that booted a machine prints the machine's console after it.
pub(super) const PANIC_LINES_MAX: usize = 12;

/// The form in which a program reports how its tests ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestOutputFormat {
    /// One object per line, which libtest writes with `--format=json`.
    Json,
    /// Lines for people, which cargo writes for the examples in the documentation.
    Plain,
}

/// Longest time in which no test of a program ends, on a machine at rest and on the busiest. The
/// second leaves a hanging run time to report that within the 90 minutes of continuous integration.
/// No wait for a machine exceeds 15 minutes. On two cores of an AMD EPYC of model 1, the longest test
/// of updates took 13 minutes beside six other programs with machines, and more than 20 in a whole run.
const SILENCE: Duration = Duration::from_secs(35 * 60);
const SILENCE_MAX: Duration = Duration::from_secs(45 * 60);

/// How long a program may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TestTimeouts {
    /// Longest time in which no test of it ends. It is longer than any limit of a test, which fails
    /// with what it observed. An emulated machine has 900 s for its boot at rest:
    /// [`READY_WITHIN`](alknet_qemu::READY_WITHIN), ten times for the emulation, three for the
    /// tests beside.
    pub(super) silence: Duration,
    /// The time from SIGABRT, which a program gets after that, to SIGKILL. Also the time from its
    /// end to the end of its output, which a process outside of its group can hold open.
    pub(super) grace: Duration,
}

impl TestTimeouts {
    /// The limits on a machine that is slower than one at rest by this factor.
    pub(super) fn scaled(slowdown: f64) -> Self {
        Self {
            silence: SILENCE.mul_f64(slowdown).min(SILENCE_MAX),
            grace: Duration::from_secs(5).mul_f64(slowdown),
        }
    }
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestVerdict {
    Passed,
    Failed,
    Ignored,
    /// Its program ended before it did.
    Lost,
}

/// A test that ran.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TestResult {
    pub(super) name: String,
    pub(super) verdict: TestVerdict,
    pub(super) seconds: f64,
    /// Its output, if it failed.
    pub(super) printed: String,
}

impl TestResult {
    /// Its output from its first panic on, if there was one.
    pub(super) fn panic(&self) -> impl Iterator<Item = &str> {
        let lines = self.printed.lines();
        lines.skip_while(|line| !line.contains(PANIC))
    }
}

/// A program that ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ProgramResult {
    pub(super) tests: Vec<TestResult>,
    pub(super) filtered_out: u64,
    pub(super) wall_seconds: f64,
    /// Processor time of the program and of all that it started and waited for.
    pub(super) cpu_seconds: f64,
    /// Its output beside the events.
    pub(super) printed: String,
    /// Why the program as a whole failed, if its tests do not say so.
    pub(super) broken: Option<String>,
    /// Tests that the harness announced, and that neither ended nor were running at the end.
    pub(super) not_run: u64,
}

impl ProgramResult {
    pub(super) fn count(&self, verdict: TestVerdict) -> usize {
        self.tests
            .iter()
            .filter(|test| test.verdict == verdict)
            .count()
    }

    pub(super) fn failed(&self) -> impl Iterator<Item = &TestResult> {
        let failed =
            |test: &&TestResult| matches!(test.verdict, TestVerdict::Failed | TestVerdict::Lost);
        self.tests.iter().filter(failed)
    }

    pub(super) fn passed(&self) -> bool {
        self.broken.is_none() && self.failed().next().is_none()
    }

    /// The lines that cargo's own runner would have shown.
    pub(super) fn lines(&self) -> Vec<String> {
        let total = self.tests.len();
        let mut lines = vec![String::new(), format!("running {total} tests")];
        for test in &self.tests {
            let verdict = match test.verdict {
                TestVerdict::Passed => "ok",
                TestVerdict::Failed | TestVerdict::Lost => "FAILED",
                TestVerdict::Ignored => "ignored",
            };
            lines.push(format!("test {} ... {verdict}", test.name));
            // The reason of a failure stands beside it: a log that is cut holds both or neither.
            let panic = test.panic().take(PANIC_LINES_MAX);
            lines.extend(panic.map(|line| format!("    {line}")));
        }
        lines.push(String::new());
        lines.push(format!(
            "test result: {}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; \
             finished in {:.2}s",
            if self.passed() { "ok" } else { "FAILED" },
            self.count(TestVerdict::Passed),
            self.count(TestVerdict::Failed) + self.count(TestVerdict::Lost),
            self.count(TestVerdict::Ignored),
            self.filtered_out,
            self.wall_seconds,
        ));
        if let Some(why) = &self.broken {
            lines.push(format!("the program failed: {why}"));
        }
        lines
    }
}

#[derive(Debug, Deserialize)]
struct LibtestEvent {
    #[serde(rename = "type")]
    kind: String,
    event: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    exec_time: f64,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    test_count: u64,
    #[serde(default)]
    passed: u64,
    #[serde(default)]
    failed: u64,
    #[serde(default)]
    ignored: u64,
    #[serde(default)]
    filtered_out: u64,
}

/// Reads the output of a program line by line.
#[derive(Debug)]
pub(super) struct TestOutputReader {
    format: TestOutputFormat,
    outcome: ProgramResult,
    running: BTreeSet<String>,
    ended: BTreeSet<String>,
    /// Suites that began and ended: one, or for [`TestOutputFormat::Plain`] one for each package.
    begun: usize,
    finished: usize,
    /// Tests that all suites together announced.
    announced: u64,
    /// The first event that cannot follow those before it.
    odd: Option<String>,
    last_event: Option<Instant>,
}

impl TestOutputReader {
    pub(super) fn new(format: TestOutputFormat) -> Self {
        Self {
            format,
            outcome: ProgramResult::default(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            begun: 0,
            finished: 0,
            announced: 0,
            odd: None,
            last_event: None,
        }
    }

    /// Reads a line. `is_cut` if the line was longer than what is kept.
    pub(super) fn line(&mut self, line: &str, is_cut: bool) {
        match self.format {
            TestOutputFormat::Json => self.json(line, is_cut),
            TestOutputFormat::Plain => self.plain(line),
        }
    }

    fn json(&mut self, line: &str, is_cut: bool) {
        // In texts within an event its quotes are escaped.
        let Some(at) = line.rfind(EVENT) else {
            return self.say(line);
        };
        let (before, rest) = line.split_at(at);
        let mut events = serde_json::Deserializer::from_str(rest).into_iter();
        let (event, after): (LibtestEvent, _) = match events.next() {
            Some(Ok(event)) => (event, &rest[events.byte_offset()..]),
            _ => match is_cut.then(|| completed(rest)).flatten() {
                Some(event) => (event, ""),
                None => return self.say(line),
            },
        };
        if !["suite", "test"].contains(&&*event.kind) {
            return self.say(line);
        }
        // A child that wrote no end of line shares one with the harness.
        self.say(before);
        self.say(after);
        self.event(event);
    }

    fn event(&mut self, event: LibtestEvent) {
        self.last_event = Some(Instant::now());
        let is_first = event.kind == "suite" && event.event == "started";
        if self.finished > 0 || (self.begun == 0) != is_first {
            let name = if event.name.is_empty() {
                &event.kind
            } else {
                &event.name
            };
            let text = format!("`{name}` {} out of turn", event.event);
            self.odd.get_or_insert(text);
        }
        match (event.kind.as_str(), event.event.as_str()) {
            ("suite", "started") => {
                self.begun += 1;
                self.announced += event.test_count;
            }
            ("suite", "ok" | "failed") => self.suite_ended(&event),
            ("test", "started") => self.started(event.name),
            ("test", "ok") => self.ended(event, TestVerdict::Passed),
            ("test", "failed") => self.ended(event, TestVerdict::Failed),
            ("test", "ignored") => self.ended(event, TestVerdict::Ignored),
            _ => {}
        }
    }

    fn started(&mut self, name: String) {
        if self.ended.contains(&name) || self.running.contains(&name) {
            let text = format!("the test `{name}` started twice");
            self.odd.get_or_insert(text);
        }
        self.running.insert(name);
    }

    fn suite_ended(&mut self, event: &LibtestEvent) {
        self.finished += 1;
        self.outcome.filtered_out = event.filtered_out;
        let counts = [
            (event.passed, TestVerdict::Passed),
            (event.failed, TestVerdict::Failed),
            (event.ignored, TestVerdict::Ignored),
        ];
        let outcome = &self.outcome;
        if counts
            .iter()
            .any(|(count, verdict)| *count != outcome.count(*verdict) as u64)
        {
            self.odd.get_or_insert_with(|| {
                format!(
                    "the harness counts {} passed, {} failed and {} ignored, and its events {}, {} and {}",
                    event.passed,
                    event.failed,
                    event.ignored,
                    outcome.count(TestVerdict::Passed),
                    outcome.count(TestVerdict::Failed),
                    outcome.count(TestVerdict::Ignored),
                )
            });
        } else if event.event == "failed" && event.failed == 0 {
            let text = "the harness failed, and none of its tests".to_owned();
            self.odd.get_or_insert(text);
        }
    }

    /// Reads a line of the form for people: `test NAME ... ok`. The output of a failed test follows
    /// under `failures:`, and is kept with everything else.
    fn plain(&mut self, line: &str) {
        let ended = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "));
        let verdict = match ended {
            Some((_, "ok")) => TestVerdict::Passed,
            Some((_, "FAILED")) => TestVerdict::Failed,
            Some((_, how)) if how.starts_with("ignored") => TestVerdict::Ignored,
            _ => {
                let count = line.strip_prefix("running ");
                let count = count.and_then(|rest| rest.split_once(" test"));
                if let Some(count) = count.and_then(|(count, _)| count.parse::<u64>().ok()) {
                    self.begun += 1;
                    self.announced += count;
                }
                self.finished += usize::from(line.starts_with("test result: "));
                self.say(line);
                return;
            }
        };
        self.last_event = Some(Instant::now());
        self.outcome.tests.push(TestResult {
            name: ended.map_or("", |(name, _)| name).to_owned(),
            verdict,
            seconds: 0.0,
            printed: String::new(),
        });
    }

    fn ended(&mut self, event: LibtestEvent, verdict: TestVerdict) {
        if !self.running.remove(&event.name) {
            let text = format!("the test `{}` ended and was not running", event.name);
            self.odd.get_or_insert(text);
        }
        // A test has one result. A second one is a fault of the harness, which `odd` records.
        if !self.ended.insert(event.name.clone()) {
            return;
        }
        let mut printed = event.stdout;
        if !event.message.is_empty() {
            printed += &event.message;
        }
        self.outcome.tests.push(TestResult {
            name: event.name,
            verdict,
            seconds: event.exec_time,
            printed,
        });
    }

    fn say(&mut self, text: &str) {
        let printed = &mut self.outcome.printed;
        if !text.is_empty() && printed.len() + text.len() < SAID_BYTES_MAX {
            printed.push_str(text);
            printed.push('\n');
        }
    }

    /// The outcome of a program that ended with this status.
    pub(super) fn end(mut self, how: &str, success: bool) -> ProgramResult {
        for name in std::mem::take(&mut self.running) {
            self.outcome.tests.push(TestResult {
                name,
                verdict: TestVerdict::Lost,
                seconds: 0.0,
                printed: format!("its program ended before it did ({how})"),
            });
        }
        let outcome = &mut self.outcome;
        outcome.not_run = self.announced.saturating_sub(outcome.tests.len() as u64);
        let mut why: Vec<String> = self.odd.into_iter().collect();
        if outcome.not_run > 0 {
            why.push(format!("{} tests did not run", outcome.not_run));
        }
        let has_failed = outcome.failed().next().is_some();
        let is_whole = self.begun > 0 && self.begun == self.finished;
        if !why.is_empty() || (!has_failed && (!is_whole || !success)) || (has_failed && success) {
            why.insert(0, format!("the program ended with {how}"));
            outcome.broken = Some(why.join("; "));
        }
        self.outcome
    }
}

/// The event of a line whose end is missing, with its last text as far as it came.
fn completed(cut: &str) -> Option<LibtestEvent> {
    // The cut may be within an escape.
    let ends = (0..=ESCAPE_BYTES_MAX).filter_map(|less| cut.get(..cut.len().checked_sub(less)?));
    ends.filter_map(|cut| serde_json::from_str(&format!("{cut}\" }}")).ok())
        .next()
}

/// Calls `each` with every line, without its end, with at most [`SAID_BYTES_MAX`] bytes of it, and
/// whether the line was longer.
fn lines(output: impl Read, mut each: impl FnMut(&[u8], bool)) -> io::Result<()> {
    let mut output = BufReader::new(output);
    let (mut line, mut is_cut, mut is_empty) = (Vec::new(), false, true);
    loop {
        let read = match output.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read.is_empty() {
            if !is_empty {
                each(&line, is_cut);
            }
            return Ok(());
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let part = &read[..end.unwrap_or(read.len())];
        let kept = part.len().min(SAID_BYTES_MAX - line.len());
        line.extend_from_slice(&part[..kept]);
        is_cut |= kept < part.len();
        is_empty = false;
        let read = end.map_or(part.len(), |end| end + 1);
        output.consume(read);
        if end.is_some() {
            each(&line, is_cut);
            line.clear();
            (is_cut, is_empty) = (false, true);
        }
    }
}

/// Runs a program to its end. It is ended with its group if no test of it ends within the limit.
pub(super) fn run(
    command: &mut Command,
    format: TestOutputFormat,
    limits: TestTimeouts,
) -> io::Result<ProgramResult> {
    let started = Instant::now();
    let (output, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let program = ProcessGroup::start(command, Command::spawn);
    // Otherwise this process would itself hold the pipe open that it reads to its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut program = program?;
    let reader = Arc::new(Mutex::new(TestOutputReader::new(format)));
    let done = Arc::new(AtomicBool::new(false));
    let reading = {
        let (reader, done) = (Arc::clone(&reader), Arc::clone(&done));
        thread::spawn(move || {
            // A pipe that cannot be read ends like a closed one: the events before it are checked.
            let _ = lines(output, |line, is_cut| {
                let line = String::from_utf8_lossy(line);
                let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                reader.line(line.trim_end_matches('\r'), is_cut);
            });
            done.store(true, Ordering::Release);
        })
    };
    let is_silent = wait(&program, &reader, started, limits.silence)?;
    if is_silent {
        group::end(
            std::slice::from_ref(&program),
            Signal::SIGABRT,
            limits.grace,
        )?;
    }
    program.wait()?;
    let cpu_seconds = processor_seconds(program.child().id())?;
    // A process that a test left behind would hold the output open. The number of the group is
    // still the program's.
    program.signal(Signal::SIGKILL);
    let status = program.reap()?;
    let until = Instant::now() + limits.grace;
    while !done.load(Ordering::Acquire) && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    if done.load(Ordering::Acquire) {
        let _ = reading.join();
    }
    let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
    let reader = std::mem::replace(&mut *reader, TestOutputReader::new(format));
    let how = if is_silent {
        format!(
            "{status}: no test ended within {} s",
            limits.silence.as_secs()
        )
    } else {
        status.to_string()
    };
    let mut outcome = reader.end(&how, status.success());
    outcome.wall_seconds = started.elapsed().as_secs_f64();
    outcome.cpu_seconds = cpu_seconds;
    Ok(outcome)
}

/// Waits until the program is a zombie. Returns true if none of its tests ended for too long.
fn wait(
    program: &ProcessGroup,
    reader: &Mutex<TestOutputReader>,
    started: Instant,
    silence: Duration,
) -> io::Result<bool> {
    loop {
        if program.has_ended()? {
            return Ok(false);
        }
        let last = reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last_event;
        if last.unwrap_or(started).elapsed() > silence {
            return Ok(true);
        }
        let short = started.elapsed() < LOOK_EVERY;
        thread::sleep(if short {
            Duration::from_millis(5)
        } else {
            LOOK_EVERY / 10
        });
    }
}

/// Processor time of a process that has ended and was not reaped, and of the children that it
/// waited for, from proc(5).
fn processor_seconds(pid: u32) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(ticks(&text) as f64 / 100.0)
}

/// The sum of utime, stime, cutime and cstime, the 14th to 17th field. The 2nd is a name in
/// brackets, which may have spaces. Linux counts these in hundredths of a second on every
/// processor.
fn ticks(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = fields.split_whitespace().skip(11).take(4);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests;
