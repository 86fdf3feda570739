//! `update/stage`, `update/write` and `update/offer`.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_core::config::UpdateChannel;
use alknet_init::control::UpdateFacts;
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auto::BY;
use super::download::{OpenedBundle, shortened};
use super::piece_pacing::PIECE_BYTES_MAX;
use super::read::no_channel;
use super::schedule::is_left;
use super::session::{
    BUNDLE_BYTES_MAX, SessionTurn, StagingError, StagingOutcome, StagingRequest, StagingSession,
};
use super::waiting::is_replaceable;
use super::{
    ADMIN_SCOPE, APPLY_SCOPE, NodeUpdates, OFFER_SCOPE, STAGE_SCOPE, direct, for_scopes,
    from_hub_itself, may, owner, plan_schema,
};
use crate::node::ops::{caller, empty_input};
use crate::update_plan::shown_plan;

/// Default deadline of operations that wait until PID 1 has written and read back a program.
pub(super) const STAGE_TIMEOUT_MS: u32 = 900_000;
/// The most characters of a version.
const VERSION_CHARS_MAX: usize = 64;
/// The most characters of an address, as the downloader has it.
const URL_CHARS_MAX: usize = 2048;
/// How long an offer waits until PID 1 has read slots that have changed, and how often it looks.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const LOOK_STEP: Duration = Duration::from_millis(100);

/// `update/stage`
pub(super) fn stage(updates: NodeUpdates) -> Registration {
    let mut spec = OperationSpec::mutation(
        "update/stage",
        "Begins to take a bundle: from the caller piece by piece, from an address, or from the channel of the \
         configuration. PID 1 verifies it and writes its program to the boot slot that does not run.",
    )
    .with_input(json!({
        "type": ["object", "null"], "additionalProperties": false,
        "properties": {
            "bytes": { "type": "integer", "minimum": 1, "maximum": BUNDLE_BYTES_MAX,
                       "description": "The caller sends so many bytes by update/write" },
            "url": { "type": "string", "maxLength": URL_CHARS_MAX,
                     "description": "The node downloads the bundle, https://…" },
            "channel": { "type": ["string", "null"], "enum": ["beta", "stable", null],
                         "description": "Another channel than that of the configuration, below update.url" },
            "downgrade": { "type": ["string", "null"], "maxLength": VERSION_CHARS_MAX,
                           "description": "The one older version that is permitted; for update:apply" },
            "dry_run": { "type": "boolean", "default": false,
                         "description": "Verify and plan, and change nothing" },
            "whole": { "type": "boolean", "default": false,
                       "description": "Of the channel, take the whole program and no delta" },
            "take_over": { "type": "boolean", "default": false,
                           "description": "Give up the bundle that is under way, also that of another caller; for update:apply" },
        }
    }))
    .with_output(json!({
        "type": "object", "required": ["session", "bytes", "offset", "piece_bytes_max"],
        "properties": {
            "session": { "type": "string" }, "bytes": { "type": "integer" }, "offset": { "type": "integer" },
            "piece_bytes_max": { "type": "integer" },
        }
    }));
    spec.default_timeout_ms = Some(STAGE_TIMEOUT_MS);
    let spec = for_scopes(spec, &[STAGE_SCOPE]);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            let input = match input.is_null() {
                true => StageInput::default(),
                false => input.parse()?,
            };
            let session = updates.stage(input, &ctx).await?;
            Ok::<_, CallError>(begun(&session))
        }
    });
    Registration::new(spec, handler)
}

/// `update/write`
pub(super) fn write(updates: NodeUpdates) -> Registration {
    let mut spec = OperationSpec::mutation(
        "update/write",
        "Sends the next piece of a bundle, or gives the bundle up. The answer to the last piece has the plan.",
    )
    .with_input(json!({
        "type": "object", "required": ["session"], "additionalProperties": false,
        "properties": {
            "session": { "type": "string", "maxLength": 32 },
            "offset": { "type": "integer", "minimum": 0, "description": "Where the piece begins" },
            "data": { "description": "The bytes, at most 256 KiB: base64, or {\"$bin\":[offset,length]}" },
            "abort": { "const": true, "description": "Gives the bundle up" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "properties": {
            "offset": { "type": "integer", "description": "Where the next piece begins" },
            "piece_bytes": { "type": "integer", "description": "How many bytes the next piece should have at most, so that other calls do not wait for it" },
            "plan": plan_schema(),
            "aborted": { "const": true, "description": "The bundle was given up: not if PID 1 was done with it, and the answer has its plan then" },
        }
    }));
    spec.default_timeout_ms = Some(STAGE_TIMEOUT_MS);
    let spec = for_scopes(spec, &[STAGE_SCOPE, OFFER_SCOPE]);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            if !may(&ctx, STAGE_SCOPE) {
                from_hub_itself(&ctx)?;
            }
            updates.check_init()?;
            let owner = owner(&ctx)?;
            let fields: WriteInput = input.parse()?;
            let step = fields.step(&input)?;
            drop(input);
            updates.write(&owner, step).await
        }
    });
    Registration::new(spec, handler)
}

/// `update/offer`
pub(super) fn offer(updates: NodeUpdates) -> Registration {
    let spec = OperationSpec::mutation(
        "update/offer",
        "Answers whether this node wants the bundle that a hub has. If so, the answer names the session for update/write.",
    )
    .with_input(json!({
        "type": "object", "required": ["version", "bytes"], "additionalProperties": false,
        "properties": {
            "version": { "type": "string", "maxLength": VERSION_CHARS_MAX },
            "bytes": { "type": "integer", "minimum": 1, "maximum": BUNDLE_BYTES_MAX },
        }
    }))
    .with_output(json!({
        "type": "object", "required": ["wanted"],
        "properties": {
            "wanted": { "type": "boolean" },
            "reason": { "type": "string", "description": "Why it is not wanted" },
            "session": { "type": "string" }, "bytes": { "type": "integer" }, "offset": { "type": "integer" },
            "piece_bytes_max": { "type": "integer" },
        }
    }));
    let spec = for_scopes(spec, &[OFFER_SCOPE]);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move { updates.answer_offer(&input, &ctx).await }
    });
    Registration::new(spec, handler)
}

/// `update/cancel`
pub(super) fn cancel(updates: NodeUpdates) -> Registration {
    let spec = OperationSpec::mutation(
        "update/cancel",
        "Gives up the bundle that is under way, also that of another caller.",
    )
    .with_input(empty_input())
    .with_output(json!({
        "type": "object", "required": ["cancelled"],
        "properties": { "cancelled": { "type": "boolean", "description": "Whether one was given up: not if there was none, or its version was staged already" } }
    }));
    let spec = for_scopes(spec, &[APPLY_SCOPE]);
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let updates = updates.clone();
        async move {
            direct(&ctx)?;
            updates.check_init()?;
            let by = caller(&ctx);
            updates.note_interruption(&by);
            let why = format!("{by} cancelled it");
            let cancelled = updates.0.sessions.cancel(why).await;
            Ok::<_, CallError>(json!({ "cancelled": cancelled }))
        }
    });
    Registration::new(spec, handler)
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StageInput {
    bytes: Option<u64>,
    url: Option<String>,
    channel: Option<UpdateChannel>,
    downgrade: Option<String>,
    dry_run: bool,
    whole: bool,
    take_over: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteInput {
    session: String,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    abort: bool,
}

/// The step that a call of `update/write` asks for.
enum WriteStep {
    Abort {
        session: String,
    },
    Piece {
        session: String,
        offset: u64,
        data: Bytes,
    },
}

impl WriteInput {
    fn step(self, input: &CallBody) -> Result<WriteStep, CallError> {
        let session = self.session;
        match (self.offset, self.data.is_null(), self.abort) {
            (None, true, true) => Ok(WriteStep::Abort { session }),
            (Some(offset), false, false) => Ok(WriteStep::Piece {
                session,
                offset,
                data: piece(input, &self.data)?,
            }),
            _ => Err(CallError::invalid_input(
                "give session, offset and data; or session and abort",
            )),
        }
    }
}

/// Bytes behind the JSON, or as base64 in it.
fn piece(input: &CallBody, value: &Value) -> Result<Bytes, CallError> {
    let refused = || {
        let text = format!(
            "data is base64 or {{\"$bin\":[offset,length]}} of 1 to {PIECE_BYTES_MAX} bytes"
        );
        CallError::invalid_input(text)
    };
    let data = match input.binary(value) {
        Some(data) => data,
        None => {
            let text = value.as_str().ok_or_else(refused)?;
            Bytes::from(BASE64.decode(text.as_bytes()).map_err(|_| refused())?)
        }
    };
    match (1..=PIECE_BYTES_MAX).contains(&data.len()) {
        true => Ok(data),
        false => Err(refused()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfferInput {
    version: String,
    bytes: u64,
}

/// Where the node downloads a bundle from.
pub(super) enum DownloadOrigin {
    Address(String),
    /// A channel below the address of the configuration; `None` for the channel that the configuration names.
    Channel(Option<UpdateChannel>),
}

/// A bundle that the node is to download.
pub(super) struct DownloadRequest {
    pub(super) owner: String,
    pub(super) by: String,
    pub(super) origin: DownloadOrigin,
    pub(super) downgrade: Option<String>,
    pub(super) dry_run: bool,
    /// Whether the channel is asked for the whole program, and not for a delta.
    pub(super) whole: bool,
    /// Whether the address may be one that is not of the public Internet.
    pub(super) anywhere: bool,
    /// Whether no administrator asks for it, but the machine itself.
    pub(super) unasked: bool,
    /// Whether the caller may send versions, and not start them.
    pub(super) limited: bool,
    /// Whether it takes the place of the session under way.
    pub(super) take_over: bool,
}

/// Where a channel has the delta that starts from the program with this SHA-256, beside its bundle.
fn delta_url(bundle: &str, running: &str) -> Option<String> {
    let (folder, _) = bundle.rsplit_once('/')?;
    Some(format!(
        "{folder}/{}",
        alknet_update::delta_file_name(running)
    ))
}

/// A download that has begun.
pub(super) struct BegunDownload {
    pub(super) session: Arc<StagingSession>,
    pub(super) url: String,
    pub(super) bytes: u64,
    /// Whether it is the channel's bundle with a delta.
    pub(super) is_delta: bool,
}

/// Refuses to a caller that may only stage what needs an administrator. To take over gives up the bundle of another caller,
/// which `update/cancel` allows with this scope only. An older version may have defects that the one which runs has not, and
/// by itself it looks to the next administrator like any other version that waits.
fn require_apply(ctx: &Ctx, take_over: bool, downgrades: bool) -> Result<(), CallError> {
    let what = match (take_over, downgrades) {
        _ if may(ctx, APPLY_SCOPE) => return Ok(()),
        (true, _) => "take_over",
        (false, true) => "downgrade",
        (false, false) => return Ok(()),
    };
    let text = format!("{what} needs the scope update:apply");
    Err(CallError::new(ErrorCode::Forbidden, text))
}

/// Refuses an offer on a machine without boot slots.
fn require_slots(facts: &UpdateFacts) -> Result<(), CallError> {
    if !matches!(facts.state.as_str(), "absent" | "unreadable" | "") {
        return Ok(());
    }
    let text = facts.detail.as_deref();
    let text = text.unwrap_or("the machine has no boot slots");
    let details = json!({ "code": "no-slots", "text": text });
    Err(CallError::new(ErrorCode::Conflict, text).with_details(details))
}

/// Why the machine does not take this version from a hub, by what PID 1 says of its slots, and by the versions that the node
/// has noted as left.
fn version_refusal(facts: &UpdateFacts, noted: &[String], version: &str) -> Option<String> {
    if matches!(facts.state.as_str(), "pending" | "trial") {
        return Some("another version is on trial".to_owned());
    }
    // PID 1 judges by the version of the bundle itself.
    let is_left = is_left(facts, version) || noted.iter().any(|left| left == version);
    is_left.then(|| format!("{version} failed there, or an administrator left it"))
}

/// The answer to a call that began a session.
fn begun(session: &StagingSession) -> Value {
    json!({
        "session": session.id,
        "bytes": session.request.bytes,
        "offset": session.offset(),
        "piece_bytes_max": PIECE_BYTES_MAX,
    })
}

impl NodeUpdates {
    async fn stage(&self, input: StageInput, ctx: &Ctx) -> Result<Arc<StagingSession>, CallError> {
        self.check_init()?;
        let owner = owner(ctx)?;
        // PID 1 notes the caller by this name, and after a restart of the node a hub may replace what is noted as its own. What
        // it passes on is its clients'.
        let by = owner.clone();
        let StageInput {
            bytes,
            url,
            channel,
            downgrade,
            dry_run,
            whole,
            take_over,
        } = input;
        require_apply(ctx, take_over, downgrade.is_some())?;
        let limited = !may(ctx, APPLY_SCOPE);
        let origin = match (url, channel) {
            (Some(_), Some(_)) => {
                return Err(CallError::invalid_input("give url or channel, not both"));
            }
            (Some(url), None) => DownloadOrigin::Address(url),
            (None, channel) => DownloadOrigin::Channel(channel),
        };
        match (bytes, origin) {
            (Some(bytes), DownloadOrigin::Channel(None)) => {
                let turn = self.turn(take_over, &by).await?;
                let request = StagingRequest {
                    owner,
                    by,
                    source: "upload".to_owned(),
                    bytes,
                    downgrade,
                    dry_run,
                    unasked: false,
                    other_source: limited,
                    limited,
                    by_calls: true,
                };
                Ok(self.begin(request, turn)?)
            }
            (Some(_), _) => {
                let text = "give bytes, url or channel, and only one of them";
                Err(CallError::invalid_input(text))
            }
            (None, origin) => {
                // A peer that may stage must not make the node ask servers of its local network.
                let is_admin = ctx
                    .identity()
                    .is_some_and(|who| who.scopes.allows(ADMIN_SCOPE));
                let anywhere = matches!(origin, DownloadOrigin::Channel(_)) || is_admin;
                let request = DownloadRequest {
                    owner,
                    by,
                    origin,
                    downgrade,
                    dry_run,
                    whole,
                    anywhere,
                    unasked: false,
                    limited,
                    take_over,
                };
                Ok(self.fetch(request).await?.session)
            }
        }
    }

    /// Begins a session, and counts how it ends.
    fn begin(
        &self,
        request: StagingRequest,
        turn: Option<SessionTurn>,
    ) -> Result<Arc<StagingSession>, StagingError> {
        self.note_failure_before_session();
        let session = self.0.sessions.begin(request, turn)?;
        self.watch(&session);
        Ok(session)
    }

    /// Ends the session under way for a caller that takes it over.
    async fn turn(&self, take_over: bool, by: &str) -> Result<Option<SessionTurn>, StagingError> {
        if !take_over {
            return Ok(None);
        }
        self.note_interruption(by);
        let why = format!("{by} sends another one");
        self.0.sessions.take_over(why).await.map(Some)
    }

    /// Begins to download a bundle.
    pub(super) async fn fetch(&self, request: DownloadRequest) -> Result<BegunDownload, CallError> {
        self.check_init()?;
        // This comes before the node asks a server for a bundle that it could not take.
        if self.0.sessions.current().is_some() && !request.take_over {
            return Err(StagingError::Busy.into());
        }
        let (url, bundle) = self.opened(&request).await?;
        let bytes = bundle.bytes;
        let file = url.rsplit('/').next().unwrap_or_default();
        let is_channel = matches!(request.origin, DownloadOrigin::Channel(_));
        let is_delta = is_channel && file.starts_with("from-");
        // The other session ends only now, when the server has answered: an address that is wrong takes over nothing.
        let turn = self.turn(request.take_over, &request.by).await?;
        // `update/status` shows the address to every reader, and secrets can be in its query.
        let url = shortened(&url);
        let other_source = self.is_other_source(&request);
        let request = StagingRequest {
            owner: request.owner,
            by: request.by,
            source: url.clone(),
            bytes,
            downgrade: request.downgrade,
            dry_run: request.dry_run,
            unasked: request.unasked,
            other_source,
            limited: request.limited,
            by_calls: false,
        };
        self.note_failure_before_session();
        let sessions = &self.0.sessions;
        let session = self.0.downloader.begin(sessions, bundle, (request, turn))?;
        self.watch(&session);
        Ok(BegunDownload {
            session,
            url,
            bytes,
            is_delta,
        })
    }

    /// Whether the bundle comes from another channel than the one that the machine follows, or from an address that a caller
    /// without the right to start versions has chosen.
    pub(super) fn is_other_source(&self, request: &DownloadRequest) -> bool {
        match request.origin {
            DownloadOrigin::Address(_) => request.limited,
            DownloadOrigin::Channel(None) => false,
            DownloadOrigin::Channel(Some(channel)) => {
                channel != self.0.reloader.current().config.update.channel
            }
        }
    }

    /// The bundle at the address of the request, or that of the channel. A channel may have a delta for the program that
    /// runs, beside the whole one.
    async fn opened(&self, request: &DownloadRequest) -> Result<(String, OpenedBundle), CallError> {
        let downloader = &self.0.downloader;
        let channel = match &request.origin {
            DownloadOrigin::Address(url) => {
                return Ok((url.clone(), downloader.open(url, request.anywhere).await?));
            }
            DownloadOrigin::Channel(channel) => *channel,
        };
        let config = self.0.reloader.current();
        let section = &config.config.update;
        let url = match channel {
            Some(channel) => section.channel_url(channel),
            None => section.bundle_url(),
        };
        let url = url.ok_or_else(no_channel)?;
        let running = self.0.facts.load().update.running_sha256.clone();
        if let Some(delta) = running.and_then(|running| delta_url(&url, &running))
            && !request.whole
        {
            match downloader.open(&delta, request.anywhere).await {
                Ok(bundle) => return Ok((delta, bundle)),
                // Whatever is wrong with it, the whole program may be there.
                Err(error) => tracing::debug!(%error, "the channel has no delta for this program"),
            }
        }
        let bundle = downloader.open(&url, request.anywhere).await?;
        Ok((url, bundle))
    }

    /// Waits until PID 1 has read the slots since they changed last: before, its facts may not show yet what an
    /// administrator has staged. Returns the number of the last session. Refuses while a session is under way: it may stage
    /// a version before the offer is decided.
    async fn wait_for_slots(&self) -> Result<u64, StagingError> {
        let sessions = &self.0.sessions;
        let known = async {
            loop {
                // The number comes first: of a session that begins after this, the offer learns by the number.
                let last = sessions.require_idle()?;
                if self.has_current_facts() {
                    return Ok::<u64, StagingError>(last);
                }
                tokio::time::sleep(LOOK_STEP).await;
            }
        };
        let known = tokio::time::timeout(sessions.pace.slots, known).await;
        known.unwrap_or(Err(StagingError::Busy))
    }

    /// Why a hub may not replace what is staged: it waits for the administrator who staged it. A version waits for no
    /// administrator if its caller may not start versions.
    fn kept_from(&self, hub: &str) -> Option<String> {
        let facts = self.0.facts.load();
        let known = self.0.sessions.staged_by();
        let is_replaced = match known.filter(|request| !request.limited) {
            Some(request) => request.owner == hub || request.owner == BY,
            None if facts.update.state != "staged" => return None,
            // After a restart the node no longer knows who staged the version first, and PID 1 does.
            None => {
                let stager = facts.update.stager.as_ref();
                is_replaceable(&facts) || stager.is_some_and(|it| it.by == hub || it.by == BY)
            }
        };
        let text = "a version is staged here that this hub did not send: an administrator starts it, or takes it back";
        (!is_replaced).then(|| text.to_owned())
    }

    async fn write(&self, owner: &str, step: WriteStep) -> Result<Value, CallError> {
        let sessions = &self.0.sessions;
        match step {
            WriteStep::Abort { session } => {
                let why = "its sender gave it up".to_owned();
                match sessions.give_up((session.as_str(), owner), why).await? {
                    // PID 1 was done with it.
                    StagingOutcome::Planned(plan) => Ok(json!({ "plan": shown_plan(&plan) })),
                    _ => Ok(json!({ "aborted": true })),
                }
            }
            WriteStep::Piece {
                session,
                offset,
                data,
            } => {
                let taken = sessions
                    .write((session.as_str(), owner), (offset, data))
                    .await?;
                let plan = taken.plan.as_ref().map(shown_plan);
                Ok(json!({
                    "offset": taken.offset, "piece_bytes": taken.next_bytes, "plan": plan,
                }))
            }
        }
    }

    /// A hub has a bundle. Its permission is the scope, which `[[join]] update` gives it.
    async fn answer_offer(&self, input: &CallBody, ctx: &Ctx) -> Result<Value, CallError> {
        direct(ctx)?;
        from_hub_itself(ctx)?;
        self.check_init()?;
        let input: OfferInput = input.parse()?;
        let owner = owner(ctx)?;
        let facts = self.0.facts.load_full();
        require_slots(&facts.update)?;
        let unwanted = |reason: String| Ok(json!({ "wanted": false, "reason": reason }));
        // The version that runs stays the same until the machine restarts, so it is known also while a session is under way.
        if facts.update.version == input.version {
            return unwanted(format!("{} runs already", input.version));
        }
        let last = self.wait_for_slots().await?;
        // Everything else may have changed meanwhile.
        let facts = self.0.facts.load_full();
        require_slots(&facts.update)?;
        self.note_failure_before_session();
        if let Some(reason) = version_refusal(&facts.update, &self.noted_left(), &input.version) {
            return unwanted(reason);
        }
        if let Some(reason) = self.kept_from(&owner) {
            return unwanted(reason);
        }
        let request = StagingRequest {
            owner,
            by: caller(ctx),
            source: format!("the hub {}", caller(ctx)),
            bytes: input.bytes,
            downgrade: None,
            dry_run: false,
            // A hub asks, and no administrator: PID 1 refuses a version that an administrator left.
            unasked: true,
            other_source: false,
            limited: false,
            by_calls: true,
        };
        // A session that has begun since may have staged the version of an administrator.
        let session = self.0.sessions.begin_after(last, request)?;
        self.watch(&session);
        let mut answer = begun(&session);
        answer["wanted"] = true.into();
        Ok(answer)
    }
}
