//! Waits for a node that restarts, until it has decided about a version.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::STATUS;
use crate::cli::call::call_error;
use crate::cli::dial::CliDialer;
use crate::cli::query::text;
use crate::cli::status::trial_progress;
use crate::cli::target::NodeRoute;
use crate::cli::{CommandError, CommandExit, output};

/// How often the node is asked.
const PAUSE: Duration = Duration::from_secs(3);

/// What a status says of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TrialView {
    /// The version is confirmed.
    Confirmed,
    /// The machine is back on another version, for this reason.
    Returned(String),
    /// It is not decided. What it waits for, for a person.
    Waits(String),
}

/// What a status of the node says of the version that it was to start.
pub(super) fn view(status: &Value, version: &str) -> TrialView {
    let running = text(&status["version"]);
    match text(&status["state"]) {
        "pending" | "staged" => TrialView::Waits("the machine has not restarted yet".to_owned()),
        "trial" => {
            let gate = status["gate"].as_array().into_iter().flatten();
            let gate: Vec<_> = gate.filter_map(Value::as_str).collect();
            TrialView::Waits(format!(
                "{running} is on trial; it waits for {}",
                gate.join(", ")
            ))
        }
        // Without the record it is not known whether the version that runs is on trial.
        "unreadable" => TrialView::Waits(format!("{running} runs; {}", text(&status["detail"]))),
        _ if running == version => TrialView::Confirmed,
        _ => {
            let last = &status["last"];
            let why = match (last["version"] == version, text(&last["reason"])) {
                (false, _) | (true, "") => "it does not say why".to_owned(),
                (true, reason) => match trial_progress(last) {
                    Some(progress) => format!("{progress}: {reason}"),
                    None => reason.to_owned(),
                },
            };
            TrialView::Returned(format!(
                "it runs {running} again, because {version} failed: {why}"
            ))
        }
    }
}

/// Waits until the node has confirmed the version.
pub(super) async fn confirmed(
    dialer: &CliDialer,
    route: &NodeRoute,
    version: &str,
    limit: Duration,
    json: bool,
) -> Result<(), CommandError> {
    let done = |status: &Value| match view(status, version) {
        TrialView::Confirmed => Some(Ok(())),
        TrialView::Returned(why) => Some(Err(CommandError::new(
            CommandExit::Failed,
            "UPDATE_FAILED",
            format!("{}: {why}", route.as_argument()),
        ))),
        TrialView::Waits(_) => None,
    };
    wait(dialer, route, limit, json, done, |status| {
        match view(status, version) {
            TrialView::Waits(what) => what,
            TrialView::Confirmed | TrialView::Returned(_) => String::new(),
        }
    })
    .await
}

/// The version that a rollback returns to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReturnTo<'v> {
    /// This one.
    Version(&'v str),
    /// One whose number the node could not read, and not this one, which ran before.
    OtherThan(&'v str),
}

impl ReturnTo<'_> {
    /// Whether a status says that the machine runs it, and that no trial is left.
    pub(super) fn is_reached(self, status: &Value) -> bool {
        let is_open = ["pending", "staged", "trial", "unreadable"];
        let is_version = match self {
            Self::Version(version) => status["version"] == version,
            Self::OtherThan(version) => status["version"] != version,
        };
        is_version && !is_open.contains(&text(&status["state"]))
    }
}

/// Waits until the node runs this version after a rollback.
pub(super) async fn returned(
    dialer: &CliDialer,
    route: &NodeRoute,
    wanted: ReturnTo<'_>,
    limit: Duration,
    json: bool,
) -> Result<(), CommandError> {
    let is_there = |status: &Value| wanted.is_reached(status).then_some(Ok(()));
    wait(dialer, route, limit, json, is_there, |status| {
        format!(
            "{} runs; state {}",
            text(&status["version"]),
            text(&status["state"])
        )
    })
    .await
}

/// Asks until `done` has an answer. A node that restarts does not answer for a while.
async fn wait(
    dialer: &CliDialer,
    route: &NodeRoute,
    limit: Duration,
    json: bool,
    done: impl Fn(&Value) -> Option<Result<(), CommandError>>,
    shown: impl Fn(&Value) -> String,
) -> Result<(), CommandError> {
    let until = Instant::now() + limit;
    let mut said = "the machine restarts".to_owned();
    if !json {
        output::note(&said);
    }
    loop {
        sleep(PAUSE).await;
        let status = dialer
            .reached(route, async |node| {
                node.call(STATUS, &Value::Null).await.map_err(call_error)
            })
            .await;
        if let Ok(status) = &status {
            if let Some(done) = done(status.value()) {
                return done;
            }
            let now = shown(status.value());
            if now != said && !json {
                output::note(&output::one_line(&now));
            }
            said = now;
        }
        if Instant::now() >= until {
            let text = format!(
                "{} has not decided about the version within {} s; the last thing known: {said}",
                route.as_argument(),
                limit.as_secs()
            );
            return Err(CommandError::new(CommandExit::Timeout, "TIMEOUT", text));
        }
    }
}
