//! Ends idle sessions where a new one needs their place. A service and a REPL wait for their next call without an end,
//! and sessions with other rights never share a worker: a caller of eight services, or the owner of a few REPLs, would
//! otherwise keep workers that others need.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use alknet_runtime::{ScriptFailure, SessionMode};
use alknet_worker::{WorkerError, WorkerLease, WorkerSession};
use futures_util::future::join_all;
use tokio::sync::{RwLock, mpsc, oneshot};
use tokio::time::timeout_at;

use super::actor::SessionCommand;
use super::service::CurrentSession;
use super::session_table::{SessionEntry, SessionPermit};
use super::{ScriptSessions, SessionSpec, lock};
use crate::limits::EVICTION_TRIES_MAX;

/// A service, which ends only while no call has it.
pub(super) type ServiceSession = RwLock<CurrentSession>;

/// What a new session lacks.
enum LackedResource<'a> {
    /// A place among the sessions that run for other callers of this tenant.
    Session(&'a str),
    /// A worker of its tenant's share.
    Share(&'a WorkerLease, &'a str),
    /// A worker of the node's. With `true` all other sessions count that claim one, and otherwise those that claimed
    /// one earlier.
    Worker(&'a WorkerLease, &'a str, bool),
}

/// The time that the opening of one session may spend on making room.
#[derive(Debug)]
pub(super) struct EvictionBudget {
    most: Duration,
    /// The end of that time, from the first lack on.
    until: Option<tokio::time::Instant>,
}

impl EvictionBudget {
    pub(super) const fn new(most: Duration) -> Self {
        Self { most, until: None }
    }

    /// When this search ends. It begins now, unless it has begun.
    fn until(&mut self) -> tokio::time::Instant {
        let most = self.most;
        *self
            .until
            .get_or_insert_with(|| tokio::time::Instant::now() + most)
    }
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
    pub(super) async fn admit_or_evict(
        self: &Arc<Self>,
        tenant: &str,
        spec: &SessionSpec,
        search: &mut EvictionBudget,
    ) -> Result<SessionPermit, ScriptFailure> {
        for _ in 0..EVICTION_TRIES_MAX {
            let admitted = self.admit(tenant, spec);
            if admitted.is_ok() || !spec.lent {
                return admitted;
            }
            let lacked = LackedResource::Session(tenant);
            if !self.evict(&lacked, search.until()).await {
                return admitted;
            }
        }
        self.admit(tenant, spec)
    }

    /// A worker's session for this lease. Where workers are used up, idle sessions give up theirs.
    ///
    /// # Errors
    /// The errors of [`alknet_worker::Workers::open`].
    pub(super) async fn worker(
        self: &Arc<Self>,
        lease: WorkerLease,
        tenant: &str,
        search: &mut EvictionBudget,
    ) -> Result<WorkerSession, WorkerError> {
        for tries in 0..EVICTION_TRIES_MAX {
            let opened = self.workers.open(lease.clone()).await;
            let lacked = match &opened {
                Err(WorkerError::TenantShare) => LackedResource::Share(&lease, tenant),
                Err(WorkerError::Overloaded) => LackedResource::Worker(&lease, tenant, tries > 0),
                _ => return opened,
            };
            if !self.evict(&lacked, search.until()).await {
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

    /// Ends the idle sessions of one worker, or one idle session. Returns whether there were any that ended in time.
    async fn evict(
        self: &Arc<Self>,
        lacked: &LackedResource<'_>,
        until: tokio::time::Instant,
    ) -> bool {
        for idle in self.idle(lacked) {
            if tokio::time::Instant::now() >= until {
                break;
            }
            if self.end_all(idle, until).await {
                return true;
            }
        }
        false
    }

    /// The sessions that may end for what is lacked, those first that are to end first.
    fn idle(&self, lacked: &LackedResource<'_>) -> Vec<Vec<IdleSession>> {
        if let LackedResource::Session(tenant) = *lacked {
            let table = self.lock();
            let lent = table.values().filter(|entry| entry.shared.is_lent());
            let own = lent.filter(|entry| entry.shared.tenant() == tenant);
            let mut idle: Vec<_> = own.filter_map(IdleSession::from_entry).collect();
            idle.sort_by_key(|idle| idle.since);
            return idle.into_iter().map(|idle| vec![idle]).collect();
        }
        // Before the workers: a session that gets one meanwhile counts twice then, and otherwise not at all.
        let claimed = match *lacked {
            LackedResource::Worker(lease, tenant, later) => {
                self.claimed_beside(lease, tenant, later)
            }
            _ => Vec::new(),
        };
        let workers = self.sessions_by_worker();
        // Callers of a tenant's operations use other workers than the tenant itself. What they hold or claim must not
        // keep the tenant's own sessions from a worker, and the other way round.
        let mut counts: HashMap<(&str, bool), usize> = HashMap::new();
        for worker in workers.values() {
            *counts
                .entry((worker.tenant.as_str(), worker.lent))
                .or_default() += 1;
        }
        if let LackedResource::Worker(lease, tenant, _) = *lacked {
            let has = counts.entry((tenant, lease.is_lent())).or_default();
            *has += self.workers.claimed(&claimed, *has);
        }
        let has =
            |tenant: &str, lent: bool| counts.get(&(tenant, lent)).copied().unwrap_or_default();
        let mut order: Vec<_> = workers
            .iter()
            .filter(|(_, worker)| may_end(lacked, worker, has))
            .filter_map(|(pid, worker)| {
                let count = has(&worker.tenant, worker.lent);
                Some((Reverse(count), worker.since()?, *pid))
            })
            .collect();
        order.sort();
        let mut workers = workers;
        let idle = order.into_iter();
        idle.filter_map(|(.., pid)| workers.remove(&pid)?.idle)
            .collect()
    }

    /// The leases of the tenant's other sessions of this kind that claim a worker. Each may be about to get one:
    /// several that begin at once could otherwise end more sessions of others than one after the other. Those that
    /// claimed one later count only with `later`: if all counted each other, none would get a worker. A session that
    /// has made room counts them, since one of them may have taken that room.
    fn claimed_beside(&self, lease: &WorkerLease, tenant: &str, later: bool) -> Vec<WorkerLease> {
        let counts = |other: &WorkerLease| {
            other.is_lent() == lease.is_lent()
                && match later {
                    true => other.claim() != lease.claim(),
                    false => other.claim() < lease.claim(),
                }
        };
        let table = self.lock();
        let own = table.values().filter(|it| it.shared.tenant() == tenant);
        let claiming = own.filter_map(|it| it.shared.claiming());
        claiming.filter(counts).collect()
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
    /// service for whose state there is no room. Returns whether all have ended in time.
    async fn end_all(
        self: &Arc<Self>,
        idle: Vec<IdleSession>,
        until: tokio::time::Instant,
    ) -> bool {
        let is_service = |idle: &IdleSession| idle.mode == SessionMode::Service;
        let (services, repls): (Vec<_>, Vec<_>) = idle.into_iter().partition(is_service);
        let Some(services) = self.uncalled(&services) else {
            return false;
        };
        let sessions = Arc::clone(self);
        // The end runs in a task of its own, to its end even if the caller gives up: half of it would lose the state
        // of a service.
        let ending = tokio::spawn(async move {
            if !sessions.rest(services, until).await {
                return false;
            }
            let ended = join_all(repls.into_iter().map(IdleSession::end)).await;
            ended.into_iter().all(|ended| ended)
        });
        matches!(timeout_at(until, ending).await, Ok(Ok(true)))
    }

    /// The services with these sessions. `None` if a call has one of them, or if there is no room for what they left
    /// when they last ended: then the first of them would end for nothing.
    fn uncalled(&self, idle: &[IdleSession]) -> Option<Vec<(u64, Arc<ServiceSession>)>> {
        if idle.is_empty() {
            return Some(Vec::new());
        }
        // One search at a time: each looks into services that another one may want.
        let services = lock(&self.services);
        let mut found = Vec::new();
        let (mut states, mut has_capacity) = (0, true);
        for service in services.iter().filter_map(Weak::upgrade) {
            // A call that has it keeps the lock.
            let Ok(current) = service.try_write() else {
                continue;
            };
            let id = current.id();
            if idle.iter().any(|idle| idle.id == id) {
                has_capacity &= current.may_rest_beside(states);
                states += current.left_bytes();
                drop(current);
                found.push((id, service));
            }
        }
        (found.len() == idle.len() && has_capacity).then_some(found)
    }

    /// Ends the sessions of these services, one after the other: while its `dispose` runs, each needs room for the
    /// largest state. A call of another one of them does not wait meanwhile. Returns false if a call has one of them,
    /// if there is no room for a state, or at the end of the search's time.
    async fn rest(
        &self,
        services: Vec<(u64, Arc<ServiceSession>)>,
        until: tokio::time::Instant,
    ) -> bool {
        for (id, service) in services {
            if tokio::time::Instant::now() >= until {
                return false;
            }
            let current = {
                let _one_search = lock(&self.services);
                service.try_write_owned()
            };
            let Ok(mut current) = current else {
                return false;
            };
            // A service that was opened again meanwhile has another session, which may be in another worker.
            if current.id() == id && !current.rest().await {
                return false;
            }
        }
        true
    }
}

/// Whether the sessions of a worker may end for what is lacked. `has` is the number of workers of a tenant itself, or
/// with `true` of the callers of its operations.
fn may_end(
    lacked: &LackedResource<'_>,
    worker: &WorkerSessions,
    has: impl Fn(&str, bool) -> usize,
) -> bool {
    let (lease, tenant, others) = match *lacked {
        LackedResource::Session(_) => return false,
        LackedResource::Share(lease, tenant) => (lease, tenant, false),
        LackedResource::Worker(lease, tenant, _) => (lease, tenant, true),
    };
    if worker.tenant == tenant {
        // Callers of a tenant's operations end no session of the tenant itself.
        return worker.lent || !lease.is_lent();
    }
    // A tenant ends no session of another one that has no more than itself.
    others && has(&worker.tenant, worker.lent) > has(tenant, lease.is_lent())
}
