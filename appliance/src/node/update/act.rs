//! `update/apply`, `update/confirm` and `update/rollback`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_init::control::{UpdateAnswer, UpdateRequest};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::read::other_kind;
use super::refusal::refused;
use super::session::StagingOutcome;
use super::{APPLY_SCOPE, NodeUpdates, OFFER_SCOPE, direct, for_scopes, may, owner};
use crate::node::ops::{caller, empty_input};

/// How far ahead a start may be asked for, in seconds: 30 days.
const AHEAD_S_MAX: i64 = 30 * 86_400;
/// How often the clock is read while a start waits: it may be set meanwhile.
const TICK: Duration = Duration::from_secs(10);

/// A start that waits for its moment. Dropping it forgets the start.
#[derive(Debug)]
pub(super) struct ScheduledStart {
    pub(super) at: Timestamp,
    task: AbortHandle,
}

impl Drop for ScheduledStart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UpdateApplyInput {
    at: Option<Timestamp>,
}

/// `update/apply`
pub(super) fn apply(updates: NodeUpdates) -> Registration {
    let spec = OperationSpec::mutation(
        "update/apply",
        "Puts the staged version on trial and restarts the machine, now or at a moment.",
    )
    .with_input(json!({
        "type": ["object", "null"], "additionalProperties": false,
        "properties": { "at": { "type": ["string", "null"], "format": "date-time",
            "description": "The moment, at most 30 days ahead. The node forgets it if it restarts before" } }
    }))
    .with_output(json!({
        "type": "object",
        "properties": { "restarts": { "const": true }, "scheduled": { "type": "string" } }
    }));
    let spec = for_scopes(spec, &[APPLY_SCOPE, OFFER_SCOPE]);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            updates.link_check()?;
            let input = match input.is_null() {
                true => UpdateApplyInput::default(),
                false => input.parse()?,
            };
            updates.may_apply(&ctx)?;
            let by = caller(&ctx);
            match input.at {
                None => {
                    updates.start(&by).await?;
                    Ok(json!({ "restarts": true }))
                }
                Some(at) => updates.start_at(at, by),
            }
        }
    });
    Registration::new(spec, handler)
}

/// `update/confirm`
pub(super) fn confirm(updates: NodeUpdates) -> Registration {
    let spec = OperationSpec::mutation(
        "update/confirm",
        "Confirms the version on trial without waiting for the health gate.",
    )
    .with_input(empty_input())
    .with_output(json!({ "type": "object", "properties": { "confirmed": { "const": true } } }));
    let spec = for_scopes(spec, &[APPLY_SCOPE]);
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            updates.wish(UpdateRequest::Confirm, &caller(&ctx)).await?;
            Ok::<_, CallError>(json!({ "confirmed": true }))
        }
    });
    Registration::new(spec, handler)
}

/// `update/rollback`
pub(super) fn rollback(updates: NodeUpdates) -> Registration {
    let spec = OperationSpec::mutation(
        "update/rollback",
        "Starts the version before the last update; takes back a version that was not started yet, and its moment; \
         or gives up the trial.",
    )
    .with_input(empty_input())
    .with_output(json!({ "type": "object", "properties": { "accepted": { "const": true } } }));
    let spec = for_scopes(spec, &[APPLY_SCOPE]);
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            updates.link_check()?;
            // A version that is taken back must not start at the moment that was set for it.
            drop(updates.scheduled().take());
            updates.wish(UpdateRequest::Rollback, &caller(&ctx)).await?;
            Ok::<_, CallError>(json!({ "accepted": true }))
        }
    });
    Registration::new(spec, handler)
}

impl NodeUpdates {
    /// Sends PID 1 a request that it answers with `Done`.
    async fn wish(&self, request: UpdateRequest, by: &str) -> Result<(), CallError> {
        match self.0.link.ask(request, by).await? {
            UpdateAnswer::Done => Ok(()),
            UpdateAnswer::Refused { code, text } => Err(refused(&code, &text)),
            UpdateAnswer::Log { .. } | UpdateAnswer::Planned { .. } => Err(other_kind()),
        }
    }

    /// Starts the version that waits.
    pub(super) async fn start(&self, by: &str) -> Result<(), CallError> {
        drop(self.scheduled().take());
        self.wish(UpdateRequest::Apply, by).await?;
        self.0.attempts.applied.fetch_add(1, Ordering::Relaxed);
        tracing::info!(by, "update.apply");
        Ok(())
    }

    /// A hub that may only offer starts what it has sent itself, and no version that an administrator staged.
    fn may_apply(&self, ctx: &Ctx) -> Result<(), CallError> {
        if may(ctx, APPLY_SCOPE) {
            return Ok(());
        }
        let who = owner(ctx)?;
        let ended = self.0.sessions.ended();
        let is_own = ended.is_some_and(|ended| {
            let is_staged = matches!(ended.outcome, StagingOutcome::Planned(_));
            is_staged && !ended.request.dry_run && ended.request.owner == who
        });
        match is_own {
            true => Ok(()),
            false => Err(CallError::new(
                ErrorCode::Forbidden,
                "you may start only a version that you have sent since this node started",
            )),
        }
    }

    fn start_at(&self, at: Timestamp, by: String) -> Result<Value, CallError> {
        let conflict = |code: &str, text: &str| {
            let details = json!({ "code": code, "text": text });
            CallError::new(ErrorCode::Conflict, text).with_details(details)
        };
        let now = self.now_s().ok_or_else(|| {
            conflict(
                "no-clock",
                "this machine does not know the time: start the version now, or set its clock",
            )
        })?;
        if self.0.facts.load().update.state != "staged" {
            return Err(conflict(
                "nothing-staged",
                "no version waits to be started: send one first",
            ));
        }
        if !(now..=now + AHEAD_S_MAX).contains(&at.as_second()) {
            let text = "the moment is in the past, or more than 30 days ahead";
            return Err(CallError::invalid_input(text));
        }
        let updates = self.clone();
        let task = tokio::spawn(async move { updates.wait_and_start(at, by).await });
        let scheduled = ScheduledStart {
            at,
            task: task.abort_handle(),
        };
        // One start at a time: a later wish takes the place of an earlier one.
        *self.scheduled() = Some(scheduled);
        Ok(json!({ "scheduled": at.to_string() }))
    }

    async fn wait_and_start(self, at: Timestamp, by: String) {
        // A clock that is lost meanwhile lets the moment wait: without the time nothing starts by itself.
        while self.now_s().is_none_or(|now| now < at.as_second()) {
            tokio::time::sleep(TICK).await;
        }
        // Not by `start`, which would abort this task.
        let started = self.wish(UpdateRequest::Apply, &by).await;
        match started {
            Ok(()) => {
                self.0.attempts.applied.fetch_add(1, Ordering::Relaxed);
                tracing::info!(by, "update.apply at its moment");
            }
            Err(error) => tracing::warn!(%error, by, "update.apply at its moment failed"),
        }
        // Dropping the entry aborts this task, which has nothing more to do.
        drop(self.scheduled().take());
    }
}
