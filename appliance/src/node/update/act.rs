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
use super::schedule::next_start;
use super::{
    ADMIN_SCOPE, APPLY_SCOPE, NodeUpdates, OFFER_SCOPE, direct, for_scopes, from_hub_itself, may,
    owner,
};
use crate::node::ops::{caller, empty_input};

/// How far ahead a start may be asked for, in seconds: 30 days.
const AHEAD_S_MAX: i64 = 30 * 86_400;
/// Characters of a SHA-256 in hex.
const SHA256_CHARS: usize = 64;
/// How often the clock is read while a start waits: it may be set meanwhile.
const TICK: Duration = Duration::from_secs(10);

/// A start that waits for its moment. Dropping it forgets the start.
#[derive(Debug)]
pub(super) struct ScheduledStart {
    at: Timestamp,
    /// SHA-256 of the program that it is for, in hex.
    sha256: String,
    by: String,
    /// Whether the caller that set it is no administrator.
    limited: bool,
    task: AbortHandle,
}

impl Drop for ScheduledStart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The start that a caller may have.
pub(super) struct StartOrder {
    /// SHA-256 of the program that has to be staged, in hex; `None` for whatever is staged.
    pub(super) sha256: Option<String>,
    /// Whether PID 1 counts the start.
    pub(super) limited: bool,
    /// Whether no administrator asks for it, but the machine itself or a hub.
    pub(super) unasked: bool,
}

impl StartOrder {
    fn request(self) -> UpdateRequest {
        let Self {
            sha256,
            limited,
            unasked,
        } = self;
        UpdateRequest::Apply {
            sha256,
            limited,
            unasked,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UpdateApplyInput {
    at: Option<Timestamp>,
    sha256: Option<String>,
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
            "description": "The moment, at most 30 days ahead, for update:apply. It is for the program that is staged now; \
                            the node forgets it if another one is staged, or if it restarts before" },
            "sha256": { "type": ["string", "null"], "maxLength": SHA256_CHARS,
            "description": "Of the program that has to be staged, as its plan has it" } }
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
            if !may(&ctx, APPLY_SCOPE) {
                from_hub_itself(&ctx)?;
            }
            updates.check_init()?;
            let input = match input.is_null() {
                true => UpdateApplyInput::default(),
                false => input.parse()?,
            };
            let order = updates.startable(&ctx, &input)?;
            let by = caller(&ctx);
            match input.at {
                None => {
                    updates.start(&by, order).await?;
                    Ok(json!({ "restarts": true }))
                }
                Some(at) => updates.start_at(at, order, by),
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
            updates
                .send_request(UpdateRequest::Confirm, &caller(&ctx))
                .await?;
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
            updates.check_init()?;
            let limited = is_limited(&ctx);
            let request = UpdateRequest::Rollback { limited };
            updates.send_request(request, &caller(&ctx)).await?;
            // A version that is taken back must not start at the moment that was set for it. Only now: a rollback that
            // PID 1 refused takes no moment away.
            drop(updates.scheduled().take());
            updates.0.sessions.forget_staged();
            Ok::<_, CallError>(json!({ "accepted": true }))
        }
    });
    Registration::new(spec, handler)
}

/// Whether PID 1 counts the caller's starts. An administrator is not to be kept out by those of others.
fn is_limited(ctx: &Ctx) -> bool {
    !may(ctx, ADMIN_SCOPE)
}

impl NodeUpdates {
    /// Sends PID 1 a request that it answers with `Done`.
    async fn send_request(&self, request: UpdateRequest, by: &str) -> Result<(), CallError> {
        match self.0.init.ask(request, by).await? {
            UpdateAnswer::Done => Ok(()),
            UpdateAnswer::Refused { code, text } => Err(refused(&code, &text)),
            UpdateAnswer::Log { .. } | UpdateAnswer::Planned { .. } => Err(other_kind()),
        }
    }

    /// Starts the version that waits, if it is the program with this SHA-256.
    pub(super) async fn start(&self, by: &str, order: StartOrder) -> Result<(), CallError> {
        self.send_request(order.request(), by).await?;
        // Only now: a start that PID 1 refused takes no moment away.
        drop(self.scheduled().take());
        self.0.attempts.applied.fetch_add(1, Ordering::Relaxed);
        tracing::info!(by, "update.apply");
        Ok(())
    }

    /// The start that the caller may have. A hub that may only offer starts what it has sent itself, at once and within the
    /// window, and no version that an administrator staged. PID 1 refuses such a start if it needs a person at the
    /// machine.
    fn startable(&self, ctx: &Ctx, input: &UpdateApplyInput) -> Result<StartOrder, CallError> {
        let order = |sha256, unasked| StartOrder {
            sha256,
            limited: is_limited(ctx),
            unasked,
        };
        if may(ctx, APPLY_SCOPE) {
            return Ok(order(input.sha256.clone(), false));
        }
        let forbidden = |text: &str| Err(CallError::new(ErrorCode::Forbidden, text));
        if input.at.is_some() {
            return forbidden("a moment for the start needs the scope update:apply");
        }
        let who = owner(ctx)?;
        let staged = self.0.sessions.staged();
        let is_own = self
            .0
            .sessions
            .staged_by()
            .is_some_and(|request| request.owner == who);
        match staged.filter(|_| is_own) {
            Some(plan) => {
                self.within_window()?;
                Ok(order(Some(plan.sha256), true))
            }
            None => {
                forbidden("you may start only a version that you have sent since this node started")
            }
        }
    }

    /// Refuses a start outside of the window of the configuration. The delay of this machine within the window does not
    /// count: a hub starts one worker after the other.
    fn within_window(&self) -> Result<(), CallError> {
        let Some(window) = self.0.reloader.current().config.update.window else {
            return Ok(());
        };
        let opens = match self.now_s() {
            Some(now) => match next_start(now, Some(window), 0) {
                at if at <= now => return Ok(()),
                at => Timestamp::from_second(at).ok(),
            },
            None => None,
        };
        let opens = opens.map_or_else(
            || "it does not know the time".to_owned(),
            |at| format!("the next one begins at {at}"),
        );
        let text = format!("a hub starts a version here only in the window {window}: {opens}");
        Err(refused("outside-window", &text))
    }

    /// SHA-256 of the program that is staged.
    fn staged_sha256(&self) -> Option<String> {
        let facts = self.0.facts.load();
        // PID 1 needs a moment to read its disk for the facts, so what this node staged itself counts first.
        let known = self.0.sessions.staged().map(|plan| plan.sha256);
        let is_staged = facts.update.state == "staged";
        known.or_else(|| facts.update.other_sha256.clone().filter(|_| is_staged))
    }

    /// The moment at which the staged version starts.
    pub(super) fn start_moment(&self) -> Option<Timestamp> {
        let staged = self.staged_sha256();
        let scheduled = self.scheduled();
        let scheduled = scheduled.as_ref();
        let valid = scheduled.filter(|it| staged.as_ref() == Some(&it.sha256));
        valid.map(|it| it.at)
    }

    /// Forgets a moment that is for another program than this one, which is staged now.
    pub(super) fn forget_start_of_others(&self, sha256: &str) {
        let other = self.scheduled().take_if(|it| it.sha256 != sha256);
        if let Some(other) = other {
            tracing::info!(at = %other.at, "the moment of a start is forgotten: another version is staged");
        }
    }

    fn start_at(&self, at: Timestamp, order: StartOrder, by: String) -> Result<Value, CallError> {
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
        let staged = self.staged_sha256().ok_or_else(|| {
            let text = "no version waits to be started: send one first";
            conflict("not-staged", text)
        })?;
        if order.sha256.is_some_and(|wanted| wanted != staged) {
            let text = "another version is staged than the one that is to start";
            return Err(conflict("other-staged", text));
        }
        if !(now..=now + AHEAD_S_MAX).contains(&at.as_second()) {
            let text = "the moment is in the past, or more than 30 days ahead";
            return Err(CallError::invalid_input(text));
        }
        let mut scheduled = self.scheduled();
        // One start at a time: a later order takes the place of an earlier one. Of an administrator's only if it is one, too:
        // an update that an administrator has planned must not wait for another month.
        let before = scheduled.as_ref().filter(|it| it.sha256 == staged);
        if let Some(before) = before {
            if order.limited && !before.limited {
                let text = format!(
                    "an administrator ({}) has set the start to {}: only an administrator changes it",
                    before.by, before.at
                );
                return Err(conflict("scheduled", &text));
            }
            tracing::info!(by, %at, before = %before.at, set_by = before.by, "update.apply moves a start");
        }
        let updates = self.clone();
        let order = StartOrder {
            sha256: Some(staged.clone()),
            ..order
        };
        let limited = order.limited;
        let setter = by.clone();
        let task =
            tokio::spawn(async move { updates.wait_and_start(at, order.request(), by).await });
        *scheduled = Some(ScheduledStart {
            at,
            sha256: staged,
            by: setter,
            limited,
            task: task.abort_handle(),
        });
        Ok(json!({ "scheduled": at.to_string() }))
    }

    async fn wait_and_start(self, at: Timestamp, request: UpdateRequest, by: String) {
        // A clock that is lost meanwhile lets the moment wait: without the time nothing starts by itself.
        while self.now_s().is_none_or(|now| now < at.as_second()) {
            tokio::time::sleep(TICK).await;
        }
        // Not by `start`, which would abort this task. PID 1 compares the program once more.
        let started = self.send_request(request, &by).await;
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
