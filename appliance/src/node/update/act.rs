//! `update/apply`, `update/confirm` and `update/rollback`.

use std::sync::atomic::Ordering;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_init::control::{RefusalCode, UpdateAnswer, UpdateFacts, UpdateRequest};
use alknet_update::limits::TEXT_BYTES_MAX;
use alknet_update::{AgreedFloor, ReleaseVersion};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::read::other_kind;
use super::refusal::refused;
use super::schedule::next_start;
use super::scheduled_start::StartPlanner;
use super::{
    ADMIN_SCOPE, APPLY_SCOPE, NodeUpdates, OFFER_SCOPE, direct, for_scopes, from_hub_itself, may,
    owner,
};
use crate::node::ops::{caller, empty_input};
use crate::update_plan::agreed_floor;

/// Characters of a SHA-256 in hex.
const SHA256_CHARS: usize = 64;

/// The start that a caller may have.
pub(super) struct StartOrder {
    /// SHA-256 of the program that has to be staged, in hex; `None` for whatever is staged.
    pub(super) sha256: Option<String>,
    /// The floor to which the caller has agreed. `None` from a caller that names none while the node does not know the staged
    /// one: then the one counts that is staged when PID 1 judges the start.
    pub(super) agreed_floor: Option<AgreedFloor>,
    /// Whether PID 1 counts the start.
    pub(super) limited: bool,
    /// Whether no administrator asks for it, but the machine itself or a hub.
    pub(super) unasked: bool,
}

impl StartOrder {
    pub(super) fn request(self) -> UpdateRequest {
        let Self {
            sha256,
            agreed_floor,
            limited,
            unasked,
        } = self;
        UpdateRequest::Apply {
            sha256,
            agreed_floor,
            limited,
            unasked,
        }
    }
}

/// The program that waits for its start.
pub(super) struct StagedProgram {
    /// SHA-256, in hex.
    pub(super) sha256: String,
    /// The floor after its confirmation, if that raises it.
    pub(super) floor: Option<String>,
}

impl StagedProgram {
    /// The same floor as a version. PID 1 writes no other text there.
    pub(super) fn raised_floor(&self) -> Option<ReleaseVersion> {
        self.floor.as_deref().and_then(|floor| floor.parse().ok())
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UpdateApplyInput {
    at: Option<Timestamp>,
    sha256: Option<String>,
    agreed_floor: Option<AgreedFloor>,
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
                            if another one is staged, or the same with a higher floor, nothing starts, and not_started in \
                            the status says so" },
            "sha256": { "type": ["string", "null"], "maxLength": SHA256_CHARS,
            "description": "Of the program that has to be staged, as its plan has it" },
            "agreed_floor": { "type": ["string", "null"], "maxLength": TEXT_BYTES_MAX,
            "description": "As the plan has it: a version that raises the floor further does not start. \
                            null: the floor of the version that is staged now" } }
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
            match input.at {
                None => {
                    updates.start(&caller(&ctx), order).await?;
                    Ok(json!({ "restarts": true }))
                }
                Some(at) => updates.start_at(at, order, StartPlanner::from_ctx(&ctx)?),
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
            let by = caller(&ctx);
            let left = updates.version_to_leave().await;
            updates.send_request(request, &by).await?;
            // Only now: a rollback that PID 1 refused takes no moment away.
            updates.take_back_start(by, limited);
            updates.note_taken_back(left);
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
    pub(super) async fn send_request(
        &self,
        request: UpdateRequest,
        by: &str,
    ) -> Result<(), CallError> {
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
        self.0.scheduled.forget_if(|_| true);
        self.0.attempts.applied.fetch_add(1, Ordering::Relaxed);
        tracing::info!(by, "update.apply");
        Ok(())
    }

    /// The start that the caller may have. A hub that may only offer starts what it has sent itself, at once and within the
    /// window, and no version that an administrator staged. PID 1 refuses such a start if it needs a person at the
    /// machine.
    fn startable(&self, ctx: &Ctx, input: &UpdateApplyInput) -> Result<StartOrder, CallError> {
        if may(ctx, APPLY_SCOPE) {
            return Ok(StartOrder {
                sha256: input.sha256.clone(),
                agreed_floor: self.agreed_floor_of(input),
                limited: is_limited(ctx),
                unasked: false,
            });
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
                Ok(StartOrder {
                    // Another caller may have raised the floor since, or before the hub sent its bundle.
                    agreed_floor: Some(agreed_floor(plan.bundle_floor.as_deref())),
                    sha256: Some(plan.sha256),
                    limited: is_limited(ctx),
                    unasked: true,
                })
            }
            None => {
                forbidden("you may start only a version that you have sent since this node started")
            }
        }
    }

    /// The floor to which a caller with this input agrees: the one that it names, or else the one of the program that is
    /// staged now, if that is the one which it wants. Outdated facts may name a lower floor than the caller has seen.
    fn agreed_floor_of(&self, input: &UpdateApplyInput) -> Option<AgreedFloor> {
        let wanted = input.sha256.as_ref();
        let staged = || {
            let known = self.known_program();
            let known = known.filter(|it| wanted.is_none_or(|wanted| *wanted == it.sha256))?;
            Some(AgreedFloor::new(known.raised_floor()))
        };
        input.agreed_floor.clone().or_else(staged)
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
        Err(refused(RefusalCode::OutsideWindow.name(), &text))
    }

    /// The program that is staged. Until PID 1 has read a slot that changed, the program of before counts.
    pub(super) fn staged_program(&self) -> Option<StagedProgram> {
        self.staged_program_if(|_| true)
    }

    /// SHA-256 of this program.
    pub(super) fn staged_sha256(&self) -> Option<String> {
        Some(self.staged_program()?.sha256)
    }

    /// The program that is staged, and nothing of facts that are outdated: by these no planned start ends.
    pub(super) fn known_program(&self) -> Option<StagedProgram> {
        self.staged_program_if(|facts| !facts.outdated)
    }

    fn staged_program_if(
        &self,
        counts: impl FnOnce(&UpdateFacts) -> bool,
    ) -> Option<StagedProgram> {
        let facts = self.0.facts.load();
        // PID 1 needs a moment to read its disk for the facts, so what this node staged itself counts first.
        if let Some(plan) = self.0.sessions.staged() {
            return Some(StagedProgram {
                sha256: plan.sha256,
                floor: plan.floor,
            });
        }
        if facts.update.state != "staged" || !counts(&facts.update) {
            return None;
        }
        Some(StagedProgram {
            sha256: facts.update.other_sha256.clone()?,
            floor: facts.update.other_floor.clone(),
        })
    }
}
