//! Updates of the machine, as far as they are the node's: it carries bundles and requests to PID 1, which verifies them.

mod act;
mod auto;
mod auto_memory;
mod blocked;
mod bundle_sending;
mod download;
mod ended_start;
mod init_client;
mod pace;
mod piece_pacing;
mod problem_codes;
mod problems;
mod read;
mod refusal;
mod schedule;
mod scheduled_start;
mod session;
mod stage;
#[cfg(test)]
mod tests;
mod update_notes;
mod waiting;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alknet_call::{CallError, Ctx, ErrorCode, OperationSpec, RegistryBuilder};
use alknet_core::{Clock, Dialer, IdentityProvider};
use alknet_init::control::UpdateAnswer;
use serde_json::{Value, json};

use super::facts::SharedFacts;
use super::identity_services::no_identity;
use super::reload::Reloader;
use auto_memory::AutoMemory;
use blocked::SteadyClock;
use download::BundleDownloader;
use pace::StagingPace;
pub(crate) use piece_pacing::RequestCount;
use read::LastCheck;
use scheduled_start::{START_STEP, ScheduledStartStore};
use session::StagingSessions;
use update_notes::UpdateNotesStore;

pub(crate) use init_client::{UpdateClient, UpdateStream};
pub(crate) use problems::{UPDATE_AVAILABLE, UPDATE_FAILED, UPDATE_NOT_STARTED, UPDATES_BLOCKED};
pub(crate) use refusal::{may_end_by_staging, may_lie_in_delta};
pub(crate) use session::SESSION_TIME_MAX;

/// Scope that suffices for every one of these operations.
const ADMIN_SCOPE: &str = "admin";
/// Scope of callers that may see the state of updates.
pub(crate) const READ_SCOPE: &str = "update:read";
/// Scope of callers that may send a bundle.
const STAGE_SCOPE: &str = "update:stage";
/// Scope of callers that may start, confirm and take back a version.
pub(crate) const APPLY_SCOPE: &str = "update:apply";
/// Scope of a hub that may offer a bundle, and start it.
const OFFER_SCOPE: &str = "update:offer";

/// The updates of this node. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeUpdates(Arc<NodeUpdatesInner>);

struct NodeUpdatesInner {
    init: UpdateClient,
    sessions: StagingSessions,
    downloader: BundleDownloader,
    facts: SharedFacts,
    reloader: Arc<Reloader>,
    /// The node's key.
    identity: String,
    clock: Arc<dyn Clock>,
    /// The callers, whose rights the node looks up when a start has waited.
    identities: Arc<dyn IdentityProvider>,
    scheduled: ScheduledStartStore,
    /// The time since the node began.
    steady: SteadyClock,
    auto: Mutex<AutoMemory>,
    /// What a stateless machine has instead of PID 1's list of versions that were left.
    notes: UpdateNotesStore,
    /// The turn to ask PID 1 for the log of updates.
    log_turn: Arc<tokio::sync::Mutex<()>>,
    /// The last check of the channel for a caller that may only read.
    check: tokio::sync::Mutex<Option<LastCheck>>,
    attempts: UpdateAttempts,
}

/// What was tried since the node started.
#[derive(Default)]
struct UpdateAttempts {
    staged: AtomicU64,
    refused: AtomicU64,
    given_up: AtomicU64,
    applied: AtomicU64,
}

/// What the updates of a node use.
pub(crate) struct UpdateContext {
    pub(crate) init: UpdateClient,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) facts: SharedFacts,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) identity: String,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identities: Arc<dyn IdentityProvider>,
    pub(crate) request_count: RequestCount,
    pub(crate) state_dir: PathBuf,
}

impl NodeUpdates {
    pub(crate) fn new(context: UpdateContext) -> Self {
        let downloader = BundleDownloader::new(Arc::clone(&context.dialer));
        let scheduled = ScheduledStartStore::new(&context.state_dir, START_STEP);
        let began = Instant::now();
        let steady: SteadyClock = Arc::new(move || began.elapsed());
        Self::with(
            context,
            downloader,
            StagingPace::default(),
            (scheduled, steady),
        )
    }

    fn with(
        context: UpdateContext,
        downloader: BundleDownloader,
        pace: StagingPace,
        (scheduled, steady): (ScheduledStartStore, SteadyClock),
    ) -> Self {
        let UpdateContext {
            init,
            facts,
            reloader,
            identity,
            clock,
            identities,
            request_count,
            state_dir,
            ..
        } = context;
        let updates = Self(Arc::new(NodeUpdatesInner {
            sessions: StagingSessions::new(init.clone(), pace, request_count),
            init,
            downloader,
            facts,
            reloader,
            identity,
            clock,
            identities,
            scheduled,
            steady,
            auto: Mutex::default(),
            notes: UpdateNotesStore::open(&state_dir),
            log_turn: Arc::default(),
            check: tokio::sync::Mutex::default(),
            attempts: UpdateAttempts::default(),
        }));
        updates.restore_start();
        updates
    }

    /// The updates of a node without PID 1.
    #[cfg(test)]
    pub(crate) fn of_host_for_tests(
        identity_services: &super::identity_services::IdentityServices,
        facts: &SharedFacts,
    ) -> Self {
        Self::new(UpdateContext {
            init: UpdateClient::new(None, None),
            dialer: Arc::new(alknet_endpoint::EndpointDialer::new(None)),
            facts: Arc::clone(facts),
            reloader: Arc::clone(&identity_services.reloader),
            identity: String::new(),
            clock: super::clock(),
            identities: Arc::clone(&identity_services.identities) as _,
            request_count: RequestCount::new(|| 0),
            state_dir: PathBuf::new(),
        })
    }

    /// Adds the operations `update/*` to a registry.
    pub(crate) fn register(&self, builder: &mut RegistryBuilder) {
        builder.add(read::status(self.clone()));
        builder.add(read::check(self.clone()));
        builder.add(read::log(self.clone()));
        builder.add(stage::stage(self.clone()));
        builder.add(stage::write(self.clone()));
        builder.add(stage::offer(self.clone()));
        builder.add(stage::cancel(self.clone()));
        builder.add(act::apply(self.clone()));
        builder.add(act::confirm(self.clone()));
        builder.add(act::rollback(self.clone()));
    }

    /// Hands an answer of PID 1 to the request that it is for.
    pub(crate) fn answered(&self, n: u64, answer: UpdateAnswer) {
        self.0.init.answered(n, answer);
    }

    /// Unix time. `None` if the machine does not know it: a build time is not the time.
    fn now_s(&self) -> Option<i64> {
        let facts = self.0.facts.load();
        if matches!(facts.clock.as_str(), "unset" | "build-time") {
            return None;
        }
        let now = self.0.clock.now_s()?;
        i64::try_from(now).ok()
    }

    fn auto(&self) -> MutexGuard<'_, AutoMemory> {
        self.0.auto.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A specification for callers with one of these scopes, and for administrators.
fn for_scopes(mut spec: OperationSpec, scopes: &[&str]) -> OperationSpec {
    let any = [ADMIN_SCOPE].iter().chain(scopes);
    let any = any.map(|scope| (*scope).to_owned()).collect();
    spec.access_control.required_scopes_any = Some(any);
    spec
}

/// Whether the caller has a scope.
fn may(ctx: &Ctx, scope: &str) -> bool {
    let who = ctx.identity();
    who.is_some_and(|who| who.scopes.allows(scope) || who.scopes.allows(ADMIN_SCOPE))
}

/// The name by which a session knows its caller. A hub has another one for what it passes on, so that its clients have no
/// part in its own sessions.
fn owner(ctx: &Ctx) -> Result<String, CallError> {
    // The access rule refuses callers without an identity, so this does not fail.
    let id = &ctx.identity().ok_or_else(no_identity)?.id;
    Ok(match ctx.is_forwarded() {
        false => id.to_string(),
        true => format!("{id}, for its clients"),
    })
}

/// Refuses a call that a hub passes on by a right of its own: `hub/update` asks more of the hub's clients than
/// `hub/invoke` does.
fn from_hub_itself(ctx: &Ctx) -> Result<(), CallError> {
    match ctx.is_forwarded() {
        false => Ok(()),
        true => Err(CallError::new(
            ErrorCode::Forbidden,
            "update:offer is for the hub itself, and not for its clients: use hub/update there",
        )),
    }
}

/// Refuses a call that an operation or a script makes for its caller: an update outlives the call.
fn direct(ctx: &Ctx) -> Result<(), CallError> {
    match ctx.internal() {
        false => Ok(()),
        true => Err(CallError::new(
            ErrorCode::Forbidden,
            "an operation may not update the machine for its caller; call this directly",
        )),
    }
}

/// JSON Schema of the plan of a version that waits. Of one that another process of the node staged, PID 1 knows only the
/// versions and the program.
fn waiting_plan_schema() -> Value {
    let mut schema = plan_schema();
    let unknown = json!({ "type": ["string", "null"] });
    schema["required"] = json!(["from", "to", "sha256"]);
    schema["properties"]["to"] = unknown.clone();
    schema["properties"]["sha256"] = unknown;
    schema
}

/// JSON Schema of a plan.
fn plan_schema() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "type": ["object", "null"],
        "required": ["from", "to", "step", "bytes", "sha256", "changes", "time_known"],
        "properties": {
            "from": text, "to": text,
            "step": { "enum": ["upgrade", "same", "downgrade", ""] },
            "bytes": { "type": "integer", "description": "Bytes of the program" },
            "delta_bytes": { "type": ["integer", "null"],
                             "description": "Bytes of the delta that makes it from the program that runs, if the bundle has one" },
            "sha256": text, "changes": text,
            "floor": { "type": ["string", "null"],
                       "description": "The oldest version that may run after this one was confirmed, if it rises" },
            "bundle_floor": { "type": ["string", "null"],
                              "description": "The same by this bundle alone: floor may be one of an earlier bundle of the program" },
            "agreed_floor": { "type": "string",
                              "description": "What update/apply takes from a caller that agrees to the floor of this plan" },
            "needs_person": { "enum": ["pin", "passphrase", "medium", null],
                              "description": "What a person has to do at the next start" },
            "time_known": { "type": "boolean" },
        }
    })
}
