//! The node's side of script sessions.
//!
//! `spec` is what a session is made of, `session` the handle that the rest of the node holds,
//! `actor` the task that listens to its worker and answers it, `reach` what the script may call,
//! `outgoing` a call of the script's on its way through the registry, `offered` an operation that it
//! registered, `service` what lives on through a change of its code.

mod actor;
mod failure;
mod offered;
mod outgoing;
mod reach;
mod replay;
mod service;
mod session;
mod shared;
mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_call::{CompositionAuthority, Env};
use alknet_core::{BoxFuture, Identity, Metrics};
use alknet_runtime::{Code, Failure, Grants as Globals, Operation, Recorded};
use alknet_worker::{Body, Hash, Lease, Role, Told, Workers};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::limits::{LISTED_BYTES_MAX, LISTED_MAX, SESSIONS_MAX, SESSIONS_OF_TENANT_MAX};
use crate::wire::{self, Opening};
use actor::{Actor, Command};
pub use failure::{declared_errors, to_call_error};
pub(crate) use failure::{of_open, overloaded};
use reach::Reach;
pub use replay::Replayed;
pub use service::Service;
pub use session::{Following, Ran, Session};
use shared::Shared;
pub use shared::{Reason, SessionInfo, State};
pub use spec::{Console, Grant, Grants, Line, Peer, SessionLimits, SessionSpec};

/// Where the bytes of stored tensors come from. Told after the session was allowed to call
/// `tensor/open` and that has answered.
pub trait TensorFiles: Send + Sync + 'static {
    /// The file of stored content, open for reading: sealed memory, or a file that is never changed
    /// (it may be deleted). Its bytes are the container as a whole.
    ///
    /// # Errors
    /// As `tensor/open`.
    fn open(
        &self,
        identity: Option<Arc<Identity>>,
        src: Value,
    ) -> BoxFuture<'static, Result<File, alknet_call::CallError>>;
}

/// How sessions run on this node.
pub struct Config {
    /// The role of their workers.
    pub role: Role,
    /// Sessions at once, over all tenants.
    pub sessions_max: usize,
    /// Sessions of one tenant at once.
    pub of_tenant_max: usize,
    /// Where the bytes of stored tensors come from; without it `tensor.open` is refused.
    pub files: Option<Arc<dyn TensorFiles>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::Js,
            sessions_max: SESSIONS_MAX,
            of_tenant_max: SESSIONS_OF_TENANT_MAX,
            files: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// Every script session of a node.
#[derive(Debug)]
pub struct Sessions {
    workers: Workers,
    config: Config,
    next: AtomicU64,
    table: Mutex<BTreeMap<u64, Known>>,
    counters: Counters,
}

#[derive(Debug)]
struct Known {
    shared: Arc<Shared>,
    commands: mpsc::WeakUnboundedSender<Command>,
}

/// What happened since the node started.
#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    refused: AtomicU64,
    calls: AtomicU64,
    calls_out: AtomicU64,
    closed: Mutex<BTreeMap<Reason, u64>>,
}

impl Sessions {
    /// Sessions in these workers.
    #[must_use]
    pub fn new(workers: Workers, config: Config) -> Arc<Self> {
        Arc::new(Self {
            workers,
            config,
            next: AtomicU64::new(0),
            table: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// The workers that sessions run in.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Opens a session in the course of a request whose operation has `env`: it reaches at most what
    /// that operation does, and may at most what both the operation and the identity may.
    ///
    /// # Errors
    /// [`Code::Limit`] for what no session may have, [`Code::Denied`] where the operation calls
    /// nothing itself, [`Code::Quota`] where there are too many sessions, [`Code::Policy`] and
    /// [`Code::WorkerLost`] where there is no worker.
    pub async fn open(self: &Arc<Self>, env: &Env, spec: SessionSpec) -> Result<Session, Failure> {
        let opened = self.try_open(env, spec).await;
        let counter = match opened {
            Ok(_) => &self.counters.opened,
            Err(_) => &self.counters.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        opened
    }

    async fn try_open(
        self: &Arc<Self>,
        env: &Env,
        mut spec: SessionSpec,
    ) -> Result<Session, Failure> {
        spec.check()?;
        let tenant = tenant(spec.identity.as_deref());
        let reach = Reach::new(&spec.grants)?;
        let layer = layer(env, &spec)?;
        let place = self.admit(&tenant, &spec)?;
        let mut lease = Lease::new(self.config.role, tenant);
        if spec.alone {
            lease = lease.alone();
        }
        let opened = self.workers.open(lease).await;
        let worker = opened.map_err(|error| failure::of_worker(&error))?;
        let operations = listed(&layer.env(env), &spec.grants);
        let bundle = Hash(spec.bundle());
        let (told, fds) = opening(&mut spec, operations, None, bundle).map_err(|error| {
            Failure::new(Code::Limit, format!("the session cannot be sent: {error}"))
        })?;
        let sent = worker.tell(told, fds);
        sent.map_err(|error| failure::of_call(&error))?;
        let shared = place.keep();
        shared.set_worker(worker.pid());
        let (commands, queue) = mpsc::unbounded_channel();
        self.know(&shared, &commands);
        let session = Session::new(
            Arc::clone(&shared),
            commands.clone(),
            layer,
            spec.limits.clone(),
            bundle,
        );
        let actor = Actor::new(self, worker, shared, &session, queue, spec, reach);
        tokio::spawn(actor.run());
        Ok(session)
    }

    /// Ends a session and every call in it. Returns whether it was there.
    pub fn kill(&self, id: u64) -> bool {
        let table = self.lock();
        let commands = table.get(&id).and_then(|known| known.commands.upgrade());
        commands.is_some_and(|commands| commands.send(Command::Close(Reason::Abort)).is_ok())
    }

    /// Every session that is open, in the order in which they were opened.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        let table = self.lock();
        table.values().map(|known| known.shared.info()).collect()
    }

    /// Adds what was counted to the node's numbers.
    pub fn collect(&self, into: &mut Metrics) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let plain = [
            (
                "alknet_script_sessions_opened_total",
                "Script sessions that were opened.",
                read(&self.counters.opened),
            ),
            (
                "alknet_script_sessions_refused_total",
                "Script sessions that were not opened.",
                read(&self.counters.refused),
            ),
            (
                "alknet_script_calls_total",
                "Calls into scripts.",
                read(&self.counters.calls),
            ),
            (
                "alknet_script_calls_out_total",
                "Calls and subscriptions that scripts began.",
                read(&self.counters.calls_out),
            ),
        ];
        for (name, help, value) in plain {
            into.counter(name, help, &[], value);
        }
        let open = self.lock().len();
        let help = "Script sessions that are open.";
        into.gauge("alknet_script_sessions", help, &[], open as f64);
        for (reason, count) in lock(&self.counters.closed).iter() {
            let help = "Script sessions that ended, by reason.";
            let labels = [("reason", reason.name())];
            into.counter("alknet_script_sessions_ended_total", help, &labels, *count);
        }
        self.collect_workers(into);
    }

    fn collect_workers(&self, into: &mut Metrics) {
        let stats = self.workers.stats();
        for (role, running) in &stats.workers {
            let labels = [("role", role.name())];
            let help = "Worker processes that run, by role.";
            into.gauge("alknet_workers", help, &labels, *running as f64);
        }
        for (reason, count) in &stats.ended {
            let labels = [("reason", reason.name())];
            let help = "Worker processes that ended, by reason.";
            into.counter("alknet_workers_ended_total", help, &labels, *count);
        }
        let help = "Bytes of workers' log that were dropped.";
        into.counter(
            "alknet_workers_log_dropped_total",
            help,
            &[],
            stats.log_dropped,
        );
    }

    fn count_call(&self) {
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn count_call_out(&self) {
        self.counters.calls_out.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sessions were opened, and how many refused, since the node started.
    pub(crate) fn opened(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.counters.opened), read(&self.counters.refused))
    }

    /// How sessions ended since the node started.
    pub(crate) fn closed(&self) -> BTreeMap<Reason, u64> {
        lock(&self.counters.closed).clone()
    }

    fn admit(self: &Arc<Self>, tenant: &str, spec: &SessionSpec) -> Result<Place, Failure> {
        let mut table = self.lock();
        let own = table
            .values()
            .filter(|known| known.shared.tenant() == tenant);
        if table.len() >= self.config.sessions_max || own.count() >= self.config.of_tenant_max {
            return Err(Failure::new(Code::Quota, "too many sessions are open"));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let shared = Arc::new(Shared::new(id, tenant, spec.mode));
        let (nobody, _) = mpsc::unbounded_channel();
        let known = Known {
            shared: Arc::clone(&shared),
            commands: nobody.downgrade(),
        };
        table.insert(id, known);
        Ok(Place {
            sessions: Arc::clone(self),
            shared,
            kept: false,
        })
    }

    fn know(&self, shared: &Shared, commands: &mpsc::UnboundedSender<Command>) {
        if let Some(known) = self.lock().get_mut(&shared.id()) {
            known.commands = commands.downgrade();
        }
    }

    /// A session is over.
    fn forget(&self, shared: &Shared, reason: Reason) {
        shared.close(reason);
        if self.lock().remove(&shared.id()).is_some() {
            *lock(&self.counters.closed)
                .entry(shared.reason())
                .or_default() += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        lock(&self.table)
    }
}

/// A session's place in the table while it is opened. Whoever opens it may give up at any moment.
struct Place {
    sessions: Arc<Sessions>,
    shared: Arc<Shared>,
    kept: bool,
}

impl Place {
    /// It is open: from now on its task keeps the place.
    fn keep(mut self) -> Arc<Shared> {
        self.kept = true;
        Arc::clone(&self.shared)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            self.sessions.lock().remove(&self.shared.id());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose workers a session may be in.
fn tenant(identity: Option<&Identity>) -> String {
    identity.map_or_else(String::new, |identity| identity.id.to_string())
}

/// Layer 1 of the session, with what it may and what it reaches.
fn layer(env: &Env, spec: &SessionSpec) -> Result<alknet_call::Session, Failure> {
    let denied = |text: String| Failure::new(Code::Denied, text);
    let (Some(own), Some(reach)) = (env.authority(), env.scope()) else {
        let text = "the operation that opens the session calls nothing itself";
        return Err(denied(text.to_owned()));
    };
    let authority = authority(own, spec.identity.as_deref());
    let scope = spec.grants.scope(reach);
    alknet_call::Session::open(env, authority, scope).map_err(|error| denied(error.to_string()))
}

/// What both the operation and the identity may.
fn authority(own: &CompositionAuthority, identity: Option<&Identity>) -> CompositionAuthority {
    let Some(identity) = identity else {
        return CompositionAuthority::new("a stranger's script", [""; 0]);
    };
    let texts = |set: &alknet_core::ScopeSet| Vec::<String>::from(set.clone());
    let mut scopes: Vec<String> = texts(&identity.scopes);
    scopes.retain(|scope| own.scopes.allows(scope));
    let narrower = texts(&own.scopes);
    scopes.extend(
        narrower
            .into_iter()
            .filter(|scope| identity.scopes.allows(scope)),
    );
    let label = format!("script of {}", identity.id);
    let mut authority = CompositionAuthority::new(&label, scopes);
    for (kind, ids) in &identity.resources {
        let held = own.resources.get(kind).map_or(&[][..], Vec::as_slice);
        let both = ids.iter().filter(|id| held.contains(id));
        authority = authority.with_resources(kind, both);
    }
    authority
}

/// What a session is told that it may call.
fn listed(env: &Env, grants: &Grants) -> Vec<Operation> {
    let mut bytes = 0;
    let mut operations = Vec::new();
    for found in env.reachable() {
        let spec = found.spec();
        if grants.find(&spec.name, None).is_none() {
            continue;
        }
        let operation = Operation {
            path: spec.name.clone(),
            kind: match spec.op_type {
                alknet_call::OperationType::Mutation => alknet_runtime::Kind::Mutation,
                alknet_call::OperationType::Query => alknet_runtime::Kind::Query,
                alknet_call::OperationType::Subscription => alknet_runtime::Kind::Subscription,
            },
            input: spec.input_schema.clone(),
            output: spec.output_schema.clone(),
            description: spec.description.clone(),
        };
        bytes += serde_json::to_string(&operation).map_or(0, |text| text.len());
        if operations.len() >= LISTED_MAX || bytes > LISTED_BYTES_MAX {
            break;
        }
        operations.push(operation);
    }
    operations
}

/// The first frame of a session.
fn opening(
    spec: &mut SessionSpec,
    operations: Vec<Operation>,
    record: Option<Vec<Recorded>>,
    bundle: Hash,
) -> Result<(Told, Vec<std::os::fd::OwnedFd>), alknet_worker::FrameError> {
    let may = |name: &str| operations.iter().any(|operation| operation.path == name);
    let opening = Opening {
        mode: spec.mode,
        grants: Globals {
            ops: true,
            tensor: may("tensor/open"),
            gpu: may("compute/dispatch"),
        },
        frozen: spec.frozen,
        seeded_crypto: spec.seed.is_some(),
        limits: spec.limits.runtime.clone(),
        modules: Opening::texts(&spec.modules),
        imports: Opening::map(&spec.modules),
        main: spec.main.clone(),
        operations,
        record,
    };
    // The node needs the texts no longer.
    spec.modules = alknet_runtime::ModuleSet::new();
    let mut fds = Vec::new();
    let caps: Body = wire::body(&wire::blob(&opening, &mut fds)?)?;
    let told = Told::Open {
        caps,
        limits: wire::body(&spec.limits.runtime)?,
        bundle_hash: Some(bundle),
        seed: spec.seed.map(Hash),
        clock: wire::body(&spec.clock)?,
    };
    Ok((told, fds))
}
