//! `alknet disk`: the disks of an appliance, and what is on them.

use clap::Subcommand;
use serde_json::{Value, json};

use super::call::call_error;
use super::query::text;
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// The operation with the last reports of the disks.
const INFO: &str = "node/info";
/// The operation that checks them now.
const CHECK: &str = "node/check-storage";

/// The verbs below `alknet disk`.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskVerb {
    /// Check the disks, the programs in the boot slots and the stored files now. The exit code is 1 if something is
    /// damaged or fails.
    #[command(
        after_help = "Examples:\n  alknet disk check edge-1\n  alknet disk check kitchen@attic --timeout 10m"
    )]
    Check(NodeArgs),
    /// List the disks of a node with their health, wear and errors, and what the last check of its boot slots found.
    #[command(after_help = "Examples:\n  alknet disk list edge-1\n  alknet disk list --json")]
    List(NodeArgs),
}

/// Runs one of them.
pub(crate) fn run(verb: DiskVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        DiskVerb::Check(node) => check(&node, json),
        DiskVerb::List(node) => list(&node, json),
    }
}

fn check(node: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let answer = node.call(CHECK, &Value::Null).await.map_err(call_error)?;
        let answer = answer.value();
        match json {
            true => output::json_line(answer)?,
            false => print(&checked_lines(answer))?,
        }
        let problems = answer["problems"].as_array();
        Ok(match problems.is_none_or(Vec::is_empty) {
            true => CommandExit::Ok,
            false => CommandExit::Failed,
        })
    })
}

fn list(node: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let info = node.call(INFO, &Value::Null).await.map_err(call_error)?;
        let storage = &info.value()["storage"];
        let listed = json!({ "disks": storage["disks"], "slots": storage["slots"] });
        match json {
            true => output::json_line(&listed)?,
            false => print(&listed_lines(&listed))?,
        }
        Ok(CommandExit::Ok)
    })
}

fn print(lines: &[String]) -> Result<(), CommandError> {
    lines.iter().try_for_each(|line| output::line(line))
}

/// A line for each disk and each slot.
fn listed_lines(answer: &Value) -> Vec<String> {
    let rows = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let disks = rows("disks");
    let width = output::column(disks.iter().map(|disk| text(&disk["name"])));
    let disk = |disk: &Value| format!("{:width$}  {}", text(&disk["name"]), disk_line(disk));
    let mut lines: Vec<_> = disks.iter().map(disk).collect();
    lines.extend(rows("slots").iter().map(slot_line));
    match lines.is_empty() {
        true => vec!["the node reports no disks".to_owned()],
        false => lines,
    }
}

/// Like `listed_lines`, with the stored files and the problems.
fn checked_lines(answer: &Value) -> Vec<String> {
    let mut lines = listed_lines(answer);
    let stored = &answer["stored"];
    let (files, damaged) = (&stored["files"], &stored["damaged_files"]);
    lines.push(match stored["running"] == true {
        true => format!("stored files: being read; {files} so far, {damaged} damaged"),
        false => format!("stored files: {files}, {damaged} damaged"),
    });
    for problem in answer["problems"].as_array().into_iter().flatten() {
        let (code, what) = (text(&problem["code"]), text(&problem["text"]));
        lines.push(format!(
            "problem {code}: {what}; {}",
            text(&problem["hint"])
        ));
    }
    lines
}

fn disk_line(disk: &Value) -> String {
    let mut parts = vec![text(&disk["health"]).to_owned()];
    let kind = text(&disk["kind"]);
    let model = disk["model"].as_str();
    parts.push(match (kind, model) {
        ("other", None) => "a disk that is not asked for its health".to_owned(),
        ("other", Some(model)) => model.to_owned(),
        (kind, model) => format!("{kind} {}", model.unwrap_or_default())
            .trim_end()
            .to_owned(),
    });
    if let Some(end) = disk["serial_end"].as_str() {
        parts.push(format!("serial number …{end}"));
    }
    for (name, before, after) in [
        ("wear_percent", "", " % of its life used"),
        ("spare_percent", "", " % spare"),
        ("power_on_hours", "", " h"),
        ("temperature_c", "", " °C"),
        ("media_errors", "media errors ", ""),
        ("filesystem_errors", "file system errors ", ""),
    ] {
        if let Some(number) = disk[name].as_i64() {
            parts.push(format!("{before}{number}{after}"));
        }
    }
    if disk["temperature_warning"] == true {
        parts.push("too hot or too cold".to_owned());
    }
    let failing = disk["failing"].as_array().into_iter().flatten();
    parts.extend(failing.map(|fact| text(fact).to_owned()));
    parts.join(", ")
}

fn slot_line(slot: &Value) -> String {
    let letter = text(&slot["slot"]);
    let version = slot["version"].as_str().unwrap_or("no known version");
    let result = text(&slot["result"]);
    let line = format!("slot {letter}: {version}, {result}");
    match slot["detail"].as_str() {
        Some(detail) => format!("{line}: {detail}"),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_slots_have_a_line_each() {
        let answer = json!({
            "disks": [
                { "name": "nvme0n1", "kind": "nvme", "model": "Example 970", "serial_end": "12AB",
                  "health": "failing", "failing": ["the disk takes no more writes"], "wear_percent": 101,
                  "spare_percent": 4, "media_errors": 2, "power_on_hours": 9876, "temperature_c": 88,
                  "temperature_warning": true },
                { "name": "vda", "kind": "other", "model": null, "health": "unknown", "failing": [] },
            ],
            "slots": [
                { "slot": "a", "version": "0.1.0", "result": "whole", "detail": null },
                { "slot": "b", "version": null, "result": "skipped", "detail": "it has no version" },
            ],
            "stored": { "running": true, "files": 3, "damaged_files": 1 },
            "problems": [{ "code": "disk-failing", "text": "it fails", "hint": "replace it" }],
        });
        let expected = [
            "nvme0n1  failing, nvme Example 970, serial number …12AB, 101 % of its life used, 4 % spare, 9876 h, 88 °C, \
             media errors 2, too hot or too cold, the disk takes no more writes",
            "vda      unknown, a disk that is not asked for its health",
            "slot a: 0.1.0, whole",
            "slot b: no known version, skipped: it has no version",
        ];
        assert_eq!(listed_lines(&answer), expected);
        let checked = checked_lines(&answer);
        assert_eq!(checked[..4], expected);
        assert_eq!(checked[4], "stored files: being read; 3 so far, 1 damaged");
        assert_eq!(checked[5], "problem disk-failing: it fails; replace it");
    }

    #[test]
    fn a_node_without_disks_says_so() {
        let nothing = json!({ "disks": [], "slots": [] });
        assert_eq!(listed_lines(&nothing), ["the node reports no disks"]);
        // A node of an earlier version has no such member.
        let earlier = json!({ "disks": null, "slots": null });
        assert_eq!(listed_lines(&earlier), ["the node reports no disks"]);
    }
}
