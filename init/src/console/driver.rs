//! Decides what goes to the terminal and when. It takes keys, facts and the time, and returns text.

use std::collections::VecDeque;
use std::mem;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::paste::{KeyDisposition, PasteDetector};
use super::question::{ConsoleInput, ConsoleQuestion, SecretInput};
use super::screen::{ConsoleView, ScreenState, render};
use super::text::{Charset, clean, fit};
use crate::control::{LogRecord, MachineDiagnostic, MachineFacts, NodeStatus};

/// Minimum time between two live pictures, in milliseconds.
const LIVE_INTERVAL_MS: u64 = 1000;
/// Minimum time between two plain pictures, in milliseconds: each stays on the screen and in a
/// recording, so a network card that comes and goes must not fill both.
const PLAIN_INTERVAL_MS: u64 = 5000;
/// How long a plain picture waits for further changes, in milliseconds: changes come together, and
/// the machine serves its first callers meanwhile.
const SETTLE_MS: u64 = 1000;
/// How long the first plain picture waits for the node, in milliseconds: a picture of a starting
/// machine is of no use, unless starting takes this long.
const FIRST_PICTURE_MS: u64 = 10_000;
/// How long a live console waits for a key before it becomes plain again, in milliseconds. People
/// walk away from a screen without pressing `q`. It is as long as words are shown.
pub(super) const LIVE_IDLE_MS: u64 = 600_000;
/// Maximum number of log lines for the screen, which is more than any screen has rows.
const LOG_LINES_MAX: usize = 200;
/// Maximum length of a log line for the screen, in characters.
const LOG_LINE_CHARS_MAX: usize = 500;
/// Maximum number of lines that wait for a slow terminal. The oldest are dropped.
const LINES_MAX: usize = 256;

const ESC: u8 = 0x1b;
const CTRL_C: u8 = 0x03;
const CTRL_H: u8 = 0x08;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;
/// VT100: cursor home.
const HOME: &str = "\x1b[H";
/// VT100: clear to the end of the line.
const CLEAR_LINE: &str = "\x1b[K";
/// VT100: clear to the end of the screen.
const CLEAR_BELOW: &str = "\x1b[J";
/// Erases private text. First in place: some terminals move what `ESC [2J` erases to the lines above
/// the screen. `ESC [3J` erases those lines (xterm, and the kernel's virtual terminals).
const ERASE: &str = "\x1b[H\x1b[J\x1b[2J\x1b[3J";

/// The console without its terminal.
#[derive(Debug)]
pub struct ConsoleDriver {
    facts: MachineFacts,
    node: Option<NodeStatus>,
    state: ScreenState,
    log: VecDeque<String>,
    /// Lines to print before the next picture.
    lines: VecDeque<String>,
    /// Problems that were announced and still exist.
    announced: Vec<MachineDiagnostic>,
    /// Whether the facts have changed since the last picture.
    changed: bool,
    /// When the change was first seen.
    changed_ms: Option<u64>,
    /// Whether a picture is due even without a change.
    is_due: bool,
    /// The last picture, without the parts whose change alone does not print a plain one again.
    picture: String,
    drawn_ms: Option<u64>,
    /// The present question.
    question: Option<ConsoleQuestion>,
    /// The answer so far.
    typed: SecretInput,
    /// Detects a configuration that the user pastes.
    paste: PasteDetector,
    /// The character set before the head of a paste was typed: its characters are commands as well.
    charset: Charset,
    /// Complete answers, which the console's task takes.
    answers: Vec<ConsoleInput>,
    /// Whether the user has begun an answer that is neither complete nor given up.
    has_begun_typing: bool,
    /// Whether the terminal still has the keys of an answer that was typed or given up.
    terminal_has_keys: bool,
    /// Whether a key came since the last call of [`Self::take`].
    had_key: bool,
    /// When the last key came, while the console is live.
    last_key_ms: u64,
    /// Whether the user asked for what the present question offers.
    has_looked: bool,
    /// Whether the terminal may still have private text.
    has_private_text: bool,
    /// Whether the terminal is the machine's screen.
    on_screen: bool,
}

impl ConsoleDriver {
    /// A console for a terminal of `(columns, rows)`.
    #[must_use]
    pub fn new(kernel: String, (columns, rows): (usize, usize)) -> Self {
        let state = ScreenState {
            kernel,
            columns,
            rows,
            ..ScreenState::default()
        };
        Self {
            facts: MachineFacts::default(),
            node: None,
            state,
            log: VecDeque::new(),
            lines: VecDeque::new(),
            announced: Vec::new(),
            changed: false,
            changed_ms: None,
            is_due: false,
            picture: String::new(),
            drawn_ms: None,
            question: None,
            typed: SecretInput::default(),
            paste: PasteDetector::default(),
            charset: Charset::default(),
            answers: Vec::new(),
            has_begun_typing: false,
            terminal_has_keys: false,
            had_key: false,
            last_key_ms: 0,
            has_looked: false,
            has_private_text: false,
            on_screen: false,
        }
    }

    /// Like `new`, for a screen. A card keeps lines that were scrolled out of its picture, so nothing is printed while
    /// it has private text.
    #[must_use]
    pub const fn on_screen(mut self) -> Self {
        self.on_screen = true;
        self
    }

    /// Sets the present question, or none. The text typed so far is dropped, unless the question
    /// stays the same.
    pub fn ask(&mut self, question: Option<ConsoleQuestion>) {
        if self.question == question {
            return;
        }
        let was_private = self.is_question_private();
        self.give_up_typed();
        self.question = question;
        // The user has pressed a key for this.
        let was_wanted = mem::take(&mut self.has_looked);
        self.state.live |= was_wanted && self.is_question_private();
        self.is_due |= self.state.live && (was_private || self.state.view == ConsoleView::Question);
        match &self.question {
            Some(question) => {
                if self.state.live && self.paste.bytes().is_none() {
                    self.state.view = ConsoleView::Question;
                    self.is_due = true;
                }
                if let Some(line) = question.announcement() {
                    self.say(&line);
                }
            }
            None if self.state.view == ConsoleView::Question => {
                self.state.view = ConsoleView::Status
            }
            None => {}
        }
    }

    fn is_question_private(&self) -> bool {
        let question = self.question.as_ref();
        question.is_some_and(ConsoleQuestion::is_private)
    }

    /// Whether the picture is of private text.
    fn shows_private(&self) -> bool {
        self.state.live && self.state.view == ConsoleView::Question && self.is_question_private()
    }

    /// Whether the terminal still has the keys of answers, or of text that was given up.
    #[must_use]
    pub fn has_typed(&self) -> bool {
        self.terminal_has_keys
    }

    /// Whether the terminal still has the keys of answers, and the machine asks nothing more. Once
    /// the user is quiet as well, the terminal may drop the keys.
    #[must_use]
    pub fn is_done_typing(&self) -> bool {
        self.terminal_has_keys && self.question.is_none() && self.paste.bytes().is_none()
    }

    /// Notes that the terminal has dropped the keys.
    pub fn keys_forgotten(&mut self) {
        self.terminal_has_keys = false;
    }

    /// Takes the answers since the last call.
    pub fn answers(&mut self) -> Vec<ConsoleInput> {
        mem::take(&mut self.answers)
    }

    /// Takes new facts of the machine or its node.
    pub fn update(&mut self, facts: MachineFacts, node: Option<NodeStatus>) {
        self.announce(&facts, node.as_ref());
        if self.node.is_none() && node.is_some() {
            // Further changes of a newly ready node are awaited as well, before the picture is
            // printed.
            self.changed_ms = None;
        }
        self.facts = facts;
        self.node = node;
        self.changed = true;
    }

    /// Adds a record for the log view.
    pub fn log(&mut self, record: &LogRecord) {
        let line = log_line(record);
        self.log.push_back(line);
        if self.log.len() > LOG_LINES_MAX {
            self.log.pop_front();
        }
        self.changed |= self.state.live && self.state.view == ConsoleView::Log;
    }

    /// Prints a line as it is.
    pub fn say(&mut self, line: &str) {
        let line = clean(line, self.state.charset);
        self.print(line);
    }

    /// Takes bytes from the keyboard. The first key makes the console live.
    pub fn keys(&mut self, keys: &[u8]) {
        for key in keys {
            self.key(*key);
        }
    }

    /// Returns the text to write now. `now_ms` counts from any start, and `time` is the wall
    /// clock's.
    pub fn take(&mut self, now_ms: u64, time: Timestamp) -> String {
        if self.changed {
            self.changed_ms.get_or_insert(now_ms);
        }
        self.leave_when_idle(now_ms);
        let mut output = String::new();
        if !self.shows_private() {
            self.erase_private(&mut output);
        }
        if !self.holds_lines() {
            self.take_lines(&mut output);
        }
        if self.due_ms(now_ms) == Some(0) {
            self.draw(now_ms, time, &mut output);
        }
        output
    }

    /// Milliseconds until [`Self::take`] has text, if nothing happens before.
    #[must_use]
    pub fn due_ms(&self, now_ms: u64) -> Option<u64> {
        let has_lines = !self.lines.is_empty() && !self.holds_lines();
        if self.is_due || has_lines || (self.has_private_text && !self.shows_private()) {
            return Some(0);
        }
        let due_ms = match (self.state.live, self.changed) {
            (true, _) => self
                .drawn_ms
                .map_or(0, |drawn_ms| drawn_ms + LIVE_INTERVAL_MS),
            (false, true) => self.plain_due_ms(now_ms),
            (false, false) => return None,
        };
        Some(due_ms.saturating_sub(now_ms))
    }

    fn plain_due_ms(&self, now_ms: u64) -> u64 {
        let settled = self.changed_ms.unwrap_or(now_ms) + SETTLE_MS;
        match self.drawn_ms {
            Some(drawn_ms) => settled.max(drawn_ms + PLAIN_INTERVAL_MS),
            None if self.node.is_some() || self.facts.node_restarts > 0 => settled,
            None => settled.max(FIRST_PICTURE_MS),
        }
    }

    /// Makes a console plain at which no key was pressed for long.
    fn leave_when_idle(&mut self, now_ms: u64) {
        if mem::take(&mut self.had_key) || !self.state.live {
            self.last_key_ms = now_ms;
        }
        if now_ms.saturating_sub(self.last_key_ms) < LIVE_IDLE_MS {
            return;
        }
        if self.paste.bytes().is_some() {
            // As if the user had given it up.
            let _ = self.paste.take(ESC);
            self.terminal_has_keys = true;
            self.state.pasted = 0;
        }
        self.give_up_typed();
        self.state.view = ConsoleView::Status;
        // The page goes as well, whatever it showed.
        self.has_private_text = true;
        self.leave();
    }

    /// Whether lines wait for the end of private text. Programs follow a serial line, and they wait for none.
    fn holds_lines(&self) -> bool {
        self.on_screen && self.shows_private()
    }

    /// Erases private text that is no longer to be shown.
    fn erase_private(&mut self, output: &mut String) {
        if !mem::take(&mut self.has_private_text) {
            return;
        }
        output.push_str(ERASE);
        if self.state.live {
            // Lines that were held back go where the cursor is behind a picture.
            output.push_str(&format!("\x1b[{};1H", self.state.rows));
            self.is_due = true;
        }
    }

    fn take_lines(&mut self, output: &mut String) {
        if self.state.live && !self.lines.is_empty() {
            // The cursor is behind the picture, which the lines then push up.
            output.push('\n');
            self.is_due = true;
        }
        for line in self.lines.drain(..) {
            output.push_str(&line);
            output.push('\n');
        }
    }

    fn draw(&mut self, now_ms: u64, time: Timestamp, output: &mut String) {
        self.state.time = self.time(time);
        self.state.log = match self.state.view {
            ConsoleView::Log => self.log.iter().cloned().collect(),
            _ => Vec::new(),
        };
        let question = self
            .question
            .as_ref()
            .map(|question| (question, &self.typed));
        let picture = Zeroizing::new(render(
            &self.facts,
            self.node.as_ref(),
            question,
            &self.state,
        ));
        let compared = self.compared(&picture);
        if self.is_due || compared != self.picture {
            if self.state.live {
                self.has_private_text |= self.shows_private();
                live(&picture, output);
            } else {
                plain(&picture, self.state.columns, output);
            }
        }
        self.picture = compared;
        self.changed = false;
        self.changed_ms = None;
        self.is_due = false;
        self.drawn_ms = Some(now_ms);
    }

    /// The part of a picture that decides whether it is new. Free space always changes: it causes a
    /// redraw and not a print.
    fn compared(&self, picture: &str) -> String {
        if self.state.view == ConsoleView::Question {
            // The text of a secret question is not kept for comparison. A key causes a new picture.
            return String::new();
        }
        if self.state.live {
            return picture.to_owned();
        }
        let mut facts = self.facts.clone();
        facts.data.free_bytes = 0;
        render(&facts, self.node.as_ref(), None, &self.state)
    }

    /// The time for the screen. Only a live screen shows it: a plain one would be printed every
    /// minute.
    fn time(&self, time: Timestamp) -> String {
        let sane = matches!(self.facts.clock.as_str(), "rtc" | "sntp");
        if self.state.live && sane {
            time.strftime("%Y-%m-%d %H:%M UTC").to_string()
        } else {
            String::new()
        }
    }

    fn key(&mut self, key: u8) {
        // Noise on a serial line is mostly NUL, or no ASCII.
        self.had_key |= key.is_ascii() && key != 0;
        if self.paste_key(key) {
            return;
        }
        if let Some(question) = &self.question
            && !self.state.live
            && (is_typing(key) || matches!(key, b'\r' | b'\n'))
        {
            if question.is_on_request() {
                return self.request_offer();
            }
            self.state.live = true;
            self.state.view = ConsoleView::Question;
            if question.is_private() {
                // The user has not seen the question yet, so this key is no answer.
                self.is_due = true;
                return;
            }
            // The user answers a line that was printed, so this key is the first of the answer.
        }
        if self.state.view == ConsoleView::Question && self.state.live {
            self.type_key(key);
            return;
        }
        // Noise on a serial line does not count as a user's key.
        if !key.is_ascii_graphic() && !matches!(key, b' ' | b'\r' | b'\n' | ESC) {
            return;
        }
        let was_live = mem::replace(&mut self.state.live, true);
        self.is_due = true;
        match key {
            b'a' => self.toggle_charset(),
            b'e' => self.state.view = ConsoleView::Enrol,
            b'l' => self.state.view = ConsoleView::Log,
            b'p' => self.state.view = ConsoleView::Problems,
            b'u' if self.question.is_some() => self.state.view = ConsoleView::Question,
            b'v' => self.answers.push(ConsoleInput::Begin),
            b'q' | ESC if self.state.view != ConsoleView::Status => {
                self.state.view = ConsoleView::Status
            }
            b'q' if was_live => self.leave(),
            _ => {}
        }
    }

    /// Whether a key belongs to a pasted configuration. The screen shows only its length.
    fn paste_key(&mut self, key: u8) -> bool {
        if self.paste.may_begin(key) {
            self.charset = self.state.charset;
        }
        match self.paste.take(key) {
            KeyDisposition::Nothing => return false,
            KeyDisposition::Begun => {
                // The characters typed so far were the head of the paste.
                self.give_up_typed();
                self.state.charset = self.charset;
                self.state.live = true;
                self.state.view = ConsoleView::Paste;
                self.is_due = true;
            }
            KeyDisposition::Part => self.changed = true,
            KeyDisposition::Done(line) => {
                self.terminal_has_keys = true;
                self.end_paste();
                self.answers.push(ConsoleInput::Pasted(line));
            }
            KeyDisposition::Left => {
                self.terminal_has_keys = true;
                self.end_paste();
            }
        }
        self.state.pasted = self.paste.bytes().unwrap_or(0);
        true
    }

    fn end_paste(&mut self) {
        self.is_due = true;
        self.state.view = match &self.question {
            Some(_) => ConsoleView::Question,
            None => ConsoleView::Status,
        };
    }

    /// Drops the typed text. The terminal keeps its keys until it drops them as well, including
    /// those that the user erased one by one.
    fn give_up_typed(&mut self) {
        self.terminal_has_keys |= self.has_begun_typing;
        self.has_begun_typing = false;
        self.typed.clear();
    }

    /// Asks the machine for what the question offers. The next picture is of that.
    fn request_offer(&mut self) {
        self.has_looked = true;
        self.answers.push(ConsoleInput::Look);
    }

    /// Handles a key while there is a question.
    fn type_key(&mut self, key: u8) {
        let question = self.question.as_ref();
        if question.is_some_and(ConsoleQuestion::is_on_request)
            && (is_typing(key) || matches!(key, b'\r' | b'\n'))
        {
            return self.request_offer();
        }
        self.is_due = true;
        match key {
            b'\r' | b'\n' => {
                self.terminal_has_keys = true;
                self.has_begun_typing = false;
                self.answers.push(ConsoleInput::Line(self.typed.take()));
            }
            CTRL_C => {
                self.give_up_typed();
                self.answers.push(ConsoleInput::Cancel);
            }
            CTRL_H | DELETE => self.typed.pop(),
            CTRL_U => self.give_up_typed(),
            ESC => {
                self.give_up_typed();
                self.state.view = ConsoleView::Status;
            }
            _ if is_typing(key) => {
                self.has_begun_typing = true;
                self.typed.push(key);
            }
            _ => self.is_due = false,
        }
    }

    fn toggle_charset(&mut self) {
        self.state.charset = match self.state.charset {
            Charset::Ascii => Charset::Utf8,
            Charset::Utf8 => Charset::Ascii,
        };
    }

    /// Returns to the plain console, which can be recorded as a log.
    fn leave(&mut self) {
        self.state.live = false;
        self.is_due = false;
        self.changed = false;
        self.picture.clear();
        self.print(String::new());
        self.print("alknet: live screen off; any key shows it again".to_owned());
    }

    fn announce(&mut self, facts: &MachineFacts, node: Option<&NodeStatus>) {
        if facts.fault_injection && !self.facts.fault_injection {
            self.print("alknet: fault injection is on, for tests only".to_owned());
        }
        for problem in &facts.problems {
            if !self.announced.contains(problem) {
                let MachineDiagnostic { code, text, .. } = problem;
                self.say(&format!("alknet: problem {code}: {text}"));
            }
        }
        self.announced.clone_from(&facts.problems);
        if let (None, Some(address)) = (first_address(&self.facts), first_address(facts)) {
            self.say(&format!("alknet: address {address}"));
        }
        if let (None, Some(node)) = (&self.node, node) {
            let NodeStatus { identity, port, .. } = node;
            let name = Some(facts.hostname.as_str()).filter(|name| !name.is_empty());
            let name = name.unwrap_or("-");
            self.say(&format!("alknet: ready {name} {identity} port {port}"));
        }
    }

    fn print(&mut self, line: String) {
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// Whether a key is a character of an answer.
fn is_typing(key: u8) -> bool {
    key.is_ascii_graphic() || key == b' ' || !key.is_ascii()
}

/// The first address of any card. `None` until the network is up.
fn first_address(facts: &MachineFacts) -> Option<&str> {
    let mut all = facts.links.iter().flat_map(|link| &link.addresses);
    all.next().map(String::as_str)
}

fn log_line(record: &LogRecord) -> String {
    let LogRecord {
        boot_ms,
        time,
        level,
        target,
        message,
    } = record;
    let when = match time.as_deref().and_then(|time| time.get(11..19)) {
        Some(time) => time.to_owned(),
        None => format!("{:>4}.{:03}", boot_ms / 1000, boot_ms % 1000),
    };
    let line = format!("{when} {level:<5} {target}: {message}");
    fit(
        &clean(&line, Charset::Utf8),
        LOG_LINE_CHARS_MAX,
        Charset::Utf8,
    )
}

/// Draws over the old picture line by line, so that the screen does not flicker. Each line is
/// cleared before it is written: on some terminals, clearing behind a full line removes its last
/// character. There is no newline at the end, because it would scroll.
fn live(picture: &str, output: &mut String) {
    output.push_str(HOME);
    for (n, line) in picture.split('\n').enumerate() {
        if n > 0 {
            output.push('\n');
        }
        output.push_str(CLEAR_LINE);
        output.push_str(line);
    }
    output.push_str(CLEAR_BELOW);
}

fn plain(picture: &str, columns: usize, output: &mut String) {
    let rule = "-".repeat(columns);
    output.push_str(&format!("{rule}\n{picture}\n{rule}\n"));
}
