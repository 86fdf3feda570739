//! Answers of operations as sections of the page.

use serde::Serialize;
use serde_json::Value;

use crate::gather::{PageCallResult, StatusSnapshot};
use crate::history::{MetricsHistory, MetricsRates, MetricsSample};
use crate::limits::ROWS_MAX;
use crate::plot::{Plot, plot};
use crate::text;

/// The part of a meter beyond which it is nearly full.
const NEARLY_FULL: f64 = 0.9;

/// The page as the template has it.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) name: String,
    /// One sentence that says whether anything is wrong.
    pub(crate) state: String,
    pub(crate) well: bool,
    pub(crate) at: String,
    pub(crate) sections: Vec<PageSection>,
}

/// One part of the page.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PageSection {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) wide: bool,
    pub(crate) error: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) problems: Vec<PageProblem>,
    pub(crate) facts: Vec<PageFact>,
    pub(crate) plots: Vec<Plot>,
    pub(crate) table: Option<PageTable>,
    pub(crate) more: Option<PageDetails>,
    pub(crate) log: Option<Vec<PageLogRow>>,
    pub(crate) how: Vec<PageCommandHint>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PageProblem {
    code: String,
    text: String,
    hint: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct PageFact {
    name: &'static str,
    value: String,
    code: bool,
    meter: Option<PageMeter>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PageMeter {
    max: f64,
    value: f64,
    high: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct PageTable {
    caption: &'static str,
    columns: &'static [&'static str],
    rows: Vec<PageTableRow>,
    left_out: Option<usize>,
}

#[derive(Debug, Serialize)]
struct PageTableRow {
    head: String,
    cells: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PageDetails {
    id: &'static str,
    summary: String,
    items: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PageLogRow {
    when: String,
    level: String,
    target: String,
    message: String,
}

/// What is done elsewhere, and by which command.
#[derive(Debug, Serialize)]
pub(crate) struct PageCommandHint {
    what: &'static str,
    command: String,
}

/// The whole page. `address` is where the browser found the node.
pub(crate) fn view(
    gathered: &StatusSnapshot,
    history: &MetricsHistory,
    address: &str,
) -> StatusView {
    let info = match &gathered.info {
        PageCallResult::Answer(info) => info,
        PageCallResult::Absent | PageCallResult::Failed(_) => &Value::Null,
    };
    let problems = info["problems"].as_array().map_or(0, Vec::len);
    let name = Some(text::member_text(&info["name"])).filter(|name| !name.is_empty());
    let address = text::foreign(address);
    let target = target(info, &address);
    let sections = [
        build_section("problems", "Problems", &gathered.info, problem_list)
            .filter(|_| problems > 0),
        build_section("node", "This node", &gathered.info, node),
        build_section("serves", "Serves", &gathered.info, |section, info| {
            serves(section, info, &gathered.operations);
        }),
        build_section("calls", "Calls", &gathered.metrics, |section, metrics| {
            calls(section, metrics, history);
        }),
        build_section("peers", "Peers", &gathered.peers, |section, peers| {
            peer_table(section, peers, &target);
        }),
        build_section("storage", "Storage", &gathered.info, storage),
        build_section("vault", "Vault", &gathered.vault, vault),
        build_section("compute", "Compute", &gathered.compute, compute),
        build_section(
            "sessions",
            "Script sessions",
            &gathered.sessions,
            |section, sessions| {
                session_table(section, sessions, &gathered.workers);
            },
        ),
        build_section("software", "Software", &gathered.info, |section, info| {
            software(section, info, &target);
        }),
        build_section("log", "Log", &gathered.log, |section, log| {
            records(section, log, &target);
        }),
    ];
    StatusView {
        name: name.unwrap_or(address),
        state: state(&gathered.info, problems),
        well: problems == 0,
        at: text::member_text(&info["time"]),
        sections: sections.into_iter().flatten().collect(),
    }
}

fn state(info: &PageCallResult, problems: usize) -> String {
    match (info, problems) {
        (PageCallResult::Answer(_), 0) => "Nothing is wrong.".to_owned(),
        (PageCallResult::Answer(_), 1) => "One problem.".to_owned(),
        (PageCallResult::Answer(_), n) => format!("{n} problems."),
        (PageCallResult::Failed(_), _) => "The node does not say how it is.".to_owned(),
        (PageCallResult::Absent, _) => "You may not see how the node is.".to_owned(),
    }
}

/// A section of what was answered; none where nothing was asked.
fn build_section(
    id: &'static str,
    title: &'static str,
    asked: &PageCallResult,
    fill: impl FnOnce(&mut PageSection, &Value),
) -> Option<PageSection> {
    let mut section = PageSection {
        id,
        title,
        ..PageSection::default()
    };
    match asked {
        PageCallResult::Absent => return None,
        PageCallResult::Answer(answer) => fill(&mut section, answer),
        PageCallResult::Failed(why) => section.error = Some(text::foreign(why)),
    }
    Some(section)
}

impl PageSection {
    fn fact(&mut self, name: &'static str, value: String) {
        self.push(name, value, false, None);
    }

    fn code(&mut self, name: &'static str, value: String) {
        self.push(name, value, true, None);
    }

    fn push(&mut self, name: &'static str, value: String, code: bool, meter: Option<PageMeter>) {
        if !value.is_empty() {
            let fact = PageFact {
                name,
                value,
                code,
                meter,
            };
            self.facts.push(fact);
        }
    }

    /// How much of something is used.
    fn used(&mut self, name: &'static str, total: Option<f64>, free: Option<f64>) {
        let (Some(total), Some(free)) = (total.filter(|total| *total > 0.0), free) else {
            return;
        };
        let used = (total - free).clamp(0.0, total);
        let value = format!("{} of {} used", text::bytes(used), text::bytes(total));
        let meter = PageMeter {
            max: total,
            value: used,
            high: (total * NEARLY_FULL).floor(),
        };
        self.push(name, value, false, Some(meter));
    }

    fn how(&mut self, what: &'static str, command: String) {
        self.how.push(PageCommandHint { what, command });
    }

    fn rows(
        &mut self,
        caption: &'static str,
        columns: &'static [&'static str],
        rows: Vec<PageTableRow>,
    ) {
        let left_out = rows.len().checked_sub(ROWS_MAX).filter(|n| *n > 0);
        self.wide = true;
        self.table = Some(PageTable {
            caption,
            columns,
            rows: rows.into_iter().take(ROWS_MAX).collect(),
            left_out,
        });
    }
}

/// What a command line calls the node.
fn target(info: &Value, address: &str) -> String {
    let identity = text::member_text(&info["identity"]);
    if identity.is_empty() || address.is_empty() {
        return "NODE".to_owned();
    }
    format!("{identity}@{address}")
}

fn problem_list(section: &mut PageSection, info: &Value) {
    let all = info["problems"].as_array().into_iter().flatten();
    section.problems = all
        .map(|one| PageProblem {
            code: text::member_text(&one["code"]),
            text: text::member_text(&one["text"]),
            hint: text::member_text(&one["hint"]),
        })
        .collect();
    section.wide = true;
}

fn node(section: &mut PageSection, info: &Value) {
    section.code("Identity", text::member_text(&info["identity"]));
    let role = match text::member_text(&info["role"]).as_str() {
        "appliance" => "an appliance of its own".to_owned(),
        "host" => "a program on an ordinary computer".to_owned(),
        other => other.to_owned(),
    };
    section.fact("Runs as", role);
    section.code("Addresses", text::list(&info["addresses"]));
    let uptime = info["uptime_ms"].as_u64();
    section.fact(
        "Up for",
        uptime
            .map(|ms| text::duration(ms / 1000))
            .unwrap_or_default(),
    );
    let clock = match (
        text::member_text(&info["time"]),
        text::member_text(&info["clock"]),
    ) {
        (time, clock) if time.is_empty() => format!("not set ({clock})"),
        (time, clock) => format!("{time}, by {clock}"),
    };
    section.fact("Clock", clock);
    let memory = &info["memory"];
    let (total, free) = (
        memory["total_bytes"].as_f64(),
        memory["available_bytes"].as_f64(),
    );
    section.used("Memory", total, free);
    let own = memory["node_resident_bytes"].as_f64();
    section.fact("Used by the node", own.map(text::bytes).unwrap_or_default());
}

fn calls(section: &mut PageSection, metrics: &Value, history: &MetricsHistory) {
    let now = MetricsSample::from_metrics(metrics);
    let (rates, span) = history.rates();
    section.wide = true;
    if rates.is_empty() {
        section.note = Some("The plots begin a few seconds after the page is opened.".to_owned());
    } else {
        section.plots = plots(&rates, &text::duration(span.as_secs()));
    }
    section.fact("Calls since the start", text::number(now.calls));
    section.fact("Answered with an error", text::number(now.errors));
    section.fact("Connections", text::number(now.connections));
}

fn plots(rates: &[MetricsRates], span: &str) -> Vec<Plot> {
    let all = |of: fn(&MetricsRates) -> Option<f64>| rates.iter().map(of).collect::<Vec<_>>();
    vec![
        plot(
            "Calls",
            span,
            &[("line", all(|it| Some(it.calls)))],
            text::rate,
        ),
        plot(
            "Errors",
            span,
            &[("line", all(|it| Some(it.errors)))],
            text::rate,
        ),
        plot(
            "Median / slowest of 100",
            span,
            &[
                ("line", all(|it| it.median)),
                ("line second", all(|it| it.slowest)),
            ],
            text::seconds,
        ),
        plot(
            "Received / sent",
            span,
            &[
                ("line", all(|it| Some(it.received))),
                ("line second", all(|it| Some(it.sent))),
            ],
            |it| format!("{}/s", text::bytes(it)),
        ),
        plot(
            "Memory",
            span,
            &[("line", all(|it| it.resident))],
            text::bytes,
        ),
    ]
}

fn serves(section: &mut PageSection, info: &Value, operations: &PageCallResult) {
    let listen = &info["listen"];
    section.fact("Port", text::member_text(&listen["port"]));
    section.code("Protocols", text::list(&listen["alpns"]));
    section.code("iroh at", text::list(&listen["iroh"]));
    if let PageCallResult::Answer(listing) = operations {
        let all = listing["operations"].as_array().into_iter().flatten();
        let items: Vec<_> = all.map(|one| text::member_text(&one["name"])).collect();
        section.more = Some(PageDetails {
            id: "operations",
            summary: format!("{} operations that you may call", items.len()),
            items,
        });
    }
}

fn peer_table(section: &mut PageSection, answer: &Value, target: &str) {
    let peers = answer["peers"].as_array().map_or(&[][..], Vec::as_slice);
    // Connected peers first, those with the most connections before the others.
    let connections = |peer: &Value| peer["connections"].as_array().map_or(0, Vec::len);
    let mut sorted: Vec<_> = peers.iter().collect();
    sorted.sort_by_key(|peer| std::cmp::Reverse(connections(peer)));
    let rows = sorted.into_iter().map(|peer| {
        let name = peer["display_name"].as_str().map(text::foreign);
        let state = match (peer["enabled"] == false, connections(peer)) {
            (true, _) => "put out".to_owned(),
            (false, 0) => "not connected".to_owned(),
            (false, 1) => "1 connection".to_owned(),
            (false, n) => format!("{n} connections"),
        };
        let from = peer["connections"].as_array().into_iter().flatten();
        let mut from: Vec<_> = from.map(|one| text::member_text(&one["addr"])).collect();
        from.dedup();
        PageTableRow {
            head: text::member_text(&peer["peer_id"]),
            cells: vec![
                name.unwrap_or_default(),
                text::member_text(&peer["kind"]).replace('_', " "),
                state,
                from.into_iter().take(3).collect::<Vec<_>>().join(", "),
                text::list(&peer["scopes"]),
            ],
        }
    });
    let rows: Vec<_> = rows.collect();
    let columns = &["Peer", "Name", "Kind", "State", "From", "May"];
    section.rows("Who may connect, and who has", columns, rows);
    if let Some(strangers) = answer["strangers"].as_u64().filter(|n| *n > 0) {
        section.note = Some(format!("Connections of unknown peers: {strangers}."));
    }
    section.how(
        "Change who may connect",
        format!("alknet config apply {target} node.toml"),
    );
    section.how(
        "See and take back tokens",
        format!("alknet token list {target}"),
    );
}

fn storage(section: &mut PageSection, info: &Value) {
    let data = &info["data"];
    let mode = match text::member_text(&data["mode"]).as_str() {
        "mounted" => "mounted".to_owned(),
        "read-only" => "mounted, and cannot be written".to_owned(),
        "volatile" => "in memory only: gone after a restart".to_owned(),
        "host" => "a folder of this computer".to_owned(),
        other => other.to_owned(),
    };
    section.fact("Data", mode);
    section.code("On", text::member_text(&data["device"]));
    section.fact("Encrypted", text::member_text(&data["cipher"]));
    section.used(
        "Space",
        data["total_bytes"].as_f64(),
        data["free_bytes"].as_f64(),
    );
    section.fact("About it", text::member_text(&data["detail"]));
}

fn vault(section: &mut PageSection, vault: &Value) {
    section.fact("State", text::member_text(&vault["state"]));
    if vault["state"] == "absent" {
        return;
    }
    section.fact("Opens by", text::list(&vault["slots"]));
    section.fact("Opened by", text::member_text(&vault["opened_by"]));
    let kept = match vault["words_kept"].as_bool() {
        Some(true) => "yes",
        Some(false) => "not known: write them down, and say so with 'alknet vault'",
        None => "",
    };
    section.fact("Words written down", kept.to_owned());
    section.fact("Data encrypted", text::member_text(&vault["data_cipher"]));
    let credentials = vault["credentials"].as_array().map_or(0, Vec::len);
    section.fact("Credentials", credentials.to_string());
}

fn compute(section: &mut PageSection, compute: &Value) {
    let adapter = &compute["adapter"];
    let state = match text::member_text(&compute["state"]).as_str() {
        "ready" => "ready".to_owned(),
        "unprobed" => "no call has asked for it yet".to_owned(),
        "none" => format!("none: {}", text::member_text(&compute["reason"])),
        other => other.to_owned(),
    };
    section.fact("State", state);
    section.fact("Device", text::member_text(&adapter["name"]));
    let kind = adapter["hardware"].as_bool();
    let kind = kind.map(|hardware| if hardware { "a GPU" } else { "the processor" });
    section.fact("Which is", kind.unwrap_or_default().to_owned());
    section.fact(
        "Instead of a GPU",
        text::member_text(&adapter["fallback_reason"]),
    );
    section.fact("Driver", text::member_text(&compute["versions"]["driver"]));
    section.fact("Threads", text::member_text(&compute["threads"]));
    section.fact("Without shaders", text::list(&compute["host_kernels"]));
}

fn session_table(section: &mut PageSection, answer: &Value, workers: &PageCallResult) {
    let sessions = answer["sessions"].as_array().map_or(&[][..], Vec::as_slice);
    if sessions.is_empty() {
        section.note = Some("No script session is open.".to_owned());
    } else {
        let time = |ms: &Value| {
            let ms = ms.as_f64();
            ms.map(|ms| text::seconds(ms / 1000.0)).unwrap_or_default()
        };
        let rows = sessions.iter().map(|one| PageTableRow {
            head: text::member_text(&one["session"]),
            cells: vec![
                text::member_text(&one["tenant"]),
                text::member_text(&one["mode"]),
                text::member_text(&one["state"]),
                time(&one["age_ms"]),
                time(&one["cpu_ms"]),
                one["heap_peak"]
                    .as_f64()
                    .map(text::bytes)
                    .unwrap_or_default(),
            ],
        });
        let columns = &[
            "Session",
            "Whose",
            "Kind",
            "State",
            "Open for",
            "Processor",
            "Memory",
        ];
        section.rows("Script sessions that are open", columns, rows.collect());
    }
    if let PageCallResult::Answer(stats) = workers {
        let running = stats["workers"].as_object().into_iter().flatten();
        let running =
            running.map(|(role, n)| format!("{}: {}", text::foreign(role), text::member_text(n)));
        section.fact("Workers", running.collect::<Vec<_>>().join(", "));
    }
}

fn software(section: &mut PageSection, info: &Value, target: &str) {
    section.fact("alknet", text::member_text(&info["version"]));
    section.fact("Kernel", text::member_text(&info["kernel"]));
    section.fact("Processor", text::member_text(&info["arch"]));
    let config = &info["config"];
    section.fact("Configuration", text::member_text(&config["source"]));
    section.fact("Its number", text::member_text(&config["generation"]));
    let waits = text::list(&config["restart_required"]);
    let waiting = !waits.is_empty();
    section.code("Waits for a restart", waits);
    let restarts = info["node_restarts"].as_u64().filter(|n| *n > 0);
    section.fact(
        "Restarted since power-on",
        restarts.map(|n| n.to_string()).unwrap_or_default(),
    );
    section.code(
        "Last words before that",
        text::member_text(&info["last_words"]),
    );
    if info["role"] == "appliance" {
        let what = if waiting {
            "Restart it, which is due"
        } else {
            "Restart it"
        };
        section.how(what, format!("alknet open {target} --action reboot"));
        section.how(
            "Switch it off",
            format!("alknet open {target} --action poweroff"),
        );
    }
}

fn records(section: &mut PageSection, log: &Value, target: &str) {
    let all = log.as_array().into_iter().flatten();
    let records = all.map(|one| PageLogRow {
        when: match one["time"].as_str() {
            Some(time) => text::foreign(time),
            None => format!("+{} ms", one["boot_ms"].as_u64().unwrap_or_default()),
        },
        level: text::member_text(&one["level"]),
        target: text::member_text(&one["target"]),
        message: text::member_text(&one["message"]),
    });
    section.wide = true;
    // The newest first: a reader of the log looks for it.
    let mut records: Vec<_> = records.collect();
    records.reverse();
    section.log = Some(records);
    section.how(
        "Follow it",
        format!("alknet call {target} node/log '{{\"follow\":true}}'"),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info() -> Value {
        json!({
            "name": "edge-1", "identity": "ed25519:01", "role": "appliance", "version": "0.1.0",
            "listen": { "port": 443, "alpns": ["h2", "alknet/call"] },
            "data": { "mode": "mounted", "total_bytes": 1000, "free_bytes": 250 },
            "problems": [{ "code": "a", "text": "b", "hint": "c" }],
            "config": { "generation": 3, "restart_required": ["listen.port"] },
        })
    }

    fn ids(view: &StatusView) -> Vec<&str> {
        view.sections.iter().map(|section| section.id).collect()
    }

    #[test]
    fn what_was_not_asked_is_left_out_and_what_failed_says_so() {
        let gathered = StatusSnapshot {
            info: PageCallResult::Answer(info()),
            vault: PageCallResult::Failed("broken".to_owned()),
            ..StatusSnapshot::default()
        };
        let view = view(&gathered, &MetricsHistory::default(), "192.0.2.7:8443");
        let expected = ["problems", "node", "serves", "storage", "vault", "software"];
        assert_eq!(ids(&view), expected);
        assert_eq!(
            (view.name.as_str(), view.state.as_str()),
            ("edge-1", "One problem.")
        );
        let broken = view.sections.iter().find(|section| section.id == "vault");
        assert_eq!(broken.expect("there").error.as_deref(), Some("broken"));
        let software = &view.sections[5];
        assert!(software.how[0].what.contains("due"));
        let command = "alknet open ed25519:01@192.0.2.7:8443 --action reboot";
        assert_eq!(software.how[0].command, command);
        let meter = view.sections[3]
            .facts
            .iter()
            .find_map(|fact| fact.meter.as_ref());
        let meter = meter.expect("space is measured");
        assert_eq!((meter.value, meter.max, meter.high), (750.0, 1000.0, 900.0));
    }

    #[test]
    fn answers_of_any_other_form_make_a_page_too() {
        for odd in [
            json!(null),
            json!([]),
            json!("x"),
            json!({ "peers": 7, "sessions": {} }),
        ] {
            let asked = || PageCallResult::Answer(odd.clone());
            let gathered = StatusSnapshot {
                info: asked(),
                metrics: asked(),
                peers: asked(),
                operations: asked(),
                compute: asked(),
                sessions: asked(),
                workers: asked(),
                vault: asked(),
                log: asked(),
            };
            let view = view(&gathered, &MetricsHistory::default(), "box");
            assert_eq!((view.sections.len(), view.name.as_str()), (10, "box"));
        }
    }

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let peers: Vec<_> = (0..ROWS_MAX + 3)
            .map(|n| json!({ "peer_id": format!("p{n}"), "kind": "api_key" }))
            .collect();
        let mut section = PageSection::default();
        peer_table(
            &mut section,
            &json!({ "peers": peers, "strangers": 2 }),
            "NODE",
        );
        let table = section.table.expect("a table");
        assert_eq!((table.rows.len(), table.left_out), (ROWS_MAX, Some(3)));
        assert_eq!(
            section.note.as_deref(),
            Some("Connections of unknown peers: 2.")
        );
    }
}
