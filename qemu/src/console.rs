//! The serial console: follows it, stores all of it, and waits for texts on it.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::ansi::EscapeStripper;

/// Lines of the console that errors quote.
const TAIL_LINES: usize = 40;

/// One line, with what the machine had cost when it was complete.
#[derive(Clone, Debug)]
pub struct ConsoleLine {
    /// Time since QEMU was started.
    pub at: Duration,
    /// Processor time of QEMU.
    pub cpu: Duration,
    /// Guest instructions, if the machine counts them.
    pub instructions: Option<u64>,
    /// The text without control sequences.
    pub text: String,
}

/// A position in the console's text. A wait looks only after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConsoleMark(usize);

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitResult<T> {
    /// The console closed, because the machine ended.
    Closed,
    /// The console printed it. The value is the position just behind it, or the line.
    Said(T),
    /// The console did not print it in time.
    TimedOut,
}

/// Reads what a machine has cost so far, for the stamps of lines.
pub(crate) type Gauge = Box<dyn Fn() -> (Duration, Option<u64>) + Send>;

/// The console of one machine.
#[derive(Debug)]
pub struct VmConsole {
    shared: Arc<ConsoleShared>,
    input: Mutex<UnixStream>,
    reader: Option<JoinHandle<()>>,
}

impl VmConsole {
    /// Follows `stream` in a thread until it closes. A machine that was restored had printed
    /// `before` when it was saved.
    pub fn follow(stream: UnixStream, gauge: Gauge, before: &[u8]) -> io::Result<Self> {
        let output = stream.try_clone()?;
        let shared = Arc::new(ConsoleShared::default());
        let follower = ConsoleFollower {
            shared: shared.clone(),
            gauge,
            started: Instant::now(),
        };
        follower.take(before, &mut EscapeStripper::default());
        let reader = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || follower.run(output))?;
        Ok(Self {
            shared,
            input: Mutex::new(stream),
            reader: Some(reader),
        })
    }

    /// Everything that the console printed so far, without control sequences.
    pub fn text(&self) -> String {
        self.shared.lock().text.clone()
    }

    /// Everything that the console printed so far, byte for byte.
    pub fn raw(&self) -> Vec<u8> {
        self.shared.lock().raw.clone()
    }

    /// Complete lines so far.
    pub fn lines(&self) -> Vec<ConsoleLine> {
        self.shared.lock().lines.clone()
    }

    /// The first line that contains `needle`.
    pub fn find(&self, needle: &str) -> Option<ConsoleLine> {
        self.shared
            .lock()
            .lines
            .iter()
            .find(|line| line.text.contains(needle))
            .cloned()
    }

    /// The present end of the text.
    pub fn mark(&self) -> ConsoleMark {
        ConsoleMark(self.shared.lock().text.len())
    }

    /// Text after `mark`.
    pub fn since(&self, mark: ConsoleMark) -> String {
        self.shared
            .lock()
            .text
            .get(mark.0..)
            .unwrap_or_default()
            .to_owned()
    }

    /// The last lines, in the form that errors quote.
    pub fn tail(&self) -> String {
        tail(&self.shared.lock().text)
    }

    /// Types on the console.
    pub fn send(&self, text: &str) -> io::Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.write_all(text.as_bytes())
    }

    /// Waits until the console prints `needle` after `mark`. `limit` is not scaled.
    pub fn wait(
        &self,
        mark: ConsoleMark,
        needle: &str,
        limit: Duration,
    ) -> WaitResult<ConsoleMark> {
        self.wait_any(mark, &[needle], limit)
    }

    /// Waits until the console prints one of `needles` after `mark`. The earliest in the text
    /// counts.
    pub fn wait_any(
        &self,
        mark: ConsoleMark,
        needles: &[&str],
        limit: Duration,
    ) -> WaitResult<ConsoleMark> {
        self.wait_log(limit, |log| log.search(mark, needles))
    }

    /// Waits for the first whole line that contains `needle`, with its stamps.
    pub fn wait_line(&self, needle: &str, limit: Duration) -> WaitResult<ConsoleLine> {
        let line = |log: &ConsoleLog| {
            log.lines
                .iter()
                .find(|line| line.text.contains(needle))
                .cloned()
        };
        self.wait_log(limit, line)
    }

    fn wait_log<T>(
        &self,
        limit: Duration,
        ready: impl Fn(&ConsoleLog) -> Option<T>,
    ) -> WaitResult<T> {
        let deadline = Instant::now() + limit;
        let mut log = self.shared.lock();
        loop {
            // The text is searched before the end is checked: the last words of a machine count
            // after it has ended.
            if let Some(found) = ready(&log) {
                return WaitResult::Said(found);
            }
            if log.closed {
                return WaitResult::Closed;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return WaitResult::TimedOut;
            };
            log = self.shared.wait(log, left);
        }
    }

    /// Waits until the console is closed and everything in it was read.
    pub fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// The log with its stamps, in the form that is kept after a failure.
    pub fn stamped(&self) -> String {
        let log = self.shared.lock();
        let mut out = String::from("#  wall ms    cpu ms   instructions  text\n");
        for line in &log.lines {
            let instructions = line
                .instructions
                .map_or_else(|| "-".to_owned(), |n| n.to_string());
            let (wall, cpu) = (line.at.as_millis(), line.cpu.as_millis());
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{wall:>10} {cpu:>9} {instructions:>14}  {}", line.text);
        }
        out.push_str(log.text.rsplit('\n').next().unwrap_or_default());
        out
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[derive(Debug, Default)]
struct ConsoleShared {
    log: Mutex<ConsoleLog>,
    changed: Condvar,
}

impl ConsoleShared {
    fn lock(&self) -> MutexGuard<'_, ConsoleLog> {
        // The report of a failure needs the log, also after a panic of the thread that had it.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        log: MutexGuard<'a, ConsoleLog>,
        limit: Duration,
    ) -> MutexGuard<'a, ConsoleLog> {
        self.changed
            .wait_timeout(log, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

#[derive(Debug, Default)]
struct ConsoleLog {
    raw: Vec<u8>,
    text: String,
    lines: Vec<ConsoleLine>,
    /// The position in `text` at which the unfinished line begins.
    line_start: usize,
    closed: bool,
}

impl ConsoleLog {
    fn search(&self, mark: ConsoleMark, needles: &[&str]) -> Option<ConsoleMark> {
        let text = self.text.get(mark.0..)?;
        let ends = needles
            .iter()
            .filter_map(|needle| text.find(needle).map(|at| (at, at + needle.len())));
        // The first in the text, not the first in the list, because a test waits for what comes
        // first.
        ends.min().map(|(_, end)| ConsoleMark(mark.0 + end))
    }

    fn push(&mut self, text: &str, stamp: impl Fn(String) -> ConsoleLine) {
        self.text.push_str(text);
        while let Some(length) = self.text[self.line_start..].find('\n') {
            let end = self.line_start + length;
            self.lines
                .push(stamp(self.text[self.line_start..end].to_owned()));
            self.line_start = end + 1;
        }
    }
}

struct ConsoleFollower {
    shared: Arc<ConsoleShared>,
    gauge: Gauge,
    started: Instant,
}

impl ConsoleFollower {
    fn run(self, mut stream: UnixStream) {
        let mut stripper = EscapeStripper::default();
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => self.take(&chunk[..read], &mut stripper),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A broken connection ends the console as well: QEMU is gone.
                Err(_) => break,
            }
        }
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }

    fn take(&self, bytes: &[u8], stripper: &mut EscapeStripper) {
        let at = self.started.elapsed();
        let (cpu, instructions) = (self.gauge)();
        let text = stripper.strip(bytes);
        let mut log = self.shared.lock();
        log.raw.extend_from_slice(bytes);
        log.push(&text, |text| ConsoleLine {
            at,
            cpu,
            instructions,
            text,
        });
        // The lock is released before the waiters wake, because they take it.
        drop(log);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn console() -> (UnixStream, VmConsole) {
        let (machine, ours) = UnixStream::pair().expect("a socket pair can be made");
        let gauge = Box::new(|| (Duration::from_millis(5), Some(7)));
        let console = VmConsole::follow(ours, gauge, b"before\n");
        (machine, console.expect("a thread can be started"))
    }

    #[test]
    fn what_is_said_is_found_once_and_stamped() {
        let (mut machine, console) = console();
        machine
            .write_all(b"\x1b[2Jone\r\ntwo\r\nthr")
            .expect("the console reads");
        assert_eq!(
            console.find("before").map(|line| line.at.as_secs()),
            Some(0)
        );
        let WaitResult::Said(mark) = console.wait(ConsoleMark::default(), "two", LONG) else {
            panic!("it was said")
        };
        assert_eq!(
            console.wait(mark, "one", Duration::ZERO),
            WaitResult::TimedOut
        );
        machine.write_all(b"ee\n").expect("the console reads");
        assert!(matches!(
            console.wait(mark, "three", LONG),
            WaitResult::Said(_)
        ));
        let WaitResult::Said(line) = console.wait_line("thr", LONG) else {
            panic!("it was said")
        };
        assert_eq!(line.text, "three");
        assert_eq!(
            (line.cpu, line.instructions),
            (Duration::from_millis(5), Some(7))
        );
    }

    #[test]
    fn the_earliest_of_several_counts() {
        let (mut machine, console) = console();
        machine
            .write_all(b"beta alpha\n")
            .expect("the console reads");
        let waited = console.wait_any(ConsoleMark::default(), &["alpha", "beta"], LONG);
        assert_eq!(waited, WaitResult::Said(ConsoleMark("before\nbeta".len())));
    }

    #[test]
    fn a_closed_console_ends_the_wait() {
        let (machine, mut console) = console();
        drop(machine);
        assert_eq!(
            console.wait(ConsoleMark::default(), "never", LONG),
            WaitResult::Closed
        );
        console.finish();
        assert_eq!(console.text(), "before\n");
    }

    #[test]
    fn what_is_typed_arrives() {
        let (mut machine, console) = console();
        console.send("l\n").expect("the machine is there");
        let mut typed = [0; 2];
        machine
            .read_exact(&mut typed)
            .expect("two bytes were typed");
        assert_eq!(&typed, b"l\n");
    }

    #[test]
    fn errors_quote_the_last_lines_only() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = tail(&text);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 99"));
    }
}
