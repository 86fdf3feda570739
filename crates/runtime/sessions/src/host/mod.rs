//! The node's side of script sessions.
//!
//! The modules: `spec` describes a session, `opening` begins it, `session_table` counts it among the others,
//! `idle_eviction` ends idle sessions where others need their place,
//! `session` is the handle for the rest of the node, `actor` is the task that exchanges messages with its worker,
//! `capability_calls` has the capability actions, `memory` counts the memory of scripts' values, `allow_list` has the
//! grants, `outgoing` is a call of the script through the registry, `exported_operations` has the operations that the
//! script registered, `service` keeps a session across changes of its code, and `metrics` has the counters.

mod actor;
mod allow_list;
mod capability_calls;
mod exported_operations;
mod failure;
mod idle_eviction;
mod memory;
mod metrics;
mod opening;
mod outgoing;
mod replay;
mod service;
mod session;
mod session_table;
mod shared;
mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alknet_call::Env;
use alknet_core::BoxFuture;
use alknet_runtime::{RuntimeCode, ScriptFailure, SessionMode};
use alknet_worker::{Bytes32, WorkerLease, WorkerRole, Workers};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::limits::{EVICTION_TIME_MAX, SESSIONS_MAX, SESSIONS_OF_TENANT_MAX};
pub use actor::CONSOLE_TARGET;
use actor::{SessionActor, SessionCommand};
use allow_list::CallAllowList;
pub use failure::{declared_errors, to_call_error};
pub(crate) use failure::{of_open, overloaded};
use idle_eviction::{EvictionBudget, ServiceSession};
use memory::SessionMemoryPool;
use metrics::SessionCounters;
use opening::{first_frame, layer, listed, rights, tenant};
pub use replay::ReplayOutcome;
pub use service::ScriptService;
pub use session::{ScriptSession, SessionOutput, YieldedItems};
pub use session_table::SESSION_END_TARGET;
use session_table::SessionEntry;
pub use shared::{SessionEndReason, SessionInfo, SessionState};
pub use spec::{
    Console, PeerSelector, SessionConsoleLine, SessionGrant, SessionGrants, SessionLimits,
    SessionSpec,
};

/// The source of this node's stored tensors. It is used after the session was allowed to call `tensor/open` and this
/// node's own operation of that name has answered.
pub trait TensorFiles: Send + Sync + 'static {
    /// The file of stored content, open for reading: sealed memory, or a file that never changes but may be deleted.
    /// It holds the whole container. Both the outside caller and the session, which `env` has, must be allowed to
    /// read it.
    ///
    /// # Errors
    /// The errors of `tensor/open`.
    fn open(
        &self,
        env: &Env,
        src: Value,
    ) -> BoxFuture<'static, Result<File, alknet_call::CallError>>;
}

/// The settings of sessions on this node.
pub struct SessionsConfig {
    /// The role of their workers.
    pub role: WorkerRole,
    /// The most sessions at once, of all tenants.
    pub sessions_max: usize,
    /// The most sessions of one tenant at once.
    pub of_tenant_max: usize,
    /// The source of stored tensors; without it the node refuses `tensor.open`.
    pub files: Option<Arc<dyn TensorFiles>>,
    /// How long the opening of a session waits for idle sessions to end.
    pub eviction_time: Duration,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            role: WorkerRole::Js,
            sessions_max: SESSIONS_MAX,
            of_tenant_max: SESSIONS_OF_TENANT_MAX,
            files: None,
            eviction_time: EVICTION_TIME_MAX,
        }
    }
}

impl fmt::Debug for SessionsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionsConfig")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// All script sessions of a node.
#[derive(Debug)]
pub struct ScriptSessions {
    workers: Workers,
    config: SessionsConfig,
    next: AtomicU64,
    table: Mutex<BTreeMap<u64, SessionEntry>>,
    counters: SessionCounters,
    memory: SessionMemoryPool,
    /// The services, which may end while no call has them.
    services: Mutex<Vec<Weak<ServiceSession>>>,
}

impl ScriptSessions {
    /// Makes the sessions of these workers.
    #[must_use]
    pub fn new(workers: Workers, config: SessionsConfig) -> Arc<Self> {
        Arc::new(Self {
            workers,
            config,
            next: AtomicU64::new(0),
            table: Mutex::default(),
            counters: SessionCounters::default(),
            memory: SessionMemoryPool::default(),
            services: Mutex::default(),
        })
    }

    /// The workers of the sessions.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Opens a session for a request whose operation has `env`. The session reaches at most what that operation
    /// reaches, and has at most the authority that both the operation and the identity have.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] for settings that no session may have, [`RuntimeCode::Denied`] if the operation itself
    /// may call nothing, [`RuntimeCode::Quota`] if there are too many sessions, [`RuntimeCode::Policy`] and
    /// [`RuntimeCode::WorkerLost`] if there is no worker.
    pub async fn open(
        self: &Arc<Self>,
        env: &Env,
        spec: SessionSpec,
    ) -> Result<ScriptSession, ScriptFailure> {
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
    ) -> Result<ScriptSession, ScriptFailure> {
        spec.check()?;
        let tenant = tenant(spec.identity.as_deref());
        let reach = CallAllowList::new(&spec.grants, spec.identity.as_ref())?;
        let layer = layer(env, &spec)?;
        // The session counts before a worker is requested, which may take a while: waiting sessions count too.
        let mut search = EvictionBudget::new(self.config.eviction_time);
        let place = self.admit_or_evict(&tenant, &spec, &mut search).await?;
        let mut lease = WorkerLease::new(self.config.role, tenant.clone())
            .granted(spec.memory())
            .with_rights(rights(env, &spec));
        if spec.alone {
            lease = lease.alone();
        }
        if spec.lent {
            lease = lease.lent();
            // A service serves all callers, and is opened for the one that calls it now.
            let caller = match spec.mode {
                SessionMode::Service => env.identity().map(AsRef::as_ref),
                _ => spec.payer.as_deref(),
            };
            lease = lease.for_caller(opening::tenant(caller));
        }
        place.shared.set_lease(lease.clone());
        let opened = self.worker(lease, &tenant, &mut search).await;
        let worker = opened.map_err(|error| failure::of_worker(&error))?;
        let operations = listed(&layer.env(env), &spec.grants);
        let bundle = Bytes32(spec.bundle());
        let (opening, fds) = first_frame(&mut spec, operations, None, bundle).map_err(|error| {
            ScriptFailure::new(
                RuntimeCode::Limit,
                format!("the session cannot be sent: {error}"),
            )
        })?;
        let sent = worker.tell(opening, fds);
        sent.map_err(|error| failure::of_call(&error))?;
        let shared = place.into_opened();
        shared.set_worker(worker.pid(), worker.sid());
        let (commands, queue) = mpsc::unbounded_channel();
        self.know(&shared, &commands);
        let session = ScriptSession::new(
            Arc::clone(&shared),
            commands.clone(),
            layer,
            spec.limits.clone(),
            spec.operation(bundle),
        );
        let actor = SessionActor::new(self, worker, shared, &session, queue, spec, reach);
        tokio::spawn(actor.run());
        Ok(session)
    }

    /// Ends a session and all calls in it. Returns whether it existed.
    pub fn kill(&self, id: u64) -> bool {
        let table = self.lock();
        let Some(known) = table.get(&id) else {
            return false;
        };
        let commands = known.commands.upgrade();
        let is_sent = commands.is_some_and(|commands| {
            commands
                .send(SessionCommand::Close(SessionEndReason::Abort))
                .is_ok()
        });
        if is_sent {
            // The state changes at once, because the actor handles the command later.
            known.shared.close(SessionEndReason::Abort);
        }
        is_sent
    }

    /// The open sessions, in the order in which they were opened.
    #[must_use]
    pub fn list(&self) -> Vec<SessionInfo> {
        let table = self.lock();
        table.values().map(|known| known.shared.info()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, SessionEntry>> {
        lock(&self.table)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
