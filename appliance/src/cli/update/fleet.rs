//! `alknet update --workers`: a hub updates its workers.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use alknet_tensor_cli::ByteProgress;
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::UpdateOptions;
use super::bounds::{BundleDeadline, UploadOffset};
use super::source::{BundlePieces, BundleSource, PIECE_BYTES_MAX};
use crate::cli::call::call_error;
use crate::cli::dial::CliDialer;
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::target::NodeRoute;
use crate::cli::{CommandError, CommandExit, confirmation, output};

/// The operation of the hub.
const UPDATE: &str = "hub/update";
/// How often the hub is asked how far it is.
const PAUSE: Duration = Duration::from_secs(2);
/// Most workers that an update has: a node has no more connections at a time.
const ROLLOUT_ROWS_MAX: usize = 4096;
/// What the hub may take in all beside the times of its workers.
const FOLLOW_MARGIN: Duration = Duration::from_secs(300);
/// The longest time for which the command follows an update.
const FOLLOW_TIME_MAX: Duration = Duration::from_secs(30 * 86_400);

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
    CliDialer::new(&options.dial)?.run(async |dialer| {
        let status = dialer.reached(route, async |hub| {
            if let Some(file) = file {
                let pieces = BundlePieces::File(file);
                let sends = send(hub, &pieces, json);
                BundleDeadline::begin().finish(sends).await?;
            }
            status_of(hub).await
        });
        let status = status.await?;
        let version = text(&status["bundle"]["version"]);
        if version.is_empty() {
            return Err(CommandError::usage(
                "the hub has no bundle: give the file of one",
            ));
        }
        let name = route.as_argument();
        let question = format!("Start {version} on the workers of {name}, ring after ring? [y/N] ");
        // The hub says the version, and must not write escape sequences to the terminal.
        let question = output::one_line(&question).into_owned();
        // The person may think for longer than a connection is kept, so that the start has one of its own.
        confirmation::ask_beside_work(options.yes, question, json).await?;
        let start = start(options, &status["bundle"]);
        let follows = dialer.reached(route, async |hub| {
            let answer = hub.call(UPDATE, &start).await.map_err(call_error)?;
            let workers = worker_count(answer.value())?;
            if !json {
                output::note(&format!(
                    "{workers} workers have their turn; Ctrl-C ends this command, and not the update"
                ));
            }
            let time = follow_time(workers, options.limit);
            follow(time, json, async || status_of(hub).await).await
        });
        follows.await
    })
}

/// The input that starts the rings with the bundle of a status.
fn start(options: &UpdateOptions, bundle: &Value) -> Value {
    let mut start = json!({ "limit_s": options.limit.as_secs().max(1) });
    if !options.rings.is_empty() {
        start["rings"] = options.rings.iter().map(|ring| ring.value()).collect();
    }
    if let Some(at_once) = options.at_once {
        start["at_once"] = at_once.into();
    }
    // Another administrator may store another bundle meanwhile. A hub of an earlier version refuses a member that it does
    // not know, and its status does not have this hash.
    if bundle["targets_sha256"].is_string() {
        let mut agreed = json!({});
        for member in ["version", "bytes", "targets_sha256"] {
            agreed[member] = bundle[member].clone();
        }
        start["bundle"] = agreed;
    }
    json!({ "start": start })
}

/// How many workers have their turn, by the answer to the start.
///
/// # Errors
/// `INVALID_OUTPUT`: the hub names no number, or more workers than a hub has.
fn worker_count(answer: &Value) -> Result<usize, CommandError> {
    let count = answer["workers"].as_u64();
    let count = count.and_then(|count| usize::try_from(count).ok());
    count
        .filter(|count| *count <= ROLLOUT_ROWS_MAX)
        .ok_or_else(no_rollout)
}

/// The rows of the workers in a rollout.
///
/// # Errors
/// `INVALID_OUTPUT`: there are more of them than a hub has workers.
fn worker_rows(rollout: &Value) -> Result<&[Value], CommandError> {
    let rows = rollout["workers"].as_array().map_or(&[][..], Vec::as_slice);
    match rows.len() <= ROLLOUT_ROWS_MAX {
        true => Ok(rows),
        false => Err(no_rollout()),
    }
}

fn no_rollout() -> CommandError {
    let text = format!("the hub does not name 0 to {ROLLOUT_ROWS_MAX} workers");
    CommandError::new(CommandExit::Failed, "INVALID_OUTPUT", text)
}

/// How long an update of so many workers may take, each of which has `limit` for the bundle, and again for the trial.
fn follow_time(workers: usize, limit: Duration) -> Duration {
    // The hub may update one worker after the other.
    let turns = u32::try_from(2 * workers).unwrap_or(u32::MAX);
    let time = limit.saturating_mul(turns).saturating_add(FOLLOW_MARGIN);
    time.min(FOLLOW_TIME_MAX)
}

async fn status_of(hub: &NodeCaller) -> Result<Value, CommandError> {
    let status = hub.call("hub/update_status", &Value::Null).await;
    Ok(status.map_err(call_error)?.value().clone())
}

async fn send(hub: &NodeCaller, pieces: &BundlePieces<'_>, json: bool) -> Result<(), CommandError> {
    let bytes = pieces.bytes();
    let begun = hub.call(UPDATE, &json!({ "bytes": bytes })).await;
    begun.map_err(call_error)?;
    let progress = ByteProgress::new("update", None, !json && io::stderr().is_terminal());
    let mut sending = UploadOffset::begin("hub", bytes);
    while !sending.is_end() {
        let offset = sending.value();
        let data = BASE64.encode(&pieces.at(offset, PIECE_BYTES_MAX).await?);
        let input = json!({ "offset": offset, "data": data });
        let answer = hub.call(UPDATE, &input).await.map_err(call_error)?;
        // A hub that names no higher offset, or each time one that is hardly higher, would let this command send for
        // ever.
        sending.take_answer(answer.value())?;
        progress.set(sending.value(), bytes);
    }
    Ok(())
}

/// Shows what becomes of each worker until the end, for at most so long. `ask` gets the status of the hub.
async fn follow(
    time: Duration,
    json: bool,
    ask: impl AsyncFn() -> Result<Value, CommandError>,
) -> Result<CommandExit, CommandError> {
    let until = Instant::now() + time;
    let mut seen = BTreeMap::new();
    loop {
        let status = ask().await?;
        let rollout = &status["rollout"];
        let rows = worker_rows(rollout)?;
        if !json {
            for line in changes(rows, &mut seen) {
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
                    ending(state, rows),
                )),
            };
        }
        if Instant::now() >= until {
            let text = format!(
                "the hub has not ended the update within {} s, which is longer than its workers may take",
                time.as_secs()
            );
            return Err(CommandError::new(CommandExit::Timeout, "TIMEOUT", text));
        }
        sleep(PAUSE).await;
    }
}

/// A line for each worker whose state is another one than in `seen`, which gets the states of these rows alone: a hub
/// may name other workers in each answer.
fn changes(rows: &[Value], seen: &mut BTreeMap<String, String>) -> Vec<String> {
    let before = std::mem::take(seen);
    let mut lines = Vec::new();
    for row in rows {
        let (peer, state) = (text(&row["peer"]), text(&row["state"]));
        let is_new = before.get(peer).is_none_or(|before| before != state) && state != "waits";
        if is_new {
            let reason = match text(&row["reason"]) {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            let name = text(&row["name"]);
            lines.push(format!("ring {}  {name}  {state}{reason}", row["ring"]));
        }
        seen.insert(peer.to_owned(), state.to_owned());
    }
    lines
}

/// Why a rollout ended before its end.
fn ending(state: &str, rows: &[Value]) -> String {
    let left = rows.iter().filter(|row| row["state"] == "waits").count();
    let failed = rows.iter().find(|row| row["state"] == "failed");
    match failed {
        Some(row) => format!(
            "{} failed: {}; {left} workers were left alone",
            text(&row["name"]),
            text(&row["reason"])
        ),
        None => format!("the update is {state}; {left} workers were left alone"),
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
        let rows = |second: &str| {
            [
                json!({ "peer": "p1", "name": "kitchen", "ring": 1, "state": "confirmed" }),
                json!({ "peer": "p2", "name": "hall", "ring": 2, "state": second, "reason": "it hung" }),
                json!({ "peer": "p3", "name": "attic", "ring": 2, "state": "waits" }),
            ]
        };
        let mut seen = BTreeMap::new();
        assert_eq!(
            changes(&rows("waits"), &mut seen),
            ["ring 1  kitchen  confirmed"]
        );
        assert_eq!(changes(&rows("waits"), &mut seen), [""; 0]);
        let failed = rows("failed");
        assert_eq!(
            changes(&failed, &mut seen),
            ["ring 2  hall  failed: it hung"]
        );
        assert_eq!(
            ending("failed", &failed),
            "hall failed: it hung; 1 workers were left alone"
        );
        assert_eq!(
            ending("stopped", &failed[..1]),
            "the update is stopped; 0 workers were left alone"
        );
    }

    /// The attack: a hub names other workers in each answer, or more of them than a hub has.
    #[test]
    fn only_the_workers_of_the_last_answer_are_kept() {
        let mut seen = BTreeMap::new();
        for n in 0..9 {
            let rows =
                [2 * n, 2 * n + 1].map(|n| json!({ "peer": n.to_string(), "state": "sending" }));
            assert_eq!(changes(&rows, &mut seen).len(), 2);
            assert_eq!(seen.len(), 2, "of the rows of this answer");
        }
        let rollout = |rows: usize| json!({ "workers": vec![json!({}); rows] });
        let most = rollout(ROLLOUT_ROWS_MAX);
        assert_eq!(worker_rows(&most).map(<[Value]>::len), Ok(ROLLOUT_ROWS_MAX));
        let more = rollout(ROLLOUT_ROWS_MAX + 1);
        let refused = worker_rows(&more).expect_err("too many");
        assert_eq!(refused.code, "INVALID_OUTPUT", "{refused}");
        let most = json!({ "workers": ROLLOUT_ROWS_MAX });
        assert_eq!(worker_count(&most), Ok(ROLLOUT_ROWS_MAX));
        for count in [
            json!(ROLLOUT_ROWS_MAX + 1),
            json!(u64::MAX),
            json!(-1),
            Value::Null,
        ] {
            let refused = worker_count(&json!({ "workers": count })).expect_err("no count");
            assert_eq!(refused.code, "INVALID_OUTPUT", "{count}");
        }
    }

    /// The attack: a hub says without an end that the update runs.
    #[tokio::test(start_paused = true)]
    async fn an_update_that_runs_for_longer_than_its_workers_may_take_is_left() {
        let time = follow_time(3, Duration::from_secs(60));
        assert_eq!(time, Duration::from_secs(360) + FOLLOW_MARGIN);
        let began = Instant::now();
        let left = follow(time, true, async || {
            Ok(json!({ "rollout": { "state": "running", "workers": [] } }))
        });
        let left = left.await.expect_err("it never ends");
        assert_eq!(left.exit, CommandExit::Timeout, "{left}");
        let took = began.elapsed();
        assert!(took >= time && took <= time + PAUSE, "{took:?}");

        let day = Duration::from_secs(86_400);
        assert_eq!(follow_time(ROLLOUT_ROWS_MAX, day), FOLLOW_TIME_MAX);
        assert_eq!(follow_time(0, day), FOLLOW_MARGIN);
    }
}
