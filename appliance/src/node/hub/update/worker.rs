//! The update of one worker by its hub: offer, send, start, wait for the confirmation.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_core::{BoxFuture, PeerId};
use alknet_update::AgreedFloor;
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::bundle::{HubBundle, piece_of};
use super::rollout::RolloutTurn;
use crate::update_plan::agreed_floor;

/// How often a worker is offered the bundle again that its PID 1 gave up for a person at its console.
pub(super) const OFFERS_AGAIN_MAX: usize = 4;

/// Calls operations of workers.
pub(super) trait WorkerCaller: Send + Sync {
    /// Calls an operation of a worker.
    fn call<'a>(
        &'a self,
        worker: &'a PeerId,
        operation: &'a str,
        input: Value,
    ) -> BoxFuture<'a, Result<Value, CallError>>;
}

/// What is done with each worker. Clones share `calls`.
#[derive(Clone)]
pub(super) struct WorkerUpdate {
    pub(super) calls: Arc<dyn WorkerCaller>,
    pub(super) bundle: HubBundle,
    pub(super) path: PathBuf,
    pub(super) limit: Duration,
    pub(super) poll: Duration,
}

/// How a worker's turn ended.
type TurnEnd = (RolloutTurn, String);

/// What the worker said of the bundle once it had all of it.
struct SentBundle {
    version: String,
    /// SHA-256 of the program, or `null`.
    sha256: Value,
    /// The floor of the hub's own bundle, if the worker takes the agreement to one.
    agreed_floor: Option<AgreedFloor>,
    needs_person: Option<String>,
}

impl WorkerUpdate {
    /// Updates a worker. `note` gets each state but the last.
    pub(super) async fn run(&self, worker: &PeerId, note: impl Fn(RolloutTurn)) -> TurnEnd {
        note(RolloutTurn::Sending);
        let until = Instant::now() + self.limit;
        let sent = timeout_at(until, self.send(worker, until));
        let sent = match sent.await {
            Ok(Ok(sent)) => sent,
            Ok(Err(end)) => return end,
            Err(_) => return self.late("it did not take the bundle"),
        };
        if let Some(what) = &sent.needs_person {
            let reason = format!("its start needs a person at the machine: {what}");
            return (RolloutTurn::WaitsForPerson, reason);
        }
        note(RolloutTurn::Starting);
        // A slow transfer takes nothing from the time of the trial.
        let until = Instant::now() + self.limit;
        let started = timeout_at(until, async {
            // Another caller may have staged another version there since.
            let mut input = json!({ "sha256": sent.sha256 });
            // A worker of an earlier version refuses a member that it does not know.
            if let Some(floor) = &sent.agreed_floor {
                input["agreed_floor"] = json!(floor);
            }
            // The worker restarts, and its answer may be lost on the way.
            match self.calls.call(worker, "update/apply", input).await {
                // The slots of its vault have changed since it answered with the plan.
                Err(error) if has_code(&error, "needs-person") => {
                    (RolloutTurn::WaitsForPerson, text(&error.message.into()))
                }
                Err(error) if has_code(&error, "outside-window") => {
                    (RolloutTurn::WaitsForWindow, text(&error.message.into()))
                }
                Err(error) if !is_lost(&error) => failed(&error),
                _ => self.wait(worker, &sent.version, until).await,
            }
        });
        let end = started.await;
        end.unwrap_or_else(|_| self.late("it did not come back confirmed"))
    }

    /// A worker that is too slow. It must not hold the update up.
    fn late(&self, what: &str) -> TurnEnd {
        lost(format!("{what} within {} s", self.limit.as_secs()))
    }

    async fn offer(&self, worker: &PeerId) -> Result<String, TurnEnd> {
        let offer = json!({ "version": self.bundle.version, "bytes": self.bundle.bytes });
        let answer = loop {
            match self.calls.call(worker, "update/offer", offer.clone()).await {
                // Another caller of the worker sends it a bundle, which ends.
                Err(error) if has_code(&error, "busy") => sleep(self.poll).await,
                answer => break answer,
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if is_not_permitted(&error) => {
                let reason =
                    "it does not let this hub offer updates: [[join]] update is not true there";
                return Err((RolloutTurn::Skipped, reason.to_owned()));
            }
            Err(error) if has_no_slots(&error) => {
                return Err((RolloutTurn::Skipped, text(&error.message.into())));
            }
            Err(error) => return Err(failed(&error)),
        };
        if answer["wanted"] != true {
            let reason = text(&answer["reason"]);
            return Err((RolloutTurn::Skipped, reason));
        }
        Ok(text(&answer["session"]))
    }

    /// Offers the bundle, and sends it piece by piece. A worker that is away for a while gets the rest when it is back, and
    /// one whose PID 1 gives the bundle up for a person at its console gets another offer. It could ask for the bundle
    /// without an end in this way, so there are only so many.
    async fn send(&self, worker: &PeerId, until: Instant) -> Result<SentBundle, TurnEnd> {
        let mut session = self.offer(worker).await?;
        let (mut offset, mut offers_left) = (0, OFFERS_AGAIN_MAX);
        loop {
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || piece_of(&path, offset)).await;
            let piece = match read {
                Ok(Ok(piece)) => piece,
                Ok(Err(error)) => {
                    return Err(lost(format!("the hub cannot read the bundle: {error}")));
                }
                Err(error) => return Err(lost(error.to_string())),
            };
            let input =
                json!({ "session": session, "offset": offset, "data": BASE64.encode(&piece) });
            match self.calls.call(worker, "update/write", input).await {
                Ok(answer) if answer["plan"].is_object() => {
                    let plan = &answer["plan"];
                    return Ok(SentBundle {
                        version: text(&plan["to"]),
                        sha256: plan["sha256"].clone(),
                        agreed_floor: plan["agreed_floor"]
                            .is_string()
                            .then(|| agreed_floor(plan["bundle_floor"].as_str())),
                        needs_person: plan["needs_person"].as_str().map(str::to_owned),
                    });
                }
                Ok(answer) => {
                    let next = answer["offset"].as_u64().filter(|next| *next > offset);
                    offset =
                        next.ok_or_else(|| lost("it takes no more of the bundle".to_owned()))?;
                }
                Err(error) if has_code(&error, "aborted") && offers_left > 0 => {
                    offers_left -= 1;
                    sleep(self.poll).await;
                    session = self.offer(worker).await?;
                    offset = 0;
                }
                Err(error) => {
                    let right = error.details.as_ref().and_then(|it| it["offset"].as_u64());
                    offset = match right {
                        // The worker took a piece whose answer was lost, and names where the next one begins.
                        Some(right) if right != offset && right < self.bundle.bytes => right,
                        _ if is_lost(&error) && Instant::now() < until => {
                            sleep(self.poll).await;
                            offset
                        }
                        _ => return Err(failed(&error)),
                    };
                }
            }
        }
    }

    /// Waits until the worker has confirmed the version, or runs another one again.
    async fn wait(&self, worker: &PeerId, version: &str, until: Instant) -> TurnEnd {
        loop {
            let status = self.calls.call(worker, "update/status", json!({})).await;
            // An error is no end: the worker is away while it restarts.
            if let Ok(status) = status
                && let Some(end) = judged(&status, version)
            {
                return end;
            }
            if Instant::now() >= until {
                return self.late("it did not come back confirmed");
            }
            sleep(self.poll).await;
        }
    }
}

/// What the status of a worker says of the version. `None`: nothing yet.
fn judged(status: &Value, version: &str) -> Option<TurnEnd> {
    let state = status["state"].as_str().unwrap_or_default();
    // The worker has not decided, or cannot say. What it says of the last update may be about an earlier one.
    if matches!(state, "staged" | "pending" | "trial" | "unreadable") {
        return None;
    }
    let last = &status["last"];
    let is_of_version = last["version"] == version;
    if is_of_version && last["outcome"] != "confirmed" {
        let stage = text(&last["stage"]);
        let reason = format!(
            "{version} failed after '{stage}': {}",
            text(&last["reason"])
        );
        return Some(lost(reason));
    }
    (status["version"] == version).then(|| (RolloutTurn::Confirmed, String::new()))
}

fn lost(reason: String) -> TurnEnd {
    (RolloutTurn::Failed, reason)
}

fn failed(error: &CallError) -> TurnEnd {
    lost(error.to_string())
}

/// Whether the worker was not reached, or its answer was lost.
fn is_lost(error: &CallError) -> bool {
    matches!(
        error.code,
        ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::Overloaded
    )
}

/// Whether the worker is a host, or a machine whose form has no boot slots.
fn has_no_slots(error: &CallError) -> bool {
    has_code(error, "host") || has_code(error, "no-slots")
}

/// Whether the worker refused with this code.
fn has_code(error: &CallError, code: &str) -> bool {
    let details = error.details.as_ref();
    details.and_then(|it| it["code"].as_str()) == Some(code)
}

/// Whether the worker does not serve the operation to its hub.
fn is_not_permitted(error: &CallError) -> bool {
    matches!(
        error.code,
        ErrorCode::Forbidden | ErrorCode::NotFound | ErrorCode::Unauthenticated
    )
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_default()
        .chars()
        .take(500)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A worker that has just restarted runs the version, and does not know yet that it is on trial.
    #[test]
    fn a_worker_that_cannot_say_has_not_confirmed() {
        for state in ["staged", "pending", "trial", "unreadable"] {
            let status = json!({ "state": state, "version": "1.1.0", "last": null });
            assert!(judged(&status, "1.1.0").is_none(), "{state}");
        }
        let status = json!({ "state": "good", "version": "1.1.0", "last": null });
        let (state, _) = judged(&status, "1.1.0").expect("decided");
        assert_eq!(state, RolloutTurn::Confirmed);
    }
}
