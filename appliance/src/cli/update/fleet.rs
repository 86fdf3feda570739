//! `alknet update --workers`: a hub updates its workers.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use alknet_tensor_cli::ByteProgress;
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::UpdateOptions;
use super::source::{BundlePieces, BundleSource, PIECE_BYTES_MAX};
use crate::cli::call::call_error;
use crate::cli::dial;
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::target::NodeRoute;
use crate::cli::{CommandError, CommandExit, confirmation, output};

/// The operation of the hub.
const UPDATE: &str = "hub/update";
/// How often the hub is asked how far it is.
const PAUSE: Duration = Duration::from_secs(2);

/// How many workers a ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingArg {
    Workers(u64),
    All,
}

impl RingArg {
    fn value(self) -> Value {
        match self {
            Self::Workers(count) => count.into(),
            Self::All => "all".into(),
        }
    }
}

pub(super) fn ring(text: &str) -> Result<RingArg, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(RingArg::Workers(count)),
        _ if text == "all" => Ok(RingArg::All),
        _ => Err(format!(
            "'{text}' is no ring: write numbers of workers or all, such as 1,5,all"
        )),
    }
}

pub(super) fn run(
    options: &UpdateOptions,
    routes: &[NodeRoute],
    source: &BundleSource,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let [route] = routes else {
        return Err(CommandError::usage("give one HUB with --workers"));
    };
    // This comes before the upload, so that a script learns of it at once.
    if !options.yes && !confirmation::is_person(json) {
        return Err(CommandError::usage(
            "with --json or without a terminal the command cannot ask: give --yes",
        ));
    }
    let file = match source {
        BundleSource::File(file) => Some(file),
        BundleSource::Channel(_) => None,
        BundleSource::Hub(_) | BundleSource::Url(_) => {
            let text = "a hub takes its bundle from this computer: give a file";
            return Err(CommandError::usage(text));
        }
    };
    dial::reached(route, &options.dial, async |hub| {
        if let Some(file) = file {
            send(hub, &BundlePieces::File(file), json).await?;
        }
        let status = status(hub).await?;
        let version = text(&status["bundle"]["version"]).to_owned();
        if version.is_empty() {
            return Err(CommandError::usage(
                "the hub has no bundle: give the file of one",
            ));
        }
        let name = route.as_argument();
        let question = format!("Start {version} on the workers of {name}, ring after ring? [y/N] ");
        // The hub says the version, and must not write escape sequences to the terminal.
        confirmation::ask_unless(options.yes, &output::one_line(&question), json)?;
        let answer = hub
            .call(UPDATE, &start(options))
            .await
            .map_err(call_error)?;
        if !json {
            output::note(&format!(
                "{} workers have their turn; Ctrl-C ends this command, and not the update",
                answer.value()["workers"]
            ));
        }
        follow(hub, json).await
    })
}

/// The input that starts the rings.
fn start(options: &UpdateOptions) -> Value {
    let mut start = json!({ "limit_s": options.limit.as_secs().max(1) });
    if !options.rings.is_empty() {
        start["rings"] = options.rings.iter().map(|ring| ring.value()).collect();
    }
    if let Some(at_once) = options.at_once {
        start["at_once"] = at_once.into();
    }
    json!({ "start": start })
}

async fn status(hub: &NodeCaller) -> Result<Value, CommandError> {
    let status = hub.call("hub/update_status", &Value::Null).await;
    Ok(status.map_err(call_error)?.value().clone())
}

async fn send(hub: &NodeCaller, pieces: &BundlePieces<'_>, json: bool) -> Result<(), CommandError> {
    let bytes = pieces.bytes();
    let begun = hub.call(UPDATE, &json!({ "bytes": bytes })).await;
    begun.map_err(call_error)?;
    let progress = ByteProgress::new("update", None, !json && io::stderr().is_terminal());
    let mut offset = 0;
    while offset < bytes {
        let data = BASE64.encode(&pieces.at(offset, PIECE_BYTES_MAX).await?);
        let input = json!({ "offset": offset, "data": data });
        let answer = hub.call(UPDATE, &input).await.map_err(call_error)?;
        // A hub that names no higher offset would let this command send for ever.
        let next = answer.value()["offset"]
            .as_u64()
            .filter(|next| *next > offset);
        offset = next.ok_or_else(|| {
            CommandError::new(
                CommandExit::Failed,
                "PROTOCOL",
                "the hub takes no more of the bundle",
            )
        })?;
        progress.set(offset, bytes);
    }
    Ok(())
}

/// Shows what becomes of each worker until the end.
async fn follow(hub: &NodeCaller, json: bool) -> Result<CommandExit, CommandError> {
    let mut seen = BTreeMap::new();
    loop {
        let status = status(hub).await?;
        let rollout = &status["rollout"];
        if !json {
            for line in changes(rollout, &mut seen) {
                output::line(&line)?;
            }
        }
        let state = text(&rollout["state"]);
        if state != "running" {
            if json {
                output::json_line(rollout)?;
            }
            return match state {
                "done" => Ok(CommandExit::Ok),
                _ => Err(CommandError::new(
                    CommandExit::Failed,
                    "UPDATE_FAILED",
                    ending(rollout),
                )),
            };
        }
        sleep(PAUSE).await;
    }
}

/// A line for each worker whose state changed.
fn changes(rollout: &Value, seen: &mut BTreeMap<String, String>) -> Vec<String> {
    let rows = rollout["workers"].as_array().into_iter().flatten();
    let mut lines = Vec::new();
    for row in rows {
        let (name, state) = (text(&row["name"]), text(&row["state"]));
        let before = seen.insert(text(&row["peer"]).to_owned(), state.to_owned());
        let is_new = before.as_deref() != Some(state) && state != "waits";
        if is_new {
            let reason = match text(&row["reason"]) {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            lines.push(format!("ring {}  {name}  {state}{reason}", row["ring"]));
        }
    }
    lines
}

/// Why a rollout ended before its end.
fn ending(rollout: &Value) -> String {
    let rows = || rollout["workers"].as_array().into_iter().flatten();
    let left = rows().filter(|row| row["state"] == "waits").count();
    let failed = rows().find(|row| row["state"] == "failed");
    match failed {
        Some(row) => format!(
            "{} failed: {}; {left} workers were left alone",
            text(&row["name"]),
            text(&row["reason"])
        ),
        None => format!(
            "the update is {}; {left} workers were left alone",
            text(&rollout["state"])
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_a_number_or_all() {
        assert_eq!(ring("5"), Ok(RingArg::Workers(5)));
        assert_eq!(ring("all"), Ok(RingArg::All));
        for wrong in ["0", "-1", "", "some"] {
            assert!(ring(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_change_of_a_worker_is_one_line() {
        let rollout = |second: &str| {
            json!({ "state": "running", "workers": [
                { "peer": "p1", "name": "kitchen", "ring": 1, "state": "confirmed" },
                { "peer": "p2", "name": "hall", "ring": 2, "state": second, "reason": "it hung" },
                { "peer": "p3", "name": "attic", "ring": 2, "state": "waits" },
            ] })
        };
        let mut seen = BTreeMap::new();
        assert_eq!(
            changes(&rollout("waits"), &mut seen),
            ["ring 1  kitchen  confirmed"]
        );
        assert_eq!(changes(&rollout("waits"), &mut seen), [""; 0]);
        let failed = rollout("failed");
        assert_eq!(
            changes(&failed, &mut seen),
            ["ring 2  hall  failed: it hung"]
        );
        assert_eq!(
            ending(&failed),
            "hall failed: it hung; 1 workers were left alone"
        );
    }
}
