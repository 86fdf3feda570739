//! Ends idle sessions where a new one needs their place. A service and a REPL wait for their next call without an end,
//! and sessions with other rights never share a worker: a caller of eight services, or the owner of a few REPLs, would
//! otherwise keep workers that others need.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Instant;

use alknet_runtime::{ScriptFailure, SessionMode};
use alknet_worker::{WorkerError, WorkerLease, WorkerSession};
use futures_util::future::join_all;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};

use super::actor::SessionCommand;
use super::service::CurrentSession;
use super::session_table::{SessionEntry, SessionPermit};
use super::{ScriptSessions, SessionSpec, lock};
use crate::limits::ROOM_TRIES_MAX;

/// A service, which ends only while no call has it.
pub(super) type ServiceSession = RwLock<CurrentSession>;

/// What a new session lacks.
enum LackedRoom<'a> {
    /// A place among the sessions that run for other callers of this tenant.
    Session(&'a str),
    /// A worker of its tenant's share.
    Share(&'a WorkerLease, &'a str),
    /// A worker of the node's, beside so many others that the tenant is about to get.
    Worker(&'a WorkerLease, &'a str, usize),
}

/// A session in which no call runs, and that can be opened again.
struct IdleSession {
    id: u64,
    mode: SessionMode,
    commands: mpsc::WeakUnboundedSender<SessionCommand>,
    since: Instant,
}

/// The sessions of one worker.
struct WorkerSessions {
    tenant: String,
    lent: bool,
    /// `None` if one of them cannot be ended.
    idle: Option<Vec<IdleSession>>,
}

impl WorkerSessions {
    /// The time since which all of them are idle.
    fn since(&self) -> Option<Instant> {
        self.idle.as_ref()?.iter().map(|idle| idle.since).max()
    }
}

impl IdleSession {
    fn from_entry(entry: &SessionEntry) -> Option<Self> {
        let shared = &entry.shared;
        let mode = shared.mode();
        matches!(mode, SessionMode::Repl | SessionMode::Service).then_some(())?;
        Some(Self {
            id: shared.id(),
            mode,
            commands: entry.commands.clone(),
            since: shared.idle_since()?,
        })
    }

    /// Ends a REPL, unless a line of it has begun. Returns whether it has ended.
    async fn end(self) -> bool {
        let Some(commands) = self.commands.upgrade() else {
            return true;
        };
        let (busy, answer) = oneshot::channel();
        if commands.send(SessionCommand::EndIfIdle(busy)).is_ok() && answer.await.is_ok() {
            return false;
        }
        // The actor drops its worker before its queue, so the worker has one session less.
        commands.closed().await;
        true
    }
}

impl ScriptSessions {
    /// A place for a session. If the sessions for a tenant's callers have none left, the service that was not called
    /// for longest gives up its own.
    ///
    /// # Errors
    /// No service of the tenant is idle.
    pub(super) async fn place(
        self: &Arc<Self>,
        tenant: &str,
        spec: &SessionSpec,
    ) -> Result<SessionPermit, ScriptFailure> {
        for _ in 0..ROOM_TRIES_MAX {
            let admitted = self.admit(tenant, spec);
            if admitted.is_ok() || !spec.lent {
                return admitted;
            }
            if !self.make_room(&LackedRoom::Session(tenant)).await {
                return admitted;
            }
        }
        self.admit(tenant, spec)
    }

    /// A worker's session for the session with this number. Where workers are used up, idle sessions give up theirs.
    ///
    /// # Errors
    /// The errors of [`alknet_worker::Workers::open`].
    pub(super) async fn worker(
        self: &Arc<Self>,
        lease: WorkerLease,
        tenant: &str,
        session: u64,
    ) -> Result<WorkerSession, WorkerError> {
        for tries in 0..ROOM_TRIES_MAX {
            let opened = self.workers.open(lease.clone()).await;
            let lacked = match &opened {
                Err(WorkerError::TenantShare) => LackedRoom::Share(&lease, tenant),
                Err(WorkerError::Overloaded) => {
                    let beside = self.opening_beside(tenant, session, tries > 0);
                    LackedRoom::Worker(&lease, tenant, beside)
                }
                _ => return opened,
            };
            if !self.make_room(&lacked).await {
                return opened;
            }
        }
        self.workers.open(lease).await
    }

    /// Remembers a service, which may have to end while no call has it.
    pub(super) fn register_service(&self, service: &Arc<ServiceSession>) {
        let mut services = lock(&self.services);
        services.retain(|known| known.strong_count() > 0);
        services.push(Arc::downgrade(service));
    }

    /// Ends the idle sessions of one worker, or one idle session. Returns whether there were any.
    async fn make_room(&self, lacked: &LackedRoom<'_>) -> bool {
        for idle in self.idle(lacked) {
            if self.end_all(idle).await {
                return true;
            }
        }
        false
    }

    /// The sessions that may end for what is lacked, those first that are to end first.
    fn idle(&self, lacked: &LackedRoom<'_>) -> Vec<Vec<IdleSession>> {
        if let LackedRoom::Session(tenant) = *lacked {
            let table = self.lock();
            let lent = table.values().filter(|entry| entry.shared.is_lent());
            let own = lent.filter(|entry| entry.shared.tenant() == tenant);
            let mut idle: Vec<_> = own.filter_map(IdleSession::from_entry).collect();
            idle.sort_by_key(|idle| idle.since);
            return idle.into_iter().map(|idle| vec![idle]).collect();
        }
        let workers = self.sessions_by_worker();
        let mut of_tenants: HashMap<&str, usize> = HashMap::new();
        for worker in workers.values() {
            *of_tenants.entry(&worker.tenant).or_default() += 1;
        }
        if let LackedRoom::Worker(_, tenant, beside) = *lacked {
            *of_tenants.entry(tenant).or_default() += beside;
        }
        let has = |tenant: &str| of_tenants.get(tenant).copied().unwrap_or_default();
        let mut order: Vec<_> = workers
            .iter()
            .filter(|(_, worker)| may_end(lacked, worker, has))
            .filter_map(|(pid, worker)| Some((Reverse(has(&worker.tenant)), worker.since()?, *pid)))
            .collect();
        order.sort();
        let mut workers = workers;
        let idle = order.into_iter();
        idle.filter_map(|(.., pid)| workers.remove(&pid)?.idle)
            .collect()
    }

    /// The tenant's other sessions that wait for a worker. Each may be about to get one: several that begin at once
    /// could otherwise end more sessions of others than one after the other. Those that began later count only with
    /// `later`: if all counted each other, none would get a worker. A session that has made room counts them, since one
    /// of them may have taken that room.
    fn opening_beside(&self, tenant: &str, session: u64, later: bool) -> usize {
        let table = self.lock();
        let others = table
            .iter()
            .filter(|(id, _)| **id < session || later && **id > session);
        others
            .filter(|(_, it)| it.shared.pid() == 0 && it.shared.tenant() == tenant)
            .count()
    }

    fn sessions_by_worker(&self) -> BTreeMap<i32, WorkerSessions> {
        let mut workers: BTreeMap<i32, WorkerSessions> = BTreeMap::new();
        for entry in self.lock().values() {
            let pid = entry.shared.pid();
            if pid == 0 {
                // The session still waits for a worker.
                continue;
            }
            let worker = workers.entry(pid).or_insert_with(|| WorkerSessions {
                tenant: entry.shared.tenant(),
                lent: entry.shared.is_lent(),
                idle: Some(Vec::new()),
            });
            worker.idle = worker.idle.take().and_then(|mut idle| {
                idle.push(IdleSession::from_entry(entry)?);
                Some(idle)
            });
        }
        workers
    }

    /// Ends these sessions, if no call has a service among them. A REPL stays whose line begins at this moment, and a
    /// service for whose state there is no room. Returns whether all have ended.
    async fn end_all(&self, idle: Vec<IdleSession>) -> bool {
        let is_service = |idle: &IdleSession| idle.mode == SessionMode::Service;
        let (services, repls): (Vec<_>, Vec<_>) = idle.into_iter().partition(is_service);
        let Some(services) = self.reserved(&services) else {
            return false;
        };
        // The end runs in a task of its own, to its end even if the caller gives up: half of it would lose the state
        // of a service.
        let ending = tokio::spawn(async move {
            // One after the other: while its `dispose` runs, each needs room for the largest state.
            for mut service in services {
                if !service.rest().await {
                    return false;
                }
            }
            let ended = join_all(repls.into_iter().map(IdleSession::end)).await;
            ended.into_iter().all(|ended| ended)
        });
        ending.await.unwrap_or_default()
    }

    /// The services with these sessions, with their locks. `None` if a call has one of them.
    fn reserved(&self, idle: &[IdleSession]) -> Option<Vec<OwnedRwLockWriteGuard<CurrentSession>>> {
        if idle.is_empty() {
            return Some(Vec::new());
        }
        // One search at a time: each looks into services that another one may want.
        let services = lock(&self.services);
        let known = services.iter().filter_map(Weak::upgrade);
        let free = known.filter_map(|service| service.try_write_owned().ok());
        let is_one = |id| idle.iter().any(|idle| idle.id == id);
        let reserved: Vec<_> = free.filter(|service| is_one(service.id())).collect();
        (reserved.len() == idle.len()).then_some(reserved)
    }
}

/// Whether the sessions of a worker may end for what is lacked. `has` is the number of workers of a tenant.
fn may_end(lacked: &LackedRoom<'_>, worker: &WorkerSessions, has: impl Fn(&str) -> usize) -> bool {
    let (lease, tenant, others) = match *lacked {
        LackedRoom::Session(_) => return false,
        LackedRoom::Share(lease, tenant) => (lease, tenant, false),
        LackedRoom::Worker(lease, tenant, _) => (lease, tenant, true),
    };
    if worker.tenant == tenant {
        // Callers of a tenant's operations end no session of the tenant itself.
        return worker.lent || !lease.is_lent();
    }
    // A tenant ends no session of another one that has no more than itself.
    others && has(&worker.tenant) > has(tenant)
}
