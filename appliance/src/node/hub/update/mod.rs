//! `hub/update`, `hub/update_status` and `hub/update_read`: a hub gives its workers a new version, ring after ring.

mod bundle;
mod rollout;
#[cfg(test)]
mod tests;
mod worker;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use alknet_call::{
    CallBody, CallError, CallOptions, Ctx, Dispatcher, ErrorCode, HandlerKind, OperationSpec,
    Registration,
};
use alknet_core::{BoxFuture, PeerEntry, PeerId};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use super::peers::ROLE_LABEL;
use super::{HubContext, SharedDispatcher, requester};
use crate::node::ops::{caller, empty_input};
use crate::node::update::APPLY_SCOPE;
use bundle::{
    HUB_BUNDLE_BYTES_MAX, HubBundle, HubBundleError, HubBundleStore, PIECE_BYTES_MAX, UPLOAD_IDLE,
    piece_of,
};
use rollout::{AT_ONCE_MAX, LIMIT_S, LIMIT_S_MAX, RINGS_MAX, RingSize, RolloutPlan, Rollouts};
use worker::WorkerCaller;

/// Scope of callers that may see how far the workers are.
const READ_SCOPE: &str = "hub:read";
/// Scope of callers that may change what peers do.
const ADMIN_SCOPE: &str = "hub:admin";
/// Folder of the bundle and of the last rollout, below the hub's state directory.
const FOLDER: &str = "state/hub-update";
/// The operation by which a worker shows that it lets this hub offer updates.
const OFFER: &str = "update/offer";
/// How long a worker may take for the answer to a piece: after the last one it writes and verifies the program.
const WORKER_TIMEOUT: Duration = Duration::from_secs(600);
/// The role of workers unless another one is asked for.
const WORKER_ROLE: &str = "worker";
/// The most characters of a role's name.
const ROLE_CHARS_MAX: usize = 64;
/// Most workers that a request may name.
const WORKERS_MAX: usize = 1000;

/// The updates of a hub's workers. Clones share them.
#[derive(Clone)]
pub(super) struct HubUpdates {
    store: Arc<HubBundleStore>,
    rollouts: Rollouts,
}

impl HubUpdates {
    pub(super) fn open(state_dir: &Path) -> Self {
        let folder = state_dir.join(FOLDER);
        Self {
            rollouts: Rollouts::open(&folder),
            store: Arc::new(HubBundleStore::open(folder)),
        }
    }
}

/// The workers of a dispatcher, by the hub's own rights there.
struct HubWorkers(SharedDispatcher);

impl HubWorkers {
    fn dispatcher(&self) -> Result<Arc<Dispatcher>, CallError> {
        let dispatcher = self.0.get().and_then(Weak::upgrade);
        dispatcher.ok_or_else(|| CallError::unavailable("the hub stops"))
    }
}

impl WorkerCaller for HubWorkers {
    fn call<'a>(
        &'a self,
        worker: &'a PeerId,
        operation: &'a str,
        input: Value,
    ) -> BoxFuture<'a, Result<Value, CallError>> {
        Box::pin(async move {
            let caller = self.dispatcher()?.peers().caller(worker);
            let caller =
                caller.ok_or_else(|| CallError::unavailable("the worker is not connected"))?;
            let options = CallOptions {
                timeout: Some(WORKER_TIMEOUT),
                ..CallOptions::default()
            };
            let answer = caller.call_with(operation, &input, &options).await?;
            answer.try_into_value()
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HubUpdateInput {
    bytes: Option<u64>,
    offset: Option<u64>,
    data: Value,
    start: Option<StartInput>,
    stop: bool,
    remove: bool,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StartInput {
    rings: Vec<RingSize>,
    at_once: usize,
    limit_s: u64,
    role: String,
    workers: Vec<String>,
    /// The bundle that the caller has agreed to, as `hub/update_status` shows it. A former command names none.
    bundle: Option<HubBundle>,
}

impl Default for StartInput {
    fn default() -> Self {
        let plan = RolloutPlan::default();
        Self {
            rings: plan.rings,
            at_once: plan.at_once,
            limit_s: LIMIT_S,
            role: WORKER_ROLE.to_owned(),
            workers: Vec::new(),
            bundle: None,
        }
    }
}

/// The step that a call of `hub/update` asks for.
enum HubUpdateStep {
    Begin(u64),
    Write(u64, Bytes),
    Start(StartInput),
    Stop,
    Remove,
}

impl HubUpdateInput {
    fn step(self, input: &CallBody) -> Result<HubUpdateStep, CallError> {
        let has_data = !self.data.is_null();
        match (self.bytes, self.offset, self.start, self.stop, self.remove) {
            (Some(bytes), None, None, false, false) if !has_data => Ok(HubUpdateStep::Begin(bytes)),
            (None, Some(offset), None, false, false) if has_data => {
                Ok(HubUpdateStep::Write(offset, piece(input, &self.data)?))
            }
            (None, None, Some(start), false, false) if !has_data => Ok(HubUpdateStep::Start(start)),
            (None, None, None, true, false) if !has_data => Ok(HubUpdateStep::Stop),
            (None, None, None, false, true) if !has_data => Ok(HubUpdateStep::Remove),
            _ => Err(CallError::invalid_input(
                "give bytes; or offset and data; or start; or stop; or remove",
            )),
        }
    }
}

/// Bytes behind the JSON, or as base64 in it.
fn piece(input: &CallBody, value: &Value) -> Result<Bytes, CallError> {
    let text = value.as_str();
    let decoded = || text.and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let data = input.binary(value).or_else(|| decoded().map(Bytes::from));
    data.filter(|data| (1..=PIECE_BYTES_MAX).contains(&data.len()))
        .ok_or_else(|| {
            let text = format!(
                "data is base64 or {{\"$bin\":[offset,length]}} of 1 to {PIECE_BYTES_MAX} bytes"
            );
            CallError::invalid_input(text)
        })
}

/// `hub/update`
pub(super) fn update(hub: HubContext) -> Registration {
    let mut spec = OperationSpec::mutation(
        "hub/update",
        "Keeps an update bundle, and gives it to the workers in rings: the bytes, then the pieces, then start.",
    )
    .with_input(json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "bytes": { "type": "integer", "minimum": 1, "maximum": HUB_BUNDLE_BYTES_MAX,
                       "description": "Begins to take a bundle of so many bytes" },
            "offset": { "type": "integer", "minimum": 0 },
            "data": { "description": "The bytes from the offset on, at most 256 KiB" },
            "start": { "type": "object", "additionalProperties": false,
                "properties": {
                    "rings": { "type": "array", "maxItems": RINGS_MAX,
                        "items": { "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": "all" }] },
                        "description": "Workers of each ring; [1, 5, \"all\"] unless given" },
                    "at_once": { "type": "integer", "minimum": 1, "maximum": AT_ONCE_MAX },
                    "limit_s": { "type": "integer", "minimum": 1, "maximum": LIMIT_S_MAX,
                        "description": "How long a worker may take for the bundle, and then until it is confirmed" },
                    "role": { "type": "string", "maxLength": ROLE_CHARS_MAX, "default": WORKER_ROLE,
                        "description": "The role by which the workers have enrolled" },
                    "workers": { "type": "array", "maxItems": WORKERS_MAX, "items": { "type": "string" },
                        "description": "Their ids or names, in their order; all of the role that are connected unless given" },
                    "bundle": { "type": "object", "additionalProperties": false,
                        "required": ["version", "bytes", "targets_sha256"],
                        "properties": {
                            "version": { "type": "string" },
                            "bytes": { "type": "integer", "minimum": 1 },
                            "targets_sha256": { "type": "string" },
                        },
                        "description": "The bundle of hub/update_status that is to start: another one does not" },
                } },
            "stop": { "const": true, "description": "No further worker begins" },
            "remove": { "const": true, "description": "Removes the bundle" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "properties": {
            "offset": { "type": "integer" }, "piece_bytes_max": { "type": "integer" },
            "version": { "type": "string", "description": "After the last piece: what the bundle says of itself" },
            "workers": { "type": "integer", "description": "How many workers have their turn" },
            "stopped": { "const": true }, "removed": { "const": true },
        }
    }));
    // This call starts programs on workers, so the scope of a hub's administrators is not enough.
    let both = [ADMIN_SCOPE, APPLY_SCOPE].map(str::to_owned);
    spec.access_control.required_scopes = both.to_vec();
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let hub = hub.clone();
        async move {
            // The operation that calls for a caller has rights of its own, which may be more than those of the caller.
            requester(&ctx)?;
            let by = caller(&ctx);
            let fields: HubUpdateInput = input.parse()?;
            let step = fields.step(&input)?;
            drop(input);
            hub.update_step(step, by).await
        }
    });
    Registration::new(spec, handler)
}

/// `hub/update_status`
pub(super) fn status(hub: HubContext) -> Registration {
    let spec = OperationSpec::query(
        "hub/update_status",
        "Returns which bundle the hub has for its workers, and how far their last update is.",
    )
    .with_input(empty_input())
    .with_output(json!({
        "type": "object", "required": ["bundle", "rollout"],
        "properties": {
            "bundle": { "type": ["object", "null"], "properties": {
                "version": { "type": "string" },
                "bytes": { "type": "integer" },
                "targets_sha256": { "type": "string",
                    "description": "SHA-256 of the document that lists its programs" },
            } },
            "rollout": { "type": ["object", "null"], "properties": {
                "state": { "enum": ["running", "done", "failed", "stopped", "interrupted"] },
                "workers": { "type": "array" },
            } },
        }
    }))
    .with_scope(READ_SCOPE);
    let handler = HandlerKind::once(move |_input: CallBody, _ctx: Ctx| {
        let bundle = json!(hub.updates.store.stored_bundle());
        let mut rollout = json!(hub.updates.rollouts.report());
        hub.add_names(&mut rollout);
        std::future::ready(Ok::<_, CallError>(
            json!({ "bundle": bundle, "rollout": rollout }),
        ))
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadInput {
    offset: u64,
}

/// `hub/update_read`
pub(super) fn read(hub: HubContext) -> Registration {
    let spec = OperationSpec::query(
        "hub/update_read",
        "Reads a piece of the bundle that the hub has.",
    )
    .with_input(json!({
        "type": "object", "required": ["offset"], "additionalProperties": false,
        "properties": { "offset": { "type": "integer", "minimum": 0 } }
    }))
    .with_output(json!({
        "type": "object", "required": ["bytes", "version", "data"],
        "properties": {
            "bytes": { "type": "integer", "description": "Bytes of the bundle" },
            "version": { "type": "string" },
            "data": { "type": "string", "description": "At most 256 KiB, in base64" },
        }
    }))
    .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, _ctx: Ctx| {
        let store = Arc::clone(&hub.updates.store);
        async move {
            let ReadInput { offset } = input.parse()?;
            let bundle = store.stored_bundle().ok_or(HubBundleError::None)?;
            let piece = blocking(move || Ok(piece_of(&store.path(), offset)?)).await?;
            Ok::<_, CallError>(json!({
                "bytes": bundle.bytes,
                "version": bundle.version,
                "data": BASE64.encode(&piece),
            }))
        }
    });
    Registration::new(spec, handler)
}

impl HubContext {
    async fn update_step(&self, step: HubUpdateStep, by: String) -> Result<Value, CallError> {
        let HubUpdates { store, rollouts } = self.updates.clone();
        // The workers read the bundle piece by piece, and must not get the pieces of two.
        let is_free = match rollouts.is_running() {
            false => Ok(()),
            true => Err(HubBundleError::InUse),
        };
        match step {
            HubUpdateStep::Begin(bytes) => {
                is_free?;
                let begins = Arc::clone(&store);
                if blocking(move || begins.begin(&by, bytes)).await? {
                    // It has a weak reference, so that it does not keep the store when the node ends.
                    tokio::spawn(expire(Arc::downgrade(&store)));
                }
                Ok(json!({ "offset": 0, "piece_bytes_max": PIECE_BYTES_MAX }))
            }
            HubUpdateStep::Write(offset, data) => {
                is_free?;
                // A rollout may begin before a thread takes the piece, so the last one asks again.
                let writes = move || store.write(&by, offset, &data, || rollouts.claim_bundle());
                let (offset, kept) = blocking(writes).await?;
                let mut answer = json!({ "offset": offset });
                if let Some(kept) = kept {
                    answer["version"] = kept.version.into();
                }
                Ok(answer)
            }
            HubUpdateStep::Start(start) => self.start_rollout(start, by),
            HubUpdateStep::Stop => {
                rollouts.stop();
                Ok(json!({ "stopped": true }))
            }
            HubUpdateStep::Remove => {
                is_free?;
                let removes = move || {
                    let _claim = rollouts.claim_bundle()?;
                    store.remove()
                };
                blocking(removes).await?;
                Ok(json!({ "removed": true }))
            }
        }
    }

    fn start_rollout(&self, start: StartInput, by: String) -> Result<Value, CallError> {
        let HubUpdates { store, rollouts } = &self.updates;
        let agreed = start.bundle.as_ref();
        // The error of a missing bundle comes before those of the workers.
        store.agreed_bundle(agreed)?;
        let workers = self.workers(&start)?;
        let count = workers.len();
        let plan = RolloutPlan {
            rings: start.rings,
            at_once: start.at_once,
            limit: Duration::from_secs(start.limit_s),
            ..RolloutPlan::default()
        };
        let calls = Arc::new(HubWorkers(Arc::clone(&self.dispatcher)));
        let choose = || store.agreed_bundle(agreed);
        let work = rollouts.begin((&choose, store.path()), workers, (plan, by), calls)?;
        // A task of its own: the rollout outlives the call.
        tokio::spawn(work);
        Ok(json!({ "workers": count }))
    }

    /// The workers of these ids or names in their order, or all of the role that serve [`OFFER`], by their names.
    fn workers(&self, start: &StartInput) -> Result<Vec<PeerId>, CallError> {
        let peers = self.identities.identities.entries().peers;
        let wanted = &start.workers;
        if wanted.is_empty() {
            let dispatcher = HubWorkers(Arc::clone(&self.dispatcher)).dispatcher()?;
            let mut serving = of_role(dispatcher.peers().serving(OFFER), &peers, &start.role);
            let name = |id: &PeerId| {
                let entry = peers.iter().find(|it| it.peer_id == *id);
                let name = entry.and_then(|it| it.display_name.clone());
                name.unwrap_or_else(|| id.to_string())
            };
            // An administrator can foresee by the names which workers are in the first ring.
            serving.sort_by_cached_key(name);
            return Ok(serving);
        }
        let mut found = Vec::with_capacity(wanted.len());
        for name in wanted {
            let by_id = peers.iter().find(|it| it.peer_id.as_str() == name);
            let by_name = || {
                peers
                    .iter()
                    .find(|it| it.display_name.as_ref() == Some(name))
            };
            let peer = by_id.or_else(by_name).ok_or_else(|| {
                CallError::new(ErrorCode::NotFound, format!("the hub has no peer '{name}'"))
            })?;
            // A worker that is named by its id and by its name has one turn.
            if !found.contains(&peer.peer_id) {
                found.push(peer.peer_id.clone());
            }
        }
        Ok(found)
    }

    /// Adds the names of the workers to a report.
    fn add_names(&self, rollout: &mut Value) {
        let peers = self.identities.identities.entries().peers;
        for row in rollout["workers"].as_array_mut().into_iter().flatten() {
            let id = row["peer"].as_str().unwrap_or_default();
            let entry = peers.iter().find(|it| it.peer_id.as_str() == id);
            let name = entry.and_then(|it| it.display_name.clone());
            row["name"] = name.unwrap_or_else(|| id.to_owned()).into();
        }
    }
}

/// Those that have enrolled by a role. Any other peer can serve [`OFFER`] as well, such as one that an administrator
/// wrote into the configuration, and would hold the update up or make it fail.
fn of_role(mut serving: Vec<PeerId>, peers: &[PeerEntry], role: &str) -> Vec<PeerId> {
    serving.retain(|id| {
        let entry = peers.iter().find(|it| it.peer_id == *id);
        entry.is_some_and(|it| it.labels.get(ROLE_LABEL).is_some_and(|label| label == role))
    });
    serving
}

/// Drops an upload whose pieces do not come. Ends when there is no upload.
async fn expire(store: Weak<HubBundleStore>) {
    while let Some(store) = store.upgrade() {
        let due = blocking(move || Ok(store.expire(UPLOAD_IDLE))).await;
        let Ok(Some(due)) = due else {
            return;
        };
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Runs blocking work on a thread where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubBundleError> + Send + 'static,
) -> Result<T, HubBundleError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| HubBundleError::Io(std::io::Error::other(error)))?
}
