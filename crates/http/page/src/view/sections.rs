//! Fills each section of the page from the outputs of operations.

use std::time::Duration;

use serde_json::Value;

use super::{PageDetails, PageLogRow, PageProblem, PageSection, PageTableRow};
use crate::gather::PageCallResult;
use crate::history::{MetricsHistory, MetricsRates, MetricsSample};
use crate::plot::{Plot, PlotQuantity, PlotSeries, plot};
use crate::text;

/// The CSS classes of the first line of a plot, of a second line, and of failures when there are many.
const LINE: &str = "line";
const SECOND_LINE: &str = "line second";
const BAD_LINE: &str = "line bad";

pub(super) fn problems(section: &mut PageSection, info: &Value) {
    // An absent member of a `Value` is null, so a missing list counts as an empty one.
    let all = info["problems"].as_array().into_iter().flatten();
    section.problems = all
        .map(|one| PageProblem {
            code: text::member_text(&one["code"]),
            text: text::member_text(&one["text"]),
            hint: text::member_text(&one["hint"]),
        })
        .collect();
}

pub(super) fn node(section: &mut PageSection, info: &Value) {
    section.long_code(
        "Identity (public key)",
        text::member_text(&info["identity"]),
    );
    let role = match text::member_text(&info["role"]).as_str() {
        "appliance" => "appliance: alknet is the whole system".to_owned(),
        "host" => "program on this computer's system".to_owned(),
        other => other.to_owned(),
    };
    section.fact("Runs as", role);
    section.code("Addresses", text::list(&info["addresses"]));
    let uptime = info["uptime_ms"].as_u64();
    let uptime = uptime.map(|ms| text::duration(ms / 1000));
    section.fact("Uptime", uptime.unwrap_or_default());
    section.fact("Clock", clock(info));
    let memory = &info["memory"];
    let (total, free) = (
        memory["total_bytes"].as_f64(),
        memory["available_bytes"].as_f64(),
    );
    section.used("Memory of the machine", total, free);
    let own = memory["node_resident_bytes"].as_f64();
    section.fact(
        "Memory used by alknet",
        own.map(text::bytes).unwrap_or_default(),
    );
}

/// Whether the clock is set, and by which source.
fn clock(info: &Value) -> String {
    let source = text::member_text(&info["clock"]);
    let source = match source.as_str() {
        "sntp" => "by a time server",
        "rtc" => "by the clock chip of the machine",
        "stored" => "to the time of the last shutdown",
        "build-time" => "to the time at which the program was built",
        "host" => "by this computer's system",
        "" => "",
        other => other,
    };
    let is_set = !text::member_text(&info["time"]).is_empty();
    match (is_set, source) {
        (false, _) => "not set".to_owned(),
        (true, "") => "set".to_owned(),
        (true, source) => format!("set {source}"),
    }
}

pub(super) fn network(section: &mut PageSection, info: &Value, operations: &PageCallResult) {
    let listen = &info["listen"];
    section.fact("Port", text::member_text(&listen["port"]));
    section.code("Protocols", text::list(&listen["alpns"]));
    section.code("Addresses for iroh", text::list(&listen["iroh"]));
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

pub(super) fn calls(section: &mut PageSection, metrics: &Value, history: &MetricsHistory) {
    let now = MetricsSample::from_metrics(metrics);
    let (rates, span) = history.rates();
    let recent = history.recent_calls();
    let many = recent.is_some_and(|recent| recent.has_many_failures());
    if rates.is_empty() {
        section.note = Some("The plots begin a few seconds after the page is opened.".to_owned());
    } else {
        section.plots = plots(&rates, span, many);
    }
    section.fact("Calls since start", text::number(now.calls));
    section.fact("Failed calls since start", text::number(now.errors));
    if let Some(recent) = recent {
        let (failed, calls) = (text::number(recent.failed), text::number(recent.calls));
        let part = text::percent(recent.failed, recent.calls);
        let span = text::duration(recent.span.as_secs());
        section.fact(
            "Failed calls lately",
            format!("{failed} of {calls} in {span} ({part})"),
        );
        section.alarm = many.then(|| {
            format!(
                "Many calls fail: {failed} of {calls} in the last {span} ({part}) ended with an error."
            )
        });
    }
    section.fact("Open connections", text::number(now.connections));
}

fn plots(rates: &[MetricsRates], span: Duration, many_failures: bool) -> Vec<Plot> {
    let line = |label, class, of: fn(&MetricsRates) -> Option<f64>| {
        let position = |at: Duration| match span.is_zero() {
            // Without a span there is only one point. It lies at the right end.
            true => 1.0,
            false => at.as_secs_f64() / span.as_secs_f64(),
        };
        let points = rates.iter().map(|rate| (position(rate.at), of(rate)));
        PlotSeries {
            label,
            class,
            points: points.collect(),
        }
    };
    let (failed, failed_class) = match many_failures {
        true => ("failed: many", BAD_LINE),
        false => ("failed", SECOND_LINE),
    };
    vec![
        plot(
            "Calls",
            PlotQuantity::PerSecond,
            span,
            &[
                line("all", LINE, |rate| Some(rate.calls)),
                line(failed, failed_class, |rate| Some(rate.errors)),
            ],
        ),
        plot(
            "Time to answer",
            PlotQuantity::Seconds,
            span,
            &[
                line("half of the calls", LINE, |rate| rate.median),
                line("99 of 100 calls", SECOND_LINE, |rate| rate.slowest),
            ],
        ),
        plot(
            "Network traffic",
            PlotQuantity::BytesPerSecond,
            span,
            &[
                line("received", LINE, |rate| Some(rate.received)),
                line("sent", SECOND_LINE, |rate| Some(rate.sent)),
            ],
        ),
        plot(
            "Memory",
            PlotQuantity::Bytes,
            span,
            &[line("used by alknet", LINE, |rate| rate.resident)],
        ),
    ]
}

/// What the page knows about the node's clock.
#[derive(Clone, Copy, Debug)]
pub(super) enum NodeTime<'a> {
    /// The time in the form of [`text::utc`].
    At(&'a str),
    /// The clock is not set, so the node refuses each peer whose entry expires.
    Unset,
    /// The viewer may not call `node/info`, or the node did not answer.
    Unknown,
}

pub(super) fn peers(section: &mut PageSection, answer: &Value, now: NodeTime<'_>, target: &str) {
    let peers = answer["peers"].as_array().map_or(&[][..], Vec::as_slice);
    // Connected peers are first, sorted by their number of connections.
    let mut sorted: Vec<_> = peers.iter().collect();
    sorted.sort_by_key(|peer| std::cmp::Reverse(connections(peer)));
    let rows = sorted.into_iter().map(|peer| {
        let from = peer["connections"].as_array().into_iter().flatten();
        let mut from: Vec<_> = from.map(|one| text::member_text(&one["addr"])).collect();
        from.dedup();
        let kind = match text::member_text(&peer["kind"]).as_str() {
            "admin" => "administrator".to_owned(),
            "api_key" => "token".to_owned(),
            other => other.replace('_', " "),
        };
        PageTableRow {
            head: text::member_text(&peer["peer_id"]),
            cells: vec![
                text::member_text(&peer["display_name"]),
                kind,
                peer_state(peer, now),
                from.into_iter().take(3).collect::<Vec<_>>().join(", "),
                text::list(&peer["scopes"]),
            ],
        }
    });
    let rows: Vec<_> = rows.collect();
    let columns = [
        "ID",
        "Name",
        "Kind",
        "State",
        "Connected from",
        "Scopes: what it may call",
    ];
    section.rows("Peers and tokens that this node knows", &columns, rows);
    if let Some(unknown_peers) = answer["unknown_peers"].as_u64().filter(|n| *n > 0) {
        section.note = Some(format!("Connections of unknown peers: {unknown_peers}"));
    }
    section.how(
        "Change the peers of the configuration",
        format!("alknet config apply {target} node.toml"),
    );
    section.how("List the tokens", format!("alknet token list {target}"));
    section.how(
        "Revoke a token by its ID",
        format!("alknet token remove {target} ID"),
    );
}

fn connections(peer: &Value) -> usize {
    peer["connections"].as_array().map_or(0, Vec::len)
}

fn peer_state(peer: &Value, now: NodeTime<'_>) -> String {
    let expires = peer["expires"].as_str().and_then(text::utc);
    let is_expired = expires.is_some_and(|expires| match now {
        NodeTime::At(now) => expires.as_str() <= now,
        NodeTime::Unset => true,
        NodeTime::Unknown => false,
    });
    match connections(peer) {
        _ if peer["enabled"] == false => "disabled".to_owned(),
        _ if is_expired => "expired".to_owned(),
        // Tokens come with requests and have no connections of their own.
        0 if peer["kind"] == "api_key" => "valid".to_owned(),
        0 => "not connected".to_owned(),
        1 => "1 connection".to_owned(),
        n => format!("{n} connections"),
    }
}

pub(super) fn storage(section: &mut PageSection, info: &Value) {
    let data = &info["data"];
    let mode = match text::member_text(&data["mode"]).as_str() {
        "mounted" => "mounted, can be written".to_owned(),
        "read-only" => "mounted, read-only".to_owned(),
        "volatile" => "in memory only: lost at a restart".to_owned(),
        "host" => "a folder of this computer".to_owned(),
        other => other.to_owned(),
    };
    section.fact("Data volume", mode);
    section.code("Device or folder", text::member_text(&data["device"]));
    section.fact("Encryption", text::member_text(&data["cipher"]));
    section.used(
        "Space",
        data["total_bytes"].as_f64(),
        data["free_bytes"].as_f64(),
    );
    section.fact("Details", text::member_text(&data["detail"]));
}

/// How a fact shows a number.
type ShowNumber = fn(f64) -> String;

pub(super) fn files(section: &mut PageSection, metrics: &Value) {
    let facts: [(_, _, ShowNumber); 5] = [
        ("Buckets", "alknet_fs_buckets", text::number),
        ("Versions of entries", "alknet_fs_entries", text::number),
        ("Contents", "alknet_fs_content_bytes", text::bytes),
        ("Open uploads", "alknet_fs_sessions", text::number),
        ("Subscriptions", "alknet_fs_watches", text::number),
    ];
    for (name, series, show) in facts {
        if let Some(value) = metrics["values"][series].as_f64() {
            section.fact(name, show(value));
        }
    }
}

pub(super) fn vault(section: &mut PageSection, vault: &Value) {
    let state = match text::member_text(&vault["state"]).as_str() {
        "absent" => "this node has no vault".to_owned(),
        other => other.to_owned(),
    };
    section.fact("State", state);
    if vault["state"] == "absent" {
        return;
    }
    section.fact("Can be unlocked by", text::list(&vault["slots"]));
    section.fact("Was unlocked by", text::member_text(&vault["opened_by"]));
    let written_down = match vault["words_kept"].as_bool() {
        Some(true) => "yes",
        Some(false) => "not confirmed: write them down, and confirm it at the console",
        // The page leaves out a fact without a text.
        None => "",
    };
    section.fact("Recovery words written down", written_down.to_owned());
    section.fact(
        "Encryption of the data",
        text::member_text(&vault["data_cipher"]),
    );
    let credentials = vault["credentials"].as_array().map_or(0, Vec::len);
    section.fact("Stored credentials", credentials.to_string());
}

pub(super) fn compute(section: &mut PageSection, compute: &Value) {
    let adapter = &compute["adapter"];
    let state = match text::member_text(&compute["state"]).as_str() {
        "ready" => "ready".to_owned(),
        "unprobed" => "not started: no call has used it yet".to_owned(),
        "none" => format!("not available: {}", text::member_text(&compute["reason"])),
        other => other.to_owned(),
    };
    section.fact("State", state);
    section.fact("Device", text::member_text(&adapter["name"]));
    let kind = adapter["hardware"].as_bool();
    let kind = kind.map(|hardware| if hardware { "GPU" } else { "processor" });
    section.fact("Kind of device", kind.unwrap_or_default().to_owned());
    section.fact(
        "Why no GPU is used",
        text::member_text(&adapter["fallback_reason"]),
    );
    section.fact("Driver", text::member_text(&compute["versions"]["driver"]));
    section.fact("Threads", text::member_text(&compute["threads"]));
    section.fact(
        "Computed without shaders",
        text::list(&compute["host_kernels"]),
    );
}

pub(super) fn script_sessions(section: &mut PageSection, answer: &Value, workers: &PageCallResult) {
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
        let columns = [
            "Session",
            "Owner",
            "Mode",
            "State",
            "Open for",
            "Processor time",
            "Most memory",
        ];
        section.rows("Open script sessions", &columns, rows.collect());
    }
    if let PageCallResult::Answer(stats) = workers {
        let running = stats["workers"].as_object().into_iter().flatten();
        let running =
            running.map(|(role, n)| format!("{}: {}", text::foreign(role), text::member_text(n)));
        section.fact("Worker processes", running.collect::<Vec<_>>().join(", "));
    }
}

pub(super) fn software(section: &mut PageSection, info: &Value, target: &str) {
    section.fact("Version of alknet", text::member_text(&info["version"]));
    updates(section, &info["update"], target);
    section.fact("Kernel", text::member_text(&info["kernel"]));
    section.fact("Processor type", text::member_text(&info["arch"]));
    let config = &info["config"];
    section.fact("Configuration from", text::member_text(&config["source"]));
    section.fact(
        "Configuration generation",
        text::member_text(&config["generation"]),
    );
    let waits = text::list(&config["restart_required"]);
    let waiting = !waits.is_empty();
    section.code("Settings that need a restart", waits);
    let restarts = info["node_restarts"].as_u64().filter(|n| *n > 0);
    section.fact(
        "Restarts of alknet since power-on",
        restarts.map(|n| n.to_string()).unwrap_or_default(),
    );
    section.code(
        "Last message before the restart",
        text::member_text(&info["last_words"]),
    );
    // Only an appliance may restart its machine. Otherwise alknet is one program among others.
    if info["role"] == "appliance" {
        let what = if waiting {
            "Restart the machine: changed settings need it"
        } else {
            "Restart the machine"
        };
        section.how(what, format!("alknet open {target} --action reboot"));
        section.how(
            "Switch the machine off",
            format!("alknet open {target} --action poweroff"),
        );
    }
}

/// The boot slots of an appliance, and the update under way.
fn updates(section: &mut PageSection, update: &Value, target: &str) {
    let other = text::member_text(&update["other_version"]);
    let state = match update["state"].as_str().unwrap_or_default() {
        // A host, or a machine whose form has no slots.
        "" | "absent" => return,
        "staged" => format!("{other} waits to be started"),
        "pending" => format!("{other} starts with the next restart"),
        "trial" => "this version is on trial".to_owned(),
        "failed" => format!("{other} failed"),
        "unreadable" => "the disk does not say which versions it has".to_owned(),
        _ => String::new(),
    };
    section.fact("Boot slot", text::member_text(&update["slot"]));
    section.fact("Update", state);
    section.fact("The trial waits for", text::list(&update["gate"]));
    let last = &update["last"];
    let version = text::member_text(&last["version"]);
    let ended = match last["outcome"].as_str().unwrap_or_default() {
        "confirmed" => format!("{version} was confirmed"),
        "rolled-back" => format!("{version} was rolled back"),
        "failed" => {
            let reason = text::member_text(&last["reason"]);
            section.how(
                "Read why the last update failed",
                format!("alknet update log {target}"),
            );
            format!("{version} failed: {reason}")
        }
        _ => String::new(),
    };
    section.fact("Last update", ended);
    if last["outcome"] == "failed" {
        let stage = text::member_text(&last["stage"]);
        section.code("Stage that the failed version reached", stage);
        section.code(
            "Problems of the failed version",
            text::list(&last["problems"]),
        );
    }
    if update["state"] == "staged" {
        section.how(
            "Start the version that waits",
            format!("alknet update {target}"),
        );
        section.how("Take it back", format!("alknet rollback {target}"));
    }
}

pub(super) fn log(section: &mut PageSection, log: &Value, target: &str) {
    let all = log.as_array().into_iter().flatten();
    let records = all.map(|one| {
        let (at, when) = log_time(one);
        PageLogRow {
            at,
            when,
            level: text::member_text(&one["level"]),
            target: text::member_text(&one["target"]),
            message: text::member_text(&one["message"]),
        }
    });
    // The newest record is first, because readers of the log look for it.
    let mut records: Vec<_> = records.collect();
    records.reverse();
    let count = |level: &str| records.iter().filter(|one| one.level == level).count();
    section.note = Some(format!(
        "The newest {} records; errors: {}, warnings: {}",
        records.len(),
        count("error"),
        count("warn")
    ));
    section.log = Some(records);
    section.how(
        "Follow the log",
        format!("alknet call {target} node/log '{{\"follow\":true}}'"),
    );
}

/// The time of a record: in RFC 3339 if the clock was set, and as text.
fn log_time(record: &Value) -> (String, String) {
    let time = text::member_text(&record["time"]);
    if let Some(shown) = text::utc(&time) {
        return (time, shown);
    }
    // A record from before the clock was set has only the time since boot.
    let since_boot = record["boot_ms"].as_f64().unwrap_or_default() / 1000.0;
    let when = match time.is_empty() {
        true => format!("{} after boot", text::seconds(since_boot)),
        false => time,
    };
    (String::new(), when)
}
