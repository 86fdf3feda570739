//! `alknet status`: is a node well?

use clap::Args;
use serde_json::Value;

use super::call::call_error;
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// Arguments of `alknet status`.
#[derive(Debug, Args)]
pub(crate) struct NodeStatusArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Exit code 0 when nothing is wrong, 1 when something is.
pub(crate) fn run(args: &NodeStatusArgs, json: bool) -> Result<CommandExit, CommandError> {
    args.node.reached(async |node| {
        let info = node.call("node/info", &Value::Null).await;
        let info = info.map_err(call_error)?;
        let info = info.value();
        let problems = info["problems"].as_array().cloned().unwrap_or_default();
        if json {
            output::json_line(info)?;
        } else {
            for line in lines(info, &problems) {
                output::line(&line)?;
            }
        }
        Ok(if problems.is_empty() {
            CommandExit::Ok
        } else {
            // A monitor reads the exit code alone.
            CommandExit::Failed
        })
    })
}

fn lines(info: &Value, problems: &[Value]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let row = |name: &str, value: String| format!("{name:10} {value}");
    let mut lines = vec![
        row("name", text(&info["name"])),
        row("identity", text(&info["identity"])),
        row(
            "version",
            format!(
                "{}, kernel {}",
                text(&info["version"]),
                text(&info["kernel"])
            ),
        ),
    ];
    lines.extend(update_line(&info["update"]).map(|line| row("update", line)));
    lines.extend([
        row("addresses", list(&info["addresses"])),
        row(
            "serves",
            format!(
                "{} on port {}",
                list(&info["listen"]["alpns"]),
                info["listen"]["port"]
            ),
        ),
        row("data", text(&info["data"]["mode"])),
        row("clock", text(&info["clock"])),
        row(
            "uptime",
            uptime(info["uptime_ms"].as_u64().unwrap_or_default()),
        ),
    ]);
    lines.extend(
        waiting(&info["config"])
            .into_iter()
            .map(|it| row("waits", it)),
    );
    if problems.is_empty() {
        lines.push(row("health", "ok".to_owned()));
    }
    for problem in problems {
        let (code, what) = (text(&problem["code"]), text(&problem["text"]));
        lines.push(row(
            "problem",
            format!("{code}: {what}; {}", text(&problem["hint"])),
        ));
    }
    lines
}

/// The keys of the configuration whose new values are not in force yet, each with when they will be.
fn waiting(config: &Value) -> Vec<String> {
    // A node of an earlier version does not say whether it keeps documents.
    let when = match config["keeps"] == false {
        true => {
            "never: this node was started without --config, and its next start uses nothing that was applied"
        }
        false => "at the next start",
    };
    let keys = config["restart_required"].as_array().into_iter().flatten();
    let keys = keys.filter_map(Value::as_str);
    keys.map(|key| format!("{key}: {when}")).collect()
}

/// How an update of an appliance stands, and how the last one ended. `None` on a node without boot slots.
pub(super) fn update_line(update: &Value) -> Option<String> {
    let text = |name: &str| update[name].as_str().unwrap_or_default();
    let (slot, other) = (text("slot"), text("other_version"));
    let gate = list(&update["gate"]);
    let state = match text("state") {
        "" | "absent" => return None,
        "idle" | "good" => format!("slot {slot}"),
        "staged" => format!("slot {slot}; {other} waits to be started"),
        "pending" => format!("slot {slot}; {other} starts with the next restart"),
        "trial" => format!("slot {slot}, on trial; waits for {gate}"),
        "failed" => format!("slot {slot}; {other} failed"),
        other => format!("{other}: {}", text("detail")),
    };
    let last = &update["last"];
    let version = last["version"].as_str().unwrap_or_default();
    Some(match last["outcome"].as_str() {
        Some("failed") => {
            let reason = last["reason"].as_str().unwrap_or_default();
            let progress = trial_progress(last).map(|progress| format!(" {progress}"));
            let progress = progress.unwrap_or_default();
            format!("{state}; the last update, to {version}, failed{progress}: {reason}")
        }
        Some("rolled-back") => format!("{state}; {version} was rolled back"),
        _ => state,
    })
}

/// How far a version came that failed its trial: the last stage of its boot, and the codes of its problems. `None` if the
/// node names neither. The texts are the node's, so the caller prints them by [`output`].
pub(super) fn trial_progress(last: &Value) -> Option<String> {
    let stage = last["stage"].as_str().filter(|stage| !stage.is_empty());
    let stage = stage.map(|stage| format!("after the stage '{stage}'"));
    let codes = last["problems"].as_array().into_iter().flatten();
    let codes: Vec<_> = codes.filter_map(Value::as_str).collect();
    let codes = match codes.as_slice() {
        [] => None,
        [code] => Some(format!("with the problem {code}")),
        codes => Some(format!("with the problems {}", codes.join(", "))),
    };
    let parts: Vec<_> = stage.into_iter().chain(codes).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn list(value: &Value) -> String {
    let items = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let items: Vec<_> = items.collect();
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join(", ")
    }
}

fn uptime(ms: u64) -> String {
    let s = ms / 1000;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, m) => format!("{m} min"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_machine_with_boot_slots_has_a_line_on_updates() {
        let line = |update: Value| update_line(&update);
        assert_eq!(line(Value::Null), None);
        assert_eq!(line(json!({ "state": "absent", "detail": "iso" })), None);
        assert_eq!(
            line(json!({ "state": "good", "slot": "b" })).as_deref(),
            Some("slot b")
        );
        let trial = json!({ "state": "trial", "slot": "b", "gate": ["the vault", "a minute"] });
        let expected = "slot b, on trial; waits for the vault, a minute";
        assert_eq!(line(trial).as_deref(), Some(expected));
        let failed = json!({ "state": "failed", "slot": "a", "other_version": "1.1.0",
            "last": { "version": "1.1.0", "outcome": "failed", "reason": "it hung" } });
        let expected = "slot a; 1.1.0 failed; the last update, to 1.1.0, failed: it hung";
        assert_eq!(line(failed.clone()).as_deref(), Some(expected));
        let failed_after = |stage: &str, codes: &[&str]| {
            let mut failed = failed.clone();
            failed["last"]["stage"] = stage.into();
            failed["last"]["problems"] = json!(codes);
            let shown = line(failed).expect("it has slots");
            let (_, end) = shown.split_once("to 1.1.0, ").expect("the last update");
            end.to_owned()
        };
        assert_eq!(failed_after("", &[]), "failed: it hung");
        assert_eq!(
            failed_after("data", &["vault-locked"]),
            "failed after the stage 'data', with the problem vault-locked: it hung"
        );
        assert_eq!(
            failed_after("", &["vault-locked", "memory-short"]),
            "failed with the problems vault-locked, memory-short: it hung"
        );
    }

    #[test]
    fn what_waits_for_the_next_start_has_a_line() {
        let mut info = json!({ "name": "kitchen",
            "config": { "generation": 3, "restart_required": ["node.name", "listen.port"], "keeps": true } });
        let rows = |info: &Value| {
            let lines = lines(info, &[]);
            let waits = lines.into_iter().filter(|line| line.starts_with("waits "));
            waits.collect::<Vec<_>>()
        };
        assert_eq!(
            rows(&info),
            [
                "waits      node.name: at the next start",
                "waits      listen.port: at the next start",
            ]
        );
        info["config"]["keeps"] = false.into();
        assert!(
            rows(&info)[0].contains("without --config"),
            "{:?}",
            rows(&info)
        );
        info["config"]["restart_required"] = json!([]);
        assert!(rows(&info).is_empty());
    }

    #[test]
    fn uptimes_read_well() {
        assert_eq!(uptime(59_999), "59 s");
        assert_eq!(uptime(61_000), "1 min");
        assert_eq!(uptime(3_720_000), "1 h 2 min");
        assert_eq!(uptime(90_000_000), "1 d 1 h");
    }
}
