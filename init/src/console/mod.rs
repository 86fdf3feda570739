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
//! A live console becomes plain again by itself, and while it shows private text it prints no lines:
//! text that scrolls out of a picture stays in the memory of a terminal or of a graphics card.
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
mod update;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::control::{LogRecord, MachineFacts, NodeStatus};

pub use driver::ConsoleDriver;
pub use qr::qr_code;
pub use question::{ANSWER_BYTES_MAX, ConsoleId, ConsoleInput, ConsoleQuestion};
pub use screen::{ConsoleView, ScreenState};
pub use text::Charset;

use tty::ConsoleTty;

/// Maximum number of log records and lines on their way to the screen. Further ones are dropped:
/// the log itself is kept elsewhere, and no sender may wait for a terminal.
const EVENTS_MAX: usize = 256;

/// The console of PID 1. It is cheap to clone, and the screen lives until the last clone is
/// dropped. No method blocks, whatever the terminal does.
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
    is_ending: bool,
}

#[derive(Debug)]
enum ConsoleEvent {
    Log(LogRecord),
    Say(String),
}

/// How long no key may arrive before the terminal drops the keys of answers. It would also drop
/// what the user types or pastes right behind the last answer, which a busy machine reads late.
const QUIET_BEFORE_FORGETTING: Duration = Duration::from_secs(1);
/// Maximum time for which the terminal keeps the keys of an answer, whatever the user types
/// meanwhile: noise on the line, or an attacker who types, must not keep them there.
const FORGET_AT_LATEST: Duration = Duration::from_secs(30);
/// How much longer keys that wait to be read may delay that.
const FORGET_GRACE: Duration = Duration::from_secs(1);

impl InitConsole {
    /// Opens a terminal, `/dev/console`, and starts the screen on it as a task of the current
    /// runtime.
    ///
    /// # Errors
    /// The terminal cannot be opened.
    pub fn open(path: &Path, answers: mpsc::Sender<ConsoleInput>) -> io::Result<Self> {
        Ok(Self::start(ConsoleTty::open(path)?, answers, false))
    }

    /// Like `open`, for a virtual terminal, which the kernel draws on the machine's screen.
    ///
    /// # Errors
    /// The terminal cannot be opened.
    pub fn open_screen(path: &Path, answers: mpsc::Sender<ConsoleInput>) -> io::Result<Self> {
        Ok(Self::start(ConsoleTty::open(path)?, answers, true))
    }

    /// Starts the screen on an open terminal or file, which is made non-blocking.
    ///
    /// # Errors
    /// The kernel refuses that.
    pub fn new(fd: OwnedFd, answers: mpsc::Sender<ConsoleInput>) -> io::Result<Self> {
        Ok(Self::start(ConsoleTty::new(fd)?, answers, false))
    }

    /// Shows these facts from now on. `node` is `None` while the node does not serve.
    pub fn update(&self, facts: MachineFacts, node: Option<NodeStatus>) {
        self.latest.send_modify(|latest| {
            latest.facts = facts;
            latest.node = node;
        });
    }

    /// Sets the present question, or none.
    pub fn ask(&self, question: Option<ConsoleQuestion>) {
        self.latest.send_modify(|latest| latest.question = question);
    }

    /// The machine goes down. From now on the terminal drops the keys of answers at once: what was typed a moment before
    /// would stay in the memory of a machine that is switched off.
    pub fn end(&self) {
        self.latest.send_modify(|latest| latest.is_ending = true);
    }

    /// Adds a record to the log that the key `l` shows.
    pub fn log(&self, record: LogRecord) {
        // A full queue means that the terminal lags: see `EVENTS_MAX`.
        let _ = self.events.try_send(ConsoleEvent::Log(record));
    }

    /// Whether the connection is open. It is closed after the caller has hung up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.events.is_closed()
    }

    /// Prints one line as it is, such as a last message before power-off.
    pub fn say(&self, line: impl Into<String>) {
        // A full queue means that the terminal lags, as for `log`: no caller waits for a terminal.
        let _ = self.events.try_send(ConsoleEvent::Say(line.into()));
    }

    fn start(tty: ConsoleTty, answers: mpsc::Sender<ConsoleInput>, on_screen: bool) -> Self {
        let (latest, updates) = watch::channel(ConsoleSnapshot::default());
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let mut driver = ConsoleDriver::new(kernel(), tty.size());
        if on_screen {
            driver = driver.on_screen();
        }
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
    let mut answered = None;
    let mut is_ending = false;
    loop {
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A new picture is made after the last one was written: a slow terminal skips some, and
        // never lags.
        if !tty.is_writing() {
            let output = Zeroizing::new(driver.take(now_ms, jiff::Timestamp::now()));
            tty.queue(output.as_bytes());
        }
        let due = driver.due_ms(now_ms).filter(|_| !tty.is_writing());
        let now = Instant::now();
        let forget_in = forget_in(&driver, &mut answered, last_key, now);
        // Keys that always wait would keep the timer branch below from its turn.
        if is_overdue(answered, now) || (is_ending && driver.has_typed()) {
            tty.forget_keys();
            driver.keys_forgotten();
            continue;
        }
        tokio::select! {
            biased;
            // Updates come before keys: a typed key answers the present question.
            changed = updates.changed() => {
                if changed.is_err() {
                    return;
                }
                let latest = updates.borrow_and_update().clone();
                is_ending = latest.is_ending;
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
            () = tokio::time::sleep(forget_in.unwrap_or_default()), if forget_in.is_some() => {
                tty.forget_keys();
                driver.keys_forgotten();
            }
        }
    }
}

/// Time until the terminal drops the keys of answers. `None` while it has no such keys. `answered`
/// is set to the time of the first of them.
fn forget_in(
    driver: &ConsoleDriver,
    answered: &mut Option<Instant>,
    last_key: Instant,
    now: Instant,
) -> Option<Duration> {
    if !driver.has_typed() {
        *answered = None;
        return None;
    }
    let since = *answered.get_or_insert(now);
    let left = |time: Duration, since| time.saturating_sub(now.saturating_duration_since(since));
    let latest = left(FORGET_AT_LATEST, since);
    let quiet = left(QUIET_BEFORE_FORGETTING, last_key);
    Some(match driver.is_done_typing() {
        true => quiet.min(latest),
        false => latest,
    })
}

/// Whether the terminal has had the keys of an answer for longer than it may.
fn is_overdue(answered: Option<Instant>, now: Instant) -> bool {
    let late = |since| now.saturating_duration_since(since) > FORGET_AT_LATEST + FORGET_GRACE;
    answered.is_some_and(late)
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
