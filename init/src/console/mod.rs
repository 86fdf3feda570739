//! The console: one calm screen that says who the machine is, how it is and what to do next, and
//! the log on request.
//!
//! ```text
//! facts, status, log records ─▶ Driver ─▶ bytes ─▶ Tty        Driver: no input or output, no clock
//!             questions, keys ─▶        ─▶ answers           Tty: never blocks
//! ```
//!
//! Until a user presses a key the console is *plain*: the screen is printed when something that matters changed,
//! without a single escape code, so that a recorded serial line reads like a log. From the first key on it is
//! *live*: redrawn in place, at most once a second, only on change.
//!
//! Where the machine asks something (a passphrase, a word), keys are the answer and go to the machine's loop; the
//! console itself decides nothing. A pasted configuration is known by its head wherever it is typed, and goes
//! there as well.
//!
//! Three kinds of lines are for machines, each printed once for each event, in both modes:
//! `alknet: ready HOSTNAME IDENTITY port PORT`, `alknet: address ADDRESS/PREFIX` when the machine
//! has its first address or has one again, and `alknet: problem CODE: TEXT`.

mod driver;
mod paste;
mod qr;
mod question;
mod screen;
mod text;
mod tty;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::control::{LogRecord, MachineFacts, NodeStatus};

pub use driver::ConsoleDriver;
pub use qr::qr_code;
pub use question::{ANSWER_BYTES_MAX, ConsoleInput, ConsoleQuestion};
pub use screen::{ConsoleView, ScreenState};
pub use text::Charset;

use tty::ConsoleTty;

/// Log records and lines on their way to the screen. More than fit are dropped: the log itself is kept elsewhere,
/// and no sender may wait for a terminal.
const EVENTS_MAX: usize = 256;

/// The console of PID 1. Cheap to clone; the screen lives until the last clone is dropped. No
/// method blocks, whatever the terminal does.
#[derive(Clone, Debug)]
pub struct InitConsole {
    latest: watch::Sender<ConsoleSnapshot>,
    events: mpsc::Sender<ConsoleEvent>,
}

#[derive(Clone, Debug, Default)]
struct ConsoleSnapshot {
    facts: MachineFacts,
    node: Option<NodeStatus>,
    question: Option<ConsoleQuestion>,
}

#[derive(Debug)]
enum ConsoleEvent {
    Log(LogRecord),
    Say(String),
}

/// How long no key comes before the terminal forgets those of answers. What a user types or pastes right behind the last
/// answer would be forgotten with them: a machine that is busy reads it late.
const QUIET_BEFORE_FORGETTING: Duration = Duration::from_secs(1);

impl InitConsole {
    /// Opens a terminal, `/dev/console`, and starts the screen on it as a task of the current
    /// runtime.
    ///
    /// # Errors
    /// The terminal cannot be opened.
    pub fn open(path: &Path, answers: mpsc::Sender<ConsoleInput>) -> io::Result<Self> {
        Ok(Self::start(ConsoleTty::open(path)?, answers))
    }

    /// Starts the screen on an open terminal or file, which is made non-blocking.
    ///
    /// # Errors
    /// The kernel refuses that.
    pub fn new(fd: OwnedFd, answers: mpsc::Sender<ConsoleInput>) -> io::Result<Self> {
        Ok(Self::start(ConsoleTty::new(fd)?, answers))
    }

    /// Shows these facts from now on. `node` is absent while the node does not serve.
    pub fn update(&self, facts: MachineFacts, node: Option<NodeStatus>) {
        self.latest.send_modify(|latest| {
            latest.facts = facts;
            latest.node = node;
        });
    }

    /// Asks this from now on, or nothing.
    pub fn ask(&self, question: Option<ConsoleQuestion>) {
        self.latest.send_modify(|latest| latest.question = question);
    }

    /// Adds a record to the log that the key `l` shows.
    pub fn log(&self, record: LogRecord) {
        // A full queue means that the terminal lags: see EVENTS_MAX.
        let _ = self.events.try_send(ConsoleEvent::Log(record));
    }

    /// Whether anybody may still be there: a caller who hung up is not.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.events.is_closed()
    }

    /// Prints one line as it is, such as a last word before power-off.
    pub fn say(&self, line: impl Into<String>) {
        let _ = self.events.try_send(ConsoleEvent::Say(line.into()));
    }

    fn start(tty: ConsoleTty, answers: mpsc::Sender<ConsoleInput>) -> Self {
        let (latest, updates) = watch::channel(ConsoleSnapshot::default());
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let driver = ConsoleDriver::new(kernel(), tty.size());
        tokio::spawn(run(driver, tty, updates, queue, answers));
        Self { latest, events }
    }
}

async fn run(
    mut driver: ConsoleDriver,
    mut tty: ConsoleTty,
    mut updates: watch::Receiver<ConsoleSnapshot>,
    mut queue: mpsc::Receiver<ConsoleEvent>,
    answers: mpsc::Sender<ConsoleInput>,
) {
    let started = Instant::now();
    let mut last_key = started;
    loop {
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A new picture only when the last one is out: a slow terminal skips some, never lags.
        if !tty.is_writing() {
            let output = Zeroizing::new(driver.take(now_ms, jiff::Timestamp::now()));
            tty.queue(output.as_bytes());
        }
        let due = driver.due_ms(now_ms).filter(|_| !tty.is_writing());
        let quiet = QUIET_BEFORE_FORGETTING.saturating_sub(last_key.elapsed());
        tokio::select! {
            changed = updates.changed() => {
                if changed.is_err() {
                    return;
                }
                let latest = updates.borrow_and_update().clone();
                driver.update(latest.facts, latest.node);
                driver.ask(latest.question);
            }
            event = queue.recv() => match event {
                Some(ConsoleEvent::Log(record)) => driver.log(&record),
                Some(ConsoleEvent::Say(line)) => driver.say(&line),
                None => return,
            },
            keys = tty.io() => {
                if tty.has_hung_up() {
                    return;
                }
                if !keys.is_empty() {
                    last_key = Instant::now();
                }
                driver.keys(&Zeroizing::new(keys));
                for answer in driver.answers() {
                    // The receiver is gone on a machine that goes down.
                    let _ = answers.send(answer).await;
                }
            }
            () = tokio::time::sleep(Duration::from_millis(due.unwrap_or(0))), if due.is_some() => {}
            () = tokio::time::sleep(quiet), if driver.is_done_typing() => {
                tty.forget_keys();
                driver.keys_forgotten();
            }
        }
    }
}

/// Name and version of the running kernel.
fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown kernel".to_owned(),
        |name| {
            let part = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
            format!("{} {}", part(name.sysname()), part(name.release()))
        },
    )
}

#[cfg(test)]
mod tests;
