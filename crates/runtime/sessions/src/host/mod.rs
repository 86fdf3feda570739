//! The node's side of script sessions.
//!
//! `spec` is what a session is made of, `opening` how it begins, `place` where it stands among the
//! others, `session` the handle that the rest of the node holds, `actor` the task that listens to its
//! worker and answers it, `acts` what the script does by a capability, `memory` what values of scripts take, `reach` what the script may call, `outgoing` a call of the script's on its
//! way through the registry, `offered` an operation that it registered, `service` what lives on
//! through a change of its code, `counted` what all of them come to in numbers.

mod actor;
mod allow_list;
mod capability_calls;
mod exported_operations;
mod failure;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_call::Env;
use alknet_core::BoxFuture;
use alknet_runtime::{RuntimeCode, ScriptFailure};
use alknet_worker::{Bytes32, WorkerLease, WorkerRole, Workers};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::limits::{SESSIONS_MAX, SESSIONS_OF_TENANT_MAX};
pub use actor::CONSOLE_TARGET;
use actor::{SessionActor, SessionCommand};
use allow_list::CallAllowList;
pub use failure::{declared_errors, to_call_error};
pub(crate) use failure::{of_open, overloaded};
use memory::SessionMemoryPool;
use metrics::SessionCounters;
use opening::{first_frame, layer, listed, rights, tenant};
pub use replay::ReplayOutcome;
pub use service::ScriptService;
pub use session::{ScriptSession, SessionOutput, YieldedItems};
use session_table::SessionEntry;
pub use shared::{SessionEndReason, SessionInfo, SessionState};
pub use spec::{
    Console, PeerSelector, SessionConsoleLine, SessionGrant, SessionGrants, SessionLimits,
    SessionSpec,
};

/// Where the bytes of this node's stored tensors come from. Asked after the session was allowed to call
/// `tensor/open`, and this node's own operation of that name has answered.
pub trait TensorFiles: Send + Sync + 'static {
    /// The file of stored content, open for reading: sealed memory, or a file that is never changed
    /// (it may be deleted). Its bytes are the container as a whole. The caller from outside and the session, which
    /// `env` has, both need to be allowed to read it.
    ///
    /// # Errors
    /// As `tensor/open`.
    fn open(
        &self,
        env: &Env,
        src: Value,
    ) -> BoxFuture<'static, Result<File, alknet_call::CallError>>;
}

/// How sessions run on this node.
pub struct SessionsConfig {
    /// The role of their workers.
    pub role: WorkerRole,
    /// Sessions at once, over all tenants.
    pub sessions_max: usize,
    /// Sessions of one tenant at once.
    pub of_tenant_max: usize,
    /// Where the bytes of stored tensors come from; without it `tensor.open` is refused.
    pub files: Option<Arc<dyn TensorFiles>>,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            role: WorkerRole::Js,
            sessions_max: SESSIONS_MAX,
            of_tenant_max: SESSIONS_OF_TENANT_MAX,
            files: None,
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

/// Every script session of a node.
#[derive(Debug)]
pub struct ScriptSessions {
    workers: Workers,
    config: SessionsConfig,
    next: AtomicU64,
    table: Mutex<BTreeMap<u64, SessionEntry>>,
    counters: SessionCounters,
    memory: SessionMemoryPool,
}

impl ScriptSessions {
    /// Sessions in these workers.
    #[must_use]
    pub fn new(workers: Workers, config: SessionsConfig) -> Arc<Self> {
        Arc::new(Self {
            workers,
            config,
            next: AtomicU64::new(0),
            table: Mutex::default(),
            counters: SessionCounters::default(),
            memory: SessionMemoryPool::default(),
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
    /// [`RuntimeCode::Limit`] for what no session may have, [`RuntimeCode::Denied`] where the operation calls
    /// nothing itself, [`RuntimeCode::Quota`] where there are too many sessions, [`RuntimeCode::Policy`] and
    /// [`RuntimeCode::WorkerLost`] where there is no worker.
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
        // Before a worker is asked for, which may take a while: those that wait for one count as
        // well.
        let place = self.admit(&tenant, &spec)?;
        let mut lease = WorkerLease::new(self.config.role, tenant)
            .granted(spec.memory())
            .with_rights(rights(env, &spec));
        if spec.alone {
            lease = lease.alone();
        }
        if spec.lent {
            lease = lease.lent();
        }
        let opened = self.workers.open(lease).await;
        let worker = opened.map_err(|error| failure::of_worker(&error))?;
        let operations = listed(&layer.env(env), &spec.grants);
        let bundle = Bytes32(spec.bundle());
        let (told, fds) = first_frame(&mut spec, operations, None, bundle).map_err(|error| {
            ScriptFailure::new(
                RuntimeCode::Limit,
                format!("the session cannot be sent: {error}"),
            )
        })?;
        let sent = worker.tell(told, fds);
        sent.map_err(|error| failure::of_call(&error))?;
        let shared = place.keep();
        shared.set_worker(worker.pid());
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

    /// Ends a session and every call in it. Returns whether it was there.
    pub fn kill(&self, id: u64) -> bool {
        let table = self.lock();
        let Some(known) = table.get(&id) else {
            return false;
        };
        let commands = known.commands.upgrade();
        let told = commands.is_some_and(|commands| {
            commands
                .send(SessionCommand::Close(SessionEndReason::Abort))
                .is_ok()
        });
        if told {
            // At once: the actor hears of it later.
            known.shared.close(SessionEndReason::Abort);
        }
        told
    }

    /// Every session that is open, in the order in which they were opened.
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
