//! Turns the outputs of operations into the sections of the page.

mod sections;

use serde::Serialize;
use serde_json::Value;

use self::sections::NodeTime;
use crate::gather::{PageCallResult, StatusSnapshot};
use crate::history::MetricsHistory;
use crate::limits::ROWS_MAX;
use crate::plot::Plot;
use crate::text;

/// The part of a meter above which it counts as nearly full.
const NEARLY_FULL: f64 = 0.9;

/// The data of the page for the template.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) name: String,
    /// A sentence that says whether the node has problems.
    pub(crate) state: String,
    /// Whether the node reported that it has no problem.
    pub(crate) well: bool,
    /// The node's time, RFC 3339 in UTC; empty while its clock is not set.
    pub(crate) at: String,
    /// The same time for a reader without scripts.
    pub(crate) at_text: String,
    pub(crate) sections: Vec<PageSection>,
}

/// One section of the page.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PageSection {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// The reason why the section is empty.
    pub(crate) error: Option<String>,
    /// A warning, which is shown in the colour of errors.
    pub(crate) alarm: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) problems: Vec<PageProblem>,
    pub(crate) facts: Vec<PageFact>,
    /// Whether a wide window shows four facts in a row instead of three.
    pub(crate) by_four: bool,
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

#[derive(Debug, Default, Serialize)]
pub(crate) struct PageFact {
    name: &'static str,
    value: String,
    code: bool,
    /// The value is long and takes the whole width.
    whole: bool,
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
    columns: Vec<&'static str>,
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
    /// RFC 3339 in UTC; empty for a record from before the clock was set.
    at: String,
    /// The time for a reader without scripts.
    when: String,
    level: String,
    target: String,
    message: String,
}

/// A task that an administrator does elsewhere, and the command for it.
#[derive(Debug, Serialize)]
pub(crate) struct PageCommandHint {
    what: &'static str,
    command: String,
}

/// The data of the whole page. `address` is where the browser reached the node.
pub(crate) fn view(
    gathered: &StatusSnapshot,
    history: &MetricsHistory,
    address: &str,
) -> StatusView {
    let info = match &gathered.info {
        PageCallResult::Answer(info) => info,
        // Each member of null is null, so the page shows no facts of the node.
        PageCallResult::Absent | PageCallResult::Failed(_) => &Value::Null,
    };
    let problems = info["problems"].as_array().map_or(0, Vec::len);
    let name = Some(text::member_text(&info["name"])).filter(|name| !name.is_empty());
    // The address comes from the request's Host field, which the client chooses.
    let address = text::foreign(address);
    let target = target(info, &address);
    let at = text::member_text(&info["time"]);
    let at_text = text::utc(&at);
    let now = match (&at_text, &gathered.info) {
        (Some(at), _) => NodeTime::At(at),
        (None, PageCallResult::Answer(_)) => NodeTime::Unset,
        (None, PageCallResult::Absent | PageCallResult::Failed(_)) => NodeTime::Unknown,
    };
    let sections = page_sections(gathered, history, &target, now);
    StatusView {
        name: name.unwrap_or(address),
        state: state(&gathered.info, problems),
        // A node that did not answer may have problems.
        well: problems == 0 && matches!(gathered.info, PageCallResult::Answer(_)),
        at: at_text.as_ref().map(|_| at).unwrap_or_default(),
        at_text: at_text.unwrap_or_default(),
        sections,
    }
}

/// The sections of all outputs, in their order. `target` names the node in a command line, and `now` is its time.
fn page_sections(
    gathered: &StatusSnapshot,
    history: &MetricsHistory,
    target: &str,
    now: NodeTime<'_>,
) -> Vec<PageSection> {
    let all = [
        build_section("problems", "Problems", &gathered.info, sections::problems)
            .filter(|section| !section.problems.is_empty()),
        build_section("node", "This node", &gathered.info, sections::node),
        build_section("network", "Network", &gathered.info, |section, info| {
            sections::network(section, info, &gathered.operations);
        }),
        build_section("calls", "Calls", &gathered.metrics, |section, metrics| {
            sections::calls(section, metrics, history);
        }),
        build_section("peers", "Peers", &gathered.peers, |section, peers| {
            sections::peers(section, peers, now, target);
        }),
        build_section("storage", "Storage", &gathered.info, sections::storage),
        // Empty on a node whose files were never used.
        build_section("files", "Files", &gathered.metrics, sections::files)
            .filter(|section| !section.facts.is_empty()),
        build_section("vault", "Vault", &gathered.vault, sections::vault),
        build_section("compute", "Compute", &gathered.compute, sections::compute),
        build_section(
            "sessions",
            "Script sessions",
            &gathered.sessions,
            |section, sessions| {
                sections::script_sessions(section, sessions, &gathered.workers);
            },
        ),
        build_section("software", "Software", &gathered.info, |section, info| {
            sections::software(section, info, target);
        }),
        build_section("log", "Log", &gathered.log, |section, log| {
            sections::log(section, log, target);
        }),
    ];
    all.into_iter().flatten().collect()
}

fn state(info: &PageCallResult, problems: usize) -> String {
    match (info, problems) {
        (PageCallResult::Answer(_), 0) => "No problems".to_owned(),
        (PageCallResult::Answer(_), 1) => "1 problem".to_owned(),
        (PageCallResult::Answer(_), n) => format!("{n} problems"),
        (PageCallResult::Failed(_), _) => "Status unknown: the node did not answer".to_owned(),
        (PageCallResult::Absent, _) => "Status hidden: you may not read it".to_owned(),
    }
}

/// A section for an operation's output; `None` if the operation was not called.
fn build_section(
    id: &'static str,
    title: &'static str,
    result: &PageCallResult,
    fill: impl FnOnce(&mut PageSection, &Value),
) -> Option<PageSection> {
    let mut section = PageSection {
        id,
        title,
        ..PageSection::default()
    };
    match result {
        PageCallResult::Absent => return None,
        PageCallResult::Answer(answer) => fill(&mut section, answer),
        PageCallResult::Failed(why) => section.error = Some(text::foreign(why)),
    }
    // A fact that takes the whole width stands in no row with others.
    let short = section.facts.iter().filter(|fact| !fact.whole).count();
    section.by_four = are_by_four(short);
    Some(section)
}

/// Whether this number of facts is shown four to a row: three to a row would leave the last fact alone, or four fill
/// each row.
fn are_by_four(facts: usize) -> bool {
    facts % 3 == 1 || facts.is_multiple_of(4)
}

impl PageSection {
    fn fact(&mut self, name: &'static str, value: String) {
        self.push(PageFact {
            name,
            value,
            ..PageFact::default()
        });
    }

    fn code(&mut self, name: &'static str, value: String) {
        self.push(PageFact {
            name,
            value,
            code: true,
            ..PageFact::default()
        });
    }

    /// Like [`code`](Self::code), for a value that is longer than a column is wide.
    fn long_code(&mut self, name: &'static str, value: String) {
        self.push(PageFact {
            name,
            value,
            code: true,
            whole: true,
            ..PageFact::default()
        });
    }

    fn push(&mut self, fact: PageFact) {
        // An empty value stands for a fact that the node did not report.
        if !fact.value.is_empty() {
            self.facts.push(fact);
        }
    }

    /// Adds a fact that shows how much of a resource is used.
    fn used(&mut self, name: &'static str, total: Option<f64>, free: Option<f64>) {
        let (Some(total), Some(free)) = (total.filter(|total| *total > 0.0), free) else {
            return;
        };
        // A node may report more free bytes than bytes in total. The meter shows no negative value then.
        let used = (total - free).clamp(0.0, total);
        let value = format!("{} of {} used", text::bytes(used), text::bytes(total));
        let meter = PageMeter {
            max: total,
            value: used,
            high: (total * NEARLY_FULL).floor(),
        };
        self.push(PageFact {
            name,
            value,
            meter: Some(meter),
            ..PageFact::default()
        });
    }

    fn how(&mut self, what: &'static str, command: String) {
        self.how.push(PageCommandHint { what, command });
    }

    fn rows(
        &mut self,
        caption: &'static str,
        columns: &[&'static str],
        mut rows: Vec<PageTableRow>,
    ) {
        let left_out = rows.len().checked_sub(ROWS_MAX).filter(|n| *n > 0);
        rows.truncate(ROWS_MAX);
        // A column without any content is left out. The first column is the head of each row.
        let has_content = |n: usize| {
            let mut cells = rows.iter().filter_map(|row| row.cells.get(n));
            cells.any(|cell| !cell.is_empty())
        };
        let shown: Vec<bool> = (1..columns.len()).map(|n| has_content(n - 1)).collect();
        let shown = || std::iter::once(true).chain(shown.iter().copied());
        let columns = columns.iter().zip(shown()).filter(|(_, shown)| *shown);
        let columns = columns.map(|(column, _)| *column).collect();
        let cells = |cells: Vec<String>| {
            let cells = cells.into_iter().zip(shown().skip(1));
            let cells = cells.filter_map(|(cell, shown)| shown.then_some(cell));
            let or_dash = |cell: String| match cell.is_empty() {
                true => "–".to_owned(),
                false => cell,
            };
            cells.map(or_dash).collect::<Vec<_>>()
        };
        let rows = rows.into_iter().map(|row| PageTableRow {
            head: row.head,
            cells: cells(row.cells),
        });
        self.table = Some(PageTable {
            caption,
            columns,
            rows: rows.collect(),
            left_out,
        });
    }
}

/// The name of the node in a command line.
fn target(info: &Value, address: &str) -> String {
    let identity = text::member_text(&info["identity"]);
    if identity.is_empty() || address.is_empty() {
        // The reader replaces this word in the commands.
        return "NODE".to_owned();
    }
    format!("{identity}@{address}")
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
        let expected = [
            "problems", "node", "network", "storage", "vault", "software",
        ];
        assert_eq!(ids(&view), expected);
        assert_eq!(
            (view.name.as_str(), view.state.as_str(), view.well),
            ("edge-1", "1 problem", false)
        );
        let broken = view.sections.iter().find(|section| section.id == "vault");
        assert_eq!(broken.expect("there").error.as_deref(), Some("broken"));
        let software = &view.sections[5];
        assert!(software.how[0].what.contains("changed settings need it"));
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
    fn software_says_how_an_update_stands() {
        let section = |update: Value| {
            let mut info = info();
            info["update"] = update;
            let mut section = PageSection::default();
            sections::software(&mut section, &info, "NODE");
            let facts = section.facts.iter();
            let facts = facts.filter(|it| {
                [
                    "Boot slot",
                    "Update",
                    "The trial waits for",
                    "Last update",
                    "Stage that the failed version reached",
                    "Problems of the failed version",
                ]
                .contains(&it.name)
            });
            let facts: Vec<_> = facts.map(|it| it.value.clone()).collect();
            let commands: Vec<_> = section.how.iter().map(|it| it.command.clone()).collect();
            (facts, commands)
        };
        let (facts, commands) = section(json!({
            "state": "trial", "slot": "b", "gate": ["the vault"],
            "last": { "version": "1.1.0", "outcome": "failed", "reason": "it hung", "stage": "data",
                "problems": ["vault-locked", "memory-short"] },
        }));
        let expected = [
            "b",
            "this version is on trial",
            "the vault",
            "1.1.0 failed: it hung",
            "data",
            "vault-locked, memory-short",
        ];
        assert_eq!(facts, expected);
        assert!(commands.contains(&"alknet update log NODE".to_owned()));
        let (facts, commands) =
            section(json!({ "state": "staged", "slot": "a", "other_version": "1.2.0" }));
        assert_eq!(facts, ["a", "1.2.0 waits to be started"]);
        assert!(commands.contains(&"alknet update NODE".to_owned()));
        assert_eq!(section(json!({ "state": "absent" })).0, [""; 0]);
        assert_eq!(section(Value::Null).0, [""; 0]);
    }

    #[test]
    fn files_are_shown_where_the_metrics_count_them() {
        let mut section = PageSection::default();
        sections::files(
            &mut section,
            &json!({ "values": { "alknet_fs_buckets": 2 } }),
        );
        let shown = section.facts.iter().map(|it| (it.name, &*it.value));
        assert_eq!(shown.collect::<Vec<_>>(), [("Buckets", "2")]);
    }

    #[test]
    fn no_fact_is_alone_in_a_row_of_a_wide_window() {
        for facts in 2..=12 {
            let columns = if are_by_four(facts) { 4 } else { 3 };
            assert_ne!(facts % columns, 1, "{facts} facts in {columns} columns");
        }
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
        let section = peers_section(&json!({ "peers": peers, "unknown_peers": 2 }), NOW);
        let table = section.table.expect("a table");
        assert_eq!((table.rows.len(), table.left_out), (ROWS_MAX, Some(3)));
        assert_eq!(
            section.note.as_deref(),
            Some("Connections of unknown peers: 2")
        );
    }

    const NOW: NodeTime<'_> = NodeTime::At("2026-11-23 00:47:44 UTC");

    fn peers_section(answer: &Value, now: NodeTime<'_>) -> PageSection {
        let mut section = PageSection::default();
        sections::peers(&mut section, answer, now, "NODE");
        section
    }

    /// Help does not list earlier spellings of a verb.
    #[test]
    fn a_token_is_revoked_by_the_verb_that_help_lists() {
        let section = peers_section(&json!({ "peers": [] }), NOW);
        let commands: Vec<_> = section.how.iter().map(|it| it.command.as_str()).collect();
        assert!(
            commands.contains(&"alknet token remove NODE ID"),
            "{commands:?}"
        );
    }

    #[test]
    fn a_column_without_content_is_left_out_and_an_empty_cell_is_marked() {
        let peers = json!({ "peers": [
            { "peer_id": "ada", "kind": "peer", "scopes": ["fs:read", "peer:list"] },
            { "peer_id": "bob", "kind": "peer", "scopes": [] },
        ] });
        let section = peers_section(&peers, NOW);
        let table = section.table.expect("a table");
        assert_eq!(
            table.columns,
            ["ID", "Kind", "State", "Scopes: what it may call"]
        );
        let cells: Vec<_> = table.rows.iter().map(|row| row.cells.clone()).collect();
        assert_eq!(
            cells,
            [
                ["peer", "not connected", "fs:read, peer:list"],
                ["peer", "not connected", "–"]
            ]
        );
    }

    #[test]
    fn a_peer_is_disabled_expired_connected_or_not() {
        let ends = |second: u32| format!("2026-11-23T00:47:{second}Z");
        let state = |peer: &Value, now: NodeTime<'_>| {
            let section = peers_section(&json!({ "peers": [peer] }), now);
            let table = section.table.expect("a table");
            let column = table.columns.iter().position(|it| *it == "State");
            let column = column.expect("each peer has a state");
            table.rows[0].cells[column - 1].clone()
        };
        let two = json!([{ "addr": "192.0.2.9:1" }, { "addr": "192.0.2.9:2" }]);
        let token = |expires: &str| json!({ "kind": "api_key", "expires": expires });
        for (peer, shown) in [
            (json!({ "enabled": false, "connections": two }), "disabled"),
            (token(&ends(43)), "expired"),
            (token(&ends(45)), "valid"),
            (token("soon"), "valid"),
            (
                json!({ "kind": "peer", "connections": two }),
                "2 connections",
            ),
            (
                json!({ "kind": "peer", "connections": [] }),
                "not connected",
            ),
        ] {
            assert_eq!(state(&peer, NOW), shown, "{peer}");
        }
        // A node whose clock is not set refuses what ends.
        assert_eq!(state(&token(&ends(45)), NodeTime::Unset), "expired");
        assert_eq!(state(&token(&ends(43)), NodeTime::Unknown), "valid");
    }

    #[test]
    fn what_is_not_known_is_not_well() {
        let of = |info| {
            let gathered = StatusSnapshot {
                info,
                ..StatusSnapshot::default()
            };
            let view = view(&gathered, &MetricsHistory::default(), "box");
            (view.state, view.well)
        };
        let fine = PageCallResult::Answer(json!({ "problems": [] }));
        assert_eq!(of(fine), ("No problems".to_owned(), true));
        assert!(!of(PageCallResult::Failed("broken".to_owned())).1);
        assert!(!of(PageCallResult::Absent).1);
    }

    #[test]
    fn records_have_their_time_and_those_of_before_the_clock_was_set_their_age() {
        let log = json!([
            { "boot_ms": 12_300, "level": "error", "message": "first" },
            { "time": "2026-11-23T00:47:44.203Z", "boot_ms": 1, "level": "info" },
        ]);
        let mut section = PageSection::default();
        sections::log(&mut section, &log, "NODE");
        let records = section.log.expect("a log");
        let times: Vec<_> = records.iter().map(|one| (&*one.at, &*one.when)).collect();
        assert_eq!(
            times,
            [
                ("2026-11-23T00:47:44.203Z", "2026-11-23 00:47:44 UTC"),
                ("", "12.3 s after boot"),
            ]
        );
        assert_eq!(
            section.note.as_deref(),
            Some("The newest 2 records; errors: 1, warnings: 0")
        );
    }

    #[test]
    fn many_failures_are_said_in_words_and_have_a_line_of_their_own_kind() {
        use std::time::{Duration, Instant};

        use crate::history::MetricsSample;

        let calls = |failed: f64| {
            let (history, start) = (MetricsHistory::default(), Instant::now());
            for (n, part) in [0.0, 0.5, 1.0].into_iter().enumerate() {
                let sample = MetricsSample {
                    calls: 100.0 * part,
                    errors: failed * part,
                    ..MetricsSample::default()
                };
                history.add(start + Duration::from_secs(5) * n as u32, sample);
            }
            let mut section = PageSection::default();
            sections::calls(&mut section, &json!({ "values": {} }), &history);
            let lines = section.plots[0].lines.clone();
            let failed = lines.into_iter().nth(1).expect("failed calls have a line");
            let fact = section
                .facts
                .iter()
                .find(|it| it.name == "Failed calls lately");
            let fact = fact.expect("failed calls are counted").value.clone();
            (section.alarm, failed.label, failed.class, fact)
        };
        let few = calls(4.0);
        assert_eq!(few.0, None);
        assert_eq!((few.1, few.2), ("failed", "line second"));
        assert_eq!(few.3, "4 of 100 in 10 s (4 %)");
        let many = calls(26.0);
        let said = "Many calls fail: 26 of 100 in the last 10 s (26 %) ended with an error.";
        assert_eq!(many.0.as_deref(), Some(said));
        assert_eq!((many.1, many.2), ("failed: many", "line bad"));
    }
}
