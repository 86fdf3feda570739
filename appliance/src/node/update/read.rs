//! `update/status`, `update/check` and `update/log`.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_init::control::{UpdateAnswer, UpdateFacts, UpdateRequest};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::download::planned;
use super::init_client::UpdateClientError;
use super::refusal::UNANSWERED;
use super::scheduled_start::ScheduledStart;
use super::session::{EndedStaging, StagingError, StagingOutcome, StagingSession};
use super::stage::{DownloadOrigin, DownloadRequest, STAGE_TIMEOUT_MS};
use super::{
    NodeUpdates, READ_SCOPE, STAGE_SCOPE, direct, for_scopes, may, owner, plan_schema,
    waiting_plan_schema,
};
use crate::node::ops::{caller, empty_input};
use crate::update_plan::{shown_plan, waiting_plan};

/// Why PID 1 does not say how the boot slots stand in the first moments of a machine.
const NOT_READ_YET: &str = "the machine has not read its boot slots yet";

/// How often callers that may only read can have the channel checked.
const CHECK_PERIOD: Duration = Duration::from_secs(60);

/// A check of the channel.
pub(super) struct LastCheck {
    began: Instant,
    answer: Option<Result<Value, CallError>>,
}

/// `update/status`
pub(super) fn status(updates: NodeUpdates) -> Registration {
    let text = json!({ "type": ["string", "null"] });
    let spec = OperationSpec::query(
        "update/status",
        "Returns the boot slots, the update under way, and how the last one ended.",
    )
    .with_input(empty_input())
    .with_output(json!({
        "type": "object",
        "required": ["state", "version", "session", "ended", "plan", "auto", "scheduled"],
        "properties": {
            "state": { "enum": ["idle", "staged", "pending", "trial", "good", "failed", "absent", "unreadable"] },
            "detail": text, "version": { "type": "string" }, "slot": text, "good": text, "other_version": text,
            "other_sha256": text,
            "other_floor": { "type": ["string", "null"],
                "description": "The floor after the confirmation of the version in the other slot, if that raises it" },
            "tries": { "type": "integer" }, "floor": text, "keys": { "type": "string" },
            "foreign_files": { "type": ["object", "null"],
                "description": "Files on the boot partition that are not the machine's. null: the partition was not read",
                "properties": { "files": { "type": "integer" }, "bytes": { "type": "integer" } } },
            "gate": { "type": "array", "items": { "type": "string" } },
            "last": { "type": ["object", "null"], "description": "How the last update ended" },
            "left": { "type": "array", "items": { "type": "string" },
                      "description": "Versions that the machine does not install by itself any more" },
            "session": { "type": ["object", "null"], "description": "The bundle that is being sent",
                "properties": { "session": { "type": "string" }, "offset": { "type": "integer" },
                                "bytes": { "type": "integer" },
                                "written": { "type": "integer", "description": "Bytes of the program that PID 1 has written" },
                                "program_bytes": { "type": "integer" } } },
            "ended": { "type": ["object", "null"], "description": "How the last bundle that was sent ended" },
            "plan": waiting_plan_schema(),
            "scheduled": text,
            "not_started": { "type": ["object", "null"],
                "description": "The planned start that does not happen, with the version that it was for and the reason",
                "properties": { "version": { "type": "string" }, "at": { "type": "string" },
                                "by": { "type": "string" }, "reason": { "type": "string" } } },
            "auto": { "type": "object" },
        }
    }));
    let spec = for_scopes(spec, &[READ_SCOPE]);
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let answer = updates.check_init().map(|()| updates.shown(&ctx));
        std::future::ready(answer)
    });
    Registration::new(spec, handler)
}

/// `update/check`
pub(super) fn check(updates: NodeUpdates) -> Registration {
    let mut spec = OperationSpec::mutation(
        "update/check",
        "Asks the channel of the configuration what it has, and says what an update would do. Changes nothing.",
    )
    .with_input(empty_input())
    .with_output(json!({
        "type": "object",
        "required": ["channel", "url", "bytes", "plan"],
        "properties": {
            "channel": { "type": "string" }, "url": { "type": "string" },
            "bytes": { "type": "integer", "description": "Bytes of the bundle" },
            "plan": plan_schema(),
        }
    }));
    spec.default_timeout_ms = Some(STAGE_TIMEOUT_MS);
    let spec = for_scopes(spec, &[READ_SCOPE, STAGE_SCOPE]);
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            let (owner, by) = (owner(&ctx)?, caller(&ctx));
            match may(&ctx, STAGE_SCOPE) {
                true => updates.checked(owner, by).await,
                false => updates.checked_lately(owner, by).await,
            }
        }
    });
    Registration::new(spec, handler)
}

/// `update/log`
pub(super) fn log(updates: NodeUpdates) -> Registration {
    let text = json!({ "type": "string" });
    let spec = OperationSpec::query("update/log", "Returns what updates did, the oldest first.")
        .with_input(empty_input())
        .with_output(json!({
            "type": "object",
            "required": ["records"],
            "properties": { "records": { "type": "array", "items": { "type": "object",
                "required": ["time", "event", "version", "by", "reason"],
                "properties": { "time": { "type": ["string", "null"] }, "event": text, "version": text,
                                "by": text, "reason": text,
                                "limited": { "const": true, "description": "The caller may not start versions" } } } } }
        }));
    let spec = for_scopes(spec, &[READ_SCOPE]);
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            match updates.ask_log(&caller(&ctx)).await? {
                UpdateAnswer::Log { records } => Ok(json!({ "records": records })),
                UpdateAnswer::Refused { code, text } => Err(super::refusal::refused(&code, &text)),
                UpdateAnswer::Done | UpdateAnswer::Planned { .. } => Err(other_kind()),
            }
        }
    });
    Registration::new(spec, handler)
}

/// PID 1 gave an answer that is not one to the request.
pub(super) fn other_kind() -> CallError {
    CallError::internal("PID 1 gave an answer of another kind")
}

impl NodeUpdates {
    /// Asks PID 1 for the log of updates. PID 1 answers one such question at a time and refuses a second one, so each caller
    /// waits here for its turn: those that ask for the log again and again must not keep it from the machine itself.
    pub(super) async fn ask_log(&self, by: &str) -> Result<UpdateAnswer, UpdateClientError> {
        let turn = Arc::clone(&self.0.log_turn).lock_owned().await;
        let (init, by) = (self.0.init.clone(), by.to_owned());
        // A task of its own: if the caller goes away, PID 1 still answers before the next question.
        let asked = tokio::spawn(async move {
            let answer = init.ask(UpdateRequest::Log, &by).await;
            drop(turn);
            answer
        });
        asked.await.unwrap_or(Err(UpdateClientError::Broken))
    }

    /// Whether there is a PID 1 that does updates.
    pub(super) fn check_init(&self) -> Result<(), CallError> {
        Ok(self.0.init.check()?)
    }

    /// The answer to `update/status`.
    fn shown(&self, ctx: &Ctx) -> Value {
        let facts = self.0.facts.load();
        let mut answer = facts_shown(&facts.update);
        let noted = self.noted_left().into_iter();
        let noted = noted.filter(|version| !facts.update.left.contains(version));
        let left: Vec<_> = facts.update.left.iter().cloned().chain(noted).collect();
        answer["left"] = json!(left);
        let who = owner(ctx).unwrap_or_default();
        let session = self.0.sessions.current();
        answer["session"] = session.map_or(Value::Null, |it| {
            session_shown(&it, &who, facts.update.writing)
        });
        let ended = self.0.sessions.ended();
        answer["ended"] = ended.map_or(Value::Null, |it| ended_shown(&it));
        let staged = self.0.sessions.staged();
        let staged = staged.map_or(Value::Null, |plan| shown_plan(&plan));
        answer["plan"] = json!(waiting_plan(&answer, staged));
        answer["scheduled"] = json!(self.start_moment().map(|at| at.to_string()));
        let not_started = self.failed_start();
        answer["not_started"] = not_started.map_or(Value::Null, |start| not_started_shown(&start));
        answer["auto"] = self.auto_shown();
        answer
    }

    /// Like [`checked`](Self::checked), for a caller that may only read: within [`CHECK_PERIOD`] all such callers get
    /// one answer. Each check has the one session, downloads, and makes PID 1 verify.
    async fn checked_lately(&self, owner: String, by: String) -> Result<Value, CallError> {
        let mut last = self.0.check.lock().await;
        if let Some(last) = last.as_ref().filter(|it| it.began.elapsed() < CHECK_PERIOD) {
            let answer = last.answer.clone();
            // Its caller left before there was an answer.
            return answer.unwrap_or_else(|| Err(StagingError::Busy.into()));
        }
        let began = Instant::now();
        *last = Some(LastCheck {
            began,
            answer: None,
        });
        let answer = self.checked(owner, by).await;
        *last = Some(LastCheck {
            began,
            answer: Some(answer.clone()),
        });
        answer
    }

    /// Asks the channel, and PID 1 about what it has.
    pub(super) async fn checked(&self, owner: String, by: String) -> Result<Value, CallError> {
        let request = DownloadRequest {
            owner,
            by,
            origin: DownloadOrigin::Channel(None),
            downgrade: None,
            dry_run: true,
            // A delta may be left of an earlier release.
            whole: true,
            anywhere: true,
            unasked: false,
            // Of the channel of the configuration all callers may ask.
            limited: false,
            take_over: false,
        };
        let begun = self.fetch(request).await?;
        let plan = planned(self.0.sessions.outcome(begun.session).await)?;
        let config = self.0.reloader.current();
        Ok(json!({
            "channel": config.config.update.channel.name(),
            "url": begun.url,
            "bytes": begun.bytes,
            "plan": shown_plan(&plan),
        }))
    }
}

/// The facts of PID 1, under the names that they have there. At a start PID 1 reads the boot slots beside the node's start.
fn facts_shown(facts: &UpdateFacts) -> Value {
    let (state, detail) = match facts.state.as_str() {
        "" => ("unreadable", Some(NOT_READ_YET)),
        state => (state, facts.detail.as_deref()),
    };
    json!({
        "state": state,
        "detail": detail,
        "version": facts.version,
        "slot": facts.slot,
        "good": facts.good,
        "other_version": facts.other_version,
        "other_sha256": facts.other_sha256,
        "other_floor": facts.other_floor,
        "tries": facts.tries,
        "floor": facts.floor,
        "foreign_files": facts.foreign_files,
        "keys": facts.keys,
        "gate": facts.gate,
        "last": facts.last,
        "left": facts.left,
    })
}

/// A session. Only its owner can send pieces, so only the owner gets its name.
/// While PID 1 applies a delta, `writing` alone says how far it is.
fn session_shown(session: &StagingSession, who: &str, writing: Option<(u64, u64)>) -> Value {
    let request = &session.request;
    let mut shown = json!({
        "offset": session.offset(),
        "bytes": request.bytes,
        "by": request.by,
        "source": request.source,
        "dry_run": request.dry_run,
    });
    if request.owner == who {
        shown["session"] = session.id.clone().into();
    }
    if let Some((written, program_bytes)) = writing {
        shown["written"] = written.into();
        shown["program_bytes"] = program_bytes.into();
    }
    shown
}

fn ended_shown(ended: &EndedStaging) -> Value {
    let mut shown = json!({
        "session": ended.id,
        "by": ended.request.by,
        "source": ended.request.source,
        "bytes": ended.request.bytes,
        "dry_run": ended.request.dry_run,
    });
    match &ended.outcome {
        StagingOutcome::Planned(plan) => shown["plan"] = shown_plan(plan),
        StagingOutcome::Refused { code, text } => {
            shown["error"] = json!({ "code": code, "text": text });
        }
        StagingOutcome::GivenUp(why) => {
            shown["error"] = json!({ "code": "given-up", "text": why });
        }
        StagingOutcome::Unanswered(why) => {
            shown["error"] = json!({ "code": UNANSWERED, "text": why });
        }
    }
    shown
}

/// A planned start that does not happen.
fn not_started_shown(start: &ScheduledStart) -> Value {
    json!({
        "version": start.version,
        "at": start.at.to_string(),
        "by": start.by,
        "reason": start.failure,
    })
}

/// No channel is configured.
pub(super) fn no_channel() -> CallError {
    let text = "the configuration of this node names no channel: add update.url, or send the bundle itself";
    CallError::new(ErrorCode::Conflict, text)
        .with_details(json!({ "code": "no-channel", "text": text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema of the answer has no empty state.
    #[test]
    fn slots_that_were_not_read_yet_are_unreadable() {
        let mut facts = UpdateFacts::default();
        let shown = facts_shown(&facts);
        assert_eq!(
            (&shown["state"], &shown["detail"]),
            (&json!("unreadable"), &json!(NOT_READ_YET))
        );
        facts.state = "good".to_owned();
        let shown = facts_shown(&facts);
        assert_eq!(
            (&shown["state"], &shown["detail"]),
            (&json!("good"), &Value::Null)
        );
    }
}
