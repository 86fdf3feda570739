//! The text of the screen. It has no state: the same facts give the same text.

use std::net::IpAddr;

use super::qr::qr_code;
use super::question::{ConsoleQuestion, SecretInput};
use super::text::{Charset, clean, fit, wrap};
use super::update::version_lines;
use crate::control::{DataState, MachineDiagnostic, MachineFacts, NodeStatus, VaultFacts};

/// The views of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleView {
    /// The enrolment code.
    Enrol,
    /// The last lines of the log.
    Log,
    /// The length of a configuration that is being pasted.
    Paste,
    /// Every problem in full.
    Problems,
    /// The present question, if there is one.
    Question,
    /// The name and the state of the machine.
    #[default]
    Status,
}

/// What the screen depends on besides the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreenState {
    /// The present view.
    pub view: ConsoleView,
    /// The character set of the terminal.
    pub charset: Charset,
    /// Characters in a line.
    pub columns: usize,
    /// Lines on the screen.
    pub rows: usize,
    /// Name and version of the kernel.
    pub kernel: String,
    /// The time to the minute, `2026-11-20 08:40 UTC`. If empty, the screen has no time.
    pub time: String,
    /// The log, oldest first.
    pub log: Vec<String>,
    /// Whether a user is at the keyboard.
    pub live: bool,
    /// Number of pasted bytes of a configuration.
    pub pasted: usize,
}

impl Default for ScreenState {
    fn default() -> Self {
        Self {
            view: ConsoleView::default(),
            charset: Charset::default(),
            columns: 80,
            rows: 24,
            kernel: String::new(),
            time: String::new(),
            log: Vec::new(),
            live: false,
            pasted: 0,
        }
    }
}

/// The screen as lines of at most `columns` characters, joined by `
/// `. It has at most `rows` lines, except the enrolment code in ASCII, which needs more. It has no escape codes and
/// no control characters, whatever the facts contain.
#[must_use]
pub(super) fn render(
    facts: &MachineFacts,
    node: Option<&NodeStatus>,
    question: Option<(&ConsoleQuestion, &SecretInput)>,
    state: &ScreenState,
) -> String {
    let screen = ScreenPainter { facts, node, state };
    let mut lines = match state.view {
        ConsoleView::Enrol => screen.enrol(),
        ConsoleView::Log => screen.log(),
        ConsoleView::Paste => screen.paste(),
        ConsoleView::Problems => screen.all_problems(),
        ConsoleView::Question => match question {
            Some((question, typed)) => screen.question(question, typed),
            None => screen.status(),
        },
        ConsoleView::Status => screen.status(),
    };
    let body = state.rows.saturating_sub(1);
    // In ASCII the code is twice as high as in half blocks, and a cut code cannot be read.
    let tall = state.view == ConsoleView::Enrol && state.charset == Charset::Ascii;
    if !tall {
        lines.truncate(body);
        if state.live {
            lines.resize(body, String::new());
        }
    }
    lines.push(screen.help());
    let lines = lines.iter().map(|line| screen.fit(line.trim_end()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns for a field's name.
const NAME_COLUMNS: usize = 8;
/// Minimum width of the text beside the code.
const TEXT_COLUMNS_MIN: usize = 36;
/// Maximum number of shown addresses. The rest is counted.
const ADDRESSES_MAX: usize = 4;
/// Rows for the title and the lights above the body, and for the help below it.
const FRAME_ROWS: usize = 3;

struct ScreenPainter<'a> {
    facts: &'a MachineFacts,
    node: Option<&'a NodeStatus>,
    state: &'a ScreenState,
}

impl ScreenPainter<'_> {
    fn status(&self) -> Vec<String> {
        let mut lines = vec![self.title(), self.lights()];
        let rows = self.state.rows.saturating_sub(FRAME_ROWS);
        let code = self.code();
        let beside = code.as_ref().and_then(|code| self.beside(code, rows));
        lines.extend(beside.unwrap_or_else(|| self.full_width(rows)));
        lines
    }

    /// Text and code side by side. Returns `None` if they do not fit.
    fn beside(&self, code: &[String], rows: usize) -> Option<Vec<String>> {
        let code_columns = code.first()?.chars().count();
        let columns = self.state.columns.checked_sub(code_columns + 1)?;
        if columns < TEXT_COLUMNS_MIN || code.len() > rows {
            return None;
        }
        let mut text = self.fields(columns);
        text.extend(self.problems(columns));
        text.extend(self.next(columns));
        if text.len() > rows {
            return None;
        }
        text.resize(text.len().max(code.len()), String::new());
        let line = |(n, text): (usize, &String)| match code.get(n) {
            Some(code) => format!("{text:<columns$} {code}"),
            None => text.clone(),
        };
        Some(text.iter().enumerate().map(line).collect())
    }

    /// Text without the code. Problems that do not fit are counted.
    fn full_width(&self, rows: usize) -> Vec<String> {
        let columns = self.state.columns;
        let mut lines = self.fields(columns);
        let next = self.next(columns);
        let room = rows.saturating_sub(lines.len() + next.len());
        let mut problems = self.problems(columns);
        if problems.len() > room {
            problems.truncate(room.saturating_sub(1));
            problems.push(format!(
                "  More problems than fit here ({} in all): press p",
                self.facts.problems.len()
            ));
        }
        lines.extend(problems);
        lines.extend(next);
        lines
    }

    fn title(&self) -> String {
        let MachineFacts { hostname, .. } = self.facts;
        let version = crate::image_version();
        let name = if hostname.is_empty() {
            "alknet"
        } else {
            hostname
        };
        let left = self.clean(&format!(
            "{name} · alknet {version} · {}",
            self.state.kernel
        ));
        let right = self.clean(&self.state.time);
        let gap = self
            .state
            .columns
            .saturating_sub(left.chars().count() + right.chars().count());
        if gap < 2 {
            return left;
        }
        format!("{left}{}{right}", " ".repeat(gap))
    }

    fn lights(&self) -> String {
        let light = |(name, health): (&str, PartHealth)| format!("[{}] {name}", health.mark());
        health(self.facts, self.node).map(light).join("   ")
    }

    fn fields(&self, columns: usize) -> Vec<String> {
        let facts = self.facts;
        let mut lines = Vec::new();
        let mut field = |name: &str, values: Vec<String>| {
            let width = columns.saturating_sub(NAME_COLUMNS);
            let values = values
                .iter()
                .flat_map(|value| wrap(&self.clean(value), width));
            for (n, value) in values.enumerate() {
                let name = if n == 0 { name } else { "" };
                lines.push(format!("{name:<NAME_COLUMNS$}{value}"));
            }
        };
        field("Address", addresses(facts));
        field("Serves", vec![self.serves()]);
        if let Some(node) = self.node {
            field("Admins", vec![admins(node.admins)]);
            field(
                "Key",
                identity(&node.identity, columns.saturating_sub(NAME_COLUMNS)),
            );
        }
        field("Config", vec![facts.config_source.clone()]);
        field("Data", vec![data(&facts.data)]);
        if let Some(state) = vault(&facts.vault) {
            field("Vault", vec![state]);
        }
        if let Some(lines) = version_lines(&facts.update) {
            field("Version", lines);
        }
        field("Clock", vec![clock(&facts.clock).to_owned()]);
        if facts.node_restarts > 0 {
            field(
                "Restart",
                vec![format!(
                    "{} times since the machine started",
                    facts.node_restarts
                )],
            );
        }
        if let Some(words) = facts
            .last_words
            .as_deref()
            .filter(|words| !words.is_empty())
        {
            field(
                "Last end",
                vec![words.lines().next().unwrap_or_default().to_owned()],
            );
        }
        if facts.fault_injection {
            field(
                "Faults",
                vec!["injection is ON (for tests only)".to_owned()],
            );
        }
        lines
    }

    fn serves(&self) -> String {
        match self.node {
            None if self.facts.data.mode == "locked" => "nothing: the vault is locked".into(),
            None if self.facts.node_restarts > 0 => {
                "nothing: the node ended and is restarted".into()
            }
            None => "nothing yet: the node is starting".into(),
            Some(node) if node.alpns.is_empty() => format!("port {}", node.port),
            Some(node) => format!("port {}: {}", node.port, node.alpns.join(", ")),
        }
    }

    fn problems(&self, columns: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for problem in &self.facts.problems {
            lines.push(String::new());
            lines.extend(self.problem(problem, columns));
        }
        lines
    }

    fn problem(&self, problem: &MachineDiagnostic, columns: usize) -> Vec<String> {
        let MachineDiagnostic { code, text, hint } = problem;
        let width = columns.saturating_sub(3);
        let what = wrap(&self.clean(&format!("{code}: {text}")), width);
        let mut lines = hanging_indent("!! ", &what);
        lines.extend(hanging_indent("-> ", &wrap(&self.clean(hint), width)));
        lines
    }

    fn next(&self, columns: usize) -> Vec<String> {
        let step = next_step(self.facts, self.node);
        let width = columns.saturating_sub(NAME_COLUMNS);
        let name = format!("{:<NAME_COLUMNS$}", "Next");
        let mut lines = vec![String::new()];
        lines.extend(hanging_indent(&name, &wrap(&self.clean(&step), width)));
        lines
    }

    fn code(&self) -> Option<Vec<String>> {
        let uri = &self.node?.enrolment_uri;
        if uri.is_empty() || self.state.charset == Charset::Ascii {
            return None;
        }
        qr_code(uri, self.state.charset)
    }

    fn enrol(&self) -> Vec<String> {
        let uri = self.node.map_or("", |node| &node.enrolment_uri);
        let Some(code) = Some(uri)
            .filter(|uri| !uri.is_empty())
            .and_then(|uri| qr_code(uri, self.state.charset))
        else {
            return vec![
                self.title(),
                String::new(),
                "There is no enrolment code yet.".into(),
            ];
        };
        let mut lines = vec!["Scan this code to reach the node, or type what it says:".to_owned()];
        lines.extend(wrap(&self.clean(uri), self.state.columns));
        let short = self.state.rows.saturating_sub(1) < lines.len() + code.len();
        // A code without its last rows cannot be read, so the text is left out.
        if short && self.state.charset == Charset::Utf8 {
            lines.clear();
        }
        lines.extend(code);
        lines
    }

    fn log(&self) -> Vec<String> {
        let room = self.state.rows.saturating_sub(2);
        let from = self.state.log.len().saturating_sub(room);
        let mut lines = vec![self.title()];
        lines.extend(self.state.log[from..].iter().map(|line| self.clean(line)));
        lines
    }

    fn paste(&self) -> Vec<String> {
        vec![
            self.title(),
            String::new(),
            format!(
                "A configuration is being pasted: {} bytes so far.",
                self.state.pasted
            ),
        ]
    }

    fn all_problems(&self) -> Vec<String> {
        let mut lines = vec![self.title()];
        if self.facts.problems.is_empty() {
            lines.extend([String::new(), "Nothing is wrong.".to_owned()]);
        }
        lines.extend(self.problems(self.state.columns));
        lines
    }

    fn question(&self, question: &ConsoleQuestion, typed: &SecretInput) -> Vec<String> {
        let mut lines = vec![self.title(), String::new()];
        for line in question.lines().map(|line| self.clean(line)) {
            // A line that fits stays as it is, so that a table keeps its columns.
            if line.chars().count() <= self.state.columns {
                lines.push(line);
            } else {
                lines.extend(wrap(&line, self.state.columns));
            }
        }
        let answer = question.echo(typed);
        lines.push(String::new());
        lines.push(self.clean(&format!("{}: {}_", question.prompt(), *answer)));
        lines
    }

    fn help(&self) -> String {
        let keys = match (self.state.live, self.state.view) {
            (false, _) => "Keys: l log, p problems, e enrolment code, any other key: live screen",
            (true, ConsoleView::Status) => {
                "l log   p problems   e enrolment code   a ASCII   r redraw   q leave"
            }
            (true, ConsoleView::Paste) => "Enter, twice if need be, ends it   Esc leaves it",
            (true, ConsoleView::Question) => {
                "Enter answers   Ctrl-U clears   Ctrl-C cancels   Esc back"
            }
            (true, _) => {
                "q or Esc back   l log   p problems   e enrolment code   a ASCII   r redraw"
            }
        };
        keys.to_owned()
    }

    fn clean(&self, text: &str) -> String {
        clean(text, self.state.charset)
    }

    fn fit(&self, line: &str) -> String {
        fit(line, self.state.columns, self.state.charset)
    }
}

/// Lines with a mark before the first and the same indent before the others.
fn hanging_indent(mark: &str, lines: &[String]) -> Vec<String> {
    let room = " ".repeat(mark.chars().count());
    let line = |(n, line)| format!("{}{line}", if n == 0 { mark } else { &room });
    lines.iter().enumerate().map(line).collect()
}

/// The health of one part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PartHealth {
    Bad,
    Good,
    Waiting,
}

impl PartHealth {
    fn mark(self) -> &'static str {
        match self {
            Self::Bad => "!!",
            Self::Good => "ok",
            Self::Waiting => "..",
        }
    }
}

fn health(facts: &MachineFacts, node: Option<&NodeStatus>) -> [(&'static str, PartHealth); 5] {
    let is = |good| {
        if good {
            PartHealth::Good
        } else {
            PartHealth::Bad
        }
    };
    let node = match node {
        Some(_) => PartHealth::Good,
        None => is_waiting(facts.node_restarts == 0),
    };
    let config = ["config-", "provisioning-", "nocloud-"];
    let refused =
        |problem: &MachineDiagnostic| config.iter().any(|part| problem.code.starts_with(part));
    [
        ("node", node),
        ("network", is(reachable(facts).next().is_some())),
        ("clock", is(matches!(facts.clock.as_str(), "sntp" | "rtc"))),
        (
            "data",
            is(matches!(facts.data.mode.as_str(), "mounted" | "host")),
        ),
        ("config", is(!facts.problems.iter().any(refused))),
    ]
}

fn is_waiting(is_starting: bool) -> PartHealth {
    if is_starting {
        PartHealth::Waiting
    } else {
        PartHealth::Bad
    }
}

/// Addresses at which other machines can reach this one, without their prefix lengths.
fn reachable(facts: &MachineFacts) -> impl Iterator<Item = IpAddr> + '_ {
    let all = facts.links.iter().filter(|link| link.up);
    all.flat_map(|link| &link.addresses).filter_map(|text| {
        let address = text.split('/').next()?.parse().ok()?;
        let local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback(),
        };
        (!local).then_some(address)
    })
}

fn addresses(facts: &MachineFacts) -> Vec<String> {
    let cards: Vec<_> = facts
        .links
        .iter()
        .filter(|link| link.name != "lo")
        .collect();
    let mut lines = Vec::new();
    for link in &cards {
        let named = |text: &str| match cards.len() {
            1 => text.to_owned(),
            _ => format!("{} {text}", link.name),
        };
        match (link.up, link.addresses.is_empty()) {
            (false, _) => lines.push(named("no cable")),
            (true, true) => lines.push(named("none yet")),
            (true, false) => lines.extend(link.addresses.iter().map(|address| named(address))),
        }
    }
    if lines.is_empty() {
        return vec!["no network card found".to_owned()];
    }
    // A client on another link cannot use link-local addresses.
    if reachable(facts).next().is_some() {
        lines.retain(|line| !line.split(' ').any(|word| word.starts_with("fe80:")));
    }
    let beyond = lines.len().saturating_sub(ADDRESSES_MAX);
    lines.truncate(ADDRESSES_MAX);
    if beyond > 0 {
        lines.push(format!("and {beyond} more"));
    }
    lines
}

fn admins(count: u32) -> String {
    match count {
        0 => "none".to_owned(),
        1 => "1 key".to_owned(),
        n => format!("{n} keys"),
    }
}

/// The short form of a key, and then the whole key: in one line if it fits, else in parts that fit beside a code.
fn identity(key: &str, columns: usize) -> Vec<String> {
    let (kind, digits) = key.split_once(':').unwrap_or(("", key));
    let digits: Vec<char> = digits.chars().collect();
    let text = |part: &[char]| part.iter().collect::<String>();
    let short = format!("{} ({kind})", text(&digits[..digits.len().min(8)]));
    if key.len() <= columns {
        return vec![short, key.to_owned()];
    }
    let parts = digits.chunks(KEY_PART_DIGITS).map(|part| {
        let groups: Vec<String> = part.chunks(KEY_GROUP_DIGITS).map(text).collect();
        groups.join(" ")
    });
    std::iter::once(short).chain(parts).collect()
}

/// Digits of a key in one line, in groups that a person can compare.
const KEY_PART_DIGITS: usize = 24;
const KEY_GROUP_DIGITS: usize = 8;

fn data(state: &DataState) -> String {
    let free = || {
        format!(
            "{} of {} free",
            bytes(state.free_bytes),
            bytes(state.total_bytes)
        )
    };
    let mode = match state.mode.as_str() {
        "mounted" | "host" => free(),
        "read-only" => "read-only: nothing new is kept".to_owned(),
        "volatile" => "volatile: nothing is kept".to_owned(),
        "locked" if state.device.is_none() => "none: nothing is served".to_owned(),
        "locked" => "locked: the vault opens it".to_owned(),
        "" => "not looked for yet".to_owned(),
        other => other.to_owned(),
    };
    match (&state.device, state.mode.as_str()) {
        (Some(device), "mounted" | "read-only") => {
            format!("{}, {mode}", device.strip_prefix("/dev/").unwrap_or(device))
        }
        _ => mode,
    }
}

/// The state of the vault with its slots. `None` if there is no vault.
fn vault(facts: &VaultFacts) -> Option<String> {
    let mut slots = facts.slots.clone();
    // How well a key in a TPM is protected depends on which programs the firmware starts.
    for (slot, tpm2) in slots
        .iter_mut()
        .filter(|slot| slot.as_str() == "tpm2")
        .zip(&facts.tpm2)
    {
        let pin = if tpm2.pin { "with a PIN, " } else { "" };
        slot.push_str(&format!(" ({pin}{})", tpm2.protection));
    }
    let slots = slots.join(", ");
    let words = if facts.words_kept {
        ""
    } else {
        "; its words were not written down"
    };
    match facts.state.as_str() {
        "unlocked" if !facts.sealed => Some(format!(
            "UNSEALED: a copy of the disk has the keys ({slots}){words}"
        )),
        "unlocked" => Some(format!("open, by {slots}{words}")),
        "locked" => Some(format!("LOCKED ({slots})")),
        _ => None,
    }
}

/// The count in the largest unit of which there is at least one.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match UNITS.into_iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) => {
            let tenths = u128::from(count) * 10 / u128::from(size);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

fn clock(source: &str) -> &str {
    match source {
        "" | "unset" => "not set",
        "build-time" => "not set, no earlier than this build",
        "rtc" => "from the hardware clock",
        "sntp" => "from the network",
        other => other,
    }
}

/// The next step for the user.
fn next_step(facts: &MachineFacts, node: Option<&NodeStatus>) -> String {
    let address = reachable(facts).next();
    if facts.data.mode == "locked" {
        let closes = |code: &str| {
            ["vault-", "data-", "config-lost", "words-not-kept"]
                .iter()
                .any(|known| code.starts_with(known))
        };
        let waits = facts.problems.iter().find(|one| closes(&one.code));
        return waits.map_or_else(|| "open the vault".to_owned(), |one| one.hint.clone());
    }
    match (node, address) {
        (None, _) if facts.node_restarts > 0 => {
            "press l: the log says why the node ended".to_owned()
        }
        (None, _) => "wait: the node is starting".to_owned(),
        (Some(node), _) if node.admins == 0 => {
            "give it an administrator: node.admin_keys by fw_cfg or a CIDATA volume, or paste what \
             'alknet provision --form console' prints"
                .to_owned()
        }
        (Some(_), None) => {
            "connect a network, or give the card an address ([[network]])".to_owned()
        }
        (Some(node), Some(address)) => {
            let at = std::net::SocketAddr::new(address, node.port);
            format!("alknet call KEY@{at} node/info")
        }
    }
}
